// SPDX-License-Identifier: GPL-2.0
/*
 * Which pages of files migrate to device private memory, for whom, and what
 * others see meanwhile; with the simulated device of lib/test_hmm.c. Wants root.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <linux/userfaultfd.h>

#include "kselftest_harness.h"
#include <lib/test_hmm_uapi.h>
#include "hmm_file_util.h"
#include "vm_util.h"

#define DEVICE		"/dev/hmm_dmirror0"
#define TOP		"/tmp/hmm_file_migrate"
#define SWITCH		"/proc/sys/vm/device_file_pages"
#define PAGES		16UL
#define USER		12345
#define TIMEOUT		300
/* What a child that could not begin ends with */
#define BROKEN		200

static void device_flags(int dev, uint64_t flags)
{
	/* The driver does not know the other bit, and 0 is not allowed. */
	command(dev, HMM_DMIRROR_FLAGS, NOWHERE, NULL, flags | 1 << 16);
}

static bool set_switch(const char *what)
{
	int fd = open(SWITCH, O_WRONLY);
	bool ok = write(fd, what, 1) == 1;

	close(fd);
	return ok;
}

static void touch(char *p, unsigned long nr)
{
	for (unsigned long i = 0; i < nr; i++)
		FORCE_READ(p[i * psize()]);
}

/*
 * How many of the pages go to the device? With as many as @want it ends; what
 * somebody has a reference to goes later. What does not go is not even tried:
 * the driver is not asked for memory, else -1. In a mapping that is @mine, pages
 * have to be there again for another try; elsewhere, those that stayed still are,
 * and touching the others would bring them back.
 */
static long migrate(int dev, char *p, unsigned long nr, long want, bool mine)
{
	struct hmm_dmirror_stats before, now;
	char *mirror = malloc(nr * psize());
	long gone = 0;

	ioctl(dev, HMM_DMIRROR_STATS, &before);
	for (int i = 0; i < (want ? 1000 : 3); i++) {
		if (mine)
			touch(p, nr);
		command(dev, HMM_DMIRROR_MIGRATE_TO_DEV, p, mirror, nr);
		ioctl(dev, HMM_DMIRROR_STATS, &now);
		gone = (now.allocs - before.allocs) - (now.frees - before.frees);
		if (want && gone >= want)
			break;
		usleep(want ? 10000 : 0);
	}
	free(mirror);
	return !want && now.allocs != before.allocs ? -1 : gone;
}

FIXTURE(place)
{
	int dev;
	char dir[64];
	char path[96];
};

FIXTURE_VARIANT(place)
{
	const char *fs;
	const char *mkfs;
	const char *options;
};

FIXTURE_VARIANT_ADD(place, tmpfs)
{
	.fs = "tmpfs",
	.options = "size=64m,huge=advise",
};

FIXTURE_VARIANT_ADD(place, ext4)
{
	.fs = "ext4",
	.mkfs = "mkfs.ext4 -q -F",
};

FIXTURE_SETUP(place)
{
	self->dev = open(DEVICE, O_RDWR);
	if (self->dev < 0)
		SKIP(return, DEVICE ": %s", strerror(errno));
	mkdir(TOP, 0755);
	snprintf(self->dir, sizeof(self->dir), TOP "/%s", variant->fs);
	snprintf(self->path, sizeof(self->path), "%s/file", self->dir);
	mkdir(self->dir, 0755);
	if (!variant->mkfs) {
		ASSERT_EQ(mount("hmm_file", self->dir, variant->fs, 0,
				variant->options), 0);
	} else {
		ASSERT_EQ(run("truncate -s 64M " TOP "/image"), 0);
		if (run("%s " TOP "/image >/dev/null", variant->mkfs))
			SKIP(return, "%s fails", variant->mkfs);
		ASSERT_EQ(mount_image(TOP "/image", self->dir, variant->fs,
				      NULL), 0);
	}
	ASSERT_EQ(chmod(self->dir, 0755), 0);
	ASSERT_EQ(chmod(DEVICE, 0666), 0);
	ASSERT_TRUE(set_switch("1"));
}

FIXTURE_TEARDOWN(place)
{
	device_flags(self->dev, 0);
	close(self->dev);
	set_switch("1");
	chmod(DEVICE, 0600);
	umount(self->dir);
	unlink(TOP "/image");
}

enum kind {
	FILE_PATH,	/* opened by who migrates */
	FILE_FD,	/* opened by root */
	MEMFD,
	SHM,
};

static const struct who {
	const char *what;
	enum kind kind;
	uid_t owner;
	mode_t mode;
	int open;
	int flags;		/* of mmap() */
	unsigned int seals;
	unsigned long exec;	/* pages that root maps executable */
	bool off;		/* by the administrator's switch */
	long pages;
} who[] = {
	{ "another's", FILE_PATH, 0, 0644, O_RDONLY, MAP_SHARED },
	{ "another's, private", FILE_PATH, 0, 0644, O_RDONLY, MAP_PRIVATE },
	{ "one's own", FILE_PATH, USER, 0400, O_RDONLY, MAP_SHARED,
	  .pages = PAGES },
	{ "one's own, private", FILE_PATH, USER, 0400, O_RDONLY, MAP_PRIVATE,
	  .pages = PAGES },
	{ "could be written", FILE_PATH, 0, 0666, O_RDONLY, MAP_SHARED,
	  .pages = PAGES },
	{ "executed", FILE_PATH, USER, 0600, O_RDWR, MAP_SHARED,
	  .exec = PAGES },
	{ "one page executed", FILE_PATH, USER, 0600, O_RDWR, MAP_SHARED,
	  .exec = 1, .pages = PAGES - 1 },
	{ "switched off", FILE_PATH, USER, 0600, O_RDWR, MAP_SHARED,
	  .off = true },
	{ "passed for writing", FILE_FD, 0, 0600, O_RDWR, MAP_SHARED,
	  .pages = PAGES },
	{ "passed for reading", FILE_FD, 0, 0600, O_RDONLY, MAP_SHARED },
	{ "memfd", MEMFD, 0, 0777, O_RDWR, MAP_SHARED, .pages = PAGES },
	{ "memfd for reading", MEMFD, 0, 0777, O_RDONLY, MAP_SHARED },
	{ "memfd of fixed size", MEMFD, 0, 0777, O_RDWR, MAP_SHARED,
	  .seals = F_SEAL_SHRINK },
	{ "memfd of fixed contents", MEMFD, USER, 0777, O_RDONLY, MAP_SHARED,
	  .seals = F_SEAL_WRITE },
	{ "shm", SHM, 0, 0666, O_RDWR, .pages = PAGES },
	{ "shm for reading", SHM, 0, 0666, O_RDONLY },
};

/* A descriptor, or the segment's number */
static int make(const struct who *w, const char *path)
{
	char *page = calloc(1, psize()), name[32];
	int fd, other;

	if (w->kind == SHM)
		return shmget(IPC_PRIVATE, PAGES * psize(), IPC_CREAT | w->mode);
	unlink(path);
	fd = w->kind == MEMFD ? (int)memfd_create("file", MFD_ALLOW_SEALING) :
				open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
	for (unsigned long i = 0; i < PAGES; i++)
		pwrite(fd, page, psize(), i * psize());
	free(page);
	if (fsync(fd) || fchmod(fd, w->mode) || fchown(fd, w->owner, w->owner) ||
	    (w->seals && fcntl(fd, F_ADD_SEALS, w->seals)))
		return -1;
	if (w->open == O_RDWR)
		return fd;
	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	other = open(name, O_RDONLY);
	close(fd);
	return other;
}

/* As a process without privileges: what migrate() returns, plus 1 */
static int migrate_as_user(const struct who *w, const char *path, int object)
{
	int dev, fd = object;
	char *p;

	if (setgroups(0, NULL) || setresgid(USER, USER, USER) ||
	    setresuid(USER, USER, USER))
		return BROKEN;
	dev = open(DEVICE, O_RDWR);
	if (w->kind == FILE_PATH)
		fd = open(path, w->open);
	if (dev < 0 || fd < 0)
		return BROKEN + 1;
	if (w->kind == SHM)
		p = shmat(object, NULL, w->open == O_RDWR ? 0 : SHM_RDONLY);
	else
		p = mmap(NULL, PAGES * psize(), PROT_READ, w->flags, fd, 0);
	if (p == MAP_FAILED)
		return BROKEN + 2;
	return migrate(dev, p, PAGES, w->pages, true) + 1;
}

TEST_F_TIMEOUT(place, who, TIMEOUT)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(who); i++) {
		const struct who *w = &who[i];
		int status, object;
		char *exec = NULL;
		pid_t pid;

		/* These have no place. */
		if (variant->mkfs && (w->kind == MEMFD || w->kind == SHM))
			continue;
		object = make(w, self->path);
		ASSERT_GE(object, 0);
		if (w->exec) {
			exec = mmap(NULL, w->exec * psize(),
				    PROT_READ | PROT_EXEC, MAP_PRIVATE, object,
				    0);
			ASSERT_NE(exec, MAP_FAILED);
		}
		ASSERT_TRUE(set_switch(w->off ? "0" : "1"));
		pid = fork();
		if (!pid)
			_exit(migrate_as_user(w, self->path, object));
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		EXPECT_EQ(WEXITSTATUS(status), w->pages + 1) {
			TH_LOG("%s", w->what);
		}
		if (exec)
			munmap(exec, w->exec * psize());
		if (w->kind == SHM)
			shmctl(object, IPC_RMID, NULL);
		else
			close(object);
	}
}

/* By whom the driver is called counts only if the memory is theirs. */
TEST_F_TIMEOUT(place, for_another_process, TIMEOUT)
{
	const struct who w = { "", FILE_FD, 0, 0644, O_RDWR };
	int status, fd = make(&w, self->path);

	ASSERT_GE(fd, 0);
	for (int write = 0; write < 2; write++) {
		const long want = write ? PAGES : 0;
		int file = open(self->path, write ? O_RDWR : O_RDONLY);
		char *p = mmap(NULL, PAGES * psize(), PROT_READ, MAP_SHARED,
			       file, 0);
		pid_t pid;

		ASSERT_NE(p, MAP_FAILED);
		touch(p, PAGES);
		pid = fork();
		if (!pid)
			_exit(migrate(self->dev, p, PAGES, want, false) + 1);
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT_EQ(WEXITSTATUS(status), want + 1);
		munmap(p, PAGES * psize());
		close(file);
	}
	close(fd);
}

/* A huge page is split only if its pages may go. */
TEST_F_TIMEOUT(place, huge, TIMEOUT)
{
	const size_t size = read_pmd_pagesize();
	char *area, *p;
	int fd;

	/* Only tmpfs promises them. */
	if (variant->mkfs)
		return;
	if (!size)
		SKIP(return, "no huge pages");
	fd = open(self->path, O_RDWR | O_CREAT, 0600);
	ASSERT_GE(fd, 0);
	if (size > 32 << 20 || ftruncate(fd, size))
		SKIP(return, "huge pages are too large");
	area = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(area, MAP_FAILED);
	p = (char *)(((uintptr_t)area + size - 1) & ~(size - 1));
	ASSERT_EQ(mmap(p, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		       fd, 0), p);
	ASSERT_EQ(madvise(p, size, MADV_HUGEPAGE), 0);
	memset(p, 1, size);
	if (!check_huge_shmem(p, size, 1, size))
		SKIP(return, "no huge page");

	ASSERT_TRUE(set_switch("0"));
	EXPECT_EQ(migrate(self->dev, p, PAGES, 0, true), 0);
	EXPECT_TRUE(check_huge_shmem(p, size, 1, size));
	ASSERT_TRUE(set_switch("1"));
	device_flags(self->dev, HMM_DMIRROR_FLAG_NO_FILES);
	EXPECT_EQ(migrate(self->dev, p, PAGES, 0, true), 0);
	EXPECT_EQ(migrate(self->dev, p, size / psize(), 0, true), 0);
	EXPECT_TRUE(check_huge_shmem(p, size, 1, size));
	device_flags(self->dev, 0);
	EXPECT_EQ(migrate(self->dev, p, PAGES, PAGES, true), PAGES);
	EXPECT_FALSE(check_huge_shmem(p, size, 1, size));
	for (size_t i = 0; i < size; i += psize())
		ASSERT_EQ(p[i], 1);
	munmap(area, 2 * size);
	close(fd);
}

struct migrator {
	int dev;
	char *p;
	char *mirror;
	unsigned long nr;
	bool again;
	atomic_bool stop;
};

static void *migrator(void *arg)
{
	struct migrator *m = arg;

	do {
		if (m->again)
			touch(m->p, m->nr);
		command(m->dev, HMM_DMIRROR_MIGRATE_TO_DEV, m->p, m->mirror,
			m->nr);
	} while (m->again && !atomic_load(&m->stop));
	atomic_store(&m->stop, true);
	return NULL;
}

/*
 * Write protection between what migrate_vma_setup() and the driver do: a write
 * by the device has to ask, which takes the protection away and shows.
 */
TEST_F_TIMEOUT(place, protect, TIMEOUT)
{
	const unsigned long nr = 512;
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_WP_ASYNC,
	};
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect wp = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	int fd = open(self->path, O_RDWR | O_CREAT, 0600);
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	struct migrator m = { .dev = self->dev, .nr = nr };
	unsigned long during = 0;
	pthread_t thread;
	char *buf;

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		SKIP(return, "userfaultfd: %s", strerror(errno));
	ASSERT_GE(pagemap, 0);
	ASSERT_EQ(ftruncate(fd, nr * psize()), 0);
	m.mirror = malloc(nr * psize());
	buf = malloc(nr * psize());
	memset(buf, 2, nr * psize());
	m.p = mmap(NULL, nr * psize(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(m.p, MAP_FAILED);
	reg.range.start = (uintptr_t)m.p;
	reg.range.len = nr * psize();
	wp.range = reg.range;
	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		SKIP(return, "no asynchronous write protection");

	for (int round = 0; round < 10; round++) {
		unsigned long protected = 0;

		memset(m.p, 1, nr * psize());
		atomic_store(&m.stop, false);
		ASSERT_EQ(pthread_create(&thread, NULL, migrator, &m), 0);
		while (!atomic_load(&m.stop) &&
		       (pagemap_get_entry(pagemap, m.p) & PM_PRESENT))
			;
		ASSERT_EQ(ioctl(uffd, UFFDIO_WRITEPROTECT, &wp), 0);
		during += !atomic_load(&m.stop);
		pthread_join(thread, NULL);
		ASSERT_EQ(command(self->dev, HMM_DMIRROR_WRITE, m.p, buf, nr), 0);
		for (unsigned long i = 0; i < nr; i++)
			protected += !!(pagemap_get_entry(pagemap,
							  m.p + i * psize()) &
					PM_UFFD_WP);
		ASSERT_EQ(protected, 0);
	}
	TH_LOG("%lu rounds protected during the migration", during);
	munmap(m.p, nr * psize());
	close(pagemap);
	close(uffd);
	close(fd);
	free(buf);
	free(m.mirror);
}

/* A file without holes has none while its pages come and go. */
TEST_F_TIMEOUT(place, seek_hole, TIMEOUT)
{
	const struct who w = { "", FILE_FD, 0, 0600, O_RDWR };
	struct migrator m = { .dev = self->dev, .nr = PAGES, .again = true };
	struct hmm_dmirror_stats before, now;
	unsigned long holes = 0, calls = 0;
	int fd = make(&w, self->path);
	pthread_t thread;

	ASSERT_GE(fd, 0);
	m.mirror = malloc(PAGES * psize());
	m.p = mmap(NULL, PAGES * psize(), PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(m.p, MAP_FAILED);
	ASSERT_EQ(ioctl(self->dev, HMM_DMIRROR_STATS, &before), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, migrator, &m), 0);
	do {
		for (int i = 0; i < 1000; i++, calls++)
			holes += lseek(fd, 0, SEEK_HOLE) !=
				 (off_t)(PAGES * psize());
		ioctl(self->dev, HMM_DMIRROR_STATS, &now);
	} while (now.recalls - before.recalls < 1000 * PAGES);
	atomic_store(&m.stop, true);
	pthread_join(thread, NULL);
	TH_LOG("%lu of %lu calls found a hole", holes, calls);
	ASSERT_EQ(holes, 0);
	munmap(m.p, PAGES * psize());
	close(fd);
	free(m.mirror);
}

TEST_HARNESS_MAIN
