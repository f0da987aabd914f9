/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A mapping of an object of mm/pfnmap_test_*.c, and a model of it: what the test
 * expects each PTE to be.  The functions below change both; check() compares.
 *
 * Whether a PTE maps a page or just a pfn follows from the kind of object, and
 * from whether the architecture has pte_special: see is_page().
 *
 * Needs root and CONFIG_PFNMAP_TEST, with some vram: an ivshmem-plain device in
 * the virtual machine or the module parameters vram_start and vram_size.  Where
 * one is missing, tests are skipped.
 */
#ifndef PFNMAP_INSERT_H
#define PFNMAP_INSERT_H

#include <sys/mman.h>
#include <sys/wait.h>

#include "kselftest_harness.h"
#include "pfnmap_util.h"

/* Debugging kernels are slow, in emulators the more so. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	600

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

/* From a helper of a test as well: what the test has goes with its process. */
#define SKIP_TEST(...)	SKIP(_exit(KSFT_SKIP), __VA_ARGS__)

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
	unsigned long first, end;	/* a fault maps nothing else */
	char *area;			/* reserved, at the start of a page table */
	char *addr;			/* where the object is mapped */
	unsigned int mappings;		/* like this one, in all processes */
	unsigned int ignore;		/* bits of PTEs that cannot be told */
	uint64_t told;			/* first writes, see NOTIFY */
	struct page pages[NR];
} o;

static struct __test_metadata *_metadata;

/* Without the driver, there is nothing to test. */
static void __attribute__((constructor)) need_device(void)
{
	const bool root = !geteuid();

	if (root && access(DEVICE, F_OK) && system("modprobe pfnmap_test 2>/dev/null"))
		ksft_print_msg("modprobe pfnmap_test failed\n");
	if (root && !access(DEVICE, F_OK))
		return;
	ksft_print_header();
	ksft_exit_skip("%s\n", root ? "no " DEVICE "; is CONFIG_PFNMAP_TEST set?" : "not root");
}

/* What mappings are laid out by: one page table, or several if they are small. */
static inline unsigned long span_pages(void)
{
	return MAX(o.start.ptrs_per_pte, 512);
}

static inline size_t span_size(void)
{
	return span_pages() * psize();
}

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

static inline struct pfnmap_test_stats get_stats(int fd)
{
	struct pfnmap_test_stats stats;

	ASSERT_EQ(ioctl(fd, PFNMAP_TEST_GET_STATS, &stats), 0);
	return stats;
}

static inline struct pfnmap_test_stats stats(void)
{
	return get_stats(o.fd);
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
				     o.kind.flags & COMPOUND ? total : is_source(i) * o.mappings;

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
		unsigned int ignore = o.ignore;

		/* The VM makes pages old, and copies writable, when it likes. */
		if (is_page(i))
			ignore |= YOUNG;
		if (is_copy(i))
			ignore |= YOUNG | DIRTY | WRITE;
		ASSERT_EQ(pte.flags & ~ignore, o.pages[i].pte & ~ignore)
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

	check_ptes(what);
	faults = stats().faults;
	for (unsigned long i = 0; i < NR; i++) {
		ASSERT_TRUE(!o.pages[i].pte || content_ok(page_at(i), i))
			TH_LOG("%s: page %lu", what, i);
	}
	ASSERT_EQ(stats().faults, faults) TH_LOG("%s", what);
}

static inline int do_method(struct pfnmap_test_method_arg arg)
{
	o.window = arg.window;
	return ioctl(o.fd, PFNMAP_TEST_SET_METHOD, &arg);
}

#define DO_METHOD(...)	do_method((struct pfnmap_test_method_arg) { __VA_ARGS__ })

static inline void set_window(unsigned long window)
{
	ASSERT_EQ(DO_METHOD(o.kind.method, .window = window), 0);
}

/* Learn where the pages are. */
static inline void read_states(void)
{
	for (unsigned long i = 0; i < NR; i++) {
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
	ASSERT_TRUE(mmap(addr, nr * psize(), PROT_NONE, MAP_ANON | MAP_PRIVATE | MAP_NORESERVE |
			 MAP_FIXED, -1, 0) == addr);
}

static inline bool move(char *from, unsigned long nr, unsigned long new_nr, int flags, char *to)
{
	return mremap(from, nr * psize(), new_nr * psize(),
		      flags | MREMAP_MAYMOVE | MREMAP_FIXED, to) == to;
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
	ASSERT_TRUE(map_at(o.addr, NR, RW, o.private ? MAP_PRIVATE : MAP_SHARED));
	drop(0, NR);
}

/* A fault maps what is not mapped of the window, and leaves the rest alone. */
static inline void faulted(unsigned long i, bool write)
{
	const unsigned int method = o.kind.method;
	const bool run = method == PFNMAP_TEST_BATCH || method == PFNMAP_TEST_MIXED_BATCH;
	unsigned long window = o.window ? MIN(o.window, o.start.ptrs_per_pte) : 2 * NR, offset = NR;
	unsigned long lo = i, hi = i + 1;

	/* A write that is told of is for that page alone, unless pages have to be mapped first. */
	if (method == PFNMAP_TEST_SINGLE || method == PFNMAP_TEST_MIXED ||
	    (write && o.kind.flags & NOTIFY && !o.mixed))
		window = 1;
	if (window < 2 * NR || o.window)
		offset = ((uintptr_t)o.addr / psize() + i) % window;
	/* The driver may insert only the pfns that are consecutive. */
	while (lo > o.first && i - lo < offset &&
	       (!run || o.pages[lo - 1].pfn + 1 == o.pages[lo].pfn))
		lo--;
	while (hi < o.end && hi - i < window - offset &&
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
			faulted(first, false);
		ASSERT_TRUE(content_ok(page_at(first), first)) TH_LOG("page %lu", first);
	}
}

/* Page @i has been written to. */
static inline void written(unsigned long i, uint64_t val)
{
	struct page *page = &o.pages[i];

	if (!page->pte)
		faulted(i, true);
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

/* Alone, several in a row, none for a while */
static inline void write_some(uint64_t val)
{
	for (unsigned long i = 0; i < 100; i++)
		if (i % 8 == 3 || i % 16 > 12)
			write_page(i, val + i);
}

/* Read all then: QEMU's m68k misses a write to what its TLB has for a read. */
static inline void use(uint64_t val)
{
	write_some(val);
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
	int status;
	pid_t pid;

	o.mappings++;
	pid = fork();
	ASSERT_GE(pid, 0);
	if (pid) {
		ASSERT_EQ(waitpid(pid, &status, WUNTRACED), pid);
		ASSERT_TRUE(WIFSTOPPED(status));
	}
	for (unsigned long i = 0; i < NR && !pid; i++)
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

/* What a test begins with */
static inline void setup_observer(struct __test_metadata *metadata)
{
	_metadata = metadata;
	ASSERT_EQ(install_handler(), 0);
	o.observer = open(DEVICE, O_RDWR);
	ASSERT_GE(o.observer, 0);
	o.start = get_stats(o.observer);
}

/* Either from vram or to there: is there any? */
static inline void need_vram(int ret)
{
	if (ret && errno == ENODEV)
		SKIP_TEST("the driver has no vram");
	ASSERT_EQ(ret, 0);
}

static inline int do_migrate(uint64_t first, uint64_t nr, uint64_t place)
{
	struct pfnmap_test_migrate arg = { first, nr, place };

	return ioctl(o.fd, PFNMAP_TEST_MIGRATE, &arg);
}

static inline void new_object(int oflag, uint64_t nr, unsigned int place, unsigned int flags)
{
	struct pfnmap_test_create arg = { nr, place, flags };

	o.fd = open(DEVICE, oflag);
	ASSERT_GE(o.fd, 0);
	need_vram(ioctl(o.fd, PFNMAP_TEST_CREATE, &arg));
}

static inline void setup(struct __test_metadata *metadata, const struct kind *kind)
{
	char *area;

	setup_observer(metadata);
	o.kind = *kind;
	o.mixed = kind->method >= PFNMAP_TEST_MIXED || kind->flags & MIXEDMAP;
	o.private = kind->flags & PRIVATE;
	if (o.private && !o.mixed && !o.start.pte_special)
		SKIP_TEST("copies are not told from pfns without pte_special");
	o.kind.flags = (kind->flags & ~PRIVATE) | (o.mixed ? MIXEDMAP : 0);
	o.mappings = 1;
	o.first = 0;
	o.end = NR;
	new_object(O_RDWR, NR, kind->place, o.kind.flags);
	set_window(16);
	read_states();

	area = mmap(NULL, 9 * span_size(), PROT_NONE, MAP_ANON | MAP_PRIVATE | MAP_NORESERVE,
		    -1, 0);
	ASSERT_TRUE(area != MAP_FAILED);
	o.area = area + span_size() - (uintptr_t)area % span_size();
	o.addr = o.area + span_size() - EDGE * psize();
	ASSERT_TRUE(map_at(o.addr, NR, RW, MAP_SHARED));
	for (unsigned long i = 0; i < NR; i++) {
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

	set_window(16);
	reserve(o.area, 8 * span_pages());
	o.addr = o.area;
	ASSERT_TRUE(map_at(o.addr, NR, PROT_READ, MAP_SHARED));
	drop(0, NR);
	for (unsigned long i = 0; i < NR; i++) {
		ASSERT_TRUE(content_ok(page_at(i), i)) TH_LOG("page %lu", i);
	}
	reserve(o.area, NR);
	check_counts("at the end");
	close(o.fd);
	ASSERT_EQ(munmap(o.area, 8 * span_size()), 0);
	end = get_stats(o.observer);
	ASSERT_EQ(end.vram_free, o.start.vram_free);
	ASSERT_EQ(end.ram_pages, o.start.ram_pages);
	close(o.observer);
}

/*
 * A fault maps the window, as far as the VMA, the object and the page table go, but
 * leaves alone what is there, copies as well.
 */
static inline void check_faults(void)
{
	static const unsigned long windows[] = { 1, 16, 1UL << 20, 0 };
	static const struct {
		unsigned long first, end, fault;	/* pages */
		bool object;	/* has these, or a VMA between others of the same object */
	} rows[] = {
		{ 0, NR, 0 }, { 0, NR, 22 }, { 0, NR, NR - 1 },
		{ 0, NR, EDGE - 1 }, { 0, NR, EDGE },
		/* Smaller than a window: at its start, middle and end, at the edge */
		{ 18, 27, 26 }, { 21, 28, 21 }, { 27, 34, 33 }, { 20, 21, 20 },
		{ EDGE - 20, EDGE, EDGE - 1 }, { EDGE - 1, EDGE, EDGE - 1 },
		/* A window and parts of its neighbours */
		{ 11, 101, 11 }, { 11, 101, 100 }, { 15, 75, EDGE + 1 },
		/* The same for an object, which starts or ends in a window */
		{ 22, 30, 22, true }, { 22, 30, 29, true }, { 22, 30, 21, true },
		{ 22, 30, 30, true }, { 21, 66, 33, true }, { 21, 66, 34, true },
		{ 0, 61, EDGE, true }, { 0, 61, EDGE - 1, true }, { 35, 36, 35, true },
	};

	for (unsigned int i = 0; i < 4 * ARRAY_SIZE(rows); i++) {
		const unsigned long first = rows[i / 4].first, end = rows[i / 4].end;
		const unsigned long window = windows[i % 4], fault = rows[i / 4].fault;
		const uint64_t faults = stats().faults;
		const bool write = (i + i / 4) % 2, outside = fault < first || fault >= end;
		int sig;

		o.first = first;
		o.end = end;
		map();
		if (rows[i / 4].object) {
			if (!window)
				continue;
			ASSERT_EQ(DO_METHOD(o.kind.method, .window = window, .first = first,
					    .end = end), 0);
		} else {
			set_window(window);
			ASSERT_EQ(mprotect(o.addr, first * psize(), PROT_NONE), 0);
			ASSERT_EQ(mprotect(page_at(end), (NR - end) * psize(), PROT_NONE), 0);
		}
		sig = write ? try_store(page_at(fault) + 64, 7) : touch(page_at(fault));
		ASSERT_EQ(sig, outside ? SIGBUS : 0);
		if (!outside && write)
			written(fault, 7);
		else if (!outside)
			faulted(fault, false);
		ASSERT_EQ(stats().faults, faults + 1);
		check("one fault");
		if (i / 4 > 4)
			continue;
		set_window(1);
		write_some(7);
		set_window(window);
		fill(0, NR);
		check("all of it");
	}
}

/* Pages are counted and accounted for as often as they are mapped, pfns are not. */
static inline void check_rss(void)
{
	static const char * const fields[] = { "RssFile:", "RssAnon:" };
	long before[2], pages[2] = {};

	/* The program's own pages come in before. */
	use(7);
	check("before");
	map();
	for (int i = 0; i < 2; i++)
		before[i] = status_kb(fields[i]);
	use(7);
	check("once");
	for (unsigned long i = 0; i < NR; i++) {
		pages[0] += is_source(i) && is_page(i);
		pages[1] += is_copy(i);
	}
	for (int i = 0; i < 2; i++)
		EXPECT_LE(labs(status_kb(fields[i]) - before[i] - kb(pages[i])), kb(16));
	map();
	for (int i = 0; i < 2; i++)
		EXPECT_LE(labs(status_kb(fields[i]) - before[i]), kb(16));
}

#endif /* PFNMAP_INSERT_H */
