# shellcheck shell=bash
# The overlay: files that the series adds to the kernel, as plain files in this repository, at the path
# that they have in the kernel. The kernel's top-level directories belong to it, here as there.

# overlay_from DIR BASE TIP TARGET: the files that BASE..TIP of DIR adds, written below TARGET.
overlay_from() {
	local files
	mapfile -t files < <(kgit -C "$1" diff --name-only --no-renames --diff-filter=A "$2" "$3")
	((${#files[@]} == 0)) ||
		kgit -C "$1" --literal-pathspecs archive "$3" -- "${files[@]}" | tar -x -C "$4"
}

# overlay_present: what the overlay holds now.
overlay_present() {
	local d
	kgit ls-tree -d --name-only "$BASE_REF" | while IFS= read -r d; do
		[[ ! -d $OVERLAY/$d ]] || (cd "$OVERLAY" && find "$d" \( -type f -o -type l \) ! -name '*.pyc')
	done | sort
}
