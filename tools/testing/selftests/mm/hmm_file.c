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
#include <sys/mount.h>
#include <sys/param.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <linux/falloc.h>
#include <linux/loop.h>
#include <linux/userfaultfd.h>

#include "kselftest_harness.h"
#include <lib/test_hmm_uapi.h>
#include <mm/gup_test.h>

#define DEVICE		"/dev/hmm_dmirror0"
#define TOP		"/tmp/hmm_file"
#define PAGES		16UL

/* vm_util.h and <linux/fs.h> do not go with <sys/mount.h>. */
#define FORCE_READ(x) (*(const volatile typeof(x) *)&(x))

#ifndef FIFREEZE
#define FIFREEZE	_IOWR('X', 119, int)
#define FITHAW		_IOWR('X', 120, int)
#endif

#ifndef __NR_cachestat
#define __NR_cachestat	451
#endif

struct cachestat_range_ {
	uint64_t off, len;
};

struct cachestat_ {
	uint64_t nr_cache, nr_dirty, nr_writeback, nr_evicted, nr_recent;
};

static size_t psize(void)
{
	static size_t size;

	if (!size)
		size = sysconf(_SC_PAGESIZE);
	return size;
}

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

static int run(const char *fmt, ...)
{
	char cmd[256];
	va_list ap;
	int ret;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	ret = system(cmd);
	return WIFEXITED(ret) ? WEXITSTATUS(ret) : -1;
}

/*
 * Mount the image at @path. While the loop device is open for writing, a
 * kernel without CONFIG_BLK_DEV_WRITE_MOUNTED refuses.
 */
static bool mount_image(const char *path, const char *dir, const char *fs)
{
	struct loop_config config = {
		.info.lo_flags = LO_FLAGS_AUTOCLEAR,
	};
	char dev[32];
	int control, nr, rw, ro = -1, ret = -1;

	config.fd = open(path, O_RDWR);
	control = open("/dev/loop-control", O_RDWR);
	nr = control >= 0 ? ioctl(control, LOOP_CTL_GET_FREE) : -1;
	snprintf(dev, sizeof(dev), "/dev/loop%d", nr);
	rw = nr >= 0 ? open(dev, O_RDWR) : -1;
	if (rw >= 0 && !ioctl(rw, LOOP_CONFIGURE, &config))
		ro = open(dev, O_RDONLY);
	close(rw);
	if (ro >= 0)
		ret = mount(dev, dir, fs, 0, NULL);
	if (ret)
		perror(dev);
	close(ro);
	close(control);
	close(config.fd);
	return !ret;
}

/* The file system of a variant is made for its first test, and stays. */
static bool mount_fs(struct _test_data_file *self, const struct _fixture_variant_file *variant,
		     const char *name)
{
	struct stat top, dir;
	char image[96];

	mkdir(TOP, 0700);
	snprintf(self->dir, sizeof(self->dir), TOP "/%s", name);
	mkdir(self->dir, 0700);
	if (stat(TOP, &top) || stat(self->dir, &dir))
		return false;
	if (top.st_dev != dir.st_dev)
		return true;
	if (!variant->mkfs)
		return !mount("hmm_file", self->dir, variant->fs, 0,
			      variant->options);
	mkdir(TOP "/images", 0700);
	if (!stat(TOP "/images", &dir) && dir.st_dev == top.st_dev &&
	    mount("images", TOP "/images", "tmpfs", 0, "size=512m"))
		return false;
	if (run("truncate -s %uM " TOP "/images/%s", variant->mib, name) ||
	    run("%s " TOP "/images/%s >/dev/null", variant->mkfs, name))
		return false;
	snprintf(image, sizeof(image), TOP "/images/%s", name);
	return mount_image(image, self->dir, variant->fs);
}

static bool remount(struct _test_data_file *self, const struct _fixture_variant_file *variant)
{
	char image[96];

	snprintf(image, sizeof(image), TOP "/images%s", strrchr(self->dir, '/'));
	return !umount(self->dir) &&
	       mount_image(image, self->dir, variant->fs);
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

static int command(int dev, unsigned long request, void *addr, void *ptr,
		   unsigned long npages)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)addr,
		.ptr = (uintptr_t)ptr,
		.npages = npages,
	};

	return ioctl(dev, request, &cmd) ? -errno : 0;
}

static int flags(int dev, uint64_t flags)
{
	/* The ioctl takes no 0, and the driver does not know the other bit. */
	return command(dev, HMM_DMIRROR_FLAGS, (void *)psize(), NULL,
		       flags | 1 << 16);
}

FIXTURE_SETUP(file)
{
	struct sigaction sa = { .sa_handler = fault_handler };
	const char *name = variant->mkfs ? variant->fs : "tmpfs";

	if (variant->mkfs && strstr(variant->mkfs, "1024"))
		name = "ext4_1k";
	else if (variant->options && strstr(variant->options, "huge"))
		name = "tmpfs_huge";
	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
	self->dev = open(DEVICE, O_RDWR);
	ASSERT_GE(self->dev, 0) {
		TH_LOG("%s: %s", DEVICE, strerror(errno));
	}
	ASSERT_TRUE(mount_fs(self, variant, name));
	snprintf(self->path, sizeof(self->path), "%s/file.%d", self->dir,
		 getpid());
	self->fd = open(self->path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	ASSERT_GE(self->fd, 0);
	self->buf = aligned_alloc(psize(), PAGES * psize());
	self->mirror = aligned_alloc(psize(), PAGES * psize());
	ASSERT_NE(self->buf, NULL);
	ASSERT_NE(self->mirror, NULL);
	ASSERT_EQ(command(self->dev, HMM_DMIRROR_EVICT, (void *)psize(), NULL, 1), 0);
	ASSERT_EQ(stats(self->dev, &self->before), 0);

	/* One by one: a large folio that is dirty cannot always be split. */
	fill(self->buf, 0, PAGES, 1);
	for (unsigned long i = 0; i < PAGES; i++)
		ASSERT_EQ(pwrite(self->fd, self->buf + i * psize(), psize(),
				 i * psize()), psize());
}

FIXTURE_TEARDOWN(file)
{
	flags(self->dev, 0);
	close(self->fd);
	unlink(self->path);
	/* Whatever was left there is evicted, or the file's end was theirs. */
	EXPECT_EQ(command(self->dev, HMM_DMIRROR_EVICT, (void *)psize(), NULL, 1), 0);
	EXPECT_EQ(resident(self), 0);
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
 * Pages of @p that are in device memory then; their data are in mirror. Parts
 * of a large folio are unmapped when it has been split, and go the next time.
 */
static long migrate(struct _test_data_file *self, char *p, unsigned long nr)
{
	long was = resident(self);

	for (int try = 0; try < 10; try++) {
		int ret = command(self->dev, HMM_DMIRROR_MIGRATE_TO_DEV, p,
				  self->mirror, nr);

		if (ret && ret != -ENOENT)
			return ret;
		if (resident(self) - was >= (long)nr)
			break;
		/* Another CPU may have references to them for a moment. */
		if (try > 1)
			usleep(10000);
		touch(p, nr);
	}
	return resident(self) - was;
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

TEST_F(file, load)
{
	char *p = to_device(self, _metadata, true);

	for (unsigned long i = 0; i < PAGES; i++) {
		ASSERT_EQ(wrong(p + i * psize(), i, 1, 1), 0);
		ASSERT_EQ(recalls(self), i + 1);
	}
	ASSERT_EQ(resident(self), 0);
}

/* Pages that are not clean: the data are nowhere else. */
TEST_F(file, load_dirty)
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
TEST_F(file, large)
{
	const size_t size = 4 << 20;
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

TEST_F(file, partial_range)
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

TEST_F(file, read)
{
	to_device(self, _metadata, true);
	ASSERT_EQ(pread(self->fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	ASSERT_EQ(wrong(self->buf, 0, PAGES, 1), 0);
	ASSERT_EQ(recalls(self), PAGES);
}

/* With O_DIRECT, what is on the disk must not be older. */
TEST_F(file, read_direct)
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

TEST_F(file, write_direct)
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

TEST_F(file, sendfile)
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
TEST_F(file, write)
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

TEST_F(file, store)
{
	char *p = device_writes(self, _metadata);

	for (unsigned long i = 0; i < PAGES; i++)
		*(uint64_t *)(p + i * psize() + 1024) = ~0ULL;
	ASSERT_EQ(pread(self->fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	for (unsigned long i = 0; i < PAGES; i++)
		ASSERT_EQ(wrong(self->buf + i * psize(), i, 1, 2), 1);
}

TEST_F(file, process_vm_readv)
{
	char *p = device_writes(self, _metadata);
	struct iovec local = { self->mirror, PAGES * psize() };
	struct iovec remote = { p, PAGES * psize() };

	ASSERT_EQ(process_vm_readv(getpid(), &local, 1, &remote, 1, 0),
		  PAGES * psize());
	ASSERT_EQ(wrong(self->mirror, 0, PAGES, 2), 0);
}

TEST_F(file, populate)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(madvise(p, PAGES * psize(), MADV_POPULATE_READ), 0);
	ASSERT_EQ(recalls(self), PAGES);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
}

/* Readahead finds that it is there. */
TEST_F(file, readahead)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(readahead(self->fd, 0, PAGES * psize()), 0);
	ASSERT_EQ(madvise(p, PAGES * psize(), MADV_WILLNEED), 0);
	ASSERT_EQ(posix_fadvise(self->fd, 0, 0, POSIX_FADV_WILLNEED), 0);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
}

TEST_F(file, exec)
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

TEST_F(file, fsync)
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

TEST_F(file, msync)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(msync(p, PAGES * psize(), MS_SYNC), 0);
	evict_caches(_metadata);
	check_disk(self, variant, _metadata, p);
}

TEST_F(file, sync)
{
	char *p = device_writes(self, _metadata);

	sync();
	evict_caches(_metadata);
	check_disk(self, variant, _metadata, p);
}

/* Nobody asks for it, and the file is closed. */
TEST_F(file, unmount)
{
	char *p = device_writes(self, _metadata);

	check_disk(self, variant, _metadata, p);
}

/* After writeback, who writes has to ask the file system again. */
TEST_F(file, store_after_fsync)
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
TEST_F(file, fsync_clean)
{
	to_device(self, _metadata, true);
	ASSERT_EQ(fsync(self->fd), 0);
	sync();
	evict_caches(_metadata);
	ASSERT_EQ(recalls(self), 0);
	ASSERT_EQ(resident(self), PAGES);
}

TEST_F(file, drop_caches)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(munmap(p, PAGES * psize()), 0);
	evict_caches(_metadata);
	ASSERT_EQ(posix_fadvise(self->fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	ASSERT_EQ(pread(self->fd, self->buf, PAGES * psize(), 0), PAGES * psize());
	ASSERT_EQ(wrong(self->buf, 0, PAGES, 2), 0);
}

/* In the middle of a page; what is cut off must not come back. */
TEST_F(file, truncate)
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

TEST_F(file, truncate_all)
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

TEST_F(file, punch_hole)
{
	const size_t start = 3 * psize() + 512, len = 4 * psize();
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			    start, len), 0);
	ASSERT_TRUE(all_zero(p + start, len));
	memset(self->buf + start, 0, len);
	ASSERT_EQ(memcmp(p, self->buf, PAGES * psize()), 0);
}

TEST_F(file, collapse_range)
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

TEST_F(file, zero_range)
{
	char *p = device_writes(self, _metadata);

	if (fallocate(self->fd, FALLOC_FL_ZERO_RANGE, 4 * psize() + 8, 16)) {
		ASSERT_EQ(errno, EOPNOTSUPP);
		return;
	}
	memset(self->buf + 4 * psize() + 8, 0, 16);
	ASSERT_EQ(memcmp(p, self->buf, PAGES * psize()), 0);
}

TEST_F(file, unlink)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(unlink(self->path), 0);
	ASSERT_EQ(wrong(p, 0, 1, 2), 0);
	ASSERT_EQ(munmap(p, PAGES * psize()), 0);
	ASSERT_EQ(resident(self), PAGES - 1);
	ASSERT_EQ(close(self->fd), 0);
	/* btrfs leaves it to a thread. */
	for (int i = 0; i < 100 && resident(self); i++) {
		sync();
		usleep(100000);
	}
	ASSERT_EQ(resident(self), 0);
	ASSERT_EQ(recalls(self), 1);
	self->fd = open(self->path, O_RDWR | O_CREAT, 0600);
}

/* A private mapping: the file's pages go, copies of it stay. */
TEST_F(file, private)
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
TEST_F(file, processes)
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
TEST_F(file, two_mappings)
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

TEST_F(file, evict)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(command(self->dev, HMM_DMIRROR_EVICT, (void *)psize(), NULL, 1), 0);
	ASSERT_EQ(resident(self), 0);
	check_disk(self, variant, _metadata, p);
}

/* The device cannot copy: as if the disk could not read. */
TEST_F(file, copy_fails)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(flags(self->dev, HMM_DMIRROR_FLAG_FAIL_COPY), 0);
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
	ASSERT_EQ(flags(self->dev, 0), 0);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
	ASSERT_EQ(resident(self), 0);
	check_disk(self, variant, _metadata, p);
}

/* If what is cut off cannot be zeroed, the page is lost, which is told. */
TEST_F(file, truncate_copy_fails)
{
	const size_t size = 5 * psize() + 100;
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(flags(self->dev, HMM_DMIRROR_FLAG_FAIL_COPY), 0);
	/* Some file systems write it back, or read it, and notice. */
	if (ftruncate(self->fd, size)) {
		ASSERT_EQ(errno, EIO);
		ASSERT_EQ(flags(self->dev, 0), 0);
		/* Whether the size has changed is the file system's. */
		ASSERT_EQ(wrong(p, 0, 5, 2), 0);
		return;
	}
	ASSERT_EQ(flags(self->dev, 0), 0);
	/* tmpfs has nothing to tell by fsync(). */
	if (variant->disk) {
		ASSERT_EQ(fsync(self->fd), -1);
		ASSERT_EQ(errno, EIO);
	}
	ASSERT_EQ(ftruncate(self->fd, PAGES * psize()), 0);
	ASSERT_EQ(wrong(p, 0, 5, 2), 0);
	ASSERT_TRUE(all_zero(p + size, PAGES * psize() - size));
}

/* What may not be written is not writable when it is back. */
TEST_F(file, readonly)
{
	char *p = to_device(self, _metadata, true);

	ASSERT_EQ(wrong(p, 0, 1, 1), 0);
	ASSERT_EQ(try_write(p, 1), SIGSEGV);
	fill(self->buf, 0, PAGES, 2);
	ASSERT_NE(command(self->dev, HMM_DMIRROR_WRITE, p, self->buf, PAGES), 0);
	ASSERT_EQ(wrong(p, 0, PAGES, 1), 0);
}

TEST_F(file, mprotect)
{
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(mprotect(p, PAGES * psize(), PROT_READ), 0);
	ASSERT_EQ(try_write(p, 1), SIGSEGV);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
	fill(self->buf, 0, PAGES, 3);
	ASSERT_NE(command(self->dev, HMM_DMIRROR_WRITE, p, self->buf, PAGES), 0);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
}

TEST_F(file, mlock)
{
	char *p = map(self, PROT_READ, MAP_SHARED);

	ASSERT_NE(p, NULL);
	ASSERT_EQ(fsync(self->fd), 0);
	ASSERT_EQ(mlock(p, PAGES * psize()), 0);
	ASSERT_EQ(migrate(self, p, PAGES), 0);
	ASSERT_EQ(wrong(p, 0, PAGES, 1), 0);
	ASSERT_EQ(recalls(self), 0);
}

TEST_F(file, observers)
{
	struct cachestat_range_ range = { 0, PAGES * psize() };
	struct cachestat_ cs;
	unsigned char vec[PAGES];
	char *p = device_writes(self, _metadata);

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
TEST_F(file, uffd_wp)
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
TEST_F(file, longterm_pin)
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
	ASSERT_EQ(migrate(self, p, PAGES), 0);
	memset(self->mirror, 0, PAGES * psize());
	ASSERT_EQ(ioctl(gup, PIN_LONGTERM_TEST_READ, &dest), 0);
	ASSERT_EQ(wrong(self->mirror, 0, PAGES, 1), 0);
	ASSERT_EQ(ioctl(gup, PIN_LONGTERM_TEST_STOP), 0);
	close(gup);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
}

/* Entries for swap and for the device, side by side */
TEST_F(file, pageout)
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
TEST_F(file, freeze)
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
	migrate(self, p, PAGES);
	fill(self->mirror, 0, PAGES, 2);
	ASSERT_EQ(ioctl(dir, FITHAW, 0), 0);
	ASSERT_EQ(resident(self), PAGES);
	ASSERT_EQ(wrong(p, 0, PAGES, 2), 0);
	close(dir);
}

/* The device goes away, and everything comes back before. */
TEST_F(file, release)
{
	struct hmm_dmirror_stats now;
	char *p = device_writes(self, _metadata);

	ASSERT_EQ(command(self->dev, HMM_DMIRROR_RELEASE, (void *)psize(), NULL, 1), 0);
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

/* Each allocation on the way back fails once; who cannot do without it waits. */
TEST_F(file, no_memory)
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
TEST_F(file, no_device_memory)
{
	char *p = map(self, PROT_READ | PROT_WRITE, MAP_SHARED);

	ASSERT_NE(p, NULL);
	/* There and back, so that no folio is large */
	fill(p, 0, PAGES, 1);
	ASSERT_EQ(migrate(self, p, PAGES), PAGES);
	fill(p, 0, PAGES, 1);
	ASSERT_EQ(stats(self->dev, &self->before), 0);
	ASSERT_EQ(flags(self->dev, HMM_DMIRROR_FLAG_FAIL_ALLOC), 0);
	command(self->dev, HMM_DMIRROR_MIGRATE_TO_DEV, p, self->mirror, PAGES);
	ASSERT_EQ(resident(self), PAGES - 1);
	ASSERT_EQ(wrong(p, 0, PAGES, 1), 0);
	ASSERT_EQ(recalls(self), PAGES - 1);
}

int main(int argc, char **argv)
{
	static const char * const dirs[] = {
		"tmpfs", "tmpfs_huge", "ext4", "ext4_1k", "xfs", "btrfs", "images",
	};
	char path[64];
	int ret;

	ret = test_harness_run(argc, argv);
	for (unsigned int i = 0; i < ARRAY_SIZE(dirs); i++) {
		snprintf(path, sizeof(path), TOP "/%s", dirs[i]);
		umount2(path, MNT_DETACH);
		rmdir(path);
	}
	rmdir(TOP);
	return ret;
}
