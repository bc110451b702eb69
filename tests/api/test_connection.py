"""One connection within its limits: heads, times, order, and answers of the server itself."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.connection import (
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_PIPELINED,
    MAX_TARGET_BYTES,
    Connection,
)
from app.services import Services, build_services
from app.settings import Settings
from tests.api.conftest import run_server, waits_for
from tests.waiting import PATIENCE_S, until

MOST = 40
IMPORTS = "/v1/collections/default/imports"


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Services:
    """A service of few connections and one worker, that has all the time of the world."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("few"),
        workers=1,
        max_connections=MOST,
        head_timeout=PATIENCE_S,
        keep_alive=PATIENCE_S,
    )
    return build_services(settings)


@pytest.fixture(scope="module")
def url(few: Services) -> Iterator[str]:
    with run_server(few) as found:
        yield found


@pytest.fixture
def hasty(tmp_path: Path) -> Callable[..., Any]:
    """hasty(head_timeout=0.5): the address of a service with a time limit that is soon over."""
    return lambda **limits: run_server(build_services(Settings(data_dir=tmp_path, **limits)))


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80), PATIENCE_S) as made:
        yield made


def answer_of(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, header fields and body until the server closes; 0 where it was cut."""
    found = b""
    try:
        while piece := connection.recv(65_536):
            found += piece
    except ConnectionError:
        pass
    if not found:
        return 0, {}, b""
    head, _, body = found.partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    return int(first.split()[1]), dict(one.split(": ", 1) for one in fields), body


def first_answer_of(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """The same for one answer: the server reads on for some seconds before it closes."""
    answer = HTTPResponse(connection)
    answer.begin()
    fields = {name.lower(): value for name, value in answer.getheaders()}
    return answer.status, fields, answer.read()


def status_of(connection: socket.socket) -> int:
    """The status of the first answer; 0 where the connection was cut."""
    try:
        return first_answer_of(connection)[0]
    except ConnectionError:
        return 0


def problem_of(url: str, request: bytes) -> tuple[int, str]:
    with connected(url) as connection:
        connection.sendall(request)
        status, fields, body = first_answer_of(connection)
    assert fields["content-type"] == "application/problem+json"
    assert fields["connection"] == "close"
    return status, json.loads(body)["code"]


POST = b"POST /v1/collections HTTP/1.1\r\nhost: x\r\n"
HEAD = b"GET /livez HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (HEAD + b"a: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n", (431, "head_too_large")),
        (HEAD + b"a: " + b"b" * (4 * MAX_HEAD_BYTES), (431, "head_too_large")),
        (HEAD + b"b" * (4 * MAX_HEAD_BYTES), (431, "head_too_large")),
        (HEAD + b"a: b\r\n" * (MAX_FIELDS + 1) + b"\r\n", (431, "head_too_large")),
        (b"GET /" + b"a" * MAX_TARGET_BYTES + b" HTTP/1.1\r\n\r\n", (414, "path_too_long")),
        (b"GET /" + b"a" * MAX_HEAD_BYTES, (414, "path_too_long")),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 50, (400, "invalid_http")),
        (b"GET / HTTP/1.1\r\nhost : x\r\n\r\n", (400, "invalid_http")),
        (POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n", (400, "invalid_http")),
        (POST + b"transfer-encoding: xchunked\r\n\r\n{}", (400, "invalid_http")),
        (b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n", (400, "invalid_http")),
        (b"CONNECT /livez HTTP/1.1\r\nhost: x\r\n\r\n", (400, "invalid_http")),
    ],
)
def test_what_is_no_request(
    url: str, few: Services, request_: bytes, expected: tuple[int, str]
) -> None:
    def counted() -> float:
        labels = {"code": expected[1]}
        return few.metrics.registry.get_sample_value("likeness_problems_total", labels) or 0

    before = counted()
    assert problem_of(url, request_) == expected
    assert counted() == before + 1


def test_a_length_of_20_digits_is_a_length(url: str) -> None:
    request = b"POST /v1/detect HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n"
    for length in (b"18446744073709551615", b"0" * 5_000 + b"18446744073709551615"):
        with connected(url) as connection:
            connection.sendall(request + b"content-length: %b\r\n\r\n" % length)
            status, _, body = first_answer_of(connection)
        assert (status, json.loads(body)["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("address", "status"),
    [(b"http://x", 307), (b"HTTP://x:8000?a=b", 307), (b"http://x/livez", 200), (b"http://", 400)],
)
def test_a_complete_address(url: str, address: bytes, status: int) -> None:
    with connected(url) as connection:
        connection.sendall(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % address)
        assert status_of(connection) == status


def test_a_head_that_does_not_end(hasty: Callable[..., Any]) -> None:
    with hasty(head_timeout=1.0) as url:
        assert problem_of(url, HEAD) == (408, "request_timeout")


def test_what_is_within_the_limits(url: str) -> None:
    long = {f"a{i}": "b" * 600 for i in range(90)}
    assert httpx.get(f"{url}/livez?q={'a' * 8_000}", headers=long).status_code == 200


OFFER = b"host: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: A\r\n"


@pytest.mark.parametrize("pieces", [1, 2, 1_000])
def test_an_offer_of_another_protocol_is_passed_over(url: str, pieces: int) -> None:
    """As curl --http2 and Java's client make it; the body is no request of its own."""
    hidden = b"GET /readyz HTTP/1.1\r\n\r\n"
    head = b"POST /v1/collections HTTP/1.1\r\ncontent-type: application/json\r\n" + OFFER
    sent = (
        head + b"content-length: %d\r\n\r\n%b" % (len(hidden), hidden)
        + head + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        + b"GET /livez HTTP/1.1\r\n" + OFFER + b"connection: close\r\n\r\n"
    )  # fmt: skip
    with connected(url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(sent), size := -(-len(sent) // pieces)):
            connection.sendall(sent[at : at + size])
        found = b""
        while piece := connection.recv(65_536):
            found += piece
    assert [one[:3] for one in found.split(b"HTTP/1.1 ")[1:]] == [b"422", b"422", b"200"]
    assert b"not valid JSON" in found
    assert found.endswith(b'{"status":"alive"}')


def test_trailers_and_chunk_extensions_are_bounded(url: str) -> None:
    head = b"POST /livez HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    for rest in (b"0\r\na: " + b"b" * 300_000, b"1;" + b"a" * 300_000):
        with connected(url) as connection:
            connection.sendall(head + rest)
            assert status_of(connection) in (0, 405, 431)


def test_a_refused_body_is_read_on_so_that_the_answer_arrives(url: str) -> None:
    answer = httpx.post(f"{url}/v1/collections", content=b" " * 20_000_000)
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")
    pieces = (b" " * 1_000_000 for _ in range(20))  # chunked: not announced
    answer = httpx.post(f"{url}/v1/collections", content=pieces)
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")


def test_silent_connections_are_closed(hasty: Callable[..., Any]) -> None:
    with hasty(head_timeout=0.5, keep_alive=PATIENCE_S) as url, connected(url) as connection:
        start = time.monotonic()
        assert answer_of(connection) == (0, {}, b"")
        assert time.monotonic() - start > 0.4, "not before the time is over"


def test_a_connection_is_kept_between_requests(hasty: Callable[..., Any]) -> None:
    with hasty(head_timeout=1.0, keep_alive=PATIENCE_S) as url, connected(url) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert b"200 OK" in connection.recv(65_536)
        time.sleep(1.6)  # longer than a head may take, and the next look at the time
        connection.sendall(HEAD + b"\r\n")
        assert b"200 OK" in connection.recv(65_536)


def test_a_connection_is_kept_no_longer_than_asked(hasty: Callable[..., Any]) -> None:
    with hasty(head_timeout=PATIENCE_S, keep_alive=0.2) as url, connected(url) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert b"200 OK" in connection.recv(65_536)
        assert connection.recv(1) == b""


def test_nor_after_an_answer_that_came_before_the_body(hasty: Callable[..., Any]) -> None:
    with hasty(head_timeout=PATIENCE_S, keep_alive=0.2) as url, connected(url) as connection:
        connection.sendall(POST + b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\n")
        assert b" 415 " in connection.recv(65_536)
        connection.sendall(b"body")
        assert answer_of(connection) == (0, {}, b"")


def test_a_head_that_begins_with_the_request_before(hasty: Callable[..., Any]) -> None:
    """Its time is that of a head, not that between two requests."""
    with hasty(head_timeout=0.5, keep_alive=PATIENCE_S) as url, connected(url) as connection:
        connection.sendall(HEAD + b"\r\n" + HEAD)
        answers = b""
        while piece := connection.recv(65_536):
            answers += piece
    assert answers.count(b"200 OK") == 1
    assert b"request_timeout" in answers


def test_silent_connections_make_room(url: str) -> None:
    with ExitStack() as stack:
        for _ in range(3 * MOST):
            stack.enter_context(connected(url))
        assert httpx.get(f"{url}/livez").status_code == 200
        assert httpx.get(f"{url}/v1/collections").status_code == 200


def test_pipelined_requests_are_answered_in_order_and_bounded(url: str) -> None:
    with connected(url) as connection:
        connection.sendall((HEAD + b"\r\n") * 4 + HEAD + b"connection: close\r\n\r\n")
        _, _, body = answer_of(connection)
    assert body.count(b"alive") == 5
    with connected(url) as connection:
        connection.sendall((HEAD + b"\r\n") * 5_000)
        assert answer_of(connection)[2].count(b"alive") < 100


def test_pipelined_requests_end_with_their_connection(
    url: str, few: Services, blank_photo: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is at work when its client goes: nothing is written to it."""

    def pending(count: int) -> bool:
        return f"likeness_pending_requests {count}.0" in httpx.get(f"{url}/metrics").text

    head = b"POST /v1/detect HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n"
    request = head + b"content-length: %d\r\n\r\n%b" % (len(blank_photo), blank_photo)
    with waits_for(threading.Event(), few):
        with connected(url) as connection:
            connection.sendall(request * MAX_PIPELINED)
            until(lambda: pending(1))
        until(lambda: pending(0))
    assert httpx.get(f"{url}/livez").status_code == 200
    assert "Exception in ASGI application" not in caplog.text


def test_what_follows_a_whole_request_is_no_answer_to_it(
    url: str, few: Services, blank_photo: bytes
) -> None:
    head = b"POST /v1/detect HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n"
    request = head + b"content-length: %d\r\n\r\n%b" % (len(blank_photo), blank_photo)
    with waits_for(threading.Event(), few), connected(url) as connection:
        connection.sendall(request + b"\x16\x03\x01")
        assert answer_of(connection) == (0, {}, b"")


@pytest.mark.parametrize("address", [b"http://[", b"?a"])
def test_an_invalid_address_is_no_answer_to_the_request_before(
    url: str, few: Services, blank_photo: bytes, address: bytes
) -> None:
    head = b"POST /v1/detect HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n"
    request = head + b"content-length: %d\r\n\r\n%b" % (len(blank_photo), blank_photo)
    with waits_for(threading.Event(), few), connected(url) as connection:
        connection.sendall(request + b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % address)
        assert answer_of(connection) == (0, {}, b"")


def test_a_half_closed_connection_gets_no_answer(
    url: str, few: Services, blank_photo: bytes
) -> None:
    """It looks like a client that is gone, whose work is stopped."""
    head = b"POST /v1/detect HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n"
    with waits_for(threading.Event(), few), connected(url) as connection:
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(blank_photo) + blank_photo)
        connection.shutdown(socket.SHUT_WR)
        assert answer_of(connection) == (0, {}, b"")


def test_too_many_requests_before_an_answer(url: str) -> None:
    request = b"GET /v1/collections HTTP/1.1\r\nhost: x\r\n\r\n"
    with connected(url) as connection:
        connection.sendall(request * (MAX_PIPELINED + 2))
        assert answer_of(connection) == (0, {}, b"")


@pytest.mark.parametrize("path", ["/v1/detect", "/v1/collections", IMPORTS])
@pytest.mark.parametrize(
    ("field", "coding", "allowed"),
    [
        ("content-encoding", "gzip", False),
        ("content-encoding", "br, gzip", False),
        ("content-encoding", "Identity", True),
        ("transfer-encoding", "gzip, chunked", False),
        ("transfer-encoding", "Chunked", True),
    ],
)
def test_encoded_bodies_are_refused(
    url: str, path: str, field: str, coding: str, *, allowed: bool
) -> None:
    """Before they arrive, and with what would be taken (RFC 9110, 15.5.16)."""
    length = "" if field == "transfer-encoding" else "content-length: 5\r\n"
    body = "" if not allowed else "5\r\n12345\r\n0\r\n\r\n" if not length else "12345"
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{field}: {coding}\r\n{length}"
    with connected(url) as connection:
        connection.sendall(f"{head}\r\n{body}".encode())
        status, fields, content = first_answer_of(connection)
    found = json.loads(content)["code"]
    assert (found == "unsupported_encoding") is not allowed
    if not allowed:
        assert (status, fields["accept-encoding"]) == (415, "identity")
        assert coding.split(",", maxsplit=1)[0] in json.loads(content)["detail"]


def test_a_client_that_reads_nothing_is_dropped(
    hasty: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers are larger than what the system keeps for it."""
    seen, check = threading.Event(), Connection.check
    monkeypatch.setattr(Connection, "check", lambda *args: check(*args) if seen.is_set() else None)
    made = Connection.connection_made

    def with_small_buffer(connection: Connection, transport: asyncio.Transport) -> None:
        made(connection, transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)

    monkeypatch.setattr(Connection, "connection_made", with_small_buffer)
    with hasty(write_timeout=0.5) as url:
        read_nothing_of(url, seen)


def read_nothing_of(url: str, seen: threading.Event) -> None:
    path = "/v1/collections/default/persons"
    address = httpx.URL(url)
    with httpx.Client(base_url=url) as client, socket.socket() as connection:
        for i in range(20):
            body = {"person_id": f"p{i}", "metadata": {"text": "x" * 16_000}}
            client.post(path, json=body).raise_for_status()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect((address.host, address.port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        until(lambda: 'answers"} 1.0' in client.get("/metrics").text)
        seen.set()  # from now on the time is looked at
        until(lambda: 'answers"} 0.0' in client.get("/metrics").text)
