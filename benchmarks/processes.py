"""How throughput grows with LIKENESS_PROCESSES: one service after another, the same load.

    python benchmarks/processes.py --processes 1 2 4 8 [--networks stand-in real] [--rounds 2]
    python benchmarks/processes.py --networks device --processes 2 4 8      # one process has them

`stand-in`: networks are replaced by waits of 1 ms (standin/sitecustomize.py), so that Python's lock
is the limit, where there are cores enough. `lock`: the same, and decoding a photo also holds
Python's lock for `--lock-ms` while it sleeps, so that the lock is the limit on few cores too. It
models a service whose code holds the lock for so much longer; it says nothing of the cores that it
would need. `gpu`: the real networks on a GPU. `device`: a stand-in for a GPU too, which one process
has (`LIKENESS_DEVICE=cuda`): it runs one batch at a time, in DEVICE_MS and DEVICE_MS_AN_IMAGE more
for each image, and decoding a photo holds a lock of its process for DECODE_MS. So each process that
answers has a limit like Python's lock, without using a core.

Closed loops of `--clients` connections by generators (load.py), loopback only. With `--templates`
each service has a copy of one gallery of so many random templates. Prints rates, percentiles, the
rate of each number of processes as a ratio to the first one, the processor's time for a request,
and how many cores the service and the generators used.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

HERE = Path(__file__).resolve().parent
PHOTOS = HERE.parent / "tests" / "data" / "photos"
SIDE = 250  # of LFW's photos
START_S = 300  # cuDNN compiles plans at the first start of each machine
DEVICE_MS, DEVICE_MS_AN_IMAGE, DECODE_MS = 2.0, 3.0, 50.0
SERVE = "from app.cli import main; main()"


@dataclass(frozen=True, slots=True)
class Run:
    """One load on one service."""

    networks: str
    processes: int
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_ms_each: float
    service_cores: float
    generator_cores: float
    start_s: float
    memory_mib: float
    statuses: dict[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--networks", nargs="+", default=["stand-in", "real"])
    parser.add_argument("--path", default="/v1/embed")
    parser.add_argument("--lock-ms", type=float, default=5, help="of `lock`, for a photo")
    parser.add_argument("--templates", type=int, default=0, help="in the gallery before")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--generators", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument(
        "--slower",
        type=float,
        default=1,
        help="times of `device`, multiplied: for ratios on a busy machine",
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="all runs, as JSON")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {options.clients} clients, {options.path}", flush=True)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        photos = small_photos(Path(folder))
        if options.templates:
            options.filled = filled(Path(folder) / "filled", options.templates)
        for networks in options.networks:
            for turn in range(options.rounds):
                counts = options.processes if turn % 2 == 0 else options.processes[::-1]
                for count in counts:
                    runs.append(measure(networks, count, photos, options))
                    print(runs[-1], flush=True)
            show([run for run in runs if run.networks == networks], options.processes)
    if options.out:
        options.out.write_text(json.dumps([asdict(run) for run in runs], indent=1))


def filled(folder: Path, templates: int) -> Path:
    """A data folder with a gallery of random templates."""
    from contenders import fill  # noqa: PLC0415 (needs what the service does not need)

    folder.mkdir()
    fill(folder, SimpleNamespace(pack="default", templates=templates, faces=[]))  # type: ignore[arg-type]
    return folder


def small_photos(folder: Path) -> list[str]:
    """The repository's own photos, as small as LFW's: they cost little to decode."""
    made = []
    for file in sorted(PHOTOS.glob("*.jpg")):
        image = cv2.imread(str(file))
        side = min(image.shape[:2])
        cut = image[:side, (image.shape[1] - side) // 2 :][:, :side]
        cv2.imwrite(str(folder / file.name), cv2.resize(cut, (SIDE, SIDE)))
        made.append(str(folder / file.name))
    return made


def measure(networks: str, count: int, photos: list[str], options: argparse.Namespace) -> Run:
    with (
        data_folder(options) as data,
        service(networks, count, filled=data, slower=options.slower, lock_ms=options.lock_ms)
        as (process, port, start_s),
    ):  # fmt: skip
        load(port, photos, options, 1.5)  # warm up
        family = family_of(process)
        before = cpu_seconds(family)
        began = time.perf_counter()
        # Other numbers than the warm-up's: `{n}` in the path is a new person's.
        answers = load(port, photos, argparse.Namespace(**vars(options), first=500_000),
                       options.seconds)  # fmt: skip
        spent = time.perf_counter() - began
        cpu = cpu_seconds(family) - before
        memory = sum(pss_mib(one) for one in family)
    latencies = np.array([s for answer in answers for s in answer["latencies_s"]]) * 1000
    answered = max(1, len(latencies))
    p50, p99 = np.percentile(latencies, (50, 99)).tolist() if len(latencies) else (0.0, 0.0)
    return Run(
        networks,
        count,
        answered / statistics.mean(answer["spent_s"] for answer in answers),
        p50,
        p99,
        cpu * 1000 / answered,
        cpu / spent,
        sum(answer["generator_cpu_s"] for answer in answers) / spent,
        start_s,
        memory,
        dict(sum((Counter(answer["statuses"]) for answer in answers), Counter())),
    )


@contextmanager
def data_folder(options: argparse.Namespace) -> Iterator[str]:
    """An empty one, or a copy of the one that was filled."""
    with tempfile.TemporaryDirectory() as folder:
        if options.templates:
            shutil.copytree(options.filled, folder, dirs_exist_ok=True)
        yield folder


@contextmanager
def service(
    networks: str,
    count: int,
    tree: Path = HERE.parent,
    filled: str | None = None,
    *,
    slower: float = 1,
    lock_ms: float = 0,
) -> Iterator[tuple[int, int, float]]:
    """Its process id, its port, and how long it took to start. It serves the data folder `filled`,
    or a new one."""
    port = free_port()
    places = [str(tree.resolve()), os.environ.get("PYTHONPATH", "")]
    stand_in: dict[str, str] = {}
    if networks == "lock":
        stand_in = {"STANDIN_LOCK_MS": str(lock_ms)}
    if networks == "gpu":
        stand_in = {"LIKENESS_DEVICE": "cuda"}
    elif networks != "real":
        places.insert(0, str(HERE / "standin"))
    if networks == "device":
        stand_in = {
            "LIKENESS_DEVICE": "cuda",
            "STANDIN_DEVICE": "cuda",
            "STANDIN_SIZES": "1,8",
            "STANDIN_MS": str(slower * DEVICE_MS),
            "STANDIN_MS_AN_IMAGE": str(slower * DEVICE_MS_AN_IMAGE),
            "STANDIN_DECODE_MS": str(slower * DECODE_MS),
        }
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, places)),
            "LIKENESS_DATA_DIR": filled or folder,
            "LIKENESS_PORT": str(port),
            "LIKENESS_DEVICE": "cpu",
            "LIKENESS_DRAIN_SECONDS": "0",
            "LIKENESS_MAX_PENDING": "512",
            "LIKENESS_PROCESSES": str(count),
            **stand_in,
        }
        if count == 1:  # so that a version without the setting can be measured too
            del environment["LIKENESS_PROCESSES"]
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, "serve"],
            cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_until_ready(port, process)
            yield process.pid, port, time.perf_counter() - began
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"the service was not ready within {START_S} s")


def load(
    port: int, photos: list[str], options: argparse.Namespace, seconds: float
) -> list[dict[str, Any]]:
    started = []
    for number in range(options.generators):
        request = {"port": port, "path": options.path, "photos": photos, "seconds": seconds,
                   "clients": options.clients // options.generators,
                   "first": getattr(options, "first", 0) + number * 1_000_000}  # fmt: skip
        command = [sys.executable, str(HERE / "load.py"), json.dumps(request)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    return [json.loads(one.communicate(timeout=120)[0]) for one in started]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- of processes, from /proc: a machine may have only what the service needs -----------------


def family_of(pid: int) -> list[int]:
    """A process and all that it and they have started."""
    parents = {one: int(fields[1]) for one in running() if (fields := stat(one))}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def running() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def stat(pid: int) -> list[str]:
    """The fields after the name: the state, the parent's id, ...; none if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(family: list[int]) -> float:
    ticks = [int(fields[11]) + int(fields[12]) for one in family if (fields := stat(one))]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def pss_mib(pid: int) -> float:
    """Its memory, shared pages in equal parts."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def show(runs: list[Run], processes: list[int]) -> None:
    first = statistics.median(run.rate for run in runs if run.processes == processes[0])
    for count in processes:
        mine = [run for run in runs if run.processes == count]
        middle = {
            name: statistics.median(getattr(run, name) for run in mine)
            for name in ("rate", "p50_ms", "p99_ms", "cpu_ms_each", "service_cores",
                         "generator_cores", "start_s", "memory_mib")
        }  # fmt: skip
        figures = "  ".join(f"{name} {value:.4g}" for name, value in middle.items())
        print(f"{mine[0].networks}, {count} processes: {middle['rate'] / first:.2f} x  {figures}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
