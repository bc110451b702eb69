"""Locks that have names, so that a test can watch in which order they are taken.

docs/concurrency.md lists them all: what each protects, and which may be taken under which. Outside
a test that watches, these are the locks of `threading`, at no cost.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Lock(AbstractContextManager[bool, None], Protocol):
    """What is used of a `threading.Lock`."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...

    def locked(self) -> bool: ...


_makers: list[Callable[[str], Lock]] = []


def new_lock(name: str) -> Lock:
    """A lock of that name."""
    return _makers[-1](name) if _makers else threading.Lock()


def new_condition(name: str) -> threading.Condition:
    """A condition over a lock of that name."""
    return threading.Condition(new_lock(name))  # type: ignore[arg-type]


@contextmanager
def made_by(maker: Callable[[str], Lock]) -> Iterator[None]:
    """For tests: locks that are made meanwhile come from `maker`, which is given their names."""
    _makers.append(maker)
    try:
        yield
    finally:
        _makers.remove(maker)
