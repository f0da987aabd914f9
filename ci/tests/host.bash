# shellcheck shell=bash disable=SC2154
bats_require_minimum_version 1.5.0

# A kernel of a few files, so that the stages run in a second. Sets K (the tree with branch series), and exports
# what points the stages at it.

host_setup() {
	TOP=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
	# The same path for all tests of a file, for what applied() keeps has paths in it.
	T=$BATS_FILE_TMPDIR/t
	rm -rf "$T"
	export HOME=$T/home
	mkdir -p "$HOME"
	printf '[user]\n\tname = A Developer\n\temail = dev@example.org\n' >"$HOME/.gitconfig"
	export OUT=$T/out CI_CACHE=$T/cache PATCHES=$T/top/patches SERIES=$T/top/series OVERLAY=$T/top
	unset TREE KSRC RESULTS STAGE GIT_DIR GIT_WORK_TREE
	K=$OUT/tree
	mkdir -p "$T/top" "$OUT"
	me_name=$(git -C "$TOP" config user.name)
	me_mail=$(git -C "$TOP" config user.email)
}

ci() { bash "$TOP/ci/run" "$@"; }

# kernel DIR: a repository with the base commit and the tag v1.0.
kernel() {
	mkdir -p "$1"/{mm,include/linux,scripts/coccinelle/free,tools/docs,tools/testing/selftests/mm}
	(
		cd "$1" || exit
		for f in COPYING CREDITS Kbuild README; do echo "$f" >"$f"; done
		printf 'MM\nM:\tA Maintainer <m@example.org>\nL:\tlist@example.org\nF:\tmm/\n' >MAINTAINERS
		seq -f 'extern int line%g;' 20 >mm/memory.c
		printf 'static inline int unused(void)\n{\n\tint old_warning;\n\treturn 0;\n}\n' >>mm/memory.c
		printf 'int mm;\n' >include/linux/mm.h
		printf 'TEST_GEN_FILES += aa\nTEST_GEN_FILES += cc\n' >tools/testing/selftests/mm/Makefile
		cat >Makefile <<-'MAKE'
		MAKEFLAGS += -rR
		Makefile: ;
		olddefconfig: ;
		%.o: FORCE; @mkdir -p $(O)/$(@D) && $(CC) -Wall -c $*.c -o $(O)/$@ && $(CHECK) $(CF) $*.c
		FORCE:
		MAKE
		cat >scripts/get_maintainer.pl <<-'PL'
		my $lists = grep { $_ eq "--nom" } @ARGV;
		print $lists ? "list\@example.org\n" : "A Maintainer <m\@example.org>\n";
		PL
		cat >scripts/checkpatch.pl <<-'PL'
		my $f = pop @ARGV; open(my $h, "<", $f);
		while (<$h>) { print "$f:$.: CHECK:BAD_STYLE: bad style\n" if /^\+.*badstyle/; }
		PL
		cat >tools/docs/kernel-doc <<-'SH'
		#!/bin/sh
		grep -n 'baddoc' "${3}" | sed "s|^\([0-9]*\).*|Warning: $3:\1 bad doc|"
		SH
		chmod +x tools/docs/kernel-doc
		cat >scripts/coccinelle/free/ifnullfree.cocci <<-'COCCI'
		/// A NULL check that is not needed.
		virtual report
		@r@
		expression E;
		position p;
		@@
		* if (E) kfree@p(E);
		@script:python depends on report@
		p << r.p;
		@@
		coccilib.report.print_report(p[0], "not needed")
		COCCI
		git init -q -b master .
		git add -A
		commit "base"
		git tag v1.0
	)
}

# commit SUBJECT: all changes in the current directory, by whom this repository is.
commit() {
	git add -A
	GIT_AUTHOR_NAME=$me_name GIT_AUTHOR_EMAIL=$me_mail GIT_COMMITTER_NAME=x GIT_COMMITTER_EMAIL=x@example.org \
		git commit -q -m "$1" -m "${2:-Why it is done.}"
}

# tree: a kernel as the stage tree leaves it, and the header of series.
tree() {
	kernel "$K"
	git -C "$K" tag ci-base
	git -C "$K" checkout -q -b series
	header "$(git -C "$K" rev-parse HEAD)"
}

header() { printf '# base-commit: %s\n# base-tag: v1.0\n# base-debian: linux-source-1.0 1.0-1\n' "$1" >"$SERIES"; }

# series: two topics, exported: 1-first (a change, a new file), 2-second (a change).
series() {
	tree
	(
		cd "$K" || exit
		sed -i 's/line3;/three;/' mm/memory.c
		commit "mm: three"
		echo 'extern int added;' >mm/added.c
		sed -i '/^F:/aF:\tmm/added.c' MAINTAINERS
		commit "mm: add a file"
		git tag topic/1-first
		sed -i 's/line17;/seventeen;/' mm/memory.c
		commit "mm: seventeen"
		git tag topic/2-second
	)
	mkdir -p "$PATCHES"/{1-first,2-second}
	printf 'mm: the first topic\n\nAbout it.\n' >"$PATCHES/1-first/cover-letter"
	printf 'mm: the second topic\n\nAbout it.\n' >"$PATCHES/2-second/cover-letter"
	printf 'F:\tmm/added.c\n' >"$OVERLAY/MAINTAINERS-snippet"
	ci export 2>"$T/export.log"
}

# applied: series, and ci apply; done once for all tests of a file.
applied() {
	local kept=$BATS_FILE_TMPDIR/applied
	if [[ ! -d $kept ]]; then
		series
		ci apply
		cp -a "$T" "$kept.new"
		mv "$kept.new" "$kept"
	else
		rm -rf "$T"
		cp -a "$kept" "$T"
	fi
}

# red PATTERN...: the last `run` failed with 1, and each pattern is in its output.
red() {
	local p
	echo "$output"
	[[ $status -eq 1 ]]
	for p in "$@"; do [[ $output == *"$p"* ]]; done
}
