"""The service under attack, as a client sees it."""

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

PHOTOS = Path(__file__).resolve().parents[1] / "data" / "photos"


class Unexpected(AssertionError):
    """The service answered an attack with something that it should not."""


class Target:
    """One running service. Everything sent to it goes to loopback."""

    def __init__(self, port: int, data_dir: Path, certificate: Path | None = None) -> None:
        """`certificate`: of a service that speaks TLS."""
        self.port = port
        self.data_dir = data_dir
        self.certificate = certificate
        self.scheme = "http" if certificate is None else "https"
        self.url = f"{self.scheme}://127.0.0.1:{port}"
        self.tls = None if certificate is None else ssl.create_default_context(cafile=certificate)

    @property
    def photo(self) -> bytes:
        """An honest photo of one face."""
        return (PHOTOS / "obama.jpg").read_bytes()

    def client(self, timeout: float = 60) -> httpx.Client:
        """A client with connections of its own; close it."""
        return httpx.Client(base_url=self.url, timeout=timeout, verify=self.tls or True)

    def ask(self, method: str, path: str, **options: object) -> httpx.Response:
        """One call on a connection of its own."""
        with self.client() as client:
            return client.request(method, path, **options)  # type: ignore[arg-type]

    def post(self, path: str, body: bytes, kind: str = "application/json") -> httpx.Response:
        """One call with a body of that content type."""
        return self.ask("POST", path, content=body, headers={"content-type": kind})

    def connect(self, timeout: float = 10) -> socket.socket:
        """A connection on which no request was sent; with TLS its handshake is complete."""
        plain = self.connect_plain(timeout)
        if self.tls is None:
            return plain
        try:
            return self.tls.wrap_socket(plain, server_hostname="127.0.0.1")
        except OSError:
            plain.close()
            raise

    def connect_plain(self, timeout: float = 10) -> socket.socket:
        """A connection that has sent nothing."""
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    @contextmanager
    def connections(self, count: int, *, plain: bool = False) -> Iterator[list[socket.socket]]:
        """Several of them, closed at the end; those that the service refuses are left out."""
        connect = self.connect_plain if plain else self.connect
        with ExitStack() as stack:
            made = []
            for _ in range(count):
                try:
                    made.append(stack.enter_context(connect()))
                except OSError:
                    time.sleep(0.01)
            yield made

    def head(self, method: str, path: str, **fields: str) -> bytes:
        """The head of a request; underscores of field names become hyphens."""
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        return "\r\n".join([f"{method} {path} HTTP/1.1", "host: x", *lines, "", ""]).encode()

    def metric(self, name: str) -> float:
        """The sum of the samples of a metric whose line begins like this."""
        lines = self.ask("GET", "/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def expect(self, found: object, *allowed: object) -> None:
        """Raises Unexpected unless what was found is one of those."""
        if found not in allowed:
            raise Unexpected(f"{found!r} instead of {' or '.join(map(repr, allowed))}")

    def until(self, true: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for something to become true. Raises Unexpected where it does not in time."""
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise Unexpected(f"{what} not within {seconds:g} s")
            time.sleep(0.05)


def answer_of(connection: socket.socket, timeout: float = 15) -> bytes:
    """The first answer on a raw connection, as far as it came; b"" where none did. The service may
    keep the connection open after it."""
    connection.settimeout(timeout)
    found = b""
    try:
        while not _is_whole(found) and (piece := connection.recv(65_536)):
            found += piece
    except OSError:
        pass
    return found


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    return bool(end) and length is not None and len(body) >= int(length[1])


def status_of(answer: bytes) -> int:
    """The status of a raw answer; 0 where there is none."""
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
