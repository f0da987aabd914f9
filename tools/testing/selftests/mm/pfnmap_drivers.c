// SPDX-License-Identifier: GPL-2.0-only
/*
 * Drivers that insert ranges of pfns from their fault handlers: udmabuf, the
 * shmem helper of DRM (by vgem), and TTM (by qxl, which QEMU emulates).
 *
 * Whatever a fault maps besides the page that was touched, it must be the right
 * page, and must go away when the object moves. How much it maps shows in the
 * number of faults, and in pagemap.
 *
 * Needs root, CONFIG_UDMABUF, CONFIG_DRM_VGEM, CONFIG_DRM_QXL, and a device for
 * the latter: qemu-system-x86_64 -device qxl. What is missing is skipped.
 */
#define _GNU_SOURCE
/* Addresses are offsets, in /proc/self/mem */
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/mman.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "kselftest_harness.h"
#include "pfnmap_util.h"
#include "pfnmap_drivers.h"

/* Debugging kernels are slow, in emulators the more so. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	300

/* Pages of an object, of several page tables, and not just whole ones */
#define NR		1100UL
/* A mapping begins that many pages before the end of a page table. */
#define EDGE		90UL
#define TABLE		512UL

/* Pages that a fault maps at most, if nothing tells that more pay */
#define WINDOW		16UL

/* Enough for a window to have grown */
#define TTM_NR		4096UL

/* Faults of what else the process does */
#define SLACK		4

#define WORDS		8
#define THREADS		4

/* When few processors are shared by all that race, it takes long. */
#define RACE_NS		3000000000ULL

#define MAX_FILLERS	72
#define FILLER_PAGES	2048UL	/* evict in steps of these */

#define KPF_DIRTY	BIT_ULL(4)

#define FAIL_NTH	"/proc/thread-self/fail-nth"

static uint64_t value(unsigned long index, unsigned int word, unsigned int gen)
{
	return (index + 1) * 0x9e3779b97f4a7c15ULL + word +
	       ((uint64_t)gen << 32);
}

static char *word_of(char *page, unsigned int word)
{
	return page + word * (psize() / WORDS);
}

static void fill(char *addr, unsigned long first, unsigned long nr,
		 unsigned int gen)
{
	unsigned long i;
	unsigned int word;

	for (i = 0; i < nr; i++) {
		for (word = 0; word < WORDS; word++) {
			store(word_of(addr + i * psize(), word),
			      value(first + i, word, gen));
		}
	}
}

static bool page_ok(char *page, unsigned long index, unsigned int gen)
{
	unsigned int word;

	for (word = 0; word < WORDS; word++) {
		if (load(word_of(page, word)) != value(index, word, gen))
			return false;
	}
	return true;
}

/* The first page that is not page @first + i of the object, or -1. */
static long first_bad(char *addr, unsigned long first, unsigned long nr,
		      unsigned int gen)
{
	unsigned long i;

	for (i = 0; i < nr; i++) {
		if (!page_ok(addr + i * psize(), first + i, gen))
			return i;
	}
	return -1;
}

/* The same in another order: @step and @nr have no common divisor. */
static long first_bad_step(char *addr, unsigned long first, unsigned long nr,
			   unsigned int gen, unsigned long from,
			   unsigned long step)
{
	unsigned long i, page;

	for (i = 0, page = from % nr; i < nr; i++, page = (page + step) % nr) {
		if (!page_ok(addr + page * psize(), first + page, gen))
			return page;
	}
	return -1;
}

static unsigned long faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_minflt;
}

/* Touch pages and return the faults that takes. */
static unsigned long touch_pages(char *addr, unsigned long nr,
				 unsigned long step)
{
	unsigned long before, i;

	/* The first call may fault for itself. */
	faults();
	before = faults();
	for (i = 0; i < nr; i += step)
		FORCE_READ(addr[i * psize()]);
	return faults() - before;
}

static unsigned long write_pages(char *addr, unsigned long nr)
{
	unsigned long before, i;

	faults();
	before = faults();
	for (i = 0; i < nr; i++)
		*(volatile char *)(addr + i * psize() + 64) = i;
	return faults() - before;
}

/*
 * Count the pages that are mapped. pagemap does not tell, for VM_PFNMAP; but a
 * child that has the same PTEs finds out by touching them. There, each page is
 * made a VMA of its own, which faults do not map anything beyond.
 */
static long present(char *addr, unsigned long nr)
{
	unsigned long i, before;
	long sum = 0;
	int pipes[2];
	pid_t pid;

	if (pipe(pipes))
		return -1;
	pid = fork();
	if (pid < 0)
		return -1;
	if (pid) {
		close(pipes[1]);
		if (read(pipes[0], &sum, sizeof(sum)) != sizeof(sum))
			sum = -1;
		close(pipes[0]);
		waitpid(pid, NULL, 0);
		return sum;
	}

	for (i = 0; i < nr; i += 2)
		madvise(addr + i * psize(), psize(), MADV_DONTFORK);
	/* What faults because of the fork does so now. */
	touch((char *)&sum);
	faults();
	for (i = 0; i < nr; i++) {
		before = faults();
		if (!touch(addr + i * psize()) && faults() == before)
			sum++;
	}
	if (write(pipes[1], &sum, sizeof(sum)) != sizeof(sum))
		_exit(1);
	_exit(0);
}

/* Addresses of nobody, to map over: @edge pages before the end of a table. */
static char *reserve(unsigned long nr, unsigned long edge, char **area,
		     size_t *size)
{
	const size_t table = TABLE * psize();
	uintptr_t start;

	*size = nr * psize() + 3 * table;
	*area = mmap(NULL, *size, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (*area == MAP_FAILED)
		return NULL;
	start = ((uintptr_t)*area + 2 * table - 1) & ~(table - 1);
	return (char *)start + (edge ? table - edge * psize() : 0);
}

struct place {
	char *addr;
	char *area;
	size_t size;
};

static void setup_place(struct __test_metadata *_metadata, struct place *place,
			unsigned long nr, unsigned long edge)
{
	place->addr = reserve(nr, edge, &place->area, &place->size);
	ASSERT_NE(place->addr, NULL);
	ASSERT_EQ(install_handler(), 0);
}

/* Nobody any more, and no page table. */
static void clear_place(struct __test_metadata *_metadata,
			const struct place *place)
{
	ASSERT_EQ(mmap(place->area, place->size, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
		       -1, 0), place->area);
}

#define SETUP_OBJECT(obj, kind, nr)					\
	do {								\
		int __ret = create_object(obj, kind, nr);		\
									\
		if (__ret == -ENODEV)					\
			SKIP(return, "no such device");			\
		ASSERT_EQ(__ret, 0);					\
	} while (0)

static void map_at(struct __test_metadata *_metadata, const struct object *obj,
		   char *addr, unsigned long first, unsigned long nr, int prot)
{
	ASSERT_EQ(map_object(obj, addr, first, nr, prot), addr) {
		TH_LOG("mmap: %s", strerror(errno));
	}
}

static void fill_object(struct __test_metadata *_metadata,
			const struct object *obj, unsigned int gen)
{
	char *addr = map_object(obj, NULL, 0, obj->nr, PROT_READ | PROT_WRITE);

	ASSERT_NE(addr, MAP_FAILED);
	fill(addr, 0, obj->nr, gen);
	ASSERT_EQ(munmap(addr, obj->nr * psize()), 0);
}

/* @obj as a new one, all of it mapped at @place, which is made */
static char *map_filled(struct __test_metadata *_metadata, struct object *obj,
			struct place *place)
{
	setup_place(_metadata, place, obj->nr, EDGE);
	fill_object(_metadata, obj, 0);
	map_at(_metadata, obj, place->addr, 0, obj->nr, PROT_READ | PROT_WRITE);
	return place->addr;
}

static void remove_object(struct object *obj, struct place *place)
{
	if (place->area)
		munmap(place->area, place->size);
	destroy_object(obj);
}

/*
 * What KVM and VFIO find, which call the fault handler once at most: 1 if they
 * may write, or -errno.
 */
static int resolve(int fd, const char *addr, bool write, uint64_t *pfn)
{
	struct pfnmap_test_resolve arg = {
		.addr = (uintptr_t)addr,
		.write = write,
	};

	/* The fault handler may have waited for a lock. */
	while (ioctl(fd, PFNMAP_TEST_RESOLVE, &arg)) {
		if (errno != EAGAIN)
			return -errno;
	}
	if (pfn)
		*pfn = arg.pfn;
	return !!(arg.flags & PFNMAP_TEST_PTE_WRITE);
}

/* What all of them have in common */

FIXTURE(object)
{
	struct object obj;
	struct place place;
	char *addr;
};

FIXTURE_VARIANT(object)
{
	enum kind kind;
};

FIXTURE_VARIANT_ADD(object, udmabuf) { .kind = UDMABUF, };
FIXTURE_VARIANT_ADD(object, udmabuf_list) { .kind = UDMABUF_LIST, };
FIXTURE_VARIANT_ADD(object, udmabuf_hugetlb) { .kind = UDMABUF_HUGETLB, };
FIXTURE_VARIANT_ADD(object, vgem) { .kind = VGEM, };
FIXTURE_VARIANT_ADD(object, vgem_prime) { .kind = VGEM_PRIME, };
FIXTURE_VARIANT_ADD(object, ttm_system) { .kind = TTM_SYSTEM, };
FIXTURE_VARIANT_ADD(object, ttm_prime) { .kind = TTM_PRIME, };
FIXTURE_VARIANT_ADD(object, ttm_vram) { .kind = TTM_VRAM, };
FIXTURE_VARIANT_ADD(object, ttm_surface) { .kind = TTM_SURFACE, };

FIXTURE_SETUP(object)
{
	SETUP_OBJECT(&self->obj, variant->kind, NR);
	setup_place(_metadata, &self->place, NR, EDGE);
	self->addr = self->place.addr;
	fill_object(_metadata, &self->obj, 0);
}

FIXTURE_TEARDOWN(object)
{
	remove_object(&self->obj, &self->place);
}

/* In whatever order pages are touched, each is the right one. */
TEST_F(object, contents)
{
	static const unsigned long steps[] = { 1, NR - 1, 7, 17, 509 };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		map_at(_metadata, &self->obj, self->addr, 0, NR, PROT_READ);
		ASSERT_EQ(present(self->addr, NR), 0);
		ASSERT_EQ(first_bad_step(self->addr, 0, NR, 0, 3 * i, steps[i]),
			  -1);
		ASSERT_EQ(present(self->addr, NR), NR);

		/* Nothing beyond, on either side */
		ASSERT_EQ(touch(self->addr - psize()), SIGSEGV);
		ASSERT_EQ(touch(self->addr + NR * psize()), SIGSEGV);
		ASSERT_EQ(present(self->addr - psize(), 1), 0);
		ASSERT_EQ(present(self->addr + NR * psize(), 1), 0);

		/* pfns, not pages */
		ASSERT_EQ(smaps_sum(self->addr, NR, "Rss:"), 0);
		clear_place(_metadata, &self->place);
	}
}

/* What one mapping writes, another reads. */
TEST_F(object, writes)
{
	char *other;
	unsigned int gen;

	other = map_object(&self->obj, NULL, 0, NR, PROT_READ);
	ASSERT_NE(other, MAP_FAILED);
	for (gen = 1; gen < 4; gen++) {
		map_at(_metadata, &self->obj, self->addr, 0, NR,
		       PROT_READ | PROT_WRITE);
		/* The second time, pages are mapped when they are written to */
		if (gen == 2)
			touch_pages(self->addr, NR, 1);
		fill(self->addr, 0, NR, gen);
		ASSERT_EQ(first_bad(other, 0, NR, gen), -1);
		ASSERT_EQ(first_bad(self->addr, 0, NR, gen), -1);
	}
	ASSERT_EQ(munmap(other, NR * psize()), 0);
}

/* Mappings of a part: shorter, or what munmap() left of a longer one. */
TEST_F(object, parts)
{
	static const unsigned long cuts[] = { 1, 5, EDGE, EDGE + 3, 700 };
	const unsigned long end = NR - 11;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(cuts); i++) {
		const unsigned long cut = cuts[i];
		char *at = self->addr + cut * psize();

		/* The begin only */
		map_at(_metadata, &self->obj, self->addr, 0, cut, PROT_READ);
		ASSERT_EQ(first_bad_step(self->addr, 0, cut, 0, cut - 1,
					 cut > 1 ? cut - 1 : 1), -1);
		ASSERT_EQ(present(self->addr, NR), cut);
		ASSERT_EQ(touch(at), SIGSEGV);
		clear_place(_metadata, &self->place);

		/* The end of it, when there is nothing yet */
		map_at(_metadata, &self->obj, self->addr, 0, end, PROT_READ);
		ASSERT_EQ(munmap(self->addr, cut * psize()), 0);
		ASSERT_EQ(first_bad(at, cut, end - cut, 0), -1);
		ASSERT_EQ(present(self->addr, NR), end - cut);
		ASSERT_EQ(touch(at - psize()), SIGSEGV);
		clear_place(_metadata, &self->place);

		/* Both, with a hole, when some are there */
		map_at(_metadata, &self->obj, self->addr, 0, end, PROT_READ);
		FORCE_READ(*at);
		ASSERT_EQ(munmap(at, 3 * psize()), 0);
		ASSERT_EQ(first_bad(at + 3 * psize(), cut + 3, end - cut - 3,
				    0), -1);
		ASSERT_EQ(first_bad(self->addr, 0, cut, 0), -1);
		ASSERT_EQ(present(self->addr, NR), end - 3);
		clear_place(_metadata, &self->place);
	}
}

/* A dma-buf can be mapped from any page on. */
TEST_F(object, offsets)
{
	static const struct {
		unsigned long first;
		unsigned long nr;
	} parts[] = {
		{ 1, 1 }, { 1, 200 }, { 37, 600 }, { NR - 1, 1 },
		{ TABLE, NR - TABLE },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		const unsigned long first = parts[i].first, nr = parts[i].nr;

		if (!is_dmabuf(variant->kind)) {
			ASSERT_EQ(map_object(&self->obj, self->addr, first, nr,
					     PROT_READ), MAP_FAILED);
			continue;
		}
		map_at(_metadata, &self->obj, self->addr, first, nr, PROT_READ);
		ASSERT_EQ(first_bad(self->addr, first, nr, 0), -1) {
			TH_LOG("%lu pages from %lu on", nr, first);
		}
		ASSERT_EQ(present(self->addr, NR), nr);
		ASSERT_EQ(touch(self->addr + nr * psize()), SIGSEGV);
		clear_place(_metadata, &self->place);
	}
	/* No further than the object goes */
	ASSERT_EQ(map_object(&self->obj, self->addr, 0, NR + 1, PROT_READ),
		  MAP_FAILED);
	ASSERT_EQ(map_object(&self->obj, self->addr, NR - 1, 2, PROT_READ),
		  MAP_FAILED);
}

TEST_F(object, protection)
{
	char *addr = self->addr;

	/* Not for copies: what is copied would be a page. */
	ASSERT_EQ(mmap(addr, NR * psize(), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_FIXED, self->obj.fd, self->obj.offset),
		  MAP_FAILED);
	clear_place(_metadata, &self->place);

	map_at(_metadata, &self->obj, addr, 0, NR, PROT_READ);
	ASSERT_EQ(try_store(addr + 3 * psize(), 1), SIGSEGV);
	ASSERT_EQ(first_bad(addr, 0, NR, 0), -1);
	ASSERT_EQ(try_store(addr + 3 * psize(), 1), SIGSEGV);

	ASSERT_EQ(mprotect(addr, NR * psize(), PROT_READ | PROT_WRITE), 0);
	fill(addr, 0, NR, 1);
	ASSERT_EQ(first_bad(addr, 0, NR, 1), -1);

	ASSERT_EQ(mprotect(addr, NR * psize(), PROT_NONE), 0);
	ASSERT_EQ(touch(addr), SIGSEGV);

	/* A part that is writable, between others that are not. */
	ASSERT_EQ(mprotect(addr, NR * psize(), PROT_READ), 0);
	ASSERT_EQ(mprotect(addr + 40 * psize(), 100 * psize(),
			   PROT_READ | PROT_WRITE), 0);
	fill(addr + 40 * psize(), 40, 100, 2);
	ASSERT_EQ(try_store(addr + 39 * psize(), 1), SIGSEGV);
	ASSERT_EQ(try_store(addr + 140 * psize(), 1), SIGSEGV);
	ASSERT_EQ(first_bad(addr, 0, 40, 1), -1);
	ASSERT_EQ(first_bad(addr + 40 * psize(), 40, 100, 2), -1);
	ASSERT_EQ(first_bad(addr + 140 * psize(), 140, NR - 140, 1), -1);

	/* The same when nothing has been mapped before the VMA was split */
	clear_place(_metadata, &self->place);
	map_at(_metadata, &self->obj, addr, 0, NR, PROT_READ);
	ASSERT_EQ(mprotect(addr + 40 * psize(), 100 * psize(),
			   PROT_READ | PROT_WRITE), 0);
	ASSERT_EQ(try_store(addr + 139 * psize(), value(139, 0, 2)), 0);
	ASSERT_EQ(touch(addr + 39 * psize()), 0);
	ASSERT_EQ(try_store(addr + 39 * psize(), 1), SIGSEGV);
	ASSERT_EQ(touch(addr + 140 * psize()), 0);
	ASSERT_EQ(try_store(addr + 140 * psize(), 1), SIGSEGV);
	ASSERT_EQ(first_bad(addr, 0, 40, 1), -1);
	ASSERT_EQ(first_bad(addr + 40 * psize(), 40, 100, 2), -1);
	ASSERT_EQ(first_bad(addr + 140 * psize(), 140, NR - 140, 1), -1);
}

/* The child has the parent's PTEs, and shares what is behind them. */
TEST_F(object, fork)
{
	unsigned long half = NR / 2;
	int status;
	pid_t pid;

	map_at(_metadata, &self->obj, self->addr, 0, NR,
	       PROT_READ | PROT_WRITE);
	ASSERT_EQ(first_bad(self->addr, 0, half, 0), -1);

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		if (present(self->addr, half) != half)
			_exit(1);
		if (touch_pages(self->addr, half, 1) > SLACK)
			_exit(2);
		if (first_bad(self->addr, 0, NR, 0) != -1)
			_exit(3);
		fill(self->addr, 0, NR, 1);
		if (munmap(self->addr, 10 * psize()))
			_exit(4);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
	ASSERT_EQ(first_bad(self->addr, 0, NR, 1), -1);
}

/* Other addresses, the same pages, whether mapped or not. */
TEST_F(object, mremap)
{
	const size_t size = NR * psize();
	struct place to;
	unsigned long half = NR / 2;

	setup_place(_metadata, &to, NR, EDGE + 7);
	map_at(_metadata, &self->obj, self->addr, 0, NR, PROT_READ);
	ASSERT_EQ(first_bad(self->addr + half * psize(), half, NR - half, 0),
		  -1);
	ASSERT_EQ(mremap(self->addr, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
			 to.addr), to.addr);
	ASSERT_EQ(first_bad(to.addr, 0, NR, 0), -1);
	ASSERT_EQ(touch(self->addr), SIGSEGV);

	/* VM_DONTEXPAND */
	ASSERT_EQ(munmap(to.addr + size, psize()), 0);
	ASSERT_EQ(mremap(to.addr, size, size + psize(), 0), MAP_FAILED);
	ASSERT_EQ(errno, EFAULT);

	/* In the middle, to elsewhere */
	ASSERT_EQ(mremap(to.addr + 100 * psize(), 50 * psize(), 50 * psize(),
			 MREMAP_MAYMOVE | MREMAP_FIXED, self->addr),
		  self->addr);
	ASSERT_EQ(first_bad(self->addr, 100, 50, 0), -1);
	ASSERT_EQ(first_bad(to.addr, 0, 100, 0), -1);
	ASSERT_EQ(first_bad(to.addr + 150 * psize(), 150, NR - 150, 0), -1);
	ASSERT_EQ(munmap(to.area, to.size), 0);
}

/* Pages are the driver's to drop, */
TEST_F(object, madvise)
{
	map_at(_metadata, &self->obj, self->addr, 0, NR,
	       PROT_READ | PROT_WRITE);
	ASSERT_EQ(first_bad(self->addr, 0, NR, 0), -1);
	ASSERT_EQ(madvise(self->addr, NR * psize(), MADV_DONTNEED), -1);
	ASSERT_EQ(errno, EINVAL);
	ASSERT_EQ(madvise(self->addr, NR * psize(), MADV_PAGEOUT), -1);
	ASSERT_EQ(errno, EINVAL);
	ASSERT_EQ(present(self->addr, NR), NR);
	ASSERT_LE(touch_pages(self->addr, NR, 1), SLACK);
	ASSERT_EQ(first_bad(self->addr, 0, NR, 0), -1);
}

/* ... and nobody else gets at them, but by what the driver has for that. */
TEST_F(object, gup)
{
	static const unsigned long pages[] = { 0, 1, EDGE, NR - 1 };
	const bool access = variant->kind == TTM_SYSTEM ||
			    variant->kind == TTM_PRIME;
	uint64_t buf = 0;
	struct iovec local = { &buf, sizeof(buf) };
	int mem, pipes[2];
	unsigned int i;

	mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	ASSERT_GE(mem, 0);
	ASSERT_EQ(pipe(pipes), 0);
	map_at(_metadata, &self->obj, self->addr, 0, NR,
	       PROT_READ | PROT_WRITE);

	/* Once before they are mapped, once after */
	for (i = 0; i < 2 * ARRAY_SIZE(pages); i++) {
		const unsigned long page = pages[i % ARRAY_SIZE(pages)];
		char *at = self->addr + page * psize();
		struct iovec remote = { at, sizeof(buf) };

		if (i == ARRAY_SIZE(pages))
			ASSERT_EQ(first_bad(self->addr, 0, NR, 0), -1);

		ASSERT_EQ(process_vm_readv(getpid(), &local, 1, &remote, 1, 0),
			  -1);
		ASSERT_EQ(errno, EFAULT);
		ASSERT_EQ(vmsplice(pipes[1], &remote, 1, 0), -1);
		ASSERT_EQ(errno, EFAULT);

		if (access) {
			ASSERT_EQ(pread(mem, &buf, sizeof(buf), (uintptr_t)at),
				  sizeof(buf));
			ASSERT_EQ(buf, value(page, 0, 0));
		} else {
			ASSERT_EQ(pread(mem, &buf, sizeof(buf), (uintptr_t)at),
				  -1);
			ASSERT_EQ(errno, EIO);
		}
	}
	close(pipes[0]);
	close(pipes[1]);
	close(mem);
}

/* Whoever faults by hand for a write gets it, in order and next to reads. */
TEST_F(object, resolve)
{
	char *addr = self->addr;
	int fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	unsigned long i;

	if (fd < 0)
		SKIP(return, "no " DEVICE);
	map_at(_metadata, &self->obj, addr, 0, NR, PROT_READ | PROT_WRITE);
	for (i = 0; i < 2 * WINDOW; i++) {
		ASSERT_EQ(resolve(fd, addr + i * psize(), true, NULL), 1) {
			TH_LOG("page %lu", i);
		}
	}
	for (; i < 4 * WINDOW; i++) {
		ASSERT_GE(resolve(fd, addr + i * psize(), false, NULL), 0);
		ASSERT_EQ(resolve(fd, addr + ++i * psize(), true, NULL), 1) {
			TH_LOG("page %lu", i);
		}
	}
	ASSERT_EQ(first_bad(addr, 0, NR, 0), -1);

	map_at(_metadata, &self->obj, addr, 0, NR, PROT_READ);
	ASSERT_EQ(resolve(fd, addr, true, NULL), -EFAULT);
	ASSERT_EQ(resolve(fd, addr, false, NULL), 0);
	close(fd);
}

struct racer {
	pthread_barrier_t *barrier;
	const volatile bool *stop;	/* or just once */
	char *addr;
	unsigned long step;
	unsigned long from;
	long bad;
	unsigned long rounds;
};

static void *race(void *arg)
{
	struct racer *racer = arg;

	racer->bad = -1;
	if (racer->barrier)
		pthread_barrier_wait(racer->barrier);
	do {
		racer->bad = first_bad_step(racer->addr, 0, NR, 0, racer->from,
					    racer->step);
		racer->rounds++;
	} while (racer->bad < 0 && racer->stop && !*racer->stop);
	return NULL;
}

static const unsigned long race_steps[THREADS] = { 1, 1, NR - 1, 17 };

/* Of threads that fault for the same pages, all but one find them mapped. */
TEST_F(object, race)
{
	const uint64_t end = now_ns() + RACE_NS;
	struct racer racers[THREADS];
	pthread_t threads[THREADS];
	pthread_barrier_t barrier;
	unsigned int round, i;

	for (round = 0; round < 30 && now_ns() < end; round++) {
		map_at(_metadata, &self->obj, self->addr, 0, NR,
		       PROT_READ | PROT_WRITE);
		pthread_barrier_init(&barrier, NULL, THREADS);
		for (i = 0; i < THREADS; i++) {
			racers[i] = (struct racer) {
				.barrier = &barrier,
				.addr = self->addr,
				.step = race_steps[i],
				.from = round % 2 ? i * round : 0,
			};
			ASSERT_EQ(pthread_create(&threads[i], NULL, race,
						 &racers[i]), 0);
		}
		for (i = 0; i < THREADS; i++) {
			ASSERT_EQ(pthread_join(threads[i], NULL), 0);
			ASSERT_EQ(racers[i].bad, -1);
		}
		pthread_barrier_destroy(&barrier);
		ASSERT_EQ(present(self->addr, NR), NR);
		clear_place(_metadata, &self->place);
	}
}

/* Mappings that go away while they are faulted in. */
TEST_F(object, race_unmap)
{
	const uint64_t end = now_ns() + RACE_NS;
	volatile bool stop = false;
	struct racer racers[THREADS];
	pthread_t threads[THREADS];
	unsigned int round, i;

	map_at(_metadata, &self->obj, self->addr, 0, NR,
	       PROT_READ | PROT_WRITE);
	for (i = 0; i < THREADS; i++) {
		racers[i] = (struct racer) {
			.stop = &stop,
			.addr = self->addr,
			.step = race_steps[i],
			.from = i * 100,
		};
		ASSERT_EQ(pthread_create(&threads[i], NULL, race, &racers[i]),
			  0);
	}
	for (round = 0; round < 300 && now_ns() < end; round++) {
		/* Over the whole, or its begin */
		const unsigned long nr = round % 2 ? NR : 1 + round;

		EXPECT_EQ(map_object(&self->obj, self->addr, 0, nr,
				     PROT_READ | PROT_WRITE), self->addr);
		usleep(500);
	}
	stop = true;
	for (i = 0; i < THREADS; i++) {
		ASSERT_EQ(pthread_join(threads[i], NULL), 0);
		ASSERT_EQ(racers[i].bad, -1);
		ASSERT_GT(racers[i].rounds, 0);
	}
}

/* A page table that cannot be had: the fault is had again, or maps less. */
TEST_F(object, oom)
{
	unsigned int n, injected = 0;
	bool done = false;
	char buf[16];
	int fd;

	fd = open(FAIL_NTH, O_RDWR | O_CLOEXEC);
	ASSERT_GE(fd, 0) {
		TH_LOG("%s: %s; is CONFIG_FAULT_INJECTION set?", FAIL_NTH,
		       strerror(errno));
	}
	change_fail_settings(_metadata);
	for (n = 1; !done; n++) {
		int sig;

		ASSERT_LT(n, 100);
		/* No neighbour keeps a page table from being freed. */
		ASSERT_EQ(munmap(self->place.area, self->place.size), 0);
		map_at(_metadata, &self->obj, self->addr, 0, NR, PROT_READ);

		snprintf(buf, sizeof(buf), "%u", n);
		ASSERT_EQ(pwrite(fd, buf, strlen(buf), 0), strlen(buf));
		sig = touch(self->addr + (EDGE - 2) * psize());
		memset(buf, 0, sizeof(buf));
		ASSERT_GT(pread(fd, buf, sizeof(buf) - 1, 0), 0);
		ASSERT_EQ(pwrite(fd, "0", 1, 0), 1);
		ASSERT_EQ(sig, 0);

		/* Not counted down to the failure: there are no more. */
		done = strtoul(buf, NULL, 10) != 0;
		injected += !done;
		ASSERT_GE(present(self->addr, NR), 1);
		ASSERT_EQ(first_bad(self->addr, 0, NR, 0), -1);
		ASSERT_EQ(present(self->addr, NR), NR);
		clear_place(_metadata, &self->place);
	}
	ASSERT_GT(injected, 0);
	restore_fail_settings();
	close(fd);
}

/* udmabuf */

FIXTURE(udmabuf)
{
	struct object obj;
	struct place place;
	char *addr;
	char *file;		/* a mapping of the memfd */
};

FIXTURE_VARIANT(udmabuf)
{
	enum kind kind;
};

FIXTURE_VARIANT_ADD(udmabuf, single) { .kind = UDMABUF, };
FIXTURE_VARIANT_ADD(udmabuf, list) { .kind = UDMABUF_LIST, };
FIXTURE_VARIANT_ADD(udmabuf, hugetlb) { .kind = UDMABUF_HUGETLB, };

FIXTURE_SETUP(udmabuf)
{
	SETUP_OBJECT(&self->obj, variant->kind, NR);
	setup_place(_metadata, &self->place, NR, EDGE);
	self->addr = self->place.addr;
	self->file = mmap(NULL, memfd_pages(&self->obj) * psize(),
			  PROT_READ | PROT_WRITE, MAP_SHARED, self->obj.memfd,
			  0);
	ASSERT_NE(self->file, MAP_FAILED);
}

FIXTURE_TEARDOWN(udmabuf)
{
	if (self->file)
		munmap(self->file, memfd_pages(&self->obj) * psize());
	remove_object(&self->obj, &self->place);
}

static char *file_page(FIXTURE_DATA(udmabuf) * self, unsigned long index)
{
	return self->file + memfd_page(&self->obj, index) * psize();
}

/* Each byte is that of the file, and the other way around. */
TEST_F(udmabuf, alias)
{
	const unsigned long words = memfd_pages(&self->obj) * psize() / 8;
	uint64_t *file = (uint64_t *)self->file, x = 1;
	unsigned long i, j;

	for (i = 0; i < words; i++) {
		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		file[i] = x;
	}
	map_at(_metadata, &self->obj, self->addr, 0, NR,
	       PROT_READ | PROT_WRITE);
	for (i = 0; i < NR; i++) {
		ASSERT_EQ(memcmp(self->addr + i * psize(), file_page(self, i),
				 psize()), 0);
	}
	for (i = 0; i < NR; i++) {
		uint64_t *page = (uint64_t *)(self->addr + i * psize());

		for (j = 0; j < psize() / 8; j++)
			page[j] ^= ~i;
	}
	for (i = 0; i < NR; i++) {
		ASSERT_EQ(memcmp(self->addr + i * psize(), file_page(self, i),
				 psize()), 0);
	}
	/* What is in the file before the udmabuf has been left alone. */
	for (x = 1, i = 0; i < HUGETLB_FIRST * psize() / 8; i++) {
		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		if (variant->kind == UDMABUF_HUGETLB)
			ASSERT_EQ(file[i], x);
	}
}

/* A fault maps all there is. */
TEST_F(udmabuf, faults)
{
	static const unsigned long first[] = { 0, 1, EDGE - 1, EDGE, NR - 1 };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(first); i++) {
		map_at(_metadata, &self->obj, self->addr, 0, NR,
		       PROT_READ | PROT_WRITE);
		ASSERT_GE(touch_pages(self->addr + first[i] * psize(), 1, 1),
			  1);
		ASSERT_EQ(present(self->addr, NR), NR);
		ASSERT_LE(touch_pages(self->addr, NR, 1), SLACK);
		/* Mapped to be written to */
		ASSERT_LE(write_pages(self->addr, NR), SLACK);
		clear_place(_metadata, &self->place);
	}
}

/* ... of the VMA, whatever that is of the object */
TEST_F(udmabuf, faults_part)
{
	char *at = self->addr + 300 * psize();

	map_at(_metadata, &self->obj, self->addr, 0, NR,
	       PROT_READ | PROT_WRITE);
	ASSERT_EQ(mprotect(at, 200 * psize(), PROT_READ), 0);
	ASSERT_GE(touch_pages(at + 77 * psize(), 1, 1), 1);
	ASSERT_EQ(present(self->addr, NR), 200);
	ASSERT_EQ(present(at, 200), 200);
	ASSERT_GE(touch_pages(self->addr, 1, 1), 1);
	ASSERT_EQ(present(self->addr, 500), 500);
	ASSERT_EQ(present(self->addr, NR), 500);
	ASSERT_GE(touch_pages(self->addr + 700 * psize(), 1, 1), 1);
	ASSERT_EQ(present(self->addr, NR), NR);
}

/* The shmem helper of DRM */

FIXTURE(shmem)
{
	struct object obj;
	struct place place;
	char *addr;
};

FIXTURE_VARIANT(shmem)
{
	enum kind kind;
};

FIXTURE_VARIANT_ADD(shmem, vgem) { .kind = VGEM, };
FIXTURE_VARIANT_ADD(shmem, prime) { .kind = VGEM_PRIME, };

FIXTURE_SETUP(shmem)
{
	SETUP_OBJECT(&self->obj, variant->kind, NR);
	self->addr = map_filled(_metadata, &self->obj, &self->place);
}

FIXTURE_TEARDOWN(shmem)
{
	remove_object(&self->obj, &self->place);
}

/* Reads have more pages mapped than those they are of. */
TEST_F(shmem, sequential)
{
	ASSERT_LE(touch_pages(self->addr, NR, 1), NR / 8 + SLACK);
	ASSERT_EQ(present(self->addr, NR), NR);
	ASSERT_EQ(first_bad(self->addr, 0, NR, 0), -1);
}

/* ... but no more than file mappings have */
TEST_F(shmem, single)
{
	static const unsigned long pages[] = {
		0, 1, 50, EDGE - 1, EDGE, 777, NR - 1,
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		map_at(_metadata, &self->obj, self->addr, 0, NR, PROT_READ);
		FORCE_READ(self->addr[pages[i] * psize()]);
		ASSERT_EQ(present(self->addr + pages[i] * psize(), 1), 1);
		ASSERT_LE(present(self->addr, NR), WINDOW);
	}
}

/* The first touch of an object is not behind another one. */
TEST_F(shmem, first)
{
	struct object obj;
	char *addr;

	SETUP_OBJECT(&obj, variant->kind, NR);
	addr = map_object(&obj, NULL, 0, NR, PROT_READ);
	ASSERT_NE(addr, MAP_FAILED);
	FORCE_READ(*addr);
	ASSERT_EQ(present(addr, NR), 1);
	ASSERT_EQ(munmap(addr, NR * psize()), 0);
	destroy_object(&obj);
}

/* ... and but one if touches are here and there. */
TEST_F(shmem, sparse)
{
	const unsigned long step = WINDOW + 1;

	touch_pages(self->addr, NR, step);
	ASSERT_LE(present(self->addr, NR), NR / step + 1 + WINDOW);
	ASSERT_EQ(first_bad(self->addr, 0, NR, 0), -1);
}

/* ... and not if told that it is of no use. */
TEST_F(shmem, random)
{
	unsigned long nr;

	ASSERT_EQ(madvise(self->addr, NR * psize(), MADV_RANDOM), 0);
	FORCE_READ(self->addr[100 * psize()]);
	ASSERT_EQ(present(self->addr, NR), 1);
	nr = touch_pages(self->addr, NR, 1);
	ASSERT_GE(nr, NR - 1);
	ASSERT_LE(nr, NR - 1 + SLACK);
	ASSERT_EQ(present(self->addr, NR), NR);
	ASSERT_EQ(first_bad(self->addr, 0, NR, 0), -1);
}

/* The driver is told of each page that is written to. */
TEST_F(shmem, write_notify)
{
	unsigned long nr;

	touch_pages(self->addr, NR, 1);
	nr = write_pages(self->addr, NR);
	ASSERT_GE(nr, NR);
	ASSERT_LE(nr, NR + SLACK);
	ASSERT_LE(write_pages(self->addr, NR), SLACK);

	map_at(_metadata, &self->obj, self->addr, 0, NR,
	       PROT_READ | PROT_WRITE);
	nr = write_pages(self->addr, NR);
	ASSERT_GE(nr, NR);
	ASSERT_LE(nr, 2 * NR + SLACK);
	ASSERT_LE(write_pages(self->addr, NR), SLACK);
}

/* What is mapped for a write is dirty before anybody writes to it. */
TEST_F(shmem, dirty)
{
	int fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	int kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	uint64_t pfn = 0, flags[2];
	struct object obj;
	char *addr;
	int i;

	if (fd < 0 || kpageflags < 0)
		SKIP(return, "no %s", fd < 0 ? DEVICE : "/proc/kpageflags");
	SETUP_OBJECT(&obj, variant->kind, NR);
	addr = map_object(&obj, NULL, 0, NR, PROT_READ | PROT_WRITE);
	ASSERT_NE(addr, MAP_FAILED);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(resolve(fd, addr + 5 * i * psize(), i, &pfn), i);
		ASSERT_EQ(pageflags_get(pfn, kpageflags, &flags[i]), 0);
	}
	ASSERT_FALSE(flags[0] & KPF_DIRTY);
	ASSERT_TRUE(flags[1] & KPF_DIRTY);
	ASSERT_EQ(munmap(addr, NR * psize()), 0);
	destroy_object(&obj);
	close(kpageflags);
	close(fd);
}

/* TTM */

FIXTURE(ttm)
{
	struct object obj;
	struct place place;
	char *addr;
};

FIXTURE_VARIANT(ttm)
{
	enum kind kind;
};

FIXTURE_VARIANT_ADD(ttm, system) { .kind = TTM_SYSTEM, };
FIXTURE_VARIANT_ADD(ttm, prime) { .kind = TTM_PRIME, };
FIXTURE_VARIANT_ADD(ttm, vram) { .kind = TTM_VRAM, };
FIXTURE_VARIANT_ADD(ttm, surface) { .kind = TTM_SURFACE, };

FIXTURE_SETUP(ttm)
{
	SETUP_OBJECT(&self->obj, variant->kind, TTM_NR);
	self->addr = map_filled(_metadata, &self->obj, &self->place);
}

FIXTURE_TEARDOWN(ttm)
{
	remove_object(&self->obj, &self->place);
}

/* A window grows while pages are touched one after the other. */
TEST_F(ttm, sequential)
{
	ASSERT_LE(touch_pages(self->addr, TTM_NR, 1), TTM_NR / 32 + SLACK);
	ASSERT_EQ(present(self->addr, TTM_NR), TTM_NR);
	ASSERT_LE(write_pages(self->addr, TTM_NR), SLACK);
}

/* ... not faster than its user comes along, */
TEST_F(ttm, growth)
{
	unsigned long nr;

	for (nr = 1; nr < TTM_NR; nr++) {
		FORCE_READ(self->addr[(nr - 1) * psize()]);
		if (nr & (nr - 1))
			continue;
		ASSERT_GE(present(self->addr, TTM_NR), nr);
		ASSERT_LE(present(self->addr, TTM_NR), 4 * nr + WINDOW);
	}
}

/* ... and not at all for a single page. */
TEST_F(ttm, single)
{
	static const unsigned long pages[] = {
		0, 1, 50, EDGE - 1, EDGE, 777, 2048, TTM_NR - 1,
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		map_at(_metadata, &self->obj, self->addr, 0, TTM_NR, PROT_READ);
		FORCE_READ(self->addr[pages[i] * psize()]);
		ASSERT_EQ(present(self->addr + pages[i] * psize(), 1), 1);
		ASSERT_LE(present(self->addr, TTM_NR), WINDOW);
	}
}

/* One page here and there is not a sequence, the other way around neither. */
TEST_F(ttm, sparse)
{
	static const unsigned long steps[] = { 2 * WINDOW, 64, 100, 512, 1000 };
	unsigned long touched;
	unsigned int i;
	long page;

	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		touched = (TTM_NR + steps[i] - 1) / steps[i];

		map_at(_metadata, &self->obj, self->addr, 0, TTM_NR, PROT_READ);
		ASSERT_LE(touch_pages(self->addr, TTM_NR, steps[i]),
			  touched + SLACK);
		ASSERT_LE(present(self->addr, TTM_NR),
			  touched * WINDOW + touched * WINDOW / 8);

		map_at(_metadata, &self->obj, self->addr, 0, TTM_NR, PROT_READ);
		for (page = (touched - 1) * steps[i]; page >= 0;
		     page -= steps[i])
			FORCE_READ(self->addr[page * psize()]);
		ASSERT_LE(present(self->addr, TTM_NR),
			  touched * WINDOW + touched * WINDOW / 8);
		ASSERT_EQ(first_bad(self->addr, 0, TTM_NR, 0), -1);
	}

	/* One per window: no more faults than there are windows, */
	map_at(_metadata, &self->obj, self->addr, 0, TTM_NR, PROT_READ);
	ASSERT_LE(touch_pages(self->addr, TTM_NR, WINDOW),
		  TTM_NR / WINDOW + SLACK);

	/* ... and backwards, no more than pages. */
	map_at(_metadata, &self->obj, self->addr, 0, TTM_NR, PROT_READ);
	touched = faults();
	for (page = TTM_NR - 1; page >= 0; page--)
		FORCE_READ(self->addr[page * psize()]);
	ASSERT_LE(faults() - touched, TTM_NR + SLACK);
	ASSERT_EQ(first_bad(self->addr, 0, TTM_NR, 0), -1);
}

/* Who says that access is random gets no window that grows. */
TEST_F(ttm, random)
{
	unsigned long nr;

	ASSERT_EQ(madvise(self->addr, TTM_NR * psize(), MADV_RANDOM), 0);
	for (nr = 1; nr < TTM_NR; nr++) {
		FORCE_READ(self->addr[(nr - 1) * psize()]);
		if (nr % 100)
			continue;
		ASSERT_LE(present(self->addr, TTM_NR), nr + WINDOW);
	}
	ASSERT_EQ(first_bad(self->addr, 0, TTM_NR, 0), -1);
}

/* Objects that move while they are mapped */

FIXTURE(evict)
{
	struct object obj;
	struct place place;
	char *addr;
	int mem;			/* /proc/self/mem */
	unsigned int nr_fillers;
	uint32_t fillers[MAX_FILLERS];
};

FIXTURE_VARIANT(evict)
{
	enum kind kind;
};

FIXTURE_VARIANT_ADD(evict, vram) { .kind = TTM_VRAM, };
FIXTURE_VARIANT_ADD(evict, surface) { .kind = TTM_SURFACE, };

/* What TTM reads for others is memory of the system only. */
static bool read_other(FIXTURE_DATA(evict) * self, unsigned long page,
		       uint64_t *val)
{
	return pread(self->mem, val, sizeof(*val),
		     (uintptr_t)self->addr + page * psize()) == sizeof(*val);
}

static bool in_device(FIXTURE_DATA(evict) * self)
{
	uint64_t val;

	return !read_other(self, 0, &val) && errno == EIO;
}

FIXTURE_SETUP(evict)
{
	self->mem = -1;
	SETUP_OBJECT(&self->obj, variant->kind, NR);
	self->addr = map_filled(_metadata, &self->obj, &self->place);
	self->mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	ASSERT_GE(self->mem, 0);
	ASSERT_TRUE(in_device(self));
}

static void free_fillers(int card, uint32_t *fillers, unsigned int *nr)
{
	while (*nr)
		close_handle(card, fillers[--*nr]);
}

FIXTURE_TEARDOWN(evict)
{
	if (self->obj.card >= 0)
		free_fillers(self->obj.card, self->fillers, &self->nr_fillers);
	if (self->mem >= 0)
		close(self->mem);
	remove_object(&self->obj, &self->place);
}

/*
 * Use up the device's memory, so that the object has to leave it. To ask where
 * it is makes it one that has been used of late, so this is not done too often.
 */
static bool evict(FIXTURE_DATA(evict) * self)
{
	/* Surfaces go to the other memory of the device when theirs is full. */
	const unsigned int enough = self->obj.kind == TTM_VRAM ? 12 : 24;
	const int card = self->obj.card;
	uint32_t handle;

	while (self->nr_fillers < MAX_FILLERS) {
		handle = self->obj.kind == TTM_VRAM ?
			 create_vram(card, FILLER_PAGES) :
			 create_surface(card, FILLER_PAGES);
		if (!handle)
			return false;
		self->fillers[self->nr_fillers++] = handle;
		if (self->nr_fillers == enough && !in_device(self))
			return true;
	}
	return !in_device(self);
}

/* What was mapped goes away with the object, and comes again from elsewhere. */
TEST_F(evict, contents)
{
	unsigned int round, gen = 0;
	unsigned long i;
	uint64_t val;

	for (round = 0; round < 3; round++) {
		/* All there, or just some, or what one touch brings */
		if (round % 3 == 0)
			touch_pages(self->addr, NR, 1);
		else if (round % 3 == 1)
			touch_pages(self->addr, NR, 37);
		ASSERT_TRUE(evict(self));
		ASSERT_EQ(first_bad(self->addr, 0, NR, gen), -1);
		/* It is the new place that is mapped. */
		fill(self->addr, 0, NR, ++gen);
		for (i = 0; i < NR; i++) {
			ASSERT_TRUE(read_other(self, i, &val));
			ASSERT_EQ(val, value(i, 0, gen));
		}

		free_fillers(self->obj.card, self->fillers, &self->nr_fillers);
		ASSERT_EQ(move_back(&self->obj), 0);
		ASSERT_TRUE(in_device(self));
		ASSERT_EQ(first_bad(self->addr, 0, NR, gen), -1);
		fill(self->addr, 0, NR, ++gen);
	}
	ASSERT_EQ(first_bad(self->addr, 0, NR, gen), -1);
}

/* Each thread has a word of each page for itself, and counts in it. */
struct counter {
	volatile bool *stop;
	char *addr;
	unsigned int word;
	unsigned long step;
	uint64_t rounds;
	long bad;
};

static void *count_up(void *arg)
{
	struct counter *counter = arg;
	unsigned long i, page = 0;

	counter->bad = -1;
	while (!*counter->stop && counter->bad < 0) {
		for (i = 0; i < NR; i++) {
			char *at = word_of(counter->addr + page * psize(),
					   counter->word);
			uint64_t val = load(at);

			if (val != value(page, counter->word, 0) +
				   counter->rounds)
				counter->bad = page;
			store(at, val + 1);
			page = (page + counter->step) % NR;
		}
		counter->rounds++;
	}
	return NULL;
}

TEST_F(evict, race)
{
	const uint64_t end = now_ns() + RACE_NS;
	struct counter counters[THREADS];
	pthread_t threads[THREADS];
	volatile bool stop = false;
	unsigned int round, i;
	unsigned long page;
	uint64_t rounds = 0;
	bool moved = false;

	for (i = 0; i < THREADS; i++) {
		counters[i] = (struct counter) {
			.stop = &stop,
			.addr = self->addr,
			.word = 2 * i,
			.step = race_steps[i],
		};
		ASSERT_EQ(pthread_create(&threads[i], NULL, count_up,
					 &counters[i]), 0);
	}
	for (round = 0; round < 20 && now_ns() < end; round++) {
		moved = evict(self);
		usleep(5000);
		free_fillers(self->obj.card, self->fillers, &self->nr_fillers);
		moved = moved && !move_back(&self->obj);
		if (!moved)
			break;
		usleep(5000);
	}
	stop = true;
	EXPECT_TRUE(moved);
	for (i = 0; i < THREADS; i++) {
		ASSERT_EQ(pthread_join(threads[i], NULL), 0);
		ASSERT_EQ(counters[i].bad, -1);
		rounds += counters[i].rounds;
	}
	ASSERT_GT(rounds, 0);
	for (i = 0; i < THREADS; i++) {
		for (page = 0; page < NR; page++) {
			char *at = self->addr + page * psize();

			ASSERT_EQ(load(word_of(at, 2 * i)),
				  value(page, 2 * i, 0) + counters[i].rounds);
		}
	}
}

/* What the child has got goes away, too. */
TEST_F(evict, fork)
{
	int status, to_child[2];
	pid_t pid;
	char c;

	ASSERT_EQ(first_bad(self->addr, 0, NR, 0), -1);
	ASSERT_EQ(pipe(to_child), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		close(to_child[1]);
		if (read(to_child[0], &c, 1) != 1)
			_exit(1);
		/* Moved since */
		if (present(self->addr, NR))
			_exit(2);
		if (first_bad(self->addr, 0, NR, 1) != -1)
			_exit(3);
		_exit(0);
	}
	close(to_child[0]);
	ASSERT_TRUE(evict(self));
	fill(self->addr, 0, NR, 1);
	ASSERT_EQ(write(to_child[1], "x", 1), 1);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
	close(to_child[1]);
}

TEST_HARNESS_MAIN
