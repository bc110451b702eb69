"""Bodies that are too long, too deep, or never come."""

import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.hostile.scenario import attack
from tests.hostile.target import Target, answer_of, status_of

MIB = 2**20
JSON = "application/json"


def _send(target: Target, head: bytes, pieces: Iterator[bytes]) -> int:
    """The status of a request whose body is sent until the service answers or closes."""
    with target.connect() as connection:
        connection.sendall(head)
        reader: list[int] = []
        thread = threading.Thread(target=lambda: reader.append(status_of(answer_of(connection))))
        thread.start()
        with contextlib.suppress(OSError):
            for piece in pieces:
                connection.sendall(piece)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        thread.join(30)
        return reader[0] if reader else 0


@attack("JSON of 400 MB where 1 MiB may come, announced")
def long_announced(target: Target) -> int:
    """Eight of them, on routes that read JSON."""
    paths = ["/v1/collections", "/v1/collections/default/persons"] * 4
    for path in paths:
        head = target.head("POST", path, content_type=JSON, content_length=str(400 * MIB))
        status = _send(target, head, (b" " * MIB for _ in range(400)))
        target.expect(status, 413)
    return len(paths)


@attack("JSON of 400 MB where 1 MiB may come, chunked")
def long_chunked(target: Target) -> int:
    """Eight of them; nothing says beforehand how long they are."""
    chunk = b"100000\r\n" + b" " * MIB + b"\r\n"
    paths = ["/v1/collections", "/v1/collections/default/persons"] * 4
    for path in paths:
        head = target.head("POST", path, content_type=JSON, transfer_encoding="chunked")
        target.expect(_send(target, head, (chunk for _ in range(400))), 413)
    return len(paths)


@attack("a form field that is JSON of 40,000 brackets")
def deep_field(target: Target) -> int:
    """Twice: as a query of an import and as a field of a form."""
    brackets = "[" * 6_000
    answer = target.ask(
        "POST",
        f"/v1/collections/default/imports?gate={brackets}",
        content=b"",
        headers={"content-type": "application/zip"},
    )
    target.expect(answer.status_code, 422)
    answer = target.ask(
        "POST",
        "/v1/identify",
        data={"filter": "[" * 40_000},
        files={"image": target.photo},
    )
    target.expect(answer.status_code, 422)
    return 2
