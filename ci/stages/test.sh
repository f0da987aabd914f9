#!/bin/bash
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"
# shellcheck source=ci/lib/guest.sh
. "$TOP/ci/lib/guest.sh"

usage() {
	cat <<'END_USAGE'
usage: ci/run test [--arch A] [--variant normal|debug|bench] [--categories "C..."] [--only PATTERN]
                   [--accel auto|tcg|kvm] [--timeout S] [--build DIR] [--dir DIR] [--append ARGS]
                   [--update-expected] [--job FILE | --shell]

Boots what "ci/run build" has built and runs the selftests of the series in it, as run_vmtests.sh's
ksft_*.sh wrappers, or, in a guest without a shell (GUEST=small in ci/configs/arch/), the programs that these
would run. Prints KTAP as it comes and a table at the end; a kernel report (ci/splats/), a
test that is missing, a guest that hangs or does not end orderly fail the run.

  --arch A           an architecture of ci/configs/arch/ (x86_64); status 4 when its QEMU is missing
  --categories LIST  categories of run_vmtests.sh, those in ci/expected/categories by default;
                     others are judged without a list of tests that have to run
  --only PATTERN     a category, or a regular expression: only tests whose name, "program" or
                     "program:fixture.test", has a match in it
  --accel A          auto: KVM when a probe boot succeeds under it, else TCG (the default); tcg; kvm
  --timeout S        for the whole boot; 300 s under KVM, 6 times that under TCG, 3 times for debug
  --build DIR        a build directory instead of out/build/<arch>-<variant>
  --dir DIR          for the logs, instead of out/test/<arch>-<variant>
  --append ARGS      more for the kernel's command line
  --update-expected  write the names of the tests that ran to ci/expected/<arch>-<variant>.tests
  --job FILE         run this script for bash in the guest; its exit status decides, and reports do
  --shell            an interactive guest; Ctrl-a x ends it at once

Logs: out/test/<arch>-<variant>/{console.log,ktap.log,qemu.cmd}; result: out/results/*.tap
END_USAGE
}

arch=x86_64 variant=normal categories='' only='' accel=auto timeout='' build='' dir='' append=''
update='' job='' shell=''
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	--arch) need_arg "$@"; arch=$2; shift ;;
	--variant) need_arg "$@"; variant=$2; shift ;;
	--categories) need_arg "$@"; categories=$2; shift ;;
	--only) need_arg "$@"; only=$2; shift ;;
	--accel) need_arg "$@"; accel=$2; shift ;;
	--timeout) need_arg "$@"; timeout=$2; shift ;;
	--build) need_arg "$@"; build=$2; shift ;;
	--dir) need_arg "$@"; dir=$2; shift ;;
	--append) need_arg "$@"; append=$2; shift ;;
	--update-expected) update=1 ;;
	--job) need_arg "$@"; job=$2; shift ;;
	--shell) shell=1 ;;
	*) usage_error "unknown option $1" ;;
	esac
	shift
done
[[ $variant =~ ^(normal|debug|bench)$ ]] || usage_error "unknown variant $variant"
[[ $accel =~ ^(auto|tcg|kvm)$ ]] || usage_error "unknown accelerator $accel"
[[ -z $timeout || $timeout =~ ^[1-9][0-9]{0,6}$ ]] || usage_error "--timeout wants seconds, not '$timeout'"
[[ $categories =~ ^[a-z0-9_\ -]*$ ]] || usage_error "odd categories '$categories'"
[[ -z $job || -f $job ]] || usage_error "no file $job"
[[ -z $job || -z $shell ]] || usage_error "--job or --shell, not both"
[[ -z $only || -z $job$shell ]] || usage_error "--only is for the selftests"

facts "$arch"
name=$arch-$variant
[[ -z $CROSS_COMPILE ]] || arch_skip "test-$name" "$QEMU" "${CROSS_COMPILE}gcc"
guest_need
[[ $GUEST == full || -z $job$shell || -e $OUT/sysroot/$arch/bin/sh ]] ||
	usage_error "the guest has no shell; put one for $arch into $OUT/sysroot/$arch/bin/"
build=${build:-$(build_dir "$arch" "$variant")}
[[ -s $build/$IMAGE ]] || harness_error "no kernel in $build; to make it: ci/run build --arch $arch --variant $variant"
build=$(realpath "$build")
[[ -d $build/ksft/mm || -n $job$shell ]] ||
	harness_error "no selftests in $build; to make them: ci/run build --arch $arch --variant $variant"

dir=${dir:-$OUT/test/$name}
expected=$TOP/ci/expected/$name.tests
without=$TOP/ci/expected/$arch.without
if [[ $GUEST == small ]]; then
	# The list is that of x86_64, less what the machine lacks something for.
	expected=$dir/expected.tests
	[[ -z $update ]] || usage_error "the list for $arch is that of x86_64, see also ci/expected/$arch.without"
fi
skips=$TOP/ci/expected/$name.skips
tap=test-$name
allow=$TOP/ci/splats/allow
[[ ! -f $allow-$arch ]] || allow+=-$arch

# category [module...] of each line
declare -A modules=()
default=()
while read -r category list; do
	[[ -n $category && $category != '#'* ]] || continue
	if [[ $category == *@* ]]; then
		[[ ${category#*@} == "$variant" ]] || continue
		category=${category%@*}
	fi
	default+=("$category")
	modules[$category]=$list
done <"$TOP/ci/expected/categories"

# The modules of a category. One with a question mark is not on each architecture.
category_modules() {
	local m
	for m in ${modules[$1]-}; do
		if [[ $m == *\? ]]; then
			m=${m%\?}
			[[ -n $(find "$build/mods" -name "$m.ko" -print -quit 2>/dev/null) ]] || continue
		fi
		printf '%s\n' "$m"
	done
}

selected=("${default[@]}")
if [[ -n $categories ]]; then read -ra selected <<<"$categories"; fi
is_category() {
	if [[ $GUEST == small ]]; then grep -q "^$1 " "$build/ksft/mm/programs"
	else [[ $1 == kunit || $1 == fuzz || -x $build/ksft/mm/ksft_$1.sh ]]; fi
}
if [[ -n $only && $only =~ ^[a-z0-9_]+$ ]] && is_category "$only"; then
	selected=("$only")
	only=
fi
# The list of tests that have to run is of the series' categories, all of them.
if [[ ${selected[*]} != "${default[*]}" ]]; then
	expected=none
	[[ -z $update ]] || usage_error "--update-expected is for all categories of ci/expected/categories"
fi

# Part of the guest's job: what runs one category, between lines that tell the parser.
job_head() {
	cat <<'END_JOB'
rc=0
uptime() { read -r up _ </proc/uptime; echo "$up"; }
begin() { echo "# ci: category $1 $(uptime)"; }
# end CATEGORY STATUS
end() {
	echo "# ci: status $1 $2 $(uptime)"
	if (($2 == 4 && rc == 0)); then rc=4; elif (($2 != 0 && $2 != 4)); then rc=1; fi
}
# What the harness has of a category that is not of run_vmtests.sh: the programs whose names end so.
programs() {
	local name
	all=0 n=0
	echo "TAP version 13"
	for name in *_"$1"; do program "$name"; done
	echo "1..$n"
	return "$all"
}
wrapper() {
	if [[ -x ksft_$1.sh ]]; then "./ksft_$1.sh"; else programs "$1"; fi
	end "$1" $?
}
load() { modprobe "$1" || echo "# ci: module $1 does not load"; }
unload() {
	if [[ -d /sys/module/$1 ]]; then
		rmmod "$1" || { echo "# ci: module $1 does not unload"; rc=1; }
	fi
}
# For --only: a program in the form of run_vmtests.sh, with or without a choice of its tests.
program() {
	local name=$1 args=() st
	shift
	if (($#)) && grep -q 'tests from %u test cases' "./$name"; then
		for t; do args+=(-r "$t"); done
	elif (($#)) && grep -q '\[-f fs\[,fs\]\]' "./$name"; then
		args=(-f "$(IFS=,; echo "$*")")
	fi
	printf '# ---\n# running ./%s\n# ---\n' "$name"
	"./$name" "${args[@]}" 2>&1 | sed 's/^/# /'
	st=${PIPESTATUS[0]}
	n=$((n + 1))
	case $st in
	0) echo "ok $n $name" ;;
	4) echo "ok $n $name # SKIP"; if ((all == 0)); then all=4; fi ;;
	*) echo "not ok $n $name # exit=$st"; all=1 ;;
	esac
}
# TTM's tests count its devices.
unbind_gpus() {
	for device in /sys/bus/pci/drivers/qxl/0000:*; do
		if [[ -e $device ]]; then echo "${device##*/}" >/sys/bus/pci/drivers/qxl/unbind; fi
	done
}
# kunit_results TEST...: what the tests of the modules that are loaded have said, or those that are named, in that
# form, too.
kunit_results() {
	local st=0
	printf '# ---\n# running ./kunit\n# ---\n'
	cat "${KUNIT:-/sys/kernel/debug/kunit}"/*/results | awk -v names="$*" '
		BEGIN { wanted = split(names, a, " "); for (i in a) want[a[i]]; print "# TAP version 13" }
		/^    # Subtest: / { suite = $3 }
		/^ +# / { sub(/^ +/, ""); diag = diag "# " $0 "\n" }
		/^    (not )?ok [0-9]+ / {
			bad = $1 == "not"; name = suite "." $(bad + 3); rest = ""
			for (i = bad + 4; i <= NF; i++) rest = rest " " $i
			if (!wanted || name in want) {
				if (bad) printf "%s", diag
				print "# " (bad ? "not " : "") "ok " ++n " " name rest
				failed += bad
			}
			diag = ""
		}
		/^not ok / { failed++ }
		END { print "# 1.." n + 0; exit failed || !n }' || st=1
	n=$((n + 1))
	if ((st)); then echo "not ok $n kunit # exit=$st"; all=1; else echo "ok $n kunit"; fi
}
# kunit MODULES TEST...: the modules test when they are loaded.
kunit() {
	local modules=$1 m
	shift
	unbind_gpus
	for m in $modules; do load "$m"; done
	kunit_results "$@"
	for m in $modules; do unload "$m"; done
}
programs_begin() { all=0 n=0; begin "${1:-only}"; echo "TAP version 13"; }
programs_end() { echo "1..$n"; end "${1:-only}" "$all"; }
finish() { exit "$rc"; }
END_JOB
}

whole_job() {
	local category m
	job_head
	for category in "${selected[@]}"; do
		is_category "$category" || fail "no wrapper ksft_$category.sh among the selftests in $build/ksft/mm"
		if [[ $category == kunit ]]; then
			printf 'programs_begin kunit\nkunit %q\nprograms_end kunit\n' "$(category_modules kunit | paste -sd ' ')"
			continue
		fi
		printf 'begin %s\n' "$category"
		for m in $(category_modules "$category"); do printf 'load %q\n' "$m"; done
		printf 'wrapper %s\n' "$category"
		for m in $(category_modules "$category"); do printf 'unload %q\n' "$m"; done
	done
	echo finish
}

# Names in the list, "program" or "program:test", that match.
only_job() {
	local line m program tests t
	[[ -f $expected ]] || harness_error "--only wants a category, or the list $expected"
	line=$(grep -v '^#' "$expected" | grep -E -- "$only") || fail "no test in $expected matches '$only'"
	job_head
	for m in $(selected_modules); do printf 'load %q\n' "$m"; done
	echo programs_begin
	while read -r program; do
		tests=()
		if ! grep -qxF "$program" <<<"$line"; then
			mapfile -t tests < <(grep "^$program:" <<<"$line" | cut -d: -f2- | sed 's/~[0-9]*$//')
		fi
		if [[ $program == kunit ]]; then
			printf 'kunit %q' "$(category_modules kunit | paste -sd ' ')"
		else
			printf 'program %q' "$program"
		fi
		for t in "${tests[@]}"; do printf ' %q' "$t"; done
		echo
	done < <(cut -d: -f1 <<<"$line" | awk '!seen[$0]++')
	echo programs_end
	for m in $(selected_modules); do printf 'unload %q\n' "$m"; done
	echo finish
}

selected_modules() {
	local category
	for category in "${selected[@]}"; do
		# kunit() loads its own.
		[[ $category == kunit ]] || category_modules "$category"
	done
}

# small_expected FILE: writes the list, and a point for each line of .without; "regex<TAB>reason" they are.
small_expected() {
	local list=$1 line regex reason left n
	n=$TOP/ci/expected/x86_64-$variant.tests
	[[ -f $n ]] || n=$TOP/ci/expected/x86_64-normal.tests
	left=$(grep -v '^#' "$n") || harness_error "no list of tests in $n"
	if [[ -f $without ]]; then
		tap_begin "$tap-without" >/dev/null
		while IFS= read -r line; do
			[[ -n $line && $line != '#'* ]] || continue
			regex=${line%%$'\t'*} reason=${line#*$'\t'}
			[[ $line == *$'\t'* && -n $regex && -n $reason ]] ||
				harness_error "$without: '$line' is not regex<TAB>reason"
			n=$(grep -cE -- "$regex" <<<"$left") || harness_error "$without: no test matches '$regex'"
			tap_skip "$tap: $n tests $regex" "NOT RUN: $reason" >/dev/null
			warn "$n tests are not run, $regex: $reason"
			left=$(grep -vE -- "$regex" <<<"$left")
		done <"$without"
		tap_end >/dev/null
	fi
	printf '%s\n' "$left" >"$list"
}

# small_program PROGRAM: a line of the job, with the choice of tests that is in the list.
small_program() {
	local t
	if [[ -f $without ]] && ! grep -qE "^$1(:|$)" "$expected"; then return; fi
	printf 'program %s' "$1"
	if [[ -f $without ]] && grep -q "^$1:" "$expected" && grep -q 'tests from %u test cases' "$build/ksft/mm/$1"; then
		while IFS= read -r t; do printf ' -r %s' "$t"; done < <(sed -n "s/^$1://p" "$expected")
	fi
	echo
}

# The same for ci/guest/run.c.
small_job() {
	local category m program lines left=()
	for category in "${selected[@]}"; do
		# KUnit's results are read by a shell.
		[[ $category != kunit ]] || continue
		is_category "$category" || fail "no program of category $category has been built, see $build/ksft/mm/programs"
		lines=$(while read -r program; do small_program "$program"; done < <(
			sed -n "s/^$category //p" "$build/ksft/mm/programs"))
		# All of it is left out; small_expected() has said so.
		[[ -n $lines ]] || continue
		left+=("$category")
		printf 'category %s\n' "$category"
		for m in $(category_modules "$category"); do printf 'load %s\n' "$m"; done
		printf '%s\n' "$lines"
		for m in $(category_modules "$category"); do printf 'unload %s\n' "$m"; done
		printf 'end %s\n' "$category"
	done
	selected=("${left[@]}")
}

small_only_job() {
	local line m program tests t
	[[ -f $expected ]] || harness_error "--only wants a category, or the list $expected"
	line=$(grep -v '^#' "$expected" | grep -E -- "$only") || fail "no test in $expected matches '$only'"
	echo 'category only'
	for m in $(selected_modules); do printf 'load %s\n' "$m"; done
	while read -r program; do
		tests=()
		if ! grep -qxF "$program" <<<"$line" && grep -q 'tests from %u test cases' "$build/ksft/mm/$program"; then
			mapfile -t tests < <(grep "^$program:" <<<"$line" | cut -d: -f2- | sed 's/~[0-9]*$//')
		fi
		printf 'program %s' "$program"
		for t in "${tests[@]}"; do printf ' -r %s' "$t"; done
		echo
	done < <(cut -d: -f1 <<<"$line" | awk '!seen[$0]++')
	for m in $(selected_modules); do printf 'unload %s\n' "$m"; done
	echo 'end only'
}

mkdir -p "$dir"
exec 9>"$dir/lock"
flock -n 9 || harness_error "another run uses $dir"
rm -f "$dir/job" "$dir/status" "$RESULTS/$tap.tap" "$RESULTS/$tap-without.tap"
if [[ -n $job ]]; then
	cp "$job" "$dir/job"
elif [[ -z $shell ]]; then
	if [[ $GUEST == small ]]; then
		[[ $expected == none ]] || small_expected "$expected"
		if [[ -n $only ]]; then small_only_job; else small_job; fi
	else
		if [[ -n $only ]]; then only_job; else whole_job; fi
	fi >"$dir/job"
fi

guest_accel "$accel" "$build"
limit=${timeout:-$(guest_limit "$variant")}
GUEST_APPEND=$append
[[ $variant != debug ]] || GUEST_APPEND="page_poison=1 $append"
GUEST_SHELL=$shell

guest_disk "$build" "$dir/disk.img"
# The guest's own limit is the shorter one: it can say where the job hangs.
guest_initramfs "$build" "$dir" "timeout=$((limit - limit / 10))" ${shell:+shell=1}
guest_qemu "$build" "$dir" "$dir/disk.img"
if [[ -n $shell ]]; then
	log "$name, $GUEST_ACCEL; Ctrl-a x ends the guest"
	guest_run "$dir" 0
	exit 0
fi
log "$name: ${only:-${job:-${selected[*]}}}, $GUEST_ACCEL, at most $limit s"
guest_run "$dir" "$limit" follow
if [[ $GUEST_STATUS == 124 ]]; then GUEST_TIMEOUT=yes; fi
printf 'token=%s status=%s timeout=%s seconds=%s accel=%s\n' \
	"$GUEST_TOKEN" "$GUEST_STATUS" "$GUEST_TIMEOUT" "$GUEST_SECONDS" "$GUEST_ACCEL" >"$dir/status"
log "guest: $(<"$dir/status")"
if [[ $GUEST_TOKEN != ok ]]; then
	log "last lines of the console:"
	tail -n 30 "$dir/console.log" | tr -d '\r' | sed 's/^/    /' >&2
fi

if [[ -n $job ]]; then
	# No list, no KTAP: how it ended, and what the kernel said.
	tap_begin "$tap"
	if [[ $GUEST_TIMEOUT == no ]]; then tap_ok ci.timeout; else tap_not_ok ci.timeout "not at its end after $limit s"; fi
	if [[ $GUEST_TOKEN == ok ]]; then tap_ok ci.token; else tap_not_ok ci.token "$GUEST_TOKEN"; fi
	if [[ $GUEST_STATUS == 0 ]]; then tap_ok ci.runner; else tap_not_ok ci.runner "status $GUEST_STATUS"; fi
	rc=0
	reports=$(python3 "$TOP/ci/lib/splats.py" --variant "$variant" --no-min "$dir/console.log" 2>&1) || rc=$?
	((rc < 2)) || harness_error "$reports"
	if ((rc == 0)); then tap_ok ci.splats; else tap_not_ok ci.splats "$reports"; fi
	tap_end || exit "$E_FAIL"
	exit 0
fi

rc=0
python3 "$TOP/ci/lib/ktap.py" verdict --log "$dir/ktap.log" --console "$dir/console.log" \
	--expected "$expected" --skips "$skips" --arch "$arch" --variant "$variant" \
	--status "$GUEST_STATUS" --token "$GUEST_TOKEN" --timeout "$GUEST_TIMEOUT" \
	--patterns "$TOP/ci/splats/patterns" --allow "$allow" \
	--tap "$RESULTS/$tap.tap" --table ${update:+--update-expected} ${only:+--only "$only"} || rc=$?
((rc < 2)) || rc=$E_HARNESS
exit "$rc"
