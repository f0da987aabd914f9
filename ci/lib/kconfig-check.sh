#!/usr/bin/env bash
# Did every symbol that the fragments ask for survive "make olddefconfig"?
set -euo pipefail

usage() {
	cat <<'USAGE'
usage: kconfig-check.sh FRAGMENT... -- FINAL_CONFIG

A later fragment overrides an earlier one. A symbol that FINAL_CONFIG does not mention is "n".
A symbol wanted as a module may be built in only where a fragment says so, in a comment:
    # accept-y: CONFIG_NAME
Prints each mismatch. Exit status: 0 all there, 1 a mismatch, 2 wrong usage or unreadable file.
USAGE
}

fragments=() final=
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	--) final=${2-}; (($# == 2)) || final=; break ;;
	*) fragments+=("$1"); shift ;;
	esac
done
if [[ -z $final || ${#fragments[@]} -eq 0 ]]; then
	usage >&2
	exit 2
fi
for f in "${fragments[@]}" "$final"; do
	if ! [[ -f $f && -r $f ]]; then
		echo "kconfig-check: cannot read $f" >&2
		exit 2
	fi
done

awk '
function bad_line() {
	printf "kconfig-check: %s:%d: not a config line: %s\n", FILENAME, FNR, $0 > "/dev/stderr"
	broken = 1
}
{ sub(/\r$/, ""); sub(/[ \t]+$/, "") }
!final && /^#[ \t]*accept-y:/ {
	sub(/^#[ \t]*accept-y:[ \t]*/, "")
	sub(/[ \t].*/, "")
	accept[$0] = 1
	next
}
/^# CONFIG_[A-Za-z0-9_]+ is not set$/ { name = $2; value = "n" }
/^CONFIG_[A-Za-z0-9_]+=/ { i = index($0, "="); name = substr($0, 1, i - 1); value = substr($0, i + 1) }
name == "" && !final && !/^[ \t]*(#.*)?$/ { bad_line() }
name != "" {
	if (!final) {
		if (!(name in want)) order[++n] = name
		want[name] = value
		where[name] = FILENAME
	} else
		have[name] = value
	name = ""
}
END {
	if (broken) exit 2
	for (i = 1; i <= n; i++) {
		name = order[i]
		value = (name in have) ? have[name] : "n"
		if (value == want[name]) continue
		if (want[name] == "m" && value == "y" && name in accept) {
			printf "note: %s is built in, wanted =m (%s)\n", name, where[name]
			continue
		}
		printf "%s: wanted =%s (%s), got %s\n", name, want[name], where[name],
			(name in have) ? "=" value : "nothing (n)"
		bad = 1
	}
	exit bad
}' "${fragments[@]}" final=1 "$final"
