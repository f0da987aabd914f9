// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of files in device private memory, with the simulated device of
 * lib/test_hmm.c: processes and their devices change a file at random, and
 * every byte that anybody sees is compared with a model of the file.
 *
 * What the file has is exactly known although all goes on at once: each byte
 * has an owner, one of the processes, and only the owner changes it or compares
 * it with the model. The owners of two neighbouring stripes differ, some pages
 * have several owners, and the last TAIL pages belong to process 0, which
 * truncates the file there. A process has two threads: one is the CPU, the
 * other is the device. They share what the process owns, a page at a time.
 * What does not change the content is done to all pages, by everybody:
 * migration in both directions, writeback, reclaim, faults, ... Of the bytes of
 * others, it is checked that they belong there at all, or are zero.
 *
 * To truncate the whole file, to rewrite it, and for direct writes a process
 * wants size_lock for writing; all that needs pages of the file to be where
 * they are has it for reading. Migration and writeback do not ask for it.
 *
 * At the end, the file has to be what the model is, on the disk, too, and the
 * device has to get all its pages back.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/param.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <linux/falloc.h>

#include "kselftest.h"
#include <lib/test_hmm_uapi.h>
#include "hmm_file_util.h"

#define DEVICE		"/dev/hmm_dmirror0"
#define TOP		"/tmp/hmm_file_stress"
#define IMAGES		TOP "/images"

#define STRIPE		3		/* pages */
#define STRIPED		96
#define TAIL		32
#define PAGES		(STRIPED + TAIL)
#define MAX_RANGE	16		/* pages that one operation is about */
#define MAX_PROCESSES	16
#define HISTORY		16
#define RUNNING		INT32_MIN

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT		21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#define MADV_POPULATE_WRITE	23
#endif

static const struct fs {
	const char *name;
	const char *type;
	const char *mkfs;	/* a command, for an image of this many MiB */
	unsigned int mib;
	const char *options;
} file_systems[] = {
	{ "tmpfs", "tmpfs", NULL, 0, "size=64m" },
	{ "tmpfs_huge", "tmpfs", NULL, 0, "size=64m,huge=always" },
	{ "ext4", "ext4", "mkfs.ext4 -q -F -b 4096", 64, NULL },
	{ "ext4_1k", "ext4", "mkfs.ext4 -q -F -b 1024", 64, NULL },
	{ "xfs", "xfs", "mkfs.xfs -q -f", 320, NULL },
	{ "btrfs", "btrfs", "mkfs.btrfs -q -f", 128, NULL },
	{ "btrfs_zlib", "btrfs", "mkfs.btrfs -q -f", 128, "compress-force=zlib" },
};

enum op {
	/* The CPU: own bytes */
	OP_PREAD, OP_PWRITE, OP_LOAD, OP_STORE, OP_DIRECT_READ, OP_VM_READ,
	OP_SPLICE, OP_PUNCH, OP_ZERO, OP_TRUNCATE_TAIL,
	/* The whole file */
	OP_TRUNCATE, OP_REWRITE, OP_DIRECT_WRITE,
	/* Anybody's pages */
	OP_LOAD_OTHERS, OP_PREAD_OTHERS, OP_FSYNC, OP_FDATASYNC, OP_MSYNC,
	OP_MSYNC_ASYNC, OP_SYNC_RANGE, OP_SYNCFS, OP_DROP_CACHES, OP_FADVISE,
	OP_DONTNEED, OP_PAGEOUT, OP_REMAP, OP_MLOCK, OP_READAHEAD,
	/* The device */
	OP_MIGRATE, OP_MIGRATE_POPULATE, OP_DEVICE_READ, OP_DEVICE_WRITE,
	OP_MIGRATE_BACK, OP_EVICT,
	/* The end */
	OP_FINAL_READ, OP_FINAL_DEVICE_WRITE, OP_FINAL_MOUNT, OP_FINAL_DEVICE_READ,
	NR_OPS
};

static const struct {
	const char *name;
	unsigned int cpu;	/* weights */
	unsigned int device;
} ops[NR_OPS] = {
	[OP_PREAD] = { "pread", 120 },
	[OP_PWRITE] = { "pwrite", 140 },
	[OP_LOAD] = { "load", 120 },
	[OP_STORE] = { "store", 140 },
	[OP_DIRECT_READ] = { "direct read", 50 },
	[OP_VM_READ] = { "process_vm_readv", 30 },
	[OP_SPLICE] = { "splice", 30 },
	[OP_PUNCH] = { "punch hole", 40 },
	[OP_ZERO] = { "zero range", 20 },
	[OP_TRUNCATE_TAIL] = { "truncate tail", 60 },
	[OP_TRUNCATE] = { "truncate", 12 },
	[OP_REWRITE] = { "rewrite", 5 },
	[OP_DIRECT_WRITE] = { "direct write", 12 },
	[OP_LOAD_OTHERS] = { "load of others'", 30 },
	[OP_PREAD_OTHERS] = { "pread of others'", 30 },
	[OP_FSYNC] = { "fsync", 30 },
	[OP_FDATASYNC] = { "fdatasync", 15 },
	[OP_MSYNC] = { "msync", 20 },
	[OP_MSYNC_ASYNC] = { "msync async", 10 },
	[OP_SYNC_RANGE] = { "sync_file_range", 20 },
	[OP_SYNCFS] = { "syncfs", 5 },
	[OP_DROP_CACHES] = { "drop_caches", 2 },
	[OP_FADVISE] = { "fadvise dontneed", 20 },
	[OP_DONTNEED] = { "madvise dontneed", 20 },
	[OP_PAGEOUT] = { "madvise pageout", 20 },
	[OP_REMAP] = { "mmap again", 20 },
	[OP_MLOCK] = { "mlock, munlock", 10 },
	[OP_READAHEAD] = { "readahead", 20 },
	[OP_MIGRATE] = { "migrate", 0, 160 },
	[OP_MIGRATE_POPULATE] = { "populate, migrate", 0, 240 },
	[OP_DEVICE_READ] = { "device read", 0, 240 },
	[OP_DEVICE_WRITE] = { "device write", 0, 300 },
	[OP_MIGRATE_BACK] = { "migrate back", 0, 30 },
	[OP_EVICT] = { "evict", 0, 6 },
	[OP_FINAL_READ] = { "final read" },
	[OP_FINAL_DEVICE_WRITE] = { "final device write" },
	[OP_FINAL_MOUNT] = { "final read, mounted again" },
	[OP_FINAL_DEVICE_READ] = { "final device read" },
};

struct record {
	uint32_t ms;
	uint8_t process;
	uint8_t device;
	uint8_t op;
	uint32_t pos;
	uint32_t len;
	int32_t ret;
};

struct state {
	uint64_t beats;
	uint32_t op;
	pid_t tid;
	uint64_t pos, len;
};

static struct shared {
	pthread_rwlock_t size_lock;
	uint64_t size;
	int stop;
	int failed;
	struct state state[MAX_PROCESSES][2];
	uint64_t done[NR_OPS];
	uint64_t us[NR_OPS];
	uint64_t busy;
	struct {
		uint32_t next;
		struct record records[HISTORY];
	} history[PAGES];
} *shared;

static char *model;		/* PAGES pages, shared */
static const struct fs *fs;
static char dir[64], path[96], image[96];
static uint64_t seed;
static unsigned int processes = 4;
static unsigned int seconds = 5;
static unsigned int hang_seconds = 60;
static bool verbose;
static size_t ps;
static struct timespec start;

/* A process */
static unsigned int me;
static int fd, fd_direct, fd_caches, dev;
static char *maps[2];
static pthread_mutex_t page_locks[PAGES];
static unsigned long whole[PAGES], some[PAGES];
static unsigned int nr_whole, nr_some;

/* A thread */
struct thread {
	bool device;
	uint64_t random;
	uint16_t version;
	char *buf, *buf2;	/* MAX_RANGE pages, aligned */
	int pipe[2];
	struct state *state;
	struct record *records[PAGES];
	enum op op;
	uint64_t pos, len;
	uint64_t began;
};

static __thread struct thread *self;

static uint64_t us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec - start.tv_sec) * 1000000ULL +
	       (now.tv_nsec - start.tv_nsec) / 1000;
}

static uint32_t ms(void)
{
	return us() / 1000;
}

static uint64_t mix(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static uint64_t file_size(void)
{
	return __atomic_load_n(&shared->size, __ATOMIC_ACQUIRE);
}

static void extend(uint64_t size)
{
	uint64_t old = file_size();

	while (size > old &&
	       !__atomic_compare_exchange_n(&shared->size, &old, size, false,
					    __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		;
}

/*
 * Who owns what? Each fifth stripe is of all processes; what does not fit is
 * nobody's, and stays zero.
 */
static bool page_is_split(unsigned long page)
{
	return page < STRIPED && page / STRIPE % 5 == 4;
}

static unsigned int page_owner(unsigned long page)
{
	unsigned long stripe = page / STRIPE;

	return page >= STRIPED ? 0 : (stripe - stripe / 5) % processes;
}

static bool owns(unsigned int process, unsigned long page, size_t *from, size_t *to)
{
	size_t slice = ps / processes & ~63UL;

	if (page_is_split(page)) {
		*from = process * slice;
		*to = *from + slice;
		return true;
	}
	*from = 0;
	*to = ps;
	return page_owner(page) == process;
}

/*
 * The byte at @pos, if it is not zero: where it is, and in the last two bytes
 * of each word the version.
 */
static unsigned char pattern(uint64_t pos, uint16_t version)
{
	uint64_t page = pos / ps;
	unsigned int word = pos % ps / 8;

	switch (pos % 8) {
	case 0:
		return word;
	case 1:
		return word >> 8 | 0x80;
	case 2:
		return page;
	case 3:
		return page >> 8 | 0x40;
	case 4:
		return 0xd0 | (page_is_split(page) ? 0xf : page_owner(page));
	case 5:
		return 0xa5;
	case 6:
		return version;
	default:
		return version >> 8;
	}
}

static void fill(char *buf, uint64_t pos, size_t len, uint16_t version)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = pattern(pos + i, version);
}

static void begin(enum op op, uint64_t pos, uint64_t len)
{
	struct thread *t = self;

	t->op = op;
	t->pos = pos;
	t->len = len;
	t->began = us();
	t->state->op = op;
	t->state->pos = pos;
	t->state->len = len;
	for (uint64_t page = pos / ps; page * ps < pos + len && page < PAGES; page++) {
		uint32_t next = __atomic_fetch_add(&shared->history[page].next, 1,
						   __ATOMIC_RELAXED);
		struct record *record = &shared->history[page].records[next % HISTORY];

		*record = (struct record){
			.ms = t->began / 1000,
			.process = me,
			.device = t->device,
			.op = op,
			.pos = pos,
			.len = len,
			.ret = RUNNING,
		};
		t->records[page] = record;
	}
}

static void end(long ret)
{
	struct thread *t = self;

	for (uint64_t page = t->pos / ps;
	     page * ps < t->pos + t->len && page < PAGES; page++) {
		struct record *record = t->records[page];

		if (record->process == me && record->device == t->device &&
		    record->op == t->op && record->pos == t->pos)
			record->ret = ret;
	}
	__atomic_fetch_add(&shared->done[t->op], 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&shared->us[t->op], us() - t->began, __ATOMIC_RELAXED);
}

static void print_bytes(const char *what, const char *p, size_t len)
{
	char line[200];
	int n = 0;

	for (size_t i = 0; i < len && i < 32; i++)
		n += snprintf(line + n, sizeof(line) - n, " %02x", (unsigned char)p[i]);
	ksft_print_msg("  %s%s\n", what, line);
}

static void print_history(uint64_t page)
{
	uint32_t next = __atomic_load_n(&shared->history[page].next, __ATOMIC_RELAXED);

	ksft_print_msg("  last operations on page %llu (ms, process, what, offset, length, result)\n",
		       (unsigned long long)page);
	for (uint32_t i = next > HISTORY ? next - HISTORY : 0; i != next; i++) {
		struct record *r = &shared->history[page].records[i % HISTORY];

		if (r->ret == RUNNING)
			ksft_print_msg("  %6u %2u%s %-18s %#8x %#7x running\n", r->ms,
				       r->process, r->device ? "d" : " ",
				       ops[r->op].name, r->pos, r->len);
		else
			ksft_print_msg("  %6u %2u%s %-18s %#8x %#7x %d\n", r->ms,
				       r->process, r->device ? "d" : " ",
				       ops[r->op].name, r->pos, r->len, r->ret);
	}
}

/* Only the first one to fail says so. */
static bool first_failure(void)
{
	__atomic_store_n(&shared->stop, 1, __ATOMIC_RELEASE);
	if (__atomic_exchange_n(&shared->failed, 1, __ATOMIC_ACQ_REL))
		return false;
	ksft_print_msg("FAILED: %s, -s %llu -p %u, after %u ms: process %u%s, %s %#llx+%#llx\n",
		       fs->name, (unsigned long long)seed, processes, ms(), me,
		       self->device ? " (device)" : "", ops[self->op].name,
		       (unsigned long long)self->pos, (unsigned long long)self->len);
	return true;
}

static void __noreturn leave(void)
{
	fflush(stdout);
	_exit(1);
}

static void __noreturn fail_errno(const char *what, int err)
{
	if (first_failure()) {
		ksft_print_msg("  %s: %s\n", what, strerror(err));
		if (self->pos / ps < PAGES)
			print_history(self->pos / ps);
	}
	leave();
}

static void __noreturn mismatch(uint64_t pos, const char *found,
				const char *expected, size_t len, size_t bad)
{
	static char now[64];
	ssize_t n;

	if (!first_failure())
		leave();
	ksft_print_msg("  offset %#llx (page %llu + %#llx): expected %#04x, found %#04x; %zu bytes are wrong\n",
		       (unsigned long long)pos, (unsigned long long)(pos / ps),
		       (unsigned long long)(pos % ps), (unsigned char)*expected,
		       (unsigned char)*found, bad);
	print_bytes("expected", expected, len);
	print_bytes("found   ", found, len);
	n = pread(fd, now, MIN(len, sizeof(now)), pos);
	if (n > 0)
		print_bytes("pread   ", now, n);
	ksft_print_msg("  the file's size is %llu\n", (unsigned long long)file_size());
	print_history(pos / ps);
	leave();
}

static void compare_bytes(uint64_t at, const char *found, const char *expected,
			  size_t len)
{
	size_t bad = 0, first = len;

	if (!memcmp(found, expected, len))
		return;
	for (size_t i = len; i-- > 0;) {
		if (found[i] != expected[i]) {
			first = i;
			bad++;
		}
	}
	mismatch(at + first, found + first, expected + first, len - first, bad);
}

/*
 * Is @buf what the file has at @pos? Exact for own bytes, if the pages are
 * locked, else a byte has to be zero or to belong there.
 */
static void check(uint64_t pos, const char *buf, size_t len, bool exact)
{
	for (size_t done = 0; done < len;) {
		uint64_t at = pos + done;
		uint64_t page = at / ps;
		size_t n = MIN(len - done, ps - at % ps);
		size_t from, to;

		if (!owns(me, page, &from, &to) || !exact) {
			from = 0;
			to = 0;
		}
		for (size_t i = 0; i < n; i++) {
			size_t in = (at + i) % ps;
			char expected;

			if (in >= from && in < to) {
				size_t same = MIN(to - in, n - i);

				compare_bytes(at + i, buf + done + i,
					      model + at + i, same);
				i += same - 1;
				continue;
			}
			if (!buf[done + i] || (at + i) % 8 >= 6)
				continue;
			expected = pattern(at + i, 0);
			if (buf[done + i] != expected)
				mismatch(at + i, buf + done + i, &expected, 1, 1);
		}
		done += n;
	}
}

/* What was read up to @ret: there was nothing more, or it was not there yet. */
static void check_read(uint64_t pos, const char *buf, size_t len, ssize_t ret,
		       uint64_t size)
{
	static const char none;

	if (ret < 0)
		fail_errno("read", errno);
	check(pos, buf, ret, true);
	if ((size_t)ret < len && pos + ret < MIN(size, pos + len))
		mismatch(pos + ret, &none, model + pos + ret, 1, len - ret);
	for (size_t i = ret; i < len; i++)
		if (model[pos + i])
			mismatch(pos + i, &none, model + pos + i, 1, len - i);
}

static void read_lock(void)
{
	pthread_rwlock_rdlock(&shared->size_lock);
}

static void write_lock(void)
{
	pthread_rwlock_wrlock(&shared->size_lock);
}

static void unlock(void)
{
	pthread_rwlock_unlock(&shared->size_lock);
}

static void lock_pages(uint64_t pos, uint64_t len)
{
	for (uint64_t page = pos / ps; page * ps < pos + len; page++)
		pthread_mutex_lock(&page_locks[page]);
}

static void unlock_pages(uint64_t pos, uint64_t len)
{
	for (uint64_t page = pos / ps; page * ps < pos + len; page++)
		pthread_mutex_unlock(&page_locks[page]);
}

static int device_command(unsigned long request, uint64_t pos, void *ptr,
			  uint64_t npages, uint64_t *cpages)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)maps[0] + pos,
		.ptr = (uintptr_t)ptr,
		.npages = npages,
	};
	int ret = ioctl(dev, request, &cmd) ? -errno : 0;

	if (cpages)
		*cpages = cmd.cpages;
	return ret;
}

/*
 * The device's accesses give up when pages come and go for a second: go on with
 * what is missing.
 */
static int device_access(unsigned long request, uint64_t pos, char *buf,
			 uint64_t npages)
{
	for (int i = 0; i < 30; i++) {
		uint64_t done = 0;
		int ret = device_command(request, pos, buf, npages, &done);

		if (ret != -EBUSY)
			return ret;
		__atomic_fetch_add(&shared->busy, 1, __ATOMIC_RELAXED);
		__atomic_fetch_add(&self->state->beats, 1, __ATOMIC_RELAXED);
		if (request == HMM_DMIRROR_WRITE) {
			pos += done * ps;
			buf += done * ps;
			npages -= done;
		}
	}
	return -EBUSY;
}

/* A range of own bytes: some of them, or whole pages. */
static void pick(const uint64_t *r, bool pages, uint64_t *pos, size_t *len)
{
	unsigned long page = pages ? whole[r[1] % nr_whole] : some[r[1] % nr_some];
	size_t from, to, size, off;
	unsigned long last = page;

	owns(me, page, &from, &to);
	if (!page_is_split(page)) {
		while (last + 1 < PAGES && last - page < 3 &&
		       !page_is_split(last + 1) && page_owner(last + 1) == me)
			last++;
		to = (last + 1 - page) * ps;
	}
	if (pages) {
		*pos = page * ps;
		*len = (1 + r[2] % (last - page + 1)) * ps;
		return;
	}
	size = to - from;
	switch (r[2] % 4) {
	case 0:
		off = 0;
		*len = size;
		break;
	case 1:
		off = r[3] % size;
		*len = MIN(1 + r[4] % 64, size - off);
		break;
	default:
		off = r[3] % size;
		*len = 1 + r[4] % (size - off);
		break;
	}
	*pos = page * ps + from + off;
}

/* Pages of anybody */
static void pick_any(const uint64_t *r, uint64_t *pos, size_t *len)
{
	unsigned long page = r[1] % PAGES;

	*pos = page * ps;
	*len = MIN(1 + r[2] % MAX_RANGE, PAGES - page) * ps;
}

static void resize(uint64_t size)
{
	if (ftruncate(fd, size))
		fail_errno("ftruncate", errno);
	memset(model + size, 0, PAGES * ps - size);
	__atomic_store_n(&shared->size, size, __ATOMIC_RELEASE);
}

static void write_model(uint64_t pos, size_t len)
{
	uint64_t done = 0;

	while (done < len) {
		ssize_t ret = pwrite(fd, model + pos + done, len - done, pos + done);

		if (ret <= 0)
			fail_errno("pwrite", ret ? errno : EIO);
		done += ret;
	}
}

static long cpu_own(struct thread *t, const uint64_t *r)
{
	char *map = maps[r[5] & 1];
	uint64_t pos, size;
	struct iovec local, remote;
	struct stat st;
	size_t len;
	long ret = 0;

	switch (t->op) {
	case OP_DIRECT_READ:
		if (fd_direct < 0)
			return 0;
		pick(r, true, &pos, &len);
		break;
	case OP_TRUNCATE_TAIL:
		if (me)
			return 0;
		pos = STRIPED * ps;
		len = TAIL * ps;
		break;
	default:
		pick(r, false, &pos, &len);
	}

	read_lock();
	lock_pages(pos, len);
	size = file_size();
	begin(t->op, pos, len);

	switch (t->op) {
	case OP_PREAD:
		ret = pread(fd, t->buf, len, pos);
		check_read(pos, t->buf, len, ret, size);
		break;
	case OP_DIRECT_READ:
		/*
		 * Whoever makes a page writable between writeback and the
		 * look at the blocks makes it fail, see IOMAP_DELALLOC in
		 * iomap_dio_iter(); with or without devices.
		 */
		for (int try = 0; try < 20; try++) {
			ret = pread(fd_direct, t->buf, len, pos);
			if (ret >= 0 || errno != EIO)
				break;
		}
		check_read(pos, t->buf, len, ret, size);
		break;
	case OP_PWRITE:
		fill(t->buf, pos, len, ++t->version);
		ret = pwrite(fd, t->buf, len, pos);
		if (ret != (long)len)
			fail_errno("pwrite", ret < 0 ? errno : EIO);
		memcpy(model + pos, t->buf, len);
		extend(pos + len);
		break;
	case OP_STORE:
		if (pos >= size)
			break;
		len = MIN(len, size - pos);
		fill(t->buf, pos, len, ++t->version);
		memcpy(map + pos, t->buf, len);
		memcpy(model + pos, t->buf, len);
		ret = len;
		break;
	case OP_LOAD:
		/* To the end of the last page */
		size = roundup(size, ps);
		if (pos >= size)
			break;
		len = MIN(len, size - pos);
		memcpy(t->buf, map + pos, len);
		check(pos, t->buf, len, true);
		ret = len;
		break;
	case OP_VM_READ:
		size = roundup(size, ps);
		if (pos >= size)
			break;
		len = MIN(len, size - pos);
		local = (struct iovec){ t->buf, len };
		remote = (struct iovec){ map + pos, len };
		ret = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
		if (ret != (long)len)
			fail_errno("process_vm_readv", ret < 0 ? errno : EFAULT);
		check(pos, t->buf, len, true);
		break;
	case OP_SPLICE: {
		loff_t at = pos;
		ssize_t n;

		ret = splice(fd, &at, t->pipe[1], NULL, len, 0);
		if (ret < 0)
			fail_errno("splice", errno);
		for (ssize_t done = 0; done < ret; done += n) {
			n = read(t->pipe[0], t->buf + done, ret - done);
			if (n <= 0)
				fail_errno("read of a pipe", n ? errno : EIO);
		}
		check(pos, t->buf, ret, true);
		if (!ret && pos < size)
			fail_errno("splice gave nothing", EIO);
		break;
	}
	case OP_PUNCH:
		ret = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				pos, len);
		if (ret)
			fail_errno("fallocate", errno);
		memset(model + pos, 0, len);
		break;
	case OP_ZERO:
		ret = fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
				pos, len);
		if (!ret)
			memset(model + pos, 0, len);
		else if (errno != EOPNOTSUPP)
			fail_errno("fallocate", errno);
		break;
	case OP_TRUNCATE_TAIL:
		/* Half of the time in the middle of a page */
		size = r[1] % (len + 1);
		if (r[2] & 1)
			size -= size % ps;
		resize(pos + size);
		ret = size;
		if (fstat(fd, &st))
			fail_errno("fstat", errno);
		if (st.st_size != (off_t)(pos + size))
			fail_errno("the size is wrong", EIO);
		break;
	default:
		break;
	}
	end(ret);
	unlock_pages(t->pos, t->len);
	unlock();
	return ret;
}

/* Nobody else changes the file, or wants its pages; others may migrate it. */
static void cpu_all(struct thread *t, const uint64_t *r)
{
	uint64_t size, pos = 0;
	size_t len = PAGES * ps;
	struct stat st;
	long ret = 0;

	if (t->op == OP_DIRECT_WRITE) {
		if (fd_direct < 0)
			return;
		pick(r, true, &pos, &len);
	}
	write_lock();
	begin(t->op, pos, len);
	if (fstat(fd, &st))
		fail_errno("fstat", errno);
	size = file_size();
	if (st.st_size != (off_t)size) {
		if (first_failure())
			ksft_print_msg("  the size is %lld, and should be %llu\n",
				       (long long)st.st_size, (unsigned long long)size);
		leave();
	}
	switch (t->op) {
	case OP_TRUNCATE:
		size = r[1] % (len + 1);
		if (r[2] & 1)
			size -= size % ps;
		resize(size);
		if (r[2] & 14)
			resize(MAX(size, STRIPED * ps) +
			       r[3] % (len + 1 - MAX(size, STRIPED * ps)));
		ret = size;
		break;
	case OP_REWRITE:
		/* Large folios */
		if (r[1] & 1 && ftruncate(fd, 0))
			fail_errno("ftruncate", errno);
		write_model(0, size);
		break;
	default:
		fill(t->buf, pos, len, ++t->version);
		ret = pwrite(fd_direct, t->buf, len, pos);
		if (ret != (long)len)
			fail_errno("pwrite", ret < 0 ? errno : EIO);
		memcpy(model + pos, t->buf, len);
		extend(pos + len);
		break;
	}
	end(ret);
	unlock();
}

static void cpu_any(struct thread *t, const uint64_t *r)
{
	char *map = maps[r[5] & 1];
	uint64_t pos, size;
	bool fail = true;
	size_t len;
	long ret;

	pick_any(r, &pos, &len);
	switch (t->op) {
	case OP_LOAD_OTHERS:
	case OP_PREAD_OTHERS:
	case OP_MLOCK:
	case OP_READAHEAD:
		read_lock();
		break;
	case OP_FSYNC:
	case OP_FDATASYNC:
	case OP_SYNCFS:
	case OP_DROP_CACHES:
		pos = 0;
		len = PAGES * ps;
		break;
	default:
		break;
	}
	begin(t->op, pos, len);
	switch (t->op) {
	case OP_LOAD_OTHERS:
		ret = 0;
		/* There, process 0 truncates. */
		size = MIN(roundup(file_size(), ps), STRIPED * ps);
		if (pos < size) {
			len = MIN(len, size - pos);
			memcpy(t->buf, map + pos, len);
			check(pos, t->buf, len, false);
			ret = len;
		}
		break;
	case OP_PREAD_OTHERS:
		ret = pread(fd, t->buf, len, pos);
		if (ret > 0)
			check(pos, t->buf, ret, false);
		break;
	case OP_FSYNC:
		ret = fsync(fd);
		break;
	case OP_FDATASYNC:
		ret = fdatasync(fd);
		break;
	case OP_MSYNC:
		ret = msync(map + pos, len, MS_SYNC);
		break;
	case OP_MSYNC_ASYNC:
		ret = msync(map + pos, len, MS_ASYNC);
		break;
	case OP_SYNC_RANGE:
		ret = sync_file_range(fd, pos, len, SYNC_FILE_RANGE_WRITE);
		break;
	case OP_SYNCFS:
		ret = syncfs(fd);
		break;
	case OP_DROP_CACHES:
		ret = pwrite(fd_caches, "3", 1, 0);
		fail = false;
		break;
	case OP_FADVISE:
		errno = posix_fadvise(fd, pos, len, POSIX_FADV_DONTNEED);
		ret = errno ? -1 : 0;
		break;
	case OP_DONTNEED:
		ret = madvise(map + pos, len, MADV_DONTNEED);
		break;
	case OP_PAGEOUT:
		ret = madvise(map + pos, len, MADV_PAGEOUT);
		fail = false;
		break;
	case OP_REMAP:
		ret = mmap(map + pos, len, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_FIXED, fd, pos) == MAP_FAILED ? -1 : 0;
		break;
	case OP_MLOCK:
		/* There may be no such page, or a limit. */
		ret = mlock(map + pos, len);
		munlock(map + pos, len);
		fail = false;
		break;
	default:
		ret = readahead(fd, pos, len);
		break;
	}
	if (ret < 0 && fail)
		fail_errno(ops[t->op].name, errno);
	end(ret < 0 ? -errno : ret);
	switch (t->op) {
	case OP_LOAD_OTHERS:
	case OP_PREAD_OTHERS:
	case OP_MLOCK:
	case OP_READAHEAD:
		unlock();
	default:
		break;
	}
}

static void device_op(struct thread *t, const uint64_t *r)
{
	uint64_t pos, size;
	size_t len;
	int ret = 0;

	pick_any(r, &pos, &len);
	switch (t->op) {
	case OP_MIGRATE_POPULATE:
		/* To be migrated, it has to be in the page table. */
		read_lock();
		begin(t->op, pos, len);
		madvise(maps[0] + pos, len,
			r[3] % 3 ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
		unlock();
		ret = device_command(HMM_DMIRROR_MIGRATE_TO_DEV, pos, t->buf,
				     len / ps, NULL);
		break;
	case OP_MIGRATE:
		begin(t->op, pos, len);
		ret = device_command(HMM_DMIRROR_MIGRATE_TO_DEV, pos, t->buf,
				     len / ps, NULL);
		break;
	case OP_MIGRATE_BACK:
		begin(t->op, pos, len);
		ret = device_command(HMM_DMIRROR_MIGRATE_TO_SYS, pos, t->buf,
				     len / ps, NULL);
		break;
	case OP_EVICT:
		begin(t->op, 0, PAGES * ps);
		ret = device_command(HMM_DMIRROR_EVICT, 0, NULL, 1, NULL);
		break;
	case OP_DEVICE_READ:
		/* Half of the time what is all ours */
		if (r[3] & 1)
			pick(r, true, &pos, &len);
		read_lock();
		lock_pages(pos, len);
		size = roundup(file_size(), ps);
		begin(t->op, pos, len);
		if (pos < size) {
			len = MIN(len, size - pos);
			ret = device_access(HMM_DMIRROR_READ, pos, t->buf, len / ps);
			if (!ret)
				check(pos, t->buf, len, true);
			else if (ret != -EFAULT || !me || pos + len <= STRIPED * ps)
				fail_errno("HMM_DMIRROR_READ", -ret);
		}
		end(ret);
		unlock_pages(t->pos, t->len);
		unlock();
		return;
	default:
		pick(r, true, &pos, &len);
		read_lock();
		lock_pages(pos, len);
		size = file_size() / ps * ps;
		begin(t->op, pos, len);
		if (pos < size) {
			len = MIN(len, size - pos);
			fill(t->buf, pos, len, ++t->version | 0x8000);
			ret = device_access(HMM_DMIRROR_WRITE, pos, t->buf, len / ps);
			if (ret)
				fail_errno("HMM_DMIRROR_WRITE", -ret);
			memcpy(model + pos, t->buf, len);
		}
		end(ret);
		unlock_pages(t->pos, t->len);
		unlock();
		return;
	}
	/* Not all of it was there, or it did not go, or there is no memory. */
	if (ret && ret != -ENOENT && ret != -ENOMEM)
		fail_errno(ops[t->op].name, -ret);
	if (!ret && (t->op == OP_MIGRATE || t->op == OP_MIGRATE_POPULATE))
		check(pos, t->buf, len, false);
	end(ret);
}

static enum op pick_op(bool device, uint64_t r)
{
	static unsigned int sums[2];
	unsigned int at;

	if (!sums[device]) {
		unsigned int sum = 0;

		for (int i = 0; i < NR_OPS; i++)
			sum += device ? ops[i].device : ops[i].cpu;
		sums[device] = sum;
	}
	at = r % sums[device];
	for (int i = 0; ; i++) {
		unsigned int weight = device ? ops[i].device : ops[i].cpu;

		if (at < weight)
			return i;
		at -= weight;
	}
}

static void init_thread(struct thread *t, bool device)
{
	t->device = device;
	t->random = seed * 1000003 + me * 2 + device;
	t->buf = aligned_alloc(ps, MAX_RANGE * ps);
	t->state = &shared->state[me][device];
	t->state->tid = syscall(SYS_gettid);
	self = t;
	if (!t->buf || pipe(t->pipe))
		fail_errno("no memory, or no pipe", errno);
}

static void *run_thread(void *arg)
{
	struct thread t = {};
	uint64_t r[6];

	init_thread(&t, !!arg);
	while (!__atomic_load_n(&shared->stop, __ATOMIC_ACQUIRE)) {
		/* The same number of them each time: the sequence is fixed. */
		for (int i = 0; i < 6; i++)
			r[i] = mix(&t.random);
		t.op = pick_op(t.device, r[0]);
		__atomic_fetch_add(&t.state->beats, 1, __ATOMIC_RELAXED);
		if (t.device)
			device_op(&t, r);
		else if (t.op <= OP_TRUNCATE_TAIL)
			cpu_own(&t, r);
		else if (t.op <= OP_DIRECT_WRITE)
			cpu_all(&t, r);
		else
			cpu_any(&t, r);
	}
	t.state->op = NR_OPS;
	return NULL;
}

static void fault_handler(int sig, siginfo_t *info, void *context)
{
	uint64_t addr = (uintptr_t)info->si_addr;

	if (self && first_failure()) {
		ksft_print_msg("  signal %d at %#llx, offset %#llx or %#llx; size %llu\n",
			       sig, (unsigned long long)addr,
			       (unsigned long long)(addr - (uintptr_t)maps[0]),
			       (unsigned long long)(addr - (uintptr_t)maps[1]),
			       (unsigned long long)file_size());
		if (self->pos / ps < PAGES)
			print_history(self->pos / ps);
	}
	leave();
}

static bool map_file(void)
{
	for (int i = 0; i < 2; i++) {
		maps[i] = mmap(NULL, PAGES * ps, PROT_READ | PROT_WRITE,
			       MAP_SHARED, fd, 0);
		if (maps[i] == MAP_FAILED)
			return false;
	}
	return true;
}

static void unmap_file(void)
{
	munmap(maps[0], PAGES * ps);
	munmap(maps[1], PAGES * ps);
}

static int __noreturn run_process(unsigned int process)
{
	struct sigaction sa = {
		.sa_sigaction = fault_handler,
		.sa_flags = SA_SIGINFO,
	};
	struct thread first = {};
	pthread_t device;
	size_t from, to;

	me = process;
	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
	first.state = &shared->state[me][0];
	self = &first;
	for (unsigned long page = 0; page < PAGES; page++) {
		pthread_mutex_init(&page_locks[page], NULL);
		if (!owns(me, page, &from, &to))
			continue;
		some[nr_some++] = page;
		if (!page_is_split(page))
			whole[nr_whole++] = page;
	}
	fd = open(path, O_RDWR);
	fd_direct = open(path, O_RDWR | O_DIRECT);
	fd_caches = open("/proc/sys/vm/drop_caches", O_WRONLY);
	dev = open(DEVICE, O_RDWR);
	if (fd < 0 || dev < 0 || !map_file())
		fail_errno("open or mmap", errno);
	if (pthread_create(&device, NULL, run_thread, &first))
		fail_errno("pthread_create", errno);
	run_thread(NULL);
	pthread_join(device, NULL);
	_exit(__atomic_load_n(&shared->failed, __ATOMIC_ACQUIRE));
}

/* 0, or -errno; -ENOENT if there is no such file system here */
static int mount_fs(void)
{
	int file, ret;

	snprintf(dir, sizeof(dir), TOP "/%s", fs->name);
	snprintf(path, sizeof(path), "%s/file", dir);
	snprintf(image, sizeof(image), IMAGES "/%s", fs->name);
	mkdir(dir, 0700);
	if (!fs->mkfs) {
		if (!mount("hmm_file_stress", dir, fs->type, 0, fs->options))
			return 0;
		return errno == ENODEV ? -ENOENT : -errno;
	}
	if (no_mkfs(fs->mkfs))
		return -ENOENT;
	file = open(image, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (file < 0 || ftruncate(file, (off_t)fs->mib << 20))
		return -errno;
	close(file);
	if (run("%s %s >/dev/null", fs->mkfs, image))
		return -EINVAL;
	ret = mount_image(image, dir, fs->type, fs->options);
	return ret == -ENODEV ? -ENOENT : ret;
}

static int umount_fs(void)
{
	for (int i = 0; i < 50; i++) {
		if (!umount(dir))
			return 0;
		if (errno != EBUSY)
			break;
		usleep(100000);
	}
	return -errno;
}

static void print_file(const char *name, pid_t pid, pid_t tid)
{
	char file[64], line[256];
	FILE *f;

	snprintf(file, sizeof(file), "/proc/%d/task/%d/%s", pid, tid, name);
	f = fopen(file, "r");
	if (!f)
		return;
	while (fgets(line, sizeof(line), f))
		ksft_print_msg("    %s: %s%s", name, line, strchr(line, '\n') ? "" : "\n");
	fclose(f);
}

static void print_hang(const pid_t *pids)
{
	int sysrq;

	__atomic_store_n(&shared->failed, 1, __ATOMIC_RELEASE);
	ksft_print_msg("FAILED: %s, -s %llu -p %u, after %u ms: somebody hangs\n",
		       fs->name, (unsigned long long)seed, processes, ms());
	for (unsigned int i = 0; i < processes; i++) {
		for (int j = 0; j < 2; j++) {
			struct state *s = &shared->state[i][j];

			ksft_print_msg("  process %u%s: operation %llu, %s %#llx+%#llx\n", i,
				       j ? " (device)" : "",
				       (unsigned long long)s->beats,
				       s->op < NR_OPS ? ops[s->op].name : "done",
				       (unsigned long long)s->pos,
				       (unsigned long long)s->len);
			print_file("wchan", pids[i], s->tid);
			print_file("stack", pids[i], s->tid);
			print_file("syscall", pids[i], s->tid);
		}
	}
	sysrq = open("/proc/sysrq-trigger", O_WRONLY);
	if (sysrq >= 0) {
		if (write(sysrq, "w", 1) != 1)
			ksft_print_msg("  no sysrq\n");
		close(sysrq);
	}
}

/* Whether all processes ended as they should; exits if they cannot be ended. */
static bool run_processes(void)
{
	uint64_t beats[MAX_PROCESSES][2] = {};
	uint32_t changed[MAX_PROCESSES][2] = {};
	pid_t pids[MAX_PROCESSES] = {};
	unsigned int left = processes;
	uint32_t stopped = 0;
	bool ok = true, killed = false;

	fflush(stdout);
	for (unsigned int i = 0; i < processes; i++) {
		pids[i] = fork();
		if (!pids[i])
			run_process(i);
		if (pids[i] < 0)
			ksft_exit_fail_perror("fork");
	}
	while (left) {
		bool hangs = false;
		int status;
		pid_t pid;

		usleep(50000);
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
			for (unsigned int i = 0; i < processes; i++) {
				if (pids[i] == pid) {
					pids[i] = 0;
					left--;
				}
			}
			if (status) {
				if (WIFSIGNALED(status) && !killed)
					ksft_print_msg("  a process got signal %d\n",
						       WTERMSIG(status));
				ok = false;
			}
		}
		if (ms() > seconds * 1000 || !ok)
			__atomic_store_n(&shared->stop, 1, __ATOMIC_RELEASE);
		for (unsigned int i = 0; i < processes; i++) {
			for (int j = 0; pids[i] && j < 2; j++) {
				uint64_t now = __atomic_load_n(&shared->state[i][j].beats,
							       __ATOMIC_RELAXED);

				if (now != beats[i][j]) {
					beats[i][j] = now;
					changed[i][j] = ms();
				} else if (shared->state[i][j].op != NR_OPS &&
					   ms() - changed[i][j] > hang_seconds * 1000) {
					hangs = true;
				}
			}
		}
		/* Who has failed may have left with locks. */
		if (!ok && !stopped)
			stopped = ms();
		if (hangs && !killed && ok) {
			print_hang(pids);
			ok = false;
			stopped = ms() - 3000;
		}
		if (left && stopped && ms() - stopped > 3000) {
			if (!killed) {
				for (unsigned int i = 0; i < processes; i++)
					if (pids[i])
						kill(pids[i], SIGKILL);
				killed = true;
			} else if (ms() - stopped > 20000) {
				ksft_test_result_fail("%s: somebody cannot be killed\n",
						      fs->name);
				ksft_exit_fail();
			}
		}
	}
	return ok && !shared->failed;
}

static long resident(const struct hmm_dmirror_stats *before,
		     struct hmm_dmirror_stats *now)
{
	if (ioctl(dev, HMM_DMIRROR_STATS, now))
		return -errno;
	return (now->allocs - before->allocs) - (now->frees - before->frees);
}

/* All is compared with the model: nobody else is there. */
static void compare(const char *buf, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++) {
		uint64_t bad = 0;

		if (buf[i] == model[i])
			continue;
		for (uint64_t j = i; j < len; j++)
			bad += buf[j] != model[j];
		mismatch(i, buf + i, model + i, len - i, bad);
	}
}

/* Up to the end of the file; after that there has to be nothing. */
static void final_read(enum op op, char *buf)
{
	uint64_t size = file_size(), done = 0;
	struct stat st;

	begin(op, 0, PAGES * ps);
	if (fstat(fd, &st))
		fail_errno("fstat", errno);
	if (st.st_size != (off_t)size)
		fail_errno("the size is wrong", EIO);
	while (done < size) {
		ssize_t ret = pread(fd, buf + done, PAGES * ps - done, done);

		if (ret <= 0)
			fail_errno("pread", ret ? errno : EIO);
		done += ret;
	}
	compare(buf, size);
	end(0);
}

static void final_device(enum op op, char *buf)
{
	uint64_t pages = file_size() / ps;
	int ret;

	if (!map_file())
		fail_errno("mmap", errno);
	begin(op, 0, pages * ps);
	if (op == OP_FINAL_DEVICE_WRITE) {
		if (pages && madvise(maps[0], pages * ps, MADV_POPULATE_WRITE))
			fail_errno("MADV_POPULATE_WRITE", errno);
		ret = device_command(HMM_DMIRROR_MIGRATE_TO_DEV, 0, buf, pages, NULL);
		if (!ret)
			compare(buf, pages * ps);
		fill(model, 0, pages * ps, 0x4242);
		ret = device_access(HMM_DMIRROR_WRITE, 0, model, pages);
	} else {
		if (pages && madvise(maps[0], pages * ps, MADV_POPULATE_READ))
			fail_errno("MADV_POPULATE_READ", errno);
		device_command(HMM_DMIRROR_MIGRATE_TO_DEV, 0, buf, pages, NULL);
		memset(buf, 0, pages * ps);
		ret = device_access(HMM_DMIRROR_READ, 0, buf, pages);
	}
	if (pages && ret)
		fail_errno("the device cannot access the file", -ret);
	if (op == OP_FINAL_DEVICE_READ)
		compare(buf, pages * ps);
	end(ret);
	unmap_file();
}

/* In a process of its own, as it ends when something is wrong. */
static void __noreturn run_end(const struct hmm_dmirror_stats *before)
{
	struct thread t = {};
	struct hmm_dmirror_stats now;
	long left = 0;
	char *buf;
	int ret;

	me = MAX_PROCESSES - 1;
	init_thread(&t, false);
	buf = aligned_alloc(ps, PAGES * ps);
	dev = open(DEVICE, O_RDWR);
	fd = open(path, O_RDWR);
	if (!buf || dev < 0 || fd < 0)
		fail_errno("open", errno);
	final_read(OP_FINAL_READ, buf);
	/* One by one: a large folio that is dirty cannot always be split. */
	if (ftruncate(fd, 0))
		fail_errno("ftruncate", errno);
	for (uint64_t pos = 0; pos < file_size(); pos += ps)
		write_model(pos, MIN(ps, file_size() - pos));
	final_device(OP_FINAL_DEVICE_WRITE, buf);
	if (fs->mkfs) {
		/* All of it is dirty, and only the device has it. */
		close(fd);
		ret = umount_fs();
		if (ret)
			fail_errno("umount", -ret);
		ret = mount_image(image, dir, fs->type, fs->options);
		if (ret)
			fail_errno("mount", -ret);
		fd = open(path, O_RDWR);
		if (fd < 0)
			fail_errno("open", errno);
	}
	final_read(OP_FINAL_MOUNT, buf);
	final_device(OP_FINAL_DEVICE_READ, buf);
	close(fd);
	if (unlink(path))
		fail_errno("unlink", errno);
	/* Some file systems leave it to a thread. */
	for (int i = 0; i < 200; i++) {
		left = resident(before, &now);
		if (!left)
			break;
		sync();
		usleep(100000);
	}
	if (left) {
		if (first_failure())
			ksft_print_msg("  the device does not get %ld of its pages back\n",
				       left);
		leave();
	}
	if (now.allocs == before->allocs || now.recalls == before->recalls) {
		if (first_failure())
			ksft_print_msg("  %llu pages migrated, %llu recalled: nothing was tested\n",
				       (unsigned long long)(now.allocs - before->allocs),
				       (unsigned long long)(now.recalls - before->recalls));
		leave();
	}
	ksft_print_msg("%s: %llu pages migrated, %llu recalled\n", fs->name,
		       (unsigned long long)(now.allocs - before->allocs),
		       (unsigned long long)(now.recalls - before->recalls));
	fflush(stdout);
	_exit(0);
}

static void init_file(void)
{
	struct thread t = {};
	uint64_t len = PAGES * ps;

	memset(shared->state, 0, sizeof(shared->state));
	memset(shared->history, 0, sizeof(shared->history));
	memset(shared->done, 0, sizeof(shared->done));
	memset(shared->us, 0, sizeof(shared->us));
	memset(model, 0, len);
	shared->stop = 0;
	shared->failed = 0;
	shared->busy = 0;
	/* Nobody has a version yet; what is nobody's stays zero. */
	for (unsigned int i = 0; i < processes; i++) {
		for (unsigned long page = 0; page < PAGES; page++) {
			size_t from, to;

			if (owns(i, page, &from, &to))
				fill(model + page * ps + from, page * ps + from,
				     to - from, 0);
		}
	}
	self = &t;
	t.state = &shared->state[0][0];
	write_model(0, len);
	shared->size = len;
}

static bool test(void)
{
	struct hmm_dmirror_stats before;
	pthread_rwlockattr_t attr;
	bool ok;
	pid_t pid;
	int status;

	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&shared->size_lock, &attr);

	dev = open(DEVICE, O_RDWR);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (dev < 0 || fd < 0)
		ksft_exit_fail_perror("open");
	if (!map_file())
		ksft_exit_fail_perror("mmap");
	if (device_command(HMM_DMIRROR_EVICT, 0, NULL, 1, NULL))
		ksft_exit_fail_perror("HMM_DMIRROR_EVICT");
	unmap_file();
	resident(&(struct hmm_dmirror_stats){}, &before);
	init_file();
	close(fd);
	close(dev);

	clock_gettime(CLOCK_MONOTONIC, &start);
	ok = run_processes();
	if (ok) {
		shared->stop = 0;
		fflush(stdout);
		pid = fork();
		if (!pid)
			run_end(&before);
		/* What hangs here hangs in the kernel: the same watchdog. */
		for (uint32_t from = ms();;) {
			if (waitpid(pid, &status, WNOHANG) == pid) {
				ok = !status;
				break;
			}
			if (ms() - from > hang_seconds * 1000) {
				struct state *s = &shared->state[MAX_PROCESSES - 1][0];

				ksft_print_msg("FAILED: %s, -s %llu -p %u: it hangs at the end, %s\n",
					       fs->name, (unsigned long long)seed,
					       processes, ops[s->op % NR_OPS].name);
				print_file("stack", pid, pid);
				kill(pid, SIGKILL);
				ksft_test_result_fail("%s\n", fs->name);
				ksft_exit_fail();
			}
			usleep(20000);
		}
	}
	for (int i = 0; i < NR_OPS; i++) {
		if (verbose && shared->done[i])
			ksft_print_msg("%6llu times %s, %llu us each\n",
				       (unsigned long long)shared->done[i], ops[i].name,
				       (unsigned long long)(shared->us[i] / shared->done[i]));
	}
	ksft_print_msg("%s: %u ms, %llu times busy\n", fs->name, ms(),
		       (unsigned long long)shared->busy);
	return ok;
}

static void test_fs(void)
{
	int ret = mount_fs();

	if (ret == -ENOENT) {
		ksft_test_result_skip("%s: there is no mkfs for it, or no such file system\n",
				      fs->name);
		return;
	}
	if (ret) {
		ksft_print_msg("%s: mount: %s\n", fs->name, strerror(-ret));
		ksft_test_result_fail("%s\n", fs->name);
		return;
	}
	ksft_test_result(test(), "%s\n", fs->name);
	umount2(dir, MNT_DETACH);
	unlink(image);
}

static void __noreturn print_help(const char *name)
{
	fprintf(stderr, "usage: %s [-t seconds] [-s seed] [-p processes] [-w seconds] [-f fs[,fs]] [-v]\n"
		"  -t  for each file system: %u\n"
		"  -s  of the random numbers; else of the clock\n"
		"  -p  up to %u: %u\n"
		"  -w  what takes as long as that hangs: %u\n"
		"  -f  of:", name, seconds, MAX_PROCESSES - 1, processes, hang_seconds);
	for (unsigned int i = 0; i < ARRAY_SIZE(file_systems); i++)
		fprintf(stderr, " %s", file_systems[i].name);
	fprintf(stderr, "\n");
	exit(KSFT_FAIL);
}

int main(int argc, char **argv)
{
	const struct fs *chosen[ARRAY_SIZE(file_systems)];
	unsigned int nr = 0;
	char *names = NULL;
	struct stat st;
	int opt;

	ps = sysconf(_SC_PAGESIZE);
	clock_gettime(CLOCK_REALTIME, &start);
	seed = ((uint64_t)start.tv_sec * 1000000 + start.tv_nsec / 1000) & 0xffffffff;
	while ((opt = getopt(argc, argv, "t:s:p:w:f:v")) != -1) {
		switch (opt) {
		case 't':
			seconds = atoi(optarg);
			break;
		case 's':
			seed = strtoull(optarg, NULL, 0);
			break;
		case 'p':
			processes = atoi(optarg);
			break;
		case 'w':
			hang_seconds = atoi(optarg);
			break;
		case 'f':
			names = optarg;
			break;
		case 'v':
			verbose = true;
			break;
		default:
			print_help(argv[0]);
		}
	}
	if (processes < 1 || processes >= MAX_PROCESSES || optind != argc)
		print_help(argv[0]);
	if (!names) {
		for (; nr < ARRAY_SIZE(file_systems); nr++)
			chosen[nr] = &file_systems[nr];
	}
	for (char *name = names ? strtok(names, ",") : NULL; name; name = strtok(NULL, ",")) {
		unsigned int i = 0;

		while (i < ARRAY_SIZE(file_systems) && strcmp(name, file_systems[i].name))
			i++;
		if (i == ARRAY_SIZE(file_systems) || nr == ARRAY_SIZE(chosen))
			print_help(argv[0]);
		chosen[nr++] = &file_systems[i];
	}

	ksft_print_header();
	if (stat(DEVICE, &st))
		ksft_exit_skip("no " DEVICE "\n");
	if (geteuid())
		ksft_exit_skip("mounting wants root\n");
	/* What is mounted goes away with us. */
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		ksft_exit_skip("no mount namespace: %s\n", strerror(errno));
	mkdir(TOP, 0700);
	if (mount("hmm_file_stress", TOP, "tmpfs", 0, "size=1m") || mkdir(IMAGES, 0700) ||
	    mount("images", IMAGES, "tmpfs", 0, "size=512m"))
		ksft_exit_fail_perror("mount");
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	model = mmap(NULL, PAGES * ps, PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || model == MAP_FAILED)
		ksft_exit_fail_perror("mmap");

	ksft_set_plan(nr);
	ksft_print_msg("-s %llu -p %u -t %u\n", (unsigned long long)seed, processes,
		       seconds);
	for (unsigned int i = 0; i < nr; i++) {
		fs = chosen[i];
		test_fs();
		fflush(stdout);
	}
	ksft_finished();
}
