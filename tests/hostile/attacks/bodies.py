"""Bodies that are too long, too deep, or never come."""

import contextlib
import io
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.hostile.scenario import attack
from tests.hostile.target import Target, answer_of, status_of

MIB = 2**20
JSON = "application/json"
IMPORTS = "/v1/collections/default/imports"
ONE_ROW = b'{"person_id": "ada", "image": "none.jpg"}\n'


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


def _post(target: Target, path: str, body: bytes, allowed: int, kind: str = JSON) -> int:
    """Two at a time, several times; returns how many."""
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: target.post(path, body, kind).status_code, range(4)))
    for status in answers:
        target.expect(status, allowed, 503)
    return len(answers)


@attack("JSON of 60 MB: empty lists")
def empty_lists(target: Target) -> int:
    """Four of them."""
    body = b"[" + b"[]," * (20 * MIB - 1) + b"[]]"
    return _post(target, "/v1/detect", body, 422)


@attack("JSON of 60 MB: numbers")
def numbers(target: Target) -> int:
    """As embeddings, far more of them than a call may have; and as many as it may have."""
    body = b'{"person_id": "a", "embeddings": [[' + b"0.1234567891," * (4 * MIB) + b"0]]}"
    sent = _post(target, "/v1/enroll", body, 422)
    body = b'{"person_id": "a", "embeddings": [[' + b"0.1234567891," * 250_000 + b"0]]}"
    return sent + _post(target, "/v1/enroll", body, 422)


@attack("JSON with 250,000 values and 60,000 members that are all wrong")
def all_wrong(target: Target) -> int:
    """Each could be a finding of its own; the answers stay short."""
    numbers = b'{"person_id": "a", "embeddings": [[' + b"null," * 250_000 + b"null]]}"
    members = b",".join(b'"k%d": 1' % number for number in range(60_000))
    policy = b'{"name": "a", "policy": {' + members + b"}}"
    sent = 0
    for path, body in (("/v1/enroll", numbers), ("/v1/collections", policy)):
        sent += _post(target, path, body, 422)
        target.expect(len(target.post(path, body).content) < 8_192, True)
    return sent + 2


@attack("JSON of 60 MB: escapes")
def escapes(target: Target) -> int:
    """In the place of a photo."""
    body = b'{"image": "' + b"\\u0041" * (10 * MIB) + b'"}'
    return _post(target, "/v1/detect", body, 413)


@attack("JSON of 60 MB: base64 of five photos, escaped quotes, brackets")
def base64_texts(target: Target) -> int:
    """What is no photo, but as long as the longest."""
    photo = b'"' + b"A/+9" * (3 * MIB) + b'"'
    sent = _post(target, "/v1/detect", b'{"image": [' + b",".join([photo] * 5) + b"]}", 415)
    quotes = b'{"image": "' + b'\\"' * (30 * MIB) + b'"}'
    sent += _post(target, "/v1/detect", quotes, 422)
    return sent + _post(target, "/v1/detect", b"[" * (60 * MIB), 422)


@attack("forms of 60 MB: many parts, one long text, text that is JSON")
def forms(target: Target) -> int:
    """python-multipart is Python: it must not have the event loop's thread."""
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
    kind = "multipart/form-data; boundary=x"
    end = b"\r\n--x--\r\n"
    sent = _post(target, "/v1/detect", (part + b"1\r\n") * MIB + end, 413, kind)
    sent += _post(target, "/v1/detect", part + b"\r\n--" * (15 * MIB) + end, 413, kind)
    text = part.replace(b'"a"', b'"filter"') + b"[[]," * (4 * MIB - 1_000) + end
    return sent + _post(target, "/v1/identify", text, 422, kind)


@attack("forms whose headers are full of semicolons")
def semicolons(target: Target) -> int:
    """Small ones, which are read on the event loop, and one of 4 MB."""
    kind = "multipart/form-data; boundary=x"
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename=""; b="%b\r\n\r\n\r\n'
    part %= b";" * 4_000
    sent = 0
    for _ in range(16):
        sent += _post(target, "/v1/detect", part * 15 + b"--x--\r\n", 422, kind)
        sent += _post(target, "/v1/detect", b"--x--\r\n", 422, f'{kind}; a="{";" * 60_000}')
    return sent + _post(target, "/v1/detect", part * 1_000 + b"--x--\r\n", 422, kind)


@attack("8 uploads that announce 4 GB and send 2 bytes")
def held_uploads(target: Target) -> int:
    """And eight more; an honest import is taken meanwhile, and one can be cancelled."""
    head = target.head(
        "POST", IMPORTS, content_type="application/zip", content_length=str(4 * 10**9)
    )
    with target.connections(16) as held:
        for connection in held:
            connection.sendall(head + b"PK")
        time.sleep(3)
        target.expect(target.ask("DELETE", f"{IMPORTS}/none").status_code, 404)
        answer = target.post(IMPORTS, ONE_ROW, "application/x-ndjson")
        target.expect(answer.status_code, 202)
        target.until(lambda: target.metric('likeness_transfers{kind="uploads"}') == 0, 25, "an end")
        return len(held) + 2


@attack("64 bodies that come at 10 bytes a second")
def slow_bodies(target: Target) -> int:
    """Each holds a place until it is seen to be slow. Other calls are answered meanwhile."""
    head = target.head("POST", "/v1/detect", content_type="image/jpeg", content_length="1000000")
    with target.connections(96) as held:
        for connection in held:
            connection.sendall(head)
        for _ in range(14):
            for connection in held:
                with contextlib.suppress(OSError):
                    connection.sendall(b"0123456789")
            target.expect(target.ask("DELETE", "/v1/collections/none").status_code, 404)
            answer = target.ask("GET", "/v1/collections")
            target.expect(answer.status_code, 200)
            time.sleep(1)
        return len(held) + 28


@attack("64 event watchers that never read")
def watchers(target: Target) -> int:
    """While an import runs, which can be cancelled all the same; a later watcher sees it."""
    answer = target.post(IMPORTS, _archive(target, 400), "application/zip")
    target.expect(answer.status_code, 202)
    path = f"{IMPORTS}/{answer.json()['import_id']}"
    with target.connections(64) as held:
        for connection in held:
            connection.sendall(target.head("GET", f"{path}/events"))
        time.sleep(3)
        with target.client() as client, client.stream("GET", f"{path}/events") as watched:
            target.expect(watched.status_code, 200)
            target.expect(next(watched.iter_lines())[:6], "event:")
        target.expect(target.ask("DELETE", path).status_code, 200)
        target.until(
            lambda: target.ask("GET", path).json()["state"] in ("cancelled", "done"), 10, "an end"
        )
        return len(held) + 3


def _archive(target: Target, count: int) -> bytes:
    """A zip of folders with one photo each; no two are the same file."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number in range(count):
            archive.writestr(f"p{number}/1.jpg", target.photo + str(number).encode())
    return content.getvalue()


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
