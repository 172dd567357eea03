#!/usr/bin/env bash
# tests/bench/ssh.sh: SSH directly to an sshd, through another sshd (ProxyJump) and through ssh-proxy, side by side.
#
#   tests/bench/ssh.sh [MEBIBYTES] [ROUNDS]      (default: 1024 and 5)
#
# All on 127.0.0.1, with aes128-gcm and curve25519 on each leg, in turns, medians. Prints ratios: figures of their own
# say more of the machine. Builds for release first. As root.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
mebibytes=${1:-1024} rounds=${2:-5}
patches/apply
cargo build --quiet --release --locked -p ssh-proxy --features test-parts --bins --example bench_ssh
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/release

coproc WORLD { RUST_LOG=warn exec "$target/examples/bench_ssh"; }
read -r line <&"${WORLD[0]}"
# Words NAME=VALUE of our own program.
eval "$line"
work=$(mktemp -d)
trap 'rm -rf "$work"; echo >&"${WORLD[1]}" || true; wait' EXIT

cat >"$work/config" <<END
Host *
  HostName 127.0.0.1
  BatchMode yes
  LogLevel ERROR
  IdentityAgent none
  Ciphers aes128-gcm@openssh.com
  KexAlgorithms curve25519-sha256
  UserKnownHostsFile $folder/known_hosts
Host direct jump hop
  Port $sshd
  User root
  IdentityFile $folder/direct
  CertificateFile $folder/direct-cert.pub
Host jump
  ProxyCommand ssh -F $work/config -W %h:%p hop
Host front
  Port $front
  User $user
  IdentityFile none
END

now() { date +%s%N; }
median() { sort -n "$1" | awk '{ a[NR] = $1 } END { print a[int((NR + 1) / 2)] }'; }
to() { ssh -F "$work/config" "$@"; }
up() { head -c "${mebibytes}M" /dev/zero | to "$1" 'cat >/dev/null'; }
down() { to "$1" "head -c ${mebibytes}M /dev/zero" >/dev/null; }
setup() { for _ in 1 2 3 4 5; do sftp -q -F "$work/config" -b /dev/stdin "$1" <<<quit >/dev/null; done; }
# A byte there and back, 500 times over one session.
echoes() {
  python3 - "$work/config" "$1" <<'END'
import subprocess, sys, time
ssh = subprocess.Popen(["ssh", "-F", sys.argv[1], sys.argv[2], "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
times = []
for _ in range(500):
    begun = time.perf_counter_ns()
    ssh.stdin.write(b"x")
    ssh.stdout.read(1)
    times.append(time.perf_counter_ns() - begun)
ssh.stdin.close()
ssh.wait()
print(sorted(times)[250])
END
}

for round in $(seq "$rounds"); do
  for way in direct jump front; do
    for what in up down setup; do
      begun=$(now)
      "$what" "$way"
      echo $(($(now) - begun)) >>"$work/$what.$way"
    done
    echoes "$way" >>"$work/echo.$way"
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

rss() { awk '/^VmRSS/ { print $2 }' "/proc/$pid/status"; }
before=$(rss) sessions=()
# Few at a time: an address may have sixteen that have not logged in.
for _ in $(seq 50); do ssh -F "$work/config" -N front & sessions+=($!); sleep 0.3; done
sleep 2
echo "idle   KiB a session: $((($(rss) - before) / 50))"
kill "${sessions[@]}"
wait "${sessions[@]}" 2>/dev/null || true
