"""Reads a tar forwards, member by member, with a limit on the headers of a member."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from app.importing.source_rows import ImportSourceError
from app.importing.unpacking import UNREADABLE, decompressed

PIECE = 1 << 20
# Extended headers (long names, PAX records) of one member, all together.
MAX_HEADER = 1 << 20
BLOCK = 512
# Bytes after the end of an archive in which another one is looked for.
MAX_PADDING = 1 << 20


class _Forwards(io.RawIOBase):
    """The file that TarFile reads. TarFile reads an extended header of any claimed length at once,
    so the bytes that it reads for one member are limited here."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0
        self.header_left = MAX_HEADER
        self.last = b""

    def tell(self) -> int:
        return self._at

    def seek(self, to: int, _whence: int = io.SEEK_SET) -> int:
        """Read on, up to there. Raises ReadError where the file ends before."""
        while self._at < to:
            if not self.piece(to - self._at):
                raise tarfile.ReadError("it ends within a member")
        return self._at

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.header_left:
            raise tarfile.ReadError(f"a member's headers have more than {MAX_HEADER:,} bytes")
        self.header_left -= size
        found = b""
        while len(found) < size and (piece := self.piece(size - len(found))):
            found += piece
        self.last = found
        return found

    def piece(self, most: int) -> bytes:
        """Some bytes, none at the end."""
        piece = self._file.read(min(most, PIECE))
        self._at += len(piece)
        return piece


class TarStream:
    """The members of a tar with any compression, in one pass, including links, which are not
    followed. Raises ImportSourceError."""

    def __init__(self, file: IO[bytes], name: str, max_members: int) -> None:
        self._name = name
        self._max_members = max_members
        with self._whole():
            self._stream = _Forwards(decompressed(cast(Any, file)))

    def members(self) -> Iterator[tarfile.TarInfo]:
        """All members; `content` reads the last one."""
        with self._whole():
            # Names that are not UTF-8 keep their bytes, as surrogates.
            archive = tarfile.TarFile(
                fileobj=cast(Any, self._stream), encoding="utf-8", errors="surrogateescape"
            )
            count = 0
            while (member := self._next(archive)) is not None:
                count += 1
                if count > self._max_members:
                    raise ImportSourceError(
                        f"{self._name} has more than {self._max_members:,} files; split it."
                    )
                yield member
            self._require_end()

    def _require_end(self) -> None:
        """Raise ImportSourceError if another tar follows, as `cat` makes them."""
        rest = bytearray()
        while len(rest) < MAX_PADDING and (piece := self._stream.piece(MAX_PADDING - len(rest))):
            rest += piece
        start = (len(rest) - len(rest.lstrip(b"\0"))) // BLOCK * BLOCK
        if rest[start + 257 : start + 262] == b"ustar":
            raise ImportSourceError(
                f"{self._name} has another tar after its end; import each by itself, or join them "
                "by `tar -A`."
            )

    def _next(self, archive: tarfile.TarFile) -> tarfile.TarInfo | None:
        self._stream.header_left = MAX_HEADER
        member = archive.next()
        # Otherwise TarFile keeps every member and every global header in memory.
        cast(Any, archive).members.clear()
        archive.pax_headers = {}
        # TarFile takes a damaged header for the end; the real end is a block of zeros, or nothing.
        if member is None and self._stream.last.strip(b"\0"):
            raise tarfile.ReadError("a member's header is damaged")
        return member

    def content(self, member: tarfile.TarInfo, most: int) -> bytes:
        """The first `most` bytes of the last member, which is a regular file and not sparse."""
        with self._whole():
            self._stream.seek(member.offset_data)
            found = bytearray()
            wanted = min(member.size, most)
            while len(found) < wanted:
                piece = self._stream.piece(wanted - len(found))
                if not piece:
                    raise tarfile.ReadError("it ends within a member")
                found += piece
        return bytes(found)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Turns anything that tarfile raises for hostile headers into ImportSourceError."""
        try:
            yield
        except (tarfile.TarError, *UNREADABLE) as error:
            raise ImportSourceError(f"{self._name} is not a complete tar file: {error}.") from error
