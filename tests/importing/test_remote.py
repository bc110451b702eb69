"""Rows into a running server: decided there as here, in archives of some rows."""

import io
import threading
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import orjson
import pytest

from app.decision.face_selection import FaceSelection
from app.errors import InvalidRequest
from app.importing import local
from app.importing import remote as module
from app.importing.options import ImportOptions, ImportStopped, OnConflict, OnError
from app.importing.outcomes import RowOutcome, RowResult
from app.importing.remote import RemoteImport
from app.importing.source_rows import ImportSourceError, Row
from app.services import Services, build_services
from app.settings import Settings
from tests.api.conftest import run_server
from tests.waiting import LOOK_EVERY_S, until


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    return build_services(Settings(data_dir=tmp_path_factory.mktemp("server"), port=0))


@pytest.fixture(scope="module")
def url(services: Services) -> Iterator[str]:
    with run_server(services) as url:
        yield url


@pytest.fixture
def collection() -> str:
    return f"c-{uuid.uuid4().hex[:8]}"


def run(url: str, rows: list[Row], collection: str, **options: object) -> list[RowOutcome]:
    reported: list[RowOutcome] = []
    wanted = ImportOptions(**{"face": FaceSelection.LARGEST, **options})
    remote = RemoteImport(url, collection, wanted, 10_000_000, key="key")
    remote.ensure_collection()
    remote.run(iter(rows), reported.append)
    return reported


def embeddings(services: Services, count: int) -> list[Row]:
    shape = (count, services.pack.recogniser.dimension)
    vectors = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    return [Row(f"t:{i}", f"p{i}", embedding=vector) for i, vector in enumerate(vectors)]


def test_the_same_outcomes_as_here(
    url: str, services: Services, photos: Path, collection: str
) -> None:
    (made,) = embeddings(services, 1)
    face_id = str(uuid.uuid4())
    rows = [
        Row("1", "obama", (photos / "obama.jpg").read_bytes, metadata={"office": "president"}),
        Row("2", "obama", partial(bytes, b"\xff\xd8\xff broken")),
        Row("3", "made", embedding=made.embedding, face_id=face_id),
        Row("4", "x", problem=ImportSourceError("The row is empty.")),
        Row("5", "x", Path("/absent.jpg").read_bytes),
        Row("6", "x", partial(bytes, 10_000_001)),
        Row("7", "faceless", metadata={"n": 1}, without_face=True),
    ]
    reported = run(url, rows, collection)
    assert [(one.place, one.result, one.reason) for one in reported] == [
        ("1", RowResult.ENROLLED, ""),
        ("2", RowResult.REJECTED, "unreadable_image"),
        ("3", RowResult.ENROLLED, ""),
        ("4", RowResult.REJECTED, "import_source"),
        ("5", RowResult.REJECTED, "unreadable_file"),
        ("6", RowResult.REJECTED, "image_too_large"),
        ("7", RowResult.ENROLLED, ""),
    ]
    assert reported[2].face_id == face_id
    store = services.gallery.store
    assert store.persons.get(collection, "obama").metadata == {"office": "president"}
    assert store.persons.get(collection, "faceless").metadata == {"n": 1}
    assert [one.reason for one in run(url, rows[:3], collection)] == [
        "already_enrolled", "unreadable_image", "already_enrolled",
    ]  # fmt: skip
    assert store.collections.count(services.gallery.require(collection)).templates == 2


@pytest.mark.slow
def test_declared_pairs_arrive_after_their_persons(
    url: str, services: Services, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS_A_PART", 2)
    rows = [*embeddings(services, 4), Row("t:4", "p3", different_from="p0")]
    reported = run(url, rows, collection)
    assert [one.reason for one in reported] == ["", "", "", "", "declared_different"]
    record = services.gallery.store.collections.get(collection)
    assert services.gallery.store.pairs.counterparts(record, ["p0"]) == {"p0": ["p3"]}


@pytest.mark.slow
def test_the_same_options_as_here(
    url: str, services: Services, photos: Path, collection: str
) -> None:
    first = Row("1", "obama", (photos / "obama.jpg").read_bytes)
    other = Row("2", "zoe", (photos / "obama2.jpg").read_bytes)
    again = Row("3", "obama", (photos / "obama2.jpg").read_bytes)
    assert [one.result for one in run(url, [first], collection, dry_run=True)] == [
        RowResult.ENROLLED
    ]
    assert services.gallery.size(collection).templates == 0
    reported = run(url, [first, other, again], collection, on_conflict=OnConflict.SKIP)
    assert [one.reason for one in reported] == ["", "conflict", ""]
    assert reported[1].conflict_with == "obama"
    (reported,) = run(url, [other], collection, on_conflict=OnConflict.SKIP)
    assert (reported.reason, reported.conflict_with) == ("conflict", None), "it was remembered"
    (reported,) = run(url, [other], collection, on_conflict=OnConflict.SKIP, retry_refused=True)
    assert reported.conflict_with == "obama"
    with pytest.raises(ImportStopped, match=r"^2: .*resembles obama"):
        run(url, [other], collection, on_conflict=OnConflict.STOP)


@pytest.mark.parametrize("where", ["here", "there"])
def test_nothing_after_a_stop(
    url: str, services: Services, collection: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(module, "ROWS_A_PART", 3)
    rows = embeddings(services, 12)
    rows[4] = (
        Row("t:4", "x", problem=ImportSourceError("The row is empty."))
        if where == "here"
        else Row("t:4", "x", embedding=np.ones(3, np.float32))
    )
    with pytest.raises(ImportStopped, match="t:4"):
        run(url, rows, collection, on_error=OnError.STOP)
    assert services.gallery.size(collection).templates == 4


def test_a_row_after_a_stop_is_not_reported(url: str, services: Services, collection: str) -> None:
    """The one after it is rejected before it is sent, as there is no error to stop at."""
    first, other, last = embeddings(services, 3)
    rows = [
        first,
        replace(first, place="t:1", person_id="q"),
        replace(other, place="t:2", person_id="a/b"),
        replace(last, place="t:3"),
    ]
    reported: list[RowOutcome] = []
    remote = RemoteImport(url, collection, ImportOptions(on_conflict=OnConflict.STOP), 1_000)
    remote.ensure_collection()
    with pytest.raises(ImportStopped, match="t:1: The face resembles p0"):
        remote.run(iter(rows), reported.append)
    assert [(one.place, one.reason) for one in reported] == [("t:0", ""), ("t:1", "conflict")]


@pytest.mark.slow
def test_many_parts_in_order_and_nothing_left(
    url: str, services: Services, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS_A_PART", 7)
    rows = embeddings(services, 45)
    reported = run(url, rows, collection)
    assert [one.place for one in reported] == [row.place for row in rows]
    before = {row.person_id: row.embedding / np.linalg.norm(row.embedding) for row in rows}
    for one in services.gallery.store.embeddings.exported(collection, 0, 100):
        np.testing.assert_allclose(one.embedding, before[one.person_id], atol=1e-6)
    assert module.httpx.get(f"{url}/v1/collections/{collection}/imports").json()["items"] == []
    actions = {entry.members["action"] for entry in services.gallery.store.audit.latest(50)}
    assert "import.removed" in actions
    assert not {"import.cancelled", "call.failed"} & actions, "nothing was, and nothing failed"


def test_a_client_that_disconnects_leaves_no_import_running(
    url: str,
    services: Services,
    photos: Path,
    collection: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ROWS_A_PART", 600)
    data = (photos / "obama.jpg").read_bytes()
    rows = [
        Row(str(i), f"p{i}", partial(bytes, data + bytes([i % 256, i // 256]))) for i in range(650)
    ]

    def interrupted() -> Iterator[Row]:
        yield from rows
        until(lambda: services.gallery.size(collection).templates > 0)
        raise KeyboardInterrupt

    remote = RemoteImport(url, collection, ImportOptions(), 10_000_000)
    assert remote.ensure_collection()[1], "it is new"
    reported: list[RowOutcome] = []
    with pytest.raises(KeyboardInterrupt):
        remote.run(interrupted(), reported.append)
    imports = module.httpx.get(f"{url}/v1/collections/{collection}/imports").json()["items"]
    assert imports == []
    assert 0 < services.gallery.size(collection).templates < 600
    enrolled = [one for one in reported if one.result is RowResult.ENROLLED]
    assert len(enrolled) == services.gallery.size(collection).templates
    assert [one.place for one in reported] == [str(i) for i in range(len(reported))]
    entries = [entry.members for entry in services.gallery.store.audit.latest(50)]
    actions = [one["action"] for one in entries if one["collection"] == collection]
    assert actions.count("import.cancelled") == 1
    assert "call.failed" not in {one["action"] for one in entries}


def test_a_report_that_was_cut_off_does_not_hide_why(
    proxy: str, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a full disk of the server leaves it."""
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    rows = embeddings(services, 2)
    line = {"place": "t:0", "person_id": "p0", "result": "rejected", "reason": "no_face"}
    failed = (200, {}, b'{"state": "failed", "detail": "The report cannot be written."}')
    Proxy.answers = [
        (200, {}, b'{"embedding_space": "es"}'), (200, {}, b'{"import_id": "i"}'), failed,
        (200, {}, orjson.dumps(line) + b'\n{"place": "t:'), failed,
    ]  # fmt: skip
    reported: list[RowOutcome] = []
    remote = RemoteImport(proxy, "default", ImportOptions(), 10_000)
    remote.ensure_collection()
    with pytest.raises(ImportSourceError, match=r"did not finish: The report cannot be written\."):
        remote.run(iter(rows), reported.append)
    assert [(one.place, one.reason) for one in reported] == [("t:0", "no_face")]


def line_of(number: int) -> bytes:
    members = {"place": f"t:{number}", "person_id": f"p{number}", "result": "enrolled"}
    return orjson.dumps(members) + b"\n"


def test_a_report_with_other_ends_of_lines_in_its_texts(
    proxy: str, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    done = (200, {}, b'{"state": "done"}')
    report = line_of(0).replace(b"p0", "p\u2028\x85".encode()) + line_of(1)
    Proxy.answers = [
        (200, {}, b'{"embedding_space": "es"}'), (200, {}, b'{"import_id": "i"}'), done,
        (200, {}, report), done,
    ]  # fmt: skip
    reported: list[RowOutcome] = []
    remote = RemoteImport(proxy, "default", ImportOptions(), 10_000)
    remote.ensure_collection()
    remote.run(iter(embeddings(services, 2)), reported.append)
    assert [one.person_id for one in reported] == ["p\u2028\x85", "p1"]


@pytest.mark.parametrize(
    "report",
    [
        (404, {}, b""),
        (200, {}, line_of(0)),
        (200, {}, line_of(0) + line_of(1)[:9]),
        (200, {}, line_of(0) + b"\0\0\0\n" + line_of(2)),
        (200, {}, line_of(0) + b"[1]\n" + line_of(2)),
        (200, {}, line_of(0) + b'{"place": "t:1"}\n' + line_of(2)),
        (200, {}, line_of(0) + line_of(1).replace(b"enrolled", b"eaten") + line_of(2)),
    ],
)
def test_a_report_that_lacks_rows_of_an_import_that_is_done(
    proxy: str,
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
    report: tuple[int, dict[str, str], bytes],
) -> None:
    """As a disk that returns other bytes leaves it; the counts would lack these rows."""
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    done = (200, {}, b'{"state": "done"}')
    Proxy.answers = [
        (200, {}, b'{"embedding_space": "es"}'), (200, {}, b'{"import_id": "i"}'), done, report,
        done,
    ]  # fmt: skip
    reported: list[RowOutcome] = []
    remote = RemoteImport(proxy, "default", ImportOptions(), 10_000)
    remote.ensure_collection()
    first = "t:1" if report[2] else "t:0"
    with pytest.raises(ImportSourceError, match=rf"before the outcome of {first}\. Run .* again"):
        remote.run(iter(embeddings(services, 3)), reported.append)
    assert [one.place for one in reported] == ["t:0"][: len(report[2])]


@pytest.mark.slow
def test_progress_of_the_server_is_reported(
    url: str, photos: Path, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of 500 photos takes a minute, in which something should move."""
    monkeypatch.setattr(module, "POLL_S", 0.0)
    monkeypatch.setattr(local, "SECONDS_A_TRANSACTION", 0.0)  # each photo is reported by itself
    data = (photos / "obama.jpg").read_bytes()
    rows = [Row(str(i), f"p{i}", partial(bytes, data + bytes([i]))) for i in range(12)]
    remote = RemoteImport(url, collection, ImportOptions(), 10_000_000)
    seen: list[int] = []
    reported: list[RowOutcome] = []
    remote.watch = lambda done: seen.append(done if not reported else -1)
    sent: list[tuple[int, int]] = []
    remote.watch_upload = lambda *bytes_: sent.append(bytes_)
    remote.ensure_collection()
    remote.run(iter(rows), reported.append)
    before = [done for done in seen if done >= 0]
    assert before == sorted(before)
    assert any(0 < done < 12 for done in before)
    size = 12 * len(data)
    assert sent == sorted(sent)
    assert len(sent) > size // module.CHUNK_BYTES
    assert sent[0][0] == 0
    assert sent[-1][0] == sent[-1][1] > size


class Proxy(BaseHTTPRequestHandler):
    """What may stand between: it says what the test tells it to."""

    answers: list[tuple[int, dict[str, str], bytes]]
    bodies: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.do_GET()

    def do_DELETE(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        status, headers, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, args=[LOOK_EVERY_S], daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ensure(url: str) -> str:
    return RemoteImport(url, "default", ImportOptions(), 1_000).ensure_collection()[0]


@pytest.mark.parametrize("body", [b"[]", b"5", b"{}", b'{"embedding_space": "es"}', b"no JSON"])
def test_a_server_of_something_else_is_said_to_be_one(proxy: str, body: bytes) -> None:
    Proxy.answers = [(200, {}, body)]
    with pytest.raises(ImportSourceError, match="does not answer as a Likeness server"):
        import_a_photo(proxy)


def import_a_photo(url: str) -> None:
    remote = RemoteImport(url, "default", ImportOptions(), 1_000)
    remote.ensure_collection()
    remote.run(iter([Row("1", "ada", lambda: b"photo")]), lambda _outcome: None)


def test_an_answer_that_cannot_be_decoded_is_no_answer(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    Proxy.answers = [(200, {"Content-Encoding": "gzip"}, b"no gzip")]
    with pytest.raises(ImportSourceError, match="did not answer in 8 attempts"):
        ensure(proxy)


def test_a_busy_server_is_asked_when_it_says(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    busy = (503, {"Retry-After": "3"}, b"")
    Proxy.answers = [busy, (502, {}, b""), (200, {}, b'{"embedding_space": "es"}')]
    assert ensure(proxy) == "es"
    assert slept == [3.0, 1.0]


def problem(status: int, code: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    body = f'{{"detail": "Later ({code}).", "code": "{code}"}}'
    return status, {"Content-Type": "application/problem+json", **headers}, body.encode()


def test_a_limit_of_the_key_is_waited_for(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least as long as the server says, and longer each time, as others use the key too."""
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    limited = problem(429, "rate_limited", **{"Retry-After": "2"})
    slowest = problem(408, "request_timeout", **{"Retry-After": "1"})
    Proxy.answers = [*[limited] * 4, slowest, (200, {}, b'{"embedding_space": "es"}')]
    assert ensure(proxy) == "es"
    assert slept == [2.0, 2.0, 2.0, 4.0, 8.0]


def test_a_limited_key_is_not_used_up_by_asking_for_progress(
    proxy: str, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked less often after a limit, and gradually more often again."""
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    running = (200, {}, b'{"state": "running"}')
    limited = problem(429, "rate_limited", **{"Retry-After": "4"})
    slowest = problem(408, "request_timeout", **{"Retry-After": "1"})  # no limit of the key
    Proxy.answers = [
        (200, {}, b'{"embedding_space": "es"}'), slowest, (200, {}, b'{"import_id": "i"}'),
        running, limited, *[running] * 5, (200, {}, b'{"state": "done"}'), (200, {}, line_of(0)),
    ]  # fmt: skip
    assert len(run(proxy, embeddings(services, 1), "default")) == 1
    assert slept == [1.0, module.POLL_S, 4.0, 2.0, 1.0, 0.5, 0.25, module.POLL_S]


@pytest.mark.parametrize(
    "answer",
    [
        problem(429, "quota_exceeded", **{"Retry-After": "40000"}),
        problem(408, "request_timeout"),  # the connection is too slow, and will be again
    ],
)
def test_what_does_not_pass_in_a_moment_is_not_waited_for(
    proxy: str, answer: tuple[int, dict[str, str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    Proxy.answers = [answer]
    with pytest.raises(ImportSourceError, match="refuses: Later"):
        ensure(proxy)
    assert slept == []


def test_a_busy_server_gets_the_whole_archive_again(
    proxy: str, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    report = b"".join(map(line_of, range(300)))
    ended = [(200, {}, b'{"import_id": "i"}'), (200, {}, b'{"state": "done"}'), (200, {}, report)]
    Proxy.answers = [(200, {}, b'{"embedding_space": "es"}'), (503, {}, b""), *ended]
    Proxy.bodies.clear()
    assert len(run(proxy, embeddings(services, 300), "default")) == 300
    first, second = Proxy.bodies
    assert first == second
    assert len(first) > module.CHUNK_BYTES
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert len(archive.read("manifest.jsonl").splitlines()) == 300


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, {}, b"<html>"), "does not answer as a Likeness server"),
        ((200, {}, b"{}"), "does not answer as a Likeness server"),
        ((403, {}, b"no"), "answered with 403, but not by a Likeness server"),
        (
            (401, {"Content-Type": "application/problem+json"}, b'{"detail": "No key."}'),
            "refuses: No key",
        ),
    ],
)
def test_what_is_in_between(
    proxy: str, answer: tuple[int, dict[str, str], bytes], message: str
) -> None:
    Proxy.answers = [answer]
    with pytest.raises(ImportSourceError, match=message):
        ensure(proxy)


def test_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    with pytest.raises(ImportSourceError, match=r"in 8 attempts.*Run the import again"):
        ensure("http://127.0.0.1:9")


def test_why_a_server_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    remote = RemoteImport("http://127.0.0.1:9", "default", ImportOptions(), 1_000)
    reasons: list[str] = []
    remote.watch_server = reasons.append
    with pytest.raises(ImportSourceError):
        remote.ensure_collection()
    assert "http://127.0.0.1:9" in reasons[0]
    assert "Connection refused" in reasons[0]


def test_a_collection_that_another_client_makes_at_that_moment(
    url: str, services: Services, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = httpx.Client.request

    def made_meanwhile(client: httpx.Client, *call: Any, **given: Any) -> httpx.Response:
        answer = request(client, *call, **given)
        if answer.status_code == httpx.codes.NOT_FOUND:
            services.gallery.create_collection(collection, {})
        return answer

    monkeypatch.setattr(httpx.Client, "request", made_meanwhile)
    remote = RemoteImport(url, collection, ImportOptions(), 1_000)
    assert remote.ensure_collection() == (services.pack.embedding_space, False)
    remote.run(iter(()), lambda _: None)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host",
        "http://",
        "/v1",
        "http://h:99999x",
        "http://[::1",
        "http://☃..x",
        "http://a..b",
    ],
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ImportSourceError, match="is not an address such as http://host:8000"):
        RemoteImport(url, "default", ImportOptions(), 1_000)


@pytest.mark.parametrize("name", ["default#x", "default?x", "default/imports", "..", ""])
def test_a_name_that_would_change_the_path_of_the_calls(name: str) -> None:
    with pytest.raises(InvalidRequest, match="The name of a collection must have"):
        RemoteImport("http://127.0.0.1:9", name, ImportOptions(), 1_000)


@pytest.mark.parametrize("key", ["lk_secret x", "lk_…secret", "lk_secret\r\nX: y"])
def test_a_key_that_cannot_be_sent_is_not_shown(key: str) -> None:
    with pytest.raises(ImportSourceError, match="LIKENESS_API_KEY") as refused:
        RemoteImport("http://127.0.0.1:1", "default", ImportOptions(), 1_000, key=key)
    assert "secret" not in str(refused.value)


def test_a_key_may_end_with_the_line_break_of_its_file() -> None:
    remote = RemoteImport("http://127.0.0.1:1", "default", ImportOptions(), 1_000, key="lk_a\n")
    assert remote._client.headers["Authorization"] == "Bearer lk_a"
