#!/usr/bin/env python3
"""Prints ikpsk2.toml: whole WireGuard conversations with fixed keys, computed without any code of this repository or of
what it links. The handshake is that of the package noiseprotocol 0.3.1 (on Python's cryptography), the MACs are hashlib's.

    python3 -m venv V && V/bin/pip install noiseprotocol==0.3.1 && V/bin/python make.py > ikpsk2.toml
"""
import hashlib
from noise.connection import Keypair, NoiseConnection

NAME = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
PROLOGUE = b"WireGuard v1 zx2c4 Jason@zx2c4.com"


def private(number):
    """The private key of the tests' n-th client."""
    return bytes([number, 0, 0x5A]) + bytes([number]) * 29


def public(key):
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()


def with_macs(message, receiver):
    key = hashlib.blake2s(b"mac1----" + receiver).digest()
    return message + hashlib.blake2s(message, key=key, digest_size=16).digest() + bytes(16)


def end(initiator, static, ephemeral, preshared, peer=None):
    noise = NoiseConnection.from_name(NAME)
    noise.set_as_initiator() if initiator else noise.set_as_responder()
    noise.set_prologue(PROLOGUE)
    noise.set_psks(psk=preshared)
    noise.set_keypair_from_private_bytes(Keypair.STATIC, static)
    noise.set_keypair_from_private_bytes(Keypair.EPHEMERAL, ephemeral)
    if peer:
        noise.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, peer)
    noise.start_handshake()
    return noise


def data(noise, receiver, counter, plain):
    head = bytes([4, 0, 0, 0]) + receiver.to_bytes(4, "little") + counter.to_bytes(8, "little")
    return head + bytes(noise.encrypt(plain))


def conversation(number, preshared, seconds, nanoseconds, client_index, server_index):
    server = bytes([42]) * 32
    client = private(number)
    ephemerals = [hashlib.sha256(b"%s ephemeral %d" % (who, number)).digest() for who in (b"client", b"server")]
    timestamp = ((1 << 62) + 37 + seconds).to_bytes(8, "big") + nanoseconds.to_bytes(4, "big")
    asking = end(True, client, ephemerals[0], preshared, public(server))
    answering = end(False, server, ephemerals[1], preshared)
    first = bytes(asking.write_message(timestamp))
    assert bytes(answering.read_message(first)) == timestamp
    second = bytes(answering.write_message())
    asking.read_message(second)
    head = bytes([1, 0, 0, 0]) + client_index.to_bytes(4, "little")
    initiation = with_macs(head + first, public(server))
    head = bytes([2, 0, 0, 0]) + server_index.to_bytes(4, "little") + client_index.to_bytes(4, "little")
    response = with_macs(head + second, public(client))
    plain = [b"", bytes(range(48)), b"\x45" + b"x" * 1279]
    print("[[conversation]]")
    fields = {
        "client_private": client, "server_private": server, "preshared": preshared, "timestamp": timestamp,
        "client_ephemeral": ephemerals[0], "server_ephemeral": ephemerals[1],
        "initiation": initiation, "response": response,
    }
    for name, value in fields.items():
        print(f'{name} = "{value.hex()}"')
    print(f"client_index = {client_index}\nserver_index = {server_index}")
    for name, noise, receiver in (("to_server", asking, server_index), ("to_client", answering, client_index)):
        print(f"{name} = [")
        for counter, packet in enumerate(plain):
            print(f'  ["{packet.hex()}", "{data(noise, receiver, counter, packet).hex()}"],')
        print("]")
    print()


print("# Made by make.py beside this file, which says how.")
conversation(1, bytes(32), 1, 0, 0xDEADBEEF, 0x01020300)
conversation(2, bytes(range(32)), 1_700_000_000, 999_999_999, 1, 0xFFFFFF00)
conversation(3, bytes([9]) * 32, 2, 1, 0, 0)
