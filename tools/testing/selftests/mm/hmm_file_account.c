// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of files in device private memory: what they count as. The device is
 * that of lib/test_hmm.c; mounting wants root.
 */
#define _GNU_SOURCE
#include <sys/sysmacros.h>

#include "kselftest_harness.h"
#include "hmm_file.h"

#define CGROUP	TOP "/cgroup"

FIXTURE(account)
{
	struct hmm_file file;
};

FIXTURE_SETUP(account)
{
	const char *reason = hmm_file_begin(&self->file);

	if (reason)
		SKIP(return, "%s", reason);
}

FIXTURE_TEARDOWN(account)
{
	umount2(CGROUP, MNT_DETACH);
	hmm_file_end(&self->file);
}

/* The number in kB after @key, in the part of a file that comes after @part */
static long number_after(const char *path, const char *part, const char *key)
{
	FILE *f = fopen(path, "r");
	bool there = !part;
	long value = -1;
	char line[512];

	while (f && value < 0 && fgets(line, sizeof(line), f)) {
		if (!there)
			there = !strncmp(line, part, strlen(part));
		else if (!strncmp(line, key, strlen(key)))
			sscanf(line + strlen(key), "%ld", &value);
	}
	if (f)
		fclose(f);
	return value;
}

static long swap_of(char *p)
{
	char part[32];

	snprintf(part, sizeof(part), "%lx-", (unsigned long)p);
	return number_after("/proc/self/smaps", part, "Swap:");
}

/* What is on the device is neither swapped out nor resident memory. */
TEST_F_TIMEOUT(account, smaps, TIMEOUT)
{
	struct hmm_file *file = &self->file;
	const unsigned long nr = 256;
	long rss;
	char *p;

	if (number_after("/proc/meminfo", NULL, "SwapTotal:") <= 0)
		SKIP(return, "no swap");
	ASSERT_TRUE(new_file(file));
	ASSERT_TRUE(write_pages(file, 0, nr, 1));
	p = map(file, 0, nr, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_NE(NULL, p);
	for (unsigned long i = 0; i < nr; i++)
		FORCE_READ(p[i * psize()]);
	rss = number_after("/proc/self/status", NULL, "RssShmem:");
	to_device(file, p + PAGES * psize(), nr - PAGES, 2);
	rss -= number_after("/proc/self/status", NULL, "RssShmem:");
	ASSERT_GE(rss, (nr - PAGES) * psize() / 1024 / 2);
	/* So that entries are looked at, one page has to be. */
	while (!swap_of(p))
		madvise(p, psize(), MADV_PAGEOUT);

	for (int private = 0; private < 2; private++) {
		char *q = map(file, PAGES, nr - PAGES, PROT_READ | PROT_WRITE,
			      private ? MAP_PRIVATE : MAP_SHARED);

		ASSERT_NE(NULL, q);
		ASSERT_EQ(0, swap_of(q));
		munmap(q, (nr - PAGES) * psize());
	}
	ASSERT_EQ(nr - PAGES, resident(file));
}

static long reclaimable(const char *stats, const char *cgroup)
{
	char part[64];
	struct stat st;

	if (stat(cgroup, &st))
		return -1;
	snprintf(part, sizeof(part), "WbCgIno:           %10lu", st.st_ino);
	return number_after(stats, part, "WbReclaimable:");
}

/*
 * When another cgroup writes to the file, its writeback becomes a matter of that
 * one, and so does what is dirty on the device.
 */
TEST_F_TIMEOUT(account, cgroup_writeback, TIMEOUT)
{
	struct hmm_file *file = &self->file;
	/* So many that those which a CPU has not yet added do not matter */
	const unsigned long nr = 256;
	const long half = nr * psize() / 1024 / 2;
	char stats[96], *p;
	const char *reason;
	struct stat st;

	if (sysconf(_SC_NPROCESSORS_CONF) > 4)
		SKIP(return, "sums over so many CPUs are not exact");
	mkdir(CGROUP, 0700);
	if (mount("cgroup2", CGROUP, "cgroup2", 0, NULL) ||
	    !set_file(CGROUP "/cgroup.subtree_control", "+memory"))
		SKIP(return, "no cgroup2 with memory");
	set_file(CGROUP "/cgroup.subtree_control", "+io");
	mkdir(CGROUP "/wb_a", 0700);
	mkdir(CGROUP "/wb_b", 0700);
	for (unsigned int i = 0; i < 2; i++) {
		int rounds = 1000;

		ASSERT_TRUE(set_file(CGROUP "/wb_a/cgroup.procs", "0"));
		reason = new_fs(file, &filesystems[i]);
		if (reason)
			SKIP(return, "%s: %s", filesystems[i].name, reason);
		ASSERT_EQ(0, fstat(file->fd, &st));
		snprintf(stats, sizeof(stats), "/sys/kernel/debug/bdi/%u:%u/wb_stats",
			 major(st.st_dev), minor(st.st_dev));
		if (access(stats, R_OK))
			SKIP(return, "no %s", stats);
		ASSERT_TRUE(write_pages(file, 0, nr, 1));
		p = map(file, 0, nr, PROT_READ | PROT_WRITE, MAP_SHARED);
		ASSERT_NE(NULL, p);
		to_device(file, p, nr, 1);
		ASSERT_GT(reclaimable(stats, CGROUP "/wb_a"), half);

		/* Only b writes, to other pages. */
		ASSERT_TRUE(set_file(CGROUP "/wb_b/cgroup.procs", "0"));
		while (reclaimable(stats, CGROUP "/wb_a") > half && rounds--) {
			ASSERT_TRUE(write_pages(file, nr, PAGES, 1));
			ASSERT_EQ(0, sync_file_range(file->fd, nr * psize(), SIZE,
						     SYNC_FILE_RANGE_WAIT_BEFORE |
						     SYNC_FILE_RANGE_WRITE |
						     SYNC_FILE_RANGE_WAIT_AFTER));
			posix_fadvise(file->fd, nr * psize(), SIZE,
				      POSIX_FADV_DONTNEED);
			usleep(10000);
		}
		EXPECT_LE(reclaimable(stats, CGROUP "/wb_a"), half);
		EXPECT_GT(reclaimable(stats, CGROUP "/wb_b"), half);
		EXPECT_EQ(nr, resident(file));
		munmap(p, nr * psize());
	}
	set_file(CGROUP "/cgroup.procs", "0");
	rmdir(CGROUP "/wb_a");
	rmdir(CGROUP "/wb_b");
}

TEST_HARNESS_MAIN
