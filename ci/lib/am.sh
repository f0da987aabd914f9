# shellcheck shell=bash
# git am of a series in a worktree that holds only the files which the patches touch: quick, and
# the modification times in $TREE stay as they are.

# touched_files PATCHES_DIR ENTRY...: every path that the patches name.
touched_files() {
	local dir=$1
	shift
	(($# == 0)) || (cd "$dir" && sed -n \
		-e 's|^diff --git a/\(.*\) b/\(.*\)$|\1\n\2|p' \
		-e 's|^--- a/\([^\t]*\).*|\1|p' -e 's|^+++ b/\([^\t]*\).*|\1|p' \
		-e 's/^rename \(from\|to\) //p' -- "$@") | sort -u
}

# unregister_worktrees GITDIR: drop the entries of worktrees below $OUT that are gone, and no
# others (git worktree prune would also drop those of a user whose disk is not mounted just now).
unregister_worktrees() {
	local entry where
	for entry in "$1"/worktrees/*/; do
		[[ -f $entry/gitdir ]] || continue
		where=$(<"$entry/gitdir")
		if [[ $where == "$OUT"/* && ! -e $where ]]; then rm -rf "$entry"; fi
	done
	rmdir "$1/worktrees" 2>/dev/null || true
}

# alone_index INDEX COMMIT TOPIC: the file INDEX, an index of its own, has COMMIT, what TOPIC needs, and TOPIC. Else says
# which patch does not apply.
alone_index() {
	local t entry why
	GIT_INDEX_FILE=$1 kgit read-tree "$2"
	for t in $(topic_needs "$3") "$3"; do
		for entry in $(series_patches "$t"); do
			# shellcheck disable=SC2153
			if ! why=$(GIT_INDEX_FILE=$1 kgit apply --cached "$PATCHES/$entry" 2>&1); then
				printf '%s: %s\n' "$entry" "$why"
				return 1
			fi
		done
	done
}

am_worktree_remove() {
	kgit worktree remove -f -f "$1" >/dev/null 2>&1 || true
	rm -rf "$1"
	unregister_worktrees "$(kgit rev-parse --path-format=absolute --git-common-dir)"
}

# am_worktree DIR COMMIT FILELIST [full]
am_worktree() {
	am_worktree_remove "$1"
	mkdir -p "$(dirname "$1")"
	if [[ ${4-} == full ]]; then
		kgit worktree add -f --detach "$1" "$2" >/dev/null 2>&1
	else
		kgit worktree add -f --detach --no-checkout "$1" "$2" >/dev/null 2>&1
		am_rewind "$1" "$2" "$3"
	fi
}

# am_rewind DIR COMMIT FILELIST: DIR at COMMIT, with the files of the list and no others.
am_rewind() {
	kgit -C "$1" am --abort >/dev/null 2>&1 || true
	kgit -C "$1" update-ref --no-deref HEAD "$2"
	kgit -C "$1" read-tree "$2"
	find "$1" -mindepth 1 -maxdepth 1 ! -name .git -exec rm -rf {} +
	kgit -C "$1" ls-files | sort | comm -12 - "$3" | kgit -C "$1" checkout-index -f -q --stdin
	kgit -C "$1" update-index -q --refresh >/dev/null || true
}

# am_mail DIR FILE [-3]: committer (kgit's) and date are fixed, so that the result is the same everywhere.
am_mail() {
	local dir=$1 file=$2
	shift 2
	kgit -C "$dir" -c am.threeWay=false am -q "$@" --committer-date-is-author-date --no-gpg-sign \
		--no-keep-cr --no-scissors --no-message-id --utf8 --patch-format=mbox --whitespace=nowarn "$file" </dev/null
}

# am_rejected DIR: what git apply says about the patch that git am stopped at, and its rejected hunks.
am_rejected() {
	local rej
	kgit -C "$1" am --show-current-patch=diff >"$1/.git-am-diff" 2>/dev/null || true
	kgit -C "$1" apply --reject --whitespace=nowarn .git-am-diff 2>&1 | grep -v '^Checking' || true
	while IFS= read -r rej; do
		printf -- '--- %s\n' "${rej#"$1/"}"
		cat "$rej"
	done < <(find "$1" -name '*.rej' | sort)
	rm -f "$1/.git-am-diff"
}

# am_series DIR PATCHES_DIR ENTRY...: one entry after the other; calls am_done ENTRY after each
# and am_failed ENTRY for the first that does not apply, then returns 1.
am_series() {
	local dir=$1 patches=$2 entry
	shift 2
	for entry in "$@"; do
		if [[ -f $patches/$entry ]] && am_mail "$dir" "$patches/$entry" ${AM_OPTIONS:+"$AM_OPTIONS"} >"$OUT/log/am.log" 2>&1; then
			am_done "$entry"
		else
			am_failed "$entry"
			return 1
		fi
	done
}
