"""Likeness over HTTP against the raw ceiling and against a common deployment of insightface.

    python benchmarks/serve.py --pack PACK --photos FOLDER [--models FOLDER] [--out FOLDER]

Each contender is a process of its own, on the same models and photos, driven by the same generator
in another process (load.py), in turn, round by round; loopback only, bounded in count and time.
Closed loops of 1, 4, 16 and 64 clients, then open loops at 50, 80 and 120 % of the capacity that
was found. `--models` names the folder of det_500m.onnx and w600k_mbf.onnx and brings in the peer;
it is a comparison where PACK has the same two. `--engines` serves the pack by each of several
engines, as openvino:bf16 (LIKENESS_CPU_ENGINE:LIKENESS_CPU_PRECISION), side by side. Prints tables,
writes results.json and a plot.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from embeddings import random_directions
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from stages import environment

from app.faces.loading import build_pipeline
from app.gallery.gallery import Gallery
from app.imaging import ImageLimits
from app.index.factory import IndexFactory
from app.inference.packs import load_pack
from app.settings import Device
from app.store.backends import create_engine
from app.store.records import NewTemplate
from app.store.schema import migrate
from app.store.store import Store

HERE = Path(__file__).resolve().parent
CLIENTS = (1, 4, 16, 64)
OFFERED = (0.5, 0.8, 1.2)
START_S = 120
ALONE = "1x1-shared-1"
CALLS = {
    "embed": "/v1/embed",
    "identify": "/v1/identify",
    "enroll": "/v1/enroll?person_id=p{n}",
}
# Calls that need a gallery of `--templates`.
IN_A_GALLERY = ("identify", "enroll")
console = Console(width=150)


@dataclass(slots=True)
class Contender:
    """A server under load."""

    name: str
    process: psutil.Process
    port: int
    path: str
    engine: str = "–"


@dataclass(slots=True)
class Run:
    """One run of the generator against one contender."""

    contender: str
    engine: str
    load: str
    seconds: float
    answered: int
    statuses: dict[str, int]
    p50_ms: float
    p90_ms: float
    p99_ms: float
    cpu_ms_each: float
    generator_cpu_ms_each: float
    rss_mib: float
    peak_mib: float

    @property
    def rate(self) -> float:
        return self.answered / self.seconds


@dataclass(slots=True)
class Results:
    """All that is written to results.json."""

    environment: dict[str, Any]
    photos: int
    ceilings: dict[str, list[float]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)


def main() -> None:
    options = parse_options()
    photos = pick_photos(options)
    pipeline = build_pipeline(load_pack(options.pack), Device.CPU, ImageLimits())
    results = Results(json.loads(environment(options.pack, pipeline)), len(photos))
    console.print(results.environment, f"{len(photos)} photos")
    best = sweep(options, photos, results)
    with ExitStack() as stack:
        contenders = [
            stack.enter_context(likeness(options, call, engine))
            for call in options.calls
            for engine in options.engines
        ]
        if options.models:
            contenders.append(stack.enter_context(peer(options)))
        closed_loops(options, photos, contenders, results, best)
        if not options.closed_only:
            open_loops(options, photos, contenders[0], results)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(asdict(results), indent=1))
    plot(results, options.out / "throughput.png")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pack", default="default")
    parser.add_argument("--photos", type=Path, required=True, help="a folder, read recursively")
    parser.add_argument("--count", type=int, default=100, help="photos taken from it, at random")
    parser.add_argument("--models", type=Path, help="brings in the peer")
    parser.add_argument("--calls", nargs="+", default=["embed"], choices=list(CALLS))
    parser.add_argument("--engines", nargs="+", default=["auto"], help="ENGINE[:PRECISION]")
    parser.add_argument("--templates", type=int, default=100_000, help="in the gallery before")
    parser.add_argument("--clients", nargs="+", type=int, default=list(CLIENTS))
    parser.add_argument("--seconds", type=float, default=6, help="of one run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--open-seconds", type=float, default=20)
    parser.add_argument("--closed-only", action="store_true")
    parser.add_argument("--processes", default="1", help="LIKENESS_PROCESSES of the service")
    parser.add_argument("--out", type=Path, default=Path("data/benchmarks/serve"))
    return parser.parse_args()


def pick_photos(options: argparse.Namespace) -> list[str]:
    files = sorted(str(file) for file in options.photos.rglob("*.jpg"))
    if not files:
        raise SystemExit(f"There are no .jpg files under {options.photos}.")
    return random.Random(7).sample(files, min(options.count, len(files)))


# --- contenders ------------------------------------------------------------------------------


@contextmanager
def likeness(options: argparse.Namespace, call: str, given: str) -> Iterator[Contender]:
    with tempfile.TemporaryDirectory() as folder:
        if call in IN_A_GALLERY:
            fill(Path(folder), options)
        port = free_port()
        command = [str(Path(sys.executable).with_name("likeness")), "serve", "--port", str(port)]
        settings = {"LIKENESS_PACK": options.pack, "LIKENESS_DATA_DIR": folder,
                    "LIKENESS_PROCESSES": options.processes}  # fmt: skip
        if given != "auto":
            engine, _, precision = given.partition(":")
            settings |= {"LIKENESS_CPU_ENGINE": engine,
                         "LIKENESS_CPU_PRECISION": precision or "auto"}  # fmt: skip
        name = "likeness" if call == "embed" else f"likeness {call}"
        with server(command, settings, f"http://127.0.0.1:{port}/readyz") as process:
            yield Contender(name, process, port, CALLS[call], engine_of(port))


def engine_of(port: int) -> str:
    """What runs the networks, as the service says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30) as answer:
        return str(json.load(answer)["provider"])


@contextmanager
def peer(options: argparse.Namespace) -> Iterator[Contender]:
    port = free_port()
    command = [sys.executable, str(HERE / "peer.py"), "--port", str(port)]
    command += ["--models", str(options.models)]
    with server(command, {}, f"http://127.0.0.1:{port}/livez") as process:
        yield Contender("insightface", process, port, CALLS["embed"])


@contextmanager
def server(command: list[str], settings: dict[str, str], ready: str) -> Iterator[psutil.Process]:
    process = subprocess.Popen(
        command, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(ready, process)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{url} was not ready within {START_S} s (exit code {process.poll()}).")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fill(folder: Path, options: argparse.Namespace) -> None:
    """A gallery of random directions."""
    pack = load_pack(options.pack)
    engine = create_engine(f"sqlite:///{folder / 'likeness.db'}")
    migrate(engine)
    dimension = pack.recogniser.dimension
    gallery = Gallery(
        Store(engine), IndexFactory(1, folder / "index"), pack.embedding_space, dimension
    )
    for start in range(0, options.templates, 1_000):
        vectors = random_directions(min(1_000, options.templates - start), dimension, start)
        new = [NewTemplate(vector, f"{start}-{i}") for i, vector in enumerate(vectors)]
        gallery.enroll("default", f"p{start}", None, new)
    gallery.close()


# --- runs ------------------------------------------------------------------------------------


def sweep(options: argparse.Namespace, photos: list[str], results: Results) -> str:
    """The ceiling's best configuration."""
    reported = ceiling(options, photos, [])
    table = Table("processes x threads - sessions - ONNX Runtime threads", "photos/s",
                  "p50 ms of one", title="raw ceiling: sweep")  # fmt: skip
    for way, (rate, p50_ms) in sorted(reported.items(), key=lambda item: -item[1][0]):
        table.add_row(way, f"{rate:.1f}", f"{p50_ms:.1f}")
        results.ceilings[f"sweep {way}"] = [rate]
    console.print(table)
    return max(reported, key=lambda way: reported[way][0])


def ceiling(
    options: argparse.Namespace, photos: list[str], extra: list[str]
) -> dict[str, tuple[float, float]]:
    """Photos a second and the median milliseconds of one, by configuration."""
    command = [sys.executable, str(HERE / "ceiling.py"), "--pack", options.pack, "--seconds",
               str(options.seconds), *extra, *photos]  # fmt: skip
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    reported: dict[str, tuple[float, float]] = json.loads(answer.stdout)
    return reported


def closed_loops(
    options: argparse.Namespace,
    photos: list[str],
    contenders: list[Contender],
    results: Results,
    best: str,
) -> None:
    for contender in contenders:  # warm up
        drive(contender, photos, {"clients": 4, "seconds": 2}, "warm-up")
    for _ in range(options.rounds):
        reported = ceiling(options, photos, ["--best", best])
        results.ceilings.setdefault(f"best {best}", []).append(reported[best][0])
        alone = ceiling(options, photos, ["--best", ALONE])[ALONE]
        results.ceilings.setdefault("one thread, p50 ms", []).append(alone[1])
        for clients in options.clients:
            for contender in contenders:
                plan = {"clients": clients, "seconds": options.seconds}
                label = f"{clients} clients"
                results.runs.append(drive(contender, photos, plan, label))
    show(results, results.ceilings[f"best {best}"])


def open_loops(
    options: argparse.Namespace, photos: list[str], contender: Contender, results: Results
) -> None:
    key = (contender.name, contender.engine)
    closed = [run for run in results.runs if (run.contender, run.engine) == key]
    capacity = max(
        statistics.median(run.rate for run in closed if run.load == load)
        for load in {run.load for run in closed}
    )
    table = Table("offered", "answered /s", "of capacity", "p50 ms", "p90", "p99", "statuses",
                  "MiB before, after", title=f"{contender.name}: open loop, capacity "
                  f"{capacity:.1f} photos/s")  # fmt: skip
    for share in OFFERED:
        before = contender.process.memory_info().rss / 2**20
        plan = {"rate": capacity * share, "seconds": options.open_seconds}
        run = drive(contender, photos, plan, f"{share:.0%} offered")
        results.runs.append(run)
        table.add_row(
            f"{share:.0%}", f"{run.rate:.1f}", f"{run.rate / capacity:.2f}", f"{run.p50_ms:.0f}",
            f"{run.p90_ms:.0f}", f"{run.p99_ms:.0f}", str(run.statuses),
            f"{before:.0f}, {run.rss_mib:.0f}",
        )  # fmt: skip
    console.print(table)


_sent: Counter[str] = Counter()


def drive(contender: Contender, photos: list[str], plan: dict[str, Any], label: str) -> Run:
    """Run the generator once; numbers of earlier runs are not used again."""
    request = {
        "port": contender.port,
        "path": contender.path,
        "photos": photos,
        "first": _sent[contender.name],
        **plan,
    }
    before = cpu_seconds(contender.process)
    command = [sys.executable, str(HERE / "load.py"), json.dumps(request)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    after = cpu_seconds(contender.process)
    reported = json.loads(answer.stdout)
    latencies = np.array(reported["latencies_s"] or [float("nan")]) * 1000
    sent = sum(reported["statuses"].values())
    _sent[contender.name] += sent
    cpu = (after - before) * 1000
    return Run(
        contender.name,
        contender.engine,
        label,
        reported["spent_s"],
        len(reported["latencies_s"]),
        reported["statuses"],
        *(float(np.percentile(latencies, q)) for q in (50, 90, 99)),
        cpu / max(1, sent),
        reported["generator_cpu_s"] * 1000 / max(1, sent),
        sum(one.memory_info().rss for one in family(contender.process)) / 2**20,
        sum(peak_mib(one.pid) for one in family(contender.process)),
    )


def family(process: psutil.Process) -> list[psutil.Process]:
    """The process and those it has started."""
    return [process, *process.children(recursive=True)]


def cpu_seconds(process: psutil.Process) -> float:
    times = [one.cpu_times() for one in family(process)]
    return sum(one.user + one.system for one in times)


def peak_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


# --- answers ---------------------------------------------------------------------------------


def show(results: Results, ceilings: list[float]) -> None:
    top = statistics.median(ceilings)
    alone = statistics.median(results.ceilings["one thread, p50 ms"])
    table = Table("load", "contender", "engine", "photos/s", "of ceiling", "x peer", "p50 ms",
                  "p90", "p99", "CPU ms a photo", "generator", "peak MiB", "statuses",
                  title=f"closed loop; ceiling {top:.1f}/s, alone {alone:.1f} ms")  # fmt: skip
    for load in dict.fromkeys(run.load for run in results.runs):
        rates = {}
        for key in dict.fromkeys((run.contender, run.engine) for run in results.runs):
            mine = [r for r in results.runs if (r.contender, r.engine, r.load) == (*key, load)]
            rates[key] = middle(mine, "rate")
            statuses: Counter[str] = sum((Counter(run.statuses) for run in mine), Counter())
            table.add_row(
                load, *key, f"{rates[key]:.1f}", f"{rates[key] / top:.2f}",
                ratio_to_peer(results, load, rates[key]),
                *(f"{middle(mine, what):.1f}" for what in ("p50_ms", "p90_ms", "p99_ms")),
                f"{middle(mine, 'cpu_ms_each'):.1f}",
                f"{middle(mine, 'generator_cpu_ms_each'):.2f}",
                f"{max(run.peak_mib for run in mine):.0f}", str(dict(statuses)),
            )  # fmt: skip
    console.print(table)


def ratio_to_peer(results: Results, load: str, rate: float) -> str:
    peers = [r for r in results.runs if (r.contender, r.load) == ("insightface", load)]
    theirs = middle(peers, "rate") if peers else 0
    return f"{rate / theirs:.2f}" if theirs else "–"


def middle(runs: list[Run], key: str) -> float:
    return statistics.median(float(getattr(run, key)) for run in runs)


def plot(results: Results, path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    rate, latency = figure.subplots(1, 2)
    closed = [run for run in results.runs if run.load.endswith("clients")]
    loads = list(dict.fromkeys(run.load for run in closed))
    for key in dict.fromkeys((run.contender, run.engine) for run in closed):
        mine = [[r for r in closed if (r.contender, r.engine, r.load) == (*key, load)]
                for load in loads]  # fmt: skip
        name = ", ".join(key)
        rate.plot(loads, [middle(runs, "rate") for runs in mine], marker="o", label=name)
        latency.plot(loads, [middle(runs, "p99_ms") for runs in mine], marker="o", label=name)
    best = next(v for k, v in results.ceilings.items() if k.startswith("best"))
    rate.axhline(statistics.median(best), linestyle="--", color="grey", label="raw ceiling")
    rate.set(ylabel="photos a second", ylim=(0, None))
    latency.set(ylabel="p99, ms", yscale="log")
    rate.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
