#!/usr/bin/env bats
# What ci/run regress makes of the logs of its guests and the base's record: what is as on the base passes, and each
# kind of regression is red for its own reason.

# shellcheck disable=SC2016,SC2030,SC2031
bats_require_minimum_version 1.5.0
setup() {
	TOP=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
	G=$BATS_TEST_DIRNAME/golden/regress
	T=$BATS_TEST_TMPDIR
	mkdir "$T/logs"
	cp "$G"/*.ktap "$T/logs/"
	printf '# why\nhmm check\nksm check\nthp all\npfnmap out it is run elsewhere\n' >"$T/list"
	: >"$T/flaky"
	{ sed -e 's/BASE/b45e/' -e 's/CONFIG/c0f1/' "$G/base"; printf 'pass\tthp\td\n'; } >"$T/base"
	thp_log pass
	token=ok timeout=no code=0
}

thp_log() {
	{
		printf 'TAP version 13\n# running ./d\n'
		case $1 in pass) echo 'ok 1 d' ;; fail) echo 'not ok 1 d # exit=1' ;; skip) echo 'ok 1 d # SKIP' ;; esac
		printf '1..1\n'
	} >"$T/logs/thp.ktap"
}

# guest CATEGORY...: the logs of one; it dies in one that has CATEGORY.die, so many lines of output are seen.
guest() {
	local c
	echo '[    0.000000] Linux version 7.3.4' >"$T/console.log"
	: >"$T/ktap.log"
	for c; do
		printf '[    5.000000] ci: category %s\n' "$c" >>"$T/console.log"
		printf '\n# ci: category %s 5.00\n' "$c" >>"$T/ktap.log"
		if [[ -f $T/logs/$c.console ]]; then cat "$T/logs/$c.console" >>"$T/console.log"; fi
		if [[ -f $T/logs/$c.die ]]; then
			head -n "$(<"$T/logs/$c.die")" "$T/logs/$c.ktap" >>"$T/ktap.log"
			return
		fi
		cat "$T/logs/$c.ktap" >>"$T/ktap.log"
		printf '\n# ci: status %s %s 8.50\n' "$c" "$code" >>"$T/ktap.log"
	done
}

split() {
	python3 "$TOP/ci/lib/regress.py" split --ktap "$T/ktap.log" --console "$T/console.log" --out "$T/kept" \
		--token "$token" --timeout "$timeout"
}

judge() {
	run python3 "$TOP/ci/lib/regress.py" judge --results "$T/kept" --base "$T/base" --base-commit b45e --config c0f1 \
		--list "$T/list" --flaky "$T/flaky" --tap "$T/out.tap" --categories "${categories:-hmm ksm thp}" "$@"
	echo "$output"
	if [[ $status -lt 2 ]]; then
		tally=0
		bash "$TOP/ci/lib/tally.sh" "$T/out.tap" >"$T/tally" || tally=1
		[[ $tally -eq $status ]]
	fi
}

regress() {
	guest hmm ksm thp
	split
	judge "$@"
}
bad() { grep -qF -- " - $1" <(grep '^not ok' "$T/out.tap"); }
only_bad() { [[ $(grep -c '^not ok' "$T/out.tap") -eq $1 ]]; }

@test "what is as on the base passes; what fails there is skipped" {
	regress
	[[ $status -eq 0 ]]
	grep -q '^ok [0-9]* - hmm/test_hmm.sh_smoke:hmm.hmm_device_private.migrate$' "$T/out.tap"
	grep -q '^ok [0-9]* - ksm/not compared # SKIP 2 points fail on the base, 1 points are skipped on the base$' \
		"$T/out.tap"
	grep -q '^ok [0-9]* - pfnmap/left out # SKIP it is run elsewhere$' "$T/out.tap"
	grep -q '^ok [0-9]* - thp/d$' "$T/out.tap"
	[[ $output == *"hmm "*"4 "*"4    0 "* ]]
}

@test "a point that passes on the base and fails is red" {
	sed -i 's/^# ok 2 hmm/# not ok 2 hmm/' "$T/logs/hmm.ktap"
	regress
	[[ $status -eq 1 && $output == *"passes on the base, fails here"* ]]
	bad hmm/test_hmm.sh_smoke:hmm.hmm_device_private.migrate
	only_bad 1
}

@test "a point that has vanished is red" {
	sed -i '/hmm_device_coherent/d' "$T/logs/hmm.ktap"
	regress
	[[ $status -eq 1 && $output == *"passes on the base, did not run here"* ]]
	bad hmm/test_hmm.sh_smoke:hmm.hmm_device_coherent.migrate
	only_bad 1
}

@test "a point that is skipped now is red, and so is a program" {
	sed -i 's/^# ok 1 Pages were unmerged/# ok 1 Pages were unmerged # SKIP no KSM/' "$T/logs/ksm.ktap"
	thp_log skip
	regress
	[[ $status -eq 1 && $output == *"passes on the base, is skipped here"* ]]
	bad ksm/ksm_functional_tests:Pages_were_unmerged
	bad thp/d
	only_bad 2
}

@test "a point that is skipped on the base and fails is red" {
	sed -i 's/^# ok 3 # SKIP userfaultfd() missing/# not ok 3 userfaultfd() missing/' "$T/logs/ksm.ktap"
	regress
	[[ $status -eq 1 && $output == *"is skipped on the base, fails here"* ]]
	only_bad 1
}

@test "a new point has to pass" {
	sed -i 's/^# # Totals: pass:2/# ok 5 Private zero page survives\n&/' "$T/logs/ksm.ktap"
	regress
	[[ $status -eq 0 ]]
	grep -q '^ok [0-9]* - ksm/ksm_functional_tests:Private_zero_page_survives$' "$T/out.tap"
	for result in 'not ok 5 Private zero page survives' 'ok 5 Private zero page survives # SKIP why'; do
		sed -i "s/^# .*ok 5 .*/# $result/" "$T/logs/ksm.ktap"
		regress
		[[ $status -eq 1 && $output == *"not on the base, and has to pass"* ]]
		bad ksm/ksm_functional_tests:Private_zero_page_survives
		only_bad 1
	done
}

@test "what passes now, and failed on the base, is no harm" {
	sed -i -e 's/^# not ok 4 /# ok 4 /' -e 's/^not ok 2 \(.*\) # exit=1/ok 2 \1/' "$T/logs/ksm.ktap"
	regress
	[[ $status -eq 0 ]]
}

@test "a point that varies on the base, too, is skipped with the reason" {
	sed -i 's/^# ok 2 hmm/# not ok 2 hmm/' "$T/logs/hmm.ktap"
	printf 'hmm\t.*device_private\\.migrate\tit depends on the weather\n' >"$T/flaky"
	regress
	[[ $status -eq 0 ]]
	grep -q 'migrate # SKIP varies on the base, too: it depends on the weather$' "$T/out.tap"
	printf 'ksm\t.*device_private\\.migrate\tanother category\n' >"$T/flaky"
	regress
	[[ $status -eq 1 ]]
	for line in 'hmm\t.*' 'hmm\t.*\t' 'hmm\t(\treason'; do
		printf '%b\n' "$line" >"$T/flaky"
		regress
		[[ $status -eq 2 && $output == *"flaky:1"* ]]
	done
}

report() { printf '[    6.0] ------------[ cut here ]------------\n[    6.0] WARNING: mm/%s:%s at %s+0x1a/0x40, CPU#1: x/7%s\n' "$@"; }

@test "a kernel report is red, but where the base has it" {
	report ksm.c 123 known_place 1 >"$T/logs/ksm.console"
	regress
	[[ $status -eq 0 ]]
	report ksm.c 321 known_place 2 >"$T/logs/hmm.console"
	regress
	[[ $status -eq 1 && $output == *"WARNING: mm/ksm.c:321 at known_place"* ]]
	bad hmm/report:warning:_WARNING:_mm/ksm.c_at_known_place
	only_bad 1
	printf 'hmm\treport:.*known_place\tit varies\n' >"$T/flaky"
	regress
	[[ $status -eq 0 ]]
	report ksm.c 322 other_place 3 >>"$T/logs/ksm.console"
	regress
	[[ $status -eq 1 ]]
	bad ksm/report:warning:_WARNING:_mm/ksm.c_at_other_place
}

@test "a record of another base is red, and so is none" {
	sed -i "s/b45e/0123456789/" "$T/base"
	regress
	[[ $status -eq 1 && $output == *"base is of base 0123456789, the series of b45e"*"to renew it: ci/run regress --base --update-expected"* ]]
	bad ci.base
	rm "$T/base"
	regress
	[[ $status -eq 1 && $output == *"to renew it"* ]]
}

@test "a record of another configuration, or without a category" {
	sed -i 's/^# config: .*/# config: 0123/' "$T/base"
	regress
	[[ $status -eq 0 ]]
	grep -q 'ci.config # SKIP the configuration has changed' "$T/out.tap"
	sed -i '/\thmm\t/d' "$T/base"
	regress
	[[ $status -eq 1 && $output == *"nothing of it in base"* ]]
	bad hmm/ci.base
	echo 'passed hmm x' >>"$T/base"
	regress
	[[ $status -eq 2 ]]
}


@test "a category that the guest dies in takes all of its points along, and no other's" {
	echo 12 >"$T/logs/hmm.die"
	printf '[    6.0] BUG: kernel NULL pointer dereference, address: 0000000000000008\n[    6.1] Kernel panic - not syncing\n' \
		>"$T/logs/hmm.console"
	# the last output of the one before may be all that there is
	token=missing
	guest ksm hmm
	split
	token=ok
	guest thp
	split
	judge
	[[ $status -eq 1 && $output == *"died with the guest"*"hmm_device_private.migrate ..."*"kernel NULL pointer dereference"* ]]
	bad hmm/ci.died
	# the one that had passed, too
	bad hmm/test_hmm.sh_smoke:hmm.hmm_device_private.open_close
	bad hmm/test_hmm.sh_smoke
	[[ $output == *"not ok: 4 points that the base has"* ]]
	grep -q '^ok [0-9]* - ksm/ksm_functional_tests:KSM_zero_pages_were_unmerged$' "$T/out.tap"
	run ! grep -q '^not ok .*\(ksm\|thp\)/' "$T/out.tap"
}

@test "a guest that dies after the last output of a category is red, and so is one that has no time left" {
	token=missing
	regress
	[[ $status -eq 1 && $output == *"died with the guest, which did not come to its end"* ]]
	bad thp/ci.died
	bad thp/d
	token=ok code=124
	regress
	[[ $status -eq 1 && $output == *"died at the time limit of a category"* ]]
	bad hmm/ci.died
	token=missing timeout=yes code=0
	regress
	[[ $status -eq 1 && $output == *"died at the time limit of the guest"* ]]
}

@test "a console that shows a category whose output is lost" {
	token=missing
	regress
	sed -i '/category thp/,$d' "$T/ktap.log"
	rm -r "$T/kept"
	split
	judge
	[[ $status -eq 1 ]]
	bad thp/ci.died
	bad thp/d
}

@test "the base: the record is written, and each difference from it is red" {
	report ksm.c 123 known_place 1 >"$T/logs/ksm.console"
	regress
	grep -v '^#' "$T/base" >"$T/want"
	rm "$T/base"
	record() {
		python3 "$TOP/ci/lib/regress.py" record --results "$T/kept" --base "$T/base" --base-commit "$1" --config c0f1 \
			--list "$T/list" --categories "$2"
	}
	record b45e 'ksm thp hmm'
	cmp <(grep -v '^#' "$T/base") "$T/want"
	grep -qx '# base-commit: b45e' "$T/base"
	regress --exact
	[[ $status -eq 0 ]]
	# better is different, too
	sed -i 's/^# not ok 4 /# ok 4 /' "$T/logs/ksm.ktap"
	rm "$T/logs/ksm.console"
	regress --exact
	[[ $status -eq 1 && $output == *"recorded: fail, now: pass"*"recorded, and not seen now"* ]]
	only_bad 2
	# categories that are not run stay, but not those of another base
	thp_log fail
	regress
	record b45e thp
	grep -q $'^fail\tthp\td$' "$T/base"
	grep -q $'^fail\tksm\tksm_functional_tests:Pages_were_not_unmerged$' "$T/base"
	record b45f thp
	run ! grep -q ksm "$T/base"
}

@test "the base: a guest that dies is on record, and a new point that passes is no harm" {
	echo 12 >"$T/logs/hmm.die"
	token=missing
	guest hmm
	split
	python3 "$TOP/ci/lib/regress.py" record --results "$T/kept" --base "$T/base" --base-commit b45e --config c0f1 \
		--list "$T/list" --categories hmm
	grep -q $'^died\thmm\twith the guest' "$T/base"
	categories=hmm
	judge --exact
	[[ $status -eq 0 ]]
	rm "$T/logs/hmm.die"
	token=ok
	guest hmm
	split
	judge
	[[ $status -eq 0 ]]
	judge --exact
	[[ $status -eq 1 && $output == *"recorded: died with the guest"* ]]
}
