// SPDX-License-Identifier: GPL-2.0-only
/*
 * Cost of page faults in mappings of drivers that insert pfns: udmabuf, the
 * shmem helper of DRM (by vgem), and TTM (by qxl). See pfnmap_drivers.c for
 * what they need, and bench_util.h for the output.
 *
 *   seq	touch all pages of a new mapping in order
 *   write	the same, writing
 *   random	the same as seq after madvise(MADV_RANDOM)
 *   back	the same, from the last page to the first
 *   w16	touch one page of 16 of a new mapping
 *   w32, w512	one of 32, of 512
 *   munmap	unmap all pages
 *   fork	fork a child that exits, and wait for it: how much longer it takes
 *		with the mapping than without
 *
 * _ns is the time per page or touch, _faults the page faults.
 */
#include <sys/resource.h>

#include "kselftest.h"
#include "bench_util.h"
#include "vm_util.h"
#include "pfnmap_drivers.h"

static const struct touch {
	const char *metric;
	long step;
	bool write;
	int advice;
} touches[] = {
	{ "write", 1, .write = true },
	{ "random", 1, .advice = MADV_RANDOM },
	{ "back", -1 },
	{ "w16", 16 },
	{ "w32", 32 },
	{ "w512", 512 },
	/* Last, for what follows is to have all pages mapped. */
	{ "seq", 1 },
};

/* Those of the touches are before these, times and then faults. */
#define FAULTS	ARRAY_SIZE(touches)
#define MUNMAP	(2 * FAULTS)
#define FORK	(MUNMAP + 1)

static const struct {
	enum kind kind;
	const char *driver, *place;
} objects[] = {
	{ UDMABUF, "udmabuf", "ram" },
	{ VGEM, "vgem", "ram" },
	{ TTM_SYSTEM, "ttm", "ram" },
	{ TTM_VRAM, "ttm", "vram" },
};

static char *area;

static void touch_pages(const struct object *obj, unsigned int t, unsigned long rep)
{
	const long step = touches[t].step, nr = obj->nr / labs(step);
	struct rusage before, after;
	double start;

	bench_need(map_object(obj, area, 0, obj->nr, PROT_READ | PROT_WRITE) == area, "mmap");
	madvise(area, obj->nr * psize(), touches[t].advice);
	getrusage(RUSAGE_SELF, &before);
	start = bench_now();
	for (long n = 0, i = step < 0 ? obj->nr - 1 : 0; n < nr; n++, i += step) {
		if (touches[t].write)
			*(volatile char *)(area + i * psize()) = 1;
		else
			FORCE_READ(area[i * psize()]);
	}
	bench_samples[t][rep] = (bench_now() - start) / nr;
	getrusage(RUSAGE_SELF, &after);
	bench_samples[FAULTS + t][rep] = (double)(after.ru_minflt - before.ru_minflt) / nr;
}

static void run(unsigned int o)
{
	struct object obj;
	int ret = create_object(&obj, objects[o].kind, bench_pages);
	char name[32];

	if (ret) {
		warnx("%s %s: %s", objects[o].driver, objects[o].place, strerror(-ret));
		return;
	}
	/* What the first use of the object itself costs is no part of it. */
	touch_pages(&obj, 0, 0);

	for (unsigned long rep = 0; rep < bench_reps; rep++) {
		double fork_ns, start;

		munmap(area, obj.nr * psize());
		fork_ns = bench_fork();
		for (unsigned int t = 0; t < ARRAY_SIZE(touches); t++) {
			munmap(area, obj.nr * psize());
			touch_pages(&obj, t, rep);
		}
		bench_samples[FORK][rep] = (bench_fork() - fork_ns) / obj.nr;
		start = bench_now();
		munmap(area, obj.nr * psize());
		bench_samples[MUNMAP][rep] = (bench_now() - start) / obj.nr;
	}
	for (unsigned int t = 0; t < 2 * ARRAY_SIZE(touches); t++) {
		snprintf(name, sizeof(name), "%s_%s", touches[t % FAULTS].metric,
			 t < FAULTS ? "ns" : "faults");
		bench_row(objects[o].driver, objects[o].place, obj.nr, name, t);
	}
	bench_row(objects[o].driver, objects[o].place, obj.nr, "munmap_ns", MUNMAP);
	bench_row(objects[o].driver, objects[o].place, obj.nr, "fork_ns", FORK);
}

int main(int argc, char **argv)
{
	bench_begin(argc, argv, 8192);
	area = bench_reserve(bench_pages);
	for (unsigned int o = 0; o < ARRAY_SIZE(objects); o++)
		run(o);
	return EXIT_SUCCESS;
}
