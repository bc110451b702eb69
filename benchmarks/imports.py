"""`likeness import` by kind of source: photos a second, peak memory, what was enrolled.

    python benchmarks/imports.py --photos FOLDER_OF_PEOPLE [--people N] [--kinds folder zip ...]

Makes every kind of source of the same photos, then imports each into an empty database with the
command itself. "of ceiling": photos a second against decode, detector and recogniser in a tight
loop on all cores (`benchmarks/ceiling.py`), measured before and after each kind on some of the
photos, as machines that are shared do not stay as fast as they were. `server` sends the folder to a
`likeness serve` of its own, whose imports may use all cores; `uploaded` sends the zip to one in a
single call and times its import (memory: the service without the process that reads). `killed` is
the folder again, with `kill -9` after 20 to 40 seconds four times; its rate is that of all five
runs together, and its gallery must be that of `folder`, which it needs before it.
"""

import argparse
import csv
import io
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from bulk import gallery_digest

LIKENESS = Path(sys.executable).parent / "likeness"
CEILING_PHOTOS, CEILING_SECONDS = 60, "15"

Photos = list[tuple[str, Path]]


def flat(photos: Photos, out: Path) -> list[str]:
    out.mkdir()
    for person, path in photos:
        (out / f"{person}@{path.name}").symlink_to(path.resolve())
    copied = out.with_name("flat-copied")
    shutil.copytree(out, copied)
    return [str(copied), "--pattern", "{person_id}@*.jpg"]


def table(photos: Photos) -> list[dict[str, str]]:
    return [{"person_id": person, "image": f"{person}/{path.name}"} for person, path in photos]


def as_csv(photos: Photos, out: Path) -> list[str]:
    path = out.with_suffix(".csv")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["person_id", "image"])
        writer.writeheader()
        writer.writerows(table(photos))
    return [str(path), "--images", str(photos[0][1].parent.parent)]


def as_jsonl(photos: Photos, out: Path) -> list[str]:
    path = out.with_suffix(".jsonl")
    path.write_text("\n".join(json.dumps(row) for row in table(photos)))
    return [str(path), "--images", str(photos[0][1].parent.parent)]


def as_parquet(photos: Photos, out: Path) -> list[str]:
    path = out.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(table(photos)), path)
    return [str(path), "--images", str(photos[0][1].parent.parent)]


def as_tar(photos: Photos, out: Path, *, sidecars: bool, mode: str, suffix: str) -> list[str]:
    path = out.with_name(f"{out.name}{suffix}")
    with tarfile.open(path, mode) as archive:
        for number, (person, photo) in enumerate(photos):
            if not sidecars:
                archive.add(photo.resolve(), f"{person}/{photo.name}")
                continue
            archive.add(photo.resolve(), f"{number:08d}.jpg")
            said = json.dumps({"person_id": person}).encode()
            info = tarfile.TarInfo(f"{number:08d}.json")
            info.size = len(said)
            archive.addfile(info, io.BytesIO(said))
    return [str(path)]


def as_zip(photos: Photos, out: Path) -> list[str]:
    folder = out.with_name("to-zip")
    for person, photo in photos:
        (folder / person).mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, folder / person)
    return [shutil.make_archive(str(out), "zip", folder)]


SERVER, KILLED, UPLOADED = "server", "killed", "uploaded"
KILLS = 4
KINDS: dict[str, Callable[[Photos, Path], list[str]]] = {
    "folder": lambda photos, _out: [str(photos[0][1].parent.parent)],
    "flat": flat,
    "csv": as_csv,
    "jsonl": as_jsonl,
    "parquet": as_parquet,
    "zip": as_zip,
    UPLOADED: as_zip,
    "tar.gz": lambda p, o: as_tar(p, o, sidecars=False, mode="w:gz", suffix=".tar.gz"),
    KILLED: lambda photos, _out: [str(photos[0][1].parent.parent)],
    SERVER: lambda photos, _out: [str(photos[0][1].parent.parent)],
    "webdataset": lambda p, o: as_tar(p, o, sidecars=True, mode="w", suffix=".tar"),
}


def main() -> None:
    options = _arguments()
    people = sorted(path for path in options.photos.iterdir() if path.is_dir())
    with tempfile.TemporaryDirectory() as folder:
        root = options.photos
        if options.people:
            root = Path(folder) / "people"
            for person in people[: options.people]:
                shutil.copytree(person, root / person.name)
        photos = [
            (path.parent.name, path) for path in sorted(root.glob("*/*")) if path.suffix == ".jpg"
        ]
        print(f"{len(photos)} photos, {os.cpu_count()} cores")
        print(f"{'source':12}{'photos/s':>10}{'of ceiling':>12}{'MiB':>7}  outcome")
        before = _ceiling(photos)
        for kind in options.kinds:
            source = KINDS[kind](photos, Path(folder) / kind.replace(".", "-"))
            data = Path(folder) / f"d-{kind}"
            with _server(data) if kind in (SERVER, UPLOADED) else nullcontext([]) as into:
                spent = _killed(source, data) if kind == KILLED else 0.0
                if kind == UPLOADED:
                    rate, memory, outcome = _uploaded(Path(source[0]), into[1])
                else:
                    rate, memory, outcome = _import([*source, *into], data, spent)
            if kind == KILLED:
                same = gallery_digest(data) == gallery_digest(Path(folder) / "d-folder")
                outcome += f"; the gallery of one run: {same}"
            after = _ceiling(photos)
            ratio = rate / ((before + after) / 2)
            print(f"{kind:12}{rate:10.1f}{ratio:12.2f}{memory:7.0f}  {outcome}", flush=True)
            before = after


@contextmanager
def _server(data: Path) -> Iterator[list[str]]:
    """What sends an import to a service of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ, "LIKENESS_DATA_DIR": str(data), "LIKENESS_IMPORT_WORKERS": str(os.cpu_count())
    }  # fmt: skip
    command = [str(LIKENESS), "serve", "--port", port]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield ["--url", f"http://127.0.0.1:{port}"]
    finally:
        process.terminate()
        process.wait()


def _ceiling(photos: Photos) -> float:
    step = max(1, len(photos) // CEILING_PHOTOS)
    some = [str(path) for _, path in photos[::step][:CEILING_PHOTOS]]
    command = [sys.executable, "benchmarks/ceiling.py", "--pack", "default"]
    command += ["--seconds", CEILING_SECONDS, "--best", f"1x{os.cpu_count()}-own-1", *some]
    environment = {**os.environ, "PYTHONPATH": "."}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    ((rate, _milliseconds),) = json.loads(done.stdout).values()
    return float(rate)


def _killed(source: list[str], data: Path) -> float:
    """The seconds of imports that did not come to their end."""
    environment = {**os.environ, "LIKENESS_DATA_DIR": str(data)}
    moments, started = random.Random(7), time.perf_counter()
    for _ in range(KILLS):
        process = subprocess.Popen(
            [str(LIKENESS), "import", *source], env=environment, stderr=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(20, 40))
        process.kill()
        process.wait()
    return time.perf_counter() - started


def _import(source: list[str], data: Path, before: float) -> tuple[float, float, str]:
    """Photos a second over the whole run of the command and `before`, MiB at its peak, and its
    outcome."""
    environment = {**os.environ, "LIKENESS_DATA_DIR": str(data)}
    command = ["/usr/bin/time", "-v", str(LIKENESS), "import", *source, "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    spent = before + time.perf_counter() - started
    found = json.loads(done.stdout)
    rows = found["enrolled"] + found["skipped"] + found["rejected"]
    peak = re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
    reported = {key: found[key] for key in ("enrolled", "skipped", "rejected", "conflicts")}
    return rows / spent, int(peak.group(1)) / 1024 if peak else 0, str(reported)


def _uploaded(archive: Path, url: str) -> tuple[float, float, str]:
    """The same of a service's own import."""
    imports = f"{url}/v1/collections/default/imports"
    while True:
        try:
            httpx.get(f"{url}/readyz").raise_for_status()
            break
        except httpx.HTTPError:
            time.sleep(0.2)
    headers = {"Content-Type": "application/zip"}
    sent = httpx.post(imports, content=archive.read_bytes(), headers=headers, timeout=600)
    job = sent.raise_for_status().json()
    while job["state"] in ("queued", "running"):
        time.sleep(0.2)
        job = httpx.get(f"{imports}/{job['import_id']}").json()
    began, ended = (datetime.fromisoformat(job[name]) for name in ("started_at", "finished_at"))
    counts = {key: job["counts"][key] for key in ("enrolled", "skipped", "rejected", "conflicts")}
    rows = counts["enrolled"] + counts["skipped"] + counts["rejected"]
    (service,) = [one for one in psutil.Process().children() if "serve" in one.cmdline()]
    return rows / (ended - began).total_seconds(), service.memory_info().rss / 2**20, str(counts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--people", type=int)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
