/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the tests of mm/pfnmap_test_*.c share.  To be included after
 * kselftest_harness.h.
 */
#ifndef PFNMAP_UTIL_H
#define PFNMAP_UTIL_H

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/param.h>

#include "mm/pfnmap_test.h"
#include "vm_util.h"

#define DEVICE		"/dev/pfnmap_test"

static inline uint64_t load(const char *addr)
{
	return FORCE_READ(*(const uint64_t *)addr);
}

static inline void store(char *addr, uint64_t val)
{
	*(volatile uint64_t *)addr = val;
}

/*
 * Accesses that may be answered by a signal.  Any other access that gets a
 * SIGBUS or SIGSEGV terminates the test.
 */
static __thread sigjmp_buf access_env;
/* Not in a register, which siglongjmp() may restore */
static __thread uint64_t access_val;
static __thread volatile sig_atomic_t access_expected;

static inline void signal_handler(int sig)
{
	if (access_expected)
		siglongjmp(access_env, sig);
	signal(sig, SIG_DFL);
}

static inline int install_handler(void)
{
	/* SA_NODEFER: the signal mask need not be restored */
	const struct sigaction action = { .sa_handler = signal_handler, .sa_flags = SA_NODEFER };

	return sigaction(SIGBUS, &action, NULL) ?: sigaction(SIGSEGV, &action, NULL);
}

/* Return the signal that the access gets, or 0; what is read is access_val. */
static inline int try_access(char *addr, bool write)
{
	int sig = sigsetjmp(access_env, 0);

	if (!sig) {
		access_expected = 1;
		if (write)
			store(addr, access_val);
		else
			access_val = load(addr);
	}
	access_expected = 0;
	return sig;
}

static inline int touch(const char *addr)
{
	return try_access((char *)addr, false);
}

static inline int try_store(char *addr, uint64_t val)
{
	access_val = val;
	return try_access(addr, true);
}

/*
 * The sum of a field of a file in /proc/self, in kB, or -1.  Of smaps, the VMAs
 * that start in the range count.
 */
static inline long proc_kb(const char *path, const char *field, unsigned long first,
			   unsigned long end)
{
	FILE *file = fopen(path, "r");
	unsigned long start, stop;
	bool ours = !end;
	char line[1024];
	long sum = -1;

	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &start, &stop) == 2)
			ours = start >= first && start < end;
		else if (ours && !strncmp(line, field, strlen(field)))
			sum = MAX(sum, 0) + strtol(line + strlen(field), NULL, 10);
	}
	if (file)
		fclose(file);
	return sum;
}

static inline long status_kb(const char *field)
{
	return proc_kb("/proc/self/status", field, 0, 0);
}

static inline long smaps_sum(const char *addr, unsigned long nr, const char *field)
{
	return proc_kb("/proc/self/smaps", field, (uintptr_t)addr, (uintptr_t)addr + nr * psize());
}

#endif /* PFNMAP_UTIL_H */
