# shellcheck shell=bash
# Sourced by every stage and by ci/run, after "set -euo pipefail".
#
# Places     TOP OUT TREE KSRC PATCHES SERIES OVERLAY RESULTS
# Refs       BASE_REF SERIES_REF TOPIC_REFS       of the kernel tree, see tree_refs
# Exit       E_FAIL E_HARNESS E_SKIP; fail, harness_error, skip
# Messages   log, warn (stderr, "stage: text")
# Commands   need CMD...; run_long LABEL LOGFILE CMD...; kgit ARGS...; kgit_worktree DIR COMMIT; kmake BUILD_DIR ARGS...
# Arch       facts ARCH; build_dir ARCH VARIANT; config_fragments VARIANT; arch_skip POINT CMD...
# TAP        tap_begin NAME; tap_ok T; tap_not_ok T [DIAG]; tap_skip T REASON; tap_end
#            One flat TAP file per stage, $RESULTS/NAME.tap, one top-level point per test and
#            one plan line; ci/lib/tally.sh sums them all.

TOP=${TOP:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
OUT=${OUT:-$TOP/out}
[[ $OUT == /* ]] || OUT=$PWD/$OUT
TREE=${TREE:-$OUT/tree}
KSRC=${KSRC:-$TREE}
PATCHES=${PATCHES:-$TOP/patches}
SERIES=${SERIES:-$TOP/series}
OVERLAY=${OVERLAY:-$TOP}
RESULTS=${RESULTS:-$OUT/results}
CACHE=${CI_CACHE:-${XDG_CACHE_HOME:-${HOME:-$OUT}/.cache}/kernel-ci}
STAGE=${STAGE:-$(basename "${0%.sh}")}
JOBS=${JOBS:-$(nproc)}
E_FAIL=1 E_HARNESS=2 E_SKIP=4
export TOP OUT TREE KSRC PATCHES SERIES OVERLAY RESULTS CACHE STAGE JOBS

# ci/run may be called from make, from a git hook, or with exotic settings.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES GNUMAKEFLAGS CDPATH GREP_OPTIONS KBUILD_OUTPUT
# shellcheck disable=SC2046
unset $(git rev-parse --local-env-vars 2>/dev/null || true)
unset "${!GIT_AUTHOR_@}" "${!GIT_COMMITTER_@}"
export LC_ALL=C

log() { printf '%s: %s\n' "$STAGE" "$*" >&2; }
warn() { printf '%s: WARNING: %s\n' "$STAGE" "$*" >&2; }
fail() { printf '%s: FAIL: %s\n' "$STAGE" "$*" >&2; exit "$E_FAIL"; }
harness_error() { printf '%s: ERROR: %s\n' "$STAGE" "$*" >&2; exit "$E_HARNESS"; }
skip() { printf '%s: SKIP: %s\n' "$STAGE" "$*" >&2; exit "$E_SKIP"; }

# usage_error MSG: a wrong command line is a harness error too.
usage_error() { harness_error "$* (see: ci/run $STAGE --help)"; }

# need_arg "$@": an option that wants a value has one.
need_arg() { [[ $# -ge 2 && -n $2 ]] || usage_error "option $1 needs a value"; }

need() {
	local c
	for c in "$@"; do
		command -v "$c" >/dev/null 2>&1 ||
			harness_error "command '$c' is missing; to install what is needed: ci/run deps"
	done
}

_elapsed() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

run_long() {
	local label=$1 logfile=$2 pid start now next rc=0 last
	shift 2
	mkdir -p "$(dirname "$logfile")"
	start=$SECONDS next=$((SECONDS + ${PROGRESS_EVERY:-10}))
	"$@" >"$logfile" 2>&1 </dev/null &
	pid=$!
	# shellcheck disable=SC2064
	trap "kill $pid 2>/dev/null; wait $pid 2>/dev/null; exit 130" INT TERM
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		now=$SECONDS
		if ((now >= next)); then
			next=$((now + ${PROGRESS_EVERY:-10}))
			last=$(tail -c 400 "$logfile" | tr '\r' '\n' | tr -cd '[:print:]\n' |
				sed '/^[[:space:]]*$/d' | tail -n 1 | cut -c1-100) || last=
			printf '%s: %s %s | %s\n' "$STAGE" "$label" "$(_elapsed $((now - start)))" "$last" >&2
		fi
	done
	wait "$pid" || rc=$?
	trap - INT TERM
	if ((rc)); then
		printf '%s: %s failed with status %d after %s; last lines of %s:\n' \
			"$STAGE" "$label" "$rc" "$(_elapsed $((SECONDS - start)))" "$logfile" >&2
		tail -n 40 "$logfile" | sed 's/^/    /' >&2
	else
		printf '%s: %s done in %s\n' "$STAGE" "$label" "$(_elapsed $((SECONDS - start)))" >&2
	fi
	return "$rc"
}

facts() {
	local f=$TOP/ci/configs/arch/$1.facts
	[[ $1 =~ ^[a-z0-9_-]+$ && -f $f ]] || harness_error "unknown architecture '$1' (no ci/configs/arch/$1.facts)"
	ARCH=$1
	# shellcheck disable=SC2034
	DEBIAN=
	# shellcheck source=/dev/null
	. "$f"
}

# config_fragments VARIANT: the files that make up the configuration, after facts. What a test asks for is in the
# selftests' own list; the small kernels have a shorter one.
config_fragments() {
	local f
	case $GUEST in
	full) printf '%s\n' "$TOP/ci/configs/base.config" "$TOP/ci/configs/arch/$ARCH.config" \
		"$KSRC/tools/testing/selftests/mm/config" ;;
	*) printf '%s\n' "$TOP/ci/configs/small.config" "$TOP/ci/configs/arch/$ARCH.config" ;;
	esac
	[[ $1 != normal ]] || return 0
	for f in "$TOP/ci/configs/$1.config" "$TOP/ci/configs/arch/$ARCH-$1.config"; do
		if [[ -f $f ]]; then printf '%s\n' "$f"; fi
	done
}

# arch_skip POINT CMD...: another architecture's tools are not on each machine. The first that is missing makes an end
# of the stage, as a skipped test; this machine's own have to be there, see need.
arch_skip() {
	local point=$1 c missing=
	shift
	for c in "$@"; do
		command -v "$c" >/dev/null 2>&1 || { missing="command '$c' is missing"; break; }
	done
	if [[ -z $missing && $GUEST == small ]] && ! echo 'int main(void) { return 0; }' |
		"${CROSS_COMPILE}gcc" -static -x c -o /dev/null - >/dev/null 2>&1; then
		missing="${CROSS_COMPILE}gcc links no static program (no libc for $ARCH?)"
	fi
	[[ -n $missing ]] || return 0
	tap_begin "$point"
	tap_skip "$point" "NOT RUN: $missing; to install what is needed: ci/run deps --arch $ARCH"
	tap_end
	warn "=================================================================="
	warn "$point HAS NOT BEEN RUN: $missing"
	warn "=================================================================="
	skip "$missing; to install what is needed: ci/run deps --arch $ARCH"
}

build_dir() { printf '%s/build/%s-%s\n' "$OUT" "$1" "$2"; }

# The refs live in $TREE. A tree of its own has branch "series", tag "ci-base" and a tag
# "topic/<n>-<name>" at the last commit of each topic. A worktree of a user's repository has the same
# things below refs/worktree/, which belong to that worktree alone: nothing shows up among the user's
# branches and tags. SERIES_BRANCH is empty there (detached HEAD).
tree_refs() {
	if [[ -f $TREE/.git ]]; then
		BASE_REF=refs/worktree/ci-base SERIES_REF=refs/worktree/series
		TOPIC_REFS=refs/worktree/topic SERIES_BRANCH=
	else
		BASE_REF=refs/tags/ci-base SERIES_REF=refs/heads/series
		TOPIC_REFS=refs/tags/topic SERIES_BRANCH=series
	fi
	export BASE_REF SERIES_REF TOPIC_REFS SERIES_BRANCH
}
tree_refs

# git in $TREE, or in the directory that -C names, deaf to the configuration of whoever runs it: the
# same input has to give the same commits and the same patches everywhere.
kgit() {
	local dir=$TREE
	if [[ ${1-} == -C ]]; then dir=$2; shift 2; fi
	GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0 GIT_EDITOR=true \
		GIT_CEILING_DIRECTORIES="$OUT:$TOP" GIT_COMMITTER_NAME="${GIT_COMMITTER_NAME-series}" \
		GIT_COMMITTER_EMAIL="${GIT_COMMITTER_EMAIL-series@localhost}" \
		git -C "$dir" -c safe.directory='*' -c core.hooksPath=/dev/null -c core.autocrlf=false \
		-c core.fileMode=true -c core.attributesFile=/dev/null -c core.excludesFile=/dev/null \
		-c core.fsmonitor=false -c core.quotePath=false -c gc.auto=0 -c commit.gpgSign=false \
		-c tag.gpgSign=false -c tag.forceSignAnnotated=false -c diff.renames=true \
		-c diff.noprefix=false -c diff.mnemonicPrefix=false -c diff.algorithm=default \
		-c core.commentChar='#' -c advice.detachedHead=false -c init.defaultBranch=series \
		-c rerere.enabled=false -c maintenance.auto=false "$@"
}

# kgit_worktree DIR COMMIT: makes DIR a worktree of $TREE that has COMMIT, and nothing else that is tracked.
kgit_worktree() {
	local commit
	commit=$(kgit rev-parse -q --verify "$2^{commit}") || harness_error "no commit $2 in $TREE"
	kgit worktree prune
	if [[ ! -e $1/.git ]]; then
		run_long "worktree ${1##*/}" "$OUT/log/${1##*/}.log" kgit worktree add -f --detach "$1" "$commit" ||
			harness_error "git worktree failed"
	fi
	kgit -C "$1" checkout -q -f --detach "$commit"
}

# kmake BUILD_DIR ARGS...: kbuild of $KSRC into BUILD_DIR; facts ARCH before it, x86_64 otherwise.
kmake() {
	local build=$1
	shift
	[[ -n ${KERNEL_ARCH-} ]] || facts "${ARCH:-x86_64}"
	mkdir -p "$build"
	local cc="${CROSS_COMPILE-}gcc"
	command -v ccache >/dev/null 2>&1 && cc="$TOP/ci/lib/ccache.sh $cc"
	# Two copies of this repository share what ccache has. Without a preprocessor run, a miss costs a fifth less.
	CCACHE_BASEDIR=$TOP CCACHE_DEPEND=1 make -C "$KSRC" O="$build" ARCH="$KERNEL_ARCH" CROSS_COMPILE="${CROSS_COMPILE-}" CC="$cc" \
		KBUILD_BUILD_TIMESTAMP='2026-01-01' KBUILD_BUILD_USER=ci KBUILD_BUILD_HOST=ci \
		KBUILD_BUILD_VERSION=1 -j"$JOBS" "$@"
}

# series_header KEY: value of "# KEY: value" among the leading comments of the series file.
series_header() {
	[[ -f $SERIES ]] || return 0
	sed -n "/^[^#]/q; s/^# $1:[[:space:]]*//p" "$SERIES" | sed -n 1p
}

# topic_needs TOPIC: the topics that it does not apply without, one per line of patches/TOPIC/needs, in the order of the
# series. Fails where there is no such file.
topic_needs() {
	[[ -f $PATCHES/$1/needs ]] || return
	series_topics | grep -Fx -f "$PATCHES/$1/needs" || true
}

# shellcheck disable=SC2120
# series_patches [TOPIC]: the entries, "<n>-<topic>/NNNN-name.patch", in order.
series_patches() {
	[[ -f $SERIES ]] || return 0
	sed -e 's/#.*//' -e 's/[[:space:]].*$//' -e '/^$/d' "$SERIES" |
		if [[ -n ${1-} ]]; then grep "^$1/" || true; else cat; fi
}

# shellcheck disable=SC2119
series_topics() { series_patches | cut -d/ -f1 | uniq; }

need_tree() {
	if ! [[ -e $TREE/.git ]] || ! kgit rev-parse -q --verify "$BASE_REF^{commit}" >/dev/null 2>&1; then
		harness_error "no kernel tree in $TREE; make one: ci/run tree"
	fi
}

need_series() {
	need_tree
	kgit rev-parse -q --verify "$SERIES_REF^{commit}" >/dev/null 2>&1 ||
		harness_error "the series is not applied in $TREE; do: ci/run apply"
}

TAP_N=0 TAP_BAD=0 TAP_FILE=
tap_begin() {
	TAP_N=0 TAP_BAD=0 TAP_SKIPPED=0
	TAP_FILE=$RESULTS/$1.tap
	mkdir -p "$RESULTS"
	printf 'TAP version 13\n' | tee "$TAP_FILE"
}
_tap() { printf '%s\n' "$*" | tee -a "$TAP_FILE"; }
tap_ok() { _tap "ok $((++TAP_N)) - $1"; }
tap_skip() { TAP_SKIPPED=$((TAP_SKIPPED + 1)); _tap "ok $((++TAP_N)) - $1 # SKIP $2"; }
tap_not_ok() {
	TAP_BAD=$((TAP_BAD + 1))
	_tap "not ok $((++TAP_N)) - $1"
	if [[ -n ${2-} ]]; then _tap "# ${2//$'\n'/$'\n'# }"; fi
}
# tap_end: the plan; status 1 when a point was "not ok".
tap_end() {
	_tap "1..$TAP_N"
	((TAP_BAD == 0))
}
