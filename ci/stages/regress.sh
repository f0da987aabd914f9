#!/bin/bash
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"
# shellcheck source=ci/lib/guest.sh
. "$TOP/ci/lib/guest.sh"

usage() {
	cat <<'END_USAGE'
usage: ci/run regress [--part check|all] [--categories "C..."] [--build DIR] [--again]
                      [--base [--update-expected] [--no-build]]
                      [--accel auto|tcg|kvm] [--limit S]

Runs the categories of mainline's run_vmtests.sh that ci/expected/regress lists in a guest with the series, and
compares with what the base has come to, which ci/expected/regress-x86_64.base has on record: what passes there and
fails, is skipped or is not there with the series is red. So is a new point that does not pass, a kernel report that the
base does not have, and a guest that dies. A category that has been run on the same tree is not run again.

  --part check       the quick ones only (all)
  --categories LIST  these only
  --build DIR        a build directory instead of out/build/x86_64-normal, of whatever tree
  --again            run them again, whatever has been kept
  --base             builds the base instead, and compares that with its own record: each difference is red
  --update-expected  with --base: write the record
  --no-build         with --base: what has been built before
  --accel A          as of ci/run test
  --limit S          seconds for one category (1200, under KVM 300)

What varies from run to run on one kernel is listed in ci/expected/regress.flaky, and not compared.
HASH is of the configuration, kernel and programs.
Results: out/regress/TREE-HASH/CATEGORY.{ktap,console,done}; out/results/regress.tap, regress-base.tap
END_USAGE
}

part=all categories='' build='' given='' again='' base='' update='' no_build='' accel=auto limit=''
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	--part) need_arg "$@"; part=$2; shift ;;
	--categories) need_arg "$@"; categories=$2; shift ;;
	--build) need_arg "$@"; build=$2 given=1; shift ;;
	--again) again=1 ;;
	--base) base=1 ;;
	--update-expected) update=1 ;;
	--no-build) no_build=1 ;;
	--accel) need_arg "$@"; accel=$2; shift ;;
	--limit) need_arg "$@"; limit=$2; shift ;;
	*) usage_error "unknown option $1" ;;
	esac
	shift
done
[[ $part =~ ^(check|all)$ ]] || usage_error "unknown part $part"
[[ $accel =~ ^(auto|tcg|kvm)$ ]] || usage_error "unknown accelerator $accel"
[[ $categories =~ ^[a-z0-9_\ -]*$ ]] || usage_error "odd categories '$categories'"
[[ -z $limit || $limit =~ ^[1-9][0-9]{0,5}$ ]] || usage_error "--limit wants seconds, not '$limit'"
[[ -n $base || -z $update$no_build ]] || usage_error "--update-expected and --no-build go with --base"

facts x86_64
need python3
need_series
what=series tap=regress
if [[ -n $base ]]; then what=base tap=regress-base; fi
dir=$OUT/regress/guest-$what base_tree=$OUT/base-tree
record=$TOP/ci/expected/regress-$ARCH.base
base_commit=$(series_header base-commit)
mm=tools/testing/selftests/mm
regress() { python3 "$TOP/ci/lib/regress.py" "$@"; }
mkdir -p "$dir"
exec 9>"$dir/lock"
flock -n 9 || harness_error "another run uses $dir"
rm -f "$RESULTS/$tap.tap"

# red TEXT: a result that counts, in place of the comparison's.
red() {
	tap_begin "$tap" >/dev/null
	tap_not_ok "$tap" "$1" >/dev/null
	tap_end >/dev/null || true
	fail "$1"
}

# The configuration of the series is that of the base, but for symbols that the base does not have.
build_base() {
	local symbols=$OUT/regress/symbols
	kgit_worktree "$base_tree" "$BASE_REF"
	kgit -C "$base_tree" grep -hE '^[[:space:]]*(menu)?config [A-Z0-9_]+' -- '*Kconfig*' |
		awk '{ print "CONFIG_" $2 }' | sort -u >"$symbols"
	kgit show "$SERIES_REF:$mm/config" |
		awk -F= 'NR == FNR { have[$1]; next } !/^CONFIG_/ || $1 in have' "$symbols" - >"$base_tree/$mm/config"
	"$TOP/ci/run" build --source "$base_tree" || red "the base does not build"
}
if [[ -n $base ]]; then
	build=${build:-$(build_dir "$ARCH" normal)-$(basename "$base_tree")}
	[[ -n $no_build ]] || build_base
else
	build=${build:-$(build_dir "$ARCH" normal)}
fi
[[ -s $build/$IMAGE && -s $build/ksft.id && -f $build/ksft/mm/run_vmtests.sh ]] ||
	harness_error "no kernel and selftests in $build; to make them: ci/run ${base:+regress --base}${base:-build}"
build=$(realpath "$build")

# What has been built: a tree, and maybe changes that nobody has committed. The base's are its configuration.
tree=$(head -n 1 "$build/ksft.id")
if [[ -n $base ]]; then
	want=$(kgit rev-parse "$BASE_REF^{tree}")
else
	want=$(kgit rev-parse "HEAD^{tree}")
fi
if [[ -z $given && $tree != "$want" ]]; then
	harness_error "the kernel in $build is not of the $what's tree $want, but of $tree; to make it: ci/run build"
fi
if [[ -z $base && $(wc -l <"$build/ksft.id") -gt 1 ]]; then
	warn "the kernel has been built from changes that are not committed"
fi

# job CATEGORY...: for bash in the guest.
job() {
	printf 'limit=%s\n' "$limit"
	cat <<-'END_JOB'
		set -m
		exec 2>/dev/null
		# run_vmtests.sh pipes its output through sed: nothing of it is to be lost when the kernel dies.
		sed() { command sed -u "$@"; }
		export -f sed
		uptime() { read -r up _ </proc/uptime; echo "$up"; }
		# What one category leaves behind is not to change what another one finds.
		tidy() {
			kill -9 -1
			for f in /proc/sys/vm/nr_hugepages /sys/kernel/mm/hugepages/*/nr_hugepages; do echo 0 >"$f"; done
			echo 2 >/sys/kernel/mm/ksm/run
			echo 0 >/sys/kernel/mm/ksm/run
			sync
			echo 3 >/proc/sys/vm/drop_caches
			echo 1 >/proc/sys/vm/compact_memory
			echo 1 >/sys/kernel/debug/clear_warn_once
		}
		# A kernel in which a test hangs, whatever signal that gets, is made to panic.
		watch() {
			sleep $((limit + 60))
			echo "ci: $1 does not end" >/dev/kmsg
			for c in w l c; do echo "$c" >/proc/sysrq-trigger; done
		}
		# The half of hmm-tests that test_hmm.sh leaves out when it gets no addresses, those of the memory that is no
		# System RAM. What wants more memory than a device has (256 MiB) makes test_hmm itself oops.
		hmm-coherent() {
			local st
			printf 'TAP version 13\n# running ./hmm-tests coherent\n'
			modprobe test_hmm spm_addr_dev0=0x80000000 spm_addr_dev1=0x90000000
			./hmm-tests -T benchmark_thp_migration -v hmm_device_coherent -v hmm2_device_coherent | sed 's/^/# /'
			st=${PIPESTATUS[0]}
			modprobe -r test_hmm
			if ((st == 0)); then echo 'ok 1 hmm-tests coherent'; else echo "not ok 1 hmm-tests coherent # exit=$st"; fi
			echo 1..1
		}
		export -f hmm-coherent
		category() {
			local run=(./run_vmtests.sh -t "$1")
			if [[ $1 == hmm-coherent ]]; then run=(bash -c hmm-coherent); fi
			tidy
			case $1 in
			# run_vmtests.sh asks a modprobe that is not busybox's whether there is that module.
			memory-failure) modprobe hwpoison_inject ;;
			# ... and makes a directory whose name, which is part of the points', is another one each time.
			thp)
				truncate -s 512M /var/tmp/xfs
				mkfs.xfs -q -f /var/tmp/xfs && mount -t xfs -o loop /var/tmp/xfs /mnt &&
					export SPLIT_HUGE_PAGE_TEST_XFS_PATH=/mnt
				;;
			esac
			# The output of the one before has to be out when this one kills the guest.
			sleep 0.3
			echo "ci: category $1" >/dev/kmsg
			printf '\n# ci: category %s %s\n' "$1" "$(uptime)"
			watch "$1" &
			timeout -k 10 "$limit" "${run[@]}" 2>&1
			printf '\n# ci: status %s %s %s\n' "$1" $? "$(uptime)"
			if [[ $1 == thp ]]; then umount /mnt; rm /var/tmp/xfs; fi
			kill %watch
			wait
		}
	END_JOB
	(($# == 0)) || printf 'category %s\n' "$@"
}

guest_accel "$accel" "$build"
# mremap_test takes the address behind what mmap() has given to it: whether something is there is chance otherwise.
GUEST_APPEND=norandmaps
if [[ -z $limit ]]; then limit=1200; [[ $GUEST_ACCEL != kvm ]] || limit=300; fi
config=$({ cat "$TOP/ci/configs"/{base.config,"arch/$ARCH.config","arch/$ARCH.facts"}; kgit show "$SERIES_REF:$mm/config"; } |
	sha256sum | cut -c1-16)
# By the tree, and by what runs: what was built while somebody changed the tree is not what that says.
key=${tree:0:16}-$({
	echo "$config $GUEST_APPEND"
	cat "$TOP/ci/lib/guest.sh" "$TOP/ci/guest/init.c" "$build/$IMAGE"
	job
	(cd "$build" && find . \( -path './ksft/*' -o -path './mods/*' \) -type f -print0 | sort -z | xargs -0 sha256sum)
} | sha256sum | cut -c1-8)
kept=$OUT/regress/$key
mkdir -p "$kept"

rc=0
chosen=$(regress categories --script "$build/ksft/mm/run_vmtests.sh" --part "$part" --categories "$categories" \
	--also hmm-coherent ${base:+--base}) || rc=$?
((rc < 2)) || harness_error "see above"
((rc == 0)) || red "$chosen"
mapfile -t selected < <(sed -n 's/^run //p' <<<"$chosen")
((${#selected[@]})) || harness_error "no category to run"
if [[ -n $again ]]; then for c in "${selected[@]}"; do rm -f "$kept/$c.done"; done; fi
left() { for c in "${selected[@]}"; do [[ -f $kept/$c.done ]] || echo "$c"; done; }

# What an interrupted guest has come to the end of is kept, too.
keep() { regress split --ktap "$dir/ktap.log" --console "$dir/console.log" --out "$kept" "$@" >&2; }
running=''
trap '[[ -z $running || ! -f $dir/console.log ]] || keep --interrupted || true' EXIT
# A guest that dies takes the category that it has died in along; the others get a new one.
mapfile -t todo < <(left)
while ((${#todo[@]})); do
	guest_need
	job "${todo[@]}" >"$dir/job"
	most=$((600 + 180 * ${#todo[@]} + limit))
	guest_disk "$build" "$dir/disk.img"
	guest_initramfs "$build" "$dir" "timeout=$((most - most / 20))"
	guest_qemu "$build" "$dir" "$dir/disk.img"
	log "$what, $key: ${todo[*]}; $GUEST_ACCEL, at most $most s"
	running=1
	guest_run "$dir" "$most"
	running=
	if [[ $GUEST_STATUS == 124 ]]; then GUEST_TIMEOUT=yes GUEST_TOKEN=missing; fi
	log "guest: token $GUEST_TOKEN, timeout $GUEST_TIMEOUT, $(_elapsed "$GUEST_SECONDS")"
	keep --token "$GUEST_TOKEN" --timeout "$GUEST_TIMEOUT" || harness_error "the logs in $dir are of no use"
	before=${#todo[@]}
	mapfile -t todo < <(left)
	if ((${#todo[@]} == before)); then
		tail -n 30 "$dir/console.log" | tr -d '\r' | sed 's/^/    /' >&2
		red "the guest has not come to the first category, see $dir/console.log"
	fi
done

args=(--results "$kept" --categories "${selected[*]}" --base "$record" --base-commit "$base_commit" --config "$config")
if [[ -n $update ]]; then regress record "${args[@]}" || harness_error "$record has not been written"; fi
if [[ $part == check || -n $categories ]]; then args+=(--only); fi
if [[ -n $base ]]; then args+=(--exact); fi
regress judge "${args[@]}" --flaky "$TOP/ci/expected/regress.flaky" --tap "$RESULTS/$tap.tap" || rc=$?
((rc < 2)) || rc=$E_HARNESS
exit "$rc"
