"""A load generator as a process of its own: one event loop, prepared requests, bounded.

    python benchmarks/load.py '{"port": 8000, "path": "/v1/embed", "photos": [...], ...}'

It sends raw image bodies, or JSON from files named `.json`, over kept connections and prints one
JSON object. `clients` ask again as soon as they are answered (closed loop); with `rate`, requests
fall due at random (Poisson) times whether or not others were answered (open loop), and a latency
counts from when one was due.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import uvloop

# Of an open loop that falls behind: what is due beyond it counts as not sent.
MAX_UNDER_WAY = 512
TIMEOUT_S = 120.0


@dataclass(slots=True)
class LoadOutcome:
    """What was answered: statuses, and seconds of those answered with 200."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


class Connection:
    """One kept HTTP/1.1 connection, opened anew after a failure."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> int:
        """Send a request, read its whole answer, return the status; -1 where there was none."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._exchange(request)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            self.close()
            return -1

    async def _exchange(self, request: bytes) -> int:
        # A connection that was idle for long has been closed by the server, as it may be.
        if self._streams and self._streams[0].at_eof():
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        lowered = head.lower()
        start = lowered.index(b"content-length:") + 15
        await reader.readexactly(int(lowered[start : lowered.index(b"\r", start)]))
        if b"connection: close" in lowered:
            self.close()
        return int(head[9:12])

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
        self._streams = None


def prepared(options: dict[str, Any]) -> list[bytes]:
    """A request per file; `{n}` in the path is filled when it is sent. `/livez` takes no file."""
    if options["path"] == "/livez":
        return [b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"]
    requests = []
    for name in options["photos"]:
        body = Path(name).read_bytes()
        kind = "application/json" if name.endswith(".json") else "image/jpeg"
        requests.append(
            f"POST {options['path']} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
    return requests


class Load:
    """The requests of one run, and what became of them."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._port: int = options["port"]
        self._requests = prepared(options)
        self._named = "{n}" in options["path"]
        self._numbers = count(options.get("first", 0))
        self.outcome = LoadOutcome()

    def _next(self) -> bytes:
        number = next(self._numbers)
        request = self._requests[number % len(self._requests)]
        return request.replace(b"{n}", str(number).encode(), 1) if self._named else request

    async def closed(self, clients: int, seconds: float) -> None:
        """Every client asks, waits, and asks again."""
        end = time.perf_counter() + seconds

        async def client() -> None:
            connection = Connection(self._port)
            while (start := time.perf_counter()) < end:
                self._note(await connection.ask(self._next()), start)
            connection.close()

        await asyncio.gather(*(client() for _ in range(clients)))

    async def open(self, rate: float, seconds: float, seed: int) -> None:
        """Requests fall due by themselves."""
        generator = random.Random(seed)
        idle: list[Connection] = []
        under_way: set[asyncio.Task[None]] = set()

        async def one(due: float) -> None:
            connection = idle.pop() if idle else Connection(self._port)
            self._note(await connection.ask(self._next()), due)
            idle.append(connection)

        start = due = time.perf_counter()
        while (due := due + generator.expovariate(rate)) < start + seconds:
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            if len(under_way) >= MAX_UNDER_WAY:
                self.outcome.statuses["not sent"] += 1
                continue
            task = asyncio.create_task(one(due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

    def _note(self, status: int, start: float) -> None:
        self.outcome.statuses[str(status)] += 1
        if status == 200:
            self.outcome.seconds.append(time.perf_counter() - start)


def main() -> None:
    options = json.loads(sys.argv[1])
    load = Load(options)
    start, cpu = time.perf_counter(), time.process_time()
    if "rate" in options:
        work = load.open(options["rate"], options["seconds"], options.get("seed", 1))
    else:
        work = load.closed(options["clients"], options["seconds"])
    uvloop.run(work)
    spent = time.perf_counter() - start
    print(json.dumps({
        "spent_s": spent,
        "generator_cpu_s": time.process_time() - cpu,
        "statuses": load.outcome.statuses,
        "latencies_s": load.outcome.seconds,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
