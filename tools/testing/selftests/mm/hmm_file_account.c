// SPDX-License-Identifier: GPL-2.0
/* Pages of files in device private memory: what they count as. */
#define _GNU_SOURCE
#include <sys/sysmacros.h>

#include "kselftest_harness.h"
#include "hmm_file_util.h"

/* So many that those which a CPU has not yet added do not matter */
#define NR	256UL

FIXTURE(account) { };
FIXTURE_SETUP(account) { }
FIXTURE_TEARDOWN(account) { EXPECT_TRUE(end_file()); }

static long swap_of(char *p)
{
	char part[32];

	snprintf(part, sizeof(part), "%lx-", (unsigned long)p);
	return number_after("/proc/self/smaps", part, "Swap:");
}

/* What is on the device is neither swapped out nor resident memory. */
TEST_F_TIMEOUT(account, smaps, TIMEOUT)
{
	const unsigned long nr = NR - PAGES;
	const char *reason = new_file("tmpfs");
	long rss;
	char *p;

	if (reason || number_in("/proc/meminfo", "SwapTotal:") <= 0)
		SKIP(return, "%s", reason ?: "no swap");
	ASSERT_TRUE(write_pages(0, NR, 1));
	p = map(0, NR, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_NE(NULL, p);
	touch(p, NR, true);
	rss = number_in("/proc/self/status", "RssShmem:");
	ASSERT_TRUE(migrate(p + SIZE, nr, true));
	rss -= number_in("/proc/self/status", "RssShmem:");
	ASSERT_GE(rss, nr * psize() / 1024 / 2);
	/* So that entries are looked at, one page has to be. */
	while (!swap_of(p))
		madvise(p, psize(), MADV_PAGEOUT);

	for (int private = 0; private < 2; private++) {
		char *q = map(PAGES, nr, PROT_READ | PROT_WRITE,
			      private ? MAP_PRIVATE : MAP_SHARED);

		ASSERT_NE(NULL, q);
		ASSERT_EQ(0, swap_of(q));
		munmap(q, nr * psize());
	}
	ASSERT_EQ(nr, resident());
}

/* Of a cgroup, from the file that debugfs has for the file system */
static long reclaimable(const char *file, const char *cgroup)
{
	char part[64];
	struct stat st;

	if (stat(cgroup_file(cgroup, ""), &st))
		return -1;
	snprintf(part, sizeof(part), "WbCgIno:           %10lu", st.st_ino);
	return number_after(file, part, "WbReclaimable:");
}

/*
 * When another cgroup writes to the file, its writeback becomes a matter of that
 * one, and so does what is dirty on the device.
 */
TEST_F_TIMEOUT(account, cgroup_writeback, TIMEOUT)
{
	static const char * const names[] = { "ext4", "xfs" };
	const long half = NR * psize() / 1024 / 2;
	const char *reason;
	char file[96], *p;
	struct stat st;

	if (sysconf(_SC_NPROCESSORS_CONF) > 4)
		SKIP(return, "sums over so many CPUs are not exact");
	for (unsigned int i = 0; i < ARRAY_SIZE(names); i++) {
		if (!join_cgroup("wb_a"))
			SKIP(return, "no cgroup2 with memory");
		reason = new_file(names[i]);
		if (reason)
			SKIP(return, "%s: %s", names[i], reason);
		ASSERT_EQ(0, fstat(fd, &st));
		snprintf(file, sizeof(file), "/sys/kernel/debug/bdi/%u:%u/wb_stats",
			 major(st.st_dev), minor(st.st_dev));
		if (access(file, R_OK))
			SKIP(return, "no %s", file);
		ASSERT_TRUE(write_pages(0, NR, 1));
		p = map(0, NR, PROT_READ | PROT_WRITE, MAP_SHARED);
		ASSERT_NE(NULL, p);
		ASSERT_TRUE(migrate(p, NR, true));
		ASSERT_GT(reclaimable(file, "wb_a"), half);

		/* Only b writes, to other pages. */
		ASSERT_TRUE(join_cgroup("wb_b"));
		ASSERT_TRUE(WAIT_FOR((write_pages(NR, PAGES, 1),
				      sync_file_range(fd, NR * psize(), SIZE,
						      SYNC_FILE_RANGE_WAIT_BEFORE |
						      SYNC_FILE_RANGE_WRITE |
						      SYNC_FILE_RANGE_WAIT_AFTER),
				      posix_fadvise(fd, NR * psize(), SIZE,
						    POSIX_FADV_DONTNEED),
				      reclaimable(file, "wb_a") <= half)));
		EXPECT_GT(reclaimable(file, "wb_b"), half);
		EXPECT_EQ(NR, resident());
		munmap(p, NR * psize());
	}
	leave_cgroups("wb_a", "wb_b");
}

HMM_FILE_MAIN
