// SPDX-License-Identifier: GPL-2.0-only
/*
 * Cost of page faults in mappings of drivers that insert pfns: udmabuf, the
 * shmem helper of DRM (by vgem), and TTM (by qxl). See pfnmap_drivers.c for
 * what they need.
 *
 * Times are in nanoseconds. Run in a guest of "qemu -icount shift=0", where one
 * nanosecond is one instruction, for numbers that don't depend on the machine.
 *
 * Output is a table with tab-separated columns. What is measured:
 *
 *   seq_ns	touch all pages of a new mapping in order, per page
 *   write_ns	the same, writing
 *   random_ns	the same as seq_ns after madvise(MADV_RANDOM)
 *   back_ns	the same, from the last page to the first
 *   w16_ns	touch one page of 16 of a new mapping, per touch
 *   w32_ns	one of 32
 *   w512_ns	one of 512
 *   munmap_ns	unmap all pages, per page
 *   fork_ns	fork a child that exits, and wait for it: how much longer it
 *		takes with the mapping than without, per page
 *
 * and, for all but the last two, the page faults that takes: seq_faults etc.,
 * per page or touch as well. "nr" is the number of pages.
 */
#include <err.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "kselftest.h"
#include "bench_util.h"
#include "vm_util.h"
#include "pfnmap_drivers.h"

#define ALIGN_PAGES	512UL
#define MAX_PAGES	1048576UL

enum metric {
	SEQ,
	WRITE,
	RANDOM,
	BACK,
	W16,
	W32,
	W512,
	MUNMAP,
	FORK,
	NR_METRICS,
};

static const char * const metrics[NR_METRICS] = {
	[SEQ] = "seq",
	[WRITE] = "write",
	[RANDOM] = "random",
	[BACK] = "back",
	[W16] = "w16",
	[W32] = "w32",
	[W512] = "w512",
	[MUNMAP] = "munmap",
	[FORK] = "fork",
};

static const struct {
	enum metric metric;
	unsigned long step;
	bool write;
	bool back;
	int advice;
} touches[] = {
	{ WRITE, 1, true, false, MADV_NORMAL },
	{ RANDOM, 1, false, false, MADV_RANDOM },
	{ BACK, 1, false, true, MADV_NORMAL },
	{ W16, 16, false, false, MADV_NORMAL },
	{ W32, 32, false, false, MADV_NORMAL },
	{ W512, 512, false, false, MADV_NORMAL },
	/* Last, for what follows is to have all pages mapped. */
	{ SEQ, 1, false, false, MADV_NORMAL },
};

static const struct {
	enum kind kind;
	const char *driver;
	const char *place;
} objects[] = {
	{ UDMABUF, "udmabuf", "ram" },
	{ VGEM, "vgem", "ram" },
	{ TTM_SYSTEM, "ttm", "ram" },
	{ TTM_VRAM, "ttm", "vram" },
};

static double samples[NR_METRICS][BENCH_MAX_REPS];
static double faults[NR_METRICS][BENCH_MAX_REPS];
static char *area;

static unsigned long count_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
}

static void map_area(const struct object *obj)
{
	if (map_object(obj, area, 0, obj->nr, PROT_READ | PROT_WRITE) != area)
		err(EXIT_FAILURE, "mmap of %lu pages", obj->nr);
}

static void unmap_area(const struct object *obj)
{
	if (munmap(area, obj->nr * psize()))
		err(EXIT_FAILURE, "munmap");
}

static void touch(const struct object *obj, unsigned int t, unsigned long rep)
{
	const enum metric m = touches[t].metric;
	const unsigned long step = touches[t].step;
	const unsigned long nr = obj->nr / step;
	unsigned long before, i;
	double start;

	if (madvise(area, obj->nr * psize(), touches[t].advice))
		err(EXIT_FAILURE, "madvise");

	before = count_faults();
	start = bench_now();
	if (touches[t].write) {
		for (i = 0; i < obj->nr; i += step)
			*(volatile char *)(area + i * psize()) = 1;
	} else if (touches[t].back) {
		for (i = obj->nr; i; i -= step)
			FORCE_READ(area[(i - 1) * psize()]);
	} else {
		for (i = 0; i < obj->nr; i += step)
			FORCE_READ(area[i * psize()]);
	}
	samples[m][rep] = (bench_now() - start) / nr;
	faults[m][rep] = (double)(count_faults() - before) / nr;
}

static void print_metric(unsigned int o, unsigned long nr, const char *metric,
			 const char *unit, unsigned long reps, double *s)
{
	char name[32];

	snprintf(name, sizeof(name), "%s_%s", metric, unit);
	bench_row(objects[o].driver, objects[o].place, nr, name, reps, s);
}

static void run(unsigned int o, unsigned long pages, unsigned long reps)
{
	double start, fork_ns;
	struct object obj;
	unsigned long rep;
	unsigned int t, m;
	int ret;

	ret = create_object(&obj, objects[o].kind, pages);
	if (ret) {
		warnx("%s %s: %s", objects[o].driver, objects[o].place,
		      strerror(-ret));
		return;
	}

	/* What the first use of the object itself costs is no part of it. */
	map_area(&obj);
	for (m = 0; m < obj.nr; m++)
		*(volatile char *)(area + (size_t)m * psize()) = 1;
	unmap_area(&obj);

	for (rep = 0; rep < reps; rep++) {
		fork_ns = bench_fork();
		for (t = 0; t < ARRAY_SIZE(touches); t++) {
			map_area(&obj);
			touch(&obj, t, rep);
			if (t < ARRAY_SIZE(touches) - 1)
				unmap_area(&obj);
		}
		samples[FORK][rep] = (bench_fork() - fork_ns) / obj.nr;

		start = bench_now();
		unmap_area(&obj);
		samples[MUNMAP][rep] = (bench_now() - start) / obj.nr;
	}

	for (m = 0; m < NR_METRICS; m++) {
		print_metric(o, obj.nr, metrics[m], "ns", reps, samples[m]);
		if (m != MUNMAP && m != FORK)
			print_metric(o, obj.nr, metrics[m], "faults", reps,
				     faults[m]);
	}
	destroy_object(&obj);
}

int main(int argc, char **argv)
{
	unsigned long pages = 8192, reps = 5, align;
	unsigned int o;
	int opt;

	while ((opt = getopt(argc, argv, "hp:r:")) != -1) {
		switch (opt) {
		case 'p':
			pages = bench_arg(optarg, ALIGN_PAGES, MAX_PAGES);
			pages = pages / ALIGN_PAGES * ALIGN_PAGES;
			break;
		case 'r':
			reps = bench_arg(optarg, 1, BENCH_MAX_REPS);
			break;
		default:
			fprintf(opt == 'h' ? stdout : stderr,
				"usage: %s [-h] [-p pages] [-r reps]\n"
				"  -p: size of the mapping, rounded down to %lu pages (default %lu)\n"
				"  -r: repetitions (default %lu)\n",
				argv[0], ALIGN_PAGES, 8192UL, 5UL);
			return opt == 'h' ? EXIT_SUCCESS : EXIT_FAILURE;
		}
	}

	align = ALIGN_PAGES * psize();
	area = mmap(NULL, pages * psize() + align, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		err(EXIT_FAILURE, "mmap");
	area = (char *)(((unsigned long)area + align - 1) & ~(align - 1));

	/* The first touch of these must not be part of a sample. */
	memset(samples, 0, sizeof(samples));
	memset(faults, 0, sizeof(faults));
	count_faults();

	bench_header();
	for (o = 0; o < ARRAY_SIZE(objects); o++)
		run(o, pages, reps);
	return EXIT_SUCCESS;
}
