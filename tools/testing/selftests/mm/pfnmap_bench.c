// SPDX-License-Identifier: GPL-2.0-only
/*
 * Cost of the ways in which a driver can map pfns, by means of the test driver
 * mm/pfnmap_test.c: from the fault handler, page by page or in windows of pages,
 * or at mmap().
 *
 * Times are in nanoseconds. Run in a guest of "qemu -icount shift=0", where one
 * nanosecond is one instruction, for numbers that don't depend on the machine.
 *
 * Output is a table with tab-separated columns, whose metrics are:
 *
 *   fault_ns	touch all pages of a new mapping, per page; for "remap", mmap()
 *   fault1_ns	touch one page in each window, per touch; for "remap", mmap()
 *		of the pages of one window, per call
 *   insert_ns	the part of fault_ns that is spent in the functions that insert
 *		pfns, per page
 *   munmap_ns	unmap the pages, per page
 *   fork_ns	fork a child that exits, and wait for it: how much longer it
 *		takes with the mapping than without, per page
 *
 * "sparse" has every other page mapped, one by one. So no two PTEs can be dealt
 * with at once in munmap and fork; their time is per page that is mapped.
 * "zero" is anonymous memory that has been read only: special PTEs in a row that
 * are not dealt with at once either.
 */
#define __SANE_USERSPACE_TYPES__ // Use ll64
#include <err.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <mm/pfnmap_test.h>
#include "kselftest.h"
#include "bench_util.h"
#include "vm_util.h"

#define DEVICE		"/dev/pfnmap_test"
#define MAX_WINDOW	512UL

enum metric {
	FAULT,
	FAULT1,
	INSERT,
	MUNMAP,
	FORK,
	NR_METRICS,
};

static const char * const metrics[NR_METRICS] = {
	[FAULT] = "fault_ns",
	[FAULT1] = "fault1_ns",
	[INSERT] = "insert_ns",
	[MUNMAP] = "munmap_ns",
	[FORK] = "fork_ns",
};

static const char * const methods[PFNMAP_TEST_NR_METHODS] = {
	[PFNMAP_TEST_SINGLE] = "single",
	[PFNMAP_TEST_LOOP] = "loop",
	[PFNMAP_TEST_BATCH] = "batch",
	[PFNMAP_TEST_ITER] = "iter",
	[PFNMAP_TEST_REMAP] = "remap",
	[PFNMAP_TEST_MIXED] = "mixed",
	[PFNMAP_TEST_MIXED_BATCH] = "mixedbatch",
	[PFNMAP_TEST_MIXED_ITER] = "mixediter",
};

static const bool is_mixed[PFNMAP_TEST_NR_METHODS] = {
	[PFNMAP_TEST_MIXED] = true,
	[PFNMAP_TEST_MIXED_BATCH] = true,
	[PFNMAP_TEST_MIXED_ITER] = true,
};

static const bool is_single[PFNMAP_TEST_NR_METHODS] = {
	[PFNMAP_TEST_SINGLE] = true,
	[PFNMAP_TEST_MIXED] = true,
};

static const char * const places[] = {
	[PFNMAP_TEST_RAM] = "ram",
	[PFNMAP_TEST_VRAM] = "vram",
};

static const unsigned long windows[] = { 1, 16, 64, MAX_WINDOW };

static double samples[NR_METRICS][BENCH_MAX_REPS];
static unsigned long page_size;
static char *area;		/* addresses to map at, aligned by MAX_WINDOW pages */

static void map_pages(int fd, unsigned long first, unsigned long nr)
{
	if (mmap(area + first * page_size, nr * page_size,
		 PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
		 first * page_size) == MAP_FAILED)
		err(EXIT_FAILURE, "mmap of %lu pages", nr);
}

static void unmap_pages(unsigned long nr)
{
	if (munmap(area, nr * page_size))
		err(EXIT_FAILURE, "munmap");
}

static void touch_pages(unsigned long nr, unsigned long step)
{
	unsigned long i;

	for (i = 0; i < nr; i += step)
		FORCE_READ(area[i * page_size]);
}

static double insert_ns(int fd)
{
	struct pfnmap_test_stats stats;

	if (ioctl(fd, PFNMAP_TEST_GET_STATS, &stats))
		err(EXIT_FAILURE, "PFNMAP_TEST_GET_STATS");
	if (!stats.offered)
		errx(EXIT_FAILURE, "nothing was mapped");

	return (double)stats.insert_ns / stats.offered;
}

static void reset_stats(int fd)
{
	if (ioctl(fd, PFNMAP_TEST_RESET_STATS))
		err(EXIT_FAILURE, "PFNMAP_TEST_RESET_STATS");
}

static void run_fault(int fd, unsigned long pages, unsigned long window,
		      unsigned long rep)
{
	double start, fork_ns;

	/* One touch per window. */
	map_pages(fd, 0, pages);
	start = bench_now();
	touch_pages(pages, window);
	samples[FAULT1][rep] = (bench_now() - start) / (pages / window);
	unmap_pages(pages);

	fork_ns = bench_fork();

	map_pages(fd, 0, pages);
	reset_stats(fd);
	start = bench_now();
	touch_pages(pages, 1);
	samples[FAULT][rep] = (bench_now() - start) / pages;
	samples[INSERT][rep] = insert_ns(fd);

	samples[FORK][rep] = (bench_fork() - fork_ns) / pages;

	start = bench_now();
	unmap_pages(pages);
	samples[MUNMAP][rep] = (bench_now() - start) / pages;
}

static void run_remap(int fd, unsigned long pages, unsigned long window,
		      unsigned long rep)
{
	double start, fork_ns, time;
	unsigned long i;

	/* A mapping per window, for what an mmap() of that size costs. */
	reset_stats(fd);
	start = bench_now();
	for (i = 0; i < pages; i += window)
		map_pages(fd, i, window);
	time = bench_now() - start;
	samples[FAULT][rep] = time / pages;
	samples[FAULT1][rep] = time / (pages / window);
	samples[INSERT][rep] = insert_ns(fd);
	unmap_pages(pages);

	fork_ns = bench_fork();

	/* One mapping as the other methods have it. */
	map_pages(fd, 0, pages);
	samples[FORK][rep] = (bench_fork() - fork_ns) / pages;

	start = bench_now();
	unmap_pages(pages);
	samples[MUNMAP][rep] = (bench_now() - start) / pages;
}

static void print_metric(const char *method, int place, unsigned long window,
			 enum metric m, unsigned long reps)
{
	bench_row(method, places[place], window, metrics[m], reps, samples[m]);
}

static void run_zero(unsigned long pages, unsigned long reps)
{
	double start, fork_ns;
	unsigned long rep;

	for (rep = 0; rep < reps; rep++) {
		fork_ns = bench_fork();

		if (mmap(area, pages * page_size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
			 0) == MAP_FAILED)
			err(EXIT_FAILURE, "mmap");
		madvise(area, pages * page_size, MADV_NOHUGEPAGE);
		*area = 1;	/* for fork() to copy the page tables */
		touch_pages(pages, 1);
		samples[FORK][rep] = (bench_fork() - fork_ns) / pages;

		start = bench_now();
		unmap_pages(pages);
		samples[MUNMAP][rep] = (bench_now() - start) / pages;
	}

	print_metric("zero", PFNMAP_TEST_RAM, 1, MUNMAP, reps);
	print_metric("zero", PFNMAP_TEST_RAM, 1, FORK, reps);
}

static void run_sparse(int fd, int place, unsigned long pages,
		       unsigned long reps)
{
	const struct pfnmap_test_method_arg arg = {
		.method = PFNMAP_TEST_SINGLE,
		.window = 1,
	};
	double start, fork_ns;
	unsigned long rep;

	if (ioctl(fd, PFNMAP_TEST_SET_METHOD, &arg))
		err(EXIT_FAILURE, "PFNMAP_TEST_SET_METHOD");

	for (rep = 0; rep < reps; rep++) {
		fork_ns = bench_fork();

		map_pages(fd, 0, pages);
		touch_pages(pages, 2);
		samples[FORK][rep] = (bench_fork() - fork_ns) / (pages / 2);

		start = bench_now();
		unmap_pages(pages);
		samples[MUNMAP][rep] = (bench_now() - start) / (pages / 2);
	}

	print_metric("sparse", place, 1, MUNMAP, reps);
	print_metric("sparse", place, 1, FORK, reps);
}

static void run(int fd, int place, int method, unsigned long window,
		unsigned long pages, unsigned long reps)
{
	const struct pfnmap_test_method_arg arg = {
		.method = method,
		.window = window,
	};
	unsigned long rep;
	int m;

	if (ioctl(fd, PFNMAP_TEST_SET_METHOD, &arg))
		err(EXIT_FAILURE, "PFNMAP_TEST_SET_METHOD");

	for (rep = 0; rep < reps; rep++) {
		if (method == PFNMAP_TEST_REMAP)
			run_remap(fd, pages, window, rep);
		else
			run_fault(fd, pages, window, rep);
	}

	for (m = 0; m < NR_METRICS; m++)
		print_metric(methods[method], place, window, m, reps);
}

static void run_object(int place, bool mixed, unsigned long pages,
		       unsigned long reps)
{
	struct pfnmap_test_create create = {
		.nr_pages = pages,
		.place = place,
		.flags = mixed ? PFNMAP_TEST_MIXEDMAP : 0,
	};
	struct pfnmap_test_stats stats;
	unsigned int w;
	int fd, method;

	fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		err(BENCH_SKIP, "%s", DEVICE);

	if (place == PFNMAP_TEST_VRAM) {
		if (ioctl(fd, PFNMAP_TEST_GET_STATS, &stats))
			err(EXIT_FAILURE, "PFNMAP_TEST_GET_STATS");
		if (stats.vram_free < pages)
			pages = stats.vram_free / MAX_WINDOW * MAX_WINDOW;
		if (!pages) {
			warnx("not enough vram");
			close(fd);
			return;
		}
		create.nr_pages = pages;
	}

	if (ioctl(fd, PFNMAP_TEST_CREATE, &create))
		err(EXIT_FAILURE, "PFNMAP_TEST_CREATE");

	if (!mixed)
		run_sparse(fd, place, pages, reps);

	for (method = 0; method < PFNMAP_TEST_NR_METHODS; method++) {
		if (!methods[method] || is_mixed[method] != mixed)
			continue;
		for (w = 0; w < ARRAY_SIZE(windows); w++) {
			if (is_single[method] && windows[w] > 1)
				break;
			run(fd, place, method, windows[w], pages, reps);
		}
	}
	close(fd);
}

int main(int argc, char **argv)
{
	unsigned long pages = 8 * MAX_WINDOW, reps = 5, align;
	int opt;

	while ((opt = getopt(argc, argv, "hp:r:")) != -1) {
		switch (opt) {
		case 'p':
			pages = bench_arg(optarg, MAX_WINDOW,
					  PFNMAP_TEST_MAX_PAGES);
			pages = pages / MAX_WINDOW * MAX_WINDOW;
			break;
		case 'r':
			reps = bench_arg(optarg, 1, BENCH_MAX_REPS);
			break;
		default:
			fprintf(opt == 'h' ? stdout : stderr,
				"usage: %s [-h] [-p pages] [-r reps]\n"
				"  -p: size of the mapping, rounded down to %lu pages (default %lu)\n"
				"  -r: repetitions (default %lu)\n",
				argv[0], MAX_WINDOW, 8 * MAX_WINDOW, 5UL);
			return opt == 'h' ? EXIT_SUCCESS : EXIT_FAILURE;
		}
	}

	page_size = sysconf(_SC_PAGESIZE);
	align = MAX_WINDOW * page_size;
	area = mmap(NULL, pages * page_size + align, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		err(EXIT_FAILURE, "mmap");
	area = (char *)(((unsigned long)area + align - 1) & ~(align - 1));

	/* The first touch of these must not be part of a sample. */
	memset(samples, 0, sizeof(samples));

	bench_header();
	run_zero(pages, reps);
	run_object(PFNMAP_TEST_RAM, false, pages, reps);
	run_object(PFNMAP_TEST_RAM, true, pages, reps);
	run_object(PFNMAP_TEST_VRAM, false, pages, reps);
	run_object(PFNMAP_TEST_VRAM, true, pages, reps);

	return EXIT_SUCCESS;
}
