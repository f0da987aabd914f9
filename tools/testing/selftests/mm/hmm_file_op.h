/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tables of operations, each for several file systems. The file's pages are on
 * the device when an operation begins. Afterwards, the file has to be what the
 * operation has made of its model in memory.
 */
#ifndef HMM_FILE_OP_H
#define HMM_FILE_OP_H

#include "kselftest_harness.h"
#include "hmm_file_util.h"

enum from {
	SYSTEM,		/* not on the device yet, nor mapped */
	CLEAN,		/* on the disk as well, mapped for reading */
	DIRTY,		/* mapped for reading, but the disk does not have it */
	WRITTEN,	/* mapped for writing, and the device has written version 2 */
	PRIVATE,	/* clean, in a private mapping for writing */
};

/* What is compared with the model */
#define NONE	0
#define MAPPED	1	/* the mapping */
#define READ	2	/* what read() gives */
#define DISK	4	/* what read() gives after a remount, if there is a disk */
#define ALL	(MAPPED | READ | DISK)
#define ANY	-1	/* number of recalls */

static char *model;

static inline bool same(const char *p)
{
	return !memcmp(p, model, SIZE);
}

/* The device writes all pages. */
static inline bool device_fills(char *p, unsigned int version)
{
	fill(model, 0, PAGES, version);
	return device_writes(p, 0, PAGES, version);
}

static inline char *begin_op(struct __test_metadata *_metadata, enum from from)
{
	const int prot = from > DIRTY ? PROT_READ | PROT_WRITE : PROT_READ;
	char *p;

	model = malloc(SIZE);
	fill(model, 0, PAGES, 1);
	ASSERT_TRUE(write_pages(0, PAGES, 1));
	if (from != WRITTEN && from != DIRTY)
		ASSERT_EQ(0, fsync(fd));
	if (from == SYSTEM)
		return NULL;
	p = map(0, PAGES, prot, from == PRIVATE ? MAP_PRIVATE : MAP_SHARED);
	ASSERT_NE(NULL, p);
	ASSERT_TRUE(migrate(p, PAGES, from == WRITTEN));
	ASSERT_TRUE(same(mirror));
	if (from == WRITTEN)
		ASSERT_TRUE(device_fills(p, 2));
	return p;
}

static inline void end_op(struct __test_metadata *_metadata, char *p, long number,
			  int compare)
{
	if (number != ANY)
		ASSERT_EQ(number, recalls());
	if (compare & MAPPED)
		ASSERT_TRUE(same(p));
	if (compare & READ) {
		ASSERT_EQ(SIZE, pread(fd, buf, SIZE, 0));
		ASSERT_TRUE(same(buf));
	}
	if (compare & DISK) {
		munmap(p, SIZE);
		close(fd);
		ASSERT_TRUE(!fs->mkfs || remount());
		fd = open(path, O_RDWR);
		ASSERT_EQ(SIZE, pread(fd, buf, SIZE, 0));
		ASSERT_TRUE(same(buf));
	}
}

#define FILES(name)							\
	FIXTURE(name) { };						\
	FIXTURE_VARIANT(name) { const char *fs; };			\
	FIXTURE_SETUP(name)						\
	{								\
		const char *reason = new_file(variant->fs);		\
									\
		if (reason)						\
			SKIP(return, "%s: %s", variant->fs, reason);	\
	}								\
	FIXTURE_TEARDOWN(name) { EXPECT_TRUE(end_file()); }

#define FS(fixture, name) FIXTURE_VARIANT_ADD(fixture, name) { #name }

/* An operation; @number of recalls it makes, and what to compare afterwards */
#define OP(fixture, name, from, number, compare)			\
	static void op_##fixture##_##name(struct __test_metadata *_metadata, char *p); \
	TEST_F_TIMEOUT(fixture, name, TIMEOUT)				\
	{								\
		char *p = begin_op(_metadata, from);			\
									\
		op_##fixture##_##name(_metadata, p);			\
		end_op(_metadata, p, number, compare);			\
	}								\
	static void op_##fixture##_##name(struct __test_metadata *_metadata, char *p)

#endif /* HMM_FILE_OP_H */
