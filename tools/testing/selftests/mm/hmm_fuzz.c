// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random ioctls of lib/test_hmm.c, on anonymous memory and on pages of files
 * that come and go meanwhile.
 */
#include <string.h>

#include "fuzz_util.h"
#include "lib/test_hmm_uapi.h"

#define NR_FILES	3
#define FILE_PAGES	1024
#define BUFFER_PAGES	1024
/* Flags must not be 0: they are where a number of pages is. */
#define NO_FLAGS	(1UL << 31)

/* Two of the same device: they mirror the same memory. */
static const char * const devices[] = {
	"/dev/hmm_dmirror0", "/dev/hmm_dmirror0", "/dev/hmm_dmirror1",
	/* There if test_hmm has been told where to find such memory */
	"/dev/hmm_dmirror2",
};

static int devs[ARRAY_SIZE(devices)];
/* tmpfs, the working directory's file system, anonymous memory */
static int files[NR_FILES] = { -1, -1, -1 };
static char *buffer;

static int command(int dev, unsigned long request, char *addr, char *ptr,
		   uint64_t npages)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)addr,
		.ptr = (uintptr_t)ptr,
		.npages = npages,
	};

	return ioctl(dev, request, &cmd);
}

static void do_command(int dev)
{
	static const unsigned long requests[] = {
		HMM_DMIRROR_READ, HMM_DMIRROR_WRITE, HMM_DMIRROR_MIGRATE_TO_DEV,
		HMM_DMIRROR_MIGRATE_TO_DEV, HMM_DMIRROR_MIGRATE_TO_DEV,
		HMM_DMIRROR_MIGRATE_TO_SYS, HMM_DMIRROR_SNAPSHOT,
		HMM_DMIRROR_EXCLUSIVE, HMM_DMIRROR_CHECK_EXCLUSIVE,
		HMM_DMIRROR_READ_UNLOCKED,
	};
	struct hmm_dmirror_stats stats;
	uint64_t npages = number_of_pages(64);
	char *addr = page();

	switch (below(64)) {
	case 0:
		/* Makes and takes apart 256 MiB of device memory */
		if (one_in(8))
			command(dev, HMM_DMIRROR_RELEASE, addr, NULL, 1);
		return;
	case 1:
		command(dev, HMM_DMIRROR_EVICT, addr, NULL, 1);
		return;
	case 2:
		ioctl(dev, HMM_DMIRROR_STATS, &stats);
		return;
	case 3 ... 8:
		command(dev, HMM_DMIRROR_FLAGS, addr, NULL,
			one_in(4) ? HMM_DMIRROR_FLAG_FAIL_COPY :
			HMM_DMIRROR_FLAG_FAIL_ALLOC);
		return;
	case 9:
		command(dev, pick(requests), (char *)(uintptr_t)number(1ULL << 47),
			one_in(2) ? page() : (char *)(uintptr_t)rnd(), npages);
		return;
	case 10:
		ioctl(dev, pick(requests), page());
		return;
	case 11 ... 20:
		/* A whole PMD, perhaps from its start on */
		npages = 512;
		if (!one_in(4))
			addr = pmd();
		break;
	}
	/* Sometimes, the data come from or go to such memory. */
	command(dev, pick(requests), addr, one_in(8) ? page() : buffer, npages);
}

static void do_map(void)
{
	int fd = pick(files), flags = MAP_FIXED;
	char *addr = page();
	size_t len = length(addr, 256);

	if (one_in(4)) {
		addr = pmd();
		len = length(addr, 1024);
	}
	flags |= one_in(2) ? MAP_SHARED : MAP_PRIVATE;
	if (fd < 0)
		flags |= MAP_ANON;
	mmap(addr, len, one_in(4) ? PROT_READ : PROT_READ | PROT_WRITE, flags,
	     fd, one_in(2) ? 0 : below(FILE_PAGES) * psize());
}

static void do_file(int fd)
{
	uint64_t pos = below(FILE_PAGES) * psize();

	switch (below(8)) {
	case 0:
		if (ftruncate(fd, pos) || ftruncate(fd, FILE_PAGES * psize()))
			return;
		break;
	case 1:
		fsync(fd);
		break;
	case 2 ... 4:
		if (pread(fd, buffer, 16 * psize(), pos) < 0)
			return;
		break;
	default:
		if (pwrite(fd, buffer, 16 * psize(), pos) < 0)
			return;
		break;
	}
}

static void op(void)
{
	unsigned int i = below(ARRAY_SIZE(devs));

	switch (below(32)) {
	case 0:
		if (one_in(8)) {
			close(devs[i]);
			devs[i] = open(devices[i], O_RDWR);
		}
		break;
	case 1:
	case 2:
		do_map();
		break;
	case 3 ... 6:
		fuzz_mm(256);
		break;
	case 7:
		do_file(files[below(2)]);
		break;
	case 8:
		if (one_in(4))
			fuzz_fork(op, 30);
		break;
	case 9 ... 18:
		do_command(devs[i]);
		break;
	default:
		fuzz_access();
		break;
	}
}

/* The parent's files mirror the parent, who does nothing itself. */
static void op_reopen(void)
{
	static bool opened;
	unsigned int i;

	for (i = 1; !opened && i < ARRAY_SIZE(devs); i++) {
		close(devs[i]);
		devs[i] = open(devices[i], O_RDWR);
	}
	opened = true;
	op();
}

static bool works(void)
{
	char *addr = mmap(NULL, psize(), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANON, -1, 0);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(devs) && devs[i] >= 0; i++) {
		strcpy(addr, devices[i]);
		if (command(devs[i], HMM_DMIRROR_FLAGS, arena, NULL, NO_FLAGS) ||
		    command(devs[i], HMM_DMIRROR_EVICT, arena, NULL, 1) ||
		    command(devs[i], HMM_DMIRROR_MIGRATE_TO_DEV, addr, buffer, 1) ||
		    strcmp(buffer, devices[i]) || strcmp(addr, devices[i]))
			return false;
		close(devs[i]);
	}
	return true;
}

int main(int argc, char **argv)
{
	char name[] = "hmm_fuzz.XXXXXX";
	unsigned int i;
	bool ok;

	ksft_print_header();
	ksft_set_plan(1);
	if (geteuid())
		ksft_exit_skip("not root\n");
	if (access(devices[0], F_OK) && system("modprobe test_hmm 2>/dev/null"))
		ksft_exit_skip("no %s, no module test_hmm\n", devices[0]);
	fuzz_init(argc, argv, 4096);

	buffer = mmap(NULL, BUFFER_PAGES * psize(), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANON, -1, 0);
	files[0] = memfd_create("hmm_fuzz", 0);
	files[1] = mkstemp(name);
	unlink(name);
	if (buffer == MAP_FAILED || files[0] < 0 || files[1] < 0 ||
	    ftruncate(files[0], FILE_PAGES * psize()) ||
	    ftruncate(files[1], FILE_PAGES * psize()))
		ksft_exit_fail_perror("files");
	for (i = 0; i < ARRAY_SIZE(devs); i++) {
		devs[i] = open(devices[i], O_RDWR);
		if (devs[i] < 0 && i < 3)
			ksft_exit_fail_perror(devices[i]);
	}
	/* For those who use the parent's memory by its files */
	for (i = 0; i < 8; i++)
		do_map();
	ok = fuzz_run(op_reopen);
	ksft_test_result(works() && ok, "test_hmm\n");
	ksft_finished();
}
