"""One row of a source: whose photo, or whose embedding, it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from app.errors import LikenessError
from app.folders import IMAGE_SUFFIXES
from app.types import FloatArray

# What people have photos in; those that cannot be decoded are rejected one by one, with the reason.
PHOTO_SUFFIXES = IMAGE_SUFFIXES | {
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".tif", ".tiff",
}  # fmt: skip


class ImportSourceError(LikenessError):
    """A source cannot be read; `detail` says why and what to do."""

    code, status, title = "import_source", 422, "The source cannot be imported"


@dataclass(frozen=True, slots=True)
class Row:
    """What one row asks for: `read` gives a photo's bytes, `embedding` is (d,), `problem` says why
    the row cannot be used. Exactly one of them is set, none where it is a person `without_face`.

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


class UnreadableFile(LikenessError):
    """A photo's file cannot be read."""

    code, status, title = "unreadable_file", 422, "The file cannot be read"


def content_of(read: Callable[[], bytes]) -> bytes:
    """The bytes of a photo or crop. Raises UnreadableFile, or what the source has to say."""
    try:
        return read()
    except OSError as error:
        raise UnreadableFile(f"The file cannot be read: {error.strerror}.") from error


def is_image(name: str) -> bool:
    """Whether a file's name says that it is a photo; hidden files are none."""
    path = PurePath(name)
    return path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".")
