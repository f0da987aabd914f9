/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_PFN_INSERTION_H
#define _LINUX_PFN_INSERTION_H

#include <linux/mm.h>

int vm_insert_page(struct vm_area_struct *, unsigned long addr, struct page *);
int vm_insert_pages(struct vm_area_struct *vma, unsigned long addr,
			struct page **pages, unsigned long *num);
int map_kernel_pages_prepare(struct vm_area_desc *desc);
int map_kernel_pages_complete(struct vm_area_struct *vma,
			      struct mmap_action *action);
int vm_map_pages(struct vm_area_struct *vma, struct page **pages,
				unsigned long num);
int vm_map_pages_zero(struct vm_area_struct *vma, struct page **pages,
				unsigned long num);
vm_fault_t vmf_insert_page_mkwrite(struct vm_fault *vmf, struct page *page,
			bool write);
vm_fault_t vmf_insert_pfn(struct vm_area_struct *vma, unsigned long addr,
			unsigned long pfn);
vm_fault_t vmf_insert_pfn_prot(struct vm_area_struct *vma, unsigned long addr,
			unsigned long pfn, pgprot_t pgprot);
vm_fault_t vmf_insert_pfn_mkwrite(struct vm_fault *vmf, unsigned long pfn);
/**
 * typedef vmf_pfns_fn - tells vmf_insert_pfns_iter() the pfns
 * @vmf: the fault being handled
 * @addr: user address of the page in question
 * @max: the largest allowed return value
 * @pfn: where to store the pfn that backs @addr
 * @data: as passed to vmf_insert_pfns_iter()
 *
 * vmf_insert_pfns_iter() may ask for the addresses of its range in any order, and
 * more than once for the same one.  The answer must not change until it returns.
 *
 * Context: May be called under the page table lock.  Must not sleep.
 * Return: The number of pages from @addr on that have consecutive pfns, at most
 * @max; 0 to leave out the page at @addr, because nothing backs it.
 */
typedef unsigned long (*vmf_pfns_fn)(struct vm_fault *vmf, unsigned long addr,
				     unsigned long max, unsigned long *pfn,
				     void *data);

vm_fault_t vmf_insert_pfns_iter(struct vm_fault *vmf, unsigned long addr,
				unsigned long nr, pgprot_t prot,
				vmf_pfns_fn next, void *data);
vm_fault_t vmf_insert_pfns_prot(struct vm_fault *vmf, unsigned long addr,
				unsigned long pfn, unsigned long nr,
				pgprot_t prot);
vm_fault_t vmf_insert_mixed_pfns_iter(struct vm_fault *vmf, unsigned long addr,
				      unsigned long nr, vmf_pfns_fn next,
				      void *data);
vm_fault_t vmf_insert_mixed_pfns(struct vm_fault *vmf, unsigned long addr,
				 unsigned long pfn, unsigned long nr);
unsigned long vmf_pfns_window(const struct vm_fault *vmf, unsigned long window,
			      pgoff_t first, pgoff_t end, unsigned long *addr);
vm_fault_t vmf_insert_mixed(struct vm_area_struct *vma, unsigned long addr,
			unsigned long pfn);
vm_fault_t vmf_insert_mixed_mkwrite(struct vm_area_struct *vma,
		unsigned long addr, unsigned long pfn);

/**
 * vmf_insert_pfns - map consecutive pfns from a fault handler
 * @vmf: the fault being handled
 * @addr: page aligned user address of the first page
 * @pfn: the first pfn
 * @nr: number of pages
 *
 * This is vmf_insert_pfns_prot() with the page protection of the VMA.  It does
 * for many pages what vmf_insert_pfn() does for one.
 *
 * Context: Process context, from a vm_ops->fault handler or the like, under the
 * mmap_lock or the VMA lock, both of them held for reading at least.  May
 * sleep, may allocate using %GFP_KERNEL.
 * Return: what the fault handler is to return, see vmf_insert_pfns_iter().
 */
static inline vm_fault_t vmf_insert_pfns(struct vm_fault *vmf,
					 unsigned long addr, unsigned long pfn,
					 unsigned long nr)
{
	return vmf_insert_pfns_prot(vmf, addr, pfn, nr,
				    vmf->vma->vm_page_prot);
}

static inline vm_fault_t vmf_insert_page(struct vm_area_struct *vma,
				unsigned long addr, struct page *page)
{
	int err = vm_insert_page(vma, addr, page);

	if (err == -ENOMEM)
		return VM_FAULT_OOM;
	if (err < 0 && err != -EBUSY)
		return VM_FAULT_SIGBUS;

	return VM_FAULT_NOPAGE;
}

#endif /* _LINUX_PFN_INSERTION_H */
