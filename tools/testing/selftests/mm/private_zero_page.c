// SPDX-License-Identifier: GPL-2.0
/*
 * In a private mapping of a file, KSM and userfaultfd can map the zero page in
 * place of a page of the process's own.  A hole that is punched into the file
 * takes the file's pages from the mapping, and must leave such a page alone.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "kselftest_harness.h"
#include "vm_util.h"

#define NR	4

FIXTURE(hole)
{
	size_t size;
	char *map;
	int fd, uffd;
};

FIXTURE_VARIANT(hole)
{
	bool ksm;
};

FIXTURE_VARIANT_ADD(hole, ksm) { .ksm = true };
FIXTURE_VARIANT_ADD(hole, userfaultfd) { .ksm = false };

FIXTURE_SETUP(hole)
{
	self->uffd = -1;
	self->size = NR * psize();
	self->fd = memfd_create("private_zero_page", 0);
	ASSERT_GE(self->fd, 0);
	ASSERT_EQ(0, ftruncate(self->fd, self->size));
	self->map = mmap(NULL, self->size, PROT_READ | PROT_WRITE, MAP_PRIVATE,
			 self->fd, 0);
	ASSERT_NE(MAP_FAILED, self->map);
}

FIXTURE_TEARDOWN(hole)
{
	if (variant->ksm)
		ksm_stop();
	if (self->uffd >= 0)
		close(self->uffd);
	munmap(self->map, self->size);
	close(self->fd);
}

TEST_F(hole, kept)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_zeropage zero = {
		.range = { .start = (uintptr_t)self->map, .len = self->size },
	};
	char data[NR];
	int i;

	if (variant->ksm) {
		if (ksm_stop() || ksm_use_zero_pages())
			SKIP(return, "KSM cannot be controlled");
		memset(self->map, 0, self->size);
		ASSERT_EQ(0, madvise(self->map, self->size, MADV_MERGEABLE));
		ASSERT_EQ(0, ksm_start());
		ASSERT_EQ(NR, ksm_get_self_zero_pages());
	} else {
		self->uffd = syscall(__NR_userfaultfd, UFFD_USER_MODE_ONLY);
		if (self->uffd < 0)
			SKIP(return, "userfaultfd not available");
		ASSERT_EQ(0, ioctl(self->uffd, UFFDIO_API, &api));
		ASSERT_EQ(0, uffd_register(self->uffd, self->map, self->size,
					   true, false, false));
		ASSERT_EQ(0, ioctl(self->uffd, UFFDIO_ZEROPAGE, &zero));
		ASSERT_EQ(0, uffd_unregister(self->uffd, self->map, self->size));
	}

	ASSERT_EQ(0, fallocate(self->fd,
			       FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       0, self->size));
	memset(data, 0x55, sizeof(data));
	for (i = 0; i < NR; i++) {
		ASSERT_EQ(1, pwrite(self->fd, data, 1, i * psize()));
	}
	for (i = 0; i < NR; i++) {
		ASSERT_EQ(0, FORCE_READ(self->map[i * psize()]));
	}
}

TEST_HARNESS_MAIN
