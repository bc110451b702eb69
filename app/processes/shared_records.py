"""Counts that the processes of a service share: how much each user of it has used.

Records are in a file without a name that every process maps into its memory. A record has a few
numbers that any process changes, and for each process the number of requests that it is answering.
"""

import fcntl
import hashlib
import mmap
import os
import struct
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SLOTS = 8192
COLUMNS = 128  # processes at a time, with those that are replaced
VALUES = 4
_HEAD = struct.Struct(f"16s{VALUES}d")
_ROW = _HEAD.size + 2 * COLUMNS
SIZE = SLOTS * _ROW
PROBED = 32
# A process that is suspended while it holds a record must not stop the others.
WAIT_S, AGAIN_S = 0.002, 0.0001


@dataclass(slots=True)
class SharedRecord:
    """A record while it is held: its numbers, all 0 at first, the requests that other processes
    answer, and those that this one does."""

    values: list[float]
    elsewhere: int
    here: int


def shared_file() -> int:
    """The descriptor of a file for records."""
    if sys.platform.startswith("linux"):
        file = os.memfd_create("likeness-records")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, SIZE)
    return file


class SharedRecords:
    """The records, as one process sees them. For one thread."""

    def __init__(self, file: int, column: int | None = None) -> None:
        """`column`: this process's, which no other one that lives has; None for the parent."""
        self._file = file
        self._column = column
        self._memory = mmap.mmap(file, SIZE)
        self._counts = memoryview(self._memory).cast("H")
        self._slots: dict[str, int] = {}

    def clear(self, column: int) -> None:
        """Forget the requests that a process was answering: it has ended."""
        first = _HEAD.size // 2 + column
        self._counts[first :: _ROW // 2] = memoryview(array("H", bytes(2 * SLOTS)))

    @contextmanager
    def held(self, name: str) -> Iterator[SharedRecord]:
        """The record of a name, for this process alone; what is changed is written afterwards."""
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        slot = self._slots.get(name)
        if slot is None or self._digest(slot) != digest:
            slot = self._slots[name] = self._found(digest)
            if len(self._slots) > SLOTS:
                self._slots.clear()
        with self._locked(slot):
            record = self._read(slot)
            try:
                yield record
            finally:
                self._write(slot, digest, record)

    def _digest(self, slot: int) -> bytes:
        start = slot * _ROW
        return self._memory[start : start + 16]

    def _found(self, digest: bytes) -> int:
        """The slot of a record. A new record gets the first unused one of PROBED slots, or that of
        the record among them that has been idle longest."""
        first = int.from_bytes(digest[:8], "big")
        probed = [(first + number) % SLOTS for number in range(PROBED)]
        with self._locked(SLOTS):
            for slot in probed:
                found = self._digest(slot)
                if found == digest:
                    return slot
                if not any(found):
                    break
            else:
                slot = min(probed, key=self._idle_since)
            _HEAD.pack_into(self._memory, slot * _ROW, digest, *[0.0] * VALUES)
        return slot

    def _idle_since(self, slot: int) -> tuple[bool, float]:
        _, *values = _HEAD.unpack_from(self._memory, slot * _ROW)
        return any(self._row(slot)), max(values)

    def _row(self, slot: int) -> memoryview:
        start = (slot * _ROW + _HEAD.size) // 2
        return self._counts[start : start + COLUMNS]

    def _read(self, slot: int) -> SharedRecord:
        _, *values = _HEAD.unpack_from(self._memory, slot * _ROW)
        row = self._row(slot)
        here = 0 if self._column is None else row[self._column]
        return SharedRecord(values, sum(row) - here, here)

    def _write(self, slot: int, digest: bytes, record: SharedRecord) -> None:
        _HEAD.pack_into(self._memory, slot * _ROW, digest, *record.values)
        if self._column is not None:
            self._row(slot)[self._column] = min(record.here, 65_535)

    @contextmanager
    def _locked(self, slot: int) -> Iterator[None]:
        """Lock a slot, or continue without the lock after WAIT_S: then two processes that change
        the record at the same moment may lose one of the changes."""
        deadline = time.monotonic() + WAIT_S
        held = False
        while not held:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
                held = True
            except OSError:
                if time.monotonic() > deadline:
                    break
                time.sleep(AGAIN_S)
        try:
            yield
        finally:
            if held:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, slot)
