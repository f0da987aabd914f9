#!/usr/bin/env bats
# The entry, deps, and how results are summed up.

# shellcheck disable=SC2016
load host
setup() { host_setup; }

@test "--help of each stage" {
	local f
	for f in "$TOP"/ci/stages/*.sh; do
		run ci "$(basename "$f" .sh)" --help
		[[ $status -eq 0 && $output == "usage: ci/run $(basename "$f" .sh)"* ]]
	done
	run ci --help
	[[ $status -eq 0 ]]
}

@test "each stage is in the list of stages" {
	local f
	run ci --help
	for f in "$TOP"/ci/stages/*.sh; do grep -q "^  $(basename "$f" .sh) " <<<"$output"; done
}

@test "an unknown stage, option, or no stage is a harness error" {
	run ci nosuchstage
	[[ $status -eq 2 && $output == *'unknown stage "nosuchstage"'* ]]
	run ci ../lib/common
	[[ $status -eq 2 ]]
	run ci
	[[ $status -eq 2 ]]
	for s in deps tree apply check export mbox alone mutate range-diff regress all; do
		run ci "$s" --no-such-option
		[[ $status -eq 2 ]]
	done
	run ci tree --linux
	[[ $status -eq 2 ]]
}

fake_dpkg() {
	mkdir -p "$T/bin"
	printf '#!/bin/sh\n%s\n' "$1" >"$T/bin/dpkg-query"
	printf '#!/bin/sh\necho "$@" >>%s/apt-called\n' "$T" >"$T/bin/apt-get"
	chmod +x "$T/bin"/*
	PATH=$T/bin:$PATH
}

@test "deps: who is not root gets one line, and status 4" {
	fake_dpkg 'echo git installed; echo make installed'
	CI_UID=1000 run --separate-stderr ci deps
	[[ $status -eq 4 ]]
	[[ ${#lines[@]} -eq 1 && $output == "sudo apt-get update && sudo apt-get install -y "* ]]
	[[ " $output " == *" quilt "* && " $output " == *" qemu-system-x86 "* && " $output " != *" git "* ]]
	[[ ! -e $T/apt-called ]]
}

@test "deps: nothing to do when all is there; update only when something is missing" {
	fake_dpkg "for p in $(ci deps --print); do echo \$p installed; done"
	CI_UID=0 run ci deps
	[[ $status -eq 0 && ! -e $T/apt-called ]]
	fake_dpkg "for p in $(ci deps --print); do [ \$p = quilt ] || echo \$p installed; done"
	CI_UID=0 run ci deps
	[[ $status -eq 0 ]]
	grep -q update "$T/apt-called"
	grep -q 'install.* quilt$' "$T/apt-called"
	run ci deps --arch nosuch
	[[ $status -eq 2 ]]
}

tally() { bash "$TOP/ci/lib/tally.sh" "$@"; }

@test "tally: sums, and the last line says so" {
	printf 'TAP version 13\nok 1 - a\nok 2 - b # SKIP why\n    not ok 1 - nested\n1..2\n' >"$T/a.tap"
	printf '1..1\nok 1 - c in 3ms # skip later\n' >"$T/b.tap"
	run tally "$T/a.tap" "$T/b.tap"
	[[ $status -eq 0 && ${lines[-1]} == "1 passed, 0 failed, 2 skipped" ]]
	printf '1..2\nnot ok 1 - x\nok 2 - y\n' >"$T/c.tap"
	run tally "$T/a.tap" "$T/b.tap" "$T/c.tap"
	[[ $status -eq 1 && ${lines[-1]} == "2 passed, 1 failed, 2 skipped" && $output == *"c.tap: not ok 1 - x"* ]]
}

@test "tally: a truncated, empty or missing file is a failure, and no test at all too" {
	printf '1..3\nok 1\nok 2\n' >"$T/a.tap"
	run tally "$T/a.tap"
	[[ $status -eq 1 && ${lines[-1]} == "2 passed, 1 failed, 0 skipped" ]]
	printf 'ok 1\n' >"$T/a.tap"
	run tally "$T/a.tap"
	[[ $status -eq 1 ]]
	printf '1..1\nok 1\nBail out! gone\n' >"$T/a.tap"
	run tally "$T/a.tap"
	[[ $status -eq 1 ]]
	: >"$T/a.tap"
	run tally "$T/a.tap"
	[[ $status -eq 1 ]]
	run tally "$T/nosuch.tap"
	[[ $status -ne 0 ]]
	printf '1..0 # SKIP nothing here\n' >"$T/a.tap"
	run tally "$T/a.tap"
	[[ $status -eq 0 && ${lines[-1]} == "0 passed, 0 failed, 1 skipped" ]]
}

# all, with stages that only say what they are told to.
stub_all() {
	local s
	mkdir -p "$T/repo"
	cp -r "$TOP/ci" "$T/repo/ci"
	for s in deps tree apply check build test alone mutate regress; do
		printf '. "$TOP/ci/lib/common.sh"\ntap_begin %s; tap_ok one; tap_end\necho %s >>%s\n' "$s" "$s" "$T/called" \
			>"$T/repo/ci/stages/$s.sh"
	done
}
stub() { printf '%s\n' "$2" >"$T/repo/ci/stages/$1.sh"; }
all() { bash "$T/repo/ci/run" all "$@"; }

@test "all: every stage, and the sum as the last line" {
	stub_all
	run all
	echo "$output"
	[[ $status -eq 0 && ${lines[-1]} == "6 passed, 0 failed, 0 skipped" ]]
	[[ $(tr -d ' \n' <"$T/called") == depstreeapplycheckbuildtest ]]
}

@test "all: a stage that fails without a word counts as failed" {
	stub_all
	stub build 'exit 1'
	run all
	[[ $status -eq 1 && ${lines[-1]} == *", 1 failed, 0 skipped" && $output == *"not ok 1 - build x86_64 normal"* ]]
	run ! grep -q '^test' "$T/called"
}

@test "all: failures of a stage are not counted twice; what can go on does" {
	stub_all
	stub check '. "$TOP/ci/lib/common.sh"; tap_begin check; tap_not_ok bad; tap_end || exit 1'
	run all
	[[ $status -eq 1 && ${lines[-1]} == "5 passed, 1 failed, 0 skipped" ]]
	grep -q '^test' "$T/called"
}

@test "all: a harness error is status 2, old results do not count" {
	stub_all
	stub apply 'exit 2'
	mkdir -p "$OUT/results"
	printf '1..1\nok 1 - stale\n' >"$OUT/results/stale.tap"
	run all
	[[ $status -eq 2 && ${lines[-1]} == "2 passed, 1 failed, 0 skipped" ]]
}

stub_selftest() {
	printf '. "$TOP/ci/lib/common.sh"; tap_begin "self${1-}"; tap_ok one; tap_end\n' >"$T/repo/ci/lib/selftest.sh"
}

@test "all: with --full steps run side by side, and all count" {
	stub_all
	stub_selftest
	stub test '. "$TOP/ci/lib/common.sh"; tap_begin "test-$2-$4"; tap_ok one; tap_end; echo "in $2 $4"'
	run all --full
	echo "$output"
	[[ $status -eq 0 && $output == *"in arm normal"*"test arm normal "*"pass"* ]]
	[[ -s $OUT/results/test-arm-normal.tap && -s $OUT/results/test-x86_64-normal.tap && -s $OUT/results/selflive.tap ]]
	[[ ${lines[-1]} == "11 passed, 0 failed, 0 skipped" ]]
	# The test on x86_64 ends only when arm's kernel is built.
	stub build '. "$TOP/ci/lib/common.sh"; tap_begin "build-$2-$4"; tap_ok one; tap_end; touch "$OUT/built-$2"'
	stub test '. "$TOP/ci/lib/common.sh"; [[ $2 == x86_64 ]] || exit 0; for ((i = 0; i < 100; i++)); do [[ ! -e $OUT/built-arm ]] || exit 0; sleep 0.2; done; exit 1'
	run all --full
	[[ $status -eq 0 ]]
}

@test "all: a step beside others that fails, or is killed, is red" {
	stub_all
	stub_selftest
	for a in 'arm normal' 'x86_64 normal'; do
		stub test '. "$TOP/ci/lib/common.sh"; [[ "$2 $4" != "'"$a"'" ]] || exit 2'
		run all --full
		[[ $status -eq 2 && $output == *"not ok"*"test $a"*"exit status 2"* ]]
	done
	stub test '. "$TOP/ci/lib/common.sh"; [[ $2 != arm ]] || kill -9 0'
	run all --full
	[[ $status -eq 2 && $output == *"not ok"*"the steps beside others, static, ended early"* ]]
}

@test "all: what takes long is for --each" {
	stub_all
	stub_selftest
	stub test '. "$TOP/ci/lib/common.sh"; tap_begin "test-$2-$4"; tap_ok one; tap_end; echo "args: $*"'
	stub check '. "$TOP/ci/lib/common.sh"; tap_begin check; tap_ok one; tap_end; echo "check: $*"'
	stub regress '. "$TOP/ci/lib/common.sh"; tap_begin regress; tap_ok one; tap_end; echo "regress: $*"'
	stub mutate '. "$TOP/ci/lib/common.sh"; tap_begin mutate; tap_ok one; tap_end; echo "mutate: $*"'
	run all --full
	[[ $output == *"args: --arch x86_64 --variant normal"$'\n'* && $output != *"--variant debug"* ]]
	[[ $output == *"check: --only series,checkpatch,maintainers,kdoc,w1,sparse"$'\n'* ]]
	[[ $output == *"regress: --part check"$'\n'* && $output != *"regress: --base"* ]]
	[[ $output == *"mutate: --sample"$'\n'* ]]
	run ! grep -q alone "$T/called"
	run all --full --each
	[[ $output == *"args: --arch x86_64 --variant debug"$'\n'* && $output == *"check: --each"$'\n'* ]]
	[[ $output == *"regress: "$'\n'* && $output == *"regress: --base"$'\n'* ]]
	[[ $output == *"mutate: "$'\n'* && $output != *"mutate: --sample"* ]]
	grep -q alone "$T/called"
}

@test "all: an interrupted run has no verdict, but says what took how long" {
	stub_all
	stub_selftest
	stub test '. "$TOP/ci/lib/common.sh"; [[ "$2 $4" != "x86_64 normal" ]] || { touch "$OUT/now"; sleep 5; }'
	setsid bash "$T/repo/ci/run" all --full >"$T/log" 2>&1 &
	pid=$!
	for ((i = 0; i < 100; i++)); do [[ ! -e $OUT/now ]] || break; sleep 0.2; done
	kill -TERM -- "-$pid"
	wait "$pid" || status=$?
	cat "$T/log"
	[[ $status -eq 130 && $(<"$T/log") == *"interrupted after"*"build x86_64 normal "*"pass"* ]]
	run ! grep -q ' passed, ' "$T/log"
}

@test "all: missing packages are status 4" {
	stub_all
	stub deps 'echo the line; exit 4'
	run all
	[[ $status -eq 4 && $output == *"the line"* && ${lines[-1]} == "0 passed, 0 failed, 1 skipped" ]]
}

@test "mutate: patches with lines of their own share a kernel" {
	mkdir -p "$T/src" "$T/mutations/1-topic"
	printf '%s\n' one two three four >"$T/src/a.c"
	# mutant NAME LINE HEAD: changes that line
	mutant() {
		cp -r "$T/src" "$T/new"
		sed -i "$2s/$/ mutant($1)/" "$T/new/a.c"
		{
			printf 'It is wrong.\n%s\nTests: ^%s$\n---\n' "$3" "$1"
			diff -u --label a/a.c --label b/a.c "$T/src/a.c" "$T/new/a.c" || true
		} >"$T/mutations/1-topic/$1.patch"
		rm -r "$T/new"
	}
	mutant a 2
	mutant b 3
	mutant c 2
	mutant d 4 "Build: alone"
	mutant e 1
	sed -i 's/one/none/' "$T/mutations/1-topic/e.patch"
	run python3 "$TOP/ci/lib/mutants.py" "$T/src" "$T/mutations" "$T/out"
	[[ $status -eq 0 && $(cut -f2-4 <<<"$output" | tr '\t\n' ' ,') == "a 0 0,b 0 0,c 1 0,d 2 1,e - 0," ]]
	[[ $(sed '1,/^#line/d' "$T/out/0/a.c") == $'one\ntwo mutant(a)\nthree mutant(b)\nfour' ]]
	[[ $(grep -c MUTANT_ "$T/out/1/a.c") == 2 ]]
}
