#!/bin/bash
# sysroot.sh ARCH DEBIAN_ARCH: what hmm_file's tests call, mkfs and a shell, from Debian's packages for a guest that has
# none of it, into $OUT/sysroot/ARCH. The libraries are those that the programs name, and that these name.
set -euo pipefail
STAGE=sysroot
# shellcheck source=ci/lib/common.sh
. "${TOP:=$(cd "$(dirname "$0")/../.." && pwd)}/ci/lib/common.sh"
# shellcheck source=ci/lib/apt.sh
. "$TOP/ci/lib/apt.sh"
APT=$OUT/apt-$2 APT_ARCH=$2
need readelf
sysroot=$OUT/sysroot/$1 all=$APT/root
[[ ! -e $sysroot/bin/sh ]] || exit 0

# shellcheck source=/dev/null
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
rm -rf "$APT/cache"
{ apt_setup "$suite" && run_long "download for $2" "$OUT/log/sysroot.log" \
	apt_ apt-get -qq -y --no-install-recommends --download-only install busybox-static btrfs-progs e2fsprogs xfsprogs; } ||
	harness_error "Debian's packages for $2 are not to be had; put mkfs and a shell into $sysroot"
rm -rf "$all" "$sysroot.new"
mkdir -p "$all" "$sysroot.new"/{bin,sbin,lib}
for deb in "$APT"/cache/archives/*.deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$all" --wildcards --no-anchored 'bin/*' '*/bin/*' '*/sbin/*' '*.so*' 2>/dev/null || true
done

# program FILE: with its libraries and loader
program() {
	local name from
	while read -r name; do
		if [[ -e $sysroot.new/lib/$name ]]; then continue; fi
		from=$(find "$all" -name "$name" | sed -n 1p)
		[[ -n $from ]] || harness_error "no $name for $1 among the packages"
		cp -L "$from" "$sysroot.new/lib/$name"
		program "$sysroot.new/lib/$name"
	done < <(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]$/\1/p'
		readelf -l "$1" | sed -n 's|.*program interpreter: .*/\(.*\)\]$|\1|p')
}
for p in mkfs.btrfs mke2fs mkfs.xfs; do
	cp "$(find "$all" -path "*bin/$p" | sed -n 1p)" "$sysroot.new/sbin/"
	program "$sysroot.new/sbin/$p"
done
ln -s mke2fs "$sysroot.new/sbin/mkfs.ext4"
cp "$(find "$all" -path '*bin/busybox' | sed -n 1p)" "$sysroot.new/bin/busybox"
for p in sh truncate; do ln -s busybox "$sysroot.new/bin/$p"; done
rm -rf "$sysroot" "$all"
mv "$sysroot.new" "$sysroot"
log "$sysroot: $(du -sh "$sysroot" | cut -f1)"
