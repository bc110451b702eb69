"""Imports over HTTP: an archive in one call, progress, events, cancelling, a restart in between."""

import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.importing.jobs import ImportJobs, JobState
from app.importing.local import ImportOptions
from app.services import Services, build_services
from app.settings import Settings
from tests.api.conftest import run_server
from tests.api.test_decisions import code_of


@pytest.fixture
def archive(tmp_path: Path, photos: Path) -> Path:
    """Two people, three photos, one of them broken."""
    path = tmp_path / "people.zip"
    with zipfile.ZipFile(path, "w") as content:
        content.write(photos / "obama.jpg", "obama/1.jpg")
        content.write(photos / "obama2.jpg", "obama/2.jpg")
        content.writestr("biden/broken.jpg", b"\xff\xd8\xff broken")
    return path


def send(client: httpx.Client, collection: str, archive: Path, **query: str) -> httpx.Response:
    return client.post(
        f"/v1/collections/{collection}/imports",
        params=query,
        content=archive.read_bytes(),
        headers={"Content-Type": "application/zip"},
    )


def wait(read: Callable[[], dict[str, object]], seconds: float = 60) -> dict[str, object]:
    deadline = time.monotonic() + seconds
    while (job := read())["state"] in ("queued", "running"):
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    return job


def test_an_archive_is_imported(
    client: httpx.Client, services: Services, collection: str, archive: Path
) -> None:
    answer = send(client, collection, archive)
    assert answer.status_code == 202
    url = f"/v1/collections/{collection}/imports/{answer.json()['import_id']}"
    with client.stream("GET", f"{url}/events") as stream:
        told = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert told[-1]["state"] == "done"
    job = client.get(url).json()
    assert (job["counts"]["enrolled"], job["counts"]["rejected"]) == (2, 1)
    assert job["finished_at"]
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
    while not client.get(url).json()["counts"].get("enrolled"):
        time.sleep(0.1)
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
    unknown = client.get(f"{url}/nothing")
    assert (unknown.status_code, code_of(unknown)) == (404, "import_not_found")
    (tmp_path / "broken.zip").write_bytes(b"PK broken")
    made = send(client, collection, tmp_path / "broken.zip").json()
    job = wait(lambda: client.get(f"{url}/{made['import_id']}").json())
    assert job["state"] == "failed"
    assert "not a whole zip" in job["detail"]


def test_an_archive_that_is_too_large(tmp_path: Path, archive: Path) -> None:
    services = build_services(Settings(data_dir=tmp_path / "data", max_import_bytes=1000))
    with run_server(services) as url, httpx.Client(base_url=url) as client:
        answer = send(client, "default", archive)
    assert (answer.status_code, code_of(answer)) == (413, "request_too_large")
    assert list((tmp_path / "data" / "imports").iterdir()) == []


def test_a_restart_goes_on(tmp_path: Path, archive: Path) -> None:
    """What was queued or under way when the service ended is there, and is done, after a start."""
    services = build_services(Settings(data_dir=tmp_path / "data"))
    before = ImportJobs(services)
    place = before.new_archive(".zip")
    place.write_bytes(archive.read_bytes())
    job = before.create("default", place, ImportOptions())
    assert place.stat().st_mode & 0o077 == 0
    after = ImportJobs(services)
    after.start()
    deadline = time.monotonic() + 60
    while after.get("default", job.import_id).state is not JobState.DONE:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert after.get("default", job.import_id).counts["enrolled"] == 2
    after.stop()
    services.close()
