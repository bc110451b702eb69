"""Ten thousand small collections in one service: start, memory, what it does while nobody asks.

    python benchmarks/many_collections.py --collections 10000 --photo tests/data/photos/obama.jpg

Fills a database with collections of one face each (or takes the one in --folder, which it keeps),
starts `likeness serve` on it, and measures from outside: the time to /readyz, resident memory, open
descriptors and CPU time over ten idle seconds; what a client waits for in a collection that nobody
has asked for yet, and the second time; the same facts once something was enrolled in every
collection, which opens its index; and a restart after that.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import psutil
from embeddings import random_directions
from rich.console import Console
from rich.table import Table

from app.inference.packs import load_pack
from app.store.backends import create_engine
from app.store.records import NewTemplate, PersonEnrollment
from app.store.schema import migrate
from app.store.store import Store

IDLE_S = 10
ASKED = 100  # collections of each kind of call
console = Console(width=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--collections", type=int, default=10_000)
    parser.add_argument("--faces", type=int, default=1, help="in each collection")
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="data folder, kept; filled if it is empty")
    parser.add_argument("--descriptors", type=int, help="limit of open files of the service")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "likeness.db").exists():
            console.print(f"filling: {timed(lambda: fill(folder, options)):.0f} s")
        measure(folder, options)


def fill(folder: Path, options: argparse.Namespace) -> None:
    pack = load_pack("default")
    folder.mkdir(parents=True, exist_ok=True)
    engine = create_engine(f"sqlite:///{folder / 'likeness.db'}")
    migrate(engine)
    store = Store(engine)
    vectors = random_directions(options.collections * options.faces, pack.recogniser.dimension, 0)
    for number in range(options.collections):
        name, first = f"c{number}", number * options.faces
        store.collections.create(name, pack.embedding_space, pack.recogniser.dimension, {})
        mine = vectors[first : first + options.faces]
        new = [NewTemplate(vector, f"{first + i}") for i, vector in enumerate(mine)]
        store.templates.enroll_together(name, [PersonEnrollment("ada", None, new)])
    store.close()


def measure(folder: Path, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as empty, service(Path(empty), options) as (_, _, empty_s):
        pass
    with service(folder, options) as (process, client, ready_s):
        table = Table("", "value", title=f"{options.collections:,} collections of "
                      f"{options.faces} face(s), SQLite")  # fmt: skip
        table.add_row("start to /readyz", f"{ready_s:.1f} s (empty database: {empty_s:.1f} s)")
        facts(table, process, "after the start")
        numbers = iter(range(options.collections))
        searches(table, client, options.photo.read_bytes(), numbers)
        writes(table, client, numbers)
        facts(table, process, "after these calls")
        spent = timed(lambda: enroll_all(client, options))
        table.add_row("enrolled in every collection", f"{spent:.0f} s")
        facts(table, process, "after that")
        stopping = time.perf_counter()
    table.add_row("stop", f"{time.perf_counter() - stopping:.1f} s")
    with service(folder, options) as (process, _, ready_s):
        table.add_row("start again to /readyz", f"{ready_s:.1f} s")
        facts(table, process, "after that start")
    files = [path for path in (folder / "index").rglob("*") if path.is_file()]
    table.add_row("files of snapshots", str(len(files)))
    console.print(table)


@contextmanager
def service(
    folder: Path, options: argparse.Namespace
) -> Iterator[tuple[psutil.Process, httpx.Client, float]]:
    """The running service, a client of it, and the seconds from its start to readiness."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "likeness"), "serve", "--port", str(port)]
    if options.descriptors:
        command = ["bash", "-c", f'ulimit -n {options.descriptors}; exec "$@"', "bash", *command]
    environment = {**os.environ, "LIKENESS_DATA_DIR": str(folder), "LIKENESS_LOG_LEVEL": "ERROR"}
    started = time.perf_counter()
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            while not is_ready(client):
                if running.poll() is not None or time.perf_counter() - started > 600:
                    sys.exit("the service does not become ready")
                time.sleep(0.02)
            ready_s = time.perf_counter() - started
            yield psutil.Process(running.pid), client, ready_s
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(120)


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def facts(table: Table, process: psutil.Process, when: str) -> None:
    """Memory, descriptors, and the CPU time of some seconds without a request."""
    time.sleep(2)  # what follows the last call
    before = process.cpu_times()
    time.sleep(IDLE_S)
    after = process.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    table.add_section()
    table.add_row(f"{when}: resident memory", f"{process.memory_info().rss / 2**20:.0f} MiB")
    table.add_row(f"{when}: open descriptors", str(process.num_fds()))
    table.add_row(f"{when}: CPU while idle", f"{cpu / IDLE_S:.2%} of one core")


def searches(table: Table, client: httpx.Client, photo: bytes, numbers: Iterator[int]) -> None:
    """Of a photo, the first and the second time in a collection."""
    identify(client, photo, "default")
    cold, again = [], []
    for number in (next(numbers) for _ in range(ASKED)):
        work = partial(identify, client, photo, f"c{number}")
        cold.append(timed(work))
        again.append(timed(work))
    row(table, "identify a photo, cold", cold)
    row(table, "identify a photo, again", again)


def identify(client: httpx.Client, photo: bytes, collection: str) -> None:
    client.post(
        "/v1/identify", data={"collection": collection}, files={"image": photo}
    ).raise_for_status()


def writes(table: Table, client: httpx.Client, numbers: Iterator[int]) -> None:
    """Enroll an embedding, delete a person: each in collections of their own."""
    dimension = load_pack("default").recogniser.dimension
    vectors = random_directions(ASKED, dimension, 1).tolist()
    enrolled = [timed(partial(enroll, client, f"c{next(numbers)}", vector)) for vector in vectors]
    row(table, "enrol an embedding, cold", enrolled)
    deleted = [timed(partial(delete, client, f"c{next(numbers)}")) for _ in range(ASKED)]
    row(table, "delete a person, cold", deleted)


def enroll(client: httpx.Client, collection: str, vector: list[float]) -> None:
    body = {"person_id": "bob", "collection": collection, "embeddings": [vector]}
    client.post("/v1/enroll", content=json.dumps(body),
                headers={"content-type": "application/json"}).raise_for_status()  # fmt: skip


def delete(client: httpx.Client, collection: str) -> None:
    client.delete(f"/v1/collections/{collection}/persons/ada").raise_for_status()


def enroll_all(client: httpx.Client, options: argparse.Namespace) -> None:
    (vector,) = random_directions(1, load_pack("default").recogniser.dimension, 2).tolist()
    for number in range(options.collections):
        enroll(client, f"c{number}", vector)


def row(table: Table, name: str, seconds: list[float]) -> None:
    p99 = statistics.quantiles(seconds, n=100)[98]
    table.add_row(name, f"{statistics.median(seconds) * 1000:.1f} ms (p99 {p99 * 1000:.1f})")


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
