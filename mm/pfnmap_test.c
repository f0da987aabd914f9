// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test driver for inserting pfns into VM_PFNMAP and VM_MIXEDMAP mappings.
 *
 * The driver plays the part of a graphics driver: it has objects whose pages
 * live either in "vram", which has no struct pages, or in "ram", and which
 * migrate between the two while userspace has them mapped:
 *
 * - the fault handler takes the object's semaphore for read, looks up where
 *   the pages are now and inserts their pfns before it drops the semaphore;
 * - migration takes the semaphore for write, zaps all mappings of the pages
 *   with unmap_mapping_range() and only then moves the data.
 *
 * So a PTE that was inserted before migration is gone by the time the data
 * moves, and a fault that comes later sees the new place.
 *
 * Lock order:
 *
 *   mmap_lock or VMA lock
 *     pfnmap_test_object.sem
 *       i_mmap_rwsem, page-table locks (in mm)
 *       pfnmap_test_vram.lock
 *
 * User memory is never accessed under the semaphore, because a page fault
 * takes the mmap_lock.
 *
 * See tools/testing/selftests/mm/pfnmap_insert.c, pfnmap_mixed.c and
 * pfnmap_bench.c.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitmap.h>
#include <linux/capability.h>
#include <linux/cleanup.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/iosys-map.h>
#include <linux/ktime.h>
#include <linux/log2.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/pci.h>
#include <linux/pfn_insertion.h>
#include <linux/pseudo_fs.h>
#include <linux/rwsem.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "pfnmap_test.h"

#define PFNMAP_TEST_FS_MAGIC	0x70666e74	/* "pfnt" */

/* QEMU's ivshmem-plain; its shared memory is BAR 2. */
#define PCI_DEVICE_ID_IVSHMEM	0x1110
#define IVSHMEM_BAR		2

/* All of vram is mapped into the kernel: go easy on a small vmalloc area. */
#define PFNMAP_TEST_MAX_VRAM	(IS_ENABLED(CONFIG_64BIT) ? SZ_64M : SZ_16M)

static unsigned long long vram_start;
module_param(vram_start, ullong, 0444);
MODULE_PARM_DESC(vram_start,
		 "Physical address of a reserved range to use as vram, if there is no ivshmem device");

static unsigned long vram_size;
module_param(vram_size, ulong, 0444);
MODULE_PARM_DESC(vram_size, "Size of that range in bytes");

/* Memory without struct pages. */
struct pfnmap_test_vram {
	unsigned long pfn;		/* the first one */
	unsigned long nr;		/* number of pages, 0: no vram */
	unsigned long split;		/* first page with @upper's cache mode */
	struct iosys_map lower;		/* mapping of what is below @split: WC */
	struct iosys_map upper;		/* mapping of the rest: uncached */
	struct pci_dev *pdev;		/* whose memory it is, or NULL */
	struct mutex lock;		/* for the members below */
	unsigned long *used;		/* allocation bitmap */
	unsigned long free;		/* number of clear bits in @used */
};

static struct pfnmap_test_vram vram = {
	.lock = __MUTEX_INITIALIZER(vram.lock),
};

/* Pages of ram that all objects hold. */
static atomic_long_t ram_pages;

/* What it takes to read the clock, as part of each time that is measured. */
static u64 clock_ns;

/* A page full of PFNMAP_TEST_POISON. */
static struct page *poison_page;

/* Pages for PFNMAP_TEST_SLAB_PAGE and PFNMAP_TEST_FREE_PAGE. */
static void *slab_page;
static struct page *free_page;
static struct page *anon_page;

/*
 * What an open file holds.
 *
 * The size, the pfns' array and the flags are set once, when the object is
 * created; the array's entries and the method may change. All of that needs
 * the semaphore held for write.
 */
struct pfnmap_test_object {
	struct rw_semaphore sem;
	struct inode *inode;		/* has the mappings' address_space */
	unsigned long nr_pages;		/* 0 before the object is created */
	unsigned long *pfns;		/* where each page is now */
	unsigned int flags;		/* PFNMAP_TEST_SCATTER etc. */
	bool huge;			/* PFNMAP_TEST_HUGE has been set */
	struct pfnmap_test_method_arg method;

	/* see struct pfnmap_test_stats */
	atomic64_t faults;
	atomic64_t nopage;
	atomic64_t oom;
	atomic64_t sigbus;
	atomic64_t offered;
	atomic64_t insert_ns;
	atomic64_t migrated;
	atomic64_t mkwrites;
};

/*
 * All opens of a misc device share one inode and so one address_space.
 * unmap_mapping_range() on that would zap the mappings of unrelated objects
 * as well, so give each file an inode of its own.
 */
static struct vfsmount *pfnmap_test_mnt;
static int pfnmap_test_mnt_count;

static int pfnmap_test_init_fs_context(struct fs_context *fc)
{
	return init_pseudo(fc, PFNMAP_TEST_FS_MAGIC) ? 0 : -ENOMEM;
}

/* Not mounted before it is used: a mount pins the module. */
static struct file_system_type pfnmap_test_fs_type = {
	.name = "pfnmap_test",
	.owner = THIS_MODULE,
	.init_fs_context = pfnmap_test_init_fs_context,
	.kill_sb = kill_anon_super,
};

static struct inode *pfnmap_test_new_inode(void)
{
	struct inode *inode;
	int err;

	err = simple_pin_fs(&pfnmap_test_fs_type, &pfnmap_test_mnt,
			    &pfnmap_test_mnt_count);
	if (err)
		return ERR_PTR(err);

	inode = alloc_anon_inode(pfnmap_test_mnt->mnt_sb);
	if (IS_ERR(inode))
		simple_release_fs(&pfnmap_test_mnt, &pfnmap_test_mnt_count);

	return inode;
}

static void pfnmap_test_free_inode(struct inode *inode)
{
	iput(inode);
	simple_release_fs(&pfnmap_test_mnt, &pfnmap_test_mnt_count);
}

static bool pfnmap_test_is_vram(unsigned long pfn)
{
	return pfn >= vram.pfn && pfn - vram.pfn < vram.nr;
}

static bool pfnmap_test_is_place(unsigned long pfn, unsigned int place)
{
	return pfnmap_test_is_vram(pfn) == (place == PFNMAP_TEST_VRAM);
}

static struct iosys_map pfnmap_test_vram_addr(unsigned long pfn)
{
	unsigned long n = pfn - vram.pfn;
	struct iosys_map map = vram.lower;

	if (n >= vram.split) {
		map = vram.upper;
		n -= vram.split;
	}
	iosys_map_incr(&map, n << PAGE_SHIFT);

	return map;
}

/* Access to the start of a page, wherever it is. */
static void pfnmap_test_read(unsigned long pfn, void *buf, size_t size)
{
	if (pfnmap_test_is_vram(pfn)) {
		struct iosys_map map = pfnmap_test_vram_addr(pfn);

		iosys_map_memcpy_from(buf, &map, 0, size);
	} else {
		memcpy_from_page(buf, pfn_to_page(pfn), 0, size);
	}
}

static void pfnmap_test_write(unsigned long pfn, const void *buf, size_t size)
{
	if (pfnmap_test_is_vram(pfn)) {
		struct iosys_map map = pfnmap_test_vram_addr(pfn);

		iosys_map_memcpy_to(&map, 0, buf, size);
	} else {
		memcpy_to_page(pfn_to_page(pfn), 0, buf, size);
	}
}

static void pfnmap_test_poison(unsigned long pfn)
{
	pfnmap_test_write(pfn, page_address(poison_page), PAGE_SIZE);
}

static void pfnmap_test_init_page(unsigned long pfn, unsigned long index)
{
	const struct pfnmap_test_page header = {
		.magic = PFNMAP_TEST_MAGIC,
		.index = index,
	};

	if (pfnmap_test_is_vram(pfn)) {
		struct iosys_map map = pfnmap_test_vram_addr(pfn);

		iosys_map_memset(&map, 0, 0, PAGE_SIZE);
	} else {
		clear_highpage(pfn_to_page(pfn));
	}

	pfnmap_test_write(pfn, &header, sizeof(header));
}

static void pfnmap_test_move_page(unsigned long to, unsigned long from)
{
	struct pfnmap_test_page header;
	void *kaddr;

	if (pfnmap_test_is_vram(to)) {
		kaddr = kmap_local_page(pfn_to_page(from));
		pfnmap_test_write(to, kaddr, PAGE_SIZE);
	} else {
		kaddr = kmap_local_page(pfn_to_page(to));
		pfnmap_test_read(from, kaddr, PAGE_SIZE);
	}
	kunmap_local(kaddr);

	pfnmap_test_read(to, &header, sizeof(header));
	header.generation++;
	pfnmap_test_write(to, &header, sizeof(header));

	/* Whoever can still see the old place shall notice. */
	pfnmap_test_poison(from);
}

static void pfnmap_test_free(const unsigned long *pfns, unsigned long nr)
{
	unsigned long i;

	/* Backwards: a tail page is one until the head page has gone. */
	for (i = nr; i--; ) {
		if (pfnmap_test_is_vram(pfns[i])) {
			guard(mutex)(&vram.lock);
			__clear_bit(pfns[i] - vram.pfn, vram.used);
			vram.free++;
		} else {
			struct page *page = pfn_to_page(pfns[i]);

			/* Who else holds a reference frees it later. */
			if (!PageTail(page))
				put_page(page);
			atomic_long_dec(&ram_pages);
		}
		cond_resched();
	}
}

static int pfnmap_test_alloc_ram(unsigned long *pfns, unsigned long nr,
				 bool scatter)
{
	const gfp_t gfp = GFP_HIGHUSER | __GFP_ACCOUNT | __GFP_NOWARN;
	unsigned long n = 0;

	while (n < nr) {
		unsigned int order, used, i;
		struct page *page;

		/*
		 * The first page of a pair, without the second one, is never
		 * next to another such page.
		 */
		order = scatter ? 1 : min(order_base_2(nr - n), MAX_PAGE_ORDER);
		used = scatter ? 1 : min(1UL << order, nr - n);

		for (;;) {
			if (fatal_signal_pending(current)) {
				pfnmap_test_free(pfns, n);
				return -EINTR;
			}

			if (scatter || !order)
				page = alloc_pages(gfp | __GFP_RETRY_MAYFAIL, order);
			else
				page = alloc_pages(gfp | __GFP_NORETRY, order);
			if (page)
				break;

			if (scatter || !order) {
				pfnmap_test_free(pfns, n);
				return -ENOMEM;
			}
			order--;
			used = min(1UL << order, nr - n);
		}

		split_page(page, order);
		for (i = used; i < 1U << order; i++)
			__free_page(page + i);
		for (i = 0; i < used; i++)
			pfns[n++] = page_to_pfn(page + i);
		atomic_long_add(used, &ram_pages);
		cond_resched();
	}

	return 0;
}

/* The pages have one refcount: the first one gives all of them back. */
static int pfnmap_test_alloc_compound(unsigned long *pfns, unsigned long nr)
{
	struct page *page;
	unsigned long i;

	page = alloc_pages(GFP_HIGHUSER | __GFP_ACCOUNT | __GFP_NOWARN |
			   __GFP_COMP, ilog2(nr));
	if (!page)
		return -ENOMEM;
	for (i = 0; i < nr; i++)
		pfns[i] = page_to_pfn(page + i);
	atomic_long_add(nr, &ram_pages);

	return 0;
}

static int pfnmap_test_alloc_vram(unsigned long *pfns, unsigned long nr,
				  bool scatter)
{
	unsigned long n, bit, step = 1;

	if (!vram.nr)
		return -ENODEV;

	guard(mutex)(&vram.lock);

	if (nr > vram.free)
		return -ENOSPC;

	bit = 0;
	if (scatter) {
		step = 2;
	} else {
		bit = bitmap_find_next_zero_area(vram.used, vram.nr, 0, nr, 0);
		if (bit >= vram.nr)	/* fragmented: take what there is */
			bit = 0;
	}

	for (n = 0; n < nr; n++, bit += step) {
		bit = find_next_zero_bit(vram.used, vram.nr, bit);
		if (bit >= vram.nr)
			goto nospace;
		__set_bit(bit, vram.used);
		pfns[n] = vram.pfn + bit;
	}
	vram.free -= nr;

	return 0;

nospace:
	while (n--)
		__clear_bit(pfns[n] - vram.pfn, vram.used);

	return -ENOSPC;
}

static int pfnmap_test_alloc(unsigned long *pfns, unsigned long nr,
			     unsigned int place, bool scatter)
{
	if (place == PFNMAP_TEST_VRAM)
		return pfnmap_test_alloc_vram(pfns, nr, scatter);

	return pfnmap_test_alloc_ram(pfns, nr, scatter);
}

/* The pfn to insert for page @index: its own one, but for some misuse. */
static unsigned long pfnmap_test_pfn(const struct pfnmap_test_object *obj,
				     unsigned long index)
{
	if (unlikely(obj->method.misuse >= PFNMAP_TEST_ZERO_PAGE) &&
	    index == obj->method.misuse_page) {
		switch (obj->method.misuse) {
		case PFNMAP_TEST_ZERO_PAGE:
			return page_to_pfn(ZERO_PAGE(0));
		case PFNMAP_TEST_SLAB_PAGE:
			return page_to_pfn(virt_to_page(slab_page));
		case PFNMAP_TEST_FREE_PAGE:
			return page_to_pfn(free_page);
		case PFNMAP_TEST_ANON_PAGE:
			return page_to_pfn(anon_page);
		}
	}

	return obj->pfns[index];
}

/* How many pages, at most @max, are consecutive from page @index on? */
static unsigned long pfnmap_test_run(const struct pfnmap_test_object *obj,
				     unsigned long index, unsigned long max)
{
	const unsigned long pfn = pfnmap_test_pfn(obj, index);
	unsigned long nr = 1;

	while (nr < max && pfnmap_test_pfn(obj, index + nr) == pfn + nr)
		nr++;

	return nr;
}

static u64 pfnmap_test_ns_since(u64 start)
{
	u64 ns = ktime_get_ns() - start;

	return ns > clock_ns ? ns - clock_ns : 0;
}

/* Arguments of the insertion functions. */
struct pfnmap_test_insert {
	struct pfnmap_test_object *obj;
	unsigned long addr;		/* the first address ... */
	unsigned long index;		/* ... and its page of the object */
	unsigned long pfn;		/* for vmf_insert_pfns() */
	unsigned long nr;		/* number of pages */
};

/* The fault-around window, aligned by address. False: beyond the object. */
static bool pfnmap_test_window(struct vm_fault *vmf,
			       struct pfnmap_test_insert *ins)
{
	const struct pfnmap_test_object *obj = ins->obj;
	const struct vm_area_struct *vma = vmf->vma;
	const unsigned long window = obj->method.window;
	unsigned long first = obj->method.first, end = obj->nr_pages;
	unsigned long offset, before, after;

	if (obj->method.end)
		end = min(end, obj->method.end);
	if (!obj->method.unclamped) {
		ins->nr = vmf_pfns_window(vmf, window, first, end, &ins->addr);
		if (!ins->nr)
			return false;
	} else {
		if (vmf->pgoff < first || vmf->pgoff >= end)
			return false;

		offset = (vmf->address >> PAGE_SHIFT) & (window - 1);
		before = min3(offset, vmf->pgoff - first,
			      (vmf->address - vma->vm_start) >> PAGE_SHIFT);
		after = min3(window - offset, end - vmf->pgoff,
			     (vma->vm_end - vmf->address) >> PAGE_SHIFT);
		ins->addr = vmf->address - (before << PAGE_SHIFT);
		ins->nr = before + after;
	}
	ins->index = vmf->pgoff - ((vmf->address - ins->addr) >> PAGE_SHIFT);

	return true;
}

static bool pfnmap_test_is_mixed(unsigned int method)
{
	return method == PFNMAP_TEST_MIXED ||
	       method == PFNMAP_TEST_MIXED_BATCH ||
	       method == PFNMAP_TEST_MIXED_ITER ||
	       method == PFNMAP_TEST_PAGES;
}

/*
 * Does the method fit the mapping, and all of the window?  It may have changed
 * since mmap(), and to mm anything else is a driver's bug.
 */
static bool pfnmap_test_fits(const struct vm_fault *vmf,
			     const struct pfnmap_test_insert *ins)
{
	const struct pfnmap_test_object *obj = ins->obj;
	const struct vm_area_struct *vma = vmf->vma;
	const bool mixed = pfnmap_test_is_mixed(obj->method.method);
	unsigned long i;

	if (obj->method.misuse)
		return true;

	switch (vma->vm_flags & (VM_PFNMAP | VM_MIXEDMAP)) {
	case VM_PFNMAP:
		return !mixed && (IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL) ||
				  !vma_is_cow_mapping(vma));
	case VM_MIXEDMAP:
		if (mixed)
			return true;
		for (i = 0; i < ins->nr; i++) {
			if (pfn_valid(obj->pfns[ins->index + i]))
				return false;
		}
		return true;
	default:
		return false;
	}
}

static vm_fault_t pfnmap_test_insert_one(struct vm_fault *vmf,
					 struct pfnmap_test_insert *ins,
					 unsigned long i)
{
	const unsigned long addr = ins->addr + (i << PAGE_SHIFT);

	return vmf_insert_pfn(vmf->vma, addr, ins->obj->pfns[ins->index + i]);
}

static vm_fault_t pfnmap_test_insert_loop(struct vm_fault *vmf,
					  struct pfnmap_test_insert *ins)
{
	const unsigned long fault = vmf->pgoff - ins->index;
	vm_fault_t ret;
	unsigned long i;

	ret = pfnmap_test_insert_one(vmf, ins, fault);
	if (ret != VM_FAULT_NOPAGE)
		return ret;

	/* The other pages are a bonus. */
	for (i = 0; i < ins->nr; i++) {
		if (i == fault)
			continue;
		if (pfnmap_test_insert_one(vmf, ins, i) != VM_FAULT_NOPAGE)
			break;
	}

	return VM_FAULT_NOPAGE;
}

static unsigned long pfnmap_test_next(struct vm_fault *vmf, unsigned long addr,
				      unsigned long max, unsigned long *pfn,
				      void *data)
{
	const struct pfnmap_test_insert *ins = data;
	const struct pfnmap_test_object *obj = ins->obj;
	unsigned long index, nr;

	/* Wraps for an address before the object, as some misuse has it. */
	index = vmf->pgoff + (addr >> PAGE_SHIFT) - (vmf->address >> PAGE_SHIFT);
	if (index >= obj->nr_pages)
		return 0;

	*pfn = pfnmap_test_pfn(obj, index);
	nr = pfnmap_test_run(obj, index, min(max, obj->nr_pages - index));

	switch (obj->method.misuse) {
	case PFNMAP_TEST_ITER_HOLE:
		if (addr == vmf->address)
			return 0;
		if (addr < vmf->address)
			nr = min(nr, (vmf->address - addr) >> PAGE_SHIFT);
		break;
	case PFNMAP_TEST_ITER_OVERRUN:
		nr = max + 1;
		break;
	case PFNMAP_TEST_KILL:
		send_sig(SIGKILL, current, 1);
		break;
	}

	return nr;
}

/* Change the arguments into what the insertion functions have to refuse. */
static void pfnmap_test_misuse(struct vm_fault *vmf,
			       struct pfnmap_test_insert *ins)
{
	const struct vm_area_struct *vma = vmf->vma;

	switch (ins->obj->method.misuse) {
	case PFNMAP_TEST_BEFORE_VMA:
		ins->addr = vma->vm_start - PAGE_SIZE;
		ins->nr = ((vmf->address - ins->addr) >> PAGE_SHIFT) + 1;
		ins->pfn = ins->obj->pfns[vmf->pgoff] - (ins->nr - 1);
		break;
	case PFNMAP_TEST_AFTER_VMA:
		ins->addr = vmf->address;
		ins->nr = ((vma->vm_end - ins->addr) >> PAGE_SHIFT) + 1;
		ins->pfn = ins->obj->pfns[vmf->pgoff];
		break;
	case PFNMAP_TEST_NOT_FAULT:
		if (vmf->address > vma->vm_start) {
			ins->addr = vmf->address - PAGE_SIZE;
			ins->pfn = ins->obj->pfns[vmf->pgoff - 1];
		} else {
			ins->addr = vmf->address + PAGE_SIZE;
			ins->pfn = ins->obj->pfns[vmf->pgoff] + 1;
		}
		ins->nr = 1;
		break;
	case PFNMAP_TEST_NO_PAGES:
		ins->nr = 0;
		break;
	case PFNMAP_TEST_WRAP:
		/* The end address looks as if there was one page. */
		ins->addr = vmf->address;
		ins->nr = (1UL << (BITS_PER_LONG - PAGE_SHIFT)) + 1;
		ins->pfn = ins->obj->pfns[vmf->pgoff];
		break;
	case PFNMAP_TEST_UNALIGNED:
		ins->addr = vmf->address - sizeof(long);
		ins->nr = 2;
		ins->pfn = ins->obj->pfns[vmf->pgoff];
		break;
	}
}

/* Only the run that the faulting page is part of. */
static void pfnmap_test_clamp_to_run(struct vm_fault *vmf,
				     struct pfnmap_test_insert *ins)
{
	const struct pfnmap_test_object *obj = ins->obj;
	unsigned long first;

	for (first = vmf->pgoff; first > ins->index; first--) {
		if (pfnmap_test_pfn(obj, first - 1) + 1 !=
		    pfnmap_test_pfn(obj, first))
			break;
	}
	ins->addr += (first - ins->index) << PAGE_SHIFT;
	ins->nr = pfnmap_test_run(obj, first, ins->nr - (first - ins->index));
	ins->index = first;
	ins->pfn = pfnmap_test_pfn(obj, first);
}

/* What has a struct page, as a page: refcounted, in the rmap, accounted. */
static vm_fault_t pfnmap_test_insert_pages(struct vm_fault *vmf,
					   struct pfnmap_test_insert *ins)
{
	unsigned long i;
	int err;

	for (i = 0; i < ins->nr; i++) {
		const unsigned long pfn = pfnmap_test_pfn(ins->obj,
							  ins->index + i);

		if (!pfn_valid(pfn))
			return VM_FAULT_SIGBUS;
		err = vm_insert_page(vmf->vma, ins->addr + (i << PAGE_SHIFT),
				     pfn_to_page(pfn));
		if (err && err != -EBUSY)
			return vmf_error(err);
	}

	return VM_FAULT_NOPAGE;
}

static vm_fault_t pfnmap_test_insert(struct vm_fault *vmf,
				     struct pfnmap_test_object *obj)
{
	struct pfnmap_test_insert ins = { .obj = obj };
	vm_fault_t ret;
	u64 start;

	if (!pfnmap_test_window(vmf, &ins) || !pfnmap_test_fits(vmf, &ins))
		return VM_FAULT_SIGBUS;

	/* What pfn_mkwrite would do with the next fault */
	if (vmf->flags & FAULT_FLAG_WRITE && obj->flags & PFNMAP_TEST_NOTIFY &&
	    (vmf->vma->vm_flags & (VM_PFNMAP | VM_SHARED)) == (VM_PFNMAP | VM_SHARED)) {
		atomic64_inc(&obj->mkwrites);
		return vmf_insert_pfn_mkwrite(vmf, obj->pfns[vmf->pgoff]);
	}

	switch (obj->method.method) {
	case PFNMAP_TEST_LOOP:
		start = ktime_get_ns();
		ret = pfnmap_test_insert_loop(vmf, &ins);
		break;
	case PFNMAP_TEST_BATCH:
		pfnmap_test_clamp_to_run(vmf, &ins);
		if (obj->method.misuse)
			pfnmap_test_misuse(vmf, &ins);

		start = ktime_get_ns();
		ret = vmf_insert_pfns(vmf, ins.addr, ins.pfn, ins.nr);
		break;
	case PFNMAP_TEST_MIXED_BATCH:
		pfnmap_test_clamp_to_run(vmf, &ins);
		if (obj->method.misuse)
			pfnmap_test_misuse(vmf, &ins);

		start = ktime_get_ns();
		ret = vmf_insert_mixed_pfns(vmf, ins.addr, ins.pfn, ins.nr);
		break;
	case PFNMAP_TEST_MIXED_ITER:
		ins.pfn = obj->pfns[ins.index];
		if (obj->method.misuse)
			pfnmap_test_misuse(vmf, &ins);

		start = ktime_get_ns();
		ret = vmf_insert_mixed_pfns_iter(vmf, ins.addr, ins.nr,
						 pfnmap_test_next, &ins);
		break;
	case PFNMAP_TEST_PAGES:
		start = ktime_get_ns();
		ret = pfnmap_test_insert_pages(vmf, &ins);
		break;
	case PFNMAP_TEST_MIXED:
		ins.nr = 1;
		start = ktime_get_ns();
		ret = vmf_insert_mixed(vmf->vma, vmf->address,
				       pfnmap_test_pfn(obj, vmf->pgoff));
		break;
	case PFNMAP_TEST_ITER:
		ins.pfn = obj->pfns[ins.index];
		if (obj->method.misuse)
			pfnmap_test_misuse(vmf, &ins);

		start = ktime_get_ns();
		ret = vmf_insert_pfns_iter(vmf, ins.addr, ins.nr,
					   vmf->vma->vm_page_prot,
					   pfnmap_test_next, &ins);
		break;
	case PFNMAP_TEST_REMAP:
		/* Has been migrated since mmap(). */
	case PFNMAP_TEST_SINGLE:
	default:
		ins.nr = 1;
		start = ktime_get_ns();
		ret = vmf_insert_pfn(vmf->vma, vmf->address,
				     obj->pfns[vmf->pgoff]);
		break;
	}
	atomic64_add(pfnmap_test_ns_since(start), &obj->insert_ns);
	atomic64_add(ins.nr, &obj->offered);

	return ret;
}

static vm_fault_t pfnmap_test_fault(struct vm_fault *vmf)
{
	struct pfnmap_test_object *obj = vmf->vma->vm_private_data;
	vm_fault_t ret;

	/*
	 * Hold the semaphore until the pfns are in the page tables: a
	 * migration in between would not see the PTEs that it has to zap.
	 */
	down_read(&obj->sem);
	ret = pfnmap_test_insert(vmf, obj);
	up_read(&obj->sem);

	atomic64_inc(&obj->faults);
	if (ret & VM_FAULT_OOM)
		atomic64_inc(&obj->oom);
	else if (ret & VM_FAULT_SIGBUS)
		atomic64_inc(&obj->sigbus);
	else if (ret & VM_FAULT_NOPAGE)
		atomic64_inc(&obj->nopage);

	return ret;
}

static vm_fault_t pfnmap_test_huge_fault(struct vm_fault *vmf,
					 unsigned int order)
{
#ifdef CONFIG_ARCH_SUPPORTS_PMD_PFNMAP
	struct vm_area_struct *vma = vmf->vma;
	struct pfnmap_test_object *obj = vma->vm_private_data;
	const unsigned long addr = vmf->address & PMD_MASK;
	const pgoff_t index = linear_page_index(vma, addr);

	if (order != PMD_ORDER || addr < vma->vm_start ||
	    vma->vm_end - addr < PMD_SIZE)
		return VM_FAULT_FALLBACK;

	guard(rwsem_read)(&obj->sem);
	if (obj->method.method == PFNMAP_TEST_HUGE && !obj->method.misuse &&
	    (vma->vm_flags & (VM_PFNMAP | VM_MIXEDMAP)) == VM_PFNMAP &&
	    !vma_is_cow_mapping(vma) && obj->nr_pages >= PTRS_PER_PTE &&
	    index <= obj->nr_pages - PTRS_PER_PTE &&
	    IS_ALIGNED(obj->pfns[index], PTRS_PER_PTE) &&
	    pfnmap_test_run(obj, index, PTRS_PER_PTE) == PTRS_PER_PTE)
		return vmf_insert_pfn_pmd(vmf, obj->pfns[index],
					  vmf->flags & FAULT_FLAG_WRITE);
#endif
	return VM_FAULT_FALLBACK;
}

/* What is mapped as a page is not writable yet. */
static vm_fault_t pfnmap_test_page_mkwrite(struct vm_fault *vmf)
{
	struct pfnmap_test_object *obj = vmf->vma->vm_private_data;

	guard(rwsem_read)(&obj->sem);
	atomic64_inc(&obj->mkwrites);
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

	atomic64_inc(&obj->mkwrites);
	if (pte_pfn(vmf->orig_pte) == page_to_pfn(ZERO_PAGE(0)))
		return VM_FAULT_SIGBUS;
	return 0;
}

/*
 * Not in mmap_prepare(): the VMA has to be visible to unmap_mapping_range()
 * before the object's pfns are looked up, or a migration in between would
 * leave stale PTEs behind. This VMA is in the mapping's interval tree, and
 * it is new, so current->mm is locked for write.
 */
static int pfnmap_test_mapped(unsigned long start, unsigned long end,
			      pgoff_t pgoff, const struct file *file,
			      void **vm_private_data)
{
	struct pfnmap_test_object *obj = *vm_private_data;
	struct vm_area_struct *vma;
	unsigned long addr, nr;
	u64 time, ns = 0;
	int err = 0;

	vma = vma_lookup(current->mm, start);
	if (WARN_ON_ONCE(!vma || vma->vm_start != start || vma->vm_end != end))
		return -EINVAL;

	down_read(&obj->sem);
	for (addr = start; addr < end; addr += nr << PAGE_SHIFT, pgoff += nr) {
		unsigned long pfn = obj->pfns[pgoff];

		nr = pfnmap_test_run(obj, pgoff, (end - addr) >> PAGE_SHIFT);
		/* remap_pfn_range() wants a single cache mode */
		if (pfnmap_test_is_vram(pfn) && pfn - vram.pfn < vram.split)
			nr = min(nr, vram.pfn + vram.split - pfn);

		time = ktime_get_ns();
		err = remap_pfn_range(vma, addr, pfn, nr << PAGE_SHIFT,
				      vma->vm_page_prot);
		ns += pfnmap_test_ns_since(time);
		atomic64_add(nr, &obj->offered);
		if (err)
			break;
		cond_resched();
	}
	up_read(&obj->sem);
	atomic64_add(ns, &obj->insert_ns);

	return err;
}

static const struct vm_operations_struct pfnmap_test_vm_ops = {
	.fault = pfnmap_test_fault,
};

static const struct vm_operations_struct pfnmap_test_huge_vm_ops = {
	.fault = pfnmap_test_fault,
	.huge_fault = pfnmap_test_huge_fault,
};

static const struct vm_operations_struct pfnmap_test_notify_vm_ops = {
	.fault = pfnmap_test_fault,
	.page_mkwrite = pfnmap_test_page_mkwrite,
	.pfn_mkwrite = pfnmap_test_pfn_mkwrite,
};

static const struct vm_operations_struct pfnmap_test_remap_vm_ops = {
	.fault = pfnmap_test_fault,
	.mapped = pfnmap_test_mapped,
};

static int pfnmap_test_mmap_prepare(struct vm_area_desc *desc)
{
	struct pfnmap_test_object *obj = desc->file->private_data;
	const unsigned long nr = vma_desc_pages(desc);
	struct pfnmap_test_method_arg method;
	unsigned long nr_pages;
	unsigned int flags;

	down_read(&obj->sem);
	method = obj->method;
	nr_pages = obj->nr_pages;
	flags = obj->flags;
	up_read(&obj->sem);

	if (!nr_pages)
		return -ENXIO;
	if (desc->pgoff >= nr_pages || nr > nr_pages - desc->pgoff)
		return -EINVAL;
	/* remap_pfn_range() would have to be called for all of the VMA. */
	if (vma_desc_is_cow_mapping(desc) &&
	    (method.method == PFNMAP_TEST_REMAP ||
	     (!IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL) &&
	      !(flags & PFNMAP_TEST_MIXEDMAP) &&
	      method.misuse != PFNMAP_TEST_COW_VMA)))
		return -EINVAL;
	if (pfnmap_test_is_mixed(method.method) &&
	    !(flags & PFNMAP_TEST_MIXEDMAP) && !method.misuse)
		return -EINVAL;
	/* remap_pfn_range() makes the mapping VM_PFNMAP */
	if ((method.method == PFNMAP_TEST_REMAP ||
	     method.method == PFNMAP_TEST_HUGE) &&
	    (flags & PFNMAP_TEST_MIXEDMAP))
		return -EINVAL;

	if (!(flags & PFNMAP_TEST_NO_IO))
		vma_desc_set_flags(desc, VMA_IO_BIT, VMA_DONTEXPAND_BIT,
				   VMA_DONTDUMP_BIT);
	switch (method.misuse) {
	case PFNMAP_TEST_BOTH_FLAGS:
		vma_desc_set_flags(desc, VMA_PFNMAP_BIT, VMA_MIXEDMAP_BIT);
		break;
	case PFNMAP_TEST_NO_FLAGS:
		break;
	default:
		if (flags & PFNMAP_TEST_MIXEDMAP)
			vma_desc_set_flags(desc, VMA_MIXEDMAP_BIT);
		else
			vma_desc_set_flags(desc, VMA_PFNMAP_BIT);
		break;
	}

	desc->private_data = obj;
	if (method.method == PFNMAP_TEST_REMAP)
		desc->vm_ops = &pfnmap_test_remap_vm_ops;
	else if (method.method == PFNMAP_TEST_HUGE)
		desc->vm_ops = &pfnmap_test_huge_vm_ops;
	else if (flags & PFNMAP_TEST_NOTIFY)
		desc->vm_ops = &pfnmap_test_notify_vm_ops;
	else
		desc->vm_ops = &pfnmap_test_vm_ops;

	return 0;
}

static int pfnmap_test_create(struct pfnmap_test_object *obj,
			      const struct pfnmap_test_create *arg)
{
	const bool scatter = arg->flags & PFNMAP_TEST_SCATTER;
	unsigned long *pfns, *alloc, i, nr, nr_here;
	int err;

	if (!arg->nr_pages || arg->nr_pages > PFNMAP_TEST_MAX_PAGES)
		return -EINVAL;
	if (arg->place != PFNMAP_TEST_RAM && arg->place != PFNMAP_TEST_VRAM)
		return -EINVAL;
	if (arg->flags & ~(PFNMAP_TEST_SCATTER | PFNMAP_TEST_MIXEDMAP |
			   PFNMAP_TEST_ALTERNATE | PFNMAP_TEST_NO_IO |
			   PFNMAP_TEST_NOTIFY | PFNMAP_TEST_COMPOUND))
		return -EINVAL;
	if ((arg->flags & PFNMAP_TEST_NO_IO) &&
	    !(arg->flags & PFNMAP_TEST_MIXEDMAP))
		return -EINVAL;
	if ((arg->flags & PFNMAP_TEST_COMPOUND) &&
	    (arg->place != PFNMAP_TEST_RAM || !is_power_of_2(arg->nr_pages) ||
	     arg->nr_pages > MAX_ORDER_NR_PAGES ||
	     (arg->flags & (PFNMAP_TEST_SCATTER | PFNMAP_TEST_ALTERNATE))))
		return -EINVAL;
	if (arg->reserved[0] || arg->reserved[1])
		return -EINVAL;

	nr = arg->nr_pages;
	nr_here = arg->flags & PFNMAP_TEST_ALTERNATE ? DIV_ROUND_UP(nr, 2) : nr;

	if (down_write_killable(&obj->sem))
		return -EINTR;

	err = -EBUSY;
	if (obj->nr_pages)
		goto unlock;

	err = -ENOMEM;
	pfns = kvmalloc_array(nr, sizeof(*pfns), GFP_KERNEL_ACCOUNT);
	alloc = kvmalloc_array(nr, sizeof(*alloc), GFP_KERNEL_ACCOUNT);
	if (!pfns || !alloc)
		goto free_arrays;

	if (arg->flags & PFNMAP_TEST_COMPOUND)
		err = pfnmap_test_alloc_compound(alloc, nr);
	else
		err = pfnmap_test_alloc(alloc, nr_here, arg->place, scatter);
	if (err)
		goto free_arrays;

	if (nr_here < nr) {
		err = pfnmap_test_alloc(alloc + nr_here, nr - nr_here,
					arg->place == PFNMAP_TEST_RAM ?
					PFNMAP_TEST_VRAM : PFNMAP_TEST_RAM,
					scatter);
		if (err) {
			pfnmap_test_free(alloc, nr_here);
			goto free_arrays;
		}
	}

	for (i = 0; i < nr; i++) {
		if (!(arg->flags & PFNMAP_TEST_ALTERNATE))
			pfns[i] = alloc[i];
		else
			pfns[i] = alloc[i / 2 + (i & 1 ? nr_here : 0)];
		pfnmap_test_init_page(pfns[i], i);
		cond_resched();
	}

	obj->flags = arg->flags;
	swap(obj->pfns, pfns);
	obj->nr_pages = nr;
	err = 0;

free_arrays:
	kvfree(alloc);
	kvfree(pfns);
unlock:
	up_write(&obj->sem);
	return err;
}

static int pfnmap_test_migrate(struct pfnmap_test_object *obj,
			       const struct pfnmap_test_migrate *arg)
{
	unsigned long *pfns, first, end, i, n = 0, nr = 0;
	int err;

	if (arg->place != PFNMAP_TEST_RAM && arg->place != PFNMAP_TEST_VRAM)
		return -EINVAL;
	if (arg->flags || arg->reserved[0] || arg->reserved[1])
		return -EINVAL;
	if (!arg->nr)
		return -EINVAL;
	if (arg->place == PFNMAP_TEST_VRAM && !vram.nr)
		return -ENODEV;

	if (down_write_killable(&obj->sem))
		return -EINTR;

	err = -ENXIO;
	if (!obj->nr_pages)
		goto unlock;

	err = -EINVAL;
	if (obj->flags & PFNMAP_TEST_COMPOUND)
		goto unlock;
	if (arg->first >= obj->nr_pages ||
	    arg->nr > obj->nr_pages - arg->first)
		goto unlock;
	first = arg->first;
	end = first + arg->nr;

	for (i = first; i < end; i++)
		nr += !pfnmap_test_is_place(obj->pfns[i], arg->place);

	err = 0;
	if (!nr)
		goto unlock;

	/* Before anything changes: from the next step on nothing may fail. */
	err = -ENOMEM;
	pfns = kvmalloc_array(nr, sizeof(*pfns), GFP_KERNEL_ACCOUNT);
	if (!pfns)
		goto unlock;
	err = pfnmap_test_alloc(pfns, nr, arg->place,
				obj->flags & PFNMAP_TEST_SCATTER);
	if (err)
		goto free_array;

	/*
	 * Unmap first, copy then. The other way round, userspace could store
	 * to a page that is copied already but still mapped, and the store
	 * would be lost. Once this returns, all CPUs have flushed their TLBs
	 * and faults wait for the semaphore.
	 */
	unmap_mapping_range(obj->inode->i_mapping, (loff_t)first << PAGE_SHIFT,
			    (loff_t)(end - first) << PAGE_SHIFT, 1);

	/* The new pfns go to the object, the old ones to the array. */
	for (i = first; i < end; i++) {
		if (pfnmap_test_is_place(obj->pfns[i], arg->place))
			continue;
		pfnmap_test_move_page(pfns[n], obj->pfns[i]);
		swap(pfns[n], obj->pfns[i]);
		n++;
		cond_resched();
	}
	pfnmap_test_free(pfns, nr);
	atomic64_add(nr, &obj->migrated);

free_array:
	kvfree(pfns);
unlock:
	up_write(&obj->sem);
	return err;
}

static bool pfnmap_test_misuse_ok(const struct pfnmap_test_method_arg *arg)
{
	switch (arg->misuse) {
	case PFNMAP_TEST_NO_MISUSE:
		return true;
	case PFNMAP_TEST_BEFORE_VMA:
	case PFNMAP_TEST_AFTER_VMA:
	case PFNMAP_TEST_NOT_FAULT:
	case PFNMAP_TEST_NO_PAGES:
	case PFNMAP_TEST_WRAP:
	case PFNMAP_TEST_UNALIGNED:
		return arg->method == PFNMAP_TEST_BATCH ||
		       arg->method == PFNMAP_TEST_ITER ||
		       arg->method == PFNMAP_TEST_MIXED_BATCH ||
		       arg->method == PFNMAP_TEST_MIXED_ITER;
	case PFNMAP_TEST_UNCHECKED:
	case PFNMAP_TEST_COW_VMA:
		return arg->method != PFNMAP_TEST_REMAP &&
		       !pfnmap_test_is_mixed(arg->method);
	case PFNMAP_TEST_BOTH_FLAGS:
	case PFNMAP_TEST_NO_FLAGS:
		return arg->method != PFNMAP_TEST_REMAP &&
		       /* vm_insert_page() would bring the kernel down. */
		       arg->method != PFNMAP_TEST_PAGES;
	case PFNMAP_TEST_ITER_HOLE:
	case PFNMAP_TEST_ITER_OVERRUN:
	case PFNMAP_TEST_KILL:
		return arg->method == PFNMAP_TEST_ITER ||
		       arg->method == PFNMAP_TEST_MIXED_ITER;
	case PFNMAP_TEST_SLAB_PAGE:
	case PFNMAP_TEST_FREE_PAGE:
	case PFNMAP_TEST_ANON_PAGE:
		return pfnmap_test_is_mixed(arg->method);
	case PFNMAP_TEST_ZERO_PAGE:
		return pfnmap_test_is_mixed(arg->method) &&
		       arg->method != PFNMAP_TEST_PAGES;
	default:
		return false;
	}
}

static int pfnmap_test_set_method(struct pfnmap_test_object *obj,
				  const struct pfnmap_test_method_arg *arg)
{
	if (arg->method >= PFNMAP_TEST_NR_METHODS)
		return -EINVAL;
	if (!pfnmap_test_misuse_ok(arg))
		return -EINVAL;
	if (!is_power_of_2(arg->window) || arg->window > PFNMAP_TEST_MAX_WINDOW)
		return -EINVAL;
	if (arg->unclamped > 1)
		return -EINVAL;
	if (arg->misuse_page && arg->misuse < PFNMAP_TEST_ZERO_PAGE)
		return -EINVAL;
	if (arg->reserved[0] || arg->reserved[1])
		return -EINVAL;

	if (down_write_killable(&obj->sem))
		return -EINTR;
	obj->method = *arg;
	obj->huge |= arg->method == PFNMAP_TEST_HUGE;
	up_write(&obj->sem);

	return 0;
}

static void pfnmap_test_get_stats(struct pfnmap_test_object *obj,
				  struct pfnmap_test_stats *stats)
{
	*stats = (struct pfnmap_test_stats) {
		.faults = atomic64_read(&obj->faults),
		.nopage = atomic64_read(&obj->nopage),
		.oom = atomic64_read(&obj->oom),
		.sigbus = atomic64_read(&obj->sigbus),
		.offered = atomic64_read(&obj->offered),
		.insert_ns = atomic64_read(&obj->insert_ns),
		.migrated = atomic64_read(&obj->migrated),
		.pte_special = IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL),
		.ptrs_per_pte = PTRS_PER_PTE,
		.vram_pages = vram.nr,
		.ram_pages = atomic_long_read(&ram_pages),
		.memtype_split = vram.split,
		.mkwrites = atomic64_read(&obj->mkwrites),
	};

	guard(mutex)(&vram.lock);
	stats->vram_free = vram.free;
}

static void pfnmap_test_reset_stats(struct pfnmap_test_object *obj)
{
	atomic64_set(&obj->faults, 0);
	atomic64_set(&obj->nopage, 0);
	atomic64_set(&obj->oom, 0);
	atomic64_set(&obj->sigbus, 0);
	atomic64_set(&obj->offered, 0);
	atomic64_set(&obj->insert_ns, 0);
	atomic64_set(&obj->migrated, 0);
	atomic64_set(&obj->mkwrites, 0);
}

/* Not for modules: s390's pte_pgprot(). The flags are below the pfn there. */
static u64 pfnmap_test_pgprot(pte_t pte)
{
#ifdef CONFIG_S390
	return pte_val(pte) & ~PAGE_MASK;
#else
	return pgprot_val(pte_pgprot(pte));
#endif
}

/* The page table lock is held: what the PTE refers to stays. */
static int pfnmap_test_inspect_pte(pte_t *ptep, unsigned long addr, void *data)
{
	struct pfnmap_test_inspect *arg = data;
	pte_t pte = ptep_get(ptep);
	struct folio *folio;

	if (!pte_present(pte))
		return 0;

	arg->flags = PFNMAP_TEST_PTE_PRESENT;
	if (pte_special(pte))
		arg->flags |= PFNMAP_TEST_PTE_SPECIAL;
	if (pte_write(pte))
		arg->flags |= PFNMAP_TEST_PTE_WRITE;
	if (pte_dirty(pte))
		arg->flags |= PFNMAP_TEST_PTE_DIRTY;
	if (pte_young(pte))
		arg->flags |= PFNMAP_TEST_PTE_YOUNG;
	arg->pfn = pte_pfn(pte);
	arg->pgprot = pfnmap_test_pgprot(pte);
	if (pfn_valid(arg->pfn)) {
		folio = page_folio(pfn_to_page(arg->pfn));
		arg->flags |= PFNMAP_TEST_PFN_VALID;
		if (folio_test_anon(folio))
			arg->flags |= PFNMAP_TEST_ANON;
		arg->refcount = folio_ref_count(folio);
		arg->mapcount = folio_mapcount(folio);
	}

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
		arg->flags = PFNMAP_TEST_PTE_PRESENT | PFNMAP_TEST_LEAF;
		if (args.special)
			arg->flags |= PFNMAP_TEST_PTE_SPECIAL;
		if (args.writable)
			arg->flags |= PFNMAP_TEST_PTE_WRITE;
		arg->pfn = args.pfn;
		arg->pgprot = pgprot_val(args.pgprot);
	}
	follow_pfnmap_end(&args);
	return leaf;
}

static int pfnmap_test_inspect(struct file *file,
			       struct pfnmap_test_inspect *arg)
{
	struct pfnmap_test_object *obj = file->private_data;
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;

	if (arg->reserved0 || arg->reserved[0] || arg->reserved[1])
		return -EINVAL;
	if (arg->addr != (unsigned long)arg->addr || !PAGE_ALIGNED(arg->addr))
		return -EINVAL;

	if (mmap_read_lock_killable(mm))
		return -EINTR;

	vma = vma_lookup(mm, arg->addr);
	if (!vma || vma->vm_file != file) {
		mmap_read_unlock(mm);
		return -EINVAL;
	}

	*arg = (struct pfnmap_test_inspect) {
		.addr = arg->addr,
		.vm_flags = vma->vm_flags,
	};

	/* No fault maps a PMD meanwhile. */
	down_write(&obj->sem);
	/* -EINVAL: there is no page table */
	if (!obj->huge || !pfnmap_test_inspect_leaf(vma, arg))
		apply_to_existing_page_range(mm, arg->addr, PAGE_SIZE,
					     pfnmap_test_inspect_pte, arg);
	up_write(&obj->sem);
	mmap_read_unlock(mm);

	return 0;
}

static int pfnmap_test_page_state(struct pfnmap_test_object *obj,
				  struct pfnmap_test_page_state *arg)
{
	struct folio *folio;

	if (arg->reserved0 || arg->reserved[0] || arg->reserved[1])
		return -EINVAL;

	guard(rwsem_read)(&obj->sem);

	if (arg->index >= obj->nr_pages)
		return -EINVAL;

	*arg = (struct pfnmap_test_page_state) {
		.index = arg->index,
		.pfn = obj->pfns[arg->index],
	};
	if (pfn_valid(arg->pfn)) {
		folio = page_folio(pfn_to_page(arg->pfn));
		arg->flags = PFNMAP_TEST_PFN_VALID;
		arg->refcount = folio_ref_count(folio);
		arg->mapcount = folio_mapcount(folio);
	}

	return 0;
}

static int pfnmap_test_wrprotect(struct pfnmap_test_object *obj)
{
	guard(rwsem_read)(&obj->sem);
	/* It warns of PMDs. */
	if (!obj->nr_pages || obj->huge)
		return -EINVAL;
	wp_shared_mapping_range(obj->inode->i_mapping, 0, obj->nr_pages);
	return 0;
}

/* See hva_to_pfn_remapped() and follow_fault_pfn(). */
static int pfnmap_test_resolve(struct pfnmap_test_resolve *arg)
{
	struct follow_pfnmap_args args = { .address = arg->addr };
	struct mm_struct *mm = current->mm;
	bool unlocked = false;
	int err;

	if (arg->write > 1 || arg->reserved ||
	    arg->addr != (unsigned long)arg->addr)
		return -EINVAL;

	if (mmap_read_lock_killable(mm))
		return -EINTR;

	err = -EFAULT;
	args.vma = vma_lookup(mm, arg->addr);
	if (!args.vma)
		goto unlock;

	err = follow_pfnmap_start(&args);
	if (err) {
		err = fixup_user_fault(mm, arg->addr,
				       arg->write ? FAULT_FLAG_WRITE : 0,
				       &unlocked);
		/* The VMA may have changed. */
		if (unlocked)
			err = -EAGAIN;
		if (!err)
			err = follow_pfnmap_start(&args);
	}
	if (!err) {
		arg->pfn = args.pfn;
		arg->flags = args.writable ? PFNMAP_TEST_PTE_WRITE : 0;
		follow_pfnmap_end(&args);
	}
unlock:
	mmap_read_unlock(mm);

	return err;
}

static long pfnmap_test_ioctl(struct file *file, unsigned int cmd,
			      unsigned long uarg)
{
	struct pfnmap_test_object *obj = file->private_data;
	void __user *argp = (void __user *)uarg;
	union {
		struct pfnmap_test_create create;
		struct pfnmap_test_method_arg method;
		struct pfnmap_test_migrate migrate;
		struct pfnmap_test_stats stats;
		struct pfnmap_test_inspect inspect;
		struct pfnmap_test_page_state page_state;
		struct pfnmap_test_resolve resolve;
	} arg;
	int err;

	switch (cmd) {
	case PFNMAP_TEST_CREATE:
	case PFNMAP_TEST_SET_METHOD:
	case PFNMAP_TEST_MIGRATE:
	case PFNMAP_TEST_INSPECT:
	case PFNMAP_TEST_PAGE_STATE:
	case PFNMAP_TEST_RESOLVE:
		if (copy_from_user(&arg, argp, _IOC_SIZE(cmd)))
			return -EFAULT;
		break;
	}

	switch (cmd) {
	case PFNMAP_TEST_CREATE:
		return pfnmap_test_create(obj, &arg.create);
	case PFNMAP_TEST_SET_METHOD:
		return pfnmap_test_set_method(obj, &arg.method);
	case PFNMAP_TEST_MIGRATE:
		return pfnmap_test_migrate(obj, &arg.migrate);
	case PFNMAP_TEST_WRPROTECT:
		return pfnmap_test_wrprotect(obj);
	case PFNMAP_TEST_GET_STATS:
		pfnmap_test_get_stats(obj, &arg.stats);
		break;
	case PFNMAP_TEST_RESET_STATS:
		pfnmap_test_reset_stats(obj);
		return 0;
	case PFNMAP_TEST_INSPECT:
		err = pfnmap_test_inspect(file, &arg.inspect);
		if (err)
			return err;
		break;
	case PFNMAP_TEST_PAGE_STATE:
		err = pfnmap_test_page_state(obj, &arg.page_state);
		if (err)
			return err;
		break;
	case PFNMAP_TEST_RESOLVE:
		err = pfnmap_test_resolve(&arg.resolve);
		if (err)
			return err;
		break;
	default:
		return -ENOTTY;
	}

	if (copy_to_user(argp, &arg, _IOC_SIZE(cmd)))
		return -EFAULT;

	return 0;
}

static int pfnmap_test_open(struct inode *inode, struct file *file)
{
	struct pfnmap_test_object *obj;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;

	obj = kzalloc_obj(*obj, GFP_KERNEL_ACCOUNT);
	if (!obj)
		return -ENOMEM;

	obj->inode = pfnmap_test_new_inode();
	if (IS_ERR(obj->inode)) {
		int err = PTR_ERR(obj->inode);

		kfree(obj);
		return err;
	}

	init_rwsem(&obj->sem);
	obj->method.method = PFNMAP_TEST_SINGLE;
	obj->method.window = 1;
	file->private_data = obj;
	file->f_mapping = obj->inode->i_mapping;

	return 0;
}

/* VMAs pin the file, so nothing maps the object any more. */
static int pfnmap_test_release(struct inode *inode, struct file *file)
{
	struct pfnmap_test_object *obj = file->private_data;

	pfnmap_test_free(obj->pfns, obj->nr_pages);
	kvfree(obj->pfns);
	pfnmap_test_free_inode(obj->inode);
	kfree(obj);

	return 0;
}

static const struct file_operations pfnmap_test_fops = {
	.owner = THIS_MODULE,
	.open = pfnmap_test_open,
	.release = pfnmap_test_release,
	.mmap_prepare = pfnmap_test_mmap_prepare,
	.unlocked_ioctl = pfnmap_test_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice pfnmap_test_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "pfnmap_test",
	.fops = &pfnmap_test_fops,
	.mode = 0600,
};

/* The range must be all of what the tests need it for: pfns and no pages. */
static int __init pfnmap_test_check_vram(u64 start, u64 size)
{
	unsigned long pfn, nr;

	if (!size || !PAGE_ALIGNED(start) || !PAGE_ALIGNED(size) ||
	    size > PFNMAP_TEST_MAX_VRAM || start + size - 1 < start ||
	    start + size - 1 > iomem_resource.end)
		return -EINVAL;

	if (region_intersects(start, size, IORESOURCE_SYSTEM_RAM,
			      IORES_DESC_NONE) != REGION_DISJOINT)
		return -EINVAL;

	pfn = PHYS_PFN(start);
	for (nr = size >> PAGE_SHIFT; nr; nr--, pfn++) {
		if (pfn_valid(pfn))
			return -EINVAL;
	}

	return 0;
}

/*
 * s390 reaches the memory of devices by instructions of its own, and what its
 * ioremap() returns need not be a mapping. There, vram is memory that mem= keeps
 * from the kernel.
 */
static int __init pfnmap_test_map_vram(struct iosys_map *map, u64 start,
				       unsigned long nr, bool wc)
{
	unsigned long *pfns, i;
	void __iomem *io;
	void *addr;

	if (!IS_ENABLED(CONFIG_S390)) {
		io = wc ? ioremap_wc(start, nr << PAGE_SHIFT) :
			  ioremap(start, nr << PAGE_SHIFT);
		if (!io)
			return -ENOMEM;
		iosys_map_set_vaddr_iomem(map, io);
		return 0;
	}

	pfns = kvmalloc_array(nr, sizeof(*pfns), GFP_KERNEL);
	if (!pfns)
		return -ENOMEM;
	for (i = 0; i < nr; i++)
		pfns[i] = PHYS_PFN(start) + i;
	addr = vmap_pfn(pfns, nr, PAGE_KERNEL);
	kvfree(pfns);
	if (!addr)
		return -ENOMEM;
	iosys_map_set_vaddr(map, addr);
	return 0;
}

static void pfnmap_test_unmap_vram(struct iosys_map *map)
{
	if (iosys_map_is_null(map))
		return;
	if (map->is_iomem)
		iounmap(map->vaddr_iomem);
	else
		vunmap(map->vaddr);
	iosys_map_clear(map);
}

static int __init pfnmap_test_init_vram(void)
{
	u64 start = vram_start, size = vram_size;
	unsigned long nr, split;
	int err;

	/*
	 * There is nothing to drive, and the memory must not go away while it
	 * is mapped, so don't bind to the device but hold on to it.
	 */
	if (!IS_ENABLED(CONFIG_S390))
		vram.pdev = pci_get_device(PCI_VENDOR_ID_REDHAT_QUMRANET,
					   PCI_DEVICE_ID_IVSHMEM, NULL);
	if (vram.pdev) {
		err = pci_enable_device(vram.pdev);
		if (err)
			goto put_device;
		start = pci_resource_start(vram.pdev, IVSHMEM_BAR);
		size = min_t(u64, pci_resource_len(vram.pdev, IVSHMEM_BAR),
			     PFNMAP_TEST_MAX_VRAM);
	} else if (!start && !size) {
		return 0;
	}

	err = pfnmap_test_check_vram(start, size);
	if (err) {
		pr_err("can't use %#llx bytes at %#llx as vram\n", size, start);
		goto disable_device;
	}

	err = -EBUSY;
	if (!request_mem_region(start, size, KBUILD_MODNAME))
		goto disable_device;

	/*
	 * The architecture may remember the cache mode of the kernel's mapping
	 * and use it for userspace too, as x86 does: have two of them.
	 */
	nr = size >> PAGE_SHIFT;
	split = (nr - 1) / 2;	/* within what a PMD maps */

	err = -ENOMEM;
	vram.used = bitmap_zalloc(nr, GFP_KERNEL);
	if (!vram.used)
		goto release_region;
	if (split) {
		err = pfnmap_test_map_vram(&vram.lower, start, split, true);
		if (err)
			goto free_bitmap;
	}
	err = pfnmap_test_map_vram(&vram.upper,
				   start + ((u64)split << PAGE_SHIFT),
				   nr - split, false);
	if (err)
		goto unmap_lower;

	vram.pfn = PHYS_PFN(start);
	vram.split = split;
	vram.free = nr;
	vram.nr = nr;
	pr_info("%lu pages of vram at %#llx\n", nr, start);

	return 0;

unmap_lower:
	pfnmap_test_unmap_vram(&vram.lower);
free_bitmap:
	bitmap_free(vram.used);
release_region:
	release_mem_region(start, size);
disable_device:
	if (vram.pdev)
		pci_disable_device(vram.pdev);
put_device:
	pci_dev_put(vram.pdev);
	return err;
}

static void pfnmap_test_exit_vram(void)
{
	if (!vram.nr)
		return;

	pfnmap_test_unmap_vram(&vram.upper);
	pfnmap_test_unmap_vram(&vram.lower);
	bitmap_free(vram.used);
	release_mem_region(PFN_PHYS(vram.pfn), PFN_PHYS(vram.nr));
	if (vram.pdev)
		pci_disable_device(vram.pdev);
	pci_dev_put(vram.pdev);
}

static void __init pfnmap_test_init_clock(void)
{
	u64 ns, start;
	int i;

	clock_ns = U64_MAX;
	for (i = 0; i < 100; i++) {
		start = ktime_get_ns();
		ns = ktime_get_ns() - start;
		clock_ns = min(clock_ns, ns);
	}
}

static void pfnmap_test_free_pages(void)
{
	if (free_page) {
		if (!page_ref_count(free_page))
			page_ref_unfreeze(free_page, 1);
		__free_page(free_page);
	}
	if (anon_page) {
		anon_page->mapping = NULL;
		__free_page(anon_page);
	}
	kfree(slab_page);
	__free_page(poison_page);
}

static int __init pfnmap_test_init(void)
{
	int err;

	pfnmap_test_init_clock();

	poison_page = alloc_page(GFP_KERNEL);
	if (!poison_page)
		return -ENOMEM;
	memset64(page_address(poison_page), PFNMAP_TEST_POISON,
		 PAGE_SIZE / sizeof(u64));

	err = -ENOMEM;
	slab_page = kmalloc(SZ_64, GFP_KERNEL);
	free_page = alloc_page(GFP_KERNEL);
	anon_page = alloc_page(GFP_KERNEL | __GFP_ZERO);
	if (!slab_page || !free_page || !anon_page)
		goto free_poison;
	/* As far as folio_test_anon() can tell */
	anon_page->mapping = (void *)FOLIO_MAPPING_ANON;
	/* The allocator must not have it, but nobody can tell. */
	page_ref_freeze(free_page, 1);

	err = pfnmap_test_init_vram();
	if (err)
		goto free_poison;

	err = misc_register(&pfnmap_test_misc);
	if (err)
		goto exit_vram;

	return 0;

exit_vram:
	pfnmap_test_exit_vram();
free_poison:
	pfnmap_test_free_pages();
	return err;
}
module_init(pfnmap_test_init);

static void __exit pfnmap_test_exit(void)
{
	misc_deregister(&pfnmap_test_misc);
	pfnmap_test_exit_vram();
	pfnmap_test_free_pages();
}
module_exit(pfnmap_test_exit);

MODULE_DESCRIPTION("Test driver for VM_PFNMAP mappings");
MODULE_LICENSE("GPL");
