#!/usr/bin/env bats
# Architectures: what is known of each, what happens when tools are missing, and what runs the job in a guest
# without a shell.

# shellcheck disable=SC2016,SC2030,SC2031
load host
setup() {
	host_setup
	unset ARCH
}

# A copy of the harness to change.
copy() {
	mkdir -p "$T/repo"
	cp -r "$TOP/ci" "$T/repo/ci"
	facts=$T/repo/ci/configs/arch/arm.facts
}
copied() { bash "$T/repo/ci/run" "$@"; }

arches() { basename -s .facts -a "$TOP"/ci/configs/arch/*.facts; }

@test "facts: complete for each architecture, with a configuration and a list of packages" {
	local a key
	for a in $(arches); do
		(
			unset KERNEL_ARCH CROSS_COMPILE IMAGE QEMU MACHINE CPU CONSOLE VIRTIO_SERIAL VIRTIO_BLK VIRTIO_RNG \
				IVSHMEM VRAM GPU GUEST SMP MEM PAGE_SIZE APPEND
			# shellcheck source=/dev/null
			. "$TOP/ci/configs/arch/$a.facts"
			for key in KERNEL_ARCH IMAGE QEMU MACHINE CPU CONSOLE VIRTIO_SERIAL VIRTIO_BLK VIRTIO_RNG GUEST SMP MEM PAGE_SIZE; do
				[[ -n ${!key-} ]] || { echo "$a: no $key"; exit 1; }
			done
			for key in CROSS_COMPILE IVSHMEM VRAM GPU APPEND; do
				[[ -v $key ]] || { echo "$a: $key is not there, not even empty"; exit 1; }
			done
			[[ $GUEST == full || $GUEST == small ]] || { echo "$a: GUEST=$GUEST"; exit 1; }
			[[ -n $CROSS_COMPILE || $a == x86_64 ]] || { echo "$a: no compiler"; exit 1; }
		)
		[[ -s $TOP/ci/configs/arch/$a.config ]]
		grep -q '^qemu-system-' "$TOP/ci/deps/arch/$a"
		run ci deps --arch "$a" --print
		[[ $status -eq 0 ]]
	done
	# and none of these without facts
	for a in "$TOP"/ci/deps/arch/*; do [[ -f $TOP/ci/configs/arch/${a##*/}.facts ]]; done
}

@test "an architecture that nobody knows is a wrong command line" {
	local s
	for s in build test deps; do
		run ci "$s" --arch nosuch
		[[ $status -eq 2 && $output == *nosuch* ]]
		run ci "$s" --arch ../../lib/common
		[[ $status -eq 2 ]]
	done
}

# skipped NAME: status 4, and one point that says so
skipped() {
	echo "$output"
	[[ $status -eq 4 && $output == *"WARNING: $1 HAS NOT BEEN RUN"* ]]
	[[ $(grep -c '^ok' "$OUT/results/$1.tap") -eq 1 ]]
	grep -q "^ok 1 - $1 # SKIP NOT RUN: .*ci/run deps --arch arm" "$OUT/results/$1.tap"
	run bash "$TOP/ci/lib/tally.sh" "$OUT/results/$1.tap"
	[[ ${lines[-1]} == "0 passed, 0 failed, 1 skipped" ]]
}

@test "a cross compiler that is missing skips the build" {
	copy
	sed -i 's/^CROSS_COMPILE=.*/CROSS_COMPILE=nosuch-/' "$facts"
	run copied build --arch arm
	[[ $output == *"command 'nosuch-gcc' is missing"* ]]
	skipped build-arm-normal
	run copied build --arch arm --variant debug
	skipped build-arm-debug
}

@test "a compiler without a libc to link with skips the build" {
	copy
	mkdir -p "$T/bin"
	printf '#!/bin/sh\nexit 1\n' >"$T/bin/nolibc-gcc"
	chmod +x "$T/bin/nolibc-gcc"
	sed -i 's/^CROSS_COMPILE=.*/CROSS_COMPILE=nolibc-/' "$facts"
	PATH=$T/bin:$PATH run copied build --arch arm
	[[ $output == *"links no static program"* ]]
	skipped build-arm-normal
}

@test "a QEMU that is missing skips the test" {
	copy
	sed -i 's/^QEMU=.*/QEMU=nosuch-qemu/' "$facts"
	run copied test --arch arm
	[[ $output == *"command 'nosuch-qemu' is missing"* ]]
	skipped test-arm-normal
}

@test "this machine's own compiler has to be there" {
	copy
	sed -i 's/^QEMU=.*/QEMU=nosuch-qemu/' "$T/repo/ci/configs/arch/x86_64.facts"
	run copied test
	[[ $status -eq 2 ]]
}

# all, with stages that write down what they are asked for.
stub_all() {
	local s
	copy
	for s in deps tree apply check build test alone mutate regress; do
		printf '. "$TOP/ci/lib/common.sh"\necho "%s $*" >>%s\n%s\ntap_begin "%s-$*"; tap_ok one; tap_end\n' \
			"$s" "$T/called" "${1-}" "$s" >"$T/repo/ci/stages/$s.sh"
	done
	printf 'exit 0\n' >"$T/repo/ci/lib/selftest.sh"
}

@test "all: arm with --full, the others with --arches" {
	local a
	stub_all
	run copied all
	[[ $status -eq 0 ]]
	run ! grep -q arm "$T/called"
	run copied all --full
	echo "$output"
	[[ $status -eq 0 ]]
	grep -qx 'test --arch arm --variant normal' "$T/called"
	run ! grep -q debug "$T/called"
	grep -qx 'deps --optional --arch arm' "$T/called"
	run ! grep -q arm64 "$T/called"
	rm "$T/called"
	run copied all --arches
	[[ $status -eq 0 ]]
	for a in $(arches); do grep -qx "test --arch $a --variant normal" "$T/called"; done
	run ! grep -q debug "$T/called"
	rm "$T/called"
	run copied all --full --arches
	[[ $status -eq 0 ]]
	grep -qx 'test --arch arm --variant debug' "$T/called"
}

@test "all: an architecture whose tools are missing is neither passed nor failed" {
	stub_all 'case "$STAGE $*" in "deps --optional"*arm | "build "*arm*) exit 4 ;; esac'
	run copied all --full
	echo "$output"
	[[ $status -eq 0 && ${lines[-1]} == *" 0 failed, 3 skipped" ]]
	run ! grep -q 'test --arch arm' "$T/called"
	grep -q 'test arm normal # SKIP NOT RUN' "$OUT/results/steps.tap"
}

@test "deps: packages that are not to be had are an error, unless they are optional" {
	mkdir -p "$T/bin"
	printf '#!/bin/sh\nexit 0\n' >"$T/bin/dpkg-query"
	printf '#!/bin/sh\nexit 100\n' >"$T/bin/apt-get"
	chmod +x "$T/bin"/*
	export CI_UID=0 PATH=$T/bin:$PATH
	run ci deps --arch arm
	[[ $status -eq 2 ]]
	run ci deps --arch arm --optional
	[[ $status -eq 4 ]]
}

runner() {
	gcc -O1 -Wall -o "$T/runner" "$TOP/ci/guest/run.c"
	mkdir -p "$T/work"
	cd "$T/work" || return
	printf '#!/bin/sh\necho "TAP version 13"; echo "ok 1 $1.one"; echo "# said $2" >&2; echo "1..1"\n' >good
	printf '#!/bin/sh\necho "TAP version 13"; echo "not ok 1 one"; echo "1..1"; exit 1\n' >bad
	printf '#!/bin/sh\nexit 4\n' >skip
	printf '#!/bin/sh\nkill -SEGV $$\n' >crash
	chmod +x good bad skip crash
	cat >job
	run "$T/runner" job
	echo "$output"
}

@test "run: the output is what the harness reads" {
	runner <<<$'category c\nprogram good first second\nprogram good again\nend c'
	[[ $status -eq 0 ]]
	[[ $output =~ ^'# ci: category c '[0-9.]+$'\nTAP version 13\n# ---\n# running ./good\n# ---\n# TAP version 13\n# ok 1 first.one' ]]
	[[ $output == *$'\n# # said second\n'*$'\nok 1 good\n'*$'\nok 2 good\n1..2\n# ci: status c 0 '* ]]
	run python3 "$TOP/ci/lib/ktap.py" tests <(printf '%s\n' "$output")
	[[ $status -eq 0 && ${lines[0]} == good:first.one && ${lines[1]} == good && ${lines[2]} == good~2:again.one ]]
}

@test "run: failures, crashes, skips, and programs that are not there" {
	runner <<<$'category c\nprogram bad\nprogram skip\nprogram crash\nprogram nosuch\nend c\ncategory d\nprogram skip\nend d'
	[[ $status -eq 1 ]]
	[[ $output == *$'\nnot ok 1 bad # exit=1\n'*$'\nok 2 skip # SKIP\n'*$'\nnot ok 3 crash # exit=139\n'*$'\nnot ok 4 nosuch # exit=127\n1..4\n# ci: status c 1 '*'# ci: status d 4 '* ]]
	runner <<<$'category d\nprogram skip\nend d'
	[[ $status -eq 4 ]]
}

@test "run: what a program leaves running is not waited for, and a last line without an end gets one" {
	cd "$T"
	mkdir work
	printf '#!/bin/sh\nsleep 100 &\nprintf "no end"\n' >work/leaves
	chmod +x work/leaves
	SECONDS=0
	runner <<<$'category c\nprogram leaves\nprogram good x\nend c'
	[[ $status -eq 0 && $SECONDS -lt 30 ]]
	[[ $output == *$'\n# no end\nok 1 leaves\n'*$'\n# ok 1 x.one\n'* ]]
}

@test "run: a module that is not there is said, and so is a line that is none" {
	runner <<<$'category c\nload nosuch\nprogram good\nunload nosuch\nend c'
	[[ $status -eq 0 && $output == *'# ci: module nosuch does not load: No such file or directory'* ]]
	runner <<<$'category c\nrun good\nend c'
	[[ $status -eq 125 && $output == *'Bail out! job: what is "run"?' ]]
}

# A machine that has been built, with a QEMU that says nothing; the job and the list are what is looked at.
fake_build() {
	local b=$OUT/build/arm-normal
	copy
	mkdir -p "$T/bin" "$b/ksft/mm" "$b/arch/arm/boot"
	printf '#!/bin/sh\necho >console.log\n' >"$T/bin/qemu-none"
	printf '#!/bin/sh\nexec gcc "$@"\n' >"$T/bin/fake-gcc"
	chmod +x "$T/bin"/*
	PATH=$T/bin:$PATH
	sed -i 's/^CROSS_COMPILE=.*/CROSS_COMPILE=fake-/; s/^QEMU=.*/QEMU=qemu-none/' "$facts"
	echo kernel >"$b/arch/arm/boot/zImage"
	printf 'pfnmap one\npfnmap two\n' >"$b/ksft/mm/programs"
	echo 'tests from %u test cases' >"$b/ksft/mm/one"
	echo >"$b/ksft/mm/two"
	echo 'pfnmap pfnmap_test' >"$T/repo/ci/expected/categories"
	printf 'one:a.b\none:c.d\none\ntwo\n' >"$T/repo/ci/expected/x86_64-normal.tests"
	rm -f "$T/repo/ci/expected/"*.without
}

@test "test: the job of a small guest" {
	fake_build
	run copied test --arch arm
	echo "$output"
	[[ $status -eq 1 ]]
	[[ $(<"$OUT/test/arm-normal/job") == $'category pfnmap\nload pfnmap_test\nprogram one\nprogram two\nunload pfnmap_test\nend pfnmap' ]]
	grep -q 'not ok .*ci.vanished:one:a.b' "$OUT/results/test-arm-normal.tap"
	run copied test --arch arm --only 'one:c'
	[[ $(<"$OUT/test/arm-normal/job") == $'category only\nload pfnmap_test\nprogram one -r c.d\nunload pfnmap_test\nend only' ]]
	run copied test --arch arm --update-expected
	[[ $status -eq 2 ]]
	run copied test --arch arm --shell
	[[ $status -eq 2 && $output == *"no shell"* ]]
}

@test "test: what a machine has nothing for is not run, and is said to be skipped" {
	fake_build
	printf '# comment\n^one:a\\.\tno a here\n' >"$T/repo/ci/expected/arm.without"
	run copied test --arch arm
	echo "$output"
	grep -qx 'program one -r c.d' "$OUT/test/arm-normal/job"
	grep -qx 'program two' "$OUT/test/arm-normal/job"
	grep -qF 'ok 1 - test-arm-normal: 1 tests ^one:a\. # SKIP NOT RUN: no a here' "$OUT/results/test-arm-normal-without.tap"
	run ! grep -q 'one:a.b' "$OUT/results/test-arm-normal.tap"
	printf '^two\tno two here\n' >"$T/repo/ci/expected/arm.without"
	run copied test --arch arm
	[[ $(grep program "$OUT/test/arm-normal/job") == 'program one -r a.b -r c.d' ]]
	printf '^nosuch\tno reason\n' >"$T/repo/ci/expected/arm.without"
	run copied test --arch arm
	[[ $status -eq 2 && $output == *"no test matches '^nosuch'"* ]]
	printf '^one:a\n' >"$T/repo/ci/expected/arm.without"
	run copied test --arch arm
	[[ $status -eq 2 ]]
}
