"""`/v1/collections/{c}/persons` and `…/faces`: who is enrolled, with which faces."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import TypeAdapter, ValidationError

from app.api.error_handlers import describe_validation
from app.api.fields import DeletePersons, Filter, NewPerson, PersonUpdate
from app.api.json_routes import JsonRoute
from app.api.pages import Cursor, Limit, cursor_to_key, next_cursor
from app.api.problems import ANY_BODY, ANY_WRITE, IN_COLLECTION, problems
from app.api.responses import AnswerHead, jobs_of
from app.api.routes.collections import Collection, deletion_members
from app.api.schemas.galleries import (
    DeletionReceipt,
    PersonAnswer,
    PersonInfo,
    PersonList,
    PersonsReceipt,
    StoredFaceAnswer,
    StoredFaceInfo,
    StoredFaceList,
)
from app.errors import FaceNotFound, InvalidCursor, InvalidRequest, PersonExists, PersonNotFound
from app.store.identifiers import MAX_PERSON_ID
from app.store.metadata import problem_of
from app.store.records import DeletionCounts, FaceRecord, Page, PersonRecord
from app.types import JsonObject

router = APIRouter(
    prefix="/v1/collections/{collection}", tags=["collections"], route_class=JsonRoute
)

_FILTER: TypeAdapter[JsonObject] = TypeAdapter(Filter)

Prefix = Annotated[
    str, Query(max_length=MAX_PERSON_ID, description="Only persons whose id begins with this.")
]
FilterText = Annotated[
    str | None,
    Query(description="A JSON object: only persons whose metadata has these members and values."),
]


def _parsed(text: str | None) -> JsonObject | None:
    """A filter given as text. Raises InvalidRequest."""
    try:
        return _FILTER.validate_python(text) if text else None
    except ValidationError as error:
        raise InvalidRequest(f"filter: {describe_validation(error.errors())}") from error


def person_info(record: PersonRecord) -> dict[str, Any]:
    """The members of a `PersonInfo`."""
    info = PersonInfo(
        person_id=record.person_id,
        metadata=dict(record.metadata),
        metadata_problem=problem_of(record.metadata),
        faces=record.templates,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )
    return info.model_dump()


def face_info(record: FaceRecord) -> dict[str, Any]:
    """The members of a `StoredFaceInfo`."""
    info = StoredFaceInfo(
        face_id=record.face_id,
        person_id=record.person_id,
        quality=dict(record.quality),
        quality_problem=problem_of(record.quality, "quality"),
        created_at=record.created_at,
    )
    return info.model_dump()


@router.get(
    "/persons",
    response_model=PersonList,
    responses=problems(IN_COLLECTION, (InvalidCursor,)),
)
async def list_persons(
    request: Request,
    collection: Collection,
    limit: Limit = 100,
    cursor: Cursor = None,
    *,
    prefix: Prefix = "",
    filter: FilterText = None,  # noqa: A002 (the API's name)
) -> Any:
    """List the persons of a collection, sorted by id.

    `prefix` and `filter` select persons by the beginning of the id and by metadata.
    """
    head = AnswerHead(request)
    store, after, wanted = head.services.gallery.store, cursor_to_key(cursor), _parsed(filter)

    def work() -> tuple[Page[PersonRecord], list[dict[str, Any]]]:
        page = store.persons(collection, after, limit, prefix=prefix, metadata=wanted)
        return page, [person_info(record) for record in page.items]

    page, items = await head.services.scheduler.read(work)
    following = next_cursor(page, lambda person: person.person_id)
    return {**head.envelope(), "items": items, "next_cursor": following}


@router.post(
    "/persons",
    response_model=PersonAnswer,
    status_code=201,
    responses=problems(IN_COLLECTION, ANY_BODY, ANY_WRITE, (PersonExists,)),
)
async def create_person(request: Request, collection: Collection, body: NewPerson) -> Any:
    """Create a person without faces.

    Enrolling a person who does not exist creates them too.
    """
    head = AnswerHead(request)
    store = head.services.gallery.store
    record = await head.services.scheduler.write(
        store.create_person, collection, body.person_id, body.metadata
    )
    return {**head.envelope(), **person_info(record)}


@router.get(
    "/persons/{person_id}",
    response_model=PersonAnswer,
    responses=problems(IN_COLLECTION, (PersonNotFound,)),
)
async def read_person(request: Request, collection: Collection, person_id: str) -> Any:
    """Read a person, with the number of their faces."""
    head = AnswerHead(request)
    store = head.services.gallery.store
    record = await head.services.scheduler.read(store.person, collection, person_id)
    return {**head.envelope(), **person_info(record)}


@router.patch(
    "/persons/{person_id}",
    response_model=PersonAnswer,
    responses=problems(IN_COLLECTION, ANY_BODY, ANY_WRITE, (PersonNotFound, PersonExists)),
)
async def update_person(
    request: Request, collection: Collection, person_id: str, body: PersonUpdate
) -> Any:
    """Replace a person's metadata, change their id, or both."""
    head = AnswerHead(request)
    store, jobs = head.services.gallery.store, jobs_of(request)

    def update() -> PersonRecord:
        if body.person_id is not None:
            store.person(collection, person_id)
            jobs.eraser.note(collection, person_id)  # no person has the id afterwards
        return store.update_person(collection, person_id, body.metadata, new_id=body.person_id)

    record = await head.services.scheduler.write(update)
    return {**head.envelope(), **person_info(record)}


@router.post(
    "/persons/delete",
    response_model=PersonsReceipt,
    responses=problems(IN_COLLECTION, ANY_BODY, ANY_WRITE),
)
async def delete_persons(request: Request, collection: Collection, body: DeletePersons) -> Any:
    """Delete several persons with all their faces, in one transaction.

    Ids that no person has are listed in `not_found`; the other persons are deleted all the same.
    """
    head = AnswerHead(request)
    gallery, jobs = head.services.gallery, jobs_of(request)

    def delete() -> tuple[DeletionCounts, list[str]]:
        noted = jobs.eraser.note(collection, *body.person_ids)
        deletion, missing = gallery.store.delete_persons(collection, body.person_ids)
        return deletion.also(noted), missing

    deletion, missing = await head.services.scheduler.delete(delete)
    erased = await head.services.scheduler.search(gallery.follow_deletion, collection)
    return {**deletion_members(head, deletion.also(erased)), "not_found": missing}


@router.delete(
    "/persons/{person_id}",
    response_model=DeletionReceipt,
    responses=problems(IN_COLLECTION, ANY_WRITE, (PersonNotFound,)),
)
async def delete_person(request: Request, collection: Collection, person_id: str) -> Any:
    """Delete a person with all their faces."""
    head = AnswerHead(request)
    gallery, jobs = head.services.gallery, jobs_of(request)

    def delete() -> DeletionCounts:
        gallery.store.person(collection, person_id)  # nothing is noted for an unknown person
        noted = jobs.eraser.note(collection, person_id)
        return gallery.store.delete_person(collection, person_id).also(noted)

    deletion = await head.services.scheduler.delete(delete)
    erased = await head.services.scheduler.search(gallery.follow_deletion, collection)
    return deletion_members(head, deletion.also(erased))


@router.get(
    "/faces",
    response_model=StoredFaceList,
    responses=problems(IN_COLLECTION, (InvalidCursor,)),
)
async def list_faces(
    request: Request, collection: Collection, limit: Limit = 100, cursor: Cursor = None
) -> Any:
    """List the stored faces of a collection."""
    return await _list_faces(request, collection, None, limit, cursor)


@router.get(
    "/persons/{person_id}/faces",
    response_model=StoredFaceList,
    responses=problems(IN_COLLECTION, (PersonNotFound, InvalidCursor)),
)
async def list_faces_of_person(
    request: Request,
    collection: Collection,
    person_id: str,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Any:
    """List the stored faces of a person."""
    return await _list_faces(request, collection, person_id, limit, cursor)


async def _list_faces(
    request: Request, collection: str, person_id: str | None, limit: int, cursor: str | None
) -> dict[str, Any]:
    head = AnswerHead(request)
    store, after = head.services.gallery.store, cursor_to_key(cursor)

    def work() -> tuple[Page[FaceRecord], list[dict[str, Any]]]:
        page = store.faces(collection, person_id, after, limit)
        return page, [face_info(record) for record in page.items]

    page, items = await head.services.scheduler.read(work)
    following = next_cursor(page, lambda face: face.face_id)
    return {**head.envelope(), "items": items, "next_cursor": following}


@router.get(
    "/faces/{face_id}",
    response_model=StoredFaceAnswer,
    responses=problems(IN_COLLECTION, (FaceNotFound,)),
)
async def read_face(request: Request, collection: Collection, face_id: str) -> Any:
    """Read the data of a stored face, without its photo and its embedding."""
    head = AnswerHead(request)
    store = head.services.gallery.store
    record = await head.services.scheduler.read(store.face, collection, face_id)
    return {**head.envelope(), **face_info(record)}


@router.delete(
    "/faces/{face_id}",
    response_model=DeletionReceipt,
    responses=problems(IN_COLLECTION, ANY_WRITE, (FaceNotFound,)),
)
async def delete_face(request: Request, collection: Collection, face_id: str) -> Any:
    """Delete a stored face; its person remains."""
    head = AnswerHead(request)
    gallery = head.services.gallery
    deletion = await head.services.scheduler.delete(gallery.store.delete_face, collection, face_id)
    erased = await head.services.scheduler.search(gallery.follow_deletion, collection)
    return deletion_members(head, deletion.also(erased))
