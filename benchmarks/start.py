"""How long the service takes to start, of one or more checkouts in turn.

    python benchmarks/start.py ../before . [--processes 1 4] [--rounds 5]

From the start of `likeness serve` until `/readyz` answers 200: seconds, and the CPU seconds that
all its processes have used by then, which other work on the machine changes less. With a new data
folder (the database is made and migrated) and with one that has been served before. Medians of
rounds in which the checkouts take turns, after one that is not counted.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from processes import SERVE, cpu_seconds, family_of, free_port, pss_mib

DEADLINE_S = 60
READY = b"GET /readyz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"


def started(tree: Path, folder: str, processes: int, compiled: str) -> dict[str, float]:
    """Figures of one start."""
    port = free_port()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tree.resolve()), os.environ.get("PYTHONPATH", "")]),
        "PYTHONPYCACHEPREFIX": compiled,  # as an installed package has compiled modules
        "PYTHONDONTWRITEBYTECODE": "",
        "LIKENESS_DATA_DIR": folder,
        "LIKENESS_PORT": str(port),
        "LIKENESS_DEVICE": "cpu",
        "LIKENESS_DRAIN_SECONDS": "0",
        "LIKENESS_PROCESSES": str(processes),
    }
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve"], cwd=tree, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not ready(port):
            if process.poll() is not None or time.perf_counter() - began > DEADLINE_S:
                raise SystemExit(f"{tree} was not ready (exit code {process.returncode}).")
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        family = family_of(process.pid)
        return {
            "ready after s": seconds,
            "CPU s": cpu_seconds(family),
            "MiB": sum(pss_mib(one) for one in family),
        }
    finally:
        process.terminate()
        process.wait(30)


def ready(port: int) -> bool:
    """Whether `/readyz` answers 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as asked:
            asked.sendall(READY)
            return asked.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trees", nargs="+", type=Path)
    parser.add_argument("--processes", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    found: dict[tuple[int, str, Path], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as compiled:
        for turn in range(options.rounds + 1):
            for count in options.processes:
                for tree in options.trees if turn % 2 == 0 else reversed(options.trees):
                    with tempfile.TemporaryDirectory() as folder:
                        for data in ("new data", "old data"):
                            figures = started(tree, folder, count, compiled)
                            if turn:  # the first one compiles
                                found.setdefault((count, data, tree), []).append(figures)
    for (count, data, tree), rounds in sorted(found.items(), key=lambda item: item[0][:2]):
        medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        print(f"{count} processes, {data}", tree,
              *(f"{name} {value:.3g}" for name, value in medians.items()), sep="  ")  # fmt: skip


if __name__ == "__main__":
    main()
