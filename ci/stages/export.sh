#!/bin/bash
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"
# shellcheck source=ci/lib/overlay.sh
. "$TOP/ci/lib/overlay.sh"

usage() {
	cat <<'END'
usage: ci/run export [--from DIR] [--topic <n>-<name>] [--any-author] [BRANCH]

Writes patches/<n>-<topic>/NNNN-*.patch, `series` and the overlay (copies of the files that the series
adds) from the commits after the base. BRANCH is `series` of out/tree (HEAD, where out/tree is a worktree of
your repository). Cover letters are written by hand, patches/<n>-<topic>/cover-letter, and stay as they are.

Where a topic ends: the tag topic/<n>-<name>, set by `apply`, at its last commit. If that commit was
rewritten, the one with the same subject. Commits after the last of them belong to the last topic, or to --topic.

  --from DIR     the commits of another repository or worktree, whose history starts at the same files
  --topic NAME   the commits after the last topic boundary are topic NAME, new or the last one
  --any-author   take commits whose author is not this repository's git identity

Refused: commits with a Signed-off-by, Reviewed-by, Acked-by or Tested-by, merges, uncommitted changes.
END
}

from=$TREE topic='' any_author='' branch=''
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	--from) need_arg "$@"; from=$2; shift ;;
	--topic) need_arg "$@"; topic=${2#patches/}; topic=${topic%/}; shift ;;
	--any-author) any_author=1 ;;
	-*) usage_error "unknown option $1" ;;
	*) [[ -z $branch ]] || usage_error "more than one branch"; branch=$1 ;;
	esac
	shift
done
[[ -z $topic || $topic =~ ^[0-9]+-[a-z0-9-]+$ ]] || usage_error "--topic wants <n>-<name>"
need git
need_tree
kgit -C "$from" rev-parse --git-dir >/dev/null 2>&1 || harness_error "--from $from is not a git repository"
src_topics=$TOPIC_REFS
if [[ $(realpath "$from") == "$(realpath "$TREE")" ]]; then
	[[ -n $branch ]] || branch=$(if [[ -n $SERIES_BRANCH ]]; then echo "$SERIES_REF"; else echo HEAD; fi)
else
	[[ -n $branch ]] || branch=HEAD
	src_topics=refs/tags/topic
fi
src() { kgit -C "$from" "$@"; }
tip=$(src rev-parse -q --verify "$branch^{commit}") || harness_error "$from has no revision $branch"
if [[ $(src rev-parse -q --verify HEAD || true) == "$tip" && -n $(src status --porcelain --untracked-files=no | sed -n 1p) ]]; then
	harness_error "$from has changes that are not committed"
fi

# Debian's .gitignore hides new files from git status and git add.
if [[ $(src rev-parse --is-inside-work-tree 2>/dev/null) == true ]]; then
	forgotten=$(src ls-files --others -- ':!*.mod.c' '*.[chS]' '*.rst' '*.sh' '*.py' '*.dts' '*.yaml' '*/Kconfig' '*/Makefile' | sed -n 1,10p)
	[[ -z $forgotten ]] || warn "not in any commit (git add -f takes them):"$'\n'"$forgotten"
fi

# The base there is the commit with the base's files; its hash may be another than here.
base=$(kgit rev-parse "$BASE_REF^{commit}")
base_tree=$(kgit rev-parse "$base^{tree}")
src_base=$(src log --first-parent --format='%T %H' "$tip" | awk -v t="$base_tree" '$1 == t { print $2; exit }' || true)
[[ -n $src_base ]] || harness_error "no commit of $branch in $from has the files of the base $base"
want=$(series_header base-commit)
tag=$(series_header base-tag)
if [[ -n $want && $base != "$want" ]] && [[ $base != "$(kgit rev-parse -q --verify "refs/tags/$tag^{commit}" || true)" ]]; then
	harness_error "$TREE stands on $base, but $SERIES is for $want; to rebase the series on it change the header first"
fi
mapfile -t commits < <(src rev-list --reverse --first-parent "$src_base..$tip")
total=${#commits[@]}
[[ -z $(src rev-list --merges "$src_base..$tip") ]] || fail "there are merges after the base"

me="$(git -C "$TOP" config user.name || true) <$(git -C "$TOP" config user.email || true)>"
[[ $me != *'<>' || -n $any_author ]] || harness_error "git config user.name and user.email of $TOP are not set"
bad=''
for c in "${commits[@]}"; do
	line=$(src log -1 --format='%h %s' "$c")
	author=$(src log -1 --format='%an <%ae>' "$c")
	tags=$(src log -1 --format=%B "$c" | grep -iE '^[[:space:]]*(signed-off|reviewed|acked|tested)-by:' || true)
	if [[ -n $tags ]]; then bad+="  $line: has $tags"$'\n'; fi
	if [[ -z $any_author && $author != "$me" ]]; then
		bad+="  $line: is by $author, not $me (--any-author takes it)"$'\n'
	fi
done
[[ -z $bad ]] || fail "these commits cannot be exported:"$'\n'"$bad"

position() {
	local i
	for ((i = 0; i < total; i++)); do
		if [[ ${commits[i]} == "$1" ]]; then echo $((i + 1)); return; fi
	done
	# Rewritten since: found again by its subject, when that is unique.
	local subject hits=()
	subject=$($2 log -1 --format=%s "$1")
	for ((i = 0; i < total; i++)); do
		if [[ $(src log -1 --format=%s "${commits[i]}") == "$subject" ]]; then hits+=($((i + 1))); fi
	done
	if ((${#hits[@]} == 1)); then echo "${hits[0]}"; fi
}

declare -A end=()
boundary() {
	local name=$1 commit=$2 pos
	[[ $name != "$topic" && -z ${end[$name]-} ]] || return 0
	pos=$(position "$commit" "$3")
	[[ -n $pos ]] || harness_error "the last commit of topic $name, $commit, is not among the commits; move its boundary: git -C $from tag -f topic/$name COMMIT"
	end[$name]=$pos
}
while read -r commit ref; do
	[[ -z $commit ]] || boundary "${ref##*/}" "$commit" src
done < <(src for-each-ref --format='%(objectname) %(refname)' "$src_topics")
if ((${#end[@]} == 0)) && [[ $(realpath "$from") != "$(realpath "$TREE")" ]]; then
	while read -r commit ref; do
		[[ -z $commit ]] || boundary "${ref##*/}" "$commit" kgit
	done < <(kgit for-each-ref --format='%(objectname) %(refname)' "$TOPIC_REFS")
fi
mapfile -t names < <(for n in "${!end[@]}"; do printf '%s %s\n' "${end[$n]}" "$n"; done | sort -n | cut -d' ' -f2)
last=0
if ((${#names[@]})); then last=${end[${names[-1]}]}; fi
if ((last < total)); then
	if [[ -n $topic ]]; then
		names+=("$topic")
	elif ((${#names[@]} == 0)); then
		harness_error "no topic boundary in $from; name the topic of these $total commits: --topic <n>-<name>"
	fi
	end[${names[-1]}]=$total
fi
[[ $(printf '%s\n' "${names[@]}" | sort -n -s -t- -k1,1) == "$(printf '%s\n' "${names[@]}")" ]] ||
	harness_error "the numbers of the topics do not follow their order in the branch: ${names[*]}"

new=$OUT/export
rm -rf "$new"
mkdir -p "$new/patches"
sed -n '/^[^#]/q; /^#/p' "$SERIES" 2>/dev/null >"$new/series" || true
if [[ ! -s $new/series ]]; then printf '# base-commit: %s\n' "$base" >"$new/series"; fi
# The last commit's own is in nobody's prerequisites.
src format-patch -q --stdout -M --base="$src_base" -1 "$tip" | sed -n 's/^prerequisite-patch-id: //p' >"$new/all.ids"
start=$src_base prev=0
for name in "${names[@]}"; do
	to=${commits[end[$name] - 1]}
	((end[$name] > prev)) || harness_error "topic $name has no commits"
	src format-patch -q --zero-commit --no-signature --no-signoff --no-thread --no-attach --no-cover-letter --no-notes \
		--no-to --no-cc --no-add-header --no-color --abbrev=12 --stat=72 --filename-max-length=64 -n \
		--src-prefix=a/ --dst-prefix=b/ --subject-prefix=PATCH --suffix=.patch -M \
		--base="$src_base" -o "$new/patches/$name" "$start..$to"
	sed -i "s/^base-commit: [0-9a-f]*\$/base-commit: $base/" "$new/patches/$name"/*.patch
	# git takes all commits before it for prerequisites.
	sed -n "$((prev + 1)),${end[$name]}p" "$new/all.ids" >"$new/$name.ids"
	if [[ -f $PATCHES/$name/needs ]]; then
		sed "s|.*|$new/&.ids|" "$PATCHES/$name/needs" | xargs -r cat >"$new/ids"
		first=$(printf '%s\n' "$new/patches/$name"/*.patch | sed -n 1p)
		awk -v ids="$new/ids" 'BEGIN { while ((getline id <ids) > 0) needed[id] = 1 }
			$1 != "prerequisite-patch-id:" || $2 in needed' "$first" >"$new/first"
		mv "$new/first" "$first"
	fi
	(cd "$new/patches" && printf '%s\n' "$name"/*.patch) >>"$new/series"
	start=$to prev=${end[$name]}
done

# Only what differs is written, so that times of files say something.
put() { cmp -s "$1" "$2" || { mkdir -p "$(dirname "$2")"; cp "$1" "$2"; log "wrote ${2#"$TOP/"}"; }; }
mkdir -p "$PATCHES"
for f in "$PATCHES"/*/[0-9][0-9][0-9][0-9]-*.patch; do
	if [[ -f $f && ! -f $new/patches/${f#"$PATCHES/"} ]]; then rm -f "$f"; log "removed ${f#"$TOP/"}"; fi
done
for f in "$new"/patches/*/*.patch; do [[ ! -f $f ]] || put "$f" "$PATCHES/${f#"$new/patches/"}"; done
find "$PATCHES" -mindepth 1 -maxdepth 1 -type d -empty -delete
for f in "$PATCHES"/*/; do
	[[ ! -d $f || -d $new/patches/$(basename "$f") ]] || warn "$f holds no patch of the series any more"
done
put "$new/series" "$SERIES"

mkdir -p "$new/overlay"
overlay_from "$from" "$src_base" "$tip" "$new/overlay"
while IFS= read -r f; do
	if [[ ! -e $new/overlay/$f && ! -L $new/overlay/$f ]]; then
		rm -f "$OVERLAY/$f"
		rmdir -p --ignore-fail-on-non-empty "$OVERLAY/$(dirname "$f")" 2>/dev/null || true
		log "removed $f"
	fi
done < <(overlay_present)
while IFS= read -r f; do
	put "$new/overlay/$f" "$OVERLAY/$f"
	if [[ -x $new/overlay/$f ]]; then chmod +x "$OVERLAY/$f"; else chmod -x "$OVERLAY/$f"; fi
done < <(cd "$new/overlay" && find . -type f -printf '%P\n' | sort)
rm -rf "$new"

if [[ $(realpath "$from") == "$(realpath "$TREE")" ]]; then
	for name in "${names[@]}"; do kgit update-ref "$TOPIC_REFS/$name" "${commits[end[$name] - 1]}"; done
fi
for name in "${names[@]}"; do
	[[ -f $PATCHES/$name/cover-letter ]] || warn "patches/$name has no cover-letter yet"
done
log "$total patches in ${#names[@]} topics, base $base"
