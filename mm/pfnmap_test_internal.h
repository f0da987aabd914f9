/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parts of the test driver for pfns in user space share */
#ifndef __PFNMAP_TEST_INTERNAL_H
#define __PFNMAP_TEST_INTERNAL_H

#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>

#include "pfnmap_test.h"

/*
 * What an open file has.  The size, the array and the flags are set once, when the
 * object is created.  The array's entries and the method change: that takes the
 * semaphore for write.
 */
struct pfnmap_test_object {
	struct rw_semaphore sem;
	struct address_space mapping;	/* of this object and of no other */
	unsigned long nr_pages;		/* 0 before the object is created */
	unsigned long *pfns;		/* where each page is now */
	unsigned int flags;		/* PFNMAP_TEST_SCATTER etc. */

	/* For pfnmap_test_ops.c */
	struct pfnmap_test_method_arg method;
	unsigned long other_pfn;	/* of misuse_page, or what stands for it */
	spinlock_t stats_lock;		/* for the counters in @stats */
	struct pfnmap_test_stats stats;
};

/* Is the object mapped as pfnmap_test_main.c has it, or as pfnmap_test_ops.c does? */
static inline bool pfnmap_test_is_plain(const struct pfnmap_test_object *obj)
{
	return obj->method.method == PFNMAP_TEST_PLAIN &&
	       !(obj->flags & (PFNMAP_TEST_MIXEDMAP | PFNMAP_TEST_NOTIFY));
}

/* pfnmap_test_main.c */
vm_fault_t pfnmap_test_fault(struct vm_fault *vmf);
unsigned long pfnmap_test_next(struct vm_fault *vmf, unsigned long addr,
			       unsigned long max, unsigned long *pfn, void *data);
unsigned long pfnmap_test_run(const struct pfnmap_test_object *obj,
			      unsigned long index, unsigned long max);

/* pfnmap_test_memory.c */
bool pfnmap_test_is_vram(unsigned long pfn);
unsigned long pfnmap_test_memtype_run(unsigned long pfn, unsigned long nr);
int pfnmap_test_alloc(unsigned long *pfns, unsigned long nr, unsigned int place,
		      unsigned int flags);
void pfnmap_test_free(const unsigned long *pfns, unsigned long nr);
void pfnmap_test_init_page(unsigned long pfn, unsigned long index);
void pfnmap_test_move_page(unsigned long to, unsigned long from);
void pfnmap_test_memory_stats(struct pfnmap_test_stats *stats);
int pfnmap_test_init_memory(void);
void pfnmap_test_exit_memory(void);

/* pfnmap_test_ops.c */
vm_fault_t pfnmap_test_ops_fault(struct vm_fault *vmf,
				 struct pfnmap_test_object *obj);
int pfnmap_test_ops_mmap(struct pfnmap_test_object *obj,
			 struct vm_area_desc *desc);
long pfnmap_test_ops_ioctl(struct file *file, unsigned int cmd, void __user *argp);
bool pfnmap_test_may_move(const struct pfnmap_test_object *obj);
void pfnmap_test_set_page(struct pfnmap_test_object *obj, bool bad);

#endif /* __PFNMAP_TEST_INTERNAL_H */
