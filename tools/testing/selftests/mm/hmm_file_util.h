/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of pages of files in device private memory share. Each test is a process with
 * one device, that of lib/test_hmm.c, and one file.
 */
#ifndef HMM_FILE_UTIL_H
#define HMM_FILE_UTIL_H

#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <time.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <linux/loop.h>
#include <linux/mman.h>
#include <linux/userfaultfd.h>
#include <lib/test_hmm_uapi.h>
#include "kselftest_harness.h"
#include "vm_util.h"

/* <sys/mount.h> does not go with <linux/mount.h>, which others include. */
int mount(const char *source, const char *target, const char *type, unsigned long flags,
	  const void *data);
int umount(const char *target);

#define DEVICE		"/dev/hmm_dmirror0"
#define OTHER_DEVICE	"/dev/hmm_dmirror1"
#define WRITEBACK	"/proc/sys/vm/dirty_writeback_centisecs"
#define EXPIRE		"/proc/sys/vm/dirty_expire_centisecs"
#define DROP_CACHES	"/proc/sys/vm/drop_caches"
#define TOP		"/tmp/hmm_file"
#define CGROUP		TOP "/cgroup/"
#define CGROUP_A	CGROUP "a/"
#define CGROUP_B	CGROUP "b/"
#define PAGES		16UL
#define SIZE		(PAGES * psize())
#define RW		(PROT_READ | PROT_WRITE)
/* In seconds, also for an emulated machine with KASAN: a test, and a wait in it */
#define TIMEOUT		300
#define PATIENCE	60

static const struct fs {
	const char *name, *type, *options;
	unsigned int mib;
	const char *mkfs;	/* NULL: no disk */
} filesystems[] = {
	{ "tmpfs", "tmpfs", "size=80m" },
	{ "tmpfs_huge", "tmpfs", "size=80m,huge=always" },
	{ "tmpfs_advise", "tmpfs", "size=80m,huge=advise" },
	{ "ext4", "ext4", NULL, 64, "mkfs.ext4 -q -F -b 4096" },
	{ "ext4_1k", "ext4", NULL, 64, "mkfs.ext4 -q -F -b 1024" },
	{ "ext4_journal", "ext4", "data=journal", 64, "mkfs.ext4 -q -F" },
	{ "xfs", "xfs", NULL, 320, "mkfs.xfs -q -f" },
	{ "btrfs", "btrfs", NULL, 512, "mkfs.btrfs -q -f -s 4096" },
	{ "btrfs_zlib", "btrfs", "compress-force=zlib", 512, "mkfs.btrfs -q -f -s 4096" },
	{ "ext2", "ext2", NULL, 16, "mkfs.ext4 -t ext2 -q -F" },
	{ "ramfs", "ramfs" },
	{ }
};

static int dev = -1, fd = -1;
static const struct fs *fs;
static char dir[96], path[112], image[112];
static char *buf, *mirror;	/* SIZE bytes for whatever, and for the device */
static struct hmm_dmirror_stats before;

/* Wait until @condition, or for PATIENCE */
#define WAIT_FOR(condition)						\
({									\
	time_t end_ = time(NULL) + PATIENCE;				\
	bool is_;							\
									\
	while (!(is_ = (condition)) && time(NULL) < end_)		\
		usleep(10000);						\
	is_;								\
})

static sigjmp_buf fault_jmp;

static inline void fault_handler(int sig)
{
	siglongjmp(fault_jmp, sig);
}

/* SIGBUS or SIGSEGV, if @statement ends with that, or 0 */
#define SIGNAL_OF(statement)						\
({									\
	int sig_;							\
									\
	signal(SIGBUS, fault_handler);					\
	signal(SIGSEGV, fault_handler);					\
	sig_ = sigsetjmp(fault_jmp, 1);					\
	if (!sig_)							\
		(void)(statement);					\
	signal(SIGBUS, SIG_DFL);					\
	signal(SIGSEGV, SIG_DFL);					\
	sig_;								\
})

static inline bool set_file(const char *path, const char *what)
{
	int fd = open(path, O_WRONLY);
	bool ok = fd >= 0 && write(fd, what, strlen(what)) == (ssize_t)strlen(what);

	close(fd);
	return ok;
}

/* The number after @key, in the part of a file that begins with @part; or -1 */
static inline long number_after(const char *path, const char *part, const char *key)
{
	FILE *f = fopen(path, "r");
	long value = -1;
	char line[256];

	while (f && value < 0 && fgets(line, sizeof(line), f)) {
		if (part && !strncmp(line, part, strlen(part)))
			part = NULL;
		else if (!part && !strncmp(line, key, strlen(key)))
			value = atol(line + strlen(key));
	}
	if (f)
		fclose(f);
	return value;
}

static inline long number_in(const char *path, const char *key)
{
	return number_after(path, NULL, key);
}

static inline int command(unsigned long request, void *addr, void *ptr, unsigned long npages)
{
	struct hmm_dmirror_cmd cmd = { (uintptr_t)addr, (uintptr_t)ptr, npages };

	return ioctl(dev, request, &cmd) ? -errno : 0;
}

static inline int set_flags(unsigned long flags)
{
	/* The driver does not take 0, and does not know the other bit. */
	return command(HMM_DMIRROR_FLAGS, buf, NULL, flags | 1 << 16);
}

static inline int evict(void)
{
	return command(HMM_DMIRROR_EVICT, buf, NULL, 1);
}

static inline bool ends_well(pid_t pid)
{
	int status;

	return waitpid(pid, &status, 0) == pid && !status;
}

static inline int error_of(long ret)
{
	return ret < 0 ? errno : 0;
}

static inline struct hmm_dmirror_stats stats(void)
{
	struct hmm_dmirror_stats now = {};

	ioctl(dev, HMM_DMIRROR_STATS, &now);
	return now;
}

/* Pages on the device since new_file() */
static inline long resident(void)
{
	struct hmm_dmirror_stats now = stats();

	return now.allocs - before.allocs - (now.frees - before.frees);
}

/* The device goes away, and does not count the pages of memory that goes. */
static inline bool release(void)
{
	bool ok = !command(HMM_DMIRROR_RELEASE, buf, NULL, 1);

	before = stats();
	return ok;
}

/* Since the last migrate() */
static inline long recalls(void)
{
	return stats().recalls - before.recalls;
}

/* A loop device for @image, its name in @name; or -1 */
static inline int attach_image(char name[32])
{
	struct loop_config config = {
		.fd = open(image, O_RDWR | O_CLOEXEC),
		.info.lo_flags = LO_FLAGS_AUTOCLEAR,
	};
	int control = open("/dev/loop-control", O_RDWR), loop = -1;

	/* Somebody else may take it first. */
	for (int i = 0; loop < 0 && i < 100; i++) {
		snprintf(name, 32, "/dev/loop%d", ioctl(control, LOOP_CTL_GET_FREE));
		loop = open(name, O_RDWR | O_CLOEXEC);
		if (ioctl(loop, LOOP_CONFIGURE, &config)) {
			close(loop);
			loop = -1;
		}
	}
	close(control);
	close(config.fd);
	return loop;
}

/*
 * mount -o loop, while nobody has the loop device open for writing: that may not be allowed
 * (CONFIG_BLK_DEV_WRITE_MOUNTED).
 */
static inline bool mount_image(void)
{
	int loop, readonly;
	char name[32];
	bool ok;

	loop = attach_image(name);
	readonly = open(name, O_RDONLY | O_CLOEXEC);
	close(loop);
	ok = !mount(name, dir, fs->type, 0, fs->options);
	close(readonly);
	return ok;
}

/* What is read next is from the disk, if there is one. */
static inline bool reopen(void)
{
	close(fd);
	if (fs->mkfs && (umount(dir) || !mount_image()))
		return false;
	fd = open(path, O_RDWR);
	return fd >= 0;
}

/* What is made for one test stays for the others. */
static inline bool mount_fs(const char *name)
{
	char cmd[320];
	bool ok;

	for (fs = filesystems; strcmp(fs->name, name); fs++)
		;
	snprintf(dir, sizeof(dir), TOP "/%s", name);
	snprintf(path, sizeof(path), "%s/file", dir);
	snprintf(image, sizeof(image), "%s.image", dir);
	if (mkdir(dir, 0755))
		return errno == EEXIST;
	if (fs->mkfs)
		snprintf(cmd, sizeof(cmd), "{ truncate -s %uM %s && %s %s; } >/dev/null 2>&1",
			 fs->mib, image, fs->mkfs, image);
	ok = fs->mkfs ? !system(cmd) && mount_image() :
			!mount("hmm_file", dir, fs->type, 0, fs->options);
	if (!ok)
		rmdir(dir);
	return ok;
}

/* An empty file, and no page on the device */
static inline bool new_file(const char *name)
{
	if (name && !mount_fs(name))
		return false;
	close(fd);
	unlink(path);
	fd = open(path, O_RDWR | O_CREAT, 0600);
	if (dev < 0)
		dev = open(DEVICE, O_RDWR);
	/* No large folios, by readahead */
	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	set_flags(0);
	evict();
	before = stats();
	return fd >= 0 && dev >= 0;
}

/* Does the device get all of its pages back? */
static inline bool end_file(void)
{
	set_flags(0);
	close(fd);
	unlink(path);
	set_file(CGROUP "cgroup.procs", "0");
	rmdir(CGROUP_A);
	rmdir(CGROUP_B);
	return dev < 0 || WAIT_FOR(!evict() && !resident());
}

/* Each word tells where it is, and which version; version 0 is a hole. */
static inline uint64_t word(unsigned long i, unsigned int version)
{
	return version ? (uint64_t)version << 48 | i : 0;
}

static inline void fill(void *p, unsigned long first, unsigned long nr, unsigned int version)
{
	const unsigned long words = psize() / 8;
	uint64_t *w = p;

	for (unsigned long i = first * words; i < (first + nr) * words; i++)
		*w++ = word(i, version);
}

static inline bool right(const void *p, unsigned long first, unsigned long nr, unsigned int version)
{
	const unsigned long words = psize() / 8;
	const uint64_t *w = p;

	for (unsigned long i = first * words; i < (first + nr) * words; i++)
		if (*w++ != word(i, version))
			return false;
	return true;
}

/* One by one, as a dirty folio that is large cannot always be split */
static inline bool write_pages(unsigned long first, unsigned long nr, unsigned int version)
{
	for (unsigned long i = first; i < first + nr; i++) {
		fill(buf, i, 1, version);
		if (pwrite(fd, buf, psize(), i * psize()) != psize())
			return false;
	}
	return true;
}

static inline bool read_right(unsigned long first, unsigned long nr, unsigned int version)
{
	for (unsigned long i = first; i < first + nr; i++)
		if (pread(fd, buf, psize(), i * psize()) != psize() || !right(buf, i, 1, version))
			return false;
	return true;
}

static inline char *map(unsigned long first, unsigned long nr, int prot, int flags)
{
	char *p = mmap(NULL, nr * psize(), prot, flags, fd, first * psize());

	return p == MAP_FAILED ? NULL : p;
}

static inline void touch(char *p, unsigned long nr, bool write)
{
	for (; nr; nr--, p += psize()) {
		if (write)
			*(volatile char *)p = *(volatile char *)p;
		else
			FORCE_READ(*p);
	}
}

/* How many of up to PAGES pages go to the device at once? */
static inline long try_migrate(char *p, unsigned long nr)
{
	const long was = resident();

	command(HMM_DMIRROR_MIGRATE_TO_DEV, p, mirror, nr);
	return resident() - was;
}

/* Do they stay, however often the device asks? */
static inline bool stay(char *p, unsigned long nr)
{
	bool ok = true;

	for (int i = 0; i < 5; i++) {
		touch(p, nr, false);
		ok &= !try_migrate(p, nr);
	}
	return ok;
}

/*
 * All go to the device, though others may have a reference to one for a moment. The parts of a
 * large folio that was split have to be touched, which recalls those that went. The device may
 * write if that is by @write.
 */
static inline bool migrate(char *p, unsigned long nr, bool write)
{
	for (unsigned long n; nr; nr -= n, p += n * psize()) {
		long was, i = 0;

		n = nr < PAGES ? nr : PAGES;
		touch(p, n, write);
		was = resident();
		if (!WAIT_FOR(({
			if (i++ && (!(i % 16) || resident() == was))
				touch(p, n, write);
			try_migrate(p, n);
			resident() - was == (long)n;
		})))
			return false;
	}
	before.recalls = stats().recalls;
	return true;
}

/* The device writes, and not by a detour through system memory. */
static inline bool device_writes(char *p, unsigned long first, unsigned long nr,
				 unsigned int version)
{
	const long was = resident();

	for (unsigned long i = 0, n; i < nr; i += n) {
		n = nr - i < PAGES ? nr - i : PAGES;
		fill(buf, first + i, n, version);
		if (command(HMM_DMIRROR_WRITE, p + i * psize(), buf, n))
			return false;
	}
	return resident() == was;
}

static inline bool device_reads(char *p, unsigned long first, unsigned long nr,
				unsigned int version)
{
	return !command(HMM_DMIRROR_READ, p, mirror, nr) && right(mirror, first, nr, version);
}

static int nth = -1;

/* Let allocation @n of what this task does next fail, or none with 0 */
static inline bool fail_nth(unsigned int n)
{
	char what[16];

	if (nth < 0) {
#define FAIL "/sys/kernel/debug/fail_page_alloc/"
		set_file(FAIL "min-order", "0");
		set_file(FAIL "ignore-gfp-wait", "N");
		set_file(FAIL "ignore-gfp-highmem", "N");
		if (!set_file(FAIL "verbose", "0"))
			return false;
		nth = open("/proc/thread-self/fail-nth", O_RDWR);
	}
	snprintf(what, sizeof(what), "%u", n);
	return pwrite(nth, what, strlen(what), 0) > 0;
}

/* Is that still to come? Then there were not so many. It does not come any more. */
static inline bool fail_pending(void)
{
	char what[16] = {};

	return pread(nth, what, sizeof(what) - 1, 0) > 0 && fail_nth(0) && atoi(what) > 0;
}

/* A shared mapping of the file that huge pages of @size fit into */
static inline char *map_huge(size_t size)
{
	char *p = mmap(NULL, 2 * size, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	/* The process is on khugepaged's list by this, on any file system. */
	madvise(p, 2 * size, MADV_HUGEPAGE);
	memset(p, 1, 2 * size);
	p = (char *)(((uintptr_t)p + size - 1) & ~(size - 1));
	p = mmap(p, size, RW, MAP_SHARED | MAP_FIXED, fd, 0);
	madvise(p, size, MADV_HUGEPAGE);
	return p;
}

/* A userfaultfd for @len bytes, or -1 */
static inline int new_uffd(uint64_t features, void *p, size_t len, bool miss, bool wp, bool minor)
{
	struct uffdio_api api = { UFFD_API, features };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (!ioctl(uffd, UFFDIO_API, &api) && !uffd_register(uffd, p, len, miss, wp, minor))
		return uffd;
	close(uffd);
	return -1;
}

/* Another process's device takes the pages from now on, again and again. */
static inline pid_t start_taking(char *p, unsigned long nr)
{
	const pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (dev = open(DEVICE, O_RDWR); ; touch(p, nr, false))
		command(HMM_DMIRROR_MIGRATE_TO_DEV, p, mirror, nr);
}

/* A cgroup that has memory and writeback */
static inline bool join_cgroup(const char *group)
{
	char procs[64];

	mkdir(CGROUP, 0700);
	if (access(CGROUP "cgroup.procs", F_OK))
		mount("cgroup2", CGROUP, "cgroup2", 0, NULL);
	if (!set_file(CGROUP "cgroup.subtree_control", "+memory"))
		return false;
	/* Without it, writeback is by memory cgroup all the same. */
	set_file(CGROUP "cgroup.subtree_control", "+io");
	mkdir(group, 0700);
	snprintf(procs, sizeof(procs), "%scgroup.procs", group);
	return set_file(procs, "0");
}

/* Writeback would recall pages: it is when a test says so. */
static inline void writeback_every(unsigned long centisecs)
{
	write_num(EXPIRE, centisecs ?: 100000);
	write_num(WRITEBACK, centisecs);
}

/* What is mounted goes away with the program. */
static inline int hmm_file_main(int argc, char **argv)
{
	unsigned long expire, writeback;
	int ret;

	mkdir(TOP, 0755);
	if (geteuid() || access(DEVICE, F_OK) || unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("hmm_file", TOP, "tmpfs", 0, "size=512m,mode=755")) {
		ksft_print_header();
		ksft_exit_skip("not root, no %s of test_hmm, or no mount namespace\n", DEVICE);
	}
	buf = aligned_alloc(psize(), SIZE);
	mirror = aligned_alloc(psize(), SIZE);
	expire = read_num(EXPIRE);
	writeback = read_num(WRITEBACK);
	writeback_every(0);
	ret = test_harness_run(argc, argv);
	write_num(EXPIRE, expire);
	write_num(WRITEBACK, writeback);
	return ret;
}

#define HMM_FILE_MAIN							\
	int main(int argc, char **argv) { return hmm_file_main(argc, argv); }

/* Tests with a file of PAGES pages, version 1, on several file systems */
#define FILES(name)							\
	FIXTURE(name) { };						\
	FIXTURE_VARIANT(name) { const char *fs; };			\
	FIXTURE_SETUP(name)						\
	{								\
		if (!new_file(variant->fs))				\
			SKIP(return, "no %s, or no mkfs for it", variant->fs); \
		ASSERT_TRUE(write_pages(0, PAGES, 1));			\
	}								\
	FIXTURE_TEARDOWN(name) { EXPECT_TRUE(end_file()); }

#define FS(fixture, name) FIXTURE_VARIANT_ADD(fixture, name) { #name }

/*
 * An operation: where the pages are before it, the number of recalls that it makes, and what is
 * to be compared with a model of the file afterwards.
 */
enum from {
	SYSTEM,		/* not on the device yet, nor mapped */
	CLEAN,		/* on the disk as well, mapped for reading */
	DIRTY,		/* mapped for reading, but the disk does not have it */
	WRITTEN,	/* mapped for writing, and the device has written version 2 */
	PRIVATE,	/* clean, in a private mapping for writing */
};

#define ANY	-1	/* number of recalls */
#define NONE	0
#define MAPPED	1	/* the mapping */
#define READ	2	/* what read() gives */
#define DISK	4	/* what read() gives after a remount, if there is a disk */
#define ALL	(MAPPED | DISK)

static char *model;

static inline bool same(const char *p)
{
	return !memcmp(p, model, SIZE);
}

/* The device writes all pages. */
static inline bool device_fills(char *p, unsigned int version)
{
	fill(model, 0, PAGES, version);
	return device_writes(p, 0, PAGES, version);
}

static inline char *begin_op(struct __test_metadata *_metadata, enum from from)
{
	char *p;

	model = malloc(SIZE);
	fill(model, 0, PAGES, 1);
	if (from != WRITTEN && from != DIRTY)
		ASSERT_EQ(0, fsync(fd));
	if (from == SYSTEM)
		return NULL;
	p = map(0, PAGES, from > DIRTY ? RW : PROT_READ,
		from == PRIVATE ? MAP_PRIVATE : MAP_SHARED);
	ASSERT_NE(NULL, p);
	ASSERT_TRUE(migrate(p, PAGES, from == WRITTEN));
	ASSERT_TRUE(same(mirror));
	if (from == WRITTEN)
		ASSERT_TRUE(device_fills(p, 2));
	return p;
}

static inline void end_op(struct __test_metadata *_metadata, char *p, long number, int compare)
{
	if (number != ANY)
		ASSERT_EQ(number, recalls());
	if (compare & MAPPED)
		ASSERT_TRUE(same(p));
	if (compare & DISK) {
		munmap(p, SIZE);
		ASSERT_TRUE(reopen());
	}
	if (compare & (READ | DISK)) {
		ASSERT_EQ(SIZE, pread(fd, buf, SIZE, 0));
		ASSERT_TRUE(same(buf));
	}
}

#define OP(fixture, name, from, number, compare)			\
	static void op_##fixture##_##name(struct __test_metadata *_metadata, char *p); \
	TEST_F_TIMEOUT(fixture, name, TIMEOUT)				\
	{								\
		char *p = begin_op(_metadata, from);			\
									\
		op_##fixture##_##name(_metadata, p);			\
		end_op(_metadata, p, number, compare);			\
	}								\
	static void op_##fixture##_##name(struct __test_metadata *_metadata, char *p)

#endif /* HMM_FILE_UTIL_H */
