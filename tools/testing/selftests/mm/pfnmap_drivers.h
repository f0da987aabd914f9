/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Objects of drivers that insert pfns from their fault handlers.  Exit releases them.
 * To be included after vm_util.h, which has no guard.
 */
#ifndef PFNMAP_DRIVERS_H
#define PFNMAP_DRIVERS_H

#include <fcntl.h>
#include <drm/drm.h>
#include <drm/qxl_drm.h>
#include <linux/memfd.h>
#include <linux/udmabuf.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "hugepage_settings.h"

/* A udmabuf of a list is made of items of that many pages, in reverse order. */
#define LIST_PAGES	25UL
/* That of a hugetlb file begins with this page of the file, and ends in its first hugepage. */
#define HUGETLB_FIRST	3UL

enum kind {
	UDMABUF,
	UDMABUF_LIST,
	UDMABUF_HUGETLB,
	VGEM,			/* drm_gem_shmem_helper */
	VGEM_PRIME,		/* the same by its dma-buf */
	TTM_SYSTEM,		/* TTM, by qxl: memory of the system, */
	TTM_PRIME,
	TTM_VRAM,		/* of the device */
};

struct object {
	enum kind kind;
	unsigned long nr;	/* pages */
	int fd;			/* to mmap(), */
	off_t offset;		/* from there */
	int card;
	uint32_t handle;
	int memfd;		/* that a udmabuf has its pages from */
};

static inline bool is_dmabuf(enum kind kind)
{
	return kind <= UDMABUF_HUGETLB || kind == VGEM_PRIME || kind == TTM_PRIME;
}

/* The primary node of the first device of a driver, or -1 */
static inline int open_card(const char *driver)
{
	for (int i = 0; i < 64; i++) {
		char path[64], name[32] = "";
		struct drm_version version = { .name = name, .name_len = sizeof(name) - 1 };
		int fd;

		snprintf(path, sizeof(path), "/dev/dri/card%d", i);
		fd = open(path, O_RDWR);
		if (fd >= 0 && !ioctl(fd, DRM_IOCTL_VERSION, &version) && !strcmp(name, driver))
			return fd;
		close(fd);
	}
	return -1;
}

static inline int handle_to_prime(int card, uint32_t handle)
{
	struct drm_prime_handle prime = { .handle = handle, .flags = DRM_CLOEXEC | DRM_RDWR };

	return ioctl(card, DRM_IOCTL_PRIME_HANDLE_TO_FD, &prime) ? -1 : prime.fd;
}

/* Return a handle, or 0 with errno. */
static inline uint32_t create_handle(int card, enum kind kind, unsigned long nr)
{
	struct drm_mode_create_dumb dumb = { .width = psize() / 4, .height = nr, .bpp = 32 };
	struct drm_qxl_alloc vram = { .size = nr * psize() };

	if (kind == TTM_VRAM)
		return ioctl(card, DRM_IOCTL_QXL_ALLOC, &vram) ? 0 : vram.handle;
	return ioctl(card, DRM_IOCTL_MODE_CREATE_DUMB, &dumb) ? 0 : dumb.handle;
}

/* The page of the memfd that page @index of the udmabuf is. */
static inline unsigned long memfd_page(const struct object *obj, unsigned long index)
{
	if (obj->kind == UDMABUF_LIST)
		return obj->nr - (index / LIST_PAGES + 1) * LIST_PAGES + index % LIST_PAGES;
	return obj->kind == UDMABUF_HUGETLB ? HUGETLB_FIRST + index : index;
}

static inline int create_udmabuf(struct object *obj)
{
	const bool huge = obj->kind == UDMABUF_HUGETLB;
	const unsigned long items = obj->kind == UDMABUF_LIST ? obj->nr / LIST_PAGES : 1;
	struct udmabuf_create_list *list;
	int dev = open("/dev/udmabuf", O_RDWR);

	if (dev < 0 || (huge && !hugetlb_free_default_pages()))
		return -ENODEV;
	obj->memfd = syscall(__NR_memfd_create, "pfnmap_drivers",
			     MFD_ALLOW_SEALING | (huge ? MFD_HUGETLB : 0));
	if (ftruncate(obj->memfd, huge ? default_huge_page_size() : obj->nr * psize()) ||
	    fcntl(obj->memfd, F_ADD_SEALS, F_SEAL_SHRINK))
		return -errno;
	list = calloc(1, sizeof(*list) + items * sizeof(list->list[0]));
	list->count = items;
	for (unsigned long i = 0; i < items; i++) {
		list->list[i].memfd = obj->memfd;
		list->list[i].offset = memfd_page(obj, i * LIST_PAGES) * psize();
		list->list[i].size = obj->nr / items * psize();
	}
	obj->fd = ioctl(dev, UDMABUF_CREATE_LIST, list);
	free(list);
	return obj->fd < 0 ? -errno : 0;
}

/* Return 0, -ENODEV if there is no such device, or another error. */
static inline int create_object(struct object *obj, enum kind kind, unsigned long nr)
{
	struct drm_mode_map_dumb map = {};

	*obj = (struct object) { .kind = kind, .nr = nr, .card = -1, .memfd = -1 };
	if (kind <= UDMABUF_HUGETLB)
		return create_udmabuf(obj);
	obj->card = open_card(kind >= TTM_SYSTEM ? "qxl" : "vgem");
	if (obj->card < 0)
		return -ENODEV;
	map.handle = create_handle(obj->card, kind, nr);
	if (!map.handle)
		return -errno;
	obj->handle = map.handle;
	obj->fd = is_dmabuf(kind) ? handle_to_prime(obj->card, obj->handle) : obj->card;
	if (obj->fd < 0 || (!is_dmabuf(kind) && ioctl(obj->card, DRM_IOCTL_MODE_MAP_DUMB, &map)))
		return -errno;
	obj->offset = map.offset;
	return 0;
}

/* @addr: where, or NULL. DRM devices map objects from page 0 on only. */
static inline char *map_object(const struct object *obj, char *addr, unsigned long first,
			       unsigned long nr, int prot)
{
	return mmap(addr, nr * psize(), prot, MAP_SHARED | (addr ? MAP_FIXED : 0), obj->fd,
		    obj->offset + (off_t)first * psize());
}

#endif /* PFNMAP_DRIVERS_H */
