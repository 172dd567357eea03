"""What network.sh says to vpc: views, requests over its socket, and the costs of many networks.

python3 network.py view RULES                              (a view with one network of two services, to standard output)
python3 network.py join SOCKET SERVICE GENERATION NAMESPACE  (SERVICE: 5 or 6, the end of its address)
python3 network.py many PROGRAM FOLDER HOST N ROUNDS       (HOST: the namespace in which vpc runs)"""

import array
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

PATIENCE = 600  # seconds for anything that is waited for; 500 networks on a busy machine take a part of that
GATEWAY = "169.254.1.1"


def name(kind, number):
    """An id. Devices are named after its first ten characters or more, so the number stands there."""
    return f"{kind}n{number:09}bench00000"


def member(number, address):
    mac = ":".join(f"{part:02x}" for part in [2, 0, *map(int, address.split("."))])
    return {"mac": mac, "ipv4": address}


def service(number, address):
    return {"id": name("sv-", number), **member(number, address)}


def port(number, address):
    return {"vm": name("", number), **member(number, address), "queues": 1, "dialable": [22]}


def network(number, **parts):
    return {"vpc": name("vpc-", number), "range": "10.0.0.0/24", "ports": [], **parts}


def rules(count):
    """Rules that fit nothing here, so that each packet is compared with all of its direction: the most they can cost."""
    def rule(number):
        return {
            "id": name("fw-", number), "action": "deny", "direction": ["in", "out"][number % 2],
            "peer": {"range": f"10.7.{number}.0/24"}, "protocol": "tcp", "ports": [[8000 + number, 8099 + number]],
        }
    return [rule(number) for number in range(count)]


def view(generation, networks):
    return {"version": 1, "generation": generation, "default_network": "10.201.0.0/16", "ports": [],
            "networks": networks}


def ask_once(path, request, *descriptors):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as wire:
        wire.settimeout(PATIENCE)
        wire.connect(path)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        wire.sendmsg([json.dumps(request).encode()], rights)
        said, received, _, _ = socket.recv_fds(wire, 1 << 17, 13)
    for descriptor in received:
        os.close(descriptor)
    if not said:
        raise ConnectionResetError("vpc closed the connection")
    return json.loads(said)


def ask(path, request, *descriptors):
    """Asks until vpc is there and has the view that the request wants."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            answer = ask_once(path, request, *descriptors)
        except (FileNotFoundError, ConnectionError):
            time.sleep(0.002)  # no event tells when it listens
            continue
        # vpc itself has waited before it said so.
        if answer.get("reason") != "view_too_old":
            return answer
    raise TimeoutError(f"no answer to {request}")


def reached(path, generation):
    """Waits until a decision is in force: vpc answers this request then, and no sooner."""
    answer = ask(path, {"ask": "tap", "vm": name("", 999_999_999), "generation": generation})
    assert answer.get("reason") == "unknown_vm", answer


def join(path, number, generation, namespace):
    with open(f"/run/netns/{namespace}", "rb") as there:
        answer = ask(path, {"ask": "join", "service": name("sv-", number), "generation": generation}, there.fileno())
    assert answer == {"answer": "joined"}, answer


class Publisher:
    """control's part: makes a view durable and tells vpc of it."""

    def __init__(self, folder):
        self.file, self.generation, self.readers = f"{folder}/data/feed/vpc.json", 0, []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(f"{folder}/run/feed.sock")
        self.listener.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            # Nothing need be told now: vpc looks at the file when it has connected.
            self.readers.append(self.listener.accept()[0])

    def publish(self, networks):
        self.generation += 1
        with open(self.file + ".new", "w") as file:
            json.dump(view(self.generation, networks), file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(self.file + ".new", self.file)
        told = json.dumps({"view": "vpc", "generation": self.generation}).encode()
        for reader in list(self.readers):
            try:
                reader.send(told)
            except ConnectionError:
                self.readers.remove(reader)
        return self.generation


class House:
    """A vpc, and what its control would be."""

    def __init__(self, program, folder, host):
        self.command = ["nsenter", f"--net=/run/netns/{host}", program, "--config", f"{folder}/vpc.toml"]
        self.socket, self.log = f"{folder}/run/vpc.sock", f"{folder}/vpc.log"
        self.publisher = Publisher(folder)
        self.process = None

    def start(self, ports):
        """Seconds from its start until all stands."""
        begun = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stderr=log)
        reached(self.socket, self.publisher.generation)
        took = time.monotonic() - begun
        status = ask(self.socket, {"ask": "status"})
        assert status["ports"] == ports, f"{status['ports']} of {ports} ports stand"
        return took

    def kill(self):
        self.process.kill()
        self.process.wait()

    def memory(self):
        """PSS of vpc and of its keeper, in KiB."""
        config = self.command[-1].encode()
        found = {"vpc": 0, "keeper": 0}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                if config not in words:
                    continue
                with open(f"/proc/{pid}/smaps_rollup") as file:
                    pss = next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
            found["keeper" if b"--keeper" in words else "vpc"] += pss
        return found


def change(house, networks, number):
    """Milliseconds from publishing one port more until vpc hands its TAP out."""
    added = port(900_000 + number, f"10.0.0.{100 + number}")
    networks[number * 7 % len(networks)]["ports"].append(added)
    begun = time.monotonic()
    generation = house.publisher.publish(networks)
    answer = ask(house.socket, {"ask": "tap", "vm": added["vm"], "generation": generation})
    took = time.monotonic() - begun
    assert answer == {"answer": "tap"}, answer
    return took * 1000


def grow(house, networks, number, prefix):
    """Milliseconds from publishing a new network until a service has joined it, and until its gateway has answered."""
    namespace = f"{prefix}-new{number}"
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    networks.append(network(800_000 + number, services=[service(800_000 + number, "10.0.0.5")]))
    begun = time.monotonic()
    generation = house.publisher.publish(networks)
    join(house.socket, 800_000 + number, generation, namespace)
    joined = time.monotonic() - begun
    ping = ["ping", "-q", "-c", "1", "-w", "10", "-i", "0.1", GATEWAY]
    subprocess.run(["nsenter", f"--net=/run/netns/{namespace}", *ping], check=True, stdout=subprocess.DEVNULL)
    return joined * 1000, (time.monotonic() - begun) * 1000


def many(program, folder, host, count, rounds):
    house = House(program, folder, host)
    # So that its vpc ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("network.py: told to end"))
    try:
        cost(house, count, rounds, host)
    finally:
        if house.process:
            house.process.terminate()
            house.process.wait()


def cost(house, count, rounds, prefix):
    def members(number):
        return [port(2 * number + which, f"10.0.0.{5 + which}") for which in range(2)]

    networks = [network(number, ports=members(number)) for number in range(count)]
    house.publisher.publish(networks)
    first = house.start(2 * count)
    print(f"{count} networks stand after {first:.1f} s", file=sys.stderr)
    fresh = house.memory()
    restarts = []
    for _ in range(rounds):
        house.kill()
        restarts.append(house.start(2 * count))
    restarted = house.memory()
    changes = [change(house, networks, number) for number in range(3 * rounds)]
    grown = [grow(house, networks, number, prefix) for number in range(rounds)]
    middle = statistics.median
    print(f"| {count} networks of two ports | all | for each network |\n|---|---|---|")
    print(f"| first start until all stand | {first:.2f} s | {first / count * 1000:.1f} ms |")
    print(f"| restart after SIGKILL until all are adopted | {middle(restarts):.2f} s |"
          f" {middle(restarts) / count * 1000:.1f} ms |")
    for what, found in [("after the first start", fresh), ("after a restart", restarted)]:
        print(f"| PSS of vpc, {what} | {found['vpc'] / 1024:.1f} MiB | {found['vpc'] / count:.0f} KiB |")
    print(f"| PSS of its keeper | {restarted['keeper'] / 1024:.1f} MiB | {restarted['keeper'] / count:.0f} KiB |")
    print(f"| one port more, until its TAP is handed out | {middle(changes):.0f} ms | |")
    print(f"| a new network, until a service has joined | {middle(pair[0] for pair in grown):.0f} ms | |")
    print(f"| the same, until its first ping is answered | {middle(pair[1] for pair in grown):.0f} ms | |")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["view", count]:
            services = [service(last, f"10.0.0.{last}") for last in (5, 6)]
            json.dump(view(1, [network(1, services=services, rules=rules(int(count)))]), sys.stdout)
        case ["join", path, number, generation, namespace]:
            join(path, int(number), int(generation), namespace)
        case ["many", program, folder, host, count, rounds]:
            many(program, folder, host, int(count), int(rounds))
        case _:
            sys.exit(__doc__)
