#!/bin/bash
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"

usage() {
	cat <<'END'
usage: ci/run mutate [NAME...]

Plants the bugs of ci/tests/mutations/NAME.patch, one at a time, into the kernel that "ci/run build" has made
for x86_64, and boots it. Of the tests that each line "Tests: REGEX" of the patch names, one has to fail at least;
of those of a whole category, "Tests: CATEGORY REGEX", one whose name has a match.
END
}

names=()
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	-*) usage_error "unknown option $1" ;;
	*) names+=("$1") ;;
	esac
	shift
done
if ((${#names[@]} == 0)); then
	for f in "$TOP"/ci/tests/mutations/*.patch; do names+=("$(basename "$f" .patch)"); done
fi

facts x86_64
need_series
normal=$(build_dir x86_64 normal)
mutant=$OUT/build/x86_64-mutant
[[ -s $normal/$IMAGE ]] || harness_error "no kernel in $normal; to make it: ci/run build"
mkdir -p "$OUT/log" "$OUT/mutate"
applied=''
restore() {
	if [[ -n $applied ]]; then kgit apply -R "$applied" || echo "out/tree keeps $applied" >&2; fi
	applied=''
}
trap restore EXIT
trap 'exit 130' INT TERM

# test_hmm and others are modules.
mutant_make() {
	kmake "$mutant" "$(basename "$IMAGE")" modules &&
		kmake "$mutant" INSTALL_MOD_PATH="$mutant/mods" INSTALL_MOD_STRIP=1 modules_install
}

rm -rf "$mutant"
cp -a --reflink=auto "$normal" "$mutant"
tap_begin mutate
for n in "${names[@]}"; do
	patch=$TOP/ci/tests/mutations/$n.patch
	[[ -f $patch ]] || usage_error "no mutation $n"
	mapfile -t finders < <(sed -n 's/^Tests: //p;/^---$/q' "$patch")
	((${#finders[@]})) || harness_error "$patch has no line 'Tests: REGEX'"
	if ! kgit apply --check "$patch" 2>"$OUT/mutate/err"; then
		tap_not_ok "$n" "does not apply: $(<"$OUT/mutate/err")"
		continue
	fi
	kgit apply "$patch"
	applied=$patch
	if ! run_long "kernel with $n" "$OUT/log/mutate-$n-build.log" mutant_make; then
		tap_not_ok "$n" "does not build"
		restore
		continue
	fi
	restore
	rm -rf "$OUT/mutate/$n"
	for i in "${!finders[@]}"; do
		# The lines are anchored to the program; the point of the whole program does not count.
		results=$OUT/mutate/$n/$i log=$OUT/log/mutate-$n-$i-test.log rc=0
		read -r finder want <<<"${finders[i]}"
		RESULTS=$results bash "$TOP/ci/run" test --build "$mutant" --only "$finder" >"$log" 2>&1 || rc=$?
		# A guest that dies of it leaves tests without a result; they have to have begun.
		found='^not ok [0-9]+ - [a-z_]+:'
		if grep -q '^# running \./' "$OUT/test/x86_64-normal/ktap.log"; then found='^not ok [0-9]+ - (ci\.vanished:)?[a-z_]+:'; fi
		if [[ -n $want ]]; then found="^not ok [0-9]+ - .*$want"; fi
		failed=$(grep -hcE "$found" "$results"/*.tap 2>/dev/null || true)
		if ((rc == E_FAIL && failed > 0)); then
			tap_ok "$n: $failed of ${finders[i]} fail"
		else
			tap_not_ok "$n: ${finders[i]}" "no test has failed, status $rc; see $log"
		fi
	done
done
rm -rf "$mutant"
tap_end || fail "a planted bug has not been found"
