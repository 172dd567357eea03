# A page that counts its visits in memory. One is answered only when the VM has slept and woken over it.
import http.server
import time

visits = 0


def asleep():
    return time.time() - time.monotonic()


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global visits
        visits += 1
        before = asleep()
        while self.path == "/over-a-sleep" and asleep() < before + 1:
            time.sleep(0.1)
        body = f"{visits}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Page).serve_forever()
