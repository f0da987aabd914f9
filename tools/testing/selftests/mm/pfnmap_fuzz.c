// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random operations on mm/pfnmap_test.c, and on its mappings. Misuse is never
 * asked for, so there is nothing that the kernel may complain about.
 */
#include "fuzz_util.h"
#include "mm/pfnmap_test.h"

#define DEVICE		"/dev/pfnmap_test"
#define NR_FILES	6
#define OBJECT_PAGES	1024

/* Some of them are everybody's, until they are opened again. */
static int files[NR_FILES];

static void do_map(int fd)
{
	static const int prots[] = {
		PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE,
		PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE,
	};
	static const int flags[] = {
		MAP_SHARED, MAP_SHARED, MAP_PRIVATE, MAP_SHARED | MAP_POPULATE,
	};
	/* Not all objects are that large. */
	unsigned long max = 1 << below(11);
	char *addr = max < 512 ? page() : pmd();

	mmap(addr, length(addr, max), pick(prots), pick(flags) | MAP_FIXED, fd,
	     one_in(2) ? 0 : number(64) * psize());
}

static void do_create(int fd)
{
	static const unsigned int flags[] = {
		0, 0, PFNMAP_TEST_SCATTER, PFNMAP_TEST_ALTERNATE,
		PFNMAP_TEST_MIXEDMAP, PFNMAP_TEST_MIXEDMAP | PFNMAP_TEST_NO_IO,
		PFNMAP_TEST_MIXEDMAP | PFNMAP_TEST_ALTERNATE,
		PFNMAP_TEST_MIXEDMAP | PFNMAP_TEST_NOTIFY,
		PFNMAP_TEST_MIXEDMAP | PFNMAP_TEST_NOTIFY | PFNMAP_TEST_NO_IO,
		PFNMAP_TEST_MIXEDMAP | PFNMAP_TEST_COMPOUND,
	};
	struct pfnmap_test_create create = {
		.nr_pages = one_in(4) ? number_of_pages(64) : OBJECT_PAGES,
		.place = number(2),
		.flags = one_in(16) ? rnd() : pick(flags),
	};

	ioctl(fd, PFNMAP_TEST_CREATE, &create);
}

static void do_driver_ioctl(int fd)
{
	struct pfnmap_test_method_arg method = {
		.method = number(PFNMAP_TEST_NR_METHODS),
		.window = one_in(16) ? number(64) : 1 << below(11),
		.unclamped = number(2),
	};
	struct pfnmap_test_migrate migrate = {
		.first = one_in(2) ? 0 : number(OBJECT_PAGES),
		.nr = number(OBJECT_PAGES),
		.place = number(2),
	};
	struct pfnmap_test_inspect inspect = {
		.addr = one_in(16) ? number(1ULL << 47) : (uintptr_t)page(),
	};
	struct pfnmap_test_page_state state = { .index = number(OBJECT_PAGES) };
	struct pfnmap_test_stats stats;

	switch (below(16)) {
	case 0:
	case 1:
		do_create(fd);
		break;
	case 2 ... 6:
		ioctl(fd, PFNMAP_TEST_SET_METHOD, &method);
		break;
	case 7 ... 10:
		ioctl(fd, PFNMAP_TEST_MIGRATE, &migrate);
		break;
	case 11:
		ioctl(fd, PFNMAP_TEST_INSPECT, &inspect);
		break;
	case 12:
		ioctl(fd, PFNMAP_TEST_PAGE_STATE, &state);
		break;
	case 13:
		ioctl(fd, PFNMAP_TEST_GET_STATS, &stats);
		break;
	case 14:
		ioctl(fd, PFNMAP_TEST_RESET_STATS);
		break;
	case 15:
		/* No misuse: nothing that starts with a method */
		ioctl(fd, PFNMAP_TEST_MIGRATE, one_in(2) ? NULL : page());
		ioctl(fd, PFNMAP_TEST_INSPECT, page());
		break;
	}
}

static void op(void)
{
	int *file = &pick(files);

	switch (below(32)) {
	case 0:
		if (one_in(4)) {
			close(*file);
			*file = open(DEVICE, one_in(8) ? O_RDONLY : O_RDWR);
			do_create(*file);
		}
		break;
	case 1 ... 4:
		do_map(*file);
		break;
	case 5 ... 10:
		do_driver_ioctl(*file);
		break;
	case 11 ... 14:
		fuzz_mm(256);
		break;
	case 15:
		if (one_in(4))
			fuzz_fork(op, 50);
		break;
	default:
		fuzz_access();
		break;
	}
}

static bool works(const struct pfnmap_test_stats *start)
{
	const struct pfnmap_test_create create = { .nr_pages = 16 };
	const struct pfnmap_test_page *header;
	struct pfnmap_test_stats end;
	int fd = open(DEVICE, O_RDWR);

	if (fd < 0 || ioctl(fd, PFNMAP_TEST_GET_STATS, &end) ||
	    end.ram_pages != start->ram_pages ||
	    end.vram_free != start->vram_free ||
	    ioctl(fd, PFNMAP_TEST_CREATE, &create))
		return false;
	header = mmap(NULL, psize(), PROT_READ, MAP_SHARED, fd, 5 * psize());
	return header != MAP_FAILED && header->magic == PFNMAP_TEST_MAGIC &&
	       header->index == 5;
}

int main(int argc, char **argv)
{
	struct pfnmap_test_stats start;
	bool ok;
	int i;

	ksft_print_header();
	ksft_set_plan(1);
	if (geteuid())
		ksft_exit_skip("not root\n");
	if (access(DEVICE, F_OK) && system("modprobe pfnmap_test 2>/dev/null"))
		ksft_exit_skip("no %s, no module pfnmap_test\n", DEVICE);
	fuzz_init(argc, argv, 4096);

	for (i = 0; i < NR_FILES; i++) {
		files[i] = open(DEVICE, O_RDWR);
		if (files[i] < 0)
			ksft_exit_fail_perror(DEVICE);
		if (!i && ioctl(files[0], PFNMAP_TEST_GET_STATS, &start))
			ksft_exit_fail_perror("PFNMAP_TEST_GET_STATS");
		do_create(files[i]);
	}
	ok = fuzz_run(op);
	for (i = 0; i < NR_FILES; i++)
		close(files[i]);
	ksft_test_result(works(&start) && ok, "pfnmap_test\n");
	ksft_finished();
}
