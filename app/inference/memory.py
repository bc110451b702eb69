"""The memory that this process may use: the machine's, limited by its container."""

import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
# Version 2 and version 1 of control groups.
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def usable_memory(cgroup: Path = CGROUP) -> int:
    """Bytes of the machine's memory, at most its control group's limit."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in LIMITS:
        with suppress(OSError, ValueError):  # "max": no limit
            found.append(int((cgroup / name).read_text()))
    return min(found)
