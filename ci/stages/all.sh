#!/bin/bash
# shellcheck disable=SC2030,SC2031,SC2317
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"

usage() {
	cat <<'END'
usage: ci/run all [--no-check] [--full] [--each] [--arches] [--linux DIR] [--onto newest]

Stages deps, tree, apply, check, build and test; then how long each took, and, as the last line, what became
of all tests: "N passed, N failed, N skipped". With --full steps that do not wait for one another run side by side.

  --no-check     without check
  --full         also the tests of the harness itself; architecture arm, too; regress --part check; mutate --sample
  --arches       also the other architectures of ci/configs/arch/, in variant normal
  --each         variant debug; coccicheck, and all checks after each patch; all of regress, and the base against its
                 record; also build what each patch touches after that patch; each
                 topic alone; mutate
  --linux DIR    for the stage tree
  --onto newest  for the stages tree and apply
END
}

check=1 full='' each='' every_arch='' tree_args=() apply_args=()
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	--no-check) check='' ;;
	--full) full=1 ;;
	--each) each=1 ;;
	--arches) every_arch=1 ;;
	--linux) need_arg "$@"; tree_args+=(--linux "$2"); shift ;;
	--onto) need_arg "$@"; tree_args+=(--onto "$2"); apply_args+=(--onto "$2"); shift ;;
	*) usage_error "unknown option $1" ;;
	esac
	shift
done

mkdir -p "$RESULTS" "$OUT/log"
rm -f "$RESULTS"/*.tap
start=$SECONDS worst=0 steps_dir=$OUT/steps
rm -rf "$steps_dir"
mkdir "$steps_dir"
bad_points() { cat "$RESULTS"/*.tap 2>/dev/null | grep -c '^not ok' || true; }

skipped_points() { cat "$RESULTS"/*.tap 2>/dev/null | grep -c '^ok .* # SKIP' || true; }

# Each row of steps that run one after the other has a file for their times and one for points.
steps=$steps_dir/main steps_tap=$steps_dir/main.tap
: >"$steps"
: >"$steps_tap"
# A step that fails without a point that says so gets one; its status must not get lost.
step() {
	local name=$1 began=$SECONDS before skipped rc=0
	shift
	before=$(bad_points) skipped=$(skipped_points)
	printf '\n=== %s (%s)\n' "$name" "$(_elapsed $((began - start)))" >&2
	"$@" </dev/null || rc=$?
	printf '%-24s %6s  %s\n' "$name" "$(_elapsed $((SECONDS - began)))" \
		"$(case $rc in 0) echo pass ;; "$E_FAIL") echo FAIL ;; "$E_SKIP") echo skip ;; *) echo "HARNESS ERROR" ;; esac)" >>"$steps"
	case $rc in
	0) ;;
	"$E_SKIP") [[ $(skipped_points) -gt $skipped ]] || echo "ok - $name # SKIP exit status 4" >>"$steps_tap" ;;
	*) [[ $(bad_points) -gt $before ]] || echo "not ok - $name # exit status $rc" >>"$steps_tap" ;;
	esac
	if ((rc > worst && rc != E_SKIP)); then worst=$rc; fi
	return "$rc"
}
run() { bash "$TOP/ci/run" "$@"; }

finish() {
	local rc=0
	lanes_end
	if [[ -s $steps_tap ]]; then
		{
			awk '{ n++; sub(/^not ok -/, "not ok " n " -"); sub(/^ok -/, "ok " n " -"); print } END { print "1.." n }' "$steps_tap"
		} >"$RESULTS/steps.tap"
	fi
	printf '\n'
	cat "$steps"
	printf '%-24s %6s\n\n' total "$(_elapsed $((SECONDS - start)))"
	bash "$TOP/ci/lib/tally.sh" "$RESULTS"/*.tap >"$OUT/summary" || rc=$?
	cat "$OUT/summary"
	if ((worst > E_FAIL)); then exit "$E_HARNESS"; fi
	if ((rc || worst)); then exit "$E_FAIL"; fi
	exit "${1:-0}"
}

# lane_begin NAME CMD...: a row of steps beside those that follow, with results of its own. lanes_end: their output,
# steps and points, as if they had come after the others.
lanes=() lane_pids=()
lane_begin() {
	local dir=$steps_dir/$1.lane
	lanes+=("$1")
	shift
	mkdir -p "$dir/results"
	set -m
	(
		set +m
		trap - INT TERM
		export RESULTS=$dir/results
		worst=0 steps=$dir/steps steps_tap=$dir/steps.tap
		: >"$steps"
		: >"$steps_tap"
		"$@"
		echo "$worst" >"$dir/worst"
	) >"$dir/log" 2>&1 </dev/null &
	lane_pids+=($!)
	set +m
}
lanes_end() {
	local i dir w
	for i in "${!lanes[@]}"; do
		dir=$steps_dir/${lanes[i]}.lane
		printf '\n=== beside these steps: %s (%s)\n' "${lanes[i]}" "$(_elapsed $((SECONDS - start)))" >&2
		tail -n +1 --pid="${lane_pids[i]}" -f "$dir/log"
		wait "${lane_pids[i]}" || true
		find "$dir/results" -name '*.tap' -exec mv -t "$RESULTS" {} +
		cat "$dir/steps" >>"$steps"
		cat "$dir/steps.tap" >>"$steps_tap"
		w=$E_HARNESS
		if [[ -s $dir/worst ]]; then
			w=$(<"$dir/worst")
		else
			echo "not ok - the steps beside others, ${lanes[i]}, ended early" >>"$steps_tap"
		fi
		if ((w > worst)); then worst=$w; fi
	done
	lanes=() lane_pids=()
}

# An interrupted run has no verdict. What it has spent its time on is of use.
interrupted() {
	local pid f
	trap '' INT TERM
	for pid in "${lane_pids[@]}"; do kill -- "-$pid" 2>/dev/null || true; done
	printf '\ninterrupted after %s; steps that had ended:\n' "$(_elapsed $((SECONDS - start)))" >&2
	for f in "$steps" "$steps_dir"/*.lane/steps; do
		if [[ -f $f ]]; then cat "$f" >&2; fi
	done
	exit 130
}
trap interrupted INT TERM

if ! step deps run deps; then
	if ((worst == 0)); then finish "$E_SKIP"; fi
	finish
fi
step tree run tree "${tree_args[@]}" || finish
step apply run apply "${apply_args[@]}" || finish

# What is not built is not tested, and counts as skipped where the build was.
build() {
	local rc=0
	step "build $1 $2" run build --arch "$1" --variant "$2" || rc=$?
	if ((rc == E_SKIP)); then echo "ok - test $1 $2 # SKIP NOT RUN, nothing was built" >>"$steps_tap"; fi
	return "$rc"
}
tests() { step "test $1 $2" run test --arch "$1" --variant "$2" || true; }
others=()
if [[ -n $full ]]; then others+=(arm); fi
if [[ -n $every_arch ]]; then
	for f in "$TOP"/ci/configs/arch/*.facts; do
		a=$(basename "$f" .facts)
		if [[ $a != x86_64 && " ${others[*]} " != *" $a "* ]]; then others+=("$a"); fi
	done
fi
boot_others() {
	local a
	for a in "${others[@]}"; do
		step "deps $a" run deps --optional --arch "$a" || true
		if build "$a" normal; then tests "$a" normal; fi
		# The debug variant as well, but for its ten minutes.
		if [[ $a == arm && -n $full && -n $every_arch ]] && build "$a" debug; then tests "$a" debug; fi
	done
}
# coccicheck takes as long as all other checks together, twice.
static() {
	local kinds=(--only "series,checkpatch,maintainers,kdoc,w1,sparse")
	if [[ -n $each ]]; then kinds=(--each); fi
	if [[ -n $full ]]; then step "harness" bash "$TOP/ci/lib/selftest.sh" || true; fi
	if [[ -n $check ]]; then step check run check "${kinds[@]}" || true; fi
}
# Mainline's own tests
regress() {
	local part=(--part check)
	if [[ -n $each ]]; then part=(); fi
	step regress run regress "${part[@]}" || true
}
live() { step "harness in the guest" bash "$TOP/ci/lib/selftest.sh" live || true; }

if [[ -z $full ]]; then
	static
	if build x86_64 normal; then tests x86_64 normal; fi
	boot_others
else
	# What wants the kernel that takes longest to build, and beside it the rest.
	beside() { static; boot_others; }
	lane_begin static beside
	if build x86_64 normal; then
		lane_begin live live
		tests x86_64 normal
		regress
		if [[ -z $each ]]; then step mutate run mutate --sample || true; fi
	fi
	lanes_end
fi
if [[ -n $each ]]; then
	if build x86_64 debug; then
		tests x86_64 debug
		if [[ -n $full ]]; then step "harness, debug" bash "$TOP/ci/lib/selftest.sh" debug || true; fi
	fi
	step "regress --base" run regress --base || true
	step "build --each" run build --each || true
	step alone run alone || true
	step mutate run mutate || true
fi
finish
