#!/usr/bin/env bats
# ci/run regress: mainline's own tests on the base and on the series. QEMU is a script that writes golden logs.

# shellcheck disable=SC2016,SC2030,SC2031
load host
setup() {
	host_setup
	unset ARCH
	G=$BATS_TEST_DIRNAME/golden/regress
	tree
	mkdir -p "$T/repo" "$T/bin" "$T/logs"
	cp -r "$TOP/ci" "$T/repo/ci"
	cp "$G"/*.ktap "$T/logs/"
	expected=$T/repo/ci/expected
	printf '# why\nhmm-coherent out no such device\nhmm check\nksm check\nthp all\npfnmap out it is run elsewhere\n' >"$expected/regress"
	: >"$expected/regress.flaky"
	(
		cd "$K" || exit
		printf 'CATEGORY="%s" run_test ./%s\n' hmm a ksm b ksm c thp d pfnmap e >tools/testing/selftests/mm/run_vmtests.sh
		printf 'CONFIG_KSM=y\n' >tools/testing/selftests/mm/config
		commit "selftests: run"
	)
	build=$OUT/build/x86_64-normal
	build
	base "$(sed -n 's/^# base-commit: //p' "$SERIES")"
	printf 'TAP version 13\n# running ./d\nok 1 d\n1..1\n' >"$T/logs/thp.ktap"
	printf 'pass\tthp\td\n' >>"$expected/regress-x86_64.base"
	qemu
}

# What the stage build leaves.
build() {
	mkdir -p "$build"/ksft/mm "$build/arch/x86/boot"
	cp "$K"/tools/testing/selftests/mm/run_vmtests.sh "$build/ksft/mm/"
	echo kernel >"$build/arch/x86/boot/bzImage"
	git -C "$K" rev-parse 'HEAD^{tree}' >"$build/ksft.id"
}

# base COMMIT: the record, of this configuration
base() {
	local config
	config=$(cat "$TOP/ci/configs"/{base.config,arch/x86_64.config,arch/x86_64.facts} "$K/tools/testing/selftests/mm/config" |
		sha256sum | cut -c1-16)
	sed -e "s/BASE/$1/" -e "s/CONFIG/$config/" "$G/base" >"$expected/regress-x86_64.base"
}

# In the guest each category writes $T/logs/CATEGORY.ktap, and the kernel CATEGORY.console. It dies in one with
# CATEGORY.die: so many lines of the output are seen.
qemu() {
	cat >"$T/bin/qemu-system-x86_64" <<-QEMU
	#!/bin/bash
	logs=$T/logs
	QEMU
	cat >>"$T/bin/qemu-system-x86_64" <<-'QEMU'
	[[ $1 != --version ]] || exit 0
	rm -rf initramfs && mkdir initramfs && cd initramfs && cpio -id --quiet <../initramfs.cpio && cd .. || exit 1
	nonce=$(sed -n 's/^nonce=//p' initramfs/ci/options)
	echo boot >>"$logs/boots"
	echo '[    0.000000] Linux version 7.3.4' >console.log
	for c in $(sed -n 's/^category //p' initramfs/ci/job); do
		echo "$c" >>"$logs/called"
		echo "[    5.000000] ci: category $c" >>console.log
		printf '\n# ci: category %s 5.00\n' "$c" >>ktap.log
		[[ ! -f $logs/$c.console ]] || cat "$logs/$c.console" >>console.log
		if [[ -f $logs/$c.die ]]; then
			head -n "$(<"$logs/$c.die")" "$logs/$c.ktap" >>ktap.log
			rm -r initramfs
			exit
		fi
		cat "$logs/$c.ktap" >>ktap.log
		printf '\n# ci: status %s 0 8.50\n' "$c" >>ktap.log
	done
	echo "$nonce 0" >token
	rm -r initramfs
	QEMU
	# Nobody looks at the disk, or runs init.
	printf '#!/bin/sh\n' | tee "$T/bin/mke2fs" "$T/bin/mkswap" "$T/bin/ldd" >"$T/bin/busybox"
	echo 'while [ $# -gt 2 ]; do shift; done; : >"$1"' >>"$T/bin/mke2fs"
	chmod +x "$T"/bin/*
	mkdir -p "$OUT/guest/x86_64"
	touch "$OUT/guest/x86_64/init"
	PATH=$T/bin:$PATH
}

regress() {
	run env PROGRESS_EVERY=1000 bash "$T/repo/ci/run" regress --accel tcg "$@"
	echo "$output"
	local tap=$OUT/results/regress.tap
	if [[ ${1-} == --base ]]; then tap=$OUT/results/regress-base.tap; fi
	if [[ $status -lt 2 ]]; then
		tally=0
		bash "$TOP/ci/lib/tally.sh" "$tap" >"$T/tally" || tally=1
		[[ $tally -eq $status ]]
	fi
}
bad() { grep -qF -- " - $1" <(grep '^not ok' "$OUT/results/regress.tap"); }
only_bad() { [[ $(grep -c '^not ok' "$OUT/results/regress.tap") -eq $1 ]]; }

@test "a part, and some categories" {
	regress --part check
	[[ $status -eq 0 ]]
	run ! grep -q thp "$T/logs/called"
	regress --categories thp
	[[ $status -eq 0 && $(tail -n 1 "$T/logs/called") == thp ]]
	regress --categories pfnmap
	[[ $status -eq 2 && $output == *"pfnmap is left out: it is run elsewhere"* ]]
	regress --categories nosuch
	[[ $status -eq 2 ]]
	regress --part some
	[[ $status -eq 2 ]]
	regress --update-expected
	[[ $status -eq 2 ]]
}

@test "kept results are used again, but not those of another tree, and --again runs all" {
	regress
	[[ $status -eq 0 && $(wc -l <"$T/logs/called") -eq 3 ]]
	regress
	[[ $status -eq 0 && $(wc -l <"$T/logs/called") -eq 3 ]]
	rm "$OUT"/regress/*/ksm.done
	regress
	[[ $status -eq 0 && $(wc -l <"$T/logs/called") -eq 4 && $(tail -n 1 "$T/logs/called") == ksm ]]
	regress --again --categories 'hmm ksm'
	[[ $status -eq 0 && $(wc -l <"$T/logs/called") -eq 6 ]]
	(cd "$K" && echo 'int x;' >>mm/memory.c && commit "mm: x")
	regress
	[[ $status -eq 2 && $output == *"is not of the series's tree"* ]]
	build
	regress
	[[ $status -eq 0 && $(wc -l <"$T/logs/called") -eq 9 ]]
	# what nobody has committed is known by what was built
	echo ' M mm/memory.c' >>"$build/ksft.id"
	echo changed >"$build/arch/x86/boot/bzImage"
	regress --categories thp
	[[ $status -eq 0 && $output == *"not committed"* && $(wc -l <"$T/logs/called") -eq 10 ]]
	regress --categories thp
	[[ $status -eq 0 && $(wc -l <"$T/logs/called") -eq 10 ]]
	echo changed >"$build/ksft/mm/program"
	regress --categories thp
	[[ $status -eq 0 && $(wc -l <"$T/logs/called") -eq 11 ]]
}

@test "a guest that dies takes the points of one category along; the others are run" {
	echo 12 >"$T/logs/hmm.die"
	printf '[    6.0] BUG: kernel NULL pointer dereference, address: 0000000000000008\n[    6.1] Kernel panic - not syncing\n' \
		>"$T/logs/hmm.console"
	regress
	[[ $status -eq 1 && $output == *"died with the guest"*"hmm_device_private.migrate ..."*"kernel NULL pointer dereference"* ]]
	bad hmm/ci.died
	# the one that had passed, too
	bad hmm/test_hmm.sh_smoke:hmm.hmm_device_private.open_close
	bad hmm/test_hmm.sh_smoke
	[[ $output == *"not ok: 4 points that the base has"* ]]
	[[ $(tr '\n' ' ' <"$T/logs/called") == "hmm ksm thp " && $(wc -l <"$T/logs/boots") -eq 2 ]]
	grep -q '^ok [0-9]* - ksm/ksm_functional_tests:KSM_zero_pages_were_unmerged$' "$OUT/results/regress.tap"
	# that it has died is kept
	regress
	[[ $status -eq 1 && $(wc -l <"$T/logs/called") -eq 3 ]]
}

@test "an interrupted run keeps what has ended" {
	sed -i 's/^echo "$nonce 0" >token$/echo $PPID >"$logs\/pid"; exec sleep 60/' "$T/bin/qemu-system-x86_64"
	bash "$T/repo/ci/run" regress --accel tcg >"$T/log" 2>&1 3>&- &
	pid=$!
	for ((i = 0; i < 300; i++)); do
		[[ ! -s $T/logs/pid ]] || break
		sleep 0.1
	done
	kill "$pid"
	wait "$pid" || true
	cat "$T/log"
	[[ $(tr '\n' ' ' <"$T/logs/called") == "hmm ksm thp " ]]
	qemu
	regress
	# the last one may not have come to its end
	[[ $status -eq 0 && $(tr '\n' ' ' <"$T/logs/called") == "hmm ksm thp thp " ]]
}

@test "a guest that comes to no category is red" {
	printf '#!/bin/sh\necho "Linux version" >console.log\n' >"$T/bin/qemu-system-x86_64"
	regress
	[[ $status -eq 1 && $output == *"has not come to the first category"* ]]
}

@test "a category that nobody has listed is red, and so is one that is gone" {
	sed -i '/^thp/d' "$expected/regress"
	regress
	[[ $status -eq 1 && $output == *"run_vmtests.sh has a category thp that"*"does not name"* ]]
	bad regress
	printf 'thp all\nnosuch all\n' >>"$expected/regress"
	regress
	[[ $status -eq 1 && $output == *"names a category nosuch"* ]]
	for line in 'x' 'x none' 'x out' 'x check reason' 'hmm all'; do
		printf 'hmm all\nksm all\nthp all\npfnmap all\n%s\n' "$line" >"$T/list"
		run python3 "$TOP/ci/lib/regress.py" categories --list "$T/list" --script "$build/ksft/mm/run_vmtests.sh"
		[[ $status -eq 2 && $output == *"list:5"* ]]
	done
}

@test "the base: what is written, and what is compared" {
	git -C "$K" tag -f ci-base HEAD
	cp -r "$build" "$build-base-tree"
	rm "$expected/regress-x86_64.base"
	regress --base --no-build --update-expected
	[[ $status -eq 0 ]]
	cmp <(grep -v '^#\|report' "$expected/regress-x86_64.base") <(grep -v '^#\|report' "$G/base"; printf 'pass\tthp\td\n')
	regress
	[[ $status -eq 0 ]]
	sed -i 's/^# not ok 4 /# ok 4 /' "$T/logs/ksm.ktap"
	regress --base --no-build --again --categories ksm
	[[ $status -eq 1 && $output == *"recorded: fail, now: pass"* ]]
	[[ -s $OUT/results/regress-base.tap ]]
}

@test "the project's own lists are well formed, and name what run_vmtests.sh has" {
	[[ -f $TOP/out/tree/tools/testing/selftests/mm/run_vmtests.sh ]] || skip "no kernel tree"
	python3 "$TOP/ci/lib/regress.py" categories --script "$TOP/out/tree/tools/testing/selftests/mm/run_vmtests.sh" --also hmm-coherent
}
