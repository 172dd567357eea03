#!/bin/bash
# edge-proxy beside nginx, in one run: the same key, the same server behind, the same load, one core for the proxy.
# Usage: tests/bench/edge.sh [SECONDS per measurement, default 5]
# PROFILE=dev takes the build that the tests use, which is quicker to make and slower to run.
# EDGE_BIN takes the programs (edge-proxy, examples/bench_door) of that folder and builds nothing.
# Needs nginx, wrk, h2load (nghttp2-client) and openssl. On one core all share it. Prints a Markdown table.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-5}
for tool in nginx wrk h2load openssl taskset cargo; do
    command -v "$tool" >/dev/null || PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null ||
        { echo "edge.sh: $tool is missing (apt install nginx-light wrk nghttp2-client openssl)" >&2; exit 1; }
done
PATH=$PATH:/usr/sbin
profile=${PROFILE:-release}
if [[ -n ${EDGE_BIN:-} ]]; then
    target=$EDGE_BIN
else
    echo "building…" >&2
    cargo build -q --profile "$profile" -p edge-proxy --bin edge-proxy --example bench_door
    target=${CARGO_TARGET_DIR:-target}/${profile/#dev/debug}
fi
other=$(($(nproc) > 1))

folder=$(mktemp -d); chmod 711 "$folder" # nginx reads its pages as another user
pids=()
finish() {
    for pid in "${pids[@]}" $(cat "$folder/edge.pid" 2>/dev/null); do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$folder"
}
trap finish EXIT

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost -keyout "$folder/key.pem" -out "$folder/cert.pem" 2>/dev/null
mkdir -p "$folder/www" "$folder/behind" "$folder/front"; chmod 755 "$folder"/{www,behind,front}
head -c 131 /dev/zero | tr '\0' x >"$folder/www/index.html"
common="daemon off; worker_processes 1; events { worker_connections 4096; }"
cat >"$folder/behind.conf" <<CONF
$common pid $folder/behind/pid; error_log $folder/behind/error.log;
http { access_log off; keepalive_requests 1000000; client_body_temp_path $folder/behind;
  server { listen 127.0.0.1:18081; root $folder/www; } }
CONF
cat >"$folder/front.conf" <<CONF
$common pid $folder/front/pid; error_log $folder/front/error.log;
http { access_log $folder/front/access.log; keepalive_requests 1000000; client_body_temp_path $folder/front;
  proxy_temp_path $folder/front; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets on;
  upstream behind { server 127.0.0.1:18081; keepalive 128; keepalive_requests 1000000; }
  server { listen 127.0.0.1:18443 ssl http2; server_name localhost;
    ssl_certificate $folder/cert.pem; ssl_certificate_key $folder/key.pem;
    location / { proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host \$host; proxy_set_header X-Forwarded-For \$remote_addr;
      proxy_set_header X-Forwarded-Proto https; } } }
CONF
# The proxies have core 0, all others core 1 where there is one.
taskset -c "$other" nginx -c "$folder/behind.conf" -p "$folder/behind" 2>/dev/null & pids+=($!)
taskset -c 0 nginx -c "$folder/front.conf" -p "$folder/front" 2>/dev/null & pids+=($!); nginx_pid=$!
taskset -c "$other" "$target/examples/bench_door" --folder "$folder/edge" --edge "$target/edge-proxy" \
    --listen 127.0.0.1:19443 --upstream 127.0.0.1:18081 --host localhost \
    --certificate "$folder/cert.pem" --key "$folder/key.pem" >"$folder/edge.pid" 2>"$folder/edge.log" & pids+=($!)
for port in 18443 19443; do
    for _ in $(seq 100); do
        curl -sf --cacert "$folder/cert.pem" "https://localhost:$port/" >/dev/null && continue 2
        sleep 0.1
    done
    echo "edge.sh: nothing answers on port $port" >&2; cat "$folder/edge.log" >&2; exit 1
done
edge_pid=$(cat "$folder/edge.pid")
taskset -a -p -c 0 "$edge_pid" >/dev/null

# Processor time of a process and its children so far, in microseconds.
used() {
    local total=0 pid
    for pid in "$1" $(pgrep -P "$1" || true); do
        total=$((total + $(awk '{ print $14 + $15 }' "/proc/$pid/stat")))
    done
    echo $((total * 1000000 / $(getconf CLK_TCK)))
}
memory() {
    local total=0 pid
    for pid in "$1" $(pgrep -P "$1" || true); do
        total=$((total + $(awk '/^Pss:/ { print $2 }' "/proc/$pid/smaps_rollup")))
    done
    echo "$total"
}

# Each prints: requests p50_us p99_us
h1() { # port, extra wrk arguments
    taskset -c "$other" wrk -t1 -c32 -d"${seconds}s" --latency "${@:2}" "https://localhost:$1/" | awk '
        function us(t) { if (t ~ /us$/) return t + 0; if (t ~ /ms$/) return t * 1000; return t * 1000000 }
        /50%/ { p50 = us($2) } /99%/ { p99 = us($2) } / requests in / { n = $1 } /Non-2xx/ { bad = $NF }
        END { if (bad) print "edge.sh: " bad " bad answers" > "/dev/stderr"; print n, p50, p99 }'
}
h2() {
    rm -f "$folder/h2.log"
    taskset -c "$other" h2load -c10 -m10 -t1 -D"$seconds" --connect-to="127.0.0.1:$1" \
        --log-file="$folder/h2.log" "https://localhost:$1/" >/dev/null
    sort -n -k3,3 "$folder/h2.log" | awk '{ t[NR] = $3 } END { print NR, t[int(NR * .5)], t[int(NR * .99)] }'
}
fresh() { h1 "$1" -H "Connection: close"; }

measure() { # what, port, pid -> requests/s p50 p99 cpu_us
    local before result requests after
    before=$(used "$3"); result=$($1 "$2"); after=$(used "$3")
    read -r requests p50 p99 <<<"$result"
    awk -v n="$requests" -v s="$seconds" -v p50="$p50" -v p99="$p99" -v cpu=$((after - before)) \
        'BEGIN { printf "%.0f %.0f %.0f %.1f\n", n / s, p50, p99, cpu / n }'
}

echo "| load | proxy | requests/s | p50 µs | p99 µs | CPU µs a request | edge / nginx |"
echo "|---|---|---|---|---|---|---|"
declare -A name=([h1]="HTTP/1.1 keep-alive, 32 connections" [h2]="HTTP/2, 10 connections of 10 streams"
    [fresh]="HTTP/1.1, a handshake each")
for what in h1 h2 fresh; do
    "$what" 18443 >/dev/null; "$what" 19443 >/dev/null # warm
    nginx_row=$(measure "$what" 18443 "$nginx_pid")
    edge_row=$(measure "$what" 19443 "$edge_pid")
    ratio=$(awk -v a="${edge_row##* }" -v b="${nginx_row##* }" 'BEGIN { printf "%.2f", a / b }')
    echo "| ${name[$what]} | nginx | ${nginx_row// / | } | |"
    echo "| | edge-proxy | ${edge_row// / | } | $ratio |"
done
echo
echo "PSS after the load: nginx $(memory "$nginx_pid") KiB, edge-proxy $(memory "$edge_pid") KiB." \
     "Access logs on in both, build: $profile. $(nproc) cores, $seconds s each; the proxy has core 0, load and server core $other."
