#!/bin/bash
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"
# shellcheck source=ci/lib/apt.sh
. "$TOP/ci/lib/apt.sh"
# shellcheck source=ci/lib/am.sh
. "$TOP/ci/lib/am.sh"

usage() {
	cat <<'END'
usage: ci/run tree [--linux DIR] [--base REV] [--base-any] [--deb FILE] [--no-git] [--onto newest]
                   [--force] [--remove]

Makes out/tree at the base that the header of `series` names. Nothing is done when it is there.

  --linux DIR    take it from your git tree: out/tree becomes a detached worktree of DIR, whose
                 own checkout, branches and tags stay as they are
  --base REV     with --linux: take REV of DIR as the base, whatever `series` says
  --base-any     accept a base other than the one that `series` names (with --linux: HEAD of DIR)
  --deb FILE     take it from this linux-source package instead of downloading one
  --no-git       do not try to fetch the base tag with git
  --onto newest  the newest linux-source of experimental, sid and trixie-backports
  --remove       remove out/tree and what it left in your repository
  --force        make it anew although it is there; commits in out/tree are lost

Without --linux: a depth-1 git fetch of the base tag where the network allows it, else Debian's
source package through apt, as a commit that is the same on each machine.
Environment: OUT; CI_LINUX_URL, the git repository to fetch the base tag from.
END
}

linux='' base='' any='' deb='' nogit='' onto='' force='' remove=''
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	--linux) need_arg "$@"; linux=$2; shift ;;
	--base) need_arg "$@"; base=$2; shift ;;
	--base-any) any=1 ;;
	--deb) need_arg "$@"; deb=$2; shift ;;
	--no-git) nogit=1 ;;
	--onto) need_arg "$@"; onto=$2; shift ;;
	--force) force=1 ;;
	--remove) remove=1 ;;
	*) usage_error "unknown option $1" ;;
	esac
	shift
done
[[ -z $onto || $onto == newest ]] || usage_error "--onto takes only 'newest'"
[[ -z $base || -n $linux ]] || usage_error "--base needs --linux"
[[ -z $linux || -z $deb$onto ]] || usage_error "--linux excludes --deb and --onto"
[[ -z $deb || -z $onto ]] || usage_error "--deb excludes --onto"
[[ -z $base && -z $onto ]] || any=1

want_commit=$(series_header base-commit)
want_tag=$(series_header base-tag)
want_debian=$(series_header base-debian)
url=${CI_LINUX_URL:-https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git}
need git
mkdir -p "$OUT"

# What was asked for, to tell whether the tree that is there came from the same request.
request="linux=${linux:+$(realpath "$linux")} base=$base any=$any deb=${deb:+$(realpath "$deb")} onto=$onto want=$want_commit"
stamp=$OUT/tree.stamp

remove_tree() {
	local common
	if [[ -f $TREE/.git ]]; then
		common=$(kgit rev-parse --path-format=absolute --git-common-dir 2>/dev/null) || common=
	fi
	rm -rf "$TREE" "$OUT"/{check-tree,each-tree,apply} "$stamp"
	if [[ -n ${common-} && -d $common ]]; then unregister_worktrees "$common"; fi
}

if [[ -z $force$remove ]] && have=$(kgit rev-parse -q --verify "$BASE_REF^{commit}" 2>/dev/null); then
	tag=$(kgit rev-parse -q --verify "refs/tags/${want_tag:-none}^{commit}" 2>/dev/null) || tag=none
	if [[ -f $stamp && $(sed -n 1p "$stamp") == "$request" ]] ||
		[[ -z $linux$onto$any && ( $have == "$want_commit" || $have == "$tag" ) ]]; then
		log "the tree is there, base $have ($(sed -n 2p "$stamp" 2>/dev/null))"
		exit 0
	fi
fi

# A tree with work that no patch holds is not thrown away without being asked.
guard() {
	local tip base_have
	[[ -e $TREE && -z $force ]] || return 0
	tree_refs
	tip=$(kgit rev-parse -q --verify HEAD 2>/dev/null) || return 0
	base_have=$(kgit rev-parse -q --verify "$BASE_REF^{commit}" 2>/dev/null) || return 0
	if [[ $tip != "$base_have" && $tip != "$(cat "$OUT/apply/tip" 2>/dev/null)" ]]; then
		harness_error "$TREE has commits that are not from 'apply'; export them, or use --force"
	fi
	if [[ -n $(kgit status --porcelain --untracked-files=no 2>/dev/null | sed -n 1p) ]]; then
		harness_error "$TREE has changes that are not committed; commit and export them, or use --force"
	fi
}
guard
if [[ -n $remove ]]; then
	remove_tree
	exit 0
fi

# accept COMMIT TAG_COMMIT WHERE: the rule about bases.
accept() {
	if [[ -n $any || -z $want_commit || $1 == "$want_commit" || ( -n $2 && $1 == "$2" ) ]]; then return 0; fi
	harness_error "$3 gives base $1, but the series is for $want_commit (${want_tag:-no tag}); use --base-any to go on all the same"
}

# finish WHAT: refs, stamp.
finish() {
	local commit=$1 what=$2
	tree_refs
	kgit update-ref "$BASE_REF" "$commit"
	printf '%s\n%s\n' "$request" "$what" >"$stamp"
	log "base $commit ($what) in $TREE"
	if [[ -n $want_commit && $commit != "$want_commit" ]]; then
		warn "this is not the base-commit that the series names, $want_commit"
	fi
}

from_linux() {
	local commit tag='' why
	[[ -d $linux ]] || harness_error "--linux $linux: no such directory"
	# With the user's own configuration: git's guard against repositories of other owners stays.
	why=$(git -C "$linux" rev-parse --git-dir 2>&1 >/dev/null) ||
		harness_error "--linux $linux: not usable as a git repository: $why"
	if [[ -n $want_tag ]]; then
		tag=$(kgit -C "$linux" rev-parse -q --verify "refs/tags/$want_tag^{commit}") || tag=
	fi
	if [[ -n $base ]]; then
		commit=$(kgit -C "$linux" rev-parse -q --verify "$base^{commit}") ||
			harness_error "--linux $linux has no revision $base"
	elif [[ -n $want_commit ]] && kgit -C "$linux" cat-file -e "$want_commit^{commit}" 2>/dev/null; then
		commit=$want_commit
	elif [[ -n $tag ]]; then
		commit=$tag
	elif [[ -n $any || -z $want_commit ]]; then
		commit=$(kgit -C "$linux" rev-parse -q --verify 'HEAD^{commit}') ||
			harness_error "--linux $linux has no commit"
	else
		harness_error "--linux $linux has neither the base of the series, $want_commit, nor the tag ${want_tag:-(none named)}; fetch one, or name a base of your own with --base REV or --base-any"
	fi
	accept "$commit" "$tag" "--linux $linux"
	remove_tree
	unregister_worktrees "$(kgit -C "$linux" rev-parse --path-format=absolute --git-common-dir)"
	run_long "worktree of $linux" "$OUT/log/tree.log" \
		kgit -C "$linux" worktree add --detach "$TREE" "$commit" ||
		harness_error "git worktree failed"
	finish "$commit" "worktree of $linux"
}

from_git() {
	local commit
	[[ -n $want_tag ]] || return 1
	log "asking for $want_tag with git (20 s at most)"
	if ! timeout 20 git ls-remote --exit-code "$url" "refs/tags/$want_tag" >/dev/null 2>"$OUT/log/ls-remote.log"; then
		log "not to be had with git: $(tail -n 1 "$OUT/log/ls-remote.log")"
		return 1
	fi
	remove_tree
	mkdir -p "$TREE"
	kgit init -q --object-format=sha1 .
	kgit config gc.auto 0
	if ! run_long "git fetch of $want_tag" "$OUT/log/fetch.log" \
		timeout 1800 git -C "$TREE" fetch --progress --depth 1 "$url" "refs/tags/$want_tag:refs/tags/$want_tag"; then
		rm -rf "$TREE"
		return 1
	fi
	commit=$(kgit rev-parse "refs/tags/$want_tag^{commit}")
	accept "$commit" "$commit" "$url"
	run_long checkout "$OUT/log/checkout.log" kgit checkout -q -B series "$commit" || harness_error "checkout failed"
	finish "$commit" "$want_tag with git"
}

no_source() { harness_error "no source of the kernel is left: use --linux or --deb"; }

# candidates REGEX: "version package", newest version first, of the packages that match.
candidates() {
	local v p list=() names=() i j tmp
	mapfile -t names < <(apt_ apt-cache pkgnames linux-source- | grep -xE "$1")
	((${#names[@]})) || return 0
	# madison knows all versions of all suites, whatever apt would prefer.
	while read -r p v; do list+=("$v $p"); done < <(
		apt_ apt-cache madison "${names[@]}" | awk -F ' *[|] *' '{ sub(/^ +/, ""); print $1, $2 }' | sort -u)
	for ((i = 1; i < ${#list[@]}; i++)); do
		for ((j = i; j > 0; j--)); do
			dpkg --compare-versions "${list[j]%% *}" gt "${list[j - 1]%% *}" || break
			tmp=${list[j]} list[j]=${list[j - 1]} list[j - 1]=$tmp
		done
	done
	((${#list[@]} == 0)) || printf '%s\n' "${list[@]}"
}

# download PACKAGE VERSION: sets deb.
download() {
	deb=$APT/archives/$1_${2//:/%3a}_all.deb
	if [[ -f $deb ]] && dpkg-deb -I "$deb" >/dev/null 2>&1; then return 0; fi
	run_long "download of $1 $2" "$OUT/log/download.log" \
		env -C "$APT/archives" bash -c "$(declare -f apt_); APT=$(printf %q "$APT") APT_ARCH=$APT_ARCH; apt_ apt-get download $(printf %q "$1=$2")" ||
		return 1
	[[ -f $deb ]] || harness_error "apt-get download did not leave $deb"
}

from_debian() {
	local package version line cached
	if [[ -n $onto ]]; then
		apt_setup trixie-backports sid experimental || no_source
		line=$(candidates 'linux-source-[0-9.]+' | sed -n 1p)
		[[ -n $line ]] || harness_error "no suite offers a linux-source package"
		version=${line% *} package=${line#* }
		log "newest: $package $version"
		download "$package" "$version" || harness_error "download of $package $version failed"
	else
		[[ -n $want_debian ]] || harness_error "the header of $SERIES names no base-debian"
		package=${want_debian% *} version=${want_debian#* }
		cached=$APT/archives/${package}_${version//:/%3a}_all.deb
		if [[ -f $cached ]] && dpkg-deb -I "$cached" >/dev/null 2>&1; then
			deb=$cached
		else
			apt_setup trixie-backports || no_source
			if candidates "${package//./\\.}" | grep -xF "$version $package" >/dev/null && download "$package" "$version"; then
				:
			else
				line=$(candidates "${package//./\\.}" | sed -n 1p)
				[[ -n $line ]] || harness_error "trixie-backports has no $package any more; use --onto newest, --linux or --deb"
				version=${line% *}
				warn "=================================================================="
				warn "$want_debian is gone from the archive."
				warn "The tree is $package $version instead: another base than the one"
				warn "that the series names. Patches may not apply; hashes differ."
				warn "=================================================================="
				any=1
				download "$package" "$version" || harness_error "download of $package $version failed"
			fi
		fi
	fi
	from_deb
}

unpack() {
	local src=$1 dir=$2
	mkdir -p "$dir"
	dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$src.tar.xz" | xz -dc -T0 |
		tar -x --strip-components=1 --no-same-owner -C "$dir"
}

from_deb() {
	local name version commit tree new=$OUT/tree.new
	need dpkg-deb tar xz
	[[ -f $deb ]] || harness_error "--deb $deb: no such file"
	name=$(dpkg-deb -f "$deb" Package) || harness_error "$deb is not a Debian package"
	version=$(dpkg-deb -f "$deb" Version)
	[[ $name == linux-source-* ]] || harness_error "$deb holds $name, not linux-source"
	rm -rf "$new"
	run_long "unpacking $name $version" "$OUT/log/unpack.log" unpack "$name" "$new" ||
		harness_error "unpacking $deb failed"
	kgit -C "$new" init -q --object-format=sha1 .
	kgit -C "$new" config gc.auto 0
	# The low bigFileThreshold streams all blobs into one pack: fast, and no 95000 loose objects.
	run_long "making the commit" "$OUT/log/commit.log" \
		kgit -C "$new" -c core.fsync=none -c core.bigFileThreshold=1 -c core.compression=1 add -A -f ||
		harness_error "git add failed"
	tree=$(kgit -C "$new" write-tree)
	commit=$(GIT_AUTHOR_NAME=linux-source GIT_AUTHOR_EMAIL=linux-source@localhost \
		GIT_COMMITTER_NAME=linux-source GIT_COMMITTER_EMAIL=linux-source@localhost \
		GIT_AUTHOR_DATE='1767225600 +0000' GIT_COMMITTER_DATE='1767225600 +0000' \
		kgit -C "$new" -c i18n.commitEncoding=UTF-8 commit-tree -m "$name $version" "$tree")
	if [[ -z $any && -n $want_commit && $commit != "$want_commit" ]]; then
		rm -rf "$new"
	fi
	accept "$commit" '' "$name $version"
	kgit -C "$new" update-ref refs/heads/series "$commit"
	kgit -C "$new" symbolic-ref HEAD refs/heads/series
	kgit -C "$new" update-index -q --refresh || true
	remove_tree
	mv "$new" "$TREE"
	finish "$commit" "$name $version"
}

mkdir -p "$OUT/log"
if [[ -n $linux ]]; then
	from_linux
elif [[ -n $deb ]]; then
	from_deb
elif [[ -n $onto ]]; then
	from_debian
elif [[ -n $nogit ]] || ! from_git; then
	from_debian
fi
