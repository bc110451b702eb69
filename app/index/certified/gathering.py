"""Does the work of simultaneous callers together: while some calls run, the next are gathered.

A caller begins at once while fewer than the limit run; no call waits for others to join it. Only
callers who would have to wait anyway are put together, and one of them does the work of all.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from app.locks import new_lock

T = TypeVar("T")
# After that a caller does its work alone, beside whatever keeps the others.
PATIENCE_S = 10.0


class _Group(Generic[T]):
    """What is done together: `items` of callers with the same `key`."""

    def __init__(self, key: object, items: Sequence[T]) -> None:
        self.key = key
        self.items = list(items)
        self.turn = threading.Event()
        self.over = threading.Event()
        self.done = False


class Gathering(Generic[T]):
    """Lets `most_running` callers work at a time, each for `most_together` items at most."""

    def __init__(self, most_running: int, most_together: int) -> None:
        self._most_running = most_running
        self._most_together = most_together
        self._lock = new_lock("search.gathering")
        self._running = 0
        self._waiting: deque[_Group[T]] = deque()

    def run(self, key: object, items: Sequence[T], work: Callable[[Sequence[T]], None]) -> None:
        """Do the work of some items, perhaps together with those of callers whose `key` is the same
        object. An item may be worked on twice: where the work of a group failed or took long, each
        caller does its own alone. Raises what that raises."""
        group, leads = self._joined(key, items)
        if leads:
            self._lead(group, work, alone=len(items))
        else:
            group.over.wait(PATIENCE_S)
        if not group.done:
            work(items)

    def _joined(self, key: object, items: Sequence[T]) -> tuple[_Group[T], bool]:
        """The group that the items are in, and whether the caller does its work."""
        with self._lock:
            if self._running < self._most_running:
                self._running += 1
                group = _Group(key, items)
                group.turn.set()
                return group, True
            for group in self._waiting:
                if group.key is key and len(group.items) + len(items) <= self._most_together:
                    group.items += items
                    return group, False
            group = _Group(key, items)
            self._waiting.append(group)
            return group, True

    def _lead(self, group: _Group[T], work: Callable[[Sequence[T]], None], alone: int) -> None:
        if not group.turn.wait(PATIENCE_S):
            with self._lock:
                if group in self._waiting:
                    self._waiting.remove(group)
                    self._running += 1  # beyond the limit
        try:
            work(group.items)
            group.done = True
        except Exception:
            if len(group.items) == alone:
                raise
            # Else each caller tries alone, and raises its own.
        finally:
            group.over.set()
            self._pass_on()

    def _pass_on(self) -> None:
        with self._lock:
            if self._waiting and self._running <= self._most_running:
                self._waiting.popleft().turn.set()
            else:
                self._running -= 1
