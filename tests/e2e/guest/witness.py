"""A neighbour of a guest that lies: for some seconds it looks at every frame that comes in, and prints those that no
honest switch delivers.

python3 witness.py SECONDS OWN GATEWAY_MAC ALLOWED ...   (ALLOWED: addresses that may send to it)"""
import json
import os
import socket
import sys
import time

SECONDS, OWN, GATEWAY_MAC, ALLOWED = float(sys.argv[1]), sys.argv[2], sys.argv[3], set(sys.argv[4:])
DEVICE = next(name for name in sorted(os.listdir("/sys/class/net")) if name != "lo")
OUTGOING = 4
wrong, seen = {}, 0
sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
sniffer.bind((DEVICE, 0))
sniffer.settimeout(0.5)


def complain(what):
    wrong[what] = wrong.get(what, 0) + 1


def look(data):
    mac, kind, packet = data[6:12].hex(":"), data[12:14].hex(), data[14:]
    if mac != GATEWAY_MAC:
        complain(f"from the Ethernet address {mac}")
    if kind == "0800":
        source, destination = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
        if source not in ALLOWED:
            complain(f"from {source}")
        if destination != OWN:
            complain(f"to {destination}")
        if packet[0] >> 4 != 4 or packet[0] & 15 < 5 or packet[8] == 0:
            complain("a malformed IPv4 header")
    elif kind == "0806":
        # The gateway asks for its guests, and answers them.
        sender = socket.inet_ntoa(packet[14:18])
        if packet[8:14].hex(":") != GATEWAY_MAC:
            complain(f"ARP: {sender} is at {packet[8:14].hex(':')}")
    elif kind == "86dd":
        source = socket.inet_ntop(socket.AF_INET6, packet[8:24])
        complain(f"from {source}")
    else:
        complain(f"of Ethertype {kind}")


until = time.monotonic() + SECONDS
print("ready", flush=True)
while time.monotonic() < until:
    try:
        data, (_, _, direction, _, _) = sniffer.recvfrom(70000)
    except TimeoutError:
        continue
    if direction != OUTGOING:
        seen += 1
        look(data)
print(json.dumps({"seen": seen, "wrong": wrong}))
