/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * User interface of the test driver for pfns in user space, /dev/pfnmap_test.
 *
 * An open file has at most one object of nr_pages pages.  Each page is in "vram"
 * (a pfn without a struct page) or in "ram" (a page that the driver allocated),
 * and may be migrated between the two while it is mapped.  The object's page n is
 * mapped at file offset n * PAGE_SIZE.
 */
#ifndef __PFNMAP_TEST_H
#define __PFNMAP_TEST_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define PFNMAP_TEST_MAX_PAGES	0x40000UL

/* Every page of an object starts with this header; see PFNMAP_TEST_MIGRATE. */
#define PFNMAP_TEST_MAGIC	0x70666e6d61705f74ULL

struct pfnmap_test_page {
	__u64 magic;
	__u64 index;		/* page index in the object */
	__u64 generation;	/* grows by one with each migration */
};

enum pfnmap_test_place {
	PFNMAP_TEST_RAM,
	PFNMAP_TEST_VRAM,
};

/* pfnmap_test_create.flags */
#define PFNMAP_TEST_SCATTER	0x1	/* neighbours not contiguous */
#define PFNMAP_TEST_ALTERNATE	0x2	/* odd pages in the other place */
#define PFNMAP_TEST_MIXEDMAP	0x4	/* map as VM_MIXEDMAP */
#define PFNMAP_TEST_NOTIFY	0x8	/* first write to a page is told */
#define PFNMAP_TEST_NO_IO	0x10	/* none of the flags that go with VM_IO */
#define PFNMAP_TEST_COMPOUND	0x20	/* ram: one compound page, stays there */
#define PFNMAP_TEST_FLAGS	0x3f

struct pfnmap_test_create {
	__u64 nr_pages;
	__u32 place;		/* enum pfnmap_test_place */
	__u32 flags;
};

struct pfnmap_test_migrate {
	__u64 first;		/* page index */
	__u64 nr;		/* pages */
	__u64 place;		/* enum pfnmap_test_place */
};

enum pfnmap_test_method {
	PFNMAP_TEST_PLAIN,	/* as without PFNMAP_TEST_SET_METHOD: PMDs or 16 pages */
	PFNMAP_TEST_REMAP,	/* remap_pfn_range() at mmap(), no faults */
	PFNMAP_TEST_SINGLE,	/* vmf_insert_pfn(), the faulting page only */
	PFNMAP_TEST_LOOP,	/* vmf_insert_pfn() for each page of the window */
	PFNMAP_TEST_BATCH,	/* vmf_insert_pfns() for each contiguous run */
	PFNMAP_TEST_ITER,	/* vmf_insert_pfns_iter() for the window */
	/* These want PFNMAP_TEST_MIXEDMAP. */
	PFNMAP_TEST_MIXED,	/* vmf_insert_mixed(), the faulting page only */
	PFNMAP_TEST_MIXED_BATCH, /* vmf_insert_mixed_pfns() for each run */
	PFNMAP_TEST_MIXED_ITER,	/* vmf_insert_mixed_pfns_iter(), the window */
	PFNMAP_TEST_PAGES,	/* vm_insert_page() for the window, ram only */
	PFNMAP_TEST_NR_METHODS,
};

/*
 * Deliberate misuse of the insertion interface by the next faults (or, for the
 * VMA kinds, by the next mmap()), to see it refused.
 */
enum pfnmap_test_misuse {
	PFNMAP_TEST_NO_MISUSE,
	/* Of a range */
	PFNMAP_TEST_BEFORE_VMA,		/* starts before the VMA */
	PFNMAP_TEST_AFTER_VMA,		/* ends after the VMA */
	PFNMAP_TEST_NOT_FAULT,		/* does not contain the fault */
	PFNMAP_TEST_NO_PAGES,		/* nr == 0 */
	PFNMAP_TEST_WRAP,		/* addr + nr * PAGE_SIZE overflows */
	PFNMAP_TEST_UNALIGNED,		/* addr not page aligned */
	/* Of an iterator */
	PFNMAP_TEST_ITER_HOLE,		/* has no pfn for the fault */
	PFNMAP_TEST_ITER_OVERRUN,	/* returns more than max */
	PFNMAP_TEST_KILL,		/* kills the task */
	/* Of a VMA */
	PFNMAP_TEST_COW_VMA,		/* MAP_PRIVATE without pte_special */
	PFNMAP_TEST_BOTH_FLAGS,		/* VM_PFNMAP and VM_MIXEDMAP */
	PFNMAP_TEST_NO_FLAGS,		/* neither of them */
	PFNMAP_TEST_UNCHECKED,		/* VM_MIXEDMAP with a valid pfn */
	/* Of a page of the object, misuse_page, which is in ram.  It is, or seems to be */
	PFNMAP_TEST_ZERO_PAGE,		/* the shared zero page */
	PFNMAP_TEST_SLAB_PAGE,		/* a page that has a type */
	PFNMAP_TEST_FREE_PAGE,		/* a page whose refcount is 0 */
	PFNMAP_TEST_ANON_PAGE,		/* a page of anonymous memory */
	PFNMAP_TEST_NR_MISUSES,
};

struct pfnmap_test_method_arg {
	__u32 method;		/* enum pfnmap_test_method */
	__u32 misuse;		/* enum pfnmap_test_misuse */
	__u64 window;		/* pages, a power of two; 0: all of the VMA */
	__u64 misuse_page;	/* page index, for some kinds of misuse */
	__u64 first;		/* faults before this page of the object get SIGBUS, */
	__u64 end;		/* and from this one on, unless it is 0 */
};

struct pfnmap_test_stats {
	/* PLAIN is not counted. */
	__u64 faults;		/* calls of the fault handler */
	__u64 nopage;		/* ... that returned VM_FAULT_NOPAGE */
	__u64 oom;		/* ... that returned VM_FAULT_OOM */
	__u64 sigbus;		/* ... that returned VM_FAULT_SIGBUS */
	__u64 offered;		/* pages handed to the insertion functions */
	__u64 insert_ns;	/* spent in the insertion functions (also remap) */
	__u64 mkwrites;		/* first writes that were told, see NOTIFY */
	/* The rest is not reset. */
	__u64 pte_special;	/* 1: the kernel has ARCH_HAS_PTE_SPECIAL */
	__u64 ptrs_per_pte;	/* pages that one page table maps */
	__u64 vram_pages;	/* capacity */
	__u64 vram_free;
	__u64 ram_pages;	/* pages of ram that all objects hold now */
	__u64 memtype_split;	/* vram page index where the cache mode changes, 0: none */
};

/* pfnmap_test_inspect.flags */
#define PFNMAP_TEST_PTE_PRESENT	0x1
#define PFNMAP_TEST_PTE_SPECIAL	0x2
#define PFNMAP_TEST_PTE_WRITE	0x4
#define PFNMAP_TEST_PFN_VALID	0x8
#define PFNMAP_TEST_PTE_DIRTY	0x10
#define PFNMAP_TEST_PTE_YOUNG	0x20
#define PFNMAP_TEST_ANON	0x40	/* the struct page is anonymous memory */
#define PFNMAP_TEST_LEAF	0x80	/* a PMD: neither PTE_DIRTY nor PTE_YOUNG */

/*
 * INSPECT: what the caller's page table has at addr, without faulting it in.
 * PAGE_STATE: where a page of the object is, mapped or not.
 */
struct pfnmap_test_inspect {
	union {
		__u64 addr;	/* in, page aligned, in a mapping of this file */
		__u64 index;	/* in, page index */
	};
	__u64 pfn;
	__u64 pgprot;		/* raw protection and cache bits */
	__u32 flags;
	__s32 refcount;		/* of the struct page's folio, if PFN_VALID */
	__s32 mapcount;
	__u32 reserved;
};

/*
 * What is mapped at an address of the caller, of whatever file, for those who
 * have nothing but the page table: resolved as KVM and VFIO do it, with the
 * fault handler called once at most.
 */
struct pfnmap_test_resolve {
	__u64 addr;		/* in, in a VM_IO or VM_PFNMAP mapping */
	__u64 pfn;
	__u32 write;		/* in, 1: for a write */
	__u32 flags;		/* PFNMAP_TEST_PTE_WRITE */
};

#define PFNMAP_TEST_CREATE	_IOW('P', 1, struct pfnmap_test_create)
#define PFNMAP_TEST_MIGRATE	_IOW('P', 2, struct pfnmap_test_migrate)
#define PFNMAP_TEST_SET_METHOD	_IOW('P', 3, struct pfnmap_test_method_arg)
#define PFNMAP_TEST_GET_STATS	_IOR('P', 4, struct pfnmap_test_stats)
#define PFNMAP_TEST_RESET_STATS	_IO('P', 5)
#define PFNMAP_TEST_INSPECT	_IOWR('P', 6, struct pfnmap_test_inspect)
#define PFNMAP_TEST_PAGE_STATE	_IOWR('P', 7, struct pfnmap_test_inspect)
#define PFNMAP_TEST_WRPROTECT	_IO('P', 8)	/* all of a NOTIFY object, everywhere */
#define PFNMAP_TEST_RESOLVE	_IOWR('P', 9, struct pfnmap_test_resolve)

#endif /* __PFNMAP_TEST_H */
