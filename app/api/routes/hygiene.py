"""`/v1/collections/{c}/hygiene`: what is probably wrong in a gallery, and mending it."""

import threading
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from app.api.fields import KnownPersonId, PersonId
from app.api.json_routes import JsonRoute
from app.api.problems import ANY_BODY, ANY_WRITE, IN_COLLECTION, IN_SPACE, problems
from app.api.responses import AnswerHead, jobs_of
from app.api.routes.collections import Collection
from app.api.routes.persons import face_info, person_info
from app.api.schemas.galleries import PersonAnswer, StoredFaceAnswer
from app.api.schemas.hygiene import HygieneAnswer
from app.decision.hygiene import Hygiene, find_gallery_issues
from app.errors import DeadlineExceeded, DeclaredDifferent, FaceNotFound, Overloaded, PersonNotFound
from app.services import Services
from app.store.records import PersonRecord

router = APIRouter(prefix="/v1/collections/{collection}", tags=["hygiene"], route_class=JsonRoute)

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


@router.get("/hygiene", response_model=HygieneAnswer, responses=problems(IN_SPACE))
async def hygiene(
    request: Request,
    collection: Collection,
    limit: Annotated[int, Query(ge=1, le=1000, description="Findings of each kind.")] = 100,
) -> Any:
    """Find possible duplicates, mislabels, outliers and weak single faces, the worst first.

    The findings are hints to be checked by a person; `…_by_chance` is how many of them are expected
    to be different people who look alike. Merge, move or delete what is wrong. Each template is
    searched for in the collection's index, which takes seconds for ten thousand.
    """
    head = AnswerHead(request)
    unwanted = threading.Event()
    try:
        found = await head.services.scheduler.examine(
            _examine, head.services, collection, limit, unwanted
        )
    finally:
        unwanted.set()
    return {**head.envelope(), **asdict(found)}


def _examine(services: Services, collection: str, limit: int, unwanted: threading.Event) -> Hygiene:
    if not services.calibrating.acquire(blocking=False):
        raise Overloaded(
            "A collection is being examined; one at a time, try again later.",
            {"retry_after": RETRY_AFTER_S},
        )

    def go_on(_done: int, _total: int) -> None:
        if unwanted.is_set():  # nobody waits for the answer any more
            raise DeadlineExceeded("The client left.")

    try:
        return find_gallery_issues(
            services.gallery, services.calibrations, collection, go_on, limit
        )
    finally:
        services.calibrating.release()


@router.post(
    "/persons/{person_id}/merge",
    response_model=PersonAnswer,
    responses=problems(IN_COLLECTION, ANY_BODY, ANY_WRITE, (PersonNotFound, DeclaredDifferent)),
)
async def merge_persons(
    request: Request, collection: Collection, person_id: str, body: MergeInto
) -> Any:
    """Give all faces of a person to another and delete the first, in one transaction.

    Persons declared to be different from the first are then declared different from the other. Two
    persons who are declared to be different from each other are not merged.
    """
    head = AnswerHead(request)
    gallery, jobs = head.services.gallery, jobs_of(request)

    def merge() -> PersonRecord:
        gallery.store.person(collection, person_id)
        jobs.eraser.note(collection, person_id)  # afterwards no person has this id
        return gallery.store.merge_persons(collection, person_id, body.into)

    merged = await head.services.scheduler.write(merge)
    await head.services.scheduler.search(gallery.follow_move, collection)
    return {**head.envelope(), **person_info(merged)}


@router.post(
    "/faces/{face_id}/move",
    response_model=StoredFaceAnswer,
    responses=problems(IN_COLLECTION, ANY_BODY, ANY_WRITE, (FaceNotFound,)),
)
async def move_face(request: Request, collection: Collection, face_id: str, body: MoveTo) -> Any:
    """Assign a face to another person; it keeps its id."""
    head = AnswerHead(request)
    gallery = head.services.gallery
    moved = await head.services.scheduler.write(
        gallery.store.move_face, collection, face_id, body.person_id
    )
    await head.services.scheduler.search(gallery.follow_move, collection)
    return {**head.envelope(), **face_info(moved)}
