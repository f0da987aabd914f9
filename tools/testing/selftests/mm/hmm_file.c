// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of files in device private memory: whatever is done to the file
 * meanwhile, no byte may get lost or be stale.
 */
#define _GNU_SOURCE
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <linux/mman.h>

#include "hmm_file_op.h"

#ifndef __NR_cachestat
#define __NR_cachestat	451
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE	101
#endif

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

OP(file, load_dirty, DIRTY, ANY, MAPPED | DISK)
{
}

OP(file, read, CLEAN, PAGES, MAPPED)
{
	ASSERT_EQ(SIZE, pread(fd, buf, SIZE, 0));
	ASSERT_TRUE(same(buf));
}

/* Large folios are split: a part of one goes, the rest stays. */
OP(file, part, SYSTEM, PAGES, NONE)
{
	const unsigned long nr = 1024, first = 100, next = first + PAGES;
	char *all = malloc(nr * psize());

	fill(all, 0, nr, 1);
	ASSERT_EQ(0, ftruncate(fd, 0));
	ASSERT_EQ(nr * psize(), pwrite(fd, all, nr * psize(), 0));
	ASSERT_EQ(0, fsync(fd));
	p = map(0, nr, PROT_READ, MAP_SHARED);
	touch(p, nr, false);
	ASSERT_TRUE(migrate(p + first * psize(), PAGES, false));
	ASSERT_TRUE(right(mirror, first, PAGES, 1));
	ASSERT_TRUE(right(p, 0, first, 1));
	ASSERT_TRUE(right(p + next * psize(), next, nr - next, 1));
	ASSERT_EQ(PAGES, resident());
	ASSERT_TRUE(right(p + first * psize(), first, PAGES, 1));
}

/* Who does not wait gets nothing. */
OP(file, nowait, CLEAN, 0, READ)
{
	struct iovec iov = { buf, SIZE };

	ASSERT_EQ(-1, preadv2(fd, &iov, 1, 0, RWF_NOWAIT));
	ASSERT_EQ(fs->mkfs ? EAGAIN : EOPNOTSUPP, errno);
	/* Not each file system has that. */
	ASSERT_EQ(-1, pwritev2(fd, &iov, 1, 0, RWF_NOWAIT));
	ASSERT_TRUE(errno == EAGAIN || errno == EOPNOTSUPP);
}

/* What is on the disk must not be older. */
OP(file, read_direct, WRITTEN, ANY, MAPPED)
{
	int direct = open(path, O_RDONLY | O_DIRECT);

	ASSERT_EQ(SIZE, pread(direct, buf, SIZE, 0));
	ASSERT_TRUE(same(buf));
}

OP(file, write_direct, WRITTEN, ANY, MAPPED | READ)
{
	int direct = open(path, O_WRONLY | O_DIRECT);

	fill(model, 0, PAGES / 2, 3);
	memcpy(buf, model, SIZE);
	ASSERT_EQ(SIZE / 2, pwrite(direct, buf, SIZE / 2, 0));
}

/* A part of each page, whose rest only the device has */
OP(file, write, WRITTEN, PAGES, ALL)
{
	for (size_t at = 1024; at < SIZE; at += psize())
		ASSERT_EQ(8, pwrite(fd, memset(model + at, 1, 8), 8, at));
}

OP(file, store, WRITTEN, PAGES, ALL)
{
	for (size_t at = 1024; at < SIZE; at += psize()) {
		memset(model + at, 1, 8);
		memset(p + at, 1, 8);
	}
}

/* It finds that the pages are there. */
OP(file, readahead, WRITTEN, 0, MAPPED)
{
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
		ASSERT_EQ(0, pagemap_get_entry(pagemap, p + i * psize()) &
			     (PM_PRESENT | PM_SWAP));
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

/* What the device wrote reaches the disk, by each way to write back. */
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

OP(file, msync, WRITTEN, ANY, DISK)
{
	ASSERT_EQ(0, msync(p, SIZE, MS_SYNC));
	ASSERT_EQ(fs->mkfs ? 0 : PAGES, resident());
}

OP(file, sync, WRITTEN, ANY, DISK)
{
	sync();
	ASSERT_EQ(fs->mkfs ? 0 : PAGES, resident());
}

/* Nobody asks for it, and the file is closed. */
OP(file, unmount, WRITTEN, 0, DISK)
{
}

/* The time has come, and too much is dirty: so that who writes more has to wait. */
OP(file, periodic_writeback, WRITTEN, ANY, DISK)
{
	ASSERT_TRUE(writeback_every("10"));
	ASSERT_TRUE(!fs->mkfs || WAIT_FOR(!resident()));
	ASSERT_TRUE(writeback_every("0"));
	/* Some file systems have the size on the disk later than the data. */
	ASSERT_EQ(0, fsync(fd));
}

OP(file, dirty_throttling, WRITTEN, ANY, DISK)
{
	bool ok = true;

	/* 4 and 8 pages, of 4 KiB */
	set_file("/proc/sys/vm/dirty_background_bytes", "16384");
	set_file("/proc/sys/vm/dirty_bytes", "32768");
	/*
	 * It goes on until the limit is kept, by sums that need not be up to
	 * date without help, and nobody but a writer starts it again.
	 */
	do {
		ok &= set_file("/proc/sys/vm/stat_refresh", "1");
		ok &= pwrite(fd, model, psize(), SIZE) == psize();
	} while (ok && fs->mkfs && resident() >= (long)PAGES / 2);
	set_file("/proc/sys/vm/dirty_ratio", "20");
	set_file("/proc/sys/vm/dirty_background_ratio", "10");
	ASSERT_TRUE(ok);
	ASSERT_TRUE(fs->mkfs || resident() == PAGES);
	ASSERT_EQ(0, fsync(fd));
}

/* After writeback, who writes has to ask the file system again. */
OP(file, store_after_fsync, WRITTEN, 0, DISK)
{
	ASSERT_EQ(0, fsync(fd));
	fill(p, 0, PAGES, 3);
	ASSERT_TRUE(migrate(p, PAGES, true));
	ASSERT_TRUE(right(mirror, 0, PAGES, 3));
	ASSERT_TRUE(device_fills(p, 4));
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

/* Frozen, all is written back; clean pages may go again. */
OP(file, freeze, WRITTEN, ANY, MAPPED)
{
	int d = open(dir, O_RDONLY | O_DIRECTORY);
	bool ok;

	if (ioctl(d, FIFREEZE, 0)) {
		ASSERT_TRUE(!fs->mkfs && errno == EOPNOTSUPP);
		return;
	}
	ok = !resident() && same(p) && migrate(p, PAGES, false);
	ioctl(d, FITHAW, 0);
	ASSERT_TRUE(ok);
}

/* What is cut off does not come back, the rest stays. */
OP(file, truncate, WRITTEN, ANY, ALL)
{
	const size_t size = 5 * psize() + 100;

	ASSERT_EQ(0, ftruncate(fd, size));
	ASSERT_LE(resident(), 5);
	ASSERT_EQ(SIGBUS, SIGNAL_OF(FORCE_READ(p[6 * psize()])));
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

/* Does the file system have it? If so, the file keeps its size. */
static bool change(int mode, size_t at, size_t len)
{
	return !fallocate(fd, mode, at, len) && !ftruncate(fd, SIZE);
}

OP(file, punch_hole, WRITTEN, ANY, ALL)
{
	const size_t at = 3 * psize() + 512, len = 4 * psize();

	ASSERT_TRUE(change(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, len));
	memset(model + at, 0, len);
}

OP(file, zero_range, WRITTEN, ANY, ALL)
{
	if (!change(FALLOC_FL_ZERO_RANGE, 4 * psize() + 8, 16)) {
		ASSERT_EQ(EOPNOTSUPP, errno);
		return;
	}
	memset(model + 4 * psize() + 8, 0, 16);
}

OP(file, collapse_range, WRITTEN, ANY, ALL)
{
	if (!change(FALLOC_FL_COLLAPSE_RANGE, SIZE / 4, SIZE / 4)) {
		ASSERT_EQ(EOPNOTSUPP, errno);
		return;
	}
	memmove(model + SIZE / 4, model + SIZE / 2, SIZE / 2);
	memset(model + SIZE / 4 * 3, 0, SIZE / 4);
}

OP(file, insert_range, WRITTEN, ANY, ALL)
{
	if (!change(FALLOC_FL_INSERT_RANGE, SIZE / 4, SIZE / 4)) {
		ASSERT_EQ(EOPNOTSUPP, errno);
		return;
	}
	memmove(model + SIZE / 2, model + SIZE / 4, SIZE / 2);
	memset(model + SIZE / 4, 0, SIZE / 4);
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

OP(file, release, WRITTEN, ANY, DISK)
{
	ASSERT_TRUE(release());
}

/* or cannot copy, as if the disk could not be read. */
OP(file, copy_fails, WRITTEN, ANY, MAPPED | DISK)
{
	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_FAIL_COPY));
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
		ASSERT_EQ(0, fstat(fd, &st));
		ASSERT_EQ(SIZE / 512, st.st_blocks);
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
 * Each allocation on the way back, or there, fails once: who can fail does, and
 * the data are where they were, or in memory.
 */
OP(file, no_memory, WRITTEN, ANY, MAPPED | READ)
{
	enum { PREAD, PWRITE, LOAD, STORE, MIGRATE, WAYS };
	unsigned int failures = 0;

	for (int way = 0; way < WAYS; way++) {
		bool pending = false;

		for (unsigned int n = 1; !pending; n++) {
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
			else if (way == LOAD)
				FORCE_READ(p[at]);
			else if (way == STORE)
				memcpy(p + at, model + at, 8);
			else
				try_migrate(p, PAGES);
			ret = error_of(ret);
			pending = fail_pending();
			ASSERT_TRUE(fail_nth(0));
			ASSERT_TRUE(!ret || ret == ENOMEM);
			failures += !!ret;
			ASSERT_TRUE(same(p));
			ASSERT_EQ(0, resident());
		}
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
	p = map(0, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED);
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

	memset(buf, 0, psize());
	for (int i = 0; i < 64; i++)
		if (pwrite(file, buf, psize(), i * psize()) != psize())
			return false;
	return pwrite(file, head, sizeof(head), 1024) == sizeof(head) &&
	       pwrite(file, "SWAPSPACE2", 10, psize() - 10) == 10 && !fsync(file);
}

/*
 * swapoff looks for its entries where those of devices are; and a file that is
 * swapped to has no pages to migrate.
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
	disk = attach_image(image, name);
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
 * khugepaged takes no pages away from a device, but who asks for a huge page
 * gets it, at once: clean pages come back as well.
 */
OP(file, huge, SYSTEM, ANY, NONE)
{
#define KHUGEPAGED "/sys/kernel/mm/transparent_hugepage/khugepaged/"
	const size_t size = read_pmd_pagesize(), nr = size / psize();
	const long was = number_in(KHUGEPAGED "full_scans", "");
	cpu_set_t cpu;
	char *area;
	bool ok;
	int err;

	/* None, or too large for these file systems */
	if (!size || size > 32 << 20)
		return;
	ASSERT_TRUE(write_pages(0, nr, 1));
	ASSERT_EQ(0, fsync(fd));
	area = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* The process is on khugepaged's list by this, on any file system. */
	ASSERT_EQ(0, madvise(area, 2 * size, MADV_HUGEPAGE));
	memset(area, 1, 2 * size);
	area = (char *)(((uintptr_t)area + size - 1) & ~(size - 1));
	p = mmap(area, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	ASSERT_EQ(area, p);
	madvise(p, size, MADV_HUGEPAGE);
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
 * A node of i_pages with nothing but values goes, when there are more of these
 * than an eighth of the cgroup's pages: they may be shadows of what was evicted.
 */
OP(file, shadow_nodes, SYSTEM, ANY, NONE)
{
	/* A page in each node. btrfs writes back for space for more extents. */
	const unsigned long nr = fs->mkfs ? 512 : 64, step = 64, dirty = 32;

	ASSERT_TRUE(join_cgroup("shadow"));
	ASSERT_EQ(NULL, new_file(NULL));
	ASSERT_EQ(0, ftruncate(fd, nr * step * psize()));
	p = map(0, nr * step, PROT_READ | PROT_WRITE, MAP_SHARED);
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
	leave_cgroups("shadow", "");
}

/* What may not be written is not writable when it is back. */
OP(file, readonly, CLEAN, ANY, MAPPED)
{
	FORCE_READ(*p);
	ASSERT_EQ(SIGSEGV, SIGNAL_OF(*(volatile char *)p = 1));
	ASSERT_NE(0, command(HMM_DMIRROR_WRITE, p, buf, PAGES));
}

OP(file, mprotect, WRITTEN, ANY, MAPPED)
{
	ASSERT_EQ(0, mprotect(p, SIZE, PROT_READ));
	ASSERT_EQ(SIGSEGV, SIGNAL_OF(*(volatile char *)p = 1));
	ASSERT_NE(0, command(HMM_DMIRROR_WRITE, p, buf, PAGES));
}

HMM_FILE_MAIN
