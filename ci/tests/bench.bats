#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031
# Table, plot and goals of the benchmark.

setup() {
	TOP=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
	T=$BATS_TEST_TMPDIR
	cp "$BATS_TEST_DIRNAME/golden/bench/good.tsv" "$T/log"
}

bench() { run python3 "$TOP/ci/lib/bench.py" --log "$T/log" --out "$T/out" --tap "$T/out.tap" "$@"; }

# set_row METHOD PLACE NR METRIC VALUE
set_row() {
	awk -v OFS='\t' -v k="$1 $2 $3 $4" -v v="$5" '$1 " " $2 " " $3 " " $4 == k { $6 = $7 = $8 = v } { print }' \
		FS='\t' "$T/log" >"$T/new"
	if cmp -s "$T/log" "$T/new"; then false; fi
	mv "$T/new" "$T/log"
}

# missed TEXT: exactly this goal is not met.
missed() {
	[ "$status" -eq 1 ]
	[ "$(grep -c '^not ok' "$T/out.tap")" -eq 1 ]
	grep -q "^not ok [0-9]* - $1\$" "$T/out.tap"
	run bash "$TOP/ci/lib/tally.sh" "$T/out.tap"
	[ "$status" -eq 1 ]
	[[ "$output" == *"19 passed, 1 failed, 0 skipped" ]]
}

@test "good numbers meet all goals; table, plots and points are there" {
	bench --note "Kernel under test"
	[ "$status" -eq 0 ]
	[[ "$output" == *"Kernel under test"* ]]
	[[ "$output" == *"| insertion | 512 | "*" | 300 | 38.0 | 50.0 | 36.0 |"* ]]
	[[ "$output" == *"37.5 / 300 = 0.125 | 0.25 | met |"* ]]
	grep -q '</svg>' "$T/out/bench.svg"
	[ "$(head -c 4 "$T/out/bench.png" | tail -c 3)" = PNG ]
	cmp <(sort "$T/log") <(sort "$T/out/bench.tsv")
	[ "$(<"$T/out/table.md")" = "$output" ]
	run bash "$TOP/ci/lib/tally.sh" "$T/out.tap"
	[ "$status" -eq 0 ]
	[[ "$output" == *"20 passed, 0 failed, 0 skipped" ]]
}

@test "rows are found in a KTAP log too" {
	{ echo "TAP version 13"; sed 's/^/# /; s/$/\r/' "$T/log"; printf '# junk\tram\nok 1 pfnmap_bench\n1..1\n'; } >"$T/new"
	mv "$T/new" "$T/log"
	bench
	[ "$status" -eq 0 ]
}

@test "batch of 512 dearer than 1.15 remap_pfn_range is red" {
	set_row batch vram 512 insert_ns 44
	bench
	missed "batch of 512 against remap_pfn_range: insert_ns, vram"
}

@test "batch of 512 dearer than a quarter of the loop is red" {
	set_row loop ram 512 insert_ns 149
	bench
	missed "batch of 512 against the loop: insert_ns, ram"
}

@test "batch of 1 dearer than 1.02 vmf_insert_pfn is red" {
	set_row batch ram 1 insert_ns 317
	bench
	missed "batch of 1 against vmf_insert_pfn: insert_ns, ram"
}

@test "a fault that inserts one pfn, dearer by 2 %, is red" {
	set_row batch vram 1 fault_ns 1490
	bench
	missed "batch of 1 against vmf_insert_pfn: fault_ns, vram"
}

@test "a slower munmap is red" {
	set_row batch ram 512 munmap_ns 63.5
	bench
	missed "munmap after a batch against after the loop: munmap_ns, ram"
}

@test "a slower fork is red" {
	set_row batch vram 512 fork_ns 49
	bench
	missed "fork after a batch against after the loop: fork_ns, vram"
}

@test "a munmap of a run that costs more than half of one by one is red" {
	set_row sparse ram 1 munmap_ns 119
	bench
	missed "munmap of a run against page by page: munmap_ns, ram"
}

@test "a fork of a run that costs more than half of one by one is red" {
	set_row sparse vram 1 fork_ns 80
	bench
	missed "fork of a run against page by page: fork_ns, vram"
}

@test "an interrupt in one repetition does not count" {
	awk -v OFS='\t' 'BEGIN { FS = OFS } $1 == "batch" && $3 == 512 && $4 == "fork_ns" { $6 *= 3; $8 *= 3 } { print }' \
		"$T/log" >"$T/new"
	mv "$T/new" "$T/log"
	bench
	[ "$status" -eq 0 ]
}

@test "exactly the limit is good enough" {
	set_row loop ram 512 insert_ns 152
	bench
	[ "$status" -eq 0 ]
}

@test "a measurement that is missing is red" {
	sed -i '/^remap\tvram\t512\tinsert_ns/d' "$T/log"
	bench
	[[ "$output" == *"not measured: remap vram 512 insert_ns"* ]]
	missed "batch of 512 against remap_pfn_range: insert_ns, vram"
}

@test "a cost of 0 is red" {
	set_row batch ram 1 fault_ns 0
	bench
	[[ "$output" == *"cannot be right"* ]]
	missed "batch of 1 against vmf_insert_pfn: fault_ns, ram"
}

@test "a log without, with repeated or with impossible rows is an error" {
	tail -n 1 "$T/log" >"$T/last"
	cat "$T/last" >>"$T/log"
	bench
	[ "$status" -eq 2 ]
	printf 'loop\tram\t1\tfork_ns\t5\t10\t11\t12\n' >"$T/log"
	bench
	[ "$status" -eq 2 ]
	printf 'hoop\tram\t1\tfork_ns\t5\t11\t11\t12\n' >"$T/log"
	bench
	[ "$status" -eq 2 ]
	echo nothing >"$T/log"
	bench
	[ "$status" -eq 2 ]
	rm "$T/log"
	bench
	[ "$status" -eq 2 ]
}

@test "ci/run bench --from judges a log, and red stays red" {
	export OUT=$T/ci-out RESULTS=$T/results
	run "$TOP/ci/run" bench --from "$T/log"
	[ "$status" -eq 0 ]
	[ -s "$OUT/bench/bench.svg" ]
	set_row batch ram 512 insert_ns 100
	run "$TOP/ci/run" bench --from "$T/log"
	[ "$status" -eq 1 ]
	echo nothing >"$T/log"
	run "$TOP/ci/run" bench --from "$T/log"
	[ "$status" -eq 1 ]
	[ ! -e "$OUT/bench" ]
	run bash "$TOP/ci/lib/tally.sh" "$RESULTS/bench.tap"
	[ "$status" -eq 1 ]
}

# compare_logs: good rows for each goal of bench_compare.py.
compare_logs() {
	printf 'method\tplace\tnr\tmetric\treps\tmedian\tmin\tmax\n' | tee "$T/before" >"$T/after"
	python3 - "$TOP/ci/lib" >"$T/goals" <<-'PY'
		import sys
		sys.path.insert(0, sys.argv[1])
		sys.dont_write_bytecode = True
		import bench_compare
		for method, place, metric, limit, other in bench_compare.GOALS:
		    print(method, place, metric, "%.4f" % (limit * 0.999), other or "-")
	PY
	while read -r method place metric factor other; do
		[[ $other != - ]] || printf '%s\t%s\t64\t%s\t5\t1000\t1000\t1001\n' "$method" "$place" "$metric" >>"$T/before"
		printf '%s\t%s\t64\t%s\t5\t%s\t%s\t2000\n' "$method" "$place" "$metric" \
			"$(awk "BEGIN { print 1000 * $factor }")" "$(awk "BEGIN { print 1000 * $factor }")" >>"$T/after"
	done <"$T/goals"
}
compare() {
	run python3 -B "$TOP/ci/lib/bench_compare.py" --before "$T/before" --after "$T/after" --out "$T/out" --tap "$T/out.tap"
	echo "$output"
}

@test "compare: good numbers meet all goals, a row that is dearer or missing does not" {
	compare_logs
	n=$(wc -l <"$T/goals")
	[ "$n" -ge 30 ]
	compare
	[ "$status" -eq 0 ]
	[ "$(grep -c '^ok' "$T/out.tap")" -eq "$n" ]
	[ "$(<"$T/out/table.md")" = "$output" ]
	cp "$T/after" "$T/good"

	sed -i 's/^ext4\tcache\t64\tread_ns\t5\t[0-9.]*\t[0-9.]*/ext4\tcache\t64\tread_ns\t5\t1006\t1006/' "$T/after"
	compare
	[ "$status" -eq 1 ]
	[[ "$output" == *"| ext4 cache read_ns against before | 1006.0 / 1000.0 = 1.0060 | 1.005 | **not met** |"* ]]
	[ "$(grep -c '^not ok' "$T/out.tap")" -eq 1 ]

	sed '/^tmpfs\tdevice/d' "$T/good" >"$T/after"
	compare
	[ "$status" -eq 1 ]
	grep -q '^not ok [0-9]* - tmpfs device both_ns against anon device$' "$T/out.tap"

	sed '/^vgem\tram\t64\tseq_ns/s/\t5\t.*/\t5\t400\t400\t400/' "$T/good" >"$T/after"
	compare
	[ "$status" -eq 1 ]
	grep -q '^not ok [0-9]* - vgem ram seq_ns against before$' "$T/out.tap"
}

@test "compare: no rows, and rows that are there twice, are errors" {
	compare_logs
	cp "$T/after" "$T/good"
	sed 's/\t64\t/\t128\t/; 1d' "$T/good" >>"$T/after"
	compare
	[ "$status" -eq 2 ]
	cp "$T/good" "$T/after"
	echo nothing >"$T/before"
	compare
	[ "$status" -eq 2 ]
}
