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
#include <time.h>
#include <sys/ioctl.h>

#include "mm/pfnmap_test.h"
#include "vm_util.h"

#define DEVICE		"/dev/pfnmap_test"
#define FAIL_PAGE_ALLOC	"/sys/kernel/debug/fail_page_alloc/"

/* From a helper of a test as well: what the test has goes with its process. */
#define SKIP_TEST(...)	SKIP(_exit(KSFT_SKIP), __VA_ARGS__)

/* Without the driver, there is nothing to test. */
static inline void need_device(void)
{
	const bool root = !geteuid();

	if (root && access(DEVICE, F_OK) &&
	    system("modprobe pfnmap_test 2>/dev/null"))
		ksft_print_msg("modprobe pfnmap_test failed\n");
	if (root && !access(DEVICE, F_OK))
		return;
	ksft_print_header();
	ksft_exit_skip("%s\n", root ?
		       "no " DEVICE "; is CONFIG_PFNMAP_TEST set?" : "not root");
}

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
	const struct sigaction action = {
		.sa_handler = signal_handler,
		.sa_flags = SA_NODEFER,
	};

	return sigaction(SIGBUS, &action, NULL) ?:
	       sigaction(SIGSEGV, &action, NULL);
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

static inline uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static inline int do_create(int fd, uint64_t nr, unsigned int place,
			    unsigned int flags)
{
	struct pfnmap_test_create arg = { nr, place, flags };

	return ioctl(fd, PFNMAP_TEST_CREATE, &arg);
}

static inline int do_migrate(int fd, uint64_t first, uint64_t nr,
			     unsigned int place)
{
	struct pfnmap_test_migrate arg = { first, nr, place };

	return ioctl(fd, PFNMAP_TEST_MIGRATE, &arg);
}

static inline struct pfnmap_test_stats
get_stats(struct __test_metadata *_metadata, int fd)
{
	struct pfnmap_test_stats stats;

	ASSERT_EQ(ioctl(fd, PFNMAP_TEST_GET_STATS, &stats), 0);
	return stats;
}

/* Either from vram or to there: is there any? */
static inline void migrate(struct __test_metadata *_metadata, int fd,
			   uint64_t first, uint64_t nr, unsigned int place)
{
	int ret = do_migrate(fd, first, nr, place);

	if (ret && errno == ENODEV)
		SKIP_TEST("the driver has no vram");
	ASSERT_EQ(ret, 0);
}

/* Pages that one page table maps: 512 on most architectures */
static inline unsigned long table_pages(void)
{
	static struct pfnmap_test_stats stats;
	int fd;

	if (!stats.ptrs_per_pte) {
		fd = open(DEVICE, O_RDWR);
		ioctl(fd, PFNMAP_TEST_GET_STATS, &stats);
		close(fd);
	}
	return stats.ptrs_per_pte;
}

/* What mappings are laid out by: one page table, or several if they are small. */
static inline unsigned long span_pages(void)
{
	return table_pages() > 512 ? table_pages() : 512;
}

static inline size_t span_size(void)
{
	return span_pages() * psize();
}

static inline bool header_ok(const char *page, uint64_t index,
			     uint64_t generation)
{
	const struct pfnmap_test_page *header = (const void *)page;

	return FORCE_READ(header->magic) == PFNMAP_TEST_MAGIC &&
	       FORCE_READ(header->index) == index &&
	       FORCE_READ(header->generation) == generation;
}

/*
 * The sum of a field of a file in /proc/self, in kB, or -1.  Of smaps, the VMAs
 * that start in the range count.
 */
static inline long proc_kb(const char *path, const char *field,
			   unsigned long first, unsigned long end)
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
			sum = (sum < 0 ? 0 : sum) +
			      strtol(line + strlen(field), NULL, 10);
	}
	if (file)
		fclose(file);
	return sum;
}

static inline long status_kb(const char *field)
{
	return proc_kb("/proc/self/status", field, 0, 0);
}

static inline long smaps_sum(const char *addr, unsigned long nr,
			     const char *field)
{
	return proc_kb("/proc/self/smaps", field, (uintptr_t)addr,
		       (uintptr_t)addr + nr * psize());
}

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
	{ FAIL_PAGE_ALLOC "task-filter", "N" },
	{ FAIL_PAGE_ALLOC "times", "-1" },
};

static inline void restore_fail_settings(void)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(fail_settings); i++) {
		if (fail_settings[i].saved[0])
			write_file(fail_settings[i].path, fail_settings[i].saved,
				   strlen(fail_settings[i].saved) + 1);
	}
}

static inline void change_fail_settings(struct __test_metadata *_metadata)
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

#endif /* PFNMAP_UTIL_H */
