"""Archives that are imported by the service: small ones that expand, and large ones that give
nothing."""

import bz2
import gzip
import importlib
import io
import json
import lzma
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from tests.hostile.scenario import attack
from tests.hostile.target import Target

IMPORTS = "/v1/collections/default/imports"
ZIP, TAR, LINES = "application/zip", "application/gzip", "application/x-ndjson"
PARQUET = "application/vnd.apache.parquet"
MIB = 1 << 20
ENDED = ("done", "failed", "cancelled", "stopped")


def send(target: Target, body: bytes, kind: str) -> str:
    answer = target.post(IMPORTS, body, kind)
    target.expect(answer.status_code, 202)
    return f"{IMPORTS}/{answer.json()['import_id']}"


def state(target: Target, url: str) -> str:
    return str(target.ask("GET", url).json()["state"])


@contextmanager
def imported(target: Target, body: bytes, kind: str, seconds: float = 25) -> Iterator[str]:
    """The address of an import that has ended by itself; forgotten afterwards."""
    url = send(target, body, kind)
    target.until(lambda: state(target, url) in ENDED, seconds, "the import ends")
    yield url
    target.ask("DELETE", url)


def zip_of(name: str, content: bytes, method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, content)
    return file.getvalue()


@attack("zip: a photo of 200 MB zeros by bzip2, LZMA, deflate")
def expanding_photos(target: Target) -> int:
    methods = (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED)
    for method in methods:
        body = zip_of("ada/1.jpg", bytes(200 * MIB), method)
        with imported(target, body, ZIP) as url:
            counts = target.ask("GET", url).json()["counts"]
            target.expect(counts["reasons"][0]["reason"], "image_too_large")
    return 3 * len(methods)


@attack("zip: a manifest of 300 MiB zeros and of 300 MiB without a row, by bzip2")
def expanding_manifest(target: Target) -> int:
    empty = b" " * (MIB - 1) + b"\n"
    for line, reason in (
        (bytes(MIB), "is not a table"),
        (empty, "expands to more than"),
    ):  # the limit is 256 MiB
        body = zip_of("manifest.jsonl", line * 300, zipfile.ZIP_BZIP2)
        with imported(target, body, ZIP) as url:
            target.expect(reason in target.ask("GET", url).json()["detail"], True)
    return 6


@attack("tar: a header of 600 MB by gzip, bzip2, xz")
def long_header(target: Target) -> int:
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, 600 * MIB
    head = info.tobuf(tarfile.GNU_FORMAT)
    for compress in (gzip.compress, bz2.compress, lzma.compress):
        with imported(target, compress(head + bytes(8 * MIB)), TAR) as url:
            target.expect("headers have more" in target.ask("GET", url).json()["detail"], True)
    return 9


@attack("tar: 3,000,000 empty members, cancelled")
def empty_members(target: Target) -> int:
    block = tarfile.TarInfo("empty").tobuf(tarfile.GNU_FORMAT)
    url = send(target, gzip.compress(block * 1_000) * 3_000, TAR)
    target.until(lambda: state(target, url) == "running", 10, "it runs")
    time.sleep(1)
    target.ask("DELETE", url)
    target.until(lambda: state(target, url) == "cancelled", 2, "it is cancelled")
    target.ask("DELETE", url)
    return 4


@attack("Parquet: one text of 700 kB in 2,048 rows")
def repeated_text(target: Target) -> int:
    arrow = importlib.import_module("pyarrow")  # an extra
    parquet = importlib.import_module("pyarrow.parquet")
    file = io.BytesIO()
    rows = 2_048
    # Made without the 1.4 GB that it expands to, which would stop this process's own clock.
    text = arrow.DictionaryArray.from_arrays(arrow.array([0] * rows), ["x" * 700_000])
    columns = {"person_id": ["a"] * rows, "image": ["1.jpg"] * rows, "x": text}
    parquet.write_table(arrow.table(columns), file, store_schema=False)
    with imported(target, file.getvalue(), PARQUET, 60) as url:
        target.expect(target.ask("GET", url).json()["counts"]["rejected"], rows)
    return 3


@attack("zip: 150,000 rows that are none, 60 names of 1 MB")
def long_report(target: Target) -> int:
    manifest = zip_of("manifest.jsonl", b"x\n" * 150_000, zipfile.ZIP_DEFLATED)
    with imported(target, manifest, ZIP, 60) as url:
        target.expect(target.ask("GET", url).json()["counts"]["rejected"], 150_000)
        target.expect(len(target.ask("GET", f"{url}/report").content) < 32 * MIB, True)
    rows = [json.dumps({"person_id": "n" * 1_000_000, "image": "i" * 1_000_000})] * 60
    with imported(target, "\n".join(rows).encode(), LINES) as url:
        target.expect(len(target.ask("GET", f"{url}/report").content) < MIB, True)
    return 8


@attack("JSON Lines: numbers, nesting and texts that nobody expects")
def hostile_rows(target: Target) -> int:
    long = "9" * 401
    rows = [
        f'{{"person_id": "a", "embedding": [{long}]}}',
        "[" * 400_000,
        '{"person_id": "\\ud83d", "image": "a.jpg"}',
        '{"person_id": "a", "image": "\\u0000"}',
        f'{{"person_id": {long * 20}, "image": "a.jpg"}}',
        json.dumps({"person_id": "a", "without_face": True, "metadata": {"x": "y" * 100_000}}),
    ]
    with imported(target, "\n".join(rows).encode(), LINES) as url:
        job = target.ask("GET", url).json()
        target.expect((job["state"], job["counts"]["rejected"]), ("done", len(rows)))
    return 3


@attack("the process that reads an archive is killed")
def killed_reader(target: Target) -> int:
    block = tarfile.TarInfo("empty").tobuf(tarfile.GNU_FORMAT)
    url = send(target, gzip.compress(block * 1_000) * 3_000, TAR)
    target.until(lambda: bool(readers(target)), 10, "it is read")
    for one in readers(target):
        one.kill()
    target.until(lambda: state(target, url) == "failed", 5, "it has failed")
    target.expect("SIGKILL" in target.ask("GET", url).json()["detail"], True)
    target.ask("DELETE", url)
    return 4


def readers(target: Target) -> list[psutil.Process]:
    """The processes of this service that read archives."""
    archives = str(target.data_dir / "imports")
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "app.importing.reader" in line and archives in line[-1]:
            found.append(process)
    return found
