"""Another process holds the database's write lock: writers wait, and nobody else does."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from app.api.transfers import Kind, kind_of
from app.services import Services
from tests.api.conftest import Gallery
from tests.waiting import PATIENCE_S

WRITERS = 12  # three times the threads that write

# Takes the lock, says so, and keeps it until its standard input ends.
HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
connection.execute("ROLLBACK")
"""


@contextmanager
def held_lock(database: str) -> Iterator[None]:
    """Another process that holds the write lock."""
    command = [sys.executable, "-c", HOLDER, database]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield
        holder.communicate(timeout=PATIENCE_S)


def test_reads_and_searches_are_answered_while_writers_wait(
    client: httpx.Client, services: Services, presidents: Gallery
) -> None:
    persons = f"/v1/collections/{presidents.name}/persons"
    reads = ["/livez", "/readyz", "/metrics", persons, f"{persons}/obama"]
    photo = presidents.photo("obama2.jpg")
    with ThreadPoolExecutor(WRITERS) as pool:
        with held_lock(str(services.settings.data_dir / "likeness.db")):
            writers = [
                pool.submit(client.post, persons, json={"person_id": f"p{n}"})
                for n in range(WRITERS)
            ]
            while services.scheduler.pending < WRITERS:
                assert client.get("/livez").status_code == 200
            for _ in range(3):
                assert [client.get(path).status_code for path in reads] == [200] * len(reads)
                found = presidents.identify(photo, target_fpir="0.01")
                assert found.json()["faces"][0]["person_id"] == "obama"
                assert presidents.verify(photo, person_id="obama").json()["is_match"]
            assert [writer.done() for writer in writers] == [False] * WRITERS
        assert [writer.result().status_code for writer in writers] == [201] * WRITERS


def test_deletions_are_done_while_writes_are_stuck(
    client: httpx.Client, services: Services, presidents: Gallery
) -> None:
    persons = f"/v1/collections/{presidents.name}/persons"
    for name in ("one", "two"):
        assert client.post(persons, json={"person_id": name}).status_code == 201
    face = client.get(f"{persons}/biden/faces").json()["items"][0]["face_id"]
    release = threading.Event()
    with ThreadPoolExecutor(1) as stuck:
        waits = (services.scheduler.write(release.wait, 2 * PATIENCE_S) for _ in range(WRITERS))
        stuck.submit(asyncio.run, _all(waits))
        try:
            with httpx.Client(base_url=client.base_url, timeout=PATIENCE_S) as impatient:
                answers = [
                    impatient.delete(f"/v1/collections/{presidents.name}/faces/{face}"),
                    impatient.delete(f"{persons}/one"),
                    impatient.post(f"{persons}/delete", json={"person_ids": ["two"]}),
                    impatient.delete(f"/v1/collections/{presidents.name}/calibration"),
                    impatient.delete(f"/v1/collections/{presidents.name}"),
                ]
        finally:
            release.set()
    assert [answer.status_code for answer in answers] == [200] * len(answers)


def test_deleting_several_is_a_deletion() -> None:
    assert kind_of("POST", "/v1/collections/a/persons/delete") is Kind.DELETION
    assert kind_of("POST", "/v1/collections/a/persons") is Kind.CALL


async def _all(waits: Iterable[Awaitable[object]]) -> None:
    await asyncio.gather(*waits)


@pytest.mark.slow
def test_for_ten_seconds(client: httpx.Client, services: Services, presidents: Gallery) -> None:
    persons = f"/v1/collections/{presidents.name}/persons"
    answered = 0
    with ThreadPoolExecutor(WRITERS) as pool:
        with held_lock(str(services.settings.data_dir / "likeness.db")):
            writers = [
                pool.submit(client.post, persons, json={"person_id": f"p{n}"})
                for n in range(WRITERS)
            ]
            end = time.monotonic() + 10  # a writer waits for the lock for 15 s at most
            with httpx.Client(base_url=client.base_url, timeout=10) as impatient:
                while time.monotonic() < end:
                    assert impatient.get("/readyz").status_code == 200
                    assert impatient.get(persons).status_code == 200
                    answered += 1
                    time.sleep(0.2)
        assert {writer.result().status_code for writer in writers} == {201}
    assert answered > 3, "none of them waited for the lock"
