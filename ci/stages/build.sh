#!/bin/bash
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"

usage() {
	cat <<'END'
usage: ci/run build [--arch A] [--variant normal|debug|bench] [--source DIR] [--config-only]
                    [--kernel-only] [--each]

Builds kernel, modules and selftests of the series into out/build/<arch>-<variant>/, with ccache, and
fails when a symbol that a fragment asks for is not in the final configuration.

  --arch A        an architecture of ci/configs/arch/ (x86_64); status 4 when its compiler is missing
  --variant V     normal, debug (lockdep, KASAN, DEBUG_VM, ...), or bench
  --source DIR    build this kernel source instead of out/tree
  --config-only   just the configuration
  --kernel-only   no selftests
  --each          after each patch, build what it touches; remembers what it has built
END
}

arch=x86_64 variant=normal source='' config_only='' kernel_only='' each=''
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	--arch) need_arg "$@"; arch=$2; shift ;;
	--variant) need_arg "$@"; variant=$2; shift ;;
	--source) need_arg "$@"; source=$2; shift ;;
	--config-only) config_only=1 ;;
	--kernel-only) kernel_only=1 ;;
	--each) each=1 ;;
	*) usage_error "unknown option $1" ;;
	esac
	shift
done
[[ $variant =~ ^(normal|debug|bench)$ ]] || usage_error "unknown variant $variant"
facts "$arch"
name=$arch-$variant
[[ -z $CROSS_COMPILE ]] || arch_skip "build-$name" "${CROSS_COMPILE}gcc"
need make bc flex bison python3 "${CROSS_COMPILE}gcc"

if [[ -n $source ]]; then
	KSRC=$(realpath "$source")
	[[ -f $KSRC/Kbuild ]] || usage_error "$source is no kernel source"
	name+=-$(basename "$KSRC")
else
	need_series
fi
build=$OUT/build/$name
log_dir=$OUT/log
mkdir -p "$build" "$log_dir"

# configure: merges the fragments and checks what became of them.
configure() {
	local fragments log=$log_dir/config-$name.log
	mapfile -t fragments < <(config_fragments "$variant")
	if ! [[ -f $build/.config ]] || ! cat "${fragments[@]}" | cmp -s - "$build/.config.request"; then
		# -n: on top of allnoconfig, for what nobody asked for takes time to build.
		env -C "$KSRC" ARCH="$KERNEL_ARCH" CROSS_COMPILE="$CROSS_COMPILE" \
			scripts/kconfig/merge_config.sh -n -Q -O "$build" "${fragments[@]}" >"$log" 2>&1 ||
			fail "merge_config.sh failed, see $log"
		cat "${fragments[@]}" >"$build/.config.request"
	fi
	kmake "$build" olddefconfig >>"$log" 2>&1 || fail "olddefconfig failed, see $log"
	"$TOP/ci/lib/kconfig-check.sh" "${fragments[@]}" -- "$build/.config" >&2 || {
		rm -f "$build/.config.request"
		fail "$name: the configuration lacks what is listed above"
	}
}

# The source that was built last, to know when nothing is to be done.
source_id() {
	git -C "$KSRC" rev-parse "HEAD^{tree}" 2>/dev/null || echo unknown
	git -C "$KSRC" status --porcelain --untracked-files=no 2>/dev/null | sed -n 1p
}

# small_selftests: for a guest without a shell and libraries, the programs of the series' categories only, linked
# statically. Their list, "category program", is what the test stage makes a job of.
small_selftests() {
	local category program programs=() mm=$KSRC/tools/testing/selftests/mm work=$build/kselftest-mm
	mkdir -p "$build/ksft/mm" "$work"
	while read -r category _; do
		[[ -n $category && $category != '#'* ]] || continue
		while read -r program; do
			programs+=("$program")
			printf '%s %s\n' "$category" "$program"
		done < <(sed -n "s|^[^#]*CATEGORY=\"$category\" run_test \./\([a-z0-9_]*\)\$|\1|p" "$mm/run_vmtests.sh")
	done <"$TOP/ci/expected/categories" >"$build/ksft/mm/programs"
	[[ -s $build/ksft/mm/programs ]] || fail "run_vmtests.sh runs no program in the categories of ci/expected/categories"
	run_long "selftests $name" "$log_dir/selftests-$name.log" \
		make -C "$mm" ARCH="$KERNEL_ARCH" CROSS_COMPILE="$CROSS_COMPILE" O="$build" LDFLAGS=-static \
		KHDR_INCLUDES="-isystem $build/usr/include" OUTPUT="$work" -j"$JOBS" "${programs[@]/#/$work/}" ||
		fail "selftests of $name do not build"
	for program in "${programs[@]}"; do
		cp "$work/$program" "$build/ksft/mm/"
	done
}

# harness_programs: ci/programs/*.c, benchmarks and fuzzers that are not for the kernel's tree, next to the selftests.
# Those of another kernel (--source) need not have the headers.
harness_programs() {
	local file program mm=$KSRC/tools/testing/selftests/mm flags=()
	[[ -z $source ]] || return 0
	[[ $GUEST != small ]] || flags=(-static)
	for file in "$TOP"/ci/programs/*.c; do
		program=$(basename "$file" .c)
		run_long "$program $name" "$log_dir/$program-$name.log" \
			"${CROSS_COMPILE}gcc" -Wall -O2 -D_GNU_SOURCE= "${flags[@]}" \
			-isystem "$build/usr/include" -isystem "$KSRC/tools/include/uapi" -I "$KSRC" -I "$mm" -I "$mm/.." \
			-o "$build/ksft/mm/$program" "$file" "$mm"/{vm_util,hugepage_settings}.c -lpthread ||
			fail "$program does not build"
		[[ $GUEST != small || $program != *_fuzz ]] || printf 'fuzz %s\n' "$program" >>"$build/ksft/mm/programs"
	done
}

configure
[[ -z $config_only ]] || exit 0

if [[ -n $each ]]; then
	# shellcheck source=ci/lib/each.sh
	. "$TOP/ci/lib/each.sh"
	each_patch
	exit
fi

run_long "kernel $name" "$log_dir/build-$name.log" \
	kmake "$build" "$(basename "$IMAGE")" modules || fail "kernel $name does not build"
[[ -s $build/$IMAGE ]] || fail "no $IMAGE in $build"

rm -rf "$build/mods"
run_long "modules $name" "$log_dir/mods-$name.log" \
	kmake "$build" INSTALL_MOD_PATH="$build/mods" INSTALL_MOD_STRIP=1 modules_install ||
	fail "modules of $name do not install"
[[ -z $kernel_only ]] || exit 0

# Selftests are the same for each variant; those of a tree without changes need not be built again.
id=$(source_id)
rm -rf "$build/ksft" "$build/ksft.id"
if [[ $GUEST != small && $id =~ ^[0-9a-f]{40,}$ ]]; then
	for other in "$OUT/build/$ARCH"-{normal,debug,bench}; do
		[[ -f $other/ksft.id && $(<"$other/ksft.id") == "$id" ]] || continue
		cp -a "$other/ksft" "$build/ksft"
		cp "$other/ksft.id" "$build/"
		harness_programs
		log "$name: $(head -n 1 <<<"$id"), $(wc -c <"$build/$IMAGE") bytes, in $build; selftests of $(basename "$other")"
		exit 0
	done
fi
run_long "headers $name" "$log_dir/headers-$name.log" kmake "$build" headers ||
	fail "headers of $name do not install"
if [[ $GUEST == small ]]; then
	small_selftests
	harness_programs
	log "$name: $(source_id | sed -n 1p), $(wc -c <"$build/$IMAGE") bytes, in $build"
	exit 0
fi
run_long "selftests $name" "$log_dir/selftests-$name.log" \
	make -C "$KSRC/tools/testing/selftests" O="$build" TARGETS=mm SKIP_TARGETS= \
	KBUILD_OUTPUT="$build" ARCH="$KERNEL_ARCH" CROSS_COMPILE="$CROSS_COMPILE" \
	KHDR_INCLUDES="-isystem $build/usr/include" KSFT_INSTALL_PATH="$build/ksft" \
	FORCE_TARGETS=1 -j"$JOBS" install || fail "selftests of $name do not build"
while read -r program; do
	# Another kernel need not have the series' own.
	[[ -n $source || -x $build/ksft/mm/$program ]] || fail "selftest $program has not been built, see $log_dir/selftests-$name.log"
done <"$TOP/ci/expected/programs"
harness_programs
printf '%s\n' "$id" >"$build/ksft.id"
log "$name: $(head -n 1 <<<"$id"), $(wc -c <"$build/$IMAGE") bytes, in $build"
