/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What pfnmap_fuzz and hmm_fuzz share: several processes do random operations,
 * whose arguments make sense more often than not.  They pass if all processes come
 * to their end, and what they used still works: the rest is in the kernel's log.
 *
 *	-s SEED		the seed of a run to do again; races are up to the kernel
 *	-n COUNT	operations of each process
 *	-t SECONDS	stop after that, whatever is left to do
 */
#ifndef FUZZ_UTIL_H
#define FUZZ_UTIL_H

#include <fcntl.h>
#include <setjmp.h>
#include <time.h>
#include <linux/mman.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/param.h>
#include <sys/wait.h>

#include "kselftest.h"
#include "vm_util.h"

#define FUZZ_PROCESSES	4
#define ARENA_PAGES	MIN(4096UL, (64UL << 20) / psize())
#define RW		(PROT_READ | PROT_WRITE)

/* A table of these is what a program defines: the weights add up to 256. */
struct fuzz_op {
	unsigned int weight;
	void (*op)(void);
};

static const struct fuzz_op fuzz_ops[];
static unsigned long fuzz_seed = 1, fuzz_count = 20000, fuzz_seconds = 20;
static char *arena;	/* where all mappings are made, so that no operation hits anything else */
static pid_t fuzz_child;
static sigjmp_buf fuzz_env;

/* random() has 31 bits. */
static inline uint64_t rnd(void)
{
	return (uint64_t)random() << 62 ^ (uint64_t)random() << 31 ^ random();
}

static inline uint64_t below(uint64_t n)
{
	return rnd() % n;
}

#define one_in(n)	(!below(n))
#define pick(array)	((array)[below(ARRAY_SIZE(array))])

/* Most are below @n. */
static inline uint64_t number(uint64_t n)
{
	const uint64_t odd[] = { n, n + 1, -1ULL - below(2), 1ULL << below(64), rnd() };

	return one_in(12) ? pick(odd) : below(n);
}

/* Pages that are to be allocated: few, or more than there can be */
static inline uint64_t number_of_pages(void)
{
	uint64_t nr = number(64);

	return nr > (16 << 20) / psize() ? nr | 1ULL << 40 : nr;
}

static inline char *page(void)
{
	return arena + below(ARENA_PAGES) * psize();
}

#define pmd()	((char *)((uintptr_t)page() & -(512UL * psize())))

/* A length from @addr on that does not leave the arena, in bytes */
static inline size_t length(const char *addr, unsigned long max)
{
	unsigned long left = ARENA_PAGES - (addr - arena) / psize();

	return (1 + below(left < max ? left : max)) * psize();
}

static inline void fuzz_signal(int sig)
{
	siglongjmp(fuzz_env, sig);
}

/* A SIGBUS or SIGSEGV is an answer like any other. */
static inline void fuzz_access(void)
{
	volatile uint64_t *addr = (void *)(page() + 8 * below(psize() / 8));

	if (sigsetjmp(fuzz_env, 0))
		return;
	if (one_in(2))
		*addr = 1;
	else
		(void)*addr;
}

static inline void fuzz_mm(void)
{
	static const int prots[] = { RW, RW, PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC };
	/* Not those that take pages of the kernel away */
	static const int advices[] = {
		MADV_DONTNEED, MADV_NORMAL, MADV_RANDOM, MADV_WILLNEED, MADV_FREE, MADV_REMOVE,
		MADV_DONTFORK, MADV_DOFORK, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLD,
		MADV_PAGEOUT, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_COLLAPSE,
	};
	char *addr = page(), *to = page();
	size_t len = length(addr, 256);

	if (one_in(8))
		munmap(addr, len);
	else if (one_in(8))
		/* Or a second mapping of the same */
		mremap(addr, one_in(8) ? 0 : len, length(to, 256),
		       MREMAP_MAYMOVE | MREMAP_FIXED, to);
	else if (one_in(8))
		mremap(addr, len, length(addr, 256), 0);
	else if (one_in(3))
		mprotect(addr, len, pick(prots));
	else
		madvise(addr, len, pick(advices));
}

static inline void fuzz_once(void)
{
	const struct fuzz_op *op = fuzz_ops;
	unsigned int n = below(256);

	for (; n >= op->weight; op++)
		n -= op->weight;
	op->op();
}

/* A child that does some operations too, meanwhile */
static inline void fuzz_fork(void)
{
	if (fuzz_child < 0)	/* This is such a child. */
		return;
	if (fuzz_child)
		waitpid(fuzz_child, NULL, 0);
	fuzz_child = fork();
	if (fuzz_child)
		return;
	fuzz_child = -1;
	srandom(random());
	for (int i = 0; i < 40; i++)
		fuzz_once();
	_exit(0);
}

static inline void fuzz_init(int argc, char **argv, const char *device, const char *modprobe)
{
	/* SA_NODEFER: the signal mask need not be restored */
	const struct sigaction action = { .sa_handler = fuzz_signal, .sa_flags = SA_NODEFER };
	const size_t align = 512 * psize();
	int opt;

	ksft_print_header();
	ksft_set_plan(1);
	if (geteuid() || (access(device, F_OK) && system(modprobe)))
		ksft_exit_skip("not root, or no %s\n", device);
	while ((opt = getopt(argc, argv, "s:n:t:")) != -1)
		*(opt == 's' ? &fuzz_seed : opt == 'n' ? &fuzz_count : &fuzz_seconds) =
			optarg ? strtoul(optarg, NULL, 0) : 1;
	ksft_print_msg("seed %lu\n", fuzz_seed);
	srandom(fuzz_seed);	/* also for what main() does */
	arena = mmap(NULL, ARENA_PAGES * psize() + align, PROT_NONE,
		     MAP_ANON | MAP_PRIVATE | MAP_NORESERVE, -1, 0);
	if (arena == MAP_FAILED || sigaction(SIGBUS, &action, NULL) ||
	    sigaction(SIGSEGV, &action, NULL))
		ksft_exit_fail_perror("setup");
	arena = (char *)(((uintptr_t)arena + align - 1) & ~(align - 1));
}

/* Have all processes come to their end?  Each calls @start first. */
static inline bool fuzz_run(void (*start)(void))
{
	const time_t end = time(NULL) + fuzz_seconds;
	int status, failed = 0;

	for (int i = 0; i < FUZZ_PROCESSES; i++) {
		if (fork())
			continue;
		srandom(fuzz_seed * FUZZ_PROCESSES + i);
		if (start)
			start();
		for (unsigned long n = 0; n < fuzz_count && time(NULL) < end; n++)
			fuzz_once();
		if (fuzz_child > 0)
			waitpid(fuzz_child, NULL, 0);
		_exit(0);
	}
	for (int i = 0; i < FUZZ_PROCESSES; i++)
		failed += wait(&status) < 0 || status;
	return !failed;
}

#endif /* FUZZ_UTIL_H */
