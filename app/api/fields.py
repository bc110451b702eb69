"""Fields that several calls take, checked before anything runs."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from fastapi import Path
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from app.api.json_bodies import MAX_VALUES, parse_json
from app.decision.face_selection import FaceSelection
from app.store.identifiers import (
    MAX_DECOMPOSED,
    MAX_PERSON_ID,
    NAME_PATTERN,
    new_person_id,
    problem_of_name,
)
from app.store.metadata import MAX_FILTER_MEMBERS, check_filter, check_metadata


def _from_text(value: Any, example: str) -> Any:
    """Form fields carry JSON as text; a JSON body carries it as it is."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        raise ValueError(f"must be JSON, for example {example}. {error}") from error


def _json_object(value: Any) -> Any:
    value = _from_text(value, '{"team": "night"}')
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    return value


def _metadata(value: Any) -> Any:
    return check_metadata(_json_object(value))


def _filter(value: Any) -> Any:
    return check_filter(_json_object(value))


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must lie in the years 1 to 9999 of UTC") from None


def _utc_unless_zoned(value: datetime) -> datetime:
    return _in_utc(value) if value.tzinfo else value.replace(tzinfo=UTC)


# A time with its zone.
Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
# A day or a time; without a zone it is in UTC, as in the commands.
DayOrTime = Annotated[datetime, AfterValidator(_utc_unless_zoned)]


def _new_person_id(value: Any) -> Any:
    """Check an id but return it as sent: the store converts it to Unicode's Form C."""
    if isinstance(value, str):
        new_person_id(value)
    return value


def _name(value: str) -> str:
    if problem := problem_of_name(value):
        raise ValueError(problem)
    return value


Name = Annotated[str, AfterValidator(_name), Field(json_schema_extra={"pattern": NAME_PATTERN})]
Collection = Annotated[Name, Path()]
CollectionName = Annotated[Name, Field(description="Name of a collection.")]
PersonId = Annotated[
    str,
    BeforeValidator(_new_person_id),
    Field(
        description="Your own id of the person, stored in Unicode's Form C.",
        json_schema_extra={"maxLength": MAX_PERSON_ID, "example": "ada"},
    ),
]
KnownPersonId = Annotated[
    str,
    Field(
        description="The id of a person who is enrolled.",
        max_length=MAX_DECOMPOSED,
        json_schema_extra={"example": "ada"},
    ),
]
Metadata = Annotated[
    dict[str, Any],
    BeforeValidator(_metadata),
    Field(description="Your own data, as a JSON object."),
]
EnrolledMetadata = Annotated[
    dict[str, Any],
    BeforeValidator(_metadata),
    Field(
        description="Your own data, as a JSON object. It replaces the metadata of a person who "
        "exists, as a whole; without it the stored metadata stays."
    ),
]
Filter = Annotated[
    dict[str, Any],
    BeforeValidator(_filter),
    Field(
        description="Only persons whose metadata has these members with these values; at most "
        f"{MAX_FILTER_MEMBERS} members."
    ),
]
Embeddings = Annotated[
    # Otherwise each of a quarter of a million numbers could be a finding.
    list[Annotated[list[Annotated[float, Field(strict=True)]], Field(fail_fast=True)]],
    Field(fail_fast=True),
    BeforeValidator(partial(_from_text, example="[[0.12, -0.03]]")),
    Field(
        description="Embeddings of this embedding space instead of photos; at most "
        f"{MAX_VALUES:,} numbers in one call.",
        max_length=1000,
    ),
]
EmbeddingSpace = Annotated[
    str,
    Field(
        description="The embedding space that `embeddings` are of, as `model.embedding_space` of "
        "the answer that had them says. The call is refused if it is not that of the running pack.",
        max_length=64,
    ),
]
Selection = Annotated[
    FaceSelection,
    Field(
        description=(
            "Which face is used: `only` one (faces less than half as large are ignored; a "
            "photo with several is refused), the `largest`, or the one nearest the `centre`."
        )
    ),
]
MaxFaces = Annotated[
    int, Field(ge=1, le=1024, description="Number of faces to return, the largest first.")
]
Liveness = Annotated[
    bool,
    Field(
        description=(
            "Add to each face's `quality` the probability that the face is live; needs a model "
            "pack with liveness networks. It is computed from a single photo and is no proof."
        )
    ),
]


class CallFields(BaseModel):
    """What a call may set; an unknown member is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: Any) -> Any:
        """An optional field that is empty, as forms send it, counts as not sent."""
        if not isinstance(values, dict):
            return values
        optional = {name for name, one in cls.model_fields.items() if not one.is_required()}
        return {k: v for k, v in values.items() if v != "" or k not in optional}
