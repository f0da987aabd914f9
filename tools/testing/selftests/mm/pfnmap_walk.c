// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the walkers of page tables do with special PTEs, see
 * Documentation/mm/special_ptes.rst: a test for each, with a mapping of each kind,
 * filled and partly written to.  None may take a pfn for a page, lose it, or change
 * it more than the test says: check() compares, once more at the end of each test.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <linux/fs.h>
#include <linux/mempolicy.h>
#include <linux/mman.h>
#include <linux/userfaultfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "pfnmap_insert.h"
#include "lib/test_hmm_uapi.h"

#define HMM_DEVICE	"/dev/hmm_dmirror0"
#define PART		40UL	/* of the mapping, across the end of the page table */
#define PART_NR		30UL

FIXTURE(walk) {};
FIXTURE_VARIANT(walk) { struct kind kind; };
FIXTURE_VARIANT_ADD(walk, pfnmap_ram) { KIND(ITER, RAM, 0) };
FIXTURE_VARIANT_ADD(walk, pfnmap_vram) { KIND(ITER, VRAM, 0) };
FIXTURE_VARIANT_ADD(walk, mixed_ram) { KIND(MIXED_ITER, RAM, NO_IO) };
FIXTURE_VARIANT_ADD(walk, mixed_alternate) { KIND(MIXED_ITER, RAM, NO_IO | ALTERNATE) };
FIXTURE_VARIANT_ADD(walk, private_ram) { KIND(MIXED_BATCH, RAM, NO_IO | PRIVATE) };
FIXTURE_VARIANT_ADD(walk, private_alternate) { KIND(MIXED_ITER, RAM, NO_IO | ALTERNATE | PRIVATE) };
FIXTURE_VARIANT_ADD(walk, pages) { KIND(PAGES, RAM, NO_IO) };
FIXTURE_VARIANT_ADD(walk, pages_private) { KIND(PAGES, RAM, NO_IO | COMPOUND | PRIVATE) };

FIXTURE_SETUP(walk)
{
	setup(_metadata, &variant->kind);
	use(7);
	check("setup");
}

FIXTURE_TEARDOWN(walk)
{
	check("teardown");
	teardown();
}

/* The result of a system call; VM_PFNMAP has an error where VM_MIXEDMAP has none. */
static void expect(long ret, int pfnmap_err, int mixed_err, const char *what)
{
	const int err = o.mixed ? mixed_err : pfnmap_err;

	ASSERT_TRUE(err ? ret == -1 && errno == err : !ret) TH_LOG("%s: %ld, %d", what, ret, errno);
}

/* Another mapping of the object, without page tables */
static char *map_other(int prot)
{
	char *addr = o.area + 4 * span_size() + 8 * psize();

	ASSERT_TRUE(map_at(addr, NR, prot, MAP_SHARED));
	return addr;
}

static unsigned long in_core(char *addr)
{
	unsigned char vec[NR];
	unsigned long i, nr = 0;

	ASSERT_EQ(mincore(addr, SIZE, vec), 0);
	for (i = 0; i < NR; i++)
		nr += vec[i] & 1;
	return nr;
}

/* Mapped is in core, whatever it is; else the page cache is asked. */
TEST_F(walk, mincore)
{
	ASSERT_EQ(in_core(o.addr), NR);
	map();
	ASSERT_EQ(in_core(o.addr), 0);
	set_window(1);
	fill(5, 1);
	ASSERT_EQ(in_core(o.addr), 1);
}

/*
 * VM_PFNMAP is a hole.  Others have a pfn, but not a page of a file, nor one that is
 * mapped.  Nothing that has not been registered is write-protected.
 */
TEST_F(walk, pagemap)
{
	/* LRU, SLAB, BUDDY, MMAP, ANON, HUGE, UNEVICTABLE, KSM */
	const uint64_t flags_of_vm = 0x261ca0, mmap_flag = 0x800;
	const int pagemap = open("/proc/self/pagemap", O_RDONLY);
	const int kpagecount = open("/proc/kpagecount", O_RDONLY);
	const int kpageflags = open("/proc/kpageflags", O_RDONLY);
	struct page_region region;
	struct pm_scan_arg arg = {
		.size = sizeof(arg), .vec = (uintptr_t)&region, .vec_len = 1,
		.category_mask = PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_PRESENT | PAGE_IS_FILE | PAGE_IS_PFNZERO | PAGE_IS_WPALLOWED,
	};
	uint64_t count, flags;

	for (unsigned long i = 0; i < NR; i++) {
		const uint64_t entry = pagemap_get_entry(pagemap, page_at(i));
		const bool page = is_page(i) && is_source(i);

		ASSERT_EQ(entry & (PM_SWAP | PM_UFFD_WP | PM_GUARD_REGION), 0);
		ASSERT_EQ(!!(entry & PM_PRESENT), o.mixed);
		ASSERT_EQ(!!(entry & PM_FILE), page);
		ASSERT_EQ(PAGEMAP_PFN(entry), o.mixed ? inspect(page_at(i)).pfn : 0);
		arg.start = (uintptr_t)page_at(i);
		arg.end = arg.start + psize();
		ASSERT_EQ(ioctl(pagemap, PAGEMAP_SCAN, &arg), o.mixed);
		ASSERT_TRUE(!o.mixed || region.categories ==
			    (page ? PAGE_IS_PRESENT | PAGE_IS_FILE : PAGE_IS_PRESENT));
		if (!o.pages[i].valid || o.kind.flags & COMPOUND)
			continue;
		ASSERT_EQ(!!(entry & PM_MMAP_EXCLUSIVE), has_page(i));
		ASSERT_EQ(pread(kpagecount, &count, 8, o.pages[i].pfn * 8), 8);
		ASSERT_EQ(count, page);
		ASSERT_EQ(pread(kpageflags, &flags, 8, o.pages[i].pfn * 8), 8);
		ASSERT_EQ(flags & flags_of_vm, page ? mmap_flag : 0);
	}
	arg.start = (uintptr_t)o.addr;
	arg.category_mask = 0;
	arg.return_mask = PAGE_IS_WRITTEN;
	arg.flags = PM_SCAN_WP_MATCHING;
	expect(ioctl(pagemap, PAGEMAP_SCAN, &arg), 0, 0, "PM_SCAN_WP_MATCHING");
	arg.flags |= PM_SCAN_CHECK_WPASYNC;
	expect(ioctl(pagemap, PAGEMAP_SCAN, &arg), EPERM, EPERM, "PM_SCAN_CHECK_WPASYNC");
}

/* check() looks at Rss and Anonymous. */
TEST_F(walk, smaps)
{
	static const char * const none[] = { "Shared_Clean:", "Shared_Dirty:", "KSM:", "Swap:" };
	const long rss = smaps_sum(o.addr, NR, "Rss:");

	for (unsigned int i = 0; i < ARRAY_SIZE(none); i++)
		EXPECT_LE(smaps_sum(o.addr, NR, none[i]), 0);
	EXPECT_EQ(smaps_sum(o.addr, NR, "Pss:"), rss);
	EXPECT_EQ(check_vmflag_pfnmap(o.addr), !o.mixed);
}

/*
 * Only pages get old.  All but VM_PFNMAP is write-protected to find soft-dirty pages,
 * and the writes work, without the driver.  In VM_PFNMAP nothing is soft-dirty.
 */
TEST_F(walk, clear_refs)
{
	const bool soft_dirty = softdirty_supported() && o.mixed;
	const int pagemap = open("/proc/self/pagemap", O_RDONLY);
	const uint64_t faults = stats().faults;

	for (unsigned long i = 1; i <= 4; i++)
		ASSERT_EQ(write_sysfs("/proc/self/clear_refs", i), 0);
	for (unsigned long i = 0; i < NR; i++)
		o.pages[i].pte &= ~(soft_dirty ? WRITE : 0);
	check("clear_refs");
	for (unsigned long i = 0; i < NR; i++) {
		ASSERT_FALSE(soft_dirty && pagemap_is_softdirty(pagemap, page_at(i)));
		if (i % 3)
			continue;
		write_page(i, i);
		ASSERT_EQ(pagemap_is_softdirty(pagemap, page_at(i)), soft_dirty);
	}
	ASSERT_EQ(stats().faults, faults);
}

/* The error of each, or 0; EINVAL as well for what a kernel may be built without */
#define ADVICE(_advice, ...)	{ #_advice, _advice, ##__VA_ARGS__ }

static const struct {
	const char *name;
	int advice, pfnmap, mixed;
	bool optional, of_process, drops;
} advices[] = {
	ADVICE(MADV_RANDOM), ADVICE(MADV_NORMAL), ADVICE(MADV_DONTDUMP), ADVICE(MADV_KEEPONFORK),
	ADVICE(MADV_DOFORK, EINVAL, EINVAL), ADVICE(MADV_DODUMP, EINVAL, EINVAL),
	ADVICE(MADV_WIPEONFORK, EINVAL, EINVAL), ADVICE(MADV_FREE, EINVAL, EINVAL),
	ADVICE(MADV_GUARD_INSTALL, EINVAL, EINVAL), ADVICE(MADV_GUARD_REMOVE, EINVAL, EINVAL),
	ADVICE(MADV_DONTNEED, EINVAL, .drops = 1), ADVICE(MADV_DONTNEED_LOCKED, EINVAL, .drops = 1),
	ADVICE(MADV_MERGEABLE, .optional = true), ADVICE(MADV_UNMERGEABLE, .optional = true),
	ADVICE(MADV_HUGEPAGE, .optional = true), ADVICE(MADV_NOHUGEPAGE, .optional = true),
	ADVICE(MADV_WILLNEED, .of_process = true), ADVICE(MADV_COLD, EINVAL, .of_process = true),
	ADVICE(MADV_PAGEOUT, EINVAL, .of_process = true),
	ADVICE(MADV_COLLAPSE, EINVAL, EINVAL, .of_process = true),
};

static void check_advice(unsigned int row, int pidfd, unsigned long first, unsigned long nr)
{
	const struct iovec iov = { page_at(first), nr * psize() };
	const int advice = advices[row].advice;
	long ret = pidfd < 0 ? madvise(iov.iov_base, iov.iov_len, advice) :
		   syscall(SYS_process_madvise, pidfd, &iov, 1, advice, 0);

	if (ret < 0 && errno == EINVAL && advices[row].optional)
		return;
	expect(ret > 0 ? ret - (long)iov.iov_len : ret, advices[row].pfnmap, advices[row].mixed,
	       advices[row].name);
	/* Copies that have gone to swap come back. */
	for (unsigned long i = 0; i < NR && advice == MADV_PAGEOUT; i++)
		load(page_at(i));
	if (o.mixed && advices[row].drops)
		drop(first, nr);
	check(advices[row].name);
	fill(0, NR);
}

/* What madvise() says, and that it does nothing else, for a part and for all. */
TEST_F(walk, madvise)
{
	for (unsigned int i = 0; i < 2 * ARRAY_SIZE(advices); i++)
		check_advice(i / 2, -1, i % 2 ? 0 : PART, i % 2 ? NR : PART_NR);
}

TEST_F(walk, process_madvise)
{
	const pid_t pid = start_child();

	if (!pid) {
		raise(SIGSTOP);
		o.ignore = YOUNG;
		check("child");
		_exit(0);
	}
	for (unsigned int i = 0; i < ARRAY_SIZE(advices); i++)
		if (advices[i].of_process)
			check_advice(i, syscall(SYS_pidfd_open, pid, 0), PART, PART_NR);
	end_child(pid);
}

/* Memory failure (MADV_HWPOISON, MADV_SOFT_OFFLINE) is not injected into what is no page. */
TEST_F(walk, inject_error)
{
	unsigned long hwcorrupted, i;
	const int err = get_hardware_corrupted_size(&hwcorrupted) ? EINVAL : EFAULT;

	for (i = 0; i < NR; i++) {
		if (has_page(i))
			continue;	/* would be lost */
		ASSERT_EQ(madvise(page_at(i), psize(), MADV_HWPOISON + i % 2), -1);
		/* GUP's EEXIST ought to be EFAULT, too. */
		ASSERT_TRUE(errno == err || (errno == EEXIST && o.mixed));
	}
}

/* What is no page gets dirty; a private page is copied. */
static void populated_for_write(void)
{
	for (unsigned long i = 0; i < NR && o.mixed; i++)
		if (o.private || !is_page(i))
			written(i, o.pages[i].val);
}

/* Nothing of it is locked, but VM_MIXEDMAP is populated nevertheless. */
TEST_F(walk, mlock)
{
	const long locked = status_kb("VmLck:");
	char *other = map_other(PROT_READ);

	ASSERT_EQ(mlock(o.addr, SIZE) | mlock(other, SIZE), 0);
	ASSERT_EQ(status_kb("VmLck:"), locked);
	ASSERT_EQ(count_present(other, NR), o.mixed ? NR : 0);
	reserve(other, NR);
	if (o.private)
		populated_for_write();
}

/* Pages are faulted in.  A child's PTEs, which are there, are made dirty, not young. */
TEST_F(walk, populate)
{
	pid_t pid;

	map();
	expect(madvise(o.addr, SIZE, MADV_POPULATE_READ), EINVAL, 0, "read");
	for (unsigned long i = 0; i < NR && o.mixed; i++)
		faulted(i, false);
	check("MADV_POPULATE_READ");
	use(7);
	pid = start_child();
	if (!pid) {
		o.ignore = YOUNG;	/* or left to the hardware, as x86 does */
		expect(madvise(o.addr, SIZE, MADV_POPULATE_READ), EINVAL, 0, "read");
		check_ptes("child, MADV_POPULATE_READ");
		raise(SIGSTOP);
		_exit(0);
	}
	end_child(pid);
	expect(madvise(o.addr, SIZE, MADV_POPULATE_WRITE), EINVAL, 0, "write");
	populated_for_write();
}

/* Protection is changed where it is asked for, and nothing is lost. */
TEST_F(walk, mprotect)
{
	unsigned long i, first, nr;

	for (first = 0; first <= PART; first += PART) {
		nr = first ? PART_NR : NR;
		protect(first, nr, PROT_READ);
		check("PROT_READ");
		for (i = first; i < first + nr; i++)
			ASSERT_EQ(try_store(page_at(i) + 64, 0), SIGSEGV);
		protect(first, nr, PROT_NONE);
		check_ptes("PROT_NONE");
		for (i = 0; i < NR; i++)
			ASSERT_EQ(touch(page_at(i)), i - first < nr ? SIGSEGV : 0);
		ASSERT_EQ(in_core(o.addr), NR);
		protect(first, nr, RW);
		check("PROT_READ | PROT_WRITE");
	}
	/* x86 with L1TF may refuse it for what is no memory, and leaves all as it is. */
	ASSERT_EQ(seteuid(65534), 0);
	if (mprotect(o.addr, SIZE, PROT_NONE))
		ASSERT_TRUE(errno == EACCES && (o.kind.place == PFNMAP_TEST_VRAM ||
						o.kind.flags & ALTERNATE));
	protect(0, NR, RW);
	ASSERT_EQ(seteuid(0), 0);
	use(8);
}

/*
 * PTEs move as they are, all or a part of them, and need no other fault.  VM_MIXEDMAP
 * alone allows for what VM_PFNMAP, or VM_DONTEXPAND, forbids.
 */
TEST_F(walk, mremap)
{
	const unsigned long end = PART + PART_NR;
	char *old = o.addr, *to = o.area + 3 * span_size() - 33 * psize();

	/* Twice; a private one can't be */
	expect(move(old, 0, NR, 0, to) - 1, EFAULT, o.private ? EINVAL : 0, "twice");
	for (unsigned long i = 0; i < NR && o.mixed && !o.private; i++)
		ASSERT_TRUE(content_ok(to + i * psize(), i));
	o.mappings += o.mixed && !o.private;
	check("twice");
	reserve(to, NR);
	o.mappings = 1;
	/* Both addresses, but PTEs only at the new one */
	expect(move(old, NR, NR, MREMAP_DONTUNMAP, to) - 1, EINVAL, 0, "MREMAP_DONTUNMAP");
	if (o.mixed) {
		ASSERT_EQ(count_present(old, NR), 0);
		reserve(old, NR);
		o.addr = to;
	}
	check("MREMAP_DONTUNMAP");
	/* Longer than the object */
	to = o.area + 6 * span_size() - 7 * psize();
	expect(move(o.addr, NR, NR + 1, 0, to) - 1, EFAULT, 0, "longer");
	o.addr = o.mixed ? to : o.addr;
	ASSERT_EQ(touch(page_at(NR)), o.mixed ? SIGBUS : SIGSEGV);
	/* It is three VMAs then, and goes in three pieces. */
	ASSERT_TRUE(move(page_at(PART), PART_NR, PART_NR, 0, o.area));
	ASSERT_TRUE(move(o.area, PART_NR, PART_NR, 0, page_at(PART)));
	to = o.area + 20 * psize();
	ASSERT_TRUE(move(o.addr, PART, PART, 0, to));
	ASSERT_TRUE(move(page_at(PART), PART_NR, PART_NR, 0, to + PART * psize()));
	ASSERT_TRUE(move(page_at(end), NR - end, NR - end - 10, 0, to + end * psize()));
	o.addr = to;
	drop(NR - 10, 10);
}

/* No PTE marker gets there, nor is anything taken from there. */
TEST_F(walk, userfaultfd)
{
	static const uint64_t features[] = { 0, UFFD_FEATURE_WP_ASYNC };
	struct uffdio_copy copy = { .dst = (uintptr_t)o.addr, .len = psize() };

	for (unsigned int i = 0; i < 6; i++) {
		struct uffdio_api api = { .api = UFFD_API, .features = features[i / 3] };
		const int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

		if (uffd < 0)
			SKIP_TEST("userfaultfd: %s", strerror(errno));
		/* Not every architecture has WP_ASYNC. */
		if (ioctl(uffd, UFFDIO_API, &api))
			continue;
		ASSERT_EQ(uffd_register(uffd, o.addr, SIZE, i % 3 == 0, i % 3 == 1, i % 3 == 2),
			  -EINVAL);
		expect(ioctl(uffd, UFFDIO_COPY, &copy), ENOENT, ENOENT, "copy");
	}
}

/* An architecture must not look for the struct page to make its caches coherent. */
TEST_F(walk, exec)
{
	unsigned int i, method;
	char *other;

	for (i = 0; i <= 2 * PFNMAP_TEST_MIXED_ITER + 1; i++) {
		method = o.kind.method == PFNMAP_TEST_PAGES ? PFNMAP_TEST_PAGES : i / 2;
		if (o.mixed ? method < PFNMAP_TEST_MIXED : method >= PFNMAP_TEST_MIXED)
			continue;
		ASSERT_EQ(DO_METHOD(method, .window = 16), 0);
		/* When they are inserted, or later */
		other = map_other(i % 2 ? PROT_READ | PROT_EXEC : PROT_READ);
		ASSERT_EQ(load(other + 8), 0);
		ASSERT_EQ(mprotect(other, SIZE, PROT_READ | PROT_EXEC), 0);
		ASSERT_EQ(load(other + 8), 0);
		reserve(other, NR);
	}
	protect(0, NR, RW | PROT_EXEC);
}

/* Compaction has nothing to move here. */
TEST_F(walk, compact)
{
	if (write_sysfs("/proc/sys/vm/compact_memory", 1))
		SKIP_TEST("no CONFIG_COMPACTION");
}

static int hmm(int fd, unsigned long cmd, const char *addr, void *ptr)
{
	struct hmm_dmirror_cmd arg = { (uintptr_t)addr, (uintptr_t)ptr, 1 };

	return ioctl(fd, cmd, &arg);
}

/* A device gets pages only, and says so before it faults or after. */
TEST_F(walk, hmm)
{
	char *other = map_other(PROT_READ), *buf = malloc(psize());
	const int fd = open(HMM_DEVICE, O_RDWR);
	unsigned char perm;
	int ret;

	if (fd < 0)
		SKIP_TEST("no " HMM_DEVICE);
	/* The fault for a write may come before the look at the page. */
	o.ignore |= DIRTY;
	for (unsigned long i = 0; i < NR; i++) {
		const int err = has_page(i) ? 0 : EFAULT;

		ASSERT_EQ(hmm(fd, HMM_DMIRROR_SNAPSHOT, page_at(i), &perm), 0);
		ASSERT_EQ(perm == HMM_DMIRROR_PROT_ERROR, !!err);
		ret = hmm(fd, HMM_DMIRROR_MIGRATE_TO_DEV, page_at(i), buf);
		expect(ret, EINVAL, EINVAL, "migrate");
		expect(hmm(fd, HMM_DMIRROR_READ, page_at(i), buf), err, err, "read");
		ASSERT_TRUE(err || content_ok(buf, i));
		if (err && !o.private)
			expect(hmm(fd, HMM_DMIRROR_WRITE, page_at(i), buf), err, err, "write");
	}
	/* Not mapped yet */
	ASSERT_EQ(hmm(fd, HMM_DMIRROR_SNAPSHOT, other, &perm), 0);
	ASSERT_EQ(perm, o.mixed ? HMM_DMIRROR_PROT_NONE : HMM_DMIRROR_PROT_ERROR);
	expect(hmm(fd, HMM_DMIRROR_READ, other, buf), EFAULT, is_page(0) ? 0 : EFAULT, "read");
	ASSERT_EQ(count_present(other, 1), o.mixed);
	reserve(other, NR);
}

/* Pages and copies are on a node, pfns are not, and nothing moves them. */
TEST_F(walk, numa)
{
	const unsigned long node0 = 1;
	int status[NR], nodes[NR] = {}, flags;
	void *pages[NR];

	for (unsigned long i = 0; i < NR; i++)
		pages[i] = page_at(i);
	if (syscall(SYS_move_pages, 0, NR, pages, NULL, status, 0))
		SKIP_TEST("move_pages: %s", strerror(errno));
	for (unsigned long i = 0; i < NR; i++)
		ASSERT_EQ(status[i], has_page(i) ? 0 : -ENOENT);
	ASSERT_GE(syscall(SYS_move_pages, 0, NR, pages, nodes, status, MPOL_MF_MOVE_ALL), 0);
	for (unsigned long i = 0; i < NR; i++)
		ASSERT_TRUE(has_page(i) || status[i] == (o.mixed ? -ENOENT : -EFAULT));
	for (flags = 0; flags < 8; flags++)
		ASSERT_TRUE(!syscall(SYS_mbind, o.addr, SIZE, MPOL_BIND, &node0, 64, flags) ||
			    (flags & MPOL_MF_STRICT && (o.private || is_page(0))));
}

static void unload_hmm(void)
{
	system("modprobe -r test_hmm");
}

static void __attribute__((constructor)) load_hmm(void)
{
	/* Unloaded at the end only: the harness does not return. */
	if (!geteuid() && access(HMM_DEVICE, F_OK) && !system("modprobe test_hmm 2>/dev/null"))
		atexit(unload_hmm);
}

TEST_HARNESS_MAIN
