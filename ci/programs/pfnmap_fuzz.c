// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random operations on mm/pfnmap_test_*.c, and on its mappings. Misuse is never
 * asked for, so there is nothing that the kernel may complain about.
 */
#include "fuzz_util.h"
#include "mm/pfnmap_test.h"

#define DEVICE		"/dev/pfnmap_test"
#define OBJECT_PAGES	1024

/* Some of them are everybody's, until they are opened again. */
static int files[6];

static void do_map(void)
{
	static const int prots[] = { RW, RW, RW, PROT_READ, PROT_NONE };
	static const int flags[] = { MAP_SHARED, MAP_PRIVATE, MAP_SHARED | MAP_POPULATE };
	/* Not all objects are that large. */
	unsigned long max = 1 << below(11);
	char *addr = max < 512 ? page() : pmd();

	mmap(addr, length(addr, max), pick(prots), pick(flags) | MAP_FIXED, pick(files),
	     one_in(2) ? 0 : number(64) * psize());
}

static void do_create(void)
{
	static const unsigned int flags[] = {
		0, PFNMAP_TEST_SCATTER, PFNMAP_TEST_ALTERNATE, PFNMAP_TEST_MIXEDMAP,
		PFNMAP_TEST_MIXEDMAP | PFNMAP_TEST_NO_IO,
		PFNMAP_TEST_MIXEDMAP | PFNMAP_TEST_ALTERNATE,
		PFNMAP_TEST_MIXEDMAP | PFNMAP_TEST_NOTIFY,
		PFNMAP_TEST_MIXEDMAP | PFNMAP_TEST_COMPOUND,
	};
	struct pfnmap_test_create create = {
		.nr_pages = one_in(4) ? number_of_pages() : OBJECT_PAGES,
		.place = number(2),
		.flags = one_in(16) ? rnd() : pick(flags),
	};

	ioctl(pick(files), PFNMAP_TEST_CREATE, &create);
}

static void do_ioctl(void)
{
	struct pfnmap_test_method_arg method = {
		.method = number(PFNMAP_TEST_NR_METHODS),
		.window = one_in(16) ? number(64) : 1 << below(11),
	};
	struct pfnmap_test_migrate migrate = {
		.first = one_in(2) ? 0 : number(OBJECT_PAGES),
		.nr = number(OBJECT_PAGES),
		.place = number(2),
	};
	struct pfnmap_test_inspect inspect = { .addr = (uintptr_t)page() };
	struct pfnmap_test_resolve resolve = {
		.addr = one_in(16) ? number(1ULL << 47) : (uintptr_t)page(),
		.write = number(2),
	};
	const struct {
		unsigned long request;
		void *arg;
	} ioctls[] = {
		{ PFNMAP_TEST_SET_METHOD, &method }, { PFNMAP_TEST_SET_METHOD, &method },
		{ PFNMAP_TEST_SET_METHOD, &method }, { PFNMAP_TEST_MIGRATE, &migrate },
		{ PFNMAP_TEST_MIGRATE, &migrate }, { PFNMAP_TEST_RESOLVE, &resolve },
		{ PFNMAP_TEST_INSPECT, &inspect }, { PFNMAP_TEST_WRPROTECT },
		/* No misuse: nothing that starts with a method */
		{ PFNMAP_TEST_MIGRATE, one_in(2) ? NULL : page() }, { PFNMAP_TEST_RESOLVE, page() },
	};
	const unsigned int i = below(ARRAY_SIZE(ioctls));

	ioctl(pick(files), ioctls[i].request, ioctls[i].arg);
}

static void do_open(void)
{
	int *file = &pick(files);

	close(*file);
	*file = open(DEVICE, one_in(8) ? O_RDONLY : O_RDWR);
}

static const struct fuzz_op fuzz_ops[] = {
	{ 2, do_open }, { 2, fuzz_fork }, { 8, do_create }, { 32, do_map }, { 42, do_ioctl },
	{ 32, fuzz_mm }, { 138, fuzz_access },
};

static bool works(const struct pfnmap_test_stats *start)
{
	const struct pfnmap_test_create create = { .nr_pages = 16 };
	const struct pfnmap_test_page *header;
	struct pfnmap_test_stats end;
	int fd = open(DEVICE, O_RDWR);

	if (fd < 0 || ioctl(fd, PFNMAP_TEST_GET_STATS, &end) ||
	    end.ram_pages != start->ram_pages || end.vram_free != start->vram_free ||
	    ioctl(fd, PFNMAP_TEST_CREATE, &create))
		return false;
	header = mmap(NULL, psize(), PROT_READ, MAP_SHARED, fd, 5 * psize());
	return header != MAP_FAILED && header->magic == PFNMAP_TEST_MAGIC && header->index == 5;
}

int main(int argc, char **argv)
{
	struct pfnmap_test_stats stats;
	bool ok;

	fuzz_init(argc, argv, DEVICE, "modprobe pfnmap_test 2>/dev/null");
	for (unsigned int i = 0; i < ARRAY_SIZE(files); i++) {
		files[i] = open(DEVICE, O_RDWR);
		if (files[i] < 0 || (!i && ioctl(files[0], PFNMAP_TEST_GET_STATS, &stats)))
			ksft_exit_fail_perror(DEVICE);
		do_create();
	}
	ok = fuzz_run(NULL);
	for (unsigned int i = 0; i < ARRAY_SIZE(files); i++)
		close(files[i]);
	ksft_test_result(works(&stats) && ok, "pfnmap_test\n");
	ksft_finished();
}
