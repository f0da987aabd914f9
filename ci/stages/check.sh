#!/bin/bash
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"
# shellcheck source=ci/lib/am.sh
. "$TOP/ci/lib/am.sh"
# shellcheck source=ci/lib/mbox.sh
. "$TOP/ci/lib/mbox.sh"
# shellcheck source=ci/lib/overlay.sh
. "$TOP/ci/lib/overlay.sh"

usage() {
	cat <<'END'
usage: ci/run check [--only KIND[,KIND]...] [--each] [--config FILE] [--no-cache]

Static checks; TAP on stdout, one point per check and patch.

  series      `series` and files agree, no trailers that only a person may give, overlay equals the applied
              tree, MAINTAINERS-snippet names files that exist, lists in selftests are sorted, a gate of
              "make check" runs each selftest of mm that is added or changed, and tests are short enough to be
              reviewed
  checkpatch  checkpatch.pl --strict; what ci/checkpatch.allow lists, with its reason, is let through
  maintainers get_maintainer.pl knows somebody for each patch
  kdoc        kernel-doc    }
  w1          make W=1      }  on the files that the series touches: lines that its base does not give
  sparse      make C=2      }
  cocci       coccicheck, the same for the files of which the series changes 20 lines or more: it takes half a
              minute for a file like mm/memory.c

  --only      only these kinds
  --each      kdoc, w1, sparse and coccicheck for each patch, and for each file of it, not for the series as a whole
  --config    a .config for w1 and sparse, instead of what the build stage makes for x86_64
  --no-cache  forget earlier outputs of the tools
END
}

kinds='series checkpatch maintainers kdoc w1 sparse cocci' config='' nocache='' each=''
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	--only)
		need_arg "$@"
		for k in ${2//,/ }; do [[ " $kinds " == *" $k "* ]] || usage_error "unknown check $k"; done
		kinds=${2//,/ }
		shift
		;;
	--each) each=1 ;;
	--config) need_arg "$@"; config=$2; shift ;;
	--no-cache) nocache=1 ;;
	*) usage_error "unknown option $1" ;;
	esac
	shift
done
wanted() { [[ " $kinds " == *" $1 "* ]]; }

need git
# The kernel's scripts say python3 and want Debian's modules for it.
PATH=/usr/bin:/bin:$PATH
work=$OUT/check
cache=$CACHE/check
mkdir -p "$work" "$OUT/log"
[[ -z $nocache ]] || rm -rf "${cache:?}"
mkdir -p "$cache"
mapfile -t entries < <(series_patches)
mapfile -t topics < <(series_topics)
tap_begin check

# point NAME OUTPUT: ok when OUTPUT is empty.
point() { if [[ -z $2 ]]; then tap_ok "$1"; else tap_not_ok "$1" "$2"; fi; }

### Without a tree

check_files() {
	local e f out='' want
	for e in "${entries[@]}"; do
		[[ -f $PATCHES/$e ]] || out+="$e is in series, and there is no such file"$'\n'
	done
	while IFS= read -r f; do
		printf '%s\n' "${entries[@]}" | grep -xF -- "$f" >/dev/null || out+="$f is not in series"$'\n'
	done < <(cd "$PATCHES" 2>/dev/null && find . -name '*.patch' -printf '%P\n' | sort)
	out+=$(printf '%s\n' "${entries[@]}" | sort | uniq -d | sed 's/$/ is in series twice/')
	point "series: entries and files agree" "${out%$'\n'}"

	out=''
	[[ $(series_header base-commit) =~ ^[0-9a-f]{40}$ ]] || out+="no '# base-commit: <40 hex digits>'"$'\n'
	[[ $(sed -n 1p "$SERIES") == '# base-commit: '* ]] || out+="base-commit is not the first line"$'\n'
	[[ -n $(series_header base-tag) ]] || out+="no '# base-tag: ...'"$'\n'
	[[ $(series_header base-debian) =~ ^linux-source-[0-9.]+\ [^\ ]+$ ]] || out+="no '# base-debian: PACKAGE VERSION'"$'\n'
	want=$(series_header base-commit)
	while IFS= read -r f; do
		[[ $f == "$want" ]] || out+="a patch has base-commit $f"$'\n'
	done < <(cd "$PATCHES" 2>/dev/null && sed -n 's/^base-commit: //p' "${entries[@]}" /dev/null 2>/dev/null | sort -u)
	point "series: header names the base" "${out%$'\n'}"

	out=''
	for e in "${entries[@]}"; do
		[[ -f $PATCHES/$e ]] || continue
		# Up to the diff: a patch may well touch text that has such lines.
		out+=$(sed '/^diff --git /q' "$PATCHES/$e" | grep -iE '^[[:space:]]*(signed-off|reviewed|acked|tested)-by:' |
			sed "s|^|$e: |" || true)
	done
	point "series: no trailer that only a person may give" "$out"

	out=''
	for f in "${topics[@]}"; do
		[[ -s $PATCHES/$f/cover-letter ]] || out+="patches/$f has no cover-letter"$'\n'
	done
	point "series: each topic has a cover letter" "${out%$'\n'}"
}
if wanted series; then check_files; fi

### With the series applied

# An unapplied or stale tree cannot be checked, but what was found so far is worth more than that.
if ! (need_series) 2>"$work/err"; then
	tap_not_ok "series: is applied in out/tree" "$(<"$work/err")"
	tap_end || true
	exit "$E_FAIL"
fi
base=$(kgit rev-parse "$BASE_REF^{commit}")
tip=$(kgit rev-parse "$SERIES_REF^{commit}")
mapfile -t commits < <(kgit rev-list --reverse "$base..$tip")
stale=''
if ((${#commits[@]} != ${#entries[@]})); then
	stale="out/tree has ${#commits[@]} commits after the base, series has ${#entries[@]} patches"
else
	for i in "${!entries[@]}"; do
		[[ -f $PATCHES/${entries[i]} ]] || continue
		a=$(kgit patch-id --stable <"$PATCHES/${entries[i]}" | cut -d' ' -f1)
		b=$(kgit diff-tree -p "${commits[i]}" | kgit patch-id --stable | cut -d' ' -f1)
		[[ $a == "$b" ]] || stale+="${entries[i]} is not what out/tree has at ${commits[i]}"$'\n'
	done
fi
if [[ -n $stale ]]; then
	tap_not_ok "series: is what out/tree has (else: ci/run apply)" "$stale"
	tap_end || true
	exit "$E_FAIL"
fi

check_overlay() {
	local f out='' mode
	rm -rf "$work/overlay"
	mkdir -p "$work/overlay"
	overlay_from "$TREE" "$base" "$tip" "$work/overlay"
	while IFS= read -r f; do
		if [[ ! -f $OVERLAY/$f ]]; then
			out+="$f is not there"$'\n'
		elif ! cmp -s "$work/overlay/$f" "$OVERLAY/$f"; then
			out+="$f differs:"$'\n'"$(diff -u --label tree --label overlay "$work/overlay/$f" "$OVERLAY/$f" | sed -n '3,12p' || true)"$'\n'
		else
			mode=$(stat -c %A "$work/overlay/$f")
			[[ ${mode:3:1} == "$(stat -c %A "$OVERLAY/$f" | cut -c4)" ]] || out+="$f: other mode"$'\n'
		fi
	done < <(cd "$work/overlay" && find . \( -type f -o -type l \) -printf '%P\n' | sort)
	point "overlay: equals the files that the series adds" "${out%$'\n'}"
	out=''
	while IFS= read -r f; do
		[[ -f $work/overlay/$f ]] || out+="$f is not a file that the series adds"$'\n'
	done < <(overlay_present)
	point "overlay: nothing else in it" "${out%$'\n'}"
	rm -rf "$work/overlay"
}

check_snippet() {
	local snippet=$OVERLAY/MAINTAINERS-snippet line path out=''
	if [[ ! -f $snippet ]]; then
		if [[ -z $(kgit diff --name-only --no-renames --diff-filter=A "$base" "$tip") ]]; then
			tap_skip "MAINTAINERS-snippet: F: lines match" "the series adds no file"
		else
			tap_not_ok "MAINTAINERS-snippet: F: lines match" "the series adds files, and there is no MAINTAINERS-snippet"
		fi
		return
	fi
	kgit ls-tree -r --name-only "$tip" >"$work/paths"
	kgit diff -U0 "$base" "$tip" -- MAINTAINERS | sed -n 's/^+//p' >"$work/added"
	grep -q '^F:' "$snippet" || out+="it has no F: line"$'\n'
	while IFS= read -r line; do
		read -r path <<<"${line#F:}"
		printf '%s\n' "$path" >"$work/patterns"
		maintainers_match "$work/patterns" <"$work/paths" || out+="no file for: $line"$'\n'
	done < <(grep '^F:' "$snippet" || true)
	point "MAINTAINERS-snippet: F: lines match files of the applied tree" "${out%$'\n'}"
	out=''
	while IFS= read -r line; do
		grep -qxF -- "$line" "$work/added" || out+="the series does not add to MAINTAINERS: $line"$'\n'
	done < <(grep -E '^[A-Z]:' "$snippet" || true)
	point "MAINTAINERS-snippet: is what the series adds to MAINTAINERS" "${out%$'\n'}"
}

# checkpatch asks this per patch (FILE_PATH_CHANGES), whichever patch has the answer.
check_covered() {
	local out='' f
	kgit show "$tip:MAINTAINERS" | sed -n 's/^F:[[:space:]]*//p' | grep -vxE '\*/?' >"$work/patterns" || true
	while IFS= read -r f; do
		maintainers_match "$work/patterns" <<<"$f" || out+="$f"$'\n'
	done < <(kgit diff --name-only --no-renames --diff-filter=A "$base" "$tip")
	point "MAINTAINERS: has a section for each file that the series adds" "${out%$'\n'}"
}

# maintainers_match FILE <paths: does one of the paths match one of the lines of FILE, as get_maintainer.pl reads F:?
maintainers_match() {
	python3 -c '
import re, sys

def regex(p):
    # A directory with its slash takes all below; "*" does not cross one.
    rx = "".join("[^/]*" if c == "*" else "[^/]" if c == "?" else re.escape(c) for c in p)
    return rx + ("" if p.endswith("/") else "$" if "*" in p else "(/|$)")

rx = re.compile("^(" + "|".join(regex(p) for p in open(sys.argv[1], encoding="utf-8").read().splitlines()) + ")")
sys.exit(not any(rx.match(line.rstrip("\n")) for line in sys.stdin))' "$1"
}

check_sorted() {
	local files out=''
	mapfile -t files < <(kgit diff --name-only --diff-filter=AM "$base" "$tip" -- tools/testing/selftests |
		grep -E '/(Makefile|\.gitignore|config)$' || true)
	rm -rf "$work/sorted"
	mkdir -p "$work/sorted"
	if ((${#files[@]})); then
		kgit archive "$tip" -- "${files[@]}" | tar -x -C "$work/sorted"
		out=$(kgit diff -U0 "$base" "$tip" -- "${files[@]}" | python3 "$TOP/ci/lib/sorted.py" "$work/sorted" || true)
	fi
	point "selftests: entries of Makefile, .gitignore and config are sorted" "$out"
	rm -rf "$work/sorted"
}

# The selftests of mm that the series adds or changes, each in a category of run_vmtests.sh that make check runs:
# "./PROGRAM" itself, or a script that names it.
check_programs() {
	local dir=tools/testing/selftests/mm f program category out='' scripts script name
	scripts=$(kgit ls-tree --name-only "$tip" "$dir/" | grep '\.sh$' | grep -v '/run_vmtests\.sh$' || true)
	while IFS= read -r f; do
		program=$(basename "$f" .c)
		while IFS= read -r category; do
			if grep -qE "^$category([@ ]|\$)" "$TOP/ci/expected/categories" ||
				grep -qE "^$category check\$" "$TOP/ci/expected/regress"; then
				continue 2
			fi
		done < <(
			{
				echo "$program"
				for script in $scripts; do
					if kgit show "$tip:$script" | grep -wF -e "$program" >/dev/null; then basename "$script"; fi
				done
			} | while IFS= read -r name; do
				kgit show "$tip:$dir/run_vmtests.sh" 2>/dev/null |
					sed -nE "s|.*CATEGORY=\"([a-z0-9_-]+)\" run_test (bash )?\./$name( .*)?\$|\1|p" || true
			done | sort -u
		)
		out+="make check runs $program in no category (ci/expected/categories, ci/expected/regress)"$'\n'
	done < <(kgit diff --name-only --no-renames --diff-filter=AM "$base" "$tip" -- "$dir/*.c")
	point "selftests: each that is added or changed is run" "${out%$'\n'}"
}
parent_of() { if (($1 == 0)); then printf '%s' "$base"; else printf '%s' "${commits[$1 - 1]}"; fi; }

# Lines of selftests and test drivers that the series adds, that one of its patches adds, and that one file has.
# ci/expected/sizes: "total N", and what is longer than the others may be, "NAME N", a patch without its number or a file.
check_sizes() {
	local tests=(tools/testing/selftests mm/pfnmap_test\* lib/test_hmm\*) i out='' f n
	added() { kgit diff --numstat --no-renames "$1" "$2" -- "${tests[@]}" | awk '{ n += $1 } END { print n + 0 }'; }
	bound() { awk -v name="$1" -v n="$2" '$1 == name { n = $2 } END { print n }' "${SIZES:-$TOP/ci/expected/sizes}"; }
	longer() {
		local most
		most=$(bound "$2" "$3")
		(($1 <= most)) || out+="$2: $1 lines, more than $most"$'\n'
	}
	n=$(added "$base" "$tip")
	log "selftests and test drivers: $n lines are added"
	longer "$n" total 8500
	for i in "${!commits[@]}"; do
		f=${entries[i]%%/*}/${entries[i]#*/????-}
		longer "$(added "$(parent_of "$i")" "${commits[i]}")" "$f" 1000
	done
	while IFS= read -r f; do
		longer "$(kgit show "$tip:$f" | wc -l)" "$f" 1200
	done < <(kgit diff --name-only --no-renames --diff-filter=A "$base" "$tip" -- "${tests[@]}")
	point "selftests: short enough to be reviewed" "${out%$'\n'}"
}
if wanted series; then
	check_overlay
	check_snippet
	check_covered
	check_sorted
	check_programs
	check_sizes
fi

# short ENTRY: what a point calls a patch.
short() { printf '%s' "${1%.patch}"; }

# cached KEY CMD...: stdout of CMD, from the cache when it was there; a command that fails is not cached.
cached() {
	local key file
	key=$(printf '%s' "$1" | sha256sum | cut -c1-40)
	file=$cache/$key
	shift
	if [[ ! -f $file ]]; then
		"$@" >"$file.$$" || { rm -f "$file.$$"; return 1; }
		mv "$file.$$" "$file"
	fi
	cat "$file"
}

script_hash=$(cat "$0" "$TOP/ci/lib/common.sh" | sha256sum | cut -c1-16)

check_maintainers() {
	local e out to
	need perl
	maintainer_tree "$tip" "$work/kernel"
	for e in "${entries[@]}"; do
		out=''
		if ! to=$(maintainers "$work/kernel" to "$PATCHES/$e" 2>&1); then
			out="get_maintainer.pl: $to"
		elif [[ $to != *@* ]]; then
			out="nobody is responsible for the files of this patch"
		fi
		point "maintainers: $(short "$e")" "$out"
	done
	rm -rf "$work/kernel"
}
if wanted maintainers; then check_maintainers; fi

# The other checks want files on disk; a worktree of their own keeps the times in $TREE.
wt=$OUT/check-tree
worktree_at() {
	[[ $(kgit -C "$wt" rev-parse HEAD) == "$1" ]] || kgit -C "$wt" checkout -q -f --detach "$1"
}
if wanted checkpatch || wanted kdoc || wanted w1 || wanted sparse || wanted cocci; then
	if ! kgit -C "$wt" rev-parse -q --verify HEAD >/dev/null 2>&1 ||
		[[ $(kgit -C "$wt" rev-parse --path-format=absolute --git-common-dir) != "$(kgit rev-parse --path-format=absolute --git-common-dir)" ]]; then
		am_worktree_remove "$wt"
		run_long "worktree for the checks" "$OUT/log/check-tree.log" \
			kgit worktree add -f --detach "$wt" "$tip" || harness_error "git worktree failed"
	fi
	worktree_at "$tip"
fi

check_checkpatch() {
	local e out line type msg text n
	local -a allow_type=() allow_regex=()
	need perl codespell
	while IFS='|' read -r type msg line; do
		type=${type//[[:space:]]/}
		[[ -n $type && $type != '#'* ]] || continue
		msg=$(sed 's/^[[:space:]]*//; s/[[:space:]]*$//' <<<"$msg")
		[[ -n $msg && -n ${line//[[:space:]]/} ]] || harness_error "ci/checkpatch.allow: '$type' without regex or reason"
		allow_type+=("$type") allow_regex+=("$msg")
	done <"${CHECKPATCH_ALLOW:-$TOP/ci/checkpatch.allow}"
	for e in "${entries[@]}"; do
		out=$(
			cd "$wt"
			perl scripts/checkpatch.pl --strict --no-signoff --show-types --terse --no-summary \
				--color=never --max-line-length=100 "$PATCHES/$e" 2>&1 || true
			# checkpatch's own --codespell takes most of a minute for a long patch.
			sed '/^[-@ ]/s/.*//' "$PATCHES/$e" >"$work/spelling"
			codespell "$work/spelling" 2>&1 |
				sed "s|^$work/spelling:\([0-9]*\): \(.*\) ==> \(.*\)|$PATCHES/$e:\1: CHECK:TYPO_SPELLING: '\2' may be misspelled - perhaps '\3'?|" || true
		)
		local kept=''
		while IFS= read -r line; do
			[[ -n $line ]] || continue
			# The number in the output is that of the line in the patch.
			text=$(sed -n "$(sed -n 's/^[^:]*:\([0-9]*\): .*/\1/p' <<<"$line")p" "$PATCHES/$e" 2>/dev/null || true)
			# What the patch takes out elsewhere is moved, and as it was.
			if [[ $text == +?* && $line == *:@(PARENTHESIS_ALIGNMENT|SPACING|AVOID_BUG|UNCOMMENTED_DEFINITION):* ]] &&
				grep -qxF -e "-${text#+}" "$PATCHES/$e"; then continue; fi
			for n in "${!allow_type[@]}"; do
				[[ $line == *" ${allow_type[n]}: "* || $line == *":${allow_type[n]}: "* ]] || continue
				if [[ $line =~ ${allow_regex[n]} || $text =~ ${allow_regex[n]} ]]; then continue 2; fi
			done
			kept+="${line#"$PATCHES/"}"$'\n'
		done <<<"$out"
		point "checkpatch: $(short "$e")" "${kept%$'\n'}"
	done
}
if wanted checkpatch; then check_checkpatch; fi

has() { kgit cat-file -e "$1:$2" 2>/dev/null; }

# normalize: output of a tool, without what moves when lines move, and with paths from the top of the kernel tree. What is
# cached, also by ccache, may name another checkout's tree.
normalize() {
	sed -E -e "s#(^|[[:space:]])[^[:space:]]*/${wt##*/}/#\\1#g" -e 's|^\./||' \
		-e 's/:[0-9]+:[0-9]+:/:/g' -e 's/:[0-9]+:/:/g' -e 's/:[0-9]+ /: /g' -e 's/:[0-9]+-[0-9]+:/:/g' \
		-e 's/([[:space:]](on|at|around|after)) line [0-9]+/\1 line/g' | sort
}

# new_lines OLD NEW: lines of the file NEW that OLD does not have, as often as NEW has more of them.
new_lines() { comm -13 <(normalize <"$1") <(normalize <"$2"); }

# Ranges of commits: for what is too slow for each patch the whole series, with --each a patch each.
begins=() ends=() names=()
ranges() {
	local i
	begins=("$base") ends=("$tip") names=("the series")
	[[ -n $each ]] || return 0
	begins=() ends=() names=()
	for i in "${!commits[@]}"; do
		names+=("$(short "${entries[i]}")") begins+=("$(parent_of "$i")") ends+=("${commits[i]}")
	done
}

# kdoc_file BLOB FILE
kdoc_file() {
	mkdir -p "$work/kdoc/$(dirname "$2")"
	kgit cat-file blob "$1" >"$work/kdoc/$2"
	(cd "$work/kdoc" && "$wt/$kdoc_tool" -none -Wall "$2" 2>&1) || true
}
check_kdoc() {
	local i f files side commit blob
	if has "$tip" tools/docs/kernel-doc; then kdoc_tool=tools/docs/kernel-doc; else kdoc_tool=scripts/kernel-doc; fi
	ranges
	for i in "${!names[@]}"; do
		mapfile -t files < <(kgit diff --name-only --no-renames "${begins[i]}" "${ends[i]}" | grep '\.[ch]$' || true)
		for side in old new; do
			commit=$([[ $side == old ]] && printf '%s' "${begins[i]}" || printf '%s' "${ends[i]}")
			: >"$work/$side"
			for f in "${files[@]}"; do
				blob=$(kgit rev-parse -q --verify "$commit:$f") || continue
				cached "kdoc $script_hash $(kgit rev-parse "$base:${kdoc_tool%/*}") $blob $f" kdoc_file "$blob" "$f" >>"$work/$side"
			done
		done
		# The function's name is in each, and says more than the file's, which changes when it is moved.
		sed -i -E 's/^Warning: [^: ]+:[0-9]+ /Warning: /' "$work/old" "$work/new"
		point "kernel-doc: ${names[i]}" "$(new_lines "$work/old" "$work/new")"
	done
	rm -rf "$work/kdoc"
}
if wanted kdoc; then check_kdoc; fi

# objects_of I: what to build before and after range I: the .c files that it touches; for a header also the first
# .c file that includes it. Only what an x86_64 kernel can have: its configuration decides on the rest.
objects_of() {
	local h files
	files=$(kgit diff --name-only --no-renames "${begins[$1]}" "${ends[$1]}")
	{
		grep '\.c$' <<<"$files"
		grep '^include/.*\.h$' <<<"$files" | while IFS= read -r h; do
			kgit grep -l -F "#include <${h#include/}>" "$tip" -- 'mm/*.c' 'lib/*.c' | sed -n 1p | sed 's/^[^:]*://' || true
		done
	} | grep -vE '^(tools|samples|scripts|Documentation)/' | grep -E '^([^a]|a[^r]|arch/x86/)' | sort -u || true
}

obj=$OUT/build/x86_64-check

# kbuild COMMIT FILE...: what compiler (W=1) and sparse say about FILES at COMMIT; sparse's lines have a mark.
kbuild() {
	local commit=$1 f objects=() rc=0 log=$OUT/log/check-kbuild.log
	shift
	for f in "$@"; do
		objects+=("${f%.c}.o")
		rm -f "$obj/${f%.c}.o"
	done
	worktree_at "$commit"
	mkdir -p "$obj"
	cp "$work/config" "$obj/.config"
	run_long "configuration at ${commit:0:12}" "$OUT/log/check-config.log" kmake "$obj" olddefconfig >&2 || return 1
	# sparse before 0.6.5 does not know __typeof_unqual__; kbuild would drop C= with a mere warning.
	run_long "W=1 and sparse at ${commit:0:12}" "$log" \
		kmake "$obj" -k --output-sync=target KCFLAGS=-fno-diagnostics-show-caret W=1 C=2 CHECK="$TOP/ci/lib/sparse.sh" \
		CF=-D__typeof_unqual__=__typeof__ "${objects[@]}" >&2 || rc=$?
	if grep -q 'not available or not up to date' "$log"; then
		harness_error "this sparse is of no use for this kernel"
	fi
	((rc == 0)) || printf 'make failed\n'
	# A note on the way to a header alone says nothing.
	grep -E '(warning|error|note|info|\*\*\*)[: ]' "$log" | grep -v 'note: in included file' | sparse_allowed || true
}

# sparse_allowed: stdin without what ci/sparse.allow lets through.
sparse_allowed() {
	local line n path number text
	while IFS= read -r line; do
		for n in "${!sparse_message[@]}"; do
			[[ $line == 'sparse: '* && $line =~ ${sparse_message[n]} ]] || continue
			IFS=: read -r _ path number _ <<<"$line"
			path=${path# }
			[[ $path == /* ]] || path=$wt/$path
			text=$(sed -n "${number}p" "$path" 2>/dev/null) || text=
			if [[ $text =~ ${sparse_source[n]} ]]; then continue 2; fi
		done
		printf '%s\n' "$line"
	done
}
sparse_message=() sparse_source=()
read_sparse_allow() {
	local line message source why
	while IFS= read -r line; do
		[[ -n $line && $line != '#'* ]] || continue
		# The fields may have "|" in them, so that it separates only with spaces around.
		message=${line%%" | "*} source=${line#*" | "}
		why=${source##*" | "} source=${source%" | "*}
		[[ $line == *" | "*" | "* && -n $message && -n $source && -n ${why// /} ]] ||
			harness_error "ci/sparse.allow: '$line' is not 'message | source | reason'"
		sparse_message+=("$message") sparse_source+=("$source")
	done <"${SPARSE_ALLOW:-$TOP/ci/sparse.allow}"
}

check_kbuild() {
	local i old=$work/kbuild.old now=$work/kbuild.now files new mode label
	ranges
	for i in "${!names[@]}"; do
		mapfile -t files < <(objects_of "$i")
		if ((${#files[@]} == 0)); then
			for mode in w1 sparse; do
				if wanted $mode; then tap_skip "$(label_of $mode): ${names[i]}" "no code of an x86_64 kernel"; fi
			done
			continue
		fi
		kbuild_cached "${begins[i]}" "$old" "${files[@]}"
		kbuild_cached "${ends[i]}" "$now" "${files[@]}"
		for mode in w1 sparse; do
			wanted $mode || continue
			label=$(label_of $mode)
			new=$(new_lines <(part $mode "$old") <(part $mode "$now"))
			# A failing build is red even where the parent's failed too.
			if [[ $mode == w1 ]] && grep -q '^make failed' "$now"; then new=$(part w1 "$now"); fi
			point "$label: ${names[i]}" "$new"
		done
	done
	rm -f "$old" "$now"
}
label_of() { if [[ $1 == w1 ]]; then printf 'W=1'; else printf 'sparse'; fi; }
part() { if [[ $1 == w1 ]]; then grep -v '^sparse: ' "$2" || true; else grep '^sparse: ' "$2" || true; fi; }

# kbuild_cached COMMIT OUTFILE FILE...
kbuild_cached() {
	local commit=$1 out=$2 f have=()
	shift 2
	for f in "$@"; do if has "$commit" "$f"; then have+=("$f"); fi; done
	: >"$out"
	((${#have[@]} == 0)) ||
		cached "kbuild $script_hash $(kgit rev-parse "$commit^{tree}") ${have[*]} $(sha256sum <"$work/config") $tools" \
			kbuild "$commit" "${have[@]}" >"$out" ||
		harness_error "no kernel configuration at $commit"
}

if ((${#commits[@]})) && { wanted w1 || wanted sparse; }; then
	need make gcc sparse
	facts x86_64
	KSRC=$wt
	if [[ -z $config ]]; then
		bash "$TOP/ci/run" build --config-only --arch x86_64 --variant normal >&2 ||
			harness_error "the build stage made no configuration"
		config=$(build_dir x86_64 normal)/.config
	fi
	# Debug information only costs time here.
	# Later lines win.
	sed -E 's/^CONFIG_(DEBUG_INFO|DEBUG_INFO_BTF|DEBUG_INFO_DWARF.*)=y/# CONFIG_\1 is not set/' "$config" \
		"$TOP/ci/configs/check.config" >"$work/config"
	read_sparse_allow
	tools="$(sha256sum <"${SPARSE_ALLOW:-$TOP/ci/sparse.allow}") $(gcc --version | sed -n 1p) $(sparse --version 2>&1 | sed -n 1p)"
	check_kbuild
fi

# cocci BLOB FILE: all reports for that version of FILE.
cocci_file() {
	local blob=$1 f=$2 dir=$work/cocci
	rm -rf "$dir"
	mkdir -p "$dir"
	kgit cat-file blob "$blob" >"$dir/$(basename "$f")"
	# Status 124, a script that takes too long on this file, is a line too: the same in the parent.
	# shellcheck disable=SC2016
	printf '%s\n' "${cocci_scripts[@]}" |
		WT=$wt FILE=$dir/$(basename "$f") xargs -P "$JOBS" -I{} bash -c '
			options=$(sed -n "s|^// Options: *||p; s|^/// Options: *||p" "$WT/scripts/coccinelle/{}" | sed -n 1p | sed "s/--include-headers-for-types//; s/--include-headers//; s/--no-includes//")
			out=$(timeout 60 spatch -D report --very-quiet --no-show-diff --no-includes $options \
				--cocci-file "$WT/scripts/coccinelle/{}" "$FILE" 2>/dev/null) || case $? in 124) out=timeout ;; *) out="spatch failed" ;; esac
			[[ -z $out ]] || printf "%s\n" "$out" | sed "s|^|{}: |"' |
		sed -e "s|$dir/||g" | sort
	rm -rf "$dir"
}

check_cocci() {
	local i f files side commit blob line path why
	local -A skip_script=()
	need spatch
	while IFS='|' read -r path why; do
		path=${path//[[:space:]]/}
		[[ -n $path && $path != '#'* ]] || continue
		[[ -n ${why//[[:space:]]/} ]] || harness_error "ci/coccinelle.skip: $path without a reason"
		skip_script[$path]=1
	done <"$TOP/ci/coccinelle.skip"
	cocci_scripts=()
	while IFS= read -r path; do
		if [[ -z ${skip_script[$path]-} ]] && grep -q '^virtual report\|^virtual.*report' "$wt/scripts/coccinelle/$path"; then
			cocci_scripts+=("$path")
		fi
	done < <(cd "$wt/scripts/coccinelle" && find . -name '*.cocci' -printf '%P\n' | sort)
	local version
	version="$(spatch --version | sed -n 1p) $(cd "$wt/scripts/coccinelle" && cat "${cocci_scripts[@]}" | sha256sum)"
	local least=20
	[[ -z $each ]] || least=1
	ranges
	for i in "${!names[@]}"; do
		mapfile -t files < <(kgit diff --numstat --no-renames "${begins[i]}" "${ends[i]}" |
			awk -v least="$least" '$3 ~ /\.c$/ && $1 + $2 >= least { print $3 }')
		if ((${#files[@]} == 0)); then
			tap_skip "coccicheck: ${names[i]}" "no .c file with $least changed lines"
			continue
		fi
		: >"$work/old"
		for side in new old; do
			# Nothing to compare with where there is nothing.
			if [[ $side == old && ! -s $work/new ]]; then continue; fi
			commit=$([[ $side == old ]] && printf '%s' "${begins[i]}" || printf '%s' "${ends[i]}")
			: >"$work/$side"
			for f in "${files[@]}"; do
				blob=$(kgit rev-parse -q --verify "$commit:$f") || continue
				log "coccicheck $f at ${commit:0:12}"
				cached "cocci $script_hash $version $blob $f" cocci_file "$blob" "$f" >>"$work/$side"
			done
		done
		if grep -q ': spatch failed' "$work/new"; then
			harness_error "spatch cannot run $(grep ': spatch failed' "$work/new" | cut -d: -f1 | sort -u | tr '\n' ' ')(ci/coccinelle.skip?)"
		fi
		point "coccicheck: ${names[i]}" "$(new_lines "$work/old" "$work/new")"
	done
}
if ((${#commits[@]})) && wanted cocci; then check_cocci; fi

worktree_at "$tip" 2>/dev/null || true
tap_end || fail "$TAP_BAD of $TAP_N points are not ok"
log "$TAP_N points, $TAP_SKIPPED skipped, none failed"
