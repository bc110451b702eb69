"""One row of a source: whose photo, or whose embedding, it is."""

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from app.errors import LikenessError
from app.folders import IMAGE_SUFFIXES
from app.store.identifiers import new_person_id
from app.store.metadata import check_metadata
from app.types import FloatArray

# Characters of a name in a message.
MAX_PLACE = 500

# What people have photos in; those that cannot be decoded are rejected one by one, with the reason.
PHOTO_SUFFIXES = IMAGE_SUFFIXES | {".bmp", ".gif", ".jfif", ".jpe", ".tif", ".tiff"}


class ImportSourceError(LikenessError):
    """A source cannot be read; `detail` says why and what to do."""

    code, status, title = "import_source", 422, "The source cannot be imported"


@dataclass(frozen=True, slots=True)
class Row:
    """What one row asks for: `read` gives a photo's bytes, `embedding` is (d,), `problem` says why
    the row cannot be used. Exactly one of them is set, none where it is a person `without_face` or
    one who is declared to be `different_from` another.

    With an embedding may come what an export knows of it: `quality`, the digest of the photo it was
    made from, its aligned face and its id. `place` is where it stands, for people: a path, or a
    line of a table.
    """

    place: str
    person_id: str
    read: Callable[[], bytes] | None = None
    embedding: FloatArray | None = None
    metadata: Mapping[str, Any] | None = None
    quality: Mapping[str, Any] = field(default_factory=dict)
    content_digest: str | None = None
    face_id: str | None = None
    crop: Callable[[], bytes] | None = None
    problem: LikenessError | None = None
    without_face: bool = False
    different_from: str | None = None


class NotAPhoto(LikenessError):
    """A file of a source is not a photo: it is counted and reported, but is no error."""

    code, status, title = "not_a_photo", 422, "The file is not a photo"


def storable(row: Row) -> Row:
    """The row with its person id in Form C. Raises the row's problem, or InvalidRequest if its id,
    metadata or quality breaks the gallery's rules."""
    if row.problem is not None:
        raise row.problem
    if row.metadata is not None:
        check_metadata(dict(row.metadata))
    check_metadata(dict(row.quality), "quality")
    other = None if row.different_from is None else new_person_id(row.different_from)
    return replace(row, person_id=new_person_id(row.person_id), different_from=other)


class UnreadableFile(LikenessError):
    """A photo's file cannot be read."""

    code, status, title = "unreadable_file", 422, "The file cannot be read"


def content_of(read: Callable[[], bytes]) -> bytes:
    """The bytes of a photo or crop. Raises UnreadableFile, or what the source has to say."""
    try:
        return read()
    except OSError as error:
        raise UnreadableFile(f"The file cannot be read: {error.strerror}.") from error


def read_file(path: Path, max_bytes: int) -> bytes:
    """The file, or just enough of it to be refused as too large. Raises OSError, and UnreadableFile
    if it is not a regular file, such as a FIFO, which could block for ever."""
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(opened, "rb") as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise UnreadableFile(f"{printable(path.name)} is not a regular file.")
        return file.read(max_bytes + 1)


def is_image(name: str) -> bool:
    """Whether a file's name says that it is a photo; hidden files are none."""
    path = PurePath(name)
    return path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".")


def printable(text: str, most: int = MAX_PLACE) -> str:
    """A name for messages: bytes that are not UTF-8 and lone surrogates are escaped, and more than
    `most` characters are cut off."""
    if len(text) <= most and text.isascii():
        return text
    text = text if len(text) <= most else f"{text[:most]}…"
    return text.encode("utf-8", "backslashreplace").decode()


def person_text(value: Any, name: str = "person_id") -> str:
    """A person id as text; a whole number has one. Raises ImportSourceError for others, whose text
    would be a guess (`true`, `1.0`, a list)."""
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ImportSourceError(f"{name} is neither text nor a whole number; write it as text.")
    try:
        return str(value)
    except ValueError:  # an integer of thousands of digits
        raise ImportSourceError(f"{name} is a number with too many digits.") from None
