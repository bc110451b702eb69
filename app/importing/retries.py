"""When an import is tried again after a temporary error: the database is away, memory or open files
have run out, the networks start again."""

import time
from http import HTTPStatus

from app.disk import SCARCE
from app.errors import LikenessError

# Attempts in a row that got no further than those before.
MOST_TRIES = 10
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


def is_temporary(error: BaseException | None) -> bool:
    """Whether the same work may succeed later: the error's status is 503, or memory or open files
    had run out, there or in its cause."""
    while error is not None:
        if isinstance(error, LikenessError) and error.status == HTTPStatus.SERVICE_UNAVAILABLE:
            return True
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in SCARCE):
            return True
        error = error.__cause__
    return False


def described(error: BaseException) -> str:
    """A temporary error as a sentence, without paths."""
    if isinstance(error, LikenessError):
        return error.detail
    return f"{(isinstance(error, OSError) and error.strerror) or 'Out of memory'}."


class Retries:
    """The attempts of this process at the import that it does; another import begins anew."""

    def __init__(self) -> None:
        self._import_id = ""
        self._tries = self._most_rows = 0
        self._again_at = 0.0

    def after_attempt(self, import_id: str, rows: int) -> float | None:
        """Seconds until an import is tried again, after an attempt that decided that many rows;
        None if it was tried often enough."""
        if import_id != self._import_id:
            self._import_id, self._tries, self._most_rows = import_id, 0, 0
        if rows > self._most_rows:
            self._tries, self._most_rows = 0, rows
        self._tries += 1
        if self._tries >= MOST_TRIES:
            return None
        pause = min(FIRST_PAUSE_S * 2.0 ** (self._tries - 1), LONGEST_PAUSE_S)
        self._again_at = time.monotonic() + pause
        return pause

    def is_of(self, import_id: str) -> bool:
        """Whether the last attempt that ended by such an error was at that import."""
        return import_id == self._import_id

    def waits(self, import_id: str) -> bool:
        """Whether the pause of that import is not over yet."""
        return import_id == self._import_id and time.monotonic() < self._again_at
