// SPDX-License-Identifier: GPL-2.0-only
/*
 * Insertion of pfns that goes wrong or meets others: misuse, holes, too little
 * memory, a task that is killed, pfns without access where L1TF is a matter, and
 * races with faults, with changes of the mapping and with migration.
 */
#define _GNU_SOURCE
/* Addresses are offsets, in /proc/self/mem */
#define _FILE_OFFSET_BITS 64
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "pfnmap_insert.h"

#define FAIL_PAGE_ALLOC	"/sys/kernel/debug/fail_page_alloc/"

/* Only fail-nth makes allocations fail, those of page tables included. */
static struct {
	const char *path;
	const char *value;
	char saved[32];
} fail_settings[] = {
	{ FAIL_PAGE_ALLOC "probability", "0" },
	{ FAIL_PAGE_ALLOC "verbose", "0" },
	{ FAIL_PAGE_ALLOC "min-order", "0" },
	{ FAIL_PAGE_ALLOC "ignore-gfp-wait", "N" },
	{ FAIL_PAGE_ALLOC "ignore-gfp-highmem", "N" },
};

static void restore_fail_settings(void)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(fail_settings); i++)
		if (fail_settings[i].saved[0])
			write_file(fail_settings[i].path, fail_settings[i].saved,
				   strlen(fail_settings[i].saved) + 1);
}

static void change_fail_settings(void)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(fail_settings); i++) {
		if (access(fail_settings[i].path, W_OK))
			SKIP_TEST("%s: %s; is CONFIG_FAIL_PAGE_ALLOC set, debugfs mounted?",
				  fail_settings[i].path, strerror(errno));
		ASSERT_GT(read_file(fail_settings[i].path, fail_settings[i].saved,
				    sizeof(fail_settings[i].saved)), 0);
		write_file(fail_settings[i].path, fail_settings[i].value,
			   strlen(fail_settings[i].value) + 1);
	}
}

FIXTURE(fault) {};
FIXTURE_VARIANT(fault) { struct kind kind; };
FIXTURE_SETUP(fault) { setup(_metadata, &variant->kind); }
FIXTURE_TEARDOWN(fault)
{
	restore_fail_settings();
	teardown();
}

FIXTURE_VARIANT_ADD(fault, pfnmap) { KIND(ITER, RAM, 0) };
FIXTURE_VARIANT_ADD(fault, mixedmap) { KIND(MIXED_ITER, RAM, 0) };

/* A driver's bug is refused, in whichever page table, and nothing is mapped. */
TEST_F(fault, misuse)
{
	static const unsigned int rows[] = {
		PFNMAP_TEST_BEFORE_VMA, PFNMAP_TEST_AFTER_VMA, PFNMAP_TEST_NOT_FAULT,
		PFNMAP_TEST_NO_PAGES, PFNMAP_TEST_WRAP, PFNMAP_TEST_UNALIGNED,
		PFNMAP_TEST_BOTH_FLAGS, PFNMAP_TEST_NO_FLAGS, PFNMAP_TEST_ITER_OVERRUN,
		PFNMAP_TEST_COW_VMA,
		/* This is another page: what is wrong is to use VM_PFNMAP as VM_MIXEDMAP. */
		PFNMAP_TEST_SLAB_PAGE,
	};
	static const unsigned long index[] = { 0, 70, NR - 1 };

	for (unsigned int i = 0; i < ARRAY_SIZE(rows) * PFNMAP_TEST_PAGES * 3; i++) {
		const unsigned int misuse = rows[i / (3 * PFNMAP_TEST_PAGES)];
		const unsigned int method = i / 3 % PFNMAP_TEST_PAGES;
		const bool mixed = method >= PFNMAP_TEST_MIXED, cow = misuse == PFNMAP_TEST_COW_VMA;
		const bool other = misuse == PFNMAP_TEST_SLAB_PAGE;
		const unsigned long fault = index[i % 3];
		const uint64_t sigbus = stats().sigbus;

		if (method < PFNMAP_TEST_SINGLE || (cow && (mixed || o.start.pte_special)))
			continue;
		/* Both flags are all right for one page; and ranges are not for all methods. */
		if ((other && o.mixed) || (o.mixed ^ other) != mixed ||
		    (misuse == PFNMAP_TEST_BOTH_FLAGS && method == PFNMAP_TEST_MIXED) ||
		    DO_METHOD(method, misuse, 0, fault ^ 32))
			continue;
		o.private = cow;
		map();
		ASSERT_EQ(touch(page_at(fault)), SIGBUS) TH_LOG("%u, %u", misuse, method);
		ASSERT_EQ(try_store(page_at(fault), 1), SIGBUS);
		ASSERT_EQ(stats().sigbus, sigbus + 2);
		o.private = false;
		set_window(16);
		check_ptes("refused");
		map();
		fill(fault, 1);
		check("all right");
	}
}

/* Nor is a pfn that has a struct page mapped as a pfn into VM_MIXEDMAP, the first or another. */
TEST(page_misuse)
{
	static const unsigned int methods[] = {
		PFNMAP_TEST_SINGLE, PFNMAP_TEST_LOOP, PFNMAP_TEST_BATCH, PFNMAP_TEST_ITER,
	};
	char *addr;

	setup_observer(_metadata);
	new_object(O_RDWR, NR, PFNMAP_TEST_RAM, MIXEDMAP);
	addr = mmap(NULL, SIZE, RW, MAP_SHARED, o.fd, 0);
	ASSERT_TRUE(addr != MAP_FAILED);
	for (unsigned int i = 0; i < ARRAY_SIZE(methods); i++) {
		ASSERT_EQ(DO_METHOD(methods[i], PFNMAP_TEST_UNCHECKED), 0);
		ASSERT_EQ(touch(addr), SIGBUS) TH_LOG("method %u", methods[i]);
		ASSERT_EQ(try_store(addr, 1), SIGBUS);
	}
	if (o.start.vram_pages) {
		need_vram(do_migrate(0, 48, PFNMAP_TEST_VRAM));
		ASSERT_EQ(touch(addr), SIGBUS);
		ASSERT_EQ(DO_METHOD(PFNMAP_TEST_ITER, PFNMAP_TEST_ITER_OVERRUN), 0);
		need_vram(do_migrate(48, NR - 48, PFNMAP_TEST_VRAM));
		ASSERT_EQ(touch(addr), SIGBUS);
	}
	ASSERT_EQ(count_present(addr, NR), 0);
}

/* An iterator may leave pages out, and is asked for the others. */
TEST_F(fault, hole)
{
	ASSERT_EQ(DO_METHOD(o.kind.method, PFNMAP_TEST_ITER_HOLE, .window = 16), 0);
	ASSERT_EQ(touch(page_at(20)), SIGBUS);
	faulted(20, false);
	drop(20, 1);
	check("hole");
	set_window(16);
	fill(0, NR);
	check("no hole");
}

/* Who is killed maps what the fault needs, and no other page table. */
TEST_F(fault, killed)
{
	const uint64_t nopage = stats().nopage;
	int status;
	pid_t pid;

	ASSERT_EQ(DO_METHOD(o.kind.method, PFNMAP_TEST_KILL), 0);
	/* With the same mm, which stays */
	pid = vfork();
	if (!pid)
		_exit(FORCE_READ(*o.addr));
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_TRUE(WIFSIGNALED(status));
	ASSERT_EQ(count_present(o.addr, NR), EDGE);
	ASSERT_EQ(stats().nopage, nopage + 1);
	drop(0, NR);
}

/* A page table cannot be allocated: only the faulting page's is needed. */
TEST_F(fault, no_memory)
{
	static const unsigned int methods[][3] = {
		{ PFNMAP_TEST_LOOP, PFNMAP_TEST_BATCH, PFNMAP_TEST_ITER },
		{ PFNMAP_TEST_PAGES, PFNMAP_TEST_MIXED_BATCH, PFNMAP_TEST_MIXED_ITER },
	};
	const int fail_nth = open("/proc/thread-self/fail-nth", O_RDWR), fd = o.fd;
	const unsigned long part = MIN(o.start.ptrs_per_pte, 512), nr = part + 2;
	char *addr = o.area + span_size() - psize();
	unsigned int missing, nth;

	if (fail_nth < 0)
		SKIP_TEST("no fail-nth; is CONFIG_FAULT_INJECTION set?");
	change_fail_settings();
	new_object(O_RDWR, nr, PFNMAP_TEST_RAM, o.kind.flags);
	/* No neighbour keeps a page table from being freed. */
	ASSERT_EQ(munmap(o.area, 8 * span_size()), 0);
	for (unsigned int i = 0; i < 3; i++) {
		char buf[16] = "0";

		ASSERT_EQ(DO_METHOD(methods[o.mixed][i]), 0);
		/* Until the failure is not counted down to. */
		for (missing = 0, nth = 1; !strtoul(buf, NULL, 10); nth++) {
			ASSERT_TRUE(map_at(addr, nr, RW, MAP_SHARED));
			ASSERT_EQ(ioctl(o.fd, PFNMAP_TEST_RESET_STATS), 0);
			snprintf(buf, sizeof(buf), "%u", nth);
			ASSERT_GT(pwrite(fail_nth, buf, strlen(buf), 0), 0);
			FORCE_READ(addr[psize()]);
			ASSERT_GT(pread(fail_nth, buf, sizeof(buf) - 1, 0), 0);
			ASSERT_EQ(pwrite(fail_nth, "0", 1, 0), 1);
			if (i) {	/* a range */
				ASSERT_EQ(stats().faults, 1);
				ASSERT_EQ(stats().nopage, 1);
				ASSERT_EQ(count_present(addr + psize(), part), part);
			}
			ASSERT_EQ(stats().sigbus, 0);
			missing += count_present(addr, nr) < nr;
			for (unsigned long page = 0; page < nr; page++)
				ASSERT_EQ(load(addr + page * psize() + 8), page);
			ASSERT_EQ(munmap(addr, nr * psize()), 0);
		}
		ASSERT_GE(nth, 4);
		ASSERT_GE(missing, 1);
	}
	close(o.fd);
	o.fd = fd;
}

/*
 * A debugger reads what has no access, so that the handler maps it without: a
 * PTE that L1TF lets the hardware follow.  What mprotect() does not give to who is
 * unprivileged, no insertion may.
 */
TEST(l1tf)
{
	static const unsigned int methods[] = {
		PFNMAP_TEST_SINGLE, PFNMAP_TEST_BATCH, PFNMAP_TEST_ITER,
		PFNMAP_TEST_MIXED, PFNMAP_TEST_MIXED_BATCH, PFNMAP_TEST_MIXED_ITER,
	};
	const int mem = open("/proc/self/mem", O_RDONLY);
	char *addr, word;
	int ret;

	ASSERT_GE(mem, 0);
	setup_observer(_metadata);
	new_object(O_RDWR, 4, PFNMAP_TEST_VRAM, MIXEDMAP | NO_IO);
	addr = mmap(NULL, 4 * psize(), PROT_READ, MAP_SHARED, o.fd, 0);
	ASSERT_TRUE(addr != MAP_FAILED);
	ASSERT_EQ(touch(addr), 0);
	ASSERT_EQ(seteuid(65534), 0);
	ret = mprotect(addr, 4 * psize(), PROT_NONE);
	ASSERT_EQ(seteuid(0), 0);
	if (!ret)
		SKIP(return, "not an x86 CPU with L1TF and vram in the upper half");

	for (unsigned int i = 0; i < 2 * ARRAY_SIZE(methods); i++) {
		const bool privileged = i % 2;

		ASSERT_EQ(DO_METHOD(methods[i / 2], .window = 4), 0);
		ASSERT_TRUE(map_at(addr, 4, PROT_NONE, MAP_SHARED));
		ASSERT_EQ(seteuid(privileged ? 0 : 65534), 0);
		pread(mem, &word, 1, (uintptr_t)addr);
		ASSERT_EQ(seteuid(0), 0);
		/* With access or without */
		ASSERT_EQ(!!inspect(addr).flags, privileged) TH_LOG("method %u", methods[i / 2]);
	}
}

/* What the main thread does while others use the mapping */
static atomic_bool stop;
static char *at[2];

/* Page tables go as well if nothing else is in there. */
static void unmap_all(unsigned int i, unsigned long first, unsigned long nr)
{
	ASSERT_EQ(munmap(o.addr, SIZE), 0);
	sched_yield();
	map();
}

static void move_away(unsigned int i, unsigned long first, unsigned long nr)
{
	for (int j = 0; j < 2; j++) {
		ASSERT_TRUE(move(at[j], NR, NR, 0, at[!j]));
		reserve(at[j], NR);
	}
}

static void change_protection(unsigned int i, unsigned long first, unsigned long nr)
{
	static const int prots[] = { PROT_READ, RW, PROT_NONE };

	ASSERT_EQ(mprotect(page_at(first), nr * psize(), prots[i % 3]), 0);
	ASSERT_EQ(mprotect(o.addr, i % 2 * SIZE, RW), 0);
}

static void drop_or_fork(unsigned int i, unsigned long first, unsigned long nr)
{
	int status;
	pid_t pid;

	if (i % 2) {
		ASSERT_EQ(madvise(page_at(first), nr * psize(), MADV_DONTNEED), 0);
		return;
	}
	pid = fork();
	ASSERT_GE(pid, 0);
	for (; nr && !pid; nr--, first++)
		ASSERT_EQ(load(page_at(first) + 8), first);
	if (!pid)
		_exit(0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
}

static const struct {
	struct kind kind;
	unsigned long window;
	void (*change)(unsigned int i, unsigned long first, unsigned long nr);
	int signal;			/* that an access may get */
} races[] = {
	{ KIND(PLAIN, RAM, 0), 1 },
	{ KIND(BATCH, RAM, 0), 32 },
	{ KIND(ITER, RAM, 0), 0 },
	{ KIND(BATCH, RAM, NOTIFY), 32 },
	{ KIND(ITER, RAM, 0), 32, unmap_all, SIGSEGV },
	{ KIND(BATCH, RAM, 0), 0, unmap_all, SIGSEGV },
	{ KIND(ITER, RAM, 0), 0, move_away, SIGSEGV },
	{ KIND(LOOP, RAM, 0), 32, change_protection, SIGSEGV },
	{ KIND(MIXED, RAM, NO_IO), 1, drop_or_fork },
	{ KIND(MIXED_BATCH, RAM, NO_IO | PRIVATE), 32, drop_or_fork },
	{ KIND(MIXED_ITER, RAM, NOTIFY), 0, drop_or_fork },
	{ KIND(PAGES, RAM, 0), 32, drop_or_fork },
	{ KIND(PAGES, RAM, COMPOUND | PRIVATE), 0, drop_or_fork },
};

#define NR_RACERS	4		/* and one more, which migrates */

static struct racer {
	pthread_t thread;
	unsigned int id;		/* has a counter in each page */
	int signal;
	atomic_ulong rounds, errors;
	uint64_t values[NR];		/* of its counter */
} racers[NR_RACERS + 1];

/* The driver poisons what it moves away from: none of it is ever seen. */
static void *racer(void *arg)
{
	struct racer *r = arg;
	unsigned int state = r->id;

	while (!stop) {
		const unsigned long page = rand_r(&state) % NR;
		char *p = at[rand_r(&state) % 2] + page * psize();
		char *words[] = { p, p + 8, p + 128 + r->id * 8 };
		const uint64_t expected[] = { PFNMAP_TEST_MAGIC, page, r->values[page] };
		int sig = 0;

		if (r->id == NR_RACERS) {
			r->errors += do_migrate(page, 1 + rand_r(&state) % (NR - page),
						rand_r(&state) % 2) != 0;
			r->rounds++;
			usleep(100);
			continue;
		}
		for (int i = 0; i < 3 && !sig; i++) {
			sig = touch(words[i]);
			/* Values may be lost with private copies. */
			r->errors += !sig && access_val != expected[i] &&
				     !(o.private && i == 2 && !access_val);
		}
		if (!sig)
			sig = try_store(words[2], r->values[page] + 1);
		r->values[page] += !sig;
		r->rounds += !sig;
		r->errors += sig && sig != r->signal;
	}
	return NULL;
}

/* Nothing stale is seen, no store is lost; signals come only where allowed. */
static void race(unsigned int row)
{
	const bool may_move = o.start.vram_pages && !(o.kind.flags & COMPOUND) &&
			      o.kind.method != PFNMAP_TEST_PAGES;
	const unsigned int nr = NR_RACERS + may_move, rounds = 100;
	unsigned long slowest = 0, errors = 0;
	unsigned int state = row, i, j;

	stop = false;
	memset(racers, 0, sizeof(racers));
	at[0] = o.addr;
	at[1] = o.addr + (races[row].change == move_away) * (2 * span_size() - 21 * psize());
	set_window(races[row].window);
	for (i = 0; i < nr; i++) {
		racers[i].id = i;
		racers[i].signal = races[row].signal;
		ASSERT_EQ(pthread_create(&racers[i].thread, NULL, racer, &racers[i]), 0);
	}
	if (races[row].change == unmap_all) {
		munmap(o.area, o.addr - o.area);
		munmap(page_at(NR), o.area + 8 * span_size() - page_at(NR));
	}
	/* For that many rounds of each thread, however slow the machine is */
	for (i = 0; !errors && (i < rounds || slowest < rounds); i++) {
		const unsigned long first = rand_r(&state) % NR;

		if (races[row].change)
			races[row].change(i, first, 1 + rand_r(&state) % (NR - first));
		sched_yield();
		slowest = ULONG_MAX;
		for (j = 0; j < nr; j++) {
			slowest = MIN(slowest, racers[j].rounds);
			errors += racers[j].errors;
		}
	}
	stop = true;
	for (i = 0; i < nr; i++)
		pthread_join(racers[i].thread, NULL);
	ASSERT_EQ(mprotect(o.addr, SIZE, RW), 0);
	ASSERT_EQ(errors, 0) TH_LOG("row %u", row);
	for (i = 0; i < NR * NR_RACERS && !o.private; i++)
		ASSERT_EQ(load(page_at(i % NR) + 128 + i / NR * 8), racers[i / NR].values[i % NR]);
	ASSERT_EQ(stats().sigbus + stats().oom, 0);
	/* As many references as there are mappings, and none at the end */
	read_states();
	for (i = 0; i < NR; i++)
		o.pages[i].pte = inspect(page_at(i)).flags;
	check_counts("race");
}

TEST(stale_or_lost)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(races); i++) {
		setup(_metadata, &races[i].kind);
		race(i);
		teardown();
	}
}

TEST_HARNESS_MAIN
