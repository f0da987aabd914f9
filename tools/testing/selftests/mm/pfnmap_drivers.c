// SPDX-License-Identifier: GPL-2.0-only
/*
 * Drivers that insert ranges of pfns from their fault handlers: udmabuf, the
 * shmem helper of DRM (by vgem), and TTM (by qxl, which QEMU emulates).
 *
 * Whatever a fault maps besides the page that was touched, it must be the right
 * page, and must go away when the object moves.  How much it maps is a rule of
 * each driver: mincore() tells which PTEs are there.
 *
 * Needs root, and a device for qxl: qemu-system-x86_64 -device qxl.
 */
#define _GNU_SOURCE
/* Addresses are offsets, in /proc/self/mem */
#define _FILE_OFFSET_BITS 64
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "kselftest_harness.h"
#include "pfnmap_util.h"
#include "pfnmap_drivers.h"

#undef TEST_TIMEOUT_DEFAULT	/* Debugging kernels are slow, in emulators the more so. */
#define TEST_TIMEOUT_DEFAULT	300

#define NR		300L	/* pages of an object: a multiple of LIST_PAGES */
#define EDGE		90L	/* so many of these are in one page table, the rest in another */
#define TABLE		((size_t)psize() * psize() / 8)	/* mapped by one, on 64 bit */
#define SLACK		4	/* faults of what else the process does */
#define THREADS		4
#define RW		(PROT_READ | PROT_WRITE)
#define MOVE		(MREMAP_MAYMOVE | MREMAP_FIXED)
#define FILLER		((8UL << 20) / psize())
#define KPF_DIRTY	BIT_ULL(4)

static void __attribute__((constructor)) setup_hugetlb(void)
{
	if (!geteuid())
		hugetlb_setup_default(1);
}

FIXTURE(object)
{
	struct object obj;
	char *area;
	char *addr;	/* for page 0, with more than a page table to each side */
	char *other;	/* the same pages; a udmabuf's by its file */
	int mem;	/* /proc/self/mem */
	int fillers;	/* a file with objects that fill the memory of the device */
};

FIXTURE_VARIANT(object)
{
	enum kind kind;
	long lone;		/* pages that a fault maps, */
	long behind;		/* and when it is just behind those of the last one; 0: 64 KiB */
	bool aligned;		/* naturally, or from the faulting page on */
	bool scattered;		/* may be fewer than @behind, if not contiguous */
	bool notify;		/* told of the first write to each page, maps that alone */
	bool moves;		/* out of the memory of the device, and back */
};

#define ALL (LONG_MAX / 2)	/* of the VMA */

FIXTURE_VARIANT_ADD(object, udmabuf) { UDMABUF, ALL, ALL, .aligned = true };
FIXTURE_VARIANT_ADD(object, udmabuf_list) { UDMABUF_LIST, ALL, ALL, .aligned = true };
FIXTURE_VARIANT_ADD(object, udmabuf_hugetlb) { UDMABUF_HUGETLB, ALL, ALL, .aligned = true };
FIXTURE_VARIANT_ADD(object, vgem) { VGEM, 1, 0, .aligned = true, .notify = true };
FIXTURE_VARIANT_ADD(object, vgem_prime) { VGEM_PRIME, 1, 0, .aligned = true, .notify = true };
FIXTURE_VARIANT_ADD(object, ttm_system) { TTM_SYSTEM, 16, 64, .scattered = true };
FIXTURE_VARIANT_ADD(object, ttm_prime) { TTM_PRIME, 16, 64, .scattered = true };
FIXTURE_VARIANT_ADD(object, ttm_vram) { TTM_VRAM, 16, 64, .moves = true };

/* Each thread has a word of each page for itself. */
static char *word_of(char *addr, long page, unsigned int word)
{
	return addr + page * psize() + word * (psize() / THREADS);
}

static uint64_t value(long page, unsigned int word, unsigned int gen)
{
	return (page + 1) * 0x9e3779b97f4a7c15ULL + word + ((uint64_t)gen << 32);
}

/* Pages @first to @end of an object whose page 0 is, or would be, at @addr */
static void fill(char *addr, long first, long end, unsigned int gen)
{
	for (long page = first; page < end; page++)
		for (unsigned int word = 0; word < THREADS; word++)
			store(word_of(addr, page, word), value(page, word, gen));
}

/* The first page that is not the one of the object, or -1 */
static long first_bad(char *addr, long first, long end, unsigned int gen)
{
	for (long page = first; page < end; page++)
		for (unsigned int word = 0; word < THREADS; word++)
			if (load(word_of(addr, page, word)) != value(page, word, gen))
				return page;
	return -1;
}

/* How many pages have a PTE?  There may be no VMA at all. */
static long mapped(char *addr, long nr)
{
	unsigned char vec;
	long sum = 0;

	for (long i = 0; i < nr; i++)
		sum += !mincore(addr + i * psize(), psize(), &vec) && vec;
	return sum;
}

static void *reserve(void *addr, size_t size)
{
	return mmap(addr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
		    (addr ? MAP_FIXED : 0), -1, 0);
}

/* Map all of the object, where there is nothing else. */
static char *map(FIXTURE_DATA(object) * self, int prot)
{
	reserve(self->area, 4 * TABLE);
	return map_object(&self->obj, self->addr, 0, NR, prot);
}

FIXTURE_SETUP(object)
{
	int ret = create_object(&self->obj, variant->kind, NR);

	if (ret == -ENODEV)
		SKIP(return, "no such device, or no hugetlb page");
	ASSERT_EQ(ret, 0);
	self->area = reserve(NULL, 4 * TABLE);
	self->addr = (char *)(((uintptr_t)self->area + 2 * TABLE) & ~(TABLE - 1)) - EDGE * psize();
	self->other = map_object(&self->obj, NULL, 0, NR, RW);
	for (long i = 0; variant->kind <= UDMABUF_LIST && i < NR; i += LIST_PAGES)
		mmap(self->other + i * psize(), LIST_PAGES * psize(), RW, MAP_SHARED | MAP_FIXED,
		     self->obj.memfd, memfd_page(&self->obj, i) * psize());
	if (variant->kind == UDMABUF_HUGETLB)
		self->other = mmap(NULL, default_huge_page_size(), RW, MAP_SHARED, self->obj.memfd,
				   0) + HUGETLB_FIRST * psize();
	self->mem = open("/proc/self/mem", O_RDONLY);
	ASSERT_EQ(install_handler(), 0);
}

FIXTURE_TEARDOWN(object) {}

/* What KVM and VFIO find: 1 if they may write, or -errno. */
static int resolve(int fd, const char *addr, bool write, uint64_t *pfn)
{
	struct pfnmap_test_resolve arg = { .addr = (uintptr_t)addr, .write = write };

	/* The fault handler may have waited for a lock. */
	while (ioctl(fd, PFNMAP_TEST_RESOLVE, &arg))
		if (errno != EAGAIN)
			return -errno;
	*pfn = arg.pfn;
	return !!(arg.flags & PFNMAP_TEST_PTE_WRITE);
}

static const struct pattern {
	long head, end;		/* the VMA has these pages of the object; */
	long from, step;	/* these are touched, as far as the VMA goes */
	int advice;
	bool write;
} patterns[] = {
	/* The first touch of an object is not behind another one. */
	{ 0, NR, 0, 1 },
	{ 0, NR, 0, 1 },
	{ 0, NR, NR - 1, -1 },
	/* Here and there, just behind what a lone touch of TTM maps, across tables */
	{ 0, NR, 5, 17 },
	{ 0, NR, 3, 16 },
	{ 0, NR, EDGE - 1, 1 },
	/* A part of the object, with less to each side than a fault maps */
	{ 33, 247, 33, 1 },
	{ 33, 247, 240, -40 },
	{ EDGE - 3, EDGE + 5, EDGE - 2, 1 },
	{ 0, NR, 0, 1, .write = true },
	{ 0, NR, 0, 1, .advice = MADV_RANDOM },
};

/* A fault maps so much, and no more, and each page is the right one. */
TEST_F(object, window)
{
	char *addr = self->addr;
	long next = 0;

	for (unsigned int i = 0; i < ARRAY_SIZE(patterns); i++) {
		const struct pattern *p = &patterns[i];
		const long len = p->end - p->head;
		unsigned char vec[NR], want[NR] = {};
		char *head = addr + p->head * psize();

		ASSERT_EQ(map(self, RW), addr);
		reserve(self->area, head - self->area);
		reserve(addr + p->end * psize(), TABLE);
		ASSERT_EQ(madvise(head, len * psize(), p->advice), 0);
		for (long page = p->from; page >= p->head && page < p->end; page += p->step) {
			long nr = variant->lone, start = page, lo, hi;

			if (page && page == next)
				nr = variant->behind ? variant->behind : 65536 / psize();
			if ((p->write && variant->notify) || (p->advice && nr != ALL))
				nr = 1;
			if (variant->aligned)
				start -= (long)((uintptr_t)addr / psize() + page) % nr;
			lo = MAX(start, p->head);
			hi = MIN(start + nr, p->end);

			if (p->write)
				fill(addr, page, page + 1, 0);
			else
				FORCE_READ(addr[page * psize()]);
			ASSERT_EQ(mincore(head, len * psize(), vec + p->head), 0);
			if (!want[page]) {
				while (variant->scattered && hi > lo + 16 && !vec[hi - 1])
					hi--;
				memset(want + lo, 1, hi - lo);
				next = hi;
			}
			ASSERT_EQ(memcmp(vec + p->head, want + p->head, len), 0) {
				TH_LOG("pattern %u, page %ld: not %ld to %ld", i, page, lo, hi);
			}
		}
		if (!i)
			fill(self->other, 0, NR, 0);
		ASSERT_EQ(first_bad(addr, p->head, p->end, 0), -1);
		/* Wherever that was, the next pattern does not go on there. */
		next = -1;
	}
}

/* Mappings of a part, by mmap() or by what munmap() leaves of a longer one */
static const struct part {
	long first, nr;		/* pages of the object */
	long cut, cut_nr;	/* pages of the mapping */
} parts[] = {
	{ 0, 1 }, { 0, EDGE }, { 0, EDGE + 3 }, { 0, NR - 11, 0, 5 }, { 0, NR - 11, 0, EDGE + 3 },
	{ 0, NR, EDGE - 1, 3 }, { 0, NR, NR - 1, 1 },
	/* A dma-buf can be mapped from any page on. */
	{ 1, 1 }, { 37, 200 }, { NR - 1, 1 }, { EDGE, NR - EDGE, 0, 40 },
	/* What is behind the object can't be mapped. */
	{ 0, NR + 1 }, { NR - 1, 2 },
};

TEST_F(object, parts)
{
	char *addr = self->addr;

	fill(self->other, 0, NR, 0);
	for (unsigned int i = 0; i < 3 * ARRAY_SIZE(parts); i++) {
		const struct part *p = &parts[i / 3];
		const bool refuse = p->first + p->nr > NR ||
				    (p->first && !is_dmabuf(variant->kind));
		const size_t rest = (p->nr - p->cut - p->cut_nr) * psize();
		char *page0 = addr - p->first * psize(), *cut = addr + p->cut * psize();
		char *behind = cut + p->cut_nr * psize(), *to = behind;

		reserve(self->area, 4 * TABLE);
		ASSERT_EQ(map_object(&self->obj, addr, p->first, p->nr, PROT_READ),
			  refuse ? MAP_FAILED : addr);
		if (refuse)
			continue;
		/* Something is mapped before the mapping is cut or moved, or nothing. */
		if (i % 3)
			FORCE_READ(*addr);
		if (p->cut_nr)
			ASSERT_EQ(munmap(cut, p->cut_nr * psize()), 0);
		if (i % 3 == 2 && rest) {
			to += TABLE + 7 * psize();
			ASSERT_EQ(munmap(to + rest, psize()), 0);
			ASSERT_EQ(mremap(behind, rest, rest, MOVE, to), to);
			/* VM_DONTEXPAND */
			ASSERT_EQ(mremap(to, rest, rest + psize(), 0), MAP_FAILED);
			ASSERT_EQ(touch(behind), SIGSEGV);
		}
		ASSERT_EQ(first_bad(page0 + (to - behind), p->first + p->cut + p->cut_nr,
				    p->first + p->nr, 0), -1);
		ASSERT_EQ(first_bad(page0, p->first, p->first + p->cut, 0), -1);
		ASSERT_EQ(mapped(addr, NR + EDGE), p->cut + (to == behind ? rest / psize() : 0));
		ASSERT_EQ(touch(to + rest), SIGSEGV);
		ASSERT_EQ(touch(p->cut_nr ? cut : addr - psize()), SIGSEGV);
	}
}

TEST_F(object, protection)
{
	char *addr = self->addr;

	/* Not for copies: what is copied would be a page. */
	ASSERT_EQ(mmap(NULL, NR * psize(), RW, MAP_PRIVATE, self->obj.fd, self->obj.offset),
		  MAP_FAILED);

	/* Before the VMA is split, no page is mapped, one is, or all are. */
	for (int i = 0; i < 3; i++) {
		fill(self->other, 0, NR, 0);
		ASSERT_EQ(map(self, PROT_READ), addr);
		ASSERT_EQ(first_bad(addr, 0, i == 2 ? NR : i, 0), -1);

		/* A part that is writable, between others that are not */
		ASSERT_EQ(mprotect(addr + 40 * psize(), 100 * psize(), RW), 0);
		for (int again = 0; again < 2; again++) {
			ASSERT_EQ(try_store(addr + 39 * psize(), 1), SIGSEGV);
			ASSERT_EQ(try_store(addr + 140 * psize(), 1), SIGSEGV);
			fill(addr, 40, 140, 1);
			ASSERT_EQ(first_bad(self->other, 40, 140, 1), -1);
			ASSERT_EQ(first_bad(addr, 0, 40, 0), -1);
			ASSERT_EQ(first_bad(addr, 140, NR, 0), -1);
		}
		mprotect(addr, NR * psize(), RW);
		fill(addr, 0, NR, 2);
		ASSERT_EQ(first_bad(self->other, 0, NR, 2), -1);
	}
}

/*
 * Whoever calls the fault handler just once for a write gets it, in order and next to
 * reads.  A driver that wants to be told of it has been told: the page is dirty.
 */
TEST_F(object, resolve)
{
	int fd = open(DEVICE, O_RDWR), kpageflags = open("/proc/kpageflags", O_RDONLY);
	uint64_t pfn, flags = 0;

	if (fd < 0 || kpageflags < 0)
		SKIP(return, "no %s", fd < 0 ? DEVICE : "/proc/kpageflags");
	ASSERT_EQ(map(self, RW), self->addr);
	/* A part of the mapping, to see that pages are not counted from the VMA's start */
	reserve(self->area, self->addr + 3 * psize() - self->area);
	for (long i = 3; i < 64; i++) {
		const bool write = i < 32 || i % 2;

		ASSERT_GE(resolve(fd, self->addr + i * psize(), write, &pfn), write);
		ASSERT_TRUE(!variant->notify || !pageflags_get(pfn, kpageflags, &flags));
		if (variant->notify)
			ASSERT_EQ(!!(flags & KPF_DIRTY), write);
	}
	ASSERT_EQ(map(self, PROT_READ), self->addr);
	ASSERT_EQ(resolve(fd, self->addr, true, &pfn), -EFAULT);
	ASSERT_EQ(resolve(fd, self->addr, false, &pfn), 0);
}

/* How often a write faults, if pages have been read or not, and once more */
TEST_F(object, write)
{
	for (int i = 0; i < 4; i++) {
		struct rusage before, after;
		long nr;

		if (i % 2 == 0)
			ASSERT_EQ(map(self, RW), self->addr);
		for (long page = 0; i == 2 && page < NR; page++)
			FORCE_READ(self->addr[page * psize()]);
		getrusage(RUSAGE_THREAD, &before);
		fill(self->addr, 0, NR, i);
		getrusage(RUSAGE_THREAD, &after);
		nr = after.ru_minflt - before.ru_minflt;
		ASSERT_GE(nr, variant->notify && i % 2 == 0 ? NR : 0);
		ASSERT_LE(nr, SLACK + (variant->notify && i % 2 == 0 ? NR : i ? 0 : NR / 16));
		ASSERT_EQ(first_bad(self->other, 0, NR, i), -1);
		ASSERT_EQ(mapped(self->addr - EDGE * psize(), NR + 2 * EDGE), NR);
		ASSERT_EQ(smaps_sum(self->addr, NR, "Rss:"), 0);
		ASSERT_TRUE(check_vmflag_pfnmap(self->addr));
	}
}

/* What TTM reads for others is memory of the system only. */
static bool in_device(FIXTURE_DATA(object) * self)
{
	uint64_t val;

	return pread(self->mem, &val, sizeof(val), (uintptr_t)self->addr) < 0;
}

static bool move_out(FIXTURE_DATA(object) * self)
{
	bool there = in_device(self);

	self->fillers = open_card("qxl");
	for (int i = 1; there && i <= 72; i++) {
		there = create_handle(self->fillers, TTM_VRAM, FILLER);
		/* To ask makes the object one that has been used of late: don't, as a rule. */
		if (there && i % 12 == 0 && !in_device(self))
			return true;
	}
	return false;
}

/* For who imports its dma-buf, an object goes back to where it has been created. */
static bool move_back(FIXTURE_DATA(object) * self)
{
	struct drm_prime_handle prime = { .fd = handle_to_prime(self->obj.card, self->obj.handle) };
	int vgem = open_card("vgem");

	close(self->fillers);
	if (ioctl(vgem, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime))
		return false;
	close(prime.fd);
	close(vgem);
	return in_device(self);
}

/*
 * The child has the parent's PTEs, and shares what is behind them.  When the object
 * moves, they go away with the old place, and come again for the new one.
 */
TEST_F(object, fork)
{
	char *addr = self->addr, c;
	int status, pipes[2];
	long nr;

	fill(self->other, 0, NR, 0);
	/* All there, or just some */
	for (int gen = 0; gen < 2; gen++) {
		ASSERT_EQ(map(self, RW), addr);
		for (long page = 0; page < NR; page += gen ? 37 : 1)
			FORCE_READ(addr[page * psize()]);
		nr = mapped(addr, NR);
		ASSERT_EQ(pipe(pipes), 0);
		if (!fork()) {
			if (mapped(addr, NR) != nr || read(pipes[0], &c, 1) != 1)
				_exit(1);
			_exit(mapped(addr, NR) != (variant->moves ? 0 : nr) ||
			      first_bad(addr, 0, NR, gen + 1) != -1 ? 2 : 0);
		}
		if (variant->moves) {
			ASSERT_TRUE(move_out(self));
			ASSERT_EQ(mapped(addr, NR), 0);
		}
		ASSERT_EQ(first_bad(addr, 0, NR, gen), -1);
		fill(addr, 0, NR, gen + 1);
		ASSERT_EQ(write(pipes[1], "x", 1), 1);
		ASSERT_GT(wait(&status), 0);
		ASSERT_EQ(status, 0);
		if (variant->moves) {
			ASSERT_TRUE(move_back(self));
			ASSERT_EQ(mapped(addr, NR), 0);
		}
		ASSERT_EQ(first_bad(addr, 0, NR, gen + 1), -1);
	}
}

/* Threads count in words of their own: two that meet, one from the other end, ... */
static const long race_steps[THREADS] = { 1, 1, NR - 1, 17 };
static unsigned int race_rounds[THREADS];
static char *race_addr;
static bool race_stop;
static long race_visits;

static void *count_up(void *arg)
{
	const long word = (long)arg;
	long page = 0;

	for (; !FORCE_READ(race_stop); race_rounds[word]++) {
		for (long i = 0; i < NR; i++, page = (page + race_steps[word]) % NR) {
			char *at = word_of(race_addr, page, word);

			store(at, load(at) + 1);
			__atomic_add_fetch(&race_visits, 1, __ATOMIC_RELAXED);
		}
	}
	return NULL;
}

/* Threads fault for the same pages, while mappings go away, and the object moves. */
TEST_F(object, race)
{
	pthread_t threads[THREADS];

	fill(self->other, 0, NR, 0);
	race_addr = map(self, RW);
	for (long word = 0; word < THREADS; word++)
		ASSERT_EQ(pthread_create(&threads[word], NULL, count_up, (void *)word), 0);
	for (int round = 0; round < 100; round++) {
		const long seen = FORCE_READ(race_visits);

		/* Over the whole, or its begin */
		ASSERT_EQ(map_object(&self->obj, self->addr, 0, round % 2 ? NR : 1 + round, RW),
			  self->addr);
		if (variant->moves && round % 10 == 0)
			ASSERT_TRUE(round % 20 ? move_back(self) : move_out(self));
		/* From one page on to all of them */
		while (FORCE_READ(race_visits) - seen < 1 + round * 61 % NR)
			sched_yield();
	}
	race_stop = true;
	for (long word = 0; word < THREADS; word++) {
		ASSERT_EQ(pthread_join(threads[word], NULL), 0);
		for (long page = 0; page < NR; page++)
			ASSERT_EQ(load(word_of(self->other, page, word)),
				  value(page, word, 0) + race_rounds[word]);
	}
}

TEST_HARNESS_MAIN
