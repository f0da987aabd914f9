// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pfns that are mapped by a PMD: one entry has one cache mode.
 *
 * The vram of mm/pfnmap_test_*.c is write-combining up to memtype_split, which is
 * not aligned, and uncached from there on.
 */
#define _GNU_SOURCE
#include "pfnmap_insert.h"

#define LEAF	PFNMAP_TEST_LEAF

/* Those that a PMD has in the same place as a PTE: PWT, PCD */
#ifdef __x86_64__
#define CACHE_BITS	0x18
#else
#define CACHE_BITS	0
#endif

/* Fault page @index of @map in by @method, and look at its entry. */
static struct pfnmap_test_inspect fault(char *map, unsigned long index, unsigned int method)
{
	char *addr = map + index * psize();

	ASSERT_EQ(DO_METHOD(method, .window = 1), 0);
	ASSERT_EQ(load(addr + 8), index);
	ASSERT_TRUE(inspect(addr).flags & PRESENT);
	return inspect(addr);
}

FIXTURE(memtype) {};
FIXTURE_SETUP(memtype) { setup_observer(_metadata); }
FIXTURE_TEARDOWN(memtype) {}

TEST_F(memtype, split)
{
	const unsigned long nr = o.start.ptrs_per_pte, vram = o.start.vram_pages;
	const unsigned long split = o.start.memtype_split;
	const unsigned long pages[] = { 0, split - nr, split - 1, split, split + nr, vram - 1 };
	const size_t pmd_size = read_pmd_pagesize();
	struct pfnmap_test_inspect pte[2], one, pmd;
	char *huge, *single;

	if (!pmd_size || !vram)
		SKIP(return, "no PMDs, or the driver has no vram");
	new_object(O_RDWR, vram, PFNMAP_TEST_VRAM, 0);
	huge = mmap(NULL, 2 * vram * psize() + pmd_size, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_TRUE(huge != MAP_FAILED);
	huge += pmd_size - (uintptr_t)huge % pmd_size;
	single = huge + vram * psize();
	ASSERT_EQ(DO_METHOD(PFNMAP_TEST_PLAIN), 0);
	ASSERT_TRUE(map_at(huge, vram, RW, MAP_SHARED));
	ASSERT_EQ(DO_METHOD(PFNMAP_TEST_SINGLE), 0);
	ASSERT_TRUE(map_at(single, vram, RW, MAP_SHARED));

	ASSERT_NE(split % nr, 0);
	for (unsigned int i = 0; i < 2; i++)
		pte[i] = fault(single, split - 1 + i, PFNMAP_TEST_SINGLE);
	pmd = fault(huge, 0, PFNMAP_TEST_PLAIN);
	if (!(pmd.flags & LEAF))
		SKIP(return, "no pfns in PMDs here");

	for (unsigned int i = 0; i < ARRAY_SIZE(pages); i++) {
		const bool around = pages[i] / nr == split / nr;

		one = fault(single, pages[i], PFNMAP_TEST_SINGLE);
		pmd = fault(huge, pages[i], PFNMAP_TEST_PLAIN);
		ASSERT_EQ(!!(pmd.flags & LEAF), !around || pte[0].pgprot == pte[1].pgprot) {
			TH_LOG("page %lu, split at %lu", pages[i], split);
		}
		ASSERT_EQ(one.pfn, pmd.pfn);
		ASSERT_EQ(one.pgprot & CACHE_BITS, pmd.pgprot & CACHE_BITS);
	}
}

TEST_HARNESS_MAIN
