#!/usr/bin/env bats
# ci/run build --each, on a tree of a few files whose makefile knows the targets that --each uses.

setup() {
	TOP=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
	export TOP
	export OUT=$BATS_TEST_TMPDIR/out CI_CACHE=$BATS_TEST_TMPDIR/cache
	export TREE=$OUT/tree
	unset KSRC RESULTS SERIES ARCH
	mkdir -p "$TREE"/{mm,init,arch/x86/mm,arch/arm64/mm,scripts/kconfig,tools/testing/selftests/mm,include/linux}
	cd "$TREE" || return
	git init -q -b series .
	git config user.name ci && git config user.email ci@localhost
	cat >Makefile <<-'MAKE'
	MAKEFLAGS += -rR
	Makefile: ;
	.PHONY: olddefconfig prepare headers FORCE
	olddefconfig headers: ;
	prepare: ; @mkdir -p $(O)/include/config; cp $(O)/.config $(O)/include/config/auto.conf
	%.o: FORCE ; @mkdir -p $(O)/$(@D); echo CC $@; $(CC) -Iinclude -c $*.c -o $(O)/$@
	%/: FORCE ; @echo DIR $@; test ! -f $@broken
	MAKE
	cat >scripts/kconfig/merge_config.sh <<-'SH'
	#!/bin/bash
	while getopts nQO: o; do case $o in O) out=$OPTARG ;; *) ;; esac; done
	shift $((OPTIND - 1))
	cat "$@" >"$out/.config"
	SH
	chmod +x scripts/kconfig/merge_config.sh
	cat >tools/testing/selftests/mm/Makefile <<-'MAKE'
	TEST_GEN_FILES = pfnmap
	TEST_GEN_FILES += two
	$(OUTPUT)/%: %.c ; $(CC) $< -o $@
	MAKE
	echo CONFIG_FTRACE=y >tools/testing/selftests/mm/config
	echo 'int main(void) { return 0; }' | tee tools/testing/selftests/mm/pfnmap.c >tools/testing/selftests/mm/two.c
	# shellcheck disable=SC2016
	printf 'obj-y := memory.o\nobj-$(CONFIG_NO_SUCH) += nommu.o\n' >mm/Makefile
	printf 'obj-y := main.o\n' >init/Makefile
	echo 'int memory(void);' >include/linux/mm.h
	printf '#include <linux/mm.h>\nint memory(void) { return 1; }\n' >mm/memory.c
	echo '#error not with an MMU' >mm/nommu.c
	echo 'int init;' >init/main.c
	touch Kbuild
	commit base
	git tag ci-base
}

commit() { git add -Af . && git commit -qm "$1"; }
each() { bash "$TOP/ci/run" build --each "$@" 2>"$BATS_TEST_TMPDIR/err"; }

@test "each: patches that build are ok, one point for each of them" {
	echo 'int one;' >>mm/memory.c && commit 'mm: one'
	mkdir Documentation && echo two >Documentation/two.rst && commit 'docs: two'
	run each
	[ "$status" -eq 0 ]
	[[ $output == *'ok 1 - each: mm: one'* ]]
	[[ $output == *'ok 2 - each: docs: two (nothing to compile)'* ]]
	[[ $output == *'1..2'* ]]
	grep -q '^1\.\.2$' "$OUT/results/each-x86_64-normal.tap"
}

@test "each: a patch that breaks the build is red, though the next one repairs it" {
	echo 'int one' >>mm/memory.c && commit 'mm: broken'
	echo ';' >>mm/memory.c && commit 'mm: repaired'
	run each
	[ "$status" -eq 1 ]
	[[ $output == *'not ok 1 - each: mm: broken'* ]]
	[[ $output == *'error: expected'* ]]
	[[ $output == *$'\nok 2 - each: mm: repaired'* ]]
}

@test "each: a header that breaks who includes it" {
	echo 'long memory(void);' >include/linux/mm.h && commit 'mm: other type'
	run each
	[ "$status" -eq 1 ]
	[[ $output == *'not ok 1 - each: mm: other type'* ]]
	[[ $output == *'conflicting types'* ]]
}

@test "each: a selftest that does not compile" {
	echo 'int main(void) { return x; }' >tools/testing/selftests/mm/two.c && commit 'selftests/mm: two'
	run each
	[ "$status" -eq 1 ]
	[[ $output == *'not ok 1 - each: selftests/mm: two'* ]]
	[[ $output == *"'x' undeclared"* ]]
}

@test "each: a directory is built when its Makefile changes" {
	touch mm/Kconfig && commit 'mm: an option'
	touch mm/broken && echo 'obj-y += new.o' >>mm/Makefile && commit 'mm: new'
	run each
	[ "$status" -eq 1 ]
	grep -qx 'DIR mm/' "$OUT/log/each-x86_64-normal-0001.log"
	[[ $output == *'ok 1 - each: mm: an option'*'not ok 2 - each: mm: new'* ]]
}

@test "each: what is switched off, or of another architecture, is noted and not built" {
	echo '#error again' >>mm/nommu.c && echo '#error arm64' >arch/arm64/mm/mmu.c
	echo 'int three;' >>mm/memory.c && commit 'mm: both'
	run each
	[ "$status" -eq 0 ]
	grep -q 'note: mm/nommu.o is not part of this configuration' "$OUT/log/each-x86_64-normal-0001.log"
	grep -q 'note: arch/arm64/mm/mmu.c is not of x86_64' "$OUT/log/each-x86_64-normal-0001.log"
	grep -q 'CC mm/memory.o' "$OUT/log/each-x86_64-normal-0001.log"
}

@test "each: what passed is not built again, what failed is" {
	echo 'int one;' >>mm/memory.c && commit 'mm: one'
	echo 'int two' >>mm/memory.c && commit 'mm: two'
	run each
	[ "$status" -eq 1 ]
	rm -rf "$OUT/each-tree" "$OUT/build"
	git worktree prune
	run each
	[ "$status" -eq 1 ]
	[[ $output == *'ok 1 - each: mm: one (built before)'* ]]
	[[ $output == *'not ok 2 - each: mm: two'* ]]
}

@test "each: the same patch under another configuration is built again" {
	echo 'int one;' >>mm/memory.c && commit 'mm: one'
	run each
	[ "$status" -eq 0 ]
	run each --variant debug
	[ "$status" -eq 0 ]
	[[ $output != *'built before'* ]]
}

@test "each: the kernel source that it works in is not changed" {
	echo 'int one;' >>mm/memory.c && commit 'mm: one'
	run each
	[ "$status" -eq 0 ]
	[ -z "$(git status --porcelain)" ]
	[ "$(git symbolic-ref HEAD)" = refs/heads/series ]
}
