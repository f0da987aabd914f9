/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An object of mm/pfnmap_test_*.c, and where it is mapped.
 *
 * Needs root and CONFIG_PFNMAP_TEST, with some vram: an ivshmem-plain device in
 * the virtual machine or the module parameters vram_start and vram_size.  Where
 * one is missing, tests are skipped.
 */
#ifndef PFNMAP_INSERT_H
#define PFNMAP_INSERT_H

#include <linux/mman.h>
#include <sys/mman.h>
#include <sys/param.h>
#include <sys/wait.h>

#include "kselftest_harness.h"
#include "pfnmap_util.h"

/* Debugging kernels are slow, in emulators the more so. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	600

#define WIDE		0UL		/* all of the VMA, in several page tables */
#define AREA_SIZE	(6 * span_size())
#define COUNTER		64		/* offset in a page: nothing is there yet */

#define PRESENT		PFNMAP_TEST_PTE_PRESENT
#define WRITE		PFNMAP_TEST_PTE_WRITE
#define VALID		PFNMAP_TEST_PFN_VALID
#define ALTERNATE	PFNMAP_TEST_ALTERNATE
#define MIXEDMAP	PFNMAP_TEST_MIXEDMAP
#define SCATTER		PFNMAP_TEST_SCATTER

/* How an object is mapped, and what it is like. */
struct kind {
	unsigned int method;
	unsigned long window;		/* pages, or WIDE */
	unsigned int place;
	unsigned int flags;		/* of PFNMAP_TEST_CREATE */
};

#define KIND(_method, _window, _place, _flags)	\
	{ PFNMAP_TEST_##_method, _window, PFNMAP_TEST_##_place, _flags }

/* Each test of the fixture has an object of @nr pages; 0: more than half of vram. */
#define FIXTURE_OF_KINDS(name, nr)					\
	FIXTURE(name) {};						\
	FIXTURE_VARIANT(name) { struct kind kind; };			\
	FIXTURE_SETUP(name)						\
	{								\
		if (!setup(_metadata, &variant->kind, nr))		\
			SKIP(return, "the driver has no vram");		\
	}								\
	FIXTURE_TEARDOWN(name) { teardown(); }

#define KIND_ADD(fixture, name, ...)	\
	FIXTURE_VARIANT_ADD(fixture, name) { .kind = KIND(__VA_ARGS__) }

static struct __test_metadata *_metadata;

static struct {
	struct kind kind;
	int fd;
	struct pfnmap_test_stats start;
	char *area;			/* reserved, aligned to all windows */
	char *edge;			/* the end of the first page table in there */
} o;

static inline struct pfnmap_test_stats stats(void)
{
	return get_stats(_metadata, o.fd);
}

static inline void set_method(unsigned int method, unsigned long window,
			      unsigned int misuse)
{
	struct pfnmap_test_method_arg arg = {
		.method = method,
		.misuse = misuse,
		.window = window,
	};

	ASSERT_EQ(ioctl(o.fd, PFNMAP_TEST_SET_METHOD, &arg), 0);
}

/* False: the driver has no vram. */
static inline bool setup(struct __test_metadata *metadata,
			 const struct kind *kind, unsigned long nr)
{
	const size_t align = 4 * span_size();

	_metadata = metadata;
	ASSERT_EQ(install_handler(), 0);
	o.kind = *kind;
	o.fd = open(DEVICE, O_RDWR);
	o.start = stats();
	if (!o.start.vram_pages &&
	    (kind->place == PFNMAP_TEST_VRAM || kind->flags & ALTERNATE))
		return false;
	ASSERT_EQ(do_create(o.fd, nr ?: o.start.memtype_split + 300, kind->place,
			    kind->flags), 0);
	set_method(kind->method, kind->window, 0);
	o.area = mmap(NULL, AREA_SIZE + align, PROT_NONE,
		      MAP_ANON | MAP_PRIVATE | MAP_NORESERVE, -1, 0);
	ASSERT_NE(o.area, MAP_FAILED);
	o.area = (char *)(((uintptr_t)o.area + align - 1) & ~(align - 1));
	o.edge = o.area + span_size();
	return true;
}

/* All memory of the object comes back, once nothing maps it. */
static inline void teardown(void)
{
	struct pfnmap_test_stats end;

	close(o.fd);
	EXPECT_EQ(munmap(o.area, AREA_SIZE), 0);
	o.fd = open(DEVICE, O_RDWR);
	EXPECT_EQ(ioctl(o.fd, PFNMAP_TEST_GET_STATS, &end), 0);
	EXPECT_EQ(end.vram_free, o.start.vram_free);
	EXPECT_EQ(end.ram_pages, o.start.ram_pages);
	close(o.fd);
}

static inline struct pfnmap_test_inspect inspect(const char *addr)
{
	struct pfnmap_test_inspect arg = { .addr = (uintptr_t)addr };

	ASSERT_EQ(ioctl(o.fd, PFNMAP_TEST_INSPECT, &arg), 0);
	return arg;
}

static inline unsigned long count_present(const char *addr, unsigned long nr)
{
	unsigned long present = 0;

	while (nr--)
		present += inspect(addr + nr * psize()).flags & PRESENT;
	return present;
}

static inline void map(char *addr, unsigned long first, unsigned long nr)
{
	ASSERT_EQ(mmap(addr, nr * psize(), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_FIXED, o.fd, first * psize()), addr);
	ASSERT_EQ(ioctl(o.fd, PFNMAP_TEST_RESET_STATS), 0);
}

/* Back to a reserved range, without page tables */
static inline void unmap(char *addr, unsigned long nr)
{
	ASSERT_EQ(mmap(addr, nr * psize(), PROT_NONE, MAP_ANON | MAP_PRIVATE |
		       MAP_NORESERVE | MAP_FIXED, -1, 0), addr);
}

static inline bool headers_ok(const char *addr, unsigned long first,
			      unsigned long nr, uint64_t generation)
{
	while (nr--) {
		if (!header_ok(addr + nr * psize(), first + nr, generation))
			return false;
	}
	return true;
}

#endif /* PFNMAP_INSERT_H */
