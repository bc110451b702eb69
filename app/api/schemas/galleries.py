"""What `/v1/collections`, their persons and their stored faces answer."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field

from app.api.schemas.common import MODEL, QUALITY, TIME, Answer, example
from app.decision.thresholds import CollectionPolicy
from app.store.records import Erasure

StoredProblem = Annotated[
    str | None,
    Field(
        description="Why the value shown is a corrected copy: an earlier version stored a value "
        "that is not allowed. Normally null."
    ),
]


class CollectionInfo(BaseModel):
    name: str
    embedding_space: str
    dimension: int
    persons: int
    faces: int
    metadata: dict[str, Any]
    metadata_problem: StoredProblem = None
    policy: CollectionPolicy
    calibration_id: Annotated[
        str | None,
        Field(description="The collection's own calibration; null if the model pack's is used."),
    ] = None
    created_at: datetime


class PersonInfo(BaseModel):
    person_id: str
    metadata: dict[str, Any]
    metadata_problem: StoredProblem = None
    faces: int
    created_at: datetime
    updated_at: datetime


class StoredFaceInfo(BaseModel):
    face_id: str
    person_id: str
    quality: dict[str, Any]
    quality_problem: StoredProblem = None
    created_at: datetime


_COLLECTION: dict[str, Any] = {
    "name": "default",
    "embedding_space": MODEL["embedding_space"],
    "dimension": 192,
    "persons": 2,
    "faces": 3,
    "metadata": {},
    "policy": CollectionPolicy().model_dump(),
    "calibration_id": None,
    "created_at": TIME,
}
_PERSON: dict[str, Any] = {
    "person_id": "obama",
    "metadata": {"office": "president"},
    "faces": 2,
    "created_at": TIME,
    "updated_at": TIME,
}
_STORED: dict[str, Any] = {
    "face_id": "7f8de8f5-53c9-4a52-9e3a-1d2b7f3f1f11",
    "person_id": "obama",
    "quality": QUALITY,
    "created_at": TIME,
}


class CollectionAnswer(Answer, CollectionInfo):
    model_config = example(**_COLLECTION)


class PersonAnswer(Answer, PersonInfo):
    model_config = example(**_PERSON)


class StoredFaceAnswer(Answer, StoredFaceInfo):
    model_config = example(**_STORED)


class Listed(Answer):
    next_cursor: Annotated[
        str | None, Field(description="Give it as `cursor` for the next page; null at the end.")
    ] = None


class CollectionList(Listed):
    model_config = example(items=[_COLLECTION], next_cursor=None)
    items: list[CollectionInfo]


class PersonList(Listed):
    model_config = example(items=[_PERSON], next_cursor=None)
    items: list[PersonInfo]


class StoredFaceList(Listed):
    model_config = example(items=[_STORED], next_cursor=None)
    items: list[StoredFaceInfo]


Erased = Annotated[
    Erasure,
    Field(
        description="`done`: the deleted bytes are gone from every file of the service. "
        "`pending`: some are left, because another process reads an older state of the "
        "database or owns the index's snapshot, or because reports of imports may name the "
        "person; the service erases them as soon as it can, also after a restart. "
        "With PostgreSQL always `pending`: its own VACUUM frees the bytes."
    ),
]


class DeletionReceipt(Answer):
    """What a deletion removed; searches no longer find it."""

    model_config = example(deleted={"persons": 1, "faces": 2}, erased="done")
    deleted: dict[str, int]
    erased: Erased


class PersonsReceipt(DeletionReceipt):
    """What was removed, and the ids that no person had."""

    model_config = example(deleted={"persons": 1, "faces": 2}, erased="done", not_found=["grace"])
    not_found: list[str]
