// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the page cache costs, and what it costs to migrate pages to the memory of
 * test_hmm and back. Of use on two kernels, for file memory against anonymous
 * memory on one.
 *
 * Times are in nanoseconds, "method" is the last part of a directory's name, or
 * "anon". With "cache" as place, of files without pages on a device:
 *
 *   read_ns	pread() of a page, per page
 *   write_ns	pwrite() of a page, per page
 *   fsync_ns	fsync() of the file after it was written, per page
 *   around_ns	touch one page of 16 of a new mapping, per touch
 *   find_ns	nftw() of a directory, per entry
 *
 * With "device":
 *
 *   there_ns	migrate pages to the device, per page
 *   back_ns	touch pages on the device, per page
 *   both_ns	the sum
 *
 * With "clean", of pages on the device that a disk has as well, not for tmpfs:
 *
 *   copy_ns	touch them, per page: the device copies each
 *   reread_ns	the same, but it cannot: each is dropped, and read from the disk
 *   ahead_ns	touch them after they were dropped together, with readahead
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <ftw.h>
#include <libgen.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <linux/magic.h>

#include "bench_util.h"
#include "vm_util.h"
#include <lib/test_hmm_uapi.h>

#define AROUND		16UL
#define CHUNK		256UL
#define MAX_PAGES	1048576UL
#define ENTRIES		500UL

enum metric {
	READ,
	WRITE,
	FSYNC,
	AROUND_FAULT,
	FIND,
	THERE,
	BACK,
	BOTH,
	COPY,
	REREAD,
	AHEAD,
	NR_METRICS,
};

static const char * const metrics[NR_METRICS] = {
	[READ] = "read_ns",
	[WRITE] = "write_ns",
	[FSYNC] = "fsync_ns",
	[AROUND_FAULT] = "around_ns",
	[FIND] = "find_ns",
	[THERE] = "there_ns",
	[BACK] = "back_ns",
	[BOTH] = "both_ns",
	[COPY] = "copy_ns",
	[REREAD] = "reread_ns",
	[AHEAD] = "ahead_ns",
};

static double samples[NR_METRICS][BENCH_MAX_REPS];
static unsigned long page_size;
static unsigned long found;

static void print_metrics(const char *method, const char *place, enum metric first,
			  enum metric last, unsigned long nr, unsigned long reps)
{
	for (unsigned int m = first; m <= last; m++)
		bench_row(method, place, nr, metrics[m], reps, samples[m]);
}

static int open_file(const char *dir, const char *name)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0)
		err(EXIT_FAILURE, "%s", path);
	return fd;
}

static void remove_file(const char *dir, const char *name)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (unlink(path))
		err(EXIT_FAILURE, "%s", path);
}

static void write_pages(int fd, const char *buf, unsigned long nr)
{
	for (unsigned long i = 0; i < nr; i++)
		if (pwrite(fd, buf, page_size, i * page_size) != (ssize_t)page_size)
			err(EXIT_FAILURE, "pwrite");
}

static void read_pages(int fd, char *buf, unsigned long nr)
{
	for (unsigned long i = 0; i < nr; i++)
		if (pread(fd, buf, page_size, i * page_size) != (ssize_t)page_size)
			err(EXIT_FAILURE, "pread");
}

static void touch_pages(const char *p, unsigned long nr, unsigned long step)
{
	for (unsigned long i = 0; i < nr; i += step)
		FORCE_READ(p[i * page_size]);
}

static int count_entry(const char *path, const struct stat *st, int type,
		       struct FTW *ftw)
{
	if (type == FTW_F)
		found++;
	return 0;
}

static double time_find(const char *dir)
{
	double start = bench_now();

	found = 0;
	if (nftw(dir, count_entry, 16, FTW_PHYS))
		err(EXIT_FAILURE, "nftw");
	if (found < ENTRIES)
		errx(EXIT_FAILURE, "%lu files in %s", found, dir);
	return (bench_now() - start) / found;
}

static void bench_cache(const char *dir, const char *method, unsigned long pages,
			unsigned long reps)
{
	char name[32], *buf, *p;
	double start;
	int fd;

	buf = aligned_alloc(page_size, page_size);
	if (!buf)
		err(EXIT_FAILURE, "buffer");
	memset(buf, 1, page_size);

	fd = open_file(dir, "bench");
	write_pages(fd, buf, pages);
	if (fsync(fd))
		err(EXIT_FAILURE, "fsync");

	for (unsigned long rep = 0; rep < reps; rep++) {
		start = bench_now();
		write_pages(fd, buf, pages);
		samples[WRITE][rep] = (bench_now() - start) / pages;

		start = bench_now();
		if (fsync(fd))
			err(EXIT_FAILURE, "fsync");
		samples[FSYNC][rep] = (bench_now() - start) / pages;

		start = bench_now();
		read_pages(fd, buf, pages);
		samples[READ][rep] = (bench_now() - start) / pages;

		p = mmap(NULL, pages * page_size, PROT_READ, MAP_SHARED, fd, 0);
		if (p == MAP_FAILED)
			err(EXIT_FAILURE, "mmap");
		start = bench_now();
		touch_pages(p, pages, AROUND);
		samples[AROUND_FAULT][rep] = (bench_now() - start) / (pages / AROUND);
		munmap(p, pages * page_size);
	}
	close(fd);
	remove_file(dir, "bench");
	print_metrics(method, "cache", READ, AROUND_FAULT, pages, reps);

	for (unsigned long i = 0; i < ENTRIES; i++) {
		snprintf(name, sizeof(name), "find.%lu", i);
		close(open_file(dir, name));
	}
	time_find(dir);
	for (unsigned long rep = 0; rep < reps; rep++)
		samples[FIND][rep] = time_find(dir);
	for (unsigned long i = 0; i < ENTRIES; i++) {
		snprintf(name, sizeof(name), "find.%lu", i);
		remove_file(dir, name);
	}
	print_metrics(method, "cache", FIND, FIND, ENTRIES, reps);
	free(buf);
}

/* DIR is NULL for anonymous memory. */
static void bench_device(const char *dir, const char *method, int dev,
			 unsigned long reps)
{
	struct hmm_dmirror_cmd cmd = {};
	int fd = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;
	char *p, *mirror;
	double start;

	mirror = calloc(CHUNK, page_size);
	if (!mirror)
		err(EXIT_FAILURE, "buffer");
	if (dir) {
		flags = MAP_SHARED;
		fd = open_file(dir, "bench");
		write_pages(fd, mirror, CHUNK);
	}
	p = mmap(NULL, CHUNK * page_size, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (p == MAP_FAILED)
		err(EXIT_FAILURE, "mmap");
	madvise(p, CHUNK * page_size, MADV_NOHUGEPAGE);

	cmd.addr = (uintptr_t)p;
	cmd.ptr = (uintptr_t)mirror;
	cmd.npages = CHUNK;
	/* The first time the device gets its memory. */
	for (unsigned long rep = 0; rep < reps + 1; rep++) {
		const unsigned long s = rep ? rep - 1 : 0;

		for (unsigned long i = 0; i < CHUNK; i++)
			*(volatile char *)(p + i * page_size) = 1;

		start = bench_now();
		if (ioctl(dev, HMM_DMIRROR_MIGRATE_TO_DEV, &cmd))
			err(EXIT_FAILURE, "%s: migrate", method);
		samples[THERE][s] = (bench_now() - start) / CHUNK;
		if (cmd.cpages != CHUNK)
			errx(EXIT_FAILURE, "%s: %llu of %lu pages migrated", method,
			     (unsigned long long)cmd.cpages, CHUNK);

		start = bench_now();
		touch_pages(p, CHUNK, 1);
		samples[BACK][s] = (bench_now() - start) / CHUNK;
		samples[BOTH][s] = samples[THERE][s] + samples[BACK][s];
	}
	munmap(p, CHUNK * page_size);
	if (dir) {
		close(fd);
		remove_file(dir, "bench");
	}
	free(mirror);
	print_metrics(method, "device", THERE, BOTH, CHUNK, reps);
}

static char *map_file(int fd)
{
	char *p = mmap(NULL, CHUNK * page_size, PROT_READ, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED)
		err(EXIT_FAILURE, "mmap");
	return p;
}

static void set_flags(int dev, unsigned long flags)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = page_size,
		.npages = flags | 1 << 16,	/* not 0 */
	};

	if (ioctl(dev, HMM_DMIRROR_FLAGS, &cmd))
		err(EXIT_FAILURE, "flags");
}

static void bench_clean(const char *dir, const char *method, int dev,
			unsigned long reps)
{
	char *p, *mirror = calloc(CHUNK, page_size);
	struct hmm_dmirror_cmd cmd;
	struct statfs sfs;
	double start;
	int fd, tries;

	if (!mirror || statfs(dir, &sfs))
		err(EXIT_FAILURE, "%s", dir);
	if (sfs.f_type == TMPFS_MAGIC)
		return;
	fd = open_file(dir, "bench");
	write_pages(fd, mirror, CHUNK);
	for (unsigned long rep = 0; rep < reps; rep++) {
		for (enum metric m = COPY; m <= AHEAD; m++) {
			/* Only what is clean can be dropped. No large folios. */
			if (fsync(fd) || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
				err(EXIT_FAILURE, "fsync");
			p = map_file(fd);
			madvise(p, CHUNK * page_size, MADV_RANDOM);
			tries = 100;
			do {
				touch_pages(p, CHUNK, 1);
				cmd = (struct hmm_dmirror_cmd) {
					.addr = (uintptr_t)p,
					.ptr = (uintptr_t)mirror,
					.npages = CHUNK,
				};
				ioctl(dev, HMM_DMIRROR_MIGRATE_TO_DEV, &cmd);
			} while (cmd.cpages != CHUNK && --tries);
			if (!tries)
				errx(EXIT_FAILURE, "%s: pages do not migrate", method);
			if (m == REREAD)
				set_flags(dev, HMM_DMIRROR_FLAG_FAIL_COPY);
			if (m == AHEAD) {
				munmap(p, CHUNK * page_size);
				posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
				p = map_file(fd);
			}
			start = bench_now();
			touch_pages(p, CHUNK, 1);
			samples[m][rep] = (bench_now() - start) / CHUNK;
			set_flags(dev, 0);
			munmap(p, CHUNK * page_size);
		}
	}
	close(fd);
	remove_file(dir, "bench");
	free(mirror);
	print_metrics(method, "clean", COPY, AHEAD, CHUNK, reps);
}

static int print_usage(FILE *stream, const char *program, int status)
{
	fprintf(stream,
		"usage: %s [-h] [-a] [-p pages] [-r reps] directory...\n"
		"  -a: migrate anonymous memory only, of what is migrated\n"
		"  -p: size of the cached file (default 16384)\n"
		"  -r: repetitions (default 5)\n", program);
	return status;
}

int main(int argc, char **argv)
{
	unsigned long pages = 16384, reps = 5;
	bool anon_only = false;
	int dev, opt;

	while ((opt = getopt(argc, argv, "hap:r:")) != -1) {
		switch (opt) {
		case 'a':
			anon_only = true;
			break;
		case 'p':
			pages = bench_arg(optarg, AROUND, MAX_PAGES);
			pages = pages / AROUND * AROUND;
			break;
		case 'r':
			reps = bench_arg(optarg, 1, BENCH_MAX_REPS);
			break;
		default:
			return print_usage(opt == 'h' ? stdout : stderr, argv[0],
					   opt == 'h' ? EXIT_SUCCESS : EXIT_FAILURE);
		}
	}
	if (optind == argc)
		return print_usage(stderr, argv[0], EXIT_FAILURE);

	page_size = psize();
	dev = open("/dev/hmm_dmirror0", O_RDWR);
	if (dev < 0)
		err(BENCH_SKIP, "/dev/hmm_dmirror0");
	/* The first touch of these must not be part of a sample. */
	memset(samples, 0, sizeof(samples));

	bench_header();
	for (int i = optind; i < argc; i++)
		bench_cache(argv[i], basename(argv[i]), pages, reps);
	bench_device(NULL, "anon", dev, reps);
	for (int i = optind; i < argc && !anon_only; i++) {
		bench_device(argv[i], basename(argv[i]), dev, reps);
		bench_clean(argv[i], basename(argv[i]), dev, reps);
	}
	close(dev);
	return EXIT_SUCCESS;
}
