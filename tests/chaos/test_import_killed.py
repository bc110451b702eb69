"""Imports that are killed again and again, by the command and in a service, end in the gallery that
one clean run makes."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from app.store.backends import create_engine
from tests.ports import free_port

pytestmark = pytest.mark.chaos

LIKENESS = Path(sys.executable).parent / "likeness"
OPTIONS = {"near_duplicate": "0.9", "on_conflict": "skip"}
PEOPLE, KILLS = 80, 5


@pytest.fixture
def people(tmp_path: Path, evaluation_faces: Path) -> Path:
    """Some people, with what order could change: a copy of another's photo."""
    folder = tmp_path / "people"
    for person in sorted(evaluation_faces.iterdir())[:PEOPLE]:
        shutil.copytree(person, folder / person.name)
    first, second = sorted(folder.iterdir())[:2]
    shutil.copy(next(first.iterdir()), second / "zz_of_another.jpg")
    return folder


def start(data: Path, *command: str | Path) -> "subprocess.Popen[bytes]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LIKENESS_")}
    return subprocess.Popen(
        [LIKENESS, *command],
        env={**clean, "LIKENESS_DATA_DIR": str(data)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def start_import(data: Path, people: Path) -> "subprocess.Popen[bytes]":
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    return start(data, "import", people, *options)


def gallery_of(data: Path) -> list[tuple[str, str]]:
    engine = create_engine(f"sqlite:///{data / 'likeness.db'}")
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT persons.person_id, templates.content_digest FROM templates "
                "JOIN persons ON persons.id = templates.person ORDER BY templates.id"
            )
        ).all()
    engine.dispose()
    return [(row.person_id, row.content_digest) for row in rows]


@pytest.fixture
def clean(tmp_path: Path, people: Path) -> list[tuple[str, str]]:
    assert start_import(tmp_path / "clean", people).wait(timeout=300) in (0, 1)
    found = gallery_of(tmp_path / "clean")
    assert len(found) >= PEOPLE
    return found


def test_kill_9_and_again(tmp_path: Path, people: Path, clean: list[tuple[str, str]]) -> None:
    moments = random.Random(7)
    for _ in range(KILLS):
        process = start_import(tmp_path / "killed", people)
        time.sleep(moments.uniform(1.5, 4.0))
        process.kill()
        process.wait()
    assert start_import(tmp_path / "killed", people).wait(timeout=300) in (0, 1)
    assert gallery_of(tmp_path / "killed") == clean


class Service:
    """`likeness serve` as a process of its own."""

    def __init__(self, data: Path) -> None:
        port = free_port()
        self._process = start(data, "serve", "--port", str(port))
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        deadline = time.monotonic() + 60
        while not is_up(self.client):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def kill(self) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait()


def is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/livez").is_success
    except httpx.TransportError:
        return False


def ended(client: httpx.Client, url: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = client.get(url).json()
        if job["state"] not in ("queued", "running"):
            assert job["state"] == "done", job
            return True
        time.sleep(0.1)
    return False


def test_a_service_that_is_killed_leaves_its_import_to_another(
    tmp_path: Path, people: Path, clean: list[tuple[str, str]]
) -> None:
    """Two over one data folder; the older, which does the import, is killed and replaced."""
    data, moments = tmp_path / "served", random.Random(3)
    archive = Path(shutil.make_archive(str(tmp_path / "people"), "zip", people))
    running = [Service(data), Service(data)]
    try:
        sent = running[1].client.post(
            "/v1/collections/default/imports",
            params=OPTIONS,
            content=archive.read_bytes(),
            headers={"Content-Type": "application/zip"},
        )
        url = f"/v1/collections/default/imports/{sent.json()['import_id']}"
        kills = 0
        while kills < KILLS and not ended(running[1].client, url, moments.uniform(1.0, 2.0)):
            running.pop(0).kill()
            running.append(Service(data))
            kills += 1
        assert kills, "it was over before it could be killed"
        assert ended(running[1].client, url, 300)
        report = running[1].client.get(f"{url}/report").text
        assert report.count("\n") == len(list(people.glob("*/*.jpg")))
    finally:
        for one in running:
            one.kill()
    assert gallery_of(data) == clean
