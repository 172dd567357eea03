"""server.py, and more: each answer names its VM (the file NAME) and the host that was asked for; /write?ID adds a line to
the file LEDGER and answers when it is on the disk; /long?PIECES is a download that takes its time.

soak.py PORT PAGE NAME LEDGER
"""
import os
import sys
import threading
import time

from server import PORT, Handler, Server

NAME, LEDGER = sys.argv[3:5]
PIECE = 1 << 14
# Between two pieces of a long download, in seconds.
PAUSE = 0.1
ledger, writing = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT), threading.Lock()
folder = os.open(os.path.dirname(LEDGER), os.O_RDONLY)
os.fsync(folder)


def name():
    with open(NAME) as file:
        return file.read().strip()


class Soaked(Handler):
    def end_headers(self):
        self.send_header("X-Vm", name())
        self.send_header("X-Host", self.headers.get("Host", "-"))
        super().end_headers()

    def do_GET(self):
        what, _, word = self.path.partition("?")
        if what == "/who":
            self.answer(word.encode())
        elif what == "/long":
            self.long(int(word))
        else:
            super().do_GET()

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        word = self.path.partition("?")[2]
        with writing:
            os.write(ledger, f"{word}\n".encode())
            os.fsync(ledger)
        self.answer(word.encode())

    def long(self, pieces):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(PIECE * pieces))
        self.end_headers()
        for number in range(pieces):
            self.wfile.write(f"{number} ".ljust(PIECE, ".").encode())
            time.sleep(PAUSE)


Server(("0.0.0.0", PORT), Soaked).serve_forever()
