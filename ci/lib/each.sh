# shellcheck shell=bash
# Sourced by stages/build.sh for --each: after each patch, builds what the patch touches, in a worktree
# and a build directory of its own. Results that passed are remembered by the hash of the source tree.
#
# From build.sh: arch variant log_dir; from common.sh: the rest.
# shellcheck disable=SC2154

# each_fragments: the wanted symbols. The selftests' list is that of the last patch, so that a driver is
# configured from the patch on that adds it, and not from the one that adds its test.
each_fragments() {
	local f
	while IFS= read -r f; do
		case $f in
		"$KSRC"/*) kgit show "$SERIES_REF:${f#"$KSRC/"}" ;;
		*) cat "$f" ;;
		esac
	done < <(config_fragments "$variant")
}

# each_targets COMMIT: one "kind<TAB>target" per thing to build: kernel (an object), dir (all of a
# directory), ksft (a selftest of mm), note (said, not built).
each_targets() {
	local commit=$1 path dir src
	kgit diff-tree -r -z --no-renames --no-commit-id --name-only --diff-filter=d "$commit" |
		while IFS= read -r -d '' path; do
			dir=$(dirname "$path")
			case $path in
			tools/testing/selftests/mm/*.c)
				src=$(basename "$path" .c)
				if each_is_program "$commit" "$src"; then
					printf 'ksft\t%s\n' "$src"
				else
					printf 'ksft\t%s\n' pfnmap
				fi ;;
			tools/testing/selftests/mm/*.h | tools/testing/selftests/mm/Makefile)
				printf 'ksft\t%s\n' pfnmap ;;
			Documentation/* | tools/* | samples/* | scripts/* | rust/* | LICENSES/*) ;;
			arch/*)
				case $path in
				arch/"$EACH_SRCARCH"/*) each_kernel_target "$commit" "$path" "$dir" ;;
				*.[chS] | */Kconfig* | */Makefile)
					printf 'note\t%s is not of %s\n' "$path" "$arch" ;;
				esac ;;
			*) each_kernel_target "$commit" "$path" "$dir" ;;
			esac
		done | LC_ALL=C sort -u
}

each_kernel_target() {
	local commit=$1 path=$2 dir=$3
	case $path in
	*.c | *.S) printf 'kernel\t%s.o\n' "${path%.*}" ;;
	*.h)
		# The two with the most of mm's headers, and who includes it from beside it.
		printf 'kernel\tmm/memory.o\nkernel\tinit/main.o\n'
		kgit grep -l -F "\"$(basename "$path")\"" "$commit" -- "$dir/*.c" |
			sed -n "s/^[^:]*://; s/\.c\$/.o/; s/^/kernel\t/p" | sed -n 1,20p || true ;;
	*/Kconfig* | */Makefile | */Kbuild) printf 'dir\t%s/\n' "$dir" ;;
	esac
}

each_is_program() {
	kgit show "$1:tools/testing/selftests/mm/Makefile" |
		grep -qE "^[[:space:]]*TEST_GEN_(FILES|PROGS)[^=]*=(.*[[:space:]])?$2([[:space:]]|\$)"
}

# each_listed DIR NAME: does the Makefile of DIR list NAME (an object, or "subdir/") in this
# configuration? 0 yes, 1 no, 2 it never names it. kbuild does not tell, so make evaluates the Makefile.
each_listed() {
	local dir=$1 name=$2 file list
	file=$EACH_TREE/$dir/Kbuild
	[[ -f $file ]] || file=$EACH_TREE/$dir/Makefile
	[[ -f $file ]] || return 0
	list=$(make -s -R -r -f - print 2>/dev/null <<-MAKE
		srctree := $EACH_TREE
		src := $EACH_TREE/$dir
		obj := $dir
		SRCARCH := $EACH_SRCARCH
		include $EACH_BUILD/include/config/auto.conf
		BITS := \$(if \$(CONFIG_64BIT),64,32)
		include $file
		all := \$(obj-y) \$(obj-m) \$(lib-y) \$(always-y) \$(extra-y)
		one = \$(foreach o,\$(1:.o=),\$(\$(o)-y) \$(\$(o)-m) \$(\$(o)-objs))
		.PHONY: print
		print: ; @printf '%s\n' \$(all) \$(call one,\$(all))
	MAKE
	) || return 0
	if grep -qxF "$name" <<<"$list"; then return 0; fi
	if grep -qE "(^|[[:space:]=])${name//./\\.}([[:space:]]|\$)" "$file"; then return 1; fi
	return 2
}

# each_target_of OBJECT: what to build for it; nothing when it, or a directory above it, is switched off.
each_target_of() {
	local dir rc=0
	dir=$(dirname "$1")
	while [[ $dir == */* ]]; do
		each_listed "$(dirname "$dir")" "$(basename "$dir")/" || rc=$?
		((rc != 1)) || return 0
		dir=$(dirname "$dir") rc=0
	done
	each_listed "$(dirname "$1")" "$(basename "$1")" || rc=$?
	case $rc in
	0) printf '%s\n' "$1" ;;
	2) printf '%s/\n' "$(dirname "$1")" ;;	# some other file of the directory includes it
	esac
}

each_configure() {
	local request=$EACH_BUILD/.config.request
	each_fragments >"$request.new" || return
	if ! cmp -s "$request" "$request.new" || ! [[ -f $EACH_BUILD/.config ]]; then
		env -C "$EACH_TREE" ARCH="$KERNEL_ARCH" CROSS_COMPILE="$CROSS_COMPILE" \
			scripts/kconfig/merge_config.sh -n -Q -O "$EACH_BUILD" "$request.new" || return
		mv "$request.new" "$request"
	elif ! kgit -C "$EACH_TREE" diff --quiet "$(cat "$EACH_BUILD/.config.commit")" HEAD -- ':(glob)**/Kconfig*'; then
		# From the request, not from .config: a symbol that is new here has been asked for.
		env -C "$EACH_TREE" ARCH="$KERNEL_ARCH" CROSS_COMPILE="$CROSS_COMPILE" \
			scripts/kconfig/merge_config.sh -n -Q -O "$EACH_BUILD" "$request" || return
	fi
	kgit -C "$EACH_TREE" rev-parse HEAD >"$EACH_BUILD/.config.commit"
	kmake "$EACH_BUILD" olddefconfig
}

# each_build TARGETS: builds the list made by each_targets; runs below run_long.
each_build() {
	local kind target what kernel=() ksft=()
	each_configure || return
	kmake "$EACH_BUILD" prepare || return
	while IFS=$'\t' read -r kind target; do
		case $kind in
		kernel)
			what=$(each_target_of "$target")
			if [[ -n $what ]]; then kernel+=("$what")
			else printf 'note: %s is not part of this configuration\n' "$target"; fi ;;
		dir) kernel+=("$target") ;;
		ksft) ksft+=("$target") ;;
		note) printf 'note: %s\n' "$target" ;;
		esac
	done <<<"$1"
	if ((${#kernel[@]})); then
		kmake "$EACH_BUILD" "${kernel[@]}" || return
	fi
	if ((${#ksft[@]})); then
		kmake "$EACH_BUILD" headers || return
		mkdir -p "$EACH_BUILD/kselftest-mm"
		for target in "${ksft[@]}"; do
			make -C "$EACH_TREE/tools/testing/selftests/mm" ARCH="$KERNEL_ARCH" \
				CROSS_COMPILE="$CROSS_COMPILE" O="$EACH_BUILD" \
				KHDR_INCLUDES="-isystem $EACH_BUILD/usr/include" \
				OUTPUT="$EACH_BUILD/kselftest-mm" \
				"$EACH_BUILD/kselftest-mm/$target" || return
		done
	fi
}

# each_patch: status 1 when a patch does not build.
each_patch() {
	local commits commit subject targets key n=0 log cached="$CACHE/each" compiler
	EACH_SRCARCH=$KERNEL_ARCH
	[[ $KERNEL_ARCH != x86_64 && $KERNEL_ARCH != i386 ]] || EACH_SRCARCH=x86
	EACH_TREE=$OUT/each-tree EACH_BUILD=$OUT/build/each-$arch-$variant
	# shellcheck disable=SC2034
	local KSRC=$EACH_TREE	# of kmake
	commits=$(kgit rev-list --reverse "$BASE_REF..$SERIES_REF") || harness_error "cannot list the series"
	[[ -n $commits ]] || harness_error "the series has no commits"
	mkdir -p "$cached" "$EACH_BUILD"
	compiler=$("${CROSS_COMPILE}gcc" --version | sed -n 1p)
	exec {each_lock}>"$EACH_BUILD/.lock"
	flock -n "$each_lock" || harness_error "another build --each is running in $EACH_BUILD"
	tap_begin "each-$arch-$variant"
	for commit in $commits; do
		n=$((n + 1))
		subject=$(kgit show -s --format=%s "$commit")
		targets=$(each_targets "$commit") || harness_error "cannot list what '$subject' touches"
		if ! grep -qE '^(kernel|dir|ksft)' <<<"$targets"; then
			tap_ok "each: $subject (nothing to compile)"
			continue
		fi
		key=$({
			kgit rev-parse "$commit^{tree}"
			printf '%s\n' "$arch $variant" "$compiler" "$targets"
			each_fragments
			cat "$TOP/ci/lib/each.sh"
		} | sha256sum | cut -c1-40)
		if [[ -f $cached/$key ]]; then
			tap_ok "each: $subject (built before)"
			continue
		fi
		if ! [[ -e $EACH_TREE/.git ]]; then
			rm -rf "$EACH_TREE"
			kgit worktree prune
			kgit worktree add -q --detach "$EACH_TREE" "$commit" || harness_error "no worktree $EACH_TREE"
		fi
		kgit -C "$EACH_TREE" checkout -q --force --detach "$commit" ||
			harness_error "cannot check out $commit in $EACH_TREE"
		kgit -C "$EACH_TREE" clean -fdq
		log=$log_dir/each-$arch-$variant-$(printf %04d "$n").log
		if run_long "each $n: $subject" "$log" each_build "$targets"; then
			: >"$cached/$key"
			tap_ok "each: $subject"
		else
			tap_not_ok "each: $subject" "$(grep -E 'error|\*\*\*|Error' "$log" | sed -n 1,10p)"
		fi
	done
	tap_end
}
