# shellcheck shell=bash
# make_mbox TOPIC OUTFILE [REROLL]: prints the Message-ID that starts the thread.
# Wants the series applied: shortlog and diffstat of the cover letter come from the commits.
make_mbox() {
	local topic=$1 out=$2 reroll=${3:-1} entries=() from to
	mapfile -t entries < <(series_patches "$topic")
	((${#entries[@]})) || harness_error "no topic '$topic' in $SERIES"
	to=$(kgit rev-parse "$TOPIC_REFS/$topic^{commit}")
	from=$(kgit rev-parse "$to~${#entries[@]}")
	mkdir -p "$(dirname "$out")"
	{
		kgit -c shortlog.wrap=false shortlog --no-merges "$from..$to"
		kgit diff --stat=72 --summary "$from" "$to"
	} >"$out.tail"
	python3 "$TOP/ci/lib/mbox.py" --topic "$topic" --reroll "$reroll" \
		--base "$(kgit rev-parse "$BASE_REF^{commit}")" --cover "$PATCHES/$topic/cover-letter" \
		--tail "$out.tail" --out "$out" "${entries[@]/#/$PATCHES/}"
	rm -f "$out.tail"
}

# maintainer_tree COMMIT DIR: as much of a kernel tree as get_maintainer.pl wants to see.
maintainer_tree() {
	local f
	rm -rf "$2"
	mkdir -p "$2"/{Documentation,arch,include,drivers,fs,init,ipc,kernel,lib,scripts}
	for f in COPYING CREDITS Kbuild MAINTAINERS Makefile README .mailmap .get_maintainer.ignore \
		.get_maintainer.conf scripts/get_maintainer.pl; do
		kgit show "$1:$f" >"$2/$f" 2>/dev/null || rm -f "$2/$f"
	done
}

# maintainers DIR to|cc PATCH...: addresses, one per line.
maintainers() {
	local dir=$1 which=(--nol) files=()
	[[ $2 == to ]] || which=(--nom --nor)
	shift 2
	mapfile -t files < <(realpath -- "$@")
	(cd "$dir" && perl scripts/get_maintainer.pl --no-git --no-git-fallback --no-git-blame --norolestats \
		--nofixes "${which[@]}" -- "${files[@]}")
}
