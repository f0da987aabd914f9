// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pfns that are inserted from a fault handler: which pages a fault maps, to
 * which pfns and with which bits, and that nobody counts them.  What walks page
 * tables does with them is in pfnmap_walk.c.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <sys/uio.h>

#include "pfnmap_insert.h"

#define NR	700UL			/* three page tables of 512 */
#define EDGE	94L			/* the first page behind o.edge */

/* PAT, PCD and PWT */
#if defined(__x86_64__) || defined(__i386__)
#define CACHE_BITS	0x98
#else
#define CACHE_BITS	0
#endif

/* A VMA with @nr pages of the object */
struct vma {
	char *addr;
	unsigned long first, nr;
};

static char *page_at(const struct vma *vma, unsigned long index)
{
	return vma->addr + (index - vma->first) * psize();
}

static uint64_t pfn_of(unsigned long index)
{
	struct pfnmap_test_inspect arg = { .index = index };

	ASSERT_EQ(ioctl(o.fd, PFNMAP_TEST_PAGE_STATE, &arg), 0);
	return arg.pfn;
}

/* A fault on page @index maps those from *@lo up to, but not including, *@hi. */
static void expect(const struct vma *vma, unsigned long index,
		   unsigned long *lo, unsigned long *hi)
{
	unsigned long window = o.kind.window ?: 4 * span_pages(), before;

	if (o.kind.method == PFNMAP_TEST_SINGLE)
		window = 1;
	else if (o.kind.window)
		window = MIN(window, table_pages());
	before = (uintptr_t)page_at(vma, index) / psize() % window;
	*lo = index - MIN(before, index - vma->first);
	*hi = MIN(index - before + window, vma->first + vma->nr);
	if (o.kind.method != PFNMAP_TEST_BATCH)
		return;
	for (before = index; before > *lo && pfn_of(before - 1) + 1 == pfn_of(before); )
		before--;
	*lo = before;
	for (before = index + 1; before < *hi && pfn_of(before - 1) + 1 == pfn_of(before); )
		before++;
	*hi = before;
}

/*
 * Exactly the pages from @lo up to @hi are mapped: to the right pfn, special,
 * with the bits that @write has, without a reference or a map count.
 */
static void check(const struct vma *vma, unsigned long lo, unsigned long hi,
		  unsigned int write)
{
	const unsigned int special = o.start.pte_special ? PFNMAP_TEST_PTE_SPECIAL : 0;

	for (unsigned long i = vma->first; i < vma->first + vma->nr; i++) {
		struct pfnmap_test_inspect pte = inspect(page_at(vma, i));

		ASSERT_EQ(!!(pte.flags & PRESENT), i >= lo && i < hi) {
			TH_LOG("page %lu, expected [%lu, %lu)", i, lo, hi);
		}
		if (!(pte.flags & PRESENT))
			continue;
		ASSERT_EQ(pte.pfn, pfn_of(i));
		ASSERT_EQ(pte.flags & (PFNMAP_TEST_PTE_SPECIAL | WRITE), special | write);
		ASSERT_EQ(pte.mapcount, 0);
		ASSERT_EQ(pte.refcount, !!(pte.flags & VALID));
	}
}

FIXTURE_OF_KINDS(insert, NR)
KIND_ADD(insert, single_ram, SINGLE, 1, RAM, 0);
KIND_ADD(insert, single_mixedmap, SINGLE, 1, VRAM, MIXEDMAP);
KIND_ADD(insert, remap_alternate, REMAP, 1, RAM, ALTERNATE);
KIND_ADD(insert, loop_16_scatter, LOOP, 16, VRAM, SCATTER);
KIND_ADD(insert, loop_512_mixedmap, LOOP, 512, VRAM, MIXEDMAP);
KIND_ADD(insert, loop_wide_ram, LOOP, WIDE, RAM, 0);
KIND_ADD(insert, batch_1_vram, BATCH, 1, VRAM, 0);
KIND_ADD(insert, batch_64_alternate, BATCH, 64, RAM, ALTERNATE);
KIND_ADD(insert, batch_4096_ram, BATCH, 4096, RAM, 0);
KIND_ADD(insert, batch_wide_mixedmap, BATCH, WIDE, VRAM, MIXEDMAP);
KIND_ADD(insert, iter_16_mixedmap, ITER, 16, VRAM, MIXEDMAP);
KIND_ADD(insert, iter_512_scatter, ITER, 512, RAM, SCATTER);
KIND_ADD(insert, iter_wide_ram, ITER, WIDE, RAM, 0);
KIND_ADD(insert, iter_wide_alternate, ITER, WIDE, VRAM, ALTERNATE);

/* One fault maps the window, as far as the VMA, the object and the table go. */
TEST_F(insert, window)
{
	static const struct {
		long at;		/* pages from o.edge */
		unsigned long first, nr, fault;
	} rows[] = {
		/* all of the object, at the ends of page tables */
		{ -EDGE, 0, NR, 0 }, { -EDGE, 0, NR, EDGE - 1 }, { -EDGE, 0, NR, EDGE },
		{ -EDGE, 0, NR, EDGE + 300 }, { -EDGE, 0, NR, EDGE + 511 },
		{ -EDGE, 0, NR, EDGE + 512 }, { -EDGE, 0, NR, NR - 1 },
		/* smaller than a window: at its start, middle and end, at the edge */
		{ 0, 300, 9, 308 }, { 3, 100, 7, 103 }, { 9, 200, 7, 206 },
		{ 5, 77, 1, 77 }, { -20, 50, 20, 69 }, { -1, 9, 1, 9 },
		/* a window and parts of its neighbours */
		{ 11, 301, 90, 301 }, { 11, 301, 90, 390 }, { -35, 600, 60, 636 },
		/* aligned otherwise than the object, and at its ends */
		{ 32, 33, 200, 130 }, { 16, NR - 50, 50, NR - 1 },
		{ 48, NR - 20, 20, NR - 20 }, { 40, 0, 300, 2 },
	};
	const bool remap = o.kind.method == PFNMAP_TEST_REMAP;

	for (unsigned int i = 0; i < ARRAY_SIZE(rows); i++) {
		const struct vma vma = { o.edge + rows[i].at * (long)psize(),
					 rows[i].first, rows[i].nr };
		struct vma all = vma, vmas[2];
		unsigned long lo = vma.first, hi = lo + vma.nr;

		/* The neighbours are VMAs of their own, of the same object. */
		all.first -= MIN(3, vma.first);
		all.addr = page_at(&vma, all.first);
		all.nr = MIN(vma.first + vma.nr + 3, NR) - all.first;
		vmas[0] = (struct vma){ all.addr, all.first, vma.first - all.first };
		vmas[1] = (struct vma){ page_at(&vma, hi), hi, all.first + all.nr - hi };
		map(all.addr, all.first, all.nr);
		for (int j = 0; j < 2; j++)
			ASSERT_EQ(mprotect(vmas[j].addr, vmas[j].nr * psize(), PROT_READ), 0);

		if (!remap) {
			check(&all, 0, 0, 0);
			expect(&vma, rows[i].fault, &lo, &hi);
		}
		if (i % 2)
			store(page_at(&vma, rows[i].fault) + COUNTER, i);
		ASSERT_TRUE(header_ok(page_at(&vma, rows[i].fault), rows[i].fault, 0));
		check(&vma, lo, hi, WRITE);
		for (int j = 0; j < 2; j++)
			check(&vmas[j], 0, remap ? NR : 0, 0);
		ASSERT_TRUE(headers_ok(page_at(&vma, lo), lo, hi - lo, 0));
		ASSERT_EQ(stats().faults, !remap);
		ASSERT_EQ(stats().nopage, !remap);
		unmap(all.addr, all.nr);
	}
}

/* PTEs that are there stay as they are: dirty, which new ones are not. */
TEST_F(insert, partly_filled)
{
	const struct vma vma = { o.edge - 50 * psize(), 40, 100 };
	struct pfnmap_test_inspect before[140], pte;
	unsigned long lo, hi, i;

	for (unsigned int row = 0; row < 8; row++) {
		/* on either side of the edge */
		const unsigned long fault = row < 4 ? 87 : 93;

		set_method(PFNMAP_TEST_SINGLE, 1, 0);
		map(vma.addr, 40, 100);
		for (i = 40; i < 140; i++) {
			const bool fill[] = { i < 85, i > 95, i % 2, i % 3 };

			if (i != fault && fill[row % 4])
				store(page_at(&vma, i) + COUNTER, row * 1000 + i);
			before[i] = inspect(page_at(&vma, i));
		}
		set_method(o.kind.method, o.kind.window, 0);
		ASSERT_EQ(ioctl(o.fd, PFNMAP_TEST_RESET_STATS), 0);
		ASSERT_TRUE(header_ok(page_at(&vma, fault), fault, 0));
		ASSERT_EQ(stats().faults, 1);
		expect(&vma, fault, &lo, &hi);
		for (i = 40; i < 140; i++) {
			pte = inspect(page_at(&vma, i));
			if (!(before[i].flags & PRESENT)) {
				ASSERT_EQ(!!(pte.flags & PRESENT), i >= lo && i < hi);
				continue;
			}
			ASSERT_EQ(memcmp(&pte, &before[i], sizeof(pte)), 0) {
				TH_LOG("row %u, page %lu changed", row, i);
			}
			ASSERT_EQ(load(page_at(&vma, i) + COUNTER), row * 1000 + i);
		}
		unmap(vma.addr, 100);
	}
}

FIXTURE_OF_KINDS(uncounted, NR)
KIND_ADD(uncounted, ram, BATCH, 64, RAM, 0);
KIND_ADD(uncounted, vram, ITER, 64, VRAM, 0);
KIND_ADD(uncounted, mixedmap, ITER, 64, VRAM, MIXEDMAP);

/* No RSS, no map count, in smaps only the VMA; not even a fault for GUP */
TEST_F(uncounted, rss_and_gup)
{
	static const char * const rss[] = { "RssAnon:", "RssFile:", "RssShmem:" };
	static const char * const sizes[] = { "Rss:", "Pss:", "Referenced:", "Anonymous:" };
	const struct vma vma = { o.edge - EDGE * psize(), 0, NR };
	const struct iovec remote = { vma.addr, 64 }, local = { vma.addr + 64, 64 };
	long before[3];
	int pipes[2];

	ASSERT_EQ(pipe(pipes), 0);
	/* Whatever it takes to find out must not be seen either. */
	ASSERT_EQ(mlockall(MCL_CURRENT), 0);
	for (int i = 0; i < 6; i++)
		before[i % 3] = status_kb(rss[i % 3]);
	for (int filled = 0; filled < 2; filled++) {
		map(vma.addr, 0, NR);
		for (unsigned long i = 0; filled && i < NR; i++)
			store(page_at(&vma, i) + COUNTER, i);
		ASSERT_EQ(ioctl(o.fd, PFNMAP_TEST_RESET_STATS), 0);
		ASSERT_EQ(vmsplice(pipes[1], &remote, 1, 0), -1);
		ASSERT_EQ(errno, EFAULT);
		ASSERT_EQ(process_vm_readv(getpid(), &local, 1, &remote, 1, 0), -1);
		ASSERT_EQ(errno, EFAULT);
		ASSERT_EQ(stats().faults, 0);
		check(&vma, 0, filled ? NR : 0, WRITE);
		for (int i = 0; i < 3; i++)
			EXPECT_EQ(status_kb(rss[i]), before[i]);
		for (unsigned int i = 0; i < ARRAY_SIZE(sizes); i++)
			EXPECT_EQ(smaps_sum(vma.addr, NR, sizes[i]), 0);
	}
	EXPECT_EQ(check_vmflag_pfnmap(vma.addr), !(o.kind.flags & MIXEDMAP));
}

/*
 * Private mappings: a write goes to a copy.  In a VM_PFNMAP mapping, a copy can
 * only be told from a pfn by pte_special; without it, the faults are refused.
 */
FIXTURE_OF_KINDS(private, 16)
KIND_ADD(private, single, SINGLE, 16, RAM, 0);
KIND_ADD(private, batch, BATCH, 16, RAM, 0);
KIND_ADD(private, iter_vram, ITER, 16, VRAM, 0);
KIND_ADD(private, batch_mixedmap, BATCH, 16, VRAM, MIXEDMAP);

TEST_F(private, copy)
{
	const bool refused = !o.start.pte_special && !(o.kind.flags & MIXEDMAP);
	const int prot = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_FIXED;
	char *private = o.area, *shared = o.area + 32 * psize();
	const size_t page = psize(), size = 16 * page;

	map(shared, 0, 16);
	if (refused) {
		ASSERT_EQ(mmap(private, size, prot, flags, o.fd, 0), MAP_FAILED);
		set_method(o.kind.method, 16, PFNMAP_TEST_COW_VMA);
	}
	ASSERT_EQ(mmap(private, size, PROT_READ, flags, o.fd, 0), private);
	ASSERT_EQ(touch(private), refused ? SIGBUS : 0);
	if (refused)
		return;

	/* The object is seen, until mprotect() allows a write. */
	ASSERT_TRUE(headers_ok(private, 0, 16, 0));
	ASSERT_EQ(try_store(private + COUNTER, 1), SIGSEGV);
	ASSERT_EQ(mprotect(private, size, prot), 0);
	for (int i = 0; i < 16; i++) {
		char *p = private + i * page, *s = shared + i * page;

		ASSERT_EQ(inspect(p).flags & (PRESENT | WRITE), PRESENT);
		store(p + COUNTER, i + 1);
		ASSERT_TRUE(inspect(p).flags & PFNMAP_TEST_ANON);
		store(s + COUNTER, 100);
		ASSERT_EQ(load(p + COUNTER), i + 1);
	}
	ASSERT_TRUE(headers_ok(private, 0, 16, 0));

	/* unmap_mapping_range() with even_cows drops the copies. */
	migrate(_metadata, o.fd, 0, 16, !o.kind.place);
	migrate(_metadata, o.fd, 0, 16, o.kind.place);
	ASSERT_EQ(count_present(private, 16), 0);
	ASSERT_TRUE(headers_ok(private, 0, 16, 2));
	ASSERT_EQ(load(private + COUNTER), 100);
}

/* Each page has its own cache mode, however many are mapped with it. */
FIXTURE_OF_KINDS(cachemode, 0)
KIND_ADD(cachemode, loop, LOOP, WIDE, VRAM, 0);
KIND_ADD(cachemode, batch, BATCH, WIDE, VRAM, 0);
KIND_ADD(cachemode, iter, ITER, WIDE, VRAM, 0);
KIND_ADD(cachemode, remap, REMAP, 1, VRAM, 0);
KIND_ADD(cachemode, batch_mixedmap, BATCH, WIDE, VRAM, MIXEDMAP);

TEST_F(cachemode, split)
{
	const unsigned long split = o.start.memtype_split, first = split - 300;
	const struct vma vma = { o.area, first, 600 };
	uint64_t bits, last = 0;

	map(vma.addr, first, 600);
	for (unsigned long i = first; i < first + 600; i++) {
		ASSERT_TRUE(header_ok(page_at(&vma, i), i, 0));
		bits = inspect(page_at(&vma, i)).pgprot & CACHE_BITS;
		/* write-combining, then uncached */
		ASSERT_EQ(i > first && bits != last, CACHE_BITS && i == split);
		last = bits;
	}
}

/* The driver is told of the first write to a page. */
FIXTURE_OF_KINDS(notify, 64)
KIND_ADD(notify, single, SINGLE, 1, RAM, PFNMAP_TEST_NOTIFY);
KIND_ADD(notify, batch, BATCH, 16, RAM, PFNMAP_TEST_NOTIFY);
KIND_ADD(notify, iter, ITER, 16, VRAM, PFNMAP_TEST_NOTIFY);

TEST_F(notify, first_write)
{
	const unsigned int bits = WRITE | PFNMAP_TEST_PTE_DIRTY | PFNMAP_TEST_PTE_YOUNG;
	const struct vma vma = { o.area, 0, 64 };
	unsigned long lo, hi;

	map(vma.addr, 0, 64);
	ASSERT_EQ(load(vma.addr + COUNTER), 0);
	expect(&vma, 0, &lo, &hi);
	check(&vma, lo, hi, 0);
	ASSERT_EQ(stats().mkwrites, 0);

	/* What is mapped gets writable, without another fault. */
	store(vma.addr + COUNTER, 1);
	store(vma.addr + COUNTER, 2);
	ASSERT_EQ(inspect(vma.addr).flags & bits, bits);
	ASSERT_EQ(stats().mkwrites, 1);
	ASSERT_EQ(stats().faults, 1);

	/* What is not is mapped writable, alone, by one fault. */
	store(page_at(&vma, 40) + COUNTER, 1);
	ASSERT_EQ(inspect(page_at(&vma, 40)).flags & bits, bits);
	ASSERT_EQ(count_present(page_at(&vma, 32), 32), 1);
	ASSERT_EQ(stats().mkwrites, 2);
	ASSERT_EQ(stats().faults, 2);

	/* mprotect() leaves it to the driver. */
	ASSERT_EQ(mprotect(vma.addr, 64 * psize(), PROT_READ), 0);
	ASSERT_EQ(mprotect(vma.addr, 64 * psize(), PROT_READ | PROT_WRITE), 0);
	store(vma.addr + COUNTER, 3);
	ASSERT_EQ(stats().mkwrites, 3);
}

int main(int argc, char **argv)
{
	need_device();
	return test_harness_run(argc, argv);
}
