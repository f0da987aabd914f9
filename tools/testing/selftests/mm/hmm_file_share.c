// SPDX-License-Identifier: GPL-2.0
/*
 * A page of a file that is in device private memory stays there while only that
 * device uses it: through any mapping, and for any process.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/syscall.h>
#include <linux/userfaultfd.h>

#include "kselftest_harness.h"
#include "hmm_file_util.h"

FIXTURE(share) { };
FIXTURE_VARIANT(share) { const char *fs; };
FIXTURE_VARIANT_ADD(share, tmpfs) { "tmpfs" };
FIXTURE_VARIANT_ADD(share, ext4) { "ext4" };
FIXTURE_VARIANT_ADD(share, ext4_1k) { "ext4_1k" };
FIXTURE_VARIANT_ADD(share, xfs) { "xfs" };
FIXTURE_VARIANT_ADD(share, btrfs) { "btrfs" };

FIXTURE_SETUP(share)
{
	const char *reason = new_file(variant->fs);

	if (reason)
		SKIP(return, "%s: %s", variant->fs, reason);
	ASSERT_TRUE(write_pages(0, PAGES, 1));
	ASSERT_EQ(0, fsync(fd));
}

FIXTURE_TEARDOWN(share)
{
	EXPECT_TRUE(end_file());
}

enum where {
	SAME,		/* the mapping that they migrated from */
	SECOND,		/* another one, of the same process */
	OTHER,		/* one of another process */
};

static const struct access {
	const char *what;
	enum where where;
	int prot, flags;
	bool writable;		/* mapped so when the pages migrate */
	unsigned long request;
	int error;
	unsigned long recalls;
} accesses[] = {
	{ "after mprotect", SAME, PROT_READ, 0, true, HMM_DMIRROR_READ },
	{ "after mprotect there and back", SAME, PROT_READ | PROT_WRITE, 0, true,
	  HMM_DMIRROR_WRITE },
	{ "write after mprotect", SAME, PROT_READ, 0, true, HMM_DMIRROR_WRITE, EPERM },
	{ "second mapping", SECOND, PROT_READ, MAP_SHARED, false, HMM_DMIRROR_READ },
	{ "another process", OTHER, PROT_READ, MAP_SHARED, false, HMM_DMIRROR_READ },
	{ "another process, private", OTHER, PROT_READ | PROT_WRITE, MAP_PRIVATE, true,
	  HMM_DMIRROR_READ },
	{ "another process writes", OTHER, PROT_READ | PROT_WRITE, MAP_SHARED, true,
	  HMM_DMIRROR_WRITE },
	{ "another process may only read", OTHER, PROT_READ, MAP_SHARED, true,
	  HMM_DMIRROR_WRITE, EPERM },
	{ "another process, nothing allowed", OTHER, PROT_NONE, MAP_SHARED, true,
	  HMM_DMIRROR_READ, EFAULT },
	/* The file system has to know, or the process gets a copy of its own. */
	{ "another process writes to clean pages", OTHER, PROT_READ | PROT_WRITE,
	  MAP_SHARED, false, HMM_DMIRROR_WRITE, 0, PAGES },
	{ "another process writes to its own", OTHER, PROT_READ | PROT_WRITE,
	  MAP_PRIVATE, true, HMM_DMIRROR_WRITE, 0, PAGES },
};

/* By a device that is opened for it: the mirror is the process's. */
static int access_pages(const struct access *a, char *p)
{
	const bool write = a->request == HMM_DMIRROR_WRITE;
	int err;

	if (a->where == SAME) {
		if (mprotect(p, SIZE, PROT_READ) || mprotect(p, SIZE, a->prot))
			return 1;
	} else {
		p = map(0, PAGES, a->prot, a->flags);
		dev = a->where == OTHER ? open(DEVICE, O_RDWR) : dev;
	}
	fill(buf, 0, PAGES, 2);
	err = command(a->request, p, write ? buf : mirror, PAGES);
	if (err != -a->error)
		return 2;
	if (recalls() != (long)a->recalls || resident() != PAGES - (long)a->recalls)
		return 3;
	if (!err && !write && !right(mirror, 0, PAGES, 1))
		return 4;
	return !err && write && !device_reads(p, 0, PAGES, 2) ? 5 : 0;
}

TEST_F_TIMEOUT(share, access, TIMEOUT)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(accesses); i++) {
		const struct access *a = &accesses[i];
		const bool changed = a->request == HMM_DMIRROR_WRITE && !a->error &&
				     a->flags != MAP_PRIVATE;
		char *p = map(0, PAGES, a->writable ? PROT_READ | PROT_WRITE : PROT_READ,
			      MAP_SHARED);
		int ret;

		ASSERT_TRUE(migrate(p, PAGES, a->writable));
		if (a->where == OTHER) {
			const pid_t pid = fork();

			if (!pid)
				_exit(access_pages(a, p));
			ASSERT_EQ(pid, waitpid(pid, &ret, 0));
			ret = WEXITSTATUS(ret);
		} else {
			ret = access_pages(a, p);
		}
		EXPECT_EQ(0, ret) {
			TH_LOG("%s: %ld recalls", a->what, recalls());
		}
		ASSERT_TRUE(device_reads(p, 0, PAGES, changed ? 2 : 1));
		ASSERT_TRUE(read_right(0, PAGES, changed ? 2 : 1));
		munmap(p, SIZE);
		ASSERT_TRUE(write_pages(0, PAGES, 1));
		ASSERT_EQ(0, fsync(fd));
	}
}

/* What is on the device, in system memory, or on the disk alone, in one range */
TEST_F_TIMEOUT(share, mixed, TIMEOUT)
{
	char *p = map(0, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED), *q;
	unsigned char perms[PAGES];

	if (fs->mkfs)
		ASSERT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	for (unsigned long i = 0; i < PAGES; i += 3)
		ASSERT_TRUE(migrate(p + i * psize(), 1, true));
	touch(p + psize(), 1, true);
	q = map(0, PAGES, PROT_READ, MAP_SHARED);
	ASSERT_EQ(0, command(HMM_DMIRROR_SNAPSHOT, q, perms, PAGES));
	for (unsigned long i = 0; i < PAGES; i++)
		ASSERT_EQ(i % 3 ? HMM_DMIRROR_PROT_NONE :
				  HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL |
				  HMM_DMIRROR_PROT_READ, perms[i]);
	ASSERT_TRUE(device_reads(q, 0, PAGES, 1));
	ASSERT_TRUE(device_writes(p, 0, PAGES, 2));
	ASSERT_TRUE(device_reads(q, 0, PAGES, 2));
	ASSERT_EQ(0, recalls());
}

/*
 * A page that is dirty, for one of its blocks has been written, has a hole: the
 * file system must be asked before the device writes there.
 */
TEST_F_TIMEOUT(share, dirty_hole, TIMEOUT)
{
	char *p = map(0, 1, PROT_READ | PROT_WRITE, MAP_SHARED);

	ASSERT_EQ(0, ftruncate(fd, 0));
	ASSERT_EQ(0, ftruncate(fd, psize()));
	ASSERT_EQ(1024, pwrite(fd, buf, 1024, 0));
	ASSERT_TRUE(migrate(p, 1, false));
	fill(buf, 0, 1, 2);
	ASSERT_EQ(0, command(HMM_DMIRROR_WRITE, p, buf, 1));
	ASSERT_EQ(0, munmap(p, psize()));
	ASSERT_EQ(0, fsync(fd));
	ASSERT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	ASSERT_TRUE(read_right(0, 1, 2));
}

/* What the device writes is as visible as what the CPU writes. */
TEST_F_TIMEOUT(share, soft_dirty, TIMEOUT)
{
	char *p = map(0, 1, PROT_READ | PROT_WRITE, MAP_SHARED);
	int pagemap = open("/proc/self/pagemap", O_RDONLY);

	if (!softdirty_supported())
		SKIP(return, "no soft-dirty");
	ASSERT_TRUE(migrate(p, 1, true));
	ASSERT_TRUE(device_writes(p, 0, 1, 2));
	clear_softdirty();
	ASSERT_TRUE(device_reads(p, 0, 1, 2));
	ASSERT_FALSE(pagemap_is_softdirty(pagemap, p));
	fill(buf, 0, 1, 3);
	ASSERT_EQ(0, command(HMM_DMIRROR_WRITE, p, buf, 1));
	ASSERT_TRUE(pagemap_is_softdirty(pagemap, p));
	close(pagemap);
}

/* A minor fault is one for the device as well. */
TEST(uffd_minor)
{
	const char *reason = new_file("tmpfs");
	struct uffdio_api api = { UFFD_API, UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_SIGBUS };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MINOR };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	char *p, *q;

	ASSERT_EQ(NULL, reason);
	ASSERT_TRUE(write_pages(0, PAGES, 1));
	p = map(0, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED);
	q = map(0, PAGES, PROT_READ, MAP_SHARED);
	reg.range.start = (uintptr_t)q;
	reg.range.len = SIZE;
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg))
		SKIP(return, "no minor faults");
	ASSERT_TRUE(migrate(p, PAGES, true));
	ASSERT_EQ(-EFAULT, command(HMM_DMIRROR_READ, q, mirror, PAGES));
	ASSERT_TRUE(device_reads(p, 0, PAGES, 1));
	close(uffd);
	EXPECT_TRUE(end_file());
}

/* To one device, the memory of another is no memory. */
TEST_F_TIMEOUT(share, other_device, TIMEOUT)
{
	char *p = map(0, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED);
	int other = open(OTHER_DEVICE, O_RDWR), first = dev;

	ASSERT_GE(other, 0);
	ASSERT_TRUE(migrate(p, PAGES, true));
	ASSERT_TRUE(device_writes(p, 0, PAGES, 2));
	dev = other;
	ASSERT_EQ(0, command(HMM_DMIRROR_READ, p, mirror, PAGES));
	dev = first;
	ASSERT_TRUE(right(mirror, 0, PAGES, 2));
	ASSERT_EQ(PAGES, recalls());
	ASSERT_EQ(0, resident());
	close(other);
}

/* Where the CPU has no page table, a device loses access as well. */
TEST_F_TIMEOUT(share, no_page_table, TIMEOUT)
{
	/* More than what one table of any level but the last has */
	const size_t size = sizeof(long) == 8 ? 4UL << 30 : SIZE;
	char *p = map(0, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED), *area, *q;

	area = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		    -1, 0);
	ASSERT_NE(MAP_FAILED, area);
	q = area + size / 2;
	ASSERT_EQ(q, mmap(q, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0));
	ASSERT_TRUE(migrate(p, PAGES, true));
	ASSERT_TRUE(device_writes(q, 0, PAGES, 2));
	ASSERT_EQ(0, mprotect(q, SIZE, PROT_READ));
	ASSERT_EQ(-EPERM, command(HMM_DMIRROR_WRITE, q, buf, PAGES));
	ASSERT_TRUE(device_reads(q, 0, PAGES, 2));
	ASSERT_EQ(0, mprotect(q, SIZE, PROT_NONE));
	ASSERT_EQ(-EFAULT, command(HMM_DMIRROR_READ, q, mirror, PAGES));
	ASSERT_TRUE(device_reads(p, 0, PAGES, 2));
	ASSERT_EQ(0, recalls());
}

/* Of what is cut off, no process's device keeps a mapping. */
TEST_F_TIMEOUT(share, truncate, TIMEOUT)
{
	char *p = map(0, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED);
	char *q = map(0, PAGES, PROT_READ, MAP_SHARED);

	ASSERT_TRUE(migrate(p, PAGES, true));
	ASSERT_TRUE(device_writes(p, 0, PAGES, 2));
	ASSERT_TRUE(device_reads(q, 0, PAGES, 2));
	ASSERT_EQ(0, ftruncate(fd, psize()));
	ASSERT_TRUE(device_reads(q, 0, 1, 2));
	ASSERT_EQ(-EFAULT, command(HMM_DMIRROR_READ, q + psize(), mirror, 1));
	ASSERT_EQ(0, ftruncate(fd, SIZE));
	ASSERT_TRUE(device_reads(q + psize(), 1, PAGES - 1, 0));
}

/* In /proc/vmstat */
enum { MIGRATE, RECALL, EVICT, DROP, NR_EVENTS };

static void events(long counts[NR_EVENTS])
{
	counts[MIGRATE] = number_in("/proc/vmstat", "device_file_migrate ");
	counts[RECALL] = number_in("/proc/vmstat", "device_file_recall ");
	counts[EVICT] = number_in("/proc/vmstat", "device_file_evict ");
	counts[DROP] = number_in("/proc/vmstat", "device_file_drop ");
}

static bool device_reads_often(char *p, unsigned long nr)
{
	bool ok = true;

	for (int round = 0; round < 4; round++)
		for (unsigned long i = 0; i < nr; i += PAGES)
			ok &= device_reads(p + i * psize(), i, PAGES, 1);
	return ok;
}

/*
 * A file with the weights of a model: two processes map it, a device reads it for
 * both again and again, and a third process read()s a part of it. Each page goes
 * to the device once, and back only if the CPU reads it.
 */
TEST_F_TIMEOUT(share, weights, TIMEOUT)
{
	const unsigned long nr = 8 * PAGES, part = nr / 4, left = nr - part;
	long start[NR_EVENTS], end[NR_EVENTS];
	int status, done[2];
	pid_t other, reader;
	bool ok = false;
	char *p;

	ASSERT_TRUE(write_pages(0, nr, 1));
	ASSERT_EQ(0, fsync(fd));
	p = map(0, nr, PROT_READ, MAP_SHARED);
	ASSERT_TRUE(migrate(p, nr, false));
	events(start);
	ASSERT_EQ(0, pipe(done));
	other = fork();
	if (!other) {
		dev = open(DEVICE, O_RDWR);
		ok = device_reads_often(p, nr);
		/* To close the device would be to evict its pages. */
		if (write(done[1], &ok, sizeof(ok)) == sizeof(ok))
			pause();
		_exit(1);
	}
	reader = fork();
	if (!reader)
		_exit(!read_right(nr / 2, part, 1));
	ASSERT_TRUE(device_reads_often(p, nr));
	ASSERT_EQ(reader, waitpid(reader, &status, 0));
	ASSERT_EQ(0, status);
	ASSERT_EQ(sizeof(ok), read(done[0], &ok, sizeof(ok)));
	ASSERT_TRUE(ok);
	events(end);
	ASSERT_EQ(0, end[MIGRATE] - start[MIGRATE]);
	ASSERT_EQ(part, end[RECALL] - start[RECALL]);
	ASSERT_EQ(part, recalls());
	ASSERT_EQ(left, resident());
	/* An eviction without memory drops what is clean, but for tmpfs. */
	set_flags(HMM_DMIRROR_FLAG_EVICT_NOMEM);
	evict();
	set_flags(0);
	evict();
	events(start);
	ASSERT_EQ(fs->mkfs ? left : 0, start[DROP] - end[DROP]);
	ASSERT_EQ(fs->mkfs ? 0 : left, start[EVICT] - end[EVICT]);
	kill(other, SIGKILL);
	waitpid(other, NULL, 0);
}

static void *recaller(void *p)
{
	FORCE_READ(*(char *)p);
	return NULL;
}

/*
 * A device that looks a page up while it is on its way back waits, and does not
 * keep a mapping of where the page was.
 */
TEST_F_TIMEOUT(share, recall, TIMEOUT)
{
	char *p = map(0, 1, PROT_READ | PROT_WRITE, MAP_SHARED);
	char *q = map(0, 1, PROT_READ, MAP_SHARED);
	pthread_t thread;

	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_SLOW_COPY));
	for (unsigned int i = 1; i < 20; i++) {
		fill(p, 0, 1, i);
		ASSERT_TRUE(migrate(p, 1, true));
		ASSERT_EQ(0, pthread_create(&thread, NULL, recaller, p));
		/* At another time of a copy that takes 100 ms */
		usleep(i * 7000);
		ASSERT_TRUE(device_reads(q, 0, 1, i));
		pthread_join(thread, NULL);
		fill(p, 0, 1, i + 1);
		ASSERT_TRUE(device_reads(q, 0, 1, i + 1));
	}
}

HMM_FILE_MAIN
