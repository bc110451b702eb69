"""Searches of several threads at once, of one or more checkouts in turn: how they share scans.

    git worktree add ../before COMMIT
    python benchmarks/shared_scans.py ../before . --count 1000000 --dimension 512 --rounds 3

Every thread searches random directions one after another among `--count` others: no networks, no
HTTP, no database. Printed are medians over the rounds of the searches a second, and of the
percentiles of one search's time. A checkout encodes the same vectors once per round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

Figures = dict[str, float]


def measure(options: argparse.Namespace) -> dict[str, Figures]:
    """Figures by number of threads, of the checkout that Python imports from."""
    import faiss  # noqa: PLC0415 (with the checkout's settings)

    from app.index.factory import IndexFactory  # noqa: PLC0415
    from app.index.port import Templates  # noqa: PLC0415

    faiss.omp_set_num_threads(1)
    index = IndexFactory(os.cpu_count() or 1).new_index(options.dimension)
    random = np.random.default_rng(1)
    for start in range(1, options.count, 50_000):
        keys = np.arange(start, min(start + 50_000, options.count + 1))
        index.add(Templates(keys, keys, directions(random, len(keys), options.dimension)))
        while index.maintain():
            pass
    probes = directions(random, 4_096, options.dimension)
    return {str(count): asked(index, probes, count, options.seconds) for count in options.threads}


def directions(random: np.random.Generator, count: int, dimension: int) -> Any:
    drawn = random.standard_normal((count, dimension), np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def asked(index: Any, probes: Any, threads: int, seconds: float) -> Figures:
    end = time.perf_counter() + seconds

    def search(first: int) -> list[float]:
        found, number = [], first
        while (began := time.perf_counter()) < end:
            index.search_persons(probes[number % len(probes)][np.newaxis], 6)
            found.append((time.perf_counter() - began) * 1000)
            number += threads
        return found

    with ThreadPoolExecutor(threads) as pool:
        each = np.array([ms for found in pool.map(search, range(threads)) for ms in found])
    p50, p99 = np.percentile(each, (50, 99)).tolist()
    return {"a second": len(each) / seconds, "p50 ms": p50, "p99 ms": p99}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trees", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=192)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options)))
        return
    found: dict[tuple[str, Path], list[Figures]] = {}
    given = [f"--count={options.count}", f"--dimension={options.dimension}",
             f"--seconds={options.seconds}", "--threads", *map(str, options.threads)]  # fmt: skip
    for turn in range(options.rounds):
        for tree in options.trees if turn % 2 == 0 else reversed(options.trees):
            command = [sys.executable, str(Path(__file__).resolve()), "--measure", *given]
            environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
            done = subprocess.run(
                command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, timeout=900
            )
            for threads, figures in json.loads(done.stdout.splitlines()[-1]).items():
                found.setdefault((threads, tree), []).append(figures)
    for (threads, tree), rounds in sorted(found.items(), key=lambda item: int(item[0][0])):
        medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        print(f"{threads} threads", tree,
              *(f"{name} {value:.4g}" for name, value in medians.items()), sep="  ")  # fmt: skip


if __name__ == "__main__":
    main()
