#!/bin/bash
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"
# shellcheck source=ci/lib/am.sh
. "$TOP/ci/lib/am.sh"
# shellcheck source=ci/lib/mbox.sh
. "$TOP/ci/lib/mbox.sh"

usage() {
	cat <<'END'
usage: ci/run apply [--onto newest] [--force] [--no-proofs]

git am of all topics in the order of `series` on the base in out/tree, which then stands at the result:
branch series, and a tag topic/<n>-<name> at the last patch of each topic. (In a worktree of your
repository: a detached HEAD, and refs of that worktree alone.) Then proves that quilt push -a, and b4 am of the
mbox of each topic, give the same, and that each topic applies to the base with those topics alone that
patches/TOPIC/needs names. Nothing is done when base and patches are those of the last time.

  --onto newest   the tree was made with `tree --onto newest`: git am -3
  --force         drop commits and changes in out/tree that are in no patch
  --no-proofs     git am alone
END
}

onto='' force='' proofs=1
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	--onto) need_arg "$@"; onto=$2; shift ;;
	--force) force=1 ;;
	--no-proofs) proofs='' ;;
	*) usage_error "unknown option $1" ;;
	esac
	shift
done
[[ -z $onto || $onto == newest ]] || usage_error "--onto takes only 'newest'"
need git python3
[[ -z $proofs ]] || need quilt b4
need_tree

work=$OUT/apply
mkdir -p "$work" "$OUT/log"
base=$(kgit rev-parse "$BASE_REF^{commit}")
mapfile -t entries < <(series_patches)
mapfile -t topics < <(series_topics)
dup=$(printf '%s\n' "${topics[@]}" | sort | uniq -d)
[[ -z $dup ]] || harness_error "the patches of topic $dup are not together in $SERIES"

key=$({
	printf '%s\n' "$base" "$onto" "$proofs" "${entries[@]}"
	for entry in "${entries[@]}"; do sha256sum <"$PATCHES/$entry" 2>/dev/null || echo missing; done
	tail -n +1 "$PATCHES"/*/{cover-letter,needs} 2>/dev/null || true
	sha256sum <"$0"
} | sha256sum)
tip_now=$(kgit rev-parse -q --verify "$SERIES_REF^{commit}" || true)
head_now=$(kgit rev-parse -q --verify HEAD || true)
dirty=$(kgit status --porcelain --untracked-files=no 2>/dev/null | sed -n 1,5p)
if [[ -f $work/key && $(<"$work/key") == "$key" && -n $tip_now && $tip_now == "$(cat "$work/tip")" &&
	$head_now == "$tip_now" && -z $dirty ]]; then
	mkdir -p "$RESULTS"
	cp "$work/apply.tap" "$RESULTS/apply.tap"
	cat "$RESULTS/apply.tap"
	log "applied already: $tip_now"
	exit 0
fi
if [[ -n $dirty && -z $force ]]; then
	harness_error "$TREE has changes that are not committed (--force drops them):"$'\n'"$dirty"
fi

touched_files "$PATCHES" "${entries[@]}" 2>/dev/null >"$work/files" || true
rm -f "$work/key"
wt=$work/wt
AM_OPTIONS=
full=
if [[ -n $onto ]]; then AM_OPTIONS=-3 full=full; fi
am_worktree "$wt" "$base" "$work/files" $full || harness_error "cannot make the worktree $wt"
trap 'am_worktree_remove "$wt"' EXIT

tap_begin apply
declare -A topic_tip=()
am_done() {
	topic_tip[${1%%/*}]=$(kgit -C "$wt" rev-parse HEAD)
	tap_ok "git am $1"
}
am_failed() {
	tap_not_ok "git am $1"
	if [[ ! -f $PATCHES/$1 ]]; then
		warn "$SERIES names $1, and there is no such file"
		return
	fi
	warn "patch does not apply: $1"
	{ cat "$OUT/log/am.log"; am_rejected "$wt"; } | sed 's/^/    /' >&2
}
if ((${#entries[@]} == 0)); then warn "the series is empty"; fi
if ! am_series "$wt" "$PATCHES" "${entries[@]}"; then
	tap_end || fail "the series does not apply"
fi
tip=$(kgit -C "$wt" rev-parse HEAD)
log "${#entries[@]} patches in ${#topics[@]} topics apply; tip $tip"

# Commits on the branch that are in no patch are somebody's work.
for old in "$tip_now" "$head_now"; do
	[[ -n $old && -z $force ]] || continue
	if [[ $old != "$(cat "$work/tip" 2>/dev/null)" && $old != "$base" ]] && ! kgit diff --quiet "$old" "$tip"; then
		harness_error "$TREE has commits ($old) that differ from the patches; export them, or use --force"
	fi
done

prove_quilt() {
	local dir=$work/quilt log=$OUT/log/quilt.log
	rm -rf "$dir"
	mkdir -p "$dir/got" "$dir/want"
	archive "$base" "$dir/got"
	archive "$tip" "$dir/want"
	if ! (cd "$dir/got" && QUILT_PATCHES=$PATCHES QUILT_SERIES=$SERIES QUILT_PC=$dir/pc \
		quilt --quiltrc - push -a --fuzz=0) >"$log" 2>&1 </dev/null; then
		tap_not_ok "quilt push -a" "$(tail -n 20 "$log")"
	elif ! diff -r "$dir/got" "$dir/want" >"$log" 2>&1; then
		tap_not_ok "quilt push -a gives what git am gives" "$(head -n 40 "$log")"
	else
		tap_ok "quilt push -a gives what git am gives"
	fi
	rm -rf "$dir"
}

# archive COMMIT DIR: the touched files of COMMIT.
archive() {
	kgit ls-tree -r --name-only "$1" | sort | comm -12 - "$work/files" |
		xargs -r -d '\n' env GIT_LITERAL_PATHSPECS=1 git -C "$TREE" -c safe.directory='*' archive "$1" -- |
		{ tar -x -C "$2" 2>/dev/null || true; }
}

prove_b4() {
	local topic=$1 before=$2 mbox=$work/b4/$1.mbox dir=$work/b4/$1 log=$OUT/log/b4.log id got=()
	rm -rf "$dir"
	mkdir -p "$dir" "$work/b4/home"
	id=$(make_mbox "$topic" "$mbox")
	# Without a user.email b4 0.12 exits 1 and does not say why.
	printf '[user]\n\tname = series\n\temail = series@localhost\n' >"$work/b4/home/gitconfig"
	if ! (cd "$dir" && HOME=$work/b4/home XDG_CONFIG_HOME='' XDG_DATA_HOME=$work/b4/home XDG_CACHE_HOME=$work/b4/home \
		GIT_CONFIG_GLOBAL=$work/b4/home/gitconfig GIT_CONFIG_NOSYSTEM=1 \
		timeout 120 b4 --offline-mode am -m "$mbox" -o "$dir" "$id") >"$log" 2>&1 </dev/null; then
		tap_not_ok "b4 am of $topic" "$(tail -n 20 "$log")"
		return
	fi
	mapfile -t got < <(find "$dir" -name '*.mbx')
	am_rewind "$wt" "$before" "$work/files"
	if ((${#got[@]} != 1)); then
		tap_not_ok "b4 am of $topic gives one mbox" "$(tail -n 20 "$log")"
	elif ! am_mail "$wt" "${got[0]}" ${AM_OPTIONS:+"$AM_OPTIONS"} >>"$log" 2>&1; then
		tap_not_ok "b4 am of $topic applies" "$(tail -n 20 "$log")"
	elif [[ $(kgit -C "$wt" rev-parse 'HEAD^{tree}') != "$(kgit rev-parse "${topic_tip[$topic]}^{tree}")" ]]; then
		tap_not_ok "b4 am of $topic gives what git am gives"
	else
		tap_ok "b4 am of $topic gives what git am gives"
	fi
}

# In an index alone; what is built and booted of it is for "ci/run alone".
prove_alone() {
	local needs why name
	needs=$(topic_needs "$1") || return 0
	name="$1 applies to the base${needs:+ with ${needs//$'\n'/, }}"
	if why=$(alone_index "$work/index" "$base" "$1"); then tap_ok "$name"; else tap_not_ok "$name" "$why"; fi
	rm -f "$work/index"
}

# Refs first: the proofs read the topics from them. SERIES_REF comes last, with the checkout.
kgit for-each-ref --format='%(refname)' "$TOPIC_REFS" | while read -r ref; do kgit update-ref -d "$ref"; done
for topic in "${topics[@]}"; do kgit update-ref "$TOPIC_REFS/$topic" "${topic_tip[$topic]}"; done

if [[ -n $proofs ]] && ((${#entries[@]})); then
	if [[ -z $onto ]]; then prove_quilt; else tap_skip "quilt push -a" "not with --onto: git am -3 may have merged"; fi
	before=$base
	for topic in "${topics[@]}"; do
		prove_b4 "$topic" "$before"
		before=${topic_tip[$topic]}
	done
	[[ -n $onto ]] || for topic in "${topics[@]}"; do prove_alone "$topic"; done
fi
am_worktree_remove "$wt"

checkout=(checkout -q)
[[ -z $force ]] || checkout+=(-f)
if [[ -n $SERIES_BRANCH ]]; then
	kgit "${checkout[@]}" -B "$SERIES_BRANCH" "$tip" >"$OUT/log/checkout.log" 2>&1
else
	kgit "${checkout[@]}" --detach "$tip" >"$OUT/log/checkout.log" 2>&1
fi || harness_error "cannot check the series out in $TREE: $(tail -n 3 "$OUT/log/checkout.log")"
kgit update-ref "$SERIES_REF" "$tip"

status=0
tap_end || status=1
cp "$RESULTS/apply.tap" "$work/apply.tap"
printf '%s\n' "$tip" >"$work/tip"
((status)) || printf '%s\n' "$key" >"$work/key"
((status == 0)) || fail "see the points that are not ok"
log "the series is in $TREE at $tip"
