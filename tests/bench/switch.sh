#!/bin/bash
# Two VMs of a private network, through the switch and through a Linux bridge: the same guests, the same two TAPs, one
# run. Needs a KVM that runs a stock guest; without one, in tests/bed:
#
#   tests/bed -a -m 9216 -t 1500 -- env GATEHOUSE_BIN=$PWD/target/release GATEHOUSE_IMAGES=$PWD/target/image \
#     tests/bench/switch.sh [SECONDS, default 6] [ROUNDS, default 3]
#
# Prints a Markdown table: TCP, UDP of 64 bytes, and the round trip of a ping; each round measures one after the other.
# For the bridge vpc stands still, its rules for the network are taken out, and the guests reach each other directly.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin
bin=${GATEHOUSE_BIN:?names the folder of the programs} image=${GATEHOUSE_IMAGES:?names the folder of images}/default
seconds=${1:-6} rounds=${2:-3}
. tests/bench/common.sh
need_tools iperf3 jq nft ip python3
service=bench-files one=10.77.0.5 other=10.77.0.6
cleanup() {
  local status=$?
  ip netns delete "$service" 2>/dev/null || true
  finish "$status"
}
trap cleanup EXIT

in_vm() { gatehouse vm exec "$1" --timeout 120 -- "$2"; }
# iperf3 with its libraries, from a service in the network: guests reach no other server here.
furnish() {
  mkdir "$folder/files"
  ldd "$(command -v iperf3)" | awk '$3 ~ "^/" && $1 !~ /^lib(c|m|pthread)\.so/ { print $3 }' |
    xargs -I{} cp -L {} "$(command -v iperf3)" "$folder/files/"
  tar -C "$folder/files" -czf "$folder/iperf.tar.gz" .
  ip netns add "$service"
  gatehouse vpc join "$vpc" --name files --netns "$service" --ip 10.77.0.9 >/dev/null
  (cd "$folder" && exec ip netns exec "$service" python3 -m http.server 80 --bind 10.77.0.9) >/dev/null 2>&1 & pids+=($!)
  local vm
  for vm in "$first" "$second"; do
    in_vm "$vm" 'mkdir -p /opt/i && curl --retry 20 --retry-connrefused -fsS http://10.77.0.9/iperf.tar.gz | tar -C /opt/i -xz' >/dev/null
    in_vm "$vm" 'printf "#!/bin/sh\nLD_LIBRARY_PATH=/opt/i exec /opt/i/iperf3 \"\$@\"\n" >/usr/local/bin/iperf3; chmod +x /usr/local/bin/iperf3; iperf3 --version | head -1' >&2
  done
  in_vm "$second" 'iperf3 -s -D'
}
find_space() {
  local name
  for name in $(ip netns list | awk '{ print $1 }'); do
    [[ $(ip -n "$name" -o route show exact "$one/32" 2>/dev/null) ]] && { space=$name; return; }
  done
  ip netns list >&2
  die "no namespace has a route to $one"
}
taps() { ip -n "$space" -o route show | awk -v a="$one" -v b="$other" '$1 == a || $1 == b { print $3 }'; }
bridge() {
  kill -STOP "$vpc_pid"
  ip netns exec "$space" nft list ruleset >"$folder/rules"
  ip netns exec "$space" nft flush ruleset
  ip -n "$space" link add br0 type bridge
  local tap
  for tap in $ports; do ip -n "$space" link set "$tap" master br0; done
  ip -n "$space" link set br0 up
  in_vm "$first" "ip route replace $other/32 dev eth0; ip neigh flush all" >&2
  in_vm "$second" "ip route replace $one/32 dev eth0; ip neigh flush all" >&2
  in_vm "$first" "ping -c 2 -w 20 $other >/dev/null" || die "the guests do not reach each other by the bridge"
}
switch() {
  in_vm "$first" "ip route delete $other/32 dev eth0; ip neigh flush all" >&2
  in_vm "$second" "ip route delete $one/32 dev eth0; ip neigh flush all" >&2
  ip -n "$space" link delete br0
  ip netns exec "$space" nft -f "$folder/rules"
  kill -CONT "$vpc_pid"
  in_vm "$first" "ping -c 2 -w 20 $other >/dev/null" || die "the guests do not reach each other by the switch"
}
measure() { # NAME
  local name=$1 tcp udp ping
  tcp=$(in_vm "$first" "iperf3 -J -c $other -t $seconds" | jq '.end.sum_received.bits_per_second / 1e6')
  udp=$(in_vm "$first" "iperf3 -J -u -l 64 -b 0 -c $other -t $seconds" |
    jq '.end.sum | (.packets - .lost_packets) / .seconds')
  ping=$(in_vm "$first" "ping -q -i 0.01 -c 200 $other" | awk -F/ '/^rtt/ { print $5 }')
  printf '%s: TCP %s Mbit/s, UDP %s packets/s, ping %s ms\n' "$name" "$tcp" "$udp" "$ping" >&2
  printf '%s\n' "$tcp" >>"$folder/$name.tcp"; printf '%s\n' "$udp" >>"$folder/$name.udp"
  printf '%s\n' "$ping" >>"$folder/$name.ping"
}

open_house
vpc_pid=$(pgrep -P "$up" -f 'vpc\.toml$') || die "vpc is not there"
vpc=$(gatehouse vpc create --cidr 10.77.0.0/24 --name bench)
first=$(gatehouse vm create --vpc "$vpc" --ip "$one" --name one | tail -n 1)
second=$(gatehouse vm create --vpc "$vpc" --ip "$other" --name other | tail -n 1)
furnish
find_space
ports=$(taps)
[[ $(wc -w <<<"$ports") == 2 ]] || die "not two TAPs: $ports"
for _ in $(seq "$rounds"); do
  measure switch
  bridge
  measure bridge
  switch
done
of() { median "$(tr '\n' ' ' <"$folder/$1.$2")"; }
echo "| VM to VM, medians of $rounds | switch | bridge | switch : bridge |"
echo "|---|---|---|---|"
for kind in "tcp TCP, Mbit/s" "udp UDP of 64 bytes, packets/s" "ping round trip, ms"; do
  a=$(of switch "${kind%% *}") b=$(of bridge "${kind%% *}")
  echo "| ${kind#* } | $a | $b | $(ratio "$a" "$b") |"
done
