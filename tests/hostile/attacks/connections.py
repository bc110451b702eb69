"""Connections that are held, heads that do not end, and answers that nobody reads."""

import contextlib
import time

from tests.hostile.scenario import attack
from tests.hostile.target import Target, answer_of, status_of

MIB = 2**20
PERSONS = "/v1/collections/default/persons"


@attack("300 connections that send nothing", "http", "https")
def silent(target: Target) -> int:
    """For longer than a head may take."""
    with target.connections(300) as connections:
        time.sleep(12)
        return len(connections)


@attack("300 connections that send a head byte by byte", "http", "https")
def dripped(target: Target) -> int:
    """None of them ever ends."""
    with target.connections(300) as connections:
        for byte in b"GET / HTTP/1.1\r\n":
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.sendall(bytes([byte]))
            time.sleep(0.8)
        return len(connections)


@attack("new connections as fast as they are taken", "http", "https")
def flood(target: Target) -> int:
    """Each is left at once."""
    count = 0
    end = time.monotonic() + 8
    while time.monotonic() < end:
        with contextlib.suppress(OSError), target.connect(1):
            count += 1
        time.sleep(0.001)
    return count


@attack("a header of 87 MiB", "http", "https")
def long_header(target: Target) -> int:
    """Three of them, one in the request line."""
    head = b"GET /livez HTTP/1.1\r\nhost: x\r\n"
    for start in (head + b"a: ", head, b"GET /"):
        target.expect(_refused(target, start, b"b" * MIB, 87), 431, 414)
    return 3


@attack("10,000 and 1,000,000 header fields", "http", "https")
def many_headers(target: Target) -> int:
    """Of a few bytes each."""
    head = b"GET /livez HTTP/1.1\r\nhost: x\r\n"
    for count in (10_000, 1_000_000):
        target.expect(_refused(target, head, b"a: b\r\n" * 10_000, count // 10_000), 431)
    return 2


@attack("trailers and chunk extensions of 50 MiB", "http", "https")
def long_trailers(target: Target) -> int:
    """After a body of chunks, and within."""
    head = target.head("POST", "/v1/collections", transfer_encoding="chunked")
    for start in (b"1\r\n1\r\n0\r\na: ", b"1;a="):
        target.expect(_refused(target, head + start, b"b" * MIB, 50), 0, 431)
    return 2


@attack("10,000 requests on one connection before an answer is read", "http", "https")
def pipelined(target: Target) -> int:
    """Twenty such connections."""
    request = target.head("GET", "/v1/collections/default")
    with target.connections(20) as connections:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.settimeout(2)
                connection.sendall(request * 10_000)
        time.sleep(2)
    return 200_000


@attack(
    "health, metrics, the API's document and its pages, 5 times on 40 connections", "http", "https"
)
def documents(target: Target) -> int:
    """Whatever is served without a key, at once: one request and as many as may wait for it."""
    for path in ("/openapi.json", "/metrics", "/docs", "/nothing", "/livez", "/readyz"):
        with target.connections(40) as connections:
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.sendall(target.head("GET", path) * 5)
            time.sleep(4)
    return 6 * 40 * 5


@attack("60 clients that ask for full pages and read nothing", "http", "https")
def unread(target: Target) -> int:
    """A thousand persons with as much metadata as there may be, which anybody can store."""
    if not target.ask("GET", f"{PERSONS}/fat999").is_success:
        metadata = {"text": "x" * 16_000}
        with target.client() as client:
            for number in range(1_000):
                body = {"person_id": f"fat{number}", "metadata": metadata}
                client.post(PERSONS, json=body)
    request = target.head("GET", f"{PERSONS}?limit=1000")
    with target.connections(60) as connections:
        for connection in connections:
            connection.sendall(request)
        time.sleep(8)
        target.expect(target.ask("GET", "/v1/collections").status_code, 200)
        return len(connections) + 1_001


@attack("150 clients that ask for the scripts of /docs five times and read nothing")
def unread_scripts(target: Target) -> int:
    """Each holds the descriptor of its connection, and no other."""
    request = target.head("GET", "/static-offline-docs/swagger-ui-bundle.js")
    before = target.metric("process_open_fds")
    with target.connections(150) as connections:
        for connection in connections:
            connection.sendall(request * 5)
        time.sleep(8)
        more = target.metric("process_open_fds") - before
        target.expect(more < len(connections) + 20, True)
        return len(connections) * 5


def _refused(target: Target, start: bytes, piece: bytes, count: int) -> int:
    """The status of a request that goes on and on; 0 where the connection was cut."""
    with target.connect() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(start)
            for _ in range(count):
                connection.sendall(piece)
        return status_of(answer_of(connection))
