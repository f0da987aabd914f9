// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for VM_MIXEDMAP mappings: vmf_insert_mixed(), vmf_insert_mixed_pfns()
 * and its relatives, and vm_insert_page() to compare with.
 *
 * What is mapped by its pfn alone is not refcounted, accounted or in the rmap,
 * where the architecture has pte_special. Without it, each pfn that has a
 * struct page is. All that the tests expect follows from which of them it is,
 * and no test is skipped for that. vm_insert_page() maps pages everywhere, so
 * that both can be seen on any architecture.
 *
 * Needs root and CONFIG_PFNMAP_TEST, with some vram (see pfnmap_insert.c), swap,
 * and CONFIG_FAIL_PAGE_ALLOC. Where one is missing, tests are skipped.
 */
#define _GNU_SOURCE
/* Addresses are offsets, in /proc/self/mem */
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <linux/mman.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/param.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "kselftest_harness.h"
#include "pfnmap_util.h"

/* Debugging kernels are slow, in emulators the more so. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	300

#define AREA_PAGES	(8 * span_pages())

/* Other memory of the process that comes or goes meanwhile, in kB */
#define RSS_SLACK	((long)kb(64))

static unsigned int seed;

static unsigned long kb(unsigned long pages)
{
	return pages * (psize() / 1024);
}

/* Of many pages, those at both ends and some between. */
static unsigned long next_sample(unsigned long i, unsigned long nr)
{
	if (nr <= 64 || i < 3 || i + 4 >= nr)
		return i + 1;
	return MIN(i + 7, nr - 4);
}

/* What a test works with. */
struct dev {
	int fd;
	int observer;			/* an open file without an object */
	struct pfnmap_test_stats start;	/* of the observer */
	char *area;			/* reserved, aligned to all windows */
	size_t area_size;

	/* The object */
	unsigned long nr;		/* pages */
	unsigned int flags;
	struct pfnmap_test_page_state *states; /* of the unmapped pages */
	unsigned int *maps;		/* PTEs of each page, in all processes */

	unsigned int method;
	unsigned long window;
	bool unclamped;
};

/* A mapping of the object's pages from @first on. */
struct mapping {
	char *addr;
	unsigned long first;
	unsigned long nr;
	bool private;
};

static char *page_at(const struct mapping *mapping, unsigned long index)
{
	return mapping->addr + (index - mapping->first) * psize();
}

static int do_method(int fd, unsigned int method, unsigned long window,
		     bool unclamped, unsigned int misuse, unsigned int page)
{
	struct pfnmap_test_method_arg arg = {
		.method = method,
		.misuse = misuse,
		.window = window,
		.unclamped = unclamped,
		.misuse_page = page,
	};

	return ioctl(fd, PFNMAP_TEST_SET_METHOD, &arg);
}

static void setup_dev(struct __test_metadata *_metadata, struct dev *dev)
{
	size_t align = 4 * span_size();
	char *area;

	signal(SIGPIPE, SIG_IGN);
	ASSERT_EQ(install_handler(), 0);

	dev->observer = open(DEVICE, O_RDWR);
	ASSERT_GE(dev->observer, 0);
	ASSERT_EQ(ioctl(dev->observer, PFNMAP_TEST_GET_STATS, &dev->start), 0);
	dev->fd = open(DEVICE, O_RDWR);
	ASSERT_GE(dev->fd, 0);

	dev->area_size = AREA_PAGES * psize();
	area = mmap(NULL, dev->area_size + align, PROT_NONE,
		    MAP_ANON | MAP_PRIVATE | MAP_NORESERVE, -1, 0);
	ASSERT_TRUE(area != MAP_FAILED);
	dev->area = (char *)(((uintptr_t)area + align - 1) & ~(align - 1));
}

static struct pfnmap_test_page_state page_state(const struct dev *dev,
						unsigned long index)
{
	struct pfnmap_test_page_state arg = { .index = index };

	if (ioctl(dev->fd, PFNMAP_TEST_PAGE_STATE, &arg)) {
		ksft_print_msg("PFNMAP_TEST_PAGE_STATE: %s\n", strerror(errno));
		arg.pfn = ~0ULL;
	}
	return arg;
}

static bool same_pte(const struct pfnmap_test_inspect *a,
		     const struct pfnmap_test_inspect *b)
{
	const unsigned int ignore = PFNMAP_TEST_PTE_YOUNG |
				    PFNMAP_TEST_PTE_DIRTY;

	return a->pfn == b->pfn && !((a->flags ^ b->flags) & ~ignore);
}

/* Does not fail, so that children may use it: nothing has all flags. */
static struct pfnmap_test_inspect inspect(const struct dev *dev,
					  const char *addr)
{
	struct pfnmap_test_inspect arg = { .addr = (uintptr_t)addr };

	if (ioctl(dev->fd, PFNMAP_TEST_INSPECT, &arg)) {
		ksft_print_msg("PFNMAP_TEST_INSPECT: %s\n", strerror(errno));
		arg.flags = ~0U;
	}
	return arg;
}

static bool is_present(const struct dev *dev, const char *addr)
{
	return inspect(dev, addr).flags & PFNMAP_TEST_PTE_PRESENT;
}

static unsigned long count_present(const struct dev *dev, const char *addr,
				   unsigned long nr)
{
	unsigned long i, present = 0;

	for (i = 0; i < nr; i++)
		present += is_present(dev, addr + i * psize());
	return present;
}

/* Learn where the pages are; nothing may be mapped. */
static void read_states(struct __test_metadata *_metadata, struct dev *dev)
{
	unsigned long i;

	for (i = 0; i < dev->nr; i++) {
		dev->states[i] = page_state(dev, i);
		ASSERT_NE(dev->states[i].pfn, ~0ULL);
		if (!(dev->states[i].flags & PFNMAP_TEST_PFN_VALID))
			continue;
		ASSERT_EQ(dev->states[i].refcount, 1);
		ASSERT_EQ(dev->states[i].mapcount, 0);
	}
}

static void create(struct __test_metadata *_metadata, struct dev *dev,
		   unsigned long nr, unsigned int place, unsigned int flags)
{
	int ret = do_create(dev->fd, nr, place, flags);

	if (ret && errno == ENODEV)
		SKIP_TEST("the driver has no vram");
	ASSERT_EQ(ret, 0) {
		TH_LOG("creating %lu pages: %s", nr, strerror(errno));
	}
	dev->nr = nr;
	dev->flags = flags;
	dev->states = calloc(nr, sizeof(*dev->states));
	ASSERT_TRUE(!!dev->states);
	/* Children add to it. */
	dev->maps = mmap(NULL, nr * sizeof(*dev->maps), PROT_READ | PROT_WRITE,
			 MAP_ANON | MAP_SHARED, -1, 0);
	ASSERT_TRUE(dev->maps != MAP_FAILED);
	read_states(_metadata, dev);
}

static void set_method(struct __test_metadata *_metadata, struct dev *dev,
		       unsigned int method, unsigned long window,
		       bool unclamped)
{
	ASSERT_EQ(do_method(dev->fd, method, window, unclamped,
			    PFNMAP_TEST_NO_MISUSE, 0), 0);
	dev->method = method;
	dev->window = window;
	dev->unclamped = unclamped;
}

static struct pfnmap_test_stats get_stats(struct __test_metadata *_metadata,
					  const struct dev *dev)
{
	struct pfnmap_test_stats stats;

	ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_GET_STATS, &stats), 0);
	return stats;
}

static void reset_stats(struct __test_metadata *_metadata,
			const struct dev *dev)
{
	ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_RESET_STATS), 0);
}

/* Map there, nowhere else; with errno, if not. */
static bool map_fixed(char *addr, unsigned long nr, int prot, int flags, int fd,
		      unsigned long first)
{
	return mmap(addr, nr * psize(), prot, flags | MAP_FIXED, fd,
		    first * psize()) == addr;
}

/* The same for what is mapped at @from. */
static bool remap_fixed(char *from, unsigned long nr, unsigned long new_nr,
			int flags, char *to)
{
	return mremap(from, nr * psize(), new_nr * psize(), flags, to) == to;
}

/* Map at mapping->addr, which is part of the area. */
static void map(struct __test_metadata *_metadata, const struct dev *dev,
		const struct mapping *mapping)
{
	ASSERT_TRUE(map_fixed(mapping->addr, mapping->nr,
			      PROT_READ | PROT_WRITE, mapping->private ?
			      MAP_PRIVATE : MAP_SHARED, dev->fd,
			      mapping->first)) {
		TH_LOG("mmap: %s", strerror(errno));
	}
}

/* Back to a reserved range, without page tables. */
static void unmap(struct __test_metadata *_metadata, char *addr,
		  unsigned long nr)
{
	ASSERT_TRUE(map_fixed(addr, nr, PROT_NONE, MAP_ANON | MAP_PRIVATE |
			      MAP_NORESERVE, -1, 0));
}

static bool headers_ok(const struct mapping *mapping, unsigned long lo,
		       unsigned long hi)
{
	unsigned long i;

	for (i = lo; i < hi; i++) {
		if (!header_ok(page_at(mapping, i), i, 0))
			return false;
	}
	return true;
}

/*
 * The rule: is the object's page @index, where it is mapped, a page? Otherwise
 * it is just a pfn.
 */
static bool is_page(const struct dev *dev, unsigned long index)
{
	if (dev->method != PFNMAP_TEST_PAGES && dev->start.pte_special)
		return false;
	return dev->states[index].flags & PFNMAP_TEST_PFN_VALID;
}

/* Is page @index mapped here, as the rule says, and not a copy of it? */
static bool is_source(const struct dev *dev,
		      const struct pfnmap_test_inspect *pte,
		      unsigned long index)
{
	const bool special = dev->start.pte_special && !is_page(dev, index);

	return pte->flags != ~0U && pte->flags & PFNMAP_TEST_PTE_PRESENT &&
	       pte->pfn == dev->states[index].pfn &&
	       !(pte->flags & PFNMAP_TEST_ANON) &&
	       !!(pte->flags & PFNMAP_TEST_PTE_SPECIAL) == special;
}

/* A copy of page @index? */
static bool is_copy(const struct dev *dev,
		    const struct pfnmap_test_inspect *pte, unsigned long index)
{
	return pte->flags != ~0U && pte->flags & PFNMAP_TEST_PTE_PRESENT &&
	       pte->pfn != dev->states[index].pfn &&
	       pte->flags & PFNMAP_TEST_ANON &&
	       !(pte->flags & PFNMAP_TEST_PTE_SPECIAL);
}

static bool source_at(const struct dev *dev, const struct mapping *mapping,
		      unsigned long index)
{
	struct pfnmap_test_inspect pte = inspect(dev, page_at(mapping, index));

	return is_source(dev, &pte, index);
}

static bool copy_at(const struct dev *dev, const struct mapping *mapping,
		    unsigned long index)
{
	struct pfnmap_test_inspect pte = inspect(dev, page_at(mapping, index));

	return is_copy(dev, &pte, index);
}

static void clear_maps(struct dev *dev)
{
	memset(dev->maps, 0, dev->nr * sizeof(*dev->maps));
}

static void add_maps(struct dev *dev, unsigned long lo, unsigned long hi,
		     int nr)
{
	for (; lo < hi; lo++)
		dev->maps[lo] += nr;
}

/* Add what the calling process maps there. */
static void tally(struct dev *dev, const struct mapping *mapping)
{
	unsigned long i;

	for (i = mapping->first; i < mapping->first + mapping->nr; i++)
		dev->maps[i] += source_at(dev, mapping, i);
}

/* Do the pages' counts say that they are mapped as often as noted? */
static bool counts_ok(const struct dev *dev)
{
	const bool compound = dev->flags & PFNMAP_TEST_COMPOUND;
	struct pfnmap_test_page_state state;
	unsigned long i, total = 0;
	int maps;

	for (i = 0; i < dev->nr; i++)
		total += dev->maps[i];

	for (i = 0; i < dev->nr; i = next_sample(i, dev->nr)) {
		state = page_state(dev, i);
		if (state.pfn != dev->states[i].pfn) {
			ksft_print_msg("page %lu: pfn changed\n", i);
			return false;
		}
		if (!(state.flags & PFNMAP_TEST_PFN_VALID))
			continue;
		maps = compound ? total : dev->maps[i];
		if (!is_page(dev, i))
			maps = 0;
		if (state.refcount != 1 + maps || state.mapcount != maps) {
			ksft_print_msg("page %lu: refcount %d, mapcount %d, expected %d, %d\n",
				       i, state.refcount, state.mapcount,
				       1 + maps, maps);
			return false;
		}
	}
	return true;
}

/* The same for one process with one mapping. */
static bool mapping_counts_ok(struct dev *dev, const struct mapping *mapping)
{
	clear_maps(dev);
	tally(dev, mapping);
	return counts_ok(dev);
}

static void teardown_dev(struct __test_metadata *_metadata, struct dev *dev)
{
	struct pfnmap_test_stats end;

	EXPECT_EQ(munmap(dev->area, dev->area_size), 0);
	if (dev->maps) {
		clear_maps(dev);
		EXPECT_TRUE(counts_ok(dev));
		EXPECT_EQ(munmap(dev->maps, dev->nr * sizeof(*dev->maps)), 0);
	}
	free(dev->states);
	EXPECT_EQ(close(dev->fd), 0);
	EXPECT_EQ(ioctl(dev->observer, PFNMAP_TEST_GET_STATS, &end), 0);
	EXPECT_EQ(end.vram_free, dev->start.vram_free);
	EXPECT_EQ(end.ram_pages, dev->start.ram_pages);
	EXPECT_EQ(close(dev->observer), 0);
}

/* Clamp to the pages around @index whose pfns are consecutive. */
static void expect_run(const struct dev *dev, unsigned long index,
		       unsigned long *lo, unsigned long *hi)
{
	const struct pfnmap_test_page_state *states = dev->states;
	unsigned long i;

	for (i = index; i > *lo && states[i - 1].pfn + 1 == states[i].pfn; i--)
		;
	*lo = i;
	for (i = index + 1;
	     i < *hi && states[i - 1].pfn + 1 == states[i].pfn; i++)
		;
	*hi = i;
}

/*
 * What a fault on the object's page @index is to map, when nothing is mapped:
 * the pages from *@lo up to, but not including, *@hi.
 */
static void expect_fault(const struct dev *dev, const struct mapping *mapping,
			 unsigned long index, unsigned long *lo,
			 unsigned long *hi)
{
	unsigned long window = dev->window, offset;

	*lo = index;
	*hi = index + 1;
	if (dev->method == PFNMAP_TEST_MIXED)
		return;

	if (!dev->unclamped && window > table_pages())
		window = table_pages();
	offset = (uintptr_t)mapping->addr / psize() + index - mapping->first;
	offset &= window - 1;

	if (offset < index - mapping->first)
		*lo = index - offset;
	else
		*lo = mapping->first;
	*hi = index - offset + window;
	if (*hi > mapping->first + mapping->nr || *hi < index)
		*hi = mapping->first + mapping->nr;

	if (dev->method == PFNMAP_TEST_MIXED_BATCH)
		expect_run(dev, index, lo, hi);
}

/* Are exactly the pages from @lo up to @hi mapped, and by the rule? */
static bool mapped_ok(const struct dev *dev, const struct mapping *mapping,
		      unsigned long lo, unsigned long hi)
{
	const bool write = !mapping->private &&
			   !(dev->flags & PFNMAP_TEST_NOTIFY);
	const unsigned long edges[] = { lo - 1, lo, hi - 1, hi };
	const unsigned long end = mapping->first + mapping->nr;
	unsigned long i, j = 0;

	for (i = mapping->first;; i = mapping->first +
	     next_sample(i - mapping->first, mapping->nr)) {
		struct pfnmap_test_inspect pte;
		bool ok;

		while (i >= end && j < ARRAY_SIZE(edges)) {
			i = edges[j++];
			if (i < mapping->first)
				i = end;
		}
		if (i >= end)
			return true;

		pte = inspect(dev, page_at(mapping, i));
		if (i >= lo && i < hi)
			ok = is_source(dev, &pte, i) &&
			     !!(pte.flags & PFNMAP_TEST_PTE_WRITE) == write;
		else
			ok = !pte.flags;
		if (!ok) {
			ksft_print_msg("page %lu of [%lu, %lu): flags %#x, expected [%lu, %lu)\n",
				       i, mapping->first, end, pte.flags, lo,
				       hi);
			return false;
		}
		if (j)
			i = end;
	}
}

/*
 * A child process that goes step by step with its parent.
 */
struct child {
	pid_t pid;
	int in, out;
};

/* Returns true in the child. */
static bool start_child(struct __test_metadata *_metadata, struct child *child)
{
	int up[2], down[2];

	ASSERT_EQ(pipe(up), 0);
	ASSERT_EQ(pipe(down), 0);
	child->pid = fork();
	ASSERT_GE(child->pid, 0);
	child->in = child->pid ? up[0] : down[0];
	child->out = child->pid ? down[1] : up[1];
	close(child->pid ? up[1] : down[1]);
	close(child->pid ? down[0] : up[0]);
	return !child->pid;
}

static void child_check(bool ok, const char *what, unsigned long page)
{
	if (ok)
		return;
	ksft_print_msg("child: %s, page %lu\n", what, page);
	_exit(1);
}

/* Let the other one go on, wait for it. */
static bool tell(const struct child *child)
{
	return write(child->out, "", 1) == 1;
}

static bool await(const struct child *child)
{
	char byte;

	return read(child->in, &byte, 1) == 1;
}

static void child_sync(const struct child *child)
{
	child_check(tell(child) && await(child), "no parent", 0);
}

/* Returns the child's exit code, or -1. */
static int wait_child(const struct child *child)
{
	int status;

	close(child->in);
	close(child->out);
	if (waitpid(child->pid, &status, 0) != child->pid || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

static ssize_t vm_readv(pid_t pid, char *addr, uint64_t *val)
{
	struct iovec local = { val, sizeof(*val) };
	struct iovec remote = { addr, sizeof(*val) };

	return process_vm_readv(pid, &local, 1, &remote, 1, 0);
}

static ssize_t vm_writev(pid_t pid, char *addr, uint64_t val)
{
	struct iovec local = { &val, sizeof(val) };
	struct iovec remote = { addr, sizeof(val) };

	return process_vm_writev(pid, &local, 1, &remote, 1, 0);
}

#define KIND(_method, _place, _flags)				\
	.method = PFNMAP_TEST_##_method,			\
	.place = PFNMAP_TEST_##_place,				\
	.flags = PFNMAP_TEST_MIXEDMAP | (_flags)

/* get_user_pages() and others may look at it. */
#define NO_IO		PFNMAP_TEST_NO_IO
#define NOTIFY		PFNMAP_TEST_NOTIFY
#define ALTERNATE	PFNMAP_TEST_ALTERNATE
#define SCATTER		PFNMAP_TEST_SCATTER
#define COMPOUND	PFNMAP_TEST_COMPOUND

/* A PTE of a shared mapping that has been written to */
#define WRITTEN		(PFNMAP_TEST_PTE_WRITE | PFNMAP_TEST_PTE_DIRTY)

/*
 * The rules: each method, with objects of each kind, shared and private.
 */
FIXTURE(mixed)
{
	struct dev dev;
};

FIXTURE_VARIANT(mixed)
{
	unsigned int method;
	unsigned int place;
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(mixed, single_ram) { KIND(MIXED, RAM, NO_IO) };
FIXTURE_VARIANT_ADD(mixed, single_vram) { KIND(MIXED, VRAM, NO_IO) };
FIXTURE_VARIANT_ADD(mixed, single_alternate) { KIND(MIXED, RAM, ALTERNATE) };
FIXTURE_VARIANT_ADD(mixed, single_compound) { KIND(MIXED, RAM, NO_IO | COMPOUND) };
FIXTURE_VARIANT_ADD(mixed, batch_ram) { KIND(MIXED_BATCH, RAM, NO_IO) };
FIXTURE_VARIANT_ADD(mixed, batch_vram) { KIND(MIXED_BATCH, VRAM, NO_IO) };
FIXTURE_VARIANT_ADD(mixed, batch_alternate) { KIND(MIXED_BATCH, VRAM, NO_IO | ALTERNATE) };
FIXTURE_VARIANT_ADD(mixed, batch_scatter) { KIND(MIXED_BATCH, RAM, SCATTER) };
FIXTURE_VARIANT_ADD(mixed, batch_compound) { KIND(MIXED_BATCH, RAM, NO_IO | COMPOUND) };
FIXTURE_VARIANT_ADD(mixed, iter_ram) { KIND(MIXED_ITER, RAM, NO_IO) };
FIXTURE_VARIANT_ADD(mixed, iter_vram) { KIND(MIXED_ITER, VRAM, 0) };
FIXTURE_VARIANT_ADD(mixed, iter_alternate) { KIND(MIXED_ITER, RAM, NO_IO | ALTERNATE) };
FIXTURE_VARIANT_ADD(mixed, iter_scatter) { KIND(MIXED_ITER, RAM, NO_IO | SCATTER) };
FIXTURE_VARIANT_ADD(mixed, iter_scatter_vram) { KIND(MIXED_ITER, VRAM, NO_IO | SCATTER) };
FIXTURE_VARIANT_ADD(mixed, iter_compound) { KIND(MIXED_ITER, RAM, COMPOUND) };
FIXTURE_VARIANT_ADD(mixed, pages_ram) { KIND(PAGES, RAM, NO_IO) };
FIXTURE_VARIANT_ADD(mixed, pages_scatter) { KIND(PAGES, RAM, SCATTER) };
FIXTURE_VARIANT_ADD(mixed, pages_compound) { KIND(PAGES, RAM, NO_IO | COMPOUND) };

FIXTURE_SETUP(mixed)
{
	struct dev *dev = &self->dev;

	setup_dev(_metadata, dev);
	/* In two or three page tables, see the mappings */
	create(_metadata, dev, variant->flags & COMPOUND ? PART_PAGES :
	       PART_PAGES + 200, variant->place, variant->flags);
	set_method(_metadata, dev, variant->method, 16, false);
}

FIXTURE_TEARDOWN(mixed)
{
	teardown_dev(_metadata, &self->dev);
}

/* One fault on a fresh mapping, then one on each page that it left. */
static void check_faults(struct __test_metadata *_metadata, struct dev *dev,
			 const struct mapping *mapping, unsigned long index,
			 bool rest)
{
	struct pfnmap_test_inspect before, after;
	unsigned long lo, hi;

	map(_metadata, dev, mapping);
	reset_stats(_metadata, dev);
	expect_fault(dev, mapping, index, &lo, &hi);
	ASSERT_TRUE(mapped_ok(dev, mapping, 0, 0));
	ASSERT_TRUE(header_ok(page_at(mapping, index), index, 0));
	ASSERT_EQ(get_stats(_metadata, dev).faults, 1);
	ASSERT_TRUE(mapped_ok(dev, mapping, lo, hi)) {
		TH_LOG("fault on page %lu, window %lu, %s", index, dev->window,
		       mapping->private ? "private" : "shared");
	}
	clear_maps(dev);
	add_maps(dev, lo, hi, 1);
	ASSERT_TRUE(counts_ok(dev));
	ASSERT_TRUE(headers_ok(mapping, lo, hi));
	ASSERT_EQ(get_stats(_metadata, dev).nopage, 1);

	if (rest) {
		/* What is there is left alone. */
		before = inspect(dev, page_at(mapping, index));
		ASSERT_TRUE(headers_ok(mapping, mapping->first,
				       mapping->first + mapping->nr));
		after = inspect(dev, page_at(mapping, index));
		ASSERT_TRUE(same_pte(&before, &after));
		ASSERT_TRUE(mapped_ok(dev, mapping, mapping->first,
				      mapping->first + mapping->nr));
		clear_maps(dev);
		add_maps(dev, mapping->first, mapping->first + mapping->nr, 1);
		ASSERT_TRUE(counts_ok(dev));
	}
	ASSERT_EQ(get_stats(_metadata, dev).sigbus, 0);
	unmap(_metadata, mapping->addr, mapping->nr);
	clear_maps(dev);
	ASSERT_TRUE(counts_ok(dev));
}

TEST_F(mixed, faults)
{
	const struct {
		unsigned long window;
		bool unclamped;
	} windows[] = {
		{ 1, false }, { 16, false }, { 512, false },
		{ 4 * span_pages(), true },
	};
	struct dev *dev = &self->dev;
	struct mapping mapping = {
		dev->area + span_size() - 37 * psize(), 0, dev->nr, false
	};
	const unsigned long index[] = { 0, 22, 36, 37, dev->nr - 1 };
	unsigned int private, i, j;

	for (private = 0; private < 2; private++) {
		mapping.private = private;
		for (i = 0; i < ARRAY_SIZE(windows); i++) {
			set_method(_metadata, dev, variant->method,
				   windows[i].window, windows[i].unclamped);
			for (j = 0; j < ARRAY_SIZE(index); j++)
				check_faults(_metadata, dev, &mapping, index[j],
					     j == 1);
			if (variant->method == PFNMAP_TEST_MIXED)
				break;
		}
	}

	/* A part of the object. */
	set_method(_metadata, dev, variant->method, 64, false);
	mapping = (struct mapping){ dev->area + 13 * psize(), 100, 77, false };
	check_faults(_metadata, dev, &mapping, 101, true);
	check_faults(_metadata, dev, &mapping, 176, true);
}

/* What user space can find out about pages that are mapped @maps times. */
static void check_page_counts(struct __test_metadata *_metadata,
			      const struct dev *dev,
			      const struct mapping *mapping)
{
	int kpagecount, pagemap;
	unsigned long i;
	uint64_t entry, count;

	kpagecount = open("/proc/kpagecount", O_RDONLY);
	ASSERT_GE(kpagecount, 0);
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_GE(pagemap, 0);
	for (i = mapping->first; i < mapping->first + mapping->nr;
	     i = next_sample(i, dev->nr)) {
		const bool page = is_page(dev, i);

		entry = pagemap_get_entry(pagemap, page_at(mapping, i));
		ASSERT_TRUE(entry & PM_PRESENT);
		ASSERT_EQ(PAGEMAP_PFN(entry), dev->states[i].pfn);
		ASSERT_EQ(!!(entry & PM_FILE), page);
		ASSERT_FALSE(entry & PM_SWAP);
		if (!(dev->flags & COMPOUND))
			ASSERT_EQ(!!(entry & PM_MMAP_EXCLUSIVE),
				  page && dev->maps[i] == 1);
		if (!(dev->states[i].flags & PFNMAP_TEST_PFN_VALID))
			continue;
		ASSERT_EQ(pread(kpagecount, &count, sizeof(count),
				dev->states[i].pfn * sizeof(count)),
			  sizeof(count));
		ASSERT_EQ(count, page ? dev->maps[i] : 0);
	}
	close(pagemap);
	close(kpagecount);
}

/* Counts follow what is mapped: in several places and processes. */
TEST_F(mixed, counts)
{
	struct dev *dev = &self->dev;
	const struct mapping shared = {
		dev->area + span_size() - 37 * psize(), 0, dev->nr, false
	};
	const struct mapping private = {
		dev->area + 4 * span_size() - 13 * psize(), 0, dev->nr, true
	};
	struct child child;

	map(_metadata, dev, &shared);
	ASSERT_TRUE(counts_ok(dev));
	ASSERT_TRUE(headers_ok(&shared, 0, dev->nr));
	add_maps(dev, 0, dev->nr, 1);
	ASSERT_TRUE(counts_ok(dev));
	check_page_counts(_metadata, dev, &shared);

	map(_metadata, dev, &private);
	ASSERT_TRUE(headers_ok(&private, 0, dev->nr));
	add_maps(dev, 0, dev->nr, 1);
	ASSERT_TRUE(counts_ok(dev));
	check_page_counts(_metadata, dev, &shared);
	check_page_counts(_metadata, dev, &private);

	unmap(_metadata, page_at(&private, 3), 50);
	add_maps(dev, 3, 53, -1);
	ASSERT_TRUE(counts_ok(dev));
	check_page_counts(_metadata, dev, &shared);

	ASSERT_EQ(madvise(page_at(&shared, 40), 41 * psize(), MADV_DONTNEED), 0);
	add_maps(dev, 40, 81, -1);
	ASSERT_TRUE(counts_ok(dev));
	ASSERT_TRUE(headers_ok(&shared, 40, 81));
	add_maps(dev, 40, 81, 1);
	ASSERT_TRUE(counts_ok(dev));

	if (start_child(_metadata, &child)) {
		const struct mapping other = {
			dev->area + 7 * span_size(), 64, 40, false
		};

		tally(dev, &shared);
		add_maps(dev, 0, 3, 1);
		add_maps(dev, 53, dev->nr, 1);
		child_check(counts_ok(dev), "counts", 0);
		child_check(headers_ok(&shared, 0, dev->nr), "headers", 0);
		child_check(counts_ok(dev), "counts", 1);
		map(_metadata, dev, &other);
		child_check(headers_ok(&other, 64, 104), "headers", 64);
		add_maps(dev, 64, 104, 1);
		child_check(counts_ok(dev), "counts", 2);
		child_sync(&child);
		_exit(0);
	}
	ASSERT_TRUE(await(&child));
	ASSERT_TRUE(counts_ok(dev));
	check_page_counts(_metadata, dev, &shared);
	unmap(_metadata, private.addr, private.nr);
	add_maps(dev, 0, 3, -1);
	add_maps(dev, 53, dev->nr, -1);
	ASSERT_TRUE(counts_ok(dev));
	ASSERT_TRUE(tell(&child));
	ASSERT_EQ(wait_child(&child), 0);
	ASSERT_TRUE(mapping_counts_ok(dev, &shared));
	ASSERT_EQ(dev->maps[0], 1);
	ASSERT_EQ(dev->maps[dev->nr - 1], 1);
}

/* Pages are accounted where they are mapped, pfns are not. */
TEST_F(mixed, accounting)
{
	static const char * const rss[] = { "RssFile:", "RssAnon:", "VmRSS:" };
	long before[ARRAY_SIZE(rss)], expected, val;
	struct dev *dev = &self->dev;
	struct mapping mapping = {
		dev->area + 5 * psize(), 0, dev->nr, false
	};
	unsigned long i, pages = 0;
	unsigned int private;

	for (i = 0; i < dev->nr; i++)
		pages += is_page(dev, i);

	for (private = 0; private < 2; private++) {
		mapping.private = private;
		map(_metadata, dev, &mapping);
		smaps_sum(mapping.addr, 1, "Rss:");
		for (i = 0; i < ARRAY_SIZE(rss); i++)
			before[i] = status_kb(rss[i]);
		ASSERT_TRUE(headers_ok(&mapping, 0, dev->nr));
		for (i = 0; i < ARRAY_SIZE(rss); i++) {
			val = status_kb(rss[i]) - before[i];
			expected = strcmp(rss[i], "RssAnon:") ? kb(pages) : 0;
			EXPECT_GE(val, expected - RSS_SLACK) {
				TH_LOG("%s", rss[i]);
			}
			EXPECT_LE(val, expected + RSS_SLACK) {
				TH_LOG("%s", rss[i]);
			}
		}
		EXPECT_EQ(smaps_sum(mapping.addr, 1, "Rss:"), kb(pages));
		EXPECT_EQ(smaps_sum(mapping.addr, 1, "Pss:"), kb(pages));
		EXPECT_EQ(smaps_sum(mapping.addr, 1, "Anonymous:"), 0);
		EXPECT_EQ(smaps_sum(mapping.addr, 1, "Swap:"), 0);

		unmap(_metadata, mapping.addr, mapping.nr);
		for (i = 0; i < ARRAY_SIZE(rss); i++) {
			val = status_kb(rss[i]) - before[i];
			EXPECT_LE(val, RSS_SLACK);
			EXPECT_GE(val, -RSS_SLACK);
		}
	}
}

/* get_user_pages() gets pages, and nothing where there are just pfns. */
TEST_F(mixed, gup)
{
	struct dev *dev = &self->dev;
	const struct mapping mapping = {
		dev->area + 5 * psize(), 0, 64, false
	};
	unsigned int i, round;
	int pipes[2];
	ssize_t len;

	ASSERT_EQ(pipe(pipes), 0);
	map(_metadata, dev, &mapping);
	/* First not faulted in, then faulted in. */
	for (round = 0; round < 2; round++) {
		for (i = 2; i < 4; i++) {
			const bool gets = variant->flags & NO_IO &&
					  is_page(dev, i);
			char *addr = page_at(&mapping, i);
			struct iovec iov = { addr, 24 };
			struct pfnmap_test_page header;
			uint64_t val = 0;

			errno = 0;
			ASSERT_EQ(vm_readv(getpid(), addr + 8, &val),
				  gets ? 8 : -1);
			ASSERT_EQ(errno, gets ? 0 : EFAULT);
			ASSERT_EQ(val, gets ? i : 0);

			errno = 0;
			ASSERT_EQ(vm_writev(getpid(), addr + 64, 77),
				  gets ? 8 : -1);
			ASSERT_EQ(errno, gets ? 0 : EFAULT);

			ASSERT_TRUE(mapping_counts_ok(dev, &mapping));
			errno = 0;
			len = vmsplice(pipes[1], &iov, 1, 0);
			if (len < 0) {
				/* The latter for special PTEs */
				ASSERT_FALSE(gets);
				ASSERT_TRUE(errno == EFAULT ||
					    errno == EEXIST);
				continue;
			}
			/* There is a fast way, which does not look at VM_IO. */
			ASSERT_EQ(len, 24);
			ASSERT_TRUE(is_page(dev, i));
			ASSERT_EQ(page_state(dev, i).refcount,
				  2 + page_state(dev, i).mapcount);
			ASSERT_EQ(read(pipes[0], &header, 24), 24);
			ASSERT_EQ(header.magic, PFNMAP_TEST_MAGIC);
			ASSERT_EQ(header.index, i);
		}
		ASSERT_TRUE(mapping_counts_ok(dev, &mapping));
		ASSERT_TRUE(headers_ok(&mapping, 0, 64));
		for (i = 2; i < 4; i++)
			ASSERT_EQ(load(page_at(&mapping, i) + 64),
				  variant->flags & NO_IO && is_page(dev, i) ?
				  77 : 0);
	}
	close(pipes[0]);
	close(pipes[1]);
}

/* Mappings move, grow and are doubled, unless they are VM_DONTEXPAND. */
TEST_F(mixed, mremap)
{
	struct dev *dev = &self->dev;
	struct mapping mapping = {
		dev->area + span_size() - 20 * psize(), 10, 40, false
	};
	struct mapping other = {
		dev->area + 3 * span_size() - 33 * psize(), 10, 64, false
	};
	const int flags = MREMAP_MAYMOVE | MREMAP_FIXED;

	map(_metadata, dev, &mapping);
	ASSERT_TRUE(headers_ok(&mapping, 10, 50));
	if (!(variant->flags & NO_IO)) {
		ASSERT_FALSE(remap_fixed(mapping.addr, 40, 64, flags,
					 other.addr));
		ASSERT_EQ(errno, EFAULT);
		ASSERT_FALSE(remap_fixed(mapping.addr, 0, 40, flags,
					 other.addr));
		ASSERT_EQ(errno, EFAULT);
		other.nr = 40;
	}
	add_maps(dev, 10, 50, 1);
	ASSERT_TRUE(counts_ok(dev));

	ASSERT_TRUE(remap_fixed(mapping.addr, 40, other.nr, flags, other.addr));
	ASSERT_EQ(touch(mapping.addr), SIGSEGV);
	ASSERT_TRUE(counts_ok(dev));
	ASSERT_TRUE(mapped_ok(dev, &other, 10, 50));
	ASSERT_TRUE(headers_ok(&other, 10, 10 + other.nr));
	clear_maps(dev);
	add_maps(dev, 10, 10 + other.nr, 1);
	ASSERT_TRUE(counts_ok(dev));
	if (!(variant->flags & NO_IO))
		return;

	mapping.nr = 64;
	ASSERT_TRUE(remap_fixed(other.addr, 0, 64, flags, mapping.addr));
	ASSERT_TRUE(mapped_ok(dev, &mapping, 0, 0));
	ASSERT_TRUE(headers_ok(&mapping, 10, 74));
	add_maps(dev, 10, 74, 1);
	ASSERT_TRUE(counts_ok(dev));
}

/* A child's PTEs, clean and writable, are what GUP is content with. */
TEST_F(mixed, populate)
{
	struct dev *dev = &self->dev;
	const struct mapping mapping = {
		dev->area + span_size() - 20 * psize(), 0, 64, false
	};
	const int err = variant->flags & NO_IO ? 0 : EINVAL;
	struct pfnmap_test_inspect before, after;
	struct child child;
	unsigned long i;

	map(_metadata, dev, &mapping);
	for (i = 0; i < 64; i++)
		store(page_at(&mapping, i) + 64, i);
	if (start_child(_metadata, &child)) {
		for (i = 0; i < 64; i++) {
			char *addr = page_at(&mapping, i);

			before = inspect(dev, addr);
			child_check(is_source(dev, &before, i), "source", i);
			child_check((before.flags & WRITTEN) ==
				    PFNMAP_TEST_PTE_WRITE, "clean", i);
			errno = 0;
			child_check(madvise(addr, psize(), MADV_POPULATE_READ) ==
				    -!!err && errno == err, "read", i);
			child_check(madvise(addr, psize(), MADV_POPULATE_WRITE) ==
				    -!!err && errno == err, "write", i);
			after = inspect(dev, addr);
			child_check(same_pte(&before, &after), "same", i);
			/* A page is marked itself. */
			if (!err && !is_page(dev, i))
				child_check(after.flags & PFNMAP_TEST_PTE_DIRTY,
					    "dirty", i);
		}
		child_check(!madvise(mapping.addr, 30 * psize(), MADV_DONTNEED),
			    "zap", 0);
		child_check(madvise(mapping.addr, 64 * psize(),
				    MADV_POPULATE_WRITE) == -!!err, "all", 0);
		child_check(count_present(dev, mapping.addr, 64) ==
			    (err ? 34 : 64), "present", 0);
		tally(dev, &mapping);
		child_sync(&child);
		_exit(0);
	}
	ASSERT_TRUE(await(&child));
	tally(dev, &mapping);
	ASSERT_TRUE(counts_ok(dev));
	ASSERT_TRUE(tell(&child));
	ASSERT_EQ(wait_child(&child), 0);
	for (i = 0; i < 64; i++)
		ASSERT_EQ(load(page_at(&mapping, i) + 64), i);
}

/* The instruction cache may be flushed for a page, if there is one. */
TEST_F(mixed, exec)
{
	static const unsigned int flags[] = { MAP_SHARED, MAP_PRIVATE };
	struct dev *dev = &self->dev;
	struct mapping mapping = { dev->area, 0, 64, false };
	unsigned int i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		ASSERT_TRUE(map_fixed(mapping.addr, 64, PROT_READ | PROT_EXEC,
				      flags[i], dev->fd, 0)) {
			TH_LOG("mmap: %s", strerror(errno));
		}
		ASSERT_TRUE(headers_ok(&mapping, 0, 64));
		ASSERT_TRUE(mapping_counts_ok(dev, &mapping));

		mapping.private = flags[i] == MAP_PRIVATE;
		map(_metadata, dev, &mapping);
		ASSERT_TRUE(headers_ok(&mapping, 0, 30));
		store(page_at(&mapping, 2) + 64, 1);
		ASSERT_EQ(mprotect(mapping.addr, 64 * psize(),
				   PROT_READ | PROT_EXEC), 0);
		ASSERT_TRUE(headers_ok(&mapping, 0, 64));
		ASSERT_TRUE(mapping_counts_ok(dev, &mapping));
		unmap(_metadata, mapping.addr, 64);
	}

	/* And vmf_insert_pfns(), with an object of its own */
	fd = open(DEVICE, O_RDWR);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(do_create(fd, 64, variant->place,
			    variant->flags & (ALTERNATE | SCATTER)), 0);
	ASSERT_EQ(do_method(fd, PFNMAP_TEST_BATCH, 16, false,
			    PFNMAP_TEST_NO_MISUSE, 0), 0);
	ASSERT_TRUE(map_fixed(mapping.addr, 64, PROT_READ | PROT_EXEC,
			      MAP_SHARED, fd, 0));
	ASSERT_TRUE(headers_ok(&mapping, 0, 64));
	ASSERT_TRUE(map_fixed(mapping.addr, 64, PROT_READ, MAP_SHARED, fd, 0));
	ASSERT_TRUE(headers_ok(&mapping, 0, 30));
	ASSERT_EQ(mprotect(mapping.addr, 64 * psize(), PROT_READ | PROT_EXEC),
		  0);
	ASSERT_TRUE(headers_ok(&mapping, 0, 64));
	unmap(_metadata, mapping.addr, 64);
	close(fd);
}

/*
 * A page in the middle that must not be mapped as a page, where it would be;
 * or the zero page, which a shared mapping must not be able to write to.
 */
FIXTURE(refused)
{
	struct dev dev;
};

FIXTURE_VARIANT(refused)
{
	unsigned int method;
	unsigned int misuse;
};

#define REFUSED(_method, _misuse)				\
	.method = PFNMAP_TEST_##_method,			\
	.misuse = PFNMAP_TEST_##_misuse

FIXTURE_VARIANT_ADD(refused, single_slab) { REFUSED(MIXED, SLAB_PAGE) };
FIXTURE_VARIANT_ADD(refused, single_free) { REFUSED(MIXED, FREE_PAGE) };
FIXTURE_VARIANT_ADD(refused, single_zero) { REFUSED(MIXED, ZERO_PAGE) };
FIXTURE_VARIANT_ADD(refused, batch_slab) { REFUSED(MIXED_BATCH, SLAB_PAGE) };
FIXTURE_VARIANT_ADD(refused, batch_free) { REFUSED(MIXED_BATCH, FREE_PAGE) };
FIXTURE_VARIANT_ADD(refused, batch_zero) { REFUSED(MIXED_BATCH, ZERO_PAGE) };
FIXTURE_VARIANT_ADD(refused, iter_slab) { REFUSED(MIXED_ITER, SLAB_PAGE) };
FIXTURE_VARIANT_ADD(refused, iter_free) { REFUSED(MIXED_ITER, FREE_PAGE) };
FIXTURE_VARIANT_ADD(refused, iter_zero) { REFUSED(MIXED_ITER, ZERO_PAGE) };

#define REFUSED_NR	64UL
#define BAD_PAGE	20UL

FIXTURE_SETUP(refused)
{
	struct dev *dev = &self->dev;

	setup_dev(_metadata, dev);
	create(_metadata, dev, REFUSED_NR, PFNMAP_TEST_RAM,
	       PFNMAP_TEST_MIXEDMAP | NO_IO);
	set_method(_metadata, dev, variant->method, REFUSED_NR, false);
	ASSERT_EQ(do_method(dev->fd, variant->method, REFUSED_NR, false,
			    variant->misuse, BAD_PAGE), 0);
}

FIXTURE_TEARDOWN(refused)
{
	teardown_dev(_metadata, &self->dev);
}

/* Whether the page is refused in a mapping like that. */
static bool is_refused(const struct dev *dev, unsigned int misuse,
		       const struct mapping *mapping)
{
	if (misuse == PFNMAP_TEST_ZERO_PAGE)
		return !mapping->private;
	return !dev->start.pte_special;
}

/* The fault is on that page. Nobody shall read what is in there. */
TEST_F(refused, at_fault)
{
	struct dev *dev = &self->dev;
	struct mapping mapping = { dev->area, 0, REFUSED_NR, false };
	struct pfnmap_test_inspect pte;
	unsigned int private;
	unsigned long i;
	bool refused;
	char *bad;

	for (private = 0; private < 2; private++) {
		mapping.private = private;
		refused = is_refused(dev, variant->misuse, &mapping);
		map(_metadata, dev, &mapping);
		reset_stats(_metadata, dev);
		bad = page_at(&mapping, BAD_PAGE);

		errno = 0;
		ASSERT_EQ(madvise(bad, psize(), MADV_POPULATE_READ),
			  refused ? -1 : 0);
		ASSERT_EQ(errno, refused ? EFAULT : 0);
		ASSERT_EQ(get_stats(_metadata, dev).sigbus, refused);
		if (refused) {
			ASSERT_EQ(touch(bad), SIGBUS);
			ASSERT_EQ(try_store(bad, 1), SIGBUS);
			ASSERT_EQ(count_present(dev, mapping.addr, REFUSED_NR),
				  0);
		} else {
			pte = inspect(dev, bad);
			ASSERT_TRUE(pte.flags & PFNMAP_TEST_PTE_PRESENT);
			ASSERT_EQ(!!(pte.flags & PFNMAP_TEST_PTE_SPECIAL),
				  dev->start.pte_special);
			ASSERT_NE(pte.pfn, dev->states[BAD_PAGE].pfn);
			if (variant->misuse == PFNMAP_TEST_FREE_PAGE)
				ASSERT_EQ(pte.refcount, 0);
			ASSERT_EQ(pte.mapcount, 0);
			if (variant->method == PFNMAP_TEST_MIXED_ITER)
				ASSERT_EQ(count_present(dev, mapping.addr,
							REFUSED_NR),
					  REFUSED_NR);
		}
		ASSERT_TRUE(mapping_counts_ok(dev, &mapping));

		/* A page that is all right, in its place */
		ASSERT_EQ(do_method(dev->fd, variant->method, REFUSED_NR, false,
				    PFNMAP_TEST_NO_MISUSE, 0), 0);
		ASSERT_EQ(madvise(mapping.addr, REFUSED_NR * psize(),
				  MADV_DONTNEED), 0);
		for (i = 0; i < REFUSED_NR; i++)
			ASSERT_TRUE(header_ok(page_at(&mapping, i), i, 0));
		ASSERT_TRUE(mapping_counts_ok(dev, &mapping));
		unmap(_metadata, mapping.addr, REFUSED_NR);
		ASSERT_EQ(do_method(dev->fd, variant->method, REFUSED_NR, false,
				    variant->misuse, BAD_PAGE), 0);
	}
}

/* The fault is on another page: the call may know about the bad one. */
TEST_F(refused, at_neighbour)
{
	static const unsigned long index[] = { 0, BAD_PAGE - 1, BAD_PAGE + 1 };
	const bool iter = variant->method == PFNMAP_TEST_MIXED_ITER;
	struct dev *dev = &self->dev;
	struct mapping mapping = { dev->area, 0, REFUSED_NR, false };
	unsigned int private, i;
	bool refused;
	char *addr;

	for (private = 0; private < 2; private++) {
		mapping.private = private;
		refused = iter && is_refused(dev, variant->misuse, &mapping);
		for (i = 0; i < ARRAY_SIZE(index); i++) {
			map(_metadata, dev, &mapping);
			addr = page_at(&mapping, index[i]);
			ASSERT_EQ(touch(addr), refused ? SIGBUS : 0);
			ASSERT_EQ(is_present(dev, addr), !refused);
			ASSERT_EQ(try_store(addr + 64, 1), refused ? SIGBUS : 0);
			if (refused) {
				ASSERT_EQ(count_present(dev, mapping.addr,
							REFUSED_NR), 0);
			} else {
				ASSERT_TRUE(header_ok(addr, index[i], 0));
			}
			ASSERT_EQ(is_present(dev, page_at(&mapping, BAD_PAGE)),
				  iter && !refused);
			ASSERT_TRUE(mapping_counts_ok(dev, &mapping));
			unmap(_metadata, mapping.addr, REFUSED_NR);
		}
	}
}

/*
 * The zero page, in mappings of each kind.
 */
FIXTURE(zero_page)
{
	struct dev dev;
};

FIXTURE_VARIANT(zero_page)
{
	unsigned int method;
};

FIXTURE_VARIANT_ADD(zero_page, single) { .method = PFNMAP_TEST_MIXED };
FIXTURE_VARIANT_ADD(zero_page, batch) { .method = PFNMAP_TEST_MIXED_BATCH };
FIXTURE_VARIANT_ADD(zero_page, iter) { .method = PFNMAP_TEST_MIXED_ITER };

FIXTURE_SETUP(zero_page)
{
	setup_dev(_metadata, &self->dev);
}

FIXTURE_TEARDOWN(zero_page)
{
	teardown_dev(_metadata, &self->dev);
}

static void create_zero(struct __test_metadata *_metadata, struct dev *dev,
			unsigned int method, unsigned int flags)
{
	create(_metadata, dev, REFUSED_NR, PFNMAP_TEST_RAM,
	       PFNMAP_TEST_MIXEDMAP | flags);
	set_method(_metadata, dev, method, REFUSED_NR, false);
	ASSERT_EQ(do_method(dev->fd, method, REFUSED_NR, false,
			    PFNMAP_TEST_ZERO_PAGE, BAD_PAGE), 0);
}

TEST_F(zero_page, private)
{
	struct dev *dev = &self->dev;
	const struct mapping mapping = { dev->area, 0, REFUSED_NR, true };
	char *zero = page_at(&mapping, BAD_PAGE);
	struct pfnmap_test_inspect pte, again;
	long rss;

	create_zero(_metadata, dev, variant->method, NO_IO);
	map(_metadata, dev, &mapping);
	ASSERT_EQ(load(zero), 0);
	ASSERT_EQ(load(zero + psize() - 8), 0);
	pte = inspect(dev, zero);
	ASSERT_TRUE(pte.flags & PFNMAP_TEST_PTE_PRESENT);
	ASSERT_FALSE(pte.flags & (PFNMAP_TEST_PTE_WRITE | PFNMAP_TEST_ANON));
	ASSERT_EQ(!!(pte.flags & PFNMAP_TEST_PTE_SPECIAL),
		  dev->start.pte_special);
	ASSERT_EQ(pte.mapcount, 0);
	rss = smaps_sum(mapping.addr, 1, "Rss:");

	/* Neither counted nor accounted */
	ASSERT_EQ(madvise(zero, psize(), MADV_DONTNEED), 0);
	ASSERT_EQ(smaps_sum(mapping.addr, 1, "Rss:"), rss);
	ASSERT_EQ(load(zero), 0);
	again = inspect(dev, zero);
	ASSERT_EQ(again.pfn, pte.pfn);
	ASSERT_EQ(again.refcount, pte.refcount);

	store(zero + 8, 5);
	pte = inspect(dev, zero);
	ASSERT_TRUE(pte.flags & PFNMAP_TEST_ANON);
	ASSERT_NE(pte.pfn, again.pfn);
	ASSERT_EQ(load(zero), 0);
	ASSERT_EQ(load(zero + 8), 5);
	ASSERT_EQ(smaps_sum(mapping.addr, 1, "Anonymous:"), kb(1));
	ASSERT_EQ(madvise(zero, psize(), MADV_DONTNEED), 0);
	ASSERT_EQ(load(zero + 8), 0);
	ASSERT_TRUE(mapping_counts_ok(dev, &mapping));
}

/* Not even mprotect() can make it writable. */
TEST_F(zero_page, read_only)
{
	struct dev *dev = &self->dev;
	char *zero = dev->area + BAD_PAGE * psize();
	const size_t size = REFUSED_NR * psize();
	struct pfnmap_test_inspect pte;

	close(dev->fd);
	dev->fd = open(DEVICE, O_RDONLY);
	ASSERT_GE(dev->fd, 0);
	create_zero(_metadata, dev, variant->method, NO_IO);
	ASSERT_TRUE(map_fixed(dev->area, REFUSED_NR, PROT_READ, MAP_SHARED,
			      dev->fd, 0));
	ASSERT_EQ(load(zero), 0);
	pte = inspect(dev, zero);
	ASSERT_TRUE(pte.flags & PFNMAP_TEST_PTE_PRESENT);
	ASSERT_EQ(!!(pte.flags & PFNMAP_TEST_PTE_SPECIAL),
		  dev->start.pte_special);
	ASSERT_EQ(try_store(zero, 1), SIGSEGV);
	ASSERT_EQ(mprotect(dev->area, size, PROT_READ | PROT_WRITE), -1);
	ASSERT_EQ(errno, EACCES);
	ASSERT_TRUE(header_ok(zero - psize(), BAD_PAGE - 1, 0));
	ASSERT_EQ(load(zero), 0);
}

/* Read-only for now is not enough. */
TEST_F(zero_page, shared)
{
	struct dev *dev = &self->dev;
	char *zero = dev->area + BAD_PAGE * psize();
	const size_t size = REFUSED_NR * psize();

	create_zero(_metadata, dev, variant->method, 0);
	ASSERT_TRUE(map_fixed(dev->area, REFUSED_NR, PROT_READ, MAP_SHARED,
			      dev->fd, 0));
	ASSERT_EQ(touch(zero), SIGBUS);
	ASSERT_EQ(mprotect(dev->area, size, PROT_READ | PROT_WRITE), 0);
	ASSERT_EQ(touch(zero), SIGBUS);
	ASSERT_EQ(try_store(zero, 1), SIGBUS);
	ASSERT_EQ(count_present(dev, dev->area, REFUSED_NR), 0);
	ASSERT_EQ(get_stats(_metadata, dev).sigbus, 3);
}

/* With pfn_mkwrite, whose first write is told: but then it must not stay. */
TEST_F(zero_page, notify)
{
	struct dev *dev = &self->dev;
	const struct mapping mapping = { dev->area, 0, REFUSED_NR, false };
	char *zero = page_at(&mapping, BAD_PAGE);
	struct pfnmap_test_inspect pte;

	create_zero(_metadata, dev, variant->method, NOTIFY);
	map(_metadata, dev, &mapping);
	/* VM_IO: get_user_pages() can't pin it, so it may be there. */
	ASSERT_EQ(try_store(zero, 1), SIGBUS);
	ASSERT_EQ(get_stats(_metadata, dev).mkwrites, 1);
	ASSERT_EQ(load(zero), 0);
	pte = inspect(dev, zero);
	ASSERT_TRUE(pte.flags & PFNMAP_TEST_PTE_PRESENT);
	ASSERT_FALSE(pte.flags & PFNMAP_TEST_PTE_WRITE);
	ASSERT_EQ(try_store(zero, 1), SIGBUS);
	ASSERT_EQ(get_stats(_metadata, dev).mkwrites, 2);
	ASSERT_EQ(load(zero), 0);
	ASSERT_FALSE(inspect(dev, zero).flags & PFNMAP_TEST_PTE_WRITE);

	/* Its neighbours can be written to. */
	store(zero + psize() + 64, 1);
	store(zero - psize() + 64, 1);
	ASSERT_EQ(load(zero), 0);
	ASSERT_FALSE(inspect(dev, zero).flags & PFNMAP_TEST_PTE_WRITE);
	ASSERT_TRUE(mapping_counts_ok(dev, &mapping));
}

TEST_F(zero_page, notify_no_io)
{
	struct dev *dev = &self->dev;
	const struct mapping mapping = { dev->area, 0, REFUSED_NR, false };

	create_zero(_metadata, dev, variant->method, NOTIFY | NO_IO);
	map(_metadata, dev, &mapping);
	ASSERT_EQ(touch(page_at(&mapping, BAD_PAGE)), SIGBUS);
	ASSERT_EQ(try_store(page_at(&mapping, BAD_PAGE), 1), SIGBUS);
	ASSERT_EQ(count_present(dev, mapping.addr, REFUSED_NR), 0);
}

/*
 * Private mappings: pfns until something is written, copies then. Each page has
 * a value at two places that tell the page, and so does each copy of it.
 */
FIXTURE(cow)
{
	struct dev dev;
	struct mapping mapping;
};

FIXTURE_VARIANT(cow)
{
	unsigned int method;
	unsigned int place;
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(cow, single_alternate) { KIND(MIXED, RAM, NO_IO | ALTERNATE) };
FIXTURE_VARIANT_ADD(cow, batch_ram) { KIND(MIXED_BATCH, RAM, NO_IO) };
FIXTURE_VARIANT_ADD(cow, batch_compound) { KIND(MIXED_BATCH, RAM, NO_IO | COMPOUND) };
FIXTURE_VARIANT_ADD(cow, iter_vram) { KIND(MIXED_ITER, VRAM, NO_IO) };
FIXTURE_VARIANT_ADD(cow, iter_alternate) { KIND(MIXED_ITER, RAM, NO_IO | ALTERNATE) };
FIXTURE_VARIANT_ADD(cow, pages_ram) { KIND(PAGES, RAM, NO_IO) };
FIXTURE_VARIANT_ADD(cow, pages_compound) { KIND(PAGES, RAM, NO_IO | COMPOUND) };

#define COW_NR		64UL
#define COW_WINDOW	16UL

static uint64_t tag(unsigned long index)
{
	return index * 3 + 1;
}

static bool content_is(const struct mapping *mapping, unsigned long index,
		       uint64_t val)
{
	const char *addr = page_at(mapping, index);

	return header_ok(addr, index, 0) && load(addr + 64) == val &&
	       load(addr + psize() - 8) == ~tag(index);
}

FIXTURE_SETUP(cow)
{
	struct dev *dev = &self->dev;
	struct mapping mapping = {
		dev->area, 0, COW_NR, false
	};
	unsigned long i;

	setup_dev(_metadata, dev);
	create(_metadata, dev, COW_NR, variant->place, variant->flags);
	set_method(_metadata, dev, variant->method, COW_WINDOW, false);

	mapping.addr = dev->area;
	map(_metadata, dev, &mapping);
	for (i = 0; i < COW_NR; i++) {
		store(page_at(&mapping, i) + 64, tag(i));
		store(page_at(&mapping, i) + psize() - 8, ~tag(i));
	}
	unmap(_metadata, mapping.addr, COW_NR);

	/* Some of it in the next page table */
	mapping.addr += span_size() - 20 * psize();
	mapping.private = true;
	map(_metadata, dev, &mapping);
	self->mapping = mapping;
}

/* Whatever has been written, the object is as it was. */
FIXTURE_TEARDOWN(cow)
{
	struct dev *dev = &self->dev;
	struct mapping mapping = { dev->area, 0, COW_NR, false };
	unsigned long i;

	unmap(_metadata, dev->area, dev->area_size / psize());
	clear_maps(dev);
	EXPECT_TRUE(counts_ok(dev));
	map(_metadata, dev, &mapping);
	for (i = 0; i < COW_NR; i++)
		EXPECT_TRUE(content_is(&mapping, i, tag(i)));
	teardown_dev(_metadata, dev);
}

static uint64_t new_tag(unsigned long index)
{
	return index + 1000;
}

/* Read all pages, write those that @what says. */
static bool wants_copy(unsigned long index)
{
	return index % 3 == 1;
}

static void read_and_write(struct __test_metadata *_metadata, struct dev *dev,
			   const struct mapping *mapping)
{
	unsigned long i;

	for (i = mapping->first; i < mapping->first + mapping->nr; i++)
		ASSERT_TRUE(content_is(mapping, i, tag(i)));
	for (i = mapping->first; i < mapping->first + mapping->nr; i++) {
		ASSERT_TRUE(source_at(dev, mapping, i));
		if (wants_copy(i))
			store(page_at(mapping, i) + 64, new_tag(i));
	}
}

/* Is all of that still so? */
static bool sources_and_copies_ok(const struct dev *dev,
				  const struct mapping *mapping)
{
	unsigned long i;

	for (i = mapping->first; i < mapping->first + mapping->nr; i++) {
		const bool copy = wants_copy(i);

		if (!content_is(mapping, i, copy ? new_tag(i) : tag(i)) ||
		    !(copy ? copy_at(dev, mapping, i) :
			     source_at(dev, mapping, i))) {
			ksft_print_msg("page %lu: not what it was\n", i);
			return false;
		}
	}
	return true;
}

TEST_F(cow, write)
{
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	unsigned long i, lo, hi, copies = 0;
	struct pfnmap_test_inspect pte;
	long anon;

	anon = status_kb("RssAnon:");
	anon = status_kb("RssAnon:");

	/* Not mapped yet: it is mapped first, with its neighbours. */
	expect_fault(dev, mapping, 5, &lo, &hi);
	store(page_at(mapping, 5) + 64, new_tag(5));
	ASSERT_TRUE(copy_at(dev, mapping, 5));
	ASSERT_TRUE(content_is(mapping, 5, new_tag(5)));
	for (i = 0; i < COW_NR; i++) {
		if (i != 5)
			ASSERT_EQ(source_at(dev, mapping, i),
				  i >= lo && i < hi);
	}
	add_maps(dev, lo, hi, 1);
	add_maps(dev, 5, 6, -1);
	ASSERT_TRUE(counts_ok(dev));

	for (i = 0; i < COW_NR; i++) {
		ASSERT_TRUE(content_is(mapping, i, i == 5 ? new_tag(i) : tag(i)));
		pte = inspect(dev, page_at(mapping, i));
		if (i != 5)
			ASSERT_FALSE(pte.flags & (PFNMAP_TEST_PTE_WRITE |
						  PFNMAP_TEST_PTE_DIRTY));
	}
	clear_maps(dev);
	add_maps(dev, 0, COW_NR, 1);
	add_maps(dev, 5, 6, -1);
	ASSERT_TRUE(counts_ok(dev));

	for (i = 0; i < COW_NR; i++) {
		if (i != 5 && !wants_copy(i))
			continue;
		store(page_at(mapping, i) + 64, new_tag(i));
		store(page_at(mapping, i) + 64, new_tag(i));
		pte = inspect(dev, page_at(mapping, i));
		ASSERT_TRUE(is_copy(dev, &pte, i));
		ASSERT_TRUE(pte.flags & PFNMAP_TEST_PTE_WRITE);
		ASSERT_TRUE(content_is(mapping, i, new_tag(i)));
		dev->maps[i] = 0;
		copies++;
	}
	ASSERT_TRUE(counts_ok(dev));
	ASSERT_EQ(smaps_sum(mapping->addr, 1, "Anonymous:"), kb(copies));
	ASSERT_GE(status_kb("RssAnon:") - anon, kb(copies));
	ASSERT_LE(status_kb("RssAnon:") - anon, kb(copies) + RSS_SLACK);
}

/* The child's copies, the parent's copies, and those of both before */
TEST_F(cow, fork)
{
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	const uint64_t mine = 5000, yours = 6000;
	struct child child;
	unsigned long i;

	read_and_write(_metadata, dev, mapping);
	if (start_child(_metadata, &child)) {
		for (i = 0; i < COW_NR; i++) {
			struct pfnmap_test_inspect pte;

			pte = inspect(dev, page_at(mapping, i));
			child_check(wants_copy(i) ? is_copy(dev, &pte, i) :
				    is_source(dev, &pte, i), "copied PTE", i);
			child_check(!(pte.flags & PFNMAP_TEST_PTE_WRITE),
				    "write-protected", i);
		}
		child_check(sources_and_copies_ok(dev, mapping), "as in parent",
			    0);
		tally(dev, mapping);
		child_sync(&child);
		for (i = 0; i < COW_NR; i += 2)
			store(page_at(mapping, i) + 64, yours + i);
		tally(dev, mapping);
		child_sync(&child);
		for (i = 0; i < COW_NR; i++) {
			uint64_t val = wants_copy(i) ? new_tag(i) : tag(i);

			child_check(content_is(mapping, i, i % 2 ? val :
					       yours + i), "private", i);
		}
		_exit(0);
	}

	ASSERT_TRUE(await(&child));
	tally(dev, mapping);
	ASSERT_TRUE(counts_ok(dev));
	ASSERT_TRUE(sources_and_copies_ok(dev, mapping));

	clear_maps(dev);
	ASSERT_TRUE(tell(&child));
	ASSERT_TRUE(await(&child));
	for (i = 0; i < COW_NR; i++) {
		ASSERT_TRUE(content_is(mapping, i, wants_copy(i) ?
				       new_tag(i) : tag(i)));
		if (i % 4 < 2)
			store(page_at(mapping, i) + 64, mine + i);
	}
	tally(dev, mapping);
	ASSERT_TRUE(counts_ok(dev));
	ASSERT_TRUE(tell(&child));
	ASSERT_EQ(wait_child(&child), 0);
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
	for (i = 0; i < COW_NR; i++) {
		uint64_t val = wants_copy(i) ? new_tag(i) : tag(i);

		ASSERT_TRUE(content_is(mapping, i, i % 4 < 2 ? mine + i : val));
	}
}

/* Both move along, the mapping grows, and leaves another one behind. */
TEST_F(cow, mremap)
{
	struct dev *dev = &self->dev;
	struct mapping mapping = self->mapping, left;
	char *to = dev->area + 3 * span_size() - 13 * psize();
	const unsigned long less = 48;
	unsigned long i;
	uint64_t val;

	unmap(_metadata, page_at(&mapping, less), COW_NR - less);
	mapping.nr = less;
	read_and_write(_metadata, dev, &mapping);

	ASSERT_TRUE(remap_fixed(mapping.addr, less, COW_NR, MREMAP_MAYMOVE |
				MREMAP_FIXED, to));
	unmap(_metadata, mapping.addr, less);
	mapping.addr = to;
	ASSERT_TRUE(sources_and_copies_ok(dev, &mapping));
	ASSERT_TRUE(mapping_counts_ok(dev, &mapping));
	mapping.nr = COW_NR;
	for (i = less; i < COW_NR; i++) {
		ASSERT_TRUE(content_is(&mapping, i, tag(i)));
		if (wants_copy(i))
			store(page_at(&mapping, i) + 64, new_tag(i));
	}
	ASSERT_TRUE(sources_and_copies_ok(dev, &mapping));
	ASSERT_TRUE(mapping_counts_ok(dev, &mapping));

	/* More than there is */
	to = dev->area + 5 * span_size() - 3 * psize();
	ASSERT_TRUE(remap_fixed(mapping.addr, COW_NR, COW_NR + 16,
				MREMAP_MAYMOVE | MREMAP_FIXED, to));
	mapping.addr = to;
	ASSERT_EQ(touch(mapping.addr + COW_NR * psize()), SIGBUS);
	ASSERT_EQ(try_store(mapping.addr + COW_NR * psize(), 1), SIGBUS);
	ASSERT_TRUE(remap_fixed(mapping.addr, COW_NR + 16, COW_NR, 0,
				mapping.addr));
	ASSERT_TRUE(sources_and_copies_ok(dev, &mapping));

	/* What is left behind starts afresh. */
	left = mapping;
	mapping.addr = dev->area + span_size() + 3 * psize();
	ASSERT_TRUE(remap_fixed(left.addr, COW_NR, COW_NR, MREMAP_MAYMOVE |
				MREMAP_FIXED | MREMAP_DONTUNMAP, mapping.addr));
	ASSERT_EQ(count_present(dev, left.addr, COW_NR), 0);
	ASSERT_TRUE(sources_and_copies_ok(dev, &mapping));
	ASSERT_TRUE(mapping_counts_ok(dev, &mapping));
	for (i = 0; i < COW_NR; i++)
		ASSERT_TRUE(content_is(&left, i, tag(i)));
	tally(dev, &left);
	ASSERT_TRUE(counts_ok(dev));

	ASSERT_TRUE(remap_fixed(mapping.addr, COW_NR, 10, 0, mapping.addr));
	ASSERT_EQ(try_load(page_at(&mapping, 10), &val), SIGSEGV);
	mapping.nr = 10;
	ASSERT_TRUE(sources_and_copies_ok(dev, &mapping));
	ASSERT_FALSE(remap_fixed(mapping.addr, 0, 10, MREMAP_MAYMOVE |
				 MREMAP_FIXED, to));
	ASSERT_EQ(errno, EINVAL);
	clear_maps(dev);
	tally(dev, &mapping);
	tally(dev, &left);
	ASSERT_TRUE(counts_ok(dev));
}

TEST_F(cow, mprotect)
{
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	const size_t size = COW_NR * psize();
	struct pfnmap_test_inspect before, after;
	unsigned long i;

	read_and_write(_metadata, dev, mapping);
	before = inspect(dev, page_at(mapping, 1));

	ASSERT_EQ(mprotect(mapping->addr, size, PROT_READ), 0);
	ASSERT_TRUE(sources_and_copies_ok(dev, mapping));
	for (i = 0; i < COW_NR; i++) {
		ASSERT_FALSE(inspect(dev, page_at(mapping, i)).flags &
			     PFNMAP_TEST_PTE_WRITE);
		ASSERT_EQ(try_store(page_at(mapping, i), 1), SIGSEGV);
	}

	ASSERT_EQ(mprotect(mapping->addr, size, PROT_NONE), 0);
	for (i = 0; i < COW_NR; i++)
		ASSERT_EQ(touch(page_at(mapping, i)), SIGSEGV);
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
	ASSERT_EQ(madvise(page_at(mapping, 30), 10 * psize(), MADV_DONTNEED),
		  0);
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));

	/* No source gets writable, by no means; copies need not be copied. */
	ASSERT_EQ(mprotect(mapping->addr, size, PROT_READ | PROT_WRITE), 0);
	for (i = 0; i < COW_NR; i++) {
		after = inspect(dev, page_at(mapping, i));
		if (!(after.flags & PFNMAP_TEST_ANON))
			ASSERT_FALSE(after.flags & PFNMAP_TEST_PTE_WRITE);
	}
	for (i = 30; i < 40; i++) {
		ASSERT_TRUE(content_is(mapping, i, tag(i)));
		if (wants_copy(i))
			store(page_at(mapping, i) + 64, new_tag(i));
	}
	ASSERT_TRUE(sources_and_copies_ok(dev, mapping));
	store(page_at(mapping, 1) + 72, 1);
	after = inspect(dev, page_at(mapping, 1));
	ASSERT_TRUE(same_pte(&before, &after));

	/* In a VMA of its own */
	ASSERT_EQ(mprotect(page_at(mapping, 7), 9 * psize(), PROT_READ), 0);
	ASSERT_EQ(madvise(mapping->addr, size, MADV_DONTNEED), 0);
	clear_maps(dev);
	ASSERT_TRUE(counts_ok(dev));
	for (i = 0; i < COW_NR; i++) {
		const bool read_only = i >= 7 && i < 16;

		ASSERT_TRUE(content_is(mapping, i, tag(i)));
		ASSERT_EQ(try_store(page_at(mapping, i) + 64, new_tag(i)),
			  read_only ? SIGSEGV : 0);
		ASSERT_TRUE(content_is(mapping, i, read_only ? tag(i) :
				       new_tag(i)));
		ASSERT_EQ(source_at(dev, mapping, i), read_only);
	}
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
}

/* Without its copy, a page is what the object has there. */
TEST_F(cow, dontneed)
{
	static const int advices[] = { MADV_DONTNEED, MADV_DONTNEED_LOCKED };
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	const struct mapping rest = { page_at(mapping, 50), 50, 5, true };
	struct mapping front = *mapping;
	unsigned long i, n;

	read_and_write(_metadata, dev, mapping);
	ASSERT_EQ(madvise(mapping->addr, COW_NR * psize(), MADV_FREE), -1);
	ASSERT_EQ(errno, EINVAL);
	for (n = 0; n < ARRAY_SIZE(advices); n++) {
		ASSERT_EQ(madvise(page_at(mapping, 10), 21 * psize(),
				  advices[n]), 0);
		ASSERT_EQ(count_present(dev, mapping->addr, COW_NR),
			  COW_NR - 21);
		ASSERT_TRUE(mapping_counts_ok(dev, mapping));
		for (i = 10; i < 31; i++) {
			ASSERT_TRUE(content_is(mapping, i, tag(i)));
			ASSERT_TRUE(source_at(dev, mapping, i));
			if (wants_copy(i))
				store(page_at(mapping, i) + 64, new_tag(i));
		}
		ASSERT_TRUE(sources_and_copies_ok(dev, mapping));
		ASSERT_TRUE(mapping_counts_ok(dev, mapping));
	}

	unmap(_metadata, page_at(mapping, 33), 17);
	unmap(_metadata, page_at(mapping, 55), COW_NR - 55);
	front.nr = 33;
	ASSERT_TRUE(sources_and_copies_ok(dev, &front));
	ASSERT_TRUE(sources_and_copies_ok(dev, &rest));
	clear_maps(dev);
	tally(dev, &front);
	tally(dev, &rest);
	ASSERT_TRUE(counts_ok(dev));
}

static bool have_swap(void)
{
	char line[256];
	FILE *file;
	int lines = 0;

	file = fopen("/proc/swaps", "r");
	if (!file)
		return false;
	while (fgets(line, sizeof(line), file))
		lines++;
	fclose(file);
	return lines > 1;
}

/* Copies are anonymous memory that can go to swap; what they copy can't. */
TEST_F(cow, swap)
{
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	unsigned long i, round, copies, swapped;
	struct child child;
	int pagemap;

	if (!have_swap())
		SKIP_TEST("there is no swap");
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_GE(pagemap, 0);
	read_and_write(_metadata, dev, mapping);

	for (round = 0; round < 100; round++) {
		ASSERT_EQ(madvise(mapping->addr, COW_NR * psize(),
				  MADV_PAGEOUT), 0);
		for (i = 0, copies = 0, swapped = 0; i < COW_NR; i++) {
			const uint64_t entry =
				pagemap_get_entry(pagemap, page_at(mapping, i));

			if (wants_copy(i)) {
				copies++;
				swapped += !!(entry & PM_SWAP);
			} else {
				ASSERT_TRUE(entry & PM_PRESENT);
				ASSERT_TRUE(source_at(dev, mapping, i));
			}
		}
		if (swapped == copies)
			break;
		usleep(1000);
	}
	ASSERT_GT(swapped, copies / 2);
	ASSERT_EQ(smaps_sum(mapping->addr, 1, "Swap:"), kb(swapped));
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));

	/* A child gets swap entries and PTEs. */
	if (start_child(_metadata, &child)) {
		child_check(sources_and_copies_ok(dev, mapping), "as in parent",
			    0);
		for (i = 0; i < COW_NR; i++)
			store(page_at(mapping, i) + 64, 1);
		_exit(0);
	}
	ASSERT_EQ(wait_child(&child), 0);

	ASSERT_TRUE(sources_and_copies_ok(dev, mapping));
	ASSERT_EQ(smaps_sum(mapping->addr, 1, "Swap:"), 0);
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
	for (i = 0; i < COW_NR; i++) {
		if (wants_copy(i))
			store(page_at(mapping, i) + 72, 1);
	}
	ASSERT_TRUE(sources_and_copies_ok(dev, mapping));

	/* Swapped out and gone */
	ASSERT_EQ(madvise(mapping->addr, COW_NR * psize(), MADV_PAGEOUT), 0);
	ASSERT_EQ(madvise(mapping->addr, COW_NR * psize(), MADV_DONTNEED), 0);
	ASSERT_EQ(smaps_sum(mapping->addr, 1, "Swap:"), 0);
	clear_maps(dev);
	ASSERT_TRUE(counts_ok(dev));
	ASSERT_TRUE(content_is(mapping, 1, tag(1)));
	close(pagemap);
}

/* Those who want a page for reading get it if there is one. */
TEST_F(cow, gup_read)
{
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	unsigned long i, round;
	int direct, mem, pipes[2];
	uint64_t val;
	ssize_t len;

	direct = temp_file(O_DIRECT);
	ASSERT_GE(direct, 0) {
		TH_LOG("O_DIRECT file in the working directory: %s",
		       strerror(-direct));
	}
	mem = open("/proc/self/mem", O_RDONLY);
	ASSERT_GE(mem, 0);
	ASSERT_EQ(pipe(pipes), 0);

	/* First not mapped yet, then pages and pfns, then also copies */
	for (round = 0; round < 3; round++) {
		for (i = 0; i < COW_NR; i += 5) {
			const bool copy = round == 2 && wants_copy(i);
			const bool gets = copy || is_page(dev, i);
			char *addr = page_at(mapping, i) + 64;
			struct iovec iov = { addr, sizeof(val) };

			errno = 0;
			ASSERT_EQ(vm_readv(getpid(), addr, &val),
				  gets ? 8 : -1);
			ASSERT_EQ(errno, gets ? 0 : EFAULT);
			if (gets)
				ASSERT_EQ(val, copy ? new_tag(i) : tag(i));
			errno = 0;
			ASSERT_EQ(pread(mem, &val, 8, (uintptr_t)addr),
				  gets ? 8 : -1);
			ASSERT_EQ(errno, gets ? 0 : EIO);
			if (gets)
				ASSERT_EQ(val, copy ? new_tag(i) : tag(i));
			ASSERT_EQ(copy_at(dev, mapping, i), copy);
			ASSERT_EQ(source_at(dev, mapping, i), !copy);

			/* Some file systems copy. */
			len = pwrite(direct, page_at(mapping, i), psize(), 0);
			if (len < 0) {
				ASSERT_FALSE(gets);
				ASSERT_TRUE(errno == EFAULT ||
					    errno == EEXIST);
			} else {
				ASSERT_EQ(len, psize());
			}

			errno = 0;
			ASSERT_EQ(vmsplice(pipes[1], &iov, 1, 0),
				  gets ? 8 : -1);
			if (!gets) {
				ASSERT_TRUE(errno == EFAULT ||
					    errno == EEXIST);
				continue;
			}
			ASSERT_EQ(read(pipes[0], &val, 8), 8);
			ASSERT_EQ(val, copy ? new_tag(i) : tag(i));
		}
		ASSERT_TRUE(mapping_counts_ok(dev, mapping));
		if (round == 1)
			read_and_write(_metadata, dev, mapping);
	}
	ASSERT_TRUE(sources_and_copies_ok(dev, mapping));
	close(pipes[0]);
	close(pipes[1]);
	close(mem);
	close(direct);
}

/* Those who want one for writing get a copy of either. */
TEST_F(cow, gup_write)
{
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	unsigned long i, round;
	uint64_t val = 4321;
	int direct, mem;

	direct = temp_file(O_DIRECT);
	ASSERT_GE(direct, 0) {
		TH_LOG("O_DIRECT file in the working directory: %s",
		       strerror(-direct));
	}
	mem = open("/proc/self/mem", O_RDWR);
	ASSERT_GE(mem, 0);

	/* Not mapped yet, then pages and pfns, then copies */
	for (round = 0; round < 3; round++) {
		if (round == 1) {
			ASSERT_EQ(madvise(mapping->addr, COW_NR * psize(),
					  MADV_DONTNEED), 0);
			for (i = 0; i < COW_NR; i++)
				ASSERT_TRUE(content_is(mapping, i, tag(i)));
		}
		for (i = 0; i + 2 < COW_NR; i += 6) {
			ASSERT_EQ(vm_writev(getpid(), page_at(mapping, i) + 64,
					    val), 8);
			ASSERT_TRUE(copy_at(dev, mapping, i));
			ASSERT_TRUE(content_is(mapping, i, val));

			ASSERT_EQ(pwrite(mem, &val, 8,
					 (uintptr_t)page_at(mapping, i + 1) + 64),
				  8);
			ASSERT_TRUE(copy_at(dev, mapping, i + 1));
			ASSERT_TRUE(content_is(mapping, i + 1, val));

			ASSERT_EQ(pread(direct, page_at(mapping, i + 2),
					psize(), 0), psize());
			ASSERT_TRUE(copy_at(dev, mapping, i + 2));
			ASSERT_EQ(load(page_at(mapping, i + 2) + 64),
				  0x5a5a5a5a5a5a5a5aULL);
		}
		ASSERT_TRUE(mapping_counts_ok(dev, mapping));
	}

	/* A debugger may, where the process itself must not. */
	ASSERT_EQ(madvise(mapping->addr, COW_NR * psize(), MADV_DONTNEED), 0);
	ASSERT_EQ(mprotect(mapping->addr, COW_NR * psize(), PROT_READ), 0);
	for (i = 0; i < 20; i++) {
		if (i % 2)
			ASSERT_TRUE(content_is(mapping, i, tag(i)));
		ASSERT_EQ(vm_writev(getpid(), page_at(mapping, i) + 64, val),
			  -1);
		ASSERT_EQ(errno, EFAULT);
		ASSERT_EQ(pwrite(mem, &val, 8,
				 (uintptr_t)page_at(mapping, i) + 64), 8);
		ASSERT_TRUE(copy_at(dev, mapping, i));
		ASSERT_TRUE(content_is(mapping, i, val));
		ASSERT_EQ(try_store(page_at(mapping, i) + 64, 1), SIGSEGV);
	}
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
	close(mem);
	close(direct);
}

/*
 * In another process, what has no page can't be copied for that one: it can
 * only be read at its address there. Here, there is something else.
 */
TEST_F(cow, remote)
{
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	const unsigned long mine = 40;
	struct child child;
	char path[64];
	unsigned long i;
	int mem, status;

	read_and_write(_metadata, dev, mapping);
	ASSERT_EQ(madvise(page_at(mapping, 32), 16 * psize(), MADV_DONTNEED), 0);
	if (start_child(_metadata, &child)) {
		child_check(!ptrace(PTRACE_TRACEME, 0, NULL, NULL), "traced", 0);
		raise(SIGSTOP);
		for (i = 0; i < COW_NR; i++) {
			const bool copy = wants_copy(i) && (i < 32 || i >= 48);
			const bool gets = copy || is_page(dev, i);
			const char *addr = page_at(mapping, i);

			child_check(gets ? copy_at(dev, mapping, i) :
				    source_at(dev, mapping, i), "kind", i);
			child_check(content_is(mapping, i, gets ? i + 99 :
					       tag(i)), "content", i);
			child_check(load(addr + 80) == (gets ? i + 98 : 0),
				    "content", i);
		}
		_exit(0);
	}
	ASSERT_EQ(waitpid(child.pid, &status, 0), child.pid);
	ASSERT_TRUE(WIFSTOPPED(status));
	snprintf(path, sizeof(path), "/proc/%d/mem", child.pid);
	mem = open(path, O_RDWR);
	ASSERT_GE(mem, 0);
	ASSERT_TRUE(map_fixed(mapping->addr, mine, PROT_READ | PROT_WRITE,
			      MAP_ANON | MAP_PRIVATE, -1, 0));
	memset(mapping->addr, 0x5a, mine * psize());
	ASSERT_EQ(munmap(page_at(mapping, mine), (COW_NR - mine) * psize()), 0);

	for (i = 0; i < COW_NR; i++) {
		const bool copy = wants_copy(i) && (i < 32 || i >= 48);
		const bool gets = copy || is_page(dev, i);
		char *addr = page_at(mapping, i) + 64;
		uint64_t val;
		long word;

		errno = 0;
		word = ptrace(PTRACE_PEEKDATA, child.pid, addr + 8, NULL);
		ASSERT_EQ(errno, gets ? 0 : EIO);
		if (gets)
			ASSERT_EQ(word, 0);
		ASSERT_EQ(vm_readv(child.pid, addr, &val), gets ? 8 : -1);
		if (gets)
			ASSERT_EQ(val, copy ? new_tag(i) : tag(i));

		errno = 0;
		ptrace(PTRACE_POKEDATA, child.pid, addr + 8, 7L);
		ASSERT_EQ(errno, gets ? 0 : EIO);
		ASSERT_EQ(vm_writev(child.pid, addr, i + 99), gets ? 8 : -1);
		val = i + 98;
		errno = 0;
		ASSERT_EQ(pwrite(mem, &val, 8, (uintptr_t)addr + 16),
			  gets ? 8 : -1);
		ASSERT_EQ(errno, gets ? 0 : EIO);
		if (i < mine)
			ASSERT_EQ(load(addr), 0x5a5a5a5a5a5a5a5aULL);
	}
	ASSERT_EQ(ptrace(PTRACE_CONT, child.pid, NULL, NULL), 0);
	ASSERT_EQ(wait_child(&child), 0);
	clear_maps(dev);
	ASSERT_TRUE(counts_ok(dev));
	close(mem);
}

/* Populating for a write is a write. */
TEST_F(cow, populate)
{
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	const size_t size = COW_NR * psize();
	unsigned char vec[COW_NR];
	unsigned long i;

	ASSERT_EQ(mincore(mapping->addr, size, vec), 0);
	for (i = 0; i < COW_NR; i++)
		ASSERT_EQ(vec[i] & 1, 0);

	ASSERT_EQ(madvise(mapping->addr, size, MADV_POPULATE_READ), 0);
	for (i = 0; i < COW_NR; i++)
		ASSERT_TRUE(source_at(dev, mapping, i));
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
	ASSERT_EQ(mincore(mapping->addr, size, vec), 0);
	for (i = 0; i < COW_NR; i++)
		ASSERT_EQ(vec[i] & 1, 1);

	ASSERT_EQ(madvise(mapping->addr, 20 * psize(), MADV_POPULATE_WRITE), 0);
	for (i = 0; i < COW_NR; i++) {
		ASSERT_EQ(copy_at(dev, mapping, i), i < 20);
		ASSERT_TRUE(content_is(mapping, i, tag(i)));
	}
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));

	/* Populates, but does not lock. */
	ASSERT_EQ(madvise(mapping->addr, size, MADV_DONTNEED), 0);
	ASSERT_EQ(mlock(mapping->addr, size), 0);
	ASSERT_EQ(count_present(dev, mapping->addr, COW_NR), COW_NR);
	ASSERT_EQ(smaps_sum(mapping->addr, 1, "Locked:"), 0);
	for (i = 0; i < COW_NR; i++)
		ASSERT_TRUE(content_is(mapping, i, tag(i)));
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
	ASSERT_EQ(munlock(mapping->addr, size), 0);

	ASSERT_TRUE(map_fixed(mapping->addr, COW_NR, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_POPULATE, dev->fd, 0));
	ASSERT_EQ(count_present(dev, mapping->addr, COW_NR), COW_NR);
	for (i = 0; i < COW_NR; i++)
		ASSERT_TRUE(content_is(mapping, i, tag(i)));
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
}

/* What is for anonymous or ordinary file mappings keeps off. */
TEST_F(cow, advice)
{
	static const struct {
		int advice;
		int err;		/* or none */
	} advices[] = {
		{ MADV_GUARD_INSTALL, EINVAL }, { MADV_GUARD_REMOVE, EINVAL },
		{ MADV_WIPEONFORK, EINVAL }, { MADV_COLLAPSE, EINVAL },
		{ MADV_MERGEABLE, 0 }, { MADV_UNMERGEABLE, 0 },
		{ MADV_HUGEPAGE, 0 }, { MADV_NOHUGEPAGE, 0 },
		{ MADV_COLD, 0 }, { MADV_WILLNEED, 0 },
	};
	static const uint64_t modes[] = {
		UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP,
	};
	static const uint64_t features[] = { 0, UFFD_FEATURE_WP_ASYNC };
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	const size_t size = COW_NR * psize();
	unsigned int i, j;
	int ret, uffd;

	read_and_write(_metadata, dev, mapping);
	for (i = 0; i < ARRAY_SIZE(advices); i++) {
		errno = 0;
		/* Or the kernel does not know about it. */
		ret = madvise(mapping->addr, size, advices[i].advice);
		ASSERT_TRUE(ret ? errno == EINVAL : !advices[i].err) {
			TH_LOG("advice %d: %d, errno %d", advices[i].advice,
			       ret, errno);
		}
		ASSERT_TRUE(sources_and_copies_ok(dev, mapping));
	}

	for (i = 0; i < ARRAY_SIZE(features); i++) {
		struct uffdio_api api = {
			.api = UFFD_API,
			.features = features[i],
		};

		uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
		ASSERT_GE(uffd, 0);
		if (ioctl(uffd, UFFDIO_API, &api)) {
			/* 32-bit architectures have no UFFD_FEATURE_WP_ASYNC */
			ASSERT_NE(features[i], 0);
			close(uffd);
			continue;
		}
		for (j = 0; j < ARRAY_SIZE(modes); j++) {
			struct uffdio_register reg = {
				.range.start = (uintptr_t)mapping->addr,
				.range.len = size,
				.mode = modes[j],
			};

			EXPECT_EQ(ioctl(uffd, UFFDIO_REGISTER, &reg), -1);
			EXPECT_EQ(errno, EINVAL);
		}
		close(uffd);
	}
	ASSERT_TRUE(sources_and_copies_ok(dev, mapping));
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
}

/*
 * First writes that are told: nothing gets writable without that.
 */
FIXTURE(notify)
{
	struct dev dev;
	struct mapping mapping;
};

FIXTURE_VARIANT(notify)
{
	unsigned int method;
	unsigned int place;
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(notify, single_ram) { KIND(MIXED, RAM, NOTIFY) };
FIXTURE_VARIANT_ADD(notify, single_vram) { KIND(MIXED, VRAM, NOTIFY | NO_IO) };
FIXTURE_VARIANT_ADD(notify, batch_ram) { KIND(MIXED_BATCH, RAM, NOTIFY) };
FIXTURE_VARIANT_ADD(notify, batch_vram) { KIND(MIXED_BATCH, VRAM, NOTIFY) };
FIXTURE_VARIANT_ADD(notify, batch_compound) { KIND(MIXED_BATCH, RAM, NOTIFY | COMPOUND | NO_IO) };
FIXTURE_VARIANT_ADD(notify, iter_ram) { KIND(MIXED_ITER, RAM, NOTIFY | NO_IO) };
FIXTURE_VARIANT_ADD(notify, iter_alternate) { KIND(MIXED_ITER, RAM, NOTIFY | ALTERNATE) };
FIXTURE_VARIANT_ADD(notify, pages_ram) { KIND(PAGES, RAM, NOTIFY) };
FIXTURE_VARIANT_ADD(notify, pages_compound) { KIND(PAGES, RAM, NOTIFY | COMPOUND) };

#define NOTIFY_NR	64UL

FIXTURE_SETUP(notify)
{
	struct dev *dev = &self->dev;

	setup_dev(_metadata, dev);
	create(_metadata, dev, NOTIFY_NR, variant->place, variant->flags);
	set_method(_metadata, dev, variant->method, 16, false);
	self->mapping = (struct mapping){
		dev->area + span_size() - 21 * psize(), 0, NOTIFY_NR,
		false
	};
	map(_metadata, dev, &self->mapping);
}

FIXTURE_TEARDOWN(notify)
{
	teardown_dev(_metadata, &self->dev);
}

static unsigned int write_flags(const struct dev *dev,
				const struct mapping *mapping,
				unsigned long index)
{
	return inspect(dev, page_at(mapping, index)).flags & WRITTEN;
}

TEST_F(notify, read_first)
{
	static const unsigned long index[] = { 7, 40 };
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	unsigned long i, n;

	ASSERT_TRUE(headers_ok(mapping, 0, NOTIFY_NR));
	ASSERT_TRUE(mapped_ok(dev, mapping, 0, NOTIFY_NR));
	ASSERT_EQ(get_stats(_metadata, dev).mkwrites, 0);
	for (i = 0; i < NOTIFY_NR; i++)
		ASSERT_EQ(write_flags(dev, mapping, i), 0);

	/* One in each page table */
	for (n = 0; n < ARRAY_SIZE(index); n++) {
		store(page_at(mapping, index[n]) + 64, 1);
		ASSERT_EQ(get_stats(_metadata, dev).mkwrites, n + 1);
		store(page_at(mapping, index[n]) + 64, 2);
		ASSERT_EQ(get_stats(_metadata, dev).mkwrites, n + 1);
		for (i = 0; i < NOTIFY_NR; i++)
			ASSERT_EQ(write_flags(dev, mapping, i),
				  i == index[0] || (n && i == index[1]) ?
				  WRITTEN : 0);
	}
	ASSERT_EQ(get_stats(_metadata, dev).sigbus, 0);
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
	ASSERT_TRUE(headers_ok(mapping, 0, NOTIFY_NR));
}

/*
 * Neither mprotect() nor mremap() make up for it, not even for pages of one
 * folio, of which some have been written to. What has been moved is all
 * soft-dirty, so that this bit does not tell the PTEs apart.
 */
TEST_F(notify, mprotect)
{
	static const unsigned long index[] = { 7, 8, 40 };
	struct dev *dev = &self->dev;
	struct mapping mapping = self->mapping;
	const size_t size = NOTIFY_NR * psize();
	char *to = dev->area + 3 * span_size() - 32 * psize();
	unsigned long i, n, told;

	/* Not moved, moved before, and while it is read-only */
	for (n = 0; n < 3; n++) {
		map(_metadata, dev, &self->mapping);
		mapping = self->mapping;
		set_method(_metadata, dev, variant->method, 1, false);
		ASSERT_TRUE(headers_ok(&mapping, 0, NOTIFY_NR));
		reset_stats(_metadata, dev);
		for (i = 0; i < ARRAY_SIZE(index); i++)
			store(page_at(&mapping, index[i]) + 64, n);
		told = ARRAY_SIZE(index);
		ASSERT_EQ(get_stats(_metadata, dev).mkwrites, told);

		if (n == 1) {
			ASSERT_TRUE(remap_fixed(mapping.addr, NOTIFY_NR,
						NOTIFY_NR, MREMAP_MAYMOVE |
						MREMAP_FIXED, to));
			mapping.addr = to;
		}
		ASSERT_EQ(mprotect(mapping.addr, size, PROT_READ), 0);
		if (n == 2) {
			ASSERT_TRUE(remap_fixed(mapping.addr, NOTIFY_NR,
						NOTIFY_NR, MREMAP_MAYMOVE |
						MREMAP_FIXED, to));
			mapping.addr = to;
			/* Read-only and not accessible are no different. */
			ASSERT_EQ(mprotect(mapping.addr, size, PROT_NONE), 0);
			ASSERT_EQ(mprotect(mapping.addr, size, PROT_READ), 0);
		}
		ASSERT_EQ(mprotect(mapping.addr, size, PROT_READ | PROT_WRITE),
			  0);
		for (i = 0; i < NOTIFY_NR; i++) {
			if (i == 7 || i == 8 || i == 40)
				continue;
			ASSERT_EQ(write_flags(dev, &mapping, i), 0) {
				TH_LOG("page %lu, round %lu", i, n);
			}
			store(page_at(&mapping, i) + 64, n);
			ASSERT_EQ(get_stats(_metadata, dev).mkwrites, ++told);
		}
		for (i = 0; i < ARRAY_SIZE(index); i++)
			store(page_at(&mapping, index[i]) + 64, n);
		ASSERT_TRUE(mapping_counts_ok(dev, &mapping));
		unmap(_metadata, mapping.addr, NOTIFY_NR);
	}
}

/* The same where arm64 folds PTEs, before they are moved and after. */
TEST_F(notify, mremap_aligned)
{
	struct dev *dev = &self->dev;
	struct mapping mapping = self->mapping;
	const size_t size = NOTIFY_NR * psize();
	unsigned long i, n;

	set_method(_metadata, dev, variant->method, 1, false);
	ASSERT_TRUE(headers_ok(&mapping, 0, NOTIFY_NR));
	store(page_at(&mapping, 24) + 64, 1);
	for (n = 1; n <= 2; n++) {
		char *to = dev->area + 2 * n * span_size();

		ASSERT_TRUE(remap_fixed(mapping.addr, NOTIFY_NR, NOTIFY_NR,
					MREMAP_MAYMOVE | MREMAP_FIXED, to));
		mapping.addr = to;
		ASSERT_EQ(mprotect(to, size, n == 1 ? PROT_READ :
				   PROT_READ | PROT_WRITE), 0);
	}
	for (i = 0; i < NOTIFY_NR; i++) {
		if (i == 24)
			continue;
		ASSERT_EQ(write_flags(dev, &mapping, i), 0) {
			TH_LOG("page %lu", i);
		}
	}
	ASSERT_TRUE(mapping_counts_ok(dev, &mapping));
}

/* A driver that wants to be told once more: mprotect() does not make up for it. */
TEST_F(notify, wrprotect)
{
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	const size_t size = NOTIFY_NR * psize();
	unsigned long i, n, told = 0;

	ASSERT_TRUE(headers_ok(mapping, 0, NOTIFY_NR));
	for (n = 0; n < 3; n++) {
		for (i = 0; i < NOTIFY_NR; i++) {
			/* A page takes more, see wp_shared_mapping_range(). */
			if (n == 1 && is_page(dev, i))
				continue;
			ASSERT_EQ(write_flags(dev, mapping, i) &
				  PFNMAP_TEST_PTE_WRITE, 0);
			store(page_at(mapping, i) + 64, n);
			ASSERT_EQ(get_stats(_metadata, dev).mkwrites, ++told);
		}
		ASSERT_EQ(ioctl(dev->fd, PFNMAP_TEST_WRPROTECT), 0);
		if (n)
			continue;
		ASSERT_EQ(mprotect(mapping->addr, size, PROT_READ), 0);
		ASSERT_EQ(mprotect(mapping->addr, size, PROT_READ | PROT_WRITE),
			  0);
	}
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
}

TEST_F(notify, write_first)
{
	static const unsigned long index[] = { 22, 3 };
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	unsigned long i, n, lo, hi;

	for (n = 0; n < ARRAY_SIZE(index); n++) {
		reset_stats(_metadata, dev);
		expect_fault(dev, mapping, index[n], &lo, &hi);
		store(page_at(mapping, index[n]) + 64, n + 1);
		ASSERT_EQ(get_stats(_metadata, dev).faults, 1);
		ASSERT_EQ(get_stats(_metadata, dev).mkwrites, 1);
		for (i = 0; i < NOTIFY_NR; i++) {
			if (i >= lo && i < hi) {
				ASSERT_TRUE(source_at(dev, mapping, i));
			} else {
				ASSERT_FALSE(is_present(dev,
							page_at(mapping, i)));
			}
			ASSERT_EQ(write_flags(dev, mapping, i),
				  i == index[n] ? WRITTEN : 0);
		}
		ASSERT_TRUE(mapping_counts_ok(dev, mapping));
		ASSERT_EQ(load(page_at(mapping, index[n]) + 64), n + 1);
		ASSERT_EQ(madvise(mapping->addr, NOTIFY_NR * psize(),
				  MADV_DONTNEED), 0);
	}
}

/* What has been written is dirty for those who clear that, too. */
TEST_F(notify, soft_dirty)
{
	static const unsigned long index[] = { 7, 40 };
	const bool supported = softdirty_supported();
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	unsigned long n;
	int pagemap;

	pagemap = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_GE(pagemap, 0);
	ASSERT_TRUE(headers_ok(mapping, 0, NOTIFY_NR));
	if (supported)
		clear_softdirty();
	/* One that is not mapped now */
	ASSERT_EQ(madvise(page_at(mapping, 35), 29 * psize(), MADV_DONTNEED),
		  0);
	ASSERT_FALSE(supported &&
		     pagemap_is_softdirty(pagemap, page_at(mapping, 7)));
	for (n = 0; n < ARRAY_SIZE(index); n++) {
		char *addr = page_at(mapping, index[n]);

		store(addr + 64, n + 1);
		ASSERT_EQ(write_flags(dev, mapping, index[n]), WRITTEN);
		ASSERT_EQ(get_stats(_metadata, dev).mkwrites, n + 1);
		ASSERT_EQ(pagemap_is_softdirty(pagemap, addr), supported);
		ASSERT_EQ(load(addr + 64), n + 1);
	}
	close(pagemap);
}

/* A child's PTE is writable where the parent's is, and clean. */
TEST_F(notify, fork)
{
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	struct pfnmap_test_inspect before[NOTIFY_NR], pte;
	struct pfnmap_test_stats stats;
	struct child child;
	unsigned long i;

	ASSERT_TRUE(headers_ok(mapping, 0, NOTIFY_NR));
	set_method(_metadata, dev, variant->method, 1, false);
	for (i = 0; i < NOTIFY_NR; i++) {
		/* Alone, several in a row, none for a while */
		if (i < 40 && (i % 8 == 3 || i % 16 > 12))
			store(page_at(mapping, i) + 64, i);
	}
	for (i = 0; i < NOTIFY_NR; i++) {
		before[i] = inspect(dev, page_at(mapping, i));
		ASSERT_EQ(before[i].flags & WRITTEN, i < 40 &&
			  (i % 8 == 3 || i % 16 > 12) ? WRITTEN : 0);
	}
	reset_stats(_metadata, dev);

	if (start_child(_metadata, &child)) {
		unsigned int writes = 0;

		for (i = 0; i < NOTIFY_NR; i++) {
			pte = inspect(dev, page_at(mapping, i));
			child_check(same_pte(&before[i], &pte), "PTE", i);
			child_check(!(pte.flags & PFNMAP_TEST_PTE_DIRTY),
				    "clean", i);
		}
		tally(dev, mapping);
		child_sync(&child);
		for (i = 0; i < NOTIFY_NR; i++) {
			store(page_at(mapping, i) + 72, i);
			writes += !(before[i].flags & PFNMAP_TEST_PTE_WRITE);
			child_check(!ioctl(dev->fd, PFNMAP_TEST_GET_STATS,
					   &stats), "stats", i);
			child_check(stats.mkwrites == writes, "told", i);
		}
		_exit(0);
	}
	ASSERT_TRUE(await(&child));
	tally(dev, mapping);
	ASSERT_TRUE(counts_ok(dev));
	for (i = 0; i < NOTIFY_NR; i++) {
		pte = inspect(dev, page_at(mapping, i));
		ASSERT_EQ(pte.flags, before[i].flags);
		ASSERT_EQ(pte.pfn, before[i].pfn);
	}
	ASSERT_EQ(get_stats(_metadata, dev).mkwrites, 0);
	ASSERT_TRUE(tell(&child));
	ASSERT_EQ(wait_child(&child), 0);
	for (i = 0; i < NOTIFY_NR; i++)
		ASSERT_EQ(load(page_at(mapping, i) + 72), i);
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
}

/*
 * Long runs: what fork and unmap handle at once must be as if it was handled
 * one by one.
 */
FIXTURE(runs)
{
	struct dev dev;
	struct mapping mapping;
};

FIXTURE_VARIANT(runs)
{
	unsigned int method;
	unsigned int place;
	unsigned int flags;
	bool private;
};

FIXTURE_VARIANT_ADD(runs, ram) { KIND(MIXED_BATCH, RAM, 0) };
FIXTURE_VARIANT_ADD(runs, ram_private) { KIND(MIXED_BATCH, RAM, 0), .private = true };
FIXTURE_VARIANT_ADD(runs, vram) { KIND(MIXED_ITER, VRAM, 0) };
FIXTURE_VARIANT_ADD(runs, vram_private) { KIND(MIXED_ITER, VRAM, 0), .private = true };
FIXTURE_VARIANT_ADD(runs, alternate) { KIND(MIXED_ITER, RAM, ALTERNATE) };
FIXTURE_VARIANT_ADD(runs, alternate_private) { KIND(MIXED_ITER, RAM, ALTERNATE), .private = true };
FIXTURE_VARIANT_ADD(runs, compound) { KIND(MIXED_BATCH, RAM, COMPOUND) };
FIXTURE_VARIANT_ADD(runs, compound_private) { KIND(MIXED_BATCH, RAM, COMPOUND), .private = true };
FIXTURE_VARIANT_ADD(runs, notify) { KIND(MIXED_ITER, RAM, NOTIFY) };
FIXTURE_VARIANT_ADD(runs, pages) { KIND(PAGES, RAM, 0) };
FIXTURE_VARIANT_ADD(runs, pages_compound) { KIND(PAGES, RAM, COMPOUND) };
FIXTURE_VARIANT_ADD(runs, pages_compound_private) { KIND(PAGES, RAM, COMPOUND), .private = true };

FIXTURE_SETUP(runs)
{
	struct dev *dev = &self->dev;

	setup_dev(_metadata, dev);
	create(_metadata, dev, variant->flags & COMPOUND ? 512 : 3 * 512,
	       variant->place, variant->flags);
	set_method(_metadata, dev, variant->method, 512, false);
	self->mapping = (struct mapping){
		dev->area + span_size() - 100 * psize(), 0, dev->nr,
		variant->private
	};
	map(_metadata, dev, &self->mapping);
}

FIXTURE_TEARDOWN(runs)
{
	teardown_dev(_metadata, &self->dev);
}

/* Read all, write some: alone, several in a row, none. */
static bool is_written(unsigned long i)
{
	return i % 128 < 64 ? i % 8 == 3 : i % 128 < 80;
}

static void fill_run(struct __test_metadata *_metadata,
		     const struct mapping *mapping)
{
	unsigned long i;

	ASSERT_TRUE(headers_ok(mapping, mapping->first,
			       mapping->first + mapping->nr));
	for (i = mapping->first; i < mapping->first + mapping->nr; i++) {
		if (is_written(i))
			store(page_at(mapping, i) + 64, i);
	}
}

TEST_F(runs, fork)
{
	static const struct {
		unsigned long first, nr;
	} unmapped[] = {
		{ 17, 1 }, { 31, 2 }, { 160, 16 }, { 255, 33 }, { 500, 11 },
		{ 1023, 130 },
	}, read_only[] = { { 47, 1 }, { 64, 16 }, { 300, 41 }, { 1200, 17 } };
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	struct pfnmap_test_inspect *before, pte;
	struct child child;
	unsigned long i;

	before = calloc(dev->nr, sizeof(*before));
	ASSERT_TRUE(!!before);
	fill_run(_metadata, mapping);
	for (i = 0; i < ARRAY_SIZE(unmapped); i++) {
		if (unmapped[i].first < dev->nr)
			ASSERT_EQ(madvise(page_at(mapping, unmapped[i].first),
					  unmapped[i].nr * psize(),
					  MADV_DONTNEED), 0);
	}
	for (i = 0; i < ARRAY_SIZE(read_only); i++) {
		if (read_only[i].first < dev->nr)
			ASSERT_EQ(mprotect(page_at(mapping, read_only[i].first),
					   read_only[i].nr * psize(),
					   PROT_READ), 0);
	}
	for (i = 0; i < dev->nr; i++)
		before[i] = inspect(dev, page_at(mapping, i));
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
	clear_maps(dev);

	if (start_child(_metadata, &child)) {
		for (i = 0; i < dev->nr; i++) {
			unsigned int expected = before[i].flags;
			bool anon = expected & PFNMAP_TEST_ANON;

			if (variant->private)
				expected &= ~PFNMAP_TEST_PTE_WRITE;
			pte = inspect(dev, page_at(mapping, i));
			child_check(pte.pfn == before[i].pfn, "pfn", i);
			child_check(!((pte.flags ^ expected) &
				      ~(PFNMAP_TEST_PTE_YOUNG |
					PFNMAP_TEST_PTE_DIRTY)), "flags", i);
			child_check(anon || !(pte.flags & PFNMAP_TEST_PTE_DIRTY),
				    "clean", i);
			child_check(!anon ||
				    pte.mapcount == before[i].mapcount + 1,
				    "mapcount", i);
		}
		tally(dev, mapping);
		child_sync(&child);
		child_check(headers_ok(mapping, 0, dev->nr), "headers", 0);
		_exit(0);
	}
	ASSERT_TRUE(await(&child));
	tally(dev, mapping);
	ASSERT_TRUE(counts_ok(dev));
	for (i = 0; i < dev->nr; i = next_sample(i, dev->nr)) {
		unsigned int expected = before[i].flags;

		if (variant->private)
			expected &= ~PFNMAP_TEST_PTE_WRITE;
		pte = inspect(dev, page_at(mapping, i));
		ASSERT_EQ(pte.pfn, before[i].pfn);
		ASSERT_EQ(pte.flags, expected);
	}
	ASSERT_TRUE(tell(&child));
	ASSERT_EQ(wait_child(&child), 0);
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
	ASSERT_TRUE(headers_ok(mapping, 0, dev->nr));
	free(before);
}

/* A part goes, no more and no less: munmap() and MADV_DONTNEED. */
TEST_F(runs, partly_unmap)
{
	const struct {
		unsigned long first, nr;
	} parts[] = {
		{ 0, 1 }, { 0, 15 }, { 0, 17 }, { 15, 2 }, { 16, 16 },
		{ 31, 33 }, { 99, 2 }, { 100, 16 }, { 84, 17 }, { 115, 1 },
		{ 200, 201 }, { 333, 512 }, { self->dev.nr - 17, 17 },
		{ self->dev.nr - 16, 15 }, { self->dev.nr - 1, 1 },
	};
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	struct pfnmap_test_inspect edge[2], pte;
	unsigned long i, n, first, end;

	for (n = 0; n < ARRAY_SIZE(parts); n++) {
		struct mapping front = *mapping, back = *mapping;

		first = parts[n].first;
		end = first + parts[n].nr;
		if (end > dev->nr)
			continue;
		map(_metadata, dev, mapping);
		fill_run(_metadata, mapping);
		front.nr = first;
		back.addr = page_at(mapping, end);
		back.first = end;
		back.nr = dev->nr - end;
		if (first)
			edge[0] = inspect(dev, page_at(mapping, first - 1));
		if (end < dev->nr)
			edge[1] = inspect(dev, page_at(mapping, end));

		if (n % 2) {
			ASSERT_EQ(madvise(page_at(mapping, first),
					  parts[n].nr * psize(),
					  MADV_DONTNEED), 0);
			ASSERT_EQ(count_present(dev, page_at(mapping, first),
						parts[n].nr), 0);
		} else {
			unmap(_metadata, page_at(mapping, first), parts[n].nr);
			ASSERT_EQ(touch(page_at(mapping, first)), SIGSEGV);
			ASSERT_EQ(touch(page_at(mapping, end - 1)), SIGSEGV);
		}
		if (first) {
			pte = inspect(dev, page_at(mapping, first - 1));
			ASSERT_TRUE(same_pte(&edge[0], &pte));
		}
		if (end < dev->nr) {
			pte = inspect(dev, page_at(mapping, end));
			ASSERT_TRUE(same_pte(&edge[1], &pte));
		}

		/* What is left, with what has been written */
		clear_maps(dev);
		for (i = 0; i < dev->nr; i++) {
			if (i < first || i >= end)
				dev->maps[i] = !(variant->private &&
						 is_written(i));
		}
		ASSERT_TRUE(counts_ok(dev));
		for (i = 0; i < dev->nr; i = next_sample(i, dev->nr)) {
			if (i >= first && i < end)
				continue;
			ASSERT_TRUE(header_ok(page_at(mapping, i), i, 0));
			if (is_written(i))
				ASSERT_EQ(load(page_at(mapping, i) + 64), i);
		}
		clear_maps(dev);
		tally(dev, &front);
		tally(dev, &back);
		ASSERT_TRUE(counts_ok(dev));
		unmap(_metadata, mapping->addr, mapping->nr);
		clear_maps(dev);
		ASSERT_TRUE(counts_ok(dev));
	}
}

/* Both processes find the pages where they are, and nothing is left behind. */
TEST_F(runs, migrate)
{
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	const bool to_vram = variant->place == PFNMAP_TEST_RAM;
	unsigned long i, moved = dev->nr;
	struct child child;

	fill_run(_metadata, mapping);
	if (variant->flags & COMPOUND) {
		if (!dev->start.vram_pages)
			SKIP_TEST("the driver has no vram");
		ASSERT_EQ(do_migrate(dev->fd, 0, dev->nr, PFNMAP_TEST_VRAM),
			  -1);
		ASSERT_EQ(errno, EINVAL);
		ASSERT_TRUE(headers_ok(mapping, 0, dev->nr));
		return;
	}

	if (start_child(_metadata, &child)) {
		tally(dev, mapping);
		child_sync(&child);
		child_check(!count_present(dev, mapping->addr, dev->nr),
			    "still mapped", 0);
		child_sync(&child);
		for (i = 0; i < dev->nr; i++) {
			child_check(load(page_at(mapping, i)) ==
				    PFNMAP_TEST_MAGIC, "magic", i);
			child_check(load(page_at(mapping, i) + 8) == i, "index",
				    i);
			if (is_written(i) && !variant->private)
				child_check(load(page_at(mapping, i) + 64) == i,
					    "value", i);
		}
		child_sync(&child);
		_exit(0);
	}
	ASSERT_TRUE(await(&child));
	tally(dev, mapping);
	ASSERT_TRUE(counts_ok(dev));
	migrate(_metadata, dev->fd, 0, dev->nr, to_vram ? PFNMAP_TEST_VRAM :
		PFNMAP_TEST_RAM);
	ASSERT_EQ(count_present(dev, mapping->addr, dev->nr), 0);
	ASSERT_TRUE(tell(&child));
	ASSERT_TRUE(await(&child));
	if (variant->method == PFNMAP_TEST_PAGES) {
		ASSERT_EQ(touch(mapping->addr), SIGBUS);
	} else {
		for (i = 0; i < dev->nr; i++)
			ASSERT_EQ(load(page_at(mapping, i) + 8), i);
	}
	migrate(_metadata, dev->fd, 0, dev->nr, to_vram ? PFNMAP_TEST_RAM :
		PFNMAP_TEST_VRAM);
	ASSERT_EQ(count_present(dev, mapping->addr, dev->nr), 0);

	for (i = 0; i < dev->nr; i++)
		moved += to_vram == !!(dev->states[i].flags &
				       PFNMAP_TEST_PFN_VALID);
	ASSERT_EQ(get_stats(_metadata, dev).migrated, moved);
	read_states(_metadata, dev);
	clear_maps(dev);
	ASSERT_TRUE(tell(&child));
	ASSERT_TRUE(await(&child));
	add_maps(dev, 0, dev->nr, 1);
	ASSERT_TRUE(counts_ok(dev));
	for (i = 0; i < dev->nr; i++)
		ASSERT_EQ(load(page_at(mapping, i) + 8), i);
	add_maps(dev, 0, dev->nr, 1);
	ASSERT_TRUE(counts_ok(dev));
	ASSERT_TRUE(tell(&child));
	ASSERT_EQ(wait_child(&child), 0);
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
}

/* With the whole mapping, in one go: the process ends. */
TEST_F(runs, exit)
{
	struct dev *dev = &self->dev;
	const struct mapping *mapping = &self->mapping;
	struct mapping other = *mapping;
	struct child child;

	fill_run(_metadata, mapping);
	if (start_child(_metadata, &child)) {
		other.addr += (dev->nr + 41) * psize();
		map(_metadata, dev, &other);
		child_check(headers_ok(&other, 0, dev->nr), "headers", 0);
		child_check(headers_ok(mapping, 0, dev->nr), "headers", 0);
		tally(dev, &other);
		tally(dev, mapping);
		child_sync(&child);
		_exit(0);
	}
	ASSERT_TRUE(await(&child));
	tally(dev, mapping);
	ASSERT_TRUE(counts_ok(dev));
	ASSERT_EQ(kill(child.pid, SIGKILL), 0);
	ASSERT_EQ(wait_child(&child), -1);
	ASSERT_TRUE(mapping_counts_ok(dev, mapping));
	ASSERT_TRUE(headers_ok(mapping, 0, dev->nr));
}

/*
 * Misuse of the interface by a driver. The kernel refuses it, and survives.
 */
FIXTURE(misuse)
{
	struct dev dev;
};

FIXTURE_VARIANT(misuse)
{
	unsigned int method;
	unsigned int misuse;
	unsigned int place;
	bool pfnmap;
};

#define MISUSE(_method, _misuse, _place)			\
	.method = PFNMAP_TEST_##_method,			\
	.misuse = PFNMAP_TEST_##_misuse,			\
	.place = PFNMAP_TEST_##_place

FIXTURE_VARIANT_ADD(misuse, single_no_flags) { MISUSE(MIXED, NO_FLAGS, RAM) };
FIXTURE_VARIANT_ADD(misuse, single_pfnmap) { MISUSE(MIXED, NO_MISUSE, RAM), .pfnmap = true };
FIXTURE_VARIANT_ADD(misuse, batch_before_vma) { MISUSE(MIXED_BATCH, BEFORE_VMA, RAM) };
FIXTURE_VARIANT_ADD(misuse, batch_after_vma) { MISUSE(MIXED_BATCH, AFTER_VMA, RAM) };
FIXTURE_VARIANT_ADD(misuse, batch_not_fault) { MISUSE(MIXED_BATCH, NOT_FAULT, VRAM) };
FIXTURE_VARIANT_ADD(misuse, batch_no_pages) { MISUSE(MIXED_BATCH, NO_PAGES, RAM) };
FIXTURE_VARIANT_ADD(misuse, batch_wrap) { MISUSE(MIXED_BATCH, WRAP, VRAM) };
FIXTURE_VARIANT_ADD(misuse, batch_unaligned) { MISUSE(MIXED_BATCH, UNALIGNED, RAM) };
FIXTURE_VARIANT_ADD(misuse, batch_both_flags) { MISUSE(MIXED_BATCH, BOTH_FLAGS, VRAM) };
FIXTURE_VARIANT_ADD(misuse, batch_no_flags) { MISUSE(MIXED_BATCH, NO_FLAGS, RAM) };
FIXTURE_VARIANT_ADD(misuse, batch_pfnmap) { MISUSE(MIXED_BATCH, NO_MISUSE, RAM), .pfnmap = true };
FIXTURE_VARIANT_ADD(misuse, iter_before_vma) { MISUSE(MIXED_ITER, BEFORE_VMA, VRAM) };
FIXTURE_VARIANT_ADD(misuse, iter_after_vma) { MISUSE(MIXED_ITER, AFTER_VMA, RAM) };
FIXTURE_VARIANT_ADD(misuse, iter_not_fault) { MISUSE(MIXED_ITER, NOT_FAULT, RAM) };
FIXTURE_VARIANT_ADD(misuse, iter_no_pages) { MISUSE(MIXED_ITER, NO_PAGES, VRAM) };
FIXTURE_VARIANT_ADD(misuse, iter_wrap) { MISUSE(MIXED_ITER, WRAP, RAM) };
FIXTURE_VARIANT_ADD(misuse, iter_unaligned) { MISUSE(MIXED_ITER, UNALIGNED, VRAM) };
FIXTURE_VARIANT_ADD(misuse, iter_both_flags) { MISUSE(MIXED_ITER, BOTH_FLAGS, RAM) };
FIXTURE_VARIANT_ADD(misuse, iter_no_flags) { MISUSE(MIXED_ITER, NO_FLAGS, VRAM) };
FIXTURE_VARIANT_ADD(misuse, iter_pfnmap) { MISUSE(MIXED_ITER, NO_MISUSE, VRAM), .pfnmap = true };
FIXTURE_VARIANT_ADD(misuse, iter_overrun) { MISUSE(MIXED_ITER, ITER_OVERRUN, RAM) };

FIXTURE_SETUP(misuse)
{
	setup_dev(_metadata, &self->dev);
	create(_metadata, &self->dev, 96, variant->place,
	       variant->pfnmap ? 0 : PFNMAP_TEST_MIXEDMAP);
	set_method(_metadata, &self->dev, variant->method, 32, false);
}

FIXTURE_TEARDOWN(misuse)
{
	teardown_dev(_metadata, &self->dev);
}

TEST_F(misuse, refused)
{
	struct dev *dev = &self->dev;
	const struct mapping mapping = {
		dev->area + 32 * psize(), 32, 32, false
	};
	const struct mapping before = {
		dev->area + 24 * psize(), 80, 8, false
	};
	const struct mapping after = {
		dev->area + 64 * psize(), 0, 8, false
	};
	const unsigned long index[] = { 37, 32, 63 };
	const bool flags = variant->pfnmap ||
			   variant->misuse == PFNMAP_TEST_BOTH_FLAGS ||
			   variant->misuse == PFNMAP_TEST_NO_FLAGS;
	unsigned int i;

	if (variant->pfnmap) {
		/* The driver does not have it, unless it is about to err. */
		ASSERT_FALSE(map_fixed(mapping.addr, 1, PROT_READ, MAP_SHARED,
				       dev->fd, 0));
		ASSERT_EQ(errno, EINVAL);
		ASSERT_EQ(do_method(dev->fd, PFNMAP_TEST_MIXED_BATCH, 32, false,
				    PFNMAP_TEST_NO_PAGES, 0), 0);
		map(_metadata, dev, &mapping);
		set_method(_metadata, dev, variant->method, 32, false);
	} else {
		/* Neighbours with other pages of the object */
		map(_metadata, dev, &before);
		map(_metadata, dev, &after);
		ASSERT_EQ(do_method(dev->fd, variant->method, 32, false,
				    variant->misuse, 0), 0);
		map(_metadata, dev, &mapping);
	}

	for (i = 0; i < ARRAY_SIZE(index); i++) {
		char *addr = page_at(&mapping, index[i]);

		reset_stats(_metadata, dev);
		ASSERT_EQ(touch(addr), SIGBUS);
		ASSERT_EQ(try_store(addr, 1), SIGBUS);
		ASSERT_EQ(get_stats(_metadata, dev).faults, 2);
		ASSERT_EQ(get_stats(_metadata, dev).sigbus, 2);
		ASSERT_EQ(count_present(dev, mapping.addr, mapping.nr), 0);
		ASSERT_TRUE(counts_ok(dev));
		if (variant->pfnmap)
			continue;
		ASSERT_EQ(count_present(dev, before.addr, before.nr), 0);
		ASSERT_EQ(count_present(dev, after.addr, after.nr), 0);
	}
	if (variant->pfnmap)
		return;

	/* Once the driver gets it right, the mapping works. */
	set_method(_metadata, dev, variant->method, 32, false);
	if (flags)
		map(_metadata, dev, &mapping);
	ASSERT_TRUE(headers_ok(&mapping, 32, 64));
	ASSERT_TRUE(headers_ok(&before, 80, 88));
	ASSERT_TRUE(headers_ok(&after, 0, 8));
	add_maps(dev, 32, 64, 1);
	add_maps(dev, 80, 88, 1);
	add_maps(dev, 0, 8, 1);
	ASSERT_TRUE(counts_ok(dev));
}

/* Iterators may leave pages out, and be asked for the others. */
FIXTURE(hole)
{
	struct dev dev;
};

FIXTURE_VARIANT(hole)
{
	unsigned int place;
	unsigned int flags;
	bool private;
};

FIXTURE_VARIANT_ADD(hole, ram) { .place = PFNMAP_TEST_RAM };
FIXTURE_VARIANT_ADD(hole, private) {
	.place = PFNMAP_TEST_VRAM, .flags = ALTERNATE, .private = true
};

FIXTURE_SETUP(hole)
{
	setup_dev(_metadata, &self->dev);
	create(_metadata, &self->dev, 64, variant->place,
	       PFNMAP_TEST_MIXEDMAP | variant->flags);
	set_method(_metadata, &self->dev, PFNMAP_TEST_MIXED_ITER, 64, false);
}

FIXTURE_TEARDOWN(hole)
{
	teardown_dev(_metadata, &self->dev);
}

TEST_F(hole, others_mapped)
{
	struct dev *dev = &self->dev;
	const struct mapping mapping = { dev->area, 0, 64, variant->private };
	char *addr = page_at(&mapping, 20);
	unsigned long i;

	ASSERT_EQ(do_method(dev->fd, PFNMAP_TEST_MIXED_ITER, 64, false,
			    PFNMAP_TEST_ITER_HOLE, 0), 0);
	map(_metadata, dev, &mapping);
	ASSERT_EQ(touch(addr), SIGBUS);
	ASSERT_FALSE(is_present(dev, addr));
	ASSERT_EQ(try_store(addr, 1), SIGBUS);
	ASSERT_FALSE(is_present(dev, addr));
	ASSERT_EQ(get_stats(_metadata, dev).faults, 2);
	ASSERT_EQ(get_stats(_metadata, dev).sigbus, 2);
	for (i = 0; i < 64; i++) {
		if (i != 20 && is_present(dev, page_at(&mapping, i)))
			ASSERT_TRUE(source_at(dev, &mapping, i));
	}
	ASSERT_TRUE(mapping_counts_ok(dev, &mapping));
	set_method(_metadata, dev, PFNMAP_TEST_MIXED_ITER, 64, false);
	ASSERT_TRUE(headers_ok(&mapping, 0, 64));
	ASSERT_TRUE(mapping_counts_ok(dev, &mapping));
}

/*
 * No memory for a page table, or for a copy.
 */
FIXTURE(oom)
{
	struct dev dev;
	int fail_nth;
};

FIXTURE_VARIANT(oom)
{
	unsigned int method;
	unsigned int place;
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(oom, single) { KIND(MIXED, RAM, NO_IO) };
FIXTURE_VARIANT_ADD(oom, batch) { KIND(MIXED_BATCH, RAM, NO_IO) };
FIXTURE_VARIANT_ADD(oom, iter) { KIND(MIXED_ITER, RAM, NO_IO | ALTERNATE) };
FIXTURE_VARIANT_ADD(oom, pages) { KIND(PAGES, RAM, NO_IO) };

/* The nth allocation from now on is to fail, or none. */
static void fail_nth(struct __test_metadata *_metadata, int fd, unsigned int n)
{
	char buf[16];

	snprintf(buf, sizeof(buf), "%u", n);
	ASSERT_EQ(pwrite(fd, buf, strlen(buf), 0), strlen(buf));
}

/* Has it? Otherwise there were less than n. */
static bool has_failed(struct __test_metadata *_metadata, int fd)
{
	char buf[16] = "";

	ASSERT_GT(pread(fd, buf, sizeof(buf) - 1, 0), 0);
	fail_nth(_metadata, fd, 0);
	return strtoul(buf, NULL, 10) == 0;
}

static unsigned long oom_part(void)
{
	return table_pages() > PART_PAGES ? PART_PAGES : table_pages();
}

static char *oom_addr(const struct dev *dev)
{
	return dev->area + span_size() - oom_part() * psize();
}

FIXTURE_SETUP(oom)
{
	struct dev *dev = &self->dev;

	setup_dev(_metadata, dev);
	/* Two tables that are full, or what is at both sides of the end of a large one */
	create(_metadata, dev, 2 * oom_part(), variant->place,
	       variant->flags);
	set_method(_metadata, dev, variant->method, 4 * table_pages(), true);
	self->fail_nth = open("/proc/thread-self/fail-nth", O_RDWR);
	if (self->fail_nth < 0)
		SKIP(return, "fail-nth: %s; is CONFIG_FAULT_INJECTION set?",
		     strerror(errno));
	/* No neighbour keeps a page table from being freed. */
	ASSERT_EQ(munmap(dev->area, dev->area_size), 0);
	change_fail_settings(_metadata);
}

FIXTURE_TEARDOWN(oom)
{
	restore_fail_settings();
	close(self->fail_nth);
	teardown_dev(_metadata, &self->dev);
}

/* What can't be mapped is not referred to; the access is tried again. */
TEST_F(oom, table)
{
	struct dev *dev = &self->dev;
	const struct mapping mapping = { oom_addr(dev), 0, dev->nr, false };
	unsigned int n, injected = 0;
	unsigned long index;
	bool failed = true;

	for (n = 1; failed; n++) {
		ASSERT_LT(n, 100);
		map(_metadata, dev, &mapping);
		index = (n * 197) % dev->nr;
		fail_nth(_metadata, self->fail_nth, n);
		FORCE_READ(*page_at(&mapping, index));
		failed = has_failed(_metadata, self->fail_nth);
		injected += failed;

		ASSERT_TRUE(source_at(dev, &mapping, index));
		ASSERT_TRUE(mapping_counts_ok(dev, &mapping));
		ASSERT_TRUE(headers_ok(&mapping, 0, dev->nr));
		clear_maps(dev);
		add_maps(dev, 0, dev->nr, 1);
		ASSERT_TRUE(counts_ok(dev));
		ASSERT_EQ(munmap(mapping.addr, dev->nr * psize()), 0);
		clear_maps(dev);
		ASSERT_TRUE(counts_ok(dev));
	}
	ksft_print_msg("%u failures\n", injected);
	ASSERT_GE(injected, 1);
	ASSERT_EQ(get_stats(_metadata, dev).sigbus, 0);
}

/* A reference that the source has got goes when there is a copy. */
TEST_F(oom, copy)
{
	struct dev *dev = &self->dev;
	const struct mapping mapping = { oom_addr(dev), 0, dev->nr, true };
	unsigned int n, injected = 0, i;
	unsigned long index;
	bool failed = true;

	for (n = 1; failed; n++) {
		ASSERT_LT(n, 100);
		map(_metadata, dev, &mapping);
		/* Mapped before or not */
		failed = false;
		for (i = 0; i < 2; i++) {
			bool once;

			index = (n * 197 + i * 7) % dev->nr;
			fail_nth(_metadata, self->fail_nth, n);
			store(page_at(&mapping, index) + 64, n);
			once = has_failed(_metadata, self->fail_nth);
			injected += once;
			failed |= once;
			ASSERT_TRUE(copy_at(dev, &mapping, index));
			ASSERT_TRUE(header_ok(page_at(&mapping, index), index,
					      0));
			ASSERT_EQ(load(page_at(&mapping, index) + 64), n);
			ASSERT_TRUE(mapping_counts_ok(dev, &mapping));
		}
		ASSERT_EQ(munmap(mapping.addr, dev->nr * psize()), 0);
		clear_maps(dev);
		ASSERT_TRUE(counts_ok(dev));
	}
	ksft_print_msg("%u failures\n", injected);
	ASSERT_GE(injected, 2);
	ASSERT_EQ(get_stats(_metadata, dev).sigbus, 0);
}

/*
 * Threads that use the same pages, while the main thread changes the mapping.
 */
#define RACE_NR		128UL
#define NR_THREADS	4

struct race {
	struct dev dev;
	struct mapping mapping;
	int signals[2];			/* that are all right */
	atomic_bool stop;
	atomic_ulong errors;
};

struct racer {
	struct race *race;
	pthread_t thread;
	unsigned int id;
	unsigned int state;		/* for rand_r() */
	unsigned long accesses;
	unsigned long signals;
};

FIXTURE(race)
{
	struct race race;
	struct racer racers[NR_THREADS];
};

FIXTURE_VARIANT(race)
{
	unsigned int method;
	unsigned int place;
	unsigned int flags;
	bool private;
};

FIXTURE_VARIANT_ADD(race, single) { KIND(MIXED, RAM, ALTERNATE) };
FIXTURE_VARIANT_ADD(race, batch) { KIND(MIXED_BATCH, RAM, 0) };
FIXTURE_VARIANT_ADD(race, batch_private) { KIND(MIXED_BATCH, RAM, 0), .private = true };
FIXTURE_VARIANT_ADD(race, batch_notify) { KIND(MIXED_BATCH, RAM, NOTIFY) };
FIXTURE_VARIANT_ADD(race, iter) { KIND(MIXED_ITER, RAM, ALTERNATE) };
FIXTURE_VARIANT_ADD(race, iter_private) { KIND(MIXED_ITER, RAM, ALTERNATE), .private = true };
FIXTURE_VARIANT_ADD(race, pages) { KIND(PAGES, RAM, 0) };

FIXTURE_SETUP(race)
{
	struct race *race = &self->race;
	struct dev *dev = &race->dev;

	setup_dev(_metadata, dev);
	create(_metadata, dev, RACE_NR, variant->place, variant->flags);
	set_method(_metadata, dev, variant->method, 32, false);
	/* Half of it is in the next page table. */
	race->mapping = (struct mapping){
		dev->area + span_size() - RACE_NR / 2 * psize(), 0, RACE_NR,
		variant->private
	};
	map(_metadata, dev, &race->mapping);
}

FIXTURE_TEARDOWN(race)
{
	teardown_dev(_metadata, &self->race.dev);
}

static void race_error(struct race *race, const char *what, unsigned long page,
		       uint64_t val)
{
	if (atomic_fetch_add(&race->errors, 1) < 3)
		ksft_print_msg("%s: page %lu: %#llx\n", what, page,
			       (unsigned long long)val);
}

/* The value may be lost with a private copy, but it is never another one. */
static void *racer_thread(void *arg)
{
	struct racer *racer = arg;
	struct race *race = racer->race;
	const size_t offset = 64 + racer->id * sizeof(uint64_t);

	while (!atomic_load(&race->stop)) {
		unsigned long page = rand_r(&racer->state) % RACE_NR;
		char *addr = page_at(&race->mapping, page);
		const uint64_t mine = page * 16 + racer->id + 1;
		uint64_t val;
		int sig;

		switch (rand_r(&racer->state) % 4) {
		case 0:
			sig = try_load(addr, &val);
			if (!sig && val != PFNMAP_TEST_MAGIC)
				race_error(race, "magic", page, val);
			break;
		case 1:
			sig = try_load(addr + 8, &val);
			if (!sig && val != page)
				race_error(race, "index", page, val);
			break;
		case 2:
			sig = try_load(addr + offset, &val);
			if (!sig && val && val != mine)
				race_error(race, "value", page, val);
			break;
		default:
			sig = try_store(addr + offset, mine);
			break;
		}
		/* Let the main thread have the CPU and the mmap_lock. */
		if (++racer->accesses % 64 == 0)
			sched_yield();
		if (!sig)
			continue;
		racer->signals++;
		if (sig != race->signals[0] && sig != race->signals[1])
			race_error(race, "signal", page, sig);
	}
	return NULL;
}

static void start_race(struct __test_metadata *_metadata, struct race *race,
		       struct racer *racers)
{
	unsigned int i;

	/* Without struct pages, vm_insert_page() can't. */
	if (race->dev.method == PFNMAP_TEST_PAGES)
		race->signals[0] = SIGBUS;
	for (i = 0; i < NR_THREADS; i++) {
		racers[i].race = race;
		racers[i].id = i;
		racers[i].state = seed + i;
		ASSERT_EQ(pthread_create(&racers[i].thread, NULL, racer_thread,
					 &racers[i]), 0);
	}
}

/* That many rounds, but not for too long on a slow machine. */
static bool racing(struct race *race, uint64_t start, unsigned int round,
		   unsigned int rounds)
{
	if (atomic_load(&race->errors) || round >= rounds)
		return false;
	return round < 16 || now_ns() - start < 600000000ULL;
}

static void finish_race(struct __test_metadata *_metadata, struct race *race,
			struct racer *racers, unsigned int rounds)
{
	unsigned long accesses = 0, signals = 0, i;
	struct dev *dev = &race->dev;

	atomic_store(&race->stop, true);
	for (i = 0; i < NR_THREADS; i++) {
		ASSERT_EQ(pthread_join(racers[i].thread, NULL), 0);
		accesses += racers[i].accesses;
		signals += racers[i].signals;
	}
	ksft_print_msg("%u rounds, %lu accesses, %lu signals, %llu faults\n",
		       rounds, accesses, signals, (unsigned long long)
		       get_stats(_metadata, dev).faults);
	ASSERT_EQ(atomic_load(&race->errors), 0);
	ASSERT_GT(accesses, 0);
	ASSERT_EQ(get_stats(_metadata, dev).oom, 0);
	if (!race->signals[0])
		ASSERT_EQ(get_stats(_metadata, dev).sigbus, 0);

	/* As many references as there are mappings, and none at the end */
	for (i = 0; i < RACE_NR; i++)
		dev->states[i].pfn = page_state(dev, i).pfn;
	ASSERT_TRUE(mapping_counts_ok(dev, &race->mapping));
	unmap(_metadata, race->mapping.addr, RACE_NR);
	read_states(_metadata, dev);
}

static void random_range(unsigned int *state, unsigned long *first,
			 unsigned long *nr)
{
	*first = rand_r(state) % RACE_NR;
	*nr = 1 + rand_r(state) % (RACE_NR - *first);
}

TEST_F(race, dontneed)
{
	struct race *race = &self->race;
	const uint64_t start = now_ns();
	unsigned int state = seed, round;
	unsigned long first, nr;

	start_race(_metadata, race, self->racers);
	for (round = 0; racing(race, start, round, 1000); round++) {
		random_range(&state, &first, &nr);
		ASSERT_EQ(madvise(page_at(&race->mapping, first), nr * psize(),
				  MADV_DONTNEED), 0);
		if (round % 4 == 0)
			usleep(100);
	}
	finish_race(_metadata, race, self->racers, round);
}

/* Copies go as well: the driver wants all of the pages' mappings gone. */
TEST_F(race, migrate)
{
	struct race *race = &self->race;
	const uint64_t start = now_ns();
	unsigned int state = seed, round;
	unsigned long first, nr;

	start_race(_metadata, race, self->racers);
	for (round = 0; racing(race, start, round, 500); round++) {
		random_range(&state, &first, &nr);
		migrate(_metadata, race->dev.fd, first, nr, round % 2 ?
			PFNMAP_TEST_RAM : PFNMAP_TEST_VRAM);
		usleep(200);
	}
	/* Let the rule apply to what is mapped at the end. */
	migrate(_metadata, race->dev.fd, 0, RACE_NR, PFNMAP_TEST_RAM);
	for (first = 0; first < RACE_NR; first++)
		race->dev.states[first] = page_state(&race->dev, first);
	finish_race(_metadata, race, self->racers, round);
}

TEST_F(race, fork)
{
	struct race *race = &self->race;
	const uint64_t start = now_ns();
	struct child child;
	unsigned int round;
	unsigned long i;

	start_race(_metadata, race, self->racers);
	for (round = 0; racing(race, start, round, 100); round++) {
		if (start_child(_metadata, &child)) {
			for (i = 0; i < RACE_NR; i++) {
				char *addr = page_at(&race->mapping, i);

				child_check(load(addr) == PFNMAP_TEST_MAGIC,
					    "magic", i);
				child_check(load(addr + 8) == i, "index", i);
				if (i % 3 == round % 3)
					store(addr + 128, i);
			}
			_exit(0);
		}
		if (round % 2)
			ASSERT_EQ(madvise(race->mapping.addr, RACE_NR * psize(),
					  MADV_DONTNEED), 0);
		ASSERT_EQ(wait_child(&child), 0);
	}
	finish_race(_metadata, race, self->racers, round);
}

TEST_F(race, munmap)
{
	struct race *race = &self->race;
	const uint64_t start = now_ns();
	unsigned int state = seed, round;
	unsigned long first, nr;

	race->signals[1] = SIGSEGV;
	start_race(_metadata, race, self->racers);
	for (round = 0; racing(race, start, round, 500); round++) {
		random_range(&state, &first, &nr);
		unmap(_metadata, page_at(&race->mapping, first), nr);
		if (round % 8 == 0)
			usleep(200);
		map(_metadata, &race->dev, &(struct mapping){
			page_at(&race->mapping, first), first, nr,
			race->mapping.private });
		if (round % 2 == 0)
			usleep(200);
	}
	/* One VMA again */
	map(_metadata, &race->dev, &race->mapping);
	finish_race(_metadata, race, self->racers, round);
}

/*
 * The method changes after mmap(). One that does not fit the mapping or the
 * pages gets a SIGBUS, and the others map the data.
 */
FIXTURE(method)
{
	struct dev dev;
};

FIXTURE_VARIANT(method)
{
	unsigned int place;
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(method, pfnmap) { PFNMAP_TEST_RAM, 0 };
FIXTURE_VARIANT_ADD(method, mixedmap_ram) { PFNMAP_TEST_RAM, PFNMAP_TEST_MIXEDMAP };
FIXTURE_VARIANT_ADD(method, mixedmap_vram) { PFNMAP_TEST_VRAM, PFNMAP_TEST_MIXEDMAP };

FIXTURE_SETUP(method)
{
	setup_dev(_metadata, &self->dev);
	create(_metadata, &self->dev, 64, variant->place, variant->flags);
}

FIXTURE_TEARDOWN(method)
{
	teardown_dev(_metadata, &self->dev);
}

TEST_F(method, changes)
{
	struct dev *dev = &self->dev;
	const bool cow = variant->flags || dev->start.pte_special;
	char *addr = dev->area + 20 * psize();
	unsigned int method, private;

	for (private = 0; private <= cow; private++) {
		struct mapping mapping = { dev->area, 0, 64, private };

		for (method = 0; method < PFNMAP_TEST_NR_METHODS; method++) {
			const bool mixed = method >= PFNMAP_TEST_MIXED;
			bool fits;

			if (!variant->flags)
				fits = !mixed;
			else if (variant->place == PFNMAP_TEST_RAM)
				fits = mixed;
			else
				fits = method != PFNMAP_TEST_PAGES;

			set_method(_metadata, dev, variant->flags ?
				   PFNMAP_TEST_MIXED : PFNMAP_TEST_SINGLE, 1,
				   false);
			map(_metadata, dev, &mapping);
			set_method(_metadata, dev, method, 16, false);
			ASSERT_EQ(touch(addr), fits ? 0 : SIGBUS) {
				TH_LOG("method %u, private %u", method, private);
			}
			ASSERT_EQ(try_store(addr + 64, 1), fits ? 0 : SIGBUS);
			ASSERT_EQ(is_present(dev, addr), fits);
			if (fits)
				ASSERT_TRUE(header_ok(addr, 20, 0));
			unmap(_metadata, mapping.addr, mapping.nr);
		}
	}
}

int main(int argc, char **argv)
{
	need_device();

	seed = getenv("SEED") ? strtoul(getenv("SEED"), NULL, 0) : time(NULL);
	ksft_print_msg("seed %u, page tables of %lu pages\n", seed,
		       table_pages());

	return test_harness_run(argc, argv);
}
