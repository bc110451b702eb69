"""The service's CPU time for a request, of one or more checkouts in turn, without networks.

    python benchmarks/request_cost.py ../before . [--rounds 3] [--templates 100000]

Networks are replaced by waits of 1 ms (standin/sitecustomize.py), so that what is left is HTTP, the
photo's decoding, the search and the database. "loop CPU ms" is the part of the main thread, on
which the event loop runs; CPU time is counted by the scheduler, so that other work on the machine
changes it less than the rates. `--clients` connections in a closed loop, loopback
only. All checkouts serve copies of one data folder of `--templates` random templates. Each photo
waits several times, so photos a second are limited by the threads that analyse them; with more of
these than cores (`--workers`, LIKENESS_WORKERS) the CPU is the limit. With `--embeddings`,
enrollments are of embeddings. Printed are medians over the rounds; "switches" are context switches
of the service's threads.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from contenders import fill, random_directions
from processes import cpu_seconds, family_of, load, service, small_photos

from app.inference.packs import load_pack

IDLE_WITHIN_S = 60
PATHS = ("/v1/embed", "/v1/identify", "/v1/enroll?person_id=p{n}", "/livez")


def measured(
    tree: Path,
    filled: Path,
    bodies: Callable[[str], list[str]],
    options: argparse.Namespace,
    turn: int,
) -> dict[str, dict[str, float]]:
    """Figures of each path, which is sent its `bodies`."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(filled, folder, dirs_exist_ok=True)
        with service("stand-in", 1, tree, folder) as (process, port, _):
            wait_until_idle(process)
            for path in options.paths:
                asked = argparse.Namespace(
                    path=path, clients=options.clients, generators=1, first=turn * 10_000_000
                )
                load(port, bodies(path), asked, 1.5)  # warm up
                asked.first += 5_000_000
                before, loop = cpu_seconds(family_of(process)), main_thread_seconds(process)
                switches = context_switches(family_of(process))
                (answer,) = load(port, bodies(path), asked, options.seconds)
                cpu = cpu_seconds(family_of(process)) - before
                loop = main_thread_seconds(process) - loop
                switches = context_switches(family_of(process)) - switches
                count = max(1, sum(answer["statuses"].values()))
                latencies = np.array(answer["latencies_s"] or [float("nan")]) * 1000
                found[path] = {
                    "CPU ms": cpu * 1000 / count,
                    "loop CPU ms": loop * 1000 / count,
                    "switches": switches / count,
                    "a second": count / answer["spent_s"],
                    "p50 ms": float(np.percentile(latencies, 50)),
                    "p99 ms": float(np.percentile(latencies, 99)),
                    "not 200": count - answer["statuses"].get("200", 0),
                }
    return found


def main_thread_seconds(pid: int) -> float:
    """Seconds of CPU time of a process's main thread."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def wait_until_idle(pid: int) -> None:
    """Wait for what a service does after its start: imports, and codes for its index."""
    deadline = time.monotonic() + IDLE_WITHIN_S
    while time.monotonic() < deadline:
        before = cpu_seconds([pid])
        time.sleep(2)
        if cpu_seconds([pid]) - before <= 0.1:
            return
    raise SystemExit(f"the service was busy without requests for {IDLE_WITHIN_S} s")


def context_switches(pids: Sequence[int]) -> int:
    """How often the threads of processes were taken from a core, or left it; those that exist now,
    so that a thread which ends between two calls makes the difference smaller."""
    statuses = [
        file.read_text() for pid in pids for file in Path(f"/proc/{pid}/task").glob("*/status")
    ]
    lines = [line for status in statuses for line in status.splitlines()]
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


def small_embeddings(folder: Path, pack: str) -> list[str]:
    """JSON bodies with one random embedding each."""
    made = []
    for i, vector in enumerate(random_directions(64, load_pack(pack).recogniser.dimension, 1)):
        made.append(str(folder / f"{i}.json"))
        Path(made[-1]).write_text(json.dumps({"embeddings": [vector.tolist()]}))
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trees", nargs="+", type=Path, help="checkouts to measure in turn")
    parser.add_argument("--paths", nargs="+", default=list(PATHS), help="calls; {n} is a number")
    parser.add_argument("--clients", type=int, default=16, help="connections, each in a loop")
    parser.add_argument("--seconds", type=float, default=4, help="of each call in each round")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each checkout")
    parser.add_argument("--templates", type=int, default=100_000, help="random, in the gallery")
    parser.add_argument("--workers", type=int, help="LIKENESS_WORKERS of the service")
    parser.add_argument(
        "--embeddings", action="store_true", help="enroll embeddings instead of photos"
    )
    parser.add_argument("--pack", default="default", help="whose embedding space the gallery has")
    parser.add_argument(
        "--data", type=Path, help="a data folder to serve copies of, instead of random templates"
    )
    options = parser.parse_args(arguments)
    if options.workers:
        os.environ["LIKENESS_WORKERS"] = str(options.workers)
    found: dict[tuple[str, Path], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        filled, pictures = options.data or Path(folder) / "filled", Path(folder) / "photos"
        pictures.mkdir()
        if options.data is None:
            filled.mkdir()
            wanted = SimpleNamespace(pack=options.pack, templates=options.templates, faces=[])
            fill(filled, wanted)  # type: ignore[arg-type]
        photos = small_photos(pictures)
        enrolled = small_embeddings(pictures, options.pack) if options.embeddings else photos

        def bodies(path: str) -> list[str]:
            return enrolled if path.startswith("/v1/enroll") else photos

        for turn in range(options.rounds):
            for tree in options.trees if turn % 2 == 0 else reversed(options.trees):
                for path, figures in measured(tree, filled, bodies, options, turn).items():
                    found.setdefault((path, tree), []).append(figures)
    for (path, tree), rounds in sorted(found.items(), key=lambda item: item[0][0]):
        medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        print(path, tree, *(f"{name} {value:.4g}" for name, value in medians.items()), sep="  ")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "")
    main()
