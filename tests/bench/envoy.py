"""Prints Envoy's settings for edge.sh (JSON, which is YAML): envoy.py FOLDER PORT BEHIND"""

import json
import sys

folder, port, behind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
API = "type.googleapis.com/envoy"


def typed(name, kind, **fields):
    return {"name": name, "typed_config": {"@type": f"{API}.{kind}", **fields}}


def address(number):
    return {"socket_address": {"address": "127.0.0.1", "port_value": number}}


tls = typed("envoy.transport_sockets.tls", "extensions.transport_sockets.tls.v3.DownstreamTlsContext", common_tls_context={
    "alpn_protocols": ["h2", "http/1.1"],
    "tls_certificates": [{
        "certificate_chain": {"filename": f"{folder}/cert.pem"}, "private_key": {"filename": f"{folder}/key.pem"}}],
})
manager = typed(
    "envoy.filters.network.http_connection_manager",
    "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    stat_prefix="front",
    use_remote_address=True,
    access_log=[typed("file", "extensions.access_loggers.file.v3.FileAccessLog", path=f"{folder}/envoy.access.log")],
    http_filters=[typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")],
    route_config={"virtual_hosts": [{
        "name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "behind"}}]}]},
)
print(json.dumps({"static_resources": {
    "listeners": [{"address": address(port), "filter_chains": [{"filters": [manager], "transport_socket": tls}]}],
    "clusters": [{"name": "behind", "connect_timeout": "5s", "load_assignment": {
        "cluster_name": "behind",
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(behind)}}]}]}}],
}}))
