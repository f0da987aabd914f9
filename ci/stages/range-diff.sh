#!/bin/bash
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"
# shellcheck source=ci/lib/am.sh
. "$TOP/ci/lib/am.sh"

usage() {
	cat <<'END'
usage: ci/run range-diff [OLDREV]

git range-diff between the series in commit OLDREV of this repository and the present one. OLDREV is by
default the last commit whose patches differ from the present ones.
END
}

old=''
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	-*) usage_error "unknown option $1" ;;
	*) [[ -z $old ]] || usage_error "more than one revision"; old=$1 ;;
	esac
	shift
done
need git
need_series
here() { git -C "$TOP" "$@"; }

if [[ -z $old ]]; then
	here rev-parse -q --verify HEAD >/dev/null 2>&1 || skip "this repository has no commit yet"
	if [[ -n $(here status --porcelain -- series patches) ]]; then
		old=HEAD
	else
		last=$(here log -1 --format=%H -- series patches)
		old=$(here rev-parse -q --verify "$last^" 2>/dev/null) || skip "no commit with other patches"
	fi
fi
rev=$(here rev-parse -q --verify "$old^{commit}") || harness_error "no revision $old in $TOP"

dir=$OUT/range-diff
rm -rf "${dir:?}"
mkdir -p "$dir" "$OUT/log"
paths=()
for p in series patches; do
	if here cat-file -e "$rev:$p" 2>/dev/null; then paths+=("$p"); fi
done
((${#paths[@]} == 2)) || skip "$old has no series"
here archive "$rev" series patches | tar -x -C "$dir"

new_base=$(kgit rev-parse "$BASE_REF^{commit}")
old_base=$(SERIES=$dir/series series_header base-commit)
if [[ -z $old_base ]] || ! kgit cat-file -e "$old_base^{commit}" 2>/dev/null; then
	[[ -z $old_base ]] || warn "the old base $old_base is not in $TREE; taking the present one"
	old_base=$new_base
fi
mapfile -t entries < <(SERIES=$dir/series series_patches)
touched_files "$dir/patches" "${entries[@]}" >"$dir/files"
am_worktree "$dir/wt" "$old_base" "$dir/files"
trap 'am_worktree_remove "$dir/wt"' EXIT
am_done() { :; }
am_failed() { warn "the old $1 does not apply on $old_base"; sed 's/^/    /' "$OUT/log/am.log" >&2; }
am_series "$dir/wt" "$dir/patches" "${entries[@]}" || harness_error "the old series does not apply"
old_tip=$(kgit -C "$dir/wt" rev-parse HEAD)
log "series of $(here log -1 --format='%h (%s)' "$rev") against the present one"
kgit --no-pager range-diff --no-color "$old_base..$old_tip" "$new_base..$SERIES_REF"
