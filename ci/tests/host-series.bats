#!/usr/bin/env bats
# apply, check, export, mbox, range-diff.

# shellcheck disable=SC2154
load host
setup() { host_setup; }

@test "apply: the series, quilt and b4 agree; the second time it is quick" {
	series
	run ci apply
	echo "$output"
	[[ $status -eq 0 ]]
	[[ $output == *"ok 4 - quilt push -a gives what git am gives"* ]]
	[[ $output == *"ok 5 - b4 am of 1-first gives what git am gives"* ]]
	[[ $output == *"ok 6 - b4 am of 2-second gives what git am gives"* ]]
	[[ $(git -C "$K" tag -l 'topic/*' | wc -l) -eq 2 && $(git -C "$K" branch --show-current) == series ]]
	tip=$(git -C "$K" rev-parse series)
	rm -rf "$OUT/results"
	run ci apply
	[[ $status -eq 0 && $output == *"applied already"* && -s $OUT/results/apply.tap ]]
	# The same commits whoever applies it.
	rm -rf "$OUT/apply"
	printf '[user]\n\tname = other\n\temail = o@example.org\n[am]\n\tthreeWay = true\n[commit]\n\tgpgSign = true\n' >"$HOME/.gitconfig"
	run ci apply
	[[ $status -eq 0 && $(git -C "$K" rev-parse series) == "$tip" ]]
	[[ $(git -C "$K" worktree list | wc -l) -eq 1 ]]
}

@test "apply: a topic that needs more than it says is red; its first patch names those that it needs" {
	series
	(
		cd "$K" || exit
		sed -i 's/three;/drei;/' mm/memory.c
		commit "mm: drei"
	)
	: >"$PATCHES/1-first/needs"
	: >"$PATCHES/2-second/needs"
	ci export
	run ! grep -q prerequisite-patch-id -r "$PATCHES"
	run ci apply
	red "ok 8 - 1-first applies to the base" "not ok 9 - 2-second applies to the base" "0002-mm-drei.patch"
	echo 1-first >"$PATCHES/2-second/needs"
	ci export
	[[ $(grep -c '^prerequisite-patch-id: ' "$PATCHES"/2-second/0001-*.patch) -eq 2 ]]
	run ci apply
	[[ $status -eq 0 && $output == *"ok 9 - 2-second applies to the base with 1-first"* ]]
}

@test "apply: a patch that does not apply is red, with its name and the hunk" {
	applied
	sed -i 's/^ extern int line2;/ extern int other;/' "$PATCHES"/1-first/0001-*.patch
	run ci apply
	red "not ok 1 - git am 1-first/0001-mm-three.patch" "patch does not apply: 1-first/0001-mm-three.patch" "-extern int line3;"
}

@test "apply: a patch that only applies with fuzz is red" {
	series
	sed -i 's/^ extern int line4;/ extern int other;/' "$PATCHES"/1-first/0001-*.patch
	run ci apply --force
	red "0001-mm-three.patch"
}

@test "a series entry without a file is red" {
	applied
	echo '2-second/0002-nosuch.patch' >>"$SERIES"
	run ci check --only series
	red "2-second/0002-nosuch.patch is in series, and there is no such file"
	run ci apply
	red "not ok 4 - git am 2-second/0002-nosuch.patch"
}

@test "a patch without a series entry is red" {
	applied
	sed -i '$d' "$SERIES"
	run ci check --only series
	red "2-second/0001-mm-seventeen.patch is not in series"
}

@test "apply: commits that are in no patch are not thrown away" {
	applied
	echo more >>"$K/mm/memory.c"
	(cd "$K" && commit more)
	run ci apply
	[[ $status -eq 2 && $output == *"differ from the patches"* ]]
	echo dirty >>"$K/mm/memory.c"
	run ci apply
	[[ $status -eq 2 && $output == *"not committed"* ]]
	run ci apply --force
	[[ $status -eq 0 && -z $(git -C "$K" status --porcelain) ]]
}

@test "check: a good series passes" {
	applied
	run ci check --only series,maintainers,checkpatch,kdoc
	echo "$output"
	[[ $status -eq 0 && $output != *"not ok"* ]]
	bash "$TOP/ci/lib/tally.sh" "$OUT/results/check.tap"
}

@test "check: an overlay file that differs, is missing, or is too much is red" {
	applied
	[[ -f $OVERLAY/mm/added.c ]]
	echo more >>"$OVERLAY/mm/added.c"
	run ci check --only series
	red "not ok 5 - overlay: equals" "mm/added.c differs" "+more"
	rm "$OVERLAY/mm/added.c"
	run ci check --only series
	red "mm/added.c is not there"
	(cd "$K" && git show series:mm/added.c >"$OVERLAY/mm/added.c")
	chmod +x "$OVERLAY/mm/added.c"
	run ci check --only series
	red "mm/added.c: other mode"
	chmod -x "$OVERLAY/mm/added.c"
	mkdir -p "$OVERLAY/include/linux"
	touch "$OVERLAY/include/linux/stale.h"
	run ci check --only series
	red "not ok 6 - overlay: nothing else" "include/linux/stale.h is not a file that the series adds"
}

@test "check: a trailer that only a person may give is red" {
	local t
	applied
	cp -r "$PATCHES" "$T/good"
	for t in Signed-off-by Reviewed-by acked-by; do
		rm -rf "$PATCHES"
		cp -r "$T/good" "$PATCHES"
		sed -i "s/^Why it is done.*/&\n\n$t: Some Body <s@example.org>/" "$PATCHES"/2-second/0001-*.patch
		run ci check --only series
		red "not ok 3 - series: no trailer" "2-second/0001-mm-seventeen.patch: $t: Some Body"
	done
}

@test "check: an F: line without a file, or that the series does not add, is red" {
	applied
	printf 'F:\tmm/nosuch*\n' >>"$OVERLAY/MAINTAINERS-snippet"
	run ci check --only series
	red "no file for: F:	mm/nosuch*" "the series does not add to MAINTAINERS: F:	mm/nosuch*"
	printf 'F:\tmm/memory.c\n' >"$OVERLAY/MAINTAINERS-snippet"
	run ci check --only series
	red "the series does not add to MAINTAINERS: F:	mm/memory.c"
	rm "$OVERLAY/MAINTAINERS-snippet"
	run ci check --only series
	red "there is no MAINTAINERS-snippet"
}

@test "check: a tree that is not at the series, or has none, is red" {
	applied
	sed -i 's/seventeen/Seventeen/' "$PATCHES"/2-second/0001-*.patch
	run ci check --only maintainers
	red "2-second/0001-mm-seventeen.patch is not what out/tree has"
	rm -rf "$K"
	run ci check --only series
	red "series: is applied in out/tree"
}

@test "check: the base in header and patches" {
	applied
	sed -i '1s/: .*/: 1234567890123456789012345678901234567890/' "$SERIES"
	run ci check --only series
	red "not ok 2 - series: header" "a patch has base-commit"
}

@test "check: unsorted additions to selftest lists are red, unsorted old ones are not" {
	tree
	(
		cd "$K"
		sed -i '1iTEST_GEN_FILES += dd' tools/testing/selftests/mm/Makefile
		sed -i '/cc/aTEST_GEN_PROGS += z' tools/testing/selftests/mm/Makefile
		commit "selftests: more"
	)
	ci export --topic 1-first
	touch "$PATCHES/1-first/cover-letter"
	echo x >"$PATCHES/1-first/cover-letter"
	ci apply --no-proofs --force
	run ci check --only series
	red "dd is not at its place between None and aa"
	[[ $output != *"z is not"* ]]
}

@test "check: a selftest that make check does not run is red" {
	local vm=tools/testing/selftests/mm
	tree
	(
		cd "$K"
		printf 'CATEGORY="nosuch" run_test ./lonely\nCATEGORY="hmm" run_test bash ./test_hmm.sh smoke\n' >$vm/run_vmtests.sh
		echo './hmm-tests' >$vm/test_hmm.sh
		for f in lonely hmm-tests; do echo >$vm/$f.c; done
		commit "selftests: more"
	)
	ci export --topic 1-first
	echo x >"$PATCHES/1-first/cover-letter"
	ci apply --no-proofs --force
	run ci check --only series
	red "selftests: each that is added or changed is run" "runs lonely in no category"
	[[ $output != *"runs hmm-tests"* ]]
	printf 'total 2\n%s/lonely.c 0\n' "$vm" >"$T/sizes"
	SIZES=$T/sizes run ci check --only series
	red "selftests: short enough" "total: 5 lines, more than 2" "$vm/lonely.c: 1 lines, more than 0"
}

bad_patch() {
	series
	(cd "$K" && eval "$1" && commit "mm: bad" && git tag -f topic/2-second) >/dev/null
	ci export
	ci apply --no-proofs
}

@test "check: checkpatch, with exceptions that want a reason" {
	bad_patch 'echo "int badstyle;" >>mm/memory.c'
	run ci check --only checkpatch
	red "not ok 4 - checkpatch: 2-second/0002-mm-bad" "CHECK:BAD_STYLE"
	echo 'BAD_STYLE | bad style | it is needed' >"$T/allow"
	CHECKPATCH_ALLOW=$T/allow run ci check --only checkpatch
	[[ $status -eq 0 ]]
	echo 'OTHER | bad style | it is needed' >"$T/allow"
	CHECKPATCH_ALLOW=$T/allow run ci check --only checkpatch
	[[ $status -eq 1 ]]
	echo 'BAD_STYLE | bad style |' >"$T/allow"
	CHECKPATCH_ALLOW=$T/allow run ci check --only checkpatch
	[[ $status -eq 2 && $output == *"without regex or reason"* ]]
}

@test "check: a word that codespell knows is red, with its line, where the patch adds it" {
	bad_patch 'echo "/* this is the adress of a page */" >>mm/memory.c'
	run ci check --only checkpatch
	red "not ok 4 - checkpatch: 2-second/0002-mm-bad" "TYPO_SPELLING: 'adress' may be misspelled"
	n=$(sed -n "s/.*0002-mm-bad[^:]*:\([0-9]*\): CHECK:TYPO_SPELLING.*/\1/p" <<<"$output")
	sed -n "${n}p" "$PATCHES"/2-second/0002-*.patch | grep '^+.*adress' >/dev/null
	echo "TYPO_SPELLING | 'adress' may | somebody's name" >"$T/allow"
	CHECKPATCH_ALLOW=$T/allow run ci check --only checkpatch
	[[ $status -eq 0 ]]
}

@test "check: kernel-doc, only what is new" {
	bad_patch 'echo "/* baddoc */" >>mm/memory.c'
	run ci check --only kdoc
	red "not ok 1 - kernel-doc: the series" "bad doc"
	run ci check --only kdoc --each
	red "not ok 4 - kernel-doc: 2-second/0002-mm-bad" "bad doc"
	[[ $(grep -c '^not ok' <<<"$output") -eq 1 ]]
}

@test "check: W=1 and sparse, only what is new" {
	touch "$T/config"
	bad_patch 'printf "int *null(void)\n{\n\tint new_warning;\n\treturn 0;\n}\n" >>mm/memory.c'
	run ci check --only w1,sparse --config "$T/config"
	red "not ok 1 - W=1: the series" "unused variable 'new_warning'" \
		"not ok 2 - sparse: the series" "Using plain integer as NULL pointer"
	run ci check --only w1,sparse --each --config "$T/config"
	red "not ok 7 - W=1: 2-second/0002-mm-bad" "unused variable 'new_warning'" \
		"not ok 8 - sparse: 2-second/0002-mm-bad" "Using plain integer as NULL pointer"
	[[ $output != *old_warning* && $(grep -c '^not ok' <<<"$output") -eq 2 ]]
	# Once more, from the cache.
	run ci check --only w1,sparse --each --config "$T/config"
	red "new_warning"
	[[ $output != *"W=1 and sparse at"* ]]
}

@test "check: a patch that breaks the build is red" {
	touch "$T/config"
	bad_patch 'echo "int broken" >>mm/memory.c'
	run ci check --only w1 --config "$T/config"
	red "not ok 1 - W=1: the series" "make failed"
	run ci check --only w1 --each --config "$T/config"
	red "not ok 4 - W=1: 2-second/0002-mm-bad" "make failed"
}

@test "check: coccinelle, only what is new" {
	bad_patch 'printf "void f(int *p)\n{\n\tif (p)\n\t\tkfree(p);\n}\n" >>mm/memory.c; seq -f "/* %g */" 20 >>mm/memory.c'
	run ci check --only cocci
	red "not ok 1 - coccicheck: the series" "not needed"
	run ci check --only cocci --each
	red "not ok 4 - coccicheck: 2-second/0002-mm-bad" "not needed"
}

@test "export: what apply made gives the same patches again" {
	series
	cp -r "$T/top" "$T/first"
	ci apply
	run ci export
	[[ $status -eq 0 && $output != *wrote* ]]
	diff -r "$T/top" "$T/first"
	grep -qx "base-commit: $(git -C "$K" rev-parse ci-base)" "$PATCHES"/1-first/0001-*.patch
	grep -q '^From 0000000000000000000000000000000000000000 ' "$PATCHES"/1-first/0001-*.patch
}

@test "export: new commits go to the last topic, or to a new one; what is gone is removed" {
	applied
	echo 'int more;' >>"$K/mm/memory.c"
	(cd "$K" && commit "mm: more")
	run ci export
	[[ $status -eq 0 && -f $PATCHES/2-second/0002-mm-more.patch ]]
	tail -n 1 "$SERIES" | grep -x 2-second/0002-mm-more.patch
	echo 'int again;' >"$K/include/linux/again.h"
	(cd "$K" && commit "mm: again")
	run ci export --topic 3-third
	[[ $status -eq 0 && -f $PATCHES/3-third/0001-mm-again.patch && -f $OVERLAY/include/linux/again.h ]]
	[[ $output == *"patches/3-third has no cover-letter yet"* ]]
	git -C "$K" reset -q --hard HEAD~2
	git -C "$K" tag -d topic/3-third
	git -C "$K" tag -f topic/2-second HEAD
	ci export
	[[ ! -e $PATCHES/3-third && ! -e $OVERLAY/include && ! -e $PATCHES/2-second/0002-mm-more.patch ]]
	ci apply
	run ci check --only series
	[[ $status -eq 0 ]]
}

@test "export: a boundary whose commit was rewritten is found by its subject" {
	applied
	git -C "$K" -c sequence.editor="sed -i 1s/pick/edit/" rebase -q -i ci-base 2>/dev/null || true
	sed -i 's/three;/drei;/' "$K/mm/memory.c"
	git -C "$K" commit -q -a --amend --no-edit
	git -C "$K" rebase --continue
	run ci export
	echo "$output"
	[[ $status -eq 0 && $(grep -c '^1-first/' "$SERIES") -eq 2 && $(grep -c '^2-second/' "$SERIES") -eq 1 ]]
	grep -q drei "$PATCHES"/1-first/0001-*.patch
}

@test "export: refuses trailers of persons, other authors, changes not committed" {
	applied
	echo 'int more;' >>"$K/mm/memory.c"
	run ci export
	[[ $status -eq 2 && $output == *"not committed"* ]]
	(cd "$K" && commit "mm: more" "Signed-off-by: Some Body <s@example.org>")
	run ci export
	red "has Signed-off-by: Some Body"
	git -C "$K" commit -q --amend -m "mm: more" --author "Other <o@example.org>"
	run ci export
	red "is by Other <o@example.org>"
	run ci export --any-author
	[[ $status -eq 0 ]]
}

@test "export --from: another repository with the same files at its base" {
	series
	cp -r "$T/top" "$T/first"
	kernel "$T/other"
	(
		cd "$T/other"
		git commit -q --amend -m "another base"
		git -C "$K" format-patch -q --stdout ci-base..series | git am -q
		git tag topic/1-first HEAD~1
	)
	run ci export --from "$T/other" --topic 2-second
	[[ $status -eq 0 ]]
	# Author dates are those of the commits, all else is equal.
	diff -r -I '^Date:' "$T/top" "$T/first"
}

@test "mbox: threaded, numbered, with To and Cc" {
	applied
	run ci mbox
	echo "$output"
	[[ $status -eq 0 ]]
	m=$OUT/mbox/1-first.mbox
	[[ $(grep -c '^From 0000' "$m") -eq 3 && $(grep -c '^Message-Id:' "$m") -eq 3 && $(grep -c '^In-Reply-To:' "$m") -eq 2 ]]
	grep -qx 'Subject: \[PATCH 0/2\] mm: the first topic' "$m"
	grep -qx 'Subject: \[PATCH 2/2\] mm: add a file' "$m"
	grep -q '^ 3 files changed' "$m"
	[[ $(<"$OUT/mbox/1-first.to") == "A Maintainer <m@example.org>" && $(<"$OUT/mbox/1-first.cc") == list@example.org ]]
	cp "$m" "$T/again"
	ci mbox --topic patches/1-first/
	diff "$m" "$T/again"
	ci mbox --topic 2-second --reroll 2
	grep -q '\[PATCH v2 0/1\]' "$OUT/mbox/2-second.mbox"
	run ci mbox --topic 9-nosuch
	[[ $status -eq 2 ]]
}

@test "range-diff: against an older commit of this repository" {
	applied
	cp -r "$TOP/ci" "$T/top/ci"
	(cd "$T/top" && git init -q && commit "first")
	sed -i 's/seventeen/Seventeen/' "$K/mm/memory.c"
	git -C "$K" commit -q -a --amend --no-edit --author "$me_name <$me_mail>"
	ci export
	run bash "$T/top/ci/run" range-diff
	echo "$output"
	[[ $status -eq 0 && $output == *"3:  "*"!"*"mm: seventeen"* && $output == *"+extern int Seventeen;"* ]]
	(cd "$T/top" && commit "second")
	run bash "$T/top/ci/run" range-diff
	[[ $status -eq 0 && $output == *"!"* ]]
	run bash "$T/top/ci/run" range-diff HEAD
	[[ $status -eq 0 && $output != *"!"* ]]
	run bash "$T/top/ci/run" range-diff nosuch
	[[ $status -eq 2 ]]
}

@test "check: an added file that no section of MAINTAINERS has is red" {
	tree
	(
		cd "$K"
		mkdir lib
		echo 'extern int added;' >lib/added.c
		printf 'REST\nF:\t*\nF:\t*/\n' >>MAINTAINERS
		commit "lib: add a file"
	)
	mkdir -p "$PATCHES/1-first"
	echo x >"$PATCHES/1-first/cover-letter"
	ci export --topic 1-first
	ci apply --no-proofs --force
	run ci check --only series
	red "not ok" "- MAINTAINERS: has a section for each file" "# lib/added.c"
}

@test "check: what ci/sparse.allow lets through wants a reason, and the line of source" {
	touch "$T/config"
	bad_patch 'printf "int *null(void)\n{\n\treturn 0; // here\n}\n" >>mm/memory.c; sed -i "/^null/d" mm/memory.c'
	printf 'declared | null | x\nplain integer as NULL pointer | here$ | because\n' >"$T/allow"
	SPARSE_ALLOW=$T/allow run ci check --only sparse --config "$T/config"
	echo "$output"
	[[ $status -eq 0 ]]
	sed -i 's/here/there/' "$T/allow"
	SPARSE_ALLOW=$T/allow run ci check --only sparse --config "$T/config"
	red "plain integer as NULL pointer"
	echo 'message | source |' >"$T/allow"
	SPARSE_ALLOW=$T/allow run ci check --only sparse --config "$T/config"
	[[ $status -eq 2 ]]
}
