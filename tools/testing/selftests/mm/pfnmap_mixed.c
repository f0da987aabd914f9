// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for VM_MIXEDMAP mappings: vmf_insert_mixed(), vmf_insert_mixed_pfns() and its
 * relatives, and vm_insert_page() to compare with.  What is a page there, and what
 * just a pfn, is in pfnmap_mixed.h: check() compares all PTEs with that.
 *
 * Needs root and CONFIG_PFNMAP_TEST, and some vram (see pfnmap_insert.c).
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/uio.h>

#include "pfnmap_mixed.h"

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

static void dontneed(unsigned long first, unsigned long nr)
{
	ASSERT_EQ(madvise(page_at(first), nr * psize(), MADV_DONTNEED), 0);
	drop(first, nr);
}

/* A fault maps the window, but leaves alone what is there, copies as well. */
TEST_F(mixed, faults)
{
	static const unsigned long windows[] = { 1, 16, 512, 0 };
	static const unsigned long index[] = { 0, 22, EDGE - 1, EDGE, NR - 1 };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(windows) * ARRAY_SIZE(index); i++) {
		const unsigned long fault = index[i / 4];
		const uint64_t faults = stats().faults;

		set_window(windows[i % 4]);
		map();
		if ((i + i / 4) % 2)
			write_page(fault, 7);
		else
			fill(fault, 1);
		ASSERT_EQ(stats().faults, faults + 1);
		check("one fault");
		use(7);
		dontneed(20, 12);
		fill(0, NR);
		check("all of it");
	}
}

/* Pages are counted and accounted for as often as they are mapped, pfns are not. */
TEST_F(mixed, counts)
{
	static const char * const fields[] = { "RssFile:", "RssAnon:" };
	long before[2], pages[2] = {};
	unsigned long i, round;

	/* In the first round, the program's own pages come in. */
	for (round = 0; round < 2; round++) {
		map();
		for (i = 0; i < 2; i++)
			before[i] = status_kb(fields[i]);
		use(7);
		check("once");
		for (i = 0; i < NR && round; i++) {
			pages[0] += is_source(i) && is_page(i);
			pages[1] += is_copy(i);
		}
		for (i = 0; i < 2 && round; i++)
			EXPECT_LE(labs(status_kb(fields[i]) - before[i] - kb(pages[i])), kb(16));
	}
	map();
	for (i = 0; i < 2; i++)
		EXPECT_LE(labs(status_kb(fields[i]) - before[i]), kb(16));
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
				faulted(i);
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
	ASSERT_TRUE(mmap(o.addr, SIZE / 2, RW, MAP_ANON | MAP_PRIVATE | MAP_FIXED,
			 -1, 0) == o.addr);
	for (i = 0; i < NR * NR_REMOTE; i++) {
		page = i / NR_REMOTE;
		check_gup(i % NR_REMOTE, pid, fd, page, !io && has_page(page));
		ASSERT_TRUE(page >= NR / 2 || !load(page_at(page) + 64));
	}
	end_child(pid);
}

/* Each PTE of a child is as the parent's, but old, clean and, in COW, read-only. */
static void check_fork(void)
{
	unsigned long i;
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
		for (i = 0; i < NR; i++)
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

TEST_F(mixed, fork)
{
	check_fork();
}

/* A part goes, no more and no less: munmap() and MADV_DONTNEED. */
TEST_F(mixed, partly_unmap)
{
	static const unsigned long parts[][2] = {	/* first, number */
		{ 0, 1 }, { 0, 15 }, { 15, 2 }, { 16, 16 }, { 31, 33 }, { EDGE - 1, 2 },
		{ EDGE, 16 }, { 34, 17 }, { 65, 1 }, { 10, 101 }, { NR - 17, 17 }, { NR - 16, 15 },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(parts); i++) {
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
	unsigned long i;
	pid_t pid;

	use(7);
	if (variant->kind.flags & COMPOUND) {
		ASSERT_EQ(do_migrate(o.fd, 0, NR, to), -1);
		check("not migrated");
		return;
	}
	pid = start_child();
	if (!pid) {
		raise(SIGSTOP);
		ASSERT_EQ(count_present(o.addr, NR), 0);
		for (i = 0; i < NR; i++)
			ASSERT_EQ(load(page_at(i) + 8), i);
		_exit(0);
	}
	migrate(_metadata, o.fd, 0, NR, to);
	read_states();
	drop(0, NR);
	o.mappings--;	/* those of the child are gone as well */
	if (variant->kind.method != PFNMAP_TEST_PAGES)
		fill(0, NR);
	check("migrated");
	migrate(_metadata, o.fd, 0, NR, from);
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

TEST_F(notify, write)
{
	unsigned long i;

	for (i = 7; i < NR; i += 17) {
		const uint64_t faults = stats().faults;
		const bool mapped = o.pages[i].pte;

		write_page(i, i);
		check("written");
		write_page(i, i);
		check("written twice");
		ASSERT_EQ(stats().faults, faults + !mapped);
		if (i > NR / 2)
			fill(0, NR);
	}
}

/*
 * Neither mprotect() nor mremap() make up for it, not even for pages of one folio,
 * of which some have been written to.  What has been moved is all soft-dirty, so
 * that this bit does not tell the PTEs apart.
 */
static void check_mprotect(bool aligned)
{
	unsigned long i, when;

	for (when = 0; when < 4; when++) {
		char *to = o.area + 3 * span_size() - 32 * psize();

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

TEST_F(notify, mprotect)
{
	check_mprotect(false);
}

/* The same where arm64 folds PTEs, before they are moved and after. */
TEST_F(notify, mremap_aligned)
{
	check_mprotect(true);
}

/* A driver that wants to be told once more: mprotect() does not make up for it. */
TEST_F(notify, wrprotect)
{
	unsigned long i, n;

	fill(0, NR);
	for (n = 0; n < 3; n++) {
		for (i = 0; i < NR; i++)
			write_page(i, n);
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
	unsigned long i;

	fill(0, NR);
	if (supported)
		clear_softdirty();
	dontneed(64, 64);	/* One is not mapped now. */
	for (i = 7; i < NR; i += 93) {
		ASSERT_FALSE(i == 7 && supported && pagemap_is_softdirty(pagemap, page_at(i)));
		write_page(i, i);
		ASSERT_EQ(pagemap_is_softdirty(pagemap, page_at(i)), supported);
	}
	check("written");
}

TEST_F(notify, fork)
{
	check_fork();
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
	/* A range is looked at before any of it is mapped. */
	const bool met = fault == BAD || method == PFNMAP_TEST_MIXED_ITER;
	const int sig = !met ? 0 : bad_pages[row].load >= 0 ? bad_pages[row].load :
			o.start.pte_special ? 0 : SIGBUS;
	struct pfnmap_test_inspect pte, again;
	char *bad = page_at(BAD);

	o.fd = open(DEVICE, bad_pages[row].open);
	ASSERT_GE(o.fd, 0);
	ASSERT_EQ(do_create(o.fd, NR, PFNMAP_TEST_RAM,
			    MIXEDMAP | SCATTER | bad_pages[row].flags), 0);
	ASSERT_EQ(do_method(method, 16, bad_pages[row].page, BAD), 0);
	ASSERT_TRUE(map_at(o.addr, NR, PROT_READ, bad_pages[row].map));
	ASSERT_EQ(touch(page_at(fault)), sig) TH_LOG("row %u, method %u", row, method);
	pte = inspect(bad);
	ASSERT_EQ(!!pte.flags, met && !sig);
	ASSERT_EQ(!!(pte.flags & SPECIAL), pte.flags && o.start.pte_special);
	ASSERT_TRUE(!sig || !count_present(o.addr, NR));
	/* If it was counted, there would be one more. */
	ASSERT_EQ(madvise(o.addr, SIZE, MADV_DONTNEED), 0);
	ASSERT_EQ(touch(page_at(fault)), sig);
	again = inspect(bad);
	ASSERT_EQ(again.refcount, pte.refcount);
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
FIXTURE_VARIANT_ADD(misuse, pfnmap) { KIND(ITER, RAM, 0) };

TEST_F(misuse, pages)
{
	static const unsigned long faults[] = { BAD, BAD - 1, BAD + 1, BAD - 4 };
	const int fd = o.fd;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(bad_pages) * 12; i++)
		check_bad_page(i / 12, PFNMAP_TEST_MIXED + i % 3, faults[i / 3 % 4]);
	o.fd = fd;
}

TEST_F(misuse, refused)
{
	/* The last one is all right, but for VM_PFNMAP: it is another page that is bad. */
	static const unsigned int rows[] = {
		PFNMAP_TEST_BEFORE_VMA, PFNMAP_TEST_AFTER_VMA, PFNMAP_TEST_NOT_FAULT,
		PFNMAP_TEST_NO_PAGES, PFNMAP_TEST_WRAP, PFNMAP_TEST_UNALIGNED,
		PFNMAP_TEST_BOTH_FLAGS, PFNMAP_TEST_NO_FLAGS, PFNMAP_TEST_ITER_OVERRUN,
		PFNMAP_TEST_SLAB_PAGE,
	};
	static const unsigned long index[] = { 0, 70, NR - 1 };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(rows) * 9; i++) {
		const unsigned int method = PFNMAP_TEST_MIXED + i % 3, misuse = rows[i / 9];
		const bool other = misuse == PFNMAP_TEST_SLAB_PAGE;
		const unsigned long fault = index[i / 3 % 3];
		const uint64_t sigbus = stats().sigbus;

		/* Ranges are not for all methods; and both flags are all right for one page. */
		if (other == o.mixed ||
		    (misuse == PFNMAP_TEST_BOTH_FLAGS && method == PFNMAP_TEST_MIXED) ||
		    do_method(method, 16, misuse, other ? fault ^ 32 : 0))
			continue;
		map();
		ASSERT_EQ(touch(page_at(fault)), SIGBUS) TH_LOG("%u, %u", misuse, method);
		ASSERT_EQ(try_store(page_at(fault), 1), SIGBUS);
		ASSERT_EQ(stats().sigbus, sigbus + 2);
		set_window(16);
		check_ptes("refused");
		map();
		fill(fault, 1);
		check("all right");
	}
}

/* An iterator may leave pages out, and is asked for the others. */
TEST_F(misuse, hole)
{
	ASSERT_EQ(do_method(variant->kind.method, 16, PFNMAP_TEST_ITER_HOLE, 0), 0);
	ASSERT_EQ(touch(page_at(BAD)), SIGBUS);
	faulted(BAD);
	drop(BAD, 1);
	check("hole");
	set_window(16);
	fill(0, NR);
	check("no hole");
}

/* No memory for a page table, or for a copy: the access is tried again. */
TEST_F(mixed, fail_nth)
{
	const int fd = open("/proc/thread-self/fail-nth", O_RDWR);
	unsigned long i, n, fault, left = 0;
	char buf[16] = "";

	if (fd < 0)
		SKIP_TEST("fail-nth: %s; is CONFIG_FAULT_INJECTION set?", strerror(errno));
	change_fail_settings(_metadata);
	set_window(0);
	/* No neighbour keeps a page table from being freed. */
	ASSERT_EQ(munmap(o.area, 8 * span_size()), 0);
	for (n = 1; !left; n++) {
		map();
		fault = n * 37 % NR;
		dprintf(fd, "%lu", n);	/* The nth allocation is to fail. */
		store(page_at(fault) + 64, n);
		ASSERT_GT(pread(fd, buf, sizeof(buf) - 1, 0), 0);
		left = strtoul(buf, NULL, 10);
		dprintf(fd, "0");
		/* Others may be missing now. */
		for (i = 0; i < NR; i++)
			load(page_at(i));
		written(fault, n);
		fill(0, NR);
		check("allocation failed");
		ASSERT_EQ(munmap(o.addr, SIZE), 0);
		drop(0, NR);
		check_counts("unmapped");
	}
	ASSERT_GE(n - 2, 1 + o.private);
	ASSERT_EQ(stats().sigbus, 0);
}

static unsigned int seed;
static atomic_bool stop;
static atomic_ulong errors;

/* A value may be lost with a private copy, but it is never another one. */
static void *racer(void *arg)
{
	const unsigned long id = (uintptr_t)arg, offset = 128 + 8 * id;
	unsigned int state = seed + id;

	while (!atomic_load(&stop)) {
		const unsigned long i = rand_r(&state) % NR;
		const uint64_t mine = i * 16 + id + 1;
		const uint64_t val = load(page_at(i) + offset);

		store(page_at(i) + offset, mine);
		if (load(page_at(i) + 8) != i || (val && val != mine))
			atomic_fetch_add(&errors, 1);
		/* Let the main thread have the CPU and the mmap_lock. */
		if (i % 32 == 0)
			sched_yield();
	}
	return NULL;
}

/* Threads use the same pages, while the main thread changes the mapping. */
TEST_F(mixed, race)
{
	unsigned int state = seed, round;
	pthread_t threads[4];
	unsigned long i, first, nr;
	pid_t pid;
	int status;

	for (i = 0; i < ARRAY_SIZE(threads); i++)
		ASSERT_EQ(pthread_create(&threads[i], NULL, racer, (void *)i), 0);
	for (round = 0; round < 90 && !atomic_load(&errors); round++) {
		first = rand_r(&state) % NR;
		nr = 1 + rand_r(&state) % (NR - first);
		if (round % 3 == 0) {
			ASSERT_EQ(madvise(page_at(first), nr * psize(), MADV_DONTNEED), 0);
		} else if (round % 3 == 1 && o.kind.method != PFNMAP_TEST_PAGES &&
			   !(o.kind.flags & COMPOUND)) {
			migrate(_metadata, o.fd, first, nr, round % 2);
		} else {
			pid = fork();
			ASSERT_GE(pid, 0);
			for (i = 0; i < NR && !pid; i++)
				ASSERT_EQ(load(page_at(i) + 8), i);
			if (!pid)
				_exit(0);
			ASSERT_EQ(waitpid(pid, &status, 0), pid);
			ASSERT_EQ(status, 0);
		}
		usleep(200);
	}
	atomic_store(&stop, true);
	for (i = 0; i < ARRAY_SIZE(threads); i++)
		ASSERT_EQ(pthread_join(threads[i], NULL), 0);
	ASSERT_EQ(atomic_load(&errors), 0);
	ASSERT_EQ(stats().oom + stats().sigbus, 0);
	/* As many references as there are mappings, and none at the end */
	read_states();
	for (i = 0; i < NR; i++)
		o.pages[i].pte = inspect(page_at(i)).flags;
	check_counts("race");
}

int main(int argc, char **argv)
{
	need_device();
	seed = getenv("SEED") ? strtoul(getenv("SEED"), NULL, 0) : time(NULL);
	ksft_print_msg("seed %u\n", seed);
	return test_harness_run(argc, argv);
}
