"""Files of index rows, with checksums, in which single rows can be erased in place."""

import ctypes
import errno
import json
import mmap
import os
import weakref
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.index.certified.codes import BLOCK, Bytes, CodedRows, CodeScan, Quantiser, packed_bytes
from app.index.certified.rows import Flags, Rows
from app.index.port import Ids
from app.types import FloatArray

HEADER_BYTES = 4096
ALIGNED = 4096
CHECKED_ROWS = 8 * BLOCK  # rows that share a checksum
PIECE_ROWS = 1_024  # written at a time


class SnapshotError(Exception):
    """A file that cannot be used; the index is built from the database then."""


@dataclass(frozen=True, slots=True)
class ArrayPlacement:
    """Where an array is in a file."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.offset + self.dtype.itemsize * int(np.prod(self.shape))


@dataclass(frozen=True, slots=True)
class RowsFileLayout:
    """The arrays of a file of `rows` rows, one after another, each at a page's start."""

    rows: int
    dimension: int
    coded: bool

    def sections(self) -> dict[str, ArrayPlacement]:
        """The arrays by name."""
        blocks = -(-self.rows // CHECKED_ROWS)
        n = self.rows
        arrays: list[tuple[str, str, tuple[int, ...]]] = [
            ("alive", "u1", (n,)), ("keys", "<i8", (n,)), ("persons", "<i8", (n,)),
            ("checks", "<u4", (blocks,)),
        ]  # fmt: skip
        if self.coded:
            packed = packed_bytes(n, self.dimension)
            arrays += [
                ("projection", "<f4", (n,)),
                ("residual", "<f4", (n,)),
                ("codes", "u1", (packed,)),
            ]
        arrays.append(("vectors", "<f4", (n, self.dimension)))
        found, offset = {}, HEADER_BYTES
        for name, dtype, shape in arrays:
            found[name] = ArrayPlacement(offset, np.dtype(dtype), shape)
            offset = -(-found[name].end // ALIGNED) * ALIGNED
        return found

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        end = max(section.end for section in self.sections().values())
        return -(-end // ALIGNED) * ALIGNED


def header_bytes(facts: Mapping[str, Any]) -> bytes:
    """A file's first page: whose rows these are."""
    return json.dumps(facts, sort_keys=True).encode().ljust(HEADER_BYTES)


@dataclass(frozen=True, slots=True)
class LivingVectors:
    """The vectors of rows; those of removed rows are read as zeros."""

    vectors: FloatArray
    alive: Flags

    def __getitem__(self, place: slice) -> FloatArray:
        alive = self.alive[place]
        if alive.all():
            return self.vectors[place]
        return np.where(alive[:, np.newaxis], self.vectors[place], np.float32(0))


def contents(
    facts: Mapping[str, Any], rows: Rows, alive: Flags, codes: CodedRows | None
) -> Iterator[memoryview]:
    """The bytes of a file, in pieces; of rows that are not `alive` (n,) neither vector nor code.

    Rows that die while this is read leave their part of the file inconsistent until they are
    erased in it.
    """
    layout = RowsFileLayout(len(rows), rows.dimension, codes is not None)
    arrays: dict[str, Any] = {
        "alive": alive.astype(np.uint8),
        "keys": rows.keys,
        "persons": rows.persons,
        "vectors": LivingVectors(rows.vectors, alive),
    }
    if codes is not None:
        arrays |= {"projection": codes.projection, "residual": codes.residual}
        arrays["codes"] = codes.scan.packed(without=np.flatnonzero(~alive))
    arrays["checks"] = checks_of(arrays, layout.rows)
    yield memoryview(header_bytes(facts))
    written = HEADER_BYTES
    for name, section in layout.sections().items():
        yield memoryview(bytes(section.offset - written))
        for start in range(0, section.shape[0], PIECE_ROWS):
            piece = arrays[name][start : start + PIECE_ROWS]
            yield np.ascontiguousarray(piece, section.dtype).reshape(-1).view(np.uint8).data
        written = section.end
    yield memoryview(bytes(layout.size - written))


def _arrays(buffer: Bytes, layout: RowsFileLayout) -> dict[str, NDArray[Any]]:
    return {
        name: buffer[one.offset : one.end].view(one.dtype).reshape(one.shape)
        for name, one in layout.sections().items()
    }


def parse(
    buffer: Bytes, facts: Mapping[str, Any], layout: RowsFileLayout
) -> dict[str, NDArray[Any]]:
    """The arrays of a file's bytes, checked. Raises SnapshotError."""
    if len(buffer) != layout.size:
        raise SnapshotError(f"it has {len(buffer)} bytes instead of {layout.size}")
    if buffer[:HEADER_BYTES].tobytes() != header_bytes(facts):
        raise SnapshotError("its header names another index")
    arrays = _arrays(buffer, layout)
    written = HEADER_BYTES
    for one in [*layout.sections().values(), ArrayPlacement(layout.size, np.dtype("u1"), (0,))]:
        if buffer[written : one.offset].any():
            raise SnapshotError("there is something between its arrays")
        written = one.end
    if not np.array_equal(checks_of(arrays, layout.rows), arrays["checks"]):
        raise SnapshotError("a checksum does not match")
    return arrays


def checks_of(arrays: Mapping[str, NDArray[Any]], rows: int) -> NDArray[np.uint32]:
    """CRC-32 of each CHECKED_ROWS rows, over every array."""
    starts = range(0, rows, CHECKED_ROWS)
    return np.array([check_of(arrays, start, rows) for start in starts], np.uint32)


def check_of(arrays: Mapping[str, NDArray[Any]], start: int, rows: int) -> int:
    """The checksum of the rows from `start` on that share it."""
    check = 0
    place = slice(start, min(start + CHECKED_ROWS, rows))
    for name in ("alive", "keys", "persons", "projection", "residual", "vectors"):
        if name in arrays:
            check = zlib.crc32(np.ascontiguousarray(arrays[name][place]).data.cast("B"), check)
    if "codes" in arrays:
        row_bytes = len(arrays["codes"]) // (-(-rows // BLOCK) * BLOCK)
        codes = arrays["codes"][start * row_bytes : (start + CHECKED_ROWS) * row_bytes]
        check = zlib.crc32(codes.data, check)
    return check


class RowsFile:
    """One plain file. It is opened for each thing that is done to it; `erase` is for its one
    owner."""

    def __init__(self, path: Path, layout: RowsFileLayout) -> None:
        self.path = path
        self._layout = layout

    def verified(self, facts: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The arrays, if the file has these facts: a shard's mapped, a write buffer's read, because
        the index copies it anyway. Raises SnapshotError or OSError."""
        buffer = mapped(self.path) if self._layout.coded else np.fromfile(self.path, np.uint8)
        return parse(buffer, facts, self._layout)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of a file that was verified or written here, mapped. Raises OSError."""
        buffer = mapped(self.path)
        if len(buffer) != self._layout.size:
            raise OSError(errno.EIO, "The file was cut off since it was read", str(self.path))
        return _arrays(buffer, self._layout)

    def erase(self, keys: Ids, quantiser: Quantiser | None) -> bool:
        """Overwrite the vectors and codes of rows with zeros; whether there were any. Raises
        OSError."""
        if not len(keys):
            return False
        arrays = self.arrays()
        places = np.searchsorted(arrays["keys"], keys)
        places = places[places < len(arrays["keys"])]
        places = np.unique(places[np.isin(arrays["keys"][places], keys)])
        places = places[arrays["alive"][places] != 0]
        if not len(places):
            return False
        sections = self._layout.sections()
        # Made once: it takes longer than the write of a row.
        scan = None if quantiser is None or "codes" not in arrays else CodeScan(quantiser)
        file = os.open(self.path, os.O_RDWR)
        try:
            for row in places.tolist():
                nothing = bytes(4 * self._layout.dimension)
                os.pwrite(file, nothing, sections["vectors"].offset + row * len(nothing))
                os.pwrite(file, b"\0", sections["alive"].offset + row)
                if scan is not None:
                    place = sections["codes"].offset, row
                    self._erase_code(file, arrays["codes"], place, scan)
            for start in np.unique(places // CHECKED_ROWS * CHECKED_ROWS).tolist():
                check = np.uint32(check_of(arrays, start, self._layout.rows)).tobytes()
                os.pwrite(file, check, sections["checks"].offset + start // CHECKED_ROWS * 4)
        finally:
            os.close(file)
        return True

    def _erase_code(self, file: int, codes: Bytes, place: tuple[int, int], scan: CodeScan) -> None:
        """Erase one row's code; `place` is the offset of all codes, and the row."""
        offset, row = place
        size = packed_bytes(BLOCK, self._layout.dimension)
        start = row // BLOCK * size
        block = codes[start : start + size].copy()
        scan.blank(block, row % BLOCK)
        os.pwrite(file, block.tobytes(), offset + start)

    def sync(self) -> None:
        """Wait until what was erased is gone from the disk too."""
        file = os.open(self.path, os.O_RDWR)
        try:
            os.fsync(file)
        finally:
            os.close(file)


FAILED = ctypes.c_void_p(-1).value


def mapped(path: Path) -> Bytes:
    """The bytes of a file, read-only, mapped until the last array over them is gone. Raises
    OSError.

    Python's mmap keeps a descriptor open (until 3.13 always), and a service with many shards would
    run out of them.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        if not size:
            return np.empty(0, np.uint8)
        address = _libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file, 0)
    finally:
        os.close(file)
    if address == FAILED:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(path))
    memory = (ctypes.c_ubyte * size).from_address(address)
    # Not at exit: a thread may still be reading then, and the system takes the memory back anyway.
    weakref.finalize(memory, _libc().munmap, address, size).atexit = False
    content: Bytes = np.frombuffer(memoryview(memory), np.uint8)
    content.flags.writeable = False
    return content


@cache
def _libc() -> Any:
    """The C library's mmap(2) and munmap(2)."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return library
