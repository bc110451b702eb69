"""TLS handshakes that do not end, that are many, or that are none."""

import contextlib
import socket
import ssl
import time

from tests.hostile.scenario import attack
from tests.hostile.target import Target

TLS_S = 8.0


@attack("300 connections without a TLS handshake", "https")
def no_handshake(target: Target) -> int:
    """For longer than it may take."""
    with target.connections(300, plain=True) as connections:
        time.sleep(12)
        return len(connections)


@attack("300 TLS handshakes that stop after the first message", "https")
def unfinished(target: Target) -> int:
    """The service has done its expensive part then."""
    first = first_message()
    with target.connections(300, plain=True) as connections:
        for connection in connections:
            _send(connection, first)
        time.sleep(12)
        return len(connections)


@attack("150 first messages of TLS handshakes at once, again and again", "https")
def at_once(target: Target) -> int:
    """On connections that were made before."""
    first, count, end = first_message(), 0, time.monotonic() + TLS_S
    while time.monotonic() < end:
        with target.connections(150, plain=True) as connections:
            for connection in connections:
                _send(connection, first)
            count += len(connections)
            time.sleep(0.5)
    return count


@attack("first messages of TLS handshakes byte by byte", "https")
def dripped(target: Target) -> int:
    """And all last bytes at once."""
    first = first_message()
    with target.connections(150, plain=True) as connections:
        for byte in first[:8]:
            for connection in connections:
                _send(connection, bytes([byte]))
            time.sleep(0.5)
        for connection in connections:
            _send(connection, first[8:])
        time.sleep(2)
        return len(connections)


@attack("TLS handshakes as fast as they are done", "https")
def flood(target: Target) -> int:
    """Without resuming sessions. Each connection is left at once."""
    count, end = 0, time.monotonic() + TLS_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError), target.connect(2):
            count += 1
    return count


@attack("bytes that are no TLS handshake", "https")
def garbage(target: Target) -> int:
    """Records of any type and length, and plain HTTP."""
    pieces = (
        b"\x16\x03\x01\xff\xff" + bytes(65_535),
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff" * 1_000,
        b"\x17\x03\x03\x40\x00" + bytes(16_384),
        b"\x16\x03\x01\x00\x00" * 10_000,
        target.head("GET", "/livez"),
    )
    count, end = 0, time.monotonic() + TLS_S
    while time.monotonic() < end:
        for piece in pieces:
            with contextlib.suppress(OSError), target.connect_plain(2) as connection:
                connection.sendall(piece)
                count += 1
    return count


def first_message() -> bytes:
    """With which a client begins."""
    sent = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="127.0.0.1").do_handshake()
    return sent.read()


def _send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(data)
