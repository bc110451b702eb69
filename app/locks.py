"""Named locks, so that a test can record the order in which they are taken.

docs/concurrency.md lists them all: what each protects, and which may be taken under which. Except
in such tests they are plain locks of `threading`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Lock(AbstractContextManager[bool, None], Protocol):
    """The methods of `threading.Lock` that are used."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...

    def locked(self) -> bool: ...


_makers: list[Callable[[str], Lock]] = []


def new_lock(name: str) -> Lock:
    """A lock with that name."""
    return _makers[-1](name) if _makers else threading.Lock()


def new_condition(name: str) -> threading.Condition:
    """A condition whose lock has that name."""
    return threading.Condition(new_lock(name))  # type: ignore[arg-type]


@contextmanager
def made_by(maker: Callable[[str], Lock]) -> Iterator[None]:
    """For tests: until the context ends, `maker` makes all locks from their names."""
    _makers.append(maker)
    try:
        yield
    finally:
        _makers.remove(maker)
