// SPDX-License-Identifier: GPL-2.0-only
/*
 * Cost of the ways in which a driver can map pfns, by means of the test driver
 * mm/pfnmap_test_*.c: from the fault handler, page by page or in windows of pages,
 * or at mmap().  See bench_util.h for the output.
 *
 *   fault_ns	touch all pages of a new mapping, per page; for "remap", mmap()
 *   fault1_ns	touch one page in each window, per touch; for "remap", mmap()
 *		of the pages of one window, per call
 *   insert_ns	the part of fault_ns that is spent in the functions that insert
 *		pfns, per page
 *   munmap_ns	unmap the pages, per page that is mapped
 *   fork_ns	fork a child that exits, and wait for it: how much longer it
 *		takes with the mapping than without, per page that is mapped
 *
 * "sparse" has every other page mapped, so that no two PTEs can be dealt with at
 * once in munmap and fork.  "zero" is anonymous memory that has been read only:
 * special PTEs in a row that are not dealt with at once either.
 */
#define __SANE_USERSPACE_TYPES__ // Use ll64
#include <fcntl.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <mm/pfnmap_test.h>
#include "kselftest.h"
#include "bench_util.h"
#include "vm_util.h"

#define DEVICE	"/dev/pfnmap_test"
#define ZERO	-1

enum metric { MUNMAP, FORK, FAULT, FAULT1, INSERT, NR_METRICS };
static const char * const metrics[] = {
	"munmap_ns", "fork_ns", "fault_ns", "fault1_ns", "insert_ns",
};

static const char * const places[] = { "ram", "vram" };	/* enum pfnmap_test_place */

static const struct method {
	const char *name;
	int method;		/* enum pfnmap_test_method, or ZERO */
	bool windows;		/* of several pages, too */
	unsigned int flags;	/* of the object */
	unsigned int step;	/* munmap and fork alone, with one page of so many mapped */
} methods[] = {
	{ "single", PFNMAP_TEST_SINGLE },
	{ "loop", PFNMAP_TEST_LOOP, true },
	{ "batch", PFNMAP_TEST_BATCH, true },
	{ "iter", PFNMAP_TEST_ITER, true },
	{ "remap", PFNMAP_TEST_REMAP, true },
	{ "mixed", PFNMAP_TEST_MIXED, false, PFNMAP_TEST_MIXEDMAP },
	{ "mixedbatch", PFNMAP_TEST_MIXED_BATCH, true, PFNMAP_TEST_MIXEDMAP },
	{ "mixediter", PFNMAP_TEST_MIXED_ITER, true, PFNMAP_TEST_MIXEDMAP },
	{ "zero", ZERO, .step = 1 },
	{ "sparse", PFNMAP_TEST_SINGLE, .step = 2 },
};

static char *area;

static void map_pages(int fd, unsigned long first, unsigned long nr)
{
	char *addr = area + first * psize();
	const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;

	bench_need(mmap(addr, nr * psize(), PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd,
			first * psize()) == addr, "mmap");
	if (fd >= 0)
		return;
	madvise(addr, nr * psize(), MADV_NOHUGEPAGE);
	*addr = 1;	/* for fork() to copy the page tables */
}

static void touch_pages(unsigned long nr, unsigned long step)
{
	for (unsigned long i = 0; i < nr; i += step)
		FORCE_READ(area[i * psize()]);
}

static double insert_ns(int fd)
{
	struct pfnmap_test_stats stats;

	bench_need(!ioctl(fd, PFNMAP_TEST_GET_STATS, &stats), "PFNMAP_TEST_GET_STATS");
	bench_need(!ioctl(fd, PFNMAP_TEST_RESET_STATS), "PFNMAP_TEST_RESET_STATS");
	return stats.offered ? (double)stats.insert_ns / stats.offered : 0;
}

static void run(const struct method *m, int fd, int place, unsigned long window, long pages)
{
	const struct pfnmap_test_method_arg arg = { .method = m->method, .window = window };
	const bool remap = m->method == PFNMAP_TEST_REMAP, zero = m->method == ZERO;
	const unsigned int step = m->step ? m->step : 1;

	bench_need(zero || !ioctl(fd, PFNMAP_TEST_SET_METHOD, &arg), "PFNMAP_TEST_SET_METHOD");
	for (unsigned long rep = 0; rep < bench_reps; rep++) {
		double start, fork_ns, fault_ns = 0, insert = 0;

		if (!m->step) {
			insert_ns(fd);
			if (!remap)
				map_pages(fd, 0, pages);
			start = bench_now();
			if (!remap)
				touch_pages(pages, window);
			for (long i = 0; remap && i < pages; i += window)
				map_pages(fd, i, window);
			fault_ns = bench_now() - start;
			bench_samples[FAULT1][rep] = fault_ns / (pages / window);
			insert = insert_ns(fd);
			munmap(area, pages * psize());
		}

		fork_ns = bench_fork();
		map_pages(zero ? -1 : fd, 0, pages);
		start = bench_now();
		touch_pages(pages, step);
		if (!remap)
			fault_ns = bench_now() - start;
		bench_samples[FAULT][rep] = fault_ns / pages;
		bench_samples[INSERT][rep] = remap ? insert : insert_ns(fd);
		bench_samples[FORK][rep] = (bench_fork() - fork_ns) / (pages / step);
		start = bench_now();
		munmap(area, pages * psize());
		bench_samples[MUNMAP][rep] = (bench_now() - start) / (pages / step);
	}
	for (unsigned int i = 0; i < (m->step ? FAULT : NR_METRICS); i++)
		bench_row(m->name, places[place], window, metrics[i], i);
}

static void run_place(const struct method *m, int place)
{
	static const unsigned long windows[] = { 1, 16, 64, BENCH_ALIGN };
	struct pfnmap_test_create create = { bench_pages, place, m->flags };
	struct pfnmap_test_stats stats;
	int fd = open(DEVICE, O_RDWR);

	if (fd < 0)
		err(BENCH_SKIP, "%s", DEVICE);
	bench_need(!ioctl(fd, PFNMAP_TEST_GET_STATS, &stats), "PFNMAP_TEST_GET_STATS");
	if (place == PFNMAP_TEST_VRAM && stats.vram_free < create.nr_pages)
		create.nr_pages = stats.vram_free & -BENCH_ALIGN;
	if (!create.nr_pages) {
		warnx("not enough vram");
	} else {
		bench_need(!ioctl(fd, PFNMAP_TEST_CREATE, &create), "PFNMAP_TEST_CREATE");
		for (unsigned int w = 0; w < (m->windows ? ARRAY_SIZE(windows) : 1); w++)
			run(m, fd, place, windows[w], create.nr_pages);
	}
	close(fd);
}

int main(int argc, char **argv)
{
	bench_begin(argc, argv, 8 * BENCH_ALIGN);
	area = bench_reserve(bench_pages);
	for (unsigned int place = 0; place < ARRAY_SIZE(places); place++)
		for (unsigned int m = 0; m < ARRAY_SIZE(methods); m++)
			if (methods[m].method != ZERO || place == PFNMAP_TEST_RAM)
				run_place(&methods[m], place);
	return EXIT_SUCCESS;
}
