"""The real service as a process with few descriptors, in a data folder of its own."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from tests.certificates import make_pair
from tests.hostile.target import Target
from tests.ports import free_port

DESCRIPTORS = 256
# Of address space, most of which is never touched: a runaway allocation fails instead of taking the
# machine. OpenBLAS, ONNX Runtime and thread stacks reserve several GiB.
ADDRESS_SPACE_KIB = int(os.environ.get("LIKENESS_HOSTILE_ADDRESS_GIB", "12")) * 2**20
START_S = 60
STOP_S = 60
IDLE_S = 20
IDLE_PERCENT = 10


def memory_limit() -> str:
    """Which limits of memory the service runs under, for people."""
    space = f"{ADDRESS_SPACE_KIB >> 20} GiB of address space"
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        folder = next((line[3:] for line in groups if line.startswith("0::")), "").lstrip("/")
        most = Path("/sys/fs/cgroup", folder, "memory.max").read_text().strip()
    except OSError:
        return f"{space}; without a memory cgroup, because cgroup v2 sets no limit here"
    return f"{space}; memory cgroup: {most} bytes"


@contextmanager
def running(
    folder: Path, scheme: str = "http", **settings: str
) -> Iterator[tuple[Target, psutil.Process]]:
    """A service until the block ends. Raises RuntimeError where it does not start, does not stop
    within a minute, or logs an error that nobody foresaw."""
    port = free_port()
    pair = make_pair(folder) if scheme == "https" else None
    target = Target(port, folder / "data", pair and pair.certificate)
    environment = {
        **os.environ,
        "LIKENESS_DATA_DIR": str(folder / "data"),
        "LIKENESS_PORT": str(port),
        "LIKENESS_DRAIN_SECONDS": "0",
        **(pair.environment if pair else {}),
        **settings,
    }
    likeness = str(Path(sys.executable).with_name("likeness"))
    limits = f'ulimit -n {DESCRIPTORS} && ulimit -v {ADDRESS_SPACE_KIB} && exec "$@"'
    command = ["sh", "-c", limits, "sh", likeness, "serve"]
    log = folder / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=sink)
    try:
        _wait_until_ready(target, process, log)
        _wait_until_idle(psutil.Process(process.pid))
        yield target, psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RuntimeError(f"It did not stop within {STOP_S} s of SIGTERM") from None
    text = log.read_text()
    if "unexpected error" in text or "Traceback" in text:
        raise RuntimeError("The log has an error that nobody foresaw:\n" + text[-4_000:])


def _wait_until_ready(target: Target, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if target.ask("GET", "/readyz").status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError("The service did not start:\n" + log.read_text()[-4_000:])


def _wait_until_idle(process: psutil.Process) -> None:
    """A second after its start a service imports SciPy, which delays its event loop by up to 70 ms:
    that is no attack's doing. With several processes each does."""
    deadline = time.monotonic() + IDLE_S
    time.sleep(2)
    while time.monotonic() < deadline and _cpu_percent(process) > IDLE_PERCENT:
        pass


def _cpu_percent(process: psutil.Process) -> float:
    """Of one core, in half a second, by a service's processes together."""
    family = [process, *process.children(recursive=True)]
    before = sum(sum(one.cpu_times()[:2]) for one in family)
    time.sleep(0.5)
    return (sum(sum(one.cpu_times()[:2]) for one in family) - before) * 200
