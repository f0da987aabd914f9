#!/usr/bin/env bats
# A configuration that lost a symbol and a source that does not compile turn the build red.

setup() {
	TOP=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
	real=${OUT:-$TOP/out}
	T=$BATS_TEST_TMPDIR
	check=$TOP/ci/lib/kconfig-check.sh
	work=
}

teardown() { if [[ -n $work ]]; then rm -rf "$work"; fi; }

# fragment NAME: from stdin
fragment() { cat >"$T/$1"; }

@test "kconfig: all there" {
	fragment a <<<$'CONFIG_A=y\nCONFIG_M=m\nCONFIG_N=100\nCONFIG_S="a b"\n# CONFIG_OFF is not set\nCONFIG_GONE=n'
	fragment final <<<$'CONFIG_S="a b"\nCONFIG_N=100\nCONFIG_M=m\nCONFIG_A=y\n# CONFIG_OFF is not set\nCONFIG_MORE=y'
	run "$check" "$T/a" -- "$T/final"
	[ "$status" -eq 0 ]
	[ -z "$output" ]
}

@test "kconfig: each mismatch is named" {
	fragment a <<<$'CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\nCONFIG_D=5\n# CONFIG_E is not set\nCONFIG_FOO=y'
	fragment final <<<$'# CONFIG_A is not set\nCONFIG_B=m\nCONFIG_C=y\nCONFIG_D=6\nCONFIG_E=m\nCONFIG_FOO_BAR=y'
	run "$check" "$T/a" -- "$T/final"
	[ "$status" -eq 1 ]
	[ "${#lines[@]}" -eq 6 ]
	[[ "$output" == *"CONFIG_A: wanted =y"*"CONFIG_FOO: wanted =y ($T/a), got nothing (n)"* ]]
}

@test "kconfig: the later fragment counts" {
	fragment a <<<$'CONFIG_A=y\nCONFIG_B=m'
	: >"$T/empty"
	fragment b <<<$'# CONFIG_A is not set\nCONFIG_B=y'
	fragment final <<<'CONFIG_B=y'
	run "$check" "$T/empty" "$T/a" "$T/empty" "$T/b" -- "$T/final"
	[ "$status" -eq 0 ]
	run "$check" "$T/b" "$T/a" -- "$T/final"
	[ "$status" -eq 1 ]
}

@test "kconfig: built in instead of a module only where that is accepted" {
	fragment a <<<'CONFIG_A=m'
	fragment final <<<'CONFIG_A=y'
	run "$check" "$T/a" -- "$T/final"
	[ "$status" -eq 1 ]
	fragment b <<<'# accept-y: CONFIG_A'
	run "$check" "$T/a" "$T/b" -- "$T/final"
	[ "$status" -eq 0 ]
	[[ "$output" == "note: CONFIG_A is built in"* ]]
	fragment final <<<'# CONFIG_A is not set'
	run "$check" "$T/a" "$T/b" -- "$T/final"
	[ "$status" -eq 1 ]
}

@test "kconfig: wrong usage, an unreadable file and a line that is none are errors" {
	fragment a <<<'CONFIG_A=y'
	run "$check" "$T/a"
	[ "$status" -eq 2 ]
	run "$check" -- "$T/a"
	[ "$status" -eq 2 ]
	run "$check" "$T/none" -- "$T/a"
	[ "$status" -eq 2 ]
	fragment bad <<<'CONFIG_A y'
	run "$check" "$T/bad" -- "$T/a"
	[ "$status" -eq 2 ]
}

need_tree() {
	if [[ ! -f $real/tree/Kbuild ]]; then
		echo "no kernel source in $real/tree; to make it: ci/run tree && ci/run apply"
		return 1
	fi
}

# On the file system of the tree, for links to its files.
workspace() {
	work=$(mktemp -d "$real/bats.XXXXXX")
	export OUT=$work/out TREE=$real/tree RESULTS=$work/results
}

@test "ccache: not for what has .incbin" {
	mkdir "$T/bin"
	printf '#!/bin/sh\necho cached "$@"\n' >"$T/bin/ccache"
	chmod +x "$T/bin/ccache"
	for f in a/piggy.S kernel/configs.c kernel/kheaders.c; do
		[[ $(PATH=$T/bin:$PATH "$TOP/ci/lib/ccache.sh" echo -c -o x.o "../$f") == "-c -o x.o ../$f" ]]
	done
	[[ $(PATH=$T/bin:$PATH "$TOP/ci/lib/ccache.sh" echo -c a/configs.c) == "cached echo -c a/configs.c" ]]
}

@test "ci/run build: a symbol that does not survive is red" {
	need_tree
	workspace
	mkdir "$work/top"
	cp -r "$TOP/ci" "$work/top/ci"
	cp "$TOP/series" "$work/top/"
	run "$work/top/ci/run" build --config-only
	echo "$output"
	[ "$status" -eq 0 ]
	# one that nothing defines, and one whose dependencies are not met
	printf 'CONFIG_NO_SUCH_SYMBOL=y\nCONFIG_SPARC64=y\n' >>"$work/top/ci/configs/base.config"
	run "$work/top/ci/run" build --config-only
	echo "$output"
	[ "$status" -eq 1 ]
	[[ "$output" == *"CONFIG_NO_SUCH_SYMBOL: wanted =y"* ]]
	[[ "$output" == *"CONFIG_SPARC64: wanted =y"* ]]
	# ... the second time, too
	run "$work/top/ci/run" build --config-only
	[ "$status" -eq 1 ]
}

@test "ci/run build: a source that does not compile is red" {
	need_tree
	workspace
	cp -al "$real/tree" "$work/src"
	rm -rf "$work/src/.git"
	# A header that the first objects of a build include; the link to the real one is cut first.
	cp "$work/src/include/linux/mm.h" "$work/mm.h"
	echo '#error this must not build' >>"$work/mm.h"
	mv -f "$work/mm.h" "$work/src/include/linux/mm.h"
	run env PROGRESS_EVERY=1000 "$TOP/ci/run" build --source "$work/src" --kernel-only
	echo "$output"
	[ "$status" -eq 1 ]
	grep -q 'include/linux/mm.h:.*error: #error this must not build' "$OUT"/log/build-x86_64-normal-src.log
	[[ "$output" == *"does not build"* ]]
	run tail -c 100 "$real/tree/include/linux/mm.h"
	[[ "$output" != *"#error"* ]]
}
