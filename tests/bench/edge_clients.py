"""Clients for edge.sh that no load generator plays.

    edge_clients.py full PORT COUNT            TLS handshakes, one after another, each a full one and without a request
    edge_clients.py resumed PORT COUNT         the same with the ticket of the first; prints how many were resumed
    edge_clients.py idle PORT COUNT            connections that asked once and stay; prints "open", waits for a line
    edge_clients.py names PORT FIRST COUNT     a full handshake with each of n0.localhost, n1.localhost and so on
    edge_clients.py slow PORT COUNT SECONDS    a header each second for SECONDS; prints a line once all are connected, then
                                               how many were closed, and when
"""

import asyncio
import socket
import ssl
import sys
import time

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
# Of loopback, for those that would be too many of one address.
ADDRESSES = [f"127.0.{net}.{host}" for net in range(1, 5) for host in range(1, 251)]


def context():
    made = ssl.create_default_context()
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def connected(tls, port, name="localhost", session=None):
    tcp = socket.create_connection(("127.0.0.1", port))
    return tls.wrap_socket(tcp, server_hostname=name, session=session)


def ask(stream):
    stream.sendall(REQUEST)
    answer = stream.recv(65536)
    assert b" 200 " in answer, answer[:200]


def full(port, count):
    tls = context()
    for _ in range(count):
        connected(tls, port).close()
    print(count)


def resumed(port, count):
    tls = context()
    first = connected(tls, port)
    ask(first)
    session, reused = first.session, 0
    first.close()
    for _ in range(count):
        stream = connected(tls, port, session=session)
        reused += stream.session_reused
        stream.close()
    print(reused)


def idle(port, count):
    tls, open_ones = context(), []
    for _ in range(count):
        stream = connected(tls, port)
        ask(stream)
        open_ones.append(stream)
    print("open", flush=True)
    sys.stdin.readline()


def names(port, first, count):
    tls = context()
    for number in range(first, first + count):
        connected(tls, port, f"n{number}.localhost").close()
    print(count)


async def slow_one(tls, port, number, seconds, connected):
    """Gives the seconds after which the server closed it, or None."""
    local = (ADDRESSES[number % len(ADDRESSES)], 0)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=tls, server_hostname="localhost", local_addr=local)
    connected()
    begun = time.monotonic()
    end = asyncio.ensure_future(reader.read())
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        while not end.done() and time.monotonic() - begun < seconds:
            writer.write(b"X-Slow: 1\r\n")
            await writer.drain()
            await asyncio.wait([end], timeout=1)
    except ConnectionError:
        return time.monotonic() - begun
    finally:
        writer.transport.abort()
    return time.monotonic() - begun if end.done() else None


async def slow_all(port, count, seconds):
    tls, tasks, left = context(), [], count

    def connected():
        nonlocal left
        left -= 1
        if left == 0:
            print("connected", flush=True)

    # Some hundred handshakes a second: this is no flood of them.
    for number in range(count):
        tasks.append(asyncio.ensure_future(slow_one(tls, port, number, seconds, connected)))
        await asyncio.sleep(0.002)
    ends = [at for at in await asyncio.gather(*tasks) if at is not None]
    print(len(ends), f"{max(ends, default=0):.1f}")


def slow(port, count, seconds):
    asyncio.run(slow_all(port, count, seconds))


if __name__ == "__main__":
    {"full": full, "resumed": resumed, "idle": idle, "names": names, "slow": slow}[sys.argv[1]](
        *map(int, sys.argv[2:]))
