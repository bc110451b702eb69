"""What is looked at while an attack runs."""

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from tests.hostile.target import Target

LIVEZ_EVERY_S = 0.05
MEMORY_EVERY_S = 0.05
HONEST_EVERY_S = 0.5
LAG_EVERY_S = 1.0
# An honest client asks again while it is told to; then it has been refused.
HONEST_WAITS_S = 30.0
MIB = 2**20


@dataclass(slots=True)
class Seen:
    """What was seen of the service. Times in seconds, memory in MiB."""

    livez: list[float] = field(default_factory=list)
    livez_failures: list[str] = field(default_factory=list)
    honest: list[float] = field(default_factory=list)
    honest_failures: list[str] = field(default_factory=list)
    peak_mib: float = 0.0
    lag: float = 0.0


@contextmanager
def watching(target: Target, process: psutil.Process) -> Iterator[Seen]:
    """Look at the service until the block ends."""
    seen, over = Seen(), threading.Event()
    jobs: list[tuple[Callable[[], None], float]] = [
        (lambda: _livez(target, seen), LIVEZ_EVERY_S),
        (lambda: _memory(process, seen), MEMORY_EVERY_S),
        (lambda: _honest(target, seen, over), HONEST_EVERY_S),
        (lambda: _lag(target, seen), LAG_EVERY_S),
    ]

    def repeat(look: Callable[[], None], pause: float) -> None:
        while not over.is_set():
            look()
            over.wait(pause)

    threads = [threading.Thread(target=repeat, args=job, daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join(HONEST_WAITS_S + 10)
        _lag(target, seen)


def _livez(target: Target, seen: Seen) -> None:
    start = time.perf_counter()
    try:
        status = _get(target, "/livez", timeout=10)[0]
        seen.livez.append(time.perf_counter() - start)
        if status != 200:
            seen.livez_failures.append(str(status))
    except (OSError, http.client.HTTPException) as error:
        seen.livez.append(time.perf_counter() - start)
        seen.livez_failures.append(repr(error))


def _get(target: Target, path: str, timeout: float) -> tuple[int, str]:
    """On a connection of its own, by a client that takes next to no time itself."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def memory_mib(process: psutil.Process) -> float:
    """Resident memory of the service and its children."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total / MIB


def _memory(process: psutil.Process, seen: Seen) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        seen.peak_mib = max(seen.peak_mib, memory_mib(process))


def _honest(target: Target, seen: Seen, over: threading.Event) -> None:
    """Somebody who wants a face detected, and asks again where told to."""
    start, last = time.perf_counter(), ""
    while time.perf_counter() - start < HONEST_WAITS_S:
        try:
            answer = target.post("/v1/detect", target.photo, "image/jpeg")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
            last = repr(error)
        else:
            if answer.status_code == 200:
                seen.honest.append(time.perf_counter() - start)
                return
            last = f"{answer.status_code} {answer.text[:200]}"
            if "retry-after" not in answer.headers:
                break
        time.sleep(0.2)
    seen.honest_failures.append(last)


def _lag(target: Target, seen: Seen) -> None:
    """The longest time that the event loop was late in the last seconds, by its own measure."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        for line in _get(target, "/metrics", timeout=10)[1].splitlines():
            if line.startswith("likeness_event_loop_lag_recent_seconds "):
                seen.lag = max(seen.lag, float(line.rsplit(" ", 1)[1]))
