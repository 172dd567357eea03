#!/bin/bash
# Two namespaces that talk through a private network of ours, beside the same two through what else there is: a veth pair,
# Linux' bridge and router, and in user space VDE, Open vSwitch and pasta. By turns, in one run.
# Usage: tests/bench/network.sh [SECONDS per measurement, default 3] [ROUNDS, default 3]
#        tests/bench/network.sh many [N, default 200] [ROUNDS, default 3]
# The first prints a Markdown table of medians; its ratios are the medians of each round's own. The second prints what N
# networks cost: starts, memory, changes.
# VPC_BIN takes that program and builds nothing; PATHS="vpc veth", for one, measures those alone. FLOW_LOG=false turns the
# log off for `many`. N is up to 500: vpc has room for 512, and some come on top.
# Needs root. Of the peers, those whose programs are missing are left out. Debian's openvswitch-switch is not among
# tests/packages.txt, since it starts daemons of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin
if [[ ${1:-} == many ]]; then mode=many count=${2:-200} rounds=${3:-3}; else mode=paths seconds=${1:-3} rounds=${2:-3}; fi
there() { local tool; for tool; do command -v "$tool" >/dev/null || return 1; done; }
for tool in iperf3 ip nsenter jq python3 ping; do
    there "$tool" || { echo "network.sh: $tool is missing; install what tests/packages.txt lists" >&2; exit 1; }
done
if [[ -z ${VPC_BIN:-} ]]; then
    echo "building…" >&2
    cargo build -q --release --locked -p vpc --bin vpc
    VPC_BIN=${CARGO_TARGET_DIR:-target}/release/vpc
fi

folder=$(mktemp -d); name=bn$$
# Two characters that no other run of this machine has now, and one for each vpc of this run.
digits=0123456789abcdefghijklmnopqrstuvwxyz
prefix=b${digits:$$ / 36 % 36:1}${digits:$$ % 36:1}
pids=() houses=()
finish() {
    local house pid space
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    for house in "${houses[@]}"; do
        in_space "$house-host" "$VPC_BIN" --config "$folder/$house/vpc.toml" --teardown 2>"$folder/teardown.log" ||
            tail -n 3 "$folder/teardown.log" >&2
    done
    for space in /run/netns/"$name"-*; do ip netns del "${space##*/}" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap finish EXIT
in_space() { nsenter "--net=/run/netns/$name-$1" "${@:2}"; }
# In the background, with its own words in the log of a path. The process that is ended is the command, and no shell's.
begin_in() { # SPACE LOG COMMAND …
    nsenter "--net=/run/netns/$name-$1" "${@:3}" </dev/null >>"$folder/$2.log" 2>&1 & pids+=($!)
}
spaces() { # PATH END …
    local end
    for end in "${@:2}"; do
        ip netns add "$name-$1-$end"
        ip -n "$name-$1-$end" link set lo up
    done
}
address() { # PATH: of eth0 of both ends
    local end last=5
    for end in a b; do
        ip -n "$name-$1-$end" addr add 10.0.0.$last/24 dev eth0
        ip -n "$name-$1-$end" link set eth0 up
        last=6
    done
}
await() { # PATH COMMAND …: until it succeeds, for half a minute
    local try
    for ((try = 0; try < 600; try++)); do "${@:2}" && return; sleep 0.05; done
    echo "network.sh: $1 does not come up: $(tail -n 3 "$folder/$1.log" 2>/dev/null)" >&2; exit 1
}
passes() { in_space "$1-b" ping -q -c 1 -W 1 10.0.0.5 >/dev/null 2>&1; }
listens() { in_space "$1" ss -Hltn 'sport = 5201' | grep -q .; }

# --- what is measured: each makes the namespaces a, with 10.0.0.5, and b, with 10.0.0.6 -------------------------------

furnish_vpc() { # PATH FLOW_LOG
    mkdir -p "$folder/$1/data/feed" "$folder/$1/run"
    spaces "$1" host
    printf 'prefix = "%s"\nallowed_uids = []\nupstream_dns = ["192.0.2.53:53"]\nflow_log = %s\n[places]\ndata = "%s"\nrun = "%s"\n' \
        "$prefix${#houses[@]}" "$2" "$folder/$1/data" "$folder/$1/run" >"$folder/$1/vpc.toml"
    houses+=("$1")
}
start_vpc() { # PATH FLOW_LOG RULES
    furnish_vpc "$1" "$2"
    spaces "$1" a b
    python3 tests/bench/network.py view "$3" >"$folder/$1/data/feed/vpc.json"
    begin_in "$1-host" "$1" "$VPC_BIN" --config "$folder/$1/vpc.toml"
    python3 tests/bench/network.py join "$folder/$1/run/vpc.sock" 5 1 "$name-$1-a"
    python3 tests/bench/network.py join "$folder/$1/run/vpc.sock" 6 1 "$name-$1-b"
}
open_vpc() { start_vpc vpc false 0; }
open_vpc_log() { start_vpc vpc_log true 0; }
open_vpc_rules() { start_vpc vpc_rules false 20; }
open_veth() {
    spaces veth a b
    ip -n "$name-veth-a" link add eth0 type veth peer name eth0 netns "$name-veth-b"
    address veth
}
wire_up() { # PATH: each end to a device in the namespace host
    local end
    spaces "$1" a b host
    for end in a b; do
        ip -n "$name-$1-host" link add end_$end type veth peer name eth0 netns "$name-$1-$end"
        ip -n "$name-$1-host" link set end_$end up
    done
    address "$1"
}
open_bridge() {
    wire_up bridge
    ip -n "$name-bridge-host" link add br0 type bridge
    ip -n "$name-bridge-host" link set br0 up
    ip -n "$name-bridge-host" link set end_a master br0
    ip -n "$name-bridge-host" link set end_b master br0
}
# What our networks are without their rules: a namespace that forwards.
open_router() {
    local end last=5
    wire_up router
    for end in a b; do
        ip -n "$name-router-$end" addr flush dev eth0
        ip -n "$name-router-$end" addr add 10.0.0.$last/32 dev eth0
        ip -n "$name-router-$end" route add 169.254.1.1 dev eth0
        ip -n "$name-router-$end" route add 10.0.0.0/24 via 169.254.1.1 src 10.0.0.$last
        ip -n "$name-router-host" addr add 169.254.1.1/32 dev end_$end
        ip -n "$name-router-host" route add 10.0.0.$last dev end_$end
        last=6
    done
    in_space router-host sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
}
open_vde() {
    local end
    spaces vde a b
    # It ends with its standard input, unless it is a daemon.
    in_space vde-a vde_switch --daemon --pidfile "$folder/vde.pid" -s "$folder/vde.ctl" >"$folder/vde.log" 2>&1
    await vde [ -s "$folder/vde.pid" ]
    pids+=("$(<"$folder/vde.pid")")
    for end in a b; do
        ip -n "$name-vde-$end" tuntap add eth0 mode tap
        begin_in "vde-$end" vde vde_plug2tap -s "$folder/vde.ctl" eth0
    done
    address vde
}
open_ovs() {
    local end
    wire_up ovs
    # It takes frames from a packet socket, which knows nothing of sums that are left to the device.
    for end in a b; do in_space "ovs-$end" ethtool -K eth0 tx off >/dev/null; done
    export OVS_RUNDIR=$folder OVS_LOGDIR=$folder OVS_DBDIR=$folder OVS_SYSCONFDIR=$folder
    ovsdb-tool create "$folder/ovs.db" /usr/share/openvswitch/vswitch.ovsschema
    begin_in ovs-host ovs ovsdb-server --remote="punix:$folder/ovs.sock" --unixctl="$folder/ovsdb.ctl" "$folder/ovs.db"
    await ovs [ -S "$folder/ovs.sock" ]
    begin_in ovs-host ovs ovs-vswitchd --unixctl="$folder/ovs.ctl" "unix:$folder/ovs.sock"
    ovs-vsctl --timeout=30 --db="unix:$folder/ovs.sock" add-br br0 -- set bridge br0 datapath_type=netdev -- \
        add-port br0 end_a -- add-port br0 end_b
}
# pasta joins a namespace to the one that it runs in, and no two namespaces: a is that one here, and b is joined to it.
open_pasta() {
    spaces pasta a b
    ip -n "$name-pasta-a" link add eth0 type veth peer name other
    ip -n "$name-pasta-a" addr add 10.0.0.5/24 dev eth0
    ip -n "$name-pasta-a" link set eth0 up
    ip -n "$name-pasta-a" link set other up
    ip -n "$name-pasta-a" route add default via 10.0.0.1
    # It passes pings on as a user of sockets for them.
    in_space pasta-a sh -c 'echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range'
    begin_in pasta-a pasta pasta -f -q -4 --runas 0 --netns-only --netns "/run/netns/$name-pasta-b" --config-net -I eth0 \
        -a 10.0.0.6 -n 24 -g 10.0.0.1 -m 1500 -t none -u none -T none -U none --no-map-gw
}

# --- how ---------------------------------------------------------------------------------------------------------------

iperf() { # PATH [ARGUMENT …]: from b to a, into out.json
    nsenter "--net=/run/netns/$name-$1-a" iperf3 -s -1 -B 10.0.0.5 >/dev/null 2>&1 &
    local listening=$!
    await "$1" listens "$1-a"
    in_space "$1-b" timeout $((seconds + 30)) iperf3 -c 10.0.0.5 -t "$seconds" -J "${@:2}" >"$folder/out.json" ||
        { echo "network.sh: iperf3 through $1: $(jq -r .error "$folder/out.json")" >&2; kill $listening 2>/dev/null; }
    wait "$listening" || true
}
said() { echo "$round $path $1 $(jq -r "$2" "$folder/out.json")" >>"$folder/all"; }
measure() { # with `round` and `path`
    iperf "$path"
    said tcp '.end.sum_received.bits_per_second / 1e9'
    iperf "$path" -u -b 0 -l 64
    said udp '(.end.sum.packets - .end.sum.lost_packets) / .end.sum.seconds / 1e3'
    said lost '.end.sum.lost_percent'
    in_space "$path-b" ping -c 200 -i 0.002 10.0.0.5 | sed -n 's/.*time=\([0-9.]*\) ms/\1/p' | median |
        awk -v of="$round $path ping" '{ print of, $1 * 1000 }' >>"$folder/all"
}
median() { sort -g | awk '{ v[NR] = $1 } END { print (NR ? v[int((NR + 1) / 2)] : "-") }'; }
of() { awk -v path="$1" -v what="$2" '$2 == path && $3 == what { print $4 }' "$folder/all" | median; }
# The median of the rounds' ratios to another path.
beside() { # PATH WHAT OTHER
    awk -v path="$1" -v what="$2" -v other="$3" '$3 != what { next } $2 == path { a[$1] = $4 } $2 == other { b[$1] = $4 }
        END { for (round in a) if (b[round] > 0) print a[round] / b[round] }' "$folder/all" | median
}

if [[ $mode == many ]]; then
    furnish_vpc many "${FLOW_LOG:-true}"
    python3 tests/bench/network.py many "$VPC_BIN" "$folder/many" "$name-many-host" "$count" "$rounds" & pids+=($!)
    wait $! && exit
    tail -n 5 "$folder/many/vpc.log" >&2
    exit 1
fi

paths=${PATHS:-vpc vpc_log vpc_rules veth bridge router}
if [[ -z ${PATHS:-} ]]; then
    for peer in 'vde vde_switch vde_plug2tap' 'ovs ovs-vswitchd ovsdb-server ovs-vsctl ethtool' 'pasta pasta'; do
        read -r path tools <<<"$peer"
        # shellcheck disable=SC2086
        if there $tools; then paths+=" $path"; else echo "network.sh: no $path here" >&2; fi
    done
fi
for path in $paths; do "open_$path"; await "$path" passes "$path"; done
for round in $(seq "$rounds"); do
    for path in $paths; do
        echo "round $round: $path" >&2
        measure
    done
done
echo "| path | TCP Gbit/s | UDP of 64 bytes, 1000/s | lost % | ping µs | TCP ÷ veth | ÷ bridge | UDP ÷ veth | ÷ bridge | ping ÷ veth | ÷ bridge |"
echo "|---|---|---|---|---|---|---|---|---|---|---|"
for path in $paths; do
    printf '| %s | %.2f | %.1f | %.1f | %.0f |' "$path" "$(of "$path" tcp)" "$(of "$path" udp)" "$(of "$path" lost)" "$(of "$path" ping)"
    for what in tcp udp ping; do
        for other in veth bridge; do
            printf ' %s |' "$(beside "$path" $what $other | awk '{ print ($1 == "-" ? "-" : sprintf("%.2f", $1)) }')"
        done
    done
    echo
done
