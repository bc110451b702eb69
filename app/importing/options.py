"""How rows are decided: the same on the command line and over HTTP."""

import json
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.decision.gates import QualityGate
from app.decision.policy import FaceSelection
from app.errors import LikenessError


def _object(value: Any) -> Any:
    """Queries and command lines carry JSON as text."""
    return json.loads(value) if isinstance(value, str) else value


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
        FaceSelection, Field(description="Which face counts where a photo has several.")
    ] = FaceSelection.ONLY
    gate: Annotated[
        QualityGate | None,
        BeforeValidator(_object),
        Field(description="What a face must be, as JSON; without: the collection's enroll_gate."),
    ] = None
    near_duplicate: Annotated[
        float | None,
        Field(ge=-1, le=1, description="A face this similar to one its person has is skipped."),
    ] = None
    on_conflict: Annotated[
        OnConflict | None,
        Field(
            description="A face that resembles another person more than its own. Without: photos "
            "are checked and reported, embeddings are not checked."
        ),
    ] = None
    on_error: Annotated[
        OnError, Field(description="Go on after a row that is rejected, or end there.")
    ] = OnError.CONTINUE
    retry_refused: Annotated[
        bool, Field(description="Decide again about rows that an earlier import refused.")
    ] = False
    dry_run: Annotated[bool, Field(description="Analyse and report, store nothing.")] = False


class ImportStopped(LikenessError):
    """The import ended at a row, as it was told to."""

    code, status, title = "import_stopped", 422, "The import stopped at a row"
