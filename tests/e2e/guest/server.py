"""A small server for a guest: a page, a counter in memory, an echo WebSocket (RFC 6455) and server-sent events."""
import base64
import hashlib
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(sys.argv[1])
PAGE = sys.argv[2].encode()
KIND = "text/html" if PAGE.startswith(b"<") else "text/plain"
count = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self.websocket()
        elif self.path == "/events":
            self.events()
        elif self.path == "/headers":
            self.answer(str(self.headers).encode())
        elif self.path == "/count":
            global count
            count += 1
            self.answer(str(count).encode())
        else:
            self.answer(PAGE, KIND)

    def do_POST(self):
        size = int(self.headers.get("Content-Length", 0))
        digest = hashlib.sha256()
        while size:
            piece = self.rfile.read(min(size, 1 << 16))
            digest.update(piece)
            size -= len(piece)
        self.answer(digest.hexdigest().encode())

    def answer(self, body, kind="text/plain"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def events(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(3):
            self.wfile.write(f"data: {number}\n\n".encode())
            self.wfile.flush()
        self.close_connection = True

    def websocket(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while True:
            head = self.rfile.read(2)
            if len(head) < 2:
                return
            size = head[1] & 127
            if size == 126:
                size = int.from_bytes(self.rfile.read(2), "big")
            mask = self.rfile.read(4)
            data = bytes(byte ^ mask[place % 4] for place, byte in enumerate(self.rfile.read(size)))
            length = bytes([len(data)]) if len(data) < 126 else bytes([126]) + len(data).to_bytes(2, "big")
            self.wfile.write(bytes([head[0]]) + length + data)
            if head[0] & 15 == 8:
                return

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET
    request_queue_size = 128


if __name__ == "__main__":
    Server(("0.0.0.0", PORT), Handler).serve_forever()
