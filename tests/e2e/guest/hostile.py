"""A guest that lies: for some seconds it sends frames that no honest guest sends. Prints how many of each kind.

python3 hostile.py SECONDS OWN NEIGHBOUR FOREIGN ...   (FOREIGN: addresses outside of its network that it tries to reach)"""
import json
import os
import random
import socket
import struct
import sys
import time

SECONDS, OWN, NEIGHBOUR, FOREIGN = float(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
GATEWAY = "169.254.1.1"
DEVICE = next(name for name in sorted(os.listdir("/sys/class/net")) if name != "lo")
MAC = bytes.fromhex(open(f"/sys/class/net/{DEVICE}/address").read().strip().replace(":", ""))
GATEWAY_MAC, BROADCAST = bytes.fromhex("026761746501"), b"\xff" * 6
IPV4, ARP, IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
SOL_PACKET, PACKET_VNET_HDR = 263, 15
TCP, UDP, FRAGMENT, ICMPV6 = 6, 17, 44, 58
HEADERS = [0, 43, 51, 60, 135, 139, 140]  # extension headers (IANA's list) that members do not need
chance = random.Random(7)


def address(text):
    return socket.inet_aton(text)


def own_ipv6(device):
    """Its addresses: the network's (RFC 4193), and the link's."""
    lines = [line.split() for line in open("/proc/net/if_inet6")]
    found = [bytes.fromhex(line[0]) for line in lines if line[5] == device]
    return next(one for one in found if one[0] == 0xFD), next(one for one in found if one[:2] == b"\xfe\x80")


OWN6, LINK6 = (socket.inet_ntop(socket.AF_INET6, one) for one in own_ipv6(DEVICE))


def member6(ipv4):
    return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, OWN6)[:12] + address(ipv4))


NEIGHBOUR6 = member6(NEIGHBOUR)


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source, destination, protocol=17, body=b"", ttl=64, version=4, words=5, options=b"", flags=0, length=None, wrong=0):
    length = 20 + len(options) + len(body) if length is None else length
    head = struct.pack("!BBHHHBBH", version << 4 | words, 0, length, chance.randrange(65536), flags, ttl, protocol, 0)
    head += address(source) + address(destination) + options
    sum_ = checksum(head) ^ wrong
    return head[:10] + struct.pack("!H", sum_) + head[12:] + body


def udp(source_port, port, data=b"x" * 32):
    return struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data


def tcp(port, destination, flags=0x02):
    """A SYN with a sound checksum, so that it is not for that that it is dropped."""
    segment = struct.pack("!HHIIBBHHH", chance.randrange(1024, 65535), port, 1, 0, 5 << 4, flags, 1024, 0, 0)
    pseudo = address(OWN) + address(destination) + struct.pack("!HH", 6, len(segment))
    return segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:]


def arp(operation, sender_mac, sender, target_mac, target):
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + sender_mac + address(sender) + target_mac + address(target)


def ipv6(source, next_header, body, destination="ff02::1"):
    head = struct.pack("!IHBB", 6 << 28, len(body), next_header, 255)
    return head + socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination) + body


def icmpv6(source, message, destination="ff02::1"):
    """With a sound checksum, so that it is not for that that it is dropped."""
    pseudo = b"".join(socket.inet_pton(socket.AF_INET6, one) for one in (source, destination)) + struct.pack("!II", len(message), ICMPV6)
    return ipv6(source, ICMPV6, message[:2] + struct.pack("!H", checksum(pseudo + message)) + message[4:], destination)


def about(kind, target, option=b""):
    """Of neighbour discovery (RFC 4861): who asks for an address, or has it."""
    return struct.pack("!BBHI", kind, 0, 0, 0x60000000 if kind == 136 else 0) + socket.inet_pton(socket.AF_INET6, target) + option


def behind(kind, next_header, body, more=0):
    """An extension header of eight bytes (RFC 8200 section 4); a fragment's says its place and whether others follow."""
    if kind == FRAGMENT:
        return struct.pack("!BBHI", next_header, 0, more, chance.randrange(1 << 32)) + body
    return struct.pack("!BB6s", next_header, 0, b"\1\4\0\0\0\0" if kind != 43 else b"\0\1\0\0\0\0") + body


def frame(kind, packet, source=MAC, destination=GATEWAY_MAC):
    return destination + source + kind + packet


def anything():
    return socket.inet_ntoa(bytes(chance.randrange(256) for _ in range(4)))


def frames():
    """Of each kind one, with chances of their own."""
    spoofed = chance.choice([NEIGHBOUR, GATEWAY, "255.255.255.255", "127.0.0.1", "224.0.0.1", "0.0.0.0", anything(), *FOREIGN])
    to = chance.choice([NEIGHBOUR, GATEWAY, *FOREIGN])
    yield "spoofed_mac", frame(IPV4, ipv4(OWN, NEIGHBOUR, body=udp(9, 9)), source=chance.choice([GATEWAY_MAC, MAC[:5] + b"\x99", BROADCAST, b"\0" * 6]))
    yield "spoofed_ipv4", frame(IPV4, ipv4(spoofed, to, body=udp(53, 53)))
    yield "spoofed_arp", frame(ARP, arp(2, MAC, chance.choice([NEIGHBOUR, GATEWAY, anything()]), BROADCAST, NEIGHBOUR), destination=BROADCAST)
    yield "spoofed_arp_mac", frame(ARP, arp(1, GATEWAY_MAC, OWN, b"\0" * 6, NEIGHBOUR), destination=BROADCAST)
    yield "malformed_arp", frame(ARP, os.urandom(chance.randrange(0, 40)))
    advert = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0xC0, 1800, 0, 0) + b"\1\1" + MAC
    yield "router_advertisement", frame(IPV6, ipv6("fe80::1", 58, advert))
    yield "router_advertisement", frame(IPV6, icmpv6(LINK6, advert, chance.choice(["ff02::1", NEIGHBOUR6])))
    claim = about(136, chance.choice(["fe80::1", NEIGHBOUR6]), b"\2\1" + MAC)
    yield "neighbour_advertisement", frame(IPV6, icmpv6(chance.choice(["fe80::1", OWN6, LINK6, NEIGHBOUR6]), claim, chance.choice(["ff02::1", NEIGHBOUR6])))
    yield "neighbour_solicitation", frame(IPV6, icmpv6(chance.choice([NEIGHBOUR6, "fe80::9", "::"]), about(135, NEIGHBOUR6, b"\1\1" + MAC), chance.choice(["ff02::1", NEIGHBOUR6])))
    redirect = struct.pack("!BBHI", 137, 0, 0, 0) + 2 * socket.inet_pton(socket.AF_INET6, NEIGHBOUR6)
    yield "redirect_ipv6", frame(IPV6, icmpv6(chance.choice(["fe80::1", OWN6]), redirect, NEIGHBOUR6))
    elsewhere6 = chance.choice(["2001:db8::1", "fd00::1", "::1", "ff02::1", "::", "::ffff:10.66.0.10", "fe80::1", LINK6, NEIGHBOUR6])
    yield "spoofed_ipv6", frame(IPV6, ipv6(elsewhere6, UDP, udp(53, 53), chance.choice([NEIGHBOUR6, "2001:db8::2"])))
    yield "spoofed_ipv6_tcp", frame(IPV6, ipv6(elsewhere6, TCP, tcp(80, NEIGHBOUR), NEIGHBOUR6))
    yield "spoofed_ipv6_fragment", frame(IPV6, ipv6(elsewhere6, FRAGMENT, behind(FRAGMENT, UDP, os.urandom(24), chance.choice([0, 1, 8, 9])), NEIGHBOUR6))
    yield "extension_header", frame(IPV6, ipv6(OWN6, kind := chance.choice(HEADERS), behind(kind, UDP, udp(9, 9)), NEIGHBOUR6))
    yield "hidden_extension_header", frame(IPV6, ipv6(OWN6, FRAGMENT, behind(FRAGMENT, kind := chance.choice(HEADERS), behind(kind, UDP, udp(9, 9)), 1), NEIGHBOUR6))
    yield "hidden_neighbour_advertisement", frame(IPV6, ipv6(OWN6, kind := chance.choice([60, FRAGMENT]), behind(kind, ICMPV6, claim), chance.choice(["ff02::1", NEIGHBOUR6])))
    yield "overlapping_ipv6_fragments", frame(IPV6, ipv6(OWN6, FRAGMENT, behind(FRAGMENT, UDP, os.urandom(24), chance.choice([1, 9, 8, 0xFFF8])), NEIGHBOUR6))
    yield "dhcpv6_answer", frame(IPV6, ipv6(chance.choice([OWN6, LINK6]), UDP, udp(547, 546, b"\7\0\0\1" + os.urandom(40)), chance.choice([NEIGHBOUR6, "ff02::1"])))
    yield "multicast_ipv6", frame(IPV6, ipv6(chance.choice([OWN6, LINK6]), UDP, udp(5353, 5353), chance.choice(["ff02::fb", "ff02::1", "ff05::2", "ff0e::1"])))
    yield "to_foreign_ipv6", frame(IPV6, ipv6(OWN6, UDP, udp(53, 53), chance.choice(["2001:db8::2", "fd00::1", "::1", "::ffff:127.0.0.1", "64:ff9b::a42:a"])))
    yield "to_nobody_ipv6", frame(IPV6, ipv6(OWN6, UDP, udp(53, 53), member6("10.66.0.200")))
    yield "short_ipv6", frame(IPV6, ipv6(OWN6, UDP, b"", NEIGHBOUR6)[: chance.randrange(60)])
    offer = struct.pack("!BBBB", 2, 1, 6, 0) + os.urandom(40) + b"\0" * 192 + bytes.fromhex("638253633501023604") + address(OWN) + b"\xff"
    yield "dhcp_offer", frame(IPV4, ipv4(OWN, "255.255.255.255", body=udp(67, 68, offer)), destination=BROADCAST)
    yield "dhcp_garbage", frame(IPV4, ipv4("0.0.0.0", "255.255.255.255", body=udp(68, 67, os.urandom(chance.randrange(0, 600)))), destination=BROADCAST)
    yield "other_ethertype", frame(chance.choice([b"\x81\x00", b"\x88\xa8", b"\x88\xcc", b"\x88\x47", b"\x88\x64", b"\x88\x8e", b"\x00\x26"]), os.urandom(60))
    yield "vlan_with_ipv4", frame(b"\x81\x00", b"\0\1" + IPV4 + ipv4(NEIGHBOUR, OWN, body=udp(9, 9)))
    yield "short_frame", frame(IPV4, os.urandom(chance.randrange(0, 20)))
    yield "bad_version", frame(IPV4, ipv4(OWN, to, version=chance.choice([0, 5, 6, 15]), body=udp(9, 9)))
    yield "bad_header_length", frame(IPV4, ipv4(OWN, to, words=chance.choice([0, 1, 4, 15]), body=udp(9, 9)))
    yield "bad_total_length", frame(IPV4, ipv4(OWN, to, length=chance.choice([0, 19, 60000]), body=udp(9, 9)))
    yield "bad_checksum", frame(IPV4, ipv4(OWN, to, wrong=0x1234, body=udp(9, 9)))
    yield "expired", frame(IPV4, ipv4(OWN, to, ttl=chance.choice([0, 1]), body=udp(9, 9)))
    yield "source_route", frame(IPV4, ipv4(OWN, GATEWAY, words=7, options=b"\x83\x07\x04" + address(NEIGHBOUR) + b"\0", body=udp(9, 9)))
    yield "overlapping_fragments", frame(IPV4, ipv4(OWN, NEIGHBOUR, flags=chance.choice([0x2000, 0x2001, 0x0001, 0x1FFF]), body=os.urandom(24)))
    foreign = chance.choice(FOREIGN)
    yield "to_foreign", frame(IPV4, ipv4(OWN, foreign, 6, tcp(chance.choice([22, 80, 443, 8600]), foreign)))
    yield "to_gateway", frame(IPV4, ipv4(OWN, GATEWAY, 6, tcp(chance.randrange(1, 65535), GATEWAY)))
    yield "to_multicast", frame(IPV4, ipv4(OWN, chance.choice(["224.0.0.1", "239.1.2.3", "255.255.255.255"]), body=udp(5353, 5353)), destination=BROADCAST)
    yield "redirect", frame(IPV4, ipv4(OWN, NEIGHBOUR, 1, b"\5\1\0\0" + address(OWN) + ipv4(NEIGHBOUR, GATEWAY, body=udp(9, 9))[:28]))
    yield "other_protocol", frame(IPV4, ipv4(OWN, chance.choice([NEIGHBOUR, GATEWAY]), chance.choice([0, 2, 4, 41, 47, 50, 89, 132, 255]), os.urandom(40)))
    yield "flood_of_connections", frame(IPV4, ipv4(OWN, NEIGHBOUR, 6, tcp(chance.randrange(1, 65535), NEIGHBOUR)))
    yield "noise", os.urandom(chance.randrange(14, 1500))


plain = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
plain.bind((DEVICE, 0))
offloads = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
offloads.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
offloads.bind((DEVICE, 0))
sent, refused = {}, 0
until = time.monotonic() + SECONDS
while time.monotonic() < until:
    for kind, data in frames():
        try:
            plain.send(data)
            sent[kind] = sent.get(kind, 0) + 1
        except OSError:
            refused += 1
    # Headers of segmentation and checksums that do not fit their packets.
    header = struct.pack("<BBHHHH", chance.choice([0, 1, 2]), chance.choice([0, 1, 3, 4, 0x81]), chance.randrange(200), chance.randrange(2000), chance.randrange(100), chance.randrange(100))
    try:
        offloads.send(header + frame(IPV4, ipv4(OWN, NEIGHBOUR, 6, tcp(80, NEIGHBOUR) + os.urandom(chance.randrange(0, 3000)))))
        sent["offload_header"] = sent.get("offload_header", 0) + 1
    except OSError:
        refused += 1
print(json.dumps({"sent": sent, "refused": refused}))
