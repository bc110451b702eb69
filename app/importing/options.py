"""The options of an import, the same on the command line and over HTTP: how a source is read, and
how its rows are decided.
"""

import codecs
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.decision.policy import FaceSelection, QualityGate
from app.errors import LikenessError
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


def _object(value: Any) -> Any:
    """Queries and command lines carry JSON as text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ValueError('must be JSON, for example {"min_face_size_px": 40}') from error


class OnConflict(StrEnum):
    """What to do with a face that resembles another person more than its own."""

    OFF = "off"
    REPORT = "report"
    SKIP = "skip"
    STOP = "stop"


class OnError(StrEnum):
    """What to do after a row that is rejected."""

    CONTINUE = "continue"
    STOP = "stop"


class ImportOptions(BaseModel):
    """What an import is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    face: Annotated[
        FaceSelection, Field(description="Which face is enrolled if a photo has several.")
    ] = FaceSelection.ONLY
    gate: Annotated[
        QualityGate | None,
        BeforeValidator(_object),
        Field(description="Quality gate as JSON; default: the collection's enroll_gate."),
    ] = None
    near_duplicate: Annotated[
        float | None,
        Field(
            ge=-1,
            le=1,
            description="Skip a face that is at least this similar to a face that "
            "its person already has.",
        ),
    ] = None
    on_conflict: Annotated[
        OnConflict | None,
        Field(
            description=(
                "What to do about a face that resembles another person more than its own. report: "
                "enroll it and report the conflict; skip: reject the row; stop: reject it and end "
                "the import; off: do not look for conflicts. Default: report for photos, off for "
                "embeddings."
            )
        ),
    ] = None
    on_error: Annotated[
        OnError, Field(description="Whether to continue after a rejected row, or to stop.")
    ] = OnError.CONTINUE
    retry_refused: Annotated[
        bool, Field(description="Analyse rows again that an earlier import rejected or skipped.")
    ] = False
    dry_run: Annotated[bool, Field(description="Analyse and report, store nothing.")] = False


class UploadOptions(ImportOptions):
    """The options of an import by a service, and how its archive is read."""

    person_from: Annotated[
        PersonFrom | None,
        Field(
            description="Where the person's id is, if the archive is ambiguous: `folder` (that "
            "contains the photo), `top-folder` (the first of its path), or in a tar `json`, `cls` "
            "or `txt` (the file with the same name and this extension)."
        ),
    ] = None
    pattern: Annotated[
        str | None,
        Field(
            max_length=1_000,
            description="Pattern of names or paths that contain the person's id: "
            "{person_id}_*.jpg, {person_id}/**.",
        ),
    ] = None
    names_encoding: Annotated[
        str | None,
        Field(max_length=40, description="Encoding of file names that are not UTF-8: gbk, cp1252."),
    ] = None


class ImportStopped(LikenessError):
    """The import ended at a row, as its options ask."""

    code, status, title = "import_stopped", 422, "The import stopped at a row"
