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
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BENCH_MAX_REPS	1000UL

/* There is nothing to measure: KSFT_SKIP */
#define BENCH_SKIP	4

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
	int status;
	pid_t pid;

	pid = fork();
	if (pid < 0)
		err(EXIT_FAILURE, "fork");
	if (!pid)
		_exit(0);
	if (waitpid(pid, &status, 0) != pid || status)
		errx(EXIT_FAILURE, "the child failed");
	return bench_now() - start;
}

static inline int bench_compare(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static inline void bench_header(void)
{
	printf("method\tplace\tnr\tmetric\treps\tmedian\tmin\tmax\n");
}

/* Sorts the samples. */
static inline void bench_row(const char *method, const char *place,
			     unsigned long nr, const char *metric,
			     unsigned long reps, double *samples)
{
	qsort(samples, reps, sizeof(*samples), bench_compare);
	printf("%s\t%s\t%lu\t%s\t%lu\t%.4f\t%.4f\t%.4f\n", method, place, nr,
	       metric, reps,
	       (samples[(reps - 1) / 2] + samples[reps / 2]) / 2, samples[0],
	       samples[reps - 1]);
	fflush(stdout);
}

static inline unsigned long bench_arg(const char *arg, unsigned long min,
				      unsigned long max)
{
	unsigned long n;
	char *end;

	n = strtoul(arg, &end, 0);
	if (end == arg || *end || n < min || n > max)
		errx(EXIT_FAILURE, "%s: must be in %lu..%lu", arg, min, max);
	return n;
}

#endif /* _SELFTESTS_MM_BENCH_UTIL_H */
