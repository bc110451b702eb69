"""How much an archive may expand to: a few compressed bytes may stand for terabytes, which take
days to read."""

import io
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, TypeVar, cast

from app.importing.source_rows import ImportSourceError

T = TypeVar("T")

# Bytes that may be read from an archive, as a multiple of its own: photos hardly compress, tables
# of embeddings to a third. A small archive may expand to more.
MAX_EXPANSION = 100
LEAST_EXPANDED = 256 << 20
# Long rows with the same metadata compress further. So a row of a table counts as this many bytes
# at most. That holds for as many rows as the archive can have: one that repeats another one except
# for its id has three compressed bytes.
COUNTED_ROW = 256
LEAST_ROW = 3
# The average length up to which that holds; metadata have 16 KiB at most, an embedding some 6 KiB.
LONG_ROW = 32 << 10
PIECE = 1 << 16


class Budget:
    """The decompressed bytes that may still be read from an archive in one pass."""

    def __init__(self, name: str, size: int | None) -> None:
        """`size`: the bytes of the archive; None for a stream, of which any number may be read."""
        self._name = name
        self._size = size
        self._read = 0
        self._of_table = 0
        self._rows = 0

    def take(self, count: int) -> None:
        """Count bytes that are read. Raises ImportSourceError if they are too many."""
        self._read += count
        self.check()

    def table(self, file: BinaryIO) -> BinaryIO:
        """The archive's table, whose bytes are counted as they are read; `rows` gives its rows."""
        return io.BufferedReader(_Counted(file, self), PIECE)

    def take_of_table(self, count: int) -> None:
        """The same as `take`, for bytes of the table."""
        self._of_table += count
        self.check()

    def rows(self, rows: Iterable[T]) -> Iterator[T]:
        """The rows of the table, counted as they are given."""
        for row in rows:
            self._rows += 1
            self.check()
            yield row

    def check(self) -> None:
        """Raise ImportSourceError if too many were read: that is the fault of no single row."""
        if self._size is None:
            return
        most = max(MAX_EXPANSION * self._size, LEAST_EXPANDED)
        of_rows = min(self._of_table, min(self._rows, self._size // LEAST_ROW) * LONG_ROW)
        spared = of_rows - min(of_rows, self._rows * COUNTED_ROW)
        if self._read + self._of_table - spared > most:
            raise ImportSourceError(
                f"{self._name} has {self._size:,} bytes and expands to more than {most:,}, the "
                "limit for that size: it is damaged or hostile. If it is neither, send its files "
                "in an archive that is not compressed."
            )


class _Counted(io.RawIOBase):
    """A table within an archive, counted against a budget."""

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        self._file = file
        self._budget = budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = cast(Any, self._file).readinto(buffer)
        self._budget.take_of_table(count)
        return int(count)
