"""Decompresses piece by piece, so that memory depends on what is read, not on what a few compressed
bytes expand to; reads a tar forwards, with a limit on the headers of a member."""

import bz2
import copy
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO, Protocol, cast

from app.importing.expansion import Budget
from app.importing.source_rows import ImportSourceError

PIECE = 1 << 16
# Memory that an LZMA stream may need; xz -9 needs 65 MiB.
MAX_LZMA_MEMORY = 128 << 20
# Of a zip's member: a flag, and the system whose file modes it has.
ENCRYPTED, UNIX = 0x1, 3
READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
# Exceptions of reading a damaged, encrypted or unsupported archive or member.
UNREADABLE = (
    zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, zlib.error,
    lzma.LZMAError, ValueError, LookupError, OverflowError,
)  # fmt: skip


class Decompressor(Protocol):
    """The common interface of the decompressors of bz2 and lzma."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """At most `max_length` bytes more."""
        ...


class Unpacked(io.RawIOBase):
    """Successive compressed streams in a file, read as one. Raises EOFError, OSError, LZMAError."""

    def __init__(self, file: IO[bytes], new: Callable[[], Decompressor]) -> None:
        self._file = file
        self._new = new
        self._stream = new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._piece(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def _piece(self, most: int) -> bytes:
        while True:
            if self._stream.eof:
                rest = self._after_stream()
                if not rest:
                    return b""
                self._stream = self._new()
                try:
                    piece = self._stream.decompress(rest, most)
                except (OSError, lzma.LZMAError):
                    return b""  # trailing data that is no stream; gzip, bzip2 and xz ignore it too
            else:
                raw = self._file.read(PIECE) if self._stream.needs_input else b""
                if not raw and self._stream.needs_input:
                    raise EOFError("the compressed data ends before its end marker")
                piece = self._stream.decompress(raw, most)
            if piece:
                return piece

    def _after_stream(self) -> bytes:
        """The first bytes after a stream and its padding."""
        rest = self._stream.unused_data
        while not (found := rest.lstrip(b"\0")):
            rest = self._file.read(PIECE)
            if not rest:
                break
        return found


def decompressed(file: BinaryIO) -> BinaryIO:
    """The content of a .gz, .bz2 or .xz by its first bytes; any other file as it is."""
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(Any, file))
    start = buffered.peek(6)[:6]
    if start.startswith(b"\x1f\x8b\x08"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=buffered))
    if start.startswith(b"BZh"):
        return io.BufferedReader(Unpacked(buffered, bz2.BZ2Decompressor), PIECE)
    if start.startswith((b"\xfd7zXZ", b"\x5d\x00\x00")):
        return io.BufferedReader(Unpacked(buffered, _new_lzma), PIECE)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        raise OSError("it is compressed by Zstandard; compress it by gzip, bzip2 or xz instead")
    return buffered


def _new_lzma() -> Decompressor:
    return lzma.LZMADecompressor(memlimit=MAX_LZMA_MEMORY)


class _Member(io.RawIOBase):
    """A member of a zip, limited to its size; its checksum is compared at the end."""

    def __init__(self, content: IO[bytes], info: zipfile.ZipInfo) -> None:
        self._content = content
        self._left = info.file_size
        self._wanted = info.CRC
        self._crc = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._content.read(min(len(buffer), self._left))
        if not piece and self._left:
            raise EOFError("the file is shorter than its size in the archive")
        self._left -= len(piece)
        self._crc = zlib.crc32(piece, self._crc)
        if not self._left and self._crc != self._wanted:
            raise zipfile.BadZipFile("its checksum is wrong")
        buffer[: len(piece)] = piece
        return len(piece)


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    """A member's content. zipfile itself decompresses bzip2 and LZMA without a bound, so these are
    decompressed here. Raises UNREADABLE, as reading does."""
    if info.flag_bits & ENCRYPTED:
        raise NotImplementedError("it is encrypted; make the zip without a password")
    if info.create_system == UNIX and stat.S_ISLNK(info.external_attr >> 16):
        raise NotImplementedError("it is a link, not a regular file")
    if info.compress_type not in READABLE:
        raise NotImplementedError(f"compression method {info.compress_type} is not supported")
    if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return cast(BinaryIO, archive.open(info))
    stored = copy.copy(info)
    stored.compress_type, stored.file_size = zipfile.ZIP_STORED, info.compress_size
    del stored.CRC  # the CRC of the decompressed content; without it zipfile compares nothing
    raw = archive.open(stored)
    new = bz2.BZ2Decompressor if info.compress_type == zipfile.ZIP_BZIP2 else _raw_lzma(raw)
    content = io.BufferedReader(Unpacked(raw, new), PIECE)
    return io.BufferedReader(_Member(content, info), PIECE)


def _raw_lzma(raw: IO[bytes]) -> Callable[[], Decompressor]:
    """The decompressor that a member's LZMA header asks for (APPNOTE 5.8.8)."""
    header = raw.read(9)
    if len(header) < 9 or header[2:4] != b"\x05\x00" or header[4] >= 225:
        raise lzma.LZMAError("its LZMA header is damaged")
    power, rest = divmod(header[4], 45)
    dictionary = int.from_bytes(header[5:9], "little")
    if dictionary > MAX_LZMA_MEMORY:
        raise lzma.LZMAError(f"its LZMA dictionary has more than {MAX_LZMA_MEMORY:,} bytes")
    properties = {
        "id": lzma.FILTER_LZMA1, "dict_size": dictionary, "lc": rest % 9, "lp": rest // 9,
        "pb": power,
    }  # fmt: skip
    return lambda: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[properties])


TAR_PIECE = 1 << 20
# Extended headers (long names, PAX records) of one member, all together.
MAX_HEADER = 1 << 20
BLOCK = 512
# Bytes after the end of an archive in which another one is looked for.
MAX_PADDING = 1 << 20


class _Forwards(io.RawIOBase):
    """The file that TarFile reads. TarFile reads an extended header of any claimed length at once,
    so the bytes that it reads for one member are limited here."""

    def __init__(self, file: IO[bytes], budget: Budget) -> None:
        self._file = file
        self._budget = budget
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
        piece = self._file.read(min(most, TAR_PIECE))
        self._budget.take(len(piece))
        self._at += len(piece)
        return piece


class TarStream:
    """The members of a tar with any compression, in one pass, including links, which are not
    followed. Raises ImportSourceError."""

    def __init__(
        self, file: IO[bytes], name: str, max_members: int, size: int | None = None
    ) -> None:
        """`size`: the bytes of the file, unless it is a stream."""
        self._name = name
        self._max_members = max_members
        with self._whole():
            self._stream = _Forwards(decompressed(cast(Any, file)), Budget(name, size))

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
