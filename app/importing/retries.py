"""When an import is tried again after an error that passes: the database is away, a limit of memory
or of open files is reached, the networks start again."""

import errno
import time
from http import HTTPStatus

from app.errors import LikenessError

# Attempts in a row of which none decided a row more than those before it.
MOST_TRIES = 10
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


def passes(error: BaseException | None) -> bool:
    """Whether an error is likely to pass: its status is 503, or no file could be opened because too
    many were open, there or in its cause."""
    while error is not None:
        if isinstance(error, LikenessError) and error.status == HTTPStatus.SERVICE_UNAVAILABLE:
            return True
        if isinstance(error, OSError) and error.errno in NO_DESCRIPTOR:
            return True
        error = error.__cause__
    return False


class Retries:
    """The attempts of this process at the import that it does; another import begins anew."""

    def __init__(self) -> None:
        self._import_id = ""
        self._tries = self._most_rows = 0
        self._again_at = 0.0

    def pause(self, import_id: str, rows: int) -> float | None:
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
