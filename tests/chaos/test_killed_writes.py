"""A process is killed while many of its threads write: writes that share a transaction are all kept
or all not, and what was acknowledged is kept."""

import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from app.store.audit_verification import verify_audit
from app.store.backends import create_engine
from app.store.records import NewTemplate
from app.store.store import Store
from tests.chaos.workers import PROCESSES, START, open_gallery, vector_of

pytestmark = pytest.mark.chaos
CYCLES = 3
THREADS = 12


def write(connection: Connection, url: str, folder: Path, name: str) -> None:
    """Enroll until killed; report each person that was acknowledged."""
    gallery = open_gallery(url, folder)
    reporting = threading.Lock()

    def enroll(thread: int) -> None:
        number = 0
        while True:
            person = f"{name}-{thread}-{number}"
            gallery.enroll("default", person, None, [NewTemplate(vector_of(person, 0), "0")])
            with reporting:
                connection.send(person)
            number += 1

    for thread in range(THREADS):
        threading.Thread(target=enroll, args=(thread,)).start()


@pytest.mark.parametrize("count", PROCESSES)
def test_acknowledged_writes_outlive_the_process(tmp_path: Path, count: int) -> None:
    url, random = f"sqlite:///{tmp_path / 'likeness.db'}", np.random.default_rng(3)
    open_gallery(url, tmp_path / "index").close()
    acknowledged: set[str] = set()
    for cycle in range(CYCLES):
        pipes = [START.Pipe(duplex=False) for _ in range(count)]
        processes = [
            START.Process(
                target=write, args=(ours, url, tmp_path / "index", f"{cycle}-{number}"), daemon=True
            )
            for number, (_, ours) in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        for reports, ours in pipes:
            ours.close()
            acknowledged.add(reports.recv())
        time.sleep(random.uniform(0, 0.3))
        for process in processes:
            process.kill()
            process.join()
        acknowledged |= {person for reports, _ in pipes for person in drained(reports)}
        store = Store(create_engine(url))
        kept = {one.person_id for one in store.persons.page("default", None, 100_000).items}
        assert acknowledged <= kept
        # Besides: what was under way, at most one write a thread.
        assert len(kept) <= len(acknowledged) + (cycle + 1) * count * THREADS
        assert verify_audit(store.audit.everything()).problem is None
        store.close()
    assert len(acknowledged) > CYCLES * count


def drained(reports: Connection) -> list[str]:
    found: list[str] = []
    try:
        while True:
            found.append(reports.recv())
    except EOFError:  # also in the middle of a report, which is then none
        return found
