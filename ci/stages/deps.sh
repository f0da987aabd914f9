#!/bin/bash
set -euo pipefail
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"

usage() {
	cat <<'END'
usage: ci/run deps [--arch A]... [--optional] [--print]

Installs the Debian packages that the other stages need (lists in ci/deps/). Nothing is done when all are
there. Who is not root gets the one line to run, and exit status 4.

  --arch A    also what architecture A needs (default: x86_64)
  --optional  status 4 where the packages are not to be had, too
  --print     print the names of all packages needed, and do nothing
END
}

arches=() print='' optional=''
while (($#)); do
	case $1 in
	-h | --help) usage; exit 0 ;;
	--arch) need_arg "$@"; arches+=("$2"); shift ;;
	--optional) optional=1 ;;
	--print) print=1 ;;
	*) usage_error "unknown option $1" ;;
	esac
	shift
done
((${#arches[@]})) || arches=(x86_64)

lists=()
for f in "$TOP"/ci/deps/*; do [[ ! -f $f ]] || lists+=("$f"); done
for a in "${arches[@]}"; do
	[[ -f $TOP/ci/deps/arch/$a ]] || usage_error "no list of packages for architecture $a"
	lists+=("$TOP/ci/deps/arch/$a")
done
mapfile -t packages < <(cat "${lists[@]}" | sed 's/#.*//; s/[[:space:]]//g; /^$/d' | sort -u)
if [[ -n $print ]]; then
	printf '%s\n' "${packages[*]}"
	exit 0
fi

command -v dpkg-query >/dev/null 2>&1 ||
	skip "this is not a Debian system; what is needed goes by these names there: ${packages[*]}"
installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' 2>/dev/null | awk '$2 == "installed" { print $1 }' | sort -u)
mapfile -t missing < <(printf '%s\n' "${packages[@]}" | comm -23 - <(printf '%s\n' "$installed"))
if ((${#missing[@]} == 0)); then
	log "all ${#packages[@]} packages are installed"
	exit 0
fi
if ((${CI_UID:-$(id -u)} != 0)); then
	printf 'sudo apt-get update && sudo apt-get install -y --no-install-recommends %s\n' "${missing[*]}"
	exit "$E_SKIP"
fi
log "to install: ${missing[*]}"
not_to_be_had() {
	[[ -z $optional ]] || skip "$1"
	harness_error "$1"
}
export DEBIAN_FRONTEND=noninteractive
run_long "apt-get update" "$OUT/log/deps-update.log" apt-get -q -o DPkg::Lock::Timeout=300 update ||
	not_to_be_had "apt-get update failed"
run_long "apt-get install" "$OUT/log/deps-install.log" \
	apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}" ||
	not_to_be_had "apt-get install failed"
