"""The rows of an import that are being analysed, or wait for the rows before them."""

from collections import deque
from concurrent.futures import Future

from app.importing.checks import Prepared

# Photos read ahead of each worker: enough to keep it busy while others are stored, few enough to
# stay small in memory; large ones only as many as are needed to keep it busy at all.
AHEAD = 8
AT_LEAST_AHEAD = 2
BYTES_AHEAD = 256 << 20


class RowsInFlight:
    """Rows that are known or being analysed, in their order."""

    def __init__(self, workers: int) -> None:
        """`workers`: photos at work at a time."""
        self._workers = workers
        self._rows: deque[tuple[Prepared | Future[Prepared], int]] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._rows)

    def is_enough(self, rows: int, size: int) -> bool:
        """Whether so many rows, with `size` bytes, keep the workers busy: no more is read ahead."""
        return rows >= self._workers * AHEAD or size > BYTES_AHEAD

    def add(self, one: Prepared | Future[Prepared], size: int) -> None:
        """One more at the end, that holds `size` bytes."""
        self._rows.append((one, size))
        self._bytes += size

    def has_one_to_take(self) -> bool:
        """Whether the first is ready, or so much is under way that it has to be waited for."""
        if not self._rows:
            return False
        first, _ = self._rows[0]
        if not isinstance(first, Future) or first.done():
            return True
        large = self._bytes > BYTES_AHEAD and len(self._rows) > self._workers * AT_LEAST_AHEAD
        return large or len(self._rows) > self._workers * AHEAD

    def take(self) -> Prepared:
        """The first, waited for. Raises what went wrong with it that is no fault of the photo."""
        first, size = self._rows.popleft()
        self._bytes -= size
        return first.result() if isinstance(first, Future) else first
