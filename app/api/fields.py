"""The fields of each call, checked before anything runs."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.api.json_bodies import MAX_VALUES, parse_json
from app.decision.policy import FaceSelection
from app.decision.thresholds import CollectionPolicy
from app.gallery.gallery import DEFAULT_COLLECTION
from app.store.identifiers import COLLECTION_PATTERN, MAX_DECOMPOSED, MAX_PERSON_ID, new_person_id
from app.store.metadata import MAX_FILTER_MEMBERS, check_filter, check_metadata

MAX_TOP_K = 100
MAX_PERSONS_AT_ONCE = 1000


def _from_text(value: Any) -> Any:
    """Form fields carry JSON as text; a JSON body carries it as it is."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        raise ValueError(f'must be JSON, for example {{"team": "night"}}. {error}') from error


def _json_object(value: Any) -> Any:
    value = _from_text(value)
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    return value


def _metadata(value: Any) -> Any:
    return check_metadata(_json_object(value))


def _filter(value: Any) -> Any:
    return check_filter(_json_object(value))


def _new_person_id(value: Any) -> Any:
    """Check an id but return it as sent: the store converts it to Unicode's Form C."""
    if isinstance(value, str):
        new_person_id(value)
    return value


CollectionName = Annotated[
    str, Field(pattern=COLLECTION_PATTERN, description="Name of a collection.")
]
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
Filter = Annotated[
    dict[str, Any],
    BeforeValidator(_filter),
    Field(
        description="Only persons whose metadata has these members with these values; at most "
        f"{MAX_FILTER_MEMBERS} members."
    ),
]
Embeddings = Annotated[
    list[list[float]],
    BeforeValidator(_from_text),
    Field(
        description="Embeddings of this embedding space instead of photos; at most "
        f"{MAX_VALUES:,} numbers in one call.",
        max_length=1000,
    ),
]
Threshold = Annotated[
    float,
    Field(ge=-1, le=1, description="Similarity from which two faces are one person."),
]
TargetFpir = Annotated[
    float,
    Field(
        gt=0,
        le=0.5,
        description="Share of searches for strangers that may find someone, at the gallery's size.",
    ),
]
TargetFmr = Annotated[
    float,
    Field(gt=0, le=0.5, description="Share of comparisons of different people that may match."),
]
Selection = Annotated[
    FaceSelection,
    Field(
        description="Which face counts: the only one (faces under half its size aside; several are "
        "refused), the largest, or the most central."
    ),
]
MaxFaces = Annotated[
    int, Field(ge=1, le=1024, description="Number of faces to return, the largest first.")
]


Liveness = Annotated[
    bool,
    Field(
        description="Report how likely each face is live, in its quality; needs a model pack with "
        "liveness networks. It is an indication from one photo, not a proof."
    ),
]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: Any) -> Any:
        """An optional field that is empty, as forms send it, counts as not sent."""
        if not isinstance(values, dict):
            return values
        optional = {name for name, one in cls.model_fields.items() if not one.is_required()}
        return {k: v for k, v in values.items() if v != "" or k not in optional}


class ThresholdFields(_Fields):
    """What decides: a similarity, or the error rate it shall keep; the collection's policy
    where none is given."""

    threshold: Threshold | None = None
    target_fpir: TargetFpir | None = None
    target_fmr: TargetFmr | None = None

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        given = [self.threshold, self.target_fpir, self.target_fmr]
        if sum(value is not None for value in given) > 1:
            raise ValueError("give one of threshold, target_fpir and target_fmr")
        return self


class DetectFields(_Fields):
    max_faces: MaxFaces | None = None
    liveness: Liveness = False


class EnrollFields(_Fields):
    person_id: PersonId
    collection: CollectionName = DEFAULT_COLLECTION
    metadata: Metadata | None = None
    face_selection: Selection = FaceSelection.ONLY
    embeddings: Embeddings | None = None


class VerifyFields(ThresholdFields):
    person_id: KnownPersonId | None = None
    collection: CollectionName = DEFAULT_COLLECTION
    face_selection: Selection = FaceSelection.LARGEST
    liveness: Liveness = False


class IdentifyFields(ThresholdFields):
    collection: CollectionName = DEFAULT_COLLECTION
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="Candidates for each face.")] = 5
    max_faces: MaxFaces | None = None
    filter: Filter | None = None
    liveness: Liveness = False
    one_person_once: Annotated[
        bool,
        Field(
            description="Assign each person to at most one face of a photo: the best "
            "assignment overall."
        ),
    ] = False


class NewCollection(_Fields):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "visitors", "policy": {"target_fpir": 0.003}}]}
    )
    name: CollectionName
    metadata: Metadata = {}
    policy: Annotated[CollectionPolicy, Field(description="How it decides.")] = CollectionPolicy()


class CollectionUpdate(_Fields):
    """Members that are given are replaced as a whole; others are not changed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"policy": {"target_fpir": 0.003, "identify_gate": {"min_face_size_px": 40}}}
            ]
        }
    )
    metadata: Metadata | None = None
    policy: CollectionPolicy | None = None


class NewPerson(_Fields):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"person_id": "ada", "metadata": {"team": "night"}}]}
    )
    person_id: PersonId
    metadata: Metadata = {}


class PersonUpdate(_Fields):
    """Members that are left out are not changed."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"metadata": {"team": "day"}, "person_id": "ada.l"}]}
    )
    metadata: Metadata | None = None
    person_id: Annotated[PersonId | None, Field(description="The person's new id.")] = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.metadata is None and self.person_id is None:
            raise ValueError("give metadata, a new person_id, or both")
        return self


class DeletePersons(_Fields):
    model_config = ConfigDict(json_schema_extra={"examples": [{"person_ids": ["ada", "grace"]}]})
    person_ids: Annotated[list[str], Field(min_length=1, max_length=MAX_PERSONS_AT_ONCE)]
