"""Runs of the generator (`load.py`) against the contenders of `serve.py`, and what they used."""

import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from contenders import HERE, Contender


@dataclass(slots=True)
class Run:
    """One run of the generator against one contender."""

    contender: str
    engine: str
    load: str
    seconds: float
    answered: int
    statuses: dict[str, int]
    p50_ms: float
    p90_ms: float
    p99_ms: float
    cpu_ms_each: float
    generator_cpu_ms_each: float
    rss_mib: float
    peak_mib: float

    @property
    def rate(self) -> float:
        return self.answered / self.seconds


@dataclass(slots=True)
class Results:
    """All that is written to results.json."""

    environment: dict[str, Any]
    photos: int
    ceilings: dict[str, list[float]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)


_sent: Counter[str] = Counter()


def drive(contender: Contender, photos: list[str], plan: dict[str, Any], label: str) -> Run:
    """Run the generator once; numbers of earlier runs are not used again."""
    request = {
        "port": contender.port,
        "path": contender.path,
        "photos": photos,
        "first": _sent[contender.name],
        **plan,
    }
    before = cpu_seconds(contender.process)
    command = [sys.executable, str(HERE / "load.py"), json.dumps(request)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    after = cpu_seconds(contender.process)
    reported = json.loads(answer.stdout)
    latencies = np.array(reported["latencies_s"] or [float("nan")]) * 1000
    sent = sum(reported["statuses"].values())
    _sent[contender.name] += sent
    cpu = (after - before) * 1000
    return Run(
        contender.name,
        contender.engine,
        label,
        reported["spent_s"],
        len(reported["latencies_s"]),
        reported["statuses"],
        *(float(np.percentile(latencies, q)) for q in (50, 90, 99)),
        cpu / max(1, sent),
        reported["generator_cpu_s"] * 1000 / max(1, sent),
        sum(one.memory_info().rss for one in family(contender.process)) / 2**20,
        sum(peak_mib(one.pid) for one in family(contender.process)),
    )


def family(process: psutil.Process) -> list[psutil.Process]:
    """The process and those it has started."""
    return [process, *process.children(recursive=True)]


def cpu_seconds(process: psutil.Process) -> float:
    times = [one.cpu_times() for one in family(process)]
    return sum(one.user + one.system for one in times)


def peak_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def middle(runs: Sequence[Run], key: str) -> float:
    """The median of one figure of several runs."""
    return statistics.median(float(getattr(run, key)) for run in runs)
