// SPDX-License-Identifier: GPL-2.0
/*
 * A page of a file that is in device private memory has an empty PTE. Whoever
 * fills that, or takes the page for absent, has to tell the device: it must see
 * no more than the CPU does.
 */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <linux/udmabuf.h>
#include <linux/userfaultfd.h>

#include "kselftest_harness.h"
#include "hmm_file_util.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#define MADV_GUARD_REMOVE	103
#endif

FIXTURE(notify) { };
FIXTURE_VARIANT(notify) { const char *fs; };
FIXTURE_VARIANT_ADD(notify, tmpfs) { "tmpfs" };
FIXTURE_VARIANT_ADD(notify, ext4_1k) { "ext4_1k" };
FIXTURE_VARIANT_ADD(notify, xfs) { "xfs" };

FIXTURE_SETUP(notify)
{
	const char *reason = new_file(variant->fs);

	if (reason)
		SKIP(return, "%s: %s", variant->fs, reason);
	ASSERT_TRUE(write_pages(0, PAGES, 1));
}

FIXTURE_TEARDOWN(notify)
{
	EXPECT_TRUE(end_file());
}

/* Who puts a guard over a page takes it from the device as well. */
TEST_F(notify, guard)
{
	static const struct {
		int map;
		unsigned long request;
	} modes[] = {
		{ MAP_SHARED, HMM_DMIRROR_WRITE },
		{ MAP_SHARED, HMM_DMIRROR_READ },
		{ MAP_PRIVATE, HMM_DMIRROR_READ },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(modes); i++) {
		const bool write = modes[i].request == HMM_DMIRROR_WRITE;
		char *p = map(0, PAGES, PROT_READ | PROT_WRITE, modes[i].map);
		char *guard = p + psize(), *rest = guard + psize();

		ASSERT_TRUE(migrate(p, PAGES, modes[i].map == MAP_SHARED));
		ASSERT_EQ(0, madvise(guard, psize(), MADV_GUARD_INSTALL));
		fill(buf, 2, PAGES - 2, 2);
		ASSERT_EQ(-EFAULT, command(modes[i].request, guard, buf, 1));
		ASSERT_EQ(SIGSEGV, SIGNAL_OF(FORCE_READ(*guard)));
		/* The rest is where it was. */
		ASSERT_EQ(0, command(modes[i].request, rest, buf, PAGES - 2));
		ASSERT_EQ(PAGES, resident());
		ASSERT_EQ(0, madvise(guard, psize(), MADV_GUARD_REMOVE));
		ASSERT_TRUE(right(p, 0, 2, 1));
		ASSERT_TRUE(right(rest, 2, PAGES - 2, write ? 2 : 1));
		ASSERT_EQ(0, munmap(p, SIZE));
		ASSERT_TRUE(write_pages(0, PAGES, 1));
	}
}

/* What userfaultfd puts in place of a file's page is what the device sees. */
TEST_F(notify, uffd)
{
	enum { COPY, ZEROPAGE, POISON };
	enum { FAULT = -1, ZERO, FILE_HAS, NEW };
	static const struct {
		int map, op, error;
		int seen;	/* by CPU and device */
	} modes[] = {
		{ MAP_PRIVATE, COPY, 0, NEW },
		{ MAP_PRIVATE, ZEROPAGE, 0, ZERO },
		{ MAP_PRIVATE, POISON, 0, FAULT },
		{ MAP_SHARED, POISON, 0, FAULT },
		/* It is there. */
		{ MAP_SHARED, COPY, EEXIST, FILE_HAS },
		{ MAP_SHARED, ZEROPAGE, EEXIST, FILE_HAS },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(modes); i++) {
		struct uffdio_api api = { UFFD_API, UFFD_FEATURE_POISON };
		struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
		char *p = map(0, PAGES, PROT_READ | PROT_WRITE, modes[i].map);
		char *dst = p + psize();
		const struct uffdio_range page = { (uintptr_t)dst, psize() };
		struct uffdio_zeropage zero = { page };
		struct uffdio_poison poison = { page };
		struct uffdio_copy copy = { page.start, (uintptr_t)buf, page.len };
		int uffd = syscall(__NR_userfaultfd, O_CLOEXEC), err;

		if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
			SKIP(return, "no userfaultfd");
		reg.range.start = (uintptr_t)p;
		reg.range.len = SIZE;
		if (ioctl(uffd, UFFDIO_REGISTER, &reg)) {
			/* Of files, those of shmem only */
			ASSERT_NE(NULL, fs->mkfs);
			close(uffd);
			break;
		}
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
 * Blocks behind the old end of a file are allocated when the CPU or the device
 * writes next, even if there was no memory to recall the page of that end.
 */
TEST_F(notify, extend_no_memory)
{
	bool pending = false;

	if (!fail_nth(0))
		SKIP(return, "no CONFIG_FAIL_PAGE_ALLOC");
	for (unsigned int n = 1; !pending; n++) {
		char *p = map(0, 1, PROT_READ | PROT_WRITE, MAP_SHARED);

		ASSERT_EQ(0, ftruncate(fd, 0));
		ASSERT_EQ(0, ftruncate(fd, 1024));
		ASSERT_TRUE(migrate(p, 1, true));
		ASSERT_TRUE(fail_nth(n));
		if (ftruncate(fd, psize()))
			ASSERT_EQ(ENOMEM, errno);
		pending = fail_pending();
		ASSERT_TRUE(fail_nth(0));
		ASSERT_EQ(0, ftruncate(fd, psize()));
		fill(buf, 0, 1, 2);
		ASSERT_EQ(0, command(HMM_DMIRROR_WRITE, p, buf, 1));
		ASSERT_EQ(0, munmap(p, psize()));
		ASSERT_EQ(0, fsync(fd));
		ASSERT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
		ASSERT_TRUE(read_right(0, 1, 2));
	}
}

/* Recalls take longer than a device that faults waits: but it advances. */
TEST_F_TIMEOUT(notify, slow_recall, TIMEOUT)
{
	char *p = map(0, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED);
	int other = open(OTHER_DEVICE, O_RDWR), first = dev;

	ASSERT_TRUE(migrate(p, PAGES, false));
	ASSERT_GE(other, 0);
	/* For another device, each has to come back. */
	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_SLOW_COPY));
	dev = other;
	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_SLOW_COPY));
	ASSERT_EQ(0, command(HMM_DMIRROR_READ_UNLOCKED, p, mirror, PAGES));
	ASSERT_EQ(0, set_flags(0));
	dev = first;
	close(other);
	ASSERT_TRUE(right(mirror, 0, PAGES, 1));
}

/* What is written while a page is pinned is not lost to a copy made before. */
TEST(pin)
{
	struct udmabuf_create create = { .size = psize() };
	int udmabuf = open("/dev/udmabuf", O_RDWR), lost = 0, *seen;
	pid_t pid;

	if (udmabuf < 0)
		SKIP(return, "no /dev/udmabuf");
	ASSERT_EQ(NULL, new_file("tmpfs"));
	fd = memfd_create("pin", MFD_ALLOW_SEALING);
	ASSERT_EQ(0, ftruncate(fd, psize()));
	ASSERT_EQ(0, fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
	ASSERT_EQ(0, set_flags(HMM_DMIRROR_FLAG_SLOW_COPY));
	seen = (int *)map(0, 1, PROT_READ, MAP_SHARED);
	pid = fork();
	if (!pid)
		for (dev = open(DEVICE, O_RDWR);; FORCE_READ(*seen))
			command(HMM_DMIRROR_MIGRATE_TO_DEV, seen, buf, 1);
	create.memfd = fd;
	for (int i = 1; i <= 20 && !lost; i++) {
		int file, *p;

		/* At another time of a copy */
		usleep(i * 13000);
		file = ioctl(udmabuf, UDMABUF_CREATE, &create);
		p = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
		ASSERT_NE(MAP_FAILED, p);
		*p = i;
		munmap(p, psize());
		close(file);
		/* No read(): that may keep a reference. */
		usleep(250000);
		if (__atomic_load_n(seen, __ATOMIC_RELAXED) != i)
			lost = i;
	}
	EXPECT_EQ(0, lost);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	ASSERT_TRUE(end_file());
}

HMM_FILE_MAIN
