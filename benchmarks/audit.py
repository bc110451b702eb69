"""What the audit log costs a write: enrollments with and without it, in turn.

`python benchmarks/audit.py` prints medians for SQLite on this machine's disk: of the time that
passes, for a quiet machine, and of this thread's CPU time, which other processes change less.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np

from app.store.backends import create_engine
from app.store.records import NewTemplate, PersonEnrollment
from app.store.schema import migrate
from app.store.sql.audit_log import AuditWriter
from app.store.store import Store

ROUNDS, WRITES = 15, 200


@contextmanager
def without_log() -> Iterator[None]:
    with mock.patch.object(AuditWriter, "append", return_value=None):
        yield


def enroll(store: Store, first: int) -> tuple[float, float]:
    """Milliseconds of one enrollment, the median of WRITES, and the mean of its CPU time."""
    times, cpu = [], time.thread_time()
    for number in range(first, first + WRITES):
        vector = np.zeros(192, np.float32)
        one = PersonEnrollment(f"p{number}", None, [NewTemplate(vector, f"{number:064}")])
        start = time.perf_counter()
        store.templates.enroll_together("staff", [one])
        times.append(time.perf_counter() - start)
    cpu = time.thread_time() - cpu
    return statistics.median(times) * 1000, cpu / WRITES * 1000


def main() -> None:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        engine = create_engine(f"sqlite:///{folder}/likeness.db")
        migrate(engine)
        store = Store(engine, audit_key=bytes(32))
        store.collections.create("staff", "es", 192, {})
        with_log, plain = [], []
        for turn in range(ROUNDS):
            with_log.append(enroll(store, turn * 2 * WRITES))
            with without_log():
                plain.append(enroll(store, (turn * 2 + 1) * WRITES))
        for name, which in (("", 0), ("CPU time of ", 1)):
            pairs = [(a[which], b[which]) for a, b in zip(with_log, plain, strict=True)]
            difference = statistics.median(a - b for a, b in pairs)
            sys.stdout.write(
                f"{name}an enrollment: {statistics.median(b for _, b in pairs):.3f} ms without "
                f"the log, {statistics.median(a for a, _ in pairs):.3f} ms with it; difference "
                f"{difference:.3f} ms\n"
            )


if __name__ == "__main__":
    main()
