"""Pieces of bytes as a file to read, sealed by the operator's key or not."""

import io
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, BinaryIO, cast

from app.encryption.files import FileSealer, open_file, seal_file
from app.encryption.ring import KeyRing
from app.errors import BackupDamaged, BackupError, DamagedData, EncryptionKeyMissing
from app.gallery.backup.blocks import MARK

PURPOSE = b"likeness backup"
# A backup may be renamed and copied: nothing but its own salt tells it from others.
FILE_ID = b""
_PIECE = 1024 * 1024


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
    """A file over the pieces whose reads are full until its end."""
    return cast(BinaryIO, io.BufferedReader(_Pieces(pieces), _PIECE))


def sealed(ring: KeyRing, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The stream, readable only to who has the ring's active key."""
    return seal_file(FileSealer(ring, PURPOSE, FILE_ID), as_file(pieces))


def opened(ring: KeyRing | None, source: BinaryIO) -> BinaryIO:
    """The stream as it was before it was sealed; one that is not sealed as it is.

    Raises BackupError where it is sealed and the key is not there; reading it raises
    BackupDamaged.
    """
    start = source.read(len(MARK))
    whole = as_file(chain([start], iter(lambda: source.read(_PIECE), b"")))
    if not start.startswith(b"LIKENESS-SEALED"):
        return whole
    if ring is None:
        raise BackupError(
            "The backup is encrypted. Give the key it was made with (LIKENESS_ENCRYPTION_KEY, "
            "LIKENESS_ENCRYPTION_KEY_FILE or LIKENESS_ENCRYPTION_KEY_COMMAND)."
        )
    return as_file(_unsealed(ring, whole))


def _unsealed(ring: KeyRing, source: BinaryIO) -> Iterator[bytes]:
    try:
        yield from open_file(ring, source, PURPOSE, FILE_ID)
    except EncryptionKeyMissing as error:
        raise BackupError(
            "The backup is encrypted by a key that was not given. Add it below the active key."
        ) from error
    except DamagedData as error:
        raise BackupDamaged(
            "The encrypted backup cannot be read: it is damaged, was cut short, or its key is "
            "another one of the same id. Nothing was changed. Take another copy of it, or give "
            "the right key."
        ) from error
