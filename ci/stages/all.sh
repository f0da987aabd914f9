#!/bin/bash
# shellcheck disable=SC2030,SC2031,SC2317
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"

usage() {
	cat <<'END'
usage: ci/run all [--no-check] [--full] [--each] [--arches] [--linux DIR] [--onto newest]

Stages deps, tree, apply, check, build and test, one after the other; then how long each took, and, as the
last line, what became of all tests: "N passed, N failed, N skipped".

  --no-check     without check
  --full         also the tests of the harness itself; variants normal and debug; architecture arm, too, normal
  --arches       also the other architectures of ci/configs/arch/, in variant normal
  --each         coccicheck after each patch; also build what each patch touches after that patch; mutate
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
steps=() worst=0 start=$SECONDS
bad_points() { cat "$RESULTS"/*.tap 2>/dev/null | grep -c '^not ok' || true; }

skipped_points() { cat "$RESULTS"/*.tap 2>/dev/null | grep -c '^ok .* # SKIP' || true; }

# A step that fails without a point that says so gets one; its status must not get lost.
steps_tap=$OUT/steps.tmp
: >"$steps_tap"
step() {
	local name=$1 began=$SECONDS before skipped rc=0
	shift
	before=$(bad_points) skipped=$(skipped_points)
	printf '\n=== %s\n' "$name" >&2
	"$@" </dev/null || rc=$?
	steps+=("$(printf '%-24s %6s  %s' "$name" "$(_elapsed $((SECONDS - began)))" \
		"$(case $rc in 0) echo pass ;; "$E_FAIL") echo FAIL ;; "$E_SKIP") echo skip ;; *) echo "HARNESS ERROR" ;; esac)")")
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
	if [[ -s $steps_tap ]]; then
		{
			awk '{ n++; sub(/^not ok -/, "not ok " n " -"); sub(/^ok -/, "ok " n " -"); print } END { print "1.." n }' "$steps_tap"
		} >"$RESULTS/steps.tap"
	fi
	rm -f "$steps_tap"
	printf '\n'
	printf '%s\n' "${steps[@]}" "$(printf '%-24s %6s' total "$(_elapsed $((SECONDS - start)))")"
	printf '\n'
	bash "$TOP/ci/lib/tally.sh" "$RESULTS"/*.tap >"$OUT/summary" || rc=$?
	cat "$OUT/summary"
	if ((worst > E_FAIL)); then exit "$E_HARNESS"; fi
	if ((rc || worst)); then exit "$E_FAIL"; fi
	exit "${1:-0}"
}
# An interrupted run has no verdict.
trap 'printf "\ninterrupted\n" >&2; if [[ -n $lane ]]; then kill -- "-$lane" 2>/dev/null; fi; exit 130' INT TERM

# lane_begin CMD...: steps beside those that follow, with results of their own. A guest leaves part of the
# machine to others. lane_end: their output, steps and points, as if they had come after the others.
lane='' lane_dir=$OUT/lane
lane_begin() {
	rm -rf "$lane_dir"
	mkdir -p "$lane_dir/results"
	set -m
	(
		set +m
		export RESULTS=$lane_dir/results
		steps=() worst=0 steps_tap=$lane_dir/steps.tap
		: >"$steps_tap"
		"$@"
		printf '%s\n' "${steps[@]}" >"$lane_dir/steps"
		echo "$worst" >"$lane_dir/worst"
	) >"$lane_dir/log" 2>&1 </dev/null &
	lane=$!
	set +m
}
lane_end() {
	local line w=$E_HARNESS
	wait "$lane" || true
	lane=''
	cat "$lane_dir/log"
	find "$lane_dir/results" -name '*.tap' -exec mv -t "$RESULTS" {} +
	cat "$lane_dir/steps.tap" >>"$steps_tap"
	if [[ -s $lane_dir/worst ]]; then
		w=$(<"$lane_dir/worst")
		while IFS= read -r line; do steps+=("$line"); done <"$lane_dir/steps"
	else
		echo "not ok - the steps beside others ended early" >>"$steps_tap"
	fi
	if ((w > worst)); then worst=$w; fi
}

if ! step deps run deps; then
	if ((worst == 0)); then finish "$E_SKIP"; fi
	finish
fi
step tree run tree "${tree_args[@]}" || finish
step apply run apply "${apply_args[@]}" || finish
if [[ -n $full ]]; then step "harness" bash "$TOP/ci/lib/selftest.sh" || true; fi
if [[ -n $check ]]; then step check run check ${each:+--each} || true; fi
if [[ -n $each ]]; then step "build --each" run build --each || true; fi

# boot ARCH VARIANT...: what is not built is not tested, and counts as skipped where the build was.
boot() {
	local a=$1 v rc only
	shift
	for v; do
		rc=0 only=()
		# All of pfnmap_drivers takes 20 minutes there.
		if [[ $a-$v == x86_64-debug && -z $each ]]; then
			only=(--only '^(pfnmap(_insert|_mixed|_walk)?|hmm_file(_stress)?)(:|$)|^pfnmap_drivers:(object\.ttm_vram|evict)\.')
		fi
		step "build $a $v" run build --arch "$a" --variant "$v" || rc=$?
		case $rc in
		0) step "test $a $v" run test --arch "$a" --variant "$v" "${only[@]}" || true ;;
		"$E_SKIP") echo "ok - test $a $v # SKIP NOT RUN, nothing was built" >>"$steps_tap" ;;
		esac
	done
}
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
		case $a in
		# The debug variant as well, but for its ten minutes.
		arm) if [[ -n $full && -n $every_arch ]]; then boot "$a" normal debug; else boot "$a" normal; fi ;;
		*) boot "$a" normal ;;
		esac
	done
}
boot x86_64 normal
if [[ -n $each ]]; then step mutate run mutate || true; fi
if ((${#others[@]})); then lane_begin boot_others; fi
if [[ -n $full ]]; then boot x86_64 debug; fi
if ((${#others[@]})); then lane_end; fi
if [[ -n $full ]]; then step "harness in the guest" bash "$TOP/ci/lib/selftest.sh" live || true; fi
finish
