/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Objects of drivers that insert pfns from their fault handlers, for the test
 * and the benchmark of these. To be included after vm_util.h.
 */
#ifndef PFNMAP_DRIVERS_H
#define PFNMAP_DRIVERS_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <drm/drm.h>
#include <drm/qxl_drm.h>
#include <linux/memfd.h>
#include <linux/udmabuf.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "hugepage_settings.h"

#define UDMABUF_DEVICE	"/dev/udmabuf"

/* From spice/enums.h, a pixel of four bytes */
#define SURFACE_FMT_32	32

/* A udmabuf of a list is made of items of that many pages, in reverse order. */
#define LIST_PAGES	25UL
/* That of a hugetlb file begins with this page of the file. */
#define HUGETLB_FIRST	3UL

enum kind {
	UDMABUF,
	UDMABUF_LIST,
	UDMABUF_HUGETLB,
	VGEM,			/* drm_gem_shmem_helper */
	VGEM_PRIME,		/* the same by its dma-buf */
	TTM_SYSTEM,		/* TTM, by qxl: memory of the system, */
	TTM_PRIME,
	TTM_VRAM,		/* of the device, */
	TTM_SURFACE,		/* other of the device */
	NR_KINDS,
};

struct object {
	enum kind kind;
	unsigned long nr;	/* pages */
	int fd;			/* to mmap(), */
	off_t offset;		/* from there */
	int card;
	uint32_t handle;
	int memfd;
	bool huge_set;
	unsigned long huge_pages;	/* what to set it back to */
};

static inline bool is_udmabuf(enum kind kind)
{
	return kind <= UDMABUF_HUGETLB;
}

static inline bool is_shmem(enum kind kind)
{
	return kind == VGEM || kind == VGEM_PRIME;
}

static inline bool is_ttm(enum kind kind)
{
	return kind >= TTM_SYSTEM;
}

static inline bool is_dmabuf(enum kind kind)
{
	return is_udmabuf(kind) || kind == VGEM_PRIME || kind == TTM_PRIME;
}

/* The primary node of the first device of a driver, or -ENODEV. */
static inline int open_card(const char *driver)
{
	char path[64], name[32];
	int fd, i;

	for (i = 0; i < 64; i++) {
		struct drm_version version = {
			.name = name,
			.name_len = sizeof(name) - 1,
		};

		snprintf(path, sizeof(path), "/dev/dri/card%d", i);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		memset(name, 0, sizeof(name));
		if (!ioctl(fd, DRM_IOCTL_VERSION, &version) &&
		    !strcmp(name, driver))
			return fd;
		close(fd);
	}
	return -ENODEV;
}

static inline int handle_to_prime(int card, uint32_t handle)
{
	struct drm_prime_handle prime = {
		.handle = handle,
		.flags = DRM_CLOEXEC | DRM_RDWR,
	};

	if (ioctl(card, DRM_IOCTL_PRIME_HANDLE_TO_FD, &prime))
		return -errno;
	return prime.fd;
}

static inline void close_handle(int card, uint32_t handle)
{
	struct drm_gem_close arg = {
		.handle = handle,
	};

	ioctl(card, DRM_IOCTL_GEM_CLOSE, &arg);
}

/* Return a handle, or 0 with errno. */
static inline uint32_t create_dumb(int card, unsigned long nr)
{
	struct drm_mode_create_dumb arg = {
		.width = psize() / 4,
		.height = nr,
		.bpp = 32,
	};

	if (ioctl(card, DRM_IOCTL_MODE_CREATE_DUMB, &arg))
		return 0;
	if (arg.size == (uint64_t)nr * psize())
		return arg.handle;
	close_handle(card, arg.handle);
	errno = EINVAL;
	return 0;
}

static inline uint32_t create_vram(int card, unsigned long nr)
{
	struct drm_qxl_alloc arg = {
		.size = nr * psize(),
	};

	if (ioctl(card, DRM_IOCTL_QXL_ALLOC, &arg))
		return 0;
	return arg.handle;
}

static inline uint32_t create_surface(int card, unsigned long nr)
{
	/* The driver adds a line, which is a page. */
	struct drm_qxl_alloc_surf arg = {
		.format = SURFACE_FMT_32,
		.width = psize() / 4,
		.height = nr - 1,
		.stride = psize(),
	};

	if (ioctl(card, DRM_IOCTL_QXL_ALLOC_SURF, &arg))
		return 0;
	return arg.handle;
}

/*
 * Have the driver put an object back to where it has been created. It does so
 * for somebody who imports its dma-buf; vgem does not do anything else with it.
 */
static inline int move_back(const struct object *obj)
{
	struct drm_prime_handle prime = { .flags = DRM_CLOEXEC };
	int vgem, ret;

	vgem = open_card("vgem");
	if (vgem < 0)
		return vgem;
	prime.fd = handle_to_prime(obj->card, obj->handle);
	if (prime.fd < 0) {
		ret = prime.fd;
		goto out;
	}
	ret = ioctl(vgem, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime) ? -errno : 0;
	if (!ret)
		close_handle(vgem, prime.handle);
	close(prime.fd);
out:
	close(vgem);
	return ret;
}

static inline int map_offset(struct object *obj)
{
	if (is_ttm(obj->kind)) {
		struct drm_qxl_map arg = {
			.handle = obj->handle,
		};

		if (ioctl(obj->card, DRM_IOCTL_QXL_MAP, &arg))
			return -errno;
		obj->offset = arg.offset;
	} else {
		struct drm_mode_map_dumb arg = {
			.handle = obj->handle,
		};

		if (ioctl(obj->card, DRM_IOCTL_MODE_MAP_DUMB, &arg))
			return -errno;
		obj->offset = arg.offset;
	}
	return 0;
}

static inline unsigned long hugetlb_pages(void)
{
	return default_huge_page_size() / psize();
}

/* The page of the memfd that page @index of the udmabuf is. */
static inline unsigned long memfd_page(const struct object *obj,
				       unsigned long index)
{
	const unsigned long items = (obj->nr + LIST_PAGES - 1) / LIST_PAGES;

	switch (obj->kind) {
	case UDMABUF_LIST:
		return (items - 1 - index / LIST_PAGES) * LIST_PAGES +
		       index % LIST_PAGES;
	case UDMABUF_HUGETLB:
		return HUGETLB_FIRST + index;
	default:
		return index;
	}
}

static inline unsigned long memfd_pages(const struct object *obj)
{
	const unsigned long huge = hugetlb_pages();

	switch (obj->kind) {
	case UDMABUF_LIST:
		return (obj->nr + LIST_PAGES - 1) / LIST_PAGES * LIST_PAGES;
	case UDMABUF_HUGETLB:
		return (HUGETLB_FIRST + obj->nr + huge - 1) / huge * huge;
	default:
		return obj->nr;
	}
}

static inline int create_udmabuf_list(const struct object *obj, int dev)
{
	const unsigned long items = (obj->nr + LIST_PAGES - 1) / LIST_PAGES;
	struct udmabuf_create_list *list;
	unsigned long i;
	int fd;

	list = calloc(1, sizeof(*list) + items * sizeof(list->list[0]));
	if (!list)
		return -1;
	list->flags = UDMABUF_FLAGS_CLOEXEC;
	list->count = items;
	for (i = 0; i < items; i++) {
		unsigned long nr = obj->nr - i * LIST_PAGES;

		if (nr > LIST_PAGES)
			nr = LIST_PAGES;
		list->list[i].memfd = obj->memfd;
		list->list[i].offset = memfd_page(obj, i * LIST_PAGES) *
				       psize();
		list->list[i].size = nr * psize();
	}
	fd = ioctl(dev, UDMABUF_CREATE_LIST, list);
	free(list);
	return fd;
}

static inline int create_udmabuf(struct object *obj)
{
	struct udmabuf_create create = { .flags = UDMABUF_FLAGS_CLOEXEC };
	unsigned int flags = MFD_ALLOW_SEALING | MFD_CLOEXEC;
	int dev, ret;

	dev = open(UDMABUF_DEVICE, O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return -ENODEV;

	if (obj->kind == UDMABUF_HUGETLB) {
		unsigned long more;

		if (!hugetlb_available()) {
			close(dev);
			return -ENODEV;
		}
		obj->huge_pages = hugetlb_nr_default_pages();
		obj->huge_set = true;
		more = memfd_pages(obj) / hugetlb_pages();
		hugetlb_set_nr_default_pages(obj->huge_pages + more);
		flags |= MFD_HUGETLB;
	}

	obj->memfd = syscall(__NR_memfd_create, "pfnmap_drivers", flags);
	if (obj->memfd < 0 ||
	    ftruncate(obj->memfd, (off_t)memfd_pages(obj) * psize()) ||
	    fcntl(obj->memfd, F_ADD_SEALS, F_SEAL_SHRINK))
		goto fail;

	if (obj->kind == UDMABUF_LIST) {
		obj->fd = create_udmabuf_list(obj, dev);
	} else {
		create.memfd = obj->memfd;
		create.offset = memfd_page(obj, 0) * psize();
		create.size = obj->nr * psize();
		obj->fd = ioctl(dev, UDMABUF_CREATE, &create);
	}
	if (obj->fd < 0)
		goto fail;
	close(dev);
	return 0;
fail:
	ret = errno ? -errno : -EIO;
	close(dev);
	return ret;
}

static inline void destroy_object(struct object *obj)
{
	if (obj->fd >= 0 && obj->fd != obj->card)
		close(obj->fd);
	if (obj->memfd >= 0)
		close(obj->memfd);
	if (obj->huge_set)
		hugetlb_set_nr_default_pages(obj->huge_pages);
	if (obj->card >= 0) {
		if (obj->handle)
			close_handle(obj->card, obj->handle);
		close(obj->card);
	}
	obj->fd = -1;
	obj->memfd = -1;
	obj->card = -1;
	obj->huge_set = false;
}

/* Return 0, -ENODEV if there is no such device, or another error. */
static inline int create_object(struct object *obj, enum kind kind,
				unsigned long nr)
{
	int ret;

	*obj = (struct object) {
		.kind = kind,
		.nr = nr,
		.fd = -1,
		.card = -1,
		.memfd = -1,
	};

	errno = 0;
	if (is_udmabuf(kind)) {
		ret = create_udmabuf(obj);
		goto out;
	}

	obj->card = open_card(is_ttm(kind) ? "qxl" : "vgem");
	if (obj->card < 0)
		return -ENODEV;
	switch (kind) {
	case TTM_VRAM:
		obj->handle = create_vram(obj->card, nr);
		break;
	case TTM_SURFACE:
		obj->handle = create_surface(obj->card, nr);
		break;
	default:
		obj->handle = create_dumb(obj->card, nr);
		break;
	}
	if (!obj->handle) {
		ret = -errno;
		goto out;
	}
	if (is_dmabuf(kind)) {
		obj->fd = handle_to_prime(obj->card, obj->handle);
		ret = obj->fd < 0 ? obj->fd : 0;
	} else {
		obj->fd = obj->card;
		ret = map_offset(obj);
	}
out:
	if (ret)
		destroy_object(obj);
	return ret;
}

/* @addr: where, or NULL. DRM devices map objects from page 0 on only. */
static inline char *map_object(const struct object *obj, char *addr,
			       unsigned long first, unsigned long nr, int prot)
{
	return mmap(addr, nr * psize(), prot,
		    MAP_SHARED | (addr ? MAP_FIXED : 0), obj->fd,
		    obj->offset + (off_t)first * psize());
}

#endif /* PFNMAP_DRIVERS_H */
