"""How late an event loop with many sockets is beside threads that compute in Python, by the
interpreter's switch interval.

    python benchmarks/switch_interval.py [--sockets 40] [--threads 2] [--rounds 6] [--seconds 3]

The intervals take turns. Printed are the medians of each round's median and longest lateness, the
longest of all, and the work of the threads in a second of the process's CPU time. The time in which
other processes had the core does not count as lateness.
"""

import argparse
import asyncio
import os
import signal
import socket
import statistics
import sys
import threading
import time

import uvloop

from app.telemetry.metrics import CoreWait

INTERVALS_S = (0.005, 0.001, 0.0002)
TICK_S = 0.005
SEND_EVERY_S = 0.01


class Echo(asyncio.Protocol):
    """Answers each message after a little work, as a request would."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        sum(range(2000))
        self.transport.write(data)


class Threads:
    """Threads that compute in Python, and count what they did."""

    def __init__(self, count: int) -> None:
        self.done = 0
        for _ in range(count):
            threading.Thread(target=self._compute, daemon=True).start()

    def _compute(self) -> None:
        while True:
            total = 0
            for number in range(2000):
                total += number * number
            self.done += 1


def send(sockets: list[socket.socket]) -> None:
    """Send to all sockets and wait for all answers, again and again."""
    while True:
        for one in sockets:
            one.send(b"x")
        for one in sockets:
            if not one.recv(1):
                return
        time.sleep(SEND_EVERY_S)


async def lateness(seconds: float, core: CoreWait) -> list[float]:
    """By how much the event loop was late, in order."""
    found, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start, waited = time.perf_counter(), core.seconds()
        await asyncio.sleep(TICK_S)
        found.append(time.perf_counter() - start - TICK_S - (core.seconds() - waited))
    return sorted(found)


async def compare(sockets: list[socket.socket], options: argparse.Namespace) -> None:
    """Measure each interval in turn and print the result."""
    loop = asyncio.get_running_loop()
    for one in sockets:
        one.setblocking(False)
        await loop.connect_accepted_socket(Echo, one)
    threads = Threads(options.threads)
    results: dict[float, list[tuple[float, float, float]]] = {one: [] for one in INTERVALS_S}
    with CoreWait() as core:
        for number in range(options.rounds):
            for interval in INTERVALS_S if number % 2 else reversed(INTERVALS_S):
                sys.setswitchinterval(interval)
                done, cpu = threads.done, time.process_time()
                late = await lateness(options.seconds, core)
                work = (threads.done - done) / (time.process_time() - cpu)
                results[interval].append((late[len(late) // 2], late[-1], work))
    for interval, found in results.items():
        middle, longest, work = (statistics.median(column) for column in zip(*found, strict=True))
        print(
            f"{interval * 1000:4.1f} ms: late by {middle * 1000:5.1f} ms, longest "
            f"{longest * 1000:5.1f} (of all {max(one[1] for one in found) * 1000:.1f}); "
            f"work {work:,.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--sockets", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    pairs = [socket.socketpair() for _ in range(options.sockets)]
    ours, theirs = map(list, zip(*pairs, strict=True))
    client = os.fork()
    if client == 0:
        for one in ours:
            one.close()
        send(theirs)
        os._exit(0)
    try:
        uvloop.run(compare(ours, options))
    finally:
        os.kill(client, signal.SIGKILL)
        os.waitpid(client, 0)


if __name__ == "__main__":
    main()
