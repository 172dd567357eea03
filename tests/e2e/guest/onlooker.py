"""A neighbour of a guest that lies: for some seconds it looks at every frame that comes in, and prints those that no
honest switch delivers.

python3 onlooker.py SECONDS OWN GATEWAY_MAC ALLOWED ...   (ALLOWED: addresses that may send to it)"""
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
# Its IPv6 addresses: the network's, whose last 32 bits are the IPv4 address, and the link's.
OWN6 = [bytes.fromhex(line.split()[0]) for line in open("/proc/net/if_inet6") if line.split()[5] == DEVICE]
NETWORK6 = next(one for one in OWN6 if one[0] == 0xFD)[:12]
GATEWAY6 = socket.inet_pton(socket.AF_INET6, "fe80::1")
UDP, FRAGMENT, ICMPV6, DHCPV6_CLIENT = 17, 44, 58, 546
# Errors, and of neighbour discovery questions and answers.
OF_GATEWAY = {1, 2, 3, 4, 135, 136}


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
        look_ipv6(packet)
    else:
        complain(f"of Ethertype {kind}")


def look_ipv6(packet):
    source, destination, after, behind = packet[8:24], packet[24:40], packet[6], packet[40:]
    who = socket.inet_ntop(socket.AF_INET6, source)
    if packet[0] >> 4 != 6 or packet[7] == 0:
        complain("a malformed IPv6 header")
    if source == GATEWAY6:
        if after != ICMPV6 or behind[0] not in OF_GATEWAY:
            complain(f"from {who}: header {after}, kind {behind[0]}")
        elif behind[0] in (135, 136) and len(behind) >= 32 and behind[26:32].hex(":") != GATEWAY_MAC:
            complain(f"ND: {who} is at {behind[26:32].hex(':')}")
        return
    if source[:12] != NETWORK6 or socket.inet_ntoa(source[12:]) not in ALLOWED:
        complain(f"from {who}")
    if destination not in OWN6:
        complain(f"to {socket.inet_ntop(socket.AF_INET6, destination)}")
    if after == FRAGMENT:
        # Of a later one nothing is known but what the first one is.
        after, behind = behind[0], behind[8:] if int.from_bytes(behind[2:4], "big") & 0xFFF8 == 0 else b""
    if after in (0, 43, FRAGMENT, 51, 60, 135, 139, 140):
        complain(f"from {who}: extension header {after}")
    if after == ICMPV6 and behind and 133 <= behind[0] <= 137:
        complain(f"from {who}: neighbour discovery of kind {behind[0]}")
    if after == UDP and int.from_bytes(behind[2:4], "big") == DHCPV6_CLIENT:
        complain(f"from {who}: an answer of DHCPv6")


until = time.monotonic() + SECONDS
print("ready", flush=True)
while time.monotonic() < until:
    try:
        data, (_, _, direction, _, _) = sniffer.recvfrom(70000)
    except TimeoutError:
        continue
    if direction != OUTGOING:
        seen += 1
        try:
            look(data)
        except (IndexError, OSError, ValueError):
            complain("of a malformed packet")
print(json.dumps({"seen": seen, "wrong": wrong}))
