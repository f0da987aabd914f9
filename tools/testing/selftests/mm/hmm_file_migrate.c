// SPDX-License-Identifier: GPL-2.0
/*
 * Which pages of files migrate to device private memory, for whom, and what others see
 * meanwhile.
 */
#define _GNU_SOURCE
#include <grp.h>
#include <pthread.h>
#include <sys/shm.h>
#include "hmm_file_util.h"

#define SWITCH		"/proc/sys/vm/device_file_pages"
#define USER		12345

FILES(place)
FS(place, tmpfs);
FS(place, ext4);

/*
 * Of PAGES pages, do @want go, and no more? What does not go is not even tried: the driver is
 * not asked for memory.
 */
static bool goes(char *p, long want)
{
	const unsigned long allocs = stats().allocs;

	if (!want)
		return stay(p, PAGES) && stats().allocs == allocs;
	return WAIT_FOR((touch(p, PAGES, false), try_migrate(p, PAGES), resident() == want));
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
	unsigned int seals;
	unsigned long exec;	/* pages that root maps executable */
	bool off;		/* by the administrator's switch */
} who[] = {
	{ "another's", PATH, 0, 0644, O_RDONLY },
	{ "one's own", PATH, USER, 0400, O_RDONLY, PAGES },
	{ "could be written", PATH, 0, 0666, O_RDONLY, PAGES },
	{ "executed", PATH, USER, 0600, O_RDWR, .exec = PAGES },
	{ "one page executed", PATH, USER, 0600, O_RDWR, PAGES - 1, .exec = 1 },
	{ "switched off", PATH, USER, 0600, O_RDWR, .off = true },
	{ "passed for writing", PASSED, 0, 0600, O_RDWR, PAGES },
	{ "memfd", MEMFD, 0, 0777, O_RDWR, PAGES },
	{ "memfd for reading", MEMFD, 0, 0777, O_RDONLY },
	{ "memfd of fixed size", MEMFD, 0, 0777, O_RDWR, .seals = F_SEAL_SHRINK },
	{ "memfd of fixed contents", MEMFD, USER, 0777, O_RDONLY, .seals = F_SEAL_WRITE },
	{ "shm", SHM, 0, 0666, O_RDWR, PAGES },
};

/* As a process that gives up its privileges */
static int goes_for_user(const struct who *w)
{
	char name[32], *p;
	int shm = -1;

	dev = open(DEVICE, O_RDWR);
	if (w->kind == MEMFD)
		fd = memfd_create("file", MFD_ALLOW_SEALING);
	if (!write_pages(0, PAGES, 1) || fsync(fd) || fchmod(fd, w->mode) ||
	    fchown(fd, w->owner, w->owner) || (w->seals && fcntl(fd, F_ADD_SEALS, w->seals)))
		return 2;
	if (w->kind == SHM) {
		/* It is mapped, to go with the process. */
		shm = shmget(IPC_PRIVATE, SIZE, IPC_CREAT | w->mode);
		if (shmat(shm, NULL, 0) == (void *)-1 || shmctl(shm, IPC_RMID, NULL))
			return 2;
	}
	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	if (w->open == O_RDONLY)
		fd = open(name, O_RDONLY);
	if (w->exec)
		map(0, w->exec, PROT_READ | PROT_EXEC, MAP_PRIVATE);
	if (setgroups(0, NULL) || setresgid(USER, USER, USER) || setresuid(USER, USER, USER))
		return 2;
	if (w->kind == PATH)
		fd = open(path, w->open);
	p = w->kind == SHM ? shmat(shm, NULL, 0) : map(0, PAGES, PROT_READ, MAP_SHARED);
	return p && p != (void *)-1 ? !goes(p, w->pages) : 2;
}

TEST_F_TIMEOUT(place, who, TIMEOUT)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(who); i++) {
		pid_t pid;

		/* These have no place. */
		if (fs->mkfs && (who[i].kind == MEMFD || who[i].kind == SHM))
			continue;
		ASSERT_TRUE(set_file(SWITCH, who[i].off ? "0" : "1"));
		pid = fork();
		if (!pid)
			_exit(goes_for_user(&who[i]));
		EXPECT_TRUE(ends_well(pid)) {
			TH_LOG("%s", who[i].what);
		}
	}
}

/* By whom the driver is called counts only if the memory is theirs. */
TEST_F_TIMEOUT(place, for_another_process, TIMEOUT)
{
	for (int write = 0; write < 2; write++) {
		int tries = 5;
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
		ASSERT_TRUE(ends_well(pid));
		munmap(p, SIZE);
	}
}

/* What is cached migrates, mapped or not, and comes back if the driver asks by address. */
TEST_F_TIMEOUT(place, cached, TIMEOUT)
{
	const int first = dev, other = open(OTHER_DEVICE, O_RDWR);
	char *p = map(0, PAGES, PROT_READ, MAP_SHARED);

	ASSERT_TRUE(WAIT_FOR((try_migrate(p, PAGES), resident() == PAGES)));
	ASSERT_TRUE(right(mirror, 0, PAGES, 1));
	dev = other;
	ASSERT_EQ(0, command(HMM_DMIRROR_MIGRATE_TO_SYS, p, mirror, PAGES));
	dev = first;
	ASSERT_EQ(PAGES, resident());
	ASSERT_EQ(0, command(HMM_DMIRROR_MIGRATE_TO_SYS, p, mirror, PAGES));
	EXPECT_EQ(0, resident());
	ASSERT_TRUE(read_right(0, PAGES, 1));
	EXPECT_EQ(0, recalls());

	/* Before the device writes, a file system with ->page_mkwrite() is asked. */
	p = map(0, PAGES, RW, MAP_SHARED);
	ASSERT_TRUE(WAIT_FOR((try_migrate(p, PAGES), resident() == PAGES)));
	fill(buf, 0, PAGES, 2);
	ASSERT_EQ(0, command(HMM_DMIRROR_WRITE, p, buf, PAGES));
	EXPECT_EQ(fs->mkfs ? PAGES : 0, recalls());
	ASSERT_TRUE(read_right(0, PAGES, 2));
}

/* A device that is going to write asks for that before pages migrate. */
TEST_F_TIMEOUT(place, written_later, TIMEOUT)
{
	char *p = map(0, PAGES, RW, MAP_SHARED);

	ASSERT_EQ(0, fsync(fd));
	ASSERT_TRUE(device_writes(p, 0, PAGES, 2));
	ASSERT_TRUE(WAIT_FOR((try_migrate(p, PAGES), resident() == PAGES)));
	ASSERT_TRUE(device_writes(p, 0, PAGES, 3));
	EXPECT_EQ(0, recalls());
	ASSERT_TRUE(read_right(0, PAGES, 3));
}

/* A huge page is split only if its pages may go. */
TEST_F_TIMEOUT(place, huge, TIMEOUT)
{
	const size_t size = read_pmd_pagesize();
	char *p;

	/* Only tmpfs promises them. */
	if (fs->mkfs)
		return;
	if (!new_file("tmpfs_advise") || !size || size > 32 << 20)
		SKIP(return, "no huge pages, or too large");
	ASSERT_EQ(0, ftruncate(fd, size));
	p = map_huge(size);
	fill(p, 0, size / psize(), 1);
	if (!check_huge_shmem(p, size, 1, size))
		SKIP(return, "no huge page");

	ASSERT_TRUE(set_file(SWITCH, "0"));
	EXPECT_TRUE(goes(p, 0));
	EXPECT_TRUE(check_huge_shmem(p, size, 1, size));
	ASSERT_TRUE(set_file(SWITCH, "1"));
	set_flags(HMM_DMIRROR_FLAG_NO_FILES);
	EXPECT_TRUE(goes(p, 0));
	command(HMM_DMIRROR_MIGRATE_TO_DEV, p, malloc(size), size / psize());
	EXPECT_EQ(0, resident());
	EXPECT_TRUE(check_huge_shmem(p, size, 1, size));
	set_flags(0);
	/* Its pages have no PTEs once it is split, and migrate all the same. */
	EXPECT_EQ(PAGES, try_migrate(p, PAGES));
	EXPECT_FALSE(check_huge_shmem(p, size, 1, size));
	ASSERT_TRUE(right(p, 0, size / psize(), 1));
}

#define RACING	512UL		/* pages */

static char *racing, *space;
static bool done;

static void *migrator(void *unused)
{
	command(HMM_DMIRROR_MIGRATE_TO_DEV, racing, space, RACING);
	__atomic_store_n(&done, true, __ATOMIC_SEQ_CST);
	return NULL;
}

/*
 * Write protection between what migrate_vma_setup() and the driver do: a write by the device has
 * to ask, which takes the protection away and shows.
 */
TEST_F_TIMEOUT(place, protect, TIMEOUT)
{
	const size_t size = RACING * psize();
	struct uffdio_writeprotect wp = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	int pagemap = open("/proc/self/pagemap", O_RDONLY), uffd;
	pthread_t thread;

	ASSERT_EQ(0, ftruncate(fd, size));
	space = malloc(size);
	racing = map(0, RACING, RW, MAP_SHARED);
	wp.range = (struct uffdio_range){ (uintptr_t)racing, size };
	uffd = new_uffd(UFFD_FEATURE_WP_ASYNC, racing, size, false, true, false);
	if (uffd < 0)
		SKIP(return, "no asynchronous write protection");

	for (int round = 0; round < 10; round++) {
		fill(racing, 0, RACING, 1);
		done = false;
		ASSERT_EQ(0, pthread_create(&thread, NULL, migrator, NULL));
		while (!__atomic_load_n(&done, __ATOMIC_SEQ_CST) &&
		       (pagemap_get_entry(pagemap, racing) & PM_PRESENT))
			;
		ASSERT_EQ(0, ioctl(uffd, UFFDIO_WRITEPROTECT, &wp));
		pthread_join(thread, NULL);
		ASSERT_EQ(0, command(HMM_DMIRROR_WRITE, racing, space, RACING));
		for (size_t at = 0; at < size; at += psize())
			ASSERT_EQ(0, pagemap_get_entry(pagemap, racing + at) & PM_UFFD_WP);
	}
}

/* A file without holes has none while its pages come and go. */
TEST_F_TIMEOUT(place, seek_hole, TIMEOUT)
{
	const pid_t pid = start_taking(map(0, PAGES, PROT_READ, MAP_SHARED), PAGES);
	unsigned long holes = 0;

	do {
		for (int i = 0; i < 1000; i++)
			holes += lseek(fd, 0, SEEK_HOLE) != SIZE;
	} while (recalls() < 1000 * (long)PAGES);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	ASSERT_EQ(0, holes);
}

HMM_FILE_MAIN
