# What the benches share; sourced by them, after `bin`, `image` and `rounds` are set.
# shellcheck shell=bash disable=SC2034,SC2154

folder=$(mktemp -d /var/tmp/bench.XXXXXX); chmod 711 "$folder"
pids=()
finish() {
  local status=${1:-$?}
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$folder"
  exit "$status"
}
trap finish EXIT

need_tools() {
  local tool
  for tool; do
    command -v "$tool" >/dev/null || die "$tool is missing; install what tests/packages.txt lists"
  done
}
die() { echo "${0##*/}: $*" >&2; exit 1; }
now() { echo $(($(date +%s%N) / 1000000)); }
median() { tr ' ' '\n' <<<"$*" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else print "-" }'; }

# An initramfs whose init runs these commands of busybox, called $b.
make_initramfs() { # COMMANDS
  mkdir -p "$folder/ird/bin" "$folder/ird/dev"
  cp /bin/busybox "$folder/ird/bin/"
  [[ -e $folder/ird/dev/console ]] || mknod "$folder/ird/dev/console" c 5 1
  printf '#!/bin/busybox sh\nb=/bin/busybox\n%s\n' "$1" >"$folder/ird/init"; chmod +x "$folder/ird/init"
  (cd "$folder/ird" && find . | cpio -o -H newc --quiet >"$folder/initramfs")
}

# A plan to run a machine by hand, with one vCPU and that initramfs.
write_plan() { # FILE MIB [MORE]
  cat >"$1" <<PLAN
{"spec":{"vm":"abcdefghij0123456789","instance":"in-abcdefghij0123456789","image":"default","vcpus":1,"memory_mib":$2,
"disk_mib":2048,"nic":null,"boot":{"hostname":"bench","network":null,"unix_nanoseconds":0}},
"kernel":"$image/kernel","initramfs":"$folder/initramfs","rootfs":"$image/rootfs.img","folder":"$folder/vm",
"console_bytes":1048576${3-}}
PLAN
}

await_line() { # WORD LOG PID
  { timeout 120 tail -n +1 -s 0.02 -F --pid="$3" "$2" 2>/dev/null || true; } | grep -qm1 "$1" ||
    die "no $1 within 120 s: $(tail -c 500 "$2")"
}

# QEMU's machine that is most like ours, with the same kernel, initramfs and image. Sets `machine`.
qemu() { # MIB ARGUMENTS [MORE ...]
  local mib=$1 arguments=$2
  shift 2
  qemu-system-x86_64 -M microvm,acpi=on -enable-kvm -cpu host -m "$mib" -smp 1 -nodefaults -no-user-config \
    -display none -serial "file:$folder/qemu.console" -kernel "$image/kernel" -initrd "$folder/initramfs" \
    -append "$arguments" -drive "id=d,file=$image/rootfs.img,format=raw,if=none,snapshot=on" \
    -device virtio-blk-device,drive=d -device virtio-rng-device "$@" >"$folder/qemu.log" 2>&1 &
  machine=$!; pids+=("$machine")
}
ended() { kill "$machine" 2>/dev/null || true; wait "$machine" 2>/dev/null || true; pids=("${pids[@]/$machine/}"); }

# A house of our own in the folder; sets `up`.
open_house() { # [FLAG ...]
  mkfifo "$folder/ready"
  "$bin/gatehouse" up --data-dir "$folder/data" --run-dir "$folder/run" --image-dir "${GATEHOUSE_IMAGES}" \
    --domain style.dev --https 127.0.0.1:443 --http 127.0.0.1:80 --ready-fd 9 \
    --default-vcpus 1 --default-memory-mib 512 --default-disk-mib 4096 "$@" \
    9>"$folder/ready" >"$folder/up.log" 2>&1 & up=$!; pids+=("$up")
  timeout 120 head -n1 "$folder/ready" | grep -q READY || die "the house does not open: $(tail "$folder/up.log")"
}
gatehouse() { "$bin/gatehouse" --run-dir "$folder/run" "$@"; }
