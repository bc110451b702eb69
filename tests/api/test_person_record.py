"""Everything held about a person, for a request for access."""

import base64
import errno
import json
import socket
import threading
import time
import uuid
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from app.api.context import ClientLeft
from app.cli import person
from app.cli.commands import app
from app.disk import write_whole
from app.importing import reports
from app.importing.job_folder import ImportJob, JobFolder, JobState
from app.importing.options import UploadOptions
from app.importing.outcomes import RowOutcome, RowResult, report_writer
from app.inference.scheduler import REPORT_THREADS
from app.services import Services, build_services
from app.settings import Settings
from tests.api.conftest import run_server

MOST_ASYNCIO_THREADS = 32  # of its default executor
METADATA = {"team": "red", "consent": {"reference": "form 7", "expires": "2129-11-26"}}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Services:
    return build_services(Settings(data_dir=tmp_path_factory.mktemp("held")))


def put_report(folder: Path, collection: str, people: list[str]) -> None:
    """A report of an import in which each person's face resembles the next one's."""
    folder.mkdir(exist_ok=True)
    job = ImportJob(
        import_id=uuid.uuid4().hex, collection=collection, state=JobState.DONE, archive="a.zip",
        created_at=datetime.now(UTC), finished_at=datetime.now(UTC), options=UploadOptions(),
    )  # fmt: skip
    jobs = JobFolder(folder)
    # The service tidies the folder meanwhile.
    with jobs.exclusive(), report_writer(jobs.report(job), 9) as write:
        jobs.save(job)
        for one, other in zip(people, [*people[1:], people[0]], strict=True):
            place = f"{one}/1.jpg"
            write(RowOutcome(place, one, RowResult.ENROLLED, "conflict", "", None, other, 0.7))


@pytest.fixture(scope="module")
def record(held: Services, astronaut: bytes, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The record of Eileen, who has two faces and one declared pair, page by page."""
    with run_server(held) as url, httpx.Client(base_url=url, timeout=60) as client:
        policy = {"policy": {"keep_crops": True}}
        client.patch("/v1/collections/default", json=policy)
        data = {"person_id": "eileen", "metadata": json.dumps(METADATA)}
        client.post("/v1/enroll", files={"image": ("a.jpg", astronaut)}, data=data)
        embedding = np.eye(held.pack.recogniser.dimension)[0].tolist()
        call = {"person_id": "eileen", "embeddings": [embedding]}
        client.post("/v1/enroll", json=call, headers={"Idempotency-Key": "key of eileen"})
        client.post("/v1/collections/default/persons", json={"person_id": "twin"})
        persons = "/v1/collections/default/persons"
        client.post(f"{persons}/eileen/different-from/twin")
        put_report(held.settings.data_dir / "imports", "default", ["eileen", "twin"])
        first = client.get(f"{persons}/eileen/record", params={"limit": 1}).json()
        query = {"limit": 1, "cursor": first["next_cursor"]}
        second = client.get(f"{persons}/eileen/record", params=query).json()
        assert second["next_cursor"] is None
        absent = client.get(f"{persons}/nobody/record")
        assert absent.json()["code"] == "person_not_found"
        for cursor in ("bm8", base64.b64encode(b"x").decode(), "²"):
            wrong = client.get(f"{persons}/eileen/record", params={"cursor": cursor})
            assert wrong.json()["code"] == "invalid_cursor", cursor
        yield first, second


def test_what_an_answer_has(record: Any) -> None:
    first, second = record
    assert first["person"]["metadata"] == METADATA
    assert [pair["other_id"] for pair in first["different_from"]] == ["twin"]
    actions = ["consent.recorded", "person.enrolled", "person.enrolled"]
    assert [one["action"] for one in first["history"]][:3] == actions
    exported = second["history"][-1]
    assert [exported["action"], exported["details"]] == ["person.exported", {"faces": 1}]
    (photo,), (given,) = first["faces"], second["faces"]
    assert base64.b64decode(photo["crop"]).startswith(b"\x89PNG")
    assert np.linalg.norm(photo["embedding"]) == pytest.approx(1, abs=1e-5)
    assert given["embedding"][0] == pytest.approx(1)
    assert given["crop"] is None
    assert any("backups" in place for place in first["elsewhere"])
    (answer,) = first["kept_answers"]
    assert answer["idempotency_key"] == "key of eileen"
    assert answer["answer"]["person_id"] == "eileen"
    own, others = first["import_rows"]
    assert [own["place"], own["result"], own["similarity"]] == ["eileen/1.jpg", "enrolled", 0.7]
    assert {**others, "import_id": ""} == {
        "import_id": "", "result": "enrolled", "reason": "conflict", "similarity": 0.7,
    }  # fmt: skip
    assert second["import_rows"] == []  # on the first page only
    assert first["more_import_rows"] is second["more_import_rows"] is False


def with_times(members: dict[str, Any]) -> dict[str, Any]:
    """The members, with times instead of their texts: one writes Z, the other +00:00."""
    return {
        name: datetime.fromisoformat(value) if name.endswith(("_at", "_until")) else value
        for name, value in members.items()
    }


def test_the_command_writes_the_same(
    record: Any, held: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(held.settings.data_dir))
    folder = tmp_path / "eileen"
    done = CliRunner().invoke(app, ["person", "export", "eileen", str(folder)])
    assert done.exit_code == 0, done.output
    written = json.loads((folder / "record.json").read_text())
    assert written["person"]["metadata"] == METADATA
    only_in_answers = {"request_id", "model", "timings_ms", "next_cursor"}
    assert written.keys() - {"collection"} == record[0].keys() - only_in_answers
    for member in ("person", "consent"):
        assert with_times(written[member]) == with_times(record[0][member])
    for member in ("faces", "kept_answers", "different_from"):
        assert written[member][0].keys() == record[0][member][0].keys()
    assert written["history"][0].keys() > record[0]["history"][0].keys()
    ids = [face["face_id"] for face in written["faces"]]
    assert ids == [page["faces"][0]["face_id"] for page in record]
    for shared in ("kept_answers", "import_rows", "elsewhere"):
        assert [shared, len(written[shared])] == [shared, len(record[0][shared])]
    assert written["more_import_rows"] is False
    (crop,) = folder.glob("*.png")
    assert crop.read_bytes() == base64.b64decode(record[0]["faces"][0]["crop"])
    embedding = np.frombuffer(base64.b64decode(written["faces"][0]["embedding"]), "<f4")
    assert embedding.tolist() == pytest.approx(record[0]["faces"][0]["embedding"])
    again = CliRunner().invoke(app, ["person", "export", "eileen", str(folder)])
    assert again.exit_code != 0
    nowhere = CliRunner().invoke(app, ["person", "export", "eileen", str(tmp_path / "a" / "b")])
    assert nowhere.exit_code == 2
    assert "cannot be written" in nowhere.output


def test_a_record_that_cannot_be_written_is_not_left_in_part(
    held: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, pieces: Any) -> None:
        if path.name == "record.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_whole(path, pieces)

    monkeypatch.setattr(person, "write_whole", write)
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(held.settings.data_dir))
    folder = tmp_path / "eileen"
    done = CliRunner().invoke(app, ["person", "export", "eileen", str(folder)])
    assert done.exit_code == 2
    assert not folder.exists()


def test_rows_of_reports_that_are_left_out_are_named(
    record: Any, held: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eileen has two rows in the reports."""
    monkeypatch.setattr(reports, "MOST_ROWS", 1)
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(held.settings.data_dir))
    folder = tmp_path / "eileen"
    assert CliRunner().invoke(app, ["person", "export", "eileen", str(folder)]).exit_code == 0
    written = json.loads((folder / "record.json").read_text())
    assert [len(written["import_rows"]), written["more_import_rows"]] == [1, True]
    with run_server(held) as url, httpx.Client(base_url=url, timeout=60) as client:
        answer = client.get("/v1/collections/default/persons/eileen/record").json()
    assert [len(answer["import_rows"]), answer["more_import_rows"]] == [1, True]


def test_reports_are_read_beside_the_database_while_a_client_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many of gigabytes must not take the threads with which other calls read the database or
    receive archives."""
    begun, gone = threading.Semaphore(0), threading.Semaphore(0)

    def endless(*given: Any) -> Any:
        check = given[-1]
        begun.release()
        while True:
            try:
                check()
            except ClientLeft:
                gone.release()
                raise
            time.sleep(0.01)

    monkeypatch.setattr("app.importing.jobs.rows_about", endless)
    persons = "/v1/collections/default/persons"
    services = build_services(Settings(data_dir=tmp_path))
    with run_server(services) as url, ExitStack() as opened:
        client = opened.enter_context(httpx.Client(base_url=url, timeout=30))
        client.post(persons, json={"person_id": "eileen"}).raise_for_status()
        address = (client.base_url.host, client.base_url.port)
        waiting = [socket.create_connection(address) for _ in range(MOST_ASYNCIO_THREADS + 1)]
        for one in waiting:
            opened.enter_context(one)
            one.sendall(f"GET {persons}/eileen/record HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        for _ in range(REPORT_THREADS):
            assert begun.acquire(timeout=60)
        assert client.get(f"{persons}/eileen").status_code == 200
        assert client.get("/v1/collections/default/imports").status_code == 200
        for one in waiting:
            one.close()
        for _ in range(REPORT_THREADS):
            assert gone.acquire(timeout=60)
