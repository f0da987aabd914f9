// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for inserting pfns into VM_PFNMAP and VM_MIXEDMAP mappings from a fault
 * handler: vmf_insert_pfn(), vmf_insert_pfns(), vmf_insert_pfns_iter(), and
 * remap_pfn_range() to compare with.
 *
 * Needs root and CONFIG_PFNMAP_TEST, with some vram: an ivshmem-plain device in
 * the virtual machine or the module parameters vram_start and vram_size.  Where
 * one is missing, tests are skipped.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <linux/mman.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "kselftest_harness.h"
#include "pfnmap_util.h"

/* Debugging kernels are slow, in emulators the more so. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	300

/* Of the tests; each has that many spans for its own. */
#define AREA_SPANS	5UL

static unsigned int seed;

/* What a test works with. */
struct dev {
	int fd;
	int observer;			/* an open file without an object */
	struct pfnmap_test_stats start;	/* of the observer */
	char *area;			/* reserved, aligned to all windows */
	size_t area_size;
	unsigned long nr;		/* pages of the object */
};

static int do_method(int fd, unsigned int method, unsigned long window,
		     bool unclamped, unsigned int misuse)
{
	struct pfnmap_test_method_arg arg = {
		.method = method,
		.misuse = misuse,
		.window = window,
		.unclamped = unclamped,
	};

	return ioctl(fd, PFNMAP_TEST_SET_METHOD, &arg);
}

static void setup_dev(struct __test_metadata *_metadata, struct dev *dev)
{
	size_t align = 4 * span_size();
	char *area;

	ASSERT_EQ(install_handler(), 0);

	dev->observer = open(DEVICE, O_RDWR);
	ASSERT_GE(dev->observer, 0);
	ASSERT_EQ(ioctl(dev->observer, PFNMAP_TEST_GET_STATS, &dev->start), 0);
	dev->fd = open(DEVICE, O_RDWR);
	ASSERT_GE(dev->fd, 0);

	dev->area_size = AREA_SPANS * span_size();
	area = mmap(NULL, dev->area_size + align, PROT_NONE,
		    MAP_ANON | MAP_PRIVATE | MAP_NORESERVE, -1, 0);
	ASSERT_NE(area, MAP_FAILED);
	dev->area = (char *)(((uintptr_t)area + align - 1) & ~(align - 1));
}

static void teardown_dev(struct __test_metadata *_metadata, struct dev *dev)
{
	struct pfnmap_test_stats end;

	EXPECT_EQ(munmap(dev->area, dev->area_size), 0);
	EXPECT_EQ(close(dev->fd), 0);
	EXPECT_EQ(ioctl(dev->observer, PFNMAP_TEST_GET_STATS, &end), 0);
	EXPECT_EQ(end.vram_free, dev->start.vram_free);
	EXPECT_EQ(end.ram_pages, dev->start.ram_pages);
	EXPECT_EQ(close(dev->observer), 0);
}

static void create(struct __test_metadata *_metadata, struct dev *dev,
		   unsigned long nr, unsigned int place, unsigned int flags)
{
	int ret = do_create(dev->fd, nr, place, flags);

	if (ret && errno == ENODEV)
		SKIP_TEST("the driver has no vram");
	ASSERT_EQ(ret, 0) {
		TH_LOG("creating %lu pages: %s", nr, strerror(errno));
	}
	dev->nr = nr;
}

static void set_method(struct __test_metadata *_metadata, struct dev *dev,
		       unsigned int method, unsigned long window,
		       bool unclamped)
{
	ASSERT_EQ(do_method(dev->fd, method, window, unclamped,
			    PFNMAP_TEST_NO_MISUSE), 0);
}

static struct pfnmap_test_stats get_stats(struct __test_metadata *_metadata,
					  const struct dev *dev)
{
	struct pfnmap_test_stats stats;

	ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_GET_STATS, &stats), 0);
	return stats;
}

static struct pfnmap_test_inspect inspect(struct __test_metadata *_metadata,
					  const struct dev *dev,
					  const char *addr)
{
	struct pfnmap_test_inspect arg = { .addr = (uintptr_t)addr };

	ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_INSPECT, &arg), 0);
	return arg;
}

static bool is_present(struct __test_metadata *_metadata,
		       const struct dev *dev, const char *addr)
{
	return inspect(_metadata, dev, addr).flags & PFNMAP_TEST_PTE_PRESENT;
}

static unsigned long count_present(struct __test_metadata *_metadata,
				   const struct dev *dev, const char *addr,
				   unsigned long nr)
{
	unsigned long i, present = 0;

	for (i = 0; i < nr; i++)
		present += is_present(_metadata, dev, addr + i * psize());
	return present;
}

/* Map at @addr, which is part of the area. */
static char *map(struct __test_metadata *_metadata, const struct dev *dev,
		 char *addr, unsigned long first, unsigned long nr)
{
	char *ret;

	ret = mmap(addr, nr * psize(), PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_FIXED, dev->fd, first * psize());
	ASSERT_EQ(ret, addr) {
		TH_LOG("mmap: %s", strerror(errno));
	}
	return ret;
}

/* Back to a reserved range, without page tables. */
static void unmap(struct __test_metadata *_metadata, char *addr,
		  unsigned long nr)
{
	ASSERT_EQ(mmap(addr, nr * psize(), PROT_NONE, MAP_ANON | MAP_PRIVATE |
		       MAP_NORESERVE | MAP_FIXED, -1, 0), addr);
}

static bool headers_ok(const char *addr, unsigned long first, unsigned long nr,
		       uint64_t generation)
{
	unsigned long i;

	for (i = 0; i < nr; i++) {
		if (!header_ok(addr + i * psize(), first + i, generation))
			return false;
	}
	return true;
}

/* Where each page of the object is, found page by page. */
static unsigned long *get_pfns(struct __test_metadata *_metadata,
			       struct dev *dev)
{
	unsigned long *pfns, i;
	char *addr;

	pfns = calloc(dev->nr, sizeof(*pfns));
	ASSERT_NE(pfns, NULL);
	set_method(_metadata, dev, PFNMAP_TEST_SINGLE, 1, false);
	addr = mmap(NULL, dev->nr * psize(), PROT_READ, MAP_SHARED, dev->fd, 0);
	ASSERT_NE(addr, MAP_FAILED);
	for (i = 0; i < dev->nr; i++) {
		struct pfnmap_test_inspect pte;

		FORCE_READ(addr[i * psize()]);
		pte = inspect(_metadata, dev, addr + i * psize());
		ASSERT_TRUE(pte.flags & PFNMAP_TEST_PTE_PRESENT);
		pfns[i] = pte.pfn;
	}
	ASSERT_EQ(munmap(addr, dev->nr * psize()), 0);
	return pfns;
}

/* How the pages of a range are mapped. */
struct how {
	unsigned int method;
	unsigned int window;
	bool unclamped;
};

/* A mapping of the object's pages from @first on. */
struct mapping {
	char *addr;
	unsigned long first;
	unsigned long nr;
};

/*
 * What a fault on the object's page @index is to map, when nothing is mapped:
 * the pages from *@lo up to, but not including, *@hi.
 */
static void expect_fault(const struct how *how, const struct mapping *mapping,
			 const unsigned long *pfns, unsigned long index,
			 unsigned long *lo, unsigned long *hi)
{
	unsigned long window = how->window, offset;

	*lo = index;
	*hi = index + 1;
	if (how->method == PFNMAP_TEST_SINGLE ||
	    how->method == PFNMAP_TEST_REMAP)
		return;

	if (!how->unclamped && window > table_pages())
		window = table_pages();
	offset = (uintptr_t)mapping->addr / psize() + index - mapping->first;
	offset &= window - 1;

	if (offset < index - mapping->first)
		*lo = index - offset;
	else
		*lo = mapping->first;
	*hi = index - offset + window;
	if (*hi > mapping->first + mapping->nr || *hi < index)
		*hi = mapping->first + mapping->nr;

	if (how->method == PFNMAP_TEST_BATCH) {
		unsigned long i;

		for (i = index; i > *lo && pfns[i - 1] + 1 == pfns[i]; i--)
			;
		*lo = i;
		for (i = index + 1; i < *hi && pfns[i - 1] + 1 == pfns[i]; i++)
			;
		*hi = i;
	}
}

static char *page_at(const struct mapping *mapping, unsigned long index)
{
	return mapping->addr + (index - mapping->first) * psize();
}

/* Are exactly the pages from @lo up to @hi mapped, and to the right pfns? */
static void check_mapped(struct __test_metadata *_metadata,
			 const struct dev *dev, const struct mapping *mapping,
			 const unsigned long *pfns, unsigned long lo,
			 unsigned long hi)
{
	struct pfnmap_test_inspect pte;
	unsigned long i;

	for (i = mapping->first; i < mapping->first + mapping->nr; i++) {
		pte = inspect(_metadata, dev, page_at(mapping, i));
		ASSERT_EQ(!!(pte.flags & PFNMAP_TEST_PTE_PRESENT),
			  i >= lo && i < hi) {
			TH_LOG("page %lu of [%lu, %lu), expected [%lu, %lu)",
			       i, mapping->first, mapping->first + mapping->nr,
			       lo, hi);
		}
		if (i >= lo && i < hi)
			ASSERT_EQ(pte.pfn, pfns[i]);
	}
}

/* Fault on page @index of a fresh mapping: what it maps, and how often. */
static void check_one_fault(struct __test_metadata *_metadata, struct dev *dev,
			    const struct how *how, struct mapping mapping,
			    const unsigned long *pfns, unsigned long index)
{
	struct pfnmap_test_stats stats;
	unsigned long lo, hi;

	set_method(_metadata, dev, how->method, how->window, how->unclamped);
	map(_metadata, dev, mapping.addr, mapping.first, mapping.nr);
	ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_RESET_STATS), 0);

	if (how->method == PFNMAP_TEST_REMAP) {
		check_mapped(_metadata, dev, &mapping, pfns, mapping.first,
			     mapping.first + mapping.nr);
		ASSERT_TRUE(header_ok(page_at(&mapping, index), index, 0));
		stats = get_stats(_metadata, dev);
		ASSERT_EQ(stats.faults, 0);
	} else {
		expect_fault(how, &mapping, pfns, index, &lo, &hi);
		check_mapped(_metadata, dev, &mapping, pfns, 0, 0);
		ASSERT_TRUE(header_ok(page_at(&mapping, index), index, 0));
		check_mapped(_metadata, dev, &mapping, pfns, lo, hi);

		/* What is mapped takes no other fault. */
		ASSERT_TRUE(headers_ok(page_at(&mapping, lo), lo, hi - lo, 0));
		stats = get_stats(_metadata, dev);
		ASSERT_EQ(stats.faults, 1);
		ASSERT_EQ(stats.nopage, 1);
		if (how->method == PFNMAP_TEST_LOOP ||
		    how->method == PFNMAP_TEST_ITER ||
		    how->method == PFNMAP_TEST_BATCH)
			ASSERT_EQ(stats.offered, hi - lo);
	}
	ASSERT_EQ(stats.oom, 0);
	ASSERT_EQ(stats.sigbus, 0);
	unmap(_metadata, mapping.addr, mapping.nr);
}

/*
 * Each method, with various windows, and objects of various kinds.
 */
FIXTURE(insert)
{
	struct dev dev;
	struct how how;
	unsigned long *pfns;
};

FIXTURE_VARIANT(insert)
{
	unsigned int method;
	unsigned int window;
	unsigned int place;
	unsigned int flags;
};

#define INSERT(_method, _window, _place, _flags)		\
	.method = PFNMAP_TEST_##_method,			\
	.window = _window,					\
	.place = PFNMAP_TEST_##_place,				\
	.flags = _flags

FIXTURE_VARIANT_ADD(insert, single_ram)
{
	INSERT(SINGLE, 1, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, single_vram)
{
	INSERT(SINGLE, 1, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, single_alternate)
{
	INSERT(SINGLE, 1, RAM, PFNMAP_TEST_ALTERNATE),
};

FIXTURE_VARIANT_ADD(insert, single_scatter)
{
	INSERT(SINGLE, 1, RAM, PFNMAP_TEST_SCATTER),
};

FIXTURE_VARIANT_ADD(insert, single_mixedmap)
{
	INSERT(SINGLE, 1, VRAM, PFNMAP_TEST_MIXEDMAP),
};

FIXTURE_VARIANT_ADD(insert, remap_ram)
{
	INSERT(REMAP, 1, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, remap_vram)
{
	INSERT(REMAP, 1, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, remap_alternate)
{
	INSERT(REMAP, 1, RAM, PFNMAP_TEST_ALTERNATE),
};

FIXTURE_VARIANT_ADD(insert, remap_scatter)
{
	INSERT(REMAP, 1, RAM, PFNMAP_TEST_SCATTER),
};

FIXTURE_VARIANT_ADD(insert, loop_1_ram)
{
	INSERT(LOOP, 1, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, loop_1_vram)
{
	INSERT(LOOP, 1, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, loop_16_ram)
{
	INSERT(LOOP, 16, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, loop_16_vram)
{
	INSERT(LOOP, 16, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, loop_64_ram)
{
	INSERT(LOOP, 64, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, loop_64_vram)
{
	INSERT(LOOP, 64, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, loop_64_alternate)
{
	INSERT(LOOP, 64, RAM, PFNMAP_TEST_ALTERNATE),
};

FIXTURE_VARIANT_ADD(insert, loop_64_scatter)
{
	INSERT(LOOP, 64, RAM, PFNMAP_TEST_SCATTER),
};

FIXTURE_VARIANT_ADD(insert, loop_64_mixedmap)
{
	INSERT(LOOP, 64, VRAM, PFNMAP_TEST_MIXEDMAP),
};

FIXTURE_VARIANT_ADD(insert, loop_512_ram)
{
	INSERT(LOOP, 512, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, loop_512_vram)
{
	INSERT(LOOP, 512, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, loop_512_alternate)
{
	INSERT(LOOP, 512, RAM, PFNMAP_TEST_ALTERNATE),
};

FIXTURE_VARIANT_ADD(insert, loop_1024_ram)
{
	INSERT(LOOP, 1024, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, loop_1024_vram)
{
	INSERT(LOOP, 1024, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, loop_1024_alternate)
{
	INSERT(LOOP, 1024, RAM, PFNMAP_TEST_ALTERNATE),
};

FIXTURE_VARIANT_ADD(insert, batch_1_ram)
{
	INSERT(BATCH, 1, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, batch_1_vram)
{
	INSERT(BATCH, 1, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, batch_1_mixedmap)
{
	INSERT(BATCH, 1, VRAM, PFNMAP_TEST_MIXEDMAP),
};

FIXTURE_VARIANT_ADD(insert, batch_16_ram)
{
	INSERT(BATCH, 16, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, batch_16_vram)
{
	INSERT(BATCH, 16, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, batch_64_ram)
{
	INSERT(BATCH, 64, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, batch_64_vram)
{
	INSERT(BATCH, 64, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, batch_64_alternate)
{
	INSERT(BATCH, 64, RAM, PFNMAP_TEST_ALTERNATE),
};

FIXTURE_VARIANT_ADD(insert, batch_64_scatter)
{
	INSERT(BATCH, 64, RAM, PFNMAP_TEST_SCATTER),
};

FIXTURE_VARIANT_ADD(insert, batch_64_scatter_vram)
{
	INSERT(BATCH, 64, VRAM, PFNMAP_TEST_SCATTER),
};

FIXTURE_VARIANT_ADD(insert, batch_64_mixedmap)
{
	INSERT(BATCH, 64, VRAM, PFNMAP_TEST_MIXEDMAP),
};

FIXTURE_VARIANT_ADD(insert, batch_512_ram)
{
	INSERT(BATCH, 512, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, batch_512_vram)
{
	INSERT(BATCH, 512, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, batch_512_alternate)
{
	INSERT(BATCH, 512, RAM, PFNMAP_TEST_ALTERNATE),
};

FIXTURE_VARIANT_ADD(insert, batch_512_mixedmap)
{
	INSERT(BATCH, 512, VRAM, PFNMAP_TEST_MIXEDMAP),
};

FIXTURE_VARIANT_ADD(insert, batch_1024_ram)
{
	INSERT(BATCH, 1024, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, batch_1024_vram)
{
	INSERT(BATCH, 1024, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, batch_1024_scatter)
{
	INSERT(BATCH, 1024, RAM, PFNMAP_TEST_SCATTER),
};

FIXTURE_VARIANT_ADD(insert, batch_1024_mixedmap)
{
	INSERT(BATCH, 1024, VRAM, PFNMAP_TEST_MIXEDMAP),
};

FIXTURE_VARIANT_ADD(insert, iter_1_ram)
{
	INSERT(ITER, 1, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, iter_1_vram)
{
	INSERT(ITER, 1, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, iter_1_mixedmap)
{
	INSERT(ITER, 1, VRAM, PFNMAP_TEST_MIXEDMAP),
};

FIXTURE_VARIANT_ADD(insert, iter_16_ram)
{
	INSERT(ITER, 16, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, iter_16_vram)
{
	INSERT(ITER, 16, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, iter_64_ram)
{
	INSERT(ITER, 64, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, iter_64_vram)
{
	INSERT(ITER, 64, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, iter_64_alternate)
{
	INSERT(ITER, 64, RAM, PFNMAP_TEST_ALTERNATE),
};

FIXTURE_VARIANT_ADD(insert, iter_64_scatter)
{
	INSERT(ITER, 64, RAM, PFNMAP_TEST_SCATTER),
};

FIXTURE_VARIANT_ADD(insert, iter_64_scatter_vram)
{
	INSERT(ITER, 64, VRAM, PFNMAP_TEST_SCATTER),
};

FIXTURE_VARIANT_ADD(insert, iter_64_mixedmap)
{
	INSERT(ITER, 64, VRAM, PFNMAP_TEST_MIXEDMAP),
};

FIXTURE_VARIANT_ADD(insert, iter_512_ram)
{
	INSERT(ITER, 512, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, iter_512_vram)
{
	INSERT(ITER, 512, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, iter_512_alternate)
{
	INSERT(ITER, 512, RAM, PFNMAP_TEST_ALTERNATE),
};

FIXTURE_VARIANT_ADD(insert, iter_512_scatter)
{
	INSERT(ITER, 512, RAM, PFNMAP_TEST_SCATTER),
};

FIXTURE_VARIANT_ADD(insert, iter_512_mixedmap)
{
	INSERT(ITER, 512, VRAM, PFNMAP_TEST_MIXEDMAP),
};

FIXTURE_VARIANT_ADD(insert, iter_1024_ram)
{
	INSERT(ITER, 1024, RAM, 0),
};

FIXTURE_VARIANT_ADD(insert, iter_1024_vram)
{
	INSERT(ITER, 1024, VRAM, 0),
};

FIXTURE_VARIANT_ADD(insert, iter_1024_alternate)
{
	INSERT(ITER, 1024, RAM, PFNMAP_TEST_ALTERNATE),
};

FIXTURE_VARIANT_ADD(insert, iter_1024_scatter)
{
	INSERT(ITER, 1024, RAM, PFNMAP_TEST_SCATTER),
};

FIXTURE_VARIANT_ADD(insert, iter_1024_scatter_vram)
{
	INSERT(ITER, 1024, VRAM, PFNMAP_TEST_SCATTER),
};

FIXTURE_VARIANT_ADD(insert, iter_1024_mixedmap)
{
	INSERT(ITER, 1024, VRAM, PFNMAP_TEST_MIXEDMAP),
};

/* Two parts and a half, and not a multiple of any window but 1. */
#define INSERT_NR	(2 * PART_PAGES + PART_PAGES / 2 - 5)

/* A page table ends, @nr pages from there, and others may, each PART_PAGES. */
static char *before_edge(const struct dev *dev, unsigned long nr)
{
	return dev->area + span_size() - nr * psize();
}

FIXTURE_SETUP(insert)
{
	setup_dev(_metadata, &self->dev);
	self->how.method = variant->method;
	/* The largest windows are not clamped to the page table. */
	self->how.unclamped = variant->window > 512;
	self->how.window = self->how.unclamped ? wide_window() : variant->window;
	create(_metadata, &self->dev, INSERT_NR, variant->place,
	       variant->flags);
	self->pfns = get_pfns(_metadata, &self->dev);
}

FIXTURE_TEARDOWN(insert)
{
	free(self->pfns);
	teardown_dev(_metadata, &self->dev);
}

/* Every page, written through one mapping and read through another. */
TEST_F(insert, all_pages)
{
	struct dev *dev = &self->dev;
	struct mapping one = { before_edge(dev, PART_PAGES), 0, dev->nr };
	struct mapping two = { NULL, 0, dev->nr };
	unsigned long i, lo, hi, faults = 0;
	const size_t last = psize() - sizeof(uint64_t);

	set_method(_metadata, dev, variant->method, self->how.window,
		   self->how.unclamped);
	ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_RESET_STATS), 0);
	map(_metadata, dev, one.addr, 0, dev->nr);
	ASSERT_TRUE(headers_ok(one.addr, 0, dev->nr, 0));

	for (i = 0; variant->method != PFNMAP_TEST_REMAP && i < dev->nr; i = hi) {
		expect_fault(&self->how, &one, self->pfns, i, &lo, &hi);
		faults++;
	}
	ASSERT_EQ(get_stats(_metadata, dev).faults, faults);
	ASSERT_EQ(get_stats(_metadata, dev).nopage, faults);

	/* The second one starts elsewhere in a window. */
	two.addr = mmap(NULL, (dev->nr + 7) * psize(), PROT_NONE,
			MAP_ANON | MAP_PRIVATE | MAP_NORESERVE, -1, 0);
	ASSERT_NE(two.addr, MAP_FAILED);
	two.addr += 7 * psize();
	map(_metadata, dev, two.addr, 0, dev->nr);

	for (i = 0; i < dev->nr; i++) {
		store(page_at(&one, i) + 128, i * 3 + 1);
		store(page_at(&one, i) + last, i * 5 + 2);
	}
	for (i = 0; i < dev->nr; i++) {
		ASSERT_EQ(load(page_at(&two, i) + 128), i * 3 + 1);
		ASSERT_EQ(load(page_at(&two, i) + last), i * 5 + 2);
		store(page_at(&two, i) + 256, i * 7 + 3);
	}
	for (i = 0; i < dev->nr; i++)
		ASSERT_EQ(load(page_at(&one, i) + 256), i * 7 + 3);
	ASSERT_TRUE(headers_ok(two.addr, 0, dev->nr, 0));
	ASSERT_EQ(count_present(_metadata, dev, one.addr, dev->nr), dev->nr);

	ASSERT_EQ(munmap(two.addr - 7 * psize(), (dev->nr + 7) * psize()), 0);
}

/* One fault populates the window, and nothing else. */
TEST_F(insert, one_fault)
{
	struct dev *dev = &self->dev;
	struct mapping mapping = { before_edge(dev, PART_PAGES), 0, dev->nr };
	unsigned int state = seed;
	unsigned long index[] = {
		0, 17, dev->nr - 1, rand_r(&state) % dev->nr,
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(index); i++)
		check_one_fault(_metadata, dev, &self->how, mapping, self->pfns,
				index[i]);
}

/* Where the VMA or the object ends before the window does. */
TEST_F(insert, edges)
{
	struct dev *dev = &self->dev;
	const unsigned long page = psize(), nr = dev->nr;
	const struct {
		struct mapping mapping;
		unsigned long index;
	} cases[] = {
		/* smaller than the window, at its start, middle and end */
		{ { dev->area, 0, 9 }, 8 },
		{ { dev->area + 3 * page, 100, 7 }, 103 },
		{ { dev->area + 9 * page, 200, 7 }, 206 },
		/* a single page */
		{ { dev->area + 5 * page, 77, 1 }, 77 },
		/* a window and parts of its neighbours, first and last page */
		{ { dev->area + 11 * page, 301, 90 }, 301 },
		{ { dev->area + 11 * page, 301, 90 }, 390 },
		/* offset in the file and address differ within the window */
		{ { dev->area + 32 * page, 33, 200 }, 130 },
		{ { dev->area, nr - 201, 201 }, nr - 20 },
		/* the end of the object */
		{ { dev->area + 16 * page, nr - 50, 50 }, nr - 1 },
		{ { dev->area + 48 * page, nr - 20, 20 }, nr - 20 },
		/* the start of it, in the midst of a window */
		{ { dev->area + 40 * page, 0, 300 }, 2 },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++)
		check_one_fault(_metadata, dev, &self->how, cases[i].mapping,
				self->pfns, cases[i].index);
}

/* What munmap() of the middle leaves are two VMAs. */
TEST_F(insert, munmap_middle)
{
	struct dev *dev = &self->dev;
	struct mapping whole = { dev->area + 16 * psize(), 3, 200 };
	struct mapping left = { whole.addr, 3, 90 };
	struct mapping right = { whole.addr + 110 * psize(), 113, 90 };
	struct pfnmap_test_inspect arg = {};
	unsigned long lo, hi;

	set_method(_metadata, dev, variant->method, self->how.window,
		   self->how.unclamped);
	map(_metadata, dev, whole.addr, whole.first, whole.nr);
	unmap(_metadata, whole.addr + 90 * psize(), 20);

	if (variant->method == PFNMAP_TEST_REMAP) {
		check_mapped(_metadata, dev, &left, self->pfns, 3, 93);
		check_mapped(_metadata, dev, &right, self->pfns, 113, 203);
	} else {
		ASSERT_TRUE(header_ok(page_at(&left, 92), 92, 0));
		expect_fault(&self->how, &left, self->pfns, 92, &lo, &hi);
		check_mapped(_metadata, dev, &left, self->pfns, lo, hi);
		check_mapped(_metadata, dev, &right, self->pfns, 0, 0);

		ASSERT_TRUE(header_ok(page_at(&right, 113), 113, 0));
		expect_fault(&self->how, &right, self->pfns, 113, &lo, &hi);
		check_mapped(_metadata, dev, &right, self->pfns, lo, hi);
	}
	ASSERT_TRUE(headers_ok(left.addr, left.first, left.nr, 0));
	ASSERT_TRUE(headers_ok(right.addr, right.first, right.nr, 0));

	arg.addr = (uintptr_t)whole.addr + 100 * psize();
	ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_INSPECT, &arg), -1);
	ASSERT_EQ(errno, EINVAL);
	ASSERT_EQ(touch(whole.addr + 100 * psize()), SIGSEGV);
	unmap(_metadata, whole.addr, whole.nr);
}

/* Where page tables end. */
TEST_F(insert, tables)
{
	struct dev *dev = &self->dev;
	const unsigned long part = PART_PAGES;
	const struct mapping mapping = {
		before_edge(dev, part - 100), 1, 2 * part + 200
	};
	const unsigned long edge = mapping.first + part - 100;
	const unsigned long index[] = {
		edge - 1, edge, edge + part / 2, edge + part - 1,
		edge + part,
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(index); i++)
		check_one_fault(_metadata, dev, &self->how, mapping, self->pfns,
				index[i]);
}

static bool same_pte(const struct pfnmap_test_inspect *a,
		     const struct pfnmap_test_inspect *b)
{
	return a->pfn == b->pfn && a->pgprot == b->pgprot &&
	       a->flags == b->flags && a->refcount == b->refcount &&
	       a->mapcount == b->mapcount;
}

/*
 * PTEs that are there already stay as they are. They are made dirty, to tell
 * them from new ones.
 */
TEST_F(insert, partly_filled)
{
	struct dev *dev = &self->dev;
	const unsigned long nr = 100, first = 40;
	struct mapping mapping = { dev->area + 24 * psize(), first, nr };
	struct pfnmap_test_inspect pte, before[100];
	enum { FIRST, LAST, ALTERNATE, THIRDS, RANDOM, NR_PATTERNS };
	unsigned long i, lo, hi, fault;
	unsigned int pattern, state = seed;
	bool filled[100];

	for (pattern = 0; pattern < NR_PATTERNS; pattern++) {
		set_method(_metadata, dev, PFNMAP_TEST_SINGLE, 1, false);
		map(_metadata, dev, mapping.addr, first, nr);

		/* the fault is in the midst of an aligned window of 16 */
		fault = first + 47;
		for (i = 0; i < nr; i++) {
			filled[i] = (pattern == FIRST && i < 45) ||
				    (pattern == LAST && i > 50) ||
				    (pattern == ALTERNATE && i % 2 == 0) ||
				    (pattern == THIRDS && i % 3) ||
				    (pattern == RANDOM && rand_r(&state) % 2);
			if (first + i == fault)
				filled[i] = false;
			if (filled[i])
				store(page_at(&mapping, first + i) + 64,
				      pattern * 1000 + i);
		}
		for (i = 0; i < nr; i++) {
			before[i] = inspect(_metadata, dev,
					    page_at(&mapping, first + i));
			ASSERT_EQ(!!(before[i].flags & PFNMAP_TEST_PTE_PRESENT),
				  filled[i]);
		}

		set_method(_metadata, dev, variant->method, self->how.window,
			   self->how.unclamped);
		ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_RESET_STATS), 0);
		ASSERT_TRUE(header_ok(page_at(&mapping, fault), fault, 0));
		ASSERT_EQ(get_stats(_metadata, dev).faults, 1);
		expect_fault(&self->how, &mapping, self->pfns, fault, &lo, &hi);

		for (i = 0; i < nr; i++) {
			const unsigned long index = first + i;

			pte = inspect(_metadata, dev, page_at(&mapping, index));
			if (filled[i]) {
				ASSERT_TRUE(same_pte(&pte, &before[i])) {
					TH_LOG("pattern %u, page %lu changed",
					       pattern, i);
				}
			} else {
				ASSERT_EQ(!!(pte.flags &
					     PFNMAP_TEST_PTE_PRESENT),
					  index >= lo && index < hi);
			}
		}

		ASSERT_TRUE(headers_ok(mapping.addr, first, nr, 0));
		for (i = 0; i < nr; i++) {
			if (filled[i])
				ASSERT_EQ(load(page_at(&mapping, first + i) + 64),
					  pattern * 1000 + i);
		}
		unmap(_metadata, mapping.addr, nr);
	}
}

/* Pages move, their data and generation numbers come with them. */
TEST_F(insert, migrate)
{
	struct dev *dev = &self->dev;
	const bool mixed = variant->flags & PFNMAP_TEST_MIXEDMAP;
	const unsigned long nr = 150, first = 30, count = 70, from = 55;
	const unsigned int to = variant->place == PFNMAP_TEST_RAM ?
				PFNMAP_TEST_VRAM : PFNMAP_TEST_RAM;
	struct mapping mapping = { dev->area + 8 * psize(), first, nr };
	struct pfnmap_test_inspect pte;
	unsigned long i, moved = 0;

	set_method(_metadata, dev, variant->method, self->how.window,
		   self->how.unclamped);
	map(_metadata, dev, mapping.addr, first, nr);
	for (i = first; i < first + nr; i++)
		store(page_at(&mapping, i) + 64, i * 11);
	ASSERT_EQ(count_present(_metadata, dev, mapping.addr, nr), nr);

	ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_RESET_STATS), 0);
	migrate(_metadata, dev->fd, from, count, to);
	for (i = first; i < first + nr; i++) {
		const bool zapped = i >= from && i < from + count;

		pte = inspect(_metadata, dev, page_at(&mapping, i));
		ASSERT_EQ(!!(pte.flags & PFNMAP_TEST_PTE_PRESENT), !zapped);
	}

	/* VM_MIXEDMAP mappings refuse pfns of ram. */
	if (mixed) {
		ASSERT_EQ(touch(page_at(&mapping, from + count - 1)), SIGBUS);
		ASSERT_EQ(count_present(_metadata, dev,
					page_at(&mapping, from), count), 0);
		migrate(_metadata, dev->fd, from, count, variant->place);
	}

	for (i = first; i < first + nr; i++) {
		const bool alternate = variant->flags & PFNMAP_TEST_ALTERNATE;
		uint64_t generation = i >= from && i < from + count;

		if (alternate && i % 2)		/* was there already */
			generation = 0;
		moved += generation;
		if (mixed)			/* there and back */
			generation *= 2;
		ASSERT_TRUE(header_ok(page_at(&mapping, i), i, generation));
		ASSERT_EQ(load(page_at(&mapping, i) + 64), i * 11);

		pte = inspect(_metadata, dev, page_at(&mapping, i));
		if (i >= from && i < from + count && !mixed)
			ASSERT_EQ(!!(pte.flags & PFNMAP_TEST_PFN_VALID),
				  to == PFNMAP_TEST_RAM);
	}
	ASSERT_EQ(get_stats(_metadata, dev).migrated, mixed ? 2 * moved : moved);

	/* None of them moves: no PTE goes. */
	if (!mixed) {
		migrate(_metadata, dev->fd, from, count, to);
		ASSERT_EQ(count_present(_metadata, dev, mapping.addr, nr), nr);
	}
	unmap(_metadata, mapping.addr, nr);
}

/*
 * What the rest of mm does to such mappings, whichever method filled them.
 */
FIXTURE(rules)
{
	struct dev dev;
	struct how how;
	struct mapping mapping;
	bool mixed;
};

FIXTURE_VARIANT(rules)
{
	unsigned int method;
	unsigned int window;
	unsigned int place;
	unsigned int flags;
};

#define RULES(_method, _place, _flags)				\
	.method = PFNMAP_TEST_##_method,			\
	.window = 64,						\
	.place = PFNMAP_TEST_##_place,				\
	.flags = _flags

FIXTURE_VARIANT_ADD(rules, single)
{
	RULES(SINGLE, RAM, PFNMAP_TEST_ALTERNATE),
};

FIXTURE_VARIANT_ADD(rules, loop)
{
	RULES(LOOP, RAM, PFNMAP_TEST_ALTERNATE),
};

FIXTURE_VARIANT_ADD(rules, batch_ram)
{
	RULES(BATCH, RAM, 0),
};

FIXTURE_VARIANT_ADD(rules, batch_vram)
{
	RULES(BATCH, VRAM, 0),
};

FIXTURE_VARIANT_ADD(rules, iter)
{
	RULES(ITER, RAM, PFNMAP_TEST_ALTERNATE),
};

FIXTURE_VARIANT_ADD(rules, remap)
{
	RULES(REMAP, RAM, PFNMAP_TEST_ALTERNATE),
};

FIXTURE_VARIANT_ADD(rules, loop_mixedmap)
{
	RULES(LOOP, VRAM, PFNMAP_TEST_MIXEDMAP),
};

FIXTURE_VARIANT_ADD(rules, batch_mixedmap)
{
	RULES(BATCH, VRAM, PFNMAP_TEST_MIXEDMAP),
};

FIXTURE_VARIANT_ADD(rules, iter_mixedmap)
{
	RULES(ITER, VRAM, PFNMAP_TEST_MIXEDMAP),
};

#define RULES_NR	160

FIXTURE_SETUP(rules)
{
	struct dev *dev = &self->dev;

	setup_dev(_metadata, dev);
	self->how.method = variant->method;
	self->how.window = variant->window;
	self->mixed = variant->flags & PFNMAP_TEST_MIXEDMAP;
	create(_metadata, dev, RULES_NR, variant->place, variant->flags);
	set_method(_metadata, dev, variant->method, variant->window, false);
	self->mapping = (struct mapping){ dev->area + 10 * psize(), 0, RULES_NR };
	map(_metadata, dev, self->mapping.addr, 0, RULES_NR);
}

FIXTURE_TEARDOWN(rules)
{
	teardown_dev(_metadata, &self->dev);
}

/* A field of the VMA that starts at @addr, from /proc/self/smaps. */
static bool smaps_field(const char *addr, const char *field, char *buf,
			size_t size)
{
	unsigned long start, end;
	bool found = false, ours = false;
	char line[1024];
	FILE *file;

	file = fopen("/proc/self/smaps", "r");
	if (!file)
		return false;
	while (!found && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			ours = start == (uintptr_t)addr;
		else if (ours && !strncmp(line, field, strlen(field)))
			found = true;
	}
	fclose(file);
	if (found)
		snprintf(buf, size, "%s", line + strlen(field));
	return found;
}

/* Neither RSS nor smaps nor page counts see the pages. */
TEST_F(rules, accounting)
{
	static const char * const rss[] = { "RssAnon:", "RssFile:", "RssShmem:" };
	static const char * const sizes[] = {
		"Rss:", "Pss:", "Shared_Clean:", "Shared_Dirty:",
		"Private_Clean:", "Private_Dirty:", "Referenced:", "Anonymous:",
	};
	struct dev *dev = &self->dev;
	long before[ARRAY_SIZE(rss)], after[ARRAY_SIZE(rss)];
	const struct mapping *mapping = &self->mapping;
	char buf[1024];
	unsigned int i;

	/* Whatever it takes to find out must not be seen either. */
	ASSERT_EQ(mlockall(MCL_CURRENT), 0);
	for (i = 0; i < ARRAY_SIZE(rss); i++)
		after[i] = status_kb(rss[i]);
	for (i = 0; i < ARRAY_SIZE(rss); i++) {
		before[i] = status_kb(rss[i]);
		ASSERT_GE(before[i], 0);
	}
	for (i = 0; i < mapping->nr; i++)
		store(page_at(mapping, i) + 64, i);
	for (i = 0; i < ARRAY_SIZE(rss); i++)
		after[i] = status_kb(rss[i]);
	for (i = 0; i < ARRAY_SIZE(rss); i++)
		EXPECT_EQ(after[i], before[i]);
	ASSERT_EQ(munlockall(), 0);
	ASSERT_EQ(count_present(_metadata, dev, mapping->addr, mapping->nr),
		  mapping->nr);

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		ASSERT_TRUE(smaps_field(mapping->addr, sizes[i], buf,
					sizeof(buf)));
		EXPECT_EQ(strtol(buf, NULL, 10), 0) {
			TH_LOG("%s %s", sizes[i], buf);
		}
	}

	ASSERT_TRUE(smaps_field(mapping->addr, "VmFlags:", buf, sizeof(buf)));
	EXPECT_EQ(!!strstr(buf, " pf"), !self->mixed);
	EXPECT_EQ(!!strstr(buf, " mm"), self->mixed);
	EXPECT_EQ(check_vmflag_pfnmap(mapping->addr), !self->mixed);
	EXPECT_TRUE(check_vmflag_io(mapping->addr));
}

/* No reference, not in the rmap: special PTEs. */
TEST_F(rules, refcount)
{
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	const bool special = dev->start.pte_special;
	struct pfnmap_test_inspect pte, other;
	unsigned long i, expected, valid = 0;
	int kpagecount;
	char *addr;

	kpagecount = open("/proc/kpagecount", O_RDONLY);
	ASSERT_GE(kpagecount, 0);

	addr = mmap(NULL, mapping->nr * psize(), PROT_READ, MAP_SHARED, dev->fd,
		    0);
	ASSERT_NE(addr, MAP_FAILED);
	for (i = 0; i < mapping->nr; i++) {
		uint64_t count;

		FORCE_READ(*page_at(mapping, i));
		pte = inspect(_metadata, dev, page_at(mapping, i));
		ASSERT_TRUE(pte.flags & PFNMAP_TEST_PTE_PRESENT);
		ASSERT_EQ(!!(pte.flags & PFNMAP_TEST_PTE_SPECIAL), special);

		FORCE_READ(addr[i * psize()]);
		other = inspect(_metadata, dev, addr + i * psize());
		ASSERT_EQ(other.pfn, pte.pfn);

		if (!(pte.flags & PFNMAP_TEST_PFN_VALID))
			continue;
		valid++;
		pte = inspect(_metadata, dev, page_at(mapping, i));
		ASSERT_EQ(pte.refcount, 1);
		ASSERT_EQ(pte.mapcount, 0);
		ASSERT_EQ(other.refcount, 1);
		ASSERT_EQ(other.mapcount, 0);
		ASSERT_EQ(pread(kpagecount, &count, sizeof(count),
				pte.pfn * sizeof(count)), sizeof(count));
		ASSERT_EQ(count, 0);
	}
	expected = variant->place == PFNMAP_TEST_RAM ? mapping->nr : 0;
	if (variant->flags & PFNMAP_TEST_ALTERNATE)
		expected = mapping->nr / 2;
	ASSERT_EQ(valid, expected);

	/* Unmapping them leaves the reference that the driver has. */
	ASSERT_EQ(munmap(addr, mapping->nr * psize()), 0);
	for (i = 0; i < mapping->nr; i++) {
		pte = inspect(_metadata, dev, page_at(mapping, i));
		if (!(pte.flags & PFNMAP_TEST_PFN_VALID))
			continue;
		ASSERT_EQ(pte.refcount, 1);
		ASSERT_EQ(pte.mapcount, 0);
	}
	close(kpagecount);
}

/*
 * /proc/self/pagemap has nothing to say about VM_PFNMAP mappings, and the pfn,
 * but no page, about VM_MIXEDMAP ones.
 */
TEST_F(rules, pagemap)
{
	const struct mapping *mapping = &self->mapping;
	struct dev *dev = &self->dev;
	unsigned long i;
	int pagemap;

	pagemap = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_GE(pagemap, 0);
	for (i = 0; i < mapping->nr; i++) {
		char *addr = page_at(mapping, i);
		uint64_t entry;

		FORCE_READ(*addr);
		ASSERT_TRUE(is_present(_metadata, dev, addr));
		entry = pagemap_get_entry(pagemap, addr);
		ASSERT_EQ(!!(entry & PM_PRESENT), self->mixed);
		ASSERT_FALSE(entry & (PM_FILE | PM_SWAP | PM_MMAP_EXCLUSIVE));
		if (self->mixed)
			ASSERT_EQ(PAGEMAP_PFN(entry),
				  inspect(_metadata, dev, addr).pfn);
	}
	close(pagemap);
}

/* get_user_pages() refuses the pages, and does not even fault them in. */
TEST_F(rules, gup)
{
	const struct mapping *mapping = &self->mapping;
	struct dev *dev = &self->dev;
	struct pfnmap_test_stats before, after;
	int direct, mem, pipes[2], status;
	unsigned int i, round;
	char buf[64] = "no harm done";
	struct iovec local = { buf, sizeof(buf) }, remote;
	pid_t child;

	direct = temp_file(O_DIRECT);
	ASSERT_GE(direct, 0) {
		TH_LOG("O_DIRECT file in the working directory: %s",
		       strerror(-direct));
	}
	mem = open("/proc/self/mem", O_RDWR);
	ASSERT_GE(mem, 0);
	ASSERT_EQ(pipe(pipes), 0);

	/* First not faulted in (but by remap_pfn_range()), then faulted in. */
	for (round = 0; round < 2; round++) {
		before = get_stats(_metadata, dev);
		for (i = 2; i < 4; i++) {
			char *addr = page_at(mapping, i);

			ASSERT_EQ(pwrite(direct, addr, psize(), 0), -1);
			ASSERT_EQ(errno, EFAULT);
			ASSERT_EQ(pread(direct, addr, psize(), 0), -1);
			ASSERT_EQ(errno, EFAULT);

			remote.iov_base = addr;
			remote.iov_len = sizeof(buf);
			ASSERT_EQ(vmsplice(pipes[1], &remote, 1, 0), -1);
			ASSERT_EQ(errno, EFAULT);
			ASSERT_EQ(process_vm_readv(getpid(), &local, 1, &remote,
						   1, 0), -1);
			ASSERT_EQ(errno, EFAULT);
			ASSERT_EQ(process_vm_writev(getpid(), &local, 1,
						    &remote, 1, 0), -1);
			ASSERT_EQ(errno, EFAULT);

			/* The driver has no vm_ops->access(). */
			ASSERT_EQ(pread(mem, buf, sizeof(buf),
					(uintptr_t)addr), -1);
			ASSERT_EQ(errno, EIO);
			ASSERT_EQ(pwrite(mem, buf, sizeof(buf),
					 (uintptr_t)addr), -1);
			ASSERT_EQ(errno, EIO);
		}
		after = get_stats(_metadata, dev);
		ASSERT_EQ(after.faults, before.faults);
		ASSERT_TRUE(headers_ok(mapping->addr, 0, mapping->nr, 0));
	}
	ASSERT_EQ(strcmp(buf, "no harm done"), 0);

	/* A debugger does not get them either. */
	child = fork();
	ASSERT_GE(child, 0);
	if (!child) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			_exit(1);
		raise(SIGSTOP);
		_exit(0);
	}
	ASSERT_EQ(waitpid(child, &status, 0), child);
	ASSERT_TRUE(WIFSTOPPED(status));
	errno = 0;
	ASSERT_EQ(ptrace(PTRACE_PEEKDATA, child, page_at(mapping, 2), NULL), -1);
	ASSERT_EQ(errno, EIO);
	ASSERT_EQ(ptrace(PTRACE_POKEDATA, child, page_at(mapping, 2), 1L), -1);
	ASSERT_EQ(errno, EIO);
	ASSERT_EQ(ptrace(PTRACE_CONT, child, NULL, NULL), 0);
	ASSERT_EQ(waitpid(child, &status, 0), child);
	ASSERT_TRUE(WIFEXITED(status));
	ASSERT_EQ(WEXITSTATUS(status), 0);

	for (i = 2; i < 4; i++) {
		struct pfnmap_test_inspect pte;

		pte = inspect(_metadata, dev, page_at(mapping, i));
		ASSERT_TRUE(pte.flags & PFNMAP_TEST_PTE_PRESENT);
		if (!(pte.flags & PFNMAP_TEST_PFN_VALID))
			continue;
		ASSERT_EQ(pte.refcount, 1);
		ASSERT_EQ(pte.mapcount, 0);
	}
	ASSERT_TRUE(headers_ok(mapping->addr, 0, mapping->nr, 0));
	close(pipes[0]);
	close(pipes[1]);
	close(direct);
	close(mem);
}

/* System calls that copy, on the other hand, fault the pages in. */
TEST_F(rules, copy)
{
	const struct mapping *mapping = &self->mapping;
	struct pfnmap_test_page header;
	uint64_t val[2] = { 0x1122334455667788ULL, 42 };
	int fd, pipes[2];

	fd = temp_file(0);
	ASSERT_GE(fd, 0);

	ASSERT_EQ(pwrite(fd, page_at(mapping, 5), psize(), psize()), psize());
	ASSERT_EQ(pread(fd, &header, sizeof(header), psize()), sizeof(header));
	ASSERT_EQ(header.magic, PFNMAP_TEST_MAGIC);
	ASSERT_EQ(header.index, 5);

	ASSERT_EQ(pwrite(fd, val, sizeof(val), 3 * psize()), sizeof(val));
	ASSERT_EQ(pread(fd, page_at(mapping, 110) + 64, sizeof(val),
			3 * psize()), sizeof(val));
	ASSERT_EQ(load(page_at(mapping, 110) + 64), val[0]);
	ASSERT_EQ(load(page_at(mapping, 110) + 72), val[1]);

	ASSERT_EQ(pipe(pipes), 0);
	ASSERT_EQ(write(pipes[1], page_at(mapping, 150), sizeof(header)),
		  sizeof(header));
	ASSERT_EQ(read(pipes[0], &header, sizeof(header)), sizeof(header));
	ASSERT_EQ(header.magic, PFNMAP_TEST_MAGIC);
	ASSERT_EQ(header.index, 150);
	ASSERT_TRUE(headers_ok(mapping->addr, 0, mapping->nr, 0));
	close(pipes[0]);
	close(pipes[1]);
	close(fd);
}

TEST_F(rules, mprotect)
{
	const struct mapping *mapping = &self->mapping;
	const size_t size = mapping->nr * psize();
	struct dev *dev = &self->dev;
	struct pfnmap_test_inspect pte;
	unsigned long i;
	uint64_t val;

	for (i = 0; i < mapping->nr / 2; i++)
		store(page_at(mapping, i) + 64, i);

	/* Both what is mapped already and what is going to be. */
	ASSERT_EQ(mprotect(mapping->addr, size, PROT_READ), 0);
	for (i = 0; i < mapping->nr; i++) {
		ASSERT_EQ(try_load(page_at(mapping, i) + 64, &val), 0);
		ASSERT_EQ(val, i < mapping->nr / 2 ? i : 0);
		pte = inspect(_metadata, dev, page_at(mapping, i));
		ASSERT_TRUE(pte.flags & PFNMAP_TEST_PTE_PRESENT);
		ASSERT_FALSE(pte.flags & PFNMAP_TEST_PTE_WRITE);
		ASSERT_EQ(try_store(page_at(mapping, i) + 64, 12345), SIGSEGV);
	}

	ASSERT_EQ(mprotect(mapping->addr, size, PROT_READ | PROT_WRITE), 0);
	for (i = 0; i < mapping->nr; i++) {
		ASSERT_EQ(load(page_at(mapping, i) + 64),
			  i < mapping->nr / 2 ? i : 0);
		store(page_at(mapping, i) + 64, i + 1);
	}

	ASSERT_EQ(mprotect(mapping->addr, size, PROT_NONE), 0);
	for (i = 0; i < mapping->nr; i++) {
		ASSERT_EQ(try_load(page_at(mapping, i) + 64, &val), SIGSEGV);
		ASSERT_EQ(try_store(page_at(mapping, i) + 64, 1), SIGSEGV);
	}

	ASSERT_EQ(mprotect(mapping->addr, size, PROT_READ | PROT_WRITE), 0);
	for (i = 0; i < mapping->nr; i++)
		ASSERT_EQ(load(page_at(mapping, i) + 64), i + 1);
	ASSERT_TRUE(headers_ok(mapping->addr, 0, mapping->nr, 0));
}

/* Returns the child's exit code, or -1. */
static int wait_child(pid_t child)
{
	int status;

	if (waitpid(child, &status, 0) != child || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

/* A child gets the PTEs, and they are zapped in all of its relatives. */
TEST_F(rules, fork)
{
	const struct mapping *mapping = &self->mapping;
	const unsigned long nr = mapping->nr, half = nr / 2;
	struct dev *dev = &self->dev;
	const unsigned int to = variant->place == PFNMAP_TEST_RAM ?
				PFNMAP_TEST_VRAM : PFNMAP_TEST_RAM;
	unsigned long i, present;
	int pipes[2][2];
	char byte = 0;
	pid_t child;

	for (i = 0; i < half; i++)
		store(page_at(mapping, i) + 64, i + 7);
	present = count_present(_metadata, dev, mapping->addr, nr);
	ASSERT_GE(present, half);
	ASSERT_EQ(pipe(pipes[0]), 0);
	ASSERT_EQ(pipe(pipes[1]), 0);

	child = fork();
	ASSERT_GE(child, 0);
	if (!child) {
		struct pfnmap_test_inspect arg = {};
		unsigned long count = 0;

		for (i = 0; i < nr; i++) {
			arg.addr = (uintptr_t)page_at(mapping, i);
			if (ioctl(dev->fd, PFNMAP_TEST_INSPECT, &arg))
				_exit(1);
			count += arg.flags & PFNMAP_TEST_PTE_PRESENT;
			if (arg.flags & PFNMAP_TEST_PFN_VALID &&
			    (arg.refcount != 1 || arg.mapcount))
				_exit(2);
			memset(&arg, 0, sizeof(arg));
		}
		if (count != present)
			_exit(3);
		if (!headers_ok(mapping->addr, 0, nr, 0))
			_exit(4);
		for (i = 0; i < nr; i++) {
			if (load(page_at(mapping, i) + 64) != (i < half ? i + 7 : 0))
				_exit(5);
			store(page_at(mapping, i) + 72, i + 9);
		}
		/* Let the parent migrate. */
		if (write(pipes[0][1], &byte, 1) != 1 ||
		    read(pipes[1][0], &byte, 1) != 1)
			_exit(6);
		for (i = 0; i < nr; i++) {
			if (load(page_at(mapping, i)) != PFNMAP_TEST_MAGIC)
				_exit(7);
			if (load(page_at(mapping, i) + 80) != i + 11)
				_exit(8);
		}
		_exit(0);
	}

	ASSERT_EQ(read(pipes[0][0], &byte, 1), 1) {
		TH_LOG("child exited with %d", wait_child(child));
	}
	for (i = 0; i < nr; i++) {
		ASSERT_EQ(load(page_at(mapping, i) + 72), i + 9);
		store(page_at(mapping, i) + 80, i + 11);
	}
	migrate(_metadata, dev->fd, 0, nr, to);
	if (self->mixed) {
		ASSERT_EQ(touch(page_at(mapping, 1)), SIGBUS);
		migrate(_metadata, dev->fd, 0, nr, variant->place);
	}
	ASSERT_EQ(write(pipes[1][1], &byte, 1), 1);
	ASSERT_EQ(wait_child(child), 0);
	for (i = 0; i < nr; i++)
		ASSERT_EQ(load(page_at(mapping, i) + 80), i + 11);
}

TEST_F(rules, mremap)
{
	struct dev *dev = &self->dev;
	const unsigned long nr = RULES_NR;
	struct mapping mapping = self->mapping;
	struct pfnmap_test_inspect before[RULES_NR], after;
	const size_t size = nr * psize();
	char *to = dev->area + span_size() - 37 * psize();
	struct pfnmap_test_stats stats;
	unsigned long i;

	/* A part of it. */
	FORCE_READ(*page_at(&mapping, 20));
	FORCE_READ(*page_at(&mapping, 140));
	for (i = 0; i < nr; i++)
		before[i] = inspect(_metadata, dev, page_at(&mapping, i));
	stats = get_stats(_metadata, dev);

	/* No way to grow, or to leave the old mapping behind. */
	ASSERT_EQ(mremap(mapping.addr, size, size + psize(), MREMAP_MAYMOVE),
		  MAP_FAILED);
	ASSERT_EQ(errno, EFAULT);
	ASSERT_EQ(mremap(mapping.addr, size, size, MREMAP_MAYMOVE |
			 MREMAP_FIXED | MREMAP_DONTUNMAP, to), MAP_FAILED);
	ASSERT_EQ(errno, EINVAL);

	/* The PTEs move, across the end of a page table. */
	ASSERT_EQ(mremap(mapping.addr, size, size, MREMAP_MAYMOVE |
			 MREMAP_FIXED, to), to);
	ASSERT_EQ(touch(mapping.addr), SIGSEGV);
	mapping.addr = to;
	for (i = 0; i < nr; i++) {
		after = inspect(_metadata, dev, page_at(&mapping, i));
		ASSERT_EQ(after.pfn, before[i].pfn);
		ASSERT_EQ(after.flags, before[i].flags);
	}
	ASSERT_TRUE(header_ok(page_at(&mapping, 20), 20, 0));
	ASSERT_TRUE(header_ok(page_at(&mapping, 140), 140, 0));
	ASSERT_EQ(get_stats(_metadata, dev).faults, stats.faults);

	/* And they are still found there. */
	ASSERT_TRUE(headers_ok(mapping.addr, 0, nr, 0));
	if (!self->mixed) {
		unsigned int from = variant->place;

		migrate(_metadata, dev->fd, 0, nr, PFNMAP_TEST_VRAM);
		migrate(_metadata, dev->fd, 0, nr, PFNMAP_TEST_RAM);
		migrate(_metadata, dev->fd, 0, nr, from);
		ASSERT_EQ(count_present(_metadata, dev, mapping.addr, nr), 0);
		for (i = 0; i < nr; i++) {
			ASSERT_EQ(load(page_at(&mapping, i)),
				  PFNMAP_TEST_MAGIC);
			ASSERT_EQ(load(page_at(&mapping, i) + 8), i);
		}
	}

	/* It can't be had twice, but be made smaller. */
	ASSERT_EQ(mremap(mapping.addr, 0, size, MREMAP_MAYMOVE), MAP_FAILED);
	ASSERT_EQ(errno, EFAULT);
	ASSERT_EQ(mremap(mapping.addr, size, 50 * psize(), 0), mapping.addr);
	for (i = 0; i < 50; i++)
		ASSERT_EQ(load(page_at(&mapping, i)), PFNMAP_TEST_MAGIC);
	ASSERT_EQ(touch(page_at(&mapping, 50)), SIGSEGV);
}

/* The error for VM_PFNMAP and VM_MIXEDMAP mappings, or 0 */
static const struct {
	int advice;
	int pfnmap;
	int mixedmap;
	bool zaps;
} advices[] = {
	{ MADV_GUARD_INSTALL, EINVAL, EINVAL, false },
	{ MADV_GUARD_REMOVE, EINVAL, EINVAL, false },
	{ MADV_POPULATE_READ, EINVAL, EINVAL, false },
	{ MADV_POPULATE_WRITE, EINVAL, EINVAL, false },
	{ MADV_FREE, EINVAL, EINVAL, false },
	{ MADV_COLD, EINVAL, 0, false },
	{ MADV_PAGEOUT, EINVAL, 0, false },
	{ MADV_WIPEONFORK, EINVAL, EINVAL, false },
	{ MADV_DOFORK, EINVAL, EINVAL, false },
	{ MADV_DODUMP, EINVAL, EINVAL, false },
	{ MADV_DONTNEED, EINVAL, 0, true },
	{ MADV_DONTNEED_LOCKED, EINVAL, 0, true },
};

/* What madvise() has to say, and does not do to what is mapped. */
TEST_F(rules, madvise)
{
	const struct mapping *mapping = &self->mapping;
	const unsigned long first = 20, nr = 100;
	char *addr = page_at(mapping, first);
	struct dev *dev = &self->dev;
	unsigned long left;
	unsigned int i;
	int err;

	for (i = 0; i < ARRAY_SIZE(advices); i++) {
		ASSERT_TRUE(headers_ok(addr, first, nr, 0));

		err = self->mixed ? advices[i].mixedmap : advices[i].pfnmap;
		left = !err && advices[i].zaps ? 0 : nr;
		errno = 0;
		ASSERT_EQ(madvise(addr, nr * psize(), advices[i].advice),
			  -!!err) {
			TH_LOG("advice %d: errno %d", advices[i].advice, errno);
		}
		ASSERT_EQ(errno, err) {
			TH_LOG("advice %d", advices[i].advice);
		}
		ASSERT_EQ(count_present(_metadata, dev, addr, nr), left) {
			TH_LOG("advice %d", advices[i].advice);
		}
	}

	/* Populating does not call the fault handler either. */
	unmap(_metadata, mapping->addr, mapping->nr);
	set_method(_metadata, dev, PFNMAP_TEST_ITER, 64, false);
	map(_metadata, dev, mapping->addr, 0, mapping->nr);
	ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_RESET_STATS), 0);
	ASSERT_EQ(madvise(addr, psize(), MADV_POPULATE_READ), -1);
	ASSERT_EQ(errno, EINVAL);
	ASSERT_EQ(madvise(addr, psize(), MADV_POPULATE_WRITE), -1);
	ASSERT_EQ(errno, EINVAL);
	ASSERT_EQ(get_stats(_metadata, dev).faults, 0);
	ASSERT_EQ(count_present(_metadata, dev, mapping->addr, mapping->nr), 0);
}

/* Without PROT_WRITE nothing is written, in a private mapping or a shared one. */
TEST_F(rules, private_mapping)
{
	struct dev *dev = &self->dev;
	const size_t size = 8 * psize();
	char *addr;

	addr = mmap(NULL, size, PROT_READ, MAP_PRIVATE, dev->fd, 0);
	if (variant->method == PFNMAP_TEST_REMAP ||
	    (!dev->start.pte_special && !self->mixed)) {
		ASSERT_EQ(addr, MAP_FAILED);
		ASSERT_EQ(errno, EINVAL);
	} else {
		ASSERT_NE(addr, MAP_FAILED);
		ASSERT_TRUE(headers_ok(addr, 0, 8, 0));
		ASSERT_EQ(try_store(addr + 64, 1), SIGSEGV);
		ASSERT_EQ(munmap(addr, size), 0);
	}

	addr = mmap(NULL, size, PROT_READ, MAP_SHARED, dev->fd, 0);
	ASSERT_NE(addr, MAP_FAILED);
	ASSERT_TRUE(headers_ok(addr, 0, 8, 0));
	ASSERT_EQ(try_store(addr + 64, 1), SIGSEGV);
	ASSERT_EQ(munmap(addr, size), 0);
}

/*
 * Misuse of the interface by a driver. The kernel refuses it, and survives.
 */
FIXTURE(misuse)
{
	struct dev dev;
};

FIXTURE_VARIANT(misuse)
{
	unsigned int method;
	unsigned int misuse;
	unsigned int place;
	unsigned int flags;
};

#define MISUSE(_method, _misuse, _place, _flags)		\
	.method = PFNMAP_TEST_##_method,			\
	.misuse = PFNMAP_TEST_##_misuse,			\
	.place = PFNMAP_TEST_##_place,				\
	.flags = _flags

FIXTURE_VARIANT_ADD(misuse, single_both_flags)
{
	MISUSE(SINGLE, BOTH_FLAGS, RAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, single_no_flags)
{
	MISUSE(SINGLE, NO_FLAGS, RAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, loop_both_flags)
{
	MISUSE(LOOP, BOTH_FLAGS, VRAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, loop_no_flags)
{
	MISUSE(LOOP, NO_FLAGS, VRAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, batch_before_vma)
{
	MISUSE(BATCH, BEFORE_VMA, RAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, batch_after_vma)
{
	MISUSE(BATCH, AFTER_VMA, RAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, batch_not_fault)
{
	MISUSE(BATCH, NOT_FAULT, VRAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, batch_no_pages)
{
	MISUSE(BATCH, NO_PAGES, RAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, batch_wrap)
{
	MISUSE(BATCH, WRAP, VRAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, batch_unaligned)
{
	MISUSE(BATCH, UNALIGNED, RAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, batch_both_flags)
{
	MISUSE(BATCH, BOTH_FLAGS, VRAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, batch_no_flags)
{
	MISUSE(BATCH, NO_FLAGS, VRAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, batch_mixed_valid)
{
	MISUSE(BATCH, MIXED_VALID, VRAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, batch_mixed_ram)
{
	MISUSE(BATCH, MIXED_VALID, RAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, iter_before_vma)
{
	MISUSE(ITER, BEFORE_VMA, RAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, iter_after_vma)
{
	MISUSE(ITER, AFTER_VMA, RAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, iter_not_fault)
{
	MISUSE(ITER, NOT_FAULT, VRAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, iter_no_pages)
{
	MISUSE(ITER, NO_PAGES, RAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, iter_wrap)
{
	MISUSE(ITER, WRAP, VRAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, iter_unaligned)
{
	MISUSE(ITER, UNALIGNED, RAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, iter_both_flags)
{
	MISUSE(ITER, BOTH_FLAGS, VRAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, iter_no_flags)
{
	MISUSE(ITER, NO_FLAGS, VRAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, iter_mixed_valid)
{
	MISUSE(ITER, MIXED_VALID, VRAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, iter_mixed_ram)
{
	MISUSE(ITER, MIXED_VALID, RAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, iter_mixed_alternate)
{
	MISUSE(ITER, MIXED_VALID, VRAM, PFNMAP_TEST_ALTERNATE),
};

FIXTURE_VARIANT_ADD(misuse, iter_overrun)
{
	MISUSE(ITER, ITER_OVERRUN, RAM, 0),
};

FIXTURE_VARIANT_ADD(misuse, iter_overrun_mixedmap)
{
	MISUSE(ITER, ITER_OVERRUN, VRAM, PFNMAP_TEST_MIXEDMAP),
};

FIXTURE_SETUP(misuse)
{
	setup_dev(_metadata, &self->dev);
	create(_metadata, &self->dev, 96, variant->place, variant->flags);
}

FIXTURE_TEARDOWN(misuse)
{
	teardown_dev(_metadata, &self->dev);
}

TEST_F(misuse, refused)
{
	struct dev *dev = &self->dev;
	struct mapping mapping = { dev->area + 32 * psize(), 32, 32 };
	char *before = mapping.addr - 8 * psize();
	char *after = mapping.addr + 32 * psize();
	const unsigned long index[] = { 5, 0, 31 };
	struct pfnmap_test_stats stats;
	unsigned int i;

	/* Neighbours with other pages of the object, VMAs of their own */
	set_method(_metadata, dev, PFNMAP_TEST_SINGLE, 1, false);
	map(_metadata, dev, before, 80, 8);
	map(_metadata, dev, after, 0, 8);

	ASSERT_EQ(do_method(dev->fd, variant->method, 32, false,
			    variant->misuse), 0);
	ASSERT_EQ(mmap(mapping.addr, mapping.nr * psize(),
		       PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED, dev->fd,
		       mapping.first * psize()), mapping.addr);

	for (i = 0; i < ARRAY_SIZE(index); i++) {
		char *addr = mapping.addr + index[i] * psize();

		ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_RESET_STATS), 0);
		ASSERT_EQ(touch(addr), SIGBUS);
		ASSERT_EQ(try_store(addr, 1), SIGBUS);
		stats = get_stats(_metadata, dev);
		ASSERT_EQ(stats.faults, 2);
		ASSERT_EQ(stats.sigbus, 2);
		ASSERT_FALSE(is_present(_metadata, dev, addr));
		ASSERT_EQ(count_present(_metadata, dev, mapping.addr,
					mapping.nr), 0);
		ASSERT_EQ(count_present(_metadata, dev, before, 8), 0);
		ASSERT_EQ(count_present(_metadata, dev, after, 8), 0);
	}

	/* Once the driver gets the range right, the mapping works. */
	set_method(_metadata, dev, variant->method, 32, false);
	switch (variant->misuse) {
	case PFNMAP_TEST_BOTH_FLAGS:
	case PFNMAP_TEST_NO_FLAGS:
	case PFNMAP_TEST_MIXED_VALID:
		unmap(_metadata, mapping.addr, mapping.nr);
		map(_metadata, dev, mapping.addr, mapping.first, mapping.nr);
		break;
	}
	ASSERT_TRUE(headers_ok(mapping.addr, mapping.first, mapping.nr, 0));
	ASSERT_TRUE(headers_ok(before, 80, 8, 0));
	ASSERT_TRUE(headers_ok(after, 0, 8, 0));
}

/* Iterators may leave pages out, and be asked for the others. */
FIXTURE(hole)
{
	struct dev dev;
};

FIXTURE_VARIANT(hole)
{
	unsigned int place;
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(hole, ram)
{
	.place = PFNMAP_TEST_RAM,
};

FIXTURE_VARIANT_ADD(hole, alternate)
{
	.place = PFNMAP_TEST_VRAM,
	.flags = PFNMAP_TEST_ALTERNATE,
};

FIXTURE_VARIANT_ADD(hole, mixedmap)
{
	.place = PFNMAP_TEST_VRAM,
	.flags = PFNMAP_TEST_MIXEDMAP,
};

FIXTURE_SETUP(hole)
{
	setup_dev(_metadata, &self->dev);
	create(_metadata, &self->dev, 64, variant->place, variant->flags);
}

FIXTURE_TEARDOWN(hole)
{
	teardown_dev(_metadata, &self->dev);
}

TEST_F(hole, others_mapped)
{
	struct dev *dev = &self->dev;
	char *addr = dev->area;
	unsigned long i;

	ASSERT_EQ(do_method(dev->fd, PFNMAP_TEST_ITER, 64, false,
			    PFNMAP_TEST_ITER_HOLE), 0);
	map(_metadata, dev, addr, 0, 64);
	ASSERT_EQ(touch(addr + 20 * psize()), SIGBUS);
	ASSERT_FALSE(is_present(_metadata, dev, addr + 20 * psize()));
	ASSERT_EQ(try_store(addr + 20 * psize(), 1), SIGBUS);
	ASSERT_FALSE(is_present(_metadata, dev, addr + 20 * psize()));
	ASSERT_EQ(get_stats(_metadata, dev).faults, 2);
	ASSERT_EQ(get_stats(_metadata, dev).sigbus, 2);

	for (i = 0; i < 64; i++) {
		if (i != 20 && is_present(_metadata, dev, addr + i * psize()))
			ASSERT_TRUE(header_ok(addr + i * psize(), i, 0));
	}
	set_method(_metadata, dev, PFNMAP_TEST_ITER, 64, false);
	ASSERT_TRUE(headers_ok(addr, 0, 64, 0));
}

/*
 * Private mappings: a write goes to a copy.  In a VM_PFNMAP mapping, a copy can
 * only be told from a pfn by pte_special; without it the faults are refused.
 */
#define COW_NR	16

FIXTURE(cow_pfns)
{
	struct dev dev;
	char *private, *shared;
	bool refused;
};

FIXTURE_VARIANT(cow_pfns)
{
	unsigned int method;
	unsigned int place;
	unsigned int flags;
};

#define COW_VARIANTS(_name, _method)					\
FIXTURE_VARIANT_ADD(cow_pfns, _name)					\
{									\
	.method = PFNMAP_TEST_##_method,				\
	.place = PFNMAP_TEST_RAM,					\
};									\
FIXTURE_VARIANT_ADD(cow_pfns, _name##_mixedmap)				\
{									\
	.method = PFNMAP_TEST_##_method,				\
	.place = PFNMAP_TEST_VRAM,					\
	.flags = PFNMAP_TEST_MIXEDMAP,					\
}

COW_VARIANTS(single, SINGLE);
COW_VARIANTS(loop, LOOP);
COW_VARIANTS(batch, BATCH);
COW_VARIANTS(iter, ITER);

static void *map_private(const struct dev *dev, int prot)
{
	return mmap(dev->area, COW_NR * psize(), prot, MAP_FIXED | MAP_PRIVATE,
		    dev->fd, 0);
}

FIXTURE_SETUP(cow_pfns)
{
	struct dev *dev = &self->dev;

	setup_dev(_metadata, dev);
	create(_metadata, dev, COW_NR, variant->place, variant->flags);
	set_method(_metadata, dev, variant->method, COW_NR, false);

	self->private = dev->area;
	self->shared = dev->area + 2 * COW_NR * psize();
	map(_metadata, dev, self->shared, 0, COW_NR);
	self->refused = !dev->start.pte_special && !variant->flags;
	if (self->refused) {
		ASSERT_EQ(map_private(dev, PROT_READ), MAP_FAILED);
		ASSERT_EQ(errno, EINVAL);
		ASSERT_EQ(do_method(dev->fd, variant->method, COW_NR, false,
				    PFNMAP_TEST_COW_VMA), 0);
	}
	ASSERT_EQ(map_private(dev, PROT_READ | PROT_WRITE), self->private);
	if (self->refused) {
		ASSERT_EQ(touch(self->private), SIGBUS);
		ASSERT_EQ(try_store(self->private, 1), SIGBUS);
		ASSERT_EQ(count_present(_metadata, dev, self->private, COW_NR),
			  0);
	}
}

FIXTURE_TEARDOWN(cow_pfns)
{
	teardown_dev(_metadata, &self->dev);
}

/* Reads see the object; each write makes a copy, that nobody else sees. */
TEST_F(cow_pfns, copied)
{
	struct dev *dev = &self->dev;
	unsigned long i;

	if (self->refused)
		return;
	ASSERT_TRUE(headers_ok(self->private, 0, COW_NR, 0));
	for (i = 0; i < COW_NR; i++) {
		char *private = self->private + i * psize();
		char *shared = self->shared + i * psize();

		ASSERT_FALSE(inspect(_metadata, dev, private).flags &
			     PFNMAP_TEST_PTE_WRITE);
		store(private + 64, i + 1);
		ASSERT_TRUE(inspect(_metadata, dev, private).flags &
			    PFNMAP_TEST_ANON);
		ASSERT_EQ(load(shared + 64), 0);
		/* A copy keeps what was there before. */
		store(shared + 72, 1);
		ASSERT_EQ(load(private + 64), i + 1);
		ASSERT_EQ(load(private + 72), 0);
	}
	ASSERT_TRUE(headers_ok(self->private, 0, COW_NR, 0));
	ASSERT_TRUE(headers_ok(self->shared, 0, COW_NR, 0));
}

/* What mprotect() allows later is written to a copy, too. */
TEST_F(cow_pfns, mprotect)
{
	struct dev *dev = &self->dev;
	const size_t size = COW_NR * psize();
	char *addr = self->private;

	if (self->refused)
		return;
	ASSERT_EQ(map_private(dev, PROT_READ), addr);
	ASSERT_TRUE(headers_ok(addr, 0, COW_NR, 0));
	ASSERT_EQ(try_store(addr + 64, 1), SIGSEGV);

	ASSERT_EQ(mprotect(addr, size, PROT_READ | PROT_WRITE), 0);
	ASSERT_FALSE(inspect(_metadata, dev, addr).flags &
		     PFNMAP_TEST_PTE_WRITE);
	store(addr + 64, 1);
	ASSERT_EQ(load(self->shared + 64), 0);

	ASSERT_EQ(mprotect(addr, size, PROT_READ), 0);
	ASSERT_EQ(try_store(addr + 64, 2), SIGSEGV);
	ASSERT_EQ(load(addr + 64), 1);
	ASSERT_TRUE(headers_ok(addr, 0, COW_NR, 0));
}

/* The child has the copies of before, and makes its own ones. */
TEST_F(cow_pfns, fork)
{
	char *first = self->private + 64, *second = first + psize();
	int status;
	pid_t pid;

	if (self->refused)
		return;
	ASSERT_TRUE(headers_ok(self->private, 0, COW_NR, 0));
	store(first, 1);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		if (load(first) != 1 || load(second) != 0)
			_exit(1);
		store(first, 2);
		store(second, 2);
		if (load(first) != 2 || load(second) != 2 ||
		    !headers_ok(self->private, 0, COW_NR, 0))
			_exit(1);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
	ASSERT_EQ(load(first), 1);
	ASSERT_EQ(load(second), 0);
	ASSERT_EQ(load(self->shared + 64), 0);
	ASSERT_EQ(load(self->shared + psize() + 64), 0);
	ASSERT_TRUE(headers_ok(self->private, 0, COW_NR, 0));
}

/* The driver unmaps copies as well when the object moves, as i915 does. */
TEST_F(cow_pfns, migrate)
{
	struct dev *dev = &self->dev;
	const unsigned int away = variant->place == PFNMAP_TEST_RAM ?
				  PFNMAP_TEST_VRAM : PFNMAP_TEST_RAM;

	if (self->refused)
		return;
	store(self->private + 64, 1);
	migrate(_metadata, dev->fd, 0, COW_NR, away);
	/* VM_MIXEDMAP has no place for what is in ram. */
	migrate(_metadata, dev->fd, 0, COW_NR, variant->place);
	ASSERT_EQ(count_present(_metadata, dev, self->private, COW_NR), 0);
	ASSERT_EQ(load(self->private + 64), 0);
	ASSERT_TRUE(headers_ok(self->private, 0, COW_NR, 2));
	store(self->private + 64, 2);
	ASSERT_EQ(load(self->shared + 64), 0);
	ASSERT_TRUE(headers_ok(self->private, 0, COW_NR, 2));
}

/*
 * No memory for some of the page tables.
 */
FIXTURE(oom)
{
	struct dev dev;
	int fail_nth;
};

FIXTURE_VARIANT(oom)
{
	unsigned int method;
	unsigned int place;
};

FIXTURE_VARIANT_ADD(oom, loop)
{
	.method = PFNMAP_TEST_LOOP,
	.place = PFNMAP_TEST_VRAM,
};

FIXTURE_VARIANT_ADD(oom, batch)
{
	.method = PFNMAP_TEST_BATCH,
	.place = PFNMAP_TEST_VRAM,
};

FIXTURE_VARIANT_ADD(oom, iter)
{
	.method = PFNMAP_TEST_ITER,
	.place = PFNMAP_TEST_RAM,
};

/* Three tables that are full, or what is at both sides of the end of a large one */
static unsigned long oom_part(void)
{
	return table_pages() > PART_PAGES ? PART_PAGES : table_pages();
}

static unsigned int oom_tables(void)
{
	return table_pages() > PART_PAGES ? 2 : 3;
}

FIXTURE_SETUP(oom)
{
	setup_dev(_metadata, &self->dev);
	create(_metadata, &self->dev, oom_tables() * oom_part(), variant->place, 0);
	self->fail_nth = open("/proc/thread-self/fail-nth", O_RDWR);
	if (self->fail_nth < 0)
		SKIP(return, "fail-nth: %s; is CONFIG_FAULT_INJECTION set?",
		     strerror(errno));
}

FIXTURE_TEARDOWN(oom)
{
	restore_fail_settings();
	close(self->fail_nth);
	teardown_dev(_metadata, &self->dev);
}

TEST_F(oom, extra_tables)
{
	struct dev *dev = &self->dev;
	const unsigned long part = oom_part(), window = 4 * table_pages();
	unsigned int n, injected = 0, partial = 0, t;
	char *area = before_edge(dev, part);
	unsigned long present, all, index;
	struct mapping mapping = { NULL, 0, dev->nr };
	char *fault, buf[16];
	size_t size = mapping.nr * psize();
	struct pfnmap_test_stats stats;
	bool done = false, missing;

	set_method(_metadata, dev, variant->method, window, true);

	/* No neighbour keeps a page table from being freed. */
	ASSERT_EQ(munmap(dev->area, dev->area_size), 0);
	change_fail_settings(_metadata);

	for (n = 1; !done; n++) {
		ASSERT_LT(n, 100);
		mapping.addr = mmap(area, size, PROT_READ | PROT_WRITE,
				    MAP_SHARED | MAP_FIXED_NOREPLACE, dev->fd,
				    0);
		ASSERT_EQ(mapping.addr, area);
		index = part + (n * 37) % part;	/* the second table */
		fault = page_at(&mapping, index);

		ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_RESET_STATS), 0);
		snprintf(buf, sizeof(buf), "%u", n);
		ASSERT_EQ(pwrite(self->fail_nth, buf, strlen(buf), 0),
			  strlen(buf));
		FORCE_READ(*fault);
		memset(buf, 0, sizeof(buf));
		t = pread(self->fail_nth, buf, sizeof(buf) - 1, 0);
		ASSERT_EQ(pwrite(self->fail_nth, "0", 1, 0), 1);
		ASSERT_GT(t, 0);

		/* Not counted down to the failure: there are no more. */
		done = strtoul(buf, NULL, 10) != 0;
		injected += !done;

		all = 0;
		missing = false;
		for (t = 0; t < oom_tables(); t++) {
			present = count_present(_metadata, dev, mapping.addr +
						t * part * psize(), part);
			all += present;
			missing |= !present;
			/* The faulting page table comes first, the others are extra. */
			if (t == 1)
				ASSERT_GE(present, 1);
			if (variant->method != PFNMAP_TEST_LOOP)
				ASSERT_TRUE(present == part || (t != 1 && !present));
		}
		if (variant->method != PFNMAP_TEST_LOOP) {
			stats = get_stats(_metadata, dev);
			ASSERT_EQ(stats.faults, 1);
			ASSERT_EQ(stats.nopage, 1);
		}
		if (done) {
			ASSERT_EQ(all, mapping.nr);
		} else {
			partial += missing;
		}

		ASSERT_TRUE(headers_ok(mapping.addr, 0, mapping.nr, 0));
		ASSERT_EQ(count_present(_metadata, dev, mapping.addr,
					mapping.nr), mapping.nr);
		ASSERT_EQ(munmap(mapping.addr, size), 0);
	}

	ksft_print_msg("%u failures, %u with page tables missing\n", injected,
		       partial);
	ASSERT_GE(injected, 2);
	ASSERT_GE(partial, 1);
	ASSERT_EQ(get_stats(_metadata, dev).sigbus, 0);
}

/*
 * The cache mode of a page does not depend on how it is mapped, or with which
 * others.
 */
FIXTURE(cachemode)
{
	struct dev dev;
	unsigned long split;
};

FIXTURE_VARIANT(cachemode)
{
	unsigned int method;
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(cachemode, loop)
{
	.method = PFNMAP_TEST_LOOP,
};

FIXTURE_VARIANT_ADD(cachemode, batch)
{
	.method = PFNMAP_TEST_BATCH,
};

FIXTURE_VARIANT_ADD(cachemode, iter)
{
	.method = PFNMAP_TEST_ITER,
};

FIXTURE_VARIANT_ADD(cachemode, remap)
{
	.method = PFNMAP_TEST_REMAP,
};

FIXTURE_VARIANT_ADD(cachemode, batch_mixedmap)
{
	.method = PFNMAP_TEST_BATCH,
	.flags = PFNMAP_TEST_MIXEDMAP,
};

FIXTURE_SETUP(cachemode)
{
	struct dev *dev = &self->dev;

	setup_dev(_metadata, dev);
	self->split = dev->start.memtype_split;
	if (!dev->start.vram_pages)
		SKIP(return, "the driver has no vram");
	ASSERT_EQ(dev->start.vram_free, dev->start.vram_pages);
	create(_metadata, dev, self->split + 300, PFNMAP_TEST_VRAM,
	       variant->flags);
}

FIXTURE_TEARDOWN(cachemode)
{
	teardown_dev(_metadata, &self->dev);
}

/* The bits that a CPU or a write access set don't matter. */
static uint64_t cache_bits(const struct pfnmap_test_inspect *pte)
{
#if defined(__x86_64__) || defined(__i386__)
	return pte->pgprot & 0x98;	/* PAT, PCD and PWT */
#else
	return pte->pgprot;
#endif
}

TEST_F(cachemode, same_as_single)
{
	struct dev *dev = &self->dev;
	const unsigned long nr = 600, first = self->split - 300;
	struct mapping single = { dev->area, first, nr };
	struct mapping other = { dev->area + 2 * span_size(), first, nr };
	struct pfnmap_test_inspect a, b, below, above;
	unsigned long i;

	ASSERT_GE(self->split, 300);
	set_method(_metadata, dev, PFNMAP_TEST_SINGLE, 1, false);
	map(_metadata, dev, single.addr, first, nr);
	for (i = first; i < first + nr; i++)
		FORCE_READ(*page_at(&single, i));

	set_method(_metadata, dev, variant->method, 1024, true);
	map(_metadata, dev, other.addr, first, nr);
	ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_RESET_STATS), 0);
	for (i = first; i < first + nr; i++) {
		FORCE_READ(*page_at(&other, i));
		a = inspect(_metadata, dev, page_at(&single, i));
		b = inspect(_metadata, dev, page_at(&other, i));
		ASSERT_EQ(a.pfn, b.pfn);
		ASSERT_EQ(cache_bits(&a), cache_bits(&b));
	}
	ASSERT_EQ(get_stats(_metadata, dev).faults,
		  variant->method != PFNMAP_TEST_REMAP);
	ASSERT_TRUE(headers_ok(other.addr, first, nr, 0));

	below = inspect(_metadata, dev, page_at(&other, self->split - 1));
	above = inspect(_metadata, dev, page_at(&other, self->split));
	ASSERT_EQ(below.pfn + 1, above.pfn);
#if defined(__x86_64__) || defined(__i386__)
	/* write-combining and uncached */
	ASSERT_NE(cache_bits(&below), cache_bits(&above));
#endif
}

/*
 * Threads.
 */
#define RACE_NR		128
#define NR_WRITERS	2
#define NR_READERS	2
#define NR_FAULTERS	8
#define MIN_ROUNDS	16

/* Shared by the threads of a test. */
struct race {
	struct mapping at[2];		/* where the pages may be mapped */
	unsigned int nr_at;
	unsigned long nr;		/* pages */
	int load_signal;		/* that loads may get, or 0 */
	int store_signal;		/* that stores may get, or 0 */
	int fd;
	atomic_bool stop;
	atomic_ulong errors;
	pthread_barrier_t barrier;
};

struct racer {
	struct race *race;
	pthread_t thread;
	unsigned int id;
	unsigned int state;		/* for rand_r() */
	unsigned long loads;
	unsigned long stores;
	unsigned long signals;
	uint64_t values[RACE_NR];	/* what each page is known to have */
};

static void race_error(struct race *race, const char *what, unsigned long page,
		       uint64_t seen, uint64_t expected)
{
	if (atomic_fetch_add(&race->errors, 1) < 3)
		ksft_print_msg("%s: page %lu: %#llx, expected %#llx\n", what,
			       page, (unsigned long long)seen,
			       (unsigned long long)expected);
}

static char *race_page(struct racer *racer, unsigned long page)
{
	struct race *race = racer->race;
	unsigned int i = 0;

	if (race->nr_at > 1)
		i = rand_r(&racer->state) % race->nr_at;
	return race->at[i].addr + page * psize();
}

/* False: there was a signal that is all right. */
static bool race_load(struct racer *racer, unsigned long page, size_t offset,
		      uint64_t *val)
{
	struct race *race = racer->race;
	int sig;

	sig = try_load(race_page(racer, page) + offset, val);
	if (!sig)
		return true;
	if (sig != race->load_signal)
		race_error(race, "load: signal", page, sig, race->load_signal);
	racer->signals++;
	return false;
}

/*
 * Where a page is and where it was are told apart by what is in there: the
 * driver poisons what it moves away from. The generation never goes back.
 */
static void *reader(void *arg)
{
	struct racer *racer = arg;
	struct race *race = racer->race;
	uint64_t val;

	while (!atomic_load(&race->stop)) {
		unsigned long page = rand_r(&racer->state) % race->nr;

		if (race_load(racer, page, 0, &val) && val != PFNMAP_TEST_MAGIC)
			race_error(race, "magic", page, val, PFNMAP_TEST_MAGIC);
		if (race_load(racer, page, 8, &val) && val != page)
			race_error(race, "index", page, val, page);
		if (race_load(racer, page, 16, &val)) {
			if (val < racer->values[page] ||
			    val == PFNMAP_TEST_POISON)
				race_error(race, "generation", page, val,
					   racer->values[page]);
			racer->values[page] = val;
		}
		racer->loads++;
	}
	return NULL;
}

/* Each writer has a counter in each page: no other value is ever there. */
static size_t counter_offset(unsigned int id)
{
	return 64 + id * sizeof(uint64_t);
}

static void *writer(void *arg)
{
	struct racer *racer = arg;
	struct race *race = racer->race;
	const size_t offset = counter_offset(racer->id);
	uint64_t val;
	int sig;

	while (!atomic_load(&race->stop)) {
		unsigned long page = rand_r(&racer->state) % race->nr;

		if (race_load(racer, page, offset, &val) &&
		    val != racer->values[page])
			race_error(race, "counter", page, val,
				   racer->values[page]);

		sig = try_store(race_page(racer, page) + offset,
				racer->values[page] + 1);
		if (!sig) {
			racer->values[page]++;
			racer->stores++;
			continue;
		}
		if (sig != race->store_signal)
			race_error(race, "store: signal", page, sig,
				   race->store_signal);
		racer->signals++;
	}
	return NULL;
}

/*
 * Threads that race with what the test's main thread does to the mapping.
 */
struct contest {
	struct dev dev;
	struct race race;
	struct racer writers[NR_WRITERS];
	struct racer readers[NR_READERS];
	uint64_t end;			/* in ns */
};

static void setup_contest(struct __test_metadata *_metadata,
			  struct contest *contest, unsigned int place,
			  unsigned int flags)
{
	struct race *race = &contest->race;
	struct dev *dev = &contest->dev;

	setup_dev(_metadata, dev);
	create(_metadata, dev, RACE_NR, place, flags);
	race->fd = dev->fd;
	race->nr = RACE_NR;
	race->nr_at = 1;
	/* Half of it is in the next page table. */
	race->at[0] = (struct mapping){
		dev->area + span_size() - RACE_NR / 2 * psize(), 0, RACE_NR
	};
	race->at[1] = race->at[0];
}

FIXTURE(race)
{
	struct contest contest;
};

FIXTURE_VARIANT(race)
{
	unsigned int method;
	unsigned int window;
	bool unclamped;
};

FIXTURE_VARIANT_ADD(race, single)
{
	.method = PFNMAP_TEST_SINGLE,
	.window = 1,
};

FIXTURE_VARIANT_ADD(race, loop)
{
	.method = PFNMAP_TEST_LOOP,
	.window = 32,
};

FIXTURE_VARIANT_ADD(race, batch)
{
	.method = PFNMAP_TEST_BATCH,
	.window = 32,
};

FIXTURE_VARIANT_ADD(race, iter)
{
	.method = PFNMAP_TEST_ITER,
	.window = 32,
};

/* One fault maps the pages in both page tables. */
FIXTURE_VARIANT_ADD(race, batch_unclamped)
{
	.method = PFNMAP_TEST_BATCH,
	.unclamped = true,
};

FIXTURE_VARIANT_ADD(race, iter_unclamped)
{
	.method = PFNMAP_TEST_ITER,
	.unclamped = true,
};

FIXTURE_VARIANT_ADD(race, remap)
{
	.method = PFNMAP_TEST_REMAP,
	.window = 1,
};

FIXTURE_SETUP(race)
{
	struct contest *contest = &self->contest;

	setup_contest(_metadata, contest, PFNMAP_TEST_RAM, 0);
	set_method(_metadata, &contest->dev, variant->method,
		   variant->unclamped ? wide_window() : variant->window,
		   variant->unclamped);
	map(_metadata, &contest->dev, contest->race.at[0].addr, 0, RACE_NR);
}

FIXTURE_TEARDOWN(race)
{
	teardown_dev(_metadata, &self->contest.dev);
}

static void start_racer(struct __test_metadata *_metadata, struct race *race,
			struct racer *racer, unsigned int id,
			void *(*function)(void *))
{
	racer->race = race;
	racer->id = id;
	racer->state = seed + id;
	ASSERT_EQ(pthread_create(&racer->thread, NULL, function, racer), 0);
}

static void start_race(struct __test_metadata *_metadata,
		       struct contest *contest, unsigned int ms)
{
	unsigned int i;

	for (i = 0; i < NR_WRITERS; i++)
		start_racer(_metadata, &contest->race, &contest->writers[i], i,
			    writer);
	for (i = 0; i < NR_READERS; i++)
		start_racer(_metadata, &contest->race, &contest->readers[i],
			    NR_WRITERS + i, reader);
	contest->end = now_ns() + ms * 1000000ULL;
}

/*
 * For some time, and however slow the machine is for a few rounds, and until
 * each kind of threads has had its turn.
 */
static bool racing(struct contest *contest, unsigned long rounds)
{
	unsigned long i, loads = 0, stores = 0;

	if (atomic_load(&contest->race.errors))
		return false;
	if (now_ns() < contest->end || rounds < MIN_ROUNDS)
		return true;
	for (i = 0; i < NR_WRITERS; i++)
		stores += FORCE_READ(contest->writers[i].stores);
	for (i = 0; i < NR_READERS; i++)
		loads += FORCE_READ(contest->readers[i].loads);
	return !loads || (!stores && contest->writers[0].race);
}

/* Stop the threads; in the end, each counter has what its writer stored. */
static void finish_race(struct __test_metadata *_metadata,
			struct contest *contest)
{
	struct race *race = &contest->race;
	unsigned long i, page, loads = 0, stores = 0, signals = 0;

	atomic_store(&race->stop, true);
	for (i = 0; i < NR_WRITERS; i++) {
		pthread_join(contest->writers[i].thread, NULL);
		stores += contest->writers[i].stores;
		signals += contest->writers[i].signals;
	}
	for (i = 0; i < NR_READERS; i++) {
		pthread_join(contest->readers[i].thread, NULL);
		loads += contest->readers[i].loads;
		signals += contest->readers[i].signals;
	}
	ksft_print_msg("%lu loads, %lu stores, %lu signals, %llu faults\n",
		       loads, stores, signals, (unsigned long long)
		       get_stats(_metadata, &contest->dev).faults);
	ASSERT_EQ(atomic_load(&race->errors), 0);
	ASSERT_GT(loads, 0);
	ASSERT_GT(stores, 0);
	if (race->load_signal == 0 && race->store_signal == 0)
		ASSERT_EQ(signals, 0);

	for (page = 0; page < race->nr; page++) {
		char *addr = race->at[0].addr + page * psize();

		ASSERT_EQ(load(addr), PFNMAP_TEST_MAGIC);
		ASSERT_EQ(load(addr + 8), page);
		for (i = 0; i < NR_WRITERS; i++)
			ASSERT_EQ(load(addr + counter_offset(i)),
				  contest->writers[i].values[page]);
	}
	ASSERT_EQ(get_stats(_metadata, &contest->dev).sigbus, 0);
	ASSERT_EQ(get_stats(_metadata, &contest->dev).oom, 0);
}

/* Migration: no stale page is ever seen, no store is ever lost. */
TEST_F(race, migrate)
{
	struct dev *dev = &self->contest.dev;
	uint64_t generation[RACE_NR] = {};
	bool in_vram[RACE_NR] = {};
	unsigned int state = seed;
	unsigned long i, first, nr, migrations = 0, moved = 0;
	struct pfnmap_test_stats stats;

	ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_RESET_STATS), 0);
	start_race(_metadata, &self->contest, 1500);
	while (racing(&self->contest, migrations)) {
		const bool vram = rand_r(&state) % 2;

		/* Few pages, mostly */
		first = rand_r(&state) % RACE_NR;
		nr = 1 + rand_r(&state) % (RACE_NR - first);
		if (nr > 8 && migrations % 8)
			nr %= 8;
		nr += !nr;
		migrate(_metadata, dev->fd, first, nr,
			vram ? PFNMAP_TEST_VRAM : PFNMAP_TEST_RAM);
		for (i = first; i < first + nr; i++) {
			if (in_vram[i] == vram)
				continue;
			in_vram[i] = vram;
			generation[i]++;
			moved++;
		}
		migrations++;
		/* Let the others have the semaphore and the CPU. */
		if (migrations % 32 == 0)
			usleep(500);
		else
			sched_yield();
	}
	finish_race(_metadata, &self->contest);
	ksft_print_msg("%lu migrations of %lu pages\n", migrations, moved);
	ASSERT_GE(migrations, MIN_ROUNDS);

	stats = get_stats(_metadata, dev);
	ASSERT_EQ(stats.migrated, moved);
	ASSERT_GT(stats.faults, 1);
	for (i = 0; i < RACE_NR; i++) {
		char *addr = self->contest.race.at[0].addr + i * psize();

		ASSERT_TRUE(header_ok(addr, i, generation[i]));
		ASSERT_EQ(!!(inspect(_metadata, dev, addr).flags &
			     PFNMAP_TEST_PFN_VALID), !in_vram[i]);
	}
}

/* Parts of the mapping are replaced by new mappings of the same. */
TEST_F(race, mmap)
{
	struct dev *dev = &self->contest.dev;
	char *addr = self->contest.race.at[0].addr;
	unsigned int state = seed;
	unsigned long first, nr, count = 0;

	start_race(_metadata, &self->contest, 600);
	while (racing(&self->contest, count)) {
		first = rand_r(&state) % RACE_NR;
		nr = 1 + rand_r(&state) % (RACE_NR - first);
		map(_metadata, dev, addr + first * psize(), first, nr);
		count++;
	}
	finish_race(_metadata, &self->contest);
	ASSERT_GE(count, MIN_ROUNDS);
}

/* Parts of the mapping are gone for some time. */
TEST_F(race, munmap)
{
	struct dev *dev = &self->contest.dev;
	char *addr = self->contest.race.at[0].addr;
	unsigned int state = seed;
	unsigned long first, nr, count = 0;

	self->contest.race.load_signal = SIGSEGV;
	self->contest.race.store_signal = SIGSEGV;
	start_race(_metadata, &self->contest, 600);
	while (racing(&self->contest, count)) {
		first = rand_r(&state) % RACE_NR;
		nr = 1 + rand_r(&state) % (RACE_NR - first);
		unmap(_metadata, addr + first * psize(), nr);
		if (count % 4 == 0)
			usleep(500);
		map(_metadata, dev, addr + first * psize(), first, nr);
		if (count % 2 == 0)
			usleep(500);
		count++;
	}
	finish_race(_metadata, &self->contest);
	ASSERT_GE(count, MIN_ROUNDS);
}

TEST_F(race, mremap)
{
	struct dev *dev = &self->contest.dev;
	struct race *race = &self->contest.race;
	const size_t size = RACE_NR * psize();
	unsigned long count = 0;

	race->load_signal = SIGSEGV;
	race->store_signal = SIGSEGV;
	race->nr_at = 2;
	/* With another place in the window and the page tables. */
	race->at[1].addr = dev->area + 3 * span_size() - 21 * psize();
	start_race(_metadata, &self->contest, 600);
	while (racing(&self->contest, count)) {
		char *from = race->at[count % 2].addr;
		char *to = race->at[!(count % 2)].addr;

		ASSERT_EQ(mremap(from, size, size, MREMAP_MAYMOVE |
				 MREMAP_FIXED, to), to);
		/* The old place must not be taken by something else. */
		ASSERT_EQ(mmap(from, size, PROT_NONE, MAP_ANON | MAP_PRIVATE |
			       MAP_NORESERVE | MAP_FIXED, -1, 0), from);
		count++;
		/* For faults at the new place */
		if (count % 4 < 2)
			migrate(_metadata, dev->fd, 0, RACE_NR, count % 8 < 4 ?
				PFNMAP_TEST_VRAM : PFNMAP_TEST_RAM);
		if (count % 2)
			usleep(500);
	}
	if (count % 2)
		ASSERT_EQ(mremap(race->at[1].addr, size, size, MREMAP_MAYMOVE |
				 MREMAP_FIXED, race->at[0].addr),
			  race->at[0].addr);
	finish_race(_metadata, &self->contest);
	ASSERT_GE(count, MIN_ROUNDS);
}

TEST_F(race, mprotect)
{
	static const int prots[] = {
		PROT_READ, PROT_READ | PROT_WRITE, PROT_NONE,
		PROT_READ | PROT_WRITE,
	};
	struct dev *dev = &self->contest.dev;
	char *addr = self->contest.race.at[0].addr;
	unsigned int state = seed;
	unsigned long first, nr, count = 0;

	self->contest.race.load_signal = SIGSEGV;
	self->contest.race.store_signal = SIGSEGV;
	start_race(_metadata, &self->contest, 600);
	while (racing(&self->contest, count)) {
		first = rand_r(&state) % RACE_NR;
		nr = 1 + rand_r(&state) % (RACE_NR - first);
		ASSERT_EQ(mprotect(addr + first * psize(), nr * psize(),
				   prots[count % ARRAY_SIZE(prots)]), 0);
		count++;
		if (count % 8 == 0)
			migrate(_metadata, dev->fd, 0, RACE_NR, count % 16 ?
				PFNMAP_TEST_VRAM : PFNMAP_TEST_RAM);
		if (count % 3 == 0)
			usleep(300);
	}
	ASSERT_EQ(mprotect(addr, RACE_NR * psize(), PROT_READ | PROT_WRITE), 0);
	finish_race(_metadata, &self->contest);
	ASSERT_GE(count, MIN_ROUNDS);
}

/* Children get the PTEs as they are, and no stale ones. */
TEST_F(race, fork)
{
	struct dev *dev = &self->contest.dev;
	char *addr = self->contest.race.at[0].addr;
	unsigned long count = 0, i;
	pid_t child;

	start_race(_metadata, &self->contest, 1000);
	while (racing(&self->contest, count)) {
		child = fork();
		ASSERT_GE(child, 0);
		if (!child) {
			for (i = 0; i < RACE_NR; i++) {
				if (load(addr + i * psize()) !=
				    PFNMAP_TEST_MAGIC)
					_exit(1);
				if (load(addr + i * psize() + 8) != i)
					_exit(2);
				/* the writer's counter only goes up */
				if (load(addr + i * psize() + 64) <
				    self->contest.writers[0].values[i])
					_exit(3);
			}
			_exit(0);
		}
		/* While the child looks. */
		migrate(_metadata, dev->fd, count % 50, 60, count % 2 ?
			PFNMAP_TEST_RAM : PFNMAP_TEST_VRAM);
		ASSERT_EQ(wait_child(child), 0);
		count++;
	}
	finish_race(_metadata, &self->contest);
	ASSERT_GE(count, MIN_ROUNDS);
}

static void *faulter(void *arg)
{
	struct racer *racer = arg;
	struct race *race = racer->race;
	unsigned long i, start;

	while (true) {
		pthread_barrier_wait(&race->barrier);
		if (atomic_load(&race->stop))
			return NULL;
		/* Half of them start at the same page. */
		start = racer->id % 2 ? rand_r(&racer->state) % race->nr : 0;
		for (i = 0; i < race->nr; i++) {
			const unsigned long page = (start + i) % race->nr;
			char *addr = race->at[0].addr + page * psize();

			if (!header_ok(addr, page, 0))
				race_error(race, "header", page, load(addr),
					   PFNMAP_TEST_MAGIC);
			store(addr + 64 + racer->id * 8, page + racer->id);
			racer->stores++;
		}
		pthread_barrier_wait(&race->barrier);
	}
}

/* Threads that fault on the same pages at once. */
TEST_F(race, threads)
{
	struct dev *dev = &self->contest.dev;
	struct race *race = &self->contest.race;
	struct racer *racers;
	unsigned long i, j, round;
	const unsigned long rounds = 30;

	racers = calloc(NR_FAULTERS, sizeof(*racers));
	ASSERT_NE(racers, NULL);
	ASSERT_EQ(pthread_barrier_init(&race->barrier, NULL, NR_FAULTERS + 1),
		  0);
	for (i = 0; i < NR_FAULTERS; i++)
		start_racer(_metadata, race, &racers[i], i, faulter);

	for (round = 0; round < rounds; round++) {
		map(_metadata, dev, race->at[0].addr, 0, RACE_NR);
		pthread_barrier_wait(&race->barrier);
		pthread_barrier_wait(&race->barrier);
		ASSERT_EQ(atomic_load(&race->errors), 0);
		ASSERT_EQ(count_present(_metadata, dev, race->at[0].addr,
					RACE_NR), RACE_NR);
		for (i = 0; i < RACE_NR; i++) {
			for (j = 0; j < NR_FAULTERS; j++)
				ASSERT_EQ(load(race->at[0].addr + i * psize() +
					       64 + j * 8), i + j);
		}
	}
	atomic_store(&race->stop, true);
	pthread_barrier_wait(&race->barrier);
	for (i = 0; i < NR_FAULTERS; i++) {
		pthread_join(racers[i].thread, NULL);
		ASSERT_EQ(racers[i].stores, rounds * RACE_NR);
	}
	ASSERT_EQ(get_stats(_metadata, dev).sigbus, 0);
	ASSERT_EQ(get_stats(_metadata, dev).oom, 0);
	free(racers);
}

#define SLOT_PAGES	8

/* Maps, faults and unmaps a range of its own, in a page table for all. */
static void *slot_user(void *arg)
{
	struct racer *racer = arg;
	struct race *race = racer->race;
	char *addr = race->at[0].addr + racer->id * 5 * SLOT_PAGES * psize();
	const size_t size = SLOT_PAGES * psize();

	pthread_barrier_wait(&race->barrier);
	while (!atomic_load(&race->stop)) {
		unsigned long i, first;

		first = rand_r(&racer->state) % (RACE_NR - SLOT_PAGES);
		if (mmap(addr, size, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED_NOREPLACE, race->fd,
			 first * psize()) != addr) {
			race_error(race, "mmap", racer->id, errno, 0);
			break;
		}
		for (i = 0; i < SLOT_PAGES; i++) {
			if (!header_ok(addr + i * psize(), first + i, 0))
				race_error(race, "header", first + i,
					   load(addr + i * psize()),
					   PFNMAP_TEST_MAGIC);
		}
		if (munmap(addr, size)) {
			race_error(race, "munmap", racer->id, errno, 0);
			break;
		}
		racer->loads++;
	}
	return NULL;
}

/* Page tables come and go, with neighbours that are not related. */
TEST_F(race, page_table)
{
	struct dev *dev = &self->contest.dev;
	struct race *race = &self->contest.race;
	struct racer *racers = self->contest.readers;
	unsigned long rounds;
	unsigned int i;

	race->at[0].addr = dev->area + 2 * span_size();
	ASSERT_EQ(pthread_barrier_init(&race->barrier, NULL, NR_READERS + 1),
		  0);
	for (i = 0; i < NR_READERS; i++)
		start_racer(_metadata, race, &racers[i], i, slot_user);

	/* No other VMA keeps the page table from being freed. */
	ASSERT_EQ(munmap(dev->area, dev->area_size), 0);
	pthread_barrier_wait(&race->barrier);
	self->contest.end = now_ns() + 600 * 1000000ULL;
	do {
		usleep(1000);
		for (i = 0, rounds = ~0UL; i < NR_READERS; i++)
			if (rounds > FORCE_READ(racers[i].loads))
				rounds = FORCE_READ(racers[i].loads);
	} while (racing(&self->contest, rounds));
	atomic_store(&race->stop, true);
	for (i = 0; i < NR_READERS; i++) {
		pthread_join(racers[i].thread, NULL);
		ASSERT_GE(racers[i].loads, MIN_ROUNDS);
	}
	ASSERT_EQ(atomic_load(&race->errors), 0);
	ASSERT_EQ(get_stats(_metadata, dev).sigbus, 0);
	ASSERT_EQ(get_stats(_metadata, dev).oom, 0);
}

/* MADV_DONTNEED zaps VM_MIXEDMAP mappings; it refuses VM_PFNMAP ones. */
FIXTURE(race_dontneed)
{
	struct contest contest;
};

FIXTURE_VARIANT(race_dontneed)
{
	unsigned int method;
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(race_dontneed, loop_mixedmap)
{
	.method = PFNMAP_TEST_LOOP,
	.flags = PFNMAP_TEST_MIXEDMAP,
};

FIXTURE_VARIANT_ADD(race_dontneed, batch_mixedmap)
{
	.method = PFNMAP_TEST_BATCH,
	.flags = PFNMAP_TEST_MIXEDMAP,
};

FIXTURE_VARIANT_ADD(race_dontneed, iter_mixedmap)
{
	.method = PFNMAP_TEST_ITER,
	.flags = PFNMAP_TEST_MIXEDMAP,
};

FIXTURE_VARIANT_ADD(race_dontneed, batch)
{
	.method = PFNMAP_TEST_BATCH,
};

FIXTURE_VARIANT_ADD(race_dontneed, iter)
{
	.method = PFNMAP_TEST_ITER,
};

FIXTURE_SETUP(race_dontneed)
{
	struct contest *contest = &self->contest;

	setup_contest(_metadata, contest, PFNMAP_TEST_VRAM, variant->flags);
	set_method(_metadata, &contest->dev, variant->method, 32, false);
	map(_metadata, &contest->dev, contest->race.at[0].addr, 0, RACE_NR);
}

FIXTURE_TEARDOWN(race_dontneed)
{
	teardown_dev(_metadata, &self->contest.dev);
}

TEST_F(race_dontneed, madvise)
{
	static const int advices[] = {
		MADV_DONTNEED, MADV_POPULATE_READ, MADV_DONTNEED,
		MADV_POPULATE_WRITE, MADV_DONTNEED, MADV_GUARD_INSTALL,
	};
	struct race *race = &self->contest.race;
	unsigned long first, nr, count = 0;
	unsigned int state = seed;

	start_race(_metadata, &self->contest, 500);
	while (racing(&self->contest, count)) {
		const int advice = advices[count % ARRAY_SIZE(advices)];
		int ret;

		first = rand_r(&state) % RACE_NR;
		nr = 1 + rand_r(&state) % (RACE_NR - first);
		ret = madvise(race->at[0].addr + first * psize(),
			      nr * psize(), advice);
		if (advice == MADV_DONTNEED && variant->flags) {
			ASSERT_EQ(ret, 0);
		} else {
			ASSERT_EQ(ret, -1);
			ASSERT_EQ(errno, EINVAL);
		}
		count++;
		if (count % 4 == 0)
			usleep(200);
	}
	finish_race(_metadata, &self->contest);
	ASSERT_GE(count, MIN_ROUNDS);
}

/*
 * The device itself: what it refuses, without any change.
 */
FIXTURE(device)
{
	struct dev dev;
	int fd;				/* without an object */
};

FIXTURE_SETUP(device)
{
	setup_dev(_metadata, &self->dev);
	self->fd = open(DEVICE, O_RDWR);
	ASSERT_GE(self->fd, 0);
}

FIXTURE_TEARDOWN(device)
{
	EXPECT_EQ(close(self->fd), 0);
	teardown_dev(_metadata, &self->dev);
}

static bool same_stats(struct __test_metadata *_metadata, int fd,
		       const struct pfnmap_test_stats *before)
{
	struct pfnmap_test_stats now;

	ASSERT_EQ(ioctl(fd, PFNMAP_TEST_GET_STATS, &now), 0);
	return !memcmp(&now, before, sizeof(now));
}

static void expect_refused(struct __test_metadata *_metadata, int line, int fd,
			   unsigned long cmd, void *arg, int err)
{
	struct pfnmap_test_stats before;

	ASSERT_EQ(ioctl(fd, PFNMAP_TEST_GET_STATS, &before), 0);
	errno = 0;
	EXPECT_EQ(ioctl(fd, cmd, arg), -1) {
		TH_LOG("line %d", line);
	}
	EXPECT_EQ(errno, err) {
		TH_LOG("line %d", line);
	}
	EXPECT_TRUE(same_stats(_metadata, fd, &before)) {
		TH_LOG("line %d", line);
	}
}

#define EXPECT_REFUSED(...) expect_refused(_metadata, __LINE__, __VA_ARGS__)

TEST_F(device, create_refused)
{
	struct pfnmap_test_create ok = { .nr_pages = 8 };
	const uint64_t sizes[] = {
		0, PFNMAP_TEST_MAX_PAGES + 1, 1ULL << 32, (1ULL << 32) + 8,
		1ULL << 52, ~0ULL,
	};
	const uint32_t flags[] = {
		PFNMAP_TEST_NO_IO,	/* without MIXEDMAP */
		PFNMAP_TEST_NOTIFY,
		PFNMAP_TEST_COMPOUND | PFNMAP_TEST_SCATTER,
		0x40, 0x80000000, ~0U,
	};
	const uint32_t places[] = { 2, 3, 0x100, ~0U };
	struct pfnmap_test_create arg;
	const int fd = self->fd;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		arg = ok;
		arg.nr_pages = sizes[i];
		EXPECT_REFUSED(fd, PFNMAP_TEST_CREATE, &arg, EINVAL);
	}
	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		arg = ok;
		arg.flags = flags[i];
		EXPECT_REFUSED(fd, PFNMAP_TEST_CREATE, &arg, EINVAL);
	}
	for (i = 0; i < ARRAY_SIZE(places); i++) {
		arg = ok;
		arg.place = places[i];
		EXPECT_REFUSED(fd, PFNMAP_TEST_CREATE, &arg, EINVAL);
	}
	for (i = 0; i < ARRAY_SIZE(arg.reserved); i++) {
		arg = ok;
		arg.reserved[i] = 1ULL << 63;
		EXPECT_REFUSED(fd, PFNMAP_TEST_CREATE, &arg, EINVAL);
	}

	/* None of that made an object: there is still none. */
	ASSERT_EQ(mmap(NULL, psize(), PROT_READ, MAP_SHARED, fd, 0),
		  MAP_FAILED);
	ASSERT_EQ(errno, ENXIO);
	ASSERT_EQ(ioctl(fd, PFNMAP_TEST_CREATE, &ok), 0);
	EXPECT_REFUSED(fd, PFNMAP_TEST_CREATE, &ok, EBUSY);
}

TEST_F(device, no_object)
{
	struct pfnmap_test_migrate move = { .nr = 1 };
	struct pfnmap_test_inspect pte = {};

	EXPECT_REFUSED(self->fd, PFNMAP_TEST_MIGRATE, &move, ENXIO);
	pte.addr = (uintptr_t)self->dev.area;
	EXPECT_REFUSED(self->fd, PFNMAP_TEST_INSPECT, &pte, EINVAL);
	EXPECT_EQ(mmap(NULL, psize(), PROT_READ, MAP_SHARED, self->fd, 0),
		  MAP_FAILED);
	EXPECT_EQ(errno, ENXIO);
	EXPECT_EQ(ioctl(self->fd, PFNMAP_TEST_RESET_STATS), 0);
	EXPECT_EQ(do_method(self->fd, PFNMAP_TEST_ITER, 16, false, 0), 0);
}

TEST_F(device, set_method_refused)
{
	static const struct pfnmap_test_method_arg bad[] = {
		{ .method = PFNMAP_TEST_NR_METHODS, .window = 1 },
		{ .method = ~0U, .window = 1 },
		{ .misuse = PFNMAP_TEST_NR_MISUSES, .window = 1 },
		{ .misuse = ~0U, .window = 1 },
		{ .window = 0 },
		{ .window = 3 },
		{ .window = 48 },
		{ .window = 2 * PFNMAP_TEST_MAX_WINDOW },
		{ .window = 1ULL << 32 },
		{ .window = 1ULL << 63 },
		{ .window = ~0ULL },
		{ .window = 1, .unclamped = 2 },
		{ .window = 1, .unclamped = ~0U },
		{ .window = 1, .misuse_page = 1 },
		{ .window = 1, .reserved = { 1, 0 } },
		{ .window = 1, .reserved = { 0, 1ULL << 63 } },
	};
	static const unsigned int range_kinds[] = {
		PFNMAP_TEST_BEFORE_VMA, PFNMAP_TEST_AFTER_VMA,
		PFNMAP_TEST_NOT_FAULT, PFNMAP_TEST_NO_PAGES,
		PFNMAP_TEST_WRAP, PFNMAP_TEST_UNALIGNED,
		PFNMAP_TEST_MIXED_VALID,
	};
	static const unsigned int vma_kinds[] = {
		PFNMAP_TEST_COW_VMA, PFNMAP_TEST_BOTH_FLAGS,
		PFNMAP_TEST_NO_FLAGS,
	};
	struct pfnmap_test_method_arg arg;
	struct dev *dev = &self->dev;
	const int fd = dev->fd;
	unsigned int i, method;

	create(_metadata, dev, 64, PFNMAP_TEST_RAM, 0);
	ASSERT_EQ(do_method(fd, PFNMAP_TEST_ITER, 16, false, 0), 0);

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		arg = bad[i];
		EXPECT_REFUSED(fd, PFNMAP_TEST_SET_METHOD, &arg, EINVAL);
	}

	/* What goes with which method */
	for (method = 0; method < PFNMAP_TEST_NR_METHODS; method++) {
		const bool iter = method == PFNMAP_TEST_ITER ||
				  method == PFNMAP_TEST_MIXED_ITER;
		const bool range = iter || method == PFNMAP_TEST_BATCH ||
				   method == PFNMAP_TEST_MIXED_BATCH;

		arg = (struct pfnmap_test_method_arg){
			.method = method,
			.window = 1,
		};
		for (i = 0; !range && i < ARRAY_SIZE(range_kinds); i++) {
			arg.misuse = range_kinds[i];
			EXPECT_REFUSED(fd, PFNMAP_TEST_SET_METHOD, &arg,
				       EINVAL);
		}
		if (!iter) {
			arg.misuse = PFNMAP_TEST_ITER_HOLE;
			EXPECT_REFUSED(fd, PFNMAP_TEST_SET_METHOD, &arg,
				       EINVAL);
			arg.misuse = PFNMAP_TEST_ITER_OVERRUN;
			EXPECT_REFUSED(fd, PFNMAP_TEST_SET_METHOD, &arg,
				       EINVAL);
		}
	}
	arg.method = PFNMAP_TEST_REMAP;
	for (i = 0; i < ARRAY_SIZE(vma_kinds); i++) {
		arg.misuse = vma_kinds[i];
		EXPECT_REFUSED(fd, PFNMAP_TEST_SET_METHOD, &arg, EINVAL);
	}

	/* The method is still what it was: it maps 16 pages. */
	map(_metadata, dev, dev->area, 0, 64);
	FORCE_READ(*dev->area);
	ASSERT_EQ(count_present(_metadata, dev, dev->area, 64), 16);

	/* The largest window there is */
	ASSERT_EQ(do_method(fd, PFNMAP_TEST_ITER, PFNMAP_TEST_MAX_WINDOW, true,
			    0), 0);
	FORCE_READ(dev->area[20 * psize()]);
	ASSERT_EQ(count_present(_metadata, dev, dev->area, 64), 64);
	ASSERT_TRUE(headers_ok(dev->area, 0, 64, 0));
}

TEST_F(device, migrate_refused)
{
	const struct pfnmap_test_migrate ok = { .nr = 1 };
	static const struct {
		uint64_t first;
		uint64_t nr;
	} ranges[] = {
		{ 0, 0 }, { 31, 0 }, { 32, 0 }, { 0, 33 }, { 32, 1 },
		{ 31, 2 }, { ~0ULL, 1 }, { ~0ULL, 2 }, { 0, ~0ULL },
		{ 1, ~0ULL }, { 16, ~0ULL - 15 }, { 16, ~0ULL - 14 },
		{ 1ULL << 32, 1 }, { 0, (1ULL << 32) + 1 },
		{ 1ULL << 52, 1 }, { 1, 1ULL << 63 },
	};
	struct pfnmap_test_migrate arg;
	struct dev *dev = &self->dev;
	const int fd = dev->fd;
	unsigned int i, place;

	create(_metadata, dev, 32, PFNMAP_TEST_RAM, PFNMAP_TEST_ALTERNATE);
	map(_metadata, dev, dev->area, 0, 32);
	ASSERT_TRUE(headers_ok(dev->area, 0, 32, 0));

	for (place = PFNMAP_TEST_RAM; place <= PFNMAP_TEST_VRAM; place++) {
		for (i = 0; i < ARRAY_SIZE(ranges); i++) {
			arg = ok;
			arg.first = ranges[i].first;
			arg.nr = ranges[i].nr;
			arg.place = place;
			EXPECT_REFUSED(fd, PFNMAP_TEST_MIGRATE, &arg, EINVAL);
		}
	}
	for (place = 2; place; place <<= 1) {
		arg = ok;
		arg.place = place;
		EXPECT_REFUSED(fd, PFNMAP_TEST_MIGRATE, &arg, EINVAL);
	}
	for (i = 0; i < 32; i++) {
		arg = ok;
		arg.flags = 1U << i;
		EXPECT_REFUSED(fd, PFNMAP_TEST_MIGRATE, &arg, EINVAL);
	}
	for (i = 0; i < ARRAY_SIZE(arg.reserved); i++) {
		arg = ok;
		arg.reserved[i] = 1;
		EXPECT_REFUSED(fd, PFNMAP_TEST_MIGRATE, &arg, EINVAL);
	}
	ASSERT_EQ(count_present(_metadata, dev, dev->area, 32), 32);
	ASSERT_TRUE(headers_ok(dev->area, 0, 32, 0));
}

TEST_F(device, inspect_refused)
{
	struct pfnmap_test_inspect arg;
	struct dev *dev = &self->dev;
	const int fd = dev->fd;
	uint64_t addrs[8];
	unsigned int i;
	char *other;

	create(_metadata, dev, 32, PFNMAP_TEST_RAM, 0);
	map(_metadata, dev, dev->area, 0, 32);
	ASSERT_EQ(do_create(self->fd, 4, PFNMAP_TEST_RAM, 0), 0);
	other = mmap(NULL, 4 * psize(), PROT_READ, MAP_SHARED, self->fd, 0);
	ASSERT_NE(other, MAP_FAILED);

	addrs[0] = 0;
	addrs[1] = ~0ULL;
	addrs[2] = ~0ULL << 12;
	addrs[3] = (uintptr_t)dev->area + 1;
	addrs[4] = (uintptr_t)dev->area + 32 * psize();
	addrs[5] = (uintptr_t)dev->area - psize();
	addrs[6] = (uintptr_t)other;		/* of another file */
	addrs[7] = (uintptr_t)&addrs & -psize();	/* stack */
	for (i = 0; i < ARRAY_SIZE(addrs); i++) {
		memset(&arg, 0, sizeof(arg));
		arg.addr = addrs[i];
		EXPECT_REFUSED(fd, PFNMAP_TEST_INSPECT, &arg, EINVAL);
	}
	for (i = 0; i < 3; i++) {
		memset(&arg, 0, sizeof(arg));
		arg.addr = (uintptr_t)dev->area;
		if (i < ARRAY_SIZE(arg.reserved))
			arg.reserved[i] = 1;
		else
			arg.reserved0 = 1;
		EXPECT_REFUSED(fd, PFNMAP_TEST_INSPECT, &arg, EINVAL);
	}

	/* What is not mapped is not faulted in either. */
	arg = inspect(_metadata, dev, dev->area);
	EXPECT_EQ(arg.flags, 0);
	EXPECT_EQ(arg.pfn, 0);
	EXPECT_NE(arg.vm_flags, 0);
	EXPECT_EQ(count_present(_metadata, dev, dev->area, 32), 0);
	EXPECT_EQ(get_stats(_metadata, dev).faults, 0);
	ASSERT_EQ(munmap(other, 4 * psize()), 0);
}

TEST_F(device, bad_pointers)
{
	static const unsigned long cmds[] = {
		PFNMAP_TEST_CREATE, PFNMAP_TEST_SET_METHOD,
		PFNMAP_TEST_MIGRATE, PFNMAP_TEST_INSPECT,
		PFNMAP_TEST_GET_STATS,
	};
	struct dev *dev = &self->dev;
	unsigned int i;
	char *edge;

	create(_metadata, dev, 8, PFNMAP_TEST_RAM, 0);
	map(_metadata, dev, dev->area, 0, 8);

	/* The struct starts in a page, and ends in the reserved range. */
	edge = dev->area + 8 * psize() - 4;
	for (i = 0; i < ARRAY_SIZE(cmds); i++) {
		EXPECT_REFUSED(dev->fd, cmds[i], NULL, EFAULT);
		EXPECT_REFUSED(dev->fd, cmds[i], (void *)-4096UL, EFAULT);
		EXPECT_REFUSED(dev->fd, cmds[i],
			       dev->area + 64 * psize(), EFAULT);
	}
	ASSERT_TRUE(headers_ok(dev->area, 0, 8, 0));
	for (i = 0; i < ARRAY_SIZE(cmds); i++)
		EXPECT_REFUSED(dev->fd, cmds[i], edge, EFAULT);
	ASSERT_TRUE(headers_ok(dev->area, 0, 8, 0));

	/* A struct in a mapping of the very same object is no problem. */
	EXPECT_EQ(ioctl(dev->fd, PFNMAP_TEST_GET_STATS, dev->area + 64), 0);
	EXPECT_EQ(munmap(dev->area, 8 * psize()), 0);
	map(_metadata, dev, dev->area, 0, 8);
	EXPECT_EQ(ioctl(dev->fd, PFNMAP_TEST_GET_STATS, dev->area + 64), 0);
	unmap(_metadata, dev->area, 8);
}

TEST_F(device, unknown_ioctls)
{
	struct pfnmap_test_stats arg = {};
	unsigned int nr;

	for (nr = 0; nr < 256; nr++) {
		EXPECT_REFUSED(self->fd, _IO('Q', nr), &arg, ENOTTY);
		if ((nr < 1 || nr > 6) && nr != _IOC_NR(PFNMAP_TEST_WRPROTECT))
			EXPECT_REFUSED(self->fd, _IO('P', nr), &arg, ENOTTY);
	}
	/* The right number with another direction or size */
	EXPECT_REFUSED(self->fd, _IO('P', 1), &arg, ENOTTY);
	EXPECT_REFUSED(self->fd, _IOR('P', 1, struct pfnmap_test_create), &arg,
		       ENOTTY);
	EXPECT_REFUSED(self->fd, _IOW('P', 1, uint64_t), &arg, ENOTTY);
	EXPECT_REFUSED(self->fd, _IOW('P', 4, struct pfnmap_test_stats), &arg,
		       ENOTTY);
	EXPECT_REFUSED(self->fd, _IOR('P', 4, uint64_t), &arg, ENOTTY);
	EXPECT_REFUSED(self->fd, 0, &arg, ENOTTY);
	EXPECT_REFUSED(self->fd, ~0U, &arg, ENOTTY);
}

TEST_F(device, mmap_refused)
{
	struct dev *dev = &self->dev;
	const size_t page = psize();
	const struct {
		unsigned long nr;
		uint64_t first;
		int err;
	} cases[] = {
		{ 33, 0, EINVAL }, { 1, 32, EINVAL }, { 2, 31, EINVAL },
		{ 32, 1, EINVAL }, { 1, 1ULL << 32, EINVAL },
		{ 1, 1ULL << 40, EINVAL },
	};
	struct pfnmap_test_stats before;
	unsigned int i;
	char *addr;

	create(_metadata, dev, 32, PFNMAP_TEST_RAM, 0);
	before = get_stats(_metadata, dev);
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		EXPECT_EQ(mmap(NULL, cases[i].nr * page, PROT_READ, MAP_SHARED,
			       dev->fd, cases[i].first * page), MAP_FAILED);
		EXPECT_EQ(errno, cases[i].err);
	}
	/* Offset and size wrap around. */
	EXPECT_EQ(mmap(NULL, 2 * page, PROT_READ, MAP_SHARED, dev->fd,
		       (off_t)(~0ULL << pshift())), MAP_FAILED);
	EXPECT_TRUE(same_stats(_metadata, dev->fd, &before));

	/* All of it, and the last page of it. */
	addr = mmap(NULL, 32 * page, PROT_READ, MAP_SHARED, dev->fd, 0);
	ASSERT_NE(addr, MAP_FAILED);
	ASSERT_TRUE(headers_ok(addr, 0, 32, 0));
	ASSERT_EQ(munmap(addr, 32 * page), 0);
	addr = mmap(NULL, page, PROT_READ, MAP_SHARED, dev->fd, 31 * page);
	ASSERT_NE(addr, MAP_FAILED);
	ASSERT_TRUE(headers_ok(addr, 31, 1, 0));
	ASSERT_EQ(munmap(addr, page), 0);

	/* remap_pfn_range() is not for VM_MIXEDMAP. */
	ASSERT_EQ(do_create(self->fd, 4, PFNMAP_TEST_RAM, PFNMAP_TEST_MIXEDMAP),
		  0);
	ASSERT_EQ(do_method(self->fd, PFNMAP_TEST_REMAP, 1, false, 0), 0);
	EXPECT_EQ(mmap(NULL, page, PROT_READ, MAP_SHARED, self->fd, 0),
		  MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
}

/* The mapping keeps the object, the file descriptor may go. */
TEST_F(device, close_mapped)
{
	struct pfnmap_test_stats stats;
	struct dev *dev = &self->dev;

	create(_metadata, dev, 32, PFNMAP_TEST_VRAM, PFNMAP_TEST_ALTERNATE);
	set_method(_metadata, dev, PFNMAP_TEST_ITER, 16, false);
	map(_metadata, dev, dev->area, 0, 32);
	ASSERT_EQ(close(dev->fd), 0);

	ASSERT_TRUE(headers_ok(dev->area, 0, 32, 0));
	ASSERT_EQ(ioctl(dev->observer, PFNMAP_TEST_GET_STATS, &stats), 0);
	ASSERT_EQ(stats.vram_free, dev->start.vram_free - 16);
	ASSERT_EQ(stats.ram_pages, dev->start.ram_pages + 16);

	unmap(_metadata, dev->area, 32);
	ASSERT_EQ(ioctl(dev->observer, PFNMAP_TEST_GET_STATS, &stats), 0);
	ASSERT_EQ(stats.vram_free, dev->start.vram_free);
	ASSERT_EQ(stats.ram_pages, dev->start.ram_pages);
	dev->fd = open(DEVICE, O_RDWR);
	ASSERT_GE(dev->fd, 0);
}

/* Objects don't get into each other's way. */
TEST_F(device, two_objects)
{
	struct dev *dev = &self->dev;
	unsigned long i;
	char *other;

	create(_metadata, dev, 32, PFNMAP_TEST_RAM, 0);
	map(_metadata, dev, dev->area, 0, 32);
	ASSERT_EQ(do_create(self->fd, 32, PFNMAP_TEST_RAM, 0), 0);
	other = mmap(dev->area + 32 * psize(), 32 * psize(),
		     PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, self->fd,
		     0);
	ASSERT_EQ(other, dev->area + 32 * psize());
	for (i = 0; i < 32; i++) {
		store(dev->area + i * psize() + 64, i + 1);
		store(other + i * psize() + 64, i + 1000);
	}

	/* Neither the PTEs nor the pages of the one follow the other's. */
	migrate(_metadata, self->fd, 0, 32, PFNMAP_TEST_VRAM);
	ASSERT_EQ(count_present(_metadata, dev, dev->area, 32), 32);
	ASSERT_TRUE(headers_ok(dev->area, 0, 32, 0));
	ASSERT_TRUE(headers_ok(other, 0, 32, 1));
	for (i = 0; i < 32; i++) {
		ASSERT_EQ(load(dev->area + i * psize() + 64), i + 1);
		ASSERT_EQ(load(other + i * psize() + 64), i + 1000);
	}
	unmap(_metadata, other, 32);
}

TEST_F(device, no_vram_left)
{
	struct dev *dev = &self->dev;
	struct pfnmap_test_create arg = { .place = PFNMAP_TEST_VRAM };
	struct pfnmap_test_migrate move = {
		.nr = 32,
		.place = PFNMAP_TEST_VRAM,
	};
	struct pfnmap_test_stats stats;
	unsigned long i;

	if (!dev->start.vram_pages)
		SKIP_TEST("the driver has no vram");
	ASSERT_GT(dev->start.vram_free, 64);

	/* Neither all and one more, nor every other page of more than half */
	arg.nr_pages = dev->start.vram_free + 1;
	EXPECT_REFUSED(self->fd, PFNMAP_TEST_CREATE, &arg, ENOSPC);
	arg.nr_pages = dev->start.vram_pages / 2 + 1;
	arg.flags = PFNMAP_TEST_SCATTER;
	EXPECT_REFUSED(self->fd, PFNMAP_TEST_CREATE, &arg, ENOSPC);
	/* With pages of ram that have to go back */
	arg.nr_pages = 2 * dev->start.vram_free + 2;
	if (arg.nr_pages <= PFNMAP_TEST_MAX_PAGES &&
	    arg.nr_pages * psize() <= 256UL << 20) {
		arg.place = PFNMAP_TEST_RAM;
		arg.flags = PFNMAP_TEST_ALTERNATE;
		EXPECT_REFUSED(self->fd, PFNMAP_TEST_CREATE, &arg, ENOSPC);
	}

	/* Leave 31 pages. */
	ASSERT_EQ(do_create(self->fd, dev->start.vram_free - 31,
			    PFNMAP_TEST_VRAM, 0), 0);
	create(_metadata, dev, 64, PFNMAP_TEST_RAM, 0);
	set_method(_metadata, dev, PFNMAP_TEST_BATCH, 16, false);
	map(_metadata, dev, dev->area, 0, 64);
	for (i = 0; i < 64; i++)
		store(dev->area + i * psize() + 64, i);
	EXPECT_REFUSED(dev->fd, PFNMAP_TEST_MIGRATE, &move, ENOSPC);
	EXPECT_EQ(count_present(_metadata, dev, dev->area, 64), 64);
	EXPECT_TRUE(headers_ok(dev->area, 0, 64, 0));

	move.nr = 31;
	ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_MIGRATE, &move), 0);
	stats = get_stats(_metadata, dev);
	ASSERT_EQ(stats.vram_free, 0);
	ASSERT_EQ(stats.ram_pages, dev->start.ram_pages + 33);
	for (i = 0; i < 64; i++) {
		ASSERT_TRUE(header_ok(dev->area + i * psize(), i, i < 31));
		ASSERT_EQ(load(dev->area + i * psize() + 64), i);
	}

	/* What one object gives back, another one can have. */
	ASSERT_EQ(close(self->fd), 0);
	self->fd = open(DEVICE, O_RDWR);
	ASSERT_GE(self->fd, 0);
	migrate(_metadata, dev->fd, 0, 64, PFNMAP_TEST_VRAM);
	ASSERT_EQ(get_stats(_metadata, dev).vram_free,
		  dev->start.vram_free - 64);
}

struct cap_data {
	struct {
		uint32_t version;
		int pid;
	} header;
	struct {
		uint32_t effective;
		uint32_t permitted;
		uint32_t inheritable;
	} data[2];
};

TEST_F(device, unprivileged)
{
	pid_t child;

	/* Not root at all */
	child = fork();
	ASSERT_GE(child, 0);
	if (!child) {
		if (setresuid(65534, 65534, 65534))
			_exit(1);
		if (open(DEVICE, O_RDWR) >= 0)
			_exit(2);
		_exit(errno == EACCES || errno == EPERM ? 0 : 3);
	}
	EXPECT_EQ(wait_child(child), 0);

	/* Root without CAP_SYS_ADMIN */
	child = fork();
	ASSERT_GE(child, 0);
	if (!child) {
		struct cap_data caps = { .header.version = 0x20080522 };

		if (syscall(SYS_capget, &caps.header, caps.data))
			_exit(1);
		caps.data[0].effective &= ~(1U << 21);
		if (syscall(SYS_capset, &caps.header, caps.data))
			_exit(2);
		if (open(DEVICE, O_RDWR) >= 0)
			_exit(3);
		_exit(errno == EPERM ? 0 : 4);
	}
	EXPECT_EQ(wait_child(child), 0);
}

/* The module can't go while it is in use. */
TEST_F(device, module_busy)
{
	struct dev *dev = &self->dev;
	int err = EWOULDBLOCK;

	if (access("/sys/module/pfnmap_test/refcnt", F_OK))
		err = ENOENT;		/* not a module */

	create(_metadata, dev, 8, PFNMAP_TEST_RAM, 0);
	EXPECT_EQ(syscall(SYS_delete_module, "pfnmap_test", O_NONBLOCK), -1);
	EXPECT_EQ(errno, err);
	map(_metadata, dev, dev->area, 0, 8);
	ASSERT_TRUE(headers_ok(dev->area, 0, 8, 0));
	EXPECT_EQ(syscall(SYS_delete_module, "pfnmap_test", O_NONBLOCK), -1);
	EXPECT_EQ(errno, err);
}

/*
 * VM_MIXEDMAP: whether each pfn may be mapped is found out before the first
 * one is. None of the others is there yet, unlike in insert.migrate.
 */
FIXTURE(valid_pfn)
{
	struct dev dev;
};

FIXTURE_VARIANT(valid_pfn)
{
	unsigned int method;
	bool unclamped;
};

FIXTURE_VARIANT_ADD(valid_pfn, single)
{
	.method = PFNMAP_TEST_SINGLE,
};

FIXTURE_VARIANT_ADD(valid_pfn, loop)
{
	.method = PFNMAP_TEST_LOOP,
};

FIXTURE_VARIANT_ADD(valid_pfn, batch)
{
	.method = PFNMAP_TEST_BATCH,
};

FIXTURE_VARIANT_ADD(valid_pfn, iter)
{
	.method = PFNMAP_TEST_ITER,
};

FIXTURE_VARIANT_ADD(valid_pfn, iter_unclamped)
{
	.method = PFNMAP_TEST_ITER,
	.unclamped = true,
};

FIXTURE_SETUP(valid_pfn)
{
	setup_dev(_metadata, &self->dev);
	create(_metadata, &self->dev, 64, PFNMAP_TEST_VRAM,
	       PFNMAP_TEST_MIXEDMAP);
}

FIXTURE_TEARDOWN(valid_pfn)
{
	teardown_dev(_metadata, &self->dev);
}

TEST_F(valid_pfn, one_of_many)
{
	/* In the next page table, for one that is not clamped. */
	static const unsigned long valid[] = { 0, 20, 63 };
	const bool iter = variant->method == PFNMAP_TEST_ITER;
	struct dev *dev = &self->dev;
	char *addr = dev->area + span_size() - 32 * psize();
	unsigned long i, other;

	if (!variant->unclamped)
		addr = dev->area;
	for (i = 0; i < ARRAY_SIZE(valid); i++) {
		migrate(_metadata, dev->fd, valid[i], 1, PFNMAP_TEST_RAM);
		ASSERT_EQ(do_method(dev->fd, variant->method,
				    variant->unclamped ? wide_window() : 64,
				    variant->unclamped, PFNMAP_TEST_UNCHECKED),
			  0);
		map(_metadata, dev, addr, 0, 64);
		ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_RESET_STATS), 0);

		ASSERT_EQ(touch(addr + valid[i] * psize()), SIGBUS);
		ASSERT_EQ(try_store(addr + valid[i] * psize(), 1), SIGBUS);
		ASSERT_EQ(count_present(_metadata, dev, addr, 64), 0);

		/* An iterator is asked for all pages, the others for less. */
		other = valid[i] ? valid[i] - 1 : 40;
		ASSERT_EQ(touch(addr + other * psize()), iter ? SIGBUS : 0);
		ASSERT_EQ(is_present(_metadata, dev, addr + other * psize()),
			  !iter);
		ASSERT_FALSE(is_present(_metadata, dev,
					addr + valid[i] * psize()));
		if (iter)
			ASSERT_EQ(count_present(_metadata, dev, addr, 64), 0);
		ASSERT_EQ(get_stats(_metadata, dev).sigbus, iter ? 3 : 2);

		migrate(_metadata, dev->fd, valid[i], 1, PFNMAP_TEST_VRAM);
		ASSERT_TRUE(header_ok(addr + valid[i] * psize(), valid[i], 2));
		ASSERT_TRUE(header_ok(addr + other * psize(), other,
				      i && other == valid[i - 1] ? 2 : 0));
		unmap(_metadata, addr, 64);
	}
}

/*
 * A window of three page tables, some of which are there before, with a few
 * PTEs. These stay, the rest comes with one fault.
 */
FIXTURE(tables)
{
	struct dev dev;
	unsigned long *pfns;
};

FIXTURE_VARIANT(tables)
{
	unsigned int method;
};

FIXTURE_VARIANT_ADD(tables, loop)
{
	.method = PFNMAP_TEST_LOOP,
};

FIXTURE_VARIANT_ADD(tables, batch)
{
	.method = PFNMAP_TEST_BATCH,
};

FIXTURE_VARIANT_ADD(tables, iter)
{
	.method = PFNMAP_TEST_ITER,
};

FIXTURE_SETUP(tables)
{
	setup_dev(_metadata, &self->dev);
	create(_metadata, &self->dev, 2 * PART_PAGES + 200,
	       PFNMAP_TEST_VRAM, 0);
	self->pfns = get_pfns(_metadata, &self->dev);
}

FIXTURE_TEARDOWN(tables)
{
	free(self->pfns);
	teardown_dev(_metadata, &self->dev);
}

TEST_F(tables, partly_filled)
{
	struct dev *dev = &self->dev;
	const unsigned long part = PART_PAGES;
	struct mapping mapping = {
		before_edge(dev, part - 100), 0, dev->nr
	};
	/* one in each of three page tables, or more, or on both sides of an edge */
	const unsigned long index[] = { 7, part + 30, 2 * part - 100 + 3 };
	struct pfnmap_test_inspect before[2], after;
	unsigned int there, fault, i;
	char *page[2];

	for (there = 0; there < ARRAY_SIZE(index); there++) {
		for (fault = 0; fault < ARRAY_SIZE(index); fault++) {
			set_method(_metadata, dev, PFNMAP_TEST_SINGLE, 1, false);
			map(_metadata, dev, mapping.addr, 0, mapping.nr);
			for (i = 0; i < 2; i++) {
				page[i] = page_at(&mapping,
						  index[there] + i * 40);
				store(page[i] + 64, there);
				before[i] = inspect(_metadata, dev, page[i]);
			}

			set_method(_metadata, dev, variant->method,
				   4 * span_pages(), true);
			ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_RESET_STATS), 0);
			FORCE_READ(*page_at(&mapping, index[fault] + 1));
			ASSERT_EQ(get_stats(_metadata, dev).faults, 1);
			ASSERT_EQ(get_stats(_metadata, dev).offered, mapping.nr);
			check_mapped(_metadata, dev, &mapping, self->pfns, 0,
				     mapping.nr);
			for (i = 0; i < 2; i++) {
				after = inspect(_metadata, dev, page[i]);
				ASSERT_TRUE(same_pte(&before[i], &after));
			}
			ASSERT_TRUE(headers_ok(mapping.addr, 0, mapping.nr, 0));
			ASSERT_EQ(get_stats(_metadata, dev).faults, 1);
			unmap(_metadata, mapping.addr, mapping.nr);
		}
	}
}

/* Nothing populates such mappings ahead of an access. */
TEST_F(rules, populate)
{
	const struct mapping *mapping = &self->mapping;
	const size_t size = mapping->nr * psize();
	struct dev *dev = &self->dev;
	const unsigned long there =
		variant->method == PFNMAP_TEST_REMAP ? mapping->nr : 0;

	ASSERT_EQ(mlock(mapping->addr, size), 0);
	ASSERT_EQ(count_present(_metadata, dev, mapping->addr, mapping->nr),
		  there);
	ASSERT_EQ(get_stats(_metadata, dev).faults, 0);
	ASSERT_TRUE(headers_ok(mapping->addr, 0, mapping->nr, 0));
	ASSERT_EQ(munlock(mapping->addr, size), 0);
	unmap(_metadata, mapping->addr, mapping->nr);

	ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_RESET_STATS), 0);
	ASSERT_EQ(mmap(mapping->addr, size, PROT_READ | PROT_WRITE, MAP_SHARED |
		       MAP_FIXED | MAP_POPULATE, dev->fd, 0), mapping->addr);
	ASSERT_EQ(count_present(_metadata, dev, mapping->addr, mapping->nr),
		  there);
	ASSERT_EQ(get_stats(_metadata, dev).faults, 0);
	ASSERT_TRUE(headers_ok(mapping->addr, 0, mapping->nr, 0));
}

/*
 * No PTE marker can get there: guard regions (see madvise) and userfaultfd are
 * refused, even with UFFD_FEATURE_WP_ASYNC, which takes most other mappings.
 */
TEST_F(rules, userfaultfd)
{
	static const uint64_t modes[] = {
		UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP,
		UFFDIO_REGISTER_MODE_MINOR,
	};
	static const uint64_t features[] = { 0, UFFD_FEATURE_WP_ASYNC };
	const struct mapping *mapping = &self->mapping;
	unsigned int i, j;
	int uffd;

	for (i = 0; i < ARRAY_SIZE(features); i++) {
		struct uffdio_api api = {
			.api = UFFD_API,
			.features = features[i],
		};

		uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
		ASSERT_GE(uffd, 0);
		if (ioctl(uffd, UFFDIO_API, &api)) {
			/* Not each architecture has that. */
			ASSERT_EQ(errno, EINVAL);
			ASSERT_NE(features[i], 0);
			close(uffd);
			continue;
		}
		for (j = 0; j < ARRAY_SIZE(modes); j++) {
			struct uffdio_register reg = {
				.range.start = (uintptr_t)mapping->addr,
				.range.len = mapping->nr * psize(),
				.mode = modes[j],
			};

			EXPECT_EQ(ioctl(uffd, UFFDIO_REGISTER, &reg), -1);
			EXPECT_EQ(errno, EINVAL);
		}
		close(uffd);
	}
	ASSERT_TRUE(headers_ok(mapping->addr, 0, mapping->nr, 0));
}

/*
 * Migration by a thread of its own, so that it is concurrent not only to the
 * faults, but also to what the main thread does to the mapping.
 */
static void *migrator(void *arg)
{
	struct racer *racer = arg;
	struct race *race = racer->race;

	while (!atomic_load(&race->stop)) {
		unsigned long first = rand_r(&racer->state) % race->nr;
		unsigned long nr = race->nr - first;

		nr = 1 + rand_r(&racer->state) % nr;
		if (do_migrate(race->fd, first, nr, rand_r(&racer->state) % 2 ?
			       PFNMAP_TEST_VRAM : PFNMAP_TEST_RAM))
			race_error(race, "migrate: errno", first, errno, 0);
		racer->stores++;
		usleep(100);
	}
	return NULL;
}

/* New mappings find the pages where they are, remap_pfn_range()'s included. */
TEST_F(race, mmap_migrate)
{
	struct contest *contest = &self->contest;
	struct dev *dev = &contest->dev;
	struct racer mover = {};
	char *addr = contest->race.at[0].addr;
	unsigned int state = seed;
	unsigned long first, nr, count = 0;

	start_race(_metadata, contest, 800);
	start_racer(_metadata, &contest->race, &mover,
		    NR_WRITERS + NR_READERS, migrator);
	while (racing(contest, count)) {
		first = rand_r(&state) % RACE_NR;
		nr = 1 + rand_r(&state) % (RACE_NR - first);
		map(_metadata, dev, addr + first * psize(), first, nr);
		if (++count % 16 == 0)	/* not to have a VMA for each page */
			map(_metadata, dev, addr, 0, RACE_NR);
	}
	atomic_store(&contest->race.stop, true);
	ASSERT_EQ(pthread_join(mover.thread, NULL), 0);
	finish_race(_metadata, contest);
	ASSERT_GE(count, MIN_ROUNDS);
	ASSERT_GT(get_stats(_metadata, dev).migrated, 0);
}

/* PTEs must not get past unmap_mapping_range() by moving. */
TEST_F(race, mremap_migrate)
{
	struct contest *contest = &self->contest;
	struct dev *dev = &contest->dev;
	struct race *race = &contest->race;
	const size_t size = RACE_NR * psize();
	struct racer mover = {};
	unsigned long count = 0;

	race->load_signal = SIGSEGV;
	race->store_signal = SIGSEGV;
	race->nr_at = 2;
	race->at[1].addr = dev->area + 3 * span_size() - 21 * psize();
	start_race(_metadata, contest, 800);
	start_racer(_metadata, race, &mover, NR_WRITERS + NR_READERS, migrator);
	while (racing(contest, count)) {
		char *from = race->at[count % 2].addr;
		char *to = race->at[!(count % 2)].addr;

		ASSERT_EQ(mremap(from, size, size, MREMAP_MAYMOVE |
				 MREMAP_FIXED, to), to);
		unmap(_metadata, from, RACE_NR);
		count++;
		usleep(200);
	}
	if (count % 2)
		ASSERT_EQ(mremap(race->at[1].addr, size, size, MREMAP_MAYMOVE |
				 MREMAP_FIXED, race->at[0].addr),
			  race->at[0].addr);
	atomic_store(&race->stop, true);
	ASSERT_EQ(pthread_join(mover.thread, NULL), 0);
	finish_race(_metadata, contest);
	ASSERT_GE(count, MIN_ROUNDS);
	ASSERT_GT(get_stats(_metadata, dev).migrated, 0);
}

int main(int argc, char **argv)
{
	need_device();

	seed = getenv("SEED") ? strtoul(getenv("SEED"), NULL, 0) : time(NULL);
	ksft_print_msg("seed %u\n", seed);

	return test_harness_run(argc, argv);
}
