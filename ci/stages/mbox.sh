#!/bin/bash
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"
# shellcheck source=ci/lib/mbox.sh
. "$TOP/ci/lib/mbox.sh"

usage() {
	cat <<'END'
usage: ci/run mbox [--topic DIR]... [--reroll N]

Makes out/mbox/TOPIC.mbox for each topic (or those named): the cover letter (patches/TOPIC/cover-letter:
its first line is the subject) as 0/N with shortlog, diffstat and base, the patches as replies to it.
TOPIC.to and TOPIC.cc hold the addresses that scripts/get_maintainer.pl gives. To send:

  git send-email --to="$(paste -sd, out/mbox/TOPIC.to)" --cc="$(paste -sd, out/mbox/TOPIC.cc)" \
      --suppress-cc=all --confirm=always out/mbox/TOPIC.mbox

  --topic DIR    only this topic, a directory of patches/; may be repeated
  --reroll N     [PATCH vN ...]
END
}

topics=() reroll=1
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	--topic) need_arg "$@"; topics+=("${2#patches/}"); shift ;;
	--reroll) need_arg "$@"; reroll=$2; shift ;;
	*) usage_error "unknown option $1" ;;
	esac
	shift
done
[[ $reroll =~ ^[1-9][0-9]*$ ]] || usage_error "--reroll wants a number"
need git python3 perl
need_series
((${#topics[@]})) || mapfile -t topics < <(series_topics)
((${#topics[@]})) || skip "the series is empty"

mkdir -p "$OUT/mbox"
maintainer_tree "$(kgit rev-parse "$SERIES_REF")" "$OUT/mbox/.kernel"
for topic in "${topics[@]}"; do
	topic=${topic%/}
	[[ -f $PATCHES/$topic/cover-letter ]] || warn "patches/$topic has no cover-letter"
	id=$(make_mbox "$topic" "$OUT/mbox/$topic.mbox" "$reroll")
	mapfile -t files < <(series_patches "$topic" | sed "s|^|$PATCHES/|")
	maintainers "$OUT/mbox/.kernel" to "${files[@]}" >"$OUT/mbox/$topic.to"
	maintainers "$OUT/mbox/.kernel" cc "${files[@]}" >"$OUT/mbox/$topic.cc"
	log "$OUT/mbox/$topic.mbox: ${#files[@]} patches, <$id>, $(wc -l <"$OUT/mbox/$topic.to") To, $(wc -l <"$OUT/mbox/$topic.cc") Cc"
done
rm -rf "$OUT/mbox/.kernel"
