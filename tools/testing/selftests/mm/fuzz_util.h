/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What pfnmap_fuzz and hmm_fuzz share: several processes do random operations,
 * whose arguments make sense more often than not.
 *
 * They pass if all processes come to their end, and what they used still works.
 * Reports are for whoever reads the kernel's log.
 *
 *	-s SEED		the seed of a run to do again; races are up to the kernel
 *	-n COUNT	operations of each process
 *	-t SECONDS	stop after that, whatever is left to do
 */
#ifndef FUZZ_UTIL_H
#define FUZZ_UTIL_H

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <linux/mman.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "kselftest.h"
#include "vm_util.h"

#define FUZZ_PROCESSES	4

static uint64_t fuzz_state;
static unsigned long fuzz_count = 20000, fuzz_seconds = 20;
static unsigned int fuzz_seed;
static uint64_t fuzz_end;

/* All mappings are made in here, so that no operation hits anything else. */
static char *arena;
static unsigned long arena_pages;
static pid_t fuzz_child;
static sigjmp_buf fuzz_env;

/* xorshift64* */
static inline uint64_t rnd(void)
{
	fuzz_state ^= fuzz_state >> 12;
	fuzz_state ^= fuzz_state << 25;
	fuzz_state ^= fuzz_state >> 27;
	return fuzz_state * 0x2545f4914f6cdd1dULL;
}

/* The upper bits are the better ones. */
static inline unsigned long below(uint64_t n)
{
	return (rnd() >> 32) % n;
}

static inline bool one_in(unsigned long n)
{
	return !below(n);
}

#define pick(array)	((array)[below(ARRAY_SIZE(array))])

/* Most are below @n. */
static inline uint64_t number(uint64_t n)
{
	switch (below(64)) {
	case 0:
		return n;
	case 1:
		return n + 1;
	case 2:
		return -1ULL - below(2);
	case 3:
		return 1ULL << below(64);
	case 4:
		return rnd();
	default:
		return below(n);
	}
}

static inline char *page(void)
{
	return arena + below(arena_pages) * psize();
}

/* The same for pages that are to be allocated: few, or more than there can be */
static inline uint64_t number_of_pages(uint64_t n)
{
	uint64_t nr = number(n);

	return nr > 4096 ? nr | 1ULL << 40 : nr;
}

static inline char *pmd(void)
{
	return arena + below(arena_pages / 512) * 512 * psize();
}

/* A length from @addr on that does not leave the arena, in bytes */
static inline size_t length(const char *addr, unsigned long max)
{
	unsigned long left = arena_pages - (addr - arena) / psize();

	return (1 + below(left < max ? left : max)) * psize();
}

static inline uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/* A SIGBUS or SIGSEGV is an answer like any other. */
static inline void fuzz_signal(int sig)
{
	siglongjmp(fuzz_env, sig);
}

static inline void fuzz_access(void)
{
	volatile uint64_t *addr = (void *)(page() + 8 * below(psize() / 8));
	bool write = one_in(2);

	if (sigsetjmp(fuzz_env, 0))
		return;
	if (write)
		*addr = 1;
	else
		(void)*addr;
}

static inline void fuzz_mm(unsigned long max)
{
	static const int prots[] = {
		PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ,
		PROT_NONE, PROT_READ | PROT_EXEC,
	};
	/* Not those that take pages of the kernel away */
	static const int advices[] = {
		MADV_DONTNEED, MADV_DONTNEED, MADV_NORMAL, MADV_RANDOM,
		MADV_WILLNEED, MADV_FREE, MADV_REMOVE, MADV_DONTFORK,
		MADV_DOFORK, MADV_HUGEPAGE, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
		MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ,
		MADV_POPULATE_WRITE, MADV_COLLAPSE,
	};
	char *addr = page(), *to = page();
	size_t len = length(addr, max);

	switch (below(8)) {
	case 0:
		munmap(addr, len);
		break;
	case 1:
	case 2:
		mprotect(addr, len, pick(prots));
		break;
	case 3:
		/* Or a second mapping of the same */
		mremap(addr, one_in(8) ? 0 : len, length(to, max),
		       MREMAP_MAYMOVE | MREMAP_FIXED, to);
		break;
	case 4:
		mremap(addr, len, length(addr, max), 0);
		break;
	default:
		madvise(addr, len, pick(advices));
		break;
	}
}

/* A child that does @nr operations too, meanwhile */
static inline void fuzz_fork(void (*op)(void), unsigned long nr)
{
	if (fuzz_child < 0)
		return;
	if (fuzz_child)
		waitpid(fuzz_child, NULL, 0);
	fuzz_state += 2;
	fuzz_child = fork();
	if (fuzz_child)
		return;
	fuzz_child = -1;
	rnd();
	fuzz_state ^= rnd() << 1;
	while (nr--)
		op();
	_exit(0);
}

static inline void fuzz_process(unsigned int i, void (*op)(void))
{
	unsigned long n;

	fuzz_state = (fuzz_seed + 1ULL) * 0x9e3779b97f4a7c15ULL + i;
	for (n = 0; n < fuzz_count && now_ns() < fuzz_end; n++)
		op();
	if (fuzz_child > 0)
		waitpid(fuzz_child, NULL, 0);
	_exit(0);
}

static inline void fuzz_init(int argc, char **argv, unsigned long pages)
{
	/* SA_NODEFER: the signal mask need not be restored */
	const struct sigaction action = {
		.sa_handler = fuzz_signal,
		.sa_flags = SA_NODEFER,
	};
	const size_t align = 512 * psize();
	int opt;

	fuzz_seed = 1;
	while ((opt = getopt(argc, argv, "s:n:t:")) != -1) {
		if (opt == 's')
			fuzz_seed = strtoul(optarg, NULL, 0);
		else if (opt == 'n')
			fuzz_count = strtoul(optarg, NULL, 0);
		else if (opt == 't')
			fuzz_seconds = strtoul(optarg, NULL, 0);
		else
			ksft_exit_fail_msg("usage: [-s SEED] [-n COUNT] [-t SECONDS]\n");
	}
	ksft_print_msg("seed %u\n", fuzz_seed);
	/* Also for what main() does */
	fuzz_state = fuzz_seed + 1ULL;
	fuzz_end = now_ns() + fuzz_seconds * 1000000000ULL;

	arena_pages = pages;
	arena = mmap(NULL, pages * psize() + align, PROT_NONE,
		     MAP_ANON | MAP_PRIVATE | MAP_NORESERVE, -1, 0);
	if (arena == MAP_FAILED || sigaction(SIGBUS, &action, NULL) ||
	    sigaction(SIGSEGV, &action, NULL))
		ksft_exit_fail_perror("setup");
	arena = (char *)(((uintptr_t)arena + align - 1) & ~(align - 1));
}

/* Whether all of the processes have come to their end */
static inline bool fuzz_run(void (*op)(void))
{
	pid_t pids[FUZZ_PROCESSES];
	bool ok = true;
	int i, status = 0;

	for (i = 0; i < FUZZ_PROCESSES; i++) {
		pids[i] = fork();
		if (!pids[i])
			fuzz_process(i, op);
	}
	for (i = 0; i < FUZZ_PROCESSES; i++) {
		if (pids[i] < 0 || waitpid(pids[i], &status, 0) != pids[i] ||
		    status) {
			ksft_print_msg("process %d: status %#x\n", i, status);
			ok = false;
		}
	}
	return ok;
}

#endif /* FUZZ_UTIL_H */
