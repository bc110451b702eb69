"""Searches of two checkouts of this project, in turn: whether a change made the index slower.

    git worktree add ../before REVISION
    python benchmarks/search_before_after.py ../before --count 100000
    python benchmarks/search_before_after.py ../before --pack default --photos FOLDER_OF_PEOPLE

Without a pack the vectors are random directions, which nothing resembles: the hardest case. With
one they are made of real faces, as those of `gallery.py`.
Each checkout has a process with the same gallery; the two answer the same probes alternately, so
that both meet the same noise. The last column is the ratio of the medians.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PROBES = 200
HERE = Path(__file__).resolve().parents[1]
# What is timed, and how often.
ROUNDS = {"mated": 150, "stranger": 60, "32 probes": 20, "filter": 60, "nearest others": 12}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, help="a checkout since the search port (80d8108)")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--pack", help="real embeddings of this pack, with --photos")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("data/evaluation-cache.db"))
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file.name, **vectors_of(options))
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, str(folder), "--serve", file.name],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for folder in (options.before, HERE)
        ]  # fmt: skip
        for process in processes:
            ask(process, None)
    for name, rounds in ROUNDS.items():
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(rounds):
            for which in (0, 1) if number % 2 else (1, 0):
                times[which].append(ask(processes[which], f"{name}|{number}"))
        before, after = (1000 * statistics.median(some) for some in times)
        print(f"{name:10} {before:9.3f} ms {after:9.3f} ms {after / before:6.3f}")
    for process in processes:
        process.communicate()


def ask(process: "subprocess.Popen[str]", question: str | None) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    if question is not None:
        process.stdin.write(question + "\n")
        process.stdin.flush()
    return float(process.stdout.readline())


def serve(options: argparse.Namespace) -> None:
    """Build the gallery with the checkout's code, then answer questions with seconds."""
    sys.path.insert(0, str(options.before.resolve()))
    start = time.perf_counter()
    work = searches(options)
    print(time.perf_counter() - start, flush=True)
    for line in sys.stdin:
        name, number = line.strip().split("|")
        start = time.perf_counter()
        work[name](int(number))
        print(time.perf_counter() - start, flush=True)


def searches(options: argparse.Namespace) -> dict[str, Callable[[int], object]]:
    from app.index.factory import IndexFactory  # noqa: PLC0415 (of the checkout)
    from app.index.port import Position, Templates  # noqa: PLC0415

    held = np.load(options.serve)
    vectors, probes, strangers = held["vectors"], held["mated"], held["strangers"]
    count = len(vectors)

    class Collection:
        key, embedding_space, dimension = 1, "es-benchmark", vectors.shape[1]

    keys = np.arange(1, count + 1)
    allowed = np.sort(np.random.default_rng(0).choice(keys, count // 20, replace=False))
    index = IndexFactory(2).catalog("benchmark").open(Collection())
    parts = [slice(start, start + 8_192) for start in range(0, count, 8_192)]
    index.build((Templates(keys[p], keys[p], vectors[p]) for p in parts), Position(1, "first"))
    index = getattr(index, "searcher", index)  # the tree from before may lack it
    nobody = np.zeros(64, np.int64)
    nearest_others = getattr(index, "nearest_others", None) or index.nearest_impostors  # before
    return {
        "mated": lambda i: index.search_persons(probes[i % PROBES][np.newaxis], 6),
        "stranger": lambda i: index.search_persons(strangers[i % PROBES][np.newaxis], 6),
        "32 probes": lambda i: index.search_persons(probes[i % 5 * 32 :][:32], 6),
        "filter": lambda i: index.search_persons(probes[i % PROBES][np.newaxis], 6, allowed),
        "nearest others": lambda _: nearest_others(probes[:64], nobody, 0.3),
    }


def vectors_of(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """The templates, and 200 probes of enrolled people and of strangers each."""
    generator, count = np.random.default_rng(0), options.count
    if options.pack:
        from embeddings import embed_folder, real_gallery  # noqa: PLC0415 (of this checkout)

        gallery = real_gallery(
            *embed_folder(options.photos, options.pack, options.cache), options.count
        )
        probes = {kind: some[:PROBES] for kind, some in gallery.probes.items()}
        return {"vectors": gallery.templates, **probes}
    vectors = unit(generator.standard_normal((count, options.dimension), np.float32))
    noise = 0.03 * generator.standard_normal((PROBES, options.dimension), np.float32)
    probes = unit(vectors[generator.integers(0, count, PROBES)] + noise)
    strangers = unit(generator.standard_normal((PROBES, options.dimension), np.float32))
    return {"vectors": vectors, "mated": probes, "strangers": strangers}


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    main()
