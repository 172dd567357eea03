# Counts by a timer, keeps what it counted in memory, in an open file that it never syncs, and in a file in memory, and
# tells over connections on port 8090 whether all of them still agree. A question is a line "NUMBER ask" or
# "NUMBER time"; its answer is a line of JSON.
import hashlib
import json
import os
import signal
import socketserver
import sys
import threading
import time

TICK, BEAT, PORT = 0.2, 0.1, 8090
# The files begin anew when they are that long.
LONGEST = 1 << 18

lock = threading.Lock()
counter = beats = length = 0
digest = hashlib.sha256()
paths = [sys.argv[1], sys.argv[2]]
files = [open(path, "wb", buffering=0) for path in paths]


def tick():
    global counter, length, digest
    with lock:
        counter += 1
        if length > LONGEST:
            for file in files:
                file.seek(0)
                file.truncate(0)
            length, digest = 0, hashlib.sha256()
        line = f"{counter} {hashlib.sha256(str(counter).encode()).hexdigest()}\n".encode()
        for file in files:
            file.write(line)
        length += len(line)
        digest.update(line)


def beat():
    global beats
    while True:
        time.sleep(BEAT)
        beats += 1


def torn():
    for path in paths:
        with open(path, "rb") as file:
            content = file.read()
        if hashlib.sha256(content).digest() != digest.digest():
            return f"{path}: {len(content)} bytes of {length}, other content"
    return None


class Connection(socketserver.StreamRequestHandler):
    def handle(self):
        served = 0
        for line in self.rfile:
            number, word = line.split()
            served += 1
            answer = {"asked": int(number), "served": served}
            if word == b"time":
                answer["now"] = time.time()
            else:
                with lock:
                    answer.update(counter=counter, beats=beats, torn=torn())
            self.wfile.write(json.dumps(answer).encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


# Waited for in the main loop: a handler could interrupt itself.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
server = Server(("0.0.0.0", PORT), Connection)
threading.Thread(target=server.serve_forever, daemon=True).start()
threading.Thread(target=beat, daemon=True).start()
signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
while True:
    signal.sigwait([signal.SIGALRM])
    tick()
