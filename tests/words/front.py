"""Stands before pebble and adds what Debian's has not: renewal information (RFC 9773) and rate limits.

front.py FOLDER PORT PEBBLE_PORT: certificates and notes are in FOLDER; `window` there holds two RFC 3339 times, and
while `limit` is there new orders are refused for the seconds that it holds. What orders replace is noted in `replaced`.
"""

import base64
import http.client
import http.server
import json
import pathlib
import ssl
import sys

FOLDER, PORT, PEBBLE = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
CONTEXT = ssl.create_default_context(cafile=FOLDER / "ca.pem")


class Front(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def say(self, status, body, fields):
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def renewal(self):
        start, end = (FOLDER / "window").read_text().split()
        body = json.dumps({"suggestedWindow": {"start": start, "end": end}}).encode()
        self.say(200, body, [("Content-Type", "application/json"), ("Retry-After", "21600")])

    def limited(self, seconds):
        problem = {"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many", "status": 429}
        fields = [("Content-Type", "application/problem+json"), ("Retry-After", seconds)]
        self.say(429, json.dumps(problem).encode(), fields)

    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/renewal/"):
            return self.renewal()
        order = self.path.startswith("/order-plz")
        if order and (FOLDER / "limit").exists():
            return self.limited((FOLDER / "limit").read_text())
        # By name, so that what pebble says of itself leads here.
        server = http.client.HTTPSConnection("localhost", PEBBLE, context=CONTEXT)
        fields = {name: value for name, value in self.headers.items() if name.lower() != "content-length"}
        server.request(self.command, self.path, body=body or None, headers=fields)
        answer = server.getresponse()
        told = answer.read()
        if self.path == "/dir":
            told = json.dumps({**json.loads(told), "renewalInfo": f"https://localhost:{PORT}/renewal"}).encode()
        if order and answer.status == 201:
            payload = json.loads(body)["payload"]
            wish = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            if "replaces" in wish:
                with (FOLDER / "replaced").open("a") as notes:
                    notes.write(wish["replaces"] + "\n")
                told = json.dumps({**json.loads(told), "replaces": wish["replaces"]}).encode()
        skipped = {"content-length", "transfer-encoding", "connection", "date"}
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in skipped]
        self.say(answer.status, told, kept)

    do_GET = do_HEAD = do_POST = pass_on


server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Front)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(FOLDER / "own.pem", FOLDER / "own.key.pem")
server.socket = tls.wrap_socket(server.socket, server_side=True)
server.serve_forever()
