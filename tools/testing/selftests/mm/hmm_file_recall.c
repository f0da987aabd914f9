// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of files in device private memory under pressure: who waits for a
 * recall, what it costs, what becomes of clean pages, and who is charged.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include "hmm_file_util.h"

FIXTURE(recall) { };
FIXTURE_VARIANT(recall) { const char *fs; };
FIXTURE_VARIANT_ADD(recall, tmpfs) { "tmpfs" };
FIXTURE_VARIANT_ADD(recall, ext4) { "ext4" };
FIXTURE_VARIANT_ADD(recall, xfs) { "xfs" };
FIXTURE_VARIANT_ADD(recall, btrfs) { "btrfs" };

FIXTURE_SETUP(recall)
{
	const char *reason = new_file(variant->fs);

	if (reason)
		SKIP(return, "%s: %s", variant->fs, reason);
	ASSERT_TRUE(write_pages(0, PAGES, 1));
}

FIXTURE_TEARDOWN(recall)
{
	EXPECT_TRUE(end_file());
	leave_cgroups("a", "b");
}

/* The file's pages go to the device, clean; NULL if they do not */
static char *clean_on_device(void)
{
	char *p = map(0, PAGES, PROT_READ, MAP_SHARED);

	return p && !fsync(fd) && migrate(p, PAGES, false) ? p : NULL;
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
	char *p = clean_on_device();
	pid_t child[READERS];

	ASSERT_NE(NULL, p);
	ASSERT_TRUE(read_right(0, PAGES, 1));
	for (int i = 0; i < READERS; i++) {
		child[i] = fork();
		if (child[i])
			continue;
		for (int r = 1; r <= ROUNDS; r++) {
			while (*round < r)
				sched_yield();
			if (!read_right(0, 1, 1))
				_exit(1);
			__atomic_add_fetch(&round[1], 1, __ATOMIC_SEQ_CST);
		}
		_exit(0);
	}
	for (int r = 1; r <= ROUNDS; r++) {
		ASSERT_TRUE(migrate(p, 1, false));
		*round = r;
		ASSERT_TRUE(WAIT_FOR(round[1] == r * READERS));
		ASSERT_EQ(1, recalls());
	}
	for (int i = 0; i < READERS; i++)
		ASSERT_TRUE(ends_well(child[i]));
}

static bool sleeps(pid_t pid)
{
	char name[64];

	snprintf(name, sizeof(name), "/proc/%d/status", pid);
	return !run("grep -q 'State:.D' %s", name);
}

/* A child that reads page 0, by read() or by a fault, while copies hang */
static pid_t reader(const char *p)
{
	pid_t pid = fork();

	if (!pid)
		_exit(p ? !right(p, 0, 1, 1) && !right(p, 0, 1, 2) :
			  !read_right(0, 1, 1));
	return pid;
}

/* Who waits for another one's recall can be killed. */
TEST_F_TIMEOUT(recall, killed_waiter, TIMEOUT)
{
	for (int fault = 0; fault < 2; fault++) {
		char *p = clean_on_device();
		pid_t first, second;

		ASSERT_NE(NULL, p);
		ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_HANG_COPY));
		first = reader(NULL);
		ASSERT_TRUE(WAIT_FOR(stats().hanging == 1));
		second = reader(fault ? p : NULL);
		ASSERT_TRUE(WAIT_FOR(sleeps(second)));
		ASSERT_EQ(0, kill(second, SIGKILL));
		ASSERT_FALSE(ends_well(second));
		ASSERT_EQ(1, stats().hanging);
		ASSERT_EQ(0, set_flags(0));
		ASSERT_TRUE(ends_well(first));
		ASSERT_TRUE(read_right(0, PAGES, 1));
		ASSERT_EQ(0, munmap(p, SIZE));
	}
}

/* Who has a reference, and waits for the lock, gets it: no livelock. */
TEST_F_TIMEOUT(recall, direct_write, TIMEOUT)
{
	int direct = open(path, O_WRONLY | O_DIRECT);
	pid_t first, second;
	char *p;

	if (direct < 0)
		SKIP(return, "no direct I/O");
	p = clean_on_device();
	ASSERT_NE(NULL, p);
	fill(buf, 0, 1, 2);
	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_HANG_COPY));
	first = reader(p);
	ASSERT_TRUE(WAIT_FOR(stats().hanging == 1));
	second = fork();
	if (!second)
		_exit(pwrite(direct, buf, psize(), 0) != psize());
	ASSERT_TRUE(WAIT_FOR(sleeps(second)));
	ASSERT_EQ(0, set_flags(0));
	ASSERT_TRUE(ends_well(first));
	ASSERT_TRUE(ends_well(second));
	ASSERT_TRUE(right(p, 0, 1, 2));
}

enum way { COPY_FAILS, EVICT_WITHOUT_MEMORY, DONTNEED, CACHES, WAYS };

static bool drop(enum way way)
{
	return way == CACHES ? set_file(DROP_CACHES, "3") :
		!posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

/* What the disk has as well goes from the device without a copy. */
TEST_F_TIMEOUT(recall, clean, TIMEOUT)
{
	char *w = map(0, 1, PROT_READ | PROT_WRITE, MAP_SHARED);
	char *p;

	for (enum way way = 0; way < WAYS; way++) {
		long left = fs->mkfs ? 0 : PAGES;

		p = clean_on_device();
		ASSERT_NE(NULL, p);
		if (way == EVICT_WITHOUT_MEMORY) {
			/* What is dirty stays there. */
			touch(w, 1, true);
			ASSERT_TRUE(migrate(w, 1, true));
			left = fs->mkfs ? 1 : PAGES;
			ASSERT_EQ(0, munmap(w, psize()));
		}
		ASSERT_EQ(0, set_flags(way == COPY_FAILS ? HMM_DMIRROR_FLAG_FAIL_COPY :
				       HMM_DMIRROR_FLAG_EVICT_NOMEM));
		if (way == EVICT_WITHOUT_MEMORY) {
			ASSERT_TRUE(WAIT_FOR(!evict() && resident() <= left));
		} else if (way != COPY_FAILS) {
			/* A device may be using it. */
			ASSERT_TRUE(drop(way));
			ASSERT_EQ(PAGES, resident());
			ASSERT_EQ(0, munmap(p, SIZE));
			ASSERT_TRUE(WAIT_FOR(drop(way) && resident() <= left));
		} else if (fs->mkfs) {
			for (unsigned long i = 0; i < PAGES; i += 2)
				ASSERT_TRUE(right(p + i * psize(), i, 1, 1));
			ASSERT_TRUE(read_right(0, PAGES, 1));
		} else {
			ASSERT_EQ(EIO, error_of(pread(fd, buf, 1, 0)));
		}
		ASSERT_EQ(left, resident());
		ASSERT_EQ(0, recalls());
		ASSERT_EQ(0, set_flags(0));
		ASSERT_TRUE(read_right(0, PAGES, 1));
		ASSERT_EQ(0, fsync(fd));
		if (way < DONTNEED)
			ASSERT_EQ(0, munmap(p, SIZE));
	}
}

/* Without an OOM kill, that would be for ever. */
TEST_F_TIMEOUT(recall, oom, TIMEOUT)
{
	const char *min_free = "/proc/sys/vm/min_free_kbytes";
	char c, old[32], *p = clean_on_device();
	pid_t hog, watchdog;
	int ready[2];

	ASSERT_NE(NULL, p);
	snprintf(old, sizeof(old), "%ld", number_in(min_free, ""));
	ASSERT_EQ(0, pipe(ready));
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
	ASSERT_EQ(1, read(ready[0], &c, 1));
	watchdog = fork();
	if (!watchdog) {
		sleep(PATIENCE);
		_exit(!set_file(min_free, old));
	}
	ASSERT_TRUE(set_file(min_free, "200000"));
	EXPECT_TRUE(right(p, 0, PAGES, 1));
	EXPECT_EQ(0, waitpid(watchdog, NULL, WNOHANG));
	set_file(min_free, old);
	kill(watchdog, SIGKILL);
	kill(hog, SIGKILL);
	waitpid(watchdog, NULL, 0);
	waitpid(hog, NULL, 0);
}

/* In pages; "current" is right up to what each CPU has in stock. */
static long of_cgroup(const char *name, const char *file, const char *key)
{
	return number_in(cgroup_file(name, file), key) / (long)psize();
}

/* Images are in shmem, which a loop device has charged to who writes. */
static long cache(const char *name)
{
	return of_cgroup(name, "memory.stat", "file ") -
	       (fs->mkfs ? of_cgroup(name, "memory.stat", "shmem ") : 0);
}

static long dirty(const char *name)
{
	return of_cgroup(name, "memory.stat", fs->mkfs ? "file_dirty " : "shmem ");
}

/*
 * Device memory is not charged, and what comes back is to whoever wants it; for
 * writeback, to the cgroup whose inode it is.
 */
TEST_F_TIMEOUT(recall, charge, TIMEOUT)
{
	const long nr = 1024, stock = 128 * sysconf(_SC_NPROCESSORS_ONLN);
	char *p;
	long a;

	if (nr <= 2 * stock || nr * psize() > 32 << 20)
		SKIP(return, "too many CPUs, or pages too large");
	if (!join_cgroup("b") || !join_cgroup("a"))
		SKIP(return, "no memory cgroups");
	/* A new file, so that it is of this cgroup. */
	ASSERT_EQ(NULL, new_file(NULL));
	ASSERT_TRUE(write_pages(0, nr, 1));
	a = of_cgroup("a", "memory.current", "");
	ASSERT_GE(a, nr);
	ASSERT_TRUE(WAIT_FOR(cache("a") >= nr && dirty("a") >= nr));
	p = map(0, nr, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_TRUE(migrate(p, nr, true));
	ASSERT_LE(of_cgroup("a", "memory.current", ""), a - nr + stock);
	ASSERT_TRUE(WAIT_FOR(cache("a") < nr / 8 && dirty("a") < nr / 8));

	ASSERT_TRUE(join_cgroup("b"));
	ASSERT_TRUE(read_right(0, nr / 2, 1));
	ASSERT_TRUE(WAIT_FOR(cache("b") >= nr / 2 && dirty("b") >= nr / 2));
	ASSERT_LT(cache("a"), nr / 8);
	sync();
	if (!fs->mkfs) {
		/* Eviction is by b, too. */
		ASSERT_TRUE(WAIT_FOR(!evict() && !resident()));
		ASSERT_TRUE(WAIT_FOR(cache("b") >= nr));
	} else {
		ASSERT_EQ(0, resident());
		ASSERT_TRUE(WAIT_FOR(cache("a") >= nr / 2 && dirty("a") < nr / 8 &&
				     dirty("b") < nr / 8));
	}
	ASSERT_EQ(0, ftruncate(fd, 0));
	ASSERT_TRUE(WAIT_FOR(cache("a") < nr / 8 && cache("b") < nr / 8));
}

HMM_FILE_MAIN
