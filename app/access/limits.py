"""How much a key may be used: requests and photos a second, requests at a time, photos a day."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

MIN_RATE, MAX_RATE = 0.001, 1e6
MAX_COUNT = 10**12


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits of a key; None: no limit. Rates are averages: the number for one second may
    be sent at once."""

    requests_per_second: float | None = None
    photos_per_second: float | None = None
    concurrent_requests: int | None = None
    photos_per_day: int | None = None

    def __bool__(self) -> bool:
        return self is not UNLIMITED and self != UNLIMITED

    def members(self) -> dict[str, Any]:
        """The limits that there are, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


UNLIMITED = KeyLimits()


def stored_limits(members: dict[str, Any] | None) -> KeyLimits:
    """The limits that a database holds. Those of a newer version are ignored."""
    known = {field.name for field in fields(KeyLimits)}
    return KeyLimits(**{name: value for name, value in (members or {}).items() if name in known})


class TokenBucket:
    """Admits `rate` units a second on average, and at once the number for one second.

    More units than the bucket can hold are admitted when it is full; it is in debt afterwards, so
    that the average rate is kept. Not thread-safe.
    """

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = clock()
        self.rate = rate
        self.capacity = max(1, math.ceil(rate))
        self._level = float(self.capacity)

    @property
    def window_s(self) -> int:
        """Seconds in which an empty bucket becomes full, rounded up."""
        return max(1, math.ceil(self.capacity / self.rate))

    @property
    def state(self) -> tuple[float, float]:
        """What is left, and at which time of the clock."""
        return self._level, self._at

    @state.setter
    def state(self, value: tuple[float, float]) -> None:
        level, self._at = value
        self._level = min(level, self.capacity)

    def change_rate(self, rate: float) -> None:
        """Continue with another rate. What was used counts."""
        self._refill()
        self.rate, self.capacity = rate, max(1, math.ceil(rate))
        self._level = min(self._level, self.capacity)

    def take(self, units: int = 1) -> float:
        """Take units and return 0; if there are not enough, take none and return the seconds until
        there are."""
        self._refill()
        missing = min(units, self.capacity) - self._level
        # A level that is too low by a rounding error must not make the caller wait once more.
        if missing > 1e-9:
            return missing / self.rate
        self._level -= units
        return 0.0

    def remaining(self) -> int:
        """Units that could be taken at once."""
        self._refill()
        return max(0, math.floor(self._level + 1e-9))

    def seconds_to_full(self) -> int:
        """Seconds until the bucket is full, rounded up."""
        self._refill()
        return math.ceil((self.capacity - self._level) / self.rate)

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(self.capacity, self._level + max(0.0, now - self._at) * self.rate)
        self._at = now
