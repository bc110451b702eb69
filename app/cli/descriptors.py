"""The limit of open file descriptors: sockets, database connections, index files."""

import resource
from contextlib import suppress
from dataclasses import dataclass

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
