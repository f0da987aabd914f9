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
       ci/run bench --compare [--no-build] [--reps N] [--timeout SECONDS]

Builds the variant "bench", runs pfnmap_bench in a guest with one processor whose clock advances by one
nanosecond per instruction (-icount), and compares the result with the goals.

  --build DIR        kernel and selftests are there instead of in out/build/<arch>-bench
  --no-build         take what has been built before
  --pages N          size of the mapping (default: the benchmark's own)
  --reps N           repetitions (default: the benchmark's own)
  --timeout SECONDS  for each guest (default 1800)
  --from LOG         no guest, only table, plot and goals for the output in LOG
  --compare          hmm_file_bench and pfnmap_drivers_bench, on a kernel of the same configuration that has
                     topics 1 and 2 only, and on the one of the series

Output: out/bench/{bench.tsv,table.md,bench.svg,bench.png}, out/results/bench.tap; with --compare
out/bench-compare/{before.log,after.log,table.md}, out/results/bench-compare.tap
END
}

arch=x86_64 build='' no_build='' pages='' reps='' limit=1800 from='' compare=''
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
	--compare) compare=1 ;;
	*) usage_error "unknown option $1" ;;
	esac
	shift
done
[[ $limit$pages$reps =~ ^[0-9]+$ && $limit != 0 ]] || usage_error "--pages, --reps and --timeout want numbers"
[[ -z $from || -f $from ]] || usage_error "no file $from"
[[ -z $compare || $arch-$build$pages$from == x86_64- ]] || usage_error "--compare goes with --no-build, --reps and --timeout"
need python3 gnuplot
tap=bench${compare:+-compare}
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
	tap_begin "$tap"
	tap_not_ok "benchmark" "$1"
	tap_end || true
	fail "$1"
}

# run_guest NAME BUILD [EXTRA_DIR]: out/test/NAME/job, on one processor; another would only take turns with this
# one, and add interrupts to what is measured.
run_guest() {
	local name=$1 build=$2 dir=$OUT/test/$1
	guest_need
	GUEST_SMP=1 GUEST_ACCEL=tcg,thread=single GUEST_EXTRA=(-icount shift=0)
	guest_disk "$build" "$dir/disk.img" "${3-}"
	guest_initramfs "$build" "$dir" "timeout=$limit"
	guest_qemu "$build" "$dir" "$dir/disk.img"
	log "$name with -icount, $(_elapsed "$limit") at most"
	guest_run "$dir" "$limit"
	log "guest ran for $(_elapsed "$GUEST_SECONDS"), token $GUEST_TOKEN, status $GUEST_STATUS"

	[[ $GUEST_TIMEOUT == no ]] || red "the guest was killed by its time limit of $limit s"
	[[ $GUEST_TOKEN == ok ]] || red "token $GUEST_TOKEN: the guest did not come to its end, see $dir/console.log"
	[[ $GUEST_STATUS == 0 ]] || red "the benchmark ended with status $GUEST_STATUS, see $dir/ktap.log"
	python3 "$TOP/ci/lib/splats.py" --variant bench --no-min "$dir/console.log" >&2 || red "the kernel complained, see $dir/console.log"
}
release() { cat "$1/include/config/kernel.release" 2>/dev/null || echo unknown; }
where="$("$QEMU" --version 2>/dev/null | sed -n 1p), one CPU, -icount shift=0"

# compare_build: the kernel before is built with the configuration of the one after, all of whose drivers it has.
compare_build() {
	local tag
	need_series
	tag=$(kgit tag -l 'topic/2-*')
	[[ -n $tag ]] || harness_error "no tag topic/2-... in $TREE; do: ci/run apply"
	"$TOP/ci/run" build --variant bench || red "the variant bench does not build"
	kgit_worktree "$before" "$tag"
	kgit -C "$before" checkout -q "$SERIES_REF" -- tools/testing/selftests/mm/config
	"$TOP/ci/run" build --variant bench --source "$before" --kernel-only || red "the kernel before does not build"
}

# compare_job [OPTION...]: for hmm_file_bench
compare_job() {
	cat <<-END
		modprobe test_hmm || exit 1
		mount -t tmpfs -o size=1g bench /mnt || exit 1
		mkdir /mnt/tmpfs /mnt/ext4
		truncate -s 256M /mnt/image
		mkfs.ext4 -q /mnt/image || exit 1
		loop=\$(losetup -f) && losetup "\$loop" /mnt/image && mount -t ext4 "\$loop" /mnt/ext4 || exit 1
		/extra/hmm_file_bench $* /mnt/tmpfs /mnt/ext4 || exit 1
		/extra/pfnmap_drivers_bench${reps:+ -r $reps} || exit 1
		umount /mnt/ext4
	END
}

compare() {
	local out=$OUT/bench-compare before=$OUT/bench-before build after when options rc=0
	rm -rf "$RESULTS/$tap.tap" "$out"
	after=$(build_dir x86_64 bench)
	[[ -n $no_build ]] || compare_build
	mkdir -p "$out/programs"
	cp "$after"/ksft/mm/{hmm_file_bench,pfnmap_drivers_bench} "$out/programs/" ||
		harness_error "the benchmarks have not been built: ci/run bench --compare"
	for when in before after; do
		build=$after options=(${reps:+-r "$reps"})
		# That kernel migrates anonymous memory alone.
		if [[ $when == before ]]; then build+=-$(basename "$before") options+=(-a); fi
		[[ -s $build/$IMAGE ]] || harness_error "no kernel in $build: ci/run bench --compare"
		mkdir -p "$OUT/test/bench-$when"
		compare_job "${options[@]}" >"$OUT/test/bench-$when/job"
		run_guest "bench-$when" "$build" "$out/programs"
		cp "$OUT/test/bench-$when/ktap.log" "$out/$when.log"
	done
	python3 "$TOP/ci/lib/bench_compare.py" --before "$out/before.log" --after "$out/after.log" --out "$out" \
		--tap "$RESULTS/$tap.tap" --note "Kernel $(release "$after"), $where; before: the same with topics 1 and 2 only." || rc=$?
	case $rc in
	0) log "all goals are met" ;;
	1) fail "a goal is not met, see $out/table.md" ;;
	*) red "the benchmarks printed nothing of use, see $out" ;;
	esac
}
if [[ -n $compare ]]; then
	compare
	exit
fi

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
run_guest "$arch-bench" "$build"
results "$dir/ktap.log" --note "Kernel $(release "$build"), $arch, $where."
