// SPDX-License-Identifier: GPL-2.0
/* A file without holes has none while its pages migrate. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "vm_util.h"

#define PAGES	2048UL
#define ROUNDS	10

struct seeker {
	int fd;
	atomic_bool stop;
	unsigned long calls;
	unsigned long holes;
};

static void *seek(void *arg)
{
	struct seeker *seeker = arg;

	while (!atomic_load(&seeker->stop)) {
		seeker->calls++;
		seeker->holes += lseek(seeker->fd, 0, SEEK_HOLE) !=
				 (off_t)(PAGES * psize());
	}
	return NULL;
}

/* Two files have every other page; the one that goes leaves room for the other. */
static int scattered_file(const char *page)
{
	int fds[2] = {
		memfd_create("stays", MFD_CLOEXEC),
		memfd_create("goes", MFD_CLOEXEC),
	};

	for (unsigned long i = 0; i < PAGES; i++)
		for (int j = 0; j < 2; j++)
			if (pwrite(fds[j], page, psize(), i * psize()) != psize())
				exit(KSFT_FAIL);
	close(fds[1]);
	return fds[0];
}

TEST(compaction)
{
	int compact = open("/proc/sys/vm/compact_memory", O_WRONLY);
	struct seeker seeker = {};
	pthread_t thread;
	char *page;

	if (compact < 0)
		SKIP(return, "compact_memory: %s", strerror(errno));
	page = malloc(psize());
	ASSERT_NE(page, NULL);
	memset(page, 1, psize());
	for (int i = 0; i < ROUNDS; i++) {
		seeker.fd = scattered_file(page);
		atomic_store(&seeker.stop, false);
		ASSERT_EQ(pthread_create(&thread, NULL, seek, &seeker), 0);
		ASSERT_EQ(pwrite(compact, "1", 1, 0), 1);
		atomic_store(&seeker.stop, true);
		pthread_join(thread, NULL);
		close(seeker.fd);
	}
	TH_LOG("%lu of %lu calls found a hole", seeker.holes, seeker.calls);
	ASSERT_EQ(seeker.holes, 0);
	free(page);
	close(compact);
}

TEST_HARNESS_MAIN
