#!/usr/bin/env bash
# tests/bench/edge.sh: edge-proxy beside nginx, HAProxy, Caddy and Envoy, in one run: the same key, the same server
# behind, the same load, access logs on, one core for the proxy.
#
#   tests/bench/edge.sh [PART ...]     parts: load handshakes idle paced slow names changes   (default: these)
#
# SECONDS_EACH=5 is the length of a measurement, ROUNDS=3 how often those of `load` are made. PEERS="nginx haproxy" takes
# some of the peers. PROFILE=dev takes the build that the tests use, which is quicker to make and slower to run; EDGE_BIN
# takes the programs (edge-proxy, examples/bench_door) of that folder and builds nothing. NAMES=50000 is how many names
# `names` and `changes` map.
#
# The proxies have core 0, load and the server behind core 1 where there is one. CPU time a request is the figure to
# trust: the rest moves with whatever else the machine does. Caddy and Envoy come from PyPI (tests/bench/peers.txt), the
# others and the load generators from Debian: apt install nginx-light haproxy wrk nghttp2-client openssl python3-venv.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
PATH=$PATH:/usr/sbin
parts=("${@:-load handshakes idle paced slow names changes}")
seconds=${SECONDS_EACH:-5}
rounds=${ROUNDS:-3}
read -ra peers <<<"${PEERS:-nginx haproxy caddy envoy}"
names=${NAMES:-50000}
die() { echo "edge.sh: $*" >&2; exit 1; }
for tool in wrk h2load openssl taskset cargo nginx ${PEERS:-haproxy}; do
  [[ $tool == caddy || $tool == envoy ]] || command -v "$tool" >/dev/null || die "$tool is missing; see its head"
done

profile=${PROFILE:-release}
if [[ -n ${EDGE_BIN:-} ]]; then
  target=$EDGE_BIN
else
  echo "building…" >&2
  patches/apply
  cargo build -q --profile "$profile" --locked -p edge-proxy --bin edge-proxy --example bench_door
  target=${CARGO_TARGET_DIR:-target}/${profile/#dev/debug}
fi
venv=target/bench-peers
if [[ " ${peers[*]} " == *" caddy "* || " ${peers[*]} " == *" envoy "* ]] && ! [[ -e $venv/made ]]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check --require-hashes --no-deps -r tests/bench/peers.txt
  touch "$venv/made"
fi

other=$(($(nproc) > 1))
# In memory: what is measured are proxies and not disks.
folder=$(mktemp -d /dev/shm/bench-edge.XXXXXX); chmod 711 "$folder" # nginx reads its pages as another user
declare -A port=([nginx]=18443 [haproxy]=18444 [caddy]=18445 [envoy]=18446 [edge]=19443 [names]=19444) pid
started=()
finish() {
  local one
  for one in "${started[@]}"; do kill "$one" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$folder"
}
trap finish EXIT

write_settings() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost -keyout "$folder/key.pem" -out "$folder/cert.pem" 2>/dev/null
  cat "$folder/cert.pem" "$folder/key.pem" >"$folder/both.pem"
  mkdir -p "$folder/www" "$folder/behind" "$folder/nginx"; chmod 755 "$folder"/{www,behind,nginx}
  head -c 131 /dev/zero | tr '\0' x >"$folder/www/index.html"
  local common="daemon off; worker_processes 1; events { worker_connections 8192; }"
  cat >"$folder/behind.conf" <<CONF
$common pid $folder/behind/pid; error_log $folder/behind/error.log;
http { access_log off; keepalive_requests 1000000; client_body_temp_path $folder/behind;
  server { listen 127.0.0.1:18081; root $folder/www; } }
CONF
  cat >"$folder/nginx.conf" <<CONF
$common pid $folder/nginx/pid; error_log $folder/nginx/error.log;
http { access_log $folder/nginx/access.log; keepalive_requests 1000000; client_body_temp_path $folder/nginx;
  proxy_temp_path $folder/nginx; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets on;
  upstream behind { server 127.0.0.1:18081; keepalive 128; keepalive_requests 1000000; }
  server { listen 127.0.0.1:18443 ssl http2; server_name localhost;
    ssl_certificate $folder/cert.pem; ssl_certificate_key $folder/key.pem;
    location / { proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host \$host; proxy_set_header X-Forwarded-For \$remote_addr;
      proxy_set_header X-Forwarded-Proto https; } } }
CONF
  cat >"$folder/haproxy.conf" <<CONF
global
  nbthread 1
  maxconn 8192
  log stdout format raw local0
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  log global
  option httplog
  option forwardfor
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout http-request 15s
frontend front
  bind 127.0.0.1:18444 ssl crt $folder/both.pem alpn h2,http/1.1
  http-request set-header X-Forwarded-Proto https
  default_backend behind
backend behind
  http-reuse always
  server one 127.0.0.1:18081
CONF
  cat >"$folder/Caddyfile" <<CONF
{
  admin off
  auto_https disable_redirects
  skip_install_trust
  storage file_system $folder/caddy
}
https://localhost:18445 {
  bind 127.0.0.1
  tls $folder/cert.pem $folder/key.pem
  log {
    output file $folder/caddy.log
  }
  reverse_proxy 127.0.0.1:18081 {
    transport http {
      keepalive_idle_conns_per_host 128
    }
  }
}
CONF
  python3 tests/bench/envoy.py "$folder" 18446 18081 >"$folder/envoy.yaml"
}

# On core 0, in the background; its id is `pid[NAME]`.
start() { # NAME COMMAND ...
  local name=$1
  shift
  taskset -c 0 "$@" >"$folder/$name.log" 2>&1 & pid[$name]=$!
  started+=("${pid[$name]}")
}
start_all() {
  taskset -c "$other" nginx -c "$folder/behind.conf" -p "$folder/behind" 2>/dev/null & started+=($!)
  for name in "${peers[@]}"; do
    case $name in
      nginx) start nginx nginx -c "$folder/nginx.conf" -p "$folder/nginx" ;;
      haproxy) start haproxy haproxy -db -f "$folder/haproxy.conf" ;;
      caddy) start caddy env GOMAXPROCS=1 HOME="$folder" "$venv/bin/caddy" run --config "$folder/Caddyfile" --adapter caddyfile ;;
      envoy) start envoy "$venv/bin/envoy" -c "$folder/envoy.yaml" --concurrency 1 --disable-hot-restart -l error ;;
      *) die "no peer $name" ;;
    esac
  done
  start_edge edge
  local all=("${peers[@]}" edge)
  for name in "${all[@]}"; do answers "$name"; done
}
# edge-proxy with its view: `door_in` takes what the example does, `door_out` gives what it says.
start_edge() { # NAME [ARGUMENT ...]
  local name=$1 edge
  shift
  mkfifo "$folder/$name.in" "$folder/$name.out"
  taskset -c "$other" "$target/examples/bench_door" --folder "$folder/$name" --edge "$target/edge-proxy" \
    --listen "127.0.0.1:${port[$name]}" --upstream 127.0.0.1:18081 --host localhost \
    --certificate "$folder/cert.pem" --key "$folder/key.pem" "$@" \
    <"$folder/$name.in" >"$folder/$name.out" 2>"$folder/$name.log" & started+=($!)
  exec {door_in}>"$folder/$name.in" {door_out}<"$folder/$name.out"
  read -r edge <&"$door_out" || die "edge-proxy does not start: $(tail -n 3 "$folder/$name.log")"
  begun=$(date +%s%N)
  pid[$name]=$edge
  started+=("$edge")
  taskset -a -p -c 0 "$edge" >/dev/null
}
answers() { # NAME
  for _ in $(seq 200); do
    curl -sf --cacert "$folder/cert.pem" "https://localhost:${port[$1]}/" >/dev/null && return
    sleep 0.1
  done
  die "$1 does not answer: $(tail -n 5 "$folder/$1.log")"
}

family() { echo "$1"; pgrep -P "$1" || true; }
# Processor time of a process and its children so far, in microseconds.
used() {
  local one total=0
  for one in $(family "$1"); do total=$((total + $(awk '{ print $14 + $15 }' "/proc/$one/stat"))); done
  echo $((total * 1000000 / $(getconf CLK_TCK)))
}
# Memory in KiB, what is shared by parts.
memory() {
  local one total=0
  for one in $(family "$1"); do total=$((total + $(awk '/^Pss:/ { print $2 }' "/proc/$one/smaps_rollup"))); done
  echo "$total"
}
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else print "-" }'; }
client() { taskset -c "$other" python3 tests/bench/edge_clients.py "$@"; }
# The middle and the hundredth of a log of h2load, in microseconds, and how many there are.
percentiles() { sort -n -k3,3 "$1" | awk '{ t[NR] = $3 } END { print NR, t[int(NR * .5)], t[int(NR * .99)] }'; }

# Each prints: requests p50_us p99_us
h1() { # PORT [ARGUMENT ...]
  taskset -c "$other" wrk -t1 -c32 -d"${seconds}s" --latency "${@:2}" "https://localhost:$1/" | awk '
    function us(t) { if (t ~ /us$/) return t + 0; if (t ~ /ms$/) return t * 1000; return t * 1000000 }
    /50%/ { p50 = us($2) } /99%/ { p99 = us($2) } / requests in / { n = $1 } /Non-2xx/ { bad = $NF }
    END { if (bad) print "edge.sh: " bad " bad answers" > "/dev/stderr"; print n, p50, p99 }'
}
h2() { # PORT
  rm -f "$folder/h2.log"
  taskset -c "$other" h2load -c10 -m10 -t1 -D"$seconds" --connect-to="127.0.0.1:$1" \
    --log-file="$folder/h2.log" "https://localhost:$1/" >/dev/null
  percentiles "$folder/h2.log"
}
fresh() { h1 "$1" -H "Connection: close"; }
# At a pace of its own, of 32 connections over HTTP/1.1.
paced() { # URL REQUESTS_A_SECOND
  rm -f "$folder/paced.log"
  taskset -c "$other" h2load --h1 -c32 -t1 -D"$seconds" --rps="$(awk -v r="$2" 'BEGIN { printf "%.2f", r / 32 }')" \
    --log-file="$folder/paced.log" "$1" >/dev/null
  percentiles "$folder/paced.log"
}

declare -A most
# In rounds, each proxy once in each: the machine is not as fast at all times. What is printed is the middle of them.
part_load() {
  local what name round row times title
  declare -A titles=([h1]="HTTP/1.1 keep-alive, 32 connections" [h2]="HTTP/2, 10 connections of 10 streams"
    [fresh]="HTTP/1.1, a connection each")
  echo "| load | proxy | requests/s | p50 µs | p99 µs | CPU µs a request | edge-proxy takes | by round |"
  echo "|---|---|---|---|---|---|---|---|"
  for what in h1 h2 fresh; do
    title=${titles[$what]}
    for ((round = 1; round <= rounds; round++)); do
      for name in edge "${peers[@]}"; do
        seconds=1 "$what" "${port[$name]}" >/dev/null # warm
        measure "$what" "$name" >>"$folder/$what.$name"
      done
    done
    for name in edge "${peers[@]}"; do
      row=$(for column in 1 2 3 4; do cut -d ' ' -f "$column" "$folder/$what.$name" | middle; done | tr '\n' ' ')
      row=${row% }
      times=$(paste -d ' ' "$folder/$what.edge" "$folder/$what.$name" | awk '{ printf "%.2f\n", $4 / $8 }')
      [[ $what != h1 ]] || most[$name]=${row%% *}
      if [[ $name == edge ]]; then echo "| $title | $name | ${row// / | } | | |"; continue; fi
      echo "| | $name | ${row// / | } | $(middle <<<"$times") | ${times//$'\n'/, } |"
    done
  done
  echo
}
middle() { sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }
measure() { # LOAD NAME -> requests/s p50 p99 cpu_us
  local before result after
  before=$(used "${pid[$2]}"); result=$("$1" "${port[$2]}"); after=$(used "${pid[$2]}")
  read -r requests p50 p99 <<<"$result"
  awk -v n="$requests" -v s="$seconds" -v p50="$p50" -v p99="$p99" -v cpu=$((after - before)) \
    'BEGIN { printf "%.0f %.0f %.0f %.1f\n", n / s, p50, p99, cpu / n }'
}

part_handshakes() {
  local name what before done count=2000
  declare -A cpu
  echo "| proxy | CPU µs a full handshake | edge-proxy takes | CPU µs a resumed one | resumed |"
  echo "|---|---|---|---|---|"
  for name in edge "${peers[@]}"; do
    declare -A one=()
    for what in full resumed; do
      client "$what" "${port[$name]}" 200 >/dev/null # warm
      before=$(used "${pid[$name]}")
      done=$(client "$what" "${port[$name]}" "$count")
      one[$what]=$(((($(used "${pid[$name]}") - before)) / count))
    done
    cpu[$name]=${one[full]}
    echo "| $name | ${one[full]} | $([[ $name == edge ]] || ratio "${cpu[edge]}" "${one[full]}") | ${one[resumed]} | $((done * 100 / count)) % |"
  done
  echo
}

part_idle() {
  local name before count=500 held
  declare -A each
  echo "| proxy | KiB an idle TLS connection | edge-proxy takes |"
  echo "|---|---|---|"
  for name in edge "${peers[@]}"; do
    before=$(memory "${pid[$name]}")
    coproc IDLE { client idle "${port[$name]}" "$count"; }
    held=$IDLE_PID
    read -r _ <&"${IDLE[0]}"
    each[$name]=$(awk -v a="$(memory "${pid[$name]}")" -v b="$before" -v n="$count" 'BEGIN { printf "%.1f", (a - b) / n }')
    echo >&"${IDLE[1]}"
    wait "$held" 2>/dev/null || true
    echo "| $name | ${each[$name]} | $([[ $name == edge ]] || ratio "${each[edge]}" "${each[$name]}") |"
  done
  echo
}

part_paced() {
  local name rate row direct
  [[ -n ${most[edge]:-} ]] || for name in edge "${peers[@]}"; do
    row=$(measure h1 "$name"); most[$name]=${row%% *}
  done
  echo "| proxy | requests/s, half of its most | p50 µs | p99 µs | p99 added µs | edge-proxy adds |"
  echo "|---|---|---|---|---|---|"
  declare -A added
  for name in edge "${peers[@]}"; do
    rate=$((${most[$name]} / 2))
    read -r _ _ direct <<<"$(paced http://127.0.0.1:18081/ "$rate")"
    read -r _ p50 p99 <<<"$(paced "https://localhost:${port[$name]}/" "$rate")"
    added[$name]=$((p99 - direct))
    echo "| $name | $rate | $p50 | $p99 | ${added[$name]} | $([[ $name == edge ]] || ratio "${added[edge]}" "${added[$name]}") |"
  done
  echo
}

part_slow() {
  local name rate=1000 alone meeting beside closed last count=${SLOW:-2000} attack
  echo "| proxy | p99 µs of others at $rate/s | while $count slow clients connect | beside them | times alone | closed | the last after s |"
  echo "|---|---|---|---|---|---|---|"
  for name in edge "${peers[@]}"; do
    read -r _ _ alone <<<"$(seconds=10 paced "https://localhost:${port[$name]}/" "$rate")"
    # At the least priority: they stand for other machines, and share a core with who measures.
    coproc SLOW { exec nice -n 19 taskset -c "$other" python3 tests/bench/edge_clients.py slow "${port[$name]}" "$count" 20; }
    attack=$SLOW_PID
    exec {said}<&"${SLOW[0]}"
    read -r _ _ meeting <<<"$(seconds=3 paced "https://localhost:${port[$name]}/" "$rate")"
    read -r _ <&"$said"
    # Done before the first are closed, 15 s after they came.
    read -r _ _ beside <<<"$(seconds=8 paced "https://localhost:${port[$name]}/" "$rate")"
    read -r closed last <&"$said"
    wait "$attack" || true
    exec {said}<&-
    echo "| $name | $alone | $meeting | $beside | $(ratio "$beside" "$alone") | $closed | $last |"
  done
  echo
}

part_names() {
  local first before after touched=2000
  start_edge names --names "$names"
  curl -sf --cacert "$folder/cert.pem" "https://localhost:${port[names]}/" >/dev/null || die "no answer with $names names"
  first=$((($(date +%s%N) - begun) / 1000000))
  before=$(memory "${pid[names]}")
  client names "${port[names]}" $((names - touched)) "$touched" >/dev/null
  after=$(memory "${pid[names]}")
  echo look >&"$door_in"
  read -r looked <&"$door_out"
  echo "$names names: the first answer $first ms after the start; $((before * 1024 / names)) bytes a name of which nobody asked (the process' own memory included), $(((after - before) * 1024 / touched)) more a name once asked for; look-up of certificate and route $looked"
  echo
}

part_changes() {
  [[ -n ${pid[names]:-} ]] || part_names >/dev/null
  echo "changes ${CHANGES:-20}" >&"$door_in"
  read -r changed <&"$door_out"
  echo "A route added beside $names names: in force $changed"
  echo
}

write_settings
start_all
echo "$(nproc) cores, $seconds s each, build: $profile, $(date +%F)"
echo
for part in ${parts[*]}; do
  declare -F "part_$part" >/dev/null || die "no part $part"
  "part_$part"
done
