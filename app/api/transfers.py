"""Bodies on their way, in or out: how many there may be, and who gives way to others.

A client that sends or reads slowly holds a place and what has come so far. Where all places are
taken, the slowest of them gives way, so that slow clients, however many, keep nobody out.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from app.errors import LikenessError, Overloaded, RequestTimeout

# Before a client can be called slow.
GRACE_S = 2.0
RETRY_AFTER_S = 1


@dataclass(eq=False, slots=True)
class Transfer:
    """One body under way: bytes moved so far, and bytes held for it in memory."""

    task: "asyncio.Task[object]"
    since: float = field(default_factory=time.monotonic)
    moved: int = 0
    held: int = 0
    ended_by: LikenessError | None = None

    def rate(self, now: float) -> float:
        """Bytes a second so far."""
        return self.moved / max(now - self.since, 1e-3)

    def end(self, why: LikenessError) -> None:
        """Cancel the request; `why` says what it is answered."""
        if self.ended_by is None:
            self.ended_by = why
            self.task.cancel()


class Transfers:
    """Places for bodies of one kind; `most_bytes` bounds what they hold together and what `others`
    say they hold."""

    def __init__(
        self, name: str, places: int, most_bytes: int = 0, others: Callable[[], int] = lambda: 0
    ) -> None:
        self.name = name
        self._places = places
        self._most_bytes = most_bytes
        self._others = others
        self._open: set[Transfer] = set()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def held(self) -> int:
        """Bytes held together."""
        return sum(one.held for one in self._open)

    @contextmanager
    def open(self) -> Iterator[Transfer]:
        """Take a place, that of the slowest if need be. Raises Overloaded where there is none."""
        if len(self._open) >= self._places and not self._end_slowest():
            raise self._full()
        task = asyncio.current_task()
        assert task is not None, "requests are tasks"
        transfer = Transfer(task)
        self._open.add(transfer)
        try:
            yield transfer
        finally:
            self._open.discard(transfer)

    def hold(self, transfer: Transfer, count: int) -> None:
        """Keep `count` more bytes of it; a single one may have any number. Raises Overloaded where
        they are too many, and no slower one gives way."""
        transfer.held += count
        while self._most_bytes < (together := self.held + self._others()):
            if together == transfer.held:
                return
            if not self._end_slowest(but=transfer):
                raise self._full()

    def end_all(self, why: LikenessError) -> None:
        """End every one."""
        for transfer in list(self._open):
            transfer.end(why)

    def _end_slowest(self, but: Transfer | None = None) -> bool:
        now = time.monotonic()
        old = [one for one in self._open if one is not but and now - one.since > GRACE_S]
        if not old:
            return False
        slowest = min(old, key=lambda one: one.rate(now))
        if but is not None and now - but.since > GRACE_S and but.rate(now) < slowest.rate(now):
            return False  # it is the slowest itself
        self._open.discard(slowest)
        slowest.end(
            RequestTimeout(
                "The connection was slower than all others, and its place was needed; try again.",
                {"retry_after": RETRY_AFTER_S},
            )
        )
        return True

    def _full(self) -> Overloaded:
        return Overloaded(
            f"{len(self._open)} {self.name} are under way already; try again in a moment.",
            {"retry_after": RETRY_AFTER_S},
        )
