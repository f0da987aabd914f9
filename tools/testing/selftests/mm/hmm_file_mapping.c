// SPDX-License-Identifier: GPL-2.0
/*
 * Mappings of pages of files in device private memory: who takes pages from
 * them, and what does not migrate.
 */
#define _GNU_SOURCE
#include <sys/sendfile.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <linux/userfaultfd.h>

#include "hmm_file_op.h"
#include <mm/gup_test.h>

FILES(mapping)
FS(mapping, tmpfs);
FS(mapping, ext4);

OP(mapping, mlock, SYSTEM, 0, NONE)
{
	p = map(0, PAGES, PROT_READ, MAP_SHARED);
	ASSERT_EQ(0, mlock(p, SIZE));
	ASSERT_TRUE(stay(p, PAGES));
}

/* Another mapping, at another offset: the device notices what that does. */
OP(mapping, two_mappings, WRITTEN, ANY, MAPPED | READ)
{
	char *q = map(2, 4, PROT_READ | PROT_WRITE, MAP_SHARED);

	ASSERT_TRUE(right(q, 2, 4, 2));
	ASSERT_EQ(4, recalls());
	fill(q, 2, 4, 3);
	fill(model + 2 * psize(), 2, 4, 3);
	ASSERT_EQ(0, command(HMM_DMIRROR_READ, p, mirror, PAGES));
	ASSERT_TRUE(same(mirror));
}

static bool child_fills(char *p)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		if (!same(p))
			_exit(1);
		fill(p, 0, PAGES, 3);
		_exit(!right(p, 0, PAGES, 3));
	}
	return waitpid(pid, &status, 0) == pid && !status;
}

/* Others have it mapped, and change it; */
OP(mapping, processes, WRITTEN, ANY, MAPPED | READ)
{
	ASSERT_TRUE(child_fills(p));
	fill(model, 0, PAGES, 3);
	ASSERT_TRUE(same(p));
	ASSERT_TRUE(migrate(p, PAGES, false));
	ASSERT_TRUE(same(mirror));
}

/* or have a copy, which is their own. */
OP(mapping, private, PRIVATE, ANY, READ)
{
	ASSERT_TRUE(child_fills(p));
	ASSERT_TRUE(same(p));
	fill(p, 0, 4, 7);
	ASSERT_TRUE(migrate(p, PAGES, false));
	ASSERT_TRUE(right(mirror, 0, 4, 7));
	fill(p + 4 * psize(), 4, 4, 7);
	ASSERT_TRUE(right(p, 0, 8, 7));
	ASSERT_TRUE(right(p + 8 * psize(), 8, PAGES - 8, 1));
}

/* Who writes to protected pages is to be told, also when they have been away. */
OP(mapping, uffd_wp, WRITTEN, PAGES, MAPPED)
{
	struct uffdio_api api = { UFFD_API, UFFD_FEATURE_WP_ASYNC };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect wp = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	int pagemap = open("/proc/self/pagemap", O_RDONLY);

	ASSERT_TRUE(same(p));
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_API, &api));
	reg.range.start = (uintptr_t)p;
	reg.range.len = SIZE;
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_REGISTER, &reg));
	wp.range.start = (uintptr_t)p;
	wp.range.len = SIZE / 4;
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_WRITEPROTECT, &wp));
	ASSERT_TRUE(migrate(p, PAGES, false));
	for (int back = 0; back < 2; back++) {
		for (unsigned long i = 0; i < PAGES; i++)
			ASSERT_EQ(i < PAGES / 4,
				  !!(pagemap_get_entry(pagemap, p + i * psize()) &
				     PM_UFFD_WP));
		ASSERT_TRUE(same(p));
	}
}

/* GUP has no PTE to take a page from: by a fault, */
OP(mapping, populate, WRITTEN, PAGES, MAPPED)
{
	ASSERT_EQ(0, madvise(p, SIZE, MADV_POPULATE_READ));
}

/* by the fast way, */
OP(mapping, vmsplice, WRITTEN, PAGES, MAPPED)
{
	int ends[2];

	ASSERT_EQ(0, pipe(ends));
	for (unsigned long i = 0; i < PAGES; i++) {
		struct iovec iov = { p + i * psize(), psize() };

		ASSERT_EQ(psize(), vmsplice(ends[1], &iov, 1, 0));
		ASSERT_EQ(i + 1, recalls());
		/* The pipe has a reference to it. */
		ASSERT_TRUE(stay(iov.iov_base, 1));
		ASSERT_EQ(psize(), read(ends[0], buf + i * psize(), psize()));
	}
	ASSERT_TRUE(same(buf));
}

/* for long, */
OP(mapping, longterm_pin, CLEAN, ANY, MAPPED)
{
	struct pin_longterm_test pin = { (uintptr_t)p, SIZE };
	int gup = open("/sys/kernel/debug/gup_test", O_RDWR);
	uint64_t dest = (uintptr_t)buf;

	if (gup < 0)
		SKIP(return, "no CONFIG_GUP_TEST");
	ASSERT_EQ(0, ioctl(gup, PIN_LONGTERM_TEST_START, &pin));
	ASSERT_EQ(PAGES, recalls());
	ASSERT_TRUE(stay(p, PAGES));
	ASSERT_EQ(0, ioctl(gup, PIN_LONGTERM_TEST_READ, &dest));
	ASSERT_TRUE(same(buf));
	ASSERT_EQ(0, ioctl(gup, PIN_LONGTERM_TEST_STOP));
	ASSERT_TRUE(migrate(p, PAGES, false));
}

/* and for I/O, from and to a mapping. */
OP(mapping, direct_io_buffer, WRITTEN, PAGES, MAPPED | READ)
{
	int direct = open(dir, O_RDWR | O_TMPFILE | O_DIRECT, 0600);

	ASSERT_EQ(SIZE, pwrite(direct, p, SIZE, 0));
	ASSERT_EQ(PAGES, recalls());
	ASSERT_EQ(SIZE, pread(direct, buf, SIZE, 0));
	ASSERT_TRUE(same(buf));
	fill(model, 0, PAGES, 3);
	memcpy(buf, model, SIZE);
	ASSERT_EQ(SIZE, pwrite(direct, buf, SIZE, 0));
	ASSERT_TRUE(migrate(p, PAGES, true));
	ASSERT_EQ(SIZE, pread(direct, p, SIZE, 0));
	ASSERT_EQ(0, resident());
}

#if defined(__x86_64__)
#define NOP	"\x90"
#elif defined(__aarch64__)
#define NOP	"\x1f\x20\x03\xd5"
#else
#define NOP	""
#endif

/*
 * To remove a breakpoint, uprobes look whether the page of the file is the same
 * as theirs, under the page table lock.
 */
OP(mapping, uprobe, SYSTEM, 0, NONE)
{
	const char *events = "/sys/kernel/tracing/uprobe_events";
	const char *enable = "/sys/kernel/tracing/events/hmm_file/t/enable";
	const size_t len = strlen(NOP);
	char event[160], *q;

	if (!len)
		return;
	for (size_t at = 0; at < psize(); at += len)
		ASSERT_EQ(len, pwrite(fd, NOP, len, at));
	/* What is executable does not migrate; that it could be is enough here. */
	q = map(0, 1, PROT_READ, MAP_PRIVATE);
	p = map(0, 1, PROT_READ, MAP_SHARED);
	ASSERT_TRUE(migrate(p, 1, false));
	if (access(events, F_OK))
		mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL);
	snprintf(event, sizeof(event), "p:hmm_file/t %s:0x40", path);
	ASSERT_TRUE(set_file(events, event));
	ASSERT_TRUE(set_file(enable, "1"));
	ASSERT_NE(0, memcmp(q + 64, NOP, len));
	ASSERT_EQ(0, memcmp(p + 64, NOP, len));
	ASSERT_TRUE(migrate(p, 1, false));
	ASSERT_TRUE(set_file(enable, "0"));
	ASSERT_TRUE(set_file(events, "-:hmm_file/t"));
	ASSERT_EQ(1, resident());
	ASSERT_EQ(0, memcmp(q + 64, NOP, len));
}

OP(mapping, build_id, SYSTEM, ANY, NONE)
{
	struct procmap_query query = { .size = sizeof(query) };
	int maps = open("/proc/self/maps", O_RDONLY);
	int exe = open("/proc/self/exe", O_RDONLY);

	while (sendfile(fd, exe, NULL, 1 << 20) > 0)
		;
	ASSERT_EQ(0, fsync(fd));
	p = map(0, PAGES, PROT_READ, MAP_SHARED);
	ASSERT_TRUE(migrate(p, PAGES, false));
	memset(buf, 0, 40);
	query.query_addr = (uintptr_t)p;
	for (int back = 0; back < 2; back++) {
		query.build_id_size = 20;
		query.build_id_addr = (uintptr_t)buf + back * 20;
		ASSERT_EQ(0, ioctl(maps, PROCMAP_QUERY, &query));
		ASSERT_NE(0, query.build_id_size);
		ASSERT_GT(recalls(), 0);
	}
	ASSERT_EQ(0, memcmp(buf, buf + 20, 20));
}

/* What does not migrate stays, with no harm. */
static char *map_hugetlb(void)
{
	/* As many as the mapping takes */
	set_file("/proc/sys/vm/nr_hugepages", "2");
	fd = memfd_create("hmm_file", MFD_HUGETLB);
	return ftruncate(fd, 2 << 20) ? NULL :
		map(0, (2 << 20) / psize(), PROT_READ | PROT_WRITE, MAP_SHARED);
}

static char *map_secret(void)
{
	fd = syscall(447 /* memfd_secret */, 0);
	return ftruncate(fd, SIZE) ? NULL :
		map(0, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED);
}

static char *map_locked(void)
{
	int shm = shmget(IPC_PRIVATE, SIZE, IPC_CREAT | 0600);
	char *p = shmat(shm, NULL, 0);

	return shmctl(shm, SHM_LOCK, NULL) || shmctl(shm, IPC_RMID, NULL) ? NULL : p;
}

static char *map_file(void)
{
	return write_pages(0, PAGES, 1) && !fsync(fd) ?
		map(0, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED) : NULL;
}

FIXTURE(refused) { };
FIXTURE_VARIANT(refused)
{
	const char *fs;
	char *(*map)(void);
};

FIXTURE_VARIANT_ADD(refused, hugetlb) { "tmpfs", map_hugetlb };
FIXTURE_VARIANT_ADD(refused, secretmem) { "tmpfs", map_secret };
FIXTURE_VARIANT_ADD(refused, shm_lock) { "tmpfs", map_locked };
FIXTURE_VARIANT_ADD(refused, ramfs) { "ramfs", map_file };
FIXTURE_VARIANT_ADD(refused, ext2) { "ext2", map_file };
FIXTURE_SETUP(refused) { }
FIXTURE_TEARDOWN(refused) { set_file("/proc/sys/vm/nr_hugepages", "0"); }

TEST_F(refused, stays)
{
	const char *reason = new_file(variant->fs);
	char *p = reason ? NULL : variant->map();

	if (!p)
		SKIP(return, "%s", reason ?: "no such memory");
	fill(p, 0, PAGES, 1);
	ASSERT_TRUE(stay(p, PAGES));
	ASSERT_TRUE(right(p, 0, PAGES, 1));
	ASSERT_EQ(stats().recalls, before.recalls);
}

HMM_FILE_MAIN
