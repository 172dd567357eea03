#!/bin/bash
# Sleep, wake and copies in figures, in one run, beside QEMU where it does the same. Needs a KVM that runs a stock guest;
# without one:
#
#   ./test bench        (builds what is measured, then runs this in tests/bed)
#
# Prints Markdown tables: a saved machine from process start to its next line, beside QEMU's -incoming of the same
# guest; how long a machine stands still for a copy, by size; forks of a VM with a gigabyte in use; memory of an idle
# fork; create from a snapshot beside a cold boot; suspend and wake of a whole Debian. GATEHOUSE_BIN and
# GATEHOUSE_IMAGES say what is measured; PARTS=forks, for one, does that part alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin
bin=${GATEHOUSE_BIN:?names the folder of the programs} image=${GATEHOUSE_IMAGES:?names the folder of images}/default
rounds=${ROUNDS:-3} forks=${FORKS:-20} resident=${RESIDENT_MIB:-1024} parts=${PARTS:-saved debian forks}
# Forks share their memory: what they are promised together is far more than they ever have.
promised=$(((forks + 2) * 2 * resident))
. tests/bench/common.sh
need_tools qemu-system-x86_64 jq python3

# --- a saved machine goes on, beside QEMU ------------------------------------------------------------------------------
# A guest that counts; the time ends when it prints its next number.
mib=256
make_initramfs '$b mkdir /proc
$b mount -t proc proc /proc
$b echo ARGUMENTS $($b cat /proc/cmdline)
n=0
while $b usleep 20000; do n=$((n + 1)); $b echo TICK $n; done'
write_plan "$folder/boot.json" "$mib"
write_plan "$folder/wake.json" "$mib" ',"restore":"same"'
# Asks a machine that is run by hand to suspend; returns when its process says that this is durable.
suspend() {
  python3 - "$folder/vm/control.sock" <<'PY'
import json, socket, sys
wire = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
wire.connect(sys.argv[1])
wire.send(json.dumps({"ask": "suspend"}).encode())
said = json.loads(wire.recv(1 << 16))
assert said["say"] == "done", said
PY
}
# Says something to QEMU's monitor, and waits for an answer that matches.
monitor() { # COMMAND PATTERN
  python3 - "$folder/monitor" "$@" <<'PY'
import re, socket, sys
wire = socket.socket(socket.AF_UNIX)
wire.connect(sys.argv[1])
wire.settimeout(120)
stream = wire.makefile("rwb", buffering=0)
def until(pattern):
    said = b""
    while not re.search(pattern, said):
        piece = wire.recv(4096)
        assert piece, said
        said += piece
    return said
until(rb"\(qemu\) ")
while True:
    stream.write(sys.argv[2].encode() + b"\n")
    said = until(rb"\(qemu\) $")
    if re.search(sys.argv[3].encode(), said):
        break
PY
}
last_tick() { tr -d '\r' <"$1" | awk '/^TICK [0-9]+$/ { n = $2 } END { print n + 0 }'; }
# The first number after a restore follows the last one before it: nothing was lost, and it did not boot.
follows() { # BEFORE LOG
  local first; first=$(tr -d '\r' <"$2" | awk -v n="$1" '/^TICK [0-9]+$/ && $2 > n { print $2; exit }')
  [[ $first == $(($1 + 1)) ]] || die "the number after $1 is $first"
}
# Prints the first table.
bench_saved() {
# QEMU that goes on from a state would stay stopped, since it was when that was saved.
starts=(-global migration.store-global-state=off)
ours_took=() peer_took=() ours_frozen=() peer_frozen=()
for _ in $(seq "$rounds"); do
  rm -rf "$folder/vm"; mkdir "$folder/vm"
  "$bin/vmm" run --plan "$folder/boot.json" >"$folder/vmm.log" 2>&1 & machine=$!; pids+=("$machine")
  await_line "TICK 50" "$folder/vm/console.log" "$machine"
  arguments=$(sed -n 's/^ARGUMENTS //p' "$folder/vm/console.log" | tr -d '\r')
  begun=$(now); suspend; ours_frozen+=($(($(now) - begun)))
  wait "$machine" || die "the suspended machine: $(tail -3 "$folder/vmm.log")"
  before=$(last_tick "$folder/vm/console.log")
  begun=$(now)
  "$bin/vmm" run --plan "$folder/wake.json" >"$folder/vmm.log" 2>&1 & machine=$!; pids+=("$machine")
  await_line "TICK $((before + 1))" "$folder/vm/console.log" "$machine"
  ours_took+=($(($(now) - begun))); follows "$before" "$folder/vm/console.log"
  ended

  : >"$folder/qemu.console"
  qemu "$mib" "$arguments" "${starts[@]}" -monitor "unix:$folder/monitor,server,nowait"
  await_line "TICK 50" "$folder/qemu.console" "$machine"
  begun=$(now)
  monitor stop . ; monitor "migrate file:$folder/qemu.state" . ; monitor "info migrate" "Status: completed|status: completed"
  peer_frozen+=($(($(now) - begun)))
  ended; rm -f "$folder/monitor"
  before=$(last_tick "$folder/qemu.console"); : >"$folder/qemu.console"
  begun=$(now)
  qemu "$mib" "$arguments" "${starts[@]}" -incoming "file:$folder/qemu.state"
  await_line "TICK $((before + 1))" "$folder/qemu.console" "$machine"
  peer_took+=($(($(now) - begun))); follows "$before" "$folder/qemu.console"
  ended; rm -f "$folder/qemu.state"
done
echo "| one VM, 256 MiB, 1 vCPU, ms (median of $rounds) | ours | QEMU microvm | ratio |"
echo "|---|---|---|---|"
row() { # NAME OURS... -- PEER...
  local name=$1 ours=() peer=()
  shift
  while [[ $1 != -- ]]; do ours+=("$1"); shift; done
  shift; peer=("$@")
  echo "| $name (${ours[*]} : ${peer[*]}) | $(median "${ours[@]}") | $(median "${peer[@]}") |" \
    "$(ratio "$(median "${ours[@]}")" "$(median "${peer[@]}")") |"
}
row "a saved machine, process start to its next line" "${ours_took[@]}" -- "${peer_took[@]}"
row "written and durable (QEMU: written), the guest stands still" "${ours_frozen[@]}" -- "${peer_frozen[@]}"
echo
}

# --- a whole Debian, through the API ----------------------------------------------------------------------------------
vm() { gatehouse vm "$@"; }
answers() { [[ $(vm exec "$1" -- echo yes) == yes ]] || die "$1 does not answer"; }
# How long the machine stood still for the last copy, in ms, as its process says.
stood_still() { last_of stood_still; }
# The last time of that name in the log, in ms.
last_of() { sed 's/\x1b\[[0-9;]*m//g' "$folder/up.log" | grep -o "$1=[^ ]*" | tail -1 | cut -d= -f2 |
  awk '/µs$/ { print $1 / 1000; next } /ms$/ { print $1 + 0; next } { print $1 * 1000 }'; }
timed() { local begun; begun=$(now); "$@" >"$folder/out"; took=$(($(now) - begun)); }

bench_debian() {
cold=()
for _ in $(seq "$rounds"); do
  begun=$(now); id=$(vm create --idle-timeout never --json | jq -re .id); answers "$id"; cold+=($(($(now) - begun)))
  [[ ${source-} ]] || { source=$id; continue; }
  vm delete "$id" >/dev/null
done
snapshot=$(vm snapshot "$source" --json | jq -re '.snapshotId // .id')
snapshot_still=$(stood_still)
warm=() made=()
for _ in $(seq $((rounds * 3))); do
  begun=$(now); id=$(vm create --snapshot "$snapshot" --idle-timeout never --json | jq -re .id); made+=($(($(now) - begun)))
  answers "$id"; warm+=($(($(now) - begun)))
  vm delete "$id" >/dev/null
done
suspended=() woken=() first=() process=()
for _ in $(seq "$rounds"); do
  timed vm suspend "$source"; suspended+=("$took")
  begun=$(now); vm start "$source" >/dev/null; woken+=($(($(now) - begun)))
  process+=("$(last_of order_to_run)")
  answers "$source"; first+=($(($(now) - begun)))
done
echo "| a Debian of 512 MiB, 1 vCPU, through the API | ms, median | all |"
echo "|---|---|---|"
line() { local name=$1; shift; echo "| $name | $(median "$@") | $* |"; }
line "cold boot, create to the answer of the first exec" "${cold[@]}"
line "create from a snapshot, to its answer" "${made[@]}"
line "create from a snapshot, to the answer of the first exec" "${warm[@]}"
line "suspend" "${suspended[@]}"
line "wake: the waiting process, from its order to the guest's next instruction" "${process[@]}"
line "wake by start, to its answer" "${woken[@]}"
line "wake by start, to the answer of the next exec" "${first[@]}"
echo "| cold : from a snapshot | $(ratio "$(median "${cold[@]}")" "$(median "${warm[@]}")") | |"
echo "| creations from a snapshot a second, one after the other | $(awk -v ms="$(median "${made[@]}")" 'BEGIN { printf "%.2f", 1000 / ms }') | |"
echo "| snapshot's standstill | $snapshot_still | |"
echo
vm delete "$source" >/dev/null
}

# --- forks ------------------------------------------------------------------------------------------------------------
bench_forks() {
echo "| standstill of a fork, by memory in use (MiB of the VM, filled) | ms |"
echo "|---|---|"
for size in 512 1024 2048; do
  id=$(vm create --memory "$size" --idle-timeout never --json | jq -re .id)
  vm exec "$id" -- sh -c "mount -o remount,size=90% /dev/shm; head -c $((size * 6 / 10))M /dev/zero | tr '\\0' x >/dev/shm/fill"
  child=$(vm fork "$id" -n 1 | awk 'NF { print $1 }' | tail -1)
  echo "| $size, $((size * 6 / 10)) | $(stood_still) |"
  vm delete "$child" >/dev/null; vm delete "$id" >/dev/null
done
echo
id=$(vm create --memory $((2 * resident)) --idle-timeout never --json | jq -re .id)
vm exec "$id" -- sh -c "mount -o remount,size=90% /dev/shm; head -c ${resident}M /dev/zero | tr '\\0' x >/dev/shm/fill"
begun=$(now)
vm fork "$id" -n "$forks" >"$folder/children"
mapfile -t children < <(awk 'NF { print $1 }' "$folder/children" | tail -n "$forks")
[[ ${#children[@]} == "$forks" ]] || die "of $forks forks there are ${#children[@]}"
forked=$(($(now) - begun))
for child in "${children[@]}"; do
  [[ $(vm exec "$child" -- sh -c 'tail -c 1 /dev/shm/fill') == x ]] || die "the fork $child lost its memory"
done
all=$(($(now) - begun))
# Pages that a fork's process has for itself alone.
private() {
  local pid; pid=$(pgrep -f 'vmm run' | while read -r pid; do
    [[ $(readlink "/proc/$pid/cwd") == *"/$1" ]] && echo "$pid"; done | head -1)
  awk '/^Private_(Dirty|Clean):/ { sum += $2 } END { printf "%d", sum / 1024 }' "/proc/$pid/smaps_rollup"
}
own=(); for child in "${children[@]}"; do own+=("$(private "$child")"); done
echo "| $forks forks of a VM with $resident MiB in use | |"
echo "|---|---|"
echo "| standstill of the VM, ms | $(stood_still) |"
echo "| all made, ms | $forked |"
echo "| all made, and each has answered with the last byte of that memory, ms | $all |"
echo "| private memory of a fork that has answered, MiB (median of ${own[*]}) | $(median "${own[@]}") |"
}

for part in $parts; do
  case $part in
    saved) bench_saved ;;
    debian | forks) [[ ${up-} ]] || open_house --vm-memory-mib "$promised"; "bench_$part" ;;
    *) die "no part $part" ;;
  esac
done
