// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of files in device private memory: places that look for pages of a file
 * without wanting their data, and have to know of those on a device.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <linux/userfaultfd.h>

#include "kselftest_harness.h"
#include "hmm_file_util.h"

static const char * const disks[] = { "ext4", "xfs", "btrfs" };

FIXTURE(lookup) { };
FIXTURE_SETUP(lookup) { }
FIXTURE_TEARDOWN(lookup) { EXPECT_TRUE(end_file()); }

/* A file of that file system, on the disk, and a mapping of it */
#define BEGIN(name, prot)						\
({									\
	const char *reason = new_file(name);				\
	char *p_;							\
									\
	if (reason)							\
		SKIP(return, "%s: %s", name, reason);			\
	ASSERT_TRUE(write_pages(0, PAGES, 1));				\
	ASSERT_EQ(0, fsync(fd));					\
	p_ = map(0, PAGES, prot, MAP_SHARED);				\
	ASSERT_NE(NULL, p_);						\
	p_;								\
})

/* O_DIRECT reads that may not wait do not read what the device has newer. */
TEST_F_TIMEOUT(lookup, nowait_direct, TIMEOUT)
{
	unsigned int shown = 0;

	for (unsigned int i = 0; i < ARRAY_SIZE(disks); i++) {
		char *p = BEGIN(disks[i], PROT_READ | PROT_WRITE);
		int direct = open(path, O_RDONLY | O_DIRECT), tries, ret = -1;
		struct iovec iov = { buf, SIZE };

		/* Does it read what nobody has? Not each file system does. */
		for (tries = 100; ret < 0 && tries; tries--)
			ret = preadv2(direct, &iov, 1, 0, RWF_NOWAIT);
		shown += ret == SIZE;

		ASSERT_TRUE(migrate(p, PAGES, true));
		ASSERT_TRUE(device_writes(p, 0, PAGES, 2));
		for (tries = 100; tries; tries--) {
			ASSERT_EQ(-1, preadv2(direct, &iov, 1, 0, RWF_NOWAIT));
			ASSERT_EQ(EAGAIN, errno);
		}
		ASSERT_EQ(SIZE, preadv2(direct, &iov, 1, 0, 0));
		ASSERT_TRUE(right(buf, 0, PAGES, 2));
		munmap(p, SIZE);
		close(direct);
	}
	ASSERT_GT(shown, 0);
}

/* After an O_DIRECT write, the device does not read what it had, clean. */
TEST_F_TIMEOUT(lookup, direct_write, TIMEOUT)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(disks); i++) {
		char *p = BEGIN(disks[i], PROT_READ);
		int direct = open(path, O_WRONLY | O_DIRECT);

		ASSERT_TRUE(migrate(p, PAGES, false));
		fill(buf, 0, PAGES / 2, 3);
		ASSERT_EQ(SIZE / 2, pwrite(direct, buf, SIZE / 2, 0));
		ASSERT_EQ(0, command(HMM_DMIRROR_READ, p, mirror, PAGES));
		ASSERT_TRUE(right(mirror, 0, PAGES / 2, 3));
		ASSERT_TRUE(right(mirror + SIZE / 2, PAGES / 2, PAGES / 2, 1));
		munmap(p, SIZE);
		close(direct);
	}
}

/* With data=journal, also those stay whose buffers the journal has done with. */
TEST_F_TIMEOUT(lookup, data_journal, TIMEOUT)
{
	static const char * const names[] = { "ext4_ordered", "ext4_journal" };

	for (unsigned int journal = 0; journal < 2; journal++) {
		char *p = BEGIN(names[journal], PROT_READ);

		munmap(p, SIZE);
		close(fd);
		ASSERT_TRUE(remount());
		fd = open(path, O_RDWR);
		p = map(0, PAGES, PROT_READ, MAP_SHARED);
		ASSERT_NE(NULL, p);
		for (int i = 0; journal && i < 20; i++)
			ASSERT_TRUE(stay(p, PAGES));
		ASSERT_TRUE(journal || migrate(p, PAGES, false));
		ASSERT_TRUE(right(p, 0, PAGES, 1));
		munmap(p, SIZE);
	}
}

/* What a device wrote beyond the end of the file is zeroes when it grows. */
TEST_F_TIMEOUT(lookup, xfs_zero_range, TIMEOUT)
{
	const size_t old = 5 * psize() + 104;
	char *p = BEGIN("xfs", PROT_READ | PROT_WRITE);

	/* Unwritten extents: only what is in the page cache is to be zeroed. */
	ASSERT_EQ(0, ftruncate(fd, 0));
	ASSERT_EQ(0, fallocate(fd, 0, 0, SIZE));
	ASSERT_EQ(0, ftruncate(fd, old));
	ASSERT_TRUE(migrate(p + 5 * psize(), 1, true));
	ASSERT_TRUE(device_writes(p + 5 * psize(), 5, 1, 2));
	ASSERT_EQ(0, ftruncate(fd, SIZE));
	ASSERT_EQ(SIZE, pread(fd, buf, SIZE, 0));
	fill(mirror, 0, PAGES, 0);
	fill(mirror + 5 * psize(), 5, 1, 2);
	ASSERT_EQ(0, memcmp(buf, mirror, old));
	fill(mirror, 0, PAGES, 0);
	ASSERT_EQ(0, memcmp(buf + old, mirror + old, SIZE - old));
}

struct server {
	char *from, *page;
	int uffd;
};

/* While a write() waits for its data: dirty a page of its range, then fail. */
static void *serve(void *arg)
{
	struct server *s = arg;
	struct uffdio_poison poison = { .range = { (uintptr_t)s->from, SIZE } };
	struct uffd_msg msg;
	bool ok;

	ok = read(s->uffd, &msg, sizeof(msg)) == sizeof(msg) &&
	     migrate(s->page, 1, true) && device_writes(s->page, 8, 1, 2);
	set_flags(HMM_DMIRROR_FLAG_FAIL_COPY);
	ok &= !ioctl(s->uffd, UFFDIO_POISON, &poison);
	return ok ? s : NULL;
}

/* A short write gives back the blocks that it has reserved, but not under it. */
TEST_F_TIMEOUT(lookup, xfs_short_write, TIMEOUT)
{
	struct uffdio_api api = { UFFD_API, UFFD_FEATURE_POISON };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	char *p = BEGIN("xfs", PROT_READ | PROT_WRITE);
	struct server s = { .page = p + 8 * psize() };
	pthread_t thread;
	int direct;
	void *ok;

	s.uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (s.uffd < 0 || ioctl(s.uffd, UFFDIO_API, &api))
		SKIP(return, "no userfaultfd with UFFDIO_POISON");
	s.from = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	reg.range.start = (uintptr_t)s.from;
	reg.range.len = SIZE;
	ASSERT_EQ(0, ioctl(s.uffd, UFFDIO_REGISTER, &reg));

	/* No blocks yet */
	ASSERT_EQ(0, ftruncate(fd, 0));
	ASSERT_EQ(0, ftruncate(fd, SIZE));
	ASSERT_EQ(0, pthread_create(&thread, NULL, serve, &s));
	EXPECT_EQ(-1, pwrite(fd, s.from, SIZE, 0));
	EXPECT_EQ(EFAULT, errno);
	set_flags(0);
	ASSERT_EQ(0, pthread_join(thread, &ok));
	ASSERT_NE(NULL, ok);

	ASSERT_EQ(0, fsync(fd));
	direct = open(path, O_RDONLY | O_DIRECT);
	ASSERT_EQ(psize(), pread(direct, buf, psize(), 8 * psize()));
	ASSERT_TRUE(right(buf, 8, 1, 2));
}

HMM_FILE_MAIN
