// SPDX-License-Identifier: GPL-2.0-only
/*
 * A test driver for pfns that are mapped into user space, and a reference for drivers
 * that do it.  It plays the part of a graphics driver: it has objects whose pages are
 * either in "vram", which has no struct pages, or in "ram", and which migrate between
 * the two while user space has them mapped:
 *
 * - the fault handler takes the object's semaphore for read, looks up where the
 *   pages are now and inserts their pfns before it drops the semaphore;
 * - migration takes the semaphore for write, zaps all mappings of the pages with
 *   unmap_mapping_range() and only then moves the data.
 *
 * So a PTE that was inserted before migration is gone by the time the data moves,
 * and a fault that comes later sees the new place.
 *
 * The mmap_lock or the VMA lock is taken first, then the semaphore, then i_mmap_rwsem
 * or a page-table lock.  So user memory is never accessed under the semaphore.
 *
 * pfnmap_test_memory.c has the memory.  pfnmap_test_ops.c measures, inspects and
 * provokes: nothing that another driver would need.  The tests are
 * tools/testing/selftests/mm/pfnmap_*.c.
 */
#include <linux/cleanup.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/pfn_insertion.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "pfnmap_test_internal.h"

/* Pages that a fault maps, unless it maps a PMD */
#define PFNMAP_TEST_WINDOW	16

/* How many pages, at most @max, are consecutive from page @index on? */
unsigned long pfnmap_test_run(const struct pfnmap_test_object *obj,
			      unsigned long index, unsigned long max)
{
	unsigned long nr = 1;

	while (nr < max && obj->pfns[index + nr] == obj->pfns[index] + nr)
		nr++;
	return nr;
}

/* Tell vmf_insert_pfns_iter() where the pages are.  The semaphore is held. */
unsigned long pfnmap_test_next(struct vm_fault *vmf, unsigned long addr,
			       unsigned long max, unsigned long *pfn, void *data)
{
	const struct pfnmap_test_object *obj = data;
	const pgoff_t index = linear_page_index(vmf->vma, addr);

	if (index >= obj->nr_pages)
		return 0;
	*pfn = obj->pfns[index];
	return pfnmap_test_run(obj, index, min(max, obj->nr_pages - index));
}

vm_fault_t pfnmap_test_fault(struct vm_fault *vmf)
{
	struct pfnmap_test_object *obj = vmf->vma->vm_private_data;
	unsigned long addr, nr;

	/*
	 * Hold the semaphore until the pfns are in the page tables: a migration in
	 * between would not see the PTEs that it has to zap.
	 */
	guard(rwsem_read)(&obj->sem);
	if (!pfnmap_test_is_plain(obj))
		return pfnmap_test_ops_fault(vmf, obj);

	nr = vmf_pfns_window(vmf, PFNMAP_TEST_WINDOW, 0, obj->nr_pages, &addr);
	if (!nr)
		return VM_FAULT_SIGBUS;

	return vmf_insert_pfns_iter(vmf, addr, nr, vmf->vma->vm_page_prot,
				    pfnmap_test_next, obj);
}

/* Map a PMD at once, where the mapping and the memory are aligned to it. */
static vm_fault_t pfnmap_test_huge_fault(struct vm_fault *vmf, unsigned int order)
{
#ifdef CONFIG_ARCH_SUPPORTS_PMD_PFNMAP
	struct vm_area_struct *vma = vmf->vma;
	struct pfnmap_test_object *obj = vma->vm_private_data;
	const unsigned long addr = vmf->address & PMD_MASK;
	const pgoff_t index = linear_page_index(vma, addr);

	/* A copy is made of a page, and not of a PMD. */
	if (order != PMD_ORDER || addr < vma->vm_start ||
	    vma->vm_end - addr < PMD_SIZE || vma_is_cow_mapping(vma))
		return VM_FAULT_FALLBACK;

	guard(rwsem_read)(&obj->sem);
	if (pfnmap_test_is_plain(obj) && obj->nr_pages >= PTRS_PER_PTE &&
	    index <= obj->nr_pages - PTRS_PER_PTE &&
	    IS_ALIGNED(obj->pfns[index], PTRS_PER_PTE) &&
	    pfnmap_test_run(obj, index, PTRS_PER_PTE) == PTRS_PER_PTE)
		return vmf_insert_pfn_pmd(vmf, obj->pfns[index],
					  vmf->flags & FAULT_FLAG_WRITE);
#endif
	return VM_FAULT_FALLBACK;
}

static int pfnmap_test_migrate(struct pfnmap_test_object *obj,
			       const struct pfnmap_test_migrate *arg)
{
	const unsigned long first = arg->first, end = first + arg->nr;
	const bool to_vram = arg->place == PFNMAP_TEST_VRAM;
	unsigned long *pfns, i, n = 0, nr = 0;
	int err;

	if (arg->place > PFNMAP_TEST_VRAM || !arg->nr)
		return -EINVAL;

	guard(rwsem_write)(&obj->sem);
	if (arg->first >= obj->nr_pages || arg->nr > obj->nr_pages - arg->first ||
	    !pfnmap_test_may_move(obj))
		return -EINVAL;

	for (i = first; i < end; i++)
		nr += pfnmap_test_is_vram(obj->pfns[i]) != to_vram;
	if (!nr)
		return 0;

	/* Before anything changes: from the next step on nothing may fail. */
	pfns = kvmalloc_array(nr, sizeof(*pfns), GFP_KERNEL_ACCOUNT);
	if (!pfns)
		return -ENOMEM;
	err = pfnmap_test_alloc(pfns, nr, arg->place,
				obj->flags & PFNMAP_TEST_SCATTER);
	if (err)
		goto free_array;

	/*
	 * Unmap first, copy then. The other way round, user space could store to a
	 * page that is copied already but still mapped, and the store would be lost.
	 * Once this returns, all CPUs have flushed their TLBs and faults wait for
	 * the semaphore.
	 */
	unmap_mapping_range(&obj->mapping, (loff_t)first << PAGE_SHIFT,
			    (loff_t)(end - first) << PAGE_SHIFT, 1);

	/* The new pfns go to the object, the old ones to the array. */
	for (i = first; i < end; i++) {
		if (pfnmap_test_is_vram(obj->pfns[i]) == to_vram)
			continue;
		pfnmap_test_move_page(pfns[n], obj->pfns[i]);
		swap(pfns[n], obj->pfns[i]);
		n++;
		cond_resched();
	}
	pfnmap_test_free(pfns, nr);
free_array:
	kvfree(pfns);
	return err;
}

static const struct vm_operations_struct pfnmap_test_vm_ops = {
	.fault = pfnmap_test_fault,
	.huge_fault = pfnmap_test_huge_fault,
};

static int pfnmap_test_mmap_prepare(struct vm_area_desc *desc)
{
	struct pfnmap_test_object *obj = desc->file->private_data;

	guard(rwsem_read)(&obj->sem);
	if (!obj->nr_pages)
		return -ENXIO;
	if (desc->pgoff >= obj->nr_pages ||
	    vma_desc_pages(desc) > obj->nr_pages - desc->pgoff)
		return -EINVAL;

	desc->vm_ops = &pfnmap_test_vm_ops;
	desc->private_data = obj;
	if (!pfnmap_test_is_plain(obj))
		return pfnmap_test_ops_mmap(obj, desc);

	/* Without pte_special, a copy can't be told from a pfn. */
	if (!IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL) && vma_desc_is_cow_mapping(desc))
		return -EINVAL;
	vma_desc_set_flags(desc, VMA_PFNMAP_BIT, VMA_IO_BIT, VMA_DONTEXPAND_BIT,
			   VMA_DONTDUMP_BIT);
	return 0;
}

static int pfnmap_test_create(struct pfnmap_test_object *obj,
			      const struct pfnmap_test_create *arg)
{
	unsigned long *pfns, i;
	int err;

	if (!arg->nr_pages || arg->nr_pages > PFNMAP_TEST_MAX_PAGES ||
	    arg->place > PFNMAP_TEST_VRAM || arg->flags & ~PFNMAP_TEST_FLAGS)
		return -EINVAL;

	guard(rwsem_write)(&obj->sem);
	if (obj->nr_pages)
		return -EBUSY;

	pfns = kvmalloc_array(arg->nr_pages, sizeof(*pfns), GFP_KERNEL_ACCOUNT);
	if (!pfns)
		return -ENOMEM;
	err = pfnmap_test_alloc(pfns, arg->nr_pages, arg->place, arg->flags);
	if (err) {
		kvfree(pfns);
		return err;
	}
	for (i = 0; i < arg->nr_pages; i++) {
		pfnmap_test_init_page(pfns[i], i);
		cond_resched();
	}

	obj->pfns = pfns;
	obj->nr_pages = arg->nr_pages;
	obj->flags = arg->flags;
	return 0;
}

static long pfnmap_test_ioctl(struct file *file, unsigned int cmd,
			      unsigned long uarg)
{
	struct pfnmap_test_object *obj = file->private_data;
	void __user *argp = (void __user *)uarg;
	struct pfnmap_test_migrate migrate;
	struct pfnmap_test_create create;

	switch (cmd) {
	case PFNMAP_TEST_CREATE:
		if (copy_from_user(&create, argp, sizeof(create)))
			return -EFAULT;
		return pfnmap_test_create(obj, &create);
	case PFNMAP_TEST_MIGRATE:
		if (copy_from_user(&migrate, argp, sizeof(migrate)))
			return -EFAULT;
		return pfnmap_test_migrate(obj, &migrate);
	default:
		return pfnmap_test_ops_ioctl(file, cmd, argp);
	}
}

static int pfnmap_test_open(struct inode *inode, struct file *file)
{
	struct pfnmap_test_object *obj;

	obj = kzalloc_obj(*obj, GFP_KERNEL_ACCOUNT);
	if (!obj)
		return -ENOMEM;
	init_rwsem(&obj->sem);
	spin_lock_init(&obj->stats_lock);

	/*
	 * All opens of a misc device share one inode and so one address_space.
	 * unmap_mapping_range() on that would zap the mappings of other objects, too.
	 */
	address_space_init_once(&obj->mapping);
	obj->mapping.host = inode;
	obj->mapping.a_ops = &empty_aops;
	file->f_mapping = &obj->mapping;
	file->private_data = obj;
	return 0;
}

/* VMAs pin the file, so nothing maps the object any more. */
static int pfnmap_test_release(struct inode *inode, struct file *file)
{
	struct pfnmap_test_object *obj = file->private_data;

	pfnmap_test_set_page(obj, false);
	pfnmap_test_free(obj->pfns, obj->nr_pages);
	kvfree(obj->pfns);
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

static int __init pfnmap_test_init(void)
{
	int err;

	err = pfnmap_test_init_memory();
	if (err)
		return err;
	err = misc_register(&pfnmap_test_misc);
	if (err)
		pfnmap_test_exit_memory();
	return err;
}
module_init(pfnmap_test_init);

static void __exit pfnmap_test_exit(void)
{
	misc_deregister(&pfnmap_test_misc);
	pfnmap_test_exit_memory();
}
module_exit(pfnmap_test_exit);

MODULE_DESCRIPTION("Test driver for VM_PFNMAP mappings");
MODULE_LICENSE("GPL");
