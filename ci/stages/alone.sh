#!/bin/bash
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"
# shellcheck source=ci/lib/am.sh
. "$TOP/ci/lib/am.sh"

usage() {
	cat <<'END'
usage: ci/run alone [--build-only] [TOPIC...]

Builds each topic (all, if none is named) for x86_64 on the base and those topics that patches/TOPIC/needs names,
without the rest of the series, boots it, and runs the selftests that the topic and these add. What is as it was
when this last passed is not built again.
END
}

build_only='' topics=()
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	--build-only) build_only=1 ;;
	-*) usage_error "unknown option $1" ;;
	*) topics+=("$1") ;;
	esac
	shift
done
need git make gcc
need_series
((${#topics[@]})) || mapfile -t topics < <(series_topics)
wt=$OUT/alone-tree build=$OUT/build/x86_64-normal-alone-tree passed=$OUT/alone
dir=tools/testing/selftests/mm
mkdir -p "$passed" "$OUT/log"
base=$(kgit rev-parse "$BASE_REF^{commit}")

# programs COMMIT: the selftests that run_vmtests.sh has and the base has not, as a pattern for "ci/run test --only".
programs() {
	kgit diff --name-only --diff-filter=A "$base" "$1" -- "$dir/*.c" | sed 's|.*/||; s|\.c$||' | while read -r program; do
		if kgit show "$1:$dir/run_vmtests.sh" | grep " run_test \./$program\$" >/dev/null; then printf '%s\n' "$program"; fi
	done | paste -sd '|' | sed 's/..*/^(&):/'
}

tap_begin alone
for topic in "${topics[@]}"; do
	if ! [[ -f $PATCHES/$topic/needs ]]; then
		tap_not_ok "$topic alone" "there is no patches/$topic/needs"
		continue
	fi
	if ! why=$(alone_index "$passed/index" "$base" "$topic"); then
		tap_not_ok "$topic alone" "does not apply: $why"
		continue
	fi
	tree=$(GIT_INDEX_FILE=$passed/index kgit write-tree)
	rm -f "$passed/index"
	commit=$(kgit commit-tree -m "$topic alone" -p "$base" "$tree")
	pattern=$(programs "$commit")
	if [[ -f $passed/$tree && (-n $build_only || $(<"$passed/$tree") == tested) ]]; then
		tap_ok "$topic alone"
		continue
	fi
	if [[ -d $wt ]]; then
		kgit -C "$wt" checkout -q -f --detach "$commit"
	else
		kgit worktree add -f --detach "$wt" "$commit" >/dev/null 2>&1
	fi
	if ! bash "$TOP/ci/run" build --source "$wt" >&2; then
		tap_not_ok "$topic alone" "does not build"
		continue
	fi
	echo built >"$passed/$tree"
	if [[ -n $pattern && -z $build_only ]]; then
		if ! RESULTS=$passed/results bash "$TOP/ci/run" test --build "$build" --only "$pattern" >"$OUT/log/alone-$topic.log" 2>&1; then
			tap_not_ok "$topic alone" "$(grep -h '^not ok' "$passed"/results/*.tap "$OUT/log/alone-$topic.log" | sed -n 1,20p)"
			continue
		fi
		echo tested >"$passed/$tree"
	fi
	tap_ok "$topic alone"
done
tap_end || fail "a topic does not stand alone"
