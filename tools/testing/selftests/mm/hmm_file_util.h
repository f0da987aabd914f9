/* SPDX-License-Identifier: GPL-2.0 */
/* What hmm_file and hmm_file_stress make their file systems with */
#ifndef HMM_FILE_UTIL_H
#define HMM_FILE_UTIL_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <linux/loop.h>
#include <linux/mount.h>

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

#endif /* HMM_FILE_UTIL_H */
