"""Imports over HTTP: an archive in one call, progress, events, cancelling, a restart in between."""

import asyncio
import json
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.endpoints import imports
from app.api.main import create_app
from app.importing.job_folder import JobFolder
from app.importing.reports import SPOOL
from app.services import Services, build_services
from app.settings import Settings
from app.store.sql.audit_log import AuditStore
from tests.api.conftest import run_server
from tests.api.test_decisions import code_of
from tests.importing.archives import two_people
from tests.waiting import until


@pytest.fixture
def archive(tmp_path: Path, photos: Path) -> Path:
    return two_people(tmp_path, photos)


def send(client: httpx.Client, collection: str, archive: Path, **query: str) -> httpx.Response:
    return client.post(
        f"/v1/collections/{collection}/imports",
        params=query,
        content=archive.read_bytes(),
        headers={"Content-Type": "application/zip"},
    )


def wait(read: Callable[[], dict[str, object]]) -> dict[str, object]:
    until(lambda: read()["state"] not in ("queued", "running"))
    return read()


def test_an_archive_is_imported(
    client: httpx.Client, services: Services, collection: str, archive: Path
) -> None:
    answer = send(client, collection, archive)
    assert answer.status_code == 202
    url = f"/v1/collections/{collection}/imports/{answer.json()['import_id']}"
    with client.stream("GET", f"{url}/events") as stream:
        reported = [
            json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")
        ]
    assert reported[-1]["state"] == "done"
    job = client.get(url).json()
    assert (job["counts"]["enrolled"], job["counts"]["rejected"]) == (2, 1)
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert job["total"] == 3
    report = [json.loads(line) for line in client.get(f"{url}/report").text.splitlines()]
    assert sorted(row["reason"] for row in report) == ["", "", "unreadable_image"]
    assert client.get(f"/v1/collections/{collection}").json()["faces"] == 2
    (listed,) = client.get(f"/v1/collections/{collection}/imports").json()["items"]
    assert listed["import_id"] == job["import_id"]
    client.delete(url).raise_for_status()
    assert client.get(url).status_code == 404
    left = {
        path.suffix
        for path in (services.settings.data_dir / "imports").glob(f"{job['import_id']}*")
    }
    assert left == set()


def test_one_that_is_cancelled_keeps_what_it_did(
    client: httpx.Client, collection: str, tmp_path: Path, photos: Path
) -> None:
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as content:
        for number in range(300):
            data = (photos / "obama.jpg").read_bytes() + bytes([number % 256, number // 256])
            content.writestr(f"p{number:03d}/1.jpg", data)
    import_id = send(client, collection, path).json()["import_id"]
    url = f"/v1/collections/{collection}/imports/{import_id}"
    until(lambda: client.get(url).json()["counts"].get("enrolled"))
    client.delete(url).raise_for_status()
    job = wait(lambda: client.get(url).json())
    assert job["state"] == "cancelled"
    faces = client.get(f"/v1/collections/{collection}").json()["faces"]
    assert 0 < faces < 300


def test_what_cannot_be_imported(
    client: httpx.Client, services: Services, collection: str, archive: Path, tmp_path: Path
) -> None:
    url = f"/v1/collections/{collection}/imports"
    wrong = client.post(url, content=b"x", headers={"Content-Type": "image/jpeg"})
    assert (wrong.status_code, code_of(wrong)) == (415, "unsupported_media_type")
    absent = send(client, "absent", archive)
    assert (absent.status_code, code_of(absent)) == (404, "collection_not_found")
    for unknown in ("nothing", "x" * 300, "0" * 300, "0" * 32, "..%2F..%2Flikeness"):
        answer = client.get(f"{url}/{unknown}")
        assert answer.status_code == 404, unknown
    (tmp_path / "broken.zip").write_bytes(b"PK broken")
    made = send(client, collection, tmp_path / "broken.zip").json()
    job = wait(lambda: client.get(f"{url}/{made['import_id']}").json())
    assert job["state"] == "failed"
    assert "not a complete zip" in job["detail"]


def test_an_archive_that_is_too_large(tmp_path: Path, archive: Path) -> None:
    services = build_services(Settings(data_dir=tmp_path / "data", max_import_bytes=1000))
    with run_server(services) as url, httpx.Client(base_url=url) as client:
        answer = send(client, "default", archive)
    assert (answer.status_code, code_of(answer)) == (413, "request_too_large")
    assert not list((tmp_path / "data" / "imports").glob("*.*"))


def test_options_of_the_query(
    client: httpx.Client, services: Services, collection: str, archive: Path
) -> None:
    """Those of the command line; one that there is not is refused."""
    url = f"/v1/collections/{collection}/imports"
    made = send(client, collection, archive, dry_run="true", near_duplicate="0.5").json()
    assert made["options"]["near_duplicate"] == 0.5
    job = wait(lambda: client.get(f"{url}/{made['import_id']}").json())
    assert job["counts"]["enrolled"] == 2
    assert services.gallery.size(collection).templates == 0
    made = send(client, collection, archive, near_duplicate="0.3").json()
    job = wait(lambda: client.get(f"{url}/{made['import_id']}").json())
    assert (job["counts"]["enrolled"], job["counts"]["skipped"]) == (1, 1)
    made = send(client, collection, archive, on_error="stop").json()
    job = wait(lambda: client.get(f"{url}/{made['import_id']}").json())
    assert job["state"] == "stopped"
    assert "broken.jpg" in job["detail"]
    made = send(client, collection, archive, gate='{"min_face_size_px": 4000}').json()
    job = wait(lambda: client.get(f"{url}/{made['import_id']}").json())
    assert made["options"]["gate"]["min_face_size_px"] == 4000
    reported = client.get(f"{url}/{made['import_id']}/report").text
    assert "face_too_small" in reported
    for wrong in (
        {"gate": "{"},
        {"gate": '{"min": 1}'},
        {"gate": '{"min_brightness": 0.9, "max_brightness": 0.1}'},
        {"near_dup": "0.5"},
        {"pattern": "*.jpg"},
        {"near_duplicate": "2"},
        {"face": "all"},
    ):
        assert send(client, collection, archive, **wrong).status_code == 422, wrong


def test_a_table_of_embeddings_names_no_file_of_the_service(
    client: httpx.Client, services: Services, collection: str
) -> None:
    rows = [
        {"person_id": "ada", "image": str(services.settings.data_dir / "likeness.db")},
        {"person_id": "ada", "image": "../likeness.db"},
    ]
    answer = client.post(
        f"/v1/collections/{collection}/imports",
        content="\n".join(json.dumps(row) for row in rows),
        headers={"Content-Type": "application/x-ndjson"},
    )
    url = f"/v1/collections/{collection}/imports/{answer.json()['import_id']}"
    job = wait(lambda: client.get(url).json())
    assert job["counts"]["rejected"] == 2
    reported = client.get(f"{url}/report").text
    assert reported.count("may have embeddings only") == 2


def test_imports_are_deleted_with_their_collection(
    client: httpx.Client, services: Services, archive: Path
) -> None:
    client.post("/v1/collections", json={"name": "brief"}).raise_for_status()
    import_id = send(client, "brief", archive).json()["import_id"]
    wait(lambda: client.get(f"/v1/collections/brief/imports/{import_id}").json())
    client.delete("/v1/collections/brief").raise_for_status()
    assert not list((services.settings.data_dir / "imports").glob(f"{import_id}*"))


@pytest.mark.parametrize("way", ["deleted", "merged", "renamed"])
def test_deleted_persons_are_erased_from_reports(
    client: httpx.Client, services: Services, collection: str, archive: Path, way: str
) -> None:
    import_id = send(client, collection, archive).json()["import_id"]
    url = f"/v1/collections/{collection}/imports/{import_id}"
    wait(lambda: client.get(url).json())
    assert "obama" in client.get(f"{url}/report").text
    persons = f"/v1/collections/{collection}/persons"
    assert code_of(client.delete(f"{persons}/biden")) == "person_not_found", "nobody of him came in"
    unknown = client.post(f"{persons}/delete", json={"person_ids": ["biden", ""]}).json()
    assert unknown["not_found"] == ["biden", ""]
    assert not (services.settings.data_dir / "imports" / SPOOL).exists(), "nothing is noted of him"
    assert "biden" in client.get(f"{url}/report").text
    if way == "deleted":
        assert client.delete(f"{persons}/obama").json()["erased"] == "pending"
    elif way == "renamed":
        client.patch(f"{persons}/obama", json={"person_id": "barack"}).raise_for_status()
    else:
        client.post(persons, json={"person_id": "barack"}).raise_for_status()
        client.post(f"{persons}/obama/merge", json={"into": "barack"}).raise_for_status()
    until(lambda: "obama" not in client.get(f"{url}/report").text)
    until(lambda: client.get("/readyz").json()["erasure"] == "done")
    report = [json.loads(line) for line in client.get(f"{url}/report").text.splitlines()]
    assert [row["person_id"] for row in report if row["result"] == "enrolled"] == ["", ""]
    assert [row["person_id"] for row in report if row["result"] == "rejected"] == ["biden"]
    folder = services.settings.data_dir / "imports"
    assert not any(b"obama" in path.read_bytes() for path in folder.glob(f"{import_id}*"))


def test_no_more_than_some_wait(
    client: httpx.Client, collection: str, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.importing.jobs.MOST_WAITING", 0)
    answer = send(client, collection, archive)
    assert (answer.status_code, code_of(answer)) == (503, "overloaded")
    assert answer.headers["retry-after"] == "30"


def test_the_report_of_an_import_that_still_writes_is_read_to_a_whole_line(
    client: httpx.Client,
    collection: str,
    services: Services,
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its length is not known when the answer begins, and parts of it are asked for in vain."""
    made = send(client, collection, archive).json()
    job = f"/v1/collections/{collection}/imports/{made['import_id']}"
    wait(lambda: client.get(job).json())
    whole = client.get(f"{job}/report").content
    report = services.settings.data_dir / "imports" / f"{made['import_id']}.report.jsonl"
    with report.open("ab") as file:
        file.write(b'{"place": "half')
    assert client.get(f"{job}/report").content == whole
    with monkeypatch.context() as small:
        small.setattr(imports, "REPORT_PIECE", 8)
        assert client.get(f"{job}/report").content == whole
    answer = client.get(f"{job}/report", headers={"Range": "lines=1-2"})
    assert (answer.status_code, answer.content) == (200, whole)
    with client.stream("GET", f"{job}/report") as growing, report.open("ab") as file:
        file.write(b'": 1}\n' * 100_000)
        assert growing.read() == whole
    report.unlink()
    assert client.get(f"{job}/report").json()["code"] == "import_not_found"


@pytest.mark.parametrize("moment", ["place", "job"])
def test_an_upload_that_is_cancelled_leaves_a_whole_import_or_nothing(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The thread that makes a place for the archive, or a job of it, goes on when the call is
    cancelled: the service stops, or the time of the call is over."""
    of, name = (JobFolder, "new_upload") if moment == "place" else (AuditStore, "record")
    make, begun, may_go_on = getattr(of, name), threading.Event(), threading.Event()

    def slow(*arguments: Any, **members: Any) -> Any:
        begun.set()
        assert may_go_on.wait(60)
        return make(*arguments, **members)

    services = build_services(Settings(data_dir=tmp_path / "data"))
    monkeypatch.setattr(of, name, slow)
    app, body = create_app(services), archive.read_bytes()

    async def cancelled() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            call = asyncio.create_task(
                client.post(
                    "/v1/collections/default/imports",
                    content=body,
                    headers={"Content-Type": "application/zip"},
                )
            )
            assert await asyncio.to_thread(begun.wait, 60)
            call.cancel()
            asyncio.get_running_loop().call_later(0.1, may_go_on.set)
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(cancelled())
    folder = JobFolder(tmp_path / "data" / "imports")
    whole = [folder.archive(job).exists() for job in folder.all()]
    assert whole == ([] if moment == "place" else [True])
    assert len(folder.archives()) == len(whole)
    services.close()


def test_an_import_that_waits_for_the_database_keeps_no_other_waiting(
    client: httpx.Client,
    collection: str,
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its entry in the audit log is written where other writes wait, not on the few threads that
    read and write the files of all imports."""
    record, threads = AuditStore.record, list[str]()

    def noted(*arguments: Any, **members: Any) -> Any:
        threads.append(threading.current_thread().name)
        return record(*arguments, **members)

    with monkeypatch.context() as recording:
        recording.setattr(AuditStore, "record", noted)
        answer = send(client, collection, archive)
    assert answer.status_code == 202
    assert [name.rpartition("_")[0] for name in threads] == ["database-write"]
    url = f"/v1/collections/{collection}/imports/{answer.json()['import_id']}"
    wait(lambda: client.get(url).json())
