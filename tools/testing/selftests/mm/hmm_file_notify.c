// SPDX-License-Identifier: GPL-2.0
/*
 * A page of a file that is in device private memory has an empty PTE. Whoever
 * fills that, or takes the page for absent, has to tell the device: it must see
 * no more than the CPU does.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <linux/udmabuf.h>
#include "hmm_file_util.h"

FILES(notify)
FS(notify, tmpfs);
FS(notify, ext4_1k);
FS(notify, xfs);

/* Who puts a guard over a page takes it from the device as well. */
TEST_F(notify, guard)
{
	for (int shared = 0; shared < 2; shared++) {
		const unsigned long request = shared ? HMM_DMIRROR_WRITE : HMM_DMIRROR_READ;
		char *p = map(0, PAGES, RW, shared ? MAP_SHARED : MAP_PRIVATE);
		char *guard = p + psize(), *rest = guard + psize();
		int sig;

		ASSERT_TRUE(migrate(p, PAGES, shared));
		ASSERT_EQ(0, madvise(guard, psize(), MADV_GUARD_INSTALL));
		fill(buf, 2, PAGES - 2, 2);
		ASSERT_EQ(-EFAULT, command(request, guard, buf, 1));
		sig = SIGNAL_OF(FORCE_READ(*guard));
		ASSERT_EQ(SIGSEGV, sig);
		/* The rest is where it was. */
		ASSERT_EQ(0, command(request, rest, buf, PAGES - 2));
		ASSERT_EQ(PAGES, resident());
		ASSERT_EQ(0, madvise(guard, psize(), MADV_GUARD_REMOVE));
		ASSERT_TRUE(right(p, 0, 2, 1));
		ASSERT_TRUE(right(rest, 2, PAGES - 2, shared ? 2 : 1));
		ASSERT_EQ(0, munmap(p, SIZE));
	}
}

/* What userfaultfd puts in place of a file's page is what the device sees. */
TEST_F(notify, uffd)
{
	enum { COPY, ZEROPAGE, POISON };
	enum { FAULT = -1, ZERO, FILE_HAS, NEW };
	static const struct {
		int map, op, error, seen;	/* by CPU and device */
	} modes[] = {
		{ MAP_PRIVATE, COPY, 0, NEW },
		{ MAP_PRIVATE, ZEROPAGE, 0, ZERO },
		{ MAP_PRIVATE, POISON, 0, FAULT },
		{ MAP_SHARED, POISON, 0, FAULT },
		/* It is there. */
		{ MAP_SHARED, COPY, EEXIST, FILE_HAS },
	};

	/* Of files, those of shmem only */
	for (unsigned int i = 0; !fs->mkfs && i < ARRAY_SIZE(modes); i++) {
		char *p = map(0, PAGES, RW, modes[i].map);
		char *dst = p + psize();
		const struct uffdio_range page = { (uintptr_t)dst, psize() };
		struct uffdio_zeropage zero = { page };
		struct uffdio_poison poison = { page };
		struct uffdio_copy copy = { page.start, (uintptr_t)buf, page.len };
		int uffd = new_uffd(UFFD_FEATURE_POISON, p, SIZE, true, false, false), err;

		if (uffd < 0)
			SKIP(return, "no userfaultfd");
		ASSERT_TRUE(migrate(p, PAGES, false));
		fill(buf, 1, 1, NEW);
		if (modes[i].op == COPY)
			err = ioctl(uffd, UFFDIO_COPY, &copy);
		else if (modes[i].op == ZEROPAGE)
			err = ioctl(uffd, UFFDIO_ZEROPAGE, &zero);
		else
			err = ioctl(uffd, UFFDIO_POISON, &poison);
		ASSERT_EQ(modes[i].error, error_of(err));
		err = command(HMM_DMIRROR_READ, dst, mirror, 1);
		ASSERT_EQ(modes[i].seen != FAULT, !err);
		ASSERT_EQ(err ? SIGBUS : 0, SIGNAL_OF(FORCE_READ(*dst)));
		if (!err) {
			ASSERT_TRUE(right(mirror, 1, 1, modes[i].seen));
			ASSERT_TRUE(right(dst, 1, 1, modes[i].seen));
		}
		close(uffd);
		ASSERT_EQ(0, munmap(p, SIZE));
		/* Back, for the next */
		ASSERT_TRUE(read_right(0, PAGES, 1));
	}
}

/*
 * Blocks behind the old end of a file are allocated when the CPU or the device writes next, even
 * if there was no memory to recall the page of that end.
 */
TEST_F(notify, extend_no_memory)
{
	bool pending = false;

	if (!fail_nth(0))
		SKIP(return, "no CONFIG_FAIL_PAGE_ALLOC");
	for (unsigned int n = 1; !pending; n++) {
		char *p = map(0, 1, RW, MAP_SHARED);

		ASSERT_EQ(0, ftruncate(fd, 0));
		ASSERT_EQ(0, ftruncate(fd, 1024));
		ASSERT_TRUE(migrate(p, 1, true));
		ASSERT_TRUE(fail_nth(n));
		if (ftruncate(fd, psize()))
			ASSERT_EQ(ENOMEM, errno);
		pending = fail_pending();
		ASSERT_EQ(0, ftruncate(fd, psize()));
		fill(buf, 0, 1, 2);
		ASSERT_EQ(0, command(HMM_DMIRROR_WRITE, p, buf, 1));
		ASSERT_EQ(0, munmap(p, psize()));
		ASSERT_EQ(0, fsync(fd));
		ASSERT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
		ASSERT_TRUE(read_right(0, 1, 2));
	}
}

/*
 * To one device, the memory of another is no memory: each page has to come back. That takes
 * longer than a device that faults waits: but it advances.
 */
OP(notify, other_device, WRITTEN, PAGES, NONE)
{
	const int first = dev, other = open(OTHER_DEVICE, O_RDWR);

	ASSERT_GE(other, 0);
	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_SLOW_COPY));
	dev = other;
	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_SLOW_COPY));
	ASSERT_EQ(0, command(HMM_DMIRROR_READ_UNLOCKED, p, mirror, PAGES));
	ASSERT_EQ(0, set_flags(0));
	dev = first;
	ASSERT_TRUE(same(mirror));
	ASSERT_EQ(0, resident());
	close(other);
}

/*
 * What is written while a page is pinned is not lost to a copy made before. udmabuf wants a seal
 * that keeps pages from migrating: it comes while a page does.
 */
TEST(pin)
{
	struct udmabuf_create create = { .size = psize() };
	int udmabuf = open("/dev/udmabuf", O_RDWR), lost = 0;

	if (udmabuf < 0)
		SKIP(return, "no /dev/udmabuf");
	ASSERT_TRUE(new_file("tmpfs"));
	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_SLOW_COPY));
	for (int i = 1; i <= 20 && !lost; i++) {
		int file, *p, *seen;
		pid_t pid;

		close(fd);
		fd = memfd_create("pin", MFD_ALLOW_SEALING);
		create.memfd = fd;
		ASSERT_EQ(0, ftruncate(fd, psize()));
		seen = (int *)map(0, 1, PROT_READ, MAP_SHARED);
		pid = start_taking((char *)seen, 1);
		/* At another time of a copy */
		usleep(i * 13000);
		ASSERT_EQ(0, fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
		file = ioctl(udmabuf, UDMABUF_CREATE, &create);
		p = mmap(NULL, psize(), RW, MAP_SHARED, file, 0);
		ASSERT_NE(MAP_FAILED, p);
		*p = i;
		munmap(p, psize());
		close(file);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		if (__atomic_load_n(seen, __ATOMIC_RELAXED) != i)
			lost = i;
		munmap(seen, psize());
	}
	EXPECT_EQ(0, lost);
	ASSERT_TRUE(end_file());
}

static char *from, *page;
static int uffd;

/* While a write() waits for its data: dirty a page of its range, then fail. */
static void *serve(void *unused)
{
	struct uffdio_poison poison = { .range = { (uintptr_t)from, SIZE } };
	struct uffd_msg msg;
	bool ok = read(uffd, &msg, sizeof(msg)) == sizeof(msg) &&
		  migrate(page, 1, true) && device_writes(page, 8, 1, 2);

	set_flags(HMM_DMIRROR_FLAG_FAIL_COPY);
	return ioctl(uffd, UFFDIO_POISON, &poison) || !ok ? NULL : page;
}

/* A short write gives back the blocks that it has reserved, but not under it. */
TEST(xfs_short_write)
{
	pthread_t thread;
	int direct;
	void *ok;

	if (!new_file("xfs"))
		SKIP(return, "no xfs");
	page = map(8, 1, RW, MAP_SHARED);
	from = mmap(NULL, SIZE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uffd = new_uffd(UFFD_FEATURE_POISON, from, SIZE, true, false, false);
	if (uffd < 0)
		SKIP(return, "no userfaultfd with UFFDIO_POISON");

	/* No blocks yet */
	ASSERT_EQ(0, ftruncate(fd, SIZE));
	ASSERT_EQ(0, pthread_create(&thread, NULL, serve, NULL));
	EXPECT_EQ(-1, pwrite(fd, from, SIZE, 0));
	EXPECT_EQ(EFAULT, errno);
	set_flags(0);
	ASSERT_EQ(0, pthread_join(thread, &ok));
	ASSERT_NE(NULL, ok);

	ASSERT_EQ(0, fsync(fd));
	direct = open(path, O_RDONLY | O_DIRECT);
	ASSERT_EQ(psize(), pread(direct, buf, psize(), 8 * psize()));
	ASSERT_TRUE(right(buf, 8, 1, 2));
	EXPECT_TRUE(end_file());
}

HMM_FILE_MAIN
