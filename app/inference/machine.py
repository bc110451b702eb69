"""What this process may use of the machine: cores and memory, limited by its container, and file
descriptors: sockets, database connections, index files."""

import math
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.errors import StartupError

CGROUP = Path("/sys/fs/cgroup")
# A line for each hierarchy: its number, its controllers (of version 2 none), and the group.
OWN_GROUPS = Path("/proc/self/cgroup")
# Version 2 and version 1 of control groups.
MEMORY_LIMITS = ("memory.max", "memory.limit_in_bytes")


def usable_cores(cgroup: Path = CGROUP, own: Path = OWN_GROUPS) -> int:
    """Cores this process may run on, at most the CPU quota, rounded up, of its control group and of
    those around it."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = [quota for folder in _folders("cpu", cgroup, own) if (quota := _quota(folder))]
    return max(1, min([allowed or 1, *map(math.ceil, quotas)]))


def _folders(controller: str, cgroup: Path, own: Path) -> Iterator[Path]:
    """Folders that may have the limits of a controller: those of the roots, which are a container's
    own groups, and those on the way to this process's group, as of a unit of systemd."""
    yield from (cgroup, cgroup / controller)
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            folder = cgroup / controller if controllers else cgroup
            for name in Path(group).parts[1:]:
                folder /= name
                yield folder


def _quota(folder: Path) -> float | None:
    """Cores' worth of time: version 2's `cpu.max` or version 1's two files; None if unbound."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max": no bound
        return None
    return cores if cores > 0 else None


def usable_memory(cgroup: Path = CGROUP, own: Path = OWN_GROUPS) -> int:
    """Bytes of the machine's memory, at most the limits of this process's control group and of
    those around it."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _folders("memory", cgroup, own):
        for name in MEMORY_LIMITS:
            with suppress(OSError, ValueError):  # "max": no limit
                found.append(int((folder / name).read_text()))
    return min(found)


# Enough for several hundred clients and the files of the database and the index.
ENOUGH = 1024


@dataclass(frozen=True, slots=True)
class DescriptorLimit:
    """The soft limit, which is in force, and the hard limit, up to which a process may raise it."""

    soft: int
    hard: int

    @classmethod
    def read(cls) -> "DescriptorLimit":
        """The limit of this process."""
        return cls(*resource.getrlimit(resource.RLIMIT_NOFILE))

    def raised(self) -> "DescriptorLimit":
        """Raise the soft limit to the hard one if the system allows it; returns the new limit."""
        with suppress(ValueError, OSError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.hard, self.hard))
        return self.read()

    def require(self, count: int, user: str) -> None:
        """Raises StartupError if `user` cannot have so many files open."""
        if self.soft == resource.RLIM_INFINITY or self.soft >= count:
            return
        raise StartupError(
            f"At most {self.soft} files may be open at a time; {user} needs {count}. Raise the "
            f"hard limit (ulimit -Hn {count}, LimitNOFILE={count} in a systemd unit, --ulimit "
            f"nofile={count} for docker run), or set LIKENESS_WORKERS lower."
        )

    def __str__(self) -> str:
        return f"{_shown(self.soft)}, which serve raises to {_shown(self.hard)}"

    def warning(self) -> str | None:
        """What to do if even the hard limit is too low; None if it is enough."""
        if self.hard == resource.RLIM_INFINITY or self.hard >= ENOUGH:
            return None
        return (
            f"At most {self.hard} files and connections may be open at a time; with many clients "
            f"the service needs up to {ENOUGH}. Raise the hard limit: ulimit -Hn {ENOUGH}, "
            f"LimitNOFILE={ENOUGH} in a systemd unit, or --ulimit nofile={ENOUGH} for docker run."
        )


def _shown(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
