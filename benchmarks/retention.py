"""Deletion by age of many persons, beside a client that enrolls: how long it takes, how long its
transactions and the client's calls are.

`python benchmarks/retention.py --persons 100000 [--url postgresql+psycopg://…]`. Without `--url`
SQLite on the disk of the working folder. The service makes one round a second; this makes them
without pauses, so the total is that of the work alone.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from app.gallery.gallery import Gallery
from app.gallery.retention import BATCHES, MOST_AT_ONCE, RetentionTask
from app.index.factory import IndexFactory
from app.store.backends import create_engine
from app.store.records import NewTemplate, PersonEnrollment, PersonTemplate
from app.store.schema import migrate
from app.store.store import Store

DIMENSION, AT_ONCE, PAUSE_S = 192, 1000, 0.02
LONG_AGO, NOW = datetime(2020, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """The time of the database."""

    now = LONG_AGO

    def __call__(self) -> datetime:
        return self.now


def fill(gallery: Gallery, persons: int) -> None:
    generator = np.random.default_rng(0)
    for first in range(0, persons, AT_ONCE):
        vectors = generator.standard_normal((AT_ONCE, DIMENSION)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        gallery.enroll_many(
            "old",
            [
                PersonTemplate(f"p{first + i}", None, NewTemplate(one, f"{first + i:064}"))
                for i, one in enumerate(vectors)
            ],
        )
    gallery.follow("old")


class Client:
    """Enrolls one person after another into another collection, and into the same one."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._stop = threading.Event()
        self._count = 0
        self._thread = threading.Thread(target=self._run)
        self.times: list[float] = []

    def during(self, work: Callable[[], object]) -> list[float]:
        """The milliseconds of its calls while something else is done."""
        self._thread.start()
        work()
        self._stop.set()
        self._thread.join()
        return self.times

    def _run(self) -> None:
        vector = np.eye(DIMENSION, dtype=np.float32)[0]
        while not self._stop.wait(PAUSE_S):
            self._count += 1
            new = [NewTemplate(vector, f"{id(self)} {self._count}")]
            one = PersonEnrollment(f"n{self._count}", None, new)
            begun = time.perf_counter()
            self._gallery.enroll_together(("old", "new")[self._count % 2], [one])
            self.times.append((time.perf_counter() - begun) * 1000)


def shown(name: str, times: list[float]) -> None:
    p99 = float(np.percentile(times, 99))
    sys.stdout.write(
        f"{name}: median {statistics.median(times):.1f} ms, p99 {p99:.1f} ms, "
        f"longest {max(times):.1f} ms ({len(times)})\n"
    )


def measure(url: str, folder: Path, persons: int) -> None:
    engine = create_engine(url)
    migrate(engine)
    clock = Clock()
    store = Store(engine, clock, audit_key=bytes(32))
    gallery = Gallery(store, IndexFactory(2, folder / "index"), "es", DIMENSION)
    for name in ("old", "new"):
        gallery.create_collection(name, {}, {"retention_days": 30})
    fill(gallery, persons)
    clock.now = NOW
    shown("a client's enrollments before", Client(gallery).during(lambda: time.sleep(3)))
    task = RetentionTask(gallery, lambda: None, lambda *_: None, clock)
    rounds = list[float]()

    def erase() -> None:
        while store.persons.page("old", None, 1, prefix="p").items:
            begun = time.perf_counter()
            task.round()
            rounds.append((time.perf_counter() - begun) * 1000)

    begun = time.perf_counter()
    times = Client(gallery).during(erase)
    total = time.perf_counter() - begun
    sys.stdout.write(
        f"{persons:,} persons in {total:.0f} s; {MOST_AT_ONCE} in a transaction, {BATCHES} "
        "transactions in a round\n"
    )
    shown("rounds", rounds)
    shown("a client's enrollments meanwhile", times)
    gallery.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--persons", type=int, default=100_000)
    parser.add_argument("--url")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        url = given.url or f"sqlite:///{folder}/likeness.db"
        measure(url, Path(folder), given.persons)


if __name__ == "__main__":
    main()
