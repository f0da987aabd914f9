// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of files in device private memory: two processes, each with a device of its own, change
 * one file, or have its pages written back, reclaimed, evicted; the pairs are at the end. Before
 * each step, a device takes some pages, of whichever process.
 *
 * What the file has is known exactly although both go on at once: each byte has an owner, who
 * alone changes it, and compares it with a model of the file. Of four pages one is of each
 * process, and two are shared, half and half. The last ones belong to the first process, which
 * may truncate the file there.
 *
 * To write with O_DIRECT, a process wants the lock for writing; who has the CPU access pages has
 * it for reading. Migration, writeback and reclaim don't ask for it.
 *
 * SEED and STEPS of the environment repeat what failed, or make it longer.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include "hmm_file_util.h"

#define NR		64UL		/* pages */
#define TAIL		48UL		/* the first of those that may be truncated */
#define MOST		8		/* pages of an operation */
#define BYTES		(NR * psize())

static struct shared {
	pthread_rwlock_t lock;
	unsigned int done[2];
	int failed;
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

static void __noreturn fail(const char *what, size_t pos)
{
	shared->failed = 1;
	ksft_print_msg("%s: SEED=%lu STEPS=%lu: process %u: %s, page %zu + %zu: %s\n", fs->name,
		       seed, steps, me, what, pos / psize(), pos % psize(), strerror(errno));
	_exit(KSFT_FAIL);
}

/* Bytes of this process: in a page that it may share, or pages of its own */
static size_t own(bool whole, size_t *len)
{
	const size_t half = psize() / 2;
	unsigned long page = any(TAIL / 4) * 4;
	size_t pos, skip;

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
	skip = any(*len);
	*len = any(2) ? *len - skip : 1 + any(*len - skip);
	return pos + skip;
}

static void check(const char *what, const char *found, size_t pos, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (found[i] != shared->model[pos + i])
			fail(what, pos + i);
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
	static const char * const ways[] = { "read", "direct read", "load", "device read" };
	const unsigned int way = any(ARRAY_SIZE(ways));
	size_t len, pos = own(way & 1, &len);
	const size_t end = me ? BYTES : (size + psize() - 1) / psize() * psize();
	long ret = 0;

	pthread_rwlock_rdlock(&shared->lock);
	/* What can be accessed by pages */
	if (way > 1)
		len = pos >= end ? 0 : len < end - pos ? len : end - pos;
	memset(range, 0, len);
	if (way == 0)
		ret = pread(fd, range, len, pos);
	else if (way == 2)
		memcpy(range, p + pos, len);
	else if (way == 3 && len)
		ret = device_access(HMM_DMIRROR_READ, pos, len);
	/*
	 * Whoever makes a page writable between writeback and the look at the blocks makes it
	 * fail, see IOMAP_DELALLOC in iomap_dio_iter().
	 */
	for (int try = 0; way == 1 && try < 20; try++) {
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

static void store(void)
{
	size_t len, pos = own(false, &len);

	len = pos < size ? len < size - pos ? len : size - pos : 0;
	new_bytes(len);
	memcpy(p + pos, range, len);
	changed(pos, len);
}

static void write_own(int file, bool whole)
{
	size_t len, pos = own(whole, &len);

	new_bytes(len);
	if (pwrite(file, range, len, pos) != (ssize_t)len)
		fail("write", pos);
	changed(pos, len);
}

static void buffered(void)
{
	write_own(fd, false);
}

static void direct_io(void)
{
	write_own(direct, true);
}

static void device(void)
{
	size_t len, pos = own(true, &len);

	if (pos + len > size)
		return;
	new_bytes(len);
	if (device_access(HMM_DMIRROR_WRITE, pos, len))
		fail("device write", pos);
	changed(pos, len);
}

/* There has to be something that goes. */
static void punch(void)
{
	size_t len, pos;

	any(2) ? buffered() : device();
	pos = own(any(2), &len);
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, pos, len))
		fail("punch", pos);
	memset(shared->model + pos, 0, len);
}

/* Half of the time in the middle of a page */
static void cut(void)
{
	const size_t from = TAIL * psize();

	for (int i = 0; i < 3; i++)
		any(2) ? buffered() : device();
	size = from + any(BYTES - from + 1);
	if (any(2))
		size -= size % psize();
	if (ftruncate(fd, size))
		fail("truncate", size);
	memset(shared->model + size, 0, BYTES - size);
}

/* --- or to any pages, which stay what they are. --- */

static void flush(void)
{
	const size_t pos = any(NR - MOST) * psize(), len = MOST * psize();

	if (any(2) ? fsync(fd) : sync_file_range(fd, pos, len, SYNC_FILE_RANGE_WRITE))
		fail("sync", pos);
}

static void reclaim(void)
{
	const size_t pos = any(NR - MOST) * psize(), len = MOST * psize();

	if (!any(16))
		set_file(DROP_CACHES, "3");
	else if (any(2))
		madvise(p + pos, len, any(2) ? MADV_PAGEOUT : MADV_DONTNEED);
	else if (any(2))
		posix_fadvise(fd, pos, len, POSIX_FADV_DONTNEED);
	else if (mmap(p + pos, len, RW, MAP_SHARED | MAP_FIXED, fd, pos) == MAP_FAILED)
		fail("mmap", pos);
}

static void give_up(void)
{
	if (any(4))
		command(HMM_DMIRROR_MIGRATE_TO_SYS, p + any(NR - MOST) * psize(), range, MOST);
	else
		evict();
}

static void take(void)
{
	const size_t pos = any(NR - MOST) * psize(), len = (1 + any(MOST)) * psize();
	const unsigned int populate = any(4);

	/* To go, a page has to be in the page table. */
	if (populate) {
		pthread_rwlock_rdlock(&shared->lock);
		madvise(p + pos, len, populate == 1 ? MADV_POPULATE_READ : MADV_POPULATE_WRITE);
		pthread_rwlock_unlock(&shared->lock);
	}
	command(HMM_DMIRROR_MIGRATE_TO_DEV, p + pos, range, len / psize());
}

static pid_t start(unsigned int who, void (*step)(void))
{
	/* Only who has bytes to change has some to look at, and needs the lock. */
	const bool changes = step != flush && step != reclaim && step != give_up;
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
	p = map(0, NR, RW, MAP_SHARED);
	if (dev < 0 || direct < 0 || !p)
		fail("open", 0);
	while ((shared->done[0] < steps || shared->done[1] < steps) && !shared->failed) {
		if (any(2))
			take();
		if (step == direct_io)
			pthread_rwlock_wrlock(&shared->lock);
		else if (changes)
			pthread_rwlock_rdlock(&shared->lock);
		step();
		if (changes) {
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

FILES(pair)
FS(pair, tmpfs);
FS(pair, tmpfs_huge);
FS(pair, ext4);
FS(pair, ext4_1k);
FS(pair, xfs);
FS(pair, btrfs);
FS(pair, btrfs_zlib);

static void run_pair(struct __test_metadata *_metadata, void (*a)(void), void (*b)(void))
{
	pthread_rwlockattr_t attr;
	pid_t first, second;

	seed = getenv("SEED") ? atol(getenv("SEED")) : time(NULL) % 1000000;
	steps = getenv("STEPS") ? atol(getenv("STEPS")) : 30;
	shared = mmap(NULL, sizeof(*shared) + BYTES, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	range = aligned_alloc(psize(), MOST * psize());
	ASSERT_NE(MAP_FAILED, shared);
	ASSERT_NE(NULL, range);
	ASSERT_EQ(0, ftruncate(fd, 0));
	ASSERT_EQ(0, ftruncate(fd, BYTES));
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_rwlock_init(&shared->lock, &attr);
	first = start(0, a);
	second = start(1, b);
	/* Both are gone before something fails here. */
	ASSERT_EQ(3, ends_well(first) + 2 * ends_well(second));
	ASSERT_TRUE(reopen());
	for (size_t pos = 0; pos < BYTES; pos += SIZE) {
		ASSERT_EQ(SIZE, pread(fd, buf, SIZE, pos));
		check("at the end", buf, pos, SIZE);
	}
}

#define PAIR(name, a, b) TEST_F_TIMEOUT(pair, name, TIMEOUT) { run_pair(_metadata, a, b); }

PAIR(store_write, store, buffered)
PAIR(store_device, store, device)
PAIR(store_punch, store, punch)
PAIR(write_direct, buffered, direct_io)
PAIR(device_device, device, device)
PAIR(device_direct, device, direct_io)
PAIR(punch_device, punch, device)
PAIR(truncate_store, cut, store)
PAIR(truncate_device, cut, device)
PAIR(store_sync, store, flush)
PAIR(device_sync, device, flush)
PAIR(truncate_sync, cut, flush)
PAIR(direct_sync, direct_io, flush)
PAIR(store_reclaim, store, reclaim)
PAIR(device_reclaim, device, reclaim)
PAIR(truncate_reclaim, cut, reclaim)
PAIR(write_evict, buffered, give_up)
PAIR(device_evict, device, give_up)
PAIR(truncate_evict, cut, give_up)

HMM_FILE_MAIN
