/* SPDX-License-Identifier: GPL-2.0 */
/* What the small tests of pages of files in device private memory share */
#ifndef HMM_FILE_H
#define HMM_FILE_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <lib/test_hmm_uapi.h>
#include "hmm_file_util.h"
#include "vm_util.h"

#define TOP	"/tmp/hmm_file_test"
#define DIR	TOP "/dir"
#define PERIODIC "/proc/sys/vm/dirty_writeback_centisecs"
#define PAGES	16UL
#define SIZE	(PAGES * psize())
/* An emulated machine with KASAN is slow. */
#define TIMEOUT	300

static const struct fs {
	const char *name, *mkfs, *options;
} filesystems[] = {
	{ "ext4", "mkfs.ext4 -q -F -b 4096" },
	{ "xfs", "mkfs.xfs -q -f" },
	{ "btrfs", "mkfs.btrfs -q -f" },
}, *const ext4 = &filesystems[0], *const xfs = &filesystems[1];

struct hmm_file {
	struct hmm_dmirror_stats before;
	int dev, fd;
	char *buf;		/* SIZE bytes for whatever */
	char centisecs[32];	/* what PERIODIC was */
};

/* The device, and a place to mount; or the reason why there is none */
static inline const char *hmm_file_begin(struct hmm_file *self)
{
	int fd = open(PERIODIC, O_RDONLY);

	self->fd = -1;
	self->dev = open("/dev/hmm_dmirror0", O_RDWR);
	if (self->dev < 0)
		return "no /dev/hmm_dmirror0";
	self->buf = aligned_alloc(psize(), SIZE);
	if (!self->buf || read(fd, self->centisecs, sizeof(self->centisecs) - 1) <= 0)
		return "no memory, or no " PERIODIC;
	close(fd);
	mkdir(TOP, 0700);
	if (mount("hmm_file", TOP, "tmpfs", 0, "size=400m"))
		return "mounting is not allowed";
	mkdir(DIR, 0700);
	/* Writeback would recall pages. */
	set_file(PERIODIC, "0");
	return NULL;
}

static inline void hmm_file_end(struct hmm_file *self)
{
	close(self->fd);
	close(self->dev);
	umount2(DIR, MNT_DETACH);
	umount2(TOP, MNT_DETACH);
	rmdir(TOP);
	set_file(PERIODIC, self->centisecs);
}

/* Pages that are on the device since new_file() */
static inline long resident(struct hmm_file *self)
{
	struct hmm_dmirror_stats now;

	ioctl(self->dev, HMM_DMIRROR_STATS, &now);
	return (now.allocs - self->before.allocs) -
	       (now.frees - self->before.frees);
}

static inline bool new_file(struct hmm_file *self)
{
	close(self->fd);
	self->fd = open(DIR "/file", O_RDWR | O_CREAT, 0600);
	return self->fd >= 0 &&
	       !ioctl(self->dev, HMM_DMIRROR_STATS, &self->before);
}

/* A file system on DIR, with an empty file; or the reason why there is none */
static inline const char *new_fs(struct hmm_file *self, const struct fs *fs)
{
	close(self->fd);
	self->fd = -1;
	umount(DIR);
	if (run("rm -f " TOP "/image; truncate -s 320M " TOP "/image") ||
	    run("%s " TOP "/image >/dev/null 2>&1", fs->mkfs))
		return "no mkfs for it";
	if (mount_image(TOP "/image", DIR, fs->name, fs->options))
		return "it cannot be mounted";
	return new_file(self) ? NULL : "no file";
}

static inline char *map(struct hmm_file *self, unsigned long first,
			unsigned long nr, int prot, int flags)
{
	char *p = mmap(NULL, nr * psize(), prot, flags, self->fd,
		       first * psize());

	return p == MAP_FAILED ? NULL : p;
}

/* One by one, as a dirty folio that is large cannot always be split */
static inline bool write_pages(struct hmm_file *self, unsigned long first,
			       unsigned long nr, char c)
{
	memset(self->buf, c, psize());
	for (unsigned long i = first; i < first + nr; i++)
		if (pwrite(self->fd, self->buf, psize(), i * psize()) != psize())
			return false;
	return true;
}

static inline bool all_are(const char *p, size_t len, char c)
{
	while (len--)
		if (*p++ != c)
			return false;
	return true;
}

/*
 * Page by page, until each is on the device: another CPU may have a reference
 * to one for a moment. Without @c, they are only read, and stay clean.
 */
static inline void to_device(struct hmm_file *self, char *p, unsigned long nr,
			     char c)
{
	for (; nr; nr--, p += psize()) {
		long was = resident(self);

		while (resident(self) == was) {
			if (c)
				memset(p, c, psize());
			else
				FORCE_READ(*p);
			command(self->dev, HMM_DMIRROR_MIGRATE_TO_DEV, p,
				self->buf, 1);
		}
	}
}

/* The device writes @c, without a detour through system memory. */
static inline bool device_writes(struct hmm_file *self, char *p,
				 unsigned long nr, char c)
{
	const long was = resident(self);

	memset(self->buf, c, nr * psize());
	return !command(self->dev, HMM_DMIRROR_WRITE, p, self->buf, nr) &&
	       resident(self) == was;
}

#endif /* HMM_FILE_H */
