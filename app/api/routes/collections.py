"""`/v1/collections`: galleries with their policies."""

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from app.api.access import access_of
from app.api.fields import (
    CollectionUpdate,
    NewCollection,
)
from app.api.json_routes import JsonRoute
from app.api.pages import Cursor, Limit, cursor_to_key, next_cursor, within_bytes
from app.api.problems import ANY_BODY, ANY_WRITE, IN_COLLECTION, problems
from app.api.responses import AnswerHead, jobs_of
from app.api.schemas.galleries import (
    CollectionAnswer,
    CollectionInfo,
    CollectionList,
    DeletionReceipt,
)
from app.decision.calibrations import policy_of
from app.decision.thresholds import CollectionPolicy
from app.errors import (
    CollectionExists,
    CollectionNotFound,
    CollectionProtected,
    Forbidden,
    InvalidCursor,
)
from app.gallery.gallery import DEFAULT_COLLECTION, Gallery
from app.store.identifiers import COLLECTION_PATTERN
from app.store.metadata import problem_of
from app.store.records import CollectionRecord, DeletionCounts, Page

router = APIRouter(prefix="/v1/collections", tags=["collections"], route_class=JsonRoute)


Collection = Annotated[str, Path(pattern=COLLECTION_PATTERN)]


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
    """Only the values that were set: defaults may improve, and answers show which are defaults."""
    return policy.model_dump(mode="json", exclude_unset=True)


def deletion_members(head: AnswerHead, deletion: DeletionCounts) -> dict[str, Any]:
    """The members of a `DeletionReceipt`."""
    deleted = {"persons": deletion.persons, "faces": deletion.templates}
    return {**head.envelope(), "deleted": deleted, "erased": deletion.erased}


def _visible(
    gallery: Gallery, only: frozenset[str] | None, after: str | None, limit: int
) -> Page[CollectionRecord]:
    """A page of the collections that the access key is for."""
    if only is None:
        return gallery.store.collections(after, limit)
    items = []
    for name in sorted(one for one in only if after is None or one > after):
        with suppress(CollectionNotFound):
            items.append(gallery.store.collection(name))
    return Page(items[:limit], len(items) > limit)


@router.get("", response_model=CollectionList, responses=problems((InvalidCursor,)))
async def list_collections(request: Request, limit: Limit = 100, cursor: Cursor = None) -> Any:
    """List the collections, sorted by name."""
    head = AnswerHead(request)
    gallery, after = head.services.gallery, cursor_to_key(cursor)

    def work() -> tuple[Page[CollectionRecord], list[dict[str, Any]]]:
        found = _visible(gallery, access_of(request).collections, after, limit)
        page = within_bytes(found, lambda record: record.metadata)
        return page, [_collection_info(gallery, record) for record in page.items]

    page, items = await head.services.scheduler.read(work)
    return {**head.envelope(), "items": items, "next_cursor": next_cursor(page, lambda c: c.name)}


@router.post(
    "",
    response_model=CollectionAnswer,
    status_code=201,
    responses=problems(ANY_BODY, ANY_WRITE, (CollectionExists,)),
)
async def create_collection(request: Request, body: NewCollection) -> Any:
    """Create an empty collection, bound to the running pack's embedding space."""
    head = AnswerHead(request)
    if not access_of(request).sees(body.name):
        raise Forbidden(f"The access key is not for a collection named '{body.name}'.")
    gallery = head.services.gallery
    info = await head.services.scheduler.write(
        lambda: _collection_info(
            gallery, gallery.create_collection(body.name, body.metadata, _stored(body.policy))
        )
    )
    return {**head.envelope(), **info}


@router.get("/{collection}", response_model=CollectionAnswer, responses=problems(IN_COLLECTION))
async def read_collection(request: Request, collection: Collection) -> Any:
    """Read a collection, with the number of its persons and faces."""
    head = AnswerHead(request)
    gallery = head.services.gallery
    info = await head.services.scheduler.read(
        lambda: _collection_info(gallery, gallery.store.collection(collection))
    )
    return {**head.envelope(), **info}


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

    return {**head.envelope(), **await head.services.scheduler.write(update)}


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

    def delete() -> tuple[CollectionRecord, DeletionCounts]:
        record = gallery.store.collection(collection)
        deletion = gallery.store.delete_collection(collection)
        jobs.forget_collection(collection)
        return record, deletion

    record, deletion = await head.services.scheduler.delete(delete)
    erased = await head.services.scheduler.search(gallery.forget, record)
    return deletion_members(head, deletion.also(erased))
