#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets: inputs in the language of vmm/src/devices/harness.rs, `Rig::abuse`."""

import pathlib
import struct

FOLDER = pathlib.Path(__file__).parent / "corpus"


def near(offset):
    """An address in the data area, as `Input::address` reads it."""
    return bytes([5]) + struct.pack("<H", offset)


def descriptor(queue, index, offset, length, write, more, following=0, indirect=False, address=None):
    kind = (7 << 3 if indirect else 0) | (int(more) | int(write) << 1) << 6 | 5
    return (bytes([queue << 4]) + struct.pack("<H", index) + (address or near(offset)) + bytes([kind])
            + struct.pack("<H", length) + bytes([following]))


def lend(queue, head):
    return bytes([queue << 4 | 4]) + struct.pack("<H", head)


def put(offset, data):
    return bytes([7]) + near(offset) + data.ljust(48, b"\0")


def kick(queue):
    return bytes([queue << 4 | 15])


PAUSE = bytes([9])


def source(index):
    return bytes([10, index])


def block(kind, sector, length, write):
    return (put(0, struct.pack("<IIQ", kind, 0, sector)) + descriptor(0, 0, 0, 16, False, True, 1)
            + descriptor(0, 1, 0x100, length, write, True, 2) + descriptor(0, 2, 0x4000, 1, True, False)
            + lend(0, 0) + kick(0))


def vsock(op, source_port, destination_port, length, flags=0):
    header = struct.pack("<QQIIIHHIII", 3, 2, source_port, destination_port, length, 1, op, flags, 65536, 0)
    return put(0, header) + descriptor(1, 0, 0, 44 + length, False, False) + lend(1, 0) + kick(1)


def room(queue, head, length):
    return descriptor(queue, head, 0x1000, length, True, False) + lend(queue, head)


def report(head, address, half_megabytes):
    """A report of free memory in the third queue: a length in steps of 512 KiB."""
    return (bytes([2 << 4]) + struct.pack("<H", head) + address + bytes([2 << 6 | 2])
            + struct.pack("<H", 8 * half_megabytes) + bytes([0]) + lend(2, head) + kick(2))


def frame(mac):
    head = bytes(12) + b"\xff" * 6 + mac + b"\x08\x00" + b"E"
    return put(0, head) + descriptor(1, 0, 0, 100, False, False) + lend(1, 0) + kick(1)


def write(register, value):
    return bytes([0, register // 4, 0, 0]) + struct.pack("<I", value)


def read(register):
    return bytes([0x80, register // 4, 0, 0]) + bytes(4)


def segment(flags, payload=b"", port=1):
    """One operation of `targets::metadata`: a segment of that connection, where it stands."""
    return bytes([port << 4 | 1, flags, len(payload)]) + payload


def asks(request, port=1):
    """A connection with a request, to its end."""
    return (segment(SYN, port=port) + ANSWERS + segment(ACK, port=port) + segment(ACK | PSH, request, port)
            + ANSWERS + segment(ACK | FIN, port=port) + ANSWERS)


def later(milliseconds):
    return bytes([4]) + struct.pack("<H", milliseconds)


FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
ANSWERS = bytes([6])
CONNECT = 1 << 30
MAC = bytes([2, 0, 0, 0, 0, 1])
ACTIVATE = (write(0x70, 1) + write(0x70, 3) + write(0x24, 1) + write(0x20, 1) + write(0x70, 11) + write(0x30, 0)
            + write(0x38, 16) + write(0x80, 0x1000) + write(0x90, 0x2000) + write(0xA0, 0x3000) + write(0x44, 1)
            + write(0x70, 15))
LOOP = descriptor(0, 0, 0, 16, False, True, 1) + descriptor(0, 1, 0, 16, False, True, 0) + lend(0, 0) + kick(0)
OUTSIDE = descriptor(0, 0, 0, 600, True, False, address=bytes([1, 8, 0])) + lend(0, 0) + kick(0)
WRAPS = descriptor(0, 0, 0, 600, True, False, address=bytes([3, 8, 0])) + lend(0, 0) + kick(0)
INDIRECT = (put(0x200, struct.pack("<QIHH", 0x20300, 64, 2, 0))
            + descriptor(0, 0, 0x200, 16, False, False, indirect=True) + lend(0, 0) + kick(0))
NESTED = (put(0x200, struct.pack("<QIHH", 0x20200, 16, 4, 0))
          + descriptor(0, 0, 0x200, 16, False, False, indirect=True) + lend(0, 0) + kick(0))
JUMP = bytes([6]) + struct.pack("<H", 40000) + kick(0)
MALFORMED = {"loop": LOOP, "outside": OUTSIDE, "wraps": WRAPS, "indirect": INDIRECT, "nested": NESTED, "jump": JUMP}

SEEDS = {
    "rng": {"one": room(0, 0, 64) + kick(0), "pause": room(0, 0, 64) + PAUSE + kick(0), **MALFORMED},
    "balloon": {
        "high": report(0, bytes([2, 0, 0]), 4) + PAUSE + report(1, bytes([2, 0, 0]), 4),
        "queues": report(0, bytes([0, 0, 0]), 4) + room(0, 0, 4) + kick(0),
        "part": report(0, bytes([2, 0, 16]), 3),
        "inflate": put(0, struct.pack("<I", 0x1000)) + descriptor(0, 0, 0, 4, False, False) + lend(0, 0) + kick(0),
        **MALFORMED,
    },
    "block": {
        "write-read": block(1, 0, 512, False) + block(0, 0, 512, True) + PAUSE,
        "flush": block(1, 7, 4096, False) + block(4, 0, 16, False) + block(0, 7, 4096, True),
        "id": block(8, 0, 20, True),
        "discard": put(0x100, struct.pack("<QII", 8, 16, 0)) + block(11, 0, 16, False),
        "zeroes": put(0x100, struct.pack("<QII", 1, 30, 1)) + block(13, 0, 16, False) + block(0, 0, 8192, True),
        "beyond": block(0, 1 << 40, 512, True),
        **MALFORMED,
    },
    "net": {
        "send": frame(MAC),
        "forged": frame(bytes([2, 0, 0, 0, 0, 9])),
        "receive": b"".join(room(0, n, 2048) for n in range(40)) + kick(0) + source(0) + PAUSE + kick(0),
        "small": room(0, 0, 1024) + kick(0) + PAUSE + room(0, 1, 1024) + kick(0),
        **MALFORMED,
    },
    "metadata": {
        "get": asks(b"GET /latest/meta-data/mac HTTP/1.1\r\n\r\n"),
        "long-answer": asks(b"GET /latest/user-data HTTP/1.1\r\n\r\n") + ANSWERS * 3,
        "token": asks(b"PUT /latest/api/token HTTP/1.1\r\nContent-Length: 0\r\n\r\n"),
        "nonsense": asks(bytes(range(200)) + b"\r\n\r\n"),
        "flood": b"".join(segment(SYN, port=n) for n in range(16)) * 6 + later(6000) + ANSWERS,
        "silent": segment(SYN) + ANSWERS + segment(ACK | PSH, b"GET /") + later(2000) + later(4000) + ANSWERS,
        "reset": segment(SYN) + ANSWERS + segment(ACK, b"GET ") + segment(RST) + segment(SYN) + bytes([5]),
        "raw": bytes([0]) + bytes([0x45, 0, 0, 60, 0, 0, 0x20, 0, 64, 6]).ljust(120, b"\xff") + bytes([0x10])
               + bytes([0, 1, 8, 0, 6, 4, 0, 1]).ljust(24, b"\1") + bytes([169, 254, 169, 254]).ljust(96, b"\0")
               + ANSWERS,
    },
    "vsock": {
        "accept": room(0, 0, 4140) + source(0) + vsock(2, 1024, CONNECT, 0) + room(0, 1, 4140) + kick(0)
                  + vsock(5, 1024, CONNECT, 20) + vsock(4, 1024, CONNECT, 0, 3),
        "request": room(0, 0, 4140) + vsock(1, 5, 6, 0) + kick(0),
        "refuse": room(0, 0, 4140) + source(0) + vsock(3, 1024, CONNECT, 0),
        "event": room(2, 0, 8) + kick(2) + PAUSE,
        **MALFORMED,
    },
    "mmio": {
        "activate": ACTIVATE + write(0x50, 0) + read(0x70) + read(0x60) + write(0x70, 0),
        "change": ACTIVATE + write(0x80, 0x5000) + write(0x44, 0) + write(0x38, 32) + write(0x50, 0),
        "config": bytes([0xC0 | 0x25, 0, 1, 1]) + bytes(5) + bytes([0xC0, 0, 0xFF, 0x0F]) + bytes(4),
    },
}

for target, seeds in SEEDS.items():
    (FOLDER / target).mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        (FOLDER / target / f"seed-{name}").write_bytes(data)


def wireguard():
    """In the language of vpn/src/harness.rs."""
    def order(number, data=b""):
        data += b"\0" * (-len(data) % 8)
        return bytes([number, len(data) // 8]) + data

    def udp(source, destination):
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 32, 1, 0, 64, 17, 0, bytes(source), bytes(destination))
        words = struct.unpack("!10H", head)
        total = sum(words)
        total = (total & 0xFFFF) + (total >> 16)
        head = head[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + head[12:]
        return head + struct.pack("!HHHH", 9, 9, 12, 0) + b"data"

    inside, client = (10, 0, 0, 5), (100, 96, 0, 2)
    handshake, second = bytes([2]), bytes([4])
    seeds = {
        "packet": handshake + order(1, udp(client, inside)) + order(3, b"\0" * 12 + udp(inside, client)),
        "spoofed": handshake + order(1, udp(inside, inside)) + order(1, udp(client, (8, 8, 8, 8))),
        "changed": handshake + order(5, b"\0" * 8 + b"\xff") + order(5, b"\1") + second * 3 + handshake,
        "shapes": b"".join(order(0, bytes([kind, 0, 0, 0]) + b"\0" * size)
                           for kind, size in [(1, 144), (2, 88), (3, 60), (4, 28), (5, 12)]),
        "offload": handshake + order(3, struct.pack("<BBHHHHH", 1, 1, 40, 100, 20, 16, 0) + udp(inside, client) * 8),
    }
    folder = FOLDER / "wireguard"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        (folder / f"seed-{name}").write_bytes(data)


wireguard()


def ssh():
    """In the language of ssh-proxy/src/harness.rs."""
    client, vm = 1, 0
    opens, sends, reads, ends, asks, closes, keepalive, hears, ready = 0, 1, 3, 5, 6, 7, 8, 10, 20

    def orders(*all):
        return b"\0" + b"".join(bytes(order) for order in all)

    def packet(side, number, *fields):
        data = bytes([number]) + b"".join(
            struct.pack("!I", len(field)) + field if isinstance(field, bytes) else struct.pack("!I", field)
            for field in fields)
        return bytes([side, len(data)]) + data

    def opening(side, kind):
        return packet(side, 90, kind, 7, 400, 120)

    early = [(client, opens, 0, 0), (client, hears, 0, 0), (client, asks, 0, 0), (client, ends, 0, 0)]
    wake = [(vm, ready, 0, 0)] + [(vm, hears, 0, 0)] * 4 + [(client, hears, 0, 0)] * 4
    up = [(client, sends, 0, 100), (vm, hears, 0, 0), (vm, reads, 0, 0), (client, hears, 0, 0)]
    bridges = {
        "early": orders(*early, *wake),
        "upload": orders((vm, ready, 0, 0), (client, opens, 0, 1), (vm, hears, 0, 0), (client, hears, 0, 0), *up * 12),
        "of-vm": orders((vm, ready, 0, 0), (vm, opens, 0, 1), (client, hears, 0, 0), (vm, hears, 0, 0),
                        (vm, sends, 0, 90), (vm, closes, 0, 0), (client, keepalive, 0, 0)),
        "refused": orders(*early[:2], (vm, ready, 0, 0), (vm, 9, 0, 0), (client, hears, 0, 0)),
        "noise": b"\3" + opening(client, b"session") + packet(vm, 91, 7, 0, 400, 120) + packet(client, 94, 0, b"data")
                 + packet(vm, 93, 7, 4) + packet(vm, 97, 7) + packet(client, 97, 0),
        "noise-early": b"\1" + opening(client, b"session") + opening(client, b"direct-tcpip")
                       + packet(client, 80, b"keepalive@openssh.com") + packet(client, 97, 0),
        "noise-of-vm": b"\1" + opening(vm, b"forwarded-tcpip") + opening(vm, b"x11") + packet(client, 91, 7, 9, 400, 120),
    }
    vm_id, token = b"abcdefghij0123456789", b"gti_11111111111111111111114xGKid"
    names = {
        "plain": vm_id, "user": vm_id + b"+dev", "token": vm_id + b"," + token, "full": vm_id + b"+dev:" + token,
        "malformed": vm_id + b",hunter2", "empty-token": vm_id + b":",
        "no-user": vm_id + b"+", "no-vm": b"root", "no-text": vm_id + b"\xff", "no-option": vm_id + b"+-o",
    }
    for target, all_seeds in (("ssh_bridge", bridges), ("ssh_name", names)):
        folder = FOLDER / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in all_seeds.items():
            (folder / f"seed-{name}").write_bytes(data)


ssh()
