// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random ioctls of lib/test_hmm.c, on anonymous memory and on pages of files
 * that come and go meanwhile.
 */
#include <string.h>
#include "fuzz_util.h"
#include "lib/test_hmm_uapi.h"

#define FILE_PAGES	1024
#define BYTES		(16 * psize())

/* Two of one device mirror the same memory.  The last one wants memory that it is told of. */
static const char * const devices[] = {
	"/dev/hmm_dmirror0", "/dev/hmm_dmirror0", "/dev/hmm_dmirror1", "/dev/hmm_dmirror2",
};

static int devs[ARRAY_SIZE(devices)] = { -1, -1, -1, -1 };
/* tmpfs, the working directory's file system, anonymous memory */
static int files[] = { -1, -1, -1 };
static char *buffer;

static int command(int dev, unsigned long request, char *addr, char *ptr, uint64_t npages)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)addr, .ptr = (uintptr_t)ptr, .npages = npages,
	};

	return ioctl(dev, request, &cmd);
}

static void do_command(void)
{
	static const unsigned long requests[] = {
		HMM_DMIRROR_READ, HMM_DMIRROR_WRITE, HMM_DMIRROR_MIGRATE_TO_DEV,
		HMM_DMIRROR_MIGRATE_TO_DEV, HMM_DMIRROR_MIGRATE_TO_DEV,
		HMM_DMIRROR_MIGRATE_TO_SYS, HMM_DMIRROR_SNAPSHOT, HMM_DMIRROR_EXCLUSIVE,
		HMM_DMIRROR_CHECK_EXCLUSIVE, HMM_DMIRROR_READ_UNLOCKED,
	};
	/* RELEASE takes apart 256 MiB of device memory, which is made again later. */
	const unsigned long request = one_in(512) ? HMM_DMIRROR_RELEASE :
				      one_in(64) ? HMM_DMIRROR_EVICT :
				      one_in(10) ? HMM_DMIRROR_FLAGS : pick(requests);
	/* Sometimes, the data come from or go to such memory. */
	char *addr = page(), *ptr = one_in(8) ? page() : buffer;
	uint64_t npages = number_of_pages();
	const int dev = pick(devs);

	if (request == HMM_DMIRROR_FLAGS) {
		npages = one_in(4) ? HMM_DMIRROR_FLAG_FAIL_COPY : HMM_DMIRROR_FLAG_FAIL_ALLOC;
	} else if (one_in(64)) {
		ioctl(dev, one_in(2) ? HMM_DMIRROR_STATS : request, page());
		return;
	} else if (one_in(64)) {
		addr = (char *)(uintptr_t)number(1ULL << 47);
		ptr = one_in(2) ? page() : (char *)(uintptr_t)rnd();
	} else if (one_in(6)) {
		/* A whole PMD, perhaps from its start on */
		addr = one_in(4) ? addr : pmd();
		npages = 512;
	}
	command(dev, request, addr, ptr, npages);
}

static void do_map(void)
{
	char *addr = one_in(4) ? pmd() : page();
	int fd = pick(files);

	mmap(addr, length(addr, one_in(4) ? 1024 : 256), one_in(4) ? PROT_READ : RW,
	     (one_in(2) ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED | (fd < 0 ? MAP_ANON : 0),
	     fd, one_in(2) ? 0 : below(FILE_PAGES) * psize());
}

static void do_file(void)
{
	const uint64_t pos = below(FILE_PAGES) * psize();
	const int fd = files[below(2)];

	if (one_in(8) && (ftruncate(fd, pos) || ftruncate(fd, FILE_PAGES * psize())))
		return;
	if (one_in(8))
		fsync(fd);
	else if (one_in(2) ? pread(fd, buffer, BYTES, pos) : pwrite(fd, buffer, BYTES, pos))
		return;
}

/* The parent's files mirror the parent, who does nothing itself: but for the first. */
static void reopen(void)
{
	for (unsigned int i = 1; i < ARRAY_SIZE(devs); i++) {
		close(devs[i]);
		devs[i] = open(devices[i], O_RDWR);
	}
}

static const struct fuzz_op fuzz_ops[] = {
	{ 1, reopen }, { 2, fuzz_fork }, { 8, do_file }, { 16, do_map }, { 32, fuzz_mm },
	{ 80, do_command }, { 117, fuzz_access },
};

static bool works(void)
{
	char *addr = mmap(NULL, psize(), RW, MAP_PRIVATE | MAP_ANON, -1, 0);

	for (unsigned int i = 0; i < ARRAY_SIZE(devs) && devs[i] >= 0; i++) {
		strcpy(addr, devices[i]);
		/* Flags must not be 0: they are where a number of pages is. */
		if (command(devs[i], HMM_DMIRROR_FLAGS, arena, NULL, 1UL << 31) ||
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
	bool ok;

	fuzz_init(argc, argv, devices[0], "modprobe test_hmm 2>/dev/null");
	buffer = mmap(NULL, FILE_PAGES * psize(), RW, MAP_PRIVATE | MAP_ANON, -1, 0);
	files[0] = memfd_create("hmm_fuzz", 0);
	files[1] = mkstemp(name);
	unlink(name);
	if (ftruncate(files[0], FILE_PAGES * psize()) || ftruncate(files[1], FILE_PAGES * psize()))
		ksft_exit_fail_perror("files");
	devs[0] = open(devices[0], O_RDWR);
	reopen();
	/* For those who use the parent's memory by its files */
	for (int i = 0; i < 8; i++)
		do_map();
	ok = fuzz_run(reopen);
	ksft_test_result(works() && ok, "test_hmm\n");
	ksft_finished();
}
