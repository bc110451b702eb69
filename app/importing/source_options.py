"""How a source is read: apart from the options of the import itself, whose modules the process that
reads an archive does without.
"""

import codecs
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from app.importing.source_rows import ImportSourceError

MAX_MEMBERS = 1_000_000


class PersonFrom(StrEnum):
    """Where the person's id of a photo is, if there is no table: the folder that contains it, the
    first folder of its path, or (in a tar) the file with the same name and that extension."""

    FOLDER = "folder"
    TOP_FOLDER = "top-folder"
    JSON = "json"
    CLS = "cls"
    TXT = "txt"


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """`space` is the collection's, `given_space` that of embeddings which do not say it; `images`
    the folder of a table's photos, where a table has some (`uploaded`: it has none); `person_from`
    or a `pattern` of names or paths say whose a photo is, where the source does not;
    `names_encoding` is that of names that are not UTF-8; `stdin_format` one of FORMATS; `key` opens
    another service that is a source; an archive has at most `max_members` files."""

    space: str
    max_bytes: int
    given_space: str | None = None
    images: Path | None = None
    pattern: str | None = None
    stdin_format: str = "jsonl"
    key: str | None = None
    max_members: int = MAX_MEMBERS
    person_from: PersonFrom | None = None
    names_encoding: str | None = None
    uploaded: bool = False


def check_encoding(name: str) -> str:
    """The name of an encoding, checked. Raises ImportSourceError if it is unknown."""
    try:
        codecs.lookup(name)
        "name".encode(name)
    except (LookupError, ValueError, TypeError) as error:
        raise ImportSourceError(
            f"{name!r} is not a known encoding; give for example gbk, shift_jis or cp1252."
        ) from error
    return name
