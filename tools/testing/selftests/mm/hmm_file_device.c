// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of files in the memory of a device that sleeps, or whose copies fail:
 * what it has written comes back whole. The device is that of lib/test_hmm.c;
 * mounting wants root.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/prctl.h>

#include "kselftest_harness.h"
#include "hmm_file.h"

#define CGROUP	TOP "/cgroup"
/* What a driver may have locked at once, and test_hmm does. */
#define BATCH	64

FIXTURE(device)
{
	struct hmm_file file;
};

FIXTURE_VARIANT(device)
{
	const struct fs *fs;	/* NULL: tmpfs */
};

FIXTURE_VARIANT_ADD(device, tmpfs) { };
FIXTURE_VARIANT_ADD(device, ext4) { &filesystems[0] };
FIXTURE_VARIANT_ADD(device, xfs) { &filesystems[1] };
FIXTURE_VARIANT_ADD(device, btrfs) { &filesystems[2] };

static struct hmm_dmirror_stats stats(struct hmm_file *file)
{
	struct hmm_dmirror_stats now = {};

	ioctl(file->dev, HMM_DMIRROR_STATS, &now);
	return now;
}

#define EVICT()		command(file->dev, HMM_DMIRROR_EVICT, NOWHERE, NULL, 1)

FIXTURE_SETUP(device)
{
	struct hmm_file *file = &self->file;
	const char *reason = hmm_file_begin(file);

	if (!reason && variant->fs)
		reason = new_fs(file, variant->fs);
	else if (!reason && !new_file(file))
		reason = "no file";
	if (reason)
		SKIP(return, "%s", reason);
}

FIXTURE_TEARDOWN(device)
{
	struct hmm_file *file = &self->file;

	set_flags(file->dev, 0);
	EVICT();
	set_file(CGROUP "/cgroup.procs", "0");
	rmdir(CGROUP "/little");
	umount2(CGROUP, MNT_DETACH);
	hmm_file_end(file);
}

static bool by_read(struct hmm_file *file, char *p)
{
	return pread(file->fd, file->buf, SIZE, 0) == (ssize_t)SIZE;
}

static bool by_fault(struct hmm_file *file, char *p)
{
	for (unsigned long i = 0; i < PAGES; i++)
		FORCE_READ(p[i * psize()]);
	return true;
}

static bool by_fsync(struct hmm_file *file, char *p)
{
	return !fsync(file->fd);
}

/* Half a page goes, for which the whole has to come back. */
static bool by_truncate(struct hmm_file *file, char *p)
{
	return !ftruncate(file->fd, SIZE - psize() / 2) &&
	       !ftruncate(file->fd, SIZE);
}

static bool by_evict(struct hmm_file *file, char *p)
{
	while (resident(file))
		if (EVICT())
			return false;
	return true;
}

/* The driver does not count the pages of memory that it has removed. */
static bool by_release(struct hmm_file *file, char *p)
{
	bool ok = !command(file->dev, HMM_DMIRROR_RELEASE, NOWHERE, NULL, 1);

	file->before = stats(file);
	return ok;
}

static const struct {
	const char *name;
	bool (*go)(struct hmm_file *file, char *p);
} ways[] = {
	{ "read", by_read }, { "fault", by_fault }, { "fsync", by_fsync },
	{ "truncate", by_truncate }, { "evict", by_evict },
	{ "release", by_release },
};

/* The file's pages are on the device, which alone has @c for them. */
static char *only_on_device(struct __test_metadata *_metadata,
			    struct hmm_file *file, unsigned long nr, char c)
{
	char *p = map(file, 0, nr, PROT_READ | PROT_WRITE, MAP_SHARED);

	ASSERT_NE(NULL, p);
	ASSERT_TRUE(write_pages(file, 0, nr, c - 1));
	/* Space is allocated now, and no journal wants the pages later. */
	ASSERT_EQ(0, fsync(file->fd));
	to_device(file, p, nr, c - 1);
	for (unsigned long i = 0; i < nr; i += PAGES)
		ASSERT_TRUE(device_writes(file, p + i * psize(), PAGES, c));
	return p;
}

/*
 * All that the device has comes back in each way, while @flags hold: it stays
 * awake for that, and sleeps when it has no pages.
 */
static void come_back(struct __test_metadata *_metadata, struct hmm_file *file,
		      unsigned long flags)
{
	for (unsigned long i = 0; i < ARRAY_SIZE(ways); i++) {
		const char c = 2 * i + 2;
		unsigned long failures;
		char *p;

		while (stats(file).awake)
			ASSERT_EQ(0, EVICT());
		p = only_on_device(_metadata, file, PAGES, c);
		ASSERT_NE(0, stats(file).awake);

		failures = stats(file).recall_failures;
		ASSERT_EQ(0, set_flags(file->dev, flags));
		EXPECT_TRUE(ways[i].go(file, p))
			TH_LOG("%s: %s", ways[i].name, strerror(errno));
		EXPECT_TRUE(all_are(p, SIZE - psize() / 2, c))
			TH_LOG("%s: data are lost", ways[i].name);
		/* What the way has left came back for the comparison. */
		EXPECT_EQ(0, resident(file));
		EXPECT_EQ(0, stats(file).awake);
		failures = stats(file).recall_failures - failures;
		EXPECT_EQ(!flags, failures < PAGES);
		EXPECT_EQ(0, set_flags(file->dev, 0));
		EXPECT_EQ(0, fsync(file->fd));
		EXPECT_EQ(0, munmap(p, SIZE));
	}
}

TEST_F_TIMEOUT(device, sleeps, TIMEOUT)
{
	come_back(_metadata, &self->file, 0);
}

/* What may be tried again is, for as long as it takes; nothing is lost. */
TEST_F_TIMEOUT(device, busy, TIMEOUT)
{
	come_back(_metadata, &self->file, HMM_DMIRROR_FLAG_BUSY_COPY);
}

/* A device that cannot copy, but is there, keeps what it has. */
TEST_F_TIMEOUT(device, fails, TIMEOUT)
{
	struct hmm_file *file = &self->file;
	char *p = only_on_device(_metadata, file, PAGES, 2);

	ASSERT_EQ(0, set_flags(file->dev, HMM_DMIRROR_FLAG_FAIL_COPY));
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(0, EVICT());
		ASSERT_EQ(-1, pread(file->fd, file->buf, psize(), 0));
		ASSERT_EQ(variant->fs ? -1 : 0, fsync(file->fd));
		ASSERT_EQ(PAGES, resident(file));
	}
	ASSERT_EQ(0, set_flags(file->dev, 0));
	ASSERT_TRUE(by_evict(file, p));
	ASSERT_TRUE(all_are(p, SIZE, 2));
	ASSERT_EQ(0, fsync(file->fd));
}

/* A cgroup that has little memory, which this process joins */
static bool join_little(void)
{
	mkdir(CGROUP, 0700);
	if (mount("cgroup2", CGROUP, "cgroup2", 0, NULL))
		return false;
	set_file(CGROUP "/cgroup.subtree_control", "+memory");
	mkdir(CGROUP "/little", 0700);
	return set_file(CGROUP "/little/cgroup.procs", "0") &&
	       set_file(CGROUP "/little/memory.high", "1M");
}

/*
 * However many pages go, few are locked at once: somebody may need one of them
 * to clean memory.
 */
TEST_F_TIMEOUT(device, evict_batch, TIMEOUT)
{
	const unsigned long nr = 8 * BATCH;
	struct hmm_file *file = &self->file;
	int status;
	pid_t pid;
	char *p;

	if (nr * psize() > 32 << 20)
		SKIP(return, "pages are too large");
	p = only_on_device(_metadata, file, nr, 2);
	ASSERT_EQ(0, EVICT());
	ASSERT_GT(stats(file).evict_locked, 1);
	ASSERT_LE(stats(file).evict_locked, BATCH);
	ASSERT_TRUE(by_evict(file, p));
	ASSERT_TRUE(all_are(p, nr * psize(), 2));

	p = only_on_device(_metadata, file, nr, 4);
	if (!join_little())
		SKIP(return, "no memory cgroups");
	pid = fork();
	if (!pid) {
		/* An assertion that fails does not leave it behind. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (1)
			if (fsync(file->fd))
				_exit(1);
	}
	ASSERT_TRUE(by_evict(file, p));
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSIGNALED(status));
	ASSERT_TRUE(all_are(p, nr * psize(), 4));
}

TEST_HARNESS_MAIN
