#!/bin/bash
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"

usage() {
	cat <<'END'
usage: ci/run mutate [--sample] [--again] [-j N] [NAME|TOPIC...]

Do the selftests find bugs? Puts the bugs of ci/tests/mutations/TOPIC/NAME.patch into the kernel that "ci/run build"
has made for x86_64, and boots it once for each. All bugs are in one kernel: a patch wraps what it changes in
mutant(NAME), with underscores, which is true when the kernel has been booted with the number of that name. Patches
that do not fit into one kernel are put into several.

The head of a patch says what is wrong. Of the tests that each of its lines "Tests: REGEX" names, one has to fail at
least; of those of a whole category, "Tests: CATEGORY REGEX", one whose name has a match. What fails without a mutant
does not count. "Build: alone" is for a bug that nothing can wrap: it gets a kernel of its own.

  --sample  the mutants of ci/tests/mutations/sample
  --again   forget the results; they are kept for as long as the source, the patch and the tests stay the same
  -j N      guests at a time; 2 if there are the processors and the memory
END
}

mutations=$TOP/ci/tests/mutations
chosen=() again='' guests=''
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	--sample) mapfile -t -O "${#chosen[@]}" chosen < <(grep -v '^#' "$mutations/sample") ;;
	--again) again=1 ;;
	-j) need_arg "$@"; guests=$2; shift ;;
	-*) usage_error "unknown option $1" ;;
	*) chosen+=("$1") ;;
	esac
	shift
done
[[ $guests =~ ^[1-9]?$ ]] || usage_error "-j wants a number from 1 to 9, not '$guests'"
if [[ -z $guests ]]; then
	guests=1
	if (($(nproc) > 1 && $(awk '/^MemAvailable/ { print $2 }' /proc/meminfo) > 6 << 20)); then guests=2; fi
fi

facts x86_64
need_series
normal=$(build_dir x86_64 normal)
mutant=$OUT/build/x86_64-mutant
work=$OUT/mutate
expected=$TOP/ci/expected/x86_64-normal.tests
[[ -s $normal/$IMAGE ]] || harness_error "no kernel in $normal; to make it: ci/run build"
mkdir -p "$OUT/log" "$work/results"
exec 8>"$work/lock"
flock -n 8 || harness_error "another run uses $work"

# The rows of the mutants that are wanted, one for each line "Tests:", and the groups that these are in
rm -rf "$work/src"
python3 "$TOP/ci/lib/mutants.py" "$KSRC" "$mutations" "$work/src" >"$work/rows" || harness_error "no rows of mutations"
unit_topic=() unit_name=() unit_group=() unit_number=() unit_why=() unit_tests=() unit_key=() alone=()
declare -A used=()
while IFS=$'\t' read -r topic name g single number why tests; do
	if ((${#chosen[@]})) && [[ " ${chosen[*]} " != *" $topic "* && " ${chosen[*]} " != *" $name "* ]]; then continue; fi
	used[$topic]=1 used[$name]=1
	unit_topic+=("$topic") unit_name+=("$name") unit_group+=("$g") unit_number+=("$number") unit_why+=("${why#-}")
	unit_tests+=("$tests")
	if [[ $g != - ]]; then alone[g]=${single#0}; fi
done <"$work/rows"
for c in "${chosen[@]}"; do [[ -n ${used[$c]-} ]] || usage_error "no mutation or topic $c"; done

# plant GROUP: into the build directory, where kbuild looks before the source. A header there comes before the one in
# include/ in arch/x86/include/generated; one beside its users is found beside copies of them.
planted=()
plant() {
	local src=$work/src/$1 f to user
	for f in "${planted[@]}"; do rm -f "${mutant:?}/$f"; done
	planted=(mm/init-mm.c)
	cat "$KSRC/mm/init-mm.c" - >"$mutant/mm/init-mm.c" <<-'END'
		#include <linux/module.h>
		unsigned int mutant_nr;
		EXPORT_SYMBOL_GPL(mutant_nr);
		core_param(mutant, mutant_nr, uint, 0644);
	END
	while IFS= read -r f; do
		to=$f
		case $f in
		include/*)
			to=arch/x86/include/generated/${f#include/}
			grep -rlF --include='.*.cmd' "$KSRC/$f" "$mutant" | xargs -r rm -f
			;;
		*.h)
			while IFS= read -r user; do
				[[ ! -e $src/$user ]] || continue
				planted+=("$user")
				cp "$KSRC/$user" "$mutant/$user"
			done < <(grep -rlF --include='.*.cmd' "$KSRC/$f" "$mutant" | xargs -r sed -n "s|^source_.* := $KSRC/||p")
			;;
		esac
		mkdir -p "$mutant/${to%/*}"
		cp "$src/$f" "$mutant/$to"
		planted+=("$to")
	done < <(cd "$src" && find . -type f -printf '%P\n' | sort)
}

# test_hmm and others are modules.
mutant_make() {
	kmake "$mutant" "$(basename "$IMAGE")" modules &&
		kmake "$mutant" INSTALL_MOD_PATH="$1/mods" INSTALL_MOD_STRIP=1 modules_install &&
		install -D "$mutant/$IMAGE" "$1/$IMAGE" && cp "$mutant/vmlinux" "$1/"
}

source_id=$({
	kgit ls-tree HEAD | grep -vP '\t(tools|Documentation)$'
	kgit diff HEAD -- ':!tools' ':!Documentation'
	cat "$normal/.config"
} | sha256sum)

# kernel GROUP: $work/kernel-GROUP, if what is there is not of these sources.
kernel() {
	local dir=$work/kernel-$1 id
	id=$(cd "$work/src/$1" && { echo "$source_id"; find . -type f -exec sha256sum {} + | sort; } | sha256sum)
	if [[ -f $dir/id && $(<"$dir/id") == "$id" ]]; then return; fi
	rm -rf "$dir"
	mkdir -p "$dir"
	if [[ ! -d $mutant ]]; then
		cp -a --reflink=auto "$normal" "$mutant"
		# A new objtool would have all objects made again.
		find "$mutant/tools" -name '.*.cmd' -exec sed -i "s|$normal/|$mutant/|g" {} +
	fi
	plant "$1"
	run_long "kernel $1 of mutants" "$OUT/log/mutate-kernel-$1.log" mutant_make "$dir" || return 1
	ln -sfn "$normal/ksft" "$dir/ksft"
	echo "$id" >"$dir/id"
}

# What the tests of a line "Tests:" are made of
tests_id() {
	local only want lines programs
	read -r only want <<<"$1"
	echo "$1"
	if [[ -n $want ]]; then
		cat "$normal"/ksft/mm/* 2>/dev/null | sha256sum || true
	else
		lines=$(grep -E -- "$only" "$expected" || true)
		mapfile -t programs < <(cut -d: -f1 <<<"$lines" | sort -u)
		echo "$lines"
		cat "${programs[@]/#/$normal/ksft/mm/}" 2>/dev/null | sha256sum || true
	fi
}

# boot SLOT KEY KERNEL NUMBER TESTS NAME: $work/results/KEY gets the status and the names of the tests that fail, less
# those in $work/control. What is no verdict is not kept.
boot() {
	local slot=$work/guest-$1 result=$work/results/$2 only want rc=0 found limit=() start=$SECONDS
	read -r only want <<<"$5"
	# Some bugs are found by a test that hangs. The control has all tests to run.
	if (($4)); then limit=(--timeout 600); fi
	# An emulated machine sometimes dies or hangs before it runs anything: that is no verdict.
	for _ in 1 2; do
		rc=0
		rm -rf "$slot/results" "$slot/ktap.log"
		# The guest goes when this shell does.
		RESULTS=$slot/results setpriv --pdeathsig TERM bash "$TOP/ci/run" test --build "$3" --dir "$slot" "${limit[@]}" \
			--append "mutant=$4" --only "$only" >"$result.log" 2>&1 || rc=$?
		if grep -q '^# running \./' "$slot/ktap.log"; then break; fi
	done
	# The lines are anchored to the program; the point of the whole program does not count. A guest that dies of it
	# leaves tests without a result; they have to have begun.
	found='[a-z_]+:'
	if grep -q '^# running \./' "$slot/ktap.log"; then found='(ci\.vanished:)?[a-z_]+:'; fi
	if [[ -n $want ]]; then found=".*$want"; fi
	{
		echo "$rc"
		cat "$slot"/results/*.tap | sed -nE "\#^not ok [0-9]+ - $found#s/^not ok [0-9]+ - (ci\.vanished:)?//p" || true
	} 2>/dev/null | grep -vxFf "$work/control" >"$result.$1"
	log "$6: status $rc, $(($(wc -l <"$result.$1") - 1)) tests fail, $(_elapsed $((SECONDS - start)))"
	# Without a point, the guest has not been there.
	if ((rc == 0 || rc == E_FAIL || rc == E_SKIP)) && compgen -G "$slot/results/*.tap" >/dev/null; then
		mv "$result.$1" "$result"
	fi
}

# Boots go to the slot that is free first.
declare -A slot_pid=()
start_boot() {
	local s
	if [[ -f $work/results/$1 ]]; then return; fi
	while :; do
		for ((s = 1; s <= guests; s++)); do
			if [[ -n ${slot_pid[$s]-} ]] && kill -0 "${slot_pid[$s]}" 2>/dev/null; then continue; fi
			boot "$s" "$@" &
			slot_pid[$s]=$!
			return
		done
		wait -n "${slot_pid[@]}" || true
	done
}
wait_boots() { wait "${slot_pid[@]}" || true; }

cleanup() {
	local pids
	trap '' INT TERM
	mapfile -t pids < <(jobs -p)
	if ((${#pids[@]})); then kill "${pids[@]}" 2>/dev/null || true; wait; fi
	rm -rf "$mutant"
}
trap cleanup EXIT
rm -rf "$mutant"

for u in "${!unit_name[@]}"; do
	key=$({ echo "$source_id"; cat "$mutations/${unit_topic[u]}/${unit_name[u]}.patch"; tests_id "${unit_tests[u]}"; } |
		sha256sum | cut -c1-32)
	unit_key+=("$key")
	if [[ -n $again ]]; then rm -f "$work/results/$key"; fi
done

tap_begin mutate
for g in "${!alone[@]}"; do
	todo=()
	declare -A control=()
	for u in "${!unit_name[@]}"; do
		if [[ ${unit_group[u]} != "$g" || -f $work/results/${unit_key[u]} ]]; then continue; fi
		todo+=("$u")
		# For the control: tests of a category have a boot of their own, the others are spread over the guests.
		c=$((u % guests)) t=${unit_tests[u]}
		if [[ $t == *' '* ]]; then c=${t%% *}; fi
		if [[ -z ${control[$c]-} ]]; then control[$c]=$t
		elif [[ ${control[$c]} != *"${t#* }"* ]]; then control[$c]+="|${t#* }"; fi
	done
	((${#todo[@]})) || continue
	if ! kernel "$g"; then
		for u in "${todo[@]}"; do unit_why[u]="the kernel does not build, see $OUT/log/mutate-kernel-$g.log"; done
		continue
	fi
	trap 'exit 130' INT TERM
	plain=$work/kernel-$g
	if [[ -n ${alone[g]} ]]; then plain=$normal; fi
	keys=()
	: >"$work/control"
	for c in "${!control[@]}"; do
		key=$({ cat "$plain/id" 2>/dev/null || echo "$source_id"; tests_id "${control[$c]}"; } | sha256sum | cut -c1-32)
		if [[ -n $again ]]; then rm -f "$work/results/$key"; fi
		keys+=("$key")
		start_boot "$key" "$plain" 0 "${control[$c]}" "kernel $g without a mutant"
	done
	wait_boots
	bad=$(for key in "${keys[@]}"; do sed 1d "$work/results/$key" 2>/dev/null || echo "a boot has not ended"; done)
	if [[ -z $bad ]]; then tap_ok "kernel $g without a mutant"; else tap_not_ok "kernel $g without a mutant" "$bad"; fi
	echo "$bad" | sed '/^$/d' >"$work/control"
	for u in "${todo[@]}"; do
		start_boot "${unit_key[u]}" "$work/kernel-$g" "${unit_number[u]}" "${unit_tests[u]}" "${unit_name[u]}"
	done
	wait_boots
done

declare -A missed=() finds=()
for u in "${!unit_name[@]}"; do
	n=${unit_name[u]} failed=()
	result=$work/results/${unit_key[u]}
	if [[ -f $result ]]; then mapfile -t failed <"$result"; fi
	if ((${#failed[@]} > 1 && failed[0] == E_FAIL)); then
		tap_ok "$n: $((${#failed[@]} - 1)) of ${unit_tests[u]} fail"
		for p in $(printf '%s\n' "${failed[@]:1}" | cut -d: -f1 | sort -u); do
			[[ " ${finds[$p]-} " == *" $n "* ]] || finds[$p]+="${finds[$p]:+ }$n"
		done
	else
		missed[$n]=1
		tap_not_ok "$n: ${unit_tests[u]}" "${unit_why[u]:-no test has failed, status ${failed[0]-none}; see $result.log}"
	fi
done

printf '\n%-28s %5s %5s\n' topic found all
for u in "${!unit_name[@]}"; do echo "${unit_topic[u]} ${unit_name[u]} ${missed[${unit_name[u]}]-0}"; done | sort -u |
	awk '{ all[$1]++; found[$1] += !$3 } END { for (t in all) printf "%-28s %5d %5d\n", t, found[t], all[t] }' | sort
printf '\n%-28s mutants that it finds\n' program
for p in $(printf '%s\n' "${!finds[@]}" "$(<"$TOP/ci/expected/programs")" | sort -u); do
	printf '%-28s %s\n' "$p" "${finds[$p]:--}"
done
tap_end || fail "a planted bug has not been found"
