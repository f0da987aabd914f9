// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the test driver for pfns in user space has for tests alone: it maps pfns in all
 * ways that there are, and in wrong ones, measures that, and looks at the page tables.
 */
#include <linux/ktime.h>
#include <linux/pagemap.h>
#include <linux/pfn_insertion.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>

#include "pfnmap_test_internal.h"

/* A range to be mapped: addresses, pages of the object, and the first one's pfn */
struct pfnmap_test_range {
	unsigned long addr, index, nr, pfn;
};

/* To be passed to pfnmap_test_measured(), which reads the clock once, too */
static u64 pfnmap_test_start(void)
{
	const u64 before = ktime_get_ns(), start = ktime_get_ns();

	return start + (start - before);
}

static void pfnmap_test_measured(struct pfnmap_test_object *obj, u64 start,
				 unsigned long nr)
{
	const u64 ns = ktime_get_ns() - start;

	guard(spinlock)(&obj->stats_lock);
	obj->stats.insert_ns += ns;
	obj->stats.offered += nr;
}

static void pfnmap_test_count(struct pfnmap_test_object *obj, u64 *counter)
{
	guard(spinlock)(&obj->stats_lock);
	++*counter;
}

static bool pfnmap_test_is_batch(unsigned int method)
{
	return method == PFNMAP_TEST_BATCH || method == PFNMAP_TEST_MIXED_BATCH;
}

static bool pfnmap_test_is_iter(unsigned int method)
{
	return method == PFNMAP_TEST_ITER || method == PFNMAP_TEST_MIXED_ITER;
}

/* False: the object has nothing there, or nothing that may be mapped so. */
static bool pfnmap_test_window(const struct vm_fault *vmf,
			       const struct pfnmap_test_object *obj,
			       struct pfnmap_test_range *r)
{
	const struct pfnmap_test_method_arg *m = &obj->method;
	const unsigned long end = min(m->end ?: ULONG_MAX, obj->nr_pages);
	const bool single = m->method <= PFNMAP_TEST_SINGLE ||
			    m->method == PFNMAP_TEST_MIXED;
	struct vm_area_struct *vma = vmf->vma;
	unsigned long i;

	r->nr = vmf_pfns_window(vmf, single ? 1 : m->window, m->first, end, &r->addr);
	if (!r->nr)
		return false;
	if (!m->window && !single) {
		r->addr = vma->vm_start;
		r->nr = min(vma_pages(vma), end - vma->vm_pgoff);
	}
	r->index = linear_page_index(vma, r->addr);
	r->pfn = obj->pfns[r->index];

	/* It may have been migrated. To mm, anything else is a driver's bug. */
	if (m->misuse || !(obj->flags & PFNMAP_TEST_MIXEDMAP) ||
	    m->method >= PFNMAP_TEST_MIXED)
		return true;
	for (i = 0; i < r->nr; i++) {
		if (pfn_valid(obj->pfns[r->index + i]))
			return false;
	}
	return true;
}

/* Only the run that the faulting page is part of */
static void pfnmap_test_clamp_to_run(const struct vm_fault *vmf,
				     const struct pfnmap_test_object *obj,
				     struct pfnmap_test_range *r)
{
	unsigned long first = vmf->pgoff, skip;

	while (first > r->index && obj->pfns[first - 1] + 1 == obj->pfns[first])
		first--;
	skip = first - r->index;
	r->addr += skip << PAGE_SHIFT;
	r->nr = pfnmap_test_run(obj, first, r->nr - skip);
	r->index = first;
	r->pfn = obj->pfns[first];
}

/* Change the range into what the insertion functions have to refuse. */
static void pfnmap_test_misuse(const struct vm_fault *vmf,
			       const struct pfnmap_test_object *obj,
			       struct pfnmap_test_range *r)
{
	const struct vm_area_struct *vma = vmf->vma;

	r->addr = vmf->address;
	r->nr = 1;
	r->pfn = obj->pfns[vmf->pgoff];
	switch (obj->method.misuse) {
	case PFNMAP_TEST_BEFORE_VMA:
		r->addr = vma->vm_start - PAGE_SIZE;
		r->nr = ((vmf->address - r->addr) >> PAGE_SHIFT) + 1;
		r->pfn -= r->nr - 1;
		break;
	case PFNMAP_TEST_AFTER_VMA:
		r->nr = ((vma->vm_end - r->addr) >> PAGE_SHIFT) + 1;
		break;
	case PFNMAP_TEST_NOT_FAULT:
		r->addr += r->addr > vma->vm_start ? -PAGE_SIZE : PAGE_SIZE;
		break;
	case PFNMAP_TEST_NO_PAGES:
		r->nr = 0;
		break;
	case PFNMAP_TEST_WRAP:
		/* The end address looks as if there was one page. */
		r->nr = (1UL << (BITS_PER_LONG - PAGE_SHIFT)) + 1;
		break;
	case PFNMAP_TEST_UNALIGNED:
		r->addr -= sizeof(long);
		r->nr = 2;
		break;
	}
}

static unsigned long pfnmap_test_misuse_next(struct vm_fault *vmf, unsigned long addr,
					     unsigned long max, unsigned long *pfn,
					     void *data)
{
	const struct pfnmap_test_object *obj = data;
	const unsigned long nr = pfnmap_test_next(vmf, addr, max, pfn, data);

	switch (obj->method.misuse) {
	case PFNMAP_TEST_ITER_HOLE:
		return addr > vmf->address ? nr : min(nr, (vmf->address - addr) >> PAGE_SHIFT);
	case PFNMAP_TEST_ITER_OVERRUN:
		return max + 1;
	case PFNMAP_TEST_KILL:
		send_sig(SIGKILL, current, 1);
		break;
	}
	return nr;
}

static vm_fault_t pfnmap_test_insert_one(struct vm_fault *vmf,
					 const struct pfnmap_test_object *obj,
					 unsigned long index)
{
	const unsigned long addr = vmf->address + ((index - vmf->pgoff) << PAGE_SHIFT);
	const unsigned long pfn = obj->pfns[index];

	switch (obj->method.method) {
	case PFNMAP_TEST_MIXED:
		return vmf_insert_mixed(vmf->vma, addr, pfn);
	case PFNMAP_TEST_PAGES:
		/* Else, vm_insert_page() would bring the kernel down. */
		if (!pfn_valid(pfn) || !(vmf->vma->vm_flags & VM_MIXEDMAP))
			return VM_FAULT_SIGBUS;
		return vmf_insert_page(vmf->vma, addr, pfn_to_page(pfn));
	default:	/* REMAP: it has been migrated since mmap(). */
		return vmf_insert_pfn(vmf->vma, addr, pfn);
	}
}

/* The page of the fault comes first; the other ones are a bonus. */
static vm_fault_t pfnmap_test_insert_each(struct vm_fault *vmf,
					  const struct pfnmap_test_object *obj,
					  const struct pfnmap_test_range *r)
{
	const vm_fault_t ret = pfnmap_test_insert_one(vmf, obj, vmf->pgoff);
	unsigned long i;

	for (i = r->index; i < r->index + r->nr && ret == VM_FAULT_NOPAGE; i++) {
		if (i != vmf->pgoff &&
		    pfnmap_test_insert_one(vmf, obj, i) != VM_FAULT_NOPAGE)
			break;
	}
	return ret;
}

static vm_fault_t pfnmap_test_insert(struct vm_fault *vmf,
				     struct pfnmap_test_object *obj)
{
	const vmf_pfns_fn next = obj->method.misuse ? pfnmap_test_misuse_next :
						      pfnmap_test_next;
	const unsigned int method = obj->method.method;
	struct vm_area_struct *vma = vmf->vma;
	struct pfnmap_test_range r;
	vm_fault_t ret;
	u64 start;

	if (!pfnmap_test_window(vmf, obj, &r))
		return VM_FAULT_SIGBUS;

	/* What pfn_mkwrite would do with the next fault */
	if (vmf->flags & FAULT_FLAG_WRITE && obj->flags & PFNMAP_TEST_NOTIFY &&
	    (vma->vm_flags & (VM_PFNMAP | VM_SHARED)) == (VM_PFNMAP | VM_SHARED)) {
		pfnmap_test_count(obj, &obj->stats.mkwrites);
		return vmf_insert_pfn_mkwrite(vmf, obj->pfns[vmf->pgoff]);
	}

	if (pfnmap_test_is_batch(method))
		pfnmap_test_clamp_to_run(vmf, obj, &r);
	if (obj->method.misuse && obj->method.misuse <= PFNMAP_TEST_UNALIGNED)
		pfnmap_test_misuse(vmf, obj, &r);

	start = pfnmap_test_start();
	switch (method) {
	case PFNMAP_TEST_BATCH:
		ret = vmf_insert_pfns(vmf, r.addr, r.pfn, r.nr);
		break;
	case PFNMAP_TEST_ITER:
		ret = vmf_insert_pfns_iter(vmf, r.addr, r.nr, vma->vm_page_prot, next, obj);
		break;
	case PFNMAP_TEST_MIXED_BATCH:
		ret = vmf_insert_mixed_pfns(vmf, r.addr, r.pfn, r.nr);
		break;
	case PFNMAP_TEST_MIXED_ITER:
		ret = vmf_insert_mixed_pfns_iter(vmf, r.addr, r.nr, next, obj);
		break;
	default:
		ret = pfnmap_test_insert_each(vmf, obj, &r);
		break;
	}
	pfnmap_test_measured(obj, start, r.nr);
	return ret;
}

vm_fault_t pfnmap_test_ops_fault(struct vm_fault *vmf, struct pfnmap_test_object *obj)
{
	const vm_fault_t ret = pfnmap_test_insert(vmf, obj);

	guard(spinlock)(&obj->stats_lock);
	obj->stats.faults++;
	obj->stats.oom += !!(ret & VM_FAULT_OOM);
	obj->stats.sigbus += !!(ret & VM_FAULT_SIGBUS);
	obj->stats.nopage += !!(ret & VM_FAULT_NOPAGE);
	return ret;
}

/* What is mapped as a page is not writable yet. */
static vm_fault_t pfnmap_test_page_mkwrite(struct vm_fault *vmf)
{
	struct pfnmap_test_object *obj = vmf->vma->vm_private_data;

	pfnmap_test_count(obj, &obj->stats.mkwrites);
	guard(rwsem_read)(&obj->sem);
	/* It may have been migrated: then it is not mapped any more. */
	if (vmf->pgoff >= obj->nr_pages ||
	    obj->pfns[vmf->pgoff] != page_to_pfn(vmf->page))
		return VM_FAULT_NOPAGE;

	return vmf_insert_page_mkwrite(vmf, vmf->page, true);
}

/* The same for what is mapped as a pfn: the caller makes it writable. */
static vm_fault_t pfnmap_test_pfn_mkwrite(struct vm_fault *vmf)
{
	struct pfnmap_test_object *obj = vmf->vma->vm_private_data;

	pfnmap_test_count(obj, &obj->stats.mkwrites);
	if (pte_pfn(vmf->orig_pte) == page_to_pfn(ZERO_PAGE(0)))
		return VM_FAULT_SIGBUS;
	return 0;
}

static const struct vm_operations_struct pfnmap_test_notify_vm_ops = {
	.fault = pfnmap_test_fault,
	.page_mkwrite = pfnmap_test_page_mkwrite,
	.pfn_mkwrite = pfnmap_test_pfn_mkwrite,
};

/*
 * Not in mmap_prepare(): unmap_mapping_range() has to find the VMA before the pfns are
 * looked up, or a migration in between would leave stale PTEs.  The VMA is new, so
 * current->mm is locked for write.
 */
static int pfnmap_test_mapped(unsigned long start, unsigned long end,
			      pgoff_t pgoff, const struct file *file,
			      void **vm_private_data)
{
	struct vm_area_struct *vma = vma_lookup(current->mm, start);
	struct pfnmap_test_object *obj = *vm_private_data;
	unsigned long addr, nr;
	int err = 0;
	u64 time;

	if (WARN_ON_ONCE(!vma || vma->vm_start != start || vma->vm_end != end))
		return -EINVAL;

	guard(rwsem_read)(&obj->sem);
	for (addr = start; addr < end && !err; addr += nr << PAGE_SHIFT, pgoff += nr) {
		nr = pfnmap_test_run(obj, pgoff, (end - addr) >> PAGE_SHIFT);
		/* remap_pfn_range() wants a single cache mode. */
		nr = pfnmap_test_memtype_run(obj->pfns[pgoff], nr);
		time = pfnmap_test_start();
		err = remap_pfn_range(vma, addr, obj->pfns[pgoff], nr << PAGE_SHIFT,
				      vma->vm_page_prot);
		pfnmap_test_measured(obj, time, nr);
		cond_resched();
	}
	return err;
}

static const struct vm_operations_struct pfnmap_test_remap_vm_ops = {
	.fault = pfnmap_test_fault,
	.mapped = pfnmap_test_mapped,
};

int pfnmap_test_ops_mmap(struct pfnmap_test_object *obj, struct vm_area_desc *desc)
{
	const bool remap = obj->method.method == PFNMAP_TEST_REMAP;
	const bool mixed = obj->flags & PFNMAP_TEST_MIXEDMAP;
	const unsigned int misuse = obj->method.misuse;

	/* remap_pfn_range() makes it VM_PFNMAP, and a private one all at once. */
	if (remap && (mixed || vma_desc_is_cow_mapping(desc)))
		return -EINVAL;
	if (!IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL) && !mixed &&
	    vma_desc_is_cow_mapping(desc) && misuse != PFNMAP_TEST_COW_VMA)
		return -EINVAL;

	if (!(obj->flags & PFNMAP_TEST_NO_IO))
		vma_desc_set_flags(desc, VMA_IO_BIT, VMA_DONTEXPAND_BIT,
				   VMA_DONTDUMP_BIT);
	if (misuse == PFNMAP_TEST_BOTH_FLAGS || (misuse != PFNMAP_TEST_NO_FLAGS && mixed))
		vma_desc_set_flags(desc, VMA_MIXEDMAP_BIT);
	if (misuse == PFNMAP_TEST_BOTH_FLAGS || (misuse != PFNMAP_TEST_NO_FLAGS && !mixed))
		vma_desc_set_flags(desc, VMA_PFNMAP_BIT);

	if (remap)
		desc->vm_ops = &pfnmap_test_remap_vm_ops;
	else if (obj->flags & PFNMAP_TEST_NOTIFY)
		desc->vm_ops = &pfnmap_test_notify_vm_ops;
	return 0;
}

/* Make a page of the object look as the misuse has it, or good again. */
void pfnmap_test_set_page(struct pfnmap_test_object *obj, bool bad)
{
	unsigned long *pfn = &obj->pfns[obj->method.misuse_page];

	switch (obj->method.misuse) {
	case PFNMAP_TEST_ZERO_PAGE:
	case PFNMAP_TEST_SLAB_PAGE:
		swap(*pfn, obj->other_pfn);
		break;
	case PFNMAP_TEST_FREE_PAGE:
		/* The allocator must not have it, but nobody can tell. */
		set_page_count(pfn_to_page(*pfn), !bad);
		break;
	case PFNMAP_TEST_ANON_PAGE:
		/* As far as folio_test_anon() can tell */
		pfn_to_page(*pfn)->mapping = bad ? (void *)FOLIO_MAPPING_ANON : NULL;
		break;
	}
}

bool pfnmap_test_may_move(const struct pfnmap_test_object *obj)
{
	return !(obj->flags & PFNMAP_TEST_COMPOUND) &&
	       obj->method.misuse < PFNMAP_TEST_ZERO_PAGE;
}

static int pfnmap_test_set_method(struct pfnmap_test_object *obj,
				  const struct pfnmap_test_method_arg *arg)
{
	if (arg->method >= PFNMAP_TEST_NR_METHODS ||
	    arg->misuse >= PFNMAP_TEST_NR_MISUSES)
		return -EINVAL;
	/* Ranges and iterators are not for all methods. */
	if (arg->misuse && arg->misuse <= PFNMAP_TEST_KILL &&
	    !pfnmap_test_is_iter(arg->method) &&
	    (arg->misuse > PFNMAP_TEST_UNALIGNED || !pfnmap_test_is_batch(arg->method)))
		return -EINVAL;

	guard(rwsem_write)(&obj->sem);
	if (!obj->nr_pages)
		return -ENXIO;
	if (arg->method >= PFNMAP_TEST_MIXED && !arg->misuse &&
	    !(obj->flags & PFNMAP_TEST_MIXEDMAP))
		return -EINVAL;
	if (arg->misuse >= PFNMAP_TEST_ZERO_PAGE &&
	    (arg->misuse_page >= obj->nr_pages || !pfn_valid(obj->pfns[arg->misuse_page])))
		return -EINVAL;

	pfnmap_test_set_page(obj, false);
	obj->method = *arg;
	obj->other_pfn = page_to_pfn(arg->misuse == PFNMAP_TEST_ZERO_PAGE ?
				     ZERO_PAGE(0) : virt_to_head_page(obj));
	pfnmap_test_set_page(obj, true);
	return 0;
}

static void pfnmap_test_get_stats(struct pfnmap_test_object *obj,
				  struct pfnmap_test_stats *stats)
{
	scoped_guard(spinlock, &obj->stats_lock)
		memcpy(stats, &obj->stats, sizeof(*stats));
	stats->pte_special = IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL);
	stats->ptrs_per_pte = PTRS_PER_PTE;
	pfnmap_test_memory_stats(stats);
}

/* What is known of a pfn: its page stays as long as the semaphore is held. */
static void pfnmap_test_inspect_pfn(struct pfnmap_test_inspect *arg, unsigned long pfn)
{
	struct folio *folio;

	arg->pfn = pfn;
	if (!pfn_valid(pfn))
		return;
	folio = page_folio(pfn_to_page(pfn));
	arg->flags |= PFNMAP_TEST_PFN_VALID;
	if (folio_test_anon(folio))
		arg->flags |= PFNMAP_TEST_ANON;
	arg->refcount = folio_ref_count(folio);
	arg->mapcount = folio_mapcount(folio);
}

/* The page table lock is held: what the PTE refers to stays. */
static int pfnmap_test_inspect_pte(pte_t *ptep, unsigned long addr, void *data)
{
	struct pfnmap_test_inspect *arg = data;
	pte_t pte = ptep_get(ptep);

	if (!pte_present(pte))
		return 0;

	arg->flags = PFNMAP_TEST_PTE_PRESENT |
		     (pte_special(pte) ? PFNMAP_TEST_PTE_SPECIAL : 0) |
		     (pte_write(pte) ? PFNMAP_TEST_PTE_WRITE : 0) |
		     (pte_dirty(pte) ? PFNMAP_TEST_PTE_DIRTY : 0) |
		     (pte_young(pte) ? PFNMAP_TEST_PTE_YOUNG : 0);
#ifdef CONFIG_S390	/* pte_pgprot() is not for modules; the flags are below the pfn. */
	arg->pgprot = pte_val(pte) & ~PAGE_MASK;
#else
	arg->pgprot = pgprot_val(pte_pgprot(pte));
#endif
	pfnmap_test_inspect_pfn(arg, pte_pfn(pte));
	return 0;
}

/* apply_to_existing_page_range() is for PTEs only. */
static bool pfnmap_test_inspect_leaf(struct vm_area_struct *vma,
				     struct pfnmap_test_inspect *arg)
{
	struct follow_pfnmap_args args = { .vma = vma, .address = arg->addr };
	bool leaf;

	if (!(vma->vm_flags & VM_PFNMAP) || follow_pfnmap_start(&args))
		return false;
	leaf = args.addr_mask != PAGE_MASK;
	if (leaf) {
		arg->flags = PFNMAP_TEST_PTE_PRESENT | PFNMAP_TEST_LEAF |
			     (args.special ? PFNMAP_TEST_PTE_SPECIAL : 0) |
			     (args.writable ? PFNMAP_TEST_PTE_WRITE : 0);
		arg->pgprot = pgprot_val(args.pgprot);
		pfnmap_test_inspect_pfn(arg, args.pfn);
	}
	follow_pfnmap_end(&args);
	return leaf;
}

static int pfnmap_test_inspect(struct file *file, struct pfnmap_test_inspect *arg)
{
	struct pfnmap_test_object *obj = file->private_data;
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;

	if (arg->addr != (unsigned long)arg->addr || !PAGE_ALIGNED(arg->addr))
		return -EINVAL;
	*arg = (struct pfnmap_test_inspect) { .addr = arg->addr };

	guard(mmap_read_lock)(mm);
	vma = vma_lookup(mm, arg->addr);
	if (!vma || vma->vm_file != file)
		return -EINVAL;

	/* No fault maps a PMD meanwhile. */
	guard(rwsem_write)(&obj->sem);
	/* -EINVAL: there is no page table. */
	if (!pfnmap_test_inspect_leaf(vma, arg))
		apply_to_existing_page_range(mm, arg->addr, PAGE_SIZE,
					     pfnmap_test_inspect_pte, arg);
	return 0;
}

static int pfnmap_test_page_state(struct pfnmap_test_object *obj,
				  struct pfnmap_test_inspect *arg)
{
	guard(rwsem_read)(&obj->sem);
	if (arg->index >= obj->nr_pages)
		return -EINVAL;

	*arg = (struct pfnmap_test_inspect) { .index = arg->index };
	pfnmap_test_inspect_pfn(arg, obj->pfns[arg->index]);
	return 0;
}

static int pfnmap_test_wrprotect(struct pfnmap_test_object *obj)
{
	guard(rwsem_read)(&obj->sem);
	/* It warns of PMDs; and who else would notice? */
	if (!(obj->flags & PFNMAP_TEST_NOTIFY))
		return -EINVAL;
	wp_shared_mapping_range(&obj->mapping, 0, obj->nr_pages);
	return 0;
}

/* See hva_to_pfn_remapped() and follow_fault_pfn(). */
static int pfnmap_test_resolve(struct pfnmap_test_resolve *arg)
{
	struct follow_pfnmap_args args = { .address = arg->addr };
	struct mm_struct *mm = current->mm;
	bool unlocked = false;
	int err;

	if (arg->write > 1 || arg->addr != (unsigned long)arg->addr)
		return -EINVAL;

	guard(mmap_read_lock)(mm);
	args.vma = vma_lookup(mm, arg->addr);
	if (!args.vma)
		return -EFAULT;

	if (follow_pfnmap_start(&args)) {
		err = fixup_user_fault(mm, arg->addr,
				       arg->write ? FAULT_FLAG_WRITE : 0, &unlocked);
		/* The VMA may have changed. */
		if (unlocked)
			return -EAGAIN;
		if (!err)
			err = follow_pfnmap_start(&args);
		if (err)
			return err;
	}
	arg->pfn = args.pfn;
	arg->flags = args.writable ? PFNMAP_TEST_PTE_WRITE : 0;
	follow_pfnmap_end(&args);
	return 0;
}

long pfnmap_test_ops_ioctl(struct file *file, unsigned int cmd, void __user *argp)
{
	struct pfnmap_test_object *obj = file->private_data;
	union {
		struct pfnmap_test_method_arg method;
		struct pfnmap_test_stats stats;
		struct pfnmap_test_inspect inspect;
		struct pfnmap_test_resolve resolve;
	} arg;
	int err = 0;

	if (_IOC_SIZE(cmd) > sizeof(arg))
		return -ENOTTY;
	if (_IOC_DIR(cmd) & _IOC_WRITE && copy_from_user(&arg, argp, _IOC_SIZE(cmd)))
		return -EFAULT;

	switch (cmd) {
	case PFNMAP_TEST_SET_METHOD:
		return pfnmap_test_set_method(obj, &arg.method);
	case PFNMAP_TEST_GET_STATS:
		pfnmap_test_get_stats(obj, &arg.stats);
		break;
	case PFNMAP_TEST_RESET_STATS:
		scoped_guard(spinlock, &obj->stats_lock)
			memset(&obj->stats, 0, sizeof(obj->stats));
		return 0;
	case PFNMAP_TEST_INSPECT:
		err = pfnmap_test_inspect(file, &arg.inspect);
		break;
	case PFNMAP_TEST_PAGE_STATE:
		err = pfnmap_test_page_state(obj, &arg.inspect);
		break;
	case PFNMAP_TEST_WRPROTECT:
		return pfnmap_test_wrprotect(obj);
	case PFNMAP_TEST_RESOLVE:
		err = pfnmap_test_resolve(&arg.resolve);
		break;
	default:
		return -ENOTTY;
	}

	if (!err && copy_to_user(argp, &arg, _IOC_SIZE(cmd)))
		return -EFAULT;
	return err;
}
