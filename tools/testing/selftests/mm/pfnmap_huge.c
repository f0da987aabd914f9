// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pfns that are mapped by a PMD: one entry has one cache mode.
 *
 * The vram of mm/pfnmap_test_*.c is write-combining up to memtype_split, which is
 * not aligned, and uncached from there on.
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "kselftest_harness.h"
#include "pfnmap_util.h"

#define LEAF	PFNMAP_TEST_LEAF

/* Those that a PMD has in the same place as a PTE: PWT, PCD */
#ifdef __x86_64__
#define CACHE_BITS	0x18
#else
#define CACHE_BITS	0
#endif

FIXTURE(memtype)
{
	struct pfnmap_test_stats stats;
	size_t size;
	char *huge, *single;
	int fd;
};

static int set_method(int fd, unsigned int method)
{
	struct pfnmap_test_method_arg arg = { .method = method, .window = 1 };

	return ioctl(fd, PFNMAP_TEST_SET_METHOD, &arg);
}

FIXTURE_SETUP(memtype)
{
	const size_t pmd = read_pmd_pagesize();
	char *area;

	ASSERT_EQ(0, install_handler());
	self->fd = open(DEVICE, O_RDWR);
	ASSERT_GE(self->fd, 0);
	self->stats = get_stats(_metadata, self->fd);
	if (!pmd || !self->stats.vram_pages)
		SKIP(return, "no PMDs, or the driver has no vram");

	self->size = self->stats.vram_pages * psize();
	ASSERT_EQ(0, do_create(self->fd, self->stats.vram_pages,
			       PFNMAP_TEST_VRAM, 0));
	area = mmap(NULL, 2 * self->size + pmd, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, area);
	self->huge = (char *)(((uintptr_t)area + pmd - 1) & ~(pmd - 1));
	self->single = self->huge + self->size;
	ASSERT_EQ(0, set_method(self->fd, PFNMAP_TEST_PLAIN));
	ASSERT_EQ(self->huge, mmap(self->huge, self->size,
				   PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_FIXED, self->fd, 0));
	ASSERT_EQ(0, set_method(self->fd, PFNMAP_TEST_SINGLE));
	ASSERT_EQ(self->single, mmap(self->single, self->size,
				     PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_FIXED, self->fd, 0));
}

FIXTURE_TEARDOWN(memtype)
{
	close(self->fd);
}

/* Fault page @index of @map in by @method, and look at its entry. */
static struct pfnmap_test_inspect fault(struct __test_metadata *_metadata,
					int fd, char *map, unsigned long index,
					unsigned int method)
{
	struct pfnmap_test_inspect arg = {
		.addr = (uintptr_t)map + index * psize(),
	};

	ASSERT_EQ(0, set_method(fd, method));
	ASSERT_TRUE(header_ok(map + index * psize(), index, 0));
	ASSERT_EQ(0, ioctl(fd, PFNMAP_TEST_INSPECT, &arg));
	ASSERT_TRUE(arg.flags & PFNMAP_TEST_PTE_PRESENT);
	return arg;
}

TEST_F(memtype, split)
{
	const unsigned long nr = self->stats.ptrs_per_pte;
	const unsigned long split = self->stats.memtype_split;
	const unsigned long pages[] = {
		0, split - nr, split - 1, split, split + nr,
		self->stats.vram_pages - 1,
	};
	struct pfnmap_test_inspect pte[2], pmd;
	unsigned int i;

	ASSERT_NE(0, split % nr);
	for (i = 0; i < 2; i++)
		pte[i] = fault(_metadata, self->fd, self->single, split - 1 + i,
			       PFNMAP_TEST_SINGLE);

	pmd = fault(_metadata, self->fd, self->huge, 0, PFNMAP_TEST_PLAIN);
	if (!(pmd.flags & LEAF))
		SKIP(return, "no pfns in PMDs here");

	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		const bool around = pages[i] / nr == split / nr;
		const bool leaf = !around || pte[0].pgprot == pte[1].pgprot;
		struct pfnmap_test_inspect one;

		one = fault(_metadata, self->fd, self->single, pages[i],
			    PFNMAP_TEST_SINGLE);
		pmd = fault(_metadata, self->fd, self->huge, pages[i],
			    PFNMAP_TEST_PLAIN);
		ASSERT_EQ(leaf, !!(pmd.flags & LEAF)) {
			TH_LOG("page %lu, split at %lu", pages[i], split);
		}
		ASSERT_EQ(one.pfn, pmd.pfn);
		ASSERT_EQ(one.pgprot & CACHE_BITS, pmd.pgprot & CACHE_BITS);
	}
}

int main(int argc, char **argv)
{
	need_device();
	return test_harness_run(argc, argv);
}
