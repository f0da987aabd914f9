// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pfns that are inserted from a fault handler: which pages a fault maps, to
 * which pfns and with which bits, and that nobody counts them.  What walks page
 * tables does with them is in pfnmap_walk.c.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "pfnmap_insert.h"

/* PAT, PCD and PWT */
#if defined(__x86_64__) || defined(__i386__)
#define CACHE_BITS	0x98
#else
#define CACHE_BITS	0
#endif

FIXTURE_WITH_OBJECT(insert)
FIXTURE_VARIANT_ADD(insert, single_ram) { KIND(SINGLE, RAM, 0) };
FIXTURE_VARIANT_ADD(insert, single_private) { KIND(SINGLE, RAM, PRIVATE) };
FIXTURE_VARIANT_ADD(insert, single_notify) { KIND(SINGLE, RAM, NOTIFY) };
FIXTURE_VARIANT_ADD(insert, loop_scatter) { KIND(LOOP, VRAM, SCATTER) };
FIXTURE_VARIANT_ADD(insert, loop_mixedmap) { KIND(LOOP, VRAM, MIXEDMAP) };
FIXTURE_VARIANT_ADD(insert, batch_ram) { KIND(BATCH, RAM, 0) };
FIXTURE_VARIANT_ADD(insert, batch_notify) { KIND(BATCH, RAM, NOTIFY) };
FIXTURE_VARIANT_ADD(insert, batch_mixedmap) { KIND(BATCH, VRAM, MIXEDMAP | PRIVATE) };
FIXTURE_VARIANT_ADD(insert, iter_alternate) { KIND(ITER, VRAM, ALTERNATE) };
FIXTURE_VARIANT_ADD(insert, iter_scatter) { KIND(ITER, RAM, SCATTER | PRIVATE) };
FIXTURE_VARIANT_ADD(insert, iter_notify) { KIND(ITER, VRAM, NOTIFY) };

TEST_F(insert, window)
{
	check_faults();
}

TEST_F(insert, counts)
{
	check_rss();
}

/* Each page has its own cache mode, however many are mapped with it. */
FIXTURE(cachemode) {};
FIXTURE_VARIANT(cachemode) { struct kind kind; };
FIXTURE_SETUP(cachemode) { setup_observer(_metadata); }
FIXTURE_TEARDOWN(cachemode) {}
FIXTURE_VARIANT_ADD(cachemode, loop) { KIND(LOOP, VRAM, 0) };
FIXTURE_VARIANT_ADD(cachemode, batch) { KIND(BATCH, VRAM, 0) };
FIXTURE_VARIANT_ADD(cachemode, iter) { KIND(ITER, VRAM, 0) };
FIXTURE_VARIANT_ADD(cachemode, remap) { KIND(REMAP, VRAM, 0) };
FIXTURE_VARIANT_ADD(cachemode, batch_mixedmap) { KIND(BATCH, VRAM, MIXEDMAP) };

TEST_F(cachemode, split)
{
	const unsigned long split = o.start.memtype_split, first = split - 300;
	uint64_t bits, last = 0;
	char *addr;

	new_object(O_RDWR, split + 300, variant->kind.place, variant->kind.flags);
	ASSERT_EQ(DO_METHOD(variant->kind.method), 0);
	addr = mmap(NULL, 600 * psize(), RW, MAP_SHARED, o.fd, first * psize());
	ASSERT_TRUE(addr != MAP_FAILED);
	for (unsigned long i = first; i < first + 600; i++, addr += psize()) {
		ASSERT_EQ(load(addr + 8), i);
		bits = inspect(addr).pgprot & CACHE_BITS;
		/* write-combining, then uncached */
		ASSERT_EQ(i > first && bits != last, CACHE_BITS && i == split);
		last = bits;
	}
}

TEST_HARNESS_MAIN
