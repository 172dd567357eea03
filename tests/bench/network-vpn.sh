#!/bin/bash
# vpn beside user-space WireGuards, in the same namespaces, by turns: throughput, and the CPU time of both ends for each
# GB. Each peer is measured against itself. vpn is a server; its other end is wireguard-end, the same parts with an
# initiator (vpn/tests/wireguard), and in one row wireguard-go, as clients have it.
# Usage: tests/bench/network-vpn.sh [SECONDS per measurement, default 4] [ROUNDS, default 3]
#   VPN_BIN=FOLDER  vpn and wireguard-end are there (built with the feature test-parts); builds nothing
#   PEERS=FOLDER    gotatun-cli and boringtun-cli are installed there, once, instead of into a folder that goes away
#   TOOLS="..."     of: vpn vpn_go wireguard_go gotatun boringtun kernel
#   KERNEL=1        the kernel's WireGuard too, with a kernel that has it (in the bed); its CPU time is no process's
#   MTU=1280        of the tunnels: vpn's default
# Needs root, wireguard-go, wireguard-tools and iperf3. Prints a Markdown table of medians.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-4} rounds=${2:-3} mtu=${MTU:-1280}
tools=${TOOLS:-vpn vpn_go wireguard_go gotatun boringtun}
[[ ${KERNEL:-} != 1 ]] || tools+=" kernel"
for tool in wireguard-go wg iperf3 ip nsenter jq; do
    command -v "$tool" >/dev/null ||
        { echo "network-vpn.sh: $tool is missing; install what tests/packages.txt lists" >&2; exit 1; }
done
folder=$(mktemp -d); name=bv$$
peers=${PEERS:-$folder/peers}
if [[ -z ${VPN_BIN:-} ]]; then
    echo "building…" >&2
    cargo build -q --release --locked -p vpn --features test-parts --bins
    VPN_BIN=${CARGO_TARGET_DIR:-target}/release
fi
# Pinned, so that two runs measure the same.
for peer in gotatun:gotatun-cli@0.10.2 boringtun:boringtun-cli@0.7.1; do
    [[ " $tools " != *" ${peer%%:*} "* ]] ||
        CARGO_TARGET_DIR=$folder/build cargo install -q --locked --root "$peers" "${peer#*:}"
    rm -rf "$folder/build"
done

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

vpc=vpc-abcdefghij0123456789
mkdir -p "$folder/data/feed" "$folder/run/vpn"
jq -n --arg server "$(cat "$folder/server")" --arg client "$client_public" --arg vpc $vpc '{
    version: 1, generation: 1, server_key: $server, sessions: [{ id: "wg-abcdefghij0123456789", vpc: $vpc,
    client_key: $client, address: "100.96.0.2", allowed: "10.0.0.0/24", expires_unix_ms: 9999999999999,
    idle_seconds: 86400 }] }' >"$folder/data/feed/vpn.json"
printf 'listen = "0.0.0.0:51820"\nmtu = %s\n[places]\ndata = "%s/data"\nrun = "%s/run"\n' "$mtu" "$folder" "$folder" \
    >"$folder/vpn.toml"

# Starts TOOL as the interface $name$2 in the namespace $1, as process `started`; none for the kernel.
start_end() { # SPACE LETTER TOOL
    local device=$name$2 run=()
    case $3 in
        ours) run=("$VPN_BIN/wireguard-end" -f "$device") ;;
        wireguard_go) run=(wireguard-go -f "$device") ;;
        gotatun) run=("$peers/bin/gotatun" -f --disable-drop-privileges "$device") ;;
        boringtun) run=("$peers/bin/boringtun-cli" -f --disable-drop-privileges "$device") ;;
        kernel) started=; ip -n "$name-$1" link add "$device" type wireguard; return ;;
    esac
    nsenter "--net=/run/netns/$name-$1" "${run[@]}" >"$folder/$device.log" 2>&1 &
    started=$!; pids+=("$started")
    until [[ -S /var/run/wireguard/$device.sock ]] && ip -n "$name-$1" link show "$device" >/dev/null 2>&1; do
        kill -0 "$started" 2>/dev/null || { echo "network-vpn.sh: $3: $(tail -n 3 "$folder/$device.log")" >&2; exit 1; }
        sleep 0.02
    done
}
start_server() { # TOOL; sets `server` to its process and `space` to where its network is
    if [[ $1 == vpn* ]]; then
        nsenter "--net=/run/netns/$name-host" "$VPN_BIN/vpn" --config "$folder/vpn.toml" --tunnel "$vpc=$name-net" \
            2>"$folder/${name}s.log" &
        server=$! space=net; pids+=("$server")
        until ip -n "$name-net" link set gtun0 mtu "$mtu" up 2>/dev/null; do
            kill -0 "$server" 2>/dev/null || { echo "network-vpn.sh: vpn: $(tail -n 3 "$folder/${name}s.log")" >&2; exit 1; }
            sleep 0.02
        done
        ip -n "$name-net" route replace 100.96.0.0/16 dev gtun0
        return
    fi
    start_end host s "$1"; server=$started space=host
    in_space host wg set "${name}s" private-key "$folder/server" listen-port 51820 \
        peer "$client_public" allowed-ips 100.96.0.2/32
    ip -n "$name-host" link set "${name}s" mtu "$mtu" up
    ip -n "$name-host" route replace 100.96.0.0/16 dev "${name}s"
}
start_client() { # TOOL; sets `client` to its process
    local tool=$1
    case $tool in vpn) tool=ours ;; vpn_go) tool=wireguard_go ;; esac
    start_end client c "$tool"; client=$started
    # All at once: boringtun-cli ends when a peer is changed.
    in_space client wg set "${name}c" private-key "$folder/client" peer "$server_public" \
        endpoint 192.0.2.1:51820 allowed-ips 10.0.0.0/24 persistent-keepalive 25
    ip -n "$name-client" addr add 100.96.0.2/32 dev "${name}c"
    ip -n "$name-client" link set "${name}c" mtu "$mtu" up
    ip -n "$name-client" route replace 10.0.0.0/24 dev "${name}c"
}
stop() {
    local pid
    for pid in $server $client; do kill "$pid"; wait "$pid" 2>/dev/null || true; done
    rm -f "/var/run/wireguard/$name"{s,c}.sock
    ip -n "$name-client" link del "${name}c" 2>/dev/null || true
    ip -n "$name-host" link del "${name}s" 2>/dev/null || true
}
ticks() { [[ -z ${1:-} ]] && echo 0 || awk '{ print $14 + $15 }' "/proc/$1/stat"; }

measure() { # TOOL DIRECTION [ARGUMENT]
    local servers clients
    nsenter "--net=/run/netns/$name-$space" iperf3 -s -1 -B 10.0.0.5 >/dev/null 2>&1 &
    local listening=$!
    until in_space "$space" ss -Hltn 'sport = 5201' | grep -q .; do sleep 0.02; done
    servers=$(ticks "$server") clients=$(ticks "$client")
    in_space client iperf3 -c 10.0.0.5 -B 100.96.0.2 -t "$seconds" -J ${3:+"$3"} >"$folder/out.json"
    servers=$(($(ticks "$server") - servers)) clients=$(($(ticks "$client") - clients))
    wait "$listening" || true
    # Tool, direction, Gbit/s, CPU seconds for each GB of both ends and of the server.
    jq -r --arg tool "$1" --arg way "$2" --argjson s "$servers" --argjson c "$clients" --argjson hz "$(getconf CLK_TCK)" \
        '.end.sum_received | (.bytes / 1e9 * $hz) as $gb |
         "\($tool) \($way) \(.bits_per_second / 1e9) \(($s + $c) / $gb) \($s / $gb)"' "$folder/out.json" >>"$folder/all"
}
reach() { # until the client has keys
    local said
    for _ in $(seq 300); do
        said=$(in_space client timeout 1 bash -c 'echo >/dev/tcp/10.0.0.5/1' 2>&1) || true
        [[ $said == *refused* ]] && return
        sleep 0.1
    done
    echo "network-vpn.sh: no way through: $(tail -n 3 "$folder/${name}"?.log)" >&2; exit 1
}

for round in $(seq "$rounds"); do
    for tool in $tools; do
        echo "round $round: $tool" >&2
        start_server "$tool"; start_client "$tool"; reach
        measure "$tool" up; measure "$tool" down -R
        stop
    done
done
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
of() { awk -v tool="$1" -v way="$2" -v at="$3" '$1 == tool && $2 == way { print $at }' "$folder/all" | median; }
over() { awk -v a="$1" -v b="$2" 'BEGIN { if (b + 0 == 0) print "-"; else printf "%.2f", a / b }'; }
first=${tools%% *}
declare -A said=([vpn]="vpn, wireguard-end" [vpn_go]="vpn, wireguard-go" [wireguard_go]="wireguard-go, both"
    [gotatun]="gotatun-cli, both" [boringtun]="boringtun-cli, both" [kernel]="the kernel, both")
echo "| server, client; MTU $mtu | direction | Gbit/s | CPU-s/GB, both ends | server alone |" \
    "throughput, ${said[$first]} over it | CPU, it over ${said[$first]} |"
echo "|---|---|---|---|---|---|---|"
for tool in $tools; do
    for way in up down; do
        printf '| %s | %s | %.2f | %.2f | %.2f | %s | %s |\n' "${said[$tool]}" "$way" "$(of "$tool" $way 3)" \
            "$(of "$tool" $way 4)" "$(of "$tool" $way 5)" "$(over "$(of "$first" $way 3)" "$(of "$tool" $way 3)")" \
            "$(over "$(of "$tool" $way 4)" "$(of "$first" $way 4)")"
    done
done
