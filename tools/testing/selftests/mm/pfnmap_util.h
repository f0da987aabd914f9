/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the tests of mm/pfnmap_test.c share.  To be included after
 * kselftest_harness.h.
 */
#ifndef PFNMAP_UTIL_H
#define PFNMAP_UTIL_H

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
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
 * Accesses that may be answered by a signal. Any other access that gets a
 * SIGBUS or SIGSEGV terminates the test.
 */
static __thread sigjmp_buf access_env;
/* Not in a register, which siglongjmp() may restore */
static __thread uint64_t access_val;
static __thread volatile sig_atomic_t access_expected;

static inline void signal_handler(int sig)
{
	if (!access_expected) {
		signal(sig, SIG_DFL);
		return;
	}
	siglongjmp(access_env, sig);
}

static inline int install_handler(void)
{
	/* SA_NODEFER: the signal mask need not be restored */
	const struct sigaction action = {
		.sa_handler = signal_handler,
		.sa_flags = SA_NODEFER,
	};

	if (sigaction(SIGBUS, &action, NULL))
		return -1;
	return sigaction(SIGSEGV, &action, NULL);
}

/* Return the signal that the access gets, or 0. */
static inline int touch(const char *addr)
{
	int sig;

	sig = sigsetjmp(access_env, 0);
	if (!sig) {
		access_expected = 1;
		access_val = load(addr);
	}
	access_expected = 0;
	return sig;
}

static inline int try_load(const char *addr, uint64_t *val)
{
	int sig = touch(addr);

	if (!sig)
		*val = access_val;
	return sig;
}

static inline int try_store(char *addr, uint64_t val)
{
	int sig;

	access_val = val;
	sig = sigsetjmp(access_env, 0);
	if (!sig) {
		access_expected = 1;
		store(addr, access_val);
	}
	access_expected = 0;
	return sig;
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
	struct pfnmap_test_create arg = {
		.nr_pages = nr,
		.place = place,
		.flags = flags,
	};

	return ioctl(fd, PFNMAP_TEST_CREATE, &arg);
}

static inline int do_migrate(int fd, uint64_t first, uint64_t nr,
			     unsigned int place)
{
	struct pfnmap_test_migrate arg = {
		.first = first,
		.nr = nr,
		.place = place,
	};

	return ioctl(fd, PFNMAP_TEST_MIGRATE, &arg);
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

/*
 * Pages that one page table maps: 512 on most architectures. Without the driver,
 * who opens the device complains.
 */
static inline unsigned long table_pages(void)
{
	struct pfnmap_test_stats stats;
	static unsigned long nr;
	int fd;

	if (nr)
		return nr;
	fd = open(DEVICE, O_RDWR);
	if (fd < 0)
		return 0;
	if (!ioctl(fd, PFNMAP_TEST_GET_STATS, &stats))
		nr = stats.ptrs_per_pte;
	close(fd);
	return nr;
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

/*
 * Of a table of more entries (8,192 with pages of 64 KiB), no test fills more: its
 * mapping is laid across the end of the table.
 */
#define PART_PAGES	512UL

/* A window of pages that is not clamped, and is part of two tables at least */
static inline unsigned long wide_window(void)
{
	return 2 * span_pages();
}

static inline bool header_ok(const char *page, uint64_t index,
			     uint64_t generation)
{
	const struct pfnmap_test_page *header = (const void *)page;

	return FORCE_READ(header->magic) == PFNMAP_TEST_MAGIC &&
	       FORCE_READ(header->index) == index &&
	       FORCE_READ(header->generation) == generation;
}

/* The value of a field of /proc/self/status in kB. */
static inline long status_kb(const char *field)
{
	char line[256];
	long val = -1;
	FILE *file;

	file = fopen("/proc/self/status", "r");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (!strncmp(line, field, strlen(field)))
			val = strtol(line + strlen(field), NULL, 10);
	}
	fclose(file);
	return val;
}

/* The sum of a field of smaps over all VMAs that start in the range, in kB */
static inline long smaps_sum(const char *addr, unsigned long nr,
			     const char *field)
{
	const unsigned long first = (uintptr_t)addr;
	unsigned long start, end;
	bool ours = false;
	char line[1024];
	long sum = -1;
	FILE *file;

	file = fopen("/proc/self/smaps", "r");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			ours = start >= first && start < first + nr * psize();
		else if (ours && !strncmp(line, field, strlen(field)))
			sum = (sum < 0 ? 0 : sum) +
			      strtol(line + strlen(field), NULL, 10);
	}
	fclose(file);
	return sum;
}

/* An unlinked file in the working directory, with a page of 0x5a. */
static inline int temp_file(int flags)
{
	char name[] = "pfnmap.XXXXXX";
	void *buf = NULL;
	int fd;

	fd = mkostemp(name, flags);
	if (fd < 0)
		return -errno;
	unlink(name);
	if (posix_memalign(&buf, psize(), psize()))
		goto fail;
	memset(buf, 0x5a, psize());
	if (pwrite(fd, buf, psize(), 0) != psize())
		goto fail;
	free(buf);
	return fd;
fail:
	free(buf);
	close(fd);
	return -EIO;
}

/* Only fail-nth makes allocations fail, those of page tables included. */
static const struct {
	const char *name;
	const char *value;
} fail_settings[] = {
	{ "probability", "0" },
	{ "verbose", "0" },
	{ "min-order", "0" },
	{ "ignore-gfp-wait", "N" },
	{ "ignore-gfp-highmem", "N" },
	{ "task-filter", "N" },
	{ "times", "-1" },
};

static char fail_saved[ARRAY_SIZE(fail_settings)][32];

static inline int fail_setting(const char *name, int flags)
{
	char path[128];

	snprintf(path, sizeof(path), FAIL_PAGE_ALLOC "%s", name);
	return open(path, flags);
}

static inline void restore_fail_settings(void)
{
	unsigned int i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(fail_settings); i++) {
		if (!fail_saved[i][0])
			continue;
		fd = fail_setting(fail_settings[i].name, O_WRONLY);
		if (fd < 0)
			continue;
		if (write(fd, fail_saved[i], strlen(fail_saved[i])) < 0)
			ksft_print_msg("%s not restored\n",
				       fail_settings[i].name);
		close(fd);
	}
}

static inline void change_fail_settings(struct __test_metadata *_metadata)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(fail_settings); i++) {
		const char *value = fail_settings[i].value;
		int fd = fail_setting(fail_settings[i].name, O_RDWR);

		if (fd < 0)
			SKIP_TEST("%s: %s; is CONFIG_FAIL_PAGE_ALLOC set, debugfs mounted?",
				  fail_settings[i].name, strerror(errno));
		ASSERT_GT(read(fd, fail_saved[i], sizeof(fail_saved[i]) - 1), 0);
		ASSERT_EQ(write(fd, value, strlen(value)), strlen(value));
		close(fd);
	}
}

#endif /* PFNMAP_UTIL_H */
