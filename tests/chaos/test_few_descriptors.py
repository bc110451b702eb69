"""The real service with few open files allowed, and more collections than that."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.ports import free_port

pytestmark = pytest.mark.slow
LIKENESS = Path(sys.executable).parent / "likeness"
LIMIT, COLLECTIONS, DIMENSION = 256, 150, 192
UNDER_LIMIT = f'ulimit -n {LIMIT}; exec "$@"'  # the hard limit too: it cannot be raised again


@contextmanager
def service(folder: Path, **settings: str) -> Iterator[tuple[httpx.Client, int]]:
    """A client of a service that is ready, and the service's process id."""
    port = free_port()
    running = subprocess.Popen(
        ["bash", "-c", UNDER_LIMIT, "bash", LIKENESS, "serve", "--port", str(port)],
        env={**os.environ, "LIKENESS_DATA_DIR": str(folder), "LIKENESS_LOG_LEVEL": "ERROR",
             **settings},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            deadline = time.monotonic() + 120
            while not is_ready(client):
                assert running.poll() is None
                assert time.monotonic() < deadline, "the service does not become ready"
                time.sleep(0.05)
            yield client, running.pid
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) in {0, -signal.SIGTERM}


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def direction(number: int) -> list[float]:
    return np.random.default_rng(number).standard_normal(DIMENSION).tolist()


def enroll(client: httpx.Client, collection: str, number: int) -> None:
    body = {"person_id": f"p{number}", "collection": collection, "embeddings": [direction(number)]}
    client.post("/v1/enroll", json=body).raise_for_status()


def use(client: httpx.Client, photo: bytes, numbers: range) -> None:
    """Search, enroll and delete in collections; each has one person more and one less then."""
    for number in numbers:
        name = f"c{number}"
        answer = client.post(
            "/v1/identify", data={"collection": name}, files={"image": photo}
        ).raise_for_status()
        assert answer.json()["faces"][0]["status"] == "unknown"
        enroll(client, name, number + COLLECTIONS)
        person = f"/v1/collections/{name}/persons/p{number}"
        client.delete(person).raise_for_status()
        assert client.get(person).status_code == 404


def metrics(client: httpx.Client) -> dict[str, float]:
    """Those without labels."""
    lines = client.get("/metrics").text.splitlines()
    pairs = [line.split() for line in lines if line.startswith("likeness_") and "{" not in line]
    return {name: float(value) for name, value in pairs}


def test_more_collections_than_descriptors(tmp_path: Path, small_photos: Path) -> None:
    photo = (small_photos / "obama.jpg").read_bytes()
    with service(tmp_path) as (client, pid):
        for number in range(COLLECTIONS):
            client.post("/v1/collections", json={"name": f"c{number}"}).raise_for_status()
            enroll(client, f"c{number}", number)
        use(client, photo, range(20))
        assert metrics(client)["likeness_open_indexes"] == COLLECTIONS
        before = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        assert before < LIMIT / 2
    # Now with room for few indexes, so that they are closed and opened all the time.
    with service(tmp_path, LIKENESS_MAX_INDEX_BYTES="200000") as (client, pid):
        use(client, photo, range(20, COLLECTIONS))
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) < LIMIT / 2
        counts = metrics(client)
        assert counts["likeness_open_indexes"] < 50
        assert counts["likeness_open_index_bytes"] < 400_000
        assert counts["likeness_indexes_closed_total"] > COLLECTIONS // 2
