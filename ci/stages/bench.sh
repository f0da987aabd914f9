#!/bin/bash
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"
# shellcheck source=ci/lib/guest.sh
. "$TOP/ci/lib/guest.sh"

usage() {
	cat <<'END'
usage: ci/run bench [--arch A] [--build DIR] [--no-build] [--pages N] [--reps N] [--timeout SECONDS]
       ci/run bench --from LOG

Builds the variant "bench", runs pfnmap_bench in a guest with one processor whose clock advances by one
nanosecond per instruction (-icount), and compares the result with the goals.

  --build DIR        kernel and selftests are there instead of in out/build/<arch>-bench
  --no-build         take what has been built before
  --pages N          size of the mapping (default: the benchmark's own)
  --reps N           repetitions (default: the benchmark's own)
  --timeout SECONDS  for the guest (default 1800)
  --from LOG         no guest, only table, plot and goals for the output in LOG

Output: out/bench/{bench.tsv,table.md,bench.svg,bench.png}, out/results/bench.tap
END
}

arch=x86_64 build='' no_build='' pages='' reps='' limit=1800 from=''
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	--arch) need_arg "$@"; arch=$2; shift ;;
	--build) need_arg "$@"; build=$(realpath "$2"); no_build=1; shift ;;
	--no-build) no_build=1 ;;
	--pages) need_arg "$@"; pages=$2; shift ;;
	--reps) need_arg "$@"; reps=$2; shift ;;
	--timeout) need_arg "$@"; limit=$2; shift ;;
	--from) need_arg "$@"; from=$2; shift ;;
	*) usage_error "unknown option $1" ;;
	esac
	shift
done
[[ $limit$pages$reps =~ ^[0-9]+$ && $limit != 0 ]] || usage_error "--pages, --reps and --timeout want numbers"
[[ -z $from || -f $from ]] || usage_error "no file $from"
need python3 gnuplot
facts "$arch"

results() {
	local rc=0
	python3 "$TOP/ci/lib/bench.py" --log "$1" --out "$OUT/bench" --tap "$RESULTS/bench.tap" "${@:2}" || rc=$?
	case $rc in
	0) log "all goals are met" ;;
	1) fail "a goal is not met, see $OUT/bench/table.md" ;;
	*) red "the benchmark printed nothing of use, see $1" ;;
	esac
}

# red TEXT: a result that counts, in place of the goals'.
red() {
	tap_begin bench
	tap_not_ok "benchmark" "$1"
	tap_end || true
	fail "$1"
}

# What an earlier run left must not pass for the result of this one.
rm -rf "$RESULTS/bench.tap" "$OUT/bench"
if [[ -n $from ]]; then
	results "$from"
	exit
fi

[[ -n $build ]] || build=$(build_dir "$arch" bench)
if [[ -z $no_build ]]; then
	"$TOP/ci/run" build --arch "$arch" --variant bench || red "the variant bench does not build"
fi
[[ -s $build/$IMAGE ]] || harness_error "no kernel in $build: ci/run build --arch $arch --variant bench"
[[ -x $build/ksft/mm/pfnmap_bench ]] || harness_error "no pfnmap_bench in $build/ksft/mm"

dir=$OUT/test/$arch-bench
mkdir -p "$dir"
args=${pages:+ -p $pages}${reps:+ -r $reps}
if [[ $GUEST == small ]]; then
	# for ci/guest/run.c
	printf '%s\n' 'category bench' 'load pfnmap_test' "program pfnmap_bench$args" 'end bench' >"$dir/job"
else
	printf '%s\n' 'modprobe pfnmap_test || exit 1' 'cd /ksft/mm || exit 1' "exec ./pfnmap_bench$args" >"$dir/job"
fi
guest_need
# Another processor would only take turns with this one, and add interrupts to what is measured.
GUEST_SMP=1 GUEST_ACCEL=tcg,thread=single GUEST_EXTRA=(-icount shift=0)
guest_disk "$build" "$dir/disk.img"
guest_initramfs "$build" "$dir" "timeout=$limit"
guest_qemu "$build" "$dir" "$dir/disk.img"
log "$arch with -icount, $(_elapsed "$limit") at most"
guest_run "$dir" "$limit"
log "guest ran for $(_elapsed "$GUEST_SECONDS"), token $GUEST_TOKEN, status $GUEST_STATUS"

[[ $GUEST_TIMEOUT == no ]] || red "the guest was killed by its time limit of $limit s"
[[ $GUEST_TOKEN == ok ]] || red "token $GUEST_TOKEN: the guest did not come to its end, see $dir/console.log"
[[ $GUEST_STATUS == 0 ]] || red "the benchmark ended with status $GUEST_STATUS, see $dir/ktap.log"
python3 "$TOP/ci/lib/splats.py" --variant bench --no-min "$dir/console.log" >&2 || red "the kernel complained, see $dir/console.log"
results "$dir/ktap.log" \
	--note "Kernel $(cat "$build/include/config/kernel.release" 2>/dev/null || echo unknown), $arch, $("$QEMU" --version | head -n 1), one CPU, -icount shift=0."
