"""A process is killed while many of its threads write: writes that share a transaction are all kept
or all not, and what was acknowledged is kept."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from app.inference.write_batches import WriteBatches
from app.store.audit_verification import verify_audit
from app.store.backends import create_engine
from app.store.records import NewTemplate, PersonEnrollment, StoredTemplate
from app.store.store import Store
from tests.chaos.gallery_process import PROCESSES, START, open_gallery, vector_of

pytestmark = pytest.mark.chaos
CYCLES = 3
THREADS = 12


def write(connection: Connection, url: str, folder: Path, name: str) -> None:
    """Enroll until killed, those that wait together as in the service; report each person that was
    acknowledged."""
    gallery = open_gallery(url, folder)
    batches = WriteBatches(ThreadPoolExecutor(2))
    reporting = threading.Lock()

    def together(
        several: Sequence[PersonEnrollment],
    ) -> Sequence[Sequence[StoredTemplate] | Exception]:
        return gallery.enroll_together("default", several)[0]

    def enroll(thread: int) -> None:
        number = 0
        while True:
            person = f"{name}-{thread}-{number}"
            new = [NewTemplate(vector_of(person, 0), "0")]
            one = PersonEnrollment(person, None, new)
            batches.submit("default", together, one).result()
            with reporting:
                connection.send(person)
            number += 1

    threads = [threading.Thread(target=enroll, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()  # an executor takes no work once the main thread has ended


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
