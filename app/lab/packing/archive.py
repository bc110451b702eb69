"""A zip file with a pack's networks, from an untrusted source: its names and sizes are checked."""

import lzma
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from app.errors import PackError

# Far above any pack: what claims to unpack to more is an attack or a mistake.
MAXIMUM_BYTES = 2 * 1024**3
# What `zipfile` raises for content that is damaged, encrypted or of an unknown kind.
_DAMAGED = (
    zipfile.BadZipFile,
    RuntimeError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)


@dataclass(frozen=True, slots=True)
class PackArchive:
    """An open zip file: how errors call it, and its files by their last name, because archives
    differ in the folder they put theirs in."""

    name: str
    content: zipfile.ZipFile
    files: Mapping[str, zipfile.ZipInfo]

    def unpack(self, file: str, target: Path) -> None:
        """Write one of `files` to a path that the caller gives, so that no path inside the archive
        counts. Raises PackError for one that is encrypted, damaged or compressed in an unknown
        way, and OSError."""
        info = self.files[file]
        try:
            with self.content.open(info) as source, target.open("wb") as written:
                shutil.copyfileobj(source, written)
        except _DAMAGED as error:
            raise PackError(
                f"{info.filename} in {self.name} cannot be unpacked ({error}). Write the archive "
                "again, without a password, as zip programs do by default."
            ) from error


@contextmanager
def opened(
    path: Path,
    *,
    name: str | None = None,
    maximum: int = MAXIMUM_BYTES,
    advice: str = "Fetch or copy it again.",
) -> Iterator[PackArchive]:
    """The archive at a path, closed after the `with`; in errors it is called `name`. Raises
    PackError for what is no zip file, with `advice`, and for one that would unpack to more than
    `maximum` bytes."""
    name = name or str(path)
    try:
        with _read(path, name, advice) as content:
            unpacked = sum(info.file_size for info in content.infolist())
            if unpacked > maximum:
                raise PackError(f"{name} would unpack to {unpacked:,} bytes: refused.")
            files = {
                PurePosixPath(info.filename).name: info
                for info in content.infolist()
                if info.filename and not info.is_dir()  # `is_dir` wants a name
            }
            yield PackArchive(name, content, files)
    except OSError as error:
        raise PackError(f"{name} cannot be installed: {error.strerror or error}.") from error


def _read(path: Path, name: str, advice: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except _DAMAGED as error:
        raise PackError(f"{name} is not a complete zip file ({error}). {advice}") from error
