#!/usr/bin/env bash
# tests/bench/ssh.sh: SSH directly to an sshd, through another sshd (ProxyJump) and through ssh-proxy, side by side.
#
#   tests/bench/ssh.sh [MEBIBYTES] [ROUNDS]      (default: 1024 and 5)
#
# All on 127.0.0.1, with aes128-gcm and curve25519 on each leg, in turns, medians. Prints ratios: figures of their own
# say more of the machine. `far` is an upload over a way there and back of 40 ms, which a relay makes; `live` is the
# slowest of a hundred echoes beside a stalled channel of the same connection, and with nobody beside it. Builds for
# release first; SSH_BIN takes the programs (ssh-proxy, examples/bench_ssh) of that folder and builds nothing. As root.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
mebibytes=${1:-1024} rounds=${2:-5}
# Enough that the window's growth is a small part of it.
far_mebibytes=$((mebibytes / 2))
if [[ -n ${SSH_BIN:-} ]]; then
  target=$SSH_BIN
else
  patches/apply
  cargo build --quiet --release --locked -p ssh-proxy --features test-parts --bins --example bench_ssh
  target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/release
fi

coproc WORLD { RUST_LOG=warn exec "$target/examples/bench_ssh"; }
read -r line <&"${WORLD[0]}"
# Words NAME=VALUE of our own program.
eval "$line"
work=$(mktemp -d)
relays=()
trap 'kill "${relays[@]}" || true; rm -rf "$work"; echo >&"${WORLD[1]}" || true; wait' EXIT

cat >"$work/config" <<END
Host *
  HostName 127.0.0.1
  BatchMode yes
  LogLevel ERROR
  IdentityAgent none
  Ciphers aes128-gcm@openssh.com
  KexAlgorithms curve25519-sha256
  UserKnownHostsFile $folder/known_hosts
Host direct jump hop far-direct
  Port $sshd
  User root
  IdentityFile $folder/direct
  CertificateFile $folder/direct-cert.pub
Host jump
  ProxyCommand ssh -F $work/config -W %h:%p hop
Host front far-front
  Port $front
  User $user
  IdentityFile none
END

# Prints its own port.
relay() { # PORT
  exec python3 -u - "$1" 0.02 <<'END'
import collections, socket, sys, threading, time

# Bytes under way in one direction above which no more are taken, as of a link of 1.6 GB/s.
MOST = 32 << 20

def carry(source, target, delay):
    under_way, change, size = collections.deque(), threading.Condition(), 0
    def arrive():
        nonlocal size
        while True:
            with change:
                change.wait_for(lambda: under_way)
                at, data = under_way.popleft()
            time.sleep(max(0, at - time.monotonic()))
            try:
                target.sendall(data) if data else target.shutdown(socket.SHUT_WR)
            except OSError:
                # The end is gone: what is for it is taken, and goes nowhere.
                data, size = b"", float("-inf")
            with change:
                size -= len(data)
                change.notify()
            if not data:
                return
    threading.Thread(target=arrive, daemon=True).start()
    data = b"more"
    while data:
        try:
            data = source.recv(1 << 18)
        except OSError:
            data = b""
        with change:
            change.wait_for(lambda: size < MOST)
            size += len(data)
            under_way.append((time.monotonic() + delay, data))
            change.notify()

listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1])
while True:
    near, _ = listener.accept()
    far = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    for end in near, far:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for ends in (near, far), (far, near):
        threading.Thread(target=carry, args=(*ends, float(sys.argv[2])), daemon=True).start()
END
}
for way in direct front; do
  [[ $way == direct ]] && port=$sshd || port=$front
  relay "$port" >"$work/relay.$way" & relays+=($!)
  until [[ -s $work/relay.$way ]]; do sleep 0.1; done
  # The first value of a setting counts.
  cat - "$work/config" >"$work/new" <<END
Host far-$way
  Port $(<"$work/relay.$way")
  HostKeyAlias [127.0.0.1]:$port
END
  mv "$work/new" "$work/config"
done

now() { date +%s%N; }
median() { sort -n "$1" | awk '{ a[NR] = $1 } END { print a[int((NR + 1) / 2)] }'; }
to() { ssh -F "$work/config" "$@"; }
up() { head -c "${mebibytes}M" /dev/zero | to "$1" 'cat >/dev/null'; }
down() { to "$1" "head -c ${mebibytes}M /dev/zero" >/dev/null; }
setup() { for _ in 1 2 3 4 5; do sftp -q -F "$work/config" -b /dev/stdin "$1" <<<quit >/dev/null; done; }
# A byte there and back, many times over one session: the time of a part of a hundred of them, in ns.
echoes() { # PERCENT TIMES HOST [OPTION ...]
  python3 - "$1" "$2" ssh -F "$work/config" "${@:3}" cat <<'END'
import subprocess, sys, time
percent, count = map(int, sys.argv[1:3])
ssh = subprocess.Popen(sys.argv[3:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
times = []
for _ in range(count):
    begun = time.perf_counter_ns()
    ssh.stdin.write(b"x")
    ssh.stdout.read(1)
    times.append(time.perf_counter_ns() - begun)
ssh.stdin.close()
ssh.wait()
print(sorted(times)[count * percent // 100])
END
}
# Beside a channel whose output nobody reads, over one connection of WAY, and alone.
live() { # WAY
  local way=$1 control=$work/control
  ssh -F "$work/config" "$way" -MNS "$control" & local master=$!
  until [[ -S $control ]]; do sleep 0.1; done
  echoes 99 2000 "$way" -S "$control" >>"$work/alone.$way"
  mkfifo "$work/unread"
  exec {unread}<>"$work/unread"
  ssh -F "$work/config" "$way" -S "$control" yes >"$work/unread" & local stalled=$!
  # All windows and pipes are full by then.
  sleep 2
  echoes 99 2000 "$way" -S "$control" >>"$work/beside.$way"
  kill "$stalled" "$master"
  wait "$stalled" "$master" 2>/dev/null || true
  exec {unread}>&-
  rm -f "$control" "$work/unread"
}

# First, while what the process has taken for busy sessions before does not serve the idle ones; after one has made it take
# what it takes once.
rss() { awk '/^VmRSS/ { print $2 }' "/proc/$pid/status"; }
to front true
before=$(rss) sessions=()
# Few at a time: an address may have sixteen that have not logged in.
for _ in $(seq 50); do ssh -F "$work/config" -N front & sessions+=($!); sleep 0.3; done
sleep 2
echo "idle   KiB a session: $((($(rss) - before) / 50))"
kill "${sessions[@]}"
wait "${sessions[@]}" 2>/dev/null || true

for round in $(seq "$rounds"); do
  for way in direct jump front; do
    for what in up down setup; do
      begun=$(now)
      "$what" "$way"
      echo $(($(now) - begun)) >>"$work/$what.$way"
    done
    echoes 50 500 "$way" >>"$work/echo.$way"
  done
  for way in direct front; do
    begun=$(now)
    head -c "${far_mebibytes}M" /dev/zero | to "far-$way" 'cat >/dev/null'
    echo $(($(now) - begun)) >>"$work/far.$way"
    live "$way"
  done
done
for what in up down setup echo; do
  direct=$(median "$work/$what.direct") jump=$(median "$work/$what.jump") ours=$(median "$work/$what.front")
  awk -v what="$what" -v d="$direct" -v j="$jump" -v o="$ours" -v m="$mebibytes" 'BEGIN {
    if (what == "up" || what == "down")
      printf "%-6s MiB/s: direct %.0f, jump %.0f, ours %.0f; of direct %.2f, of jump %.2f\n",
        what, m * 1e9 / d, m * 1e9 / j, m * 1e9 / o, d / o, j / o
    else
      printf "%-6s ms: direct %.3f, jump %.3f, ours %.3f; of direct %.2f, of jump %.2f\n",
        what, d / 1e6, j / 1e6, o / 1e6, o / d, o / j
  }'
done

awk -v d="$(median "$work/far.direct")" -v o="$(median "$work/far.front")" -v m="$far_mebibytes" 'BEGIN {
  printf "%-6s MiB/s: direct %.0f, ours %.0f; %.2f times direct\n", "far", m * 1e9 / d, m * 1e9 / o, d / o
}'
for way in direct front; do
  awk -v way="$way" -v a="$(median "$work/alone.$way")" -v b="$(median "$work/beside.$way")" 'BEGIN {
    printf "%-6s ms, p99, %s: alone %.3f, beside a stalled channel %.3f; %.2f times\n", "live", way, a / 1e6, b / 1e6, b / a
  }'
done
