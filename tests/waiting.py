"""Waiting for what another thread or process does, on a machine of any speed."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Nothing that tests wait for takes a second on an idle machine; a busy one may need many.
PATIENCE_S = 60.0
LOOK_EVERY_S = 0.02


def until(holds: Callable[[], T], seconds: float = PATIENCE_S) -> T:
    """What `holds` returns as soon as that is true. Fails after `seconds` with the last answer."""
    deadline = time.monotonic() + seconds
    while not (answer := holds()):
        assert time.monotonic() < deadline, f"still {answer!r} after {seconds:g} s"
        time.sleep(LOOK_EVERY_S)
    return answer
