#!/usr/bin/env bats
# Guests that go wrong on purpose, each seen to be red for its own reason. Wants the kernel of
# ci/run build, and for the tests with the tag "debug" that of ci/run build --variant debug.

setup() {
	TOP=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
	real=${OUT:-$TOP/out}
	T=$BATS_TEST_TMPDIR
	# Logs and results of their own, for they must not pass for those of the real run. The probe
	# for KVM is not to be done once per test.
	export OUT=$T/out TREE=${TREE:-$real/tree} RESULTS=$T/results
	mkdir -p "$OUT"
	cp "$real"/kvm-probe.* "$OUT/" 2>/dev/null || true
	variant=normal
}

teardown() { rm -rf "$OUT"; }

# boot SECONDS [OPTION...]: the script on stdin as the guest's job.
boot() {
	local limit=$1
	shift
	cat >"$T/job"
	build=${build:-$real/build/x86_64-$variant}
	if [[ ! -s $build/arch/x86/boot/bzImage ]]; then
		echo "no kernel in $build; to make it: ci/run build --variant $variant"
		return 1
	fi
	run "$TOP/ci/run" test --variant "$variant" --build "$build" --timeout "$limit" --job "$T/job" "$@"
	echo "$output"
	tap=$RESULTS/test-x86_64-$variant.tap
}

good() { grep -Eq "^ok [0-9]+ - $1\$" "$tap"; }
bad() { grep -Eq "^not ok [0-9]+ - $1\$" "$tap"; }

ok_plan() { printf 'echo "TAP version 13"; echo "ok 1 all.is.well"; echo "1..1"\n'; }
crash() {
	ok_plan
	printf 'sync; sleep 1\necho %s >/sys/kernel/debug/provoke-crash/DIRECT\nsleep 2\n' "$1"
}

@test "a job that ends well is green" {
	boot 240 < <(ok_plan; echo 'exit 0')
	[ "$status" -eq 0 ]
	good ci.token
	good ci.splats
	grep -q '^ok 1 all.is.well' "$OUT/test/x86_64-normal/ktap.log"
}

@test "a job's exit status is the verdict" {
	boot 240 < <(ok_plan; echo 'exit 3')
	[ "$status" -eq 1 ]
	good ci.token
	good ci.splats
	bad ci.runner
}

@test "an image that is not of the vmlinux beside it is red" {
	build=$T/build
	mkdir "$build"
	ln -s "$real/build/x86_64-$variant"/* "$build/"
	ln -sf "$(type -P true)" "$build/vmlinux"
	boot 240 < <(ok_plan; echo 'exit 0')
	[ "$status" -eq 1 ]
	bad ci.token
	grep -q 'init: FATAL: this is not the kernel of build ID' "$OUT/test/x86_64-normal/console.log"
}

@test "a job that does not end is red" {
	boot 60 <<<'sleep 1000'
	[ "$status" -eq 1 ]
	bad 'ci\.(timeout|runner)'
}

@test "a guest that does not end is red, within its time limit" {
	begin=$SECONDS
	# Two busy threads of the highest priority leave nothing to init, which would kill the job.
	boot 25 --append 'nosoftlockup' < <(ok_plan; echo 'sync; echo HARDLOCKUP >/sys/kernel/debug/provoke-crash/DIRECT & echo HARDLOCKUP >/sys/kernel/debug/provoke-crash/DIRECT')
	[ "$status" -eq 1 ]
	bad ci.timeout
	bad ci.token
	[ $((SECONDS - begin)) -lt 90 ]
}

@test "a WARN after the last ok is red" {
	boot 240 < <(crash WARNING)
	[ "$status" -eq 1 ]
	good ci.token
	good ci.runner
	bad ci.splats
	[[ "$output" == *"WARNING: "*"at lkdtm_WARNING+"* ]]
	grep -q '^ok 1 all.is.well' "$OUT/test/x86_64-normal/ktap.log"
}

@test "a panic after the last ok is red" {
	boot 240 < <(crash PANIC)
	[ "$status" -eq 1 ]
	good ci.timeout
	bad ci.token
	bad ci.splats
	[[ "$output" == *"Kernel panic - not syncing: dumptest"* ]]
	grep -q '^1\.\.1' "$OUT/test/x86_64-normal/ktap.log"
}

@test "an oops after the last ok is red" {
	boot 240 < <(crash EXCEPTION)
	[ "$status" -eq 1 ]
	bad ci.token
	bad ci.splats
	[[ "$output" == *"NULL pointer dereference"* ]]
}

@test "a token that the job forges is red" {
	# init holds the port, and whoever got around that would still need the nonce.
	boot 240 <<-'JOB'
		for port in /dev/vport*; do echo "0123456789abcdef01234567 0" >"$port"; done
		reboot -f
	JOB
	[ "$status" -eq 1 ]
	bad ci.token
}

# bats test_tags=debug
@test "a KASAN report is red" {
	variant=debug
	boot 600 < <(crash READ_AFTER_FREE)
	[ "$status" -eq 1 ]
	bad ci.splats
	[[ "$output" == *"BUG: KASAN: "*"lkdtm_READ_AFTER_FREE"* ]]
}

# bats test_tags=debug
@test "a lockdep report is red" {
	variant=debug
	boot 600 < <(crash SPINLOCKUP)
	[ "$status" -eq 1 ]
	bad ci.splats
	[[ "$output" == *"lock held when returning to user space"* ]]
}
