// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of files in device private memory, with the simulated device of
 * lib/test_hmm.c: whatever the CPU, the file system or another process does to
 * a file meanwhile, no byte may get lost or be stale.
 *
 * Each test runs on each file system for which there is a mkfs; mounting wants
 * root.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/param.h>
#include <sys/sendfile.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/sysinfo.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sched.h>
#include <time.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <linux/mman.h>
#include <linux/userfaultfd.h>

#include "kselftest_harness.h"
#include <lib/test_hmm_uapi.h>
#include <mm/gup_test.h>
#include "hmm_file_util.h"
#include "vm_util.h"

#define DEVICE		"/dev/hmm_dmirror0"
#define TOP		"/tmp/hmm_file"
#define PAGES		16UL

#ifndef __NR_cachestat
#define __NR_cachestat	451
#endif

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif

#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE	101
#endif

/* How long, in milliseconds, to wait for what has to happen */
#define PATIENCE	60000

/* How many seconds a test may take, on an emulated machine with KASAN, too */
#define TIMEOUT		300

static long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Wait until @condition, or for PATIENCE */
#define WAIT_FOR(condition)						\
({									\
	long end_ = now_ms() + PATIENCE;				\
	bool is_;							\
									\
	while (!(is_ = (condition)) && now_ms() < end_)			\
		usleep(10000);						\
	is_;								\
})

/* Each word of a page tells where it is, and which version. */
static uint64_t word(unsigned long page, unsigned int i, unsigned int version)
{
	return ((uint64_t)version << 48) | ((uint64_t)page << 16) | i;
}

static void fill(void *buf, unsigned long page, unsigned long nr,
		 unsigned int version)
{
	uint64_t *p = buf;

	for (unsigned long j = 0; j < nr; j++)
		for (unsigned int i = 0; i < psize() / 8; i++)
			*p++ = word(page + j, i, version);
}

/* How many of the words of @nr pages are not what they should be? */
static unsigned long wrong(const void *buf, unsigned long page,
			   unsigned long nr, unsigned int version)
{
	const uint64_t *p = buf;
	unsigned long bad = 0;

	for (unsigned long j = 0; j < nr; j++)
		for (unsigned int i = 0; i < psize() / 8; i++)
			bad += *p++ != word(page + j, i, version);
	return bad;
}

static bool all_zero(const char *p, size_t len)
{
	while (len--)
		if (*p++)
			return false;
	return true;
}

static sigjmp_buf fault_jmp;
static volatile sig_atomic_t fault_armed;

static void fault_handler(int sig)
{
	if (!fault_armed)
		_exit(99);
	siglongjmp(fault_jmp, sig);
}

/* The signal that reading, or writing, a byte there gives; or 0 */
static int try_read(const char *p)
{
	int sig = sigsetjmp(fault_jmp, 1);

	if (!sig) {
		fault_armed = 1;
		FORCE_READ(*p);
	}
	fault_armed = 0;
	return sig;
}

static int try_poison(void *p)
{
	int sig = sigsetjmp(fault_jmp, 1);

	if (!sig) {
		fault_armed = 1;
		madvise(p, psize(), MADV_HWPOISON);
	}
	fault_armed = 0;
	return sig;
}

static int try_write(volatile char *p, char c)
{
	int sig = sigsetjmp(fault_jmp, 1);

	if (!sig) {
		fault_armed = 1;
		*p = c;
	}
	fault_armed = 0;
	return sig;
}

FIXTURE(file)
{
	int dev;
	int fd;
	char dir[64];
	char path[96];
	char *buf;		/* PAGES pages for whatever */
	char *mirror;		/* what the device has read */
	struct hmm_dmirror_stats before;
};

FIXTURE_VARIANT(file)
{
	const char *fs;
	const char *mkfs;	/* a command, for an image of this many MiB */
	unsigned int mib;
	const char *options;
	bool disk;
};

FIXTURE_VARIANT_ADD(file, tmpfs)
{
	.fs = "tmpfs",
	.options = "size=64m",
};

FIXTURE_VARIANT_ADD(file, tmpfs_huge)
{
	.fs = "tmpfs",
	.options = "size=64m,huge=always",
};

FIXTURE_VARIANT_ADD(file, ext4)
{
	.fs = "ext4",
	.mkfs = "mkfs.ext4 -q -F -b 4096",
	.mib = 64,
	.disk = true,
};

FIXTURE_VARIANT_ADD(file, ext4_1k)
{
	.fs = "ext4",
	.mkfs = "mkfs.ext4 -q -F -b 1024",
	.mib = 64,
	.disk = true,
};

FIXTURE_VARIANT_ADD(file, xfs)
{
	.fs = "xfs",
	.mkfs = "mkfs.xfs -q -f",
	.mib = 320,
	.disk = true,
};

FIXTURE_VARIANT_ADD(file, btrfs)
{
	.fs = "btrfs",
	.mkfs = "mkfs.btrfs -q -f",
	.mib = 128,
	.disk = true,
};

/*
 * The file system of a variant is made for its first test, and stays. 0, -ENODEV
 * if the machine has none such, or another error.
 */
static int mount_fs(struct _test_data_file *self, const struct _fixture_variant_file *variant,
		    const char *name)
{
	struct stat top, dir;
	char image[96];

	mkdir(TOP, 0700);
	snprintf(self->dir, sizeof(self->dir), TOP "/%s", name);
	mkdir(self->dir, 0700);
	if (stat(TOP, &top) || stat(self->dir, &dir))
		return -errno;
	if (top.st_dev != dir.st_dev)
		return 0;
	if (!variant->mkfs)
		return mount("hmm_file", self->dir, variant->fs, 0,
			     variant->options) ? -errno : 0;
	if (no_mkfs(variant->mkfs))
		return -ENODEV;
	mkdir(TOP "/images", 0700);
	if (!stat(TOP "/images", &dir) && dir.st_dev == top.st_dev &&
	    mount("images", TOP "/images", "tmpfs", 0, "size=512m"))
		return -errno;
	if (run("truncate -s %uM " TOP "/images/%s", variant->mib, name) ||
	    run("%s " TOP "/images/%s >/dev/null", variant->mkfs, name))
		return -EIO;
	snprintf(image, sizeof(image), TOP "/images/%s", name);
	return mount_image(image, self->dir, variant->fs, NULL);
}

static bool remount(struct _test_data_file *self, const struct _fixture_variant_file *variant)
{
	char image[96];

	snprintf(image, sizeof(image), TOP "/images%s", strrchr(self->dir, '/'));
	return !umount(self->dir) &&
	       !mount_image(image, self->dir, variant->fs, NULL);
}

static int stats(int dev, struct hmm_dmirror_stats *stats)
{
	return ioctl(dev, HMM_DMIRROR_STATS, stats);
}

/* Pages in device memory, and recalls, since the test's start */
static long resident(struct _test_data_file *self)
{
	struct hmm_dmirror_stats now;

	stats(self->dev, &now);
	return (now.allocs - self->before.allocs) -
	       (now.frees - self->before.frees);
}

static long recalls(struct _test_data_file *self)
{
	struct hmm_dmirror_stats now;

	stats(self->dev, &now);
	return now.recalls - self->before.recalls;
}

/* Whoever has a reference to a page of the device keeps it there. */
static bool evict(int dev, struct hmm_dmirror_stats *before)
{
	struct hmm_dmirror_stats now;

	return WAIT_FOR(!command(dev, HMM_DMIRROR_EVICT, NOWHERE, NULL, 1) &&
			!stats(dev, &now) &&
			now.allocs - before->allocs == now.frees - before->frees);
}

/* Writeback is when a test says so: it would recall pages. */
static bool writeback_every(const char *centisecs)
{
	return set_file("/proc/sys/vm/dirty_expire_centisecs",
			  strcmp(centisecs, "0") ? centisecs : "100000") &&
	       set_file("/proc/sys/vm/dirty_writeback_centisecs", centisecs);
}

FIXTURE_SETUP(file)
{
	struct sigaction sa = { .sa_handler = fault_handler };
	const char *name = variant->mkfs ? variant->fs : "tmpfs";
	int ret;

	if (variant->mkfs && strstr(variant->mkfs, "1024"))
		name = "ext4_1k";
	else if (variant->options && strstr(variant->options, "huge"))
		name = "tmpfs_huge";
	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
	self->dev = open(DEVICE, O_RDWR);
	ASSERT_GE(self->dev, 0);
	ASSERT_TRUE(writeback_every("0"));
	ret = mount_fs(self, variant, name);
	if (ret == -ENODEV || ret == -ENOENT)
		SKIP(return, "no %s, no mkfs or no loop device for it", variant->fs);
	ASSERT_EQ(ret, 0);
	snprintf(self->path, sizeof(self->path), "%s/file.%d", self->dir,
		 getpid());
	self->fd = open(self->path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	ASSERT_GE(self->fd, 0);
	self->buf = aligned_alloc(psize(), PAGES * psize());
	self->mirror = aligned_alloc(psize(), PAGES * psize());
	ASSERT_NE(self->buf, NULL);
	ASSERT_NE(self->mirror, NULL);
	ASSERT_EQ(command(self->dev, HMM_DMIRROR_EVICT, NOWHERE, NULL, 1), 0);
	ASSERT_EQ(stats(self->dev, &self->before), 0);

	/* One by one: a large folio that is dirty cannot always be split. */
	fill(self->buf, 0, PAGES, 1);
	for (unsigned long i = 0; i < PAGES; i++)
		ASSERT_EQ(pwrite(self->fd, self->buf + i * psize(), psize(),
				 i * psize()), psize());
}

FIXTURE_TEARDOWN(file)
{
	set_flags(self->dev, 0);
	close(self->fd);
	unlink(self->path);
	/* Whatever was left there is evicted, or the file's end was theirs. */
	EXPECT_TRUE(evict(self->dev, &self->before));
	close(self->dev);
}

static char *map(struct _test_data_file *self, int prot, int flags)
{
	char *p = mmap(NULL, PAGES * psize(), prot, flags, self->fd, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void touch(char *p, unsigned long nr)
{
	for (unsigned long i = 0; i < nr; i++)
		FORCE_READ(p[i * psize()]);
}

/*
 * Pages of @p that are in device memory then; their data are in mirror. Another
 * CPU may have a reference to one for a moment, so it takes up to @ms. Parts of
 * a large folio are unmapped when it has been split, and have to be touched,
 * which recalls those that have gone.
 */
static long migrate_within(struct _test_data_file *self, char *p, unsigned long nr,
			   long ms)
{
	long was = resident(self), end = now_ms() + ms, patience = now_ms() + 1000;

	for (;;) {
		int ret = command(self->dev, HMM_DMIRROR_MIGRATE_TO_DEV, p,
				  self->mirror, nr);

		if (ret && ret != -ENOENT)
			return ret;
		if (resident(self) - was >= (long)nr || now_ms() > end)
			return resident(self) - was;
		if (resident(self) == was || now_ms() > patience) {
			touch(p, nr);
			patience = now_ms() + 1000;
		} else {
			usleep(10000);
		}
	}
}

static long migrate(struct _test_data_file *self, char *p, unsigned long nr)
{
	return migrate_within(self, p, nr, PATIENCE);
}

/* To the device, in a mapping that is not written to: clean, if @sync */
static char *to_device(struct _test_data_file *self, struct __test_metadata *_metadata,
		       bool sync)
{
	char *p = map(self, PROT_READ, MAP_SHARED);

	ASSERT_NE(p, NULL);
	if (sync)
		ASSERT_EQ(fsync(self->fd), 0);
	touch(p, PAGES);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	ASSERT_EQ(wrong(self->mirror, 0, PAGES, 1), 0);
	return p;
}

/* To the device, which then writes version 2 */
static char *device_writes(struct _test_data_file *self,
			   struct __test_metadata *_metadata)
{
	char *p = map(self, PROT_READ | PROT_WRITE, MAP_SHARED);

	ASSERT_NE(p, NULL);
	fill(p, 0, PAGES, 1);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	fill(self->buf, 0, PAGES, 2);
	ASSERT_EQ(command(self->dev, HMM_DMIRROR_WRITE, p, self->buf, PAGES), 0);
	/* Into device memory, not by a detour through system memory */
	ASSERT_EQ(resident(self), PAGES);
	ASSERT_EQ(recalls(self), 0);
	return p;
}

TEST_F_TIMEOUT(file, load, TIMEOUT)
{
	char *p = to_device(self, _metadata, true);

	for (unsigned long i = 0; i < PAGES; i++) {
		ASSERT_EQ(wrong(p + i * psize(), i, 1, 1), 0);
		ASSERT_EQ(recalls(self), i + 1);
	}
	ASSERT_EQ(resident(self), 0);
}

/* Pages that are not clean: the data are nowhere else. */
TEST_F_TIMEOUT(file, load_dirty, TIMEOUT)
{
	char *p = to_device(self, _metadata, false);

	ASSERT_EQ(wrong(p, 0, PAGES, 1), 0);
	ASSERT_EQ(recalls(self), PAGES);
	if (!variant->disk)
		return;
	ASSERT_EQ(munmap(p, PAGES * psize()), 0);
	ASSERT_EQ(close(self->fd), 0);
	ASSERT_TRUE(remount(self, variant));
	self->fd = open(self->path, O_RDWR);
	ASSERT_GE(self->fd, 0);
	ASSERT_EQ(pread(self->fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	ASSERT_EQ(wrong(self->buf, 0, PAGES, 1), 0);
}

/* Large folios are split: a part of one goes, the rest stays. */
TEST_F_TIMEOUT(file, large, TIMEOUT)
{
	const size_t size = MAX(4 << 20, 128 * psize());
	char *p, *buf = malloc(size);

	ASSERT_NE(buf, NULL);
	fill(buf, 0, size / psize(), 1);
	ASSERT_EQ(ftruncate(self->fd, 0), 0);
	ASSERT_EQ(pwrite(self->fd, buf, size, 0), size);
	ASSERT_EQ(fsync(self->fd), 0);
	p = mmap(NULL, size, PROT_READ, MAP_SHARED, self->fd, 0);
	ASSERT_NE(p, MAP_FAILED);
	for (size_t i = 0; i < size; i += psize())
		FORCE_READ(p[i]);
	ASSERT_EQ(migrate(self, p + 100 * psize(), PAGES), PAGES);
	ASSERT_EQ(wrong(p, 0, size / psize(), 1), 0);
	ASSERT_EQ(resident(self), 0);
	munmap(p, size);
	free(buf);
}

TEST_F_TIMEOUT(file, partial_range, TIMEOUT)
{
	char *p = map(self, PROT_READ, MAP_SHARED);

	ASSERT_NE(p, NULL);
	ASSERT_EQ(fsync(self->fd), 0);
	touch(p, PAGES);
	ASSERT_EQ(migrate(self, p + 3 * psize(), 4), 4);
	ASSERT_EQ(wrong(self->mirror, 3, 4, 1), 0);
	ASSERT_EQ(wrong(p, 0, 3, 1), 0);
	ASSERT_EQ(wrong(p + 7 * psize(), 7, PAGES - 7, 1), 0);
	ASSERT_EQ(recalls(self), 0);
	ASSERT_EQ(wrong(p + 3 * psize(), 3, 4, 1), 0);
	ASSERT_EQ(recalls(self), 4);
}

TEST_F_TIMEOUT(file, read, TIMEOUT)
{
	to_device(self, _metadata, true);
	ASSERT_EQ(pread(self->fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	ASSERT_EQ(wrong(self->buf, 0, PAGES, 1), 0);
	ASSERT_EQ(recalls(self), PAGES);
}

/* With O_DIRECT, what is on the disk must not be older. */
TEST_F_TIMEOUT(file, read_direct, TIMEOUT)
{
	int fd = open(self->path, O_RDWR | O_DIRECT);

	if (fd < 0 && !variant->disk)
		SKIP(return, "no O_DIRECT");
	ASSERT_GE(fd, 0);
	device_writes(self, _metadata);
	ASSERT_EQ(pread(fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	ASSERT_EQ(wrong(self->buf, 0, PAGES, 2), 0);
	close(fd);
}

TEST_F_TIMEOUT(file, write_direct, TIMEOUT)
{
	int fd = open(self->path, O_RDWR | O_DIRECT);
	char *p;

	if (fd < 0 && !variant->disk)
		SKIP(return, "no O_DIRECT");
	ASSERT_GE(fd, 0);
	p = device_writes(self, _metadata);
	fill(self->buf, 0, PAGES, 3);
	ASSERT_EQ(pwrite(fd, self->buf, 8 * psize(), 0), 8 * psize());
	ASSERT_EQ(wrong(p, 0, 8, 3), 0);
	ASSERT_EQ(wrong(p + 8 * psize(), 8, PAGES - 8, 2), 0);
	close(fd);
}

TEST_F_TIMEOUT(file, sendfile, TIMEOUT)
{
	char *p = to_device(self, _metadata, true);
	int pipefd[2];
	off_t off = 0;

	ASSERT_EQ(pipe(pipefd), 0);
	for (unsigned long i = 0; i < PAGES; i++) {
		ASSERT_EQ(sendfile(pipefd[1], self->fd, &off, psize()), psize());
		ASSERT_EQ(read(pipefd[0], self->buf, psize()), psize());
		ASSERT_EQ(wrong(self->buf, i, 1, 1), 0);
	}
	ASSERT_EQ(munmap(p, PAGES * psize()), 0);
}

/* Part of a page, whose rest only the device has */
TEST_F_TIMEOUT(file, write, TIMEOUT)
{
	char *p = device_writes(self, _metadata);
	uint64_t new = ~0ULL;

	for (unsigned long i = 0; i < PAGES; i++)
		ASSERT_EQ(pwrite(self->fd, &new, 8, i * psize() + 1024), 8);
	ASSERT_EQ(pread(self->fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	for (unsigned long i = 0; i < PAGES; i++)
		ASSERT_EQ(wrong(self->buf + i * psize(), i, 1, 2), 1);
	ASSERT_EQ(memcmp(p, self->buf, PAGES * psize()), 0);
}

TEST_F_TIMEOUT(file, store, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	for (unsigned long i = 0; i < PAGES; i++)
		*(uint64_t *)(p + i * psize() + 1024) = ~0ULL;
	ASSERT_EQ(pread(self->fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	for (unsigned long i = 0; i < PAGES; i++)
		ASSERT_EQ(wrong(self->buf + i * psize(), i, 1, 2), 1);
}

TEST_F_TIMEOUT(file, process_vm_readv, TIMEOUT)
{
	char *p = device_writes(self, _metadata);
	struct iovec local = { self->mirror, PAGES * psize() };
	struct iovec remote = { p, PAGES * psize() };

	ASSERT_EQ(process_vm_readv(getpid(), &local, 1, &remote, 1, 0),
		  PAGES * psize());
	ASSERT_EQ(wrong(self->mirror, 0, PAGES, 2), 0);
}

TEST_F_TIMEOUT(file, populate, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(madvise(p, PAGES * psize(), MADV_POPULATE_READ), 0);
	ASSERT_EQ(recalls(self), PAGES);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
}

/* Readahead finds that it is there. */
TEST_F_TIMEOUT(file, readahead, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(readahead(self->fd, 0, PAGES * psize()), 0);
	ASSERT_EQ(madvise(p, PAGES * psize(), MADV_WILLNEED), 0);
	ASSERT_EQ(posix_fadvise(self->fd, 0, 0, POSIX_FADV_WILLNEED), 0);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
}

TEST_F_TIMEOUT(file, exec, TIMEOUT)
{
	char *p, *program = NULL;
	struct stat st;
	int self_fd = open("/proc/self/exe", O_RDONLY);
	int status;
	pid_t pid;

	ASSERT_GE(self_fd, 0);
	ASSERT_EQ(fstat(self_fd, &st), 0);
	ASSERT_EQ(ftruncate(self->fd, 0), 0);
	for (off_t off = 0; off < st.st_size;)
		ASSERT_GT(sendfile(self->fd, self_fd, &off, st.st_size - off), 0);
	ASSERT_EQ(fchmod(self->fd, 0700), 0);
	ASSERT_EQ(fsync(self->fd), 0);
	/* What is open for writing cannot be executed. */
	ASSERT_EQ(close(self->fd), 0);
	self->fd = open(self->path, O_RDONLY);
	ASSERT_GE(self->fd, 0);
	p = map(self, PROT_READ, MAP_SHARED);
	ASSERT_NE(p, NULL);
	touch(p, PAGES);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	ASSERT_GE(asprintf(&program, "%s", self->path), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		execl(program, program, "-h", NULL);
		_exit(77);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_TRUE(WIFEXITED(status));
	ASSERT_NE(WEXITSTATUS(status), 77);
	ASSERT_GT(recalls(self), 0);
	free(program);
}

static void evict_caches(struct __test_metadata *_metadata)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(write(fd, "3", 1), 1);
	close(fd);
}

/* Device writes reach the disk: by the ways that there are to write back. */
static void check_disk(struct _test_data_file *self,
		       const struct _fixture_variant_file *variant,
		       struct __test_metadata *_metadata, char *p)
{
	ASSERT_EQ(munmap(p, PAGES * psize()), 0);
	ASSERT_EQ(close(self->fd), 0);
	if (variant->disk)
		ASSERT_TRUE(remount(self, variant));
	self->fd = open(self->path, O_RDWR);
	ASSERT_GE(self->fd, 0);
	ASSERT_EQ(pread(self->fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	ASSERT_EQ(wrong(self->buf, 0, PAGES, 2), 0);
}

TEST_F_TIMEOUT(file, fsync, TIMEOUT)
{
	char *p = device_writes(self, _metadata);
	int fd;

	ASSERT_EQ(fsync(self->fd), 0);
	evict_caches(_metadata);
	fd = open(self->path, O_RDONLY | O_DIRECT);
	if (fd >= 0) {
		ASSERT_EQ(pread(fd, self->buf, PAGES * psize(), 0), PAGES * psize());
		ASSERT_EQ(wrong(self->buf, 0, PAGES, 2), 0);
		close(fd);
	}
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
	check_disk(self, variant, _metadata, p);
}

TEST_F_TIMEOUT(file, msync, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(msync(p, PAGES * psize(), MS_SYNC), 0);
	evict_caches(_metadata);
	check_disk(self, variant, _metadata, p);
}

TEST_F_TIMEOUT(file, sync, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	sync();
	evict_caches(_metadata);
	check_disk(self, variant, _metadata, p);
}

/* Nobody asks for it, and the file is closed. */
TEST_F_TIMEOUT(file, unmount, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	check_disk(self, variant, _metadata, p);
}

/* After writeback, who writes has to ask the file system again. */
TEST_F_TIMEOUT(file, store_after_fsync, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(fsync(self->fd), 0);
	fill(p, 0, PAGES, 3);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	ASSERT_EQ(wrong(self->mirror, 0, PAGES, 3), 0);
	fill(self->buf, 0, PAGES, 2);
	ASSERT_EQ(command(self->dev, HMM_DMIRROR_WRITE, p, self->buf, PAGES), 0);
	check_disk(self, variant, _metadata, p);
}

/* Clean pages are no business of writeback's. */
TEST_F_TIMEOUT(file, fsync_clean, TIMEOUT)
{
	to_device(self, _metadata, true);
	ASSERT_EQ(fsync(self->fd), 0);
	sync();
	evict_caches(_metadata);
	ASSERT_EQ(recalls(self), 0);
	ASSERT_EQ(resident(self), PAGES);
}

TEST_F_TIMEOUT(file, drop_caches, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(munmap(p, PAGES * psize()), 0);
	evict_caches(_metadata);
	ASSERT_EQ(posix_fadvise(self->fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	ASSERT_EQ(pread(self->fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	ASSERT_EQ(wrong(self->buf, 0, PAGES, 2), 0);
}

/* In the middle of a page; what is cut off must not come back. */
TEST_F_TIMEOUT(file, truncate, TIMEOUT)
{
	const size_t size = 5 * psize() + 100;
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(ftruncate(self->fd, size), 0);
	/* File systems write back on the way as they like. */
	ASSERT_LE(resident(self), 5);
	ASSERT_EQ(try_read(p + 6 * psize()), SIGBUS);
	ASSERT_EQ(ftruncate(self->fd, PAGES * psize()), 0);
	ASSERT_EQ(wrong(p, 0, 5, 2), 0);
	ASSERT_EQ(memcmp(p + 5 * psize(), self->buf + 5 * psize(), 100), 0);
	ASSERT_TRUE(all_zero(p + size, PAGES * psize() - size));
}

TEST_F_TIMEOUT(file, truncate_all, TIMEOUT)
{
	device_writes(self, _metadata);
	ASSERT_EQ(ftruncate(self->fd, 0), 0);
	ASSERT_EQ(resident(self), 0);
	/* There is nobody for whom to copy. */
	ASSERT_EQ(recalls(self), 0);
	ASSERT_EQ(ftruncate(self->fd, PAGES * psize()), 0);
	ASSERT_EQ(pread(self->fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	ASSERT_TRUE(all_zero(self->buf, PAGES * psize()));
}

TEST_F_TIMEOUT(file, punch_hole, TIMEOUT)
{
	const size_t start = 3 * psize() + 512, len = 4 * psize();
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			    start, len), 0);
	ASSERT_TRUE(all_zero(p + start, len));
	memset(self->buf + start, 0, len);
	ASSERT_EQ(memcmp(p, self->buf, PAGES * psize()), 0);
}

TEST_F_TIMEOUT(file, collapse_range, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	if (fallocate(self->fd, FALLOC_FL_COLLAPSE_RANGE, 4 * psize(),
		      4 * psize())) {
		ASSERT_EQ(errno, EOPNOTSUPP);
		ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
		return;
	}
	ASSERT_EQ(wrong(p, 0, 4, 2), 0);
	ASSERT_EQ(wrong(p + 4 * psize(), 8, PAGES - 8, 2), 0);
}

TEST_F_TIMEOUT(file, zero_range, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	if (fallocate(self->fd, FALLOC_FL_ZERO_RANGE, 4 * psize() + 8, 16)) {
		ASSERT_EQ(errno, EOPNOTSUPP);
		return;
	}
	memset(self->buf + 4 * psize() + 8, 0, 16);
	ASSERT_EQ(memcmp(p, self->buf, PAGES * psize()), 0);
}

TEST_F_TIMEOUT(file, unlink, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(unlink(self->path), 0);
	ASSERT_EQ(wrong(p, 0, 1, 2), 0);
	ASSERT_EQ(munmap(p, PAGES * psize()), 0);
	ASSERT_EQ(resident(self), PAGES - 1);
	ASSERT_EQ(close(self->fd), 0);
	/* btrfs leaves it to a thread. */
	ASSERT_TRUE(WAIT_FOR((sync(), !resident(self))));
	ASSERT_EQ(recalls(self), 1);
	self->fd = open(self->path, O_RDWR | O_CREAT, 0600);
}

/* A private mapping: the file's pages go, copies of it stay. */
TEST_F_TIMEOUT(file, private, TIMEOUT)
{
	char *p = map(self, PROT_READ | PROT_WRITE, MAP_PRIVATE);

	ASSERT_NE(p, NULL);
	ASSERT_EQ(fsync(self->fd), 0);
	touch(p, PAGES);
	fill(p, 0, 4, 7);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	ASSERT_EQ(wrong(self->mirror, 0, 4, 7), 0);
	ASSERT_EQ(wrong(self->mirror + 4 * psize(), 4, PAGES - 4, 1), 0);
	fill(p + 4 * psize(), 4, 4, 7);
	ASSERT_EQ(wrong(p, 0, 8, 7), 0);
	ASSERT_EQ(wrong(p + 8 * psize(), 8, PAGES - 8, 1), 0);
	ASSERT_EQ(pread(self->fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	ASSERT_EQ(wrong(self->buf, 0, PAGES, 1), 0);
}

/* Others have it mapped, and change it. */
TEST_F_TIMEOUT(file, processes, TIMEOUT)
{
	char *p = device_writes(self, _metadata);
	int status;
	pid_t pid = fork();

	ASSERT_GE(pid, 0);
	if (!pid) {
		if (wrong(p, 0, PAGES, 2))
			_exit(1);
		fill(p, 0, PAGES, 3);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
	ASSERT_EQ(wrong(p, 0, PAGES, 3), 0);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	ASSERT_EQ(wrong(self->mirror, 0, PAGES, 3), 0);
}

/* The other process's mapping is another, at another offset. */
TEST_F_TIMEOUT(file, two_mappings, TIMEOUT)
{
	char *p = map(self, PROT_READ | PROT_WRITE, MAP_SHARED);
	char *q = mmap(NULL, 4 * psize(), PROT_READ | PROT_WRITE, MAP_SHARED,
		       self->fd, 2 * psize());

	ASSERT_NE(p, NULL);
	ASSERT_NE(q, MAP_FAILED);
	fill(p, 0, PAGES, 1);
	fill(q, 2, 4, 1);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	fill(self->buf, 0, PAGES, 2);
	ASSERT_EQ(command(self->dev, HMM_DMIRROR_WRITE, p, self->buf, PAGES), 0);
	ASSERT_EQ(wrong(q, 2, 4, 2), 0);
	ASSERT_EQ(recalls(self), 4);
	/* The device has noticed: it has no page there any more. */
	fill(q, 2, 4, 3);
	ASSERT_EQ(command(self->dev, HMM_DMIRROR_READ, p, self->mirror, PAGES), 0);
	ASSERT_EQ(wrong(self->mirror, 0, 2, 2), 0);
	ASSERT_EQ(wrong(self->mirror + 2 * psize(), 2, 4, 3), 0);
	ASSERT_EQ(wrong(self->mirror + 6 * psize(), 6, PAGES - 6, 2), 0);
}

TEST_F_TIMEOUT(file, evict, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	ASSERT_TRUE(evict(self->dev, &self->before));
	ASSERT_EQ(recalls(self), 0);
	check_disk(self, variant, _metadata, p);
}

/* The device cannot copy: as if the disk could not read. */
TEST_F_TIMEOUT(file, copy_fails, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(set_flags(self->dev, HMM_DMIRROR_FLAG_FAIL_COPY), 0);
	ASSERT_EQ(try_read(p), SIGBUS);
	ASSERT_EQ(try_write(p, 0), SIGBUS);
	ASSERT_EQ(pread(self->fd, self->mirror, psize(), 0), -1);
	ASSERT_EQ(errno, EIO);
	ASSERT_EQ(pwrite(self->fd, "x", 1, 10), -1);
	ASSERT_EQ(errno, EIO);
	ASSERT_EQ(resident(self), PAGES);
	if (variant->disk) {
		ASSERT_EQ(fsync(self->fd), -1);
		ASSERT_EQ(errno, EIO);
	}
	ASSERT_EQ(set_flags(self->dev, 0), 0);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
	ASSERT_EQ(resident(self), 0);
	check_disk(self, variant, _metadata, p);
}

/* If what is cut off cannot be zeroed, the page is lost, which is told. */
TEST_F_TIMEOUT(file, truncate_copy_fails, TIMEOUT)
{
	const size_t size = 5 * psize() + 100;
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(set_flags(self->dev, HMM_DMIRROR_FLAG_FAIL_COPY), 0);
	/* Some file systems write it back, or read it, and notice. */
	if (ftruncate(self->fd, size)) {
		ASSERT_EQ(errno, EIO);
		ASSERT_EQ(set_flags(self->dev, 0), 0);
		/* Whether the size has changed is the file system's. */
		ASSERT_EQ(wrong(p, 0, 5, 2), 0);
		return;
	}
	ASSERT_EQ(set_flags(self->dev, 0), 0);
	/* tmpfs has nothing to tell by fsync(). */
	if (variant->disk) {
		ASSERT_EQ(fsync(self->fd), -1);
		ASSERT_EQ(errno, EIO);
	} else {
		ASSERT_EQ(try_read(p + 5 * psize()), SIGBUS);
		ASSERT_EQ(ftruncate(self->fd, 5 * psize()), 0);
	}
	ASSERT_EQ(ftruncate(self->fd, PAGES * psize()), 0);
	ASSERT_EQ(wrong(p, 0, 5, 2), 0);
	ASSERT_TRUE(all_zero(p + size, PAGES * psize() - size));
}

/* What may not be written is not writable when it is back. */
TEST_F_TIMEOUT(file, readonly, TIMEOUT)
{
	char *p = to_device(self, _metadata, true);

	ASSERT_EQ(wrong(p, 0, 1, 1), 0);
	ASSERT_EQ(try_write(p, 1), SIGSEGV);
	fill(self->buf, 0, PAGES, 2);
	ASSERT_NE(command(self->dev, HMM_DMIRROR_WRITE, p, self->buf, PAGES), 0);
	ASSERT_EQ(wrong(p, 0, PAGES, 1), 0);
}

TEST_F_TIMEOUT(file, mprotect, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(mprotect(p, PAGES * psize(), PROT_READ), 0);
	ASSERT_EQ(try_write(p, 1), SIGSEGV);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
	fill(self->buf, 0, PAGES, 3);
	ASSERT_NE(command(self->dev, HMM_DMIRROR_WRITE, p, self->buf, PAGES), 0);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
}

TEST_F_TIMEOUT(file, mlock, TIMEOUT)
{
	char *p = map(self, PROT_READ, MAP_SHARED);

	ASSERT_NE(p, NULL);
	ASSERT_EQ(fsync(self->fd), 0);
	ASSERT_EQ(mlock(p, PAGES * psize()), 0);
	ASSERT_EQ(migrate_within(self, p, PAGES, 100), 0);
	ASSERT_EQ(wrong(p, 0, PAGES, 1), 0);
	ASSERT_EQ(recalls(self), 0);
}

TEST_F_TIMEOUT(file, observers, TIMEOUT)
{
	struct cachestat_range range = { 0, PAGES * psize() };
	struct cachestat cs;
	unsigned char vec[PAGES];
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry;
	char *p = device_writes(self, _metadata);

	/* As if it was not mapped: neither present nor swapped */
	ASSERT_GE(pagemap, 0);
	for (unsigned long i = 0; i < PAGES; i++) {
		ASSERT_EQ(pread(pagemap, &entry, 8,
				((uintptr_t)p / psize() + i) * 8), 8);
		ASSERT_EQ(entry >> 62, 0);
	}
	close(pagemap);

	ASSERT_EQ(mincore(p, PAGES * psize(), vec), 0);
	for (unsigned long i = 0; i < PAGES; i++)
		ASSERT_EQ(vec[i] & 1, 1);
	if (syscall(__NR_cachestat, self->fd, &range, &cs, 0)) {
		ASSERT_EQ(errno, EOPNOTSUPP);
	} else {
		ASSERT_EQ(cs.nr_cache, PAGES);
		ASSERT_EQ(cs.nr_evicted, 0);
		if (variant->disk)
			ASSERT_EQ(cs.nr_dirty, PAGES);
	}
	ASSERT_EQ(recalls(self), 0);
	ASSERT_EQ(lseek(self->fd, 0, SEEK_DATA), 0);
	ASSERT_EQ(lseek(self->fd, 0, SEEK_HOLE), PAGES * psize());
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
}

/* Who writes to protected pages is to be told, also when they have been away. */
TEST_F_TIMEOUT(file, uffd_wp, TIMEOUT)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect wp = {};
	int uffd, pagemap = open("/proc/self/pagemap", O_RDONLY);
	char *p = map(self, PROT_READ | PROT_WRITE, MAP_SHARED);
	const uint64_t bit = 1ULL << 57;
	uint64_t entry;

	ASSERT_NE(p, NULL);
	ASSERT_GE(pagemap, 0);
	fill(p, 0, PAGES, 1);
	uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	ASSERT_GE(uffd, 0);
	api.features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
	ASSERT_EQ(ioctl(uffd, UFFDIO_API, &api), 0);
	reg.range.start = (uintptr_t)p;
	wp.range.start = reg.range.start;
	reg.range.len = PAGES * psize();
	if (ioctl(uffd, UFFDIO_REGISTER, &reg)) {
		/* Of files, those of shmem only */
		ASSERT_TRUE(variant->disk);
		close(uffd);
		return;
	}
	wp.range.len = 4 * psize();
	wp.mode = UFFDIO_WRITEPROTECT_MODE_WP;
	ASSERT_EQ(ioctl(uffd, UFFDIO_WRITEPROTECT, &wp), 0);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	for (int back = 0; back < 2; back++) {
		for (unsigned long i = 0; i < PAGES; i++) {
			ASSERT_EQ(pread(pagemap, &entry, 8,
					((uintptr_t)p / psize() + i) * 8), 8);
			ASSERT_EQ(!!(entry & bit), i < 4);
		}
		ASSERT_EQ(wrong(p, 0, PAGES, 1), 0);
	}
	ASSERT_EQ(recalls(self), PAGES);
	close(uffd);
	close(pagemap);
}

/* Pages that somebody holds on to stay; others come back for who asks. */
TEST_F_TIMEOUT(file, longterm_pin, TIMEOUT)
{
	int gup = open("/sys/kernel/debug/gup_test", O_RDWR);
	struct pin_longterm_test pin = {};
	char *p = map(self, PROT_READ, MAP_SHARED);
	uint64_t dest = (uintptr_t)self->mirror;

	ASSERT_GE(gup, 0);
	ASSERT_NE(p, NULL);
	ASSERT_EQ(fsync(self->fd), 0);
	touch(p, PAGES);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	pin.addr = (uintptr_t)p;
	pin.size = PAGES * psize();
	ASSERT_EQ(ioctl(gup, PIN_LONGTERM_TEST_START, &pin), 0);
	ASSERT_EQ(recalls(self), PAGES);
	ASSERT_EQ(resident(self), 0);
	ASSERT_EQ(migrate_within(self, p, PAGES, 100), 0);
	memset(self->mirror, 0, PAGES * psize());
	ASSERT_EQ(ioctl(gup, PIN_LONGTERM_TEST_READ, &dest), 0);
	ASSERT_EQ(wrong(self->mirror, 0, PAGES, 1), 0);
	ASSERT_EQ(ioctl(gup, PIN_LONGTERM_TEST_STOP), 0);
	close(gup);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
}

/* Entries for swap and for the device, side by side */
TEST_F_TIMEOUT(file, pageout, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(wrong(p + 8 * psize(), 8, PAGES - 8, 2), 0);
	ASSERT_EQ(resident(self), 8);
	ASSERT_EQ(madvise(p, PAGES * psize(), MADV_PAGEOUT), 0);
	ASSERT_EQ(resident(self), 8);
	ASSERT_EQ(madvise(p, PAGES * psize(), MADV_WILLNEED), 0);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
}

/* Freezing writes back what devices have written, and nobody writes then. */
TEST_F_TIMEOUT(file, freeze, TIMEOUT)
{
	char *p = device_writes(self, _metadata);
	int dir = open(self->dir, O_RDONLY | O_DIRECTORY);

	ASSERT_GE(dir, 0);
	if (ioctl(dir, FIFREEZE, 0)) {
		ASSERT_FALSE(variant->disk);
		ASSERT_EQ(errno, EOPNOTSUPP);
		close(dir);
		return;
	}
	if (resident(self) || wrong(p, 0, PAGES, 2)) {
		ioctl(dir, FITHAW, 0);
		ASSERT_EQ(resident(self), 0);
	}
	/* Readable pages migrate, writable ones there are none. */
	touch(p, PAGES);
	migrate_within(self, p, PAGES, PATIENCE / 3);
	ASSERT_EQ(ioctl(dir, FITHAW, 0), 0);
	ASSERT_EQ(resident(self), PAGES);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
	close(dir);
}

/* The device goes away, and everything comes back before. */
TEST_F_TIMEOUT(file, release, TIMEOUT)
{
	struct hmm_dmirror_stats now;
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(command(self->dev, HMM_DMIRROR_RELEASE, NOWHERE, NULL, 1), 0);
	ASSERT_EQ(recalls(self), 0);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
	ASSERT_EQ(recalls(self), 0);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	ASSERT_EQ(wrong(self->mirror, 0, PAGES, 2), 0);
	check_disk(self, variant, _metadata, p);
	/* The driver does not count the pages of chunks that it removed. */
	ASSERT_EQ(stats(self->dev, &now), 0);
	self->before = now;
}

/*
 * The device goes away, and does not copy any more: what is lost is told, and
 * nobody waits for it.
 */
TEST_F_TIMEOUT(file, device_lost, TIMEOUT)
{
	char *p = device_writes(self, _metadata);
	struct stat st;

	ASSERT_EQ(set_flags(self->dev, HMM_DMIRROR_FLAG_FAIL_COPY), 0);
	ASSERT_EQ(command(self->dev, HMM_DMIRROR_RELEASE, NOWHERE, NULL, 1), 0);
	ASSERT_EQ(set_flags(self->dev, 0), 0);
	ASSERT_EQ(stats(self->dev, &self->before), 0);
	if (variant->disk) {
		ASSERT_EQ(fsync(self->fd), -1);
		ASSERT_EQ(errno, EIO);
		ASSERT_EQ(fsync(self->fd), 0);
	} else {
		ASSERT_EQ(try_read(p), SIGBUS);
		ASSERT_EQ(try_write(p + psize(), 0), SIGBUS);
		ASSERT_EQ(pread(self->fd, self->buf, psize(), 2 * psize()), -1);
		ASSERT_EQ(errno, EIO);
		ASSERT_EQ(pwrite(self->fd, "x", 1, 3 * psize()), -1);
		ASSERT_EQ(errno, EIO);
		ASSERT_EQ(fstat(self->fd, &st), 0);
		ASSERT_EQ(st.st_blocks, PAGES * psize() / 512);
		ASSERT_EQ(ftruncate(self->fd, 0), 0);
		ASSERT_EQ(fstat(self->fd, &st), 0);
		ASSERT_EQ(st.st_blocks, 0);
		ASSERT_EQ(ftruncate(self->fd, PAGES * psize()), 0);
	}
	ASSERT_TRUE(all_zero(p, PAGES * psize()));
	fill(p, 0, PAGES, 2);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	check_disk(self, variant, _metadata, p);
}

/* What is on the disk is not lost. */
TEST_F_TIMEOUT(file, device_lost_clean, TIMEOUT)
{
	char *p = to_device(self, _metadata, true);

	ASSERT_EQ(set_flags(self->dev, HMM_DMIRROR_FLAG_FAIL_COPY), 0);
	ASSERT_EQ(command(self->dev, HMM_DMIRROR_RELEASE, NOWHERE, NULL, 1), 0);
	ASSERT_EQ(set_flags(self->dev, 0), 0);
	ASSERT_EQ(stats(self->dev, &self->before), 0);
	if (variant->disk) {
		ASSERT_EQ(wrong(p, 0, PAGES, 1), 0);
		ASSERT_EQ(fsync(self->fd), 0);
	} else {
		ASSERT_EQ(try_read(p), SIGBUS);
	}
}

/* Each allocation on the way back fails once; who cannot do without it waits. */
TEST_F_TIMEOUT(file, no_memory, TIMEOUT)
{
	static const char * const settings[][2] = {
		{ "probability", "0" }, { "min-order", "0" },
		{ "ignore-gfp-wait", "N" }, { "ignore-gfp-highmem", "N" },
		{ "task-filter", "N" }, { "times", "-1" }, { "verbose", "0" },
	};
	int failures = 0, fd, nth = open("/proc/thread-self/fail-nth", O_RDWR);
	char path[96], buf[16];

	ASSERT_GE(nth, 0);
	for (unsigned int i = 0; i < ARRAY_SIZE(settings); i++) {
		snprintf(path, sizeof(path), "/sys/kernel/debug/fail_page_alloc/%s",
			 settings[i][0]);
		fd = open(path, O_WRONLY);
		ASSERT_GE(fd, 0);
		ASSERT_GT(write(fd, settings[i][1], strlen(settings[i][1])), 0);
		close(fd);
	}
	for (int n = 1; n < 12; n++) {
		unsigned long i = n % PAGES;
		char *p = device_writes(self, _metadata);
		ssize_t ret;
		int err;

		snprintf(buf, sizeof(buf), "%d", n);
		ASSERT_GT(pwrite(nth, buf, strlen(buf), 0), 0);
		ret = pread(self->fd, self->mirror, psize(), i * psize());
		err = errno;
		ASSERT_EQ(pwrite(nth, "0", 1, 0), 1);
		if (ret < 0) {
			ASSERT_EQ(err, ENOMEM);
			failures++;
		} else {
			ASSERT_EQ(ret, psize());
			ASSERT_EQ(wrong(self->mirror, i, 1, 2), 0);
		}
		/* The data are where they were, or in memory. */
		ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
		ASSERT_EQ(resident(self), 0);
		ASSERT_EQ(munmap(p, PAGES * psize()), 0);
		ASSERT_EQ(stats(self->dev, &self->before), 0);
	}
	ASSERT_GT(failures, 0);
	close(nth);
}

/* The device has no memory for some: these stay. */
TEST_F_TIMEOUT(file, no_device_memory, TIMEOUT)
{
	char *p = map(self, PROT_READ | PROT_WRITE, MAP_SHARED);

	ASSERT_NE(p, NULL);
	/* There and back, so that no folio is large */
	fill(p, 0, PAGES, 1);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	/* Others may stay, too, if somebody has a reference to them. */
	ASSERT_TRUE(WAIT_FOR((fill(p, 0, PAGES, 1),
			      stats(self->dev, &self->before),
			      set_flags(self->dev, HMM_DMIRROR_FLAG_FAIL_ALLOC),
			      command(self->dev, HMM_DMIRROR_MIGRATE_TO_DEV, p,
				      self->mirror, PAGES),
			      resident(self) == PAGES - 1)));
	ASSERT_EQ(wrong(p, 0, PAGES, 1), 0);
	ASSERT_EQ(recalls(self), PAGES - 1);
}

/* By a worker: who submits it may not wait for the device. */
TEST_F_TIMEOUT(file, io_uring, TIMEOUT)
{
	struct io_uring_params params = {};
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	unsigned int *array, *tail;
	char *sq, *cq, *p;
	int ring;

	ring = syscall(__NR_io_uring_setup, 1, &params);
	ASSERT_GE(ring, 0);
	sq = mmap(NULL, params.sq_off.array + params.sq_entries * sizeof(*array),
		  PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	ASSERT_NE(sq, MAP_FAILED);
	cq = mmap(NULL, params.cq_off.cqes + params.cq_entries * sizeof(*cqe),
		  PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	ASSERT_NE(cq, MAP_FAILED);
	sqe = mmap(NULL, params.sq_entries * sizeof(*sqe), PROT_READ | PROT_WRITE,
		   MAP_SHARED, ring, IORING_OFF_SQES);
	ASSERT_NE(sqe, MAP_FAILED);
	array = (unsigned int *)(sq + params.sq_off.array);
	tail = (unsigned int *)(sq + params.sq_off.tail);
	cqe = (struct io_uring_cqe *)(cq + params.cq_off.cqes);

	p = device_writes(self, _metadata);
	memset(self->buf, 0, PAGES * psize());
	for (int i = 0; i < 2; i++) {
		memset(sqe, 0, sizeof(*sqe));
		sqe->opcode = i ? IORING_OP_READ : IORING_OP_WRITE;
		sqe->fd = self->fd;
		sqe->addr = (uintptr_t)self->buf;
		/* First a part of the first page is written. */
		sqe->len = i ? PAGES * psize() : 8;
		sqe->off = i ? 0 : 1024;
		array[*tail % params.sq_entries] = 0;
		__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
		ASSERT_EQ(syscall(__NR_io_uring_enter, ring, 1, 1,
				  IORING_ENTER_GETEVENTS, NULL, 0), 1);
		ASSERT_EQ(cqe[i % params.cq_entries].res, sqe->len);
		/* What has been reaped makes room. */
		__atomic_store_n((unsigned int *)(cq + params.cq_off.head), i + 1,
				 __ATOMIC_RELEASE);
	}
	ASSERT_EQ(wrong(self->buf, 0, 1, 2), 1);
	ASSERT_EQ(wrong(self->buf + psize(), 1, PAGES - 1, 2), 0);
	ASSERT_EQ(recalls(self), PAGES);
	ASSERT_EQ(memcmp(p, self->buf, PAGES * psize()), 0);
	close(ring);
}

/* The fast GUP has no PTE to take a page from. */
TEST_F_TIMEOUT(file, vmsplice, TIMEOUT)
{
	char *p = device_writes(self, _metadata);
	int pipefd[2];

	ASSERT_EQ(pipe(pipefd), 0);
	for (unsigned long i = 0; i < PAGES; i++) {
		struct iovec iov = { p + i * psize(), psize() };

		ASSERT_EQ(vmsplice(pipefd[1], &iov, 1, 0), psize());
		ASSERT_EQ(recalls(self), i + 1);
		/* The pipe has a reference to it. */
		ASSERT_EQ(migrate_within(self, p + i * psize(), 1, 100), 0);
		ASSERT_EQ(read(pipefd[0], self->buf, psize()), psize());
		ASSERT_EQ(wrong(self->buf, i, 1, 2), 0);
	}
	close(pipefd[0]);
	close(pipefd[1]);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
}

/* I/O from, and to, a mapping of what the device has */
TEST_F_TIMEOUT(file, direct_io_buffer, TIMEOUT)
{
	char *p = device_writes(self, _metadata), path[112];
	int fd;

	snprintf(path, sizeof(path), "%s.direct", self->path);
	fd = open(path, O_RDWR | O_CREAT | O_DIRECT, 0600);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(pwrite(fd, p, PAGES * psize(), 0), PAGES * psize());
	ASSERT_EQ(recalls(self), PAGES);
	ASSERT_EQ(pread(fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	ASSERT_EQ(wrong(self->buf, 0, PAGES, 2), 0);
	fill(self->buf, 0, PAGES, 3);
	ASSERT_EQ(pwrite(fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	ASSERT_EQ(pread(fd, p, PAGES * psize(), 0), PAGES * psize());
	ASSERT_EQ(unlink(path), 0);
	close(fd);
	ASSERT_EQ(resident(self), 0);
	ASSERT_EQ(wrong(p, 0, PAGES, 3), 0);
	ASSERT_EQ(pread(self->fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	ASSERT_EQ(wrong(self->buf, 0, PAGES, 3), 0);
}

/* As a debugger does: also into what may not be written */
TEST_F_TIMEOUT(file, proc_mem, TIMEOUT)
{
	int mem = open("/proc/self/mem", O_RDWR);
	char *p = map(self, PROT_READ, MAP_PRIVATE);
	uint64_t new = ~0ULL;

	ASSERT_GE(mem, 0);
	ASSERT_NE(p, NULL);
	ASSERT_EQ(fsync(self->fd), 0);
	touch(p, PAGES);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	ASSERT_EQ(pread(mem, self->buf, psize(), (uintptr_t)p), psize());
	ASSERT_EQ(wrong(self->buf, 0, 1, 1), 0);
	for (unsigned long i = 0; i < PAGES; i++)
		ASSERT_EQ(pwrite(mem, &new, 8, (uintptr_t)p + i * psize() + 1024), 8);
	for (unsigned long i = 0; i < PAGES; i++)
		ASSERT_EQ(wrong(p + i * psize(), i, 1, 1), 1);
	ASSERT_EQ(pread(self->fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	ASSERT_EQ(wrong(self->buf, 0, PAGES, 1), 0);
	close(mem);
}

#if defined(__x86_64__)
#define NOP	"\x90"
#elif defined(__aarch64__)
#define NOP	"\x1f\x20\x03\xd5"
#endif

#ifdef NOP
/*
 * To remove a breakpoint, uprobes look whether the page of the file is the same
 * as theirs, under the page table lock.
 */
TEST_F_TIMEOUT(file, uprobe, TIMEOUT)
{
	const char *events = "/sys/kernel/tracing/uprobe_events";
	char *p, *q, event[160], enable[96];

	for (size_t i = 0; i + strlen(NOP) <= psize(); i += strlen(NOP))
		ASSERT_EQ(pwrite(self->fd, NOP, strlen(NOP), 5 * psize() + i),
			  strlen(NOP));
	ASSERT_EQ(fsync(self->fd), 0);
	/* What is executable does not migrate; that it could be is enough here. */
	p = map(self, PROT_READ, MAP_PRIVATE);
	q = map(self, PROT_READ, MAP_SHARED);
	ASSERT_NE(p, NULL);
	ASSERT_NE(q, NULL);
	touch(q, PAGES);
	ASSERT_EQ(migrate(self, q, PAGES), PAGES);

	if (access(events, F_OK))
		ASSERT_EQ(mount("tracefs", "/sys/kernel/tracing", "tracefs", 0,
				NULL), 0);
	snprintf(event, sizeof(event), "p:hmm_file/t%d %s:0x%lx", getpid(),
		 self->path, (unsigned long)(5 * psize() + 64));
	ASSERT_TRUE(set_file(events, event));
	snprintf(enable, sizeof(enable),
		 "/sys/kernel/tracing/events/hmm_file/t%d/enable", getpid());
	ASSERT_TRUE(set_file(enable, "1"));
	ASSERT_NE(memcmp(p + 5 * psize() + 64, NOP, strlen(NOP)), 0);
	ASSERT_EQ(memcmp(q + 5 * psize() + 64, NOP, strlen(NOP)), 0);
	ASSERT_EQ(resident(self), PAGES - 1);

	ASSERT_EQ(migrate(self, q + 5 * psize(), 1), 1);
	ASSERT_TRUE(set_file(enable, "0"));
	ASSERT_EQ(resident(self), PAGES);
	ASSERT_EQ(memcmp(p + 5 * psize() + 64, NOP, strlen(NOP)), 0);
	snprintf(event, sizeof(event), "-:hmm_file/t%d", getpid());
	ASSERT_TRUE(set_file(events, event));
	ASSERT_EQ(wrong(p, 0, 5, 1), 0);
}
#endif

static bool build_id(void *addr, char *id, unsigned int *size)
{
	struct procmap_query query = {
		.size = sizeof(query),
		.query_addr = (uintptr_t)addr,
		.build_id_size = *size,
		.build_id_addr = (uintptr_t)id,
	};
	int fd = open("/proc/self/maps", O_RDONLY);
	bool ok = fd >= 0 && !ioctl(fd, PROCMAP_QUERY, &query);

	close(fd);
	*size = query.build_id_size;
	return ok;
}

TEST_F_TIMEOUT(file, build_id, TIMEOUT)
{
	int self_fd = open("/proc/self/exe", O_RDONLY);
	char *p, want[20] = {}, have[20] = {};
	unsigned int size = sizeof(want);
	struct stat st;

	ASSERT_GE(self_fd, 0);
	ASSERT_EQ(fstat(self_fd, &st), 0);
	ASSERT_EQ(ftruncate(self->fd, 0), 0);
	for (off_t off = 0; off < st.st_size;)
		ASSERT_GT(sendfile(self->fd, self_fd, &off, st.st_size - off), 0);
	close(self_fd);
	ASSERT_EQ(fsync(self->fd), 0);
	p = map(self, PROT_READ, MAP_SHARED);
	ASSERT_NE(p, NULL);
	ASSERT_TRUE(build_id(p, want, &size));
	ASSERT_GT(size, 0);
	touch(p, PAGES);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	ASSERT_TRUE(build_id(p, have, &size));
	ASSERT_GT(size, 0);
	ASSERT_EQ(memcmp(want, have, sizeof(want)), 0);
	ASSERT_GT(recalls(self), 0);
}

/* Nobody asks for it, but the time has come. */
TEST_F_TIMEOUT(file, periodic_writeback, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	ASSERT_TRUE(writeback_every("10"));
	if (variant->disk) {
		ASSERT_TRUE(WAIT_FOR(!resident(self)));
		/* Some file systems have the size on the disk later than that. */
		ASSERT_EQ(fsync(self->fd), 0);
	} else {
		usleep(500000);
		ASSERT_EQ(resident(self), PAGES);
	}
	ASSERT_TRUE(writeback_every("0"));
	check_disk(self, variant, _metadata, p);
}

/*
 * Too much is dirty, with what the device wrote: whoever writes more has to wait
 * for writeback, which gets it.
 */
TEST_F_TIMEOUT(file, dirty_throttling, TIMEOUT)
{
	char path[128], *p = device_writes(self, _metadata);
	unsigned long writes = variant->disk ? 10000 : PAGES;
	long dirty;
	int fd;

	ASSERT_TRUE(set_file("/proc/sys/vm/stat_refresh", "1"));
	dirty = number_in("/proc/vmstat", "nr_dirty ");
	if (variant->disk)
		ASSERT_GE(dirty, PAGES);
	snprintf(path, sizeof(path), "%s/more.%d", self->dir, getpid());
	fd = open(path, O_RDWR | O_CREAT, 0600);
	ASSERT_GE(fd, 0);
	/* 4 and 8 pages */
	ASSERT_TRUE(set_file("/proc/sys/vm/dirty_background_bytes", "16384"));
	ASSERT_TRUE(set_file("/proc/sys/vm/dirty_bytes", "32768"));
	/*
	 * It goes on until the limit is kept, not until all is written, and by
	 * sums that need not be up to date. Nobody but a writer starts it again.
	 */
	while (writes && (!variant->disk || resident(self) >= PAGES / 2)) {
		set_file("/proc/sys/vm/stat_refresh", "1");
		EXPECT_EQ(pwrite(fd, self->buf, psize(),
				 writes-- % PAGES * psize()), psize());
	}
	EXPECT_TRUE(variant->disk ? resident(self) < PAGES / 2 :
				    resident(self) == PAGES);
	EXPECT_TRUE(set_file("/proc/sys/vm/dirty_ratio", "20"));
	EXPECT_TRUE(set_file("/proc/sys/vm/dirty_background_ratio", "10"));
	close(fd);
	ASSERT_EQ(unlink(path), 0);
	if (variant->disk)
		ASSERT_EQ(fsync(self->fd), 0);
	check_disk(self, variant, _metadata, p);
}

TEST_F_TIMEOUT(file, insert_range, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	if (fallocate(self->fd, FALLOC_FL_INSERT_RANGE, 4 * psize(),
		      4 * psize())) {
		ASSERT_EQ(errno, EOPNOTSUPP);
		ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
		return;
	}
	ASSERT_EQ(wrong(p, 0, 4, 2), 0);
	ASSERT_TRUE(all_zero(p + 4 * psize(), 4 * psize()));
	ASSERT_EQ(wrong(p + 8 * psize(), 4, PAGES - 8, 2), 0);
	ASSERT_EQ(pread(self->fd, self->buf, 4 * psize(), PAGES * psize()),
		  4 * psize());
	ASSERT_EQ(wrong(self->buf, PAGES - 4, 4, 2), 0);
}

/* What a child has is its own, be it a copy or the file's. */
TEST_F_TIMEOUT(file, private_fork, TIMEOUT)
{
	char *p = map(self, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	int status;
	pid_t pid;

	ASSERT_NE(p, NULL);
	ASSERT_EQ(fsync(self->fd), 0);
	touch(p, PAGES);
	fill(p, 0, 4, 7);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		if (wrong(p, 0, 4, 7) || wrong(p + 4 * psize(), 4, PAGES - 4, 1))
			_exit(1);
		fill(p, 0, PAGES, 8);
		_exit(wrong(p, 0, PAGES, 8) ? 2 : 0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
	ASSERT_EQ(wrong(p, 0, 4, 7), 0);
	ASSERT_EQ(wrong(p + 4 * psize(), 4, PAGES - 4, 1), 0);
}

/* Whoever walks over the memory by pfn does not find it. */
TEST_F_TIMEOUT(file, walkers, TIMEOUT)
{
	const char *idle = "/sys/kernel/mm/page_idle/bitmap";
	const char *scans = "/sys/kernel/mm/ksm/full_scans";
	char *p = device_writes(self, _metadata);
	char *q = map(self, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	uint64_t word[64];
	int fd, ret;
	long was;

	ASSERT_NE(q, NULL);
	ASSERT_TRUE(set_file("/proc/sys/vm/compact_memory", "1"));

	ASSERT_EQ(madvise(q, PAGES * psize(), MADV_MERGEABLE), 0);
	ASSERT_TRUE(set_file("/sys/kernel/mm/ksm/pages_to_scan", "10000"));
	was = number_in(scans, "");
	ASSERT_TRUE(set_file("/sys/kernel/mm/ksm/run", "1"));
	EXPECT_TRUE(WAIT_FOR(number_in(scans, "") >= was + 2));
	ASSERT_TRUE(set_file("/sys/kernel/mm/ksm/run", "2"));

	fd = open(idle, O_RDWR);
	ASSERT_GE(fd, 0);
	for (off_t off = 0; ; off += sizeof(word)) {
		memset(word, 0xff, sizeof(word));
		if (pwrite(fd, word, sizeof(word), off) <= 0)
			break;
		ret = pread(fd, word, sizeof(word), off);
		ASSERT_GT(ret, 0);
	}
	close(fd);

	ASSERT_EQ(recalls(self), 0);
	ASSERT_EQ(resident(self), PAGES);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
}

/* It is poisoned in system memory: the device's has no hardware to be bad. */
TEST_F_TIMEOUT(file, memory_failure, TIMEOUT)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(madvise(p, psize(), MADV_SOFT_OFFLINE), 0);
	ASSERT_EQ(recalls(self), 1);
	ASSERT_EQ(wrong(p, 0, 1, 2), 0);
	ASSERT_EQ(try_poison(p + 3 * psize()), SIGBUS);
	ASSERT_EQ(recalls(self), 2);
	ASSERT_EQ(try_read(p + 3 * psize()), SIGBUS);
	ASSERT_EQ(resident(self), PAGES - 2);
	ASSERT_EQ(wrong(p + psize(), 1, 2, 2), 0);
	ASSERT_EQ(wrong(p + 4 * psize(), 4, PAGES - 4, 2), 0);
}

/* Of a huge page, or 0 if it does not fit into the file systems */
static size_t huge_size(void)
{
	const size_t size = read_pmd_pagesize();

	return size <= 32 << 20 ? size : 0;
}

/* A mapping of a huge page's size, whose first pages are in device memory */
static char *map_huge(struct _test_data_file *self, struct __test_metadata *_metadata,
		      size_t size)
{
	char *p = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);

	ASSERT_NE(p, MAP_FAILED);
	p = (char *)(((uintptr_t)p + size - 1) & ~(size - 1));
	p = mmap(p, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		 self->fd, 0);
	ASSERT_NE(p, MAP_FAILED);
	for (size_t i = 0; i < size / psize(); i++) {
		fill(self->buf, i, 1, 1);
		ASSERT_EQ(pwrite(self->fd, self->buf, psize(), i * psize()),
			  psize());
	}
	fill(p, 0, PAGES, 1);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	return p;
}

static int collapse(char *p, size_t size)
{
	return madvise(p, size, MADV_COLLAPSE) ? errno : 0;
}

/* Who asks for a huge page gets it, at once: clean pages come back as well. */
TEST_F_TIMEOUT(file, collapse, TIMEOUT)
{
	const size_t size = huge_size();
	cpu_set_t cpu, all;
	char *p;
	int err;

	if (!size)
		SKIP(return, "no huge pages, or too large");
	p = map_huge(self, _metadata, size);
	if (variant->disk) {
		ASSERT_EQ(fsync(self->fd), 0);
		touch(p, PAGES);
		ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	}
	/* What another CPU has in its batch for the LRU is not asked for. */
	ASSERT_EQ(sched_getaffinity(0, sizeof(all), &all), 0);
	CPU_ZERO(&cpu);
	CPU_SET(sched_getcpu(), &cpu);
	ASSERT_EQ(sched_setaffinity(0, sizeof(cpu), &cpu), 0);
	err = collapse(p, size);
	ASSERT_EQ(sched_setaffinity(0, sizeof(all), &all), 0);
	/* Where files have no huge pages, it is refused. */
	ASSERT_TRUE(!err || (variant->disk && err == EINVAL)) {
		TH_LOG("%s", strerror(err));
	}
	ASSERT_EQ(resident(self), err ? PAGES : 0);
	ASSERT_EQ(wrong(p, 0, size / psize(), 1), 0);
	ASSERT_EQ(munmap(p, size), 0);
}

/* khugepaged takes no pages away from a device. */
TEST_F_TIMEOUT(file, khugepaged, TIMEOUT)
{
#define KHUGEPAGED "/sys/kernel/mm/transparent_hugepage/khugepaged/"
	const size_t size = huge_size();
	char *p, *anon;
	long was;

	if (!size)
		SKIP(return, "no huge pages, or too large");
	p = map_huge(self, _metadata, size);
	anon = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* So that the process is on khugepaged's list, on any file system */
	ASSERT_NE(anon, MAP_FAILED);
	ASSERT_EQ(madvise(anon, 2 * size, MADV_HUGEPAGE), 0);
	memset(anon, 1, 2 * size);
	madvise(p, size, MADV_HUGEPAGE);
	ASSERT_TRUE(set_file(KHUGEPAGED "scan_sleep_millisecs", "10"));
	ASSERT_TRUE(set_file(KHUGEPAGED "pages_to_scan", "100000"));
	was = number_in(KHUGEPAGED "full_scans", "");
	EXPECT_TRUE(WAIT_FOR(number_in(KHUGEPAGED "full_scans", "") >= was + 3));
	ASSERT_TRUE(set_file(KHUGEPAGED "scan_sleep_millisecs", "10000"));
	ASSERT_TRUE(set_file(KHUGEPAGED "pages_to_scan", "4096"));
	ASSERT_EQ(resident(self), PAGES);
	ASSERT_EQ(recalls(self), 0);
	ASSERT_EQ(wrong(p, 0, size / psize(), 1), 0);
	ASSERT_EQ(munmap(p, size), 0);
}

static bool swap_in_use(unsigned long bytes)
{
	struct sysinfo info;

	return !sysinfo(&info) &&
	       (info.totalswap - info.freeswap) * info.mem_unit >= bytes;
}

static bool make_swap(int fd, size_t size)
{
	uint32_t head[3] = { 1, size / psize() - 1, 0 };

	return pwrite(fd, head, sizeof(head), 1024) == sizeof(head) &&
	       pwrite(fd, "SWAPSPACE2", 10, psize() - 10) == 10;
}

/*
 * swapoff looks for its entries where those of devices are; and a file that is
 * swapped to has no pages to migrate.
 */
TEST_F_TIMEOUT(file, swapoff, TIMEOUT)
{
	const char *image = TOP "/images/swap";
	const size_t size = 8 << 20;
	char *p, loop[32];
	int fd;

	if (variant->disk) {
		long flags = FS_NOCOW_FL;

		ASSERT_EQ(ftruncate(self->fd, 0), 0);
		if (!strcmp(variant->fs, "btrfs"))
			ASSERT_EQ(ioctl(self->fd, FS_IOC_SETFLAGS, &flags), 0);
		memset(self->buf, 0, psize());
		for (size_t i = 0; i < size; i += psize())
			ASSERT_EQ(pwrite(self->fd, self->buf, psize(), i), psize());
		ASSERT_TRUE(make_swap(self->fd, size));
		ASSERT_EQ(fsync(self->fd), 0);
		p = map(self, PROT_READ, MAP_SHARED);
		ASSERT_NE(p, NULL);
		touch(p, PAGES);
		ASSERT_EQ(swapon(self->path, 0), 0);
		EXPECT_EQ(migrate_within(self, p, PAGES, 100), 0);
		ASSERT_EQ(swapoff(self->path), 0);
		return;
	}

	mkdir(TOP "/images", 0700);
	fd = open(image, O_RDWR | O_CREAT | O_TRUNC, 0600);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(ftruncate(fd, size), 0);
	ASSERT_TRUE(make_swap(fd, size));
	close(fd);
	fd = attach_image(image, loop);
	ASSERT_GE(fd, 0);
	p = device_writes(self, _metadata);
	ASSERT_EQ(wrong(p + 8 * psize(), 8, PAGES - 8, 2), 0);
	ASSERT_EQ(resident(self), 8);
	ASSERT_EQ(swapon(loop, 0), 0);
	EXPECT_TRUE(WAIT_FOR((madvise(p, PAGES * psize(), MADV_PAGEOUT),
			      swap_in_use(8 * psize()))));
	ASSERT_EQ(swapoff(loop), 0);
	close(fd);
	ASSERT_EQ(unlink(image), 0);
	ASSERT_EQ(resident(self), 8);
	ASSERT_EQ(recalls(self), 8);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
}

#define CGROUP TOP "/cgroup"

static bool join_cgroup(const char *name)
{
	char path[96];

	mkdir(CGROUP, 0700);
	if (access(CGROUP "/cgroup.procs", F_OK) &&
	    mount("cgroup2", CGROUP, "cgroup2", 0, NULL))
		return false;
	if (!set_file(CGROUP "/cgroup.subtree_control", "+memory"))
		return false;
	/* Without blkio, writeback is by memory cgroup all the same. */
	set_file(CGROUP "/cgroup.subtree_control", "+io");
	snprintf(path, sizeof(path), CGROUP "/%s", name);
	mkdir(path, 0700);
	snprintf(path, sizeof(path), CGROUP "/%s/cgroup.procs", name);
	return set_file(path, "0");
}

/* Open the file anew: it and its pages belong to whoever writes first. */
static bool file_of_cgroup(struct _test_data_file *self)
{
	close(self->fd);
	unlink(self->path);
	self->fd = open(self->path, O_RDWR | O_CREAT, 0600);
	fill(self->buf, 0, PAGES, 1);
	for (unsigned long i = 0; i < PAGES; i++)
		if (pwrite(self->fd, self->buf + i * psize(), psize(),
			   i * psize()) != (ssize_t)psize())
			return false;
	return true;
}

/*
 * What the cgroup is charged for, all files. The kernel updates the sums every
 * 2 seconds, but by a timer that an idle CPU stops.
 */
static long charged_for_files(const char *stat)
{
	const long end = now_ms() + 4500;
	cpu_set_t all, one;

	sched_getaffinity(0, sizeof(all), &all);
	for (int cpu = 0; now_ms() < end; cpu = (cpu + 1) % CPU_SETSIZE) {
		const long next = now_ms() + 20;

		if (!CPU_ISSET(cpu, &all))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		sched_setaffinity(0, sizeof(one), &one);
		while (now_ms() < next)
			;
	}
	sched_setaffinity(0, sizeof(all), &all);
	return number_in(stat, "file ");
}

/* The charge goes, and comes back with the page. */
TEST_F_TIMEOUT(file, memcg, TIMEOUT)
{
	char name[32], stat[96];
	long charged;
	char *p;

	snprintf(name, sizeof(name), "memcg%d", getpid());
	ASSERT_TRUE(join_cgroup(name));
	snprintf(stat, sizeof(stat), CGROUP "/%s/memory.stat", name);
	ASSERT_TRUE(file_of_cgroup(self));
	/* There and back, so that no folio is large */
	p = device_writes(self, _metadata);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
	charged = charged_for_files(stat);
	ASSERT_GE(charged, PAGES * psize());

	ASSERT_EQ(stats(self->dev, &self->before), 0);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	ASSERT_EQ(charged_for_files(stat), charged - PAGES * psize());
	ASSERT_EQ(wrong(p, 0, PAGES / 2, 2), 0);
	ASSERT_EQ(charged_for_files(stat), charged - PAGES / 2 * psize());
	ASSERT_EQ(munmap(p, PAGES * psize()), 0);
	close(self->fd);
	ASSERT_EQ(unlink(self->path), 0);
	ASSERT_TRUE(WAIT_FOR((sync(), !resident(self))));
	/* btrfs has its metadata charged, too, and writes some now. */
	if (strcmp(variant->fs, "btrfs"))
		ASSERT_EQ(charged_for_files(stat), charged - PAGES * psize());

	/* And a page outlives its cgroup. */
	self->fd = open(self->path, O_RDWR | O_CREAT, 0600);
	ASSERT_TRUE(file_of_cgroup(self));
	ASSERT_EQ(stats(self->dev, &self->before), 0);
	p = device_writes(self, _metadata);
	ASSERT_TRUE(set_file(CGROUP "/cgroup.procs", "0"));
	snprintf(stat, sizeof(stat), CGROUP "/%s", name);
	ASSERT_EQ(rmdir(stat), 0);
	ASSERT_EQ(wrong(p, 0, PAGES / 2, 2), 0);
	ASSERT_EQ(resident(self), PAGES / 2);
	check_disk(self, variant, _metadata, p);
}

/*
 * If it is another cgroup that writes, the inode's writeback becomes a matter
 * of that one, with what is dirty on the device at that time.
 */
TEST_F_TIMEOUT(file, memcg_writeback, TIMEOUT)
{
	char a[32], b[32], path[96];

	snprintf(a, sizeof(a), "a%d", getpid());
	snprintf(b, sizeof(b), "b%d", getpid());
	ASSERT_TRUE(join_cgroup(a));
	ASSERT_TRUE(file_of_cgroup(self));
	ASSERT_EQ(fsync(self->fd), 0);
	ASSERT_TRUE(join_cgroup(b));
	for (int i = 0; i < 16; i++) {
		char *p;

		ASSERT_EQ(ftruncate(self->fd, 0), 0);
		fill(self->buf, 0, PAGES, 1);
		for (unsigned long j = 0; j < PAGES; j++)
			ASSERT_EQ(pwrite(self->fd, self->buf + j * psize(),
					 psize(), j * psize()), psize());
		ASSERT_EQ(fsync(self->fd), 0);
		ASSERT_EQ(stats(self->dev, &self->before), 0);
		p = device_writes(self, _metadata);
		usleep(50000);
		ASSERT_EQ(recalls(self), 0);
		ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
		ASSERT_EQ(munmap(p, PAGES * psize()), 0);
	}
	ASSERT_TRUE(set_file(CGROUP "/cgroup.procs", "0"));
	snprintf(path, sizeof(path), CGROUP "/%s", a);
	ASSERT_EQ(rmdir(path), 0);
	snprintf(path, sizeof(path), CGROUP "/%s", b);
	ASSERT_EQ(rmdir(path), 0);
}

/*
 * A node of i_pages with nothing but values goes, when there are more of these
 * than an eighth of the cgroup's pages: they may be shadows of what was evicted.
 */
TEST_F_TIMEOUT(file, shadow_nodes, TIMEOUT)
{
	/* A page in each node; shmem's nodes are not shrunk */
	const unsigned long nr = variant->disk ? 512 : 64, step = 64;
	/* btrfs writes back when space for more extents is reserved. */
	const unsigned long dirty = 32;
	const size_t size = nr * step * psize();
	char name[32], dir[96], *p;

	snprintf(name, sizeof(name), "shadow%d", getpid());
	ASSERT_TRUE(join_cgroup(name));
	ASSERT_TRUE(file_of_cgroup(self));
	ASSERT_EQ(ftruncate(self->fd, 0), 0);
	ASSERT_EQ(ftruncate(self->fd, size), 0);
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	ASSERT_NE(p, MAP_FAILED);
	ASSERT_EQ(madvise(p, size, MADV_RANDOM), 0);
	ASSERT_EQ(stats(self->dev, &self->before), 0);
	for (unsigned long i = 0; i < nr; i++)
		fill(p + i * step * psize(), i, 1, 1);
	ASSERT_EQ(fsync(self->fd), 0);
	for (unsigned long i = 0; i < nr; i++) {
		char *page = p + i * step * psize();

		if (i >= dirty) {
			ASSERT_EQ(migrate(self, page, 1), 1);
			continue;
		}
		fill(page, i, 1, 1);
		ASSERT_EQ(migrate(self, page, 1), 1);
		fill(self->buf, i, 1, 2);
		ASSERT_EQ(command(self->dev, HMM_DMIRROR_WRITE, page, self->buf, 1), 0);
	}
	ASSERT_EQ(resident(self), nr);

	for (int i = 0; i < 4; i++)
		ASSERT_TRUE(set_file("/proc/sys/vm/drop_caches", "2"));
	ASSERT_EQ(resident(self), nr);
	ASSERT_EQ(recalls(self), 0);
	for (unsigned long i = 0; i < nr; i++)
		ASSERT_EQ(wrong(p + i * step * psize(), i, 1, i < dirty ? 2 : 1), 0);
	ASSERT_EQ(recalls(self), nr);
	ASSERT_EQ(munmap(p, size), 0);

	ASSERT_TRUE(set_file(CGROUP "/cgroup.procs", "0"));
	ASSERT_EQ(close(self->fd), 0);
	ASSERT_EQ(unlink(self->path), 0);
	snprintf(dir, sizeof(dir), CGROUP "/%s", name);
	ASSERT_EQ(rmdir(dir), 0);
}

FIXTURE(refused)
{
	int dev;
	int fd;
	int shm;
	char *p;
	char *mirror;
	struct hmm_dmirror_stats before;
};

/* Mappings of what does not go to a device */
FIXTURE_VARIANT(refused)
{
	const char *fs;
	const char *options;
	int (*open)(void);
	bool shm_lock;
};

static int open_hugetlb(void)
{
	/* As many as the mapping takes */
	if (!set_file("/proc/sys/vm/nr_hugepages", "2"))
		return -1;
	return memfd_create("hmm_file", MFD_HUGETLB);
}

static int open_secretmem(void)
{
	return syscall(447 /* memfd_secret */, 0);
}

FIXTURE_VARIANT_ADD(refused, hugetlb)
{
	.open = open_hugetlb,
};

FIXTURE_VARIANT_ADD(refused, secretmem)
{
	.open = open_secretmem,
};

FIXTURE_VARIANT_ADD(refused, shm_lock)
{
	.shm_lock = true,
};

FIXTURE_VARIANT_ADD(refused, ramfs)
{
	.fs = "ramfs",
};

FIXTURE_VARIANT_ADD(refused, data_journal)
{
	.fs = "ext4",
	.options = "data=journal",
};

FIXTURE_VARIANT_ADD(refused, ext2)
{
	.fs = "ext2",
};

FIXTURE_SETUP(refused)
{
	const size_t size = 2 << 20;
	int ret;

	self->dev = open(DEVICE, O_RDWR);
	ASSERT_GE(self->dev, 0);
	ASSERT_EQ(stats(self->dev, &self->before), 0);
	self->mirror = aligned_alloc(psize(), PAGES * psize());
	ASSERT_NE(self->mirror, NULL);
	self->fd = -1;
	self->shm = -1;
	if (variant->shm_lock) {
		self->shm = shmget(IPC_PRIVATE, size, IPC_CREAT | 0600);
		ASSERT_GE(self->shm, 0);
		ASSERT_EQ(shmctl(self->shm, SHM_LOCK, NULL), 0);
		self->p = shmat(self->shm, NULL, 0);
		shmctl(self->shm, IPC_RMID, NULL);
		ASSERT_NE(self->p, (void *)-1);
		return;
	}
	if (variant->open) {
		self->fd = variant->open();
		if (self->fd < 0)
			SKIP(return, "no such memory: %s", strerror(errno));
	} else {
		mkdir(TOP, 0700);
		mkdir(TOP "/refused", 0700);
		if (!strcmp(variant->fs, "ramfs")) {
			ASSERT_EQ(mount("hmm_file", TOP "/refused", "ramfs", 0,
					NULL), 0);
		} else {
			if (no_mkfs("mkfs.ext4"))
				SKIP(return, "no mkfs.ext4");
			ASSERT_EQ(run("truncate -s 16M " TOP "/refused.img"), 0);
			ASSERT_EQ(run("mkfs.ext4 -t %s -q -F " TOP "/refused.img >/dev/null",
				      variant->fs), 0);
			ret = mount_image(TOP "/refused.img", TOP "/refused",
					  variant->fs, variant->options);
			if (ret == -ENODEV || ret == -ENOENT)
				SKIP(return, "no %s, or no loop device", variant->fs);
			ASSERT_EQ(ret, 0);
		}
		self->fd = open(TOP "/refused/file", O_RDWR | O_CREAT, 0600);
	}
	ASSERT_GE(self->fd, 0);
	ASSERT_EQ(ftruncate(self->fd, size), 0);
	self->p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	ASSERT_NE(self->p, MAP_FAILED);
}

FIXTURE_TEARDOWN(refused)
{
	close(self->fd);
	close(self->dev);
	if (variant->shm_lock)
		shmdt(self->p);
	else
		munmap(self->p, 2 << 20);
	if (variant->fs)
		EXPECT_EQ(umount(TOP "/refused"), 0);
	unlink(TOP "/refused.img");
	if (variant->open == open_hugetlb)
		set_file("/proc/sys/vm/nr_hugepages", "0");
}

TEST_F(refused, stays)
{
	struct hmm_dmirror_stats now;

	fill(self->p, 0, PAGES, 1);
	if (variant->fs)
		ASSERT_EQ(fsync(self->fd), 0);
	for (int i = 0; i < 3; i++) {
		command(self->dev, HMM_DMIRROR_MIGRATE_TO_DEV, self->p,
			self->mirror, PAGES);
		ASSERT_EQ(wrong(self->p, 0, PAGES, 1), 0);
	}
	ASSERT_EQ(stats(self->dev, &now), 0);
	ASSERT_EQ(now.recalls, self->before.recalls);
	ASSERT_EQ(now.allocs - self->before.allocs,
		  now.frees - self->before.frees);
}

int main(int argc, char **argv)
{
	static const char * const dirs[] = {
		"tmpfs", "tmpfs_huge", "ext4", "ext4_1k", "xfs", "btrfs", "refused",
		"images", "cgroup",
	};
	const char *expire = "/proc/sys/vm/dirty_expire_centisecs";
	const char *every = "/proc/sys/vm/dirty_writeback_centisecs";
	long was[2] = { number_in(expire, ""), number_in(every, "") };
	char path[64];
	int ret;

	if (geteuid() || access(DEVICE, F_OK)) {
		ksft_print_header();
		ksft_exit_skip(geteuid() ? "not root\n" :
			       "no " DEVICE ", no module test_hmm\n");
	}
	ret = test_harness_run(argc, argv);
	snprintf(path, sizeof(path), "%ld", was[0]);
	set_file(expire, path);
	snprintf(path, sizeof(path), "%ld", was[1]);
	set_file(every, path);
	for (unsigned int i = 0; i < ARRAY_SIZE(dirs); i++) {
		snprintf(path, sizeof(path), TOP "/%s", dirs[i]);
		umount2(path, MNT_DETACH);
		rmdir(path);
	}
	rmdir(TOP);
	return ret;
}
