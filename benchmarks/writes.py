"""Enrollments a second and their times, of one or more checkouts in turn: how writes share SQLite.

    git worktree add ../before COMMIT
    python benchmarks/writes.py ../before . --people 400 --rounds 3

Each way, as 2x4 for two processes of four threads, enrolls new persons of one template each through
galleries over one new database: no networks, no HTTP. As in the service, those that wait are done
together, in checkouts that can. Printed are medians over the rounds of the rate, of the percentiles
of one enrollment's time, and of the CPU time of each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

DIMENSION = 512
WAYS = ("1x1", "1x4", "1x16", "2x4")


def enroll_all(folder: Path, name: str, threads: int, people: int) -> dict[str, Any]:
    """Milliseconds of each enrollment, and the CPU time of all, in a process that imports from its
    checkout."""
    from app.gallery.gallery import Gallery  # noqa: PLC0415 (of the checkout)
    from app.index.factory import IndexFactory  # noqa: PLC0415
    from app.store.backends import create_engine  # noqa: PLC0415
    from app.store.records import NewTemplate  # noqa: PLC0415
    from app.store.schema import migrate  # noqa: PLC0415
    from app.store.store import Store  # noqa: PLC0415

    engine = create_engine(f"sqlite:///{folder / 'likeness.db'}")
    migrate(engine)
    gallery = Gallery(Store(engine), IndexFactory(1, folder / "index"), "es-bench", DIMENSION)
    drawn = np.random.default_rng(1).standard_normal((people, DIMENSION)).astype(np.float32)
    vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    store = enrolling(gallery)

    def enroll(i: int) -> float:
        began = time.perf_counter()
        store(f"{name}-{i}", NewTemplate(vectors[i], str(i)))
        return (time.perf_counter() - began) * 1000

    enroll(0)
    print("ready", flush=True)
    sys.stdin.readline()
    before = time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        each = list(pool.map(enroll, range(1, people)))
    return {"ms": each, "cpu_s": time.process_time() - before}


def enrolling(gallery: Any) -> Callable[[str, Any], object]:
    """Enrolls a template of a person as the checkout's service does."""
    try:
        from app.inference.write_batches import WriteBatches  # noqa: PLC0415
        from app.store.records import PersonEnrollment  # noqa: PLC0415
    except ImportError:  # before there was one thread for all that wait
        return lambda person, new: gallery.enroll("default", person, None, [new])
    batches = WriteBatches(ThreadPoolExecutor(2))

    def together(several: Sequence[PersonEnrollment]) -> Sequence[Any]:
        outcomes: Sequence[Any] = gallery.enroll_together("default", several)[0]
        return outcomes

    return lambda person, new: batches.submit(
        "default", together, PersonEnrollment(person, None, [new])
    ).result()


def measured(tree: Path, way: str, people: int) -> dict[str, float]:
    """Figures of one way."""
    processes, threads = map(int, way.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--threads", str(threads),
                   "--people", str(people // processes), "--folder", folder]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
        started = [
            subprocess.Popen([*command, "--name", str(number)], cwd=tree, env=environment,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for number in range(processes)
        ]  # fmt: skip
        for one in started:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        began = time.perf_counter()
        answers = [one.communicate("go\n", timeout=600)[0] for one in started]
        spent = time.perf_counter() - began
    found = [json.loads(answer) for answer in answers]
    each = np.array([ms for one in found for ms in one["ms"]])
    cpu_ms = sum(one["cpu_s"] for one in found) * 1000 / len(each)
    p50, p99, worst = np.percentile(each, (50, 99, 100)).tolist()
    return {"enroll/s": len(each) / spent, "p50 ms": p50, "p99 ms": p99, "worst ms": worst,
            "CPU ms": cpu_ms}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trees", nargs="*", type=Path)
    parser.add_argument("--people", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    for hidden, kind in (("--folder", Path), ("--threads", int), ("--name", str)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.folder:
        found_here = enroll_all(options.folder, options.name, options.threads, options.people)
        print(json.dumps(found_here))
        return
    found: dict[tuple[str, Path], list[dict[str, Any]]] = {}
    for turn in range(options.rounds):
        for way in options.ways:
            for tree in options.trees if turn % 2 == 0 else reversed(options.trees):
                found.setdefault((way, tree), []).append(measured(tree, way, options.people))
    for (way, tree), rounds in found.items():
        medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        print(way, tree, *(f"{name} {value:.4g}" for name, value in medians.items()), sep="  ")


if __name__ == "__main__":
    main()
