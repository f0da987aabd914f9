#!/bin/bash
# Tests of the harness itself; TAP in $RESULTS.
#   selftest.sh        shellcheck, Python's compiler, bats: lint.tap, bats.tap
#   selftest.sh live   ci/tests/*-live.bats, which want the kernel of the stage build: bats-live.tap
#   selftest.sh debug  those of them that want the kernel of build --variant debug: bats-debug.tap
set -euo pipefail
STAGE=selftest
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"
need shellcheck bats python3
cd "$TOP"

# run_bats NAME ARG...: without a pipe, that would lose the status; the file is what is summed up.
run_bats() {
	local name=$1 rc=0
	shift
	mkdir -p "$OUT/log" "$RESULTS"
	# shellcheck disable=SC2016
	run_long "$name" "$RESULTS/$name.tap" \
		bash -c 'log=$1; shift; unset STAGE; exec bats --tap --timing "$@" 2>"$log"' - "$OUT/log/$name.log" "$@" || rc=$?
	cat "$RESULTS/$name.tap"
	if ((rc)); then tail -n 20 "$OUT/log/$name.log" >&2; fi
	return "$rc"
}

case ${1-} in
live) (unset KSRC; run_bats bats-live --filter-tags '!debug' ci/tests/*-live.bats); exit ;;
debug) (unset KSRC; run_bats bats-debug --filter-tags debug ci/tests/*-live.bats); exit ;;
esac

status=0
tap_begin lint
while IFS= read -r f; do
	case $f in
	*.py) tool=python ;;
	*.sh | *.bash | *.bats) tool=shellcheck ;;
	*)
		head -n 1 "$f" | grep -qE '^#!.*\b(ba)?sh\b' || continue
		tool=shellcheck
		;;
	esac
	if [[ $tool == python ]]; then
		out=$(python3 -c 'import sys; compile(open(sys.argv[1], encoding="utf-8").read(), sys.argv[1], "exec")' "$f" 2>&1) || true
	else
		out=$(shellcheck -x -f gcc "$f" 2>&1) || true
	fi
	if [[ -z $out ]]; then tap_ok "$tool: $f"; else tap_not_ok "$tool: $f" "$out"; fi
done < <(find ci .ci -type f ! -path '*/golden/*' ! -name '*.pyc' | sort)
tap_end || status=1

mapfile -t files < <(find ci/tests -name '*.bats' ! -name '*-live.bats' | sort)
# These bring their own trees and series.
(unset TREE KSRC PATCHES SERIES OVERLAY CACHE CI_CACHE; run_bats bats "${files[@]}") || status=1
exit "$status"
