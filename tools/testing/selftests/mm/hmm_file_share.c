// SPDX-License-Identifier: GPL-2.0
/*
 * A page of a file that is in device private memory stays there while only that
 * device uses it: through any mapping, and for any process.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include "hmm_file_util.h"

FILES(share)
FS(share, tmpfs);
FS(share, ext4);
FS(share, ext4_1k);
FS(share, xfs);
FS(share, btrfs);

static const struct access {
	const char *what;
	int prot, flags;
	bool writable;		/* mapped so when the pages migrate */
	unsigned long request;
	int error;
	unsigned long recalls;
} accesses[] = {
	{ "reads", PROT_READ, MAP_SHARED, false, HMM_DMIRROR_READ },
	{ "reads privately", RW, MAP_PRIVATE, true, HMM_DMIRROR_READ },
	{ "writes", RW, MAP_SHARED, true, HMM_DMIRROR_WRITE },
	{ "may only read", PROT_READ, MAP_SHARED, true, HMM_DMIRROR_WRITE, EPERM },
	{ "nothing allowed", PROT_NONE, MAP_SHARED, true, HMM_DMIRROR_READ, EFAULT },
	/* The file system has to know, or the process gets a copy of its own. */
	{ "writes, clean", RW, MAP_SHARED, false, HMM_DMIRROR_WRITE, 0, PAGES },
	{ "writes privately", RW, MAP_PRIVATE, true, HMM_DMIRROR_WRITE, 0, PAGES },
};

/* By another process, with a device that is opened for it */
static int access_pages(const struct access *a)
{
	const bool write = a->request == HMM_DMIRROR_WRITE;
	char *p = map(0, PAGES, a->prot, a->flags);

	dev = open(DEVICE, O_RDWR);
	fill(buf, 0, PAGES, 2);
	if (command(a->request, p, write ? buf : mirror, PAGES) != -a->error)
		return 2;
	if (recalls() != (long)a->recalls || resident() != PAGES - (long)a->recalls)
		return 3;
	return a->error || device_reads(p, 0, PAGES, write ? 2 : 1) ? 0 : 4;
}

TEST_F_TIMEOUT(share, access, TIMEOUT)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(accesses); i++) {
		const struct access *a = &accesses[i];
		const bool changed = a->request == HMM_DMIRROR_WRITE && !a->error &&
				     a->flags != MAP_PRIVATE;
		char *p = map(0, PAGES, a->writable ? RW : PROT_READ, MAP_SHARED);
		pid_t pid;
		int ret;

		ASSERT_TRUE(write_pages(0, PAGES, 1));
		ASSERT_EQ(0, fsync(fd));
		ASSERT_TRUE(migrate(p, PAGES, a->writable));
		pid = fork();
		if (!pid)
			_exit(access_pages(a));
		ASSERT_EQ(pid, waitpid(pid, &ret, 0));
		EXPECT_EQ(0, ret) {
			TH_LOG("%s: status %#x, %ld recalls", a->what, ret, recalls());
		}
		ASSERT_TRUE(device_reads(p, 0, PAGES, changed ? 2 : 1));
		ASSERT_TRUE(read_right(0, PAGES, changed ? 2 : 1));
		munmap(p, SIZE);
	}
}

/* What is on the device, in system memory, or on the disk alone, in one range */
OP(share, mixed, SYSTEM, ANY, NONE)
{
	unsigned char perms[PAGES];
	char *q;

	p = map(0, PAGES, RW, MAP_SHARED);
	if (fs->mkfs)
		ASSERT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	for (unsigned long i = 0; i < PAGES; i += 3)
		ASSERT_TRUE(migrate(p + i * psize(), 1, true));
	touch(p + psize(), 1, true);
	q = map(0, PAGES, PROT_READ, MAP_SHARED);
	ASSERT_EQ(0, command(HMM_DMIRROR_SNAPSHOT, q, perms, PAGES));
	for (unsigned long i = 0; i < PAGES; i++)
		ASSERT_EQ(i % 3 ? HMM_DMIRROR_PROT_NONE :
			  HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL | HMM_DMIRROR_PROT_READ, perms[i]);
	ASSERT_TRUE(device_reads(q, 0, PAGES, 1));
	ASSERT_TRUE(device_writes(p, 0, PAGES, 2));
	ASSERT_TRUE(device_reads(q, 0, PAGES, 2));
	ASSERT_EQ(0, recalls());
}

/*
 * A page that is dirty, for one of its blocks has been written, has a hole: the file system must
 * be asked before the device writes there.
 */
OP(share, dirty_hole, SYSTEM, ANY, NONE)
{
	p = map(0, 1, RW, MAP_SHARED);
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
OP(share, soft_dirty, WRITTEN, ANY, NONE)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY);

	if (!softdirty_supported())
		SKIP(return, "no soft-dirty");
	clear_softdirty();
	ASSERT_TRUE(device_reads(p, 0, 1, 2));
	ASSERT_FALSE(pagemap_is_softdirty(pagemap, p));
	fill(buf, 0, 1, 3);
	ASSERT_EQ(0, command(HMM_DMIRROR_WRITE, p, buf, 1));
	ASSERT_TRUE(pagemap_is_softdirty(pagemap, p));
	close(pagemap);
}

/* A minor fault is one for the device as well. */
OP(share, uffd_minor, WRITTEN, 0, NONE)
{
	const uint64_t features = UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_SIGBUS;
	char *q = map(0, PAGES, PROT_READ, MAP_SHARED);
	int uffd = new_uffd(features, q, SIZE, false, false, true);

	if (fs->mkfs)
		return;
	if (uffd < 0)
		SKIP(return, "no minor faults");
	ASSERT_EQ(-EFAULT, command(HMM_DMIRROR_READ, q, mirror, PAGES));
	ASSERT_TRUE(device_reads(p, 0, PAGES, 2));
	close(uffd);
}

/* Where the CPU has no page table, a device loses access as well. */
OP(share, no_page_table, WRITTEN, 0, NONE)
{
	/* More than what one table of any level but the last has */
	const size_t size = sizeof(long) == 8 ? 4UL << 30 : SIZE;
	char *area, *q;

	area = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, area);
	q = area + size / 2;
	ASSERT_EQ(q, mmap(q, SIZE, RW, MAP_SHARED | MAP_FIXED, fd, 0));
	ASSERT_TRUE(device_writes(q, 0, PAGES, 3));
	ASSERT_EQ(0, mprotect(q, SIZE, PROT_READ));
	ASSERT_EQ(-EPERM, command(HMM_DMIRROR_WRITE, q, buf, PAGES));
	ASSERT_TRUE(device_reads(q, 0, PAGES, 3));
	ASSERT_EQ(0, mprotect(q, SIZE, PROT_NONE));
	ASSERT_EQ(-EFAULT, command(HMM_DMIRROR_READ, q, mirror, PAGES));
	ASSERT_TRUE(device_reads(p, 0, PAGES, 3));
	ASSERT_EQ(0, mprotect(q, SIZE, RW));
	ASSERT_TRUE(device_writes(q, 0, PAGES, 4));
}

enum event { MIGRATE, RECALL, EVICT, DROP, NR_EVENTS };

/* What /proc/vmstat says that became of pages */
static void read_events(long n[NR_EVENTS])
{
	static const char * const names[] = {
		"device_file_migrate ", "device_file_recall ", "device_file_evict ",
		"device_file_drop ",
	};

	for (unsigned int i = 0; i < NR_EVENTS; i++)
		n[i] = number_in("/proc/vmstat", names[i]);
}

static bool device_reads_often(char *p, unsigned long nr)
{
	bool ok = true;

	for (unsigned long i = 0; i < 5 * nr; i += PAGES)
		ok &= device_reads(p + i % nr * psize(), i % nr, PAGES, 1);
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
	pid_t other, reader;
	int done[2];
	bool ok;
	char *p;

	ASSERT_TRUE(write_pages(0, nr, 1));
	ASSERT_EQ(0, fsync(fd));
	p = map(0, nr, PROT_READ, MAP_SHARED);
	ASSERT_TRUE(migrate(p, nr, false));
	read_events(start);
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
	ASSERT_TRUE(ends_well(reader));
	ASSERT_EQ(sizeof(ok), read(done[0], &ok, sizeof(ok)));
	ASSERT_TRUE(ok);
	read_events(end);
	ASSERT_EQ(0, end[MIGRATE] - start[MIGRATE]);
	ASSERT_EQ(part, end[RECALL] - start[RECALL]);
	ASSERT_EQ(part, recalls());
	/* An eviction without memory drops what is clean, but for tmpfs. */
	set_flags(HMM_DMIRROR_FLAG_EVICT_NOMEM);
	evict();
	set_flags(0);
	evict();
	read_events(start);
	EXPECT_EQ(fs->mkfs ? left : 0, start[DROP] - end[DROP]);
	EXPECT_EQ(fs->mkfs ? 0 : left, start[EVICT] - end[EVICT]);
	kill(other, SIGKILL);
	waitpid(other, NULL, 0);
}

static void *recaller(void *p)
{
	FORCE_READ(*(char *)p);
	return NULL;
}

/*
 * A device that looks a page up while it is on its way back waits, and does not keep a mapping
 * of where the page was.
 */
TEST_F_TIMEOUT(share, recall, TIMEOUT)
{
	char *p = map(0, 1, RW, MAP_SHARED);
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
