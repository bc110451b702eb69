"""A clock for times that also pass while the machine is suspended."""

import time

# Linux has a clock of its own for this, because its monotonic one stands still meanwhile.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def seconds() -> float:
    """Seconds from an unknown start. The clock cannot be set, and runs during a suspension."""
    return time.clock_gettime(_CLOCK)
