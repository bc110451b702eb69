"""A lock of a thread that also keeps the other processes out."""

import os
from pathlib import Path
from types import TracebackType

from app.disk import own
from app.locks import Lock


class OneProcessLock:
    """`app.locks.Lock`, never waited for: a caller that finds it taken does something else.
    Released when its process ends."""

    def __init__(self, lock: Lock, path: Path) -> None:
        """`path`: the file that is locked, in a folder that all processes share. Where it cannot
        be created, only other threads of this process are kept out."""
        self._lock = lock
        self._path = path
        self._file: int | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; `blocking` is for the threads of this process."""
        if not self._lock.acquire(blocking, timeout):
            return False
        try:
            self._file = own(self._path)
        except OSError:
            return True
        if self._file is None:
            self._lock.release()
            return False
        return True

    def release(self) -> None:
        """Give it back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._lock.release()

    def locked(self) -> bool:
        """Whether a thread of this process has it."""
        return self._lock.locked()

    def __enter__(self) -> bool:
        if not self.acquire():
            raise BlockingIOError("another process has the lock")
        return True

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.release()
