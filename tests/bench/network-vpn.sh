#!/bin/bash
# vpn beside Debian's wireguard-go as the server of one client, in the same namespaces, by turns. The client is
# wireguard-go both times, so what counts is the server's own CPU time for each GB, more than the throughput.
# Usage: tests/bench/network-vpn.sh [SECONDS per measurement, default 4] [ROUNDS, default 3]
# VPN_BIN takes that program (built with the feature test-parts) and builds nothing.
# Needs root, wireguard-go, wireguard-tools and iperf3. Prints a Markdown table of medians.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-4} rounds=${2:-3}
for tool in wireguard-go wg iperf3 ip nsenter jq; do
    command -v "$tool" >/dev/null ||
        { echo "network-vpn.sh: $tool is missing; install what tests/packages.txt lists" >&2; exit 1; }
done
if [[ -z ${VPN_BIN:-} ]]; then
    echo "building…" >&2
    cargo build -q --release --locked -p vpn --features test-parts
    VPN_BIN=${CARGO_TARGET_DIR:-target}/release/vpn
fi

folder=$(mktemp -d); name=bv$$
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -f "/var/run/wireguard/$name"{s,c}.sock
    wait 2>/dev/null || true
    for space in host client net; do ip netns del "$name-$space" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap finish EXIT
in_space() { nsenter "--net=/run/netns/$name-$1" "${@:2}"; }

for space in host client net; do
    ip netns add "$name-$space"
    ip -n "$name-$space" link set lo up
done
ip -n "$name-host" link add up0 type veth peer name up0 netns "$name-client"
ip -n "$name-host" addr add 192.0.2.1/24 dev up0; ip -n "$name-host" link set up0 up
ip -n "$name-client" addr add 192.0.2.2/24 dev up0; ip -n "$name-client" link set up0 up
for space in host net; do ip -n "$name-$space" addr add 10.0.0.5/32 dev lo; done
(umask 077; wg genkey >"$folder/server"; wg genkey >"$folder/client")
server_public=$(wg pubkey <"$folder/server") client_public=$(wg pubkey <"$folder/client")

in_space client wireguard-go "${name}c" >/dev/null 2>&1
in_space client wg set "${name}c" private-key "$folder/client" peer "$server_public" \
    endpoint 192.0.2.1:51820 allowed-ips 10.0.0.0/24 persistent-keepalive 25
ip -n "$name-client" addr add 100.96.0.2/32 dev "${name}c"
ip -n "$name-client" link set "${name}c" mtu 1280 up
ip -n "$name-client" route add 10.0.0.0/24 dev "${name}c"

vpc=vpc-abcdefghij0123456789
mkdir -p "$folder/data/feed" "$folder/run"
jq -n --arg server "$(cat "$folder/server")" --arg client "$client_public" --arg vpc $vpc '{
    version: 1, generation: 1, server_key: $server, sessions: [{ id: "wg-abcdefghij0123456789", vpc: $vpc,
    client_key: $client, address: "100.96.0.2", allowed: "10.0.0.0/24", expires_unix_ms: 9999999999999,
    idle_seconds: 86400 }] }' >"$folder/data/feed/vpn.json"
printf 'listen = "0.0.0.0:51820"\n[places]\ndata = "%s/data"\nrun = "%s/run"\n' "$folder" "$folder" >"$folder/vpn.toml"

# Each sets `server` to the server's process and `space` to where its network is.
start_vpn() {
    nsenter "--net=/run/netns/$name-host" "$VPN_BIN" --config "$folder/vpn.toml" --tunnel "$vpc=$name-net" 2>"$folder/vpn.log" &
    server=$! space=net; pids+=("$server")
    until ip -n "$name-net" link set gtun0 mtu 1280 up 2>/dev/null; do sleep 0.02; done
    ip -n "$name-net" route replace 100.96.0.0/16 dev gtun0
}
start_wireguard_go() {
    nsenter "--net=/run/netns/$name-host" wireguard-go -f "${name}s" >/dev/null 2>&1 &
    server=$! space=host; pids+=("$server")
    until in_space host wg set "${name}s" private-key "$folder/server" listen-port 51820 \
        peer "$client_public" allowed-ips 100.96.0.2/32 2>/dev/null; do sleep 0.02; done
    ip -n "$name-host" link set "${name}s" mtu 1280 up
    ip -n "$name-host" route replace 100.96.0.0/16 dev "${name}s"
}
stop() { kill "$server"; wait "$server" 2>/dev/null || true; }
ticks() { awk '{ print $14 + $15 }' "/proc/$server/stat"; }

measure() { # TOOL DIRECTION [ARGUMENT]
    local before after bytes
    nsenter "--net=/run/netns/$name-$space" iperf3 -s -1 -B 10.0.0.5 >/dev/null 2>&1 &
    local listening=$!
    until in_space "$space" ss -Hltn 'sport = 5201' | grep -q .; do sleep 0.02; done
    before=$(ticks)
    in_space client iperf3 -c 10.0.0.5 -B 100.96.0.2 -t "$seconds" -J ${3:+"$3"} >"$folder/out.json"
    after=$(ticks)
    wait "$listening" || true
    bytes=$(jq '.end.sum_received.bytes' "$folder/out.json")
    awk -v tool="$1" -v way="$2" -v bytes="$bytes" -v ticks=$((after - before)) -v hz="$(getconf CLK_TCK)" \
        -v rate="$(jq '.end.sum_received.bits_per_second' "$folder/out.json")" \
        'BEGIN { printf "%s %s %.3f %.2f\n", tool, way, rate / 1e9, ticks / hz / (bytes / 1e9) }' >>"$folder/all"
}
reach() { # until the client has new keys
    local said
    for _ in $(seq 300); do
        said=$(in_space client timeout 1 bash -c 'echo >/dev/tcp/10.0.0.5/1' 2>&1) || true
        [[ $said == *refused* ]] && return
        sleep 0.1
    done
    echo "network-vpn.sh: no way through: $(tail -n 3 "$folder/vpn.log")" >&2; exit 1
}

for round in $(seq "$rounds"); do
    for tool in vpn wireguard_go; do
        echo "round $round: $tool" >&2
        "start_$tool"; reach
        measure "$tool" up; measure "$tool" down -R
        stop
    done
done
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
of() { awk -v tool="$1" -v way="$2" -v at="$3" '$1 == tool && $2 == way { print $at }' "$folder/all" | median; }
echo "| direction | vpn Gbit/s | wireguard-go Gbit/s | vpn CPU-s/GB | wireguard-go CPU-s/GB | ratio |"
echo "|---|---|---|---|---|---|"
for way in up down; do
    ours=$(of vpn $way 4) theirs=$(of wireguard_go $way 4)
    echo "| client $way | $(of vpn $way 3) | $(of wireguard_go $way 3) | $ours | $theirs |" \
        "$(awk -v a="$ours" -v b="$theirs" 'BEGIN { printf "%.2f", a / b }') |"
done
