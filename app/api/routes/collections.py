"""`/v1/collections…`: galleries, their persons and their stored faces."""

import base64
import binascii
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Query, Request

from app.api.answers import AnswerHead, jobs_of
from app.api.fields import (
    CollectionUpdate,
    MetadataUpdate,
    NewCollection,
    NewPerson,
)
from app.api.json_routes import JsonRoute
from app.api.pages import within_bytes
from app.api.problems import ANY_BODY, ANY_WRITE, IN_COLLECTION, problems
from app.api.schemas.galleries import (
    CollectionAnswer,
    CollectionInfo,
    CollectionList,
    DeletionReceipt,
    PersonAnswer,
    PersonInfo,
    PersonList,
    StoredFaceAnswer,
    StoredFaceInfo,
    StoredFaceList,
)
from app.decision.calibrations import policy_of
from app.decision.rules import CollectionPolicy
from app.errors import (
    CollectionExists,
    CollectionProtected,
    FaceNotFound,
    InvalidCursor,
    PersonExists,
    PersonNotFound,
)
from app.gallery.gallery import DEFAULT_COLLECTION, Gallery
from app.gallery.identifiers import COLLECTION_PATTERN
from app.gallery.metadata import problem_of
from app.gallery.ports import CollectionRecord, FaceRecord, Page, PersonRecord, Receipt

router = APIRouter(prefix="/v1/collections", tags=["collections"], route_class=JsonRoute)

T = TypeVar("T")
MAX_PAGE = 1000

Collection = Annotated[str, Path(pattern=COLLECTION_PATTERN)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Items on a page.")]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.")]


def _cursor_to_key(cursor: str | None) -> str | None:
    if cursor is None:
        return None
    try:
        return base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidCursor("Give the next_cursor of an answer unchanged, or none.") from error


def _next_cursor(page: Page[T], key: Callable[[T], str]) -> str | None:
    return base64.urlsafe_b64encode(key(page.items[-1]).encode()).decode() if page.more else None


def _collection_info(gallery: Gallery, record: CollectionRecord) -> dict[str, Any]:
    counts = gallery.store.count(record)
    info = CollectionInfo(
        name=record.name,
        embedding_space=record.embedding_space,
        dimension=record.dimension,
        persons=counts.persons,
        faces=counts.templates,
        metadata=dict(record.metadata),
        metadata_problem=problem_of(record.metadata),
        policy=policy_of(record),
        calibration_id=record.calibration_id,
        created_at=record.created_at,
    )
    return info.model_dump()


def _stored(policy: CollectionPolicy) -> dict[str, Any]:
    """Only what was said: defaults may become better, and answers tell the two apart."""
    return policy.model_dump(mode="json", exclude_unset=True)


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


def _receipt(head: AnswerHead, receipt: Receipt) -> dict[str, Any]:
    deleted = {"persons": receipt.persons, "faces": receipt.templates}
    return {**head.members(), "deleted": deleted, "erased": receipt.erased}


# --- collections -----------------------------------------------------------------------------


@router.get("", response_model=CollectionList, responses=problems((InvalidCursor,)))
async def list_collections(request: Request, limit: Limit = 100, cursor: Cursor = None) -> Any:
    """List the collections, sorted by name."""
    head = AnswerHead(request)
    gallery, after = head.services.gallery, _cursor_to_key(cursor)

    def work() -> tuple[Page[CollectionRecord], list[dict[str, Any]]]:
        found = gallery.store.collections(after, limit)
        page = within_bytes(found, lambda record: record.metadata)
        return page, [_collection_info(gallery, record) for record in page.items]

    page, items = await head.services.scheduler.read(work)
    return {**head.members(), "items": items, "next_cursor": _next_cursor(page, lambda c: c.name)}


@router.post(
    "",
    response_model=CollectionAnswer,
    status_code=201,
    responses=problems(ANY_BODY, ANY_WRITE, (CollectionExists,)),
)
async def create_collection(request: Request, body: NewCollection) -> Any:
    """Create an empty collection, bound to the running pack's embedding space."""
    head = AnswerHead(request)
    gallery = head.services.gallery
    info = await head.services.scheduler.write(
        lambda: _collection_info(
            gallery, gallery.create_collection(body.name, body.metadata, _stored(body.policy))
        )
    )
    return {**head.members(), **info}


@router.get("/{collection}", response_model=CollectionAnswer, responses=problems(IN_COLLECTION))
async def read_collection(request: Request, collection: Collection) -> Any:
    """Read a collection, with the number of its persons and faces."""
    head = AnswerHead(request)
    gallery = head.services.gallery
    info = await head.services.scheduler.read(
        lambda: _collection_info(gallery, gallery.store.collection(collection))
    )
    return {**head.members(), **info}


@router.patch(
    "/{collection}",
    response_model=CollectionAnswer,
    responses=problems(IN_COLLECTION, ANY_BODY, ANY_WRITE),
)
async def update_collection(
    request: Request, collection: Collection, body: CollectionUpdate
) -> Any:
    """Replace a collection's metadata, its policy, or both."""
    head = AnswerHead(request)
    gallery = head.services.gallery

    def update() -> dict[str, Any]:
        stored = None if body.policy is None else _stored(body.policy)
        record = gallery.store.update_collection(collection, body.metadata, stored)
        if body.policy is not None and not body.policy.keep_crops:
            gallery.store.drop_crops(collection)
        return _collection_info(gallery, record)

    return {**head.members(), **await head.services.scheduler.write(update)}


@router.delete(
    "/{collection}",
    response_model=DeletionReceipt,
    responses=problems(IN_COLLECTION, ANY_WRITE, (CollectionProtected,)),
)
async def delete_collection(request: Request, collection: Collection) -> Any:
    """Delete a collection with all its persons, faces and imports.

    The default collection cannot be deleted.
    """
    head = AnswerHead(request)
    if collection == DEFAULT_COLLECTION:
        raise CollectionProtected(
            "The collection 'default' always exists; delete its persons instead."
        )
    gallery, jobs = head.services.gallery, jobs_of(request)

    def delete() -> tuple[CollectionRecord, Receipt]:
        record = gallery.store.collection(collection)
        receipt = gallery.store.delete_collection(collection)
        jobs.forget_collection(collection)
        return record, receipt

    record, receipt = await head.services.scheduler.write(delete)
    erased = await head.services.scheduler.search(gallery.forget, record)
    return _receipt(head, receipt.also(erased))


# --- persons ---------------------------------------------------------------------------------


@router.get(
    "/{collection}/persons",
    response_model=PersonList,
    responses=problems(IN_COLLECTION, (InvalidCursor,)),
)
async def list_persons(
    request: Request, collection: Collection, limit: Limit = 100, cursor: Cursor = None
) -> Any:
    """List the persons of a collection, sorted by id."""
    head = AnswerHead(request)
    store, after = head.services.gallery.store, _cursor_to_key(cursor)

    def work() -> Page[PersonRecord]:
        found = store.persons(collection, after, limit)
        return within_bytes(found, lambda record: record.metadata)

    page = await head.services.scheduler.read(work)
    items = [person_info(record) for record in page.items]
    following = _next_cursor(page, lambda person: person.person_id)
    return {**head.members(), "items": items, "next_cursor": following}


@router.post(
    "/{collection}/persons",
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
    return {**head.members(), **person_info(record)}


@router.get(
    "/{collection}/persons/{person_id}",
    response_model=PersonAnswer,
    responses=problems(IN_COLLECTION, (PersonNotFound,)),
)
async def read_person(request: Request, collection: Collection, person_id: str) -> Any:
    """Read a person, with the number of their faces."""
    head = AnswerHead(request)
    store = head.services.gallery.store
    record = await head.services.scheduler.read(store.person, collection, person_id)
    return {**head.members(), **person_info(record)}


@router.patch(
    "/{collection}/persons/{person_id}",
    response_model=PersonAnswer,
    responses=problems(IN_COLLECTION, ANY_BODY, ANY_WRITE, (PersonNotFound,)),
)
async def update_person(
    request: Request, collection: Collection, person_id: str, body: MetadataUpdate
) -> Any:
    """Replace a person's metadata."""
    head = AnswerHead(request)
    store = head.services.gallery.store
    record = await head.services.scheduler.write(
        store.update_person, collection, person_id, body.metadata
    )
    return {**head.members(), **person_info(record)}


@router.delete(
    "/{collection}/persons/{person_id}",
    response_model=DeletionReceipt,
    responses=problems(IN_COLLECTION, ANY_WRITE, (PersonNotFound,)),
)
async def delete_person(request: Request, collection: Collection, person_id: str) -> Any:
    """Delete a person with all their faces."""
    head = AnswerHead(request)
    gallery, jobs = head.services.gallery, jobs_of(request)

    def delete() -> Receipt:
        gallery.store.person(collection, person_id)  # of somebody unknown nothing is noted
        noted = jobs.eraser.note(collection, person_id)
        return gallery.store.delete_person(collection, person_id).also(noted)

    receipt = await head.services.scheduler.write(delete)
    erased = await head.services.scheduler.search(gallery.follow_deletion, collection)
    return _receipt(head, receipt.also(erased))


# --- faces -----------------------------------------------------------------------------------


@router.get(
    "/{collection}/faces",
    response_model=StoredFaceList,
    responses=problems(IN_COLLECTION, (InvalidCursor,)),
)
async def list_faces(
    request: Request, collection: Collection, limit: Limit = 100, cursor: Cursor = None
) -> Any:
    """List the stored faces of a collection."""
    return await _list_faces(request, collection, None, limit, cursor)


@router.get(
    "/{collection}/persons/{person_id}/faces",
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
    page = await head.services.scheduler.read(
        head.services.gallery.store.faces, collection, person_id, _cursor_to_key(cursor), limit
    )
    items = [face_info(record) for record in page.items]
    following = _next_cursor(page, lambda face: face.face_id)
    return {**head.members(), "items": items, "next_cursor": following}


@router.get(
    "/{collection}/faces/{face_id}",
    response_model=StoredFaceAnswer,
    responses=problems(IN_COLLECTION, (FaceNotFound,)),
)
async def read_face(request: Request, collection: Collection, face_id: str) -> Any:
    """Read what is known of a stored face.

    Neither its photo nor its embedding is answered.
    """
    head = AnswerHead(request)
    store = head.services.gallery.store
    record = await head.services.scheduler.read(store.face, collection, face_id)
    return {**head.members(), **face_info(record)}


@router.delete(
    "/{collection}/faces/{face_id}",
    response_model=DeletionReceipt,
    responses=problems(IN_COLLECTION, ANY_WRITE, (FaceNotFound,)),
)
async def delete_face(request: Request, collection: Collection, face_id: str) -> Any:
    """Delete a stored face; its person remains."""
    head = AnswerHead(request)
    gallery = head.services.gallery
    receipt = await head.services.scheduler.write(gallery.store.delete_face, collection, face_id)
    erased = await head.services.scheduler.search(gallery.follow_deletion, collection)
    return _receipt(head, receipt.also(erased))
