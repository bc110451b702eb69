"""One attack from beginning to verdict."""

import os
import time
from dataclasses import dataclass, field

import psutil

from app.telemetry.metrics import RECENT_S
from tests.hostile.scenario import Attack
from tests.hostile.target import Target, Unexpected
from tests.hostile.watch import Seen, memory_mib, total, watching

LIVEZ_S = float(os.environ.get("LIKENESS_HOSTILE_LIVEZ_MS", "250")) / 1000
LAG_S = float(os.environ.get("LIKENESS_HOSTILE_LAG_MS", "50")) / 1000
# SECURITY.md and docs/sizing.md state it (test_documents.py compares).
STATED_GIB = 3
RSS_MIB = float(os.environ.get("LIKENESS_HOSTILE_RSS_MIB", STATED_GIB * 1024))
# What docs/sizing.md states of each further process.
PROCESS_MIB = 310.0
IDLE_AFTER_S = 10.0
# The next three are for each process that answers.
# Pools keep threads and connections to the database that an attack made them begin.
IDLE_DESCRIPTORS = 16
IDLE_CPU = 0.3
# Allocators keep what they may need again.
IDLE_MEMORY_MIB = 400.0


@dataclass(slots=True)
class Verdict:
    """What became of one attack."""

    attack: str
    requests: int = 0
    seconds: float = 0.0
    seen: Seen = field(default_factory=Seen)
    faults: list[str] = field(default_factory=list)

    @property
    def livez(self) -> float:
        """The slowest answer, seconds."""
        return max(self.seen.livez, default=0.0)

    @property
    def livez_work(self) -> float:
        """The most CPU time, seconds, that the service used before one of those answers."""
        return max(self.seen.livez_work, default=0.0)


@dataclass(frozen=True, slots=True)
class Idle:
    """What the service holds when nobody asks anything."""

    descriptors: float
    memory_mib: float
    cpu_s: float


def look(process: psutil.Process) -> Idle:
    """What it holds now."""
    return Idle(
        total(process, lambda one: one.num_fds()),
        memory_mib(process),
        total(process, lambda one: sum(one.cpu_times()[:2])),
    )


def run(attack: Attack, target: Target, process: psutil.Process) -> Verdict:
    """Attack, watch, and wait until it is over."""
    verdict = Verdict(attack.name)
    _settle(target)
    before, start = look(process), time.monotonic()
    with watching(target, process) as verdict.seen:
        try:
            verdict.requests = attack.run(target)
        except Unexpected as error:
            verdict.faults.append(str(error))
        verdict.seconds = time.monotonic() - start
        time.sleep(1.0)  # what an attack leaves behind is part of it
    verdict.faults += _faults(verdict, attack, processes_of(process))
    verdict.faults += _left_over(target, process, before)
    return verdict


def _settle(target: Target) -> None:
    """Wait until the lag of what was before is no longer among the recent ones."""
    deadline = time.monotonic() + RECENT_S + 1
    while target.metric("likeness_event_loop_lag_recent_seconds") > LAG_S / 2:
        if time.monotonic() > deadline:
            return
        time.sleep(0.5)


def processes_of(process: psutil.Process) -> int:
    """How many processes answer: the children of a parent, or the one itself."""
    return max(1, len(process.children()))


def _faults(verdict: Verdict, attack: Attack, processes: int) -> list[str]:
    seen, most = verdict.seen, RSS_MIB + PROCESS_MIB * (processes - 1) + attack.more_memory_mib
    faults = []
    if seen.livez_failures:
        faults.append(f"/livez failed {len(seen.livez_failures)}x: {seen.livez_failures[0]}")
    if verdict.livez > LIVEZ_S:
        faults.append(f"/livez took {verdict.livez * 1000:.0f} ms")
    if seen.lag > LAG_S:
        faults.append(f"the event loop was {seen.lag * 1000:.0f} ms late")
    if seen.honest_failures or not seen.honest:
        faults.append(f"honest calls failed: {(seen.honest_failures or ['none was made'])[0]}")
    if seen.peak_mib > most:
        faults.append(f"{seen.peak_mib:.0f} MiB, more than {most:.0f}")
    return faults


def _left_over(target: Target, process: psutil.Process, before: Idle) -> list[str]:
    """What there still is 10 s after an attack, or earlier where all is well earlier."""
    deadline = time.monotonic() + IDLE_AFTER_S
    while True:
        faults = _busy(target, process, before)
        if not faults or time.monotonic() > deadline:
            return faults
        time.sleep(0.5)


def _busy(target: Target, process: psutil.Process, before: Idle) -> list[str]:
    faults: list[str] = []
    count = processes_of(process)
    earlier = look(process)
    time.sleep(0.5)
    now = look(process)
    load = (now.cpu_s - earlier.cpu_s) / 0.5
    pending = target.metric("likeness_pending_requests ")
    if pending:
        faults.append(f"{pending:.0f} requests still under way")
    if now.descriptors > before.descriptors + IDLE_DESCRIPTORS * count:
        faults.append(f"{now.descriptors:.0f} descriptors, {before.descriptors:.0f} before")
    if now.memory_mib > before.memory_mib + IDLE_MEMORY_MIB * count:
        faults.append(f"{now.memory_mib:.0f} MiB kept, {before.memory_mib:.0f} before")
    if load > IDLE_CPU * count:
        faults.append(f"{load:.0%} of a core busy")
    return faults
