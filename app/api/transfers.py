"""Limits the bodies and answers that are being transferred at a time.

A client that sends or reads slowly occupies memory and one of a limited number of transfers. When
the limit is reached, the slowest transfer is ended, so slow clients cannot keep others out.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from app.errors import LikenessError, Overloaded, RequestTimeout

# A transfer is not ended before it has lasted this long.
GRACE_S = 2.0
RETRY_AFTER_S = 1


@dataclass(eq=False, slots=True)
class Transfer:
    """One transfer: `moved` bytes so far, and `held` bytes in memory."""

    task: "asyncio.Task[object]"
    since: float = field(default_factory=time.monotonic)
    moved: int = 0
    held: int = 0
    ended_by: LikenessError | None = None

    def rate(self, now: float) -> float:
        """Average bytes per second so far."""
        return self.moved / max(now - self.since, 1e-3)

    def end(self, why: LikenessError) -> None:
        """Cancel the request, which is then answered with `why`."""
        if self.ended_by is None:
            self.ended_by = why
            self.task.cancel()


class Transfers:
    """The transfers of one kind, at most `places` at a time. Together with the bytes that `others`
    returns they may hold `most_bytes` in memory."""

    def __init__(
        self,
        name: str,
        places: int,
        most_bytes: int = 0,
        others: Callable[[], int] = lambda: 0,
        *,
        may_be_ended: bool = True,
    ) -> None:
        self.name = name
        self._may_be_ended = may_be_ended
        self._places = places
        self._most_bytes = most_bytes
        self._others = others
        self._open: set[Transfer] = set()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def held(self) -> int:
        """Bytes in memory for all of them."""
        return sum(one.held for one in self._open)

    @contextmanager
    def open(self) -> Iterator[Transfer]:
        """Begin a transfer, if necessary by ending the slowest. Raises Overloaded if that is too
        young to be ended."""
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
        """Count `count` more bytes in memory; a single transfer may have any number. Raises
        Overloaded if they are too many and no slower transfer can be ended."""
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
        if not self._may_be_ended:
            return False
        now = time.monotonic()
        old = [one for one in self._open if one is not but and now - one.since > GRACE_S]
        if not old:
            return False
        slowest = min(old, key=lambda one: one.rate(now))
        if but is not None and now - but.since > GRACE_S and but.rate(now) < slowest.rate(now):
            return False  # this one is the slowest
        self._open.discard(slowest)
        slowest.end(
            RequestTimeout(
                "Too many transfers were open, and this was the slowest; try again, over a faster "
                "connection if you can.",
                {"retry_after": RETRY_AFTER_S},
            )
        )
        return True

    def _full(self) -> Overloaded:
        return Overloaded(
            f"{len(self._open)} {self.name} are under way already; try again in a moment.",
            {"retry_after": RETRY_AFTER_S},
        )
