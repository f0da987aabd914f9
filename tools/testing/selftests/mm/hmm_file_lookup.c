// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of files in device private memory: places that look for pages of a file
 * without wanting their data, and have to know of those on a device. The device
 * is that of lib/test_hmm.c; mounting wants root.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <linux/userfaultfd.h>

#include "kselftest_harness.h"
#include "hmm_file.h"

FIXTURE(lookup)
{
	struct hmm_file file;
};

FIXTURE_SETUP(lookup)
{
	const char *reason = hmm_file_begin(&self->file);

	if (reason)
		SKIP(return, "%s", reason);
}

FIXTURE_TEARDOWN(lookup)
{
	hmm_file_end(&self->file);
}

/* O_DIRECT reads that may not wait do not read what the device has newer. */
TEST_F_TIMEOUT(lookup, nowait_direct, TIMEOUT)
{
	struct hmm_file *file = &self->file;
	struct iovec iov = { file->buf, SIZE };
	unsigned int shown = 0;
	const char *reason;

	for (unsigned int i = 0; i < ARRAY_SIZE(filesystems); i++) {
		int fd, ret, tries;
		char *p;

		reason = new_fs(file, &filesystems[i]);
		if (reason)
			SKIP(return, "%s: %s", filesystems[i].name, reason);
		ASSERT_TRUE(write_pages(file, 0, PAGES, 1));
		ASSERT_EQ(0, fsync(file->fd));
		fd = open(DIR "/file", O_RDONLY | O_DIRECT);
		ASSERT_GE(fd, 0);
		/* Does it read what nobody has? Not each file system does. */
		for (ret = -1, tries = 100; ret < 0 && tries; tries--)
			ret = preadv2(fd, &iov, 1, 0, RWF_NOWAIT);
		shown += ret == SIZE;

		p = map(file, 0, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED);
		ASSERT_NE(NULL, p);
		to_device(file, p, PAGES, 1);
		ASSERT_TRUE(device_writes(file, p, PAGES, 2));
		for (tries = 100; tries; tries--) {
			ASSERT_EQ(-1, preadv2(fd, &iov, 1, 0, RWF_NOWAIT));
			ASSERT_EQ(EAGAIN, errno);
		}
		ASSERT_EQ(SIZE, preadv2(fd, &iov, 1, 0, 0));
		ASSERT_TRUE(all_are(file->buf, SIZE, 2));
		munmap(p, SIZE);
		close(fd);
	}
	ASSERT_GT(shown, 0);
}

/* After an O_DIRECT write, the device does not read what it had, clean. */
TEST_F_TIMEOUT(lookup, direct_write, TIMEOUT)
{
	struct hmm_file *file = &self->file;
	const char *reason;

	for (unsigned int i = 0; i < ARRAY_SIZE(filesystems); i++) {
		char *p;
		int fd;

		reason = new_fs(file, &filesystems[i]);
		if (reason)
			SKIP(return, "%s: %s", filesystems[i].name, reason);
		ASSERT_TRUE(write_pages(file, 0, PAGES, 1));
		ASSERT_EQ(0, fsync(file->fd));
		p = map(file, 0, PAGES, PROT_READ, MAP_SHARED);
		ASSERT_NE(NULL, p);
		to_device(file, p, PAGES, 0);
		fd = open(DIR "/file", O_WRONLY | O_DIRECT);
		ASSERT_GE(fd, 0);
		memset(file->buf, 3, SIZE / 2);
		ASSERT_EQ(SIZE / 2, pwrite(fd, file->buf, SIZE / 2, 0));
		ASSERT_EQ(0, command(file->dev, HMM_DMIRROR_READ, p, file->buf,
				     PAGES));
		ASSERT_TRUE(all_are(file->buf, SIZE / 2, 3));
		ASSERT_TRUE(all_are(file->buf + SIZE / 2, SIZE / 2, 1));
		munmap(p, SIZE);
		close(fd);
	}
}

/* With data=journal, also those stay whose buffers the journal has done with. */
TEST_F_TIMEOUT(lookup, data_journal, TIMEOUT)
{
	struct hmm_file *file = &self->file;
	static const char * const options[] = { "data=ordered", "data=journal" };

	for (int journal = 0; journal < 2; journal++) {
		struct fs fs = { ext4->name, ext4->mkfs, options[journal] };
		const char *reason = new_fs(file, &fs);
		char *p;

		if (reason)
			SKIP(return, "ext4 with %s: %s", fs.options, reason);
		ASSERT_TRUE(write_pages(file, 0, PAGES, 1));
		close(file->fd);
		ASSERT_EQ(0, umount(DIR));
		ASSERT_EQ(0, mount_image(TOP "/image", DIR, fs.name, fs.options));
		ASSERT_TRUE(new_file(file));
		p = map(file, 0, PAGES, PROT_READ, MAP_SHARED);
		ASSERT_NE(NULL, p);
		if (!journal)
			to_device(file, p, PAGES, 0);
		for (int i = 0; journal && i < 100; i++) {
			ASSERT_TRUE(all_are(p, SIZE, 1));
			command(file->dev, HMM_DMIRROR_MIGRATE_TO_DEV, p,
				file->buf, PAGES);
		}
		ASSERT_EQ(journal ? 0 : PAGES, resident(file));
		ASSERT_TRUE(all_are(p, SIZE, 1));
		munmap(p, SIZE);
	}
}

/* What a device wrote beyond the end of the file is zeroes when it grows. */
TEST_F_TIMEOUT(lookup, xfs_zero_range, TIMEOUT)
{
	struct hmm_file *file = &self->file;
	const char *reason = new_fs(file, xfs);
	const size_t old = 5 * psize() + 100;
	char *p;

	if (reason)
		SKIP(return, "xfs: %s", reason);
	/* Unwritten extents: only what is in the page cache is to be zeroed. */
	ASSERT_EQ(0, fallocate(file->fd, 0, 0, SIZE));
	ASSERT_EQ(0, ftruncate(file->fd, old));
	p = map(file, 0, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_NE(NULL, p);
	to_device(file, p + 5 * psize(), 1, 1);
	ASSERT_TRUE(device_writes(file, p + 5 * psize(), 1, 2));
	ASSERT_EQ(0, ftruncate(file->fd, SIZE));
	ASSERT_EQ(SIZE, pread(file->fd, file->buf, SIZE, 0));
	ASSERT_TRUE(all_are(file->buf + 5 * psize(), 100, 2));
	ASSERT_TRUE(all_are(file->buf + old, SIZE - old, 0));
}

struct server {
	struct hmm_file *file;
	char *buf, *page;
	int uffd;
};

/* While a write() waits for its data: dirty a page of its range, then fail. */
static void *serve(void *arg)
{
	struct server *s = arg;
	struct uffdio_poison poison = {
		.range = { (uintptr_t)s->buf, SIZE },
	};
	struct uffd_msg msg;
	bool ok;

	ok = read(s->uffd, &msg, sizeof(msg)) == sizeof(msg);
	to_device(s->file, s->page, 1, 1);
	ok &= device_writes(s->file, s->page, 1, 2);
	set_flags(s->file->dev, HMM_DMIRROR_FLAG_FAIL_COPY);
	ok &= !ioctl(s->uffd, UFFDIO_POISON, &poison);
	return ok ? s : NULL;
}

/* A short write gives back the blocks that it has reserved, but not under it. */
TEST_F_TIMEOUT(lookup, xfs_short_write, TIMEOUT)
{
	struct hmm_file *file = &self->file;
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_POISON,
	};
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	const char *reason = new_fs(file, xfs);
	struct server s = { .file = file };
	pthread_t thread;
	void *ok;
	char *p;
	int fd;

	if (reason)
		SKIP(return, "xfs: %s", reason);
	s.uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (s.uffd < 0 || ioctl(s.uffd, UFFDIO_API, &api))
		SKIP(return, "no userfaultfd with UFFDIO_POISON");
	s.buf = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, s.buf);
	reg.range.start = (uintptr_t)s.buf;
	reg.range.len = SIZE;
	ASSERT_EQ(0, ioctl(s.uffd, UFFDIO_REGISTER, &reg));

	ASSERT_EQ(0, ftruncate(file->fd, SIZE));
	p = map(file, 0, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_NE(NULL, p);
	s.page = p + 8 * psize();
	ASSERT_EQ(0, pthread_create(&thread, NULL, serve, &s));
	EXPECT_EQ(-1, pwrite(file->fd, s.buf, SIZE, 0));
	EXPECT_EQ(EFAULT, errno);
	set_flags(file->dev, 0);
	ASSERT_EQ(0, pthread_join(thread, &ok));
	ASSERT_NE(NULL, ok);

	ASSERT_EQ(0, fsync(file->fd));
	fd = open(DIR "/file", O_RDONLY | O_DIRECT);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(psize(), pread(fd, file->buf, psize(), 8 * psize()));
	ASSERT_TRUE(all_are(file->buf, psize(), 2));
	close(fd);
	ASSERT_EQ(0, ftruncate(file->fd, 0));
}

TEST_HARNESS_MAIN
