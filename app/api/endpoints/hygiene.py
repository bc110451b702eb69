"""`/v1/collections/{c}/hygiene`: what is probably wrong in a gallery, and putting it right."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from app.access.keys import Scope
from app.api.access import needs
from app.api.analysed_face import QualityInfo
from app.api.context import Context, client_watch
from app.api.decisions import Fmr, FmrInterval
from app.api.endpoints.faces import StoredFaceAnswer
from app.api.endpoints.persons import PersonAnswer
from app.api.fields import Collection, KnownPersonId, PersonId
from app.api.json_bodies import JsonRoute
from app.api.problems import ANY_BODY, ANY_WRITE, IN_COLLECTION, IN_SPACE, problems
from app.api.responses import Answer, Example
from app.api.routers import GalleryRouter
from app.decision.gallery_issues import Hygiene
from app.decision.hygiene import find_gallery_issues
from app.errors import (
    ConsentMissing,
    DeclaredDifferent,
    FaceNotFound,
    OtherFaceEnrolled,
    PersonNotFound,
)
from app.services import Services
from app.store.records import PersonRecord

router = GalleryRouter(
    prefix="/v1/collections/{collection}", tags=["hygiene"], route_class=JsonRoute
)

RETRY_AFTER_S = 30


class MoveTo(BaseModel):
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"person_id": "grace"}]}
    )
    person_id: Annotated[
        PersonId, Field(description="The person's id; a person who does not exist is created.")
    ]


class MergeInto(BaseModel):
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"into": "john.smith"}]}
    )
    into: Annotated[KnownPersonId, Field(description="The person who gets the faces.")]


OwnSimilarity = Annotated[
    float, Field(description="Similarity to the nearest other face of its person.")
]


class DuplicateInfo(BaseModel):
    person_id_a: Annotated[str, Example("j.smith")]
    person_id_b: Annotated[str, Example("john.smith")]
    face_id_a: Annotated[str, Example("7f8de8f5-53c9-4a52-9e3a-1d2b7f3f1f11")]
    face_id_b: Annotated[str, Example("0c1f3a52-64f7-4a0a-a1f5-55a3c6f0f6d2")]
    similarity: Annotated[float, Example(0.86)]
    fmr: Annotated[Fmr, Example(3e-08)] = None
    fmr_interval: Annotated[FmrInterval, Example([1e-08, 9e-08])] = None
    expected_by_chance: Annotated[
        float | None,
        Field(
            description="How many pairs of different people in the whole collection are expected "
            "to be at least this similar; null without a calibration, or if it cannot estimate so "
            "small a number."
        ),
        Example(0.12),
    ] = None


class MislabelInfo(BaseModel):
    face_id: str
    person_id: str
    looks_like: str
    similarity: float
    own_similarity: OwnSimilarity
    fmr: Fmr = None
    fmr_interval: FmrInterval = None


class OutlierInfo(BaseModel):
    face_id: str
    person_id: str
    own_similarity: OwnSimilarity
    fmr: Fmr = None
    fmr_interval: FmrInterval = None


class WeakInfo(BaseModel):
    face_id: str
    person_id: str
    reasons: list[str]
    quality: QualityInfo


class DegradedInfo(BaseModel):
    face_id: str
    person_id: str
    degradation: Annotated[
        float,
        Field(description="As in the answer of /v1/embed; it or `covering` is beyond its limit."),
    ]
    covering: Annotated[float | None, Field(description="As in the answer of /v1/embed.")] = None


class HygieneAnswer(Answer):
    """What may be wrong, the worst first; `counts` has the numbers of all findings."""

    persons: Annotated[int, Example(2883)]
    faces: Annotated[int, Example(6410)]
    threshold: Annotated[
        float,
        Field(description="Lowest similarity at which two faces were taken for the same person."),
        Example(0.59),
    ]
    duplicates_by_chance: Annotated[
        float | None,
        Field(
            description="How many of the duplicates are expected to be different people who look "
            "alike; null without a calibration."
        ),
        Example(0.4),
    ] = None
    mislabels_by_chance: Annotated[
        float | None,
        Field(
            description="How many of the mislabels are expected to be faces of the right person "
            "that resemble another person by chance; null without a calibration."
        ),
        Example(1.2),
    ] = None
    duplicates: list[DuplicateInfo]
    mislabels: Annotated[list[MislabelInfo], Example([])]
    outliers: Annotated[list[OutlierInfo], Example([])]
    weak: Annotated[list[WeakInfo], Example([])]
    degraded: Annotated[list[DegradedInfo], Example([])]
    counts: Annotated[
        dict[str, int],
        Example({"duplicates": 1, "mislabels": 0, "outliers": 0, "weak": 0, "degraded": 0}),
    ]


@router.get("/hygiene", responses=problems(IN_SPACE))
@needs(Scope.MANAGE)
async def hygiene(
    context: Context,
    collection: Collection,
    limit: Annotated[int, Query(ge=1, le=1000, description="Findings of each kind.")] = 100,
) -> HygieneAnswer:
    """Find possible duplicates, mislabels, outliers, weak single faces and degraded faces, the
    worst first.

    The findings are hints to be checked by a person; `…_by_chance` is how many of them are expected
    to be different people who look alike. Merge, move or delete what is wrong. Each template is
    searched for in the collection's index, which takes seconds for ten thousand.
    """
    with client_watch() as check:

        def work() -> HygieneAnswer:
            found = _examine(context.services, collection, limit, check)
            return HygieneAnswer(**asdict(found), **context.envelope())

        return await context.examine(work)


def _examine(services: Services, collection: str, limit: int, check: Callable[[], None]) -> Hygiene:
    with services.examining(RETRY_AFTER_S):
        return find_gallery_issues(
            services.gallery, services.calibrations, collection, lambda *_: check(), limit
        )


@router.post(
    "/persons/{person_id}/merge",
    responses=problems(
        IN_COLLECTION,
        ANY_BODY,
        ANY_WRITE,
        (PersonNotFound, DeclaredDifferent, ConsentMissing, OtherFaceEnrolled),
    ),
)
@needs(Scope.MANAGE)
async def merge_persons(
    context: Context, collection: Collection, person_id: str, body: MergeInto
) -> PersonAnswer:
    """Merge a person into another: move all faces to `into`, then delete the person in the path.

    This is one transaction. Persons declared to be different from the person in the path are then
    declared different from `into`. Two
    persons who are declared to be different from each other are not merged.
    """
    store, eraser = context.store, context.imports.eraser

    def merge() -> PersonRecord:
        store.persons.get(collection, person_id)
        eraser.note(collection, person_id)  # afterwards no person has this id
        return store.corrections.merge_persons(collection, person_id, body.into)

    merged = await context.write(merge)
    await context.search(context.gallery.follow_move, collection)
    return PersonAnswer.of(merged, **context.envelope())


@router.post(
    "/faces/{face_id}/move",
    responses=problems(
        IN_COLLECTION, ANY_BODY, ANY_WRITE, (FaceNotFound, ConsentMissing, OtherFaceEnrolled)
    ),
)
@needs(Scope.MANAGE)
async def move_face(
    context: Context, collection: Collection, face_id: str, body: MoveTo
) -> StoredFaceAnswer:
    """Assign a face to another person; it keeps its id.

    If the person has a face of that very photo already, this one is deleted, and the answer is the
    face that they have. (If embeddings are encrypted, the same photo is not recognised.)
    """
    moved = await context.write(
        context.store.corrections.move_face, collection, face_id, body.person_id
    )
    await context.search(context.gallery.follow_move, collection)
    return StoredFaceAnswer.of(moved, **context.envelope())
