// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of files in device private memory under pressure: who waits for a recall, what it costs,
 * what becomes of clean pages, and what they count as.
 */
#define _GNU_SOURCE
#include <sys/sysmacros.h>
#include "hmm_file_util.h"

FILES(recall)
FS(recall, tmpfs);
FS(recall, ext4);
FS(recall, xfs);
FS(recall, btrfs);

static bool sleeps(pid_t pid)
{
	char cmd[64];

	snprintf(cmd, sizeof(cmd), "grep -q 'State:.D' /proc/%d/status", pid);
	return !system(cmd);
}

/* However many want it, the page is copied once. */
OP(recall, copied_once, CLEAN, 1, NONE)
{
	pid_t readers[8];

	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_HANG_COPY));
	for (unsigned int i = 0; i < ARRAY_SIZE(readers); i++) {
		readers[i] = fork();
		if (!readers[i])
			_exit(!read_right(0, 1, 1));
	}
	for (unsigned int i = 0; i < ARRAY_SIZE(readers); i++)
		EXPECT_TRUE(WAIT_FOR(sleeps(readers[i])));
	EXPECT_EQ(1, stats().hanging);
	ASSERT_EQ(0, set_flags(0));
	for (unsigned int i = 0; i < ARRAY_SIZE(readers); i++)
		ASSERT_TRUE(ends_well(readers[i]));
}

/*
 * Who waits for another one's recall, while copies hang, can be killed. Who has a reference, and
 * waits for the lock, gets it: no livelock.
 */
OP(recall, waiter, CLEAN, ANY, NONE)
{
	enum { READ_IT, LOAD_IT, WRITE_DIRECT };
	int direct = open(path, O_WRONLY | O_DIRECT);

	for (int way = READ_IT; way <= WRITE_DIRECT; way++) {
		pid_t first, second;

		ASSERT_TRUE(migrate(p, PAGES, false));
		fill(buf, 0, 1, 2);
		ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_HANG_COPY));
		first = fork();
		if (!first) {
			touch(p, 1, false);
			_exit(way != WRITE_DIRECT && !read_right(0, 1, 1));
		}
		ASSERT_TRUE(WAIT_FOR(stats().hanging == 1));
		second = fork();
		if (!second)
			_exit(way == READ_IT ? !read_right(0, 1, 1) :
			      way == LOAD_IT ? !right(p, 0, 1, 1) :
					       pwrite(direct, buf, psize(), 0) != psize());
		ASSERT_TRUE(WAIT_FOR(sleeps(second)));
		if (way != WRITE_DIRECT) {
			ASSERT_EQ(0, kill(second, SIGKILL));
			ASSERT_FALSE(ends_well(second));
		}
		ASSERT_EQ(1, stats().hanging);
		ASSERT_EQ(0, set_flags(0));
		ASSERT_TRUE(ends_well(first));
		ASSERT_TRUE(way != WRITE_DIRECT || ends_well(second));
		ASSERT_TRUE(read_right(0, 1, way == WRITE_DIRECT ? 2 : 1));
	}
}

/* What the disk has as well goes from the device without a copy: if that fails, */
OP(recall, clean_copy_fails, CLEAN, 0, NONE)
{
	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_FAIL_COPY));
	if (fs->mkfs) {
		for (unsigned long i = 0; i < PAGES; i += 2)
			ASSERT_TRUE(right(p + i * psize(), i, 1, 1));
		ASSERT_TRUE(read_right(0, PAGES, 1));
	} else {
		ASSERT_EQ(EIO, error_of(pread(fd, buf, 1, 0)));
	}
	ASSERT_EQ(fs->mkfs ? 0 : PAGES, resident());
}

/* or when it is evicted without memory, where what is dirty stays, */
OP(recall, clean_evict, CLEAN, 0, NONE)
{
	char *w = map(0, 1, RW, MAP_SHARED);
	const long left = fs->mkfs ? 1 : PAGES;

	touch(w, 1, true);
	ASSERT_TRUE(migrate(w, 1, true));
	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_EVICT_NOMEM));
	ASSERT_TRUE(WAIT_FOR(!evict() && resident() <= left));
	ASSERT_EQ(left, resident());
}

/* or with the caches, if no device may be using it. */
OP(recall, clean_drop, CLEAN, 0, READ)
{
	for (int caches = 0; caches < 2; caches++) {
		for (int mapped = 1; mapped >= 0; mapped--) {
			const long left = mapped || !fs->mkfs ? PAGES : 0;

			ASSERT_TRUE(WAIT_FOR((caches ? set_file(DROP_CACHES, "3") :
					      !posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED)) &&
					     resident() <= left));
			ASSERT_EQ(left, resident());
			munmap(p, SIZE);
		}
		p = map(0, PAGES, PROT_READ, MAP_SHARED);
		ASSERT_TRUE(migrate(p, PAGES, false));
	}
}

/* Without an OOM kill, that would be for ever. */
OP(recall, oom, CLEAN, PAGES, NONE)
{
	const char *min_free = "/proc/sys/vm/min_free_kbytes";
	const unsigned long old = read_num(min_free);
	pid_t hog, watchdog;

	/* Nothing is to be had but by an OOM kill. */
	ASSERT_TRUE(set_file(DROP_CACHES, "3"));
	hog = fork();
	if (!hog) {
		set_file("/proc/self/oom_score_adj", "1000");
		while (number_in("/proc/meminfo", "MemFree:") > 100000)
			if (mmap(NULL, 4 << 20, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED |
				 MAP_POPULATE, -1, 0) == MAP_FAILED)
				break;
		raise(SIGSTOP);
	}
	ASSERT_EQ(hog, waitpid(hog, NULL, WUNTRACED));
	/* Neither process may need memory by itself after that: each does all of it before. */
	watchdog = fork();
	if (!watchdog) {
		sleep(0);
		write_num(min_free, old);
		write_num(min_free, 200000);
		sleep(PATIENCE);
		write_num(min_free, old);
		_exit(0);
	}
	ASSERT_TRUE(WAIT_FOR(right(mirror, 0, PAGES, 1) && read_num(min_free) == 200000));
	EXPECT_TRUE(right(p, 0, PAGES, 1));
	EXPECT_EQ(0, waitpid(watchdog, NULL, WNOHANG));
	write_num(min_free, old);
	kill(watchdog, SIGKILL);
	kill(hog, SIGKILL);
	waitpid(watchdog, NULL, 0);
	waitpid(hog, NULL, 0);
}

/* In pages; "current" is right up to what each CPU has in stock. */
static long pages_in(const char *file, const char *key)
{
	return number_in(file, key) / (long)psize();
}

/* Images are in shmem, which a loop device has charged to who writes. */
static long cache(const char *stat)
{
	return pages_in(stat, "file ") - (fs->mkfs ? pages_in(stat, "shmem ") : 0);
}

static long dirty(const char *stat)
{
	return pages_in(stat, fs->mkfs ? "file_dirty " : "shmem ");
}

/*
 * Device memory is not charged, and what comes back is to whoever wants it; for writeback, to
 * the cgroup whose inode it is.
 */
TEST_F_TIMEOUT(recall, charge, TIMEOUT)
{
	const long nr = 1024, stock = 128 * sysconf(_SC_NPROCESSORS_ONLN);
	const char *a = CGROUP_A "memory.stat", *b = CGROUP_B "memory.stat";
	long charged;
	char *p;

	if (nr <= 2 * stock || nr * psize() > 32 << 20)
		SKIP(return, "too many CPUs, or pages too large");
	if (!join_cgroup(CGROUP_B) || !join_cgroup(CGROUP_A))
		SKIP(return, "no memory cgroups");
	/* A new file, so that it is of this cgroup. */
	ASSERT_TRUE(new_file(NULL));
	ASSERT_TRUE(write_pages(0, nr, 1));
	charged = pages_in(CGROUP_A "memory.current", "");
	ASSERT_GE(charged, nr);
	ASSERT_TRUE(WAIT_FOR(cache(a) >= nr && dirty(a) >= nr));
	p = map(0, nr, RW, MAP_SHARED);
	ASSERT_TRUE(migrate(p, nr, true));
	ASSERT_LE(pages_in(CGROUP_A "memory.current", ""), charged - nr + stock);
	ASSERT_TRUE(WAIT_FOR(cache(a) < nr / 8 && dirty(a) < nr / 8));

	ASSERT_TRUE(join_cgroup(CGROUP_B));
	ASSERT_TRUE(read_right(0, nr / 2, 1));
	ASSERT_TRUE(WAIT_FOR(cache(b) >= nr / 2 && dirty(b) >= nr / 2));
	ASSERT_LT(cache(a), nr / 8);
	sync();
	if (!fs->mkfs) {
		/* Eviction is by b, too. */
		ASSERT_TRUE(WAIT_FOR(!evict() && !resident()));
		ASSERT_TRUE(WAIT_FOR(cache(b) >= nr));
	} else {
		ASSERT_EQ(0, resident());
		ASSERT_TRUE(WAIT_FOR(cache(a) >= nr / 2 && dirty(a) < nr / 8 && dirty(b) < nr / 8));
	}
	ASSERT_EQ(0, ftruncate(fd, 0));
	ASSERT_TRUE(WAIT_FOR(cache(a) < nr / 8 && cache(b) < nr / 8));
}

/* So many that those which a CPU has not yet added do not matter */
#define NR	256UL

/* What is on the device is neither swapped out nor resident memory. */
TEST_F_TIMEOUT(recall, smaps, TIMEOUT)
{
	const unsigned long nr = NR - PAGES;
	long rss, swap;
	char *p;

	if (fs->mkfs)
		return;
	if (number_in("/proc/meminfo", "SwapTotal:") <= 0)
		SKIP(return, "no swap");
	ASSERT_TRUE(write_pages(0, NR, 1));
	p = map(0, NR, RW, MAP_SHARED);
	touch(p, NR, true);
	rss = number_in("/proc/self/status", "RssShmem:");
	ASSERT_TRUE(migrate(p + SIZE, nr, true));
	rss -= number_in("/proc/self/status", "RssShmem:");
	ASSERT_GE(rss, nr * psize() / 1024 / 2);
	/* So that entries are looked at, one page has to be. */
	do {
		madvise(p, psize(), MADV_PAGEOUT);
		swap = number_in("/proc/self/smaps_rollup", "Swap:");
	} while (!swap);
	map(PAGES, nr, RW, MAP_PRIVATE);
	map(PAGES, nr, RW, MAP_SHARED);
	ASSERT_EQ(swap, number_in("/proc/self/smaps_rollup", "Swap:"));
	ASSERT_EQ(nr, resident());
}

/* In KiB, of a cgroup, from the file that debugfs has for the file system */
static long reclaimable(const char *file, const char *cgroup)
{
	char part[64];
	struct stat st;

	if (stat(cgroup, &st))
		return -1;
	snprintf(part, sizeof(part), "WbCgIno:           %10lu", st.st_ino);
	return number_after(file, part, "WbReclaimable:");
}

/*
 * When another cgroup writes to the file, its writeback becomes a matter of that one, and so
 * does what is dirty on the device.
 */
TEST_F_TIMEOUT(recall, cgroup_writeback, TIMEOUT)
{
	const long half = NR * psize() / 1024 / 2;
	char file[96], *p;
	struct stat st;

	/* The others have no such writeback. */
	if (strcmp(fs->name, "ext4") && strcmp(fs->name, "xfs"))
		return;
	if (sysconf(_SC_NPROCESSORS_CONF) > 4)
		SKIP(return, "sums over so many CPUs are not exact");
	if (!join_cgroup(CGROUP_A))
		SKIP(return, "no cgroup2 with memory");
	ASSERT_TRUE(new_file(NULL));
	ASSERT_EQ(0, fstat(fd, &st));
	snprintf(file, sizeof(file), "/sys/kernel/debug/bdi/%u:%u/wb_stats",
		 major(st.st_dev), minor(st.st_dev));
	if (access(file, R_OK))
		SKIP(return, "no %s", file);
	ASSERT_TRUE(write_pages(0, NR, 1));
	p = map(0, NR, RW, MAP_SHARED);
	ASSERT_TRUE(migrate(p, NR, true));
	ASSERT_GT(reclaimable(file, CGROUP_A), half);

	/* Only b writes, to other pages. */
	ASSERT_TRUE(join_cgroup(CGROUP_B));
	ASSERT_TRUE(WAIT_FOR((write_pages(NR, PAGES, 1),
			      sync_file_range(fd, NR * psize(), SIZE,
					      SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
					      SYNC_FILE_RANGE_WAIT_AFTER),
			      posix_fadvise(fd, NR * psize(), SIZE, POSIX_FADV_DONTNEED),
			      reclaimable(file, CGROUP_A) <= half)));
	EXPECT_GT(reclaimable(file, CGROUP_B), half);
	EXPECT_EQ(NR, resident());
}

/* What a driver may have locked at once, and test_hmm does. */
#define BATCH	64

enum { BY_READ, BY_FAULT, BY_FSYNC, BY_TRUNCATE, BY_EVICT, BY_RELEASE, WAYS };

static bool come(int way, char *p)
{
	switch (way) {
	case BY_READ:
		return pread(fd, buf, SIZE, 0) == SIZE;
	case BY_FAULT:
		touch(p, PAGES, false);
		return true;
	case BY_FSYNC:
		return !fsync(fd);
	case BY_TRUNCATE:
		/* Half a page goes, for which the whole has to come back. */
		return !ftruncate(fd, SIZE - psize() / 2) && !ftruncate(fd, SIZE);
	case BY_EVICT:
		return WAIT_FOR(!evict() && !resident());
	default:
		return release();
	}
}

/* The file's pages are on the device, which alone has that version of them. */
static char *only_on_device(struct __test_metadata *_metadata, unsigned long nr,
			    unsigned int version)
{
	char *p = map(0, nr, RW, MAP_SHARED);

	ASSERT_NE(NULL, p);
	ASSERT_TRUE(write_pages(0, nr, version - 1));
	/* Space is allocated now, and no journal wants the pages later. */
	ASSERT_EQ(0, fsync(fd));
	ASSERT_TRUE(migrate(p, nr, true));
	ASSERT_TRUE(device_writes(p, 0, nr, version));
	return p;
}

/*
 * All that the device has comes back in each way: it stays awake for that, and sleeps when it
 * has no pages. If it is busy, it is tried again, for as long as it takes.
 */
TEST_F_TIMEOUT(recall, ways, TIMEOUT)
{
	for (int i = 0; i < 2 * WAYS; i++) {
		const unsigned long flags = i < WAYS ? 0 : HMM_DMIRROR_FLAG_BUSY_COPY;
		const unsigned int version = 2 * i + 2;
		unsigned long failures;
		char *p;

		ASSERT_TRUE(WAIT_FOR(!stats().awake || evict()));
		p = only_on_device(_metadata, PAGES, version);
		ASSERT_NE(0, stats().awake);
		failures = stats().recall_failures;
		ASSERT_EQ(0, set_flags(flags));
		EXPECT_TRUE(come(i % WAYS, p))
			TH_LOG("way %d: %s", i % WAYS, strerror(errno));
		fill(buf, 0, PAGES, version);
		EXPECT_EQ(0, memcmp(p, buf, SIZE - psize() / 2))
			TH_LOG("way %d: data are lost", i % WAYS);
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

/* However many pages go, few are locked at once: somebody may need one of them to clean memory. */
TEST_F_TIMEOUT(recall, evict_batch, TIMEOUT)
{
	const unsigned long nr = 8 * BATCH;
	char *p;

	if (nr * psize() > 32 << 20)
		SKIP(return, "pages are too large");
	p = only_on_device(_metadata, nr, 2);
	ASSERT_EQ(0, evict());
	ASSERT_GT(stats().evict_locked, 1);
	ASSERT_LE(stats().evict_locked, BATCH);
	ASSERT_TRUE(come(BY_EVICT, p));
	ASSERT_TRUE(right(p, 0, nr, 2));
}

HMM_FILE_MAIN
