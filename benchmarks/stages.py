"""Where the time of one photo goes: decode, detect, align, embed, quality; and HTTP around it.

    python benchmarks/stages.py
    python benchmarks/stages.py --url http://127.0.0.1:8000     # a service that is running

Medians over at least 100 runs of one thread, after a warm-up. Photos show one face: a portrait of
the tests and, where the evaluation data is, one of LFW (250 x 250). The service may run another
pack than --pack names: then its row is no part of the pipeline's.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import httpx
from rich.console import Console
from rich.table import Table

from app.errors import LikenessError
from app.faces.loading import build_pipeline
from app.faces.pipeline import FacePipeline
from app.imaging import ImageLimits
from app.inference.packs import load_pack
from app.settings import Device

ROOT = Path(__file__).resolve().parent.parent
PORTRAIT = ROOT / "tests" / "data" / "photos" / "obama.jpg"
LFW_PHOTO = "lfw/images/Abel_Pacheco/Abel_Pacheco_0001.jpg"
MIN_RUNS = 100
WARM_UP = 5


def main() -> None:
    options = parse_options()
    console = Console()
    cv2.setNumThreads(1)  # as one of many inference threads finds it
    try:
        pipeline = build_pipeline(load_pack(options.pack), options.device, ImageLimits())
    except LikenessError as error:
        raise SystemExit(error.detail) from error
    console.print(environment(options.pack, pipeline))
    with httpx.Client(base_url=options.url or "", timeout=60) as client:
        for name, data in read_photos(options.data, console).items():
            stages = time_pipeline(pipeline, data, options.runs)
            over_http = time_http(client, data, options.runs) if options.url else None
            console.print(table(name, pipeline, data, stages, over_http))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the stages of one photo.")
    parser.add_argument("--pack", default="default", help="model pack: a name or a folder")
    parser.add_argument("--device", type=Device, default=Device.CPU, choices=list(Device))
    parser.add_argument("--runs", type=int, default=200, help=f"at least {MIN_RUNS}")
    parser.add_argument("--url", help="a running service, to time POST /v1/embed")
    default = os.environ.get("LIKENESS_EVAL_DATA", ROOT / ".." / "shared" / "data")
    parser.add_argument("--data", type=Path, default=default, help="evaluation data")
    options = parser.parse_args()
    options.runs = max(options.runs, MIN_RUNS)
    return options


def read_photos(data: Path, console: Console) -> dict[str, bytes]:
    """The encoded photos by the name they are shown with."""
    photos = {f"portrait {PORTRAIT.name}": PORTRAIT.read_bytes()}
    lfw = data / LFW_PHOTO
    if lfw.is_file():
        photos[f"LFW {lfw.name}"] = lfw.read_bytes()
    else:
        console.print(f"LFW skipped: there is no {lfw}; set LIKENESS_EVAL_DATA.")
    return photos


def time_pipeline(pipeline: FacePipeline, data: bytes, runs: int) -> dict[str, list[float]]:
    """Milliseconds of each run by stage, and of the whole under "total"."""
    stages: dict[str, list[float]] = {}
    for run in range(-WARM_UP, runs):
        start = time.perf_counter()
        timings = dict(pipeline.analyse(data, max_faces=1).timings_ms)
        timings["total"] = (time.perf_counter() - start) * 1000
        if run >= 0:
            for stage, spent in timings.items():
                stages.setdefault(stage, []).append(spent)
    return stages


def time_http(client: httpx.Client, data: bytes, runs: int) -> list[float]:
    """Milliseconds from the first byte sent to the last received, over one kept connection."""

    def ask() -> None:
        answer = client.post("/v1/embed", files={"image": ("photo.jpg", data, "image/jpeg")})
        if answer.is_error:
            raise SystemExit(f"{answer.url} answers {answer.status_code}: {answer.text}")

    try:
        return [milliseconds(ask) for _ in range(WARM_UP + runs)][WARM_UP:]
    except httpx.TransportError as error:
        raise SystemExit(f"{client.base_url} cannot be reached: {error}") from error


def milliseconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def table(
    name: str,
    pipeline: FacePipeline,
    data: bytes,
    stages: dict[str, list[float]],
    over_http: list[float] | None,
) -> Table:
    """Median, 95th percentile and share of the whole for each stage of one photo."""
    image = pipeline.analyse(data, max_faces=256, embed=False)
    what = f"{name}, {image.width} x {image.height}, {len(image.faces)} face(s)"
    rows = Table("stage", "p50 ms", "p95 ms", "share", title=what)
    whole = statistics.median(stages["total"])
    for stage, spent in stages.items():
        rows.add_row(stage, *figures(spent), f"{statistics.median(spent) / whole:.1%}")
    if over_http:
        share = statistics.median(over_http) / whole
        rows.add_row("POST /v1/embed", *figures(over_http), f"{share:.1%}")
    return rows


def figures(spent: list[float]) -> tuple[str, str]:
    return f"{statistics.median(spent):.2f}", f"{statistics.quantiles(spent, n=20)[-1]:.2f}"


def environment(pack: str, pipeline: FacePipeline) -> str:
    """What the figures were taken with: pack, commit and hardware."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    facts = {
        "pack": pack,
        "provider": pipeline.provider,
        "commit": commit or "none",
        "processor": processor(),
        "cores": os.cpu_count(),
        # Where it is from: its build makes a difference (docs/sizing.md).
        "python": f"{platform.python_version()} of {sys.base_prefix}",
    }
    return json.dumps(facts)


def processor() -> str:
    """The processor's own name where the kernel tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
