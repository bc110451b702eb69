"""The stream of a backup: a mark, then blocks, each proven before it is looked into.

A block is the length of its body (4 bytes, big endian), a check and the body, which is MessagePack.
The check is the SHA-256 of the check before it and the body, the first one that of the mark: a byte
that flipped, and a block that was dropped, moved or taken from elsewhere, are noticed where they
stand. The first block is the header, the last one the counts; without it the stream was cut short.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import msgpack

from app.errors import BackupDamaged

MARK = b"LIKENESS-BACKUP\x01"  # the last byte is the version of this form

_HEAD = struct.Struct(">I32s")
# A block holds some rows; the largest row is a person's metadata, which one request brought.
MAX_BODY = 256 * 1024 * 1024


def write_blocks(bodies: Iterable[Any]) -> Iterator[bytes]:
    """The stream that holds these bodies, piece by piece."""
    yield MARK
    check = hashlib.sha256(MARK).digest()
    for body in bodies:
        packed = msgpack.packb(body)
        check = _check(check, packed)
        yield _HEAD.pack(len(packed), check) + packed


def read_blocks(source: BinaryIO) -> Iterator[Any]:
    """The bodies of a stream, each when it is proven. Raises BackupDamaged."""
    if source.read(len(MARK)) != MARK:
        raise BackupDamaged("The file is not a backup of Likeness, or has an unknown format.")
    check, number = hashlib.sha256(MARK).digest(), 0
    while head := source.read(_HEAD.size):
        length, expected = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, b"")
        packed = source.read(length) if length <= MAX_BODY else b""
        check = _check(check, packed)
        # A length that flipped in the last block reads the same body, up to the end.
        if check != expected or len(packed) != length:
            raise BackupDamaged(
                f"The backup is damaged or was cut short: its block {number} is not what was "
                "written. Nothing was changed. Take another backup, or another copy of this one."
            )
        yield msgpack.unpackb(packed)
        number += 1


def _check(before: bytes, packed: bytes) -> bytes:
    return hashlib.sha256(before + packed).digest()
