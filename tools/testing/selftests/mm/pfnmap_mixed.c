// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for VM_MIXEDMAP mappings: vmf_insert_mixed(), vmf_insert_mixed_pfns() and its
 * relatives, and vm_insert_page() to compare with.  What is a page there, and what
 * just a pfn, is in pfnmap_insert.h: check() compares all PTEs with that.
 *
 * Needs root and CONFIG_PFNMAP_TEST, and some vram (see pfnmap_insert.h).
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <sys/uio.h>

#include "pfnmap_insert.h"

/* Pairs of method, place, and shared or private; each of them with each place */
FIXTURE_WITH_OBJECT(mixed)
FIXTURE_VARIANT_ADD(mixed, single_ram) { KIND(MIXED, RAM, NO_IO) };
FIXTURE_VARIANT_ADD(mixed, single_alternate) { KIND(MIXED, RAM, ALTERNATE | NO_IO | PRIVATE) };
FIXTURE_VARIANT_ADD(mixed, batch_ram) { KIND(MIXED_BATCH, RAM, NO_IO | PRIVATE) };
FIXTURE_VARIANT_ADD(mixed, batch_vram) { KIND(MIXED_BATCH, VRAM, NO_IO) };
FIXTURE_VARIANT_ADD(mixed, batch_compound) { KIND(MIXED_BATCH, RAM, COMPOUND) };
FIXTURE_VARIANT_ADD(mixed, iter_vram) { KIND(MIXED_ITER, VRAM, PRIVATE) };
FIXTURE_VARIANT_ADD(mixed, iter_alternate) { KIND(MIXED_ITER, RAM, ALTERNATE | NO_IO) };
FIXTURE_VARIANT_ADD(mixed, iter_scatter) { KIND(MIXED_ITER, RAM, SCATTER | NO_IO | PRIVATE) };
FIXTURE_VARIANT_ADD(mixed, iter_notify) { KIND(MIXED_ITER, RAM, NOTIFY) };
FIXTURE_VARIANT_ADD(mixed, pages_ram) { KIND(PAGES, RAM, NO_IO) };
FIXTURE_VARIANT_ADD(mixed, pages_compound) { KIND(PAGES, RAM, COMPOUND | NO_IO | PRIVATE) };
FIXTURE_VARIANT_ADD(mixed, pages_notify) { KIND(PAGES, RAM, NOTIFY | COMPOUND | NO_IO) };

static void dontneed(unsigned long first, unsigned long nr)
{
	ASSERT_EQ(madvise(page_at(first), nr * psize(), MADV_DONTNEED), 0);
	drop(first, nr);
}

TEST_F(mixed, faults)
{
	check_faults();
}

TEST_F(mixed, counts)
{
	check_rss();
}

/* What gets at memory by its pages; odd ones write. */
enum { READV, WRITEV, MEM_READ, MEM_WRITE, NR_REMOTE, VMSPLICE = NR_REMOTE, NR_GUPS };

static void check_gup(unsigned int how, pid_t pid, int fd, unsigned long i, bool gets)
{
	const int err = how == MEM_READ || how == MEM_WRITE ? EIO : EFAULT;
	uint64_t val = how % 2 ? i + 99 : 0;
	struct iovec local = { &val, 8 }, remote = { page_at(i) + 64, 8 };
	ssize_t ret;

	errno = 0;
	if (how < MEM_READ)
		ret = how == READV ? process_vm_readv(pid, &local, 1, &remote, 1, 0) :
		      process_vm_writev(pid, &local, 1, &remote, 1, 0);
	else if (how == VMSPLICE)	/* a pipe */
		ret = vmsplice(fd + 1, &remote, 1, 0) < 0 ? -1 : read(fd, &val, 8);
	else
		ret = how == MEM_READ ? pread(fd, &val, 8, (uintptr_t)remote.iov_base) :
		      pwrite(fd, &val, 8, (uintptr_t)remote.iov_base);
	ASSERT_EQ(ret, gets ? 8 : -1) TH_LOG("%u: page %lu: %s", how, i, strerror(errno));
	ASSERT_TRUE(gets || errno == err || (how == VMSPLICE && errno == EEXIST));
	if (gets && how % 2)
		written(i, val);
	else if (gets)
		EXPECT_EQ(val, o.pages[i].val);
}

/*
 * get_user_pages() gets pages, and nothing where there are just pfns.  To write to
 * a private mapping, it gets a copy of either, a debugger also if it is read-only.
 */
TEST_F(mixed, gup)
{
	const bool io = !(o.kind.flags & NO_IO);
	const int mem = open("/proc/self/mem", O_RDWR);
	unsigned long i, round;
	int pipes[2];

	ASSERT_EQ(pipe(pipes), 0);
	o.ignore = YOUNG | DIRTY;	/* even if it fails */
	set_window(1);
	/* Not mapped, mapped, read-only */
	for (round = 0; round < 3; round++) {
		map();
		if (round)
			use(8);
		if (round == 2)
			protect(0, NR, PROT_READ);
		for (i = 0; i < 18 * NR_GUPS; i++) {
			const unsigned int how = i / 18;
			const bool allowed = round < 2 || (o.private && how == MEM_WRITE);
			const bool pte = has_page(i) || (o.private && how % 2);
			const bool gets = pte && (allowed || how % 2 == 0);

			if (!io && !o.pages[i].pte)
				faulted(i, false);
			/* The fast way needs pte_special; it does not look at VM_IO. */
			check_gup(how, getpid(), how == VMSPLICE ? pipes[0] : mem, i,
				  gets && (!io || (how == VMSPLICE && o.start.pte_special)));
		}
		check("GUP");
	}
}

/*
 * In another process, what has no page can't be copied: it can only be read at its
 * address there.  Here, one half has something else at it, the other one nothing.
 */
TEST_F(mixed, remote)
{
	const bool io = !(o.kind.flags & NO_IO);
	unsigned long i, page;
	char path[32];
	pid_t pid;
	int fd;

	use(7);
	pid = start_child();
	if (!pid) {
		raise(SIGSTOP);
		for (i = 0; i < NR; i++) {
			const bool gets = !io && has_page(i);

			o.pages[i].val = gets ? i + 99 : o.pages[i].val;
			ASSERT_EQ(!(inspect(page_at(i)).flags & ANON), !is_copy(i) &&
				  !(o.private && gets));
			ASSERT_TRUE(content_ok(page_at(i), i));
		}
		_exit(0);
	}
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDWR);
	reserve(o.addr, NR);
	ASSERT_TRUE(mmap(o.addr, SIZE / 2, RW, MAP_ANON | MAP_PRIVATE | MAP_FIXED, -1, 0) ==
		    o.addr);
	for (i = 0; i < NR * NR_REMOTE; i++) {
		page = i / NR_REMOTE;
		check_gup(i % NR_REMOTE, pid, fd, page, !io && has_page(page));
		ASSERT_TRUE(page >= NR / 2 || !load(page_at(page) + 64));
	}
	end_child(pid);
}

/* Each PTE of a child is as the parent's, but old, clean and, in COW, read-only. */
TEST_F(mixed, fork)
{
	pid_t pid;

	use(7);
	dontneed(17, 1);
	dontneed(30, 2);
	dontneed(60, 16);
	protect(43, 14, PROT_READ);
	protect(90, 1, PROT_READ);
	check("before fork");
	pid = start_child();
	if (!pid) {
		check_ptes("child");
		o.ignore = YOUNG;
		check("child");
		raise(SIGSTOP);
		protect(0, NR, RW);
		check("child, mprotect");
		for (unsigned long i = 0; i < NR; i++)
			if (o.pages[i].pte)
				write_page(i, o.private ? 8 : o.pages[i].val);
		/* The parent does not have these copies. */
		if (!o.private)
			check("child has written");
		_exit(0);
	}
	check("fork");
	end_child(pid);
	protect(0, NR, RW);
	check("child has gone");
	use(9);
	check("written after fork");
}

/* A part goes, no more and no less: munmap() and MADV_DONTNEED. */
TEST_F(mixed, partly_unmap)
{
	static const unsigned long parts[][2] = {	/* first, number */
		{ 0, 1 }, { 0, 15 }, { 15, 2 }, { 16, 16 }, { 31, 33 }, { EDGE - 1, 2 },
		{ EDGE, 16 }, { 34, 17 }, { 65, 1 }, { 10, 101 }, { NR - 17, 17 }, { NR - 16, 15 },
	};
	for (unsigned int i = 0; i < ARRAY_SIZE(parts); i++) {
		map();
		use(i);
		if (i % 2)
			dontneed(parts[i][0], parts[i][1]);
		else
			reserve(page_at(parts[i][0]), parts[i][1]);
		drop(parts[i][0], parts[i][1]);
		check("a part");
		/* The TLB does not have it either. */
		if (i % 2)
			fill(0, NR);
		else
			EXPECT_EQ(touch(page_at(parts[i][0])), SIGSEGV);
		check("filled again");
	}
}

/* No process has it mapped, and all find it where it is. */
TEST_F(mixed, migrate)
{
	const unsigned int from = variant->kind.place, to = !from;
	pid_t pid;

	use(7);
	if (variant->kind.flags & COMPOUND) {
		ASSERT_EQ(do_migrate(0, NR, to), -1);
		return;
	}
	pid = start_child();
	if (!pid) {
		raise(SIGSTOP);
		ASSERT_EQ(count_present(o.addr, NR), 0);
		for (unsigned long i = 0; i < NR; i++)
			ASSERT_EQ(load(page_at(i) + 8), i);
		_exit(0);
	}
	need_vram(do_migrate(0, NR, to));
	read_states();
	drop(0, NR);
	o.mappings--;	/* those of the child are gone as well */
	if (variant->kind.method != PFNMAP_TEST_PAGES)
		fill(0, NR);
	check("migrated");
	need_vram(do_migrate(0, NR, from));
	read_states();
	drop(0, NR);
	check("and back");
	o.mappings++;
	end_child(pid);
	fill(0, NR);
	check("and back, mapped");
}

/* First writes that are told: check() knows how often. */
FIXTURE_WITH_OBJECT(notify)
FIXTURE_VARIANT_ADD(notify, single_vram) { KIND(MIXED, VRAM, NOTIFY | NO_IO) };
FIXTURE_VARIANT_ADD(notify, batch_ram) { KIND(MIXED_BATCH, RAM, NOTIFY) };
FIXTURE_VARIANT_ADD(notify, batch_compound) { KIND(MIXED_BATCH, RAM, NOTIFY | COMPOUND) };
FIXTURE_VARIANT_ADD(notify, iter_alternate) { KIND(MIXED_ITER, RAM, NOTIFY | ALTERNATE) };
FIXTURE_VARIANT_ADD(notify, pages_ram) { KIND(PAGES, RAM, NOTIFY) };
FIXTURE_VARIANT_ADD(notify, pages_compound) { KIND(PAGES, RAM, NOTIFY | COMPOUND | NO_IO) };

/*
 * Neither mprotect() nor mremap() make up for it, not even for pages of one folio,
 * of which some have been written to.  What has been moved is all soft-dirty, so
 * that this bit does not tell the PTEs apart.  The same where arm64 folds PTEs, before
 * they are moved and after.
 */
TEST_F(notify, mprotect)
{
	for (unsigned int when = 0; when < 8; when++) {
		const bool aligned = when & 4;
		char *to = o.area + 3 * span_size() - 32 * psize();
		unsigned long i;

		reserve(o.area, 8 * span_pages());
		o.addr = o.area + span_size() - (aligned ? 0 : EDGE * psize());
		map();
		fill(0, NR);
		write_page(aligned ? 24 : 40, when);
		for (i = 7; i <= 8 && !aligned; i++)
			write_page(i, when);
		/* Moved before it is read-only, and meanwhile */
		for (i = 0; i < 2; i++) {
			if (when & (1 << i)) {
				ASSERT_TRUE(move(o.addr, NR, NR, 0, to));
				o.addr = to;
			}
			to = o.area + 5 * span_size();
			if (i && !aligned)
				protect(0, NR, PROT_NONE);
			protect(0, NR, i ? RW : PROT_READ);
			check("mprotect");
		}
		for (i = 0; i < NR; i++)
			write_page(i, when);
		check("written");
	}
}

/* A driver that wants to be told once more: mprotect() does not make up for it. */
TEST_F(notify, wrprotect)
{
	unsigned long i, n;

	fill(0, NR);
	for (n = 0; n < 3; n++) {
		/* Twice: it is told of the first time. */
		for (i = 0; i < 2 * NR; i++)
			write_page(i % NR, n);
		check("written");
		ASSERT_EQ(ioctl(o.fd, PFNMAP_TEST_WRPROTECT), 0);
		for (i = 0; i < NR; i++)
			o.pages[i].pte &= ~WRITE;
		check("wrprotect");
		if (n)
			continue;
		protect(0, NR, PROT_READ);
		protect(0, NR, RW);
		check("mprotect");
	}
}

/* What has been written is dirty for those who clear that, too. */
TEST_F(notify, soft_dirty)
{
	const bool supported = softdirty_supported();
	const int pagemap = open("/proc/self/pagemap", O_RDONLY);

	fill(0, NR);
	if (supported)
		clear_softdirty();
	dontneed(64, 64);	/* One is not mapped now. */
	for (unsigned long i = 7; i < NR; i += 93) {
		ASSERT_FALSE(i == 7 && supported && pagemap_is_softdirty(pagemap, page_at(i)));
		write_page(i, i);
		ASSERT_EQ(pagemap_is_softdirty(pagemap, page_at(i)), supported);
	}
	check("written");
}

/*
 * A page of the range that is not the driver's to map: by its pfn, it may be.  The
 * zero page has a rule of its own: nobody may ever write to it.
 */
#define BAD	70UL

static const struct {
	unsigned int page, flags;
	int open, map;
	int load, store;		/* the signal, or -1: SIGBUS of pages */
} bad_pages[] = {
	{ PFNMAP_TEST_SLAB_PAGE, NO_IO, O_RDWR, MAP_SHARED, -1, -1 },
	{ PFNMAP_TEST_FREE_PAGE, 0, O_RDWR, MAP_PRIVATE, -1, -1 },
	{ PFNMAP_TEST_ANON_PAGE, 0, O_RDWR, MAP_SHARED, -1, -1 },
	{ PFNMAP_TEST_ZERO_PAGE, NO_IO, O_RDWR, MAP_PRIVATE, 0, 0 },
	{ PFNMAP_TEST_ZERO_PAGE, NO_IO, O_RDONLY, MAP_SHARED, 0, SIGSEGV },
	/* Read-only for now is not enough. */
	{ PFNMAP_TEST_ZERO_PAGE, 0, O_RDWR, MAP_SHARED, SIGBUS, SIGBUS },
	/* The driver is told, and does not allow for it; GUP must not get it. */
	{ PFNMAP_TEST_ZERO_PAGE, NOTIFY, O_RDWR, MAP_SHARED, 0, SIGBUS },
	{ PFNMAP_TEST_ZERO_PAGE, NOTIFY | NO_IO, O_RDWR, MAP_SHARED, SIGBUS, SIGBUS },
};

static void check_bad_page(unsigned int row, unsigned int method, unsigned long fault)
{
	const bool as_page = method == PFNMAP_TEST_PAGES || !o.start.pte_special;
	/* A range is looked at before any of it is mapped. */
	const bool met = fault == BAD || method == PFNMAP_TEST_MIXED_ITER;
	const int sig = !met ? 0 : bad_pages[row].load < 0 ? as_page * SIGBUS : bad_pages[row].load;
	struct pfnmap_test_inspect pte;
	char *bad = page_at(BAD);

	new_object(bad_pages[row].open, NR, PFNMAP_TEST_RAM,
		   MIXEDMAP | SCATTER | bad_pages[row].flags);
	ASSERT_EQ(DO_METHOD(method, bad_pages[row].page, 16, BAD), 0);
	ASSERT_TRUE(map_at(o.addr, NR, PROT_READ, bad_pages[row].map));
	ASSERT_EQ(touch(page_at(fault)), sig) TH_LOG("row %u, method %u", row, method);
	pte = inspect(bad);
	ASSERT_EQ(!!pte.flags, met && !sig);
	ASSERT_EQ(!!(pte.flags & SPECIAL), pte.flags && o.start.pte_special);
	ASSERT_TRUE(!sig || !count_present(o.addr, NR));
	/* If it was counted, there would be one more. */
	ASSERT_EQ(madvise(o.addr, SIZE, MADV_DONTNEED), 0);
	ASSERT_EQ(touch(page_at(fault)), sig);
	ASSERT_EQ(inspect(bad).refcount, pte.refcount);
	ASSERT_EQ(mprotect(o.addr, SIZE, RW), bad_pages[row].open == O_RDONLY ? -1 : 0);
	if (bad_pages[row].store >= 0 && fault == BAD) {
		ASSERT_EQ(try_store(bad + 64, 1), bad_pages[row].store);
		pte = inspect(bad);
		ASSERT_EQ(pte.flags & (WRITE | ANON), bad_pages[row].store ? 0 : WRITE | ANON);
		ASSERT_EQ(stats().mkwrites, bad_pages[row].flags == NOTIFY);
	}
	reserve(o.addr, NR);
	close(o.fd);
}

FIXTURE_WITH_OBJECT(misuse)
FIXTURE_VARIANT_ADD(misuse, mixedmap) { KIND(MIXED_ITER, RAM, 0) };

TEST_F(misuse, pages)
{
	static const unsigned long faults[] = { BAD, BAD - 1, BAD + 1, BAD - 4 };
	const int fd = o.fd;

	for (unsigned int row = 0; row < ARRAY_SIZE(bad_pages); row++) {
		for (unsigned int i = 0; i < 12; i++)
			check_bad_page(row, PFNMAP_TEST_MIXED + i % 3, faults[i / 3]);
		/* vm_insert_page() takes the zero page for one to be counted. */
		if (bad_pages[row].load < 0)
			check_bad_page(row, PFNMAP_TEST_PAGES, BAD);
	}
	o.fd = fd;
}

TEST_HARNESS_MAIN
