"""A lock that gives one process the right to change a folder that several processes read."""

import os
from collections.abc import Callable
from pathlib import Path

from app.disk import own, private_folder
from app.locks import new_lock

LOCK = "lock"


class Ownership:
    """Held by one process at a time, until it releases it or ends."""

    def __init__(self, folder: Path, acquired: Callable[[], None] = lambda: None) -> None:
        """`acquired` is called when this process becomes the owner, before `own` returns."""
        self._folder = folder
        self._acquired = acquired
        self._descriptor: int | None = None
        self._lock = new_lock("snapshots.owner")

    @property
    def held(self) -> bool:
        """Whether this process is the owner."""
        return self._descriptor is not None

    def own(self) -> bool:
        """Try to become the owner; returns whether this process is the owner."""
        if self.held:
            return True
        with self._lock:
            if self._descriptor is None and (descriptor := self._try()) is not None:
                try:
                    self._acquired()
                except BaseException:
                    os.close(descriptor)
                    raise
                self._descriptor = descriptor
            return self.held

    def _try(self) -> int | None:
        try:
            private_folder(self._folder)
            return own(self._folder / LOCK)
        except OSError:
            return None  # a folder that cannot be written keeps nothing

    def release(self) -> None:
        """Stop being the owner."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
