// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the walkers of page tables do with special PTEs: pfns in VM_PFNMAP and
 * VM_MIXEDMAP mappings, with a struct page or without. None of them may take
 * them for pages, lose them, or change them more than it says.
 *
 * Without pte_special, a pfn in a VM_MIXEDMAP mapping that has a struct page is
 * mapped as a page: refcounted, accounted, in the rmap. All that the tests
 * expect follows from which of them it is, and no test is skipped for that.
 *
 * Needs root and CONFIG_PFNMAP_TEST, with some vram (see pfnmap_insert.c). Where
 * one is missing, tests are skipped. Tests of what a kernel may be built without
 * (userfaultfd, HMM's test module, compaction, NUMA) are left out, with a note.
 */
#define _GNU_SOURCE
/* Addresses are offsets, in /proc/self/mem */
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/fs.h>
#include <linux/mempolicy.h>
#include <linux/mman.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "kselftest_harness.h"
#include "lib/test_hmm_uapi.h"
#include "pfnmap_util.h"

/* Debugging kernels are slow, in emulators the more so. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	300

#define HMM_DEVICE	"/dev/hmm_dmirror0"
#define COMPACT		"/proc/sys/vm/compact_memory"
#define NUMA_MAPS	"/proc/self/numa_maps"
#define USERFAULTFD	"/proc/sys/vm/unprivileged_userfaultfd"

/* The pages of a run; the page table ends after the first EDGE ones. */
#define NR		200UL
#define EDGE		90UL

/* A part of it, across the end of the page table. */
#define PART		60UL
#define PART_NR		70UL
#define PART_END	(PART + PART_NR)

/* Other memory of the process that comes or goes meanwhile, in kB */
#define RSS_SLACK	256

#define MAX_NODES	1024

/* From linux/kernel-page-flags.h, which vm_util.h does not go with */
#define FLAG_LRU		BIT_ULL(5)
#define FLAG_SLAB		BIT_ULL(7)
#define FLAG_BUDDY		BIT_ULL(10)
#define FLAG_MMAP		BIT_ULL(11)
#define FLAG_ANON		BIT_ULL(12)
#define FLAG_HUGE		BIT_ULL(17)
#define FLAG_UNEVICTABLE	BIT_ULL(18)
#define FLAG_NOPAGE		BIT_ULL(20)
#define FLAG_KSM		BIT_ULL(21)

static const unsigned long samples[] = {
	0, 1, 2, 3, PART - 1, PART, PART + 1, EDGE - 2, EDGE - 1, EDGE, EDGE + 1,
	PART_END - 1, PART_END, NR - 2, NR - 1,
};

static long kb(unsigned long pages)
{
	return pages * (psize() / 1024);
}

/* What a test works with: a mapping of the object's pages from 0 up to @nr. */
struct run {
	int fd;
	int observer;			/* an open file without an object */
	struct pfnmap_test_stats start;	/* of the observer */
	char *area;			/* reserved, at the start of a page table */
	size_t area_size;
	char *addr;
	unsigned long nr;
	unsigned int place;
	unsigned int flags;
	unsigned int method;
	bool mixed;
	unsigned int mappings;		/* of each page, with its PTE */
	uint64_t faults;		/* until now */
	struct pfnmap_test_inspect saved[ARRAY_SIZE(samples)];
};

static bool is_ram(const struct run *run, unsigned long index)
{
	const bool other = (run->flags & PFNMAP_TEST_ALTERNATE) && index % 2;

	return (run->place == PFNMAP_TEST_RAM) != other;
}

/* Is it mapped as a page? Else it is a pfn, for which all of this is about. */
static bool is_page(const struct run *run, unsigned long index)
{
	return run->mixed && !run->start.pte_special && is_ram(run, index);
}

static unsigned long count_pages(const struct run *run, unsigned long first,
				 unsigned long nr)
{
	unsigned long i, pages = 0;

	for (i = first; i < first + nr; i++)
		pages += is_page(run, i);
	return pages;
}

/* VM_PFNMAP has an error where VM_MIXEDMAP has none. */
static int error_of(const struct run *run, int pfnmap, int mixed)
{
	return run->mixed ? mixed : pfnmap;
}

static char *page_at(const struct run *run, unsigned long index)
{
	return run->addr + index * psize();
}

/* Some pages are written to. */
static uint64_t mark(unsigned long index)
{
	return index % 3 ? 0 : index + 1000;
}

static bool is_written(unsigned long index)
{
	return mark(index);
}

static bool content_ok(const char *page, unsigned long index)
{
	const struct pfnmap_test_page *header = (const void *)page;

	return FORCE_READ(header->magic) == PFNMAP_TEST_MAGIC &&
	       FORCE_READ(header->index) == index &&
	       FORCE_READ(header->generation) == 0 &&
	       load(page + 64) == mark(index);
}

static bool contents_ok(const char *addr, unsigned long first, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++) {
		if (!content_ok(addr + i * psize(), first + i))
			return false;
	}
	return true;
}

static bool has(unsigned int flags, unsigned int flag)
{
	return flags & flag;
}

static int do_inspect(int fd, const char *addr, struct pfnmap_test_inspect *arg)
{
	memset(arg, 0, sizeof(*arg));
	arg->addr = (uintptr_t)addr;
	return ioctl(fd, PFNMAP_TEST_INSPECT, arg);
}

static struct pfnmap_test_inspect inspect(struct __test_metadata *_metadata,
					  const struct run *run,
					  const char *addr)
{
	struct pfnmap_test_inspect arg;

	ASSERT_EQ(do_inspect(run->fd, addr, &arg), 0);
	return arg;
}

static void check_present(struct __test_metadata *_metadata,
			  const struct run *run, const char *addr,
			  unsigned long nr, unsigned long expected)
{
	unsigned long i, present = 0;

	for (i = 0; i < nr; i++)
		present += has(inspect(_metadata, run, addr + i * psize()).flags,
			       PFNMAP_TEST_PTE_PRESENT);
	ASSERT_EQ(present, expected);
}

static uint64_t get_faults(struct __test_metadata *_metadata,
			   const struct run *run)
{
	struct pfnmap_test_stats stats;

	ASSERT_EQ(ioctl(run->fd, PFNMAP_TEST_GET_STATS, &stats), 0);
	return stats.faults;
}

/* A number from a file of lines "FIELD: NUMBER", or -1 */
static long file_number(const char *name, const char *field)
{
	char line[256];
	long val = -1;
	FILE *file;

	file = fopen(name, "r");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (!strncmp(line, field, strlen(field)))
			val = strtol(line + strlen(field), NULL, 10);
	}
	fclose(file);
	return val;
}

/* Does a VMA that starts in the range have that one of VmFlags? */
static bool has_vmflag(const char *addr, unsigned long nr, const char *flag)
{
	const unsigned long first = (uintptr_t)addr;
	unsigned long start, end;
	bool ours = false, found = false;
	char line[1024];
	FILE *file;

	file = fopen("/proc/self/smaps", "r");
	if (!file)
		return false;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			ours = start >= first && start < first + nr * psize();
		else if (ours && !strncmp(line, "VmFlags:", 8))
			found |= !!strstr(line, flag);
	}
	fclose(file);
	return found;
}

/* What the PTEs are from now on. */
static void save(struct __test_metadata *_metadata, struct run *run)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(samples); i++) {
		const unsigned long index = samples[i];
		struct pfnmap_test_inspect *pte = &run->saved[i];

		if (index >= run->nr)
			continue;
		*pte = inspect(_metadata, run, page_at(run, index));
		ASSERT_TRUE(has(pte->flags, PFNMAP_TEST_PTE_PRESENT));
		ASSERT_TRUE(has(pte->flags, PFNMAP_TEST_PTE_YOUNG));
		ASSERT_EQ(has(pte->flags, PFNMAP_TEST_PTE_SPECIAL),
			  run->start.pte_special);
		ASSERT_EQ(has(pte->flags, PFNMAP_TEST_PFN_VALID),
			  is_ram(run, index));
		ASSERT_FALSE(has(pte->flags, PFNMAP_TEST_ANON));
		if (is_written(index))
			ASSERT_TRUE(has(pte->flags, PFNMAP_TEST_PTE_DIRTY));
	}
	run->faults = get_faults(_metadata, run);
}

static void check_counts(struct __test_metadata *_metadata,
			 const struct run *run, unsigned long index,
			 unsigned int mappings, const char *what)
{
	struct pfnmap_test_page_state state = { .index = index };
	const int mapcount = is_page(run, index) ? mappings : 0;

	ASSERT_EQ(ioctl(run->fd, PFNMAP_TEST_PAGE_STATE, &state), 0);
	ASSERT_EQ(has(state.flags, PFNMAP_TEST_PFN_VALID), is_ram(run, index));
	if (!is_ram(run, index))
		return;
	ASSERT_EQ(state.refcount, 1 + mapcount) {
		TH_LOG("%s: page %lu", what, index);
	}
	ASSERT_EQ(state.mapcount, mapcount) {
		TH_LOG("%s: page %lu", what, index);
	}
}

/* PTEs as they were saved, but for @set and @cleared */
static void check_ptes(struct __test_metadata *_metadata, const struct run *run,
		       unsigned int set, unsigned int cleared, const char *what)
{
	struct pfnmap_test_inspect pte;
	unsigned int i, mask;

	for (i = 0; i < ARRAY_SIZE(samples); i++) {
		const unsigned long index = samples[i];

		if (index >= run->nr)
			continue;
		/* Pages get old when they like to. */
		mask = is_page(run, index) ? ~(unsigned int)PFNMAP_TEST_PTE_YOUNG :
					     ~0U;
		pte = inspect(_metadata, run, page_at(run, index));
		ASSERT_EQ(pte.pfn, run->saved[i].pfn) {
			TH_LOG("%s: page %lu", what, index);
		}
		ASSERT_EQ(pte.flags & mask,
			  ((run->saved[i].flags | set) & ~cleared) & mask) {
			TH_LOG("%s: page %lu", what, index);
		}
	}
}

/* What is mapped counts in the RSS if it is pages. */
static void check_rss(struct __test_metadata *_metadata, const struct run *run,
		      const char *what)
{
	ASSERT_EQ(smaps_sum(run->addr, run->nr, "Rss:"),
		  kb(count_pages(run, 0, run->nr))) {
		TH_LOG("%s", what);
	}
}

/* Nothing has changed, and all is still mapped. */
static void check(struct __test_metadata *_metadata, const struct run *run,
		  const char *what)
{
	unsigned int i;

	check_ptes(_metadata, run, 0, 0, what);
	for (i = 0; i < ARRAY_SIZE(samples); i++) {
		if (samples[i] < run->nr)
			check_counts(_metadata, run, samples[i], run->mappings,
				     what);
	}
	check_rss(_metadata, run, what);
	ASSERT_TRUE(contents_ok(run->addr, 0, run->nr)) {
		TH_LOG("%s", what);
	}
	ASSERT_EQ(get_faults(_metadata, run), run->faults) {
		TH_LOG("%s", what);
	}
}

static void set_method(struct __test_metadata *_metadata, const struct run *run,
		       unsigned int method)
{
	const struct pfnmap_test_method_arg arg = {
		.method = method,
		.window = 16,
	};

	ASSERT_EQ(ioctl(run->fd, PFNMAP_TEST_SET_METHOD, &arg), 0);
}

static bool map(const struct run *run, char *addr, unsigned long nr, int prot)
{
	return mmap(addr, nr * psize(), prot, MAP_SHARED | MAP_FIXED, run->fd,
		    0) == addr;
}

static bool move(char *from, unsigned long nr, char *to)
{
	return mremap(from, nr * psize(), nr * psize(), MREMAP_MAYMOVE |
		      MREMAP_FIXED, to) == to;
}

/* Another mapping of the first pages, without page tables, in the area. */
static char *map_other(struct __test_metadata *_metadata, const struct run *run,
		       unsigned long nr, int prot)
{
	char *addr = run->area + 3 * span_size() + 8 * psize();

	ASSERT_TRUE(map(run, addr, nr, prot)) {
		TH_LOG("mmap: %s", strerror(errno));
	}
	return addr;
}

static void unmap(struct __test_metadata *_metadata, char *addr,
		  unsigned long nr)
{
	const int flags = MAP_ANON | MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED;

	ASSERT_TRUE(mmap(addr, nr * psize(), PROT_NONE, flags, -1, 0) == addr);
}

FIXTURE(walk)
{
	struct run run;
};

FIXTURE_VARIANT(walk)
{
	unsigned int place;
	unsigned int flags;
};

/* Without VM_IO: it would keep many of them away. */
#define MIXED_FLAGS	(PFNMAP_TEST_MIXEDMAP | PFNMAP_TEST_NO_IO)

FIXTURE_VARIANT_ADD(walk, pfnmap_ram)
{
	.place = PFNMAP_TEST_RAM,
};

FIXTURE_VARIANT_ADD(walk, pfnmap_vram)
{
	.place = PFNMAP_TEST_VRAM,
};

FIXTURE_VARIANT_ADD(walk, mixed_ram)
{
	.place = PFNMAP_TEST_RAM,
	.flags = MIXED_FLAGS,
};

FIXTURE_VARIANT_ADD(walk, mixed_vram)
{
	.place = PFNMAP_TEST_VRAM,
	.flags = MIXED_FLAGS,
};

FIXTURE_VARIANT_ADD(walk, mixed_alternate)
{
	.place = PFNMAP_TEST_RAM,
	.flags = MIXED_FLAGS | PFNMAP_TEST_ALTERNATE,
};

FIXTURE_SETUP(walk)
{
	struct pfnmap_test_create arg = {
		.nr_pages = NR,
		.place = variant->place,
		.flags = variant->flags,
	};
	struct run *run = &self->run;
	unsigned long i;
	char *area;

	ASSERT_EQ(install_handler(), 0);
	run->observer = open(DEVICE, O_RDWR);
	ASSERT_GE(run->observer, 0);
	ASSERT_EQ(ioctl(run->observer, PFNMAP_TEST_GET_STATS, &run->start), 0);
	run->fd = open(DEVICE, O_RDWR);
	ASSERT_GE(run->fd, 0);
	if (ioctl(run->fd, PFNMAP_TEST_CREATE, &arg)) {
		ASSERT_EQ(errno, ENODEV);
		SKIP_TEST("the driver has no vram");
	}
	run->place = variant->place;
	run->flags = variant->flags;
	run->mixed = variant->flags & PFNMAP_TEST_MIXEDMAP;
	run->method = run->mixed ? PFNMAP_TEST_MIXED_ITER : PFNMAP_TEST_ITER;
	run->mappings = 1;
	run->nr = NR;
	set_method(_metadata, run, run->method);

	run->area_size = 4 * span_size();
	area = mmap(NULL, run->area_size + span_size(), PROT_NONE,
		    MAP_ANON | MAP_PRIVATE | MAP_NORESERVE, -1, 0);
	ASSERT_TRUE(area != MAP_FAILED);
	run->area = (char *)(((uintptr_t)area + span_size() - 1) &
			     ~(uintptr_t)(span_size() - 1));

	run->addr = run->area + span_size() - EDGE * psize();
	ASSERT_TRUE(map(run, run->addr, NR, PROT_READ | PROT_WRITE));
	for (i = 0; i < NR; i++) {
		/* QEMU's m68k misses a write to what its TLB has for a read. */
		if (is_written(i))
			store(page_at(run, i) + 64, mark(i));
		load(page_at(run, i));
	}
	save(_metadata, run);
	check(_metadata, run, "setup");
}

FIXTURE_TEARDOWN(walk)
{
	struct run *run = &self->run;
	struct pfnmap_test_stats end;

	EXPECT_EQ(munmap(run->area, run->area_size), 0);
	EXPECT_EQ(close(run->fd), 0);
	EXPECT_EQ(ioctl(run->observer, PFNMAP_TEST_GET_STATS, &end), 0);
	EXPECT_EQ(end.vram_free, run->start.vram_free);
	EXPECT_EQ(end.ram_pages, run->start.ram_pages);
	EXPECT_EQ(close(run->observer), 0);
}

/* Mapped is in core, whatever it is; else the page cache is asked. */
TEST_F(walk, mincore)
{
	struct run *run = &self->run;
	unsigned char vec[NR];
	unsigned long i;
	char *other;

	memset(vec, 0xff, sizeof(vec));
	ASSERT_EQ(mincore(run->addr, NR * psize(), vec), 0);
	for (i = 0; i < NR; i++)
		ASSERT_EQ(vec[i], 1);
	check(_metadata, run, "mincore");

	other = map_other(_metadata, run, 32, PROT_READ);
	memset(vec, 0xff, sizeof(vec));
	ASSERT_EQ(mincore(other, 32 * psize(), vec), 0);
	for (i = 0; i < 32; i++)
		ASSERT_EQ(vec[i], 0);
	check_present(_metadata, run, other, 32, 0);

	/* Not one more than is mapped. */
	set_method(_metadata, run, run->mixed ? PFNMAP_TEST_MIXED :
					       PFNMAP_TEST_SINGLE);
	load(other + 5 * psize());
	ASSERT_EQ(mincore(other, 32 * psize(), vec), 0);
	for (i = 0; i < 32; i++)
		ASSERT_EQ(vec[i], i == 5);
}

static void read_pagemap(struct __test_metadata *_metadata, const char *addr,
			 unsigned long nr, uint64_t *entries)
{
	const size_t size = nr * sizeof(*entries);
	int fd;

	fd = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(pread(fd, entries, size,
			(uintptr_t)addr / psize() * sizeof(*entries)),
		  (ssize_t)size);
	close(fd);
}

/* VM_PFNMAP is a hole. Others have a pfn, but not a page of a file. */
TEST_F(walk, pagemap)
{
	struct run *run = &self->run;
	uint64_t entries[NR], pfn = 0;
	unsigned long i;

	read_pagemap(_metadata, run->addr, NR, entries);
	for (i = 0; i < NR; i++) {
		const uint64_t entry = entries[i];

		ASSERT_EQ(entry & (PM_SWAP | PM_UFFD_WP | PM_GUARD_REGION),
			  0ULL);
		ASSERT_EQ(!!(entry & PM_PRESENT), run->mixed);
		ASSERT_EQ(!!(entry & PM_FILE), is_page(run, i));
		if (!is_page(run, i))
			ASSERT_EQ(entry & PM_MMAP_EXCLUSIVE, 0ULL);
		if (run->mixed)
			pfn = inspect(_metadata, run, page_at(run, i)).pfn;
		ASSERT_EQ(PAGEMAP_PFN(entry), pfn);
	}
	check(_metadata, run, "pagemap");
}

/* The same, and nothing that has not been registered is write-protected. */
TEST_F(walk, pagemap_scan)
{
	struct page_region regions[NR];
	struct run *run = &self->run;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)run->addr,
		.end = (uintptr_t)page_at(run, NR),
		.vec = (uintptr_t)regions,
		.vec_len = ARRAY_SIZE(regions),
		.category_mask = PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_PRESENT | PAGE_IS_FILE | PAGE_IS_SWAPPED |
			       PAGE_IS_PFNZERO | PAGE_IS_HUGE | PAGE_IS_WRITTEN |
			       PAGE_IS_WPALLOWED,
	};
	unsigned long i, index = 0;
	int fd, nr;

	fd = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_GE(fd, 0);
	nr = ioctl(fd, PAGEMAP_SCAN, &arg);
	ASSERT_GE(nr, 0);
	ASSERT_EQ(arg.walk_end, arg.end);
	check(_metadata, run, "PAGEMAP_SCAN");
	for (i = 0; i < (unsigned long)nr; i++) {
		uint64_t expected = PAGE_IS_PRESENT;

		if (is_page(run, index))
			expected |= PAGE_IS_FILE;
		ASSERT_EQ(regions[i].start, (uintptr_t)page_at(run, index));
		ASSERT_EQ(regions[i].categories, expected);
		for (; index < NR; index++) {
			if ((uintptr_t)page_at(run, index) >= regions[i].end)
				break;
			ASSERT_EQ(is_page(run, index),
				  !!(expected & PAGE_IS_FILE));
		}
	}
	ASSERT_EQ(index, run->mixed ? NR : 0);

	/* VMAs that can't be write-protected are passed over or refused. */
	arg.category_mask = 0;
	arg.return_mask = PAGE_IS_WRITTEN;
	arg.flags = PM_SCAN_WP_MATCHING;
	ASSERT_EQ(ioctl(fd, PAGEMAP_SCAN, &arg), 0);
	check(_metadata, run, "PM_SCAN_WP_MATCHING");
	arg.vec = 0;
	arg.vec_len = 0;
	arg.return_mask = 0;
	ASSERT_EQ(ioctl(fd, PAGEMAP_SCAN, &arg), 0);
	check(_metadata, run, "PM_SCAN_WP_MATCHING without vec");
	arg.flags |= PM_SCAN_CHECK_WPASYNC;
	ASSERT_EQ(ioctl(fd, PAGEMAP_SCAN, &arg), -1);
	ASSERT_EQ(errno, EPERM);
	check(_metadata, run, "PM_SCAN_CHECK_WPASYNC");
	close(fd);
}

TEST_F(walk, smaps)
{
	static const char * const fields[] = {
		"Rss:", "Pss:", "Pss_Dirty:", "Shared_Clean:", "Shared_Dirty:",
		"Private_Clean:", "Private_Dirty:", "Referenced:", "Anonymous:",
		"KSM:", "LazyFree:", "AnonHugePages:", "FilePmdMapped:", "Swap:",
		"SwapPss:", "Locked:",
	};
	struct run *run = &self->run;
	const long pages = kb(count_pages(run, 0, NR));
	long before[2], after[2];
	unsigned int i;

	ASSERT_EQ(smaps_sum(run->addr, NR, "Size:"), kb(NR));
	for (i = 0; i < ARRAY_SIZE(fields); i++) {
		const long val = smaps_sum(run->addr, NR, fields[i]);

		/* KSM: is not always there, -1 */
		if (!pages) {
			EXPECT_LE(val, 0) {
				TH_LOG("%s", fields[i]);
			}
		} else if (i < 2) {
			EXPECT_EQ(val, pages);
		}
	}
	EXPECT_EQ(smaps_sum(run->addr, NR, "Private_Clean:") +
		  smaps_sum(run->addr, NR, "Private_Dirty:"), pages);
	EXPECT_EQ(has_vmflag(run->addr, NR, " pf"), !run->mixed);
	EXPECT_EQ(has_vmflag(run->addr, NR, " mm"), run->mixed);
	EXPECT_EQ(has_vmflag(run->addr, NR, " io"), !run->mixed);
	check(_metadata, run, "smaps");

	/* Once more, not to count what it takes to find out. */
	for (i = 0; i < 2; i++) {
		before[0] = file_number("/proc/self/smaps_rollup", "Rss:");
		before[1] = file_number("/proc/self/status", "RssFile:");
	}
	unmap(_metadata, run->addr, NR);
	after[0] = file_number("/proc/self/smaps_rollup", "Rss:");
	after[1] = file_number("/proc/self/status", "RssFile:");
	for (i = 0; i < 2; i++) {
		ASSERT_GT(before[i], 0);
		EXPECT_LT(labs(before[i] - after[i] - pages), RSS_SLACK);
	}
	for (i = 0; i < ARRAY_SIZE(samples); i++)
		check_counts(_metadata, run, samples[i], 0, "munmap");
}

static void write_clear_refs(struct __test_metadata *_metadata, const char *what)
{
	int fd;

	fd = open("/proc/self/clear_refs", O_WRONLY);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(write(fd, what, 1), 1);
	close(fd);
}

/*
 * Only pages get old. All but VM_PFNMAP is write-protected to find soft-dirty
 * pages, and the writes work, without the driver. In VM_PFNMAP nothing is soft-
 * dirty, and what is mapped from then on has a fault more, at the first write.
 */
TEST_F(walk, clear_refs)
{
	struct run *run = &self->run;
	bool soft_dirty = softdirty_supported();
	bool protected = run->mixed && soft_dirty;
	struct pfnmap_test_inspect pte;
	uint64_t entries[NR], faults;
	unsigned int flags;
	unsigned long i;
	char *other;

	write_clear_refs(_metadata, "1");
	check(_metadata, run, "clear_refs 1");
	write_clear_refs(_metadata, "2");
	check(_metadata, run, "clear_refs 2");
	write_clear_refs(_metadata, "3");
	check(_metadata, run, "clear_refs 3");

	other = map_other(_metadata, run, 32, PROT_READ | PROT_WRITE);
	write_clear_refs(_metadata, "4");
	check_ptes(_metadata, run, 0, protected ? PFNMAP_TEST_PTE_WRITE : 0,
		   "clear_refs 4");
	ASSERT_TRUE(contents_ok(run->addr, 0, NR));
	read_pagemap(_metadata, run->addr, NR, entries);
	for (i = 0; i < NR; i++)
		ASSERT_EQ(entries[i] & PM_SOFT_DIRTY, 0ULL);

	for (i = 0; i < NR; i++) {
		if (is_written(i))
			store(page_at(run, i) + 64, mark(i));
	}
	ASSERT_EQ(get_faults(_metadata, run), run->faults);
	read_pagemap(_metadata, run->addr, NR, entries);
	for (i = 0; i < NR; i++) {
		ASSERT_EQ(!!(entries[i] & PM_SOFT_DIRTY),
			  protected && is_written(i));
		flags = inspect(_metadata, run, page_at(run, i)).flags;
		ASSERT_EQ(has(flags, PFNMAP_TEST_PTE_WRITE),
			  !protected || is_written(i));
		if (is_written(i))
			ASSERT_TRUE(has(flags, PFNMAP_TEST_PTE_DIRTY));
	}
	for (i = 0; i < NR; i++)
		store(page_at(run, i) + 64, mark(i));
	check_ptes(_metadata, run, PFNMAP_TEST_PTE_DIRTY, 0, "all written");
	save(_metadata, run);
	check(_metadata, run, "clear_refs 4");

	/* Mapped by one fault, but read-only. */
	load(other);
	faults = get_faults(_metadata, run);
	ASSERT_EQ(faults, run->faults + 1);
	for (i = 0; i < 4; i++) {
		pte = inspect(_metadata, run, other + i * psize());
		ASSERT_TRUE(has(pte.flags, PFNMAP_TEST_PTE_PRESENT));
		ASSERT_EQ(has(pte.flags, PFNMAP_TEST_PTE_WRITE), !soft_dirty);
		store(other + i * psize() + 64, mark(i));
		pte = inspect(_metadata, run, other + i * psize());
		ASSERT_TRUE(has(pte.flags, PFNMAP_TEST_PTE_WRITE));
		ASSERT_TRUE(has(pte.flags, PFNMAP_TEST_PTE_DIRTY));
	}
	ASSERT_EQ(get_faults(_metadata, run), faults);
	unmap(_metadata, other, 32);
	run->faults = faults;
	check(_metadata, run, "another mapping");
}

/* By pfn: pages of the driver, that nobody has mapped. */
TEST_F(walk, kpage)
{
	const uint64_t flags_of_vm = FLAG_LRU | FLAG_SLAB | FLAG_BUDDY |
				     FLAG_MMAP | FLAG_ANON | FLAG_HUGE |
				     FLAG_UNEVICTABLE | FLAG_KSM;
	struct run *run = &self->run;
	int kpagecount, kpageflags;
	unsigned int i;

	kpagecount = open("/proc/kpagecount", O_RDONLY);
	ASSERT_GE(kpagecount, 0);
	kpageflags = open("/proc/kpageflags", O_RDONLY);
	ASSERT_GE(kpageflags, 0);
	for (i = 0; i < ARRAY_SIZE(samples); i++) {
		const off_t off = run->saved[i].pfn * sizeof(uint64_t);
		const bool page = is_page(run, samples[i]);
		uint64_t count = 0, flags = 0;
		ssize_t got;

		got = pread(kpagecount, &count, sizeof(count), off);
		ASSERT_EQ(count, page);
		if (is_ram(run, samples[i]))
			ASSERT_EQ(got, 8);
		got = pread(kpageflags, &flags, sizeof(flags), off);
		if (is_ram(run, samples[i])) {
			ASSERT_EQ(got, 8);
			ASSERT_EQ(flags & flags_of_vm, page ? FLAG_MMAP : 0);
		} else if (got) {
			ASSERT_EQ(flags & ~FLAG_NOPAGE, 0);
		}
	}
	check(_metadata, run, "kpageflags");
	close(kpagecount);
	close(kpageflags);
}

static bool has_ksm(void)
{
	return !access("/sys/kernel/mm/ksm", F_OK);
}

/* sysfs has nothing of it if the kernel has it, but not the machine. */
static bool has_thp(void)
{
	char *page = mmap(NULL, psize(), PROT_READ, MAP_ANON | MAP_PRIVATE, -1,
			  0);
	bool ret;

	if (page == MAP_FAILED)
		return false;
	ret = !madvise(page, psize(), MADV_NOHUGEPAGE);
	munmap(page, psize());
	return ret;
}

#define ADVICE(_advice, _pfnmap, _mixed, _has)	\
	{ #_advice, _advice, _pfnmap, _mixed, _has }

/* The error of each, or 0; EINVAL if the kernel does not have it */
static const struct {
	const char *name;
	int advice;
	int pfnmap;
	int mixed;
	bool (*has)(void);
} advices[] = {
	ADVICE(MADV_RANDOM, 0, 0, NULL),
	ADVICE(MADV_SEQUENTIAL, 0, 0, NULL),
	ADVICE(MADV_NORMAL, 0, 0, NULL),
	ADVICE(MADV_WILLNEED, 0, 0, NULL),
	ADVICE(MADV_REMOVE, ENODEV, ENODEV, NULL),
	ADVICE(MADV_DOFORK, EINVAL, EINVAL, NULL),
	ADVICE(MADV_DONTDUMP, 0, 0, NULL),
	ADVICE(MADV_DODUMP, EINVAL, EINVAL, NULL),
	ADVICE(MADV_WIPEONFORK, EINVAL, EINVAL, NULL),
	ADVICE(MADV_KEEPONFORK, 0, 0, NULL),
	ADVICE(MADV_FREE, EINVAL, EINVAL, NULL),
	ADVICE(MADV_COLD, EINVAL, 0, NULL),
	ADVICE(MADV_PAGEOUT, EINVAL, 0, NULL),
	ADVICE(MADV_GUARD_INSTALL, EINVAL, EINVAL, NULL),
	ADVICE(MADV_GUARD_REMOVE, EINVAL, EINVAL, NULL),
	ADVICE(MADV_POPULATE_READ, EINVAL, 0, NULL),
	ADVICE(MADV_MERGEABLE, 0, 0, has_ksm),
	ADVICE(MADV_UNMERGEABLE, 0, 0, has_ksm),
	ADVICE(MADV_HUGEPAGE, 0, 0, has_thp),
	ADVICE(MADV_COLLAPSE, EINVAL, EINVAL, has_thp),
	ADVICE(MADV_NOHUGEPAGE, 0, 0, has_thp),
	ADVICE(MADV_COLLAPSE, EINVAL, EINVAL, has_thp),
};

/* What madvise() says, and that it does nothing, for all and for a part. */
TEST_F(walk, madvise)
{
	struct run *run = &self->run;
	unsigned long i, first, nr;
	int err;

	for (i = 0; i < 2 * ARRAY_SIZE(advices); i++) {
		const unsigned long n = i % ARRAY_SIZE(advices);

		first = n == i ? PART : 0;
		nr = n == i ? PART_NR : NR;
		err = error_of(run, advices[n].pfnmap, advices[n].mixed);
		if (advices[n].has && !advices[n].has())
			err = EINVAL;
		errno = 0;
		ASSERT_EQ(madvise(page_at(run, first), nr * psize(),
				  advices[n].advice), -!!err) {
			TH_LOG("%s", advices[n].name);
		}
		ASSERT_EQ(errno, err) {
			TH_LOG("%s", advices[n].name);
		}
		ASSERT_FALSE(has_vmflag(run->addr, NR, " mg"));
		ASSERT_FALSE(has_vmflag(run->addr, NR, " wf"));
		ASSERT_FALSE(has_vmflag(run->addr, NR, " gu"));
		check(_metadata, run, advices[n].name);
	}

	/* This makes what is no page dirty. */
	err = error_of(run, EINVAL, 0);
	ASSERT_EQ(madvise(run->addr, NR * psize(), MADV_POPULATE_WRITE), -!!err);
	for (i = 0; i < ARRAY_SIZE(samples) && !err; i++) {
		if (!is_page(run, samples[i]))
			run->saved[i].flags |= PFNMAP_TEST_PTE_DIRTY;
	}
	check(_metadata, run, "MADV_POPULATE_WRITE");
}

/* The same, of one's own process and of another one. */
TEST_F(walk, process_madvise)
{
	static const int list[] = {
		MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_COLLAPSE,
	};
	struct run *run = &self->run;
	const struct iovec iov = {
		page_at(run, PART), PART_NR * psize()
	};
	unsigned int i, remote;
	int pidfd, status;
	pid_t pid;

	for (remote = 0; remote < 2; remote++) {
		pid = getpid();
		if (remote) {
			pid = fork();
			ASSERT_GE(pid, 0);
			if (!pid) {
				raise(SIGSTOP);
				_exit(!contents_ok(run->addr, 0, NR));
			}
			ASSERT_EQ(waitpid(pid, &status, WUNTRACED), pid);
			ASSERT_TRUE(WIFSTOPPED(status));
			run->mappings = 2;
		}
		pidfd = syscall(SYS_pidfd_open, pid, 0);
		ASSERT_GE(pidfd, 0);
		for (i = 0; i < ARRAY_SIZE(list); i++) {
			bool ok = run->mixed;

			if (list[i] == MADV_WILLNEED)
				ok = true;
			if (list[i] == MADV_COLLAPSE)
				ok = false;
			ASSERT_EQ(syscall(SYS_process_madvise, pidfd, &iov, 1,
					  list[i], 0),
				  ok ? (long)iov.iov_len : -1) {
				TH_LOG("advice %d: %s", list[i],
				       strerror(errno));
			}
			if (!ok)
				ASSERT_EQ(errno, EINVAL);
			check(_metadata, run, "process_madvise");
		}
		close(pidfd);
	}
	ASSERT_EQ(kill(pid, SIGCONT), 0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_TRUE(WIFEXITED(status));
	ASSERT_EQ(WEXITSTATUS(status), 0);
	run->mappings = 1;
	check(_metadata, run, "the other process has exited");
}

/* Memory failure is not injected into what is no page. */
TEST_F(walk, inject_error)
{
	static const int list[] = { MADV_SOFT_OFFLINE, MADV_HWPOISON };
	struct run *run = &self->run;
	unsigned long hwcorrupted, i, index;
	bool there = !get_hardware_corrupted_size(&hwcorrupted);

	for (i = 0; i < ARRAY_SIZE(samples); i++) {
		index = samples[i];
		if (is_page(run, index) && there)
			continue;	/* would be lost */
		ASSERT_EQ(madvise(page_at(run, index), psize(),
				  list[i % ARRAY_SIZE(list)]), -1);
		/* GUP's EEXIST ought to be EFAULT, too. */
		if (errno != EEXIST || !run->mixed)
			ASSERT_EQ(errno, there ? EFAULT : EINVAL);
	}
	check(_metadata, run, "MADV_HWPOISON");
}

/* MADV_DONTNEED takes away what is asked for, and it comes back. */
TEST_F(walk, dontneed)
{
	static const int list[] = { MADV_DONTNEED, MADV_DONTNEED_LOCKED };
	struct run *run = &self->run;
	unsigned long i, j;
	int err;

	err = error_of(run, EINVAL, 0);
	for (i = 0; i < ARRAY_SIZE(list); i++) {
		ASSERT_EQ(madvise(page_at(run, PART), PART_NR * psize(),
				  list[i]), -!!err);
		if (err) {
			ASSERT_EQ(errno, err);
			check(_metadata, run, "MADV_DONTNEED");
			continue;
		}
		check_present(_metadata, run, run->addr, PART, PART);
		check_present(_metadata, run, page_at(run, PART), PART_NR, 0);
		check_present(_metadata, run, page_at(run, PART_END),
			      NR - PART_END, NR - PART_END);
		for (j = 0; j < NR; j++)
			check_counts(_metadata, run, j,
				     j < PART || j >= PART_END, "MADV_DONTNEED");
		ASSERT_EQ(smaps_sum(run->addr, NR, "Rss:"),
			  kb(count_pages(run, 0, PART) +
			     count_pages(run, PART_END, NR - PART_END)));
		ASSERT_EQ(get_faults(_metadata, run), run->faults);

		ASSERT_TRUE(contents_ok(run->addr, 0, NR));
		ASSERT_GT(get_faults(_metadata, run), run->faults);
		for (j = PART; j < PART_END; j++)
			store(page_at(run, j) + 64, mark(j));
		save(_metadata, run);
		check(_metadata, run, "after MADV_DONTNEED");
	}
}

/* Nothing of it is locked, but VM_MIXEDMAP is populated nevertheless. */
TEST_F(walk, mlock)
{
	struct run *run = &self->run;
	const long locked = file_number("/proc/self/status", "VmLck:");
	unsigned int i;
	char *other;

	ASSERT_GE(locked, 0);
	for (i = 0; i < 2; i++) {
		const unsigned int flags = i ? MLOCK_ONFAULT : 0;

		ASSERT_EQ(syscall(SYS_mlock2, run->addr, NR * psize(), flags), 0);
		ASSERT_EQ(file_number("/proc/self/status", "VmLck:"), locked);
		ASSERT_FALSE(has_vmflag(run->addr, NR, " lo"));
		ASSERT_EQ(smaps_sum(run->addr, NR, "Locked:"), 0);
		check(_metadata, run, "mlock2");

		other = map_other(_metadata, run, 32, PROT_READ | PROT_WRITE);
		ASSERT_EQ(syscall(SYS_mlock2, other, 32 * psize(), flags), 0);
		check_present(_metadata, run, other, 32, run->mixed ? 32 : 0);
		ASSERT_EQ(munlock(other, 32 * psize()), 0);
		ASSERT_EQ(file_number("/proc/self/status", "VmLck:"), locked);
		unmap(_metadata, other, 32);
		run->faults = get_faults(_metadata, run);
	}
	ASSERT_EQ(munlock(run->addr, NR * psize()), 0);
	ASSERT_EQ(file_number("/proc/self/status", "VmLck:"), locked);
	check(_metadata, run, "munlock");
}

/* Protection is changed for those that it is asked for, nothing is lost. */
TEST_F(walk, mprotect)
{
	const unsigned int write = PFNMAP_TEST_PTE_WRITE;
	struct run *run = &self->run;
	char *part = page_at(run, PART);
	const size_t size = NR * psize(), part_size = PART_NR * psize();
	unsigned char vec[NR];
	unsigned long i;
	unsigned int flags;

	for (i = 0; i < ARRAY_SIZE(samples); i++)
		ASSERT_TRUE(has(run->saved[i].flags, write));

	ASSERT_EQ(mprotect(run->addr, size, PROT_READ), 0);
	check_ptes(_metadata, run, 0, write, "PROT_READ");
	ASSERT_TRUE(contents_ok(run->addr, 0, NR));
	for (i = 0; i < ARRAY_SIZE(samples); i++)
		ASSERT_EQ(try_store(page_at(run, samples[i]) + 64, 1), SIGSEGV);
	ASSERT_EQ(mprotect(run->addr, size, PROT_READ | PROT_WRITE), 0);
	check(_metadata, run, "PROT_READ and back");

	ASSERT_EQ(mprotect(run->addr, size, PROT_NONE), 0);
	check_ptes(_metadata, run, 0, write, "PROT_NONE");
	check_rss(_metadata, run, "PROT_NONE");
	for (i = 0; i < ARRAY_SIZE(samples); i++) {
		ASSERT_EQ(touch(page_at(run, samples[i])), SIGSEGV);
		ASSERT_EQ(try_store(page_at(run, samples[i]) + 64, 1), SIGSEGV);
		check_counts(_metadata, run, samples[i], 1, "PROT_NONE");
	}
	ASSERT_EQ(mincore(run->addr, size, vec), 0);
	for (i = 0; i < NR; i++)
		ASSERT_EQ(vec[i], 1);
	ASSERT_EQ(mprotect(run->addr, size, PROT_READ | PROT_WRITE), 0);
	check(_metadata, run, "PROT_NONE and back");

	/* A part of it. */
	ASSERT_EQ(mprotect(part, part_size, PROT_READ), 0);
	for (i = 0; i < NR; i++) {
		flags = inspect(_metadata, run, page_at(run, i)).flags;
		ASSERT_TRUE(has(flags, PFNMAP_TEST_PTE_PRESENT));
		ASSERT_EQ(has(flags, write), i < PART || i >= PART_END);
		ASSERT_EQ(try_store(page_at(run, i) + 64, mark(i)),
			  flags & write ? 0 : SIGSEGV);
	}
	ASSERT_EQ(mprotect(part, part_size, PROT_NONE), 0);
	for (i = 0; i < NR; i++)
		ASSERT_EQ(touch(page_at(run, i)),
			  i < PART || i >= PART_END ? 0 : SIGSEGV);
	ASSERT_EQ(mprotect(part, part_size, PROT_READ | PROT_WRITE), 0);
	/* Those outside of it have been stored to. */
	for (i = 0; i < NR; i++)
		store(page_at(run, i) + 64, mark(i));
	check_ptes(_metadata, run, PFNMAP_TEST_PTE_DIRTY, 0, "a part");
	save(_metadata, run);
	check(_metadata, run, "a part");
}

/*
 * Without privileges: x86 with L1TF may refuse PROT_NONE of what is no memory,
 * and then has to leave all as it is.
 */
TEST_F(walk, prot_none_unprivileged)
{
	static const char l1tf[] = "/sys/devices/system/cpu/vulnerabilities/l1tf";
	struct run *run = &self->run;
	bool affected = false;
	char line[64];
	int status;
	FILE *file;
	pid_t pid;

	file = fopen(l1tf, "r");
	if (file) {
		affected = !fgets(line, sizeof(line), file) ||
			   strncmp(line, "Not affected", 12);
		fclose(file);
	}

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		struct pfnmap_test_inspect pte;
		unsigned int i;
		bool none;

		if (setresuid(65534, 65534, 65534))
			_exit(1);
		none = !mprotect(run->addr, NR * psize(), PROT_NONE);
		if (!none && (errno != EACCES || !affected ||
			      (run->place == PFNMAP_TEST_RAM &&
			       !(run->flags & PFNMAP_TEST_ALTERNATE))))
			_exit(2);
		for (i = 0; i < ARRAY_SIZE(samples); i++) {
			if (do_inspect(run->fd, page_at(run, samples[i]), &pte) ||
			    pte.pfn != run->saved[i].pfn)
				_exit(3);
		}
		if (none && touch(run->addr) != SIGSEGV)
			_exit(4);
		if (mprotect(run->addr, NR * psize(), PROT_READ | PROT_WRITE))
			_exit(5);
		_exit(contents_ok(run->addr, 0, NR) ? 0 : 6);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_TRUE(WIFEXITED(status));
	ASSERT_EQ(WEXITSTATUS(status), 0);
	check(_metadata, run, "mprotect in a child");
}

/* PTEs move as they are, all or a part of them, and need no other fault. */
TEST_F(walk, mremap)
{
	struct run *run = &self->run;
	char *old = run->addr, *part = page_at(run, PART);
	char *to = run->area + 3 * span_size() - 33 * psize();
	const size_t rest = (NR - PART_END) * psize();
	unsigned long i;

	ASSERT_TRUE(move(part, PART_NR, to));
	ASSERT_EQ(touch(part), SIGSEGV);
	check_present(_metadata, run, to, PART_NR, PART_NR);
	ASSERT_TRUE(contents_ok(to, PART, PART_NR));
	ASSERT_EQ(smaps_sum(to, PART_NR, "Rss:"),
		  kb(count_pages(run, PART, PART_NR)));
	ASSERT_TRUE(move(to, PART_NR, part));
	check(_metadata, run, "a part, there and back");

	/* It is three VMAs now, and goes in three pieces. */
	ASSERT_TRUE(move(run->addr, PART, to));
	ASSERT_TRUE(move(part, PART_NR, to + PART * psize()));
	ASSERT_TRUE(move(page_at(run, PART_END), NR - PART_END,
			 to + PART_END * psize()));
	ASSERT_EQ(touch(old), SIGSEGV);
	run->addr = to;
	check(_metadata, run, "all");

	/* What is cut off is unmapped. */
	part = page_at(run, PART_END);
	ASSERT_TRUE(mremap(part, rest, rest - 10 * psize(), 0) == part);
	ASSERT_EQ(touch(page_at(run, NR - 10)), SIGSEGV);
	run->nr = NR - 10;
	check(_metadata, run, "shrunk");
	check_counts(_metadata, run, NR - 1, 0, "shrunk");
	ASSERT_EQ(munmap(run->addr, NR * psize()), 0);
	for (i = 0; i < NR; i++)
		check_counts(_metadata, run, i, 0, "munmap");
}

/* VM_MIXEDMAP alone allows for what VM_PFNMAP, or VM_DONTEXPAND, forbids. */
TEST_F(walk, mremap_copy)
{
	struct run *run = &self->run;
	char *old = run->addr, *to = run->area + 3 * span_size() - 33 * psize();
	const size_t size = NR * psize(), less = (NR - 10) * psize();
	void *ret;

	/* Twice */
	ret = mremap(run->addr, 0, size, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	if (!run->mixed) {
		ASSERT_TRUE(ret == MAP_FAILED);
		ASSERT_EQ(errno, EFAULT);
	} else {
		ASSERT_TRUE(ret == to);
		check_present(_metadata, run, to, NR, 0);
		check(_metadata, run, "duplicated");
		ASSERT_TRUE(contents_ok(to, 0, NR));
		ASSERT_GT(get_faults(_metadata, run), run->faults);
		run->faults = get_faults(_metadata, run);
		run->mappings = 2;
		check(_metadata, run, "duplicate accessed");
		ASSERT_EQ(munmap(to, size), 0);
		run->mappings = 1;
	}
	check(_metadata, run, "once");

	/* Both addresses, but PTEs only at the new one */
	ret = mremap(run->addr, size, size, MREMAP_MAYMOVE | MREMAP_FIXED |
		     MREMAP_DONTUNMAP, to);
	if (!run->mixed) {
		ASSERT_TRUE(ret == MAP_FAILED);
		ASSERT_EQ(errno, EINVAL);
	} else {
		ASSERT_TRUE(ret == to);
		check_present(_metadata, run, old, NR, 0);
		run->addr = to;
		check(_metadata, run, "MREMAP_DONTUNMAP");
		ASSERT_TRUE(contents_ok(old, 0, NR));
		ASSERT_EQ(munmap(old, size), 0);
		run->faults = get_faults(_metadata, run);
	}
	check(_metadata, run, "one");

	/* Longer again, which is not to be had without a move */
	ASSERT_TRUE(mremap(run->addr, size, less, 0) == run->addr);
	ASSERT_TRUE(mremap(run->addr, less, size, 0) == MAP_FAILED);
	ASSERT_EQ(errno, error_of(run, EFAULT, ENOMEM));
	to = run->area + 8 * psize();
	ret = mremap(run->addr, less, size, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	if (!run->mixed) {
		ASSERT_TRUE(ret == MAP_FAILED);
		ASSERT_EQ(errno, EFAULT);
		run->nr = NR - 10;
	} else {
		ASSERT_TRUE(ret == to);
		check_present(_metadata, run, to, NR, NR - 10);
		/* Beyond the object, the driver has nothing. */
		run->addr = run->area + 2 * span_size() + 8 * psize();
		ret = mremap(to, size, size + psize(), MREMAP_MAYMOVE |
			     MREMAP_FIXED, run->addr);
		ASSERT_TRUE(ret == run->addr);
		ASSERT_EQ(touch(page_at(run, NR)), SIGBUS);
		ASSERT_EQ(munmap(page_at(run, NR), psize()), 0);
		ASSERT_TRUE(contents_ok(run->addr, 0, NR));
		store(page_at(run, NR - 2) + 64, mark(NR - 2));
		save(_metadata, run);
	}
	check(_metadata, run, "longer");
}

/* No PTE marker gets there, nor is anything taken from there. */
TEST_F(walk, userfaultfd)
{
	static const uint64_t modes[] = {
		UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP,
		UFFDIO_REGISTER_MODE_MINOR,
	};
	static const uint64_t features[] = { 0, UFFD_FEATURE_WP_ASYNC };
	struct run *run = &self->run;
	struct uffdio_copy copy = {
		.dst = (uintptr_t)page_at(run, PART),
		.len = psize(),
	};
	void *page;
	unsigned int i, j;
	int uffd;

	page = mmap(NULL, psize(), PROT_READ | PROT_WRITE,
		    MAP_ANON | MAP_PRIVATE, -1, 0);
	ASSERT_TRUE(page != MAP_FAILED);
	copy.src = (uintptr_t)page;

	for (i = 0; i < ARRAY_SIZE(features); i++) {
		struct uffdio_api api = {
			.api = UFFD_API,
			.features = features[i],
		};

		uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
		ASSERT_GE(uffd, 0);
		if (ioctl(uffd, UFFDIO_API, &api)) {
			/* Not every architecture has that. */
			ASSERT_TRUE(features[i] != 0);
			ASSERT_EQ(errno, EINVAL);
			close(uffd);
			continue;
		}
		for (j = 0; j < ARRAY_SIZE(modes); j++) {
			struct uffdio_register reg = {
				.range.start = (uintptr_t)run->addr,
				.range.len = NR * psize(),
				.mode = modes[j],
			};

			EXPECT_EQ(ioctl(uffd, UFFDIO_REGISTER, &reg), -1);
			EXPECT_EQ(errno, EINVAL);
		}
		EXPECT_EQ(ioctl(uffd, UFFDIO_COPY, &copy), -1);
		EXPECT_EQ(errno, ENOENT);
		check(_metadata, run, "userfaultfd");
		close(uffd);
	}
	ASSERT_EQ(munmap(page, psize()), 0);
}

/* A debugger gets pages only, there being no vm_ops->access(). */
TEST_F(walk, debugger)
{
	struct run *run = &self->run;
	int self_mem, child_mem, status;
	char name[32];
	unsigned int i;
	pid_t pid;

	self_mem = open("/proc/self/mem", O_RDWR);
	ASSERT_GE(self_mem, 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			_exit(1);
		raise(SIGSTOP);
		_exit(contents_ok(run->addr, 0, NR) ? 0 : 2);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_TRUE(WIFSTOPPED(status));
	snprintf(name, sizeof(name), "/proc/%d/mem", pid);
	child_mem = open(name, O_RDWR);
	ASSERT_GE(child_mem, 0);
	run->mappings = 2;

	for (i = 0; i < ARRAY_SIZE(samples); i++) {
		char *addr = page_at(run, samples[i]) + 64;
		const ssize_t size = is_page(run, samples[i]) ? 8 : -1;
		uint64_t val = 0;
		long word;

		errno = 0;
		ASSERT_EQ(pread(self_mem, &val, 8, (uintptr_t)addr), size);
		ASSERT_EQ(errno, size < 0 ? EIO : 0);
		ASSERT_EQ(pread(child_mem, &val, 8, (uintptr_t)addr), size);
		ASSERT_EQ(errno, size < 0 ? EIO : 0);
		if (size > 0)
			ASSERT_EQ(val, mark(samples[i]));
		val = mark(samples[i]);
		ASSERT_EQ(pwrite(child_mem, &val, 8, (uintptr_t)addr), size);
		ASSERT_EQ(errno, size < 0 ? EIO : 0);

		errno = 0;
		word = ptrace(PTRACE_PEEKDATA, pid, addr, NULL);
		ASSERT_EQ(errno, size < 0 ? EIO : 0);
		if (size > 0) {
			ASSERT_EQ(memcmp(&word, &val, sizeof(word)), 0);
			ASSERT_EQ(ptrace(PTRACE_POKEDATA, pid, addr, word), 0);
		} else {
			ASSERT_EQ(ptrace(PTRACE_POKEDATA, pid, addr, 1L), -1);
			ASSERT_EQ(errno, EIO);
		}
	}
	check(_metadata, run, "/proc/PID/mem, ptrace");
	ASSERT_EQ(ptrace(PTRACE_CONT, pid, NULL, NULL), 0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_TRUE(WIFEXITED(status));
	ASSERT_EQ(WEXITSTATUS(status), 0);
	close(child_mem);
	close(self_mem);
}

/*
 * Executable ones: an architecture must not look for the struct page to make
 * its caches coherent.
 */
TEST_F(walk, exec)
{
	static const unsigned int pfnmap[] = {
		PFNMAP_TEST_SINGLE, PFNMAP_TEST_LOOP, PFNMAP_TEST_BATCH,
		PFNMAP_TEST_ITER, PFNMAP_TEST_REMAP,
	};
	static const unsigned int mixed[] = {
		PFNMAP_TEST_MIXED, PFNMAP_TEST_MIXED_BATCH,
		PFNMAP_TEST_MIXED_ITER,
	};
	struct run *run = &self->run;
	const unsigned int *methods = run->mixed ? mixed : pfnmap;
	const unsigned int nr_methods = run->mixed ? ARRAY_SIZE(mixed) :
						     ARRAY_SIZE(pfnmap);
	const size_t size = 48 * psize();
	unsigned int i;
	char *addr;

	for (i = 0; i < nr_methods; i++) {
		set_method(_metadata, run, methods[i]);
		/* When they are inserted */
		addr = map_other(_metadata, run, 48, PROT_READ | PROT_EXEC);
		ASSERT_TRUE(contents_ok(addr, 0, 48));
		ASSERT_EQ(try_store(addr + 64, 1), SIGSEGV);
		unmap(_metadata, addr, 48);

		/* Later */
		addr = map_other(_metadata, run, 48, PROT_READ);
		ASSERT_TRUE(contents_ok(addr, 0, 48));
		ASSERT_EQ(mprotect(addr, size, PROT_READ | PROT_EXEC), 0);
		ASSERT_TRUE(contents_ok(addr, 0, 48));
		ASSERT_EQ(mprotect(addr, size, PROT_READ | PROT_WRITE |
				   PROT_EXEC), 0);
		store(addr + 3 * psize() + 64, mark(3));
		ASSERT_TRUE(contents_ok(addr, 0, 48));

		/* Nor does a move of them */
		ASSERT_TRUE(move(addr, 48, addr + size));
		ASSERT_TRUE(contents_ok(addr + size, 0, 48));
		unmap(_metadata, addr, 96);
	}
	run->faults = get_faults(_metadata, run);
	check(_metadata, run, "another mapping");

	ASSERT_EQ(mprotect(run->addr, NR * psize(),
			   PROT_READ | PROT_WRITE | PROT_EXEC), 0);
	check(_metadata, run, "PROT_EXEC");
}

/*
 * A child of what has been written to has old and clean PTEs. Populating makes
 * those young and dirty that are no pages, where they are.
 */
TEST_F(walk, populate_forked)
{
	const unsigned int young = PFNMAP_TEST_PTE_YOUNG;
	const unsigned int dirty = PFNMAP_TEST_PTE_DIRTY;
	struct run *run = &self->run;
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		const size_t size = NR * psize();
		unsigned int step, i;

		for (step = 0; step < 3; step++) {
			int ret = 0;

			if (step == 1)
				ret = madvise(run->addr, size, MADV_POPULATE_READ);
			if (step == 2)
				ret = madvise(run->addr, size, MADV_POPULATE_WRITE);
			if (step && ret != (run->mixed ? 0 : -1))
				_exit(1 + step);
			if (ret && errno != EINVAL)
				_exit(4);
			for (i = 0; i < ARRAY_SIZE(samples); i++) {
				unsigned int flags = run->saved[i].flags;
				struct pfnmap_test_inspect pte;
				const bool page = is_page(run, samples[i]);

				if (do_inspect(run->fd, page_at(run, samples[i]),
					       &pte))
					_exit(5);
				if (page) {
					flags &= ~(young | dirty);
					pte.flags &= ~(young | dirty);
				} else if (!step || !run->mixed) {
					flags &= ~(young | dirty);
				} else if (step == 1) {
					/* or left to the hardware, as x86 does */
					flags &= ~(young | dirty);
					pte.flags &= ~young;
				} else {
					flags |= dirty;
				}
				if (pte.pfn != run->saved[i].pfn)
					_exit(6);
				if (pte.flags != flags)
					_exit(10 + step);
			}
		}
		_exit(contents_ok(run->addr, 0, NR) ? 0 : 20);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_TRUE(WIFEXITED(status));
	ASSERT_EQ(WEXITSTATUS(status), 0);
	/* No fault of the child went to the driver. */
	check(_metadata, run, "populated child");
}

/* Compaction has nothing to move here. */
TEST_F(walk, compact)
{
	struct run *run = &self->run;
	int fd;

	fd = open(COMPACT, O_WRONLY);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(write(fd, "1", 1), 1);
	close(fd);
	check(_metadata, run, "compact_memory");
}

static int hmm(int fd, unsigned long cmd, const char *addr, void *ptr,
	       unsigned long nr)
{
	struct hmm_dmirror_cmd arg = {
		.addr = (uintptr_t)addr,
		.ptr = (uintptr_t)ptr,
		.npages = nr,
	};

	return ioctl(fd, cmd, &arg);
}

/* A device gets pages only, and says so before it faults or after. */
TEST_F(walk, hmm)
{
	struct run *run = &self->run;
	unsigned char perm[NR];
	char *other, *buf;
	unsigned long i;
	int fd;

	fd = open(HMM_DEVICE, O_RDWR);
	ASSERT_GE(fd, 0);
	buf = malloc(psize());
	ASSERT_TRUE(!!buf);

	memset(perm, 0x77, sizeof(perm));
	ASSERT_EQ(hmm(fd, HMM_DMIRROR_SNAPSHOT, run->addr, perm, NR), 0);
	for (i = 0; i < NR; i++)
		ASSERT_EQ(perm[i], is_page(run, i) ? HMM_DMIRROR_PROT_WRITE :
						    HMM_DMIRROR_PROT_ERROR);
	check(_metadata, run, "HMM_DMIRROR_SNAPSHOT");

	for (i = 0; i < ARRAY_SIZE(samples); i++) {
		char *addr = page_at(run, samples[i]);

		if (is_page(run, samples[i])) {
			ASSERT_EQ(hmm(fd, HMM_DMIRROR_READ, addr, buf, 1), 0);
			ASSERT_TRUE(content_ok(buf, samples[i]));
		} else {
			ASSERT_EQ(hmm(fd, HMM_DMIRROR_READ, addr, buf, 1), -1);
			ASSERT_EQ(errno, EFAULT);
			ASSERT_EQ(hmm(fd, HMM_DMIRROR_WRITE, addr, buf, 1), -1);
			ASSERT_EQ(errno, EFAULT);
		}
		ASSERT_EQ(hmm(fd, HMM_DMIRROR_MIGRATE_TO_DEV, addr, buf, 1), -1);
		ASSERT_EQ(errno, EINVAL);
	}
	check(_metadata, run, "HMM_DMIRROR_READ");

	/* Not mapped yet */
	other = map_other(_metadata, run, 32, PROT_READ);
	ASSERT_EQ(hmm(fd, HMM_DMIRROR_SNAPSHOT, other, perm, 32), 0);
	for (i = 0; i < 32; i++)
		ASSERT_EQ(perm[i], run->mixed ? HMM_DMIRROR_PROT_NONE :
						HMM_DMIRROR_PROT_ERROR);
	check_present(_metadata, run, other, 32, 0);
	ASSERT_EQ(hmm(fd, HMM_DMIRROR_READ, other, buf, 1),
		  is_page(run, 0) ? 0 : -1);
	check_present(_metadata, run, other, 1, run->mixed);
	unmap(_metadata, other, 32);
	run->faults = get_faults(_metadata, run);
	check(_metadata, run, "HMM_DMIRROR_READ that faults");
	free(buf);
	close(fd);
}

TEST_F(walk, numa_maps)
{
	struct run *run = &self->run;
	const bool pages = count_pages(run, 0, NR);
	bool found = false;
	char line[1024];
	FILE *file;

	file = fopen(NUMA_MAPS, "r");
	ASSERT_TRUE(!!file);
	while (fgets(line, sizeof(line), file)) {
		if (strtoul(line, NULL, 16) != (uintptr_t)run->addr)
			continue;
		found = true;
		EXPECT_EQ(!!strstr(line, " N"), pages);
		EXPECT_EQ(!!strstr(line, " kernelpagesize_kB="), pages);
		EXPECT_TRUE(!strstr(line, " anon="));
		if (!pages)
			EXPECT_TRUE(!strstr(line, " dirty="));
	}
	fclose(file);
	ASSERT_TRUE(found);
	check(_metadata, run, "numa_maps");
}

/* Nodes that memory may be on, as a mask */
static int mems_allowed(unsigned long *mask)
{
	memset(mask, 0, MAX_NODES / 8);
	return syscall(SYS_get_mempolicy, NULL, mask, MAX_NODES, NULL,
		       MPOL_F_MEMS_ALLOWED);
}

static bool has_node(const unsigned long *mask, unsigned int node)
{
	const unsigned int bits = 8 * sizeof(*mask);

	return mask[node / bits] >> node % bits & 1;
}

/* Where it is: pages only are on a node. */
TEST_F(walk, move_pages)
{
	unsigned long allowed[MAX_NODES / 8 / sizeof(long)];
	struct run *run = &self->run;
	int status[NR], nodes[NR], node;
	void *pages[NR];
	unsigned long i;

	ASSERT_EQ(mems_allowed(allowed), 0);
	for (i = 0; i < NR; i++) {
		pages[i] = page_at(run, i);
		status[i] = 12345;
	}
	ASSERT_EQ(syscall(SYS_move_pages, 0, NR, pages, NULL, status, 0), 0);
	for (i = 0; i < NR; i++) {
		if (is_page(run, i))
			ASSERT_GE(status[i], 0);
		if (!is_page(run, i))
			ASSERT_EQ(status[i], -ENOENT);
	}
	check(_metadata, run, "move_pages, status");

	for (node = 0; node < MAX_NODES; node++) {
		if (!has_node(allowed, node))
			continue;
		for (i = 0; i < NR; i++) {
			nodes[i] = node;
			status[i] = 12345;
		}
		ASSERT_GE(syscall(SYS_move_pages, 0, NR, pages, nodes, status,
				  MPOL_MF_MOVE_ALL), 0);
		for (i = 0; i < NR; i++) {
			if (!is_page(run, i))
				ASSERT_EQ(status[i], error_of(run, -EFAULT,
							      -ENOENT));
		}
		check(_metadata, run, "move_pages");
	}
}

/* Nothing to move, and nothing that is on a wrong node. */
TEST_F(walk, mbind)
{
	static const unsigned int flags[] = {
		0, MPOL_MF_STRICT, MPOL_MF_MOVE, MPOL_MF_MOVE_ALL,
		MPOL_MF_STRICT | MPOL_MF_MOVE, MPOL_MF_STRICT | MPOL_MF_MOVE_ALL,
	};
	unsigned long allowed[MAX_NODES / 8 / sizeof(long)];
	unsigned long mask[MAX_NODES / 8 / sizeof(long)];
	const unsigned int bits = 8 * sizeof(*mask);
	struct run *run = &self->run;
	const bool pages = count_pages(run, 0, NR);
	unsigned int node, i;

	ASSERT_EQ(mems_allowed(allowed), 0);
	for (node = 0; node < MAX_NODES; node++) {
		if (!has_node(allowed, node))
			continue;
		memset(mask, 0, sizeof(mask));
		mask[node / bits] = 1UL << node % bits;
		for (i = 0; i < ARRAY_SIZE(flags); i++) {
			long ret = syscall(SYS_mbind, run->addr, NR * psize(),
					   MPOL_BIND, mask, MAX_NODES, flags[i]);

			if (!pages || !(flags[i] & MPOL_MF_STRICT))
				ASSERT_EQ(ret, 0);
			check(_metadata, run, "mbind");
		}
		ASSERT_GE(syscall(SYS_migrate_pages, 0, MAX_NODES, allowed,
				  mask), 0);
		check(_metadata, run, "migrate_pages");
	}
}

/* A test that this kernel has nothing for is not there at all. */
static void leave_out(const char *name, const char *why)
{
	struct __fixture_metadata *f;
	struct __test_metadata *t;

	for (f = __fixture_list; f; f = f->next) {
		for (t = f->tests; t; t = t->next) {
			if (!strcmp(t->name, name))
				break;
		}
		if (!t)
			continue;
		/* See __LIST_APPEND(): only prev is circular. */
		if (t->next)
			t->next->prev = t->prev;
		else
			f->tests->prev = t->prev;
		if (t == f->tests)
			f->tests = t->next;
		else
			t->prev->next = t->next;
		ksft_print_msg("%s.%s is left out: %s\n", f->name, name, why);
	}
}

static pid_t main_pid;

/* Not before the end: the harness does not return. */
static void unload_hmm(void)
{
	if (getpid() == main_pid && system("modprobe -r test_hmm"))
		ksft_print_msg("modprobe -r test_hmm failed\n");
}

int main(int argc, char **argv)
{
	unsigned long mask[MAX_NODES / 8 / sizeof(long)];

	need_device();
	if (access(HMM_DEVICE, F_OK) &&
	    !system("modprobe test_hmm 2>/dev/null")) {
		main_pid = getpid();
		atexit(unload_hmm);
	}

	if (access(USERFAULTFD, F_OK))
		leave_out("userfaultfd", "no " USERFAULTFD);
	if (access(HMM_DEVICE, F_OK))
		leave_out("hmm", "no " HMM_DEVICE);
	if (access(COMPACT, F_OK))
		leave_out("compact", "no " COMPACT);
	if (access(NUMA_MAPS, F_OK))
		leave_out("numa_maps", "no " NUMA_MAPS);
	/* Of no pages, only to see whether it is there */
	if (mems_allowed(mask) ||
	    (syscall(SYS_move_pages, 0, 0, NULL, NULL, NULL, 0) &&
	     errno == ENOSYS)) {
		leave_out("move_pages", "no CONFIG_NUMA_MIGRATION");
		leave_out("mbind", "no CONFIG_NUMA_MIGRATION");
	}

	return test_harness_run(argc, argv);
}
