"""The options of an import, the same on the command line and over HTTP: how its rows are decided,
and how an archive is read.
"""

import json
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.decision.face_selection import FaceSelection
from app.decision.gates import QualityGate
from app.errors import LikenessError
from app.importing.source_options import PersonFrom


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

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
    dry_run: Annotated[
        bool,
        Field(
            description="Analyse and report, store nothing; rows are not compared with the rows "
            "before them."
        ),
    ] = False


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
            "{person_id}_*.jpg, {person_id}/**, with at most three wildcards (* or **). Case does "
            "not matter.",
        ),
    ] = None
    names_encoding: Annotated[
        str | None,
        Field(max_length=40, description="Encoding of file names that are not UTF-8: gbk, cp1252."),
    ] = None


class ImportStopped(LikenessError):
    """The import ended at a row, as its options ask."""

    code, status, title = "import_stopped", 422, "The import stopped at a row"
