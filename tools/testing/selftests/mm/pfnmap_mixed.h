/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A mapping of an object of mm/pfnmap_test_*.c, and a model of it: what the test
 * expects each PTE to be.  The functions below change both; check() compares.
 *
 * Whether a PTE maps a page or just a pfn follows from the kind of object, and
 * from whether the architecture has pte_special: see is_page().
 */
#ifndef PFNMAP_MIXED_H
#define PFNMAP_MIXED_H

#include <sys/mman.h>
#include <sys/param.h>
#include <sys/wait.h>

#include "kselftest_harness.h"
#include "pfnmap_util.h"

/* Debugging kernels are slow, in emulators the more so. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	300

#define NR	128UL
#define SIZE	(NR * psize())
#define RW	(PROT_READ | PROT_WRITE)
#define EDGE	50UL			/* the first page in the next page table */

#define PRESENT	PFNMAP_TEST_PTE_PRESENT
#define SPECIAL	PFNMAP_TEST_PTE_SPECIAL
#define WRITE	PFNMAP_TEST_PTE_WRITE
#define DIRTY	PFNMAP_TEST_PTE_DIRTY
#define YOUNG	PFNMAP_TEST_PTE_YOUNG
#define VALID	PFNMAP_TEST_PFN_VALID
#define ANON	PFNMAP_TEST_ANON

struct kind {
	unsigned int method;
	unsigned int place;
	unsigned int flags;		/* PFNMAP_TEST_*, and PRIVATE */
};

#define PRIVATE		0x80000000U
#define MIXEDMAP	PFNMAP_TEST_MIXEDMAP
#define NO_IO		PFNMAP_TEST_NO_IO
#define NOTIFY		PFNMAP_TEST_NOTIFY
#define ALTERNATE	PFNMAP_TEST_ALTERNATE
#define SCATTER		PFNMAP_TEST_SCATTER
#define COMPOUND	PFNMAP_TEST_COMPOUND

#define KIND(_method, _place, _flags)	\
	.kind = { PFNMAP_TEST_##_method, PFNMAP_TEST_##_place, _flags }

/* Each test has the object below, mapped but not yet touched. */
#define FIXTURE_WITH_OBJECT(name)					\
	FIXTURE(name) {};						\
	FIXTURE_VARIANT(name) { struct kind kind; };			\
	FIXTURE_SETUP(name) { setup(_metadata, &variant->kind); }	\
	FIXTURE_TEARDOWN(name) { teardown(); }

struct page {
	uint64_t pfn;
	unsigned int pte;		/* PFNMAP_TEST_*, or 0: not mapped */
	bool valid;			/* has a struct page */
	uint64_t val;			/* seen here */
	uint64_t object_val;		/* to be seen when a copy has gone */
};

static struct {
	int fd;
	int observer;			/* an open file without an object */
	struct pfnmap_test_stats start;	/* of the observer */
	struct kind kind;
	bool mixed, private;
	unsigned long window;		/* 0: all of it */
	char *area;			/* reserved, at the start of a page table */
	char *addr;			/* where the object is mapped */
	unsigned int mappings;		/* like this one, in all processes */
	unsigned int ignore;		/* bits of PTEs that cannot be told */
	uint64_t told;			/* first writes, see NOTIFY */
	struct page pages[NR];
} o;

static struct __test_metadata *_metadata;

static inline long kb(unsigned long pages)
{
	return pages * (psize() / 1024);
}

static inline char *page_at(unsigned long i)
{
	return o.addr + i * psize();
}

static inline bool is_page(unsigned long i)
{
	return o.pages[i].valid && o.mixed &&
	       (o.kind.method == PFNMAP_TEST_PAGES || !o.start.pte_special);
}

static inline bool is_copy(unsigned long i)
{
	return o.pages[i].pte & ANON;
}

static inline bool has_page(unsigned long i)
{
	return is_page(i) || is_copy(i);
}

static inline bool is_source(unsigned long i)
{
	return o.pages[i].pte && !is_copy(i);
}

static inline struct pfnmap_test_stats stats(void)
{
	return get_stats(_metadata, o.fd);
}

static inline struct pfnmap_test_inspect page_state(unsigned long i)
{
	struct pfnmap_test_inspect arg = { .index = i };

	ASSERT_EQ(ioctl(o.fd, PFNMAP_TEST_PAGE_STATE, &arg), 0);
	return arg;
}

/* Where the object is not mapped, there is no PTE of it. */
static inline struct pfnmap_test_inspect inspect(const char *addr)
{
	struct pfnmap_test_inspect arg = { .addr = (uintptr_t)addr };

	if (ioctl(o.fd, PFNMAP_TEST_INSPECT, &arg))
		ASSERT_EQ(errno, EINVAL);
	return arg;
}

static inline unsigned long count_present(const char *addr, unsigned long nr)
{
	unsigned long present = 0;

	while (nr--)
		present += inspect(addr + nr * psize()).flags & PRESENT;
	return present;
}

static inline bool content_ok(const char *addr, unsigned long i)
{
	return load(addr) == PFNMAP_TEST_MAGIC && load(addr + 8) == i &&
	       load(addr + 64) == o.pages[i].val && load(addr + psize() - 8) == i;
}

static inline void check_counts(const char *what)
{
	unsigned long i, total = 0;

	for (i = 0; i < NR; i++)
		total += is_source(i) * o.mappings;
	for (i = 0; i < NR; i++) {
		const struct pfnmap_test_inspect state = page_state(i);
		const int expected = !is_page(i) ? 0 :
				     o.kind.flags & COMPOUND ? total :
				     is_source(i) * o.mappings;

		ASSERT_EQ(state.pfn, o.pages[i].pfn);
		if (!o.pages[i].valid)
			continue;
		ASSERT_EQ(state.mapcount, expected) TH_LOG("%s: page %lu", what, i);
		ASSERT_EQ(state.refcount, 1 + expected) TH_LOG("%s: page %lu", what, i);
	}
}

/* What is in the pages is left alone. */
static inline void check_ptes(const char *what)
{
	unsigned long i, pages = 0, copies = 0;

	for (i = 0; i < NR; i++) {
		const struct pfnmap_test_inspect pte = inspect(page_at(i));
		const unsigned int expected = o.pages[i].pte;
		unsigned int ignore = o.ignore;

		/* The VM makes pages old, and copies writable, when it likes. */
		if (is_page(i))
			ignore |= YOUNG;
		if (is_copy(i))
			ignore |= YOUNG | DIRTY | WRITE;
		ASSERT_EQ(pte.flags & ~ignore, expected & ~ignore)
			TH_LOG("%s: page %lu", what, i);
		if (is_source(i))
			ASSERT_EQ(pte.pfn, o.pages[i].pfn);
		if (is_copy(i))
			ASSERT_EQ(pte.mapcount, o.mappings);
		copies += is_copy(i);
		pages += is_source(i) && is_page(i);
	}
	check_counts(what);
	ASSERT_EQ(smaps_sum(o.addr, NR, "Rss:"), kb(pages + copies)) TH_LOG("%s", what);
	ASSERT_EQ(smaps_sum(o.addr, NR, "Anonymous:"), kb(copies)) TH_LOG("%s", what);
	if (o.kind.flags & NOTIFY)
		ASSERT_EQ(stats().mkwrites, o.told) TH_LOG("%s", what);
}

static inline void check(const char *what)
{
	uint64_t faults;
	unsigned long i;

	check_ptes(what);
	faults = stats().faults;
	for (i = 0; i < NR; i++) {
		ASSERT_TRUE(!o.pages[i].pte || content_ok(page_at(i), i))
			TH_LOG("%s: page %lu", what, i);
	}
	ASSERT_EQ(stats().faults, faults) TH_LOG("%s", what);
}

static inline int do_method(unsigned int method, unsigned long window,
			    unsigned int misuse, unsigned int page)
{
	struct pfnmap_test_method_arg arg = {
		.method = method, .window = window, .misuse = misuse, .misuse_page = page,
	};

	o.window = window;
	return ioctl(o.fd, PFNMAP_TEST_SET_METHOD, &arg);
}

static inline void set_window(unsigned long window)
{
	ASSERT_EQ(do_method(o.kind.method, window, PFNMAP_TEST_NO_MISUSE, 0), 0);
}

/* Learn where the pages are. */
static inline void read_states(void)
{
	unsigned long i;

	for (i = 0; i < NR; i++) {
		const struct pfnmap_test_inspect state = page_state(i);

		o.pages[i].pfn = state.pfn;
		o.pages[i].valid = state.flags & VALID;
	}
}

/* Map there, nowhere else; with errno, if not. */
static inline bool map_at(char *addr, unsigned long nr, int prot, int flags)
{
	return mmap(addr, nr * psize(), prot, flags | MAP_FIXED, o.fd, 0) == addr;
}

/* Back to a reserved range, without page tables. */
static inline void reserve(char *addr, unsigned long nr)
{
	ASSERT_TRUE(mmap(addr, nr * psize(), PROT_NONE, MAP_ANON | MAP_PRIVATE |
			 MAP_NORESERVE | MAP_FIXED, -1, 0) == addr);
}

static inline bool move(char *from, unsigned long nr, unsigned long new_nr,
			int flags, char *to)
{
	return mremap(from, nr * psize(), new_nr * psize(), flags |
		      MREMAP_MAYMOVE | MREMAP_FIXED, to) == to;
}

/* The PTEs have gone, and the copies with them. */
static inline void drop(unsigned long first, unsigned long nr)
{
	for (; nr; nr--, first++) {
		o.pages[first].pte = 0;
		o.pages[first].val = o.pages[first].object_val;
	}
}

static inline void map(void)
{
	ASSERT_TRUE(map_at(o.addr, NR, RW,
			   o.private ? MAP_PRIVATE : MAP_SHARED));
	drop(0, NR);
}

/* A fault maps what is not mapped of the window, and leaves the rest alone. */
static inline void faulted(unsigned long i)
{
	const unsigned long window = o.kind.method == PFNMAP_TEST_MIXED ? 1 :
				     o.window ? MIN(o.window, table_pages()) : 2 * NR;
	const unsigned long offset = o.window || window == 1 ?
				     ((uintptr_t)o.addr / psize() + i) & (window - 1) : NR;
	const bool run = o.kind.method == PFNMAP_TEST_MIXED_BATCH;
	unsigned long lo = i, hi = i + 1;

	/* The driver may insert only the pfns that are consecutive. */
	while (lo && i - lo < offset &&
	       (!run || o.pages[lo - 1].pfn + 1 == o.pages[lo].pfn))
		lo--;
	while (hi < NR && hi - i < window - offset &&
	       (!run || o.pages[hi - 1].pfn + 1 == o.pages[hi].pfn))
		hi++;
	for (; lo < hi; lo++) {
		if (o.pages[lo].pte)
			continue;
		o.pages[lo].pte = PRESENT | YOUNG | (o.pages[lo].valid ? VALID : 0);
		if (o.start.pte_special && !is_page(lo))
			o.pages[lo].pte |= SPECIAL;
		if (!o.private && !(o.kind.flags & NOTIFY))
			o.pages[lo].pte |= WRITE;
	}
}

static inline void fill(unsigned long first, unsigned long nr)
{
	for (; nr; nr--, first++) {
		if (!o.pages[first].pte)
			faulted(first);
		ASSERT_TRUE(content_ok(page_at(first), first)) TH_LOG("page %lu", first);
	}
}

/* Page @i has been written to. */
static inline void written(unsigned long i, uint64_t val)
{
	struct page *page = &o.pages[i];

	if (!page->pte)
		faulted(i);
	o.told += (o.kind.flags & NOTIFY) && !(page->pte & WRITE);
	page->val = val;
	if (o.private) {
		page->pte = PRESENT | VALID | ANON;
	} else {
		page->pte |= WRITE | DIRTY;
		page->object_val = val;
	}
}

static inline void write_page(unsigned long i, uint64_t val)
{
	store(page_at(i) + 64, val);
	written(i, val);
}

/*
 * Write some: alone, several in a row, none for a while.  Read all then: QEMU's m68k
 * misses a write to what its TLB has for a read.
 */
static inline void use(uint64_t val)
{
	unsigned long i;

	for (i = 0; i < 100; i++)
		if (i % 8 == 3 || i % 16 > 12)
			write_page(i, val + i);
	fill(0, NR);
}

static inline void protect(unsigned long first, unsigned long nr, int prot)
{
	ASSERT_EQ(mprotect(page_at(first), nr * psize(), prot), 0);
	for (; nr; nr--, first++) {
		unsigned int *pte = &o.pages[first].pte;

		if (!is_source(first) || o.private)
			continue;
		/* What is told of writes gets writable if it has been told. */
		if (!(prot & PROT_WRITE))
			*pte &= ~WRITE;
		else if (!(o.kind.flags & NOTIFY) || (is_page(first) && *pte & DIRTY))
			*pte |= WRITE;
	}
}

/* Returns in the child first.  When that stops itself, the parent goes on. */
static inline pid_t start_child(void)
{
	unsigned long i;
	int status;
	pid_t pid;

	o.mappings++;
	pid = fork();
	ASSERT_GE(pid, 0);
	if (pid) {
		ASSERT_EQ(waitpid(pid, &status, WUNTRACED), pid);
		ASSERT_TRUE(WIFSTOPPED(status));
	}
	for (i = 0; i < NR && !pid; i++)
		if (is_source(i))	/* what is mapped there is old, and clean */
			o.pages[i].pte &= ~(YOUNG | (o.private ? 0 : DIRTY));
	return pid;
}

static inline void end_child(pid_t pid)
{
	int status;

	kill(pid, SIGCONT);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
	o.mappings--;
	o.told = stats().mkwrites;
}

static inline void setup(struct __test_metadata *metadata, const struct kind *kind)
{
	unsigned long i;
	char *area;
	int ret;

	_metadata = metadata;
	ASSERT_EQ(install_handler(), 0);
	o.kind = *kind;
	o.kind.flags &= ~PRIVATE;
	o.mixed = kind->method >= PFNMAP_TEST_MIXED;
	o.private = kind->flags & PRIVATE;
	o.mappings = 1;
	o.observer = open(DEVICE, O_RDWR);
	ASSERT_GE(o.observer, 0);
	o.start = get_stats(_metadata, o.observer);
	o.fd = open(DEVICE, O_RDWR);
	ASSERT_GE(o.fd, 0);
	ret = do_create(o.fd, NR, kind->place, o.kind.flags | (o.mixed ? MIXEDMAP : 0));
	if (ret && errno == ENODEV)
		SKIP_TEST("the driver has no vram");
	ASSERT_EQ(ret, 0);
	set_window(16);
	read_states();

	area = mmap(NULL, 9 * span_size(), PROT_NONE,
		    MAP_ANON | MAP_PRIVATE | MAP_NORESERVE, -1, 0);
	ASSERT_TRUE(area != MAP_FAILED);
	o.area = area + span_size() - (uintptr_t)area % span_size();
	o.addr = o.area + span_size() - EDGE * psize();
	ASSERT_TRUE(map_at(o.addr, NR, RW, MAP_SHARED));
	for (i = 0; i < NR; i++) {
		o.pages[i].object_val = 3 * i + 1;
		store(page_at(i) + 64, o.pages[i].object_val);
		store(page_at(i) + psize() - 8, i);
	}
	map();
	o.told = stats().mkwrites;
}

/* The object has what was written to it, and neither copies nor references. */
static inline void teardown(void)
{
	struct pfnmap_test_stats end;
	unsigned long i;

	restore_fail_settings();
	set_window(16);
	reserve(o.area, 8 * span_pages());
	o.addr = o.area;
	ASSERT_TRUE(map_at(o.addr, NR, PROT_READ, MAP_SHARED));
	drop(0, NR);
	for (i = 0; i < NR; i++) {
		ASSERT_TRUE(content_ok(page_at(i), i)) TH_LOG("page %lu", i);
	}
	reserve(o.area, NR);
	check_counts("at the end");
	close(o.fd);
	ASSERT_EQ(munmap(o.area, 8 * span_size()), 0);
	end = get_stats(_metadata, o.observer);
	ASSERT_EQ(end.vram_free, o.start.vram_free);
	ASSERT_EQ(end.ram_pages, o.start.ram_pages);
}

#endif /* PFNMAP_MIXED_H */
