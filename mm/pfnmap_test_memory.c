// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory of the test driver for pfns in user space: "ram", which is pages of the
 * system, and "vram" without struct pages, which is the memory of QEMU's
 * ivshmem-plain device or a reserved range of physical addresses.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitmap.h>
#include <linux/highmem.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/iosys-map.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "pfnmap_test_internal.h"

/* QEMU's ivshmem-plain; its shared memory is BAR 2. */
#define PCI_DEVICE_ID_IVSHMEM	0x1110
#define IVSHMEM_BAR		2

/* All of vram is mapped into the kernel: go easy on a small vmalloc area. */
#define PFNMAP_TEST_MAX_VRAM	(IS_ENABLED(CONFIG_64BIT) ? SZ_64M : SZ_16M)

/* Whoever can still see the place that a page has left shall notice. */
#define PFNMAP_TEST_POISON	0xa5

static unsigned long long vram_start;
module_param(vram_start, ullong, 0444);
MODULE_PARM_DESC(vram_start, "Physical address of a reserved range for vram, without ivshmem");
static unsigned long vram_size;
module_param(vram_size, ulong, 0444);
MODULE_PARM_DESC(vram_size, "Size of that range in bytes");

static struct {
	unsigned long pfn;		/* the first one */
	unsigned long nr;		/* number of pages, 0: no vram */
	unsigned long split;		/* first page of the second mapping, uncached */
	struct iosys_map maps[2];	/* of what is below @split: WC; and of the rest */
	struct pci_dev *pdev;		/* whose memory it is, or NULL */
	struct resource *region;
	unsigned long *used;		/* allocation bitmap */
} vram;

/* Pages of ram that all objects have */
static atomic_long_t ram_pages;

bool pfnmap_test_is_vram(unsigned long pfn)
{
	return pfn >= vram.pfn && pfn - vram.pfn < vram.nr;
}

/* How many pages, at most @nr, have one cache mode from @pfn on? */
unsigned long pfnmap_test_memtype_run(unsigned long pfn, unsigned long nr)
{
	if (pfnmap_test_is_vram(pfn) && pfn - vram.pfn < vram.split)
		return min(nr, vram.pfn + vram.split - pfn);
	return nr;
}

static struct iosys_map vram_addr(unsigned long pfn)
{
	const unsigned long n = pfn - vram.pfn;
	const bool upper = n >= vram.split;
	struct iosys_map map = vram.maps[upper];

	iosys_map_incr(&map, (n - (upper ? vram.split : 0)) << PAGE_SHIFT);
	return map;
}

void pfnmap_test_init_page(unsigned long pfn, unsigned long index)
{
	const struct pfnmap_test_page header = {
		.magic = PFNMAP_TEST_MAGIC,
		.index = index,
	};

	if (pfnmap_test_is_vram(pfn)) {
		struct iosys_map map = vram_addr(pfn);

		iosys_map_memset(&map, 0, 0, PAGE_SIZE);
		iosys_map_memcpy_to(&map, 0, &header, sizeof(header));
	} else {
		clear_highpage(pfn_to_page(pfn));
		memcpy_to_page(pfn_to_page(pfn), 0, (const void *)&header,
			       sizeof(header));
	}
}

/* One of them is in vram, the other one in ram. */
void pfnmap_test_move_page(unsigned long to, unsigned long from)
{
	const bool to_vram = pfnmap_test_is_vram(to);
	struct page *page = pfn_to_page(to_vram ? from : to);
	struct iosys_map map = vram_addr(to_vram ? to : from);
	struct pfnmap_test_page *ram = kmap_local_page(page);

	if (to_vram) {
		ram->generation++;
		iosys_map_memcpy_to(&map, 0, ram, PAGE_SIZE);
		memset(ram, PFNMAP_TEST_POISON, PAGE_SIZE);
	} else {
		iosys_map_memcpy_from(ram, &map, 0, PAGE_SIZE);
		iosys_map_memset(&map, 0, PFNMAP_TEST_POISON, PAGE_SIZE);
		ram->generation++;
	}
	flush_dcache_page(page);
	kunmap_local(ram);
}

void pfnmap_test_free(const unsigned long *pfns, unsigned long nr)
{
	/* Backwards: a tail page is one until the head page has gone. */
	while (nr--) {
		if (pfnmap_test_is_vram(pfns[nr])) {
			clear_bit(pfns[nr] - vram.pfn, vram.used);
		} else {
			struct page *page = pfn_to_page(pfns[nr]);

			/* Who else holds a reference frees it later. */
			if (!PageTail(page))
				put_page(page);
			atomic_long_dec(&ram_pages);
		}
	}
}

static int pfnmap_test_alloc_vram(unsigned long *pfns, unsigned long nr,
				  unsigned int flags)
{
	unsigned long n = 0, bit = 0;

	if (!vram.nr)
		return -ENODEV;

	if (!(flags & PFNMAP_TEST_SCATTER))
		bit = bitmap_find_next_zero_area(vram.used, vram.nr, 0, nr, 0);
	if (bit >= vram.nr)	/* fragmented: take what there is */
		bit = 0;

	while (n < nr) {
		bit = find_next_zero_bit(vram.used, vram.nr, bit);
		if (bit >= vram.nr) {
			pfnmap_test_free(pfns, n);
			return -ENOSPC;
		}
		if (test_and_set_bit(bit, vram.used))
			continue;
		pfns[n++] = vram.pfn + bit;
		bit += flags & PFNMAP_TEST_SCATTER ? 2 : 1;
	}
	return 0;
}

static int pfnmap_test_alloc_ram(unsigned long *pfns, unsigned long nr,
				 unsigned int flags)
{
	const bool compound = flags & PFNMAP_TEST_COMPOUND;
	/* The first page of a pair alone is never next to another such page. */
	const bool scatter = flags & PFNMAP_TEST_SCATTER && !compound;
	const unsigned int lowest = compound ? order_base_2(nr) : scatter;
	unsigned int order = scatter || compound ? lowest :
			     min_t(int, order_base_2(nr), MAX_PAGE_ORDER);
	unsigned long n = 0, i, end;

	while (n < nr) {
		const gfp_t gfp = order > lowest ? __GFP_NORETRY : __GFP_RETRY_MAYFAIL;
		struct page *page = alloc_pages(GFP_HIGHUSER | __GFP_ACCOUNT | __GFP_NOWARN |
						(compound ? __GFP_COMP : 0) | gfp, order);

		if (!page && order > lowest) {
			order--;
			continue;
		}
		if (!page) {
			pfnmap_test_free(pfns, n);
			return -ENOMEM;
		}
		/* A compound page has one refcount: the first page gives all back. */
		if (!compound)
			split_page(page, order);
		end = scatter ? n + 1 : min(n + (1UL << order), nr);
		atomic_long_add(end - n, &ram_pages);
		for (i = 0; i < 1UL << order; i++, page++) {
			if (n < end)
				pfns[n++] = page_to_pfn(page);
			else if (!compound)
				__free_page(page);
		}
	}
	return 0;
}

int pfnmap_test_alloc(unsigned long *pfns, unsigned long nr, unsigned int place,
		      unsigned int flags)
{
	unsigned long n;
	int err;

	if (!(flags & PFNMAP_TEST_ALTERNATE))
		return place == PFNMAP_TEST_VRAM ?
		       pfnmap_test_alloc_vram(pfns, nr, flags) :
		       pfnmap_test_alloc_ram(pfns, nr, flags);

	for (n = 0; n < nr; n++) {
		err = pfnmap_test_alloc(pfns + n, 1, n % 2 ? !place : place,
					flags & ~PFNMAP_TEST_ALTERNATE);
		if (err) {
			pfnmap_test_free(pfns, n);
			return err;
		}
	}
	return 0;
}

void pfnmap_test_memory_stats(struct pfnmap_test_stats *stats)
{
	stats->vram_pages = vram.nr;
	stats->vram_free = vram.nr - bitmap_weight(vram.used, vram.nr);
	stats->ram_pages = atomic_long_read(&ram_pages);
	stats->memtype_split = vram.split;
}

/*
 * s390 reaches the memory of devices by instructions of its own, and what its
 * ioremap() returns need not be a mapping. There, vram is memory that mem= keeps
 * from the kernel.
 */
static bool __init pfnmap_test_map(unsigned int n, u64 start, unsigned long nr)
{
	unsigned long *pfns, i;

	if (!IS_ENABLED(CONFIG_S390)) {
		iosys_map_set_vaddr_iomem(&vram.maps[n], n ?
					  ioremap(start, nr << PAGE_SHIFT) :
					  ioremap_wc(start, nr << PAGE_SHIFT));
	} else {
		pfns = kvmalloc_array(nr, sizeof(*pfns), GFP_KERNEL);
		for (i = 0; pfns && i < nr; i++)
			pfns[i] = PHYS_PFN(start) + i;
		iosys_map_set_vaddr(&vram.maps[n],
				    pfns ? vmap_pfn(pfns, nr, PAGE_KERNEL) : NULL);
		kvfree(pfns);
	}

	return !iosys_map_is_null(&vram.maps[n]);
}

void pfnmap_test_exit_memory(void)
{
	struct iosys_map *map;

	for (map = vram.maps; map < vram.maps + 2; map++) {
		if (!map->is_iomem)
			vunmap(map->vaddr);
		else if (map->vaddr_iomem)
			iounmap(map->vaddr_iomem);
	}
	bitmap_free(vram.used);
	if (vram.region)
		release_mem_region(vram.region->start, resource_size(vram.region));
	if (vram.pdev)
		pci_disable_device(vram.pdev);
	pci_dev_put(vram.pdev);
}

int __init pfnmap_test_init_memory(void)
{
	struct pci_dev *pdev = NULL;
	u64 start = vram_start, size = vram_size;
	unsigned long nr, i;
	int err;

	/*
	 * There is nothing to drive, and the memory must not go away while it is
	 * mapped, so don't bind to the device but hold on to it.
	 */
	if (!IS_ENABLED(CONFIG_S390))
		pdev = pci_get_device(PCI_VENDOR_ID_REDHAT_QUMRANET,
				      PCI_DEVICE_ID_IVSHMEM, NULL);
	if (pdev) {
		err = pci_enable_device(pdev);
		if (err) {
			pci_dev_put(pdev);
			return err;
		}
		vram.pdev = pdev;
		start = pci_resource_start(pdev, IVSHMEM_BAR);
		size = min_t(u64, pci_resource_len(pdev, IVSHMEM_BAR),
			     PFNMAP_TEST_MAX_VRAM);
	} else if (!start && !size) {
		return 0;
	}

	/* All of it must be what the tests need it for: pfns and no pages. */
	err = -EINVAL;
	nr = size >> PAGE_SHIFT;
	for (i = 0; i < nr && !pfn_valid(PHYS_PFN(start) + i); i++)
		;
	if (!nr || i < nr || !PAGE_ALIGNED(start | size) || size > PFNMAP_TEST_MAX_VRAM) {
		pr_err("can't use %#llx bytes at %#llx as vram\n", size, start);
		goto fail;
	}
	err = -EBUSY;
	vram.region = request_mem_region(start, size, KBUILD_MODNAME);
	if (!vram.region)
		goto fail;
	err = -ENOMEM;
	vram.used = bitmap_zalloc(nr, GFP_KERNEL);
	if (!vram.used)
		goto fail;

	/*
	 * The architecture may remember the cache mode of the kernel's mapping and
	 * use it for user space too, as x86 does: have two of them.
	 */
	vram.split = (nr - 1) / 2;	/* within what a PMD maps */
	if ((vram.split && !pfnmap_test_map(0, start, vram.split)) ||
	    !pfnmap_test_map(1, start + PFN_PHYS(vram.split), nr - vram.split))
		goto fail;

	vram.pfn = PHYS_PFN(start);
	vram.nr = nr;
	return 0;

fail:
	pfnmap_test_exit_memory();
	return err;
}
