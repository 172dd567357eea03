#!/bin/bash
# The road in figures, in one run, beside its peers. Needs a KVM that runs a stock guest; without one:
#
#   ./test bench        (builds what is measured, then runs this in tests/bed)
#
# Prints Markdown tables: API call to the first exec answer; process start to guest init beside QEMU microvm with the
# same kernel and initramfs; memory of a VM's process beyond guest RAM; HTTPS through edge-proxy to a VM and to a plain
# server on the host, beside nginx in the same places. GATEHOUSE_BIN and GATEHOUSE_IMAGES say what is measured.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin
bin=${GATEHOUSE_BIN:?names the folder of the programs} image=${GATEHOUSE_IMAGES:?names the folder of images}/default
rounds=${ROUNDS:-3} seconds=${SECONDS_EACH:-10}
. tests/bench/common.sh
need_tools qemu-system-x86_64 nginx wrk jq python3 ip

# --- process start to guest init ------------------------------------------------------------------------------------
# One initramfs for both: an init that says so on the console. The time ends when the line is in the log.
make_initramfs '$b echo INIT-IS-UP
$b mkdir /proc
$b mount -t proc proc /proc
$b echo ARGUMENTS $($b cat /proc/cmdline)
$b sleep 1000'
write_plan "$folder/plan.json" 256
# Both read from a warm cache.
cat "$image/kernel" "$folder/initramfs" "$bin/vmm" "$(command -v qemu-system-x86_64)" >/dev/null
ours() {
  rm -rf "$folder/vm"; mkdir "$folder/vm"
  local begun; begun=$(now)
  "$bin/vmm" run --plan "$folder/plan.json" >"$folder/vmm.log" 2>&1 & machine=$!; pids+=("$machine")
  await_line INIT-IS-UP "$folder/vm/console.log" "$machine"
  took=$(($(now) - begun))
  # The peer gets the very same words.
  await_line ARGUMENTS "$folder/vm/console.log" "$machine"
  arguments=$(sed -n 's/^ARGUMENTS //p' "$folder/vm/console.log" | tr -d '\r')
}
peer() {
  : >"$folder/qemu.console"
  local begun; begun=$(now)
  qemu 256 "$arguments"
  await_line INIT-IS-UP "$folder/qemu.console" "$machine"
  took=$(($(now) - begun))
}
# Written pages of a process outside of its guest's RAM, in KiB: mappings as large as that RAM are the RAM.
beyond() {
  awk '/^Size:/ { kib = $2 } /^Private_Dirty:/ { if (kib < 200 * 1024) sum += $2 } END { print sum }' "/proc/$1/smaps"
}
ours_took=() peer_took=() ours_memory=() peer_memory=()
for _ in $(seq "$rounds"); do
  ours; ours_took+=("$took"); ours_memory+=("$(beyond "$machine")"); ended
  peer; peer_took+=("$took"); peer_memory+=("$(beyond "$machine")"); ended
done
echo "| one VM, 256 MiB, 1 vCPU | ours | QEMU microvm | ratio |"
echo "|---|---|---|---|"
echo "| process start to guest init, ms (median of ${ours_took[*]} : ${peer_took[*]}) | $(median "${ours_took[@]}") |" \
  "$(median "${peer_took[@]}") | $(ratio "$(median "${ours_took[@]}")" "$(median "${peer_took[@]}")") |"
echo "| written memory beyond guest RAM, KiB | $(median "${ours_memory[@]}") | $(median "${peer_memory[@]}") |" \
  "$(ratio "$(median "${ours_memory[@]}")" "$(median "${peer_memory[@]}")") |"
echo

# --- API call to the first exec answer --------------------------------------------------------------------------------
open_house
created=() answered=()
for _ in $(seq "$rounds"); do
  begun=$(now)
  vm=$(gatehouse vm create --json | jq -re .id); created+=($(($(now) - begun)))
  [[ $(gatehouse vm exec "$vm" -- echo yes) == yes ]]; answered+=($(($(now) - begun)))
  gatehouse vm delete "$vm" >/dev/null
done
echo "| cold boot through the API, 512 MiB, 1 vCPU | ms (median of $rounds) |"
echo "|---|---|"
echo "| create to its answer, the VM's agent ready | $(median "${created[@]}") of ${created[*]} |"
echo "| create to the answer of the first exec | $(median "${answered[@]}") of ${answered[*]} |"
echo

# --- HTTPS to a VM ----------------------------------------------------------------------------------------------------
vm=$(gatehouse vm create --json | jq -re .id)
gatehouse vm exec "$vm" -- sh -c "cat >/srv/server.py <<'PY'
$(cat tests/e2e/guest/server.py)
PY
systemd-run --quiet --unit=page python3 /srv/server.py 8080 page
curl -sf --retry 600 --retry-connrefused --retry-delay 1 -o /dev/null http://127.0.0.1:8080/"
gatehouse domains map something.style.dev --vm "$vm" --port 8080 >/dev/null
address=$(gatehouse vm exec "$vm" -- hostname -I | awk '{ print $1 }')
echo "127.0.0.1 something.style.dev" >>/etc/hosts
# nginx stands where the edge's sockets to VMs stand: in the network's namespace, with the same key.
inside() { ip netns exec gh-default "$@"; }
inside ip link set lo up
key=$folder/data/tls/preview.key.pem cert=$folder/data/tls/preview.chain.pem
mkdir "$folder/nginx"; chmod 755 "$folder/nginx"
cat >"$folder/nginx.conf" <<CONF
daemon off; user root; worker_processes 1; events { worker_connections 4096; }
pid $folder/nginx/pid; error_log $folder/nginx/error.log;
http { access_log $folder/nginx/access.log; keepalive_requests 1000000; client_body_temp_path $folder/nginx;
  proxy_temp_path $folder/nginx; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets on;
  upstream behind { server $address:8080; keepalive 128; keepalive_requests 1000000; }
  server { listen 127.0.0.1:443 ssl; server_name something.style.dev; ssl_certificate $cert; ssl_certificate_key $key;
    location / { proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host \$host; proxy_set_header X-Forwarded-For \$remote_addr;
      proxy_set_header X-Forwarded-Proto https; } } }
CONF
inside nginx -c "$folder/nginx.conf" -p "$folder/nginx" 2>"$folder/nginx.log" & nginx=$!; pids+=("$nginx")
url=https://something.style.dev/
for place in env inside; do
  body=$($place curl -s --cacert "$folder/data/tls/ca.pem" --retry 20 --retry-connrefused --retry-delay 1 "$url")
  [[ $body == page ]] || { echo "road.sh: $place gives '$body'; $(cat "$folder/nginx.log")" >&2; exit 1; }
done
load() { # WHERE -> requests/s p50 p99
  "$@" wrk -t1 -c8 -d"${seconds}s" --latency "$url" | awk '
    function ms(t) { if (t ~ /us$/) return t / 1000; if (t ~ /ms$/) return t + 0; return t * 1000 }
    /50%/ { p50 = ms($2) } /99%/ { p99 = ms($2) } /Requests\/sec/ { n = $2 } /Non-2xx|Socket errors/ { bad = $0 }
    END { if (bad) print "road.sh: " bad > "/dev/stderr"; print n, p50, p99 }'
}
load env >/dev/null; load inside >/dev/null # warm
echo "| HTTPS to a VM, 8 connections, ${seconds} s | requests/s | p50 ms | p99 ms |"
echo "|---|---|---|---|"
for round in $(seq 2); do
  nginx_row=$(load inside); edge_row=$(load env)
  echo "| nginx, round $round | ${nginx_row// / | } |"
  echo "| edge-proxy, round $round | ${edge_row// / | } |"
  echo "| edge-proxy : nginx | $(ratio "${edge_row%% *}" "${nginx_row%% *}") | | $(ratio "${edge_row##* }" "${nginx_row##* }") |"
done
echo
gatehouse vm delete "$vm" >/dev/null
kill "$nginx"; wait "$nginx" || true
kill "$up"; wait "$up" || true

# --- HTTPS to a plain server on the host ------------------------------------------------------------------------------
EDGE_BIN=$bin tests/bench/edge.sh "$seconds"
