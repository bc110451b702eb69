"""Minutes of mixed traffic: nothing grows, and every request gets an answer that is accounted for.

LIKENESS_SOAK_SECONDS sets how long (60 by default).
"""

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from tests.ports import free_port

pytestmark = pytest.mark.slow
SECONDS = float(os.environ.get("LIKENESS_SOAK_SECONDS", "60"))
CLIENTS = 6
BURST = 48
# After this share of the time caches, arenas and pools have seen every kind of request.
SETTLED = 0.4
ALLOWED_GROWTH_MIB = 40
# Pools begin a thread when all they have are busy, up to their bound; a leak would be hundreds.
ALLOWED_THREADS = 4
# The clients' connections, of which a burst opens as many as it has requests.
ALLOWED_FILES = BURST + 8


@dataclass(slots=True)
class Ledger:
    """What was sent and what came back, by kind."""

    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    left: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the service holds at a moment."""

    memory_mib: float
    threads: int
    files: int


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[str, psutil.Process]]:
    port = free_port()
    command = [str(Path(sys.executable).with_name("likeness")), "serve", "--port", str(port)]
    settings = {"LIKENESS_DATA_DIR": str(tmp_path), "LIKENESS_MAX_PENDING": "32"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").status_code == 200:
                break
        time.sleep(0.2)
    yield url, psutil.Process(process.pid)
    process.terminate()
    assert process.wait(30) in (0, -15)
    text = (tmp_path / "log").read_text()
    assert "unexpected error" not in text
    assert "Traceback" not in text


def test_nothing_grows(
    service: tuple[str, psutil.Process], astronaut: bytes, group_photo: bytes, photos: Path
) -> None:
    url, process = service
    portrait = (photos / "obama.jpg").read_bytes()
    soak = Soak(url, process, [astronaut, group_photo, portrait])
    asyncio.run(soak.run())
    ledger = soak.ledger
    assert ledger.wrong == []
    assert sum(ledger.sent.values()) == sum(ledger.answered.values()) + ledger.left
    assert ledger.left > 0
    assert {status for (kind, status) in ledger.answered if kind == "bad"} <= {415, 422, 503}
    assert all(ledger.sent[kind] for kind in ("embed", "identify", "enroll", "verify", "bad"))
    settled = soak.samples[int(len(soak.samples) * SETTLED) :]
    third = len(settled) // 3
    before, after = settled[:third], settled[-third:]
    assert median(after, "memory_mib") < median(before, "memory_mib") + ALLOWED_GROWTH_MIB
    assert median(after, "threads") <= median(before, "threads") + ALLOWED_THREADS
    assert median(after, "files") <= median(before, "files") + ALLOWED_FILES


def median(samples: list[Sample], name: str) -> float:
    return sorted(float(getattr(sample, name)) for sample in samples)[len(samples) // 2]


class Soak:
    """Clients of every kind against one service."""

    def __init__(self, url: str, process: psutil.Process, photos: list[bytes]) -> None:
        self._url = url
        self._process = process
        self._photos = photos
        self._random = random.Random(11)
        self._end = time.monotonic() + SECONDS
        self.ledger = Ledger()
        self.samples: list[Sample] = []

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=BURST + CLIENTS + 4)
        async with httpx.AsyncClient(base_url=self._url, timeout=120, limits=limits) as client:
            enrolled = await client.post(
                "/v1/enroll", data={"person_id": "collins"}, files={"image": self._photos[0]}
            )
            assert enrolled.status_code == 200
            await asyncio.gather(
                *(self._client(client) for _ in range(CLIENTS)),
                self._leaver(),
                self._bursts(client),
                self._watch(),
            )

    async def _client(self, client: httpx.AsyncClient) -> None:
        kinds = ["embed", "identify", "enroll", "verify", "bad", "batch"]
        while time.monotonic() < self._end:
            await self._ask(client, self._random.choice(kinds))

    async def _ask(self, client: httpx.AsyncClient, kind: str) -> None:
        photo = self._random.choice(self._photos)
        path, data, files = "/v1/" + kind, {}, [("image", photo)]
        if kind == "enroll":
            data = {"person_id": f"p{self._random.randrange(50)}", "face_selection": "largest"}
        elif kind == "verify":
            data = {"person_id": "collins", "face_selection": "largest"}
        elif kind == "batch":
            path, files = "/v1/detect", [("image", photo)] * 6
        elif kind == "bad":
            cut = self._random.randrange(1, len(photo) // 2)
            body = self._random.choice([photo[:cut], self._random.randbytes(2_000), b"GIF89a" * 9])
            path, files = "/v1/embed", [("image", body)]
        self.ledger.sent[kind] += 1
        answer = await client.post(path, data=data, files=files)
        self.ledger.answered[kind, answer.status_code] += 1
        expected = {415, 422, 503} if kind == "bad" else {200, 503}
        if answer.status_code not in expected:
            self.ledger.wrong.append(f"{kind} {answer.status_code} {answer.text[:200]}")
        if answer.status_code == 503:
            if "retry-after" not in answer.headers:
                self.ledger.wrong.append(f"{kind} 503 without Retry-After")
            await asyncio.sleep(0.1)

    async def _bursts(self, client: httpx.AsyncClient) -> None:
        """More at once than the service lets in."""
        while time.monotonic() < self._end:
            await asyncio.sleep(min(7, SECONDS / 4))
            await asyncio.gather(*(self._ask(client, "embed") for _ in range(BURST)))

    async def _leaver(self) -> None:
        """Sends whole calls and hangs up at once."""
        head = (
            f"POST /v1/detect HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n"
            f"content-length: {len(self._photos[1])}\r\n\r\n"
        ).encode()
        url = httpx.URL(self._url)
        while time.monotonic() < self._end:
            _, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(head + self._photos[1])
            await writer.drain()
            await asyncio.sleep(self._random.random() * 0.05)
            writer.close()
            self.ledger.sent["leave"] += 1
            self.ledger.left += 1
            await asyncio.sleep(0.3)

    async def _watch(self) -> None:
        while time.monotonic() < self._end:
            process = self._process
            memory = process.memory_info().rss / 2**20
            self.samples.append(Sample(memory, process.num_threads(), process.num_fds()))
            await asyncio.sleep(0.5)
