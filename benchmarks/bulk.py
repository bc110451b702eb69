"""A large gallery of embeddings: imported from Parquet, killed and taken up again, looked through,
exported and taken back.

    python benchmarks/bulk.py --count 1000000 [--steps import killed hygiene export]

People have two made-up templates each (0.85 similar); a thousandth of them stand under two ids, and
as many have a template that is another's. Each step is the command itself; "MiB" is the most memory
it had in each quarter of its time. `hygiene` says how many of the planted mistakes it found, and
how many findings were wrong.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from embeddings import random_directions, unit

from app.inference.packs import load_pack

LIKENESS = Path(sys.executable).parent / "likeness"
A_PERSON, NOISE, WRONG = 2, 0.42, 1000
ROWS_A_GROUP = 50_000
SAMPLE_EVERY_S = 0.2
STEPS = ("import", "killed", "hygiene", "export")


def main() -> None:
    options = _arguments()
    print(f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}")
    pack = load_pack("default")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        table, data = folder / "people.parquet", folder / "data"
        duplicates, mislabels = _write(table, options.count, pack.recogniser.dimension)
        source = ["import", str(table), "--space", pack.embedding_space, "--json"]
        print(f"{options.count} templates of {pack.recogniser.dimension}, "
              f"{table.stat().st_size >> 20} MiB of Parquet")  # fmt: skip
        print(f"{'step':22}{'seconds':>9}{'rows/s':>9}  MiB by quarter")
        done = _run(source, data)
        _tell("import", done, options.count)
        if "killed" in options.steps:
            killed = folder / "killed"
            times = _killed(source, killed, done.seconds)
            after = _run(source, killed)
            _tell(f"killed {times} times, then", after, options.count)
            print(f"  the gallery of one run: {gallery_digest(killed) == gallery_digest(data)}")
        if "hygiene" in options.steps:
            looked = _run(["hygiene", "--json"], data)
            _tell("hygiene", looked, options.count)
            _tell_findings(json.loads(looked.output), duplicates, mislabels)
        if "export" in options.steps:
            _export(folder, data, options.count)


@dataclass(frozen=True, slots=True)
class Done:
    """One command: how long, MiB in each quarter, and what it printed."""

    seconds: float
    memory: list[int]
    output: str


def _run(command: list[str], data: Path) -> Done:
    started, samples = time.perf_counter(), []
    with tempfile.TemporaryFile("w+") as output:
        process = _start(command, data, output)
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                samples.append(seen.memory_info().rss >> 20)
            except psutil.Error:
                break
            time.sleep(SAMPLE_EVERY_S)
        assert process.wait() == 0, command
        output.seek(0)
        text = output.read()
    quarters = [int(part.max()) for part in np.array_split(np.array(samples), 4) if len(part)]
    return Done(time.perf_counter() - started, quarters, text)


def _start(command: list[str], data: Path, output: object) -> "subprocess.Popen[str]":
    environ = {**os.environ, "LIKENESS_DATA_DIR": str(data)}
    return subprocess.Popen(
        [str(LIKENESS), *command], env=environ, stdout=output, stderr=subprocess.DEVNULL, text=True
    )


def _killed(command: list[str], data: Path, whole: float) -> int:
    """An import, killed at some moments of what it would take."""
    moments, times = random.Random(7), 3
    for _ in range(times):
        process = _start(command, data, subprocess.DEVNULL)
        time.sleep(moments.uniform(0.1, 0.3) * whole + 2)
        process.kill()
        process.wait()
    return times


def gallery_digest(data: Path) -> str:
    """Who has which embeddings, in the order in which they were stored."""
    digest = hashlib.sha256()
    with sqlite3.connect(data / "likeness.db") as connection:
        query = (
            "SELECT persons.person_id, templates.embedding FROM templates "
            "JOIN persons ON persons.id = templates.person ORDER BY templates.id"
        )
        for person_id, embedding in connection.execute(query):
            digest.update(person_id.encode() + embedding)
    return digest.hexdigest()


def _write(path: Path, count: int, dimension: int) -> tuple[set[frozenset[str]], set[str]]:
    """The table; which ids are one person, and which have a template of another."""
    people = count // A_PERSON
    random_people = np.random.default_rng(5).permutation(people)
    wrong = max(1, people // WRONG)
    twice, mislabelled = (
        random_people[: 2 * wrong].reshape(2, -1),
        random_people[2 * wrong :][: 2 * wrong].reshape(2, -1),
    )
    same_as = np.arange(people)
    same_as[twice[1]] = twice[0]
    vector = pa.list_(pa.float32(), dimension)
    schema = pa.schema([("person_id", pa.string()), ("embedding", vector)])
    centres = random_directions(people, dimension, 6)[same_as]
    noise = np.random.default_rng(7)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, people * A_PERSON, ROWS_A_GROUP):
            rows = np.arange(start, min(start + ROWS_A_GROUP, people * A_PERSON))
            # The first template of one is the face of the other; both keep their second.
            shown = rows // A_PERSON
            for mine, theirs in mislabelled.T:
                shown[rows == mine * A_PERSON] = theirs
            made = centres[shown] + noise.standard_normal((len(rows), dimension)) * (
                NOISE / np.sqrt(dimension)
            )
            columns = {
                "person_id": [f"p{row // A_PERSON}" for row in rows],
                "embedding": pa.FixedSizeListArray.from_arrays(
                    pa.array(unit(made).ravel()), dimension
                ),
            }
            writer.write_table(pa.table(columns, schema=schema))
    duplicates = {frozenset((f"p{a}", f"p{b}")) for a, b in twice.T}
    return duplicates, {f"p{mine}" for mine, _ in mislabelled.T}


def _tell(step: str, done: Done, rows: int) -> None:
    print(f"{step:22}{done.seconds:9.1f}{rows / done.seconds:9.0f}  {done.memory}", flush=True)


def _tell_findings(
    found: dict[str, list[dict[str, str]]], duplicates: set[frozenset[str]], wrong: set[str]
) -> None:
    pairs = {frozenset((one["person_id_a"], one["person_id_b"])) for one in found["duplicates"]}
    faces = {one["person_id"] for one in found["mislabels"]}
    for kind, reported, planted in (("duplicates", pairs, duplicates), ("mislabels", faces, wrong)):
        print(
            f"  {kind}: {len(reported & planted)} of {len(planted)}, {len(reported - planted)} "
            "others"
        )


def _export(folder: Path, data: Path, count: int) -> None:
    first, second = folder / "first.parquet", folder / "second.parquet"
    _tell("export", _run(["export", str(first)], data), count)
    back = folder / "back"
    _tell("import of the export", _run(["import", str(first), "--json"], back), count)
    _run(["export", str(second)], back)
    print(f"  exported again, the same file: {first.read_bytes() == second.read_bytes()}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--steps", nargs="*", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--folder", type=Path, help="Where to work; it takes 5 KiB per template.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
