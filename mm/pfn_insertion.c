// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mapping pages and pfns into user space for drivers and file systems: one or
 * many, from mmap or from a fault handler.
 */
#include <linux/export.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/pfn_insertion.h>
#include <linux/pgalloc.h>
#include <linux/rmap.h>
#include <linux/sched/signal.h>

#include "internal.h"

static pmd_t *walk_to_pmd(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgd;
	p4d_t *p4d;
	pud_t *pud;
	pmd_t *pmd;

	pgd = pgd_offset(mm, addr);
	p4d = p4d_alloc(mm, pgd, addr);
	if (!p4d)
		return NULL;
	pud = pud_alloc(mm, p4d, addr);
	if (!pud)
		return NULL;
	pmd = pmd_alloc(mm, pud, addr);
	if (!pmd)
		return NULL;

	VM_BUG_ON(pmd_trans_huge(*pmd));
	return pmd;
}

pte_t *get_locked_pte(struct mm_struct *mm, unsigned long addr,
		      spinlock_t **ptl)
{
	pmd_t *pmd = walk_to_pmd(mm, addr);

	if (!pmd)
		return NULL;
	return pte_alloc_map_lock(mm, pmd, addr, ptl);
}

static bool vm_mixed_zeropage_allowed(struct vm_area_struct *vma)
{
	VM_WARN_ON_ONCE(vma->vm_flags & VM_PFNMAP);
	/*
	 * Whoever wants to forbid the zeropage after some zeropages
	 * might already have been mapped has to scan the page tables and
	 * bail out on any zeropages. Zeropages in COW mappings can
	 * be unshared using FAULT_FLAG_UNSHARE faults.
	 */
	if (mm_forbids_zeropage(vma->vm_mm))
		return false;
	/* zeropages in COW mappings are common and unproblematic. */
	if (vma_is_cow_mapping(vma))
		return true;
	/* Mappings that do not allow for writable PTEs are unproblematic. */
	if (!(vma->vm_flags & (VM_WRITE | VM_MAYWRITE)))
		return true;
	/*
	 * Why not allow any VMA that has vm_ops->pfn_mkwrite? GUP could
	 * find the shared zeropage and longterm-pin it, which would
	 * be problematic as soon as the zeropage gets replaced by a different
	 * page due to vma->vm_ops->pfn_mkwrite, because what's mapped would
	 * now differ to what GUP looked up. FSDAX is incompatible to
	 * FOLL_LONGTERM and VM_IO is incompatible to GUP completely (see
	 * check_vma_flags).
	 */
	return vma->vm_ops && vma->vm_ops->pfn_mkwrite &&
	       (vma_is_fsdax(vma) || vma->vm_flags & VM_IO);
}

static bool page_insertable(struct vm_area_struct *vma, struct page *page)
{
	struct folio *folio = page_folio(page);

	if (!folio_ref_count(folio))
		return false;
	if (unlikely(is_zero_folio(folio)))
		return vm_mixed_zeropage_allowed(vma);
	return !folio_test_anon(folio) && !page_has_type(page);
}

static int validate_page_before_insert(struct vm_area_struct *vma,
				       struct page *page)
{
	struct folio *folio = page_folio(page);

	if (!page_insertable(vma, page))
		return -EINVAL;
	if (likely(!is_zero_folio(folio)))
		flush_dcache_folio(folio);
	return 0;
}

static int insert_page_into_pte_locked(struct vm_area_struct *vma, pte_t *pte,
				unsigned long addr, struct page *page,
				pgprot_t prot, bool mkwrite)
{
	struct folio *folio = page_folio(page);
	pte_t pteval = ptep_get(pte);

	if (!pte_none(pteval)) {
		if (!mkwrite)
			return -EBUSY;

		/* see insert_pfn(). */
		if (pte_pfn(pteval) != page_to_pfn(page)) {
			WARN_ON_ONCE(!is_zero_pfn(pte_pfn(pteval)));
			return -EFAULT;
		}
		pteval = pte_mkyoung(pteval);
		pteval = maybe_mkwrite(pte_mkdirty(pteval), vma);
		if (ptep_set_access_flags(vma, addr, pte, pteval, 1))
			update_mmu_cache(vma, addr, pte);
		return 0;
	}

	/* Ok, finally just insert the thing.. */
	pteval = mk_pte(page, prot);
	if (unlikely(is_zero_folio(folio))) {
		pteval = pte_mkspecial(pteval);
	} else {
		folio_get(folio);
		pteval = mk_pte(page, prot);
		if (mkwrite) {
			pteval = pte_mkyoung(pteval);
			pteval = maybe_mkwrite(pte_mkdirty(pteval), vma);
		}
		inc_mm_counter(vma->vm_mm, mm_counter_file(folio));
		folio_add_file_rmap_pte(folio, page, vma);
	}
	set_pte_at(vma->vm_mm, addr, pte, pteval);
	return 0;
}

static int insert_page(struct vm_area_struct *vma, unsigned long addr,
			struct page *page, pgprot_t prot, bool mkwrite)
{
	int retval;
	pte_t *pte;
	spinlock_t *ptl;

	retval = validate_page_before_insert(vma, page);
	if (retval)
		goto out;
	retval = -ENOMEM;
	pte = get_locked_pte(vma->vm_mm, addr, &ptl);
	if (!pte)
		goto out;
	retval = insert_page_into_pte_locked(vma, pte, addr, page, prot,
					mkwrite);
	pte_unmap_unlock(pte, ptl);
out:
	return retval;
}

static int insert_page_in_batch_locked(struct vm_area_struct *vma, pte_t *pte,
			unsigned long addr, struct page *page, pgprot_t prot)
{
	int err;

	err = validate_page_before_insert(vma, page);
	if (err)
		return err;
	return insert_page_into_pte_locked(vma, pte, addr, page, prot, false);
}

/* insert_pages() amortizes the cost of spinlock operations
 * when inserting pages in a loop.
 */
static int insert_pages(struct vm_area_struct *vma, unsigned long addr,
			struct page **pages, unsigned long *num, pgprot_t prot)
{
	pmd_t *pmd = NULL;
	pte_t *start_pte, *pte;
	spinlock_t *pte_lock;
	struct mm_struct *const mm = vma->vm_mm;
	unsigned long curr_page_idx = 0;
	unsigned long remaining_pages_total = *num;
	unsigned long pages_to_write_in_pmd;
	int ret;
more:
	ret = -EFAULT;
	pmd = walk_to_pmd(mm, addr);
	if (!pmd)
		goto out;

	pages_to_write_in_pmd = min_t(unsigned long,
		remaining_pages_total, PTRS_PER_PTE - pte_index(addr));

	/* Allocate the PTE if necessary; takes PMD lock once only. */
	ret = -ENOMEM;
	if (pte_alloc(mm, pmd))
		goto out;

	while (pages_to_write_in_pmd) {
		int pte_idx = 0;
		const int batch_size = min_t(int, pages_to_write_in_pmd, 8);

		start_pte = pte_offset_map_lock(mm, pmd, addr, &pte_lock);
		if (!start_pte) {
			ret = -EFAULT;
			goto out;
		}
		for (pte = start_pte; pte_idx < batch_size; ++pte, ++pte_idx) {
			int err = insert_page_in_batch_locked(vma, pte,
				addr, pages[curr_page_idx], prot);
			if (unlikely(err)) {
				pte_unmap_unlock(start_pte, pte_lock);
				ret = err;
				remaining_pages_total -= pte_idx;
				goto out;
			}
			addr += PAGE_SIZE;
			++curr_page_idx;
		}
		pte_unmap_unlock(start_pte, pte_lock);
		pages_to_write_in_pmd -= batch_size;
		remaining_pages_total -= batch_size;
	}
	if (remaining_pages_total)
		goto more;
	ret = 0;
out:
	*num = remaining_pages_total;
	return ret;
}

/**
 * vm_insert_pages - insert multiple pages into user vma, batching the pmd lock.
 * @vma: user vma to map to
 * @addr: target start user address of these pages
 * @pages: source kernel pages
 * @num: in: number of pages to map. out: number of pages that were *not*
 * mapped. (0 means all pages were successfully mapped).
 *
 * Preferred over vm_insert_page() when inserting multiple pages.
 *
 * In case of error, we may have mapped a subset of the provided
 * pages. It is the caller's responsibility to account for this case.
 *
 * The same restrictions apply as in vm_insert_page().
 */
int vm_insert_pages(struct vm_area_struct *vma, unsigned long addr,
			struct page **pages, unsigned long *num)
{
	const unsigned long nr_pages = *num;
	const unsigned long end = addr + PAGE_SIZE * nr_pages;

	if (!range_in_vma(vma, addr, end))
		return -EFAULT;
	if (!(vma->vm_flags & VM_MIXEDMAP)) {
		VM_WARN_ON_ONCE(mmap_read_trylock(vma->vm_mm));
		VM_WARN_ON_ONCE(vma->vm_flags & VM_PFNMAP);
		vm_flags_set(vma, VM_MIXEDMAP);
	}
	/* Defer page refcount checking till we're about to map that page. */
	return insert_pages(vma, addr, pages, num, vma->vm_page_prot);
}
EXPORT_SYMBOL(vm_insert_pages);

int map_kernel_pages_prepare(struct vm_area_desc *desc)
{
	const struct mmap_action *action = &desc->action;
	const unsigned long addr = action->map_kernel.start;
	unsigned long nr_pages, end;

	if (!vma_desc_test(desc, VMA_MIXEDMAP_BIT)) {
		VM_WARN_ON_ONCE(mmap_read_trylock(desc->mm));
		VM_WARN_ON_ONCE(vma_desc_test(desc, VMA_PFNMAP_BIT));
		vma_desc_set_flags(desc, VMA_MIXEDMAP_BIT);
	}

	nr_pages = action->map_kernel.nr_pages;
	end = addr + PAGE_SIZE * nr_pages;
	if (!range_in_vma_desc(desc, addr, end))
		return -EFAULT;

	return 0;
}
EXPORT_SYMBOL(map_kernel_pages_prepare);

int map_kernel_pages_complete(struct vm_area_struct *vma,
			      struct mmap_action *action)
{
	unsigned long nr_pages;

	nr_pages = action->map_kernel.nr_pages;
	return insert_pages(vma, action->map_kernel.start,
			    action->map_kernel.pages,
			    &nr_pages, vma->vm_page_prot);
}
EXPORT_SYMBOL(map_kernel_pages_complete);

/**
 * vm_insert_page - insert single page into user vma
 * @vma: user vma to map to
 * @addr: target user address of this page
 * @page: source kernel page
 *
 * This allows drivers to insert individual pages they've allocated
 * into a user vma. The zeropage is supported in some VMAs,
 * see vm_mixed_zeropage_allowed().
 *
 * The page has to be a nice clean _individual_ kernel allocation.
 * If you allocate a compound page, you need to have marked it as
 * such (__GFP_COMP), or manually just split the page up yourself
 * (see split_page()).
 *
 * NOTE! Traditionally this was done with "remap_pfn_range()" which
 * took an arbitrary page protection parameter. This doesn't allow
 * that. Your vma protection will have to be set up correctly, which
 * means that if you want a shared writable mapping, you'd better
 * ask for a shared writable mapping!
 *
 * The page does not need to be reserved.
 *
 * Usually this function is called from f_op->mmap() handler
 * under mm->mmap_lock write-lock, so it can change vma->vm_flags.
 * Caller must set VM_MIXEDMAP on vma if it wants to call this
 * function from other places, for example from page-fault handler.
 *
 * Return: %0 on success, negative error code otherwise.
 */
int vm_insert_page(struct vm_area_struct *vma, unsigned long addr,
			struct page *page)
{
	if (addr < vma->vm_start || addr >= vma->vm_end)
		return -EFAULT;
	if (!(vma->vm_flags & VM_MIXEDMAP)) {
		BUG_ON(mmap_read_trylock(vma->vm_mm));
		BUG_ON(vma->vm_flags & VM_PFNMAP);
		vm_flags_set(vma, VM_MIXEDMAP);
	}
	return insert_page(vma, addr, page, vma->vm_page_prot, false);
}
EXPORT_SYMBOL(vm_insert_page);

/*
 * __vm_map_pages - maps range of kernel pages into user vma
 * @vma: user vma to map to
 * @pages: pointer to array of source kernel pages
 * @num: number of pages in page array
 * @offset: user's requested vm_pgoff
 *
 * This allows drivers to map range of kernel pages into a user vma.
 * The zeropage is supported in some VMAs, see
 * vm_mixed_zeropage_allowed().
 *
 * Return: 0 on success and error code otherwise.
 */
static int __vm_map_pages(struct vm_area_struct *vma, struct page **pages,
				unsigned long num, unsigned long offset)
{
	unsigned long count = vma_pages(vma);
	unsigned long uaddr = vma->vm_start;

	/* Fail if the user requested offset is beyond the end of the object */
	if (offset >= num)
		return -ENXIO;

	/* Fail if the user requested size exceeds available object size */
	if (count > num - offset)
		return -ENXIO;

	return vm_insert_pages(vma, uaddr, pages + offset, &count);
}

/**
 * vm_map_pages - maps range of kernel pages starts with non zero offset
 * @vma: user vma to map to
 * @pages: pointer to array of source kernel pages
 * @num: number of pages in page array
 *
 * Maps an object consisting of @num pages, catering for the user's
 * requested vm_pgoff
 *
 * If we fail to insert any page into the vma, the function will return
 * immediately leaving any previously inserted pages present.  Callers
 * from the mmap handler may immediately return the error as their caller
 * will destroy the vma, removing any successfully inserted pages. Other
 * callers should make their own arrangements for calling unmap_region().
 *
 * Context: Process context. Called by mmap handlers.
 * Return: 0 on success and error code otherwise.
 */
int vm_map_pages(struct vm_area_struct *vma, struct page **pages,
				unsigned long num)
{
	return __vm_map_pages(vma, pages, num, vma_start_pgoff(vma));
}
EXPORT_SYMBOL(vm_map_pages);

/**
 * vm_map_pages_zero - map range of kernel pages starts with zero offset
 * @vma: user vma to map to
 * @pages: pointer to array of source kernel pages
 * @num: number of pages in page array
 *
 * Similar to vm_map_pages(), except that it explicitly sets the offset
 * to 0. This function is intended for the drivers that did not consider
 * vm_pgoff.
 *
 * Context: Process context. Called by mmap handlers.
 * Return: 0 on success and error code otherwise.
 */
int vm_map_pages_zero(struct vm_area_struct *vma, struct page **pages,
				unsigned long num)
{
	return __vm_map_pages(vma, pages, num, 0);
}
EXPORT_SYMBOL(vm_map_pages_zero);

/* Returns whether *@pte changed: then, update_mmu_cache() must be called. */
static __always_inline bool
insert_pfn_into_pte_locked(struct vm_area_struct *vma, pte_t *pte,
			   unsigned long addr, unsigned long pfn,
			   pgprot_t prot, bool mkwrite)
{
	pte_t entry = ptep_get(pte);

	if (!pte_none(entry)) {
		if (!mkwrite)
			return false;
		/*
		 * For read faults on private mappings the PFN passed
		 * in may not match the PFN we have mapped if the
		 * mapped PFN is a writeable COW page.  In the mkwrite
		 * case we are creating a writable PTE for a shared
		 * mapping and we expect the PFNs to match. If they
		 * don't match, we are likely racing with block
		 * allocation and mapping invalidation so just skip the
		 * update.
		 */
		if (pte_pfn(entry) != pfn) {
			WARN_ON_ONCE(!is_zero_pfn(pte_pfn(entry)));
			return false;
		}
		entry = pte_mkyoung(entry);
		entry = maybe_mkwrite(pte_mkdirty(entry), vma);
		return ptep_set_access_flags(vma, addr, pte, entry, 1);
	}

	/* Ok, finally just insert the thing.. */
	entry = pte_mkspecial(pfn_pte(pfn, prot));

	if (mkwrite) {
		entry = pte_mkyoung(entry);
		entry = maybe_mkwrite(pte_mkdirty(entry), vma);
	}

	set_pte_at(vma->vm_mm, addr, pte, entry);
	return true;
}

static vm_fault_t insert_pfn(struct vm_area_struct *vma, unsigned long addr,
			     unsigned long pfn, pgprot_t prot, bool mkwrite)
{
	pte_t *pte;
	spinlock_t *ptl;

	pte = get_locked_pte(vma->vm_mm, addr, &ptl);
	if (!pte)
		return VM_FAULT_OOM;
	if (insert_pfn_into_pte_locked(vma, pte, addr, pfn, prot, mkwrite))
		update_mmu_cache(vma, addr, pte); /* XXX: why not for insert_page? */
	pte_unmap_unlock(pte, ptl);
	return VM_FAULT_NOPAGE;
}

/*
 * Is a pfn in a VM_MIXEDMAP VMA mapped as a page, that is, refcounted,
 * accounted and in the rmap?  With pte_special, no pfn is.  Without it,
 * vm_normal_page() sees only the VMA and the pfn, and takes each pfn that has
 * a struct page for a page, so that we *must* refcount it.  See
 * Documentation/mm/pfn_insertion.rst.
 */
static inline bool mixed_pfn_is_page(unsigned long pfn)
{
	return !IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL) && pfn_valid(pfn);
}

static bool mixed_pfn_allowed(struct vm_area_struct *vma, unsigned long pfn,
			      pgprot_t prot, bool mkwrite)
{
	if (unlikely(is_zero_pfn(pfn))) {
		if (mkwrite || !vm_mixed_zeropage_allowed(vma))
			return false;
	} else if (!(vma->vm_flags & VM_MIXEDMAP)) {
		return false;
	}
	if (!pfn_modify_allowed(pfn, prot))
		return false;
	return !mixed_pfn_is_page(pfn) || page_insertable(vma, pfn_to_page(pfn));
}

/*
 * Flush as validate_page_before_insert() does, but before the page table is
 * locked, and once for consecutive pages of a folio.
 */
static inline void flush_mixed_pfn(unsigned long pfn, struct folio **flushed)
{
	struct folio *folio;

	if (!mixed_pfn_is_page(pfn) || is_zero_pfn(pfn))
		return;
	folio = page_folio(pfn_to_page(pfn));
	if (folio != *flushed)
		flush_dcache_folio(folio);
	*flushed = folio;
}

/*
 * Returns a positive value if *@pte changed, so that the caller must call
 * update_mmu_cache(), or an error: -EBUSY if something else is mapped.
 */
static __always_inline int
insert_mixed_into_pte_locked(struct vm_area_struct *vma, pte_t *pte,
			     unsigned long addr, unsigned long pfn,
			     pgprot_t prot, bool mkwrite)
{
	struct page *page;

	if (!mixed_pfn_is_page(pfn))
		return insert_pfn_into_pte_locked(vma, pte, addr, pfn, prot,
						  mkwrite);

	page = pfn_to_page(pfn);
	if (!page_insertable(vma, page))
		return -EINVAL;
	return insert_page_into_pte_locked(vma, pte, addr, page, prot, mkwrite);
}

/*
 * Technically, architectures with pte_special can avoid most of these
 * restrictions (same for remap_pfn_range).  However we would like
 * consistency in testing and feature parity among all, so we should
 * try to keep these invariants in place for everybody.  A private mapping is
 * the exception, as there are drivers that have always allowed it.
 */
static bool vma_allows_pfns(struct vm_area_struct *vma)
{
	switch (vma->vm_flags & (VM_PFNMAP | VM_MIXEDMAP)) {
	case VM_PFNMAP:
		/* Without pte_special, a copy can't be told from a pfn. */
		return IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL) ||
		       !vma_is_cow_mapping(vma);
	case VM_MIXEDMAP:
		return true;
	default:
		return false;
	}
}

static vm_fault_t __vmf_insert_pfn(struct vm_area_struct *vma,
				   unsigned long addr, unsigned long pfn,
				   pgprot_t pgprot, bool mkwrite)
{
	if (!vma_allows_pfns(vma) ||
	    ((vma->vm_flags & VM_MIXEDMAP) && pfn_valid(pfn))) {
		VM_WARN_ON_ONCE(1);
		return VM_FAULT_SIGBUS;
	}

	if (addr < vma->vm_start || addr >= vma->vm_end)
		return VM_FAULT_SIGBUS;

	if (!pfn_modify_allowed(pfn, pgprot))
		return VM_FAULT_SIGBUS;

	pfnmap_setup_cachemode_pfn(pfn, &pgprot);

	return insert_pfn(vma, addr, pfn, pgprot, mkwrite);
}

/**
 * vmf_insert_pfn_prot - insert single pfn into user vma with specified pgprot
 * @vma: user vma to map to
 * @addr: target user address of this page
 * @pfn: source kernel pfn
 * @pgprot: pgprot flags for the inserted page
 *
 * This is exactly like vmf_insert_pfn(), except that it allows drivers
 * to override pgprot on a per-page basis.
 *
 * This only makes sense for IO mappings, and it makes no sense for
 * COW mappings.  In general, using multiple vmas is preferable;
 * vmf_insert_pfn_prot should only be used if using multiple VMAs is
 * impractical.
 *
 * pgprot typically only differs from @vma->vm_page_prot when drivers set
 * caching- and encryption bits different than those of @vma->vm_page_prot,
 * because the caching- or encryption mode may not be known at mmap() time.
 *
 * This is ok as long as @vma->vm_page_prot is not used by the core vm
 * to set caching and encryption bits for those vmas (except for COW pages).
 * This is ensured by core vm only modifying these page table entries using
 * functions that don't touch caching- or encryption bits, using pte_modify()
 * if needed. (See for example mprotect()).
 *
 * Also when new page-table entries are created, this is only done using the
 * fault() callback, and never using the value of vma->vm_page_prot,
 * except for page-table entries that point to anonymous pages as the result
 * of COW.
 *
 * @vma must have exactly one of VM_PFNMAP and VM_MIXEDMAP set.  A VM_MIXEDMAP
 * vma takes only pfns without a struct page from this function.  A VM_PFNMAP
 * vma can be a COW mapping only with CONFIG_ARCH_HAS_PTE_SPECIAL.  Anything
 * else is a driver's bug and refused.  In a COW mapping, @pgprot must not be
 * writable: a write makes a private copy of the page.
 *
 * Context: Process context.  May allocate using %GFP_KERNEL.
 * Return: %VM_FAULT_NOPAGE when @addr is mapped now, by this call or another;
 * %VM_FAULT_OOM without memory for a page table; %VM_FAULT_SIGBUS when @vma,
 * @addr or @pfn is refused.
 */
vm_fault_t vmf_insert_pfn_prot(struct vm_area_struct *vma, unsigned long addr,
			unsigned long pfn, pgprot_t pgprot)
{
	return __vmf_insert_pfn(vma, addr, pfn, pgprot, false);
}
EXPORT_SYMBOL(vmf_insert_pfn_prot);

/**
 * vmf_insert_pfn_mkwrite - insert single pfn into user vma for a write
 * @vmf: the fault being handled, a write to a shared mapping
 * @pfn: source kernel pfn
 *
 * This is vmf_insert_pfn() at the faulting address, for a vma whose vm_ops have
 * pfn_mkwrite.  vmf_insert_pfn() maps read-only there, so that the write faults
 * again.  A caller that calls the fault handler just once, as KVM does for
 * memory without pages, would find a read-only mapping.
 *
 * This function makes the PTE young, dirty and, if the vma allows it, writable,
 * even if @pfn is mapped already.  The caller must do before the call what
 * pfn_mkwrite would do.
 *
 * Context: Process context, from vm_ops->fault.  May allocate using %GFP_KERNEL.
 * Return: what the fault handler is to return, see vmf_insert_pfn_prot().
 * %VM_FAULT_SIGBUS as well when the fault is no write, or the vma not shared.
 */
vm_fault_t vmf_insert_pfn_mkwrite(struct vm_fault *vmf, unsigned long pfn)
{
	struct vm_area_struct *vma = vmf->vma;

	/* A private mapping must not write to what the driver has. */
	if (!(vmf->flags & FAULT_FLAG_WRITE) || !(vma->vm_flags & VM_SHARED)) {
		VM_WARN_ON_ONCE(1);
		return VM_FAULT_SIGBUS;
	}

	return __vmf_insert_pfn(vma, vmf->address, pfn, vma->vm_page_prot, true);
}
EXPORT_SYMBOL_GPL(vmf_insert_pfn_mkwrite);

/**
 * vmf_insert_pfn - insert single pfn into user vma
 * @vma: user vma to map to
 * @addr: target user address of this page
 * @pfn: source kernel pfn
 *
 * Similar to vm_insert_page, this allows drivers to insert individual pages
 * they've allocated into a user vma. Same comments apply.
 *
 * This function should only be called from a vm_ops->fault handler, and
 * in that case the handler should return the result of this function.
 *
 * vma cannot be a COW mapping.
 *
 * As this is called only for pages that do not currently exist, we
 * do not need to flush old virtual caches or the TLB.
 *
 * Context: Process context.  May allocate using %GFP_KERNEL.
 * Return: vm_fault_t value.
 */
vm_fault_t vmf_insert_pfn(struct vm_area_struct *vma, unsigned long addr,
			unsigned long pfn)
{
	return vmf_insert_pfn_prot(vma, addr, pfn, vma->vm_page_prot);
}
EXPORT_SYMBOL(vmf_insert_pfn);

/* Always a constant: the compiler drops the code for the other mode. */
enum insert_pfns_mode {
	INSERT_PFNS,
	INSERT_MIXED,
};

/* m68k's pmd_none() wants a variable. */
static bool pmd_none_lockless(pmd_t *pmd)
{
	pmd_t val = pmdp_get_lockless(pmd);

	return pmd_none(val);
}

/*
 * Find the PTE table that maps @addr, or allocate it.  Returns 0,
 * %VM_FAULT_OOM, or %VM_FAULT_NOPAGE when there is a leaf entry instead.
 */
static noinline vm_fault_t
insert_pfns_get_table(struct vm_fault *vmf, unsigned long addr, pmd_t **pmdp)
{
	struct mm_struct *mm = vmf->vma->vm_mm;
	pmd_t *pmd = vmf->pmd;

	if (!pmd || ((addr ^ vmf->address) & PMD_MASK)) {
		pgd_t *pgd = pgd_offset(mm, addr);
		p4d_t *p4d;
		pud_t *pud;

		p4d = p4d_alloc(mm, pgd, addr);
		if (!p4d)
			return VM_FAULT_OOM;
		pud = pud_alloc(mm, p4d, addr);
		if (!pud)
			return VM_FAULT_OOM;
		pmd = pmd_alloc(mm, pud, addr);
		if (!pmd)
			return VM_FAULT_OOM;
		/* As in __handle_mm_fault(): a huge fault was faster */
		if (pud_trans_unstable(pud))
			return VM_FAULT_NOPAGE;
	}

	if (pmd_none_lockless(pmd)) {
		/* __do_fault() has allocated it */
		if (vmf->prealloc_pte)
			pmd_install(mm, pmd, &vmf->prealloc_pte);
		else if (pte_alloc(mm, pmd))
			return VM_FAULT_OOM;
	}
	*pmdp = pmd;
	return 0;
}

static __always_inline int
insert_pfns_one(struct vm_area_struct *vma, pte_t *pte, unsigned long addr,
		unsigned long pfn, pgprot_t prot, enum insert_pfns_mode mode)
{
	if (mode == INSERT_PFNS)
		return insert_pfn_into_pte_locked(vma, pte, addr, pfn, prot,
						  false);

	return insert_mixed_into_pte_locked(vma, pte, addr, pfn, prot, false);
}

/* Map what is not yet mapped in [addr, end), all of it in one PTE table. */
static __always_inline vm_fault_t
insert_pfns_in_table(struct vm_fault *vmf, unsigned long addr,
		     unsigned long end, pgprot_t prot, vmf_pfns_fn next,
		     void *data, enum insert_pfns_mode mode)
{
	struct vm_area_struct *vma = vmf->vma;
	vm_fault_t ret = VM_FAULT_NOPAGE;
	pte_t *start_pte, *pte;
	pmd_t *pmd = vmf->pmd;
	spinlock_t *ptl;

	/* Most faults find a table, and need no call. */
	if (!pmd || ((addr ^ vmf->address) & PMD_MASK) ||
	    pmd_none_lockless(pmd)) {
		ret = insert_pfns_get_table(vmf, addr, &pmd);
		if (ret)
			return ret;
		ret = VM_FAULT_NOPAGE;
	}

	start_pte = pte_offset_map_lock(vma->vm_mm, pmd, addr, &ptl);
	if (!start_pte)
		return ret;

	pte = start_pte;
	lazy_mmu_mode_enable();
	while (addr < end) {
		const unsigned long max = (end - addr) >> PAGE_SHIFT;
		unsigned long pfn, nr;

		nr = next(vmf, addr, max, &pfn, data);
		if (unlikely(nr > max)) {
			VM_WARN_ON_ONCE(1);
			ret = VM_FAULT_SIGBUS;
			break;
		}
		if (!nr) {
			if (addr == vmf->address)
				ret = VM_FAULT_SIGBUS;
			addr += PAGE_SIZE;
			pte++;
		}
		while (nr) {
			pgprot_t batch_prot = prot;
			unsigned long batch;

			batch = pfnmap_setup_cachemode_batch(pfn, nr,
							     &batch_prot);
			nr -= batch;
			/*
			 * One by one: set_ptes() and update_mmu_cache_range()
			 * are for the pages of one folio.
			 */
			for (; batch; batch--, pfn++, pte++, addr += PAGE_SIZE) {
				int err = insert_pfns_one(vma, pte, addr, pfn,
							  batch_prot, mode);

				if (err > 0)
					update_mmu_cache_range(vmf, vma, addr,
							       pte, 1);
				else if (err < 0 && err != -EBUSY &&
					 addr == vmf->address)
					ret = VM_FAULT_SIGBUS;
			}
		}
	}
	lazy_mmu_mode_disable();
	pte_unmap_unlock(start_pte, ptl);
	return ret;
}

/* Check every pfn before mapping the first one. */
static __always_inline bool
__insert_pfns_allowed(struct vm_fault *vmf, unsigned long addr,
		      unsigned long end, pgprot_t prot, vmf_pfns_fn next,
		      void *data, enum insert_pfns_mode mode)
{
	struct vm_area_struct *vma = vmf->vma;
	struct folio *flushed = NULL;

	while (addr < end) {
		const unsigned long max = (end - addr) >> PAGE_SHIFT;
		unsigned long pfn, nr;

		nr = next(vmf, addr, max, &pfn, data);
		if (nr > max) {
			VM_WARN_ON_ONCE(1);
			return false;
		}
		addr += max(nr, 1UL) << PAGE_SHIFT;
		for (; nr; nr--, pfn++) {
			if (mode != INSERT_PFNS) {
				if (!mixed_pfn_allowed(vma, pfn, prot, false))
					return false;
				flush_mixed_pfn(pfn, &flushed);
				continue;
			}
			if ((vma->vm_flags & VM_MIXEDMAP) && pfn_valid(pfn)) {
				VM_WARN_ON_ONCE(1);
				return false;
			}
			if (!pfn_modify_allowed(pfn, prot))
				return false;
		}
		cond_resched();
	}
	return true;
}

static bool insert_pfns_allowed(struct vm_fault *vmf, unsigned long addr,
				unsigned long end, pgprot_t prot,
				vmf_pfns_fn next, void *data)
{
	return __insert_pfns_allowed(vmf, addr, end, prot, next, data,
				     INSERT_PFNS);
}

static bool insert_mixed_pfns_allowed(struct vm_fault *vmf, unsigned long addr,
				      unsigned long end, vmf_pfns_fn next,
				      void *data)
{
	return __insert_pfns_allowed(vmf, addr, end, vmf->vma->vm_page_prot,
				     next, data, INSERT_MIXED);
}

/* Like pmd_addr_end(), but also where the PMD is folded. */
static unsigned long pte_table_end(unsigned long addr, unsigned long end)
{
	const unsigned long next = (addr + PMD_SIZE) & PMD_MASK;

	return next - 1 < end - 1 ? next : end;
}

/* Inlined, so that the call of a constant @next is direct. */
static __always_inline vm_fault_t
insert_pfns(struct vm_fault *vmf, unsigned long addr, unsigned long nr,
	    pgprot_t prot, vmf_pfns_fn next, void *data,
	    enum insert_pfns_mode mode)
{
	struct vm_area_struct *vma = vmf->vma;
	const vm_flags_t flags = vma->vm_flags & (VM_PFNMAP | VM_MIXEDMAP);
	unsigned long first, table, end;
	vm_fault_t ret;
	bool allowed;

	if (IS_ENABLED(CONFIG_DEBUG_VM))
		vma_assert_stabilised(vma);

	if (!PAGE_ALIGNED(addr) || addr < vma->vm_start ||
	    addr > vmf->address || nr > (vma->vm_end - addr) >> PAGE_SHIFT ||
	    nr <= (vmf->address - addr) >> PAGE_SHIFT) {
		VM_WARN_ON_ONCE(1);
		return VM_FAULT_SIGBUS;
	}
	end = addr + (nr << PAGE_SHIFT);

	if (mode == INSERT_PFNS)
		allowed = vma_allows_pfns(vma);
	else
		allowed = flags == VM_MIXEDMAP;
	if (!allowed) {
		VM_WARN_ON_ONCE(1);
		return VM_FAULT_SIGBUS;
	}

	if (mode != INSERT_PFNS)
		allowed = insert_mixed_pfns_allowed(vmf, addr, end, next, data);
	else if (flags == VM_MIXEDMAP || arch_has_pfn_modify_check())
		allowed = insert_pfns_allowed(vmf, addr, end, prot, next, data);
	if (!allowed)
		return VM_FAULT_SIGBUS;

	/* The faulting address's table first, then the others in order. */
	first = max(addr, vmf->address & PMD_MASK);
	table = first;
	for (;;) {
		ret = insert_pfns_in_table(vmf, table, pte_table_end(table, end),
					   prot, next, data, mode);
		/* Only the faulting address has to be mapped. */
		if (ret != VM_FAULT_NOPAGE)
			return table == first ? ret : VM_FAULT_NOPAGE;

		table = table == first ? addr : pte_table_end(table, end);
		if (table == first)
			table = pte_table_end(table, end);
		if (table >= end || fatal_signal_pending(current))
			return VM_FAULT_NOPAGE;
		cond_resched();
	}
}

/**
 * vmf_insert_pfns_iter - map a range of pages by pfn from a fault handler
 * @vmf: the fault being handled
 * @addr: page aligned user address of the first page
 * @nr: number of pages
 * @prot: page protection of the mapped pages, see vmf_insert_pfn_prot()
 * @next: yields the pfns, see &vmf_pfns_fn
 * @data: for @next
 *
 * Does for a range of pages what vmf_insert_pfn_prot() does for one.  The range
 * must lie within the VMA and contain the faulting address; vmf_pfns_window()
 * finds a suitable one.  It may need several page tables.
 *
 * What is mapped already, by an earlier fault or by another thread's that won
 * the race, is left as it is.  The pages are not refcounted, accounted or added
 * to the rmap, whether they have a struct page or not, and get_user_pages()
 * does not see them.  The caller must hold a lock that keeps the pages from
 * being moved or freed during the call.  When it moves or frees them later, it
 * must call unmap_mapping_range().  See Documentation/mm/pfn_insertion.rst.
 *
 * The VMA must be one that vmf_insert_pfn_prot() accepts.  With VM_MIXEDMAP only
 * pfns without a struct page are allowed.
 *
 * Context: Process context, from a vm_ops->fault handler or the like, under the
 * mmap_lock or the VMA lock, both of them held for reading at least.  May
 * sleep, may allocate using %GFP_KERNEL.
 * Return: the fault handler's result.  %VM_FAULT_NOPAGE when the faulting
 * address is mapped now, or when a race was lost and the access must be tried
 * again; other pages of the range may be missing.  %VM_FAULT_OOM when there was
 * no memory to map the faulting address.  %VM_FAULT_SIGBUS when the VMA, the
 * range or a pfn is refused, which happens before anything is mapped; when
 * @next has no pfn for the faulting address; or when @next breaks its own rules.
 */
vm_fault_t vmf_insert_pfns_iter(struct vm_fault *vmf, unsigned long addr,
				unsigned long nr, pgprot_t prot,
				vmf_pfns_fn next, void *data)
{
	return insert_pfns(vmf, addr, nr, prot, next, data, INSERT_PFNS);
}
EXPORT_SYMBOL_GPL(vmf_insert_pfns_iter);

struct consecutive_pfns {
	unsigned long addr;
	unsigned long pfn;
};

static unsigned long next_consecutive_pfns(struct vm_fault *vmf,
					   unsigned long addr,
					   unsigned long max,
					   unsigned long *pfn, void *data)
{
	const struct consecutive_pfns *range = data;

	*pfn = range->pfn + ((addr - range->addr) >> PAGE_SHIFT);
	return max;
}

/**
 * vmf_insert_pfns_prot - map consecutive pfns from a fault handler with the
 *			  specified page protection
 * @vmf: the fault being handled
 * @addr: page aligned user address of the first page
 * @pfn: the first pfn
 * @nr: number of pages
 * @prot: page protection of the mapped pages, see vmf_insert_pfn_prot()
 *
 * This is vmf_insert_pfns_iter() for pfns that are consecutive; see there for
 * all the rules.
 *
 * Context: Process context, from a vm_ops->fault handler or the like, under the
 * mmap_lock or the VMA lock, both of them held for reading at least.  May
 * sleep, may allocate using %GFP_KERNEL.
 * Return: what the fault handler is to return, see vmf_insert_pfns_iter().
 */
vm_fault_t vmf_insert_pfns_prot(struct vm_fault *vmf, unsigned long addr,
				unsigned long pfn, unsigned long nr,
				pgprot_t prot)
{
	struct consecutive_pfns range = { .addr = addr, .pfn = pfn };

	return insert_pfns(vmf, addr, nr, prot, next_consecutive_pfns, &range,
			   INSERT_PFNS);
}
EXPORT_SYMBOL_GPL(vmf_insert_pfns_prot);

/**
 * vmf_insert_mixed_pfns_iter - map a range of pages, with or without struct
 *				page, from a fault handler
 * @vmf: the fault being handled
 * @addr: page aligned user address of the first page
 * @nr: number of pages
 * @next: yields the pfns, see &vmf_pfns_fn
 * @data: for @next
 *
 * Does for a range of pages what vmf_insert_mixed() does for one: each pfn is
 * mapped with &vm_area_struct.vm_page_prot, and obeys its own rule.
 *
 * With CONFIG_ARCH_HAS_PTE_SPECIAL, no page is refcounted, accounted or added
 * to the rmap, and get_user_pages() does not see it, as with
 * vmf_insert_pfns_iter().  Without, a pfn that has a struct page is mapped as
 * vm_insert_page() would, with all of that, and must be a page that it would
 * accept: with a refcount, neither anonymous nor of a type of its own.  The
 * zero page is accepted where a VMA can't write to it, or only to a copy.
 *
 * The VMA must have VM_MIXEDMAP set and not VM_PFNMAP, and may be a COW mapping.
 * The rules of vmf_insert_pfns_iter() for the range, for races and for the
 * driver's lock apply.  See Documentation/mm/pfn_insertion.rst.
 *
 * Context: Process context, from a vm_ops->fault handler or the like, under the
 * mmap_lock or the VMA lock, both of them held for reading at least.  May
 * sleep, may allocate using %GFP_KERNEL.
 * Return: what the fault handler is to return, see vmf_insert_pfns_iter().
 */
vm_fault_t vmf_insert_mixed_pfns_iter(struct vm_fault *vmf, unsigned long addr,
				      unsigned long nr, vmf_pfns_fn next,
				      void *data)
{
	return insert_pfns(vmf, addr, nr, vmf->vma->vm_page_prot, next, data,
			   INSERT_MIXED);
}
EXPORT_SYMBOL_GPL(vmf_insert_mixed_pfns_iter);

/**
 * vmf_insert_mixed_pfns - map consecutive pfns, with or without struct page,
 *			   from a fault handler
 * @vmf: the fault being handled
 * @addr: page aligned user address of the first page
 * @pfn: the first pfn
 * @nr: number of pages
 *
 * This is vmf_insert_mixed_pfns_iter() for pfns that are consecutive; see there
 * for all the rules.
 *
 * Context: Process context, from a vm_ops->fault handler or the like, under the
 * mmap_lock or the VMA lock, both of them held for reading at least.  May
 * sleep, may allocate using %GFP_KERNEL.
 * Return: what the fault handler is to return, see vmf_insert_pfns_iter().
 */
vm_fault_t vmf_insert_mixed_pfns(struct vm_fault *vmf, unsigned long addr,
				 unsigned long pfn, unsigned long nr)
{
	struct consecutive_pfns range = { .addr = addr, .pfn = pfn };

	return insert_pfns(vmf, addr, nr, vmf->vma->vm_page_prot,
			   next_consecutive_pfns, &range, INSERT_MIXED);
}
EXPORT_SYMBOL_GPL(vmf_insert_mixed_pfns);

/**
 * vmf_pfns_window - find the range of pages to map around a fault
 * @vmf: the fault being handled
 * @window: wanted number of pages, a power of two
 * @first: file offset, in pages, at which the object starts
 * @end: file offset, in pages, at which the object ends, exclusive
 * @addr: where to store the user address of the first page
 *
 * The window is the naturally aligned one that contains the faulting address,
 * as in do_fault_around(), less what lies outside of the object, of the VMA, or
 * of the page table that maps the faulting address.  @first and @end count as
 * &vm_fault.pgoff does: with the fake offset of a DRM object if vm_pgoff has it.
 *
 * Context: Any context in which the VMA does not change.
 * Return: The number of pages, for vmf_insert_pfns() and the like; 0 when the
 * faulting address is outside of the object.
 */
unsigned long vmf_pfns_window(const struct vm_fault *vmf, unsigned long window,
			      pgoff_t first, pgoff_t end, unsigned long *addr)
{
	const struct vm_area_struct *vma = vmf->vma;
	const unsigned long page = vmf->address >> PAGE_SHIFT;
	unsigned long before, after;

	if (vmf->pgoff < first || vmf->pgoff >= end)
		return 0;

	window = clamp(window, 1UL, (unsigned long)PTRS_PER_PTE);
	window = rounddown_pow_of_two(window);

	before = min3(page & (window - 1), page - (vma->vm_start >> PAGE_SHIFT),
		      vmf->pgoff - first);
	after = min3(window - (page & (window - 1)),
		     (vma->vm_end >> PAGE_SHIFT) - page, end - vmf->pgoff);

	*addr = vmf->address - (before << PAGE_SHIFT);
	return before + after;
}
EXPORT_SYMBOL_GPL(vmf_pfns_window);

static vm_fault_t __vm_insert_mixed(struct vm_area_struct *vma,
		unsigned long addr, unsigned long pfn, bool mkwrite)
{
	pgprot_t pgprot = vma->vm_page_prot;
	struct folio *flushed = NULL;
	spinlock_t *ptl;
	pte_t *pte;
	int ret;

	if (addr < vma->vm_start || addr >= vma->vm_end)
		return VM_FAULT_SIGBUS;

	pfnmap_setup_cachemode_pfn(pfn, &pgprot);

	if (!mixed_pfn_allowed(vma, pfn, pgprot, mkwrite))
		return VM_FAULT_SIGBUS;
	flush_mixed_pfn(pfn, &flushed);

	pte = get_locked_pte(vma->vm_mm, addr, &ptl);
	if (!pte)
		return VM_FAULT_OOM;
	ret = insert_mixed_into_pte_locked(vma, pte, addr, pfn, pgprot,
					   mkwrite);
	if (ret > 0)
		update_mmu_cache(vma, addr, pte);
	pte_unmap_unlock(pte, ptl);

	if (ret < 0 && ret != -EBUSY)
		return VM_FAULT_SIGBUS;

	return VM_FAULT_NOPAGE;
}

vm_fault_t vmf_insert_page_mkwrite(struct vm_fault *vmf, struct page *page,
			bool write)
{
	pgprot_t pgprot = vmf->vma->vm_page_prot;
	unsigned long addr = vmf->address;
	int err;

	if (addr < vmf->vma->vm_start || addr >= vmf->vma->vm_end)
		return VM_FAULT_SIGBUS;

	err = insert_page(vmf->vma, addr, page, pgprot, write);
	if (err == -ENOMEM)
		return VM_FAULT_OOM;
	if (err < 0 && err != -EBUSY)
		return VM_FAULT_SIGBUS;

	return VM_FAULT_NOPAGE;
}
EXPORT_SYMBOL_GPL(vmf_insert_page_mkwrite);

vm_fault_t vmf_insert_mixed(struct vm_area_struct *vma, unsigned long addr,
		unsigned long pfn)
{
	return __vm_insert_mixed(vma, addr, pfn, false);
}
EXPORT_SYMBOL(vmf_insert_mixed);

/*
 *  If the insertion of PTE failed because someone else already added a
 *  different entry in the mean time, we treat that as success as we assume
 *  the same entry was actually inserted.
 */
vm_fault_t vmf_insert_mixed_mkwrite(struct vm_area_struct *vma,
		unsigned long addr, unsigned long pfn)
{
	return __vm_insert_mixed(vma, addr, pfn, true);
}
