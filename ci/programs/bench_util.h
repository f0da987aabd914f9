/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the benchmarks have in common: a table with tab-separated columns, a row
 * for the repetitions of one measurement. Times are in nanoseconds; in a guest of
 * "qemu -icount shift=0" one nanosecond is one instruction.
 */
#ifndef _SELFTESTS_MM_BENCH_UTIL_H
#define _SELFTESTS_MM_BENCH_UTIL_H

#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define BENCH_MAX_METRICS	16
#define BENCH_MAX_REPS		1000UL
#define BENCH_MAX_PAGES		0x40000UL
#define BENCH_ALIGN		512UL	/* the number of pages is a multiple of that */
#define BENCH_SKIP		4	/* nothing to measure: KSFT_SKIP */

static unsigned long bench_pages, bench_reps = 5;
static double bench_samples[BENCH_MAX_METRICS][BENCH_MAX_REPS];

static inline double bench_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e9 + ts.tv_nsec;
}

/* The time that it takes to fork a child that exits, and to wait for it. */
static inline double bench_fork(void)
{
	double start = bench_now();
	pid_t pid = fork();
	int status;

	if (!pid)
		_exit(0);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		err(EXIT_FAILURE, "fork");
	return bench_now() - start;
}

static inline void bench_need(int ok, const char *what)
{
	if (!ok)
		err(EXIT_FAILURE, "%s", what);
}

static inline int bench_compare(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Print the samples of a metric, which get sorted. */
static inline void bench_row(const char *method, const char *place, unsigned long nr,
			     const char *metric, unsigned int m)
{
	double *s = bench_samples[m];

	qsort(s, bench_reps, sizeof(*s), bench_compare);
	printf("%s\t%s\t%lu\t%s\t%lu\t%.4f\t%.4f\t%.4f\n", method, place, nr, metric, bench_reps,
	       (s[(bench_reps - 1) / 2] + s[bench_reps / 2]) / 2, s[0], s[bench_reps - 1]);
	fflush(stdout);
}

static inline unsigned long bench_arg(unsigned long min, unsigned long max)
{
	unsigned long n = strtoul(optarg, NULL, 0);

	return n < min ? min : n > max ? max : n;
}

/* Print the header.  Return 1 for the option -a, else 0. */
static inline int bench_begin(int argc, char **argv, unsigned long pages)
{
	int opt, a = 0;

	bench_pages = pages;
	while ((opt = getopt(argc, argv, "ap:r:")) != -1) {
		if (opt == 'a')
			a = 1;
		else if (opt == 'p')
			bench_pages = bench_arg(BENCH_ALIGN, BENCH_MAX_PAGES) & -BENCH_ALIGN;
		else if (opt == 'r')
			bench_reps = bench_arg(1, BENCH_MAX_REPS);
		else
			errx(EXIT_FAILURE, "usage: %s [-p pages] [-r reps]", argv[0]);
	}
	/* The first touch must not be part of a sample. */
	memset(bench_samples, 0, sizeof(bench_samples));
	printf("method\tplace\tnr\tmetric\treps\tmedian\tmin\tmax\n");
	return a;
}

/* Addresses of @pages pages, aligned by BENCH_ALIGN pages, with nothing there */
static inline char *bench_reserve(unsigned long pages)
{
	const size_t size = sysconf(_SC_PAGESIZE), align = BENCH_ALIGN * size;
	char *area = mmap(NULL, pages * size + align, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	bench_need(area != MAP_FAILED, "mmap");
	return (char *)(((unsigned long)area + align - 1) & ~(align - 1));
}

#endif /* _SELFTESTS_MM_BENCH_UTIL_H */
