// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of files in device private memory under pressure: who waits for a
 * recall, what it costs, what becomes of clean pages, and who is charged. The
 * device is lib/test_hmm.c's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "kselftest_harness.h"
#include <lib/test_hmm_uapi.h>
#include "hmm_file_util.h"
#include "vm_util.h"

#define DEVICE		"/dev/hmm_dmirror0"
#define TOP		"/tmp/hmm_file_recall"
#define CGROUP		TOP "/cgroup"
#define PAGES		16UL
#define MOST		1024L

#define PATIENCE	60	/* seconds, for what has to happen */
#define TIMEOUT		300

#define WAIT_FOR(condition)						\
({									\
	time_t end_ = time(NULL) + PATIENCE;				\
	bool is_;							\
									\
	while (!(is_ = (condition)) && time(NULL) < end_)		\
		usleep(10000);						\
	is_;								\
})

FIXTURE(recall)
{
	int dev;
	int fd;
	char path[128];
	char *mirror;		/* what the device has read */
	unsigned long nr;	/* pages of the file */
	struct hmm_dmirror_stats before;
};

FIXTURE_VARIANT(recall)
{
	const char *fs;
	const char *mkfs;	/* NULL: tmpfs */
};

FIXTURE_VARIANT_ADD(recall, tmpfs) { "tmpfs" };
FIXTURE_VARIANT_ADD(recall, ext4) { "ext4", "mkfs.ext4 -q -F" };
FIXTURE_VARIANT_ADD(recall, xfs) { "xfs", "mkfs.xfs -q -f" };
FIXTURE_VARIANT_ADD(recall, btrfs) { "btrfs", "mkfs.btrfs -q -f" };

static struct hmm_dmirror_stats stats(struct _test_data_recall *self)
{
	struct hmm_dmirror_stats now = {};

	ioctl(self->dev, HMM_DMIRROR_STATS, &now);
	return now;
}

/* Pages in device memory, and recalls, since the test's start */
static long resident(struct _test_data_recall *self)
{
	struct hmm_dmirror_stats now = stats(self);

	return now.allocs - self->before.allocs - (now.frees - self->before.frees);
}

static long recalls(struct _test_data_recall *self)
{
	return stats(self).recalls - self->before.recalls;
}

#define EVICT()		command(self->dev, HMM_DMIRROR_EVICT, NOWHERE, NULL, 1)
/* The driver does not know the other bit. */
#define FLAGS(flags)	command(self->dev, HMM_DMIRROR_FLAGS, NOWHERE, NULL, (flags) | 1 << 16)

/* Each word of a page is its index, or what a test writes there. */
static bool right(const void *p, unsigned long what)
{
	const uint64_t *word = p;

	for (unsigned long j = 0; j < psize() / 8; j++)
		if (word[j] != what)
			return false;
	return true;
}

/* One by one: a large folio that is dirty cannot always be split. */
static bool write_pages(struct _test_data_recall *self, unsigned long nr)
{
	uint64_t page[psize() / 8];

	self->nr = nr;
	for (unsigned long i = 0; i < nr; i++) {
		for (unsigned long j = 0; j < psize() / 8; j++)
			page[j] = i;
		if (pwrite(self->fd, page, psize(), i * psize()) != (ssize_t)psize())
			return false;
	}
	return true;
}

static bool reads_right(struct _test_data_recall *self, unsigned long nr)
{
	uint64_t page[psize() / 8];

	for (unsigned long i = 0; i < nr; i++)
		if (pread(self->fd, page, psize(), i * psize()) != (ssize_t)psize() ||
		    !right(page, i))
			return false;
	return true;
}

/* Somebody may have a reference, or have split a folio and unmapped its parts. */
static bool migrate(struct _test_data_recall *self, char *p, unsigned long nr)
{
	long was = resident(self), tries = 0;

	return WAIT_FOR(({
		for (unsigned long i = 0; i < nr && !(tries % 32); i++)
			FORCE_READ(p[i * psize()]);
		tries++;
		command(self->dev, HMM_DMIRROR_MIGRATE_TO_DEV, p, self->mirror, nr);
		resident(self) - was == (long)nr;
	}));
}

/* The file's pages to the device, in a mapping that is dirty if @prot says so */
static char *to_device(struct _test_data_recall *self, int prot)
{
	char *p = mmap(NULL, self->nr * psize(), prot, MAP_SHARED, self->fd, 0);

	if (p == MAP_FAILED || (!(prot & PROT_WRITE) && fsync(self->fd)))
		return NULL;
	madvise(p, self->nr * psize(), MADV_RANDOM);
	for (unsigned long i = 0; i < self->nr; i++) {
		if (prot & PROT_WRITE)
			*(volatile uint64_t *)(p + i * psize()) = i;
		else
			FORCE_READ(p[i * psize()]);
	}
	return migrate(self, p, self->nr) ? p : NULL;
}

FIXTURE_SETUP(recall)
{
	const char *dir;

	if (geteuid())
		SKIP(return, "needs root");
	self->dev = open(DEVICE, O_RDWR);
	if (self->dev < 0)
		SKIP(return, "%s: %s", DEVICE, strerror(errno));
	dir = mount_scratch(TOP, variant->fs, variant->mkfs);
	if (!dir)
		SKIP(return, "%s: no mkfs, or cannot be mounted", variant->fs);
	/* Writeback is when a test says so: it would recall pages. */
	ASSERT_TRUE(set_file("/proc/sys/vm/dirty_writeback_centisecs", "0"));
	snprintf(self->path, sizeof(self->path), "%s/file.%d", dir, getpid());
	self->fd = open(self->path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	ASSERT_GE(self->fd, 0);
	/* No large folios, by readahead */
	posix_fadvise(self->fd, 0, 0, POSIX_FADV_RANDOM);
	self->mirror = malloc(MOST * psize());
	ASSERT_NE(self->mirror, NULL);
	/* So that no cgroup is charged for it later */
	memset(self->mirror, 0, MOST * psize());
	ASSERT_EQ(EVICT(), 0);
	self->before = stats(self);
	ASSERT_TRUE(write_pages(self, PAGES));
}

FIXTURE_TEARDOWN(recall)
{
	FLAGS(0);
	close(self->fd);
	unlink(self->path);
	EXPECT_TRUE(WAIT_FOR(!EVICT() && !resident(self)));
	close(self->dev);
}

static bool ends_well(pid_t pid)
{
	int status;

	return waitpid(pid, &status, 0) == pid && !status;
}

/* However many want it, the page is copied once. */
TEST_F_TIMEOUT(recall, copied_once, TIMEOUT)
{
	enum { READERS = 8, ROUNDS = 100 };
	volatile int *round = mmap(NULL, psize(), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *p = to_device(self, PROT_READ);
	pid_t child[READERS];
	long was;

	ASSERT_NE(p, NULL);
	ASSERT_TRUE(reads_right(self, PAGES));
	for (int i = 0; i < READERS; i++) {
		child[i] = fork();
		if (child[i])
			continue;
		for (int r = 1; r <= ROUNDS; r++) {
			while (*round < r)
				sched_yield();
			if (!reads_right(self, 1))
				_exit(1);
			__atomic_add_fetch(&round[1], 1, __ATOMIC_SEQ_CST);
		}
		_exit(0);
	}
	for (int r = 1; r <= ROUNDS; r++) {
		ASSERT_TRUE(migrate(self, p, 1));
		was = recalls(self);
		*round = r;
		ASSERT_TRUE(WAIT_FOR(round[1] == r * READERS));
		ASSERT_EQ(recalls(self), was + 1);
	}
	for (int i = 0; i < READERS; i++)
		ASSERT_TRUE(ends_well(child[i]));
}

static bool sleeps(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	return !run("grep -q 'State:.D' %s", path);
}

/* A child that reads page 0, by read() or by a fault, while copies hang */
static pid_t reader(struct _test_data_recall *self, const char *p)
{
	pid_t pid = fork();

	if (!pid)
		_exit(p ? FORCE_READ(p[0]) && p[0] != 2 : !reads_right(self, 1));
	return pid;
}

/* Who waits for another one's recall can be killed. */
TEST_F_TIMEOUT(recall, killed_waiter, TIMEOUT)
{
	for (int fault = 0; fault < 2; fault++) {
		char *p = to_device(self, PROT_READ);
		pid_t first, second;

		ASSERT_NE(p, NULL);
		ASSERT_EQ(FLAGS(HMM_DMIRROR_FLAG_HANG_COPY), 0);
		first = reader(self, NULL);
		ASSERT_TRUE(WAIT_FOR(stats(self).hanging == 1));
		second = reader(self, fault ? p : NULL);
		ASSERT_TRUE(WAIT_FOR(sleeps(second)));
		ASSERT_EQ(kill(second, SIGKILL), 0);
		ASSERT_FALSE(ends_well(second));
		ASSERT_EQ(stats(self).hanging, 1);
		ASSERT_EQ(FLAGS(0), 0);
		ASSERT_TRUE(ends_well(first));
		ASSERT_TRUE(reads_right(self, PAGES));
		ASSERT_EQ(munmap(p, PAGES * psize()), 0);
	}
}

/* Who has a reference, and waits for the lock, gets it: no livelock. */
TEST_F_TIMEOUT(recall, direct_write, TIMEOUT)
{
	char *p, *page = aligned_alloc(psize(), psize());
	int direct = open(self->path, O_WRONLY | O_DIRECT);
	pid_t first, second;

	if (direct < 0)
		SKIP(return, "no direct I/O");
	p = to_device(self, PROT_READ);
	ASSERT_NE(p, NULL);
	memset(page, 2, psize());
	ASSERT_EQ(FLAGS(HMM_DMIRROR_FLAG_HANG_COPY), 0);
	first = reader(self, p);
	ASSERT_TRUE(WAIT_FOR(stats(self).hanging == 1));
	second = fork();
	if (!second)
		_exit(pwrite(direct, page, psize(), 0) != (ssize_t)psize());
	ASSERT_TRUE(WAIT_FOR(sleeps(second)));
	ASSERT_EQ(FLAGS(0), 0);
	ASSERT_TRUE(ends_well(first));
	ASSERT_TRUE(ends_well(second));
	ASSERT_TRUE(right(p, 0x0202020202020202));
}

enum way { COPY_FAILS, EVICT_WITHOUT_MEMORY, DONTNEED, DROP_CACHES, WAYS };

static bool drop(struct _test_data_recall *self, enum way way)
{
	return way == DROP_CACHES ? set_file("/proc/sys/vm/drop_caches", "3") :
		!posix_fadvise(self->fd, 0, 0, POSIX_FADV_DONTNEED);
}

/* What the disk has as well goes from the device without a copy. */
TEST_F_TIMEOUT(recall, clean, TIMEOUT)
{
	char *w = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	char c, *p;

	ASSERT_NE(w, MAP_FAILED);
	for (enum way way = 0; way < WAYS; way++) {
		long left = variant->mkfs ? 0 : PAGES, was;

		p = to_device(self, PROT_READ);
		ASSERT_NE(p, NULL);
		if (way == EVICT_WITHOUT_MEMORY) {
			/* What is dirty stays there. */
			*(volatile uint64_t *)w = 0;
			ASSERT_TRUE(migrate(self, w, 1));
			left = variant->mkfs ? 1 : PAGES;
			ASSERT_EQ(munmap(w, psize()), 0);
		}
		was = recalls(self);
		ASSERT_EQ(FLAGS(way == COPY_FAILS ? HMM_DMIRROR_FLAG_FAIL_COPY :
				HMM_DMIRROR_FLAG_EVICT_NOMEM), 0);
		if (way == EVICT_WITHOUT_MEMORY) {
			ASSERT_TRUE(WAIT_FOR(!EVICT() && resident(self) <= left));
		} else if (way != COPY_FAILS) {
			/* A device may be using it. */
			ASSERT_TRUE(drop(self, way));
			ASSERT_EQ(resident(self), PAGES);
			ASSERT_EQ(munmap(p, PAGES * psize()), 0);
			ASSERT_TRUE(WAIT_FOR(drop(self, way) && resident(self) <= left));
		} else if (variant->mkfs) {
			for (unsigned long i = 0; i < PAGES; i += 2)
				ASSERT_TRUE(right(p + i * psize(), i));
			ASSERT_TRUE(reads_right(self, PAGES));
		} else {
			ASSERT_EQ(pread(self->fd, &c, 1, 0), -1);
			ASSERT_EQ(errno, EIO);
		}
		ASSERT_EQ(resident(self), left);
		ASSERT_EQ(recalls(self), was);
		ASSERT_EQ(FLAGS(0), 0);
		ASSERT_TRUE(reads_right(self, PAGES));
		ASSERT_EQ(fsync(self->fd), 0);
		if (way < DONTNEED)
			ASSERT_EQ(munmap(p, PAGES * psize()), 0);
	}
}

/* Without an OOM kill, that would be for ever. */
TEST_F_TIMEOUT(recall, oom, TIMEOUT)
{
	const char *min_free = "/proc/sys/vm/min_free_kbytes";
	char c, old[32], *p = to_device(self, PROT_READ);
	int ready[2], status;
	pid_t hog, watchdog;

	ASSERT_NE(p, NULL);
	snprintf(old, sizeof(old), "%ld", number_in(min_free, ""));
	ASSERT_EQ(pipe(ready), 0);
	hog = fork();
	if (!hog) {
		set_file("/proc/self/oom_score_adj", "1000");
		while (number_in("/proc/meminfo", "MemFree:") > 100000)
			if (mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED |
				 MAP_POPULATE, -1, 0) == MAP_FAILED)
				break;
		write(ready[1], "", 1);
		pause();
	}
	watchdog = fork();
	if (!watchdog) {
		sleep(PATIENCE);
		_exit(!set_file(min_free, old));
	}
	ASSERT_EQ(read(ready[0], &c, 1), 1);
	ASSERT_TRUE(set_file(min_free, "200000"));
	for (unsigned long i = 0; i < PAGES; i++)
		EXPECT_TRUE(right(p + i * psize(), i));
	EXPECT_EQ(waitpid(watchdog, &status, WNOHANG), 0);
	set_file(min_free, old);
	kill(watchdog, SIGKILL);
	kill(hog, SIGKILL);
	waitpid(watchdog, &status, 0);
	waitpid(hog, &status, 0);
}

static bool join_cgroup(const char *name)
{
	char path[128];

	mkdir(CGROUP, 0700);
	if (access(CGROUP "/cgroup.procs", F_OK) &&
	    mount("cgroup2", CGROUP, "cgroup2", 0, NULL))
		return false;
	set_file(CGROUP "/cgroup.subtree_control", "+memory");
	set_file(CGROUP "/cgroup.subtree_control", "+io");
	snprintf(path, sizeof(path), CGROUP "/%s", name);
	mkdir(path, 0700);
	snprintf(path, sizeof(path), CGROUP "/%s/cgroup.procs", name);
	return set_file(path, "0");
}

/* In pages; "current" is right up to what each CPU has in stock. */
static long of_cgroup(const char *name, const char *file, const char *key)
{
	char path[128];

	snprintf(path, sizeof(path), CGROUP "/%s/memory.%s", name, file);
	return number_in(path, key) / psize();
}

/* Images are in shmem, which a loop device has charged to who writes. */
#define CACHE(name)	(of_cgroup(name, "stat", "file ") - \
			 (variant->mkfs ? of_cgroup(name, "stat", "shmem ") : 0))
#define DIRTY(name)	of_cgroup(name, "stat", variant->mkfs ? "file_dirty " : "shmem ")

/*
 * Device memory is not charged, and what comes back is to whoever wants it; for
 * writeback, to the cgroup whose inode it is.
 */
TEST_F_TIMEOUT(recall, charge, TIMEOUT)
{
	const long nr = MOST, stock = 128 * sysconf(_SC_NPROCESSORS_ONLN);
	long a;

	if (nr <= 2 * stock || nr * psize() > 32 << 20)
		SKIP(return, "too many CPUs, or pages too large");
	if (!join_cgroup("b") || !join_cgroup("a"))
		SKIP(return, "no memory cgroups");
	/* A new file, so that it is of this cgroup. */
	close(self->fd);
	unlink(self->path);
	self->fd = open(self->path, O_RDWR | O_CREAT, 0600);
	ASSERT_TRUE(write_pages(self, nr));
	a = of_cgroup("a", "current", "");
	ASSERT_GE(a, nr);
	ASSERT_TRUE(WAIT_FOR(CACHE("a") >= nr && DIRTY("a") >= nr));
	ASSERT_NE(to_device(self, PROT_READ | PROT_WRITE), NULL);
	ASSERT_LE(of_cgroup("a", "current", ""), a - nr + stock);
	ASSERT_TRUE(WAIT_FOR(CACHE("a") < nr / 8 && DIRTY("a") < nr / 8));

	ASSERT_TRUE(join_cgroup("b"));
	ASSERT_TRUE(reads_right(self, nr / 2));
	ASSERT_TRUE(WAIT_FOR(CACHE("b") >= nr / 2 && DIRTY("b") >= nr / 2));
	ASSERT_LT(CACHE("a"), nr / 8);
	sync();
	if (variant->mkfs) {
		ASSERT_EQ(resident(self), 0);
		ASSERT_TRUE(WAIT_FOR(CACHE("a") >= nr / 2 &&
				     DIRTY("a") < nr / 8 && DIRTY("b") < nr / 8));
	}
	ASSERT_EQ(ftruncate(self->fd, 0), 0);
	ASSERT_TRUE(WAIT_FOR(CACHE("a") < nr / 8 && CACHE("b") < nr / 8));
	ASSERT_TRUE(set_file(CGROUP "/cgroup.procs", "0"));
}

TEST_HARNESS_MAIN
