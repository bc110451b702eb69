"""Enrollments a second at eight threads, of two checkouts in turn.

    git worktree add ../before COMMIT
    python benchmarks/store.py ../before . --people 400 --rounds 6

Each round enrolls new persons through the gallery of both checkouts, in processes of their own, the
order changing from round to round. Printed: the medians by the clock and by the time of the
processor, which other work on the machine disturbs less, and the numbers of SQL statements.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine, event

THREADS = 8


def measure(people: int) -> dict[str, float]:
    """Figures of the checkout that Python imports from."""
    from app.services import build_services  # noqa: PLC0415 (of the checkout)
    from app.settings import Settings  # noqa: PLC0415
    from app.store.records import NewTemplate, PersonEnrollment  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        services = build_services(Settings(data_dir=Path(folder), pack="default"))
        gallery = services.gallery
        shape = (people + 2, services.pack.recogniser.dimension)
        drawn = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

        def enroll(i: int) -> None:
            one = PersonEnrollment(f"p{i}", None, [NewTemplate(vectors[i], str(i))])
            gallery.enroll_together("default", [one])

        enroll(people)
        statements: list[str] = []
        event.listen(Engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
        enroll(people + 1)
        enrolling = len(statements)
        gallery.identify("default", vectors[:1], 5)
        identifying = len(statements) - enrolling
        began, computed = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(enroll, range(people)))
        spent, cpu = time.perf_counter() - began, time.process_time() - computed
        services.close()
    return {
        "enroll/s": people / spent,
        "enroll/CPU s": people / cpu,
        "statements of an enroll": enrolling,
        "statements of an identify": identifying,
    }


def measured_in(tree: Path, people: int) -> dict[str, float]:
    """The same in a process that imports from a checkout."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", str(people)]
    environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
    done = subprocess.run(
        command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, timeout=600
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs="*", type=Path)
    parser.add_argument("--people", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure is not None:
        print(json.dumps(measure(options.measure)))
        return
    found: dict[Path, list[dict[str, Any]]] = {tree: [] for tree in options.trees}
    for turn in range(options.rounds):
        for tree in options.trees if turn % 2 == 0 else reversed(options.trees):
            found[tree].append(measured_in(tree, options.people))
    for tree, rounds in found.items():
        medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        print(tree, *(f"{name} {value:.4g}" for name, value in medians.items()), sep="  ")


if __name__ == "__main__":
    main()
