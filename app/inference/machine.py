"""What this process may use of the machine: cores and memory, limited by its container."""

import math
import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
# Version 2 and version 1 of control groups.
MEMORY_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores this process may run on, at most its control group's CPU quota rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _quota(cgroup)
    return max(1, min(allowed or 1, math.ceil(quota) if quota else allowed or 1))


def _quota(cgroup: Path) -> float | None:
    """Cores' worth of time: version 2's `cpu.max` or version 1's two files; None if unbound."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max": no bound
        return None
    return cores if cores > 0 else None


def usable_memory(cgroup: Path = CGROUP) -> int:
    """Bytes of the machine's memory, at most its control group's limit."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # "max": no limit
            found.append(int((cgroup / name).read_text()))
    return min(found)
