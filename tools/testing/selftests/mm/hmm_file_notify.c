// SPDX-License-Identifier: GPL-2.0
/*
 * A page of a file that is in device private memory has an empty PTE. Whoever
 * fills that, or takes the page for absent, has to tell the device: it must see
 * no more than the CPU does. With the simulated device of lib/test_hmm.c.
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
#include <sys/stat.h>
#include <sys/syscall.h>
#include <linux/udmabuf.h>
#include <linux/userfaultfd.h>

#include "kselftest_harness.h"
#include <lib/test_hmm_uapi.h>
#include "hmm_file_util.h"
#include "vm_util.h"

#define DEVICE		"/dev/hmm_dmirror0"
#define TOP		"/tmp/hmm_file_notify"
#define PAGES		16UL
#define ARRAY_LEN(a)	(sizeof(a) / sizeof(*(a)))

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#define MADV_GUARD_REMOVE	103
#endif

#define TRIES		6000	/* where another CPU may be in the way, 10 ms each */

static sigjmp_buf fault_jmp;

static void fault_handler(int sig)
{
	siglongjmp(fault_jmp, sig);
}

/* The signal that reading there gives; or 0 */
static int try_read(const char *p)
{
	int sig = sigsetjmp(fault_jmp, 1);

	if (!sig)
		FORCE_READ(*p);
	return sig;
}

FIXTURE(notify)
{
	int dev;
	int fd;
	char dir[64];
	char *buf;		/* PAGES pages for whatever */
};

FIXTURE_VARIANT(notify)
{
	const char *fs;
	const char *mkfs;
};

FIXTURE_VARIANT_ADD(notify, tmpfs) {
	.fs = "tmpfs",
};

FIXTURE_VARIANT_ADD(notify, ext4_1k) {
	.fs = "ext4",
	.mkfs = "mkfs.ext4 -q -F -b 1024",
};

FIXTURE_VARIANT_ADD(notify, xfs) {
	.fs = "xfs",
	.mkfs = "mkfs.xfs -q -f",
};

/* Where it does not matter: the ioctls take no 0, and want a bit unknown here */
static int flags(int dev, uint64_t flags)
{
	return command(dev, HMM_DMIRROR_FLAGS, (void *)(uintptr_t)psize(), NULL,
		       flags | 1 << 16);
}

static long resident(int dev)
{
	struct hmm_dmirror_stats now;

	return ioctl(dev, HMM_DMIRROR_STATS, &now) ? -1 : now.allocs - now.frees;
}

FIXTURE_SETUP(notify)
{
	struct sigaction sa = { .sa_handler = fault_handler };
	char path[96];

	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
	if (geteuid())
		SKIP(return, "mounting wants root");
	self->dev = open(DEVICE, O_RDWR);
	if (self->dev < 0)
		SKIP(return, "%s: %s", DEVICE, strerror(errno));
	if (variant->mkfs && run("set -- %s; command -v $1 >/dev/null", variant->mkfs))
		SKIP(return, "no %s", variant->mkfs);
	mkdir(TOP, 0700);
	snprintf(self->dir, sizeof(self->dir), TOP "/%d", getpid());
	ASSERT_EQ(mkdir(self->dir, 0700), 0);
	ASSERT_EQ(mount("hmm_file", self->dir, "tmpfs", 0, "size=512m"), 0);
	if (variant->mkfs) {
		snprintf(path, sizeof(path), "%s/image", self->dir);
		ASSERT_EQ(run("truncate -s 320M %s", path), 0);
		ASSERT_EQ(run("%s %s >/dev/null", variant->mkfs, path), 0);
		ASSERT_EQ(mount_image(path, self->dir, variant->fs, NULL), 0);
	}
	snprintf(path, sizeof(path), "%s/file", self->dir);
	self->fd = open(path, O_RDWR | O_CREAT, 0600);
	ASSERT_GE(self->fd, 0);
	self->buf = aligned_alloc(psize(), PAGES * psize());
	ASSERT_NE(self->buf, NULL);
	memset(self->buf, 'a', psize());
	for (unsigned long i = 0; i < PAGES; i++)
		ASSERT_EQ(pwrite(self->fd, self->buf, psize(), i * psize()), psize());
}

FIXTURE_TEARDOWN(notify)
{
	flags(self->dev, 0);
	close(self->fd);
	close(self->dev);
	while (!umount2(self->dir, MNT_DETACH))
		;
	rmdir(self->dir);
	rmdir(TOP);
}

static char *map(struct _test_data_notify *self, int flags)
{
	char *p = mmap(NULL, PAGES * psize(), PROT_READ | PROT_WRITE, flags, self->fd, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* All of @p goes to the device, though others may have a reference for a while. */
static bool migrate(struct _test_data_notify *self, char *p, unsigned long nr)
{
	long was = resident(self->dev);

	for (int i = 0; i < TRIES; i++) {
		for (unsigned long j = 0; j < nr; j++)
			FORCE_READ(p[j * psize()]);
		was = resident(self->dev);
		command(self->dev, HMM_DMIRROR_MIGRATE_TO_DEV, p, self->buf, nr);
		if (resident(self->dev) - was == (long)nr)
			return true;
		usleep(10000);
	}
	return false;
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

	for (unsigned int i = 0; i < ARRAY_LEN(modes); i++) {
		const long before = resident(self->dev);
		char *p = map(self, modes[i].map);

		ASSERT_NE(p, NULL);
		if (modes[i].map == MAP_SHARED)
			memset(p, 'a', PAGES * psize());
		ASSERT_TRUE(migrate(self, p, PAGES));
		ASSERT_EQ(madvise(p + psize(), psize(), MADV_GUARD_INSTALL), 0);
		memset(self->buf, 'b', PAGES * psize());
		ASSERT_EQ(command(self->dev, modes[i].request, p + psize(), self->buf, 1),
			  -EFAULT);
		ASSERT_EQ(try_read(p + psize()), SIGSEGV);
		/* The rest is where it was. */
		ASSERT_EQ(command(self->dev, modes[i].request, p + 2 * psize(), self->buf,
				  PAGES - 2), 0);
		ASSERT_EQ(resident(self->dev) - before, PAGES);
		ASSERT_EQ(madvise(p + psize(), psize(), MADV_GUARD_REMOVE), 0);
		ASSERT_EQ(p[psize()], 'a');
		ASSERT_EQ(p[2 * psize()],
			  modes[i].request == HMM_DMIRROR_WRITE ? 'b' : 'a');
		memset(p, 'a', PAGES * psize());
		ASSERT_EQ(munmap(p, PAGES * psize()), 0);
	}
}

/* What userfaultfd puts in place of a file's page is what the device sees. */
TEST_F(notify, uffd)
{
	enum { COPY, ZEROPAGE, POISON };
	static const struct {
		int map;
		int op;
		int error;
		char seen;	/* by CPU and device; 0: a fault */
	} modes[] = {
		{ MAP_PRIVATE, COPY, 0, 'N' },
		{ MAP_PRIVATE, ZEROPAGE, 0, '0' },
		{ MAP_PRIVATE, POISON, 0, 0 },
		{ MAP_SHARED, POISON, 0, 0 },
		/* It is there. */
		{ MAP_SHARED, COPY, EEXIST, 'a' },
		{ MAP_SHARED, ZEROPAGE, EEXIST, 'a' },
	};
	char *page = aligned_alloc(psize(), psize());

	memset(page, 'N', psize());
	for (unsigned int i = 0; i < ARRAY_LEN(modes); i++) {
		struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_POISON };
		struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
		struct uffdio_zeropage zero = {};
		struct uffdio_poison poison = {};
		struct uffdio_copy copy = {};
		char *p = map(self, modes[i].map), *dst = p + psize();
		int uffd = syscall(__NR_userfaultfd, O_CLOEXEC), err = 0;

		if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
			SKIP(return, "no userfaultfd");
		ASSERT_NE(p, NULL);
		reg.range.start = (uintptr_t)p;
		reg.range.len = PAGES * psize();
		if (ioctl(uffd, UFFDIO_REGISTER, &reg)) {
			/* Of files, those of shmem only */
			ASSERT_NE(variant->mkfs, NULL);
			close(uffd);
			break;
		}
		ASSERT_TRUE(migrate(self, p, PAGES));
		zero.range.start = (uintptr_t)dst;
		zero.range.len = psize();
		poison.range = zero.range;
		copy.dst = zero.range.start;
		copy.len = psize();
		copy.src = (uintptr_t)page;
		if (modes[i].op == COPY)
			err = ioctl(uffd, UFFDIO_COPY, &copy);
		else if (modes[i].op == ZEROPAGE)
			err = ioctl(uffd, UFFDIO_ZEROPAGE, &zero);
		else
			err = ioctl(uffd, UFFDIO_POISON, &poison);
		ASSERT_EQ(err ? errno : 0, modes[i].error);
		self->buf[0] = 'x';
		err = command(self->dev, HMM_DMIRROR_READ, dst, self->buf, 1);
		ASSERT_EQ(!err, !!modes[i].seen);
		ASSERT_EQ(try_read(dst), modes[i].seen ? 0 : SIGBUS);
		if (modes[i].seen) {
			ASSERT_EQ(self->buf[0], modes[i].seen == '0' ? 0 : modes[i].seen);
			ASSERT_EQ(*dst, self->buf[0]);
		}
		close(uffd);
		ASSERT_EQ(munmap(p, PAGES * psize()), 0);
		/* Back, for the next */
		ASSERT_EQ(pread(self->fd, self->buf, PAGES * psize(), 0), PAGES * psize());
		ASSERT_EQ(self->buf[psize()], 'a');
	}
	free(page);
}

/*
 * Blocks behind the old end of a file are allocated when the CPU or the device
 * writes next, even if there was no memory to recall the page of that end.
 */
TEST_F(notify, extend_no_memory)
{
	static const char * const settings[] = {
		"0 >probability", "0 >min-order", "N >ignore-gfp-wait", "N >task-filter",
		"N >ignore-gfp-highmem", "-1 >times", "0 >verbose",
	};
	int nth = open("/proc/thread-self/fail-nth", O_RDWR);
	char n[2] = "1";

	for (unsigned int i = 0; i < ARRAY_LEN(settings); i++)
		if (nth < 0 || run("cd /sys/kernel/debug/fail_page_alloc && echo %s",
				   settings[i]))
			SKIP(return, "no CONFIG_FAIL_PAGE_ALLOC");
	for (; *n <= '9'; ++*n) {
		char *p = map(self, MAP_SHARED);

		ASSERT_NE(p, NULL);
		ASSERT_EQ(ftruncate(self->fd, 0), 0);
		ASSERT_EQ(ftruncate(self->fd, 1024), 0);
		p[0] = 'a';
		ASSERT_TRUE(migrate(self, p, 1));
		ASSERT_EQ(pwrite(nth, n, 1, 0), 1);
		if (ftruncate(self->fd, psize()))
			ASSERT_EQ(errno, ENOMEM);
		ASSERT_EQ(pwrite(nth, "0", 1, 0), 1);
		ASSERT_EQ(ftruncate(self->fd, psize()), 0);
		memset(self->buf, 'b', psize());
		ASSERT_EQ(command(self->dev, HMM_DMIRROR_WRITE, p, self->buf, 1), 0);
		ASSERT_EQ(munmap(p, PAGES * psize()), 0);
		ASSERT_EQ(fsync(self->fd), 0);
		ASSERT_EQ(posix_fadvise(self->fd, 0, 0, POSIX_FADV_DONTNEED), 0);
		memset(self->buf, 'x', psize());
		ASSERT_EQ(pread(self->fd, self->buf, psize(), 0), psize());
		for (unsigned long i = 0; i < psize(); i += 512)
			ASSERT_EQ(self->buf[i], 'b');
	}
	close(nth);
}

/* Recalls take longer than a device that faults waits: but it advances. */
TEST_F(notify, slow_recall)
{
	char *p = map(self, MAP_SHARED);

	ASSERT_NE(p, NULL);
	ASSERT_TRUE(migrate(self, p, PAGES));
	/* The device has no mapping of these. */
	ASSERT_EQ(mprotect(p, PAGES * psize(), PROT_READ), 0);
	ASSERT_EQ(flags(self->dev, HMM_DMIRROR_FLAG_SLOW_COPY), 0);
	ASSERT_EQ(command(self->dev, HMM_DMIRROR_READ_UNLOCKED, p, self->buf, PAGES), 0);
	ASSERT_EQ(flags(self->dev, 0), 0);
	ASSERT_EQ(self->buf[(PAGES - 1) * psize()], 'a');
}

/* What is written while a page is pinned is not lost to a copy made before. */
TEST(pin)
{
	struct udmabuf_create create = { .size = psize() };
	int dev = open(DEVICE, O_RDWR), udmabuf = open("/dev/udmabuf", O_RDWR);
	int memfd = memfd_create("pin", MFD_ALLOW_SEALING);
	int lost = 0, *seen;
	pid_t pid;

	if (dev < 0 || udmabuf < 0)
		SKIP(return, "no %s", dev < 0 ? DEVICE : "/dev/udmabuf");
	ASSERT_EQ(ftruncate(memfd, psize()), 0);
	ASSERT_EQ(fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	ASSERT_EQ(flags(dev, HMM_DMIRROR_FLAG_SLOW_COPY), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		char *p = mmap(NULL, psize(), PROT_READ, MAP_SHARED, memfd, 0);
		char *buf = malloc(psize());

		for (dev = open(DEVICE, O_RDWR);; FORCE_READ(*p))
			command(dev, HMM_DMIRROR_MIGRATE_TO_DEV, p, buf, 1);
	}
	create.memfd = memfd;
	seen = mmap(NULL, psize(), PROT_READ, MAP_SHARED, memfd, 0);
	ASSERT_NE(seen, MAP_FAILED);
	for (int i = 1; i <= 20 && !lost; i++) {
		int fd, *p;

		/* At another time of a copy */
		usleep(i * 13000);
		fd = ioctl(udmabuf, UDMABUF_CREATE, &create);
		ASSERT_GE(fd, 0);
		p = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		ASSERT_NE(p, MAP_FAILED);
		*p = i;
		munmap(p, psize());
		close(fd);
		/* No read(): that may keep a reference. */
		usleep(250000);
		if (__atomic_load_n(seen, __ATOMIC_RELAXED) != i)
			lost = i;
	}
	EXPECT_EQ(lost, 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	ASSERT_EQ(flags(dev, 0), 0);
}

TEST_HARNESS_MAIN
