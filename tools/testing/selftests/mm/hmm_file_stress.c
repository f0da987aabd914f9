// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of files in device private memory: who runs against whom. The table of
 * pairs is at the end: two processes, each with a device of its own, change one
 * file, or have its pages written back, reclaimed, evicted. Before each step, a
 * device takes some pages, of whichever process.
 *
 * What the file has is known exactly although both go on at once: each byte has
 * an owner, who alone changes it, and compares it with a model of the file. Of
 * four pages one is of each process, and two are shared, half and half. The last
 * ones belong to the first process, which may truncate the file there.
 *
 * To truncate more, and to write with O_DIRECT, a process wants the lock for
 * writing; who has the CPU access pages has it for reading. Migration, writeback
 * and reclaim don't ask for it.
 *
 * SEED and STEPS of the environment repeat what failed, or make it longer.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/uio.h>

#include "kselftest_harness.h"
#include "hmm_file_util.h"

#define NR		64UL		/* pages */
#define TAIL		48UL		/* the first of those that may be truncated */
#define MOST		8		/* pages of an operation */
#define BYTES		(NR * psize())
#define HISTORY		48

static struct shared {
	pthread_rwlock_t lock;
	unsigned int done[2];
	unsigned int next;
	int failed;
	struct record {
		const char *what;
		unsigned int who, pos, len;
	} history[HISTORY];
	char model[];
} *shared;

static unsigned long seed, steps, number;
static unsigned int me, version;
static int direct;
static size_t size;		/* of the file; the first process's */
static char *p, *range;		/* the mapping; MOST pages, aligned */

static unsigned long any(unsigned long below)
{
	number = number * 6364136223846793005UL + 1442695040888963407UL;
	return (number >> 33) % below;
}

static void note(const char *what, size_t pos, size_t len)
{
	unsigned int i = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED);

	shared->history[i % HISTORY] = (struct record){ what, me, pos, len };
}

/* Only the first one to fail says so; the other may have left with the lock. */
static void __noreturn fail(const char *what, size_t pos)
{
	if (__atomic_exchange_n(&shared->failed, 1, __ATOMIC_ACQ_REL))
		_exit(KSFT_FAIL);
	ksft_print_msg("%s: SEED=%lu STEPS=%lu: process %u: %s, page %zu + %zu: %s\n",
		       fs->name, seed, steps, me, what, pos / psize(),
		       pos % psize(), strerror(errno));
	for (unsigned int i = shared->next; i < shared->next + HISTORY; i++) {
		const struct record *r = &shared->history[i % HISTORY];

		if (r->what)
			ksft_print_msg("  %u: %s, page %u + %u, %u bytes\n", r->who,
				       r->what, r->pos / psize(), r->pos % psize(),
				       r->len);
	}
	_exit(KSFT_FAIL);
}

/* Bytes of this process: in a page that it may share, or pages of its own */
static size_t own(bool whole, size_t *len)
{
	const size_t half = psize() / 2;
	unsigned long page = any(TAIL / 4) * 4;
	size_t pos;

	*len = psize();
	if (!me && !any(4))
		return (TAIL + any(NR - TAIL)) * psize();
	if (whole)
		return (page + me) * psize();
	if (!any(3)) {
		pos = (page + me) * psize();
	} else {
		pos = (page + 2 + any(2)) * psize() + me * half;
		*len = half;
	}
	page = any(*len);
	*len = any(2) ? *len - page : 1 + any(*len - page);
	return pos + page;
}

/* What the file has there now; the part of it that can be accessed by pages */
static size_t reach(size_t pos, size_t len)
{
	const size_t to = me ? BYTES : (size + psize() - 1) / psize() * psize();

	return pos >= to ? 0 : len < to - pos ? len : to - pos;
}

static void check(const char *what, const char *found, size_t pos, size_t len)
{
	const char *model = shared->model + pos;

	for (size_t i = 0; i < len; i++) {
		if (found[i] == model[i])
			continue;
		ksft_print_msg("found %#x, not %#x\n", (unsigned char)found[i],
			       (unsigned char)model[i]);
		fail(what, pos + i);
	}
}

/* They give up when pages come and go for a second. */
static int device_access(unsigned long request, size_t pos, size_t len)
{
	while ((errno = -command(request, p + pos, range, len / psize())) == EBUSY)
		;
	return errno ? -1 : 0;
}

/* Own bytes are what the model has, however they are read. */
static void look(void)
{
	static const char * const ways[] = {
		"read", "load", "direct read", "process_vm_readv", "device read",
	};
	const unsigned int way = any(ARRAY_SIZE(ways));
	const bool whole = way == 2 || way == 4;
	size_t len, pos = own(whole, &len);
	struct iovec local, remote;
	long ret = 0;

	pthread_rwlock_rdlock(&shared->lock);
	note(ways[way], pos, len);
	if (way != 0 && way != 2)
		len = reach(pos, len);
	local = (struct iovec){ range, len };
	remote = (struct iovec){ p + pos, len };
	memset(range, 0, len);
	if (way == 0)
		ret = pread(fd, range, len, pos);
	else if (way == 1)
		memcpy(range, p + pos, len);
	else if (way == 3 && len)
		ret = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	else if (way == 4 && len)
		ret = device_access(HMM_DMIRROR_READ, pos, len);
	/*
	 * Whoever makes a page writable between writeback and the look at the
	 * blocks makes it fail, see IOMAP_DELALLOC in iomap_dio_iter().
	 */
	for (int try = 0; way == 2 && try < 20; try++) {
		ret = pread(direct, range, len, pos);
		if (ret >= 0 || errno != EIO)
			break;
	}
	if (ret < 0)
		fail(ways[way], pos);
	check(ways[way], range, pos, len);
	pthread_rwlock_unlock(&shared->lock);
}

static void new_bytes(size_t len)
{
	version++;
	for (size_t i = 0; i < len; i++)
		range[i] = version * 31 + i * 7 + me + 1;
}

static void changed(size_t pos, size_t len)
{
	memcpy(shared->model + pos, range, len);
	if (pos + len > size)
		size = pos + len;
}

/* --- What a process can do: to its own bytes, --- */

static void do_store(void)
{
	size_t len, pos = own(false, &len);

	note("store", pos, len);
	len = pos < size ? len < size - pos ? len : size - pos : 0;
	new_bytes(len);
	memcpy(p + pos, range, len);
	changed(pos, len);
}

static void write_own(const char *what, int file, bool whole)
{
	size_t len, pos = own(whole, &len);

	note(what, pos, len);
	new_bytes(len);
	if (pwrite(file, range, len, pos) != (ssize_t)len)
		fail(what, pos);
	changed(pos, len);
}

static void do_write(void)
{
	write_own("write", fd, false);
}

static void do_direct(void)
{
	write_own("direct write", direct, true);
}

static void do_device(void)
{
	size_t len, pos = own(true, &len);

	note("device write", pos, len);
	if (pos + len > size)
		return;
	new_bytes(len);
	if (device_access(HMM_DMIRROR_WRITE, pos, len))
		fail("device write", pos);
	changed(pos, len);
}

/* There has to be something that goes. */
static void do_punch(void)
{
	size_t len, pos;

	any(2) ? do_write() : do_device();
	pos = own(any(2), &len);
	note("punch", pos, len);
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, pos, len))
		fail("punch", pos);
	memset(shared->model + pos, 0, len);
}

/* Half of the time in the middle of a page */
static void truncate_from(size_t from)
{
	struct stat st;

	for (int i = 0; i < 3; i++)
		any(2) ? do_write() : do_device();
	size = from + any(BYTES - from + 1);
	if (any(2))
		size -= size % psize();
	note("truncate", size, 0);
	if (ftruncate(fd, size) || fstat(fd, &st) || st.st_size != (off_t)size)
		fail("truncate", size);
	memset(shared->model + size, 0, BYTES - size);
}

static void do_truncate(void)
{
	truncate_from(TAIL * psize());
}

static void do_cut(void)
{
	truncate_from(0);
	if (size >= TAIL * psize())
		return;
	size = TAIL * psize();
	if (ftruncate(fd, size))
		fail("extend", size);
}

/* --- or to any pages, which stay what they are. --- */

static void do_sync(void)
{
	const size_t pos = any(NR - MOST) * psize(), len = MOST * psize();
	const unsigned int way = any(5);

	note("sync", pos, len);
	if (way == 0 ? fsync(fd) : way == 1 ? fdatasync(fd) : way == 2 ? syncfs(fd) :
	    way == 3 ? msync(p + pos, len, MS_SYNC) :
		       sync_file_range(fd, pos, len, SYNC_FILE_RANGE_WRITE))
		fail("sync", pos);
}

static void do_reclaim(void)
{
	const size_t pos = any(NR - MOST) * psize(), len = MOST * psize();

	note("reclaim", pos, len);
	switch (any(16)) {
	case 0:
		set_file(DROP_CACHES, "3");
		break;
	case 1 ... 4:
		madvise(p + pos, len, MADV_PAGEOUT);
		break;
	case 5 ... 7:
		madvise(p + pos, len, MADV_DONTNEED);
		break;
	case 8 ... 10:
		posix_fadvise(fd, pos, len, POSIX_FADV_DONTNEED);
		break;
	case 11 ... 12:
		mlock(p + pos, len);
		munlock(p + pos, len);
		break;
	case 13:
		readahead(fd, pos, len);
		break;
	default:
		if (mmap(p + pos, len, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, pos) == MAP_FAILED)
			fail("mmap", pos);
	}
}

static void do_evict(void)
{
	const size_t pos = any(NR - MOST) * psize();

	note("evict", pos, MOST * psize());
	if (any(4))
		command(HMM_DMIRROR_MIGRATE_TO_SYS, p + pos, range, MOST);
	else
		evict();
}

static void take(void)
{
	const size_t pos = any(NR - MOST) * psize(), len = (1 + any(MOST)) * psize();
	const unsigned int populate = any(4);

	note("migrate", pos, len);
	/* To go, a page has to be in the page table. */
	if (populate) {
		pthread_rwlock_rdlock(&shared->lock);
		madvise(p + pos, len, populate == 1 ? MADV_POPULATE_READ :
						      MADV_POPULATE_WRITE);
		pthread_rwlock_unlock(&shared->lock);
	}
	command(HMM_DMIRROR_MIGRATE_TO_DEV, p + pos, range, len / psize());
}

/* What the processes of a pair do, and how they have the lock for it */
static const struct actor {
	enum { NONE, SHARED, ALONE } lock;
	void (*step)(void);
} store = { SHARED, do_store };
static const struct actor write_ = { SHARED, do_write };
static const struct actor direct_ = { ALONE, do_direct };
static const struct actor device = { SHARED, do_device };
static const struct actor punch = { SHARED, do_punch };
static const struct actor truncate_ = { SHARED, do_truncate };
static const struct actor cut = { ALONE, do_cut };
static const struct actor sync_ = { NONE, do_sync };
static const struct actor reclaim = { NONE, do_reclaim };
static const struct actor evict_ = { NONE, do_evict };

static pid_t start(unsigned int who, const struct actor *a)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	me = who;
	number = seed * 2 + me;
	size = BYTES;
	dev = open(DEVICE, O_RDWR);
	fd = open(path, O_RDWR);
	direct = open(path, O_RDWR | O_DIRECT);
	p = map(0, NR, PROT_READ | PROT_WRITE, MAP_SHARED);
	if (dev < 0 || direct < 0 || !p)
		fail("open", 0);
	while ((shared->done[0] < steps || shared->done[1] < steps) && !shared->failed) {
		if (any(2))
			take();
		if (a->lock == SHARED)
			pthread_rwlock_rdlock(&shared->lock);
		else if (a->lock == ALONE)
			pthread_rwlock_wrlock(&shared->lock);
		a->step();
		/* Only who has bytes to change has some to look at. */
		if (a->lock) {
			pthread_rwlock_unlock(&shared->lock);
			look();
		}
		__atomic_add_fetch(&shared->done[me], 1, __ATOMIC_RELAXED);
	}
	/* The file has its size, for what is compared in the end. */
	if (!me && ftruncate(fd, BYTES))
		fail("extend", size);
	_exit(0);
}

FIXTURE(pair) { };
FIXTURE_VARIANT(pair) { const char *fs; };

FIXTURE_SETUP(pair)
{
	const char *reason = new_file(variant->fs);
	pthread_rwlockattr_t attr;

	if (reason)
		SKIP(return, "%s: %s", variant->fs, reason);
	seed = getenv("SEED") ? atol(getenv("SEED")) : time(NULL) % 1000000;
	steps = getenv("STEPS") ? atol(getenv("STEPS")) : 30;
	shared = mmap(NULL, sizeof(*shared) + BYTES, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	range = aligned_alloc(psize(), MOST * psize());
	ASSERT_NE(MAP_FAILED, shared);
	ASSERT_NE(NULL, range);
	ASSERT_EQ(0, ftruncate(fd, BYTES));
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_rwlock_init(&shared->lock, &attr);
}

FIXTURE_TEARDOWN(pair)
{
	EXPECT_TRUE(end_file());
}

static void run_pair(struct __test_metadata *_metadata, pid_t a, pid_t b)
{
	int status[2];

	waitpid(a, &status[0], 0);
	waitpid(b, &status[1], 0);
	ASSERT_EQ(0, status[0]);
	ASSERT_EQ(0, status[1]);
	for (size_t pos = 0; pos < BYTES; pos += SIZE) {
		ASSERT_EQ(SIZE, pread(fd, buf, SIZE, pos));
		check("at the end", buf, pos, SIZE);
	}
	p = map(0, NR, PROT_READ | PROT_WRITE, MAP_SHARED);
	ASSERT_EQ(0, ftruncate(fd, 0));
	ASSERT_TRUE(write_pages(0, NR, 1));
	ASSERT_TRUE(migrate(p, NR, true));
	ASSERT_TRUE(device_writes(p, 0, NR, 2));
	munmap(p, BYTES);
	close(fd);
	ASSERT_TRUE(!fs->mkfs || remount());
	fd = open(path, O_RDWR);
	ASSERT_TRUE(read_right(0, NR, 2));
}

FIXTURE_VARIANT_ADD(pair, tmpfs) { "tmpfs" };
FIXTURE_VARIANT_ADD(pair, tmpfs_huge) { "tmpfs_huge" };
FIXTURE_VARIANT_ADD(pair, ext4) { "ext4" };
FIXTURE_VARIANT_ADD(pair, ext4_1k) { "ext4_1k" };
FIXTURE_VARIANT_ADD(pair, xfs) { "xfs" };
FIXTURE_VARIANT_ADD(pair, btrfs) { "btrfs" };
FIXTURE_VARIANT_ADD(pair, btrfs_zlib) { "btrfs_zlib" };

#define PAIR(fixture, name, a, b)					\
	TEST_F_TIMEOUT(fixture, name, TIMEOUT)				\
	{								\
		const pid_t first = start(0, &a);			\
									\
		run_pair(_metadata, first, start(1, &b));		\
	}

PAIR(pair, store_write, store, write_)
PAIR(pair, store_device, store, device)
PAIR(pair, store_punch, store, punch)
PAIR(pair, write_direct, write_, direct_)
PAIR(pair, device_device, device, device)
PAIR(pair, device_direct, device, direct_)
PAIR(pair, punch_device, punch, device)
PAIR(pair, truncate_store, truncate_, store)
PAIR(pair, truncate_device, truncate_, device)
PAIR(pair, store_sync, store, sync_)
PAIR(pair, write_sync, write_, sync_)
PAIR(pair, device_sync, device, sync_)
PAIR(pair, truncate_sync, cut, sync_)
PAIR(pair, direct_sync, direct_, sync_)
PAIR(pair, store_reclaim, store, reclaim)
PAIR(pair, device_reclaim, device, reclaim)
PAIR(pair, truncate_reclaim, cut, reclaim)
PAIR(pair, write_evict, write_, evict_)
PAIR(pair, device_evict, device, evict_)
PAIR(pair, truncate_evict, cut, evict_)

HMM_FILE_MAIN
