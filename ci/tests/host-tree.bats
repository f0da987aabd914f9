#!/usr/bin/env bats
# The stage tree.

load host
setup() { host_setup; }

state() { git -C "$1" for-each-ref; git -C "$1" rev-parse HEAD; git -C "$1" symbolic-ref HEAD; git -C "$1" status --porcelain; git -C "$1" config -l --local; }

@test "tree --linux: a detached worktree; the user's repository stays as it is" {
	kernel "$T/linux"
	header "$(git -C "$T/linux" rev-parse HEAD)"
	echo more >>"$T/linux/README"
	git -C "$T/linux" branch series
	git -C "$T/linux" tag ci-base
	state "$T/linux" >"$T/before"
	run ci tree --linux "$T/linux"
	echo "$output"
	[[ $status -eq 0 && -f $K/.git ]]
	run ci apply
	[[ $status -eq 0 ]]
	state "$T/linux" | diff "$T/before" -
	[[ $(git -C "$K" rev-parse refs/worktree/series) == "$(git -C "$T/linux" rev-parse HEAD)" ]]
	run ci tree --linux "$T/linux"
	[[ $status -eq 0 && $output == *"the tree is there"* ]]
	run ci tree --remove
	[[ $status -eq 0 && ! -e $K && ! -e $T/linux/.git/worktrees ]]
	state "$T/linux" | diff "$T/before" -
}

@test "tree --linux: hooks of the user's repository do not run" {
	kernel "$T/linux"
	header "$(git -C "$T/linux" rev-parse HEAD)"
	printf '#!/bin/sh\ntouch %s/hooked\n' "$T" >"$T/linux/.git/hooks/post-checkout"
	chmod +x "$T/linux/.git/hooks/post-checkout"
	ci tree --linux "$T/linux"
	[[ ! -e $T/hooked ]]
}

@test "tree --linux: another base is refused unless asked for" {
	kernel "$T/linux"
	git -C "$T/linux" tag -d v1.0
	header 1234567890123456789012345678901234567890
	run ci tree --linux "$T/linux"
	[[ $status -eq 2 && $output == *"neither the base of the series, 1234567890123456789012345678901234567890, nor the tag v1.0"* && ! -e $K ]]
	run ci tree --linux "$T/linux" --base-any
	[[ $status -eq 0 && $output == *"not the base-commit that the series names"* ]]
	run ci tree --linux "$T/linux" --base master
	[[ $status -eq 0 ]]
	run ci tree --linux "$T/linux" --base nosuch
	[[ $status -eq 2 ]]
}

@test "tree --linux: the base tag is as good as the base commit" {
	kernel "$T/linux"
	header 1234567890123456789012345678901234567890
	echo later >>"$T/linux/README"
	(cd "$T/linux" && commit later)
	run ci tree --linux "$T/linux"
	[[ $status -eq 0 && $(git -C "$K" rev-parse HEAD) == "$(git -C "$T/linux" rev-parse v1.0)" ]]
}

@test "tree --linux: not a repository" {
	mkdir "$T/linux"
	run ci tree --linux "$T/linux"
	[[ $status -eq 2 ]]
	run ci tree --linux "$T/nosuch"
	[[ $status -eq 2 ]]
}

@test "tree: by git, where the repository has the tag" {
	kernel "$T/linux"
	header "$(git -C "$T/linux" rev-parse HEAD)"
	CI_LINUX_URL=file://$T/linux run ci tree
	echo "$output"
	[[ $status -eq 0 && -d $K/.git && $(git -C "$K" branch --show-current) == series ]]
	run ci tree
	[[ $status -eq 0 && $output == *"the tree is there"* ]]
}

# deb VERSION: a package like Debian's.
deb() {
	mkdir -p "$T/deb/DEBIAN" "$T/deb/usr/src"
	printf 'Package: linux-source-1.0\nVersion: %s\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n' "$1" >"$T/deb/DEBIAN/control"
	kernel "$T/linux-source-1.0"
	rm -rf "$T/linux-source-1.0/.git"
	# Debian's source ignores what is at the top.
	printf '/*\n*.o\n' >"$T/linux-source-1.0/.gitignore"
	touch "$T/linux-source-1.0/mm/left.o"
	printf 'dos\r\n' >"$T/linux-source-1.0/dos.txt"
	chmod +x "$T/linux-source-1.0/Kbuild"
	tar -C "$T" -cJf "$T/deb/usr/src/linux-source-1.0.tar.xz" linux-source-1.0
	dpkg-deb -b "$T/deb" "$T/linux-source.deb" >/dev/null
}

@test "tree --deb: the same commit whoever makes it, with every file" {
	local first
	deb 1.0-1
	rm -f "$SERIES"
	ci tree --deb "$T/linux-source.deb"
	first=$(git -C "$K" rev-parse ci-base)
	[[ $(git -C "$K" log -1 --format='%an %ae %s %ct') == "linux-source linux-source@localhost linux-source-1.0 1.0-1 1767225600" ]]
	git -C "$K" ls-files | grep -x mm/left.o >/dev/null
	[[ -z $(git -C "$K" status --porcelain) ]]
	printf '[core]\n\tautocrlf = true\n\tfileMode = false\n[user]\n\tname = other\n[init]\n\tdefaultBranch = x\n[commit]\n\tgpgSign = true\n' >"$HOME/.gitconfig"
	umask 077
	(export GIT_AUTHOR_NAME=y GIT_DEFAULT_HASH=sha256 TZ=Asia/Tokyo OUT=$T/out2; ci tree --deb "$T/linux-source.deb")
	[[ $(git -C "$T/out2/tree" rev-parse ci-base) == "$first" ]]
}

@test "tree --deb: another base is refused unless asked for" {
	deb 1.0-1
	header 1234567890123456789012345678901234567890
	run ci tree --deb "$T/linux-source.deb"
	[[ $status -eq 2 && $output == *"but the series is for 1234567890123456789012345678901234567890"* && ! -e $K ]]
	run ci tree --deb "$T/linux-source.deb" --base-any
	[[ $status -eq 0 ]]
}

@test "tree: commits that are in no patch are not thrown away" {
	series
	ci apply --no-proofs
	echo more >>"$K/mm/memory.c"
	(cd "$K" && commit more)
	deb 1.0-1
	run ci tree --deb "$T/linux-source.deb" --base-any
	[[ $status -eq 2 && $output == *"commits that are not from 'apply'"* ]]
	run ci tree --remove
	[[ $status -eq 2 && -d $K ]]
	run ci tree --remove --force
	[[ $status -eq 0 && ! -e $K ]]
}
