// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of files in device private memory: whatever is done to the file meanwhile, no byte may
 * get lost or be stale.
 */
#define _GNU_SOURCE
#include <sys/sendfile.h>
#include <sys/shm.h>
#include <sys/swap.h>
#include <sys/uio.h>
#include <mm/gup_test.h>
#include "hmm_file_util.h"

FILES(file)
FS(file, tmpfs);
FS(file, tmpfs_huge);
FS(file, ext4);
FS(file, ext4_1k);
FS(file, xfs);
FS(file, btrfs);

/* Whoever wants data of a page gets it back, and no other. */
OP(file, load, CLEAN, PAGES, NONE)
{
	for (unsigned long i = 0; i < PAGES; i++) {
		ASSERT_TRUE(right(p + i * psize(), i, 1, 1));
		ASSERT_EQ(i + 1, recalls());
	}
}

/* Large folios are split: a part of one goes, the rest stays. */
OP(file, part, SYSTEM, PAGES, NONE)
{
	const unsigned long nr = 256, first = 100, next = first + PAGES;
	char *all = malloc(nr * psize());

	fill(all, 0, nr, 1);
	ASSERT_EQ(0, ftruncate(fd, 0));
	ASSERT_EQ(nr * psize(), pwrite(fd, all, nr * psize(), 0));
	ASSERT_EQ(0, fsync(fd));
	p = map(0, nr, PROT_READ, MAP_SHARED);
	touch(p, nr, false);
	ASSERT_TRUE(migrate(p + first * psize(), PAGES, false));
	ASSERT_TRUE(right(p, 0, first, 1));
	ASSERT_TRUE(right(p + next * psize(), next, nr - next, 1));
	ASSERT_EQ(PAGES, resident());
	ASSERT_TRUE(right(p + first * psize(), first, PAGES, 1));
}

/* Who does not wait gets nothing; who does gets all, and not from the disk. */
OP(file, nowait, CLEAN, PAGES, MAPPED)
{
	struct iovec iov = { buf, SIZE };

	ASSERT_EQ(-1, preadv2(fd, &iov, 1, 0, RWF_NOWAIT));
	ASSERT_EQ(fs->mkfs ? EAGAIN : EOPNOTSUPP, errno);
	for (int i = 0; i < 20; i++) {
		/* If the file's times are of this tick, nothing else can make it wait. */
		ASSERT_EQ(psize(), pwrite(fd, mirror, psize(), SIZE));
		/* Not each file system has that. */
		ASSERT_EQ(-1, pwritev2(fd, &iov, 1, 0, RWF_NOWAIT));
		ASSERT_TRUE(errno == EAGAIN || errno == EOPNOTSUPP);
		ASSERT_EQ(0, recalls());
	}
	ASSERT_EQ(SIZE, pread(fd, buf, SIZE, 0));
	ASSERT_TRUE(same(buf));
}

/*
 * After writeback, who writes has to ask the file system again. What is read from the disk then,
 * perhaps without waiting, must not be older.
 */
OP(file, read_direct, WRITTEN, ANY, MAPPED | DISK)
{
	int direct = open(path, O_RDONLY | O_DIRECT);
	struct iovec iov = { buf, SIZE };

	ASSERT_EQ(0, fsync(fd));
	fill(p, 0, PAGES, 3);
	ASSERT_TRUE(migrate(p, PAGES, true));
	ASSERT_TRUE(right(mirror, 0, PAGES, 3));
	ASSERT_TRUE(device_fills(p, 4));
	for (int i = 0; fs->mkfs && i < 100; i++) {
		ASSERT_EQ(-1, preadv2(direct, &iov, 1, 0, RWF_NOWAIT));
		ASSERT_EQ(EAGAIN, errno);
	}
	ASSERT_EQ(SIZE, pread(direct, buf, SIZE, 0));
	ASSERT_TRUE(same(buf));
	close(direct);
}

/* Nor does the device read what it had: dirty, then clean. */
OP(file, write_direct, WRITTEN, ANY, MAPPED | READ)
{
	int direct = open(path, O_WRONLY | O_DIRECT);

	for (unsigned int i = 3; i < 5; i++) {
		fill(model, 0, PAGES / 2, i);
		memcpy(buf, model, SIZE);
		ASSERT_EQ(SIZE / 2, pwrite(direct, buf, SIZE / 2, 0));
		ASSERT_EQ(0, command(HMM_DMIRROR_READ, p, mirror, PAGES));
		ASSERT_TRUE(same(mirror));
		ASSERT_EQ(0, fsync(fd));
		ASSERT_TRUE(migrate(p, PAGES, false));
	}
	close(direct);
}

/* A part of each page, whose rest only the device has: it sees that. */
OP(file, write, WRITTEN, PAGES, ALL)
{
	for (size_t at = 1024; at < SIZE; at += psize()) {
		memset(model + at, 1, 8);
		if (at / psize() % 2)
			memset(p + at, 1, 8);
		else
			ASSERT_EQ(8, pwrite(fd, model + at, 8, at));
	}
	ASSERT_EQ(0, command(HMM_DMIRROR_READ, p, mirror, PAGES));
	ASSERT_TRUE(same(mirror));
}

/* Readahead finds that the pages are there, and so does another migration. */
OP(file, readahead, WRITTEN, 0, MAPPED)
{
	ASSERT_EQ(0, try_migrate(p, PAGES));
	ASSERT_TRUE(device_reads(p, 0, PAGES, 2));
	readahead(fd, 0, SIZE);
	madvise(p, SIZE, MADV_WILLNEED);
	posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED);
}

/* Neither present nor swapped, but in the page cache, and data */
OP(file, observers, WRITTEN, ANY, MAPPED)
{
	struct cachestat_range range = { 0, SIZE };
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	unsigned char vec[PAGES];
	struct cachestat cs;

	ASSERT_EQ(0, mincore(p, SIZE, vec));
	for (unsigned long i = 0; i < PAGES; i++) {
		ASSERT_EQ(0, pagemap_get_entry(pagemap, p + i * psize()) & (PM_PRESENT | PM_SWAP));
		ASSERT_EQ(1, vec[i] & 1);
	}
	ASSERT_EQ(0, syscall(__NR_cachestat, fd, &range, &cs, 0));
	ASSERT_EQ(PAGES, cs.nr_cache);
	ASSERT_EQ(0, cs.nr_evicted);
	ASSERT_TRUE(!fs->mkfs || cs.nr_dirty == PAGES);
	ASSERT_EQ(0, recalls());
	ASSERT_EQ(0, lseek(fd, 0, SEEK_DATA));
	ASSERT_EQ(SIZE, lseek(fd, 0, SEEK_HOLE));
}

/* What the device wrote reaches the disk. */
OP(file, fsync, WRITTEN, ANY, DISK)
{
	struct cachestat_range range = { 0, SIZE };
	struct cachestat cs;

	ASSERT_EQ(0, fsync(fd));
	ASSERT_EQ(fs->mkfs ? 0 : PAGES, resident());
	ASSERT_EQ(0, syscall(__NR_cachestat, fd, &range, &cs, 0));
	ASSERT_EQ(0, cs.nr_dirty);
	ASSERT_TRUE(set_file(DROP_CACHES, "3"));
	ASSERT_TRUE(same(p));
}

/* Nobody asks for it, and the file is closed. */
OP(file, unmount, DIRTY, 0, DISK)
{
}

/* The time has come. */
OP(file, periodic_writeback, WRITTEN, ANY, DISK)
{
	writeback_every(10);
	ASSERT_TRUE(!fs->mkfs || WAIT_FOR(!resident()));
	writeback_every(0);
	/* Some file systems have the size on the disk later than the data. */
	ASSERT_EQ(0, fsync(fd));
}

/* Clean pages are no business of writeback's. */
OP(file, fsync_clean, CLEAN, 0, MAPPED)
{
	ASSERT_EQ(0, fsync(fd));
	sync();
	ASSERT_TRUE(set_file(DROP_CACHES, "3"));
	/* Nor does who goes by pfn meet them. */
	ASSERT_TRUE(set_file("/proc/sys/vm/compact_memory", "1"));
	ASSERT_EQ(PAGES, resident());
}

/* What is dirty is not dropped, though nobody maps it. */
OP(file, drop_caches, WRITTEN, ANY, READ)
{
	ASSERT_EQ(0, munmap(p, SIZE));
	ASSERT_TRUE(set_file(DROP_CACHES, "3"));
	ASSERT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
}

/* What is cut off does not come back, the rest stays. */
OP(file, truncate, WRITTEN, ANY, ALL)
{
	const size_t size = 5 * psize() + 100;

	ASSERT_EQ(0, ftruncate(fd, size));
	ASSERT_LE(resident(), 5);
	ASSERT_EQ(SIGBUS, SIGNAL_OF(FORCE_READ(p[6 * psize()])));
	ASSERT_EQ(-EFAULT, command(HMM_DMIRROR_READ, p + 6 * psize(), mirror, 1));
	ASSERT_EQ(0, ftruncate(fd, SIZE));
	memset(model + size, 0, SIZE - size);
}

/* There is nobody for whom to copy. */
OP(file, truncate_all, WRITTEN, ANY, ALL)
{
	ASSERT_EQ(0, ftruncate(fd, 0));
	ASSERT_EQ(0, resident());
	ASSERT_EQ(0, recalls());
	ASSERT_EQ(0, ftruncate(fd, SIZE));
	memset(model, 0, SIZE);
}

/* What is behind the end of the file, in an extent not written, is zeroes when it grows. */
OP(file, extend, SYSTEM, ANY, READ)
{
	/* tmpfs shows what any mapping has been used to write there. */
	if (!fs->mkfs)
		return;
	ASSERT_EQ(0, ftruncate(fd, 0));
	if (fallocate(fd, 0, 0, SIZE))
		ASSERT_EQ(EOPNOTSUPP, errno);
	ASSERT_EQ(0, ftruncate(fd, 104));
	p = map(0, 1, RW, MAP_SHARED);
	ASSERT_TRUE(migrate(p, 1, true));
	ASSERT_TRUE(device_writes(p, 0, 1, 2));
	ASSERT_EQ(0, ftruncate(fd, SIZE));
	memset(model, 0, SIZE);
	memcpy(model, buf, 104);
}

OP(file, fallocate, WRITTEN, ANY, ALL)
{
	static const int modes[] = {
		FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE,
		FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE,
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(modes); i++) {
		/* The first two take parts of pages. */
		const size_t from = SIZE / 4 + (i < 2 ? 512 : 0), to = SIZE / 2;

		ASSERT_TRUE(migrate(p, PAGES, true));
		ASSERT_TRUE(device_fills(p, i + 3));
		if (fallocate(fd, modes[i], from, to - from)) {
			ASSERT_EQ(EOPNOTSUPP, errno);
			continue;
		}
		ASSERT_EQ(0, ftruncate(fd, SIZE));
		if (modes[i] == FALLOC_FL_COLLAPSE_RANGE) {
			memmove(model + from, model + to, SIZE - to);
			memset(model + SIZE - (to - from), 0, to - from);
		} else {
			if (modes[i] == FALLOC_FL_INSERT_RANGE)
				memmove(model + to, model + from, SIZE - to);
			memset(model + from, 0, to - from);
		}
		ASSERT_TRUE(same(p));
	}
}

OP(file, unlink, WRITTEN, 1, NONE)
{
	ASSERT_EQ(0, unlink(path));
	ASSERT_TRUE(right(p, 0, 1, 2));
	ASSERT_EQ(0, munmap(p, SIZE));
	ASSERT_EQ(PAGES - 1, resident());
	ASSERT_EQ(0, close(fd));
	/* btrfs leaves it to a thread. */
	ASSERT_TRUE(WAIT_FOR((sync(), !resident())));
}

/* The device gives its memory up, */
OP(file, evict, WRITTEN, ANY, DISK)
{
	ASSERT_TRUE(WAIT_FOR(!evict() && !resident()));
	ASSERT_EQ(0, recalls());
	/* Nor does it use it any more. */
	*p = *model = 3;
	ASSERT_EQ(0, command(HMM_DMIRROR_READ, p, mirror, PAGES));
	ASSERT_TRUE(same(mirror));
}

/* or cannot copy, as if the disk could not be read. */
OP(file, copy_fails, WRITTEN, ANY, MAPPED | DISK)
{
	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_FAIL_COPY));
	ASSERT_EQ(0, evict());
	ASSERT_EQ(SIGBUS, SIGNAL_OF(FORCE_READ(*p)));
	ASSERT_EQ(SIGBUS, SIGNAL_OF(*(volatile char *)p = 0));
	ASSERT_EQ(EIO, error_of(pread(fd, buf, psize(), 0)));
	ASSERT_EQ(EIO, error_of(pwrite(fd, "x", 1, 10)));
	ASSERT_EQ(fs->mkfs ? EIO : 0, error_of(fsync(fd)));
	ASSERT_EQ(PAGES, resident());
	ASSERT_EQ(0, set_flags(0));
}

/* If what is cut off cannot be zeroed, the page is lost, which is told. */
OP(file, truncate_copy_fails, WRITTEN, ANY, NONE)
{
	const size_t size = 5 * psize() + 100;
	int err;

	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_FAIL_COPY));
	err = error_of(ftruncate(fd, size));
	ASSERT_EQ(0, set_flags(0));
	/* The file system may have written it back, or read it, and noticed. */
	ASSERT_TRUE(!err || err == EIO);
	if (!err) {
		if (fs->mkfs) {
			ASSERT_EQ(EIO, error_of(fsync(fd)));
		} else {
			ASSERT_EQ(SIGBUS, SIGNAL_OF(FORCE_READ(p[5 * psize()])));
			ASSERT_EQ(0, ftruncate(fd, 5 * psize()));
		}
		ASSERT_EQ(0, ftruncate(fd, SIZE));
		memset(buf, 0, SIZE);
		ASSERT_EQ(0, memcmp(p + size, buf, SIZE - size));
	}
	ASSERT_TRUE(right(p, 0, 5, 2));
}

/* The device is gone: what is lost is told, */
OP(file, device_lost, WRITTEN, ANY, DISK)
{
	struct stat st;

	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_FAIL_COPY));
	ASSERT_TRUE(release());
	ASSERT_EQ(0, set_flags(0));
	if (fs->mkfs) {
		ASSERT_EQ(EIO, error_of(fsync(fd)));
		ASSERT_EQ(0, fsync(fd));
	} else {
		ASSERT_EQ(SIGBUS, SIGNAL_OF(FORCE_READ(*p)));
		ASSERT_EQ(SIGBUS, SIGNAL_OF(p[psize()] = 0));
		ASSERT_EQ(EIO, error_of(pread(fd, buf, 1, 2 * psize())));
		ASSERT_EQ(EIO, error_of(pwrite(fd, "x", 1, 3 * psize())));
		ASSERT_EQ(0, ftruncate(fd, 0));
		ASSERT_EQ(0, fstat(fd, &st));
		ASSERT_EQ(0, st.st_blocks);
		ASSERT_EQ(0, ftruncate(fd, SIZE));
	}
	memset(model, 0, SIZE);
	ASSERT_TRUE(same(p));
	ASSERT_TRUE(migrate(p, PAGES, true));
	ASSERT_TRUE(device_fills(p, 4));
}

/* and what is on the disk is not lost. */
OP(file, device_lost_clean, CLEAN, ANY, NONE)
{
	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_FAIL_COPY));
	ASSERT_TRUE(release());
	ASSERT_EQ(0, set_flags(0));
	ASSERT_EQ(fs->mkfs ? 0 : SIGBUS, SIGNAL_OF(FORCE_READ(*p)));
	ASSERT_TRUE(!fs->mkfs || (same(p) && !fsync(fd)));
}

/*
 * Each allocation on the way back, or there, fails once: who can fail does, and the data are
 * where they were, or in memory.
 */
OP(file, no_memory, WRITTEN, ANY, MAPPED | READ)
{
	enum { PREAD, PWRITE, STORE, MIGRATE, WAYS };
	unsigned int failures = 0;

	for (int way = 0, n = 1; way < WAYS; n++) {
		const size_t at = n % PAGES * psize();
		long ret = 0;

		ASSERT_TRUE(migrate(p, PAGES, true));
		ASSERT_TRUE(device_fills(p, n % 100 + 3));
		if (way == MIGRATE)
			touch(p, PAGES, true);
		ASSERT_TRUE(fail_nth(n));
		if (way == PREAD)
			ret = pread(fd, buf, 8, at);
		else if (way == PWRITE)
			ret = pwrite(fd, model + at, 8, at);
		else if (way == STORE)
			memcpy(p + at, model + at, 8);
		else
			try_migrate(p, PAGES);
		ret = error_of(ret);
		if (fail_pending()) {
			way++;
			n = 0;
		}
		ASSERT_TRUE(!ret || ret == ENOMEM);
		failures += !!ret;
		ASSERT_TRUE(same(p));
		ASSERT_EQ(0, resident());
	}
	ASSERT_GT(failures, 1);
}

/* The device has none for one page, which stays. */
OP(file, no_device_memory, WRITTEN, ANY, MAPPED)
{
	/* Others may stay, too, if somebody has a reference to them. */
	ASSERT_TRUE(WAIT_FOR((touch(p, PAGES, true),
			      set_flags(HMM_DMIRROR_FLAG_FAIL_ALLOC),
			      try_migrate(p, PAGES) == PAGES - 1)));
}

/* Entries for swap, or shadows, and those of the device, side by side */
OP(file, pageout, CLEAN, ANY, MAPPED | READ)
{
	touch(p + SIZE / 2, PAGES / 2, false);
	ASSERT_EQ(0, madvise(p, SIZE, MADV_PAGEOUT));
	ASSERT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	ASSERT_EQ(0, madvise(p, SIZE, MADV_WILLNEED));
	ASSERT_EQ(PAGES / 2, resident());
}

/* Nobody has written, but the device does, if it may. */
OP(file, hole, SYSTEM, ANY, DISK)
{
	ASSERT_EQ(0, ftruncate(fd, 0));
	ASSERT_EQ(0, ftruncate(fd, SIZE));
	p = map(0, PAGES, RW, MAP_SHARED);
	ASSERT_TRUE(migrate(p, PAGES, false));
	fill(model, 0, PAGES, 2);
	ASSERT_EQ(0, command(HMM_DMIRROR_WRITE, p, model, PAGES));
	ASSERT_TRUE(same(p));
	ASSERT_EQ(0, madvise(p, SIZE, MADV_PAGEOUT));
	munmap(p, SIZE);
}

static bool make_swap(int file)
{
	const uint32_t head[3] = { 1, 63, 0 };

	return !fallocate(file, 0, 0, 64 * psize()) &&
	       pwrite(file, head, sizeof(head), 1024) == sizeof(head) &&
	       pwrite(file, "SWAPSPACE2", 10, psize() - 10) == 10 && !fsync(file);
}

/*
 * swapoff looks for its entries where those of devices are; and a file that is swapped to has no
 * pages to migrate.
 */
OP(file, swapoff, WRITTEN, ANY, NONE)
{
	int disk, flags = FS_NOCOW_FL;
	char name[32];
	long free;
	bool ok;

	if (fs->mkfs) {
		ASSERT_EQ(0, ftruncate(fd, 0));
		ioctl(fd, FS_IOC_SETFLAGS, &flags);
		ASSERT_TRUE(make_swap(fd));
		ASSERT_EQ(0, swapon(path, 0));
		ok = stay(p, PAGES);
		ASSERT_EQ(0, swapoff(path));
		ASSERT_TRUE(ok);
		return;
	}
	disk = open(image, O_RDWR | O_CREAT, 0600);
	ASSERT_TRUE(make_swap(disk));
	disk = attach_image(name);
	ASSERT_EQ(0, swapon(name, SWAP_FLAG_PREFER | SWAP_FLAG_PRIO_MASK));
	free = number_in("/proc/meminfo", "SwapFree:");
	touch(p + SIZE / 2, PAGES / 2, false);
	ok = WAIT_FOR(!madvise(p, SIZE, MADV_PAGEOUT) &&
		      (free - number_in("/proc/meminfo", "SwapFree:")) * 1024 >= SIZE / 2);
	ASSERT_EQ(0, swapoff(name));
	close(disk);
	ASSERT_EQ(0, unlink(image));
	ASSERT_TRUE(ok);
	ASSERT_EQ(PAGES / 2, resident());
	ASSERT_TRUE(same(p));
}

/* It is poisoned in system memory: the device's has no hardware to be bad. */
OP(file, memory_failure, WRITTEN, ANY, NONE)
{
	char *bad = p + 3 * psize();

	ASSERT_EQ(0, madvise(p, psize(), MADV_SOFT_OFFLINE));
	ASSERT_EQ(SIGBUS, SIGNAL_OF(madvise(bad, psize(), MADV_HWPOISON)));
	ASSERT_EQ(2, recalls());
	ASSERT_EQ(PAGES - 2, resident());
	ASSERT_EQ(SIGBUS, SIGNAL_OF(FORCE_READ(*bad)));
	ASSERT_TRUE(right(p, 0, 3, 2));
	ASSERT_TRUE(right(bad + psize(), 4, PAGES - 4, 2));
}

/*
 * khugepaged takes no pages away from a device, but who asks for a huge page gets it, at once:
 * clean pages come back as well.
 */
OP(file, huge, SYSTEM, ANY, NONE)
{
#define KHUGEPAGED "/sys/kernel/mm/transparent_hugepage/khugepaged/"
	const size_t size = read_pmd_pagesize(), nr = size / psize();
	const long was = number_in(KHUGEPAGED "full_scans", "");
	cpu_set_t cpu;
	bool ok;
	int err;

	/* None, or too large for these file systems */
	if (!size || size > 32 << 20)
		return;
	ASSERT_TRUE(write_pages(0, nr, 1));
	ASSERT_EQ(0, fsync(fd));
	p = map_huge(size);
	touch(p, nr, false);
	ASSERT_TRUE(migrate(p, PAGES, false));

	set_file(KHUGEPAGED "scan_sleep_millisecs", "10");
	set_file(KHUGEPAGED "pages_to_scan", "100000");
	ok = WAIT_FOR(number_in(KHUGEPAGED "full_scans", "") >= was + 3);
	set_file(KHUGEPAGED "scan_sleep_millisecs", "10000");
	set_file(KHUGEPAGED "pages_to_scan", "4096");
	ASSERT_TRUE(ok);
	ASSERT_EQ(PAGES, resident());

	/* What another CPU has in its batch for the LRU is not asked for. */
	CPU_ZERO(&cpu);
	CPU_SET(sched_getcpu(), &cpu);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(cpu), &cpu));
	err = error_of(madvise(p, size, MADV_COLLAPSE));
	/* Where files have no huge pages, it is refused. */
	ASSERT_TRUE(!err || (fs->mkfs && err == EINVAL));
	ASSERT_EQ(err ? PAGES : 0, resident());
	ASSERT_TRUE(right(p, 0, nr, 1));
}

/*
 * A node of i_pages with nothing but values goes, when there are more of these than an eighth of
 * the cgroup's pages: they may be shadows of what was evicted.
 */
OP(file, shadow_nodes, SYSTEM, ANY, NONE)
{
	/* A page in each node. btrfs writes back for space for more extents. */
	const unsigned long nr = fs->mkfs ? 512 : 64, step = 64, dirty = 32;

	ASSERT_TRUE(join_cgroup(CGROUP_A));
	ASSERT_TRUE(new_file(NULL));
	ASSERT_EQ(0, ftruncate(fd, nr * step * psize()));
	p = map(0, nr * step, RW, MAP_SHARED);
	madvise(p, nr * step * psize(), MADV_RANDOM);
	for (unsigned long i = 0; i < nr; i++)
		fill(p + i * step * psize(), i, 1, 1);
	ASSERT_EQ(0, fsync(fd));
	for (unsigned long i = 0; i < nr; i++)
		ASSERT_TRUE(migrate(p + i * step * psize(), 1, i < dirty));
	for (int i = 0; i < 4; i++)
		ASSERT_TRUE(set_file(DROP_CACHES, "2"));
	ASSERT_EQ(nr, resident());
	for (unsigned long i = 0; i < nr; i++)
		ASSERT_TRUE(right(p + i * step * psize(), i, 1, 1));
}

/* What may not be written is not writable when it is back. */
OP(file, mprotect, WRITTEN, ANY, MAPPED)
{
	ASSERT_EQ(0, mprotect(p, SIZE, PROT_READ));
	ASSERT_EQ(SIGSEGV, SIGNAL_OF(*(volatile char *)p = 1));
	ASSERT_NE(0, command(HMM_DMIRROR_WRITE, p, buf, PAGES));
}

/* Mappings: who takes pages from them, and what does not migrate */
FILES(mapping)
FS(mapping, tmpfs);
FS(mapping, ext4);

OP(mapping, mlock, SYSTEM, 0, NONE)
{
	p = map(0, PAGES, PROT_READ, MAP_SHARED);
	ASSERT_EQ(0, mlock(p, SIZE));
	ASSERT_TRUE(stay(p, PAGES));
}

/* Others have a copy, which is their own. */
OP(mapping, private, PRIVATE, ANY, READ)
{
	pid_t pid = fork();

	if (!pid) {
		bool ok = same(p);

		fill(p, 0, PAGES, 3);
		_exit(!ok || !right(p, 0, PAGES, 3));
	}
	ASSERT_TRUE(ends_well(pid));
	ASSERT_TRUE(same(p));
	fill(p, 0, 4, 7);
	ASSERT_TRUE(migrate(p, PAGES, false));
	ASSERT_TRUE(right(mirror, 0, 4, 7));
	fill(p + 4 * psize(), 4, 4, 7);
	ASSERT_TRUE(right(p, 0, 8, 7));
	ASSERT_TRUE(right(p + 8 * psize(), 8, PAGES - 8, 1));
}

/* Who writes to protected pages is to be told, also when they have been away. */
OP(mapping, uffd_wp, WRITTEN, PAGES, MAPPED)
{
	int uffd = new_uffd(UFFD_FEATURE_WP_ASYNC, p, SIZE, false, true, false);
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	struct uffdio_writeprotect wp = {
		{ (uintptr_t)p, SIZE / 4 }, UFFDIO_WRITEPROTECT_MODE_WP,
	};

	ASSERT_TRUE(same(p));
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_WRITEPROTECT, &wp));
	ASSERT_TRUE(migrate(p, PAGES, false));
	for (int back = 0; back < 2; back++) {
		for (unsigned long i = 0; i < PAGES; i++)
			ASSERT_EQ(i < PAGES / 4 ? PM_UFFD_WP : 0,
				  pagemap_get_entry(pagemap, p + i * psize()) & PM_UFFD_WP);
		ASSERT_TRUE(same(p));
	}
}

/* GUP has no PTE to take a page from: by the fast way, */
OP(mapping, vmsplice, WRITTEN, PAGES / 2, MAPPED)
{
	struct iovec iov = { p, SIZE / 2 };
	int ends[2];

	ASSERT_EQ(0, pipe(ends));
	ASSERT_EQ(SIZE / 2, vmsplice(ends[1], &iov, 1, 0));
	ASSERT_EQ(PAGES / 2, recalls());
	/* The pipe has references to them. */
	ASSERT_TRUE(stay(p, PAGES / 2));
	ASSERT_EQ(SIZE / 2, read(ends[0], buf, SIZE / 2));
	ASSERT_EQ(0, memcmp(buf, model, SIZE / 2));
}

/* for long, */
OP(mapping, longterm_pin, CLEAN, ANY, MAPPED)
{
	struct pin_longterm_test pin = { (uintptr_t)p, SIZE };
	int gup = open("/sys/kernel/debug/gup_test", O_RDWR);
	uint64_t dest = (uintptr_t)buf;

	if (gup < 0)
		SKIP(return, "no CONFIG_GUP_TEST");
	ASSERT_EQ(0, ioctl(gup, PIN_LONGTERM_TEST_START, &pin));
	ASSERT_EQ(PAGES, recalls());
	ASSERT_TRUE(stay(p, PAGES));
	ASSERT_EQ(0, ioctl(gup, PIN_LONGTERM_TEST_READ, &dest));
	ASSERT_TRUE(same(buf));
	ASSERT_EQ(0, ioctl(gup, PIN_LONGTERM_TEST_STOP));
	ASSERT_TRUE(migrate(p, PAGES, false));
}

/* and for I/O to a mapping. */
OP(mapping, direct_io_buffer, WRITTEN, PAGES, MAPPED | READ)
{
	int direct = open(dir, O_RDWR | O_TMPFILE | O_DIRECT, 0600);

	fill(model, 0, PAGES, 3);
	memcpy(buf, model, SIZE);
	ASSERT_EQ(SIZE, pwrite(direct, buf, SIZE, 0));
	ASSERT_EQ(SIZE, pread(direct, p, SIZE, 0));
	ASSERT_EQ(0, resident());
}

#if defined(__x86_64__)
#define NOP	"\x90"
#elif defined(__aarch64__)
#define NOP	"\x1f\x20\x03\xd5"
#else
#define NOP	""
#endif

/*
 * To remove a breakpoint, uprobes look whether the page of the file is the same as theirs, under
 * the page table lock.
 */
OP(mapping, uprobe, SYSTEM, 0, NONE)
{
	const char *events = "/sys/kernel/tracing/uprobe_events";
	const char *enable = "/sys/kernel/tracing/events/hmm_file/t/enable";
	const size_t len = strlen(NOP);
	char event[160], *q;

	if (!len)
		return;
	for (size_t at = 0; at < psize(); at += len)
		ASSERT_EQ(len, pwrite(fd, NOP, len, at));
	/* What is executable does not migrate; that it could be is enough here. */
	q = map(0, 1, PROT_READ, MAP_PRIVATE);
	p = map(0, 1, PROT_READ, MAP_SHARED);
	ASSERT_TRUE(migrate(p, 1, false));
	mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL);
	if (access(events, W_OK))
		SKIP(return, "no CONFIG_UPROBE_EVENTS");
	snprintf(event, sizeof(event), "p:hmm_file/t %s:0x40", path);
	ASSERT_TRUE(set_file(events, event));
	ASSERT_TRUE(set_file(enable, "1"));
	ASSERT_NE(0, memcmp(q + 64, NOP, len));
	ASSERT_EQ(0, memcmp(p + 64, NOP, len));
	ASSERT_TRUE(migrate(p, 1, false));
	ASSERT_TRUE(set_file(enable, "0"));
	ASSERT_TRUE(set_file(events, "-:hmm_file/t"));
	ASSERT_EQ(1, resident());
	ASSERT_EQ(0, memcmp(q + 64, NOP, len));
}

OP(mapping, build_id, SYSTEM, ANY, NONE)
{
	struct procmap_query query = { .size = sizeof(query) };
	int maps = open("/proc/self/maps", O_RDONLY);
	int exe = open("/proc/self/exe", O_RDONLY);

	while (sendfile(fd, exe, NULL, 1 << 20) > 0)
		;
	ASSERT_EQ(0, fsync(fd));
	p = map(0, PAGES, PROT_READ, MAP_SHARED);
	ASSERT_TRUE(migrate(p, PAGES, false));
	memset(buf, 0, 40);
	query.query_addr = (uintptr_t)p;
	for (int back = 0; back < 2; back++) {
		query.build_id_size = 20;
		query.build_id_addr = (uintptr_t)buf + back * 20;
		ASSERT_EQ(0, ioctl(maps, PROCMAP_QUERY, &query));
		ASSERT_NE(0, query.build_id_size);
		ASSERT_GT(recalls(), 0);
	}
	ASSERT_EQ(0, memcmp(buf, buf + 20, 20));
}

/* What does not migrate stays, with no harm. */
static char *map_secret(void)
{
	fd = syscall(447 /* memfd_secret */, 0);
	return ftruncate(fd, SIZE) ? NULL : map(0, PAGES, RW, MAP_SHARED);
}

static char *map_locked(void)
{
	int shm = shmget(IPC_PRIVATE, SIZE, IPC_CREAT | 0600);
	char *p = shmat(shm, NULL, 0);

	return shmctl(shm, SHM_LOCK, NULL) || shmctl(shm, IPC_RMID, NULL) ? NULL : p;
}

/* With data=journal, even what the journal has done with */
static char *map_file(void)
{
	return write_pages(0, PAGES, 1) && !fsync(fd) && reopen() ?
		map(0, PAGES, RW, MAP_SHARED) : NULL;
}

FIXTURE(refused) { };
FIXTURE_VARIANT(refused)
{
	const char *fs;
	char *(*map)(void);
};

FIXTURE_VARIANT_ADD(refused, secretmem) { "tmpfs", map_secret };
FIXTURE_VARIANT_ADD(refused, shm_lock) { "tmpfs", map_locked };
FIXTURE_VARIANT_ADD(refused, ramfs) { "ramfs", map_file };
FIXTURE_VARIANT_ADD(refused, ext2) { "ext2", map_file };
FIXTURE_VARIANT_ADD(refused, ext4_journal) { "ext4_journal", map_file };
FIXTURE_SETUP(refused) { }
FIXTURE_TEARDOWN(refused) { }

TEST_F(refused, stays)
{
	char *p = new_file(variant->fs) ? variant->map() : NULL;

	if (!p)
		SKIP(return, "no %s, or no such memory", variant->fs);
	if (!right(p, 0, PAGES, 1))
		fill(p, 0, PAGES, 1);
	ASSERT_TRUE(stay(p, PAGES));
	ASSERT_TRUE(right(p, 0, PAGES, 1));
	ASSERT_EQ(stats().recalls, before.recalls);
}

HMM_FILE_MAIN
