"""The file of an SQLite database: moved or replaced, and what lies in unused parts of its pages.

`secure_delete` zeroes a row where it is deleted. Where SQLite moved the row to another page before,
because pages were split or merged, a copy can stay behind in the first page's unused part: between
the list of its cells and the cells themselves. Nobody reads those bytes, so they can be zeroed
beside readers. File format: https://www.sqlite.org/fileformat2.html, sections 1.3 and 1.6.
"""

import os
import re
import sqlite3
import struct
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import URL
from sqlalchemy.util import asbool

from app.disk import command_for_access, private_file, private_folder, require_access
from app.errors import DatabaseError
from app.locks import new_lock

Inode = tuple[int, int]
# The scheme, which SQLite lets this host follow (RFC 8089), and a path in which nothing is escaped.
ABSOLUTE_URI = re.compile(r"file:(?://(?:localhost)?(?=/)|(?!//))(/[^%?#\0]*)")


class MovedError(sqlite3.OperationalError):
    """The database file was moved or replaced."""

    ADVICE: Final = (
        "The database file was moved away or replaced while the service runs. Put it back, or "
        "restart the service to use the file that is there now."
    )


class DatabaseFile:
    """A file by its path and its inode.

    Data written to a file that has lost its path would be missing after the next start; and if no
    file has that path, SQLite would silently create an empty database.
    """

    def __init__(self, path: Path) -> None:
        """The file as it is now; made, with its folder, where it is missing. Raises OSError."""
        self._path = path
        # Its pages were changed without SQLite, and other connections may have cached the old ones.
        self.is_changed = False
        private_folder(path.parent)
        private_file(path)
        for needed in (path, path.parent):  # SQLite's log is made beside the database
            require_access(needed)
        self._number = self._now()
        weakref.finalize(self, _OPEN.release, _OPEN.use(self._number))

    @property
    def path(self) -> Path:
        """Where it was opened."""
        return self._path

    def descriptor(self) -> int:
        """A descriptor to read and write its bytes by; not to be closed. Raises MovedError and
        OSError."""
        self.require()
        assert self._number is not None, "it is in place"
        return _OPEN.descriptor(self._path, self._number)

    def is_in_place(self) -> bool:
        """Whether the path still leads to this file."""
        return self._now() == self._number

    def require(self) -> None:
        """Raises MovedError unless it is in place."""
        if not self.is_in_place():
            raise MovedError(MovedError.ADVICE)

    def _now(self) -> Inode | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


class _Descriptors:
    """One descriptor for each database file of this process, closed with its last user.

    Closing any descriptor of a file drops every lock that the process has on it, SQLite's too
    (https://www.sqlite.org/howtocorrupt.html, section 2.2): that must not happen while a connection
    is open.
    """

    def __init__(self) -> None:
        self._lock = new_lock("database.descriptors")
        self._users: Counter[Inode | None] = Counter()
        self._opened: dict[Inode | None, int] = {}

    def use(self, number: Inode | None) -> Inode | None:
        """Count one user more."""
        with self._lock:
            self._users[number] += 1
        return number

    def release(self, number: Inode | None) -> None:
        """Count one user less."""
        with self._lock:
            self._users[number] -= 1
            if not self._users[number]:
                del self._users[number]
                if (file := self._opened.pop(number, None)) is not None:
                    os.close(file)

    def descriptor(self, path: Path, number: Inode) -> int:
        """The descriptor of a file. Raises MovedError and OSError."""
        with self._lock:
            if number not in self._opened:
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                self._opened[number] = file
                found = os.fstat(file)
                if (found.st_dev, found.st_ino) != number:
                    # Another file took its place just now; it stays open, for the same reason.
                    self._opened[(found.st_dev, found.st_ino)] = self._opened.pop(number)
                    raise MovedError(MovedError.ADVICE)
            return self._opened[number]


_OPEN = _Descriptors()


def database_file(url: URL) -> DatabaseFile:
    """The file of a database. Raises DatabaseError, also for one in memory."""
    path = database_path(url)
    if path is None:
        raise DatabaseError(
            "A database in memory cannot be shared by the service's threads and processes, and "
            "ends with them. Name a file (LIKENESS_DATABASE_URL=sqlite:////absolute/likeness.db), "
            "or unset LIKENESS_DATABASE_URL."
        )
    if url.query.get("mode") in {"ro", "rw"} and not path.exists():
        raise DatabaseError(
            f"No database is at {path}, and LIKENESS_DATABASE_URL has mode={url.query['mode']}, "
            "with which none is created. Leave the mode out for a new one."
        )
    try:
        return DatabaseFile(path)
    except OSError as error:
        raise DatabaseError(_advice(error, path.parent)) from error


def database_path(url: URL) -> Path | None:
    """Where a database's file is, or will be; None for one in memory. Raises DatabaseError where
    that would depend on the working folder."""
    if not url.database or _is_in_memory(url):
        return None
    if url.database.startswith("file:") and asbool(url.query.get("uri", False)):
        absolute = ABSOLUTE_URI.fullmatch(url.database)
        if absolute is None:
            raise DatabaseError(
                f"LIKENESS_DATABASE_URL does not name a file by its whole path: {url.database!r}. "
                "A start in another folder would find no database. Write "
                "sqlite:///file:/absolute/likeness.db?uri=true, without %, ? and # in the path."
            )
        return Path(absolute[1])
    path = Path(url.database)
    if not path.is_absolute():
        raise DatabaseError(
            f"LIKENESS_DATABASE_URL names the file {path} in the working folder: a start in "
            "another folder would find no database. Write the whole path: "
            f"sqlite:///{path.absolute()}."
        )
    return path


def _is_in_memory(url: URL) -> bool:
    name = url.database or ""
    named = name in ("", ":memory:", "file::memory:")
    return named or url.query.get("mode") == "memory" or url.query.get("vfs") == "memdb"


def absent_file(url: URL) -> Path | None:
    """Where a database's file will be, if there is none yet. Raises DatabaseError."""
    path = database_path(url)
    try:
        if path is not None:
            path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except OSError:
        pass  # it may be there; opening it says what is wrong
    return None


def _advice(error: OSError, folder: Path) -> str:
    """What is wrong with the data folder, and the command that corrects it."""
    other = "set LIKENESS_DATA_DIR to a folder that can be written."
    if not isinstance(error, PermissionError):
        return (
            f"The data folder {folder} cannot be used: {error.strerror}. Correct that, or {other}"
        )
    command = command_for_access(folder, Path(error.filename))
    said = (
        f"The data folder {folder} cannot be written by user id {os.geteuid()}, under which "
        f"Likeness runs ({error.filename}: {error.strerror})."
    )
    if command is None:
        return f"{said} A folder above it cannot be entered by that user; {other}"
    return (
        f"{said} Give that user the right: sudo {command} (in a container: on the host, with the "
        f"path of the folder that is mounted there), or {other}"
    )


HEADER_BYTES = 100
# By the first byte of a page: the length of its header, for interior and leaf pages of indexes and
# tables. The first byte of any other page is 0 in a database of less than 2**25 pages.
_HEADER_OF = {2: 12, 5: 12, 10: 8, 13: 8}
MOST_PAGES = 0x0200_0000


@dataclass(frozen=True, slots=True)
class PageSizes:
    """Bytes of a page, and how many of them SQLite uses."""

    page: int
    usable: int


def read_sizes(file: int) -> PageSizes | None:
    """The page sizes of an open database file; None where its pages cannot be identified."""
    header = os.pread(file, HEADER_BYTES, 0)
    if len(header) < HEADER_BYTES or not header.startswith(b"SQLite format 3\0"):
        return None
    (page,) = struct.unpack_from(">H", header, 16)
    page = 65_536 if page == 1 else page
    (largest_root,) = struct.unpack_from(">I", header, 52)
    too_many = os.fstat(file).st_size // page >= MOST_PAGES
    # With auto-vacuum there are pages of another kind, which begin with the same bytes.
    return None if largest_root or too_many else PageSizes(page, page - header[20])


def blank_pages(file: int, sizes: PageSizes, first: int, count: int) -> int:
    """Zero the unused parts of `count` pages from number `first` (2 or higher: the first page holds
    the schema alone); how many pages had something there. On disk when this returns.

    The caller keeps every other writer out. Raises OSError.
    """
    blanked = 0
    pages = os.pread(file, count * sizes.page, (first - 1) * sizes.page)
    for start in range(0, len(pages) - sizes.page + 1, sizes.page):
        gap = _unused(pages, start, sizes.usable)
        if gap is not None and pages[gap].strip(b"\0"):
            place = (first - 1) * sizes.page + gap.start
            os.pwrite(file, bytes(gap.stop - gap.start), place)
            blanked += 1
    if blanked:
        os.fsync(file)
    return blanked


def _unused(pages: bytes, start: int, usable: int) -> slice | None:
    """Where the unused part of a page lies that begins at `start`; None where it has none."""
    length = _HEADER_OF.get(pages[start])
    if length is None:
        return None
    cells, content = struct.unpack_from(">HH", pages, start + 3)
    begin, end = length + 2 * cells, content or 65_536
    return slice(start + begin, start + end) if begin < end <= usable else None
