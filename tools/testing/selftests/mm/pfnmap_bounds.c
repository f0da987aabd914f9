// SPDX-License-Identifier: GPL-2.0-only
/*
 * What must not be mapped from a fault handler: pages outside of the object,
 * pages that are no driver's to map, and, where L1TF is a matter, pfns without
 * access at high addresses.
 *
 * Needs root and CONFIG_PFNMAP_TEST.
 */
#define _GNU_SOURCE
/* Addresses are offsets, in /proc/self/mem */
#define _FILE_OFFSET_BITS 64
#include <sys/mman.h>

#include "kselftest_harness.h"
#include "pfnmap_util.h"

#define NR	64UL
#define WINDOW	16UL

static int set_method(int fd, struct pfnmap_test_method_arg arg)
{
	return ioctl(fd, PFNMAP_TEST_SET_METHOD, &arg);
}

/* With access or without; the ioctl fails if there is no page table. */
static bool is_mapped(int fd, const char *addr)
{
	struct pfnmap_test_inspect arg = { .addr = (uintptr_t)addr };

	return !ioctl(fd, PFNMAP_TEST_INSPECT, &arg) &&
	       (arg.flags & PFNMAP_TEST_PTE_PRESENT);
}

/* A new device with an object of @nr pages, or -1; an object is for good. */
static int open_object(unsigned long nr, unsigned int place, unsigned int flags)
{
	int fd = open(DEVICE, O_RDWR);

	if (fd >= 0 && do_create(fd, nr, place, flags)) {
		close(fd);
		return -1;
	}
	return fd;
}

FIXTURE(bounds)
{
	struct pfnmap_test_stats stats;
};

FIXTURE_SETUP(bounds)
{
	int fd = open(DEVICE, O_RDWR);

	if (fd < 0)
		SKIP(return, DEVICE " cannot be opened");
	self->stats = get_stats(_metadata, fd);
	close(fd);
	ASSERT_EQ(0, install_handler());
}

FIXTURE_TEARDOWN(bounds)
{
}

static const struct {
	unsigned int method;
	unsigned int flags;
} windows[] = {
	{ PFNMAP_TEST_LOOP, 0 },
	{ PFNMAP_TEST_BATCH, 0 },
	{ PFNMAP_TEST_ITER, 0 },
	{ PFNMAP_TEST_MIXED_BATCH, PFNMAP_TEST_MIXEDMAP },
	{ PFNMAP_TEST_MIXED_ITER, PFNMAP_TEST_MIXEDMAP },
	{ PFNMAP_TEST_PAGES, PFNMAP_TEST_MIXEDMAP },
};

/*
 * The object is smaller than its VMA: it has [first, end) of it. A window of 16
 * pages is cut off at both ends.
 */
TEST_F(bounds, object)
{
	static const struct {
		unsigned long first, end, fault;
		unsigned long mapped, nr;	/* 0: SIGBUS */
	} objects[] = {
		{ 20, 28, 20, 20, 8 },	/* inside of one window */
		{ 20, 28, 27, 20, 8 },
		{ 20, 28, 19, 0, 0 },
		{ 20, 28, 28, 0, 0 },
		{ 19, 64, 31, 19, 13 },	/* starts in it */
		{ 19, 64, 32, 32, 16 },
		{ 0, 45, 32, 32, 13 },	/* ends in it */
		{ 0, 45, 31, 16, 16 },
		{ 33, 34, 33, 33, 1 },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(windows); i++) {
		for (unsigned int j = 0; j < ARRAY_SIZE(objects); j++) {
			int fd = open_object(NR, PFNMAP_TEST_RAM,
					     windows[i].flags);
			const unsigned long end = objects[j].mapped + objects[j].nr;
			struct pfnmap_test_method_arg arg = {
				.method = windows[i].method,
				.window = WINDOW,
				.first = objects[j].first,
				.end = objects[j].end,
			};
			char *area, *p;
			int sig;

			ASSERT_GE(fd, 0);
			ASSERT_EQ(0, set_method(fd, arg));
			/* Windows are aligned by address. */
			area = mmap(NULL, (NR + WINDOW) * psize(), PROT_NONE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			ASSERT_NE(MAP_FAILED, area);
			p = area + WINDOW * psize() -
			    (uintptr_t)area % (WINDOW * psize());
			ASSERT_EQ(p, mmap(p, NR * psize(), PROT_READ,
					  MAP_SHARED | MAP_FIXED, fd, 0));
			sig = objects[j].nr ? 0 : SIGBUS;
			ASSERT_EQ(sig, touch(p + objects[j].fault * psize()));
			for (unsigned long k = 0; k < NR; k++) {
				ASSERT_EQ(k >= objects[j].mapped && k < end,
					  is_mapped(fd, p + k * psize())) {
					TH_LOG("method %u, case %u, page %lu",
					       windows[i].method, j, k);
				}
			}
			munmap(area, (NR + WINDOW) * psize());
			close(fd);
		}
	}
}

/* Where pfns are mapped as pages, the page has to be one that may be. */
TEST_F(bounds, page)
{
	static const unsigned int methods[] = {
		PFNMAP_TEST_PAGES, PFNMAP_TEST_MIXED, PFNMAP_TEST_MIXED_BATCH,
		PFNMAP_TEST_MIXED_ITER,
	};
	static const unsigned int pages[] = {
		PFNMAP_TEST_ANON_PAGE, PFNMAP_TEST_SLAB_PAGE,
		PFNMAP_TEST_FREE_PAGE,
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(methods); i++) {
		const bool as_page = methods[i] == PFNMAP_TEST_PAGES ||
				     !self->stats.pte_special;

		for (unsigned int j = 0; j < ARRAY_SIZE(pages); j++) {
			int fd = open_object(4, PFNMAP_TEST_RAM,
					     PFNMAP_TEST_MIXEDMAP);
			struct pfnmap_test_method_arg arg = {
				.method = methods[i],
				.misuse = pages[j],
				.misuse_page = 2,
				.window = 1,
			};
			char *p;

			ASSERT_GE(fd, 0);
			ASSERT_EQ(0, set_method(fd, arg));
			p = mmap(NULL, 4 * psize(), PROT_READ, MAP_SHARED, fd, 0);
			ASSERT_NE(MAP_FAILED, p);
			ASSERT_EQ(as_page ? SIGBUS : 0, touch(p + 2 * psize())) {
				TH_LOG("method %u, page %u", methods[i], pages[j]);
			}
			ASSERT_EQ(!as_page, is_mapped(fd, p + 2 * psize()));
			ASSERT_EQ(0, touch(p + psize()));
			munmap(p, 4 * psize());
			close(fd);
		}
	}
}

/*
 * A debugger reads what has no access, so that the handler maps it without: a
 * PTE that L1TF lets the hardware follow. What mprotect() does not give to who is
 * unprivileged, no insertion may.
 */
TEST_F(bounds, l1tf)
{
	static const unsigned int methods[] = {
		PFNMAP_TEST_SINGLE, PFNMAP_TEST_BATCH, PFNMAP_TEST_ITER,
		PFNMAP_TEST_MIXED, PFNMAP_TEST_MIXED_BATCH,
		PFNMAP_TEST_MIXED_ITER,
	};
	const unsigned int flags = PFNMAP_TEST_MIXEDMAP | PFNMAP_TEST_NO_IO;
	struct pfnmap_test_method_arg arg = { .window = 4 };
	int fd, mem = open("/proc/self/mem", O_RDONLY);
	long word;
	char *p;
	int ret;

	if (self->stats.vram_pages < 4)
		SKIP(return, "no vram");
	ASSERT_GE(mem, 0);
	fd = open_object(4, PFNMAP_TEST_VRAM, flags);
	ASSERT_GE(fd, 0);
	p = mmap(NULL, 4 * psize(), PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	ASSERT_EQ(0, touch(p));
	ASSERT_EQ(0, seteuid(65534));
	ret = mprotect(p, 4 * psize(), PROT_NONE);
	ASSERT_EQ(0, seteuid(0));
	if (!ret)
		SKIP(return, "not an x86 CPU with L1TF and vram in the upper half");
	close(fd);

	for (unsigned int i = 0; i < ARRAY_SIZE(methods); i++) {
		for (int privileged = 0; privileged < 2; privileged++) {
			fd = open_object(4, PFNMAP_TEST_VRAM, flags);
			ASSERT_GE(fd, 0);
			arg.method = methods[i];
			ASSERT_EQ(0, set_method(fd, arg));
			p = mmap(NULL, 4 * psize(), PROT_NONE, MAP_SHARED, fd, 0);
			ASSERT_NE(MAP_FAILED, p);
			if (!privileged)
				ASSERT_EQ(0, seteuid(65534));
			pread(mem, &word, sizeof(word), (uintptr_t)p);
			ASSERT_EQ(0, seteuid(0));
			ASSERT_EQ(privileged, is_mapped(fd, p)) {
				TH_LOG("method %u", methods[i]);
			}
			munmap(p, 4 * psize());
			close(fd);
		}
	}
}

TEST_HARNESS_MAIN
