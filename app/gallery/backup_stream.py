"""The stream of a backup: a mark, then blocks, each checked before it is used; encrypted or not.

A block is the length of its body (4 bytes, big endian), a check and the body, which is MessagePack.
The check is the SHA-256 of the check before it and the body, the first one that of the mark: a byte
that flipped, and a block that was dropped, moved or taken from elsewhere, are detected where they
stand. The first block is the header, the last one the counts; without it the stream was cut short.
"""

import hashlib
import io
import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, BinaryIO, cast

import msgpack

from app.encryption.files import FileEncryptor, decrypt_file, encrypt_file
from app.encryption.ring import KeyRing
from app.errors import DamagedData, EncryptionKeyMissing, LikenessError

PURPOSE = b"likeness backup"
# A backup may be renamed and copied: only its own salt distinguishes it from others.
FILE_ID = b""
_PIECE = 1024 * 1024


class BackupError(LikenessError):
    code, title = "backup_error", "Backup or restore failed"


class BackupDamaged(BackupError):
    code, title = "backup_damaged", "The backup cannot be used"


class _Pieces(io.RawIOBase):
    """A file that reads what an iterator gives."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        super().__init__()
        self._pieces = iter(pieces)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not len(self._left):
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


def as_file(pieces: Iterable[bytes]) -> BinaryIO:
    """A file over the pieces; each read returns as many bytes as were asked for, until the end."""
    return cast(BinaryIO, io.BufferedReader(_Pieces(pieces), _PIECE))


def encrypted(ring: KeyRing, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The stream, readable only by someone who has the ring's active key."""
    return encrypt_file(FileEncryptor(ring, PURPOSE, FILE_ID), as_file(pieces))


def opened(ring: KeyRing | None, source: BinaryIO) -> BinaryIO:
    """The stream, decrypted if it is encrypted, otherwise unchanged.

    Raises BackupError where it is encrypted and the key is not there, or cannot be read; reading
    it raises BackupDamaged, or BackupError if the source cannot be read.
    """
    start = _read(source, len(MARK))
    whole = as_file(chain([start], iter(lambda: _read(source, _PIECE), b"")))
    if not start.startswith(b"LIKENESS-SEALED"):
        return whole
    if ring is None:
        raise BackupError(
            "The backup is encrypted. Give the key it was made with (LIKENESS_ENCRYPTION_KEY, "
            "LIKENESS_ENCRYPTION_KEY_FILE or LIKENESS_ENCRYPTION_KEY_COMMAND)."
        )
    return as_file(_decrypted(ring, whole))


def _read(source: BinaryIO, size: int) -> bytes:
    try:
        return source.read(size)
    except OSError as error:
        raise BackupError(f"The backup cannot be read: {error.strerror or error}.") from error


def _decrypted(ring: KeyRing, source: BinaryIO) -> Iterator[bytes]:
    try:
        yield from decrypt_file(ring, source, PURPOSE, FILE_ID)
    except EncryptionKeyMissing as error:
        raise BackupError(
            "The backup is encrypted by a key that was not given. Add it below the active key."
        ) from error
    except DamagedData as error:
        raise BackupDamaged(
            "The encrypted backup cannot be read: it is damaged, was cut short, or the key "
            "that was given is not the one that it was encrypted with, although it has the same "
            "id. Nothing was changed. Take another copy of it, or give the right key."
        ) from error


MARK = b"LIKENESS-BACKUP\x01"  # the last byte is the version of this form

_HEAD = struct.Struct(">I32s")
# A block is ended by the row with which it reaches 16 MiB (`BYTES_AT_ONCE`); a row has at most the
# 10 MiB of a photo, or what LIKENESS_MAX_IMAGE_BYTES allowed when it was imported.
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
        try:
            body = msgpack.unpackb(packed)
        except (TypeError, ValueError) as error:  # somebody else made it, with the right checks
            raise BackupDamaged(
                f"The backup's block {number} is not MessagePack that can be read. Nothing was "
                "changed. Take another backup, or another copy of this one."
            ) from error
        yield body
        number += 1


def _check(before: bytes, packed: bytes) -> bytes:
    return hashlib.sha256(before + packed).digest()
