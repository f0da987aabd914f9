/* SPDX-License-Identifier: GPL-2.0 */
/* What the tests of pages of files in device private memory share */
#ifndef HMM_FILE_UTIL_H
#define HMM_FILE_UTIL_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <linux/loop.h>
#include <linux/mount.h>
#include <lib/test_hmm_uapi.h>

/* <sys/mount.h> does not go with <linux/mount.h> nor, so, with <linux/fs.h>. */
#ifndef MNT_DETACH
#define MNT_DETACH	2

int mount(const char *source, const char *target, const char *type,
	  unsigned long flags, const void *data);
int umount(const char *target);
int umount2(const char *target, int flags);
#endif

/* The exit status of a command, -1 if it has none */
static inline int run(const char *fmt, ...)
{
	char cmd[256];
	va_list ap;
	int ret;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	ret = system(cmd);
	return WIFEXITED(ret) ? WEXITSTATUS(ret) : -1;
}

static inline bool set_file(const char *path, const char *what)
{
	int fd = open(path, O_WRONLY);
	bool ok = fd >= 0 && write(fd, what, strlen(what)) == (ssize_t)strlen(what);

	close(fd);
	return ok;
}

/* The number after @key in a file, or its first one; -1 without */
static inline long number_in(const char *path, const char *key)
{
	FILE *f = fopen(path, "r");
	long value = -1;
	char line[256];

	while (f && value < 0 && fgets(line, sizeof(line), f))
		if (!strncmp(line, key, strlen(key)))
			sscanf(line + strlen(key), "%ld", &value);
	if (f)
		fclose(f);
	return value;
}

/* For ioctls that want an address where it does not matter: they take no 0. */
#define NOWHERE		((void *)(uintptr_t)sysconf(_SC_PAGESIZE))

static inline int command(int dev, unsigned long request, void *addr, void *ptr,
			  unsigned long npages)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)addr,
		.ptr = (uintptr_t)ptr,
		.npages = npages,
	};

	return ioctl(dev, request, &cmd) ? -errno : 0;
}

static inline int set_flags(int dev, unsigned long flags)
{
	/* The driver does not take 0, and does not know the other bit. */
	return command(dev, HMM_DMIRROR_FLAGS, NOWHERE, NULL, flags | 1 << 16);
}

/* Is the command missing that @mkfs begins with? */
static inline bool no_mkfs(const char *mkfs)
{
	return run("command -v %.*s >/dev/null", (int)strcspn(mkfs, " "), mkfs);
}

/* A loop device for @image, its name in @name; or -errno */
static inline int attach_image(const char *image, char name[32])
{
	struct loop_config config = {};
	int control, loop, file, nr, err;

	control = open("/dev/loop-control", O_RDWR);
	if (control < 0)
		return -errno;
	for (int i = 0; ; i++) {
		nr = ioctl(control, LOOP_CTL_GET_FREE);
		snprintf(name, 32, "/dev/loop%d", nr);
		loop = open(name, O_RDWR | O_CLOEXEC);
		file = open(image, O_RDWR | O_CLOEXEC);
		config.fd = file;
		config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
		err = nr < 0 || loop < 0 || file < 0 ||
		      ioctl(loop, LOOP_CONFIGURE, &config) ? errno : 0;
		close(file);
		if (err != EBUSY || i == 100)
			break;
		close(loop);
	}
	close(control);
	if (err) {
		close(loop);
		return -err;
	}
	return loop;
}

/*
 * mount -o loop, while nobody has the loop device open for writing: that may
 * not be allowed (CONFIG_BLK_DEV_WRITE_MOUNTED). 0 or -errno.
 */
static inline int mount_image(const char *image, const char *dir,
			      const char *type, const char *options)
{
	int loop, readonly, err = 0;
	char name[32];

	loop = attach_image(image, name);
	if (loop < 0)
		return loop;
	readonly = open(name, O_RDONLY | O_CLOEXEC);
	close(loop);
	if (mount(name, dir, type, 0, options))
		err = errno;
	close(readonly);
	return -err;
}

/*
 * A file system below @top, which stays for the tests to come: tmpfs, or what
 * @mkfs makes. Its directory, or NULL.
 */
static inline const char *mount_scratch(const char *top, const char *fs,
					const char *mkfs)
{
	static char dir[96];
	char image[112];
	bool bad;

	snprintf(dir, sizeof(dir), "%s/%s", top, fs);
	snprintf(image, sizeof(image), "%s.image", dir);
	if (!mkdir(top, 0700) && mount("scratch", top, "tmpfs", 0, "size=512m"))
		return NULL;
	if (mkdir(dir, 0700))
		return errno == EEXIST ? dir : NULL;
	if (!mkfs)
		bad = mount("scratch", dir, "tmpfs", 0, "size=80m");
	else
		bad = run("truncate -s 320M %s", image) ||
		      run("%s %s >/dev/null 2>&1", mkfs, image) ||
		      mount_image(image, dir, fs, NULL);
	if (bad)
		rmdir(dir);
	return bad ? NULL : dir;
}

#endif /* HMM_FILE_UTIL_H */
