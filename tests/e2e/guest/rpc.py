"""A JSON-RPC 2.0 service over raw TCP, framed as language servers do it (Content-Length headers), for a guest.

A client authenticates first (`connect` with a token), then makes a session and sends to it; answers stream back as
notifications while the request is under way, as a coding agent's runtime does it."""
import json
import socketserver
import subprocess
import sys

PORT, TOKEN = int(sys.argv[1]), sys.argv[2]


class Session(socketserver.StreamRequestHandler):
    def read(self):
        length = None
        while (line := self.rfile.readline()).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return json.loads(self.rfile.read(length)) if length is not None else None

    def say(self, **message):
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.wfile.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

    def handle(self):
        known = False
        while (request := self.read()) is not None:
            number, method, params = request.get("id"), request["method"], request.get("params") or {}
            if method == "connect":
                known = params.get("token") == TOKEN
            if not known:
                self.say(id=number, error={"code": -32001, "message": "unauthorized"})
                return
            if method == "session.send":
                for word in params["prompt"].split():
                    self.say(method="assistant.delta", params={"text": word})
                told = subprocess.run(params["tool"], capture_output=True, text=True, check=True).stdout
                self.say(method="assistant.message", params={"text": told})
                self.say(method="session.idle")
            self.say(id=number, result={"ok": True})


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


Server(("0.0.0.0", PORT), Session).serve_forever()
