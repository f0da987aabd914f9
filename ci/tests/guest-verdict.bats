#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031
# The verdict on a guest's logs: what must pass passes, and each kind of trouble turns it red for its own reason.

setup() {
	TOP=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
	G=$BATS_TEST_DIRNAME/golden/guest
	T=$BATS_TEST_TMPDIR
	cp "$G/good.ktap" "$T/ktap.log"
	cp "$G/good.console" "$T/console.log"
	cp "$G/good.tests" "$T/tests"
	: >"$T/skips"
	printf '# nothing\n' >"$T/allow"
	variant=normal runner=0 token=ok timeout=no
}

verdict() {
	run python3 "$TOP/ci/lib/ktap.py" verdict --log "$T/ktap.log" --console "$T/console.log" \
		--expected "$T/tests" --skips "$T/skips" --arch x86_64 --variant "$variant" \
		--status "$runner" --token "$token" --timeout "$timeout" \
		--patterns "$TOP/ci/splats/patterns" --allow "$T/allow" --tap "$T/out.tap" --table "$@"
	echo "$output"
}

# red NAME TEXT: the verdict is 1, with the point NAME among the failures and TEXT in the output.
red() {
	[ "$status" -eq 1 ]
	grep -Eq "^not ok [0-9]+ - $1\$" "$T/out.tap"
	[[ "$output" == *"$2"* ]]
	# the flat TAP is well formed, and says the same
	run bash "$TOP/ci/lib/tally.sh" "$T/out.tap"
	[ "$status" -eq 1 ]
	[[ "$output" != *"no plan"* && "$output" != *"planned"*"found"*".tap"* ]]
}

# only_red N: no more than N points failed.
only_red() { [ "$(grep -c '^not ok' "$T/out.tap")" -eq "$1" ]; }

@test "a good log passes" {
	verdict
	[ "$status" -eq 0 ]
	[[ "$output" == *"pfnmap_insert_-x_1 "*"3       0        0  passed"* ]]
	[[ "$output" == *"time: pfnmap 5.2 s, mmap 0.6 s"* ]]
	run grep -q '^not ok' "$T/out.tap"
	[ "$status" -eq 1 ]
	run bash "$TOP/ci/lib/tally.sh" "$T/out.tap"
	[ "$status" -eq 0 ]
}

@test "a good log without the job's lines passes" {
	sed -i '/^# ci:/d' "$T/ktap.log"
	verdict
	[ "$status" -eq 0 ]
}

@test "carriage returns, NUL bytes and broken UTF-8 do no harm" {
	sed -i 's/$/\r/' "$T/ktap.log" "$T/console.log"
	printf '# \xff\xfe\x80 garbage\0\0 \x1b[31mred\x1b[0m\n' | sed -i "3r /dev/stdin" "$T/ktap.log"
	verdict
	[ "$status" -eq 0 ]
}

@test "a program without TAP of its own is one test" {
	verdict
	grep -q '^ok [0-9]* - map_populate$' "$T/out.tap"
}

@test "a missing outer plan is red" {
	sed -i '/^1\.\.2$/d' "$T/ktap.log"
	verdict
	red "ci.stream:pfnmap" "no plan: the output is truncated"
}

@test "an outer plan of another size is red" {
	sed -i 's/^1\.\.2$/1..3/' "$T/ktap.log"
	verdict
	red "ci.stream:mmap" "planned 3, found 2"
}

@test "a log that breaks off is red, whatever line it breaks off at" {
	count=$(wc -l <"$G/good.ktap")
	# the last line is only the job's exit status
	for ((n = 0; n < count - 1; n++)); do
		head -n "$n" "$G/good.ktap" >"$T/ktap.log"
		verdict >/dev/null
		[ "$status" -eq 1 ] || { echo "$n lines pass"; false; }
	done
	head -n 25 "$G/good.ktap" | sed '/^# ci:/d' >"$T/ktap.log"
	verdict
	red "ci.stream:stream-1" "no plan"
}

@test "a log that breaks off within a program names that program" {
	sed -i '/insert.cow.refused$/,$d' "$T/ktap.log"
	verdict
	red "ci.stream:pfnmap" "pfnmap_insert_-x_1 began and never reported a result"
	grep -q "^not ok .*ci.plan:pfnmap_insert_-x_1" "$T/out.tap"
}

@test "a nested plan that is short is red" {
	sed -i '/^# ok 2 insert.loop/d' "$T/ktap.log"
	verdict
	red "ci.plan:pfnmap_insert_-x_1" "planned 3 tests, reported 2"
	[[ "$(<"$T/out.tap")" == *"point 2 missing"* ]]
}

@test "a nested stream without a plan is red" {
	sed -i '/^# 1\.\.3$/d' "$T/ktap.log"
	verdict
	red "ci.plan:pfnmap_insert_-x_1" "no plan in its output"
	only_red 1
}

@test "a duplicate nested number is red" {
	sed -i 's/^# ok 2 insert/# ok 1 insert/' "$T/ktap.log"
	verdict
	red "ci.plan:pfnmap_insert_-x_1" "point 1 more than once"
	only_red 1
}

@test "nested numbers out of order are red" {
	sed -i -e 's/^# ok 2 insert/# ok 9 insert/' "$T/ktap.log"
	verdict
	red "ci.plan:pfnmap_insert_-x_1" "missing"
}

@test "outer numbers that are not consecutive are red" {
	sed -i 's/^ok 2 map_populate/ok 3 map_populate/' "$T/ktap.log"
	verdict
	red "ci.stream:mmap" "point 2 missing"
}

@test "a summary that contradicts the points is red" {
	sed -i '0,/SUMMARY: PASS=2/s//SUMMARY: PASS=3/' "$T/ktap.log"
	verdict
	red "ci.stream:pfnmap" "the summary says PASS=3"
}

@test "an empty or absent log is red" {
	: >"$T/ktap.log"
	verdict
	red "ci.stream" "the log has no test in it"
	rm "$T/ktap.log"
	verdict
	red "ci.log" "no test log"
}

@test "a category that announces itself and runs nothing is red" {
	printf '# ci: category empty\nTAP version 13\n1..0\n# ci: status empty 0\n' >>"$T/ktap.log"
	verdict
	red "ci.stream:empty" "no test in it"
}

@test "a vanished test is red" {
	echo "pfnmap_insert_-x_1:insert.race.fork" >>"$T/tests"
	verdict
	red "ci.vanished:pfnmap_insert_-x_1:insert.race.fork" "did not run"
	only_red 1
}

@test "a vanished program is red" {
	sed -i -e '/^# -*$/d' -e '/^# running .\/map_populate/,/^ok 2 map_populate/d' -e '/running .\/map_fixed/,$s/^1..2/1..1/' \
		-e '/running .\/map_fixed/,$s/PASS=2/PASS=1/' "$T/ktap.log"
	verdict
	red "ci.vanished:map_populate" "did not run"
	only_red 1
}

@test "an extra test is red, with a hint" {
	sed -i '/insert.loop.content/d' "$T/tests"
	verdict
	red "ci.unexpected:pfnmap_insert_-x_1:insert.loop.content" "ci/run test --update-expected"
	only_red 1
}

@test "a missing list of tests is red, with a hint" {
	rm "$T/tests"
	verdict
	red "ci.expected" "ci/run test --update-expected"
	only_red 1
}

@test "--only insists only on the tests that match" {
	echo "other:test" >>"$T/tests"
	verdict --only '^pfnmap'
	[ "$status" -eq 0 ]
	verdict --only '^other'
	red "ci.vanished:other:test" "did not run"
}

@test "--only is a regular expression, searched in the whole name" {
	echo "other:suite.group.test" >>"$T/tests"
	for only in '^other' 'suite\.group' 'r:s' 'test$'; do
		verdict --only "$only"
		red "ci.vanished:other:suite.group.test" "did not run"
	done
	verdict --only '^suite'
	[ "$status" -eq 0 ]
	verdict --only '('
	[ "$status" -eq 2 ]
}

@test "a program that planned no test is red, but with --only" {
	sed -i -e '/^# 1\.\.2$/,/^# ok 2 Base/d' "$T/ktap.log"
	sed -i -e '/running .\/map_fixed/,/^ok 1/s/^# TAP version 13/&\n# 1..0/' -e '/running .\/map_fixed/,/^ok 1/{/^# # Totals/d}' "$T/ktap.log"
	verdict
	red "ci.plan:map_fixed_noreplace" "planned no test"
	verdict --only '^pfnmap'
	[ "$status" -eq 0 ]
}

@test "not ok is red, with the last of what the test said" {
	sed -i -e 's/^# #            OK  insert.loop.content/# # pfnmap_insert.c:77:content:Expected 3 (3) == got (4)/' \
		-e 's/^# ok 2 insert/# not ok 2 insert/' -e 's/^ok 2 pfnmap_insert -x 1/not ok 2 pfnmap_insert -x 1 # exit=1/' \
		-e '0,/SUMMARY: PASS=2 SKIP=0 FAIL=0/s//SUMMARY: PASS=1 SKIP=0 FAIL=1/' "$T/ktap.log"
	verdict
	red "pfnmap_insert_-x_1:insert.loop.content" "Expected 3 (3) == got (4)"
	grep -q '^not ok [0-9]* - pfnmap_insert_-x_1$' "$T/out.tap"
	only_red 2
}

@test "a failing program whose tests are all ok is red" {
	sed -i -e 's/^ok 2 pfnmap_insert -x 1/not ok 2 pfnmap_insert -x 1 # exit=139/' \
		-e '0,/SUMMARY: PASS=2 SKIP=0 FAIL=0/s//SUMMARY: PASS=1 SKIP=0 FAIL=1/' "$T/ktap.log"
	verdict
	red "ci.exit:pfnmap_insert_-x_1" "exit=139"
}

@test "a program that passes although a test of its own failed is red" {
	sed -i -e 's/^# ok 2 insert/# not ok 2 insert/' "$T/ktap.log"
	verdict
	red "ci.exit:pfnmap_insert_-x_1" "succeeded though a test in it failed"
}

@test "a program that bails out is red" {
	sed -i 's/^# plain output.*/# Bail out! no memory/' "$T/ktap.log"
	sed -i 's/^ok 2 map_populate/not ok 2 map_populate # exit=1/; /g .\/map_fixed/,$s/PASS=2 SKIP=0 FAIL=0/PASS=1 SKIP=0 FAIL=1/' "$T/ktap.log"
	verdict
	red "map_populate" "Bail out! no memory"
}

skip_one() { sed -i 's/^# ok 3 insert.cow.refused/& # SKIP no such driver/' "$T/ktap.log"; }

@test "an unexpected skip is red" {
	skip_one
	verdict
	red "pfnmap_insert_-x_1:insert.cow.refused" "SKIP without an excuse in skips: no such driver"
	only_red 1
}

@test "an excused skip passes and is counted as one" {
	skip_one
	printf '# comment\n.*:insert\\.cow\\..*\tneeds hardware\n' >"$T/skips"
	verdict
	[ "$status" -eq 0 ]
	grep -q 'insert.cow.refused # SKIP needs hardware$' "$T/out.tap"
	run bash "$TOP/ci/lib/tally.sh" "$T/out.tap"
	[[ "$output" == *"1 skipped" ]]
}

@test "an excuse is for whole names" {
	skip_one
	printf 'insert.cow\tneeds hardware\n' >"$T/skips"
	verdict
	red "pfnmap_insert_-x_1:insert.cow.refused" "without an excuse"
}

@test "an excuse without a reason is a mistake of the harness" {
	skip_one
	for line in '.*:insert.cow.*' '.*:insert.cow.*\t' '.*:insert.cow.*\t ' '(\treason'; do
		printf '%b\n' "$line" >"$T/skips"
		verdict
		[ "$status" -eq 2 ]
		[[ "$output" == *"skips:1"* ]]
	done
}

skip_program() {
	sed -i -e 's/^ok 2 map_populate/ok 2 map_populate # SKIP/' -e '/g .\/map_fixed/,$s/PASS=2 SKIP=0/PASS=1 SKIP=1/' \
		-e 's/status mmap 0/status mmap 4/' -e 's/^# plain output.*/# TAP version 13\n# 1..0 # SKIP no memory/' "$T/ktap.log"
	runner=4
}

@test "a skipped program is red unless excused" {
	skip_program
	verdict
	red "map_populate" "SKIP without an excuse"
	only_red 1
	runner=4
	printf 'map_populate\tnot here\n' >"$T/skips"
	verdict
	[ "$status" -eq 0 ]
}

@test "an exit status of 4 without a skipped program is red" {
	runner=4
	verdict
	red "ci.runner" "the runner's exit status is 4"
	only_red 1
}

@test "an expected failure wants an excuse too" {
	sed -i 's/^# ok 3 insert.cow.refused/& # XFAIL broken/' "$T/ktap.log"
	verdict
	red "pfnmap_insert_-x_1:insert.cow.refused" "XFAIL without an excuse"
}

@test "a runner's exit status other than 0 is red" {
	runner=1
	verdict
	red "ci.runner" "exit status is 1"
	only_red 1
	runner=none
	verdict
	red "ci.runner" "never reported"
}

@test "a category's exit status other than 0 is red, as is none" {
	sed -i 's/^# ci: status pfnmap 0/# ci: status pfnmap 1/' "$T/ktap.log"
	verdict
	red "ci.status:pfnmap" "exit status 1"
	sed -i '/^# ci: status pfnmap/d' "$T/ktap.log"
	runner=0
	verdict
	red "ci.status:pfnmap" "never reported an exit status"
}

@test "a missing token is red" {
	token=missing
	verdict
	red "ci.token" "never said"
	only_red 1
}

@test "a token with the wrong nonce is red" {
	token=wrong
	verdict
	red "ci.token" "not the one of this run"
	only_red 1
}

@test "a timeout is red" {
	timeout=yes
	verdict
	red "ci.timeout" "time limit"
	only_red 1
}

console_case() { cp "$G/$1.console" "$T/console.log"; verdict; }

@test "a WARN on the console is red" {
	console_case warn
	red "ci.splat:warning" "WARNING: mm/memory.c:2905 at vmf_insert_pfn_prot+0x1a/0x40"
	only_red 1
}

@test "a KASAN report is red" {
	console_case kasan
	red "ci.splat:kasan" "slab-use-after-free in lkdtm_READ_AFTER_FREE"
	only_red 1
}

@test "a lockdep report is red" {
	console_case lockdep
	red "ci.splat:lockdep" "possible recursive locking detected"
	only_red 1
}

@test "a bad page state is red" {
	console_case badpage
	red "ci.splat:page-state" "Bad page state in process"
	only_red 1
}

@test "a kmemleak report is red" {
	console_case kmemleak
	red "ci.splat:kmemleak" "1 new suspected memory leaks"
	only_red 1
}

@test "an RCU stall is red" {
	console_case rcu
	red "ci.splat:rcu-stall" "detected stalls"
}

@test "a stack trace that nothing introduces is red" {
	console_case trace
	red "ci.splat:trace" "Call Trace:"
	only_red 1
}

@test "a panic after the last ok is red, token or not" {
	console_case panic
	red "ci.splat:panic" "Kernel panic - not syncing"
	token=missing runner=none
	console_case panic
	red "ci.token" "never said"
	grep -q '^not ok .*ci.splat:fault' "$T/out.tap"
}

@test "every one of these headers is red" {
	while IFS= read -r line; do
		{ cat "$G/good.console"; printf '[   11.000000] %s\n' "$line"; } >"$T/console.log"
		verdict >/dev/null
		[ "$status" -eq 1 ] || { echo "not seen: $line"; false; }
	done <<'LINES'
WARNING: at foo+0x1/0x2, CPU#1: sh/1
WARNING: CPU: 0 PID: 1 at mm/memory.c:1 foo+0x1/0x2
kernel BUG at mm/page_table_check.c:82!
BUG: kernel NULL pointer dereference, address: 0000000000000010
BUG: Bad page map in process sh  pte:8000000006f5a025 pmd:06c3f067
BUG: Bad rss-counter state mm:00000000d0a43fba type:MM_ANONPAGES val:2
BUG: scheduling while atomic: sh/70/0x00000002
BUG: sleeping function called from invalid context at mm/slab.h:400
BUG: MAX_LOCKDEP_ENTRIES too low!
Oops: general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] SMP
KASAN: null-ptr-deref in range [0x0000000000000010-0x0000000000000017]
UBSAN: array-index-out-of-bounds in drivers/misc/lkdtm/bugs.c:500:2
BUG: KCSAN: data-race in a / b
INFO: trying to register non-static key.
INFO: task sh:70 blocked for more than 120 seconds.
INFO: rcu_sched self-detected stall on CPU
WARNING: suspicious RCU usage
WARNING: possible circular locking dependency detected
WARNING: inconsistent lock state
watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [sh:70]
refcount_t: underflow; use-after-free.
list_add corruption. prev->next should be next
BUG kmalloc-64 (Not tainted): Right Redzone overwritten
unreferenced object 0xffff888006f5a500 (size 64):
Kernel panic - not syncing: Attempted to kill init!
init: FATAL: cannot mount /proc
LINES
}

@test "lines that only look like reports are none" {
	cat >>"$T/console.log" <<'LINES'
[   11.000000] DEBUG: nothing
[   11.000000]  __page_table_check_ptes_set+0x12/0x40
[   11.000000] rcu: Hierarchical SRCU implementation.
[   11.000000] Kernel command line: BUG: WARNING: Oops
LINES
	verdict
	[ "$status" -eq 0 ]
}

@test "a console without the kernel's banner cannot be trusted" {
	sed -i '/Linux version/d' "$T/console.log"
	verdict
	red "ci.console" "go unseen"
	rm "$T/console.log"
	verdict
	red "ci.console" "no console log"
}

allow() { printf '%b\n' "$1" >"$T/allow"; }

@test "an allowed report passes" {
	allow 'WARNING: .* at vmf_insert_pfn_prot\\+\t1\t1\tnormal,debug\tthe test asks for it'
	console_case warn
	[ "$status" -eq 0 ]
}

@test "an allowed report in another variant is red" {
	allow 'WARNING: .* at vmf_insert_pfn_prot\\+\t1\t1\tdebug\tthe test asks for it'
	console_case warn
	red "ci.splat:warning" "vmf_insert_pfn_prot"
}

@test "an allowed report seen too often is red" {
	allow 'WARNING: .* at vmf_insert_pfn_prot\\+\t1\t1\t*\tthe test asks for it'
	{ cat "$G/warn.console"; grep -v 'Linux version' "$G/warn.console"; } >"$T/console.log"
	verdict
	red "ci.splat-count" "seen 2 times, at most 1 allowed"
	only_red 1
}

@test "an allowed report seen too seldom is red" {
	allow 'WARNING: .* at vmf_insert_pfn_prot\\+\t1\t1\t*\tthe test asks for it'
	verdict
	red "ci.splat-count" "seen 0 times, at least 1 expected"
	only_red 1
	# ... but not when only some of the tests were run
	runner=0
	verdict --only '^pfnmap'
	[ "$status" -eq 0 ]
}

@test "an allowed report does not hide another one inside it" {
	allow 'WARNING: .* at vmf_insert_pfn_prot\\+\t1\t1\t*\tthe test asks for it'
	sed '/Call Trace/i [    5.000000] BUG: KASAN: slab-use-after-free in foo+0x1/0x2' "$G/warn.console" >"$T/console.log"
	verdict
	red "ci.splat:kasan" "slab-use-after-free in foo"
}

@test "an allow entry without a reason is a mistake of the harness" {
	for line in 'WARNING: foo\t1\t1\t*' 'WARNING: foo\t1\t1\t*\t' 'WARNING: foo\t1\t1\t*\t ' 'WARNING: foo\t\t1\t*\tx' \
		'WARNING: foo\t2\t1\t*\tx' 'WARNING: foo\t1\tx\t*\tx' '(\t1\t1\t*\tx' '.*\t0\t9\t*\tx' 'foo\t0\t9\tA B\tx'; do
		allow "$line"
		verdict
		[ "$status" -eq 2 ]
		[[ "$output" == *"allow:1"* ]]
	done
}

@test "the project's own pattern and allow files are well formed" {
	run python3 "$TOP/ci/lib/splats.py" --no-min "$G/good.console"
	[ "$status" -eq 0 ]
	run python3 "$TOP/ci/lib/splats.py" --no-min "$G/kasan.console"
	[ "$status" -eq 1 ]
	run python3 "$TOP/ci/lib/splats.py" /nonexistent
	[ "$status" -eq 2 ]
}

@test "--update-expected writes the list from a complete run" {
	rm "$T/tests"
	verdict --update-expected
	[ "$status" -eq 0 ]
	cmp "$T/tests" "$G/good.tests"
}

@test "--update-expected leaves the list alone when the run is not complete" {
	echo "other:test" >"$T/tests"
	sed -i '/^1\.\.2$/d' "$T/ktap.log"
	verdict --update-expected
	[ "$status" -eq 1 ]
	[ "$(<"$T/tests")" = "other:test" ]
}

@test "--update-expected with --only replaces what matches" {
	printf 'other:test\npfnmap:gone\n' >"$T/tests"
	verdict --update-expected --only '^pfnmap'
	[ "$status" -eq 0 ]
	grep -qx other:test "$T/tests"
	run grep -q gone "$T/tests"
	[ "$status" -eq 1 ]
	grep -qx pfnmap:pfnmap.fork "$T/tests"
}

@test "names: repeated ones are told apart, addresses and blanks are replaced" {
	printf 'TAP version 13\n# running bash ./a.sh -c 4\n# TAP version 13\n# 1..4\n# ok 1 x at 0x7fab12345000\n# ok 2 x at 0x7fab12346000\n# ok 3 # SKIP no y\n# not ok 4 z #  why\nok 1 a.sh -c 4\n1..1\n' >"$T/ktap.log"
	run python3 "$TOP/ci/lib/ktap.py" tests "$T/ktap.log"
	[ "$status" -eq 0 ]
	[ "$output" = $'a.sh_-c_4:x_at_0x*\na.sh_-c_4:x_at_0x*~2\na.sh_-c_4:no_y\na.sh_-c_4:z\na.sh_-c_4' ]
}

# suite NAME CASE...: what KUnit writes; a case that begins with "-" has failed.
suite() {
	local suite=$1 n=0 bad=''
	shift
	mkdir -p "$T/kunit/$suite"
	{
		printf 'KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: %s\n    # module: %s_test\n    1..%s\n' "$suite" "$suite" $#
		for c; do
			n=$((n + 1))
			case $c in
			-*) bad='not '; printf '    # %s: EXPECTATION FAILED at a.c:1\n    not ok %s %s\n' "${c#-}" $n "${c#-}" ;;
			*) printf '        KTAP version 1\n        # Subtest: %s\n        ok 1 one parameter\n    ok %s %s\n' "$c" $n "$c" ;;
			esac
		done
		printf '# %s: pass:1 fail:0 skip:0 total:1\n%sok 1 %s\n' "$suite" "$bad" "$suite"
	} >"$T/kunit/$suite/results"
}
kunit_points() {
	sed -n '/^kunit_results() {/,/^}/p' "$TOP/ci/stages/test.sh" >"$T/kunit.sh"
	[ -s "$T/kunit.sh" ]
	run bash -c 'all=0 n=0; . "$1"; shift; kunit_results "$@"; exit "$all"' - "$T/kunit.sh" "$@"
	echo "$output"
}

@test "kunit: cases become points; one that failed, and no results, are red" {
	export KUNIT=$T/kunit
	suite first one two
	suite second three
	kunit_points
	[ "$status" -eq 0 ]
	[[ "$output" == *"# ok 1 first.one"*"# ok 2 first.two"*"# ok 3 second.three"*"# 1..3"*"ok 1 kunit" ]]
	kunit_points second.three
	[ "$status" -eq 0 ]
	[[ "$output" == *"# ok 1 second.three"*"# 1..1"* && "$output" != *first* ]]
	suite third -four
	kunit_points
	[ "$status" -eq 1 ]
	[[ "$output" == *"# # four: EXPECTATION FAILED"*"# not ok 4 third.four"*"not ok 1 kunit"* ]]
	rm -r "$T/kunit"
	kunit_points
	[ "$status" -eq 1 ]
}
