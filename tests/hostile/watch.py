"""What is looked at while an attack runs.

The watcher is a process of its own (`python -m tests.hostile.watch PORT PID [CERTIFICATE]`): an
attack keeps the interpreter of its own process busy, and clocks there would measure that. It ends
when its standard input does, and writes what it saw to its standard output, as JSON.
"""

import contextlib
import http.client
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from tests.hostile.target import Target

LIVEZ_EVERY_S = 0.05
MEMORY_EVERY_S = 0.05
HONEST_EVERY_S = 0.5
LAG_EVERY_S = 1.0
NOISE_EVERY_S = 0.02
# A watcher that needs longer to connect and send was kept waiting by the machine. Its connection
# was silent meanwhile, and may be closed for newer ones (docs/adr/0015-http-limits.md): an attack
# opens 80 connections, which suffice, in about this time.
SENT_LATE_S = 0.002
# An honest client retries while the answer asks it to; then it has been refused.
HONEST_WAITS_S = 30.0
MIB = 2**20
# Linux's clock of the CPU time of all threads of a process (clock_getcpuclockid).
PROCESS_CLOCK = 2
LAG = "likeness_event_loop_lag_recent_seconds"


class EncryptedConnection(http.client.HTTPSConnection):
    """Notes when the first message of its TLS handshake was sent."""

    first_sent_at: float | None = None

    def __init__(self, port: int, tls: ssl.SSLContext, timeout: float) -> None:
        super().__init__("127.0.0.1", port, timeout=timeout, context=tls)
        self._tls = tls

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        encrypted = self._tls.wrap_socket(
            self.sock, server_hostname=self.host, do_handshake_on_connect=False
        )
        self.sock = encrypted
        encrypted.settimeout(0)
        with contextlib.suppress(ssl.SSLWantReadError):
            encrypted.do_handshake()
        self.first_sent_at = time.perf_counter()
        encrypted.settimeout(self.timeout)
        encrypted.do_handshake()


@dataclass(slots=True)
class Seen:
    """What was seen of the service. Times in seconds, memory in MiB."""

    livez: list[float] = field(default_factory=list)
    # Seconds of CPU that the service used meanwhile, with all its threads: on a busy machine this,
    # unlike the time, says how much it did before it answered.
    livez_work: list[float] = field(default_factory=list)
    livez_failures: list[str] = field(default_factory=list)
    honest: list[float] = field(default_factory=list)
    honest_failures: list[str] = field(default_factory=list)
    peak_mib: float = 0.0
    lag: float = 0.0
    # How late the watcher itself woke up: what other work on the machine adds to every time.
    noise: float = 0.0


@contextmanager
def watching(target: Target, process: psutil.Process) -> Iterator[Seen]:
    """Look at the service until the block ends; what is yielded is filled then."""
    seen = Seen()
    command = [sys.executable, "-m", __name__, str(target.port), str(process.pid)]
    command += [str(target.certificate)] if target.certificate else []
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
        text=True,
    ) as watcher:
        assert watcher.stdout is not None, "it was asked for"
        if watcher.stdout.readline() != "watching\n":
            raise RuntimeError("The watcher did not start.")
        try:
            yield seen
        finally:
            reported, _ = watcher.communicate("", HONEST_WAITS_S + 20)
            for name, value in json.loads(reported).items():
                setattr(seen, name, value)


class Watcher:
    """Looks at one service while `watch` runs."""

    def __init__(self, target: Target, process: psutil.Process) -> None:
        self.seen = Seen()
        self._target = target
        self._process = process
        # The children that answer, of a service of several processes: those that are there now.
        self._answering = [one.pid for one in process.children()]
        self._over = threading.Event()

    def watch(self, until_over: Callable[[], object]) -> None:
        """Look until the function returns."""
        jobs = [
            (self._livez, LIVEZ_EVERY_S),
            (self._memory, MEMORY_EVERY_S),
            (self._honest, HONEST_EVERY_S),
            (self._lag, LAG_EVERY_S),
            (self._noise, 0.0),
        ]
        threads = [threading.Thread(target=self._repeat, args=job, daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        until_over()
        self._over.set()
        for thread in threads:
            thread.join(HONEST_WAITS_S + 10)
        self._lag()

    def _repeat(self, look: Callable[[], None], pause: float) -> None:
        while not self._over.is_set():
            look()
            self._over.wait(pause)

    def _livez(self) -> None:
        before = self._cpu_seconds()
        self._ask_livez()
        self.seen.livez_work.append(self._cpu_seconds() - before)

    def _cpu_seconds(self) -> float:
        """Of the service's processes so far; 0 where Linux's number of a process's clock is
        unknown."""
        spent = 0.0
        for pid in [self._process.pid, *self._answering]:
            with contextlib.suppress(OSError):
                spent += time.clock_gettime((~pid << 3) | PROCESS_CLOCK)
        return spent

    def _ask_livez(self) -> None:
        start, seen = time.perf_counter(), self.seen
        sent = None
        connection = self._connection()
        try:
            connection.request("GET", "/livez")
            sent = time.perf_counter()
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                seen.livez_failures.append(str(answer.status))
        except (OSError, http.client.HTTPException) as error:
            if isinstance(connection, EncryptedConnection):
                sent = connection.first_sent_at
            late = (sent or time.perf_counter()) - start > SENT_LATE_S
            closed = isinstance(error, ConnectionError | ssl.SSLError)
            if not (closed and late):
                seen.livez_failures.append(repr(error))
        finally:
            seen.livez.append(time.perf_counter() - start)
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        port, tls = self._target.port, self._target.tls
        if tls is None:
            return http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        return EncryptedConnection(port, tls, timeout=10)

    def _get(self, path: str) -> tuple[int, str]:
        """On a connection of its own, by a client that takes next to no time itself."""
        connection = self._connection()
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def _memory(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.seen.peak_mib = max(self.seen.peak_mib, memory_mib(self._process))

    def _honest(self) -> None:
        """Somebody who wants a face detected, and retries where the answer asks for it."""
        start, last = time.perf_counter(), ""
        while time.perf_counter() - start < HONEST_WAITS_S:
            try:
                answer = self._target.post("/v1/detect", self._target.photo, "image/jpeg")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
                last = repr(error)
            else:
                if answer.status_code == 200:
                    self.seen.honest.append(time.perf_counter() - start)
                    return
                last = f"{answer.status_code} {answer.text[:200]}"
                if "retry-after" not in answer.headers:
                    break
            time.sleep(0.2)
        self.seen.honest_failures.append(last)

    def _noise(self) -> None:
        start = time.perf_counter()
        time.sleep(NOISE_EVERY_S)
        self.seen.noise = max(self.seen.noise, time.perf_counter() - start - NOISE_EVERY_S)

    def _lag(self) -> None:
        """The longest time that the event loop was late in the last seconds, by its own measure."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            for line in self._get("/metrics")[1].splitlines():
                if line.startswith(f"{LAG} "):
                    self.seen.lag = max(self.seen.lag, float(line.rsplit(" ", 1)[1]))


def memory_mib(process: psutil.Process) -> float:
    """Resident memory of the service and its children."""
    return total(process, lambda one: one.memory_info().rss) / MIB


def total(process: psutil.Process, of: Callable[[psutil.Process], float]) -> float:
    """A figure of the service's process and of all that it has started, added."""
    found = 0.0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += of(one)
    return found


def main(port: int, pid: int, certificate: Path | None = None) -> None:
    """Watch until the standard input ends."""
    watcher = Watcher(Target(port, Path(), certificate), psutil.Process(pid))
    sys.stdout.write("watching\n")
    sys.stdout.flush()
    watcher.watch(sys.stdin.read)
    sys.stdout.write(json.dumps(asdict(watcher.seen)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:]))
