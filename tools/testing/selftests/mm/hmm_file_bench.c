// SPDX-License-Identifier: GPL-2.0
/*
 * What the page cache costs, and migration to device memory and back: time per
 * page. Of use on two kernels, or for file memory against anonymous memory on
 * one; with QEMU's -icount, times are numbers of instructions.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "vm_util.h"
#include <lib/test_hmm_uapi.h>

#define PAGES	4096UL
#define CHUNK	256UL

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e9 + ts.tv_nsec;
}

static void result(const char *dir, const char *what, double start,
		   unsigned long n)
{
	printf("# %-12s %-20s %12.1f ns\n", dir, what, (now() - start) / n);
	fflush(stdout);
}

static void touch(char *p, unsigned long nr, unsigned long step)
{
	for (unsigned long i = 0; i < nr; i += step)
		FORCE_READ(p[i * psize()]);
}

static void bench_file(const char *dir)
{
	char path[128], *buf = aligned_alloc(psize(), psize()), *p;
	double start;
	int fd;

	snprintf(path, sizeof(path), "%s/bench", dir);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || !buf)
		err(1, "%s", path);
	memset(buf, 1, psize());

	for (int round = 0; round < 2; round++) {
		start = now();
		for (unsigned long i = 0; i < PAGES; i++)
			if (pwrite(fd, buf, psize(), i * psize()) != (ssize_t)psize())
				err(1, "pwrite");
		if (round)
			result(dir, "write cached", start, PAGES);
		start = now();
		if (fsync(fd))
			err(1, "fsync");
		if (round)
			result(dir, "fsync", start, PAGES);
	}

	for (int round = 0; round < 2; round++) {
		start = now();
		for (unsigned long i = 0; i < PAGES; i++)
			if (pread(fd, buf, psize(), i * psize()) != (ssize_t)psize())
				err(1, "pread");
	}
	result(dir, "read cached", start, PAGES);

	for (int round = 0; round < 2; round++) {
		p = mmap(NULL, PAGES * psize(), PROT_READ, MAP_SHARED, fd, 0);
		if (p == MAP_FAILED)
			err(1, "mmap");
		start = now();
		touch(p, PAGES, 16);
		if (round)
			result(dir, "fault-around", start, PAGES / 16);
		munmap(p, PAGES * psize());
	}
	unlink(path);
	close(fd);

	for (int round = 0; round < 2; round++) {
		struct stat st;

		start = now();
		for (int i = 0; i < 500; i++) {
			snprintf(path, sizeof(path), "%s/find.%d", dir, i);
			if (!round) {
				fd = open(path, O_RDWR | O_CREAT, 0600);
				close(fd);
			}
			if (stat(path, &st))
				err(1, "stat");
		}
	}
	result(dir, "stat", start, 500);
	for (int i = 0; i < 500; i++) {
		snprintf(path, sizeof(path), "%s/find.%d", dir, i);
		unlink(path);
	}
	free(buf);
}

static void bench_migrate(const char *dir, int dev)
{
	char path[128], *p, *mirror = malloc(CHUNK * psize());
	struct hmm_dmirror_cmd cmd = {};
	int fd = -1, flags = MAP_SHARED;
	double there = 0, back = 0, start;

	if (!strcmp(dir, "anon")) {
		flags = MAP_PRIVATE | MAP_ANONYMOUS;
	} else {
		snprintf(path, sizeof(path), "%s/bench", dir);
		fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
		if (fd < 0)
			err(1, "%s", path);
		for (unsigned long i = 0; i < CHUNK; i++)
			if (pwrite(fd, mirror, psize(), i * psize()) != (ssize_t)psize())
				err(1, "pwrite");
	}
	p = mmap(NULL, CHUNK * psize(), PROT_READ | PROT_WRITE, flags, fd, 0);
	if (p == MAP_FAILED || !mirror)
		err(1, "mmap");
	madvise(p, CHUNK * psize(), MADV_NOHUGEPAGE);
	for (unsigned long i = 0; i < CHUNK; i++)
		p[i * psize()] = 1;

	for (int round = 0; round < 9; round++) {
		cmd.addr = (uintptr_t)p;
		cmd.ptr = (uintptr_t)mirror;
		cmd.npages = CHUNK;
		for (unsigned long i = 0; i < CHUNK; i++)
			p[i * psize()] = 1;
		start = now();
		if (ioctl(dev, HMM_DMIRROR_MIGRATE_TO_DEV, &cmd) ||
		    cmd.cpages != CHUNK)
			err(1, "%s: migrate", dir);
		if (round)
			there += now() - start;
		start = now();
		touch(p, CHUNK, 1);
		if (round)
			back += now() - start;
	}
	printf("# %-12s %-20s %12.1f ns\n", dir, "migrate", there / 8 / CHUNK);
	printf("# %-12s %-20s %12.1f ns\n", dir, "back", back / 8 / CHUNK);
	munmap(p, CHUNK * psize());
	if (fd >= 0) {
		close(fd);
		unlink(path);
	}
	free(mirror);
}

int main(int argc, char **argv)
{
	int dev = open("/dev/hmm_dmirror0", O_RDWR);

	if (argc < 2)
		errx(2, "usage: %s DIRECTORY...", argv[0]);
	for (int i = 1; i < argc; i++)
		bench_file(argv[i]);
	if (dev < 0)
		return 0;
	bench_migrate("anon", dev);
	for (int i = 1; i < argc; i++)
		bench_migrate(argv[i], dev);
	close(dev);
	return 0;
}
