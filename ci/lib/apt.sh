# shellcheck shell=bash
# An apt of its own below $OUT, sourced after common.sh: no root needed, the machine's lists and cache stay as they are.
APT=$OUT/apt APT_ARCH=amd64

apt_() {
	local cmd=$1
	shift
	"$cmd" -o Dir::Etc::sourcelist="$APT/etc/sources.list" -o Dir::Etc::sourceparts=- \
		-o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=- \
		-o Dir::State="$APT/state" -o Dir::State::lists="$APT/lists" -o Dir::State::status="$APT/status" \
		-o Dir::Cache="$APT/cache" -o APT::Sandbox::User= -o APT::Architectures="$APT_ARCH" -o APT::Architecture="$APT_ARCH" \
		-o Acquire::Languages=none -o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false \
		-o Acquire::Retries=3 -o Debug::NoLocking=1 "$@"
}

# apt_setup SUITE...: status 1 if there is no mirror, or none that answers
apt_setup() {
	local uri suite
	need apt-get dpkg-deb xz
	# The mirror that this machine uses; before its first apt-get update the origin is not known yet.
	# shellcheck disable=SC2016
	uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 2>/dev/null |
		sort | uniq -c | sort -rn | awk 'NR == 1 { print $2 }')
	# shellcheck disable=SC2016
	[[ -n $uri ]] || uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
		grep -E '/debian/?$' | sed -n 1p) || true
	if [[ -z $uri ]]; then
		warn "found no Debian mirror among the apt sources of this machine"
		return 1
	fi
	mkdir -p "$APT"/{etc,lists/partial,state,cache/archives/partial,archives}
	: >"$APT/status"
	for suite in "$@"; do
		printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$uri" "$suite"
	done >"$APT/etc/sources.list"
	run_long "apt-get update ($*)" "$OUT/log/apt-update.log" apt_ apt-get -qq update
}
