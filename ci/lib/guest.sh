# shellcheck shell=bash disable=SC2034,SC2054
# Sourced after common.sh by what boots a guest. Needs no root: no mounts, no device nodes.
#
# guest_disk BUILD IMAGE [EXTRA_DIR]     the guest's root file system, ext4; of GUEST=small: what is /ksft there
# guest_initramfs BUILD DIR OPTION=...   DIR/initramfs.cpio with init and DIR/job
# guest_accel REQUEST IMAGE              sets GUEST_ACCEL from tcg, kvm or auto
# guest_qemu BUILD DIR DISK              sets QEMU_CMD, to be run in DIR
# guest_run DIR SECONDS [FOLLOW]         runs that; sets GUEST_* below
#
# Settings: GUEST_SMP and GUEST_MEM (the facts' SMP and MEM), GUEST_ACCEL GUEST_APPEND GUEST_EXTRA (an array) GUEST_SHELL.
# Results:  GUEST_TIMEOUT yes|no, GUEST_TOKEN ok|missing|wrong, GUEST_STATUS of the job or "none",
#           GUEST_SECONDS.

PATH=$PATH:/usr/sbin:/sbin
GUEST_FREE_MIB=${GUEST_FREE_MIB:-256}
GUEST_SWAP_MIB=${GUEST_SWAP_MIB:-256}
GUEST_ACCEL=${GUEST_ACCEL:-tcg}
GUEST_APPEND=${GUEST_APPEND:-}
GUEST_SHELL=${GUEST_SHELL:-}
GUEST_NONCE=
GUEST_EXTRA=()

# Programs that the tests get from the host, as busybox's differ or lack something that the tests' scripts
# use; the rest of what a script wants is busybox.
GUEST_PROGRAMS=(bash awk getconf grep mkfs.btrfs mkfs.ext4 mkfs.xfs sed timeout tr)

guest_need() {
	need cpio mke2fs mkswap setpriv timeout python3 "${CROSS_COMPILE}gcc" "$QEMU"
	[[ $GUEST == small ]] || need busybox
}

# guest_program NAME: ci/guest/NAME.c for the guest; prints the path of the program.
guest_program() {
	local program=$OUT/guest/$ARCH/$1 new
	if ! [[ $program -nt $TOP/ci/guest/$1.c ]]; then
		mkdir -p "${program%/*}"
		new=$(mktemp "$program.XXXXXX")
		"${CROSS_COMPILE}gcc" -static -O2 -Wall -Wextra -o "$new" "$TOP/ci/guest/$1.c" ||
			harness_error "ci/guest/$1.c does not build"
		chmod 755 "$new"
		mv -f "$new" "$program"
	fi
	printf '%s\n' "$program"
}

guest_nonce() { od -An -N12 -tx1 /dev/urandom | tr -d ' \n'; }

# The job, a script for bash or (GUEST=small) for ci/guest/run.c, is DIR/job; without one, an empty one.
guest_initramfs() {
	local build=$1 dir=$2 root init id
	shift 2
	init=$(guest_program init)
	root=$(mktemp -d "$dir/initramfs.XXXXXX")
	GUEST_NONCE=$(guest_nonce)
	mkdir -p "$root"/{bin,ci,dev,proc,sys}
	cp "$init" "$root/init"
	if [[ $GUEST == small ]]; then
		guest_small "$build" "$root"
		set -- "$@" small=1
		[[ -e $root/bin/bash ]] || set -- "$@" runner=/ci/run
	elif guest_native; then
		# Of use with rdinit=/bin/sh alone.
		cp "$(command -v busybox)" "$root/bin/busybox"
		ln -s busybox "$root/bin/sh"
	fi
	id=
	if [[ -f $build/vmlinux ]]; then id=$(readelf -n "$build/vmlinux" | sed -n 's/^ *Build ID: //p'); fi
	printf '%s\n' "nonce=$GUEST_NONCE" "console=$CONSOLE" "build-id=$id" "$@" >"$root/ci/options"
	if [[ -f $dir/job ]]; then cp "$dir/job" "$root/ci/job"; else : >"$root/ci/job"; fi
	(cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --reproducible --quiet) \
		>"$dir/initramfs.cpio" || harness_error "cpio failed"
	rm -rf "$root"
}

guest_native() { [[ $(uname -m) == "$ARCH" ]]; }

# guest_small BUILD ROOT: the content of an initramfs that stays the root: what runs the job, the modules, and no
# shell, but for what somebody has put into $OUT/sysroot/$ARCH. If the facts say DEBIAN=..., that has mkfs.
guest_small() {
	local build=$1 root=$2 run
	run=$(guest_program run)
	mkdir -p "$root"/{ci/modules,etc,ksft,mnt,root,run,tmp}
	ln -s /proc/self/mounts "$root/etc/mtab"
	cp "$run" "$root/ci/run"
	[[ -z $DEBIAN ]] || "$TOP/ci/lib/sysroot.sh" "$ARCH" "$DEBIAN"
	if [[ -d $OUT/sysroot/$ARCH ]]; then cp -a "$OUT/sysroot/$ARCH/." "$root/"; fi
	if [[ -d $build/mods ]]; then
		find "$build/mods" -name '*.ko' -exec cp -t "$root/ci/modules" {} +
	fi
}

# guest_libraries ROOT FILE...: copies the libraries that the dynamic programs among FILE... load.
guest_libraries() {
	local root=$1 lib list
	shift
	list=$({ ldd "$@" 2>/dev/null || true; } |
		sed -n -e 's/^\t.* => \(.*\)$/\1/p' -e 's/^\t\(\/[^ ]*\) (0x.*/\1/p' | sed 's/ (0x.*//' | sort -u)
	if [[ $list == *'not found'* ]]; then
		harness_error "a program for the guest lacks a library: $(ldd "$@" 2>/dev/null | grep -m 1 'not found')"
	fi
	while read -r lib; do
		if [[ $lib == /* && ! -e $root$lib ]]; then
			mkdir -p "$root$(dirname "$lib")"
			cp -L "$lib" "$root$lib"
		fi
	done <<<"$list"
}

# guest_stage BUILD ROOT [EXTRA_DIR]: the content of the disk.
guest_stage() {
	local build=$1 root=$2 extra=${3-} p path elf=()
	mkdir -p "$root"/usr/{bin,sbin,lib,lib64} \
		"$root"/{ci,dev,etc,ksft/mm,mnt,proc,root,run,sys,tmp,var/tmp}
	for p in bin sbin lib lib64; do ln -s "usr/$p" "$root/$p"; done
	ln -s /proc/self/mounts "$root/etc/mtab"
	printf 'root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$root/etc/passwd"
	printf 'root:x:0:\ntty:x:5:\nnogroup:x:65534:\n' >"$root/etc/group"
	# the last file a shell of --shell reads
	printf 'PS1="guest:\\w# "\n' >"$root/root/.bashrc"
	if [[ -d $build/mods/lib/modules ]]; then cp -a "$build/mods/lib/modules" "$root/usr/lib/"; fi
	if [[ -d $build/ksft ]]; then cp -a "$build/ksft/." "$root/ksft/"; fi
	if [[ -n $extra ]]; then mkdir "$root/extra" && cp -a "$extra/." "$root/extra/"; fi
	# kbuild's links lead to the host's trees
	rm -f "$root"/usr/lib/modules/*/{build,source}

	if guest_native; then
		cp "$(command -v busybox)" "$root/usr/bin/busybox"
		for p in "${GUEST_PROGRAMS[@]}"; do
			path=$(command -v "$p") || harness_error "command '$p' is missing; to install what is needed: ci/run deps"
			cp -L "$path" "$root/usr/bin/$p"
			elf+=("$path")
		done
	else
		[[ -d $OUT/sysroot/$ARCH/usr ]] ||
			harness_error "$ARCH is not this machine's architecture: put its bash, busybox and libraries into $OUT/sysroot/$ARCH/, or have GUEST=small in ci/configs/arch/$ARCH.facts"
		cp -a "$OUT/sysroot/$ARCH/." "$root/"
	fi
	for p in $(busybox --list); do
		[[ -e $root/usr/bin/$p || -e $root/usr/sbin/$p ]] || ln -s busybox "$root/usr/bin/$p"
	done
	if guest_native; then
		mapfile -d '' -t -O "${#elf[@]}" elf < <(find "$root/ksft" "$root/${extra:+extra}" -xdev \
			-not -path "$root/usr/*" -type f -perm -u+x -size +4k -print0)
		guest_libraries "$root" "${elf[@]}"
	fi
}

guest_disk() {
	local build=$1 image=$2 extra=${3-} root size key old=
	key=$({
		sha256sum "$TOP/ci/lib/guest.sh"
		printf '%s %s\n' "$GUEST $GUEST_FREE_MIB" "$(command -v busybox bash | xargs sha256sum)"
		{ find "$build/ksft/" "$build/mods/" ${extra:+"$extra"} -printf '%P %y %m %s %T@ %l\n' 2>/dev/null || true; } | sort
	} | sha256sum)
	if [[ -f $image.key ]]; then old=$(<"$image.key"); fi
	if [[ -f $image && $old == "$key" ]]; then return; fi

	mkdir -p "$(dirname "$image")"
	rm -f "$image" "$image.key"
	root=$(mktemp -d "$image.XXXXXX")
	if [[ $GUEST == small ]]; then
		mkdir "$root/mm"
		if [[ -d $build/ksft ]]; then cp -a "$build/ksft/." "$root/"; fi
	else
		guest_stage "$build" "$root" "$extra"
	fi
	size=$(du -sm --apparent-size "$root" | cut -f1)
	# a tenth and 64 MiB are for inode tables, the journal and blocks that are not full
	size=$((size + size / 10 + 64 + GUEST_FREE_MIB))
	mke2fs -q -F -t ext4 -b 4096 -m 0 -L root -E root_owner=0:0 -d "$root" "$root.img" "${size}m" >"$image.log" 2>&1 ||
		harness_error "mke2fs failed, see $image.log"
	rm -rf "$root"
	mv -f "$root.img" "$image"
	printf '%s\n' "$key" >"$image.key"
}

guest_qemu() {
	local build=$1 dir=$2 disk=$3 append accel
	case $GUEST_ACCEL in
	kvm) accel=kvm ;;
	tcg)
		# Where there is just one CPU, QEMU may not know how to emulate several.
		accel=tcg
		[[ ${GUEST_SMP:-$SMP} == 1 ]] || accel+=,thread=multi ;;
	*) accel=$GUEST_ACCEL ;;
	esac
	append="console=$CONSOLE panic=-1 oops=panic unknown_nmi_panic loglevel=8 ignore_loglevel printk.time=1 nokaslr"
	# An emulated CPU on a busy host is slow, not stuck.
	if [[ $GUEST_ACCEL != kvm ]]; then append+=" watchdog_thresh=30 rcupdate.rcu_cpu_stall_timeout=60"; fi
	append+="${APPEND:+ $APPEND}${GUEST_APPEND:+ $GUEST_APPEND}"

	QEMU_CMD=("$QEMU" -nodefaults -no-user-config -no-reboot -display none -rtc base=utc
		-machine "$MACHINE" -cpu "$CPU" -accel "$accel" -smp "${GUEST_SMP:-$SMP}" -m "${GUEST_MEM:-$MEM}"
		-kernel "$build/$IMAGE" -initrd initramfs.cpio -append "$append"
		-device "$VIRTIO_SERIAL,max_ports=4"
		-chardev file,id=ktap,path=ktap.log -device virtserialport,chardev=ktap,name=ktap
		-chardev file,id=token,path=token -device virtserialport,chardev=token,name=token
		-object rng-random,id=rng,filename=/dev/urandom -device "$VIRTIO_RNG,rng=rng")
	if [[ -n $GPU ]]; then QEMU_CMD+=(-device "$GPU"); fi
	if [[ -n $IVSHMEM ]]; then
		QEMU_CMD+=(-object "memory-backend-ram,id=vram,size=$VRAM,share=on,reserve=off" -device "$IVSHMEM,memdev=vram")
	fi
	if [[ -n $GUEST_SHELL ]]; then
		QEMU_CMD+=(-chardev stdio,id=console,mux=on,signal=off,logfile=console.log
			-serial chardev:console -mon chardev=console)
	else
		QEMU_CMD+=(-chardev file,id=console,path=console.log -serial chardev:console
			-monitor unix:monitor,server=on,wait=off)
	fi
	if [[ -n $disk ]]; then
		# Nothing is written back: each boot starts from the same disk.
		ln -sf "$disk" "$dir/root.img"
		QEMU_CMD+=(-drive if=none,id=root,file=root.img,format=raw,snapshot=on,cache=unsafe
			-device "$VIRTIO_BLK,drive=root,serial=root")
		truncate -s "${GUEST_SWAP_MIB}M" "$dir/swap.img"
		mkswap --pagesize "$PAGE_SIZE" "$dir/swap.img" >"$dir/mkswap.log" 2>&1 || harness_error "mkswap failed, see $dir/mkswap.log"
		QEMU_CMD+=(-drive if=none,id=swap,file=swap.img,format=raw,cache=unsafe
			-device "$VIRTIO_BLK,drive=swap,serial=swap")
	fi
	QEMU_CMD+=("${GUEST_EXTRA[@]}")
	{
		printf 'cd %q &&' "$dir"
		printf ' %q' "${QEMU_CMD[@]}"
		printf '\n'
	} >"$dir/qemu.cmd"
}

# An NMI makes the kernel panic with a backtrace, when it still can.
guest_backtrace() {
	(cd "$1" && timeout 5 python3 - <<-'END'
		import socket
		s = socket.socket(socket.AF_UNIX)
		s.settimeout(3)
		s.connect("monitor")
		s.recv(4096)
		s.sendall(b"info registers -a\nnmi\n")
		text = b""
		try:
		    while True:
		        data = s.recv(65536)
		        if not data:
		            break
		        text += data
		except OSError:
		    pass
		open("registers.log", "wb").write(text)
	END
	) >/dev/null 2>&1 || true
}

# Prints what was added to FILE after byte SEEN, whole lines only; sets SEEN.
_guest_follow() {
	local file=$1 text
	text=$(tail -c +$((SEEN + 1)) "$file" 2>/dev/null | tr '\0' '?'; printf x)
	text=${text%x}
	[[ $text == *$'\n'* ]] || return 1
	text=${text%"${text##*$'\n'}"}
	SEEN=$((SEEN + $(printf '%s' "$text" | wc -c)))
	printf '%s' "$text"
}

# With FOLLOW, the job's output appears on stdout as it comes.
guest_run() {
	local dir=$1 limit=$2 follow=${3-} pid start next line rc=0 SEEN=0 last
	GUEST_TIMEOUT=no GUEST_TOKEN=missing GUEST_STATUS=none
	rm -f "$dir"/{console.log,ktap.log,token,monitor,registers.log}
	: >"$dir/ktap.log"
	start=$SECONDS
	if [[ -n $GUEST_SHELL ]]; then
		env -C "$dir" TMPDIR="$dir" "${QEMU_CMD[@]}" || rc=$?
	else
		# The guest goes when this shell does, however that ends.
		env -C "$dir" TMPDIR="$dir" setpriv --pdeathsig KILL "${QEMU_CMD[@]}" </dev/null >"$dir/qemu.log" 2>&1 &
		pid=$!
		# shellcheck disable=SC2064
		trap "kill -KILL $pid 2>/dev/null; exit 130" INT TERM HUP
		next=$((SECONDS + ${PROGRESS_EVERY:-10}))
		while kill -0 "$pid" 2>/dev/null; do
			sleep 0.2
			if [[ -n $follow ]] && _guest_follow "$dir/ktap.log"; then
				next=$((SECONDS + ${PROGRESS_EVERY:-10}))
			fi
			if ((SECONDS >= next)); then
				next=$((SECONDS + ${PROGRESS_EVERY:-10}))
				last=$(tail -c 400 "$dir/console.log" 2>/dev/null | tr '\r' '\n' | tr -cd '[:print:]\n' |
					sed '/^[[:space:]]*$/d' | tail -n 1 | cut -c1-100) || last=
				printf '%s: guest (%s) %s | %s\n' "$STAGE" "$GUEST_ACCEL" "$(_elapsed $((SECONDS - start)))" "$last" >&2
			fi
			if ((SECONDS - start >= limit)) && [[ $GUEST_TIMEOUT == no ]]; then
				GUEST_TIMEOUT=yes
				warn "the guest has not ended after $limit s"
				guest_backtrace "$dir"
				sleep 2
				kill -KILL "$pid" 2>/dev/null || true
			fi
		done
		wait "$pid" || rc=$?
		trap - INT TERM HUP
		if [[ -n $follow ]]; then _guest_follow "$dir/ktap.log" || true; fi
	fi
	GUEST_SECONDS=$((SECONDS - start))
	rm -f "$dir/monitor"
	if ((rc)) && [[ $GUEST_TIMEOUT == no && ! -s $dir/console.log ]]; then
		sed 's/^/    /' "$dir/qemu.log" >&2
		harness_error "QEMU ended with status $rc, see $dir/qemu.cmd"
	fi
	if [[ -s $dir/token ]]; then
		line=$(head -n 1 "$dir/token")
		if [[ $line =~ ^([0-9a-f]+)\ ([0-9]+)$ && ${BASH_REMATCH[1]} == "$GUEST_NONCE" &&
			$(wc -l <"$dir/token") -eq 1 ]]; then
			GUEST_TOKEN=ok GUEST_STATUS=${BASH_REMATCH[2]}
		else
			GUEST_TOKEN=wrong
		fi
	fi
}

# A /dev/kvm that opens does not mean that a guest runs: that takes a boot.
guest_probe_kvm() {
	local build=$1 boot cache dir verdict=tcg
	if ! [[ -r /dev/kvm && -w /dev/kvm ]] || ! guest_native; then echo tcg; return; fi
	boot=$(cat /proc/sys/kernel/random/boot_id)
	cache=$OUT/kvm-probe.$boot
	if ! [[ -s $cache ]]; then
		mkdir -p "$OUT"
		dir=$(mktemp -d "$OUT/kvm-probe.XXXXXX")
		guest_initramfs "$build" "$dir" probe=1
		(
			GUEST_ACCEL=kvm GUEST_SHELL='' GUEST_EXTRA=()
			guest_qemu "$build" "$dir" ''
			cd "$dir"
			timeout -k 1 20 "${QEMU_CMD[@]}" </dev/null >qemu.log 2>&1
		) 2>/dev/null || true
		if [[ -s $dir/token && $(<"$dir/token") == "$GUEST_NONCE 0" ]]; then verdict=kvm; fi
		printf '%s\n' "$verdict" >"$dir/verdict"
		mv -f "$dir/verdict" "$cache"
		rm -rf "$dir"
	fi
	cat "$cache"
}

guest_accel() {
	local request=$1 build=$2 probed
	if [[ $request == tcg ]]; then GUEST_ACCEL=tcg; return; fi
	probed=$(guest_probe_kvm "$build")
	if [[ $request == kvm && $probed != kvm ]]; then
		harness_error "KVM does not run a guest here (/dev/kvm is missing, or a probe boot did not end within 20 s; remove $OUT/kvm-probe.* to try again)"
	fi
	GUEST_ACCEL=$probed
}

# guest_limit VARIANT: seconds that a boot with the tests may take.
guest_limit() {
	local limit=300
	if [[ $GUEST_ACCEL != kvm ]]; then limit=$((limit * 6)); fi
	if [[ $1 == debug ]]; then limit=$((limit * 3)); fi
	printf '%s\n' "$limit"
}
