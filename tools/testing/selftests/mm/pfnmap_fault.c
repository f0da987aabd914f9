// SPDX-License-Identifier: GPL-2.0-only
/*
 * Insertion of pfns that goes wrong or meets others: misuse, holes, too little
 * memory, a task that is killed, and races with faults, with changes of the
 * mapping and with migration.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "pfnmap_insert.h"

#define NR	128UL

static const unsigned int methods[] = {
	PFNMAP_TEST_SINGLE, PFNMAP_TEST_LOOP, PFNMAP_TEST_BATCH, PFNMAP_TEST_ITER,
};

/* A driver's bug is refused, in whichever page table, and nothing is mapped. */
TEST(misuse)
{
	static const struct {
		unsigned int misuse, place, flags;
		unsigned int method;	/* the first one of @methods that knows it */
	} rows[] = {
		{ PFNMAP_TEST_BEFORE_VMA, PFNMAP_TEST_RAM, 0, 2 },
		{ PFNMAP_TEST_AFTER_VMA, PFNMAP_TEST_RAM, 0, 2 },
		{ PFNMAP_TEST_NOT_FAULT, PFNMAP_TEST_RAM, 0, 2 },
		{ PFNMAP_TEST_NO_PAGES, PFNMAP_TEST_VRAM, 0, 2 },
		{ PFNMAP_TEST_WRAP, PFNMAP_TEST_VRAM, 0, 2 },
		{ PFNMAP_TEST_UNALIGNED, PFNMAP_TEST_RAM, 0, 2 },
		{ PFNMAP_TEST_BOTH_FLAGS, PFNMAP_TEST_RAM, 0, 0 },
		{ PFNMAP_TEST_NO_FLAGS, PFNMAP_TEST_VRAM, 0, 0 },
		{ PFNMAP_TEST_ITER_OVERRUN, PFNMAP_TEST_RAM, 0, 3 },
		{ PFNMAP_TEST_ITER_OVERRUN, PFNMAP_TEST_VRAM, MIXEDMAP, 3 },
		/* pfns that have a struct page: all, or some of those behind the edge */
		{ PFNMAP_TEST_UNCHECKED, PFNMAP_TEST_RAM, MIXEDMAP, 0 },
		{ PFNMAP_TEST_UNCHECKED, PFNMAP_TEST_VRAM, MIXEDMAP | ALTERNATE, 3 },
	};
	static const unsigned long faults[] = { 5, 0, 31 };

	for (unsigned int i = 0; i < ARRAY_SIZE(rows) * ARRAY_SIZE(methods); i++) {
		const unsigned int row = i / ARRAY_SIZE(methods), method = i % ARRAY_SIZE(methods);
		const struct kind kind = {
			PFNMAP_TEST_SINGLE, 1, rows[row].place, rows[row].flags
		};
		char *addr;

		if (method < rows[row].method || !setup(_metadata, &kind, NR))
			continue;
		if (kind.flags & ALTERNATE)
			migrate(_metadata, o.fd, 0, 48, PFNMAP_TEST_VRAM);
		/* Neighbours with other pages of the object, VMAs of their own */
		addr = o.edge - 16 * psize();
		map(addr - 8 * psize(), 80, 8);
		map(addr + 32 * psize(), 0, 8);
		set_method(methods[method], WIDE, rows[row].misuse);
		map(addr, 32, 32);
		for (unsigned int j = 0; j < ARRAY_SIZE(faults); j++) {
			ASSERT_EQ(touch(addr + faults[j] * psize()), SIGBUS) {
				TH_LOG("row %u, method %u", row, method);
			}
			ASSERT_EQ(try_store(addr + faults[j] * psize(), 1), SIGBUS);
		}
		ASSERT_EQ(stats().sigbus, 2 * ARRAY_SIZE(faults));
		ASSERT_EQ(count_present(addr - 8 * psize(), 48), 0);

		/* The driver gets it right: a mapping made anew works. */
		if (kind.flags & MIXEDMAP)
			migrate(_metadata, o.fd, 0, NR, PFNMAP_TEST_VRAM);
		set_method(methods[method], WIDE, 0);
		map(addr, 32, 32);
		for (unsigned int j = 0; j < 32; j++)
			ASSERT_EQ(load(addr + j * psize() + 8), 32 + j);
		teardown();
	}
}

/* An iterator has no pfn for page 20: all the others are mapped. */
TEST(hole)
{
	static const struct kind kind = KIND(ITER, WIDE, RAM, 0);
	char *addr;

	setup(_metadata, &kind, 64);
	set_method(PFNMAP_TEST_ITER, WIDE, PFNMAP_TEST_ITER_HOLE);
	addr = o.edge - 32 * psize();
	map(addr, 0, 64);
	ASSERT_EQ(touch(addr + 20 * psize()), SIGBUS);
	ASSERT_EQ(count_present(addr, 32), 31);
	ASSERT_EQ(count_present(addr + 20 * psize(), 1), 0);
	set_method(PFNMAP_TEST_ITER, WIDE, 0);
	ASSERT_TRUE(headers_ok(addr, 0, 64, 0));
	ASSERT_EQ(stats().faults, 2);
	teardown();
}

/* A page table cannot be allocated: only the faulting page's is needed. */
TEST(no_memory)
{
	static const struct kind kinds[] = {
		KIND(LOOP, WIDE, RAM, 0), KIND(BATCH, WIDE, RAM, 0), KIND(ITER, WIDE, RAM, 0),
	};
	const unsigned long part = MIN(table_pages(), 512), nr = part + 2;
	const int fail_nth = open("/proc/thread-self/fail-nth", O_RDWR);
	unsigned int missing, nth;

	if (fail_nth < 0)
		SKIP(return, "no fail-nth; is CONFIG_FAULT_INJECTION set?");
	change_fail_settings(_metadata);
	for (unsigned int i = 0; i < ARRAY_SIZE(kinds); i++) {
		char buf[16] = "0", *addr;

		setup(_metadata, &kinds[i], nr);
		addr = o.edge - psize();
		/* No neighbour keeps a page table from being freed. */
		munmap(o.area, AREA_SIZE);
		/* Until the failure is not counted down to. */
		for (missing = 0, nth = 1; !strtoul(buf, NULL, 10); nth++) {
			map(addr, 0, nr);
			snprintf(buf, sizeof(buf), "%u", nth);
			ASSERT_GT(pwrite(fail_nth, buf, strlen(buf), 0), 0);
			FORCE_READ(addr[psize()]);
			ASSERT_GT(pread(fail_nth, buf, sizeof(buf) - 1, 0), 0);
			ASSERT_EQ(pwrite(fail_nth, "0", 1, 0), 1);
			if (i) {
				ASSERT_EQ(stats().faults, 1);
				ASSERT_EQ(stats().nopage, 1);
				ASSERT_EQ(count_present(addr + psize(), part), part);
			}
			ASSERT_EQ(stats().sigbus, 0);
			missing += count_present(addr, nr) < nr;
			ASSERT_TRUE(headers_ok(addr, 0, nr, 0));
			ASSERT_EQ(munmap(addr, nr * psize()), 0);
		}
		ASSERT_GE(nth, 4);
		ASSERT_GE(missing, 1);
		teardown();
	}
	restore_fail_settings();
}

/* Who is killed maps what the fault needs, and no other page table. */
TEST(killed)
{
	static const struct kind kind = KIND(ITER, WIDE, RAM, 0);
	int status;
	char *addr;
	pid_t pid;

	setup(_metadata, &kind, NR);
	addr = o.edge - NR / 2 * psize();
	set_method(PFNMAP_TEST_ITER, WIDE, PFNMAP_TEST_KILL);
	map(addr, 0, NR);
	/* With the same mm, which stays */
	pid = vfork();
	if (!pid)
		_exit(FORCE_READ(*addr));
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_TRUE(WIFSIGNALED(status));
	ASSERT_EQ(count_present(addr, NR), NR / 2);
	ASSERT_EQ(stats().nopage, 1);
	teardown();
}

/* What the main thread does while others use the mapping */
static atomic_bool stop;
static char *at[2];

static void map_again(unsigned int i, unsigned long first, unsigned long nr)
{
	map(at[0] + first * psize(), first, nr);
	if (i % 4 == 0)
		map(at[0], 0, NR);
}

/* Page tables go as well if nothing else is in there. */
static void unmap_all(unsigned int i, unsigned long first, unsigned long nr)
{
	ASSERT_EQ(munmap(at[0], NR * psize()), 0);
	sched_yield();
	map(at[0], 0, NR);
}

static void move(unsigned int i, unsigned long first, unsigned long nr)
{
	for (int j = 0; j < 2; j++) {
		ASSERT_EQ(mremap(at[j], NR * psize(), NR * psize(), MREMAP_MAYMOVE |
				 MREMAP_FIXED, at[!j]), at[!j]);
		unmap(at[j], NR);
	}
}

static void protect(unsigned int i, unsigned long first, unsigned long nr)
{
	static const int prots[] = { PROT_READ, PROT_READ | PROT_WRITE, PROT_NONE };

	ASSERT_EQ(mprotect(at[0] + first * psize(), nr * psize(), prots[i % 3]), 0);
	ASSERT_EQ(mprotect(at[0], i % 2 * NR * psize(), PROT_READ | PROT_WRITE), 0);
}

static const struct {
	struct kind kind;
	void (*change)(unsigned int i, unsigned long first, unsigned long nr);
	int signal;			/* that an access may get */
} races[] = {
	{ KIND(PLAIN, 1, RAM, 0) },
	{ KIND(BATCH, 32, RAM, 0) },
	{ KIND(ITER, WIDE, RAM, 0) },
	{ KIND(BATCH, 32, RAM, PFNMAP_TEST_NOTIFY) },
	{ KIND(REMAP, 1, RAM, 0), map_again },
	{ KIND(BATCH, WIDE, RAM, 0), map_again },
	{ KIND(ITER, 32, RAM, 0), unmap_all, SIGSEGV },
	{ KIND(BATCH, WIDE, RAM, 0), unmap_all, SIGSEGV },
	{ KIND(ITER, WIDE, RAM, 0), move, SIGSEGV },
	{ KIND(LOOP, 32, RAM, 0), protect, SIGSEGV },
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
		char *words[] = { p, p + 8, p + COUNTER + r->id * 8 };
		const uint64_t expected[] = { PFNMAP_TEST_MAGIC, page, r->values[page] };
		int sig = 0;

		if (r->id == NR_RACERS) {
			r->errors += do_migrate(o.fd, page, 1 + rand_r(&state) % (NR - page),
						rand_r(&state) % 2) != 0;
			r->rounds++;
			usleep(100);
			continue;
		}
		for (int i = 0; i < 3 && !sig; i++) {
			sig = touch(words[i]);
			r->errors += !sig && access_val != expected[i];
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
	const unsigned int nr = NR_RACERS + !!o.start.vram_pages, rounds = 100;
	unsigned long slowest = 0, errors = 0;
	unsigned int state = row, i, j;

	stop = false;
	memset(racers, 0, sizeof(racers));
	at[0] = o.edge - NR / 2 * psize();
	at[1] = races[row].change == move ? at[0] + 2 * span_size() - 21 * psize() : at[0];
	map(at[0], 0, NR);
	for (i = 0; i < nr; i++) {
		racers[i].id = i;
		racers[i].signal = races[row].signal;
		ASSERT_EQ(pthread_create(&racers[i].thread, NULL, racer, &racers[i]), 0);
	}
	if (races[row].change == unmap_all) {
		munmap(o.area, at[0] - o.area);
		munmap(at[0] + NR * psize(), o.area + AREA_SIZE - at[0] - NR * psize());
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
	ASSERT_EQ(mprotect(at[0], NR * psize(), PROT_READ | PROT_WRITE), 0);
	ASSERT_EQ(errors, 0) {
		TH_LOG("row %u", row);
	}
	for (i = 0; i < NR; i++) {
		for (j = 0; j < NR_RACERS; j++)
			ASSERT_EQ(load(at[0] + i * psize() + COUNTER + j * 8), racers[j].values[i]);
	}
	ASSERT_EQ(stats().sigbus + stats().oom, 0);
}

TEST(stale_or_lost)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(races); i++) {
		ASSERT_TRUE(setup(_metadata, &races[i].kind, NR));
		race(i);
		teardown();
	}
}

/* A migration without room changes nothing; objects do not meet. */
TEST(objects)
{
	static const struct kind kind = KIND(BATCH, 64, RAM, 0);
	int other;

	if (!setup(_metadata, &kind, 64) || !o.start.vram_pages)
		SKIP(return, "the driver has no vram");
	other = open(DEVICE, O_RDWR);
	ASSERT_EQ(do_create(other, o.start.vram_free - 31, PFNMAP_TEST_VRAM, 0), 0);
	map(o.area, 0, 64);
	ASSERT_TRUE(headers_ok(o.area, 0, 64, 0));
	ASSERT_EQ(do_migrate(o.fd, 0, 32, PFNMAP_TEST_VRAM), -1);
	ASSERT_EQ(errno, ENOSPC);
	ASSERT_EQ(do_migrate(other, 0, 64, PFNMAP_TEST_RAM), 0);
	ASSERT_EQ(count_present(o.area, 64), 64);
	close(other);
	ASSERT_EQ(do_migrate(o.fd, 20, 30, PFNMAP_TEST_VRAM), 0);
	ASSERT_EQ(count_present(o.area, 64), 34);
	ASSERT_EQ(count_present(o.area + 20 * psize(), 30), 0);

	/* No mapping goes beyond the object, and one keeps it when it is closed. */
	for (int i = 0; i < 3; i++)
		ASSERT_EQ(mmap(NULL, 33 * (i + 1) * psize(), PROT_READ, MAP_SHARED, o.fd,
			       (64 - 32 * i) * psize()), MAP_FAILED);
	close(o.fd);
	ASSERT_TRUE(headers_ok(o.area, 0, 20, 0));
	ASSERT_TRUE(headers_ok(o.area + 20 * psize(), 20, 30, 1));
	teardown();
}

int main(int argc, char **argv)
{
	need_device();
	return test_harness_run(argc, argv);
}
