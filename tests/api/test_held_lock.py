"""Another process holds the database's write lock: writers wait, and nobody else does."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from app.services import Services
from tests.api.conftest import Gallery

WRITERS = 12  # three times the threads that write

# Takes the lock, says so, and keeps it until it is told to end.
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
        holder.communicate(timeout=10)


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
            with httpx.Client(base_url=client.base_url, timeout=2) as impatient:
                for _ in range(50):
                    assert impatient.get("/readyz").status_code == 200
                    assert impatient.get(persons).status_code == 200
                    answered += 1
                    time.sleep(0.2)
        assert {writer.result().status_code for writer in writers} == {201}
    assert answered == 50
