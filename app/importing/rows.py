"""One row of a source: whose photo, or whose embedding, it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from app.errors import LikenessError
from app.types import FloatArray

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class ImportSourceError(LikenessError):
    """A source cannot be read; `detail` says why and what to do."""

    code, status, title = "import_source", 422, "The source cannot be imported"


@dataclass(frozen=True, slots=True)
class Row:
    """What one row asks for. Exactly one of `read` (the photo's bytes), `embedding` (d,) and
    `problem` (why the row cannot be used) is set.

    With an embedding may come what an export knows of it: `quality`, the digest of the photo it was
    made from, and its aligned face. `place` is where it stands, for people: a path, or a line of a
    table.
    """

    place: str
    person_id: str
    read: Callable[[], bytes] | None = None
    embedding: FloatArray | None = None
    metadata: Mapping[str, Any] | None = None
    quality: Mapping[str, Any] = field(default_factory=dict)
    content_digest: str | None = None
    crop: Callable[[], bytes] | None = None
    problem: LikenessError | None = None


def is_image(name: str) -> bool:
    """Whether a file's name says that it is a photo; hidden files are none."""
    path = PurePath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith((".", "._"))
