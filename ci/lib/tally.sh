#!/bin/bash
# tally.sh FILE...: sum of the TAP points in the files; the last line is "N passed, N failed, N skipped".
# Status 1 when anything failed, when a plan is missing or wrong, or when there is no point at all.
set -euo pipefail
(($#)) || { echo "usage: tally.sh FILE..." >&2; exit 2; }
awk '
function close_file() {
	if (file == "") return
	if (plan < 0) { note = note "  " file ": no plan\n"; bad++ }
	else if (plan != points) { note = note "  " file ": planned " plan ", found " points "\n"; bad++ }
	name = file; sub(/.*\//, "", name); sub(/\.tap$/, "", name)
	printf "%-32s %6d passed %5d failed %5d skipped\n", name, good, bad, skipped
	G += good; B += bad; S += skipped
}
function open_file(f) { close_file(); file = f; plan = -1; points = good = bad = skipped = 0 }
FNR == 1 { open_file(FILENAME) }
{ sub(/\r$/, "") }
/^1\.\.[0-9]+/ {
	if (plan >= 0) { note = note "  " file ": more than one plan\n"; bad++ }
	plan = substr($1, 4) + 0
	if (plan == 0 && tolower($0) ~ /# *skip/) skipped++
}
/^not ok([ \t]|$)/ { points++; bad++; note = note "  " file ": " $0 "\n"; next }
/^ok([ \t]|$)/ { points++; if (tolower($0) ~ /# *skip/) skipped++; else good++; next }
/^Bail out!/ { bad++; note = note "  " file ": " $0 "\n" }
END {
	close_file()
	for (i = 1; i < ARGC; i++) if ((getline line < ARGV[i]) <= 0) { note = note "  " ARGV[i] ": empty or missing\n"; B++ }
	if (G + B + S == 0) { note = note "  no test ran\n"; B++ }
	if (note != "") printf "\nnot ok:\n%s", note
	printf "\n%d passed, %d failed, %d skipped\n", G, B, S
	exit B > 0
}' "$@"
