// SPDX-License-Identifier: GPL-2.0
/*
 * Which pages of files migrate to device private memory, for whom, and what
 * others see meanwhile.
 */
#define _GNU_SOURCE
#include <grp.h>
#include <pthread.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <linux/userfaultfd.h>

#include "kselftest_harness.h"
#include "hmm_file_util.h"

#define SWITCH		"/proc/sys/vm/device_file_pages"
#define USER		12345
/* What a child that could not begin ends with */
#define BROKEN		200

FIXTURE(place) { };
FIXTURE_VARIANT(place) { const char *fs; };
FIXTURE_VARIANT_ADD(place, tmpfs) { "tmpfs" };
FIXTURE_VARIANT_ADD(place, ext4) { "ext4" };

FIXTURE_SETUP(place)
{
	const char *reason = new_file(variant->fs);

	if (reason)
		SKIP(return, "%s: %s", variant->fs, reason);
	ASSERT_EQ(0, chmod(DEVICE, 0666));
	ASSERT_TRUE(set_file(SWITCH, "1"));
	ASSERT_TRUE(write_pages(0, PAGES, 1));
	ASSERT_EQ(0, fsync(fd));
}

FIXTURE_TEARDOWN(place)
{
	set_file(SWITCH, "1");
	chmod(DEVICE, 0600);
	EXPECT_TRUE(end_file());
}

/*
 * Of PAGES pages, do @want go, and no more? What does not go is not even tried:
 * the driver is not asked for memory.
 */
static bool goes(char *p, long want)
{
	const unsigned long allocs = stats().allocs;

	if (!want)
		return stay(p, PAGES) && stats().allocs == allocs;
	return WAIT_FOR((touch(p, PAGES, false), try_migrate(p, PAGES),
			 resident() == want));
}

enum kind {
	PATH,		/* opened by who migrates */
	PASSED,		/* a file that root has opened */
	MEMFD,
	SHM,
};

static const struct who {
	const char *what;
	enum kind kind;
	uid_t owner;
	mode_t mode;
	int open;
	long pages;
	int flags;		/* of mmap(), MAP_SHARED if 0 */
	unsigned int seals;
	unsigned long exec;	/* pages that root maps executable */
	bool off;		/* by the administrator's switch */
} who[] = {
	{ "another's", PATH, 0, 0644, O_RDONLY },
	{ "another's, private", PATH, 0, 0644, O_RDONLY, .flags = MAP_PRIVATE },
	{ "one's own", PATH, USER, 0400, O_RDONLY, PAGES },
	{ "one's own, private", PATH, USER, 0400, O_RDONLY, PAGES, MAP_PRIVATE },
	{ "could be written", PATH, 0, 0666, O_RDONLY, PAGES },
	{ "executed", PATH, USER, 0600, O_RDWR, .exec = PAGES },
	{ "one page executed", PATH, USER, 0600, O_RDWR, PAGES - 1, .exec = 1 },
	{ "switched off", PATH, USER, 0600, O_RDWR, .off = true },
	{ "passed for writing", PASSED, 0, 0600, O_RDWR, PAGES },
	{ "passed for reading", PASSED, 0, 0600, O_RDONLY },
	{ "memfd", MEMFD, 0, 0777, O_RDWR, PAGES },
	{ "memfd for reading", MEMFD, 0, 0777, O_RDONLY },
	{ "memfd of fixed size", MEMFD, 0, 0777, O_RDWR, .seals = F_SEAL_SHRINK },
	{ "memfd of fixed contents", MEMFD, USER, 0777, O_RDONLY, .seals = F_SEAL_WRITE },
	{ "shm", SHM, 0, 0666, O_RDWR, PAGES },
	{ "shm for reading", SHM, 0, 0666, O_RDONLY },
};

/* fd, or the segment's number */
static int make(const struct who *w)
{
	char name[32];

	if (w->kind == SHM)
		return shmget(IPC_PRIVATE, SIZE, IPC_CREAT | w->mode);
	if (new_file(NULL))
		return -1;
	if (w->kind == MEMFD)
		fd = memfd_create("file", MFD_ALLOW_SEALING);
	if (!write_pages(0, PAGES, 1) || fsync(fd) || fchmod(fd, w->mode) ||
	    fchown(fd, w->owner, w->owner) ||
	    (w->seals && fcntl(fd, F_ADD_SEALS, w->seals)))
		return -1;
	if (w->open == O_RDONLY) {
		snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
		fd = open(name, O_RDONLY);
	}
	return fd;
}

/* As a process without privileges */
static int goes_for_user(const struct who *w, int object)
{
	char *p;

	if (setgroups(0, NULL) || setresgid(USER, USER, USER) ||
	    setresuid(USER, USER, USER))
		return BROKEN;
	dev = open(DEVICE, O_RDWR);
	if (w->kind == PATH)
		fd = open(path, w->open);
	if (dev < 0 || fd < 0)
		return BROKEN + 1;
	p = w->kind == SHM ? shmat(object, NULL, w->open == O_RDWR ? 0 : SHM_RDONLY) :
			     map(0, PAGES, PROT_READ, w->flags ?: MAP_SHARED);
	return p && p != (void *)-1 ? !goes(p, w->pages) : BROKEN + 2;
}

TEST_F_TIMEOUT(place, who, TIMEOUT)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(who); i++) {
		const struct who *w = &who[i];
		char *exec = NULL;
		int object, status;
		pid_t pid;

		/* These have no place. */
		if (fs->mkfs && (w->kind == MEMFD || w->kind == SHM))
			continue;
		object = make(w);
		ASSERT_GE(object, 0);
		if (w->exec)
			exec = map(0, w->exec, PROT_READ | PROT_EXEC, MAP_PRIVATE);
		ASSERT_TRUE(set_file(SWITCH, w->off ? "0" : "1"));
		pid = fork();
		if (!pid)
			_exit(goes_for_user(w, object));
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		EXPECT_EQ(0, WEXITSTATUS(status)) {
			TH_LOG("%s", w->what);
		}
		if (exec)
			munmap(exec, w->exec * psize());
		if (w->kind == SHM)
			shmctl(object, IPC_RMID, NULL);
	}
}

/* By whom the driver is called counts only if the memory is theirs. */
TEST_F_TIMEOUT(place, for_another_process, TIMEOUT)
{
	for (int write = 0; write < 2; write++) {
		int status, tries = 5;
		pid_t pid;
		char *p;

		fd = open(path, write ? O_RDWR : O_RDONLY);
		p = map(0, PAGES, PROT_READ, MAP_SHARED);
		ASSERT_NE(NULL, p);
		touch(p, PAGES, false);
		pid = fork();
		/* Touched there, pages would come back. */
		if (!pid)
			_exit(!WAIT_FOR((try_migrate(p, PAGES),
					 write ? resident() == PAGES : !tries--)) ||
			      (!write && resident()));
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		ASSERT_EQ(0, WEXITSTATUS(status));
		munmap(p, SIZE);
	}
}

/* A huge page is split only if its pages may go. */
TEST_F_TIMEOUT(place, huge, TIMEOUT)
{
	const size_t size = read_pmd_pagesize();
	const char *reason;
	char *area, *p;

	/* Only tmpfs promises them. */
	if (fs->mkfs)
		return;
	reason = new_file("tmpfs_advise");
	if (reason || !size || size > 32 << 20)
		SKIP(return, "%s", reason ?: "no huge pages, or too large");
	ASSERT_EQ(0, ftruncate(fd, size));
	area = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	p = (char *)(((uintptr_t)area + size - 1) & ~(size - 1));
	ASSERT_EQ(p, mmap(p, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0));
	ASSERT_EQ(0, madvise(p, size, MADV_HUGEPAGE));
	fill(p, 0, size / psize(), 1);
	if (!check_huge_shmem(p, size, 1, size))
		SKIP(return, "no huge page");

	ASSERT_TRUE(set_file(SWITCH, "0"));
	EXPECT_TRUE(goes(p, 0));
	EXPECT_TRUE(check_huge_shmem(p, size, 1, size));
	ASSERT_TRUE(set_file(SWITCH, "1"));
	set_flags(HMM_DMIRROR_FLAG_NO_FILES);
	EXPECT_TRUE(goes(p, 0));
	area = malloc(size);
	command(HMM_DMIRROR_MIGRATE_TO_DEV, p, area, size / psize());
	EXPECT_EQ(0, resident());
	EXPECT_TRUE(check_huge_shmem(p, size, 1, size));
	set_flags(0);
	EXPECT_TRUE(migrate(p, PAGES, false));
	EXPECT_FALSE(check_huge_shmem(p, size, 1, size));
	ASSERT_TRUE(right(p, 0, size / psize(), 1));
}

/* What is on the device already stays there, and mapped by it. */
TEST_F_TIMEOUT(place, twice, TIMEOUT)
{
	char *p = map(0, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED);

	ASSERT_TRUE(migrate(p, PAGES, true));
	ASSERT_TRUE(device_writes(p, 0, PAGES, 2));
	ASSERT_EQ(0, try_migrate(p, PAGES));
	ASSERT_EQ(0, command(HMM_DMIRROR_READ, p, mirror, PAGES));
	ASSERT_TRUE(right(mirror, 0, PAGES, 2));
	ASSERT_EQ(0, recalls());
	ASSERT_EQ(PAGES, resident());
}

struct migrator {
	char *p, *mirror;
	unsigned long nr;
	bool again, stop;
};

static void *migrator(void *arg)
{
	struct migrator *m = arg;

	do {
		if (m->again)
			touch(m->p, m->nr, false);
		command(HMM_DMIRROR_MIGRATE_TO_DEV, m->p, m->mirror, m->nr);
	} while (m->again && !__atomic_load_n(&m->stop, __ATOMIC_SEQ_CST));
	__atomic_store_n(&m->stop, true, __ATOMIC_SEQ_CST);
	return NULL;
}

/*
 * Write protection between what migrate_vma_setup() and the driver do: a write
 * by the device has to ask, which takes the protection away and shows.
 */
TEST_F_TIMEOUT(place, protect, TIMEOUT)
{
	const unsigned long nr = 512;
	struct uffdio_api api = { UFFD_API, UFFD_FEATURE_WP_ASYNC };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect wp = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	struct migrator m = { .nr = nr };
	unsigned long during = 0;
	pthread_t thread;
	char *all;

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		SKIP(return, "userfaultfd: %s", strerror(errno));
	ASSERT_EQ(0, ftruncate(fd, nr * psize()));
	m.mirror = malloc(nr * psize());
	all = malloc(nr * psize());
	fill(all, 0, nr, 2);
	m.p = map(0, nr, PROT_READ | PROT_WRITE, MAP_SHARED);
	reg.range.start = (uintptr_t)m.p;
	reg.range.len = nr * psize();
	wp.range = reg.range;
	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		SKIP(return, "no asynchronous write protection");

	for (int round = 0; round < 10; round++) {
		fill(m.p, 0, nr, 1);
		m.stop = false;
		ASSERT_EQ(0, pthread_create(&thread, NULL, migrator, &m));
		while (!__atomic_load_n(&m.stop, __ATOMIC_SEQ_CST) &&
		       (pagemap_get_entry(pagemap, m.p) & PM_PRESENT))
			;
		ASSERT_EQ(0, ioctl(uffd, UFFDIO_WRITEPROTECT, &wp));
		during += !__atomic_load_n(&m.stop, __ATOMIC_SEQ_CST);
		pthread_join(thread, NULL);
		ASSERT_EQ(0, command(HMM_DMIRROR_WRITE, m.p, all, nr));
		for (unsigned long i = 0; i < nr; i++)
			ASSERT_EQ(0, pagemap_get_entry(pagemap, m.p + i * psize()) &
				     PM_UFFD_WP);
	}
	TH_LOG("%lu rounds protected during the migration", during);
}

/* A file without holes has none while its pages come and go. */
TEST_F_TIMEOUT(place, seek_hole, TIMEOUT)
{
	struct migrator m = {
		.p = map(0, PAGES, PROT_READ, MAP_SHARED),
		.mirror = mirror,
		.nr = PAGES,
		.again = true,
	};
	unsigned long holes = 0, calls = 0;
	pthread_t thread;

	ASSERT_EQ(0, pthread_create(&thread, NULL, migrator, &m));
	do {
		for (int i = 0; i < 1000; i++, calls++)
			holes += lseek(fd, 0, SEEK_HOLE) != SIZE;
	} while (recalls() < 1000 * (long)PAGES);
	__atomic_store_n(&m.stop, true, __ATOMIC_SEQ_CST);
	pthread_join(thread, NULL);
	ASSERT_EQ(0, holes) {
		TH_LOG("%lu of %lu calls found a hole", holes, calls);
	}
}

HMM_FILE_MAIN
