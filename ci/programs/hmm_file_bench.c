// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the page cache costs, and what it costs to migrate pages to the memory of
 * test_hmm and back. Of use on two kernels, for file memory against anonymous
 * memory on one.  See bench_util.h for the output.
 *
 * "method" is the last part of a directory's name, or "anon". With "cache" as place,
 * of files without pages on a device:
 *   read_ns	pread() of a page, per page
 *   write_ns	pwrite() of a page, per page
 *   fsync_ns	fsync() of the file after it was written, per page
 *   around_ns	touch one page of 16 of a new mapping, per touch
 *   find_ns	nftw() of a directory, per entry
 *
 * With "device":
 *   there_ns	migrate pages to the device, per page
 *   back_ns	touch pages on the device, per page
 *   both_ns	the sum
 *
 * With "clean", of pages on the device that a disk has as well, not for tmpfs:
 *   copy_ns	touch them, per page: the device copies each
 *   reread_ns	the same, but it cannot: each is dropped, and read from the disk
 *   ahead_ns	touch them after they were dropped together, with readahead
 */
#include <fcntl.h>
#include <ftw.h>
#include <libgen.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <linux/magic.h>

#include "bench_util.h"
#include "vm_util.h"
#include <lib/test_hmm_uapi.h>

#define AROUND		16UL
#define CHUNK		256UL
#define ENTRIES		500UL

enum metric {
	READ, WRITE, FSYNC, AROUND_FAULT, FIND, THERE, BACK, BOTH, ACCESS, COPY, REREAD, AHEAD,
};

static const char * const metrics[] = {
	"read_ns", "write_ns", "fsync_ns", "around_ns", "find_ns", "there_ns", "back_ns", "both_ns",
	"access_ns", "copy_ns", "reread_ns", "ahead_ns",
};

static char *buf;		/* of CHUNK pages */
static const char *method;
static unsigned long found;
static int dev;

static void print_metrics(const char *place, enum metric first, enum metric last, unsigned long nr)
{
	for (unsigned int m = first; m <= last; m++)
		bench_row(method, place, nr, metrics[m], m);
}

static int open_file(const char *name)
{
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);

	bench_need(fd >= 0, name);
	return fd;
}

static void write_pages(int fd, unsigned long nr)
{
	for (unsigned long i = 0; i < nr; i++)
		bench_need(pwrite(fd, buf, psize(), i * psize()) == psize(), "pwrite");
}

static char *map_pages(int fd, unsigned long nr, int prot)
{
	char *p = mmap(NULL, nr * psize(), prot, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED,
		       fd, 0);

	bench_need(p != MAP_FAILED, "mmap");
	return p;
}

static double touch_pages(const char *p, unsigned long nr, unsigned long step)
{
	double start = bench_now();

	for (unsigned long i = 0; i < nr; i += step)
		FORCE_READ(p[i * psize()]);
	return (bench_now() - start) / (nr / step);
}

static int count_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	found += type == FTW_F;
	return 0;
}

static double time_find(void)
{
	const double start = bench_now();

	found = 0;
	bench_need(!nftw(".", count_entry, 16, FTW_PHYS) && found >= ENTRIES, "nftw");
	return (bench_now() - start) / found;
}

/* Of the working directory */
static void bench_cache(void)
{
	const unsigned long pages = bench_pages;
	int fd = open_file("bench");
	char name[32], *p;
	double start;

	write_pages(fd, pages);
	bench_need(!fsync(fd), "fsync");
	for (unsigned long rep = 0; rep < bench_reps; rep++) {
		start = bench_now();
		write_pages(fd, pages);
		bench_samples[WRITE][rep] = (bench_now() - start) / pages;

		start = bench_now();
		bench_need(!fsync(fd), "fsync");
		bench_samples[FSYNC][rep] = (bench_now() - start) / pages;

		start = bench_now();
		for (unsigned long i = 0; i < pages; i++)
			bench_need(pread(fd, buf, psize(), i * psize()) == psize(), "pread");
		bench_samples[READ][rep] = (bench_now() - start) / pages;

		p = map_pages(fd, pages, PROT_READ);
		bench_samples[AROUND_FAULT][rep] = touch_pages(p, pages, AROUND);
		munmap(p, pages * psize());
	}
	close(fd);
	unlink("bench");
	print_metrics("cache", READ, AROUND_FAULT, pages);

	for (int done = 0; done < 2; done++) {
		for (unsigned long rep = 0; done && rep <= bench_reps; rep++)
			bench_samples[FIND][rep ? rep - 1 : 0] = time_find();
		for (unsigned long i = 0; i < ENTRIES; i++) {
			snprintf(name, sizeof(name), "find.%lu", i);
			if (done)
				unlink(name);
			else
				close(open_file(name));
		}
	}
	print_metrics("cache", FIND, FIND, ENTRIES);
}

/* Return the pages that have migrated. */
static unsigned long command(unsigned long request, char *p, unsigned long npages)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)p,
		.ptr = (uintptr_t)buf,
		.npages = npages,
	};

	return ioctl(dev, request, &cmd) ? 0 : cmd.cpages;
}

/* Flags must not be 0: they are where a number of pages is. */
#define MIGRATE(p)	command(HMM_DMIRROR_MIGRATE_TO_DEV, p, CHUNK)
#define SET_FLAGS(f)	command(HMM_DMIRROR_FLAGS, buf, (f) | 1 << 16)

static void bench_access(char *p)
{
	double start;

	for (unsigned long rep = 0; rep <= bench_reps; rep++) {
		/* As such, a device of its own, which mirrors the caller. */
		dev = open("/dev/hmm_dmirror0", O_RDWR);
		start = bench_now();
		bench_need(command(HMM_DMIRROR_READ, p, CHUNK) == CHUNK, "device read");
		bench_samples[ACCESS][rep ? rep - 1 : 0] = (bench_now() - start) / CHUNK;
		close(dev);
	}
	print_metrics("device", ACCESS, ACCESS, CHUNK);
	fflush(stdout);
}

static void bench_device(int fd)
{
	int status, first = dev;
	char *p = map_pages(fd, CHUNK, PROT_READ | PROT_WRITE);
	double start;

	madvise(p, CHUNK * psize(), MADV_NOHUGEPAGE);
	/* The first time the device gets its memory. */
	for (unsigned long rep = 0; rep <= bench_reps; rep++) {
		const unsigned long s = rep ? rep - 1 : 0;

		for (unsigned long i = 0; i < CHUNK; i++)
			*(volatile char *)(p + i * psize()) = 1;
		start = bench_now();
		bench_need(MIGRATE(p) == CHUNK, "migrate");
		bench_samples[THERE][s] = (bench_now() - start) / CHUNK;
		bench_samples[BACK][s] = touch_pages(p, CHUNK, 1);
		bench_samples[BOTH][s] = bench_samples[THERE][s] + bench_samples[BACK][s];
	}
	print_metrics("device", THERE, BOTH, CHUNK);
	bench_need(MIGRATE(p) == CHUNK, "migrate");
	if (fd < 0) {
		bench_access(p);
	} else {
		fflush(stdout);
		if (!fork()) {
			bench_access(p);
			_exit(0);
		}
		bench_need(wait(&status) > 0 && !status, "second process");
	}
	dev = first;
	munmap(p, CHUNK * psize());
}

static void bench_clean(int fd)
{
	for (unsigned long n = 0; n < 3 * bench_reps; n++) {
		const unsigned int m = COPY + n % 3;
		int tries = 100;
		char *p;

		/* Only what is clean can be dropped. No large folios. */
		bench_need(!fsync(fd) && !posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), "fsync");
		p = map_pages(fd, CHUNK, PROT_READ);
		madvise(p, CHUNK * psize(), MADV_RANDOM);
		do {
			touch_pages(p, CHUNK, 1);
		} while (MIGRATE(p) != CHUNK && --tries);
		bench_need(tries, "migrate");
		if (m == REREAD)
			SET_FLAGS(HMM_DMIRROR_FLAG_FAIL_COPY);
		if (m == AHEAD) {
			munmap(p, CHUNK * psize());
			posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
			p = map_pages(fd, CHUNK, PROT_READ);
		}
		bench_samples[m][n / 3] = touch_pages(p, CHUNK, 1);
		SET_FLAGS(0);
		munmap(p, CHUNK * psize());
	}
	print_metrics("clean", COPY, AHEAD, CHUNK);
}

/* Arguments: absolute paths of directories; -a: of what is migrated, anonymous memory only */
int main(int argc, char **argv)
{
	const int anon_only = bench_begin(argc, argv, 16384);
	struct statfs sfs;
	int fd;

	dev = open("/dev/hmm_dmirror0", O_RDWR);
	if (dev < 0)
		err(BENCH_SKIP, "/dev/hmm_dmirror0");
	buf = calloc(CHUNK, psize());
	for (int i = optind; i < argc; i++) {
		method = basename(argv[i]);
		bench_need(!chdir(argv[i]) && !statfs(".", &sfs), argv[i]);
		bench_cache();
		if (anon_only)
			continue;
		fd = open_file("bench");
		write_pages(fd, CHUNK);
		bench_device(fd);
		if (sfs.f_type != TMPFS_MAGIC)
			bench_clean(fd);
		close(fd);
		unlink("bench");
	}
	method = "anon";
	bench_device(-1);
	return EXIT_SUCCESS;
}
