"""TLS that the service speaks itself."""

import asyncio
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from app.api import certificate as module
from app.api.certificate import CertificateFiles
from app.api.connections import ConnectionLimits, Connections
from app.api.handshake import Handshake
from app.api.turns import Turns
from app.services import Services, build_services
from app.settings import Settings
from tests.api.conftest import run_server
from tests.api.test_connection import answer_of, connected, first_answer_of
from tests.certificates import Pair, make_pair
from tests.waiting import PATIENCE_S, until

MOST = 40
HEAD = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def services(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Services:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("service"),
        max_connections=MOST,
        head_timeout=PATIENCE_S,
        **pair.settings,
    )
    return build_services(settings)


@pytest.fixture(scope="module")
def url(services: Services) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.ServerCertificate.watch, "__defaults__", (0.05,))
        with run_server(services) as found:
            yield found


@pytest.fixture
def client(url: str, pair: Pair) -> Iterator[httpx.Client]:
    trusted = ssl.create_default_context(cafile=pair.certificate)
    with httpx.Client(base_url=url, verify=trusted, timeout=60) as client:
        yield client


def unverified(**versions: ssl.TLSVersion) -> ssl.SSLContext:
    """What a client needs to speak TLS with anybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name, value in versions.items():
        setattr(context, name, value)
    return context


def first_message() -> bytes:
    """With which a client begins."""
    sent = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        unverified().wrap_bio(ssl.MemoryBIO(), sent).do_handshake()
    return sent.read()


FIRST_MESSAGE = first_message()


@contextmanager
def encrypted(url: str, context: ssl.SSLContext | None = None) -> Iterator[ssl.SSLSocket]:
    with connected(url) as plain, (context or unverified()).wrap_socket(plain) as made:
        yield made


def test_calls_over_tls(client: httpx.Client, photos: Path) -> None:
    photo = (photos / "obama.jpg").read_bytes()
    answer = client.post("/v1/detect", files={"image": photo})
    assert answer.json()["images"][0]["faces"] == 1
    assert client.get("/").headers["location"] == "/docs"
    # A photo of megabytes arrives as it was sent.
    padded = photo + bytes(6 * 1024 * 1024)
    assert client.post("/v1/detect", files={"image": padded}).status_code == 200


def test_the_first_request_in_the_packet_that_ends_the_handshake(url: str) -> None:
    """Clients of TLS 1.3 need not wait for an answer after the handshake."""
    client, server = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = unverified().wrap_bio(server, client)
    with connected(url) as plain:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                if sent := client.read():
                    plain.sendall(sent)
                server.write(plain.recv(65_536))
        tls.write(HEAD)
        plain.sendall(client.read())
        assert b"200 OK" in _decrypted(tls, server, plain)


def _decrypted(tls: ssl.SSLObject, server: ssl.MemoryBIO, plain: socket.socket) -> bytes:
    while True:
        try:
            return tls.read(65_536)
        except ssl.SSLWantReadError:
            server.write(plain.recv(65_536))


def test_a_first_message_byte_by_byte(url: str) -> None:
    with connected(url) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in FIRST_MESSAGE:
            plain.sendall(bytes([byte]))
        assert plain.recv(1) == b"\x16"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_that_are_spoken(url: str, version: ssl.TLSVersion) -> None:
    context = unverified(minimum_version=version, maximum_version=version)
    with encrypted(url, context) as connection:
        connection.sendall(HEAD)
        assert first_answer_of(connection)[0] == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_1_1_is_refused(url: str) -> None:
    version = ssl.TLSVersion.TLSv1_1
    context = unverified(minimum_version=version, maximum_version=version)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError), encrypted(url, context):
        pass


def test_plain_http_is_answered_with_a_problem_document(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(HEAD)
        status, headers, body = answer_of(connection)
    assert (status, b"https://" in body) == (400, True)
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["code"] == "invalid_http"


def test_bytes_that_are_no_handshake(url: str, client: httpx.Client) -> None:
    for sent in (b"\x16\x03\x01\x00\x05hello", b"\x16\xff\xff\xff\xff" + bytes(70_000), b"\x16"):
        with connected(url) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
    assert client.get("/livez").status_code == 200


@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_a_first_message_in_two_records(url: str, first: int) -> None:
    """In one packet; the lengths of the second record are none of the message."""
    head, message = FIRST_MESSAGE[:3], FIRST_MESSAGE[5:]
    parts = [message[:first], message[first:]]
    with connected(url) as plain:
        plain.sendall(b"".join(head + len(part).to_bytes(2, "big") + part for part in parts))
        assert plain.recv(1) == b"\x16"


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\xff\xff\xff\xff",  # no version
        b"\x16\x03\x01\xff\xff" + bytes(65_535),  # a record that is too long
        b"\x16\x03\x01\x00\x00" * 10,  # one without content
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",  # a server's first message
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff" * 100,  # a first message of 16 MiB
    ],
    ids=["version", "too long", "empty", "server", "16 MiB"],
)
def test_what_cannot_begin_a_handshake_is_refused_before_one(
    url: str, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handshake costs the event loop several times as much as the bytes that ask for it."""
    begun: list[Handshake] = []

    async def begin(handshake: Handshake) -> None:
        begun.append(handshake)

    monkeypatch.setattr(Handshake, "_secure", begin)
    with connected(url) as connection, suppress(ConnectionResetError):
        connection.sendall(sent)
        answer = connection.recv(65_536)
        assert answer == b"\x15\x03\x03\x00\x02\x02\x32"  # a fatal alert
    assert not begun


def test_connections_that_send_nothing_leave_room_for_others(
    url: str, client: httpx.Client, services: Services
) -> None:
    """Half of all may be in a handshake; the oldest of them are closed for new ones."""
    client.get("/livez")  # its connection is kept
    with ExitStack() as stack:
        silent = [stack.enter_context(connected(url)) for _ in range(3 * MOST)]
        assert client.get("/livez").status_code == 200
        with encrypted(url) as other:
            other.sendall(HEAD)
            assert first_answer_of(other)[0] == 200
        closed = 3 * MOST - MOST // 2
        until(lambda: sum(_is_closed(one) for one in silent) >= closed)
        assert client.get("/livez").headers["date"]


def _is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.001)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_a_client_that_leaves_before_its_turn_is_forgotten(pair: Pair) -> None:
    """Otherwise connections that are closed at once would keep others waiting."""

    async def serve() -> int:
        loop, table, turns = asyncio.get_running_loop(), Connections(ConnectionLimits()), Turns()
        files = CertificateFiles(pair.certificate, pair.key)
        certificate = module.ServerCertificate(files)
        server = await loop.create_server(
            lambda: Handshake(certificate, table, turns, set(), pytest.fail), "127.0.0.1", 0
        )
        async with server:
            await turns.take()
            turns._give_next = lambda: None  # type: ignore[method-assign]
            for _ in range(3):
                _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                writer.write(FIRST_MESSAGE)
                writer.close()
            while not turns._waiting or len(table):  # noqa: ASYNC110 (nobody sets an event)
                await asyncio.sleep(0.01)
            return sum(not turn.done() for turn in turns._waiting)

    assert asyncio.run(asyncio.wait_for(serve(), PATIENCE_S)) == 0


@pytest.fixture
def hasty(pair: Pair, tmp_path: Path) -> Callable[..., object]:
    """hasty(head_timeout=0.5): the address of a service with a time limit that is soon over."""
    return lambda **limits: run_server(
        build_services(Settings(data_dir=tmp_path, **pair.settings, **limits))
    )


def test_a_handshake_that_does_not_go_on(hasty: Callable[..., object]) -> None:
    with hasty(head_timeout=0.2) as url, ExitStack() as stack:  # type: ignore[attr-defined]
        for sent in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01", FIRST_MESSAGE):
            connection = stack.enter_context(connected(url))
            connection.sendall(sent)
            while connection.recv(65_536):
                pass


@pytest.mark.slow
def test_a_head_that_does_not_arrive(hasty: Callable[..., object]) -> None:
    with hasty(head_timeout=0.5) as url, encrypted(url) as connection:  # type: ignore[attr-defined]
        connection.sendall(HEAD[:-4])
        assert first_answer_of(connection)[0] == 408


@pytest.mark.slow
def test_an_answer_that_is_not_read(hasty: Callable[..., object]) -> None:
    with hasty(write_timeout=0.5) as url, connected(url) as plain:  # type: ignore[attr-defined]
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with unverified().wrap_socket(plain) as connection:
            connection.setblocking(False)
            until(lambda: _is_cut(connection, HEAD.replace(b"/livez", b"/openapi.json")))


def _is_cut(connection: ssl.SSLSocket, request: bytes) -> bool:
    """Whether one more request cannot be sent because the connection is at its end."""
    try:
        connection.send(request)
    except (BlockingIOError, ssl.SSLWantWriteError):
        return False
    except OSError:
        return True
    return False


@pytest.mark.slow
def test_a_client_that_never_closes_does_not_keep_a_connection(
    hasty: Callable[..., object],
) -> None:
    """A connection is closed after its idle time, whether the client answers that or not."""
    with hasty(keep_alive=0.2) as url, encrypted(url) as connection:  # type: ignore[attr-defined]
        connection.sendall(HEAD)
        first_answer_of(connection)
        inner = socket.socket(fileno=socket.dup(connection.fileno()))
        with inner:
            inner.settimeout(PATIENCE_S)
            while inner.recv(65_536):  # the notice of the end, then the end
                pass


def test_a_new_certificate_without_dropping_connections(
    url: str, client: httpx.Client, pair: Pair, tmp_path: Path, services: Services
) -> None:
    def names() -> bytes | None:
        with encrypted(url) as connection:
            return connection.getpeercert(binary_form=True)

    before = names()
    with encrypted(url) as kept:
        kept.sendall(HEAD)
        assert first_answer_of(kept)[0] == 200
        pair.replace_by(make_pair(tmp_path, "new"))
        until(lambda: names() != before)
        kept.sendall(HEAD)
        assert first_answer_of(kept)[0] == 200
