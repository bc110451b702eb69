"""Likeness over HTTP against the raw ceiling and against a common deployment of insightface.

    python benchmarks/serve.py --pack PACK --photos FOLDER [--models FOLDER] [--out FOLDER]

Each contender is a process of its own, on the same models and photos, driven by the same generator
in another process (load.py), in turn, round by round; loopback only, bounded in count and time.
Closed loops of 1, 4, 16 and 64 clients, then open loops at 50, 80 and 120 % of the capacity that
was found. `--models` names the folder of det_500m.onnx and w600k_mbf.onnx and brings in the peer;
it is a comparison where PACK has the same two. `--engines` serves the pack by each of several
engines, as openvino:bf16 (LIKENESS_CPU_ENGINE:LIKENESS_CPU_PRECISION), side by side, `--more-packs`
brings in other packs and `--before` another checkout with its own environment and default pack.
Prints tables, among them the cost as photos per core-hour, writes results.json and a plot.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from contenders import CALLS, HERE, Contender, Kind, likeness, peer
from load_runs import Results, drive
from rich.table import Table
from serve_tables import console, plot, show, show_cost
from stages import environment

from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.inference.packs import load_pack
from app.settings import Device

CLIENTS = (1, 4, 16, 64)
OFFERED = (0.5, 0.8, 1.2)
ALONE = "1x1-shared-1"
FACES = 300


def main() -> None:
    options = parse_options()
    photos, options.faces = pick_photos(options)
    pipeline = build_pipeline(load_pack(options.pack), Device.CPU, ImageLimits())
    results = Results(json.loads(environment(options.pack, pipeline)), len(photos))
    console.print(results.environment, f"{len(photos)} photos")
    best = sweep(options, photos, results)
    with ExitStack() as stack:
        contenders = [stack.enter_context(likeness(options, kind)) for kind in kinds(options)]
        if options.models:
            contenders.append(stack.enter_context(peer(options)))
        closed_loops(options, photos, contenders, results, best)
        if not options.closed_only:
            open_loops(options, photos, contenders[0], results)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(asdict(results), indent=1))
    plot(results, options.out / "throughput.png")


def kinds(options: argparse.Namespace) -> Iterator[Kind]:
    """The services to be compared."""
    for call in options.calls:
        for pack in (options.pack, *options.more_packs):
            for engine in options.engines:
                yield Kind(call, pack, engine)
        if options.before:
            # The pack that it was published with.
            yield Kind(call, "default", "auto", options.before)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pack", default="default")
    parser.add_argument("--photos", type=Path, required=True, help="a folder, read recursively")
    parser.add_argument("--count", type=int, default=100, help="photos taken from it, at random")
    parser.add_argument("--models", type=Path, help="brings in the peer")
    parser.add_argument("--calls", nargs="+", default=["embed"], choices=list(CALLS))
    parser.add_argument("--engines", nargs="+", default=["auto"], help="ENGINE[:PRECISION]")
    parser.add_argument("--more-packs", nargs="+", default=[], help="served beside --pack")
    parser.add_argument("--before", type=Path, help="a checkout with a .venv: its default pack")
    parser.add_argument("--templates", type=int, default=100_000, help="made-up people")
    parser.add_argument("--clients", nargs="+", type=int, default=list(CLIENTS))
    parser.add_argument("--seconds", type=float, default=6, help="of one run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--open-seconds", type=float, default=20)
    parser.add_argument("--closed-only", action="store_true")
    parser.add_argument("--processes", default="1", help="LIKENESS_PROCESSES of the service")
    parser.add_argument("--out", type=Path, default=Path("data/benchmarks/serve"))
    return parser.parse_args()


def pick_photos(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The photos that are sent, and those of other people (other folders), of which the people of
    the gallery are made."""
    files = sorted(str(file) for file in options.photos.rglob("*.jpg"))
    if not files:
        raise SystemExit(f"There are no .jpg files under {options.photos}.")
    sent = random.Random(7).sample(files, min(options.count, len(files)))
    people = {Path(file).parent for file in sent}
    others = [file for file in files if Path(file).parent not in people]
    return sent, random.Random(7).sample(others, min(FACES, len(others)))


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
    show_cost(results, f"{max(options.clients)} clients")


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


if __name__ == "__main__":
    main()
