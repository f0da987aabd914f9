// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of files in the memory of a device that sleeps, or whose copies fail:
 * what it has written comes back whole.
 */
#define _GNU_SOURCE
#include <sys/prctl.h>

#include "kselftest_harness.h"
#include "hmm_file_util.h"

/* What a driver may have locked at once, and test_hmm does. */
#define BATCH	64

FIXTURE(device) { };
FIXTURE_VARIANT(device) { const char *fs; };
FIXTURE_VARIANT_ADD(device, tmpfs) { "tmpfs" };
FIXTURE_VARIANT_ADD(device, ext4) { "ext4" };
FIXTURE_VARIANT_ADD(device, xfs) { "xfs" };
FIXTURE_VARIANT_ADD(device, btrfs) { "btrfs" };

FIXTURE_SETUP(device)
{
	const char *reason = new_file(variant->fs);

	if (reason)
		SKIP(return, "%s: %s", variant->fs, reason);
}

FIXTURE_TEARDOWN(device)
{
	EXPECT_TRUE(end_file());
	leave_cgroups("little", "");
}

static bool by_read(char *p)
{
	return pread(fd, buf, SIZE, 0) == SIZE;
}

static bool by_fault(char *p)
{
	touch(p, PAGES, false);
	return true;
}

static bool by_fsync(char *p)
{
	return !fsync(fd);
}

/* Half a page goes, for which the whole has to come back. */
static bool by_truncate(char *p)
{
	return !ftruncate(fd, SIZE - psize() / 2) && !ftruncate(fd, SIZE);
}

static bool by_evict(char *p)
{
	return WAIT_FOR(!evict() && !resident());
}

static bool by_release(char *p)
{
	return release();
}

static const struct {
	const char *name;
	bool (*go)(char *p);
} ways[] = {
	{ "read", by_read }, { "fault", by_fault }, { "fsync", by_fsync },
	{ "truncate", by_truncate }, { "evict", by_evict },
	{ "release", by_release },
};

/* The file's pages are on the device, which alone has that version of them. */
static char *only_on_device(struct __test_metadata *_metadata, unsigned long nr,
			    unsigned int version)
{
	char *p = map(0, nr, PROT_READ | PROT_WRITE, MAP_SHARED);

	ASSERT_NE(NULL, p);
	ASSERT_TRUE(write_pages(0, nr, version - 1));
	/* Space is allocated now, and no journal wants the pages later. */
	ASSERT_EQ(0, fsync(fd));
	ASSERT_TRUE(migrate(p, nr, true));
	ASSERT_TRUE(device_writes(p, 0, nr, version));
	return p;
}

/*
 * All that the device has comes back in each way, while @flags hold: it stays
 * awake for that, and sleeps when it has no pages.
 */
static void come_back(struct __test_metadata *_metadata, unsigned long flags)
{
	for (unsigned long i = 0; i < ARRAY_SIZE(ways); i++) {
		const unsigned int version = 2 * i + 2;
		unsigned long failures;
		char *p;

		ASSERT_TRUE(WAIT_FOR(!stats().awake || evict()));
		p = only_on_device(_metadata, PAGES, version);
		ASSERT_NE(0, stats().awake);

		failures = stats().recall_failures;
		ASSERT_EQ(0, set_flags(flags));
		EXPECT_TRUE(ways[i].go(p))
			TH_LOG("%s: %s", ways[i].name, strerror(errno));
		fill(buf, 0, PAGES, version);
		EXPECT_EQ(0, memcmp(p, buf, SIZE - psize() / 2))
			TH_LOG("%s: data are lost", ways[i].name);
		/* What the way has left came back for the comparison. */
		EXPECT_EQ(0, resident());
		EXPECT_EQ(0, stats().awake);
		failures = stats().recall_failures - failures;
		EXPECT_EQ(!flags, failures < PAGES);
		EXPECT_EQ(0, set_flags(0));
		EXPECT_EQ(0, fsync(fd));
		EXPECT_EQ(0, munmap(p, SIZE));
	}
}

TEST_F_TIMEOUT(device, sleeps, TIMEOUT)
{
	come_back(_metadata, 0);
}

/* What may be tried again is, for as long as it takes; nothing is lost. */
TEST_F_TIMEOUT(device, busy, TIMEOUT)
{
	come_back(_metadata, HMM_DMIRROR_FLAG_BUSY_COPY);
}

/* A device that cannot copy, but is there, keeps what it has. */
TEST_F_TIMEOUT(device, fails, TIMEOUT)
{
	char *p = only_on_device(_metadata, PAGES, 2);

	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_FAIL_COPY));
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(0, evict());
		ASSERT_EQ(EIO, error_of(pread(fd, buf, psize(), 0)));
		ASSERT_EQ(fs->mkfs ? EIO : 0, error_of(fsync(fd)));
		ASSERT_EQ(PAGES, resident());
	}
	ASSERT_EQ(0, set_flags(0));
	ASSERT_TRUE(by_evict(p));
	ASSERT_TRUE(right(p, 0, PAGES, 2));
	ASSERT_EQ(0, fsync(fd));
}

/*
 * However many pages go, few are locked at once: somebody may need one of them
 * to clean memory.
 */
TEST_F_TIMEOUT(device, evict_batch, TIMEOUT)
{
	const unsigned long nr = 8 * BATCH;
	int status;
	pid_t pid;
	char *p;

	if (nr * psize() > 32 << 20)
		SKIP(return, "pages are too large");
	p = only_on_device(_metadata, nr, 2);
	ASSERT_EQ(0, evict());
	ASSERT_GT(stats().evict_locked, 1);
	ASSERT_LE(stats().evict_locked, BATCH);
	ASSERT_TRUE(by_evict(p));
	ASSERT_TRUE(right(p, 0, nr, 2));

	p = only_on_device(_metadata, nr, 4);
	if (!join_cgroup("little") || !set_file(cgroup_file("little", "memory.high"), "1M"))
		SKIP(return, "no memory cgroups");
	pid = fork();
	if (!pid) {
		/* An assertion that fails does not leave it behind. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (1)
			if (fsync(fd))
				_exit(1);
	}
	ASSERT_TRUE(by_evict(p));
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSIGNALED(status));
	ASSERT_TRUE(right(p, 0, nr, 4));
}

HMM_FILE_MAIN
