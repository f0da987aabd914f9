/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of pages of files in device private memory share. Each test is
 * a process with one device, that of lib/test_hmm.c, and one file.
 */
#ifndef HMM_FILE_UTIL_H
#define HMM_FILE_UTIL_H

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <linux/loop.h>
#include <linux/mount.h>
#include <lib/test_hmm_uapi.h>
#include "vm_util.h"

/* <sys/mount.h> does not go with <linux/mount.h>. */
int mount(const char *source, const char *target, const char *type,
	  unsigned long flags, const void *data);
int umount(const char *target);

#define DEVICE		"/dev/hmm_dmirror0"
#define OTHER_DEVICE	"/dev/hmm_dmirror1"
#define WRITEBACK	"/proc/sys/vm/dirty_writeback_centisecs"
#define EXPIRE		"/proc/sys/vm/dirty_expire_centisecs"
#define DROP_CACHES	"/proc/sys/vm/drop_caches"
#define PAGES		16UL
#define SIZE		(PAGES * psize())
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
	{ "ext4_ordered", "ext4", "data=ordered", 64, "mkfs.ext4 -q -F" },
	{ "ext4_journal", "ext4", "data=journal", 64, "mkfs.ext4 -q -F" },
	{ "xfs", "xfs", NULL, 320, "mkfs.xfs -q -f" },
	{ "btrfs", "btrfs", NULL, 128, "mkfs.btrfs -q -f" },
	{ "btrfs_zlib", "btrfs", "compress-force=zlib", 128, "mkfs.btrfs -q -f" },
	{ "ext2", "ext2", NULL, 16, "mkfs.ext4 -t ext2 -q -F" },
	{ "ramfs", "ramfs" },
	{ }
};

static int dev = -1, fd = -1;
static const struct fs *fs;
static char top[64], dir[96], path[112], image[112];
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
	if (!sig_) {							\
		statement;						\
	}								\
	signal(SIGBUS, SIG_DFL);					\
	signal(SIGSEGV, SIG_DFL);					\
	sig_;								\
})

/* The exit status of a command, -1 if it has none */
static inline int run(const char *fmt, ...)
{
	char cmd[256];
	va_list ap;
	int ret;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	ret = system(cmd);
	return WIFEXITED(ret) ? WEXITSTATUS(ret) : -1;
}

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
	bool there = !part;
	long value = -1;
	char line[512];

	while (f && value < 0 && fgets(line, sizeof(line), f)) {
		if (!there)
			there = !strncmp(line, part, strlen(part));
		else if (!strncmp(line, key, strlen(key)))
			sscanf(line + strlen(key), "%ld", &value);
	}
	if (f)
		fclose(f);
	return value;
}

static inline long number_in(const char *path, const char *key)
{
	return number_after(path, NULL, key);
}

/* For ioctls that want an address where it does not matter: they take no 0. */
#define NOWHERE		((void *)(uintptr_t)psize())

static inline int command(unsigned long request, void *addr, void *ptr,
			  unsigned long npages)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)addr,
		.ptr = (uintptr_t)ptr,
		.npages = npages,
	};

	return ioctl(dev, request, &cmd) ? -errno : 0;
}

static inline int set_flags(unsigned long flags)
{
	/* The driver does not take 0, and does not know the other bit. */
	return command(HMM_DMIRROR_FLAGS, NOWHERE, NULL, flags | 1 << 16);
}

static inline int evict(void)
{
	return command(HMM_DMIRROR_EVICT, NOWHERE, NULL, 1);
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
	bool ok = !command(HMM_DMIRROR_RELEASE, NOWHERE, NULL, 1);

	before = stats();
	return ok;
}

/* Since the last migrate() */
static inline long recalls(void)
{
	return stats().recalls - before.recalls;
}

/* A loop device for @image, its name in @name; or -errno */
static inline int attach_image(const char *image, char name[32])
{
	struct loop_config config = {};
	int control, loop, file, nr, err;

	control = open("/dev/loop-control", O_RDWR);
	if (control < 0)
		return -errno;
	for (int i = 0; ; i++) {
		nr = ioctl(control, LOOP_CTL_GET_FREE);
		snprintf(name, 32, "/dev/loop%d", nr);
		loop = open(name, O_RDWR | O_CLOEXEC);
		file = open(image, O_RDWR | O_CLOEXEC);
		config.fd = file;
		config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
		err = nr < 0 || loop < 0 || file < 0 ||
		      ioctl(loop, LOOP_CONFIGURE, &config) ? errno : 0;
		close(file);
		if (err != EBUSY || i == 100)
			break;
		close(loop);
	}
	close(control);
	if (err) {
		close(loop);
		return -err;
	}
	return loop;
}

/*
 * mount -o loop, while nobody has the loop device open for writing: that may
 * not be allowed (CONFIG_BLK_DEV_WRITE_MOUNTED).
 */
static inline bool mount_image(void)
{
	int loop, readonly;
	char name[32];
	bool ok;

	loop = attach_image(image, name);
	if (loop < 0)
		return false;
	readonly = open(name, O_RDONLY | O_CLOEXEC);
	close(loop);
	ok = !mount(name, dir, fs->type, 0, fs->options);
	close(readonly);
	return ok;
}

static inline bool remount(void)
{
	return !umount(dir) && mount_image();
}

/* What is made for one test stays for the others. NULL, or why there is none */
static inline const char *mount_fs(const char *name)
{
	const char *reason = NULL;

	for (fs = filesystems; strcmp(fs->name, name); fs++)
		;
	snprintf(dir, sizeof(dir), "%s/%s", top, name);
	snprintf(path, sizeof(path), "%s/file", dir);
	snprintf(image, sizeof(image), "%s.image", dir);
	if (mkdir(dir, 0755))
		return errno == EEXIST ? NULL : strerror(errno);
	if (!fs->mkfs) {
		if (mount("hmm_file", dir, fs->type, 0, fs->options))
			reason = "it cannot be mounted";
	} else if (run("command -v %.*s >/dev/null", (int)strcspn(fs->mkfs, " "),
		       fs->mkfs)) {
		reason = "no mkfs";
	} else if (run("truncate -s %uM %s", fs->mib, image) ||
		   run("%s %s >/dev/null 2>&1", fs->mkfs, image) ||
		   !mount_image()) {
		reason = "it cannot be made or mounted";
	}
	if (reason)
		rmdir(dir);
	return reason;
}

/* An empty file, and no page on the device. NULL, or why there is none */
static inline const char *new_file(const char *name)
{
	const char *reason = name ? mount_fs(name) : NULL;

	if (reason)
		return reason;
	close(fd);
	unlink(path);
	fd = open(path, O_RDWR | O_CREAT, 0600);
	if (dev < 0)
		dev = open(DEVICE, O_RDWR);
	if (!buf)
		buf = aligned_alloc(psize(), SIZE);
	if (!mirror)
		mirror = aligned_alloc(psize(), SIZE);
	if (fd < 0 || dev < 0 || !buf || !mirror)
		return "no file, device or memory";
	/* No large folios, by readahead */
	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	set_flags(0);
	evict();
	before = stats();
	return NULL;
}

/* Does the device get all of its pages back? */
static inline bool end_file(void)
{
	set_flags(0);
	close(fd);
	unlink(path);
	return dev < 0 || WAIT_FOR(!evict() && !resident());
}

/* Each word tells where it is, and which version; version 0 is a hole. */
static inline uint64_t word(unsigned long page, unsigned int i, unsigned int version)
{
	return version ? (uint64_t)version << 48 | (uint64_t)page << 16 | i : 0;
}

static inline void fill(void *p, unsigned long first, unsigned long nr,
			unsigned int version)
{
	uint64_t *w = p;

	for (unsigned long page = first; page < first + nr; page++)
		for (unsigned int i = 0; i < psize() / 8; i++)
			*w++ = word(page, i, version);
}

static inline bool right(const void *p, unsigned long first, unsigned long nr,
			 unsigned int version)
{
	const uint64_t *w = p;

	for (unsigned long page = first; page < first + nr; page++)
		for (unsigned int i = 0; i < psize() / 8; i++)
			if (*w++ != word(page, i, version))
				return false;
	return true;
}

/* One by one, as a dirty folio that is large cannot always be split */
static inline bool write_pages(unsigned long first, unsigned long nr,
			       unsigned int version)
{
	for (unsigned long i = first; i < first + nr; i++) {
		fill(buf, i, 1, version);
		if (pwrite(fd, buf, psize(), i * psize()) != (ssize_t)psize())
			return false;
	}
	return true;
}

static inline bool read_right(unsigned long first, unsigned long nr,
			      unsigned int version)
{
	for (unsigned long i = first; i < first + nr; i++)
		if (pread(fd, buf, psize(), i * psize()) != (ssize_t)psize() ||
		    !right(buf, i, 1, version))
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
 * All go to the device, though others may have a reference to one for a moment.
 * The parts of a large folio that was split have to be touched, which recalls
 * those that went. The device may write if that is by @write.
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
	return !command(HMM_DMIRROR_READ, p, mirror, nr) &&
	       right(mirror, first, nr, version);
}

static int nth = -1;

/* Let allocation @n of what this task does next fail, or none with 0 */
static inline bool fail_nth(unsigned int n)
{
	static const char * const settings[][2] = {
		{ "probability", "0" }, { "min-order", "0" }, { "times", "-1" },
		{ "ignore-gfp-wait", "N" }, { "ignore-gfp-highmem", "N" },
		{ "task-filter", "N" }, { "verbose", "0" },
	};
	char name[96], what[16];

	for (unsigned int i = 0; nth < 0 && i < ARRAY_SIZE(settings); i++) {
		snprintf(name, sizeof(name), "/sys/kernel/debug/fail_page_alloc/%s",
			 settings[i][0]);
		if (!set_file(name, settings[i][1]))
			return false;
	}
	if (nth < 0)
		nth = open("/proc/thread-self/fail-nth", O_RDWR);
	snprintf(what, sizeof(what), "%u", n);
	return pwrite(nth, what, strlen(what), 0) > 0;
}

/* Is that still to come? Then there were not so many. */
static inline bool fail_pending(void)
{
	char what[16] = {};

	return pread(nth, what, sizeof(what) - 1, 0) > 0 && atoi(what) > 0;
}

static inline const char *cgroup_file(const char *group, const char *file)
{
	static char name[128];

	snprintf(name, sizeof(name), "%s/cgroup/%s/%s", top, group, file);
	return name;
}

/* A cgroup with memory and writeback; "" is the root, which has been there. */
static inline bool join_cgroup(const char *group)
{
	const char *control = "cgroup.subtree_control";

	if (!mkdir(cgroup_file("", ""), 0700) &&
	    (mount("cgroup2", cgroup_file("", ""), "cgroup2", 0, NULL) ||
	     !set_file(cgroup_file("", control), "+memory")))
		rmdir(cgroup_file("", ""));
	/* Without it, writeback is by memory cgroup all the same. */
	set_file(cgroup_file("", control), "+io");
	mkdir(cgroup_file(group, ""), 0700);
	return set_file(cgroup_file(group, "cgroup.procs"), "0");
}

static inline void leave_cgroups(const char *a, const char *b)
{
	set_file(cgroup_file("", "cgroup.procs"), "0");
	rmdir(cgroup_file(a, ""));
	rmdir(cgroup_file(b, ""));
}

static char writeback_was[2][32];

/* Writeback would recall pages: it is when a test says so. */
static inline bool writeback_every(const char *centisecs)
{
	return set_file(EXPIRE, *centisecs == '0' ? "100000" : centisecs) &&
	       set_file(WRITEBACK, centisecs);
}

/* What is mounted goes away with the program. */
static inline void hmm_file_begin(void)
{
	const char *reason = NULL;

	if (geteuid())
		reason = "not root";
	else if (access(DEVICE, F_OK))
		reason = "no " DEVICE ", no module test_hmm";
	else if (unshare(CLONE_NEWNS) ||
		 mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		reason = "no mount namespace";
	snprintf(top, sizeof(top), "/tmp/%s", program_invocation_short_name);
	mkdir(top, 0755);
	if (!reason && mount("hmm_file", top, "tmpfs", 0, "size=512m,mode=755"))
		reason = "mounting is not allowed";
	if (reason) {
		ksft_print_header();
		ksft_exit_skip("%s\n", reason);
	}
	snprintf(writeback_was[0], 32, "%ld", number_in(WRITEBACK, ""));
	snprintf(writeback_was[1], 32, "%ld", number_in(EXPIRE, ""));
	writeback_every("0");
}

static inline void hmm_file_end(void)
{
	set_file(WRITEBACK, writeback_was[0]);
	set_file(EXPIRE, writeback_was[1]);
}

#define HMM_FILE_MAIN							\
int main(int argc, char **argv)						\
{									\
	int ret;							\
									\
	hmm_file_begin();						\
	ret = test_harness_run(argc, argv);				\
	hmm_file_end();							\
	return ret;							\
}

#endif /* HMM_FILE_UTIL_H */
