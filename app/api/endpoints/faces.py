"""`/v1/collections/{c}/faces`: the stored faces of a collection and of each person."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel

from app.access.keys import Scope
from app.api.access import needs
from app.api.analysed_face import QualityInfo
from app.api.context import CallContext, Context
from app.api.fields import Collection
from app.api.json_bodies import JsonRoute
from app.api.problems import ANY_WRITE, IN_COLLECTION, problems
from app.api.responses import (
    TIME,
    Answer,
    Cursor,
    DeletionReceipt,
    Example,
    Limit,
    ListCursors,
    Listed,
    StoredProblem,
    example_of,
)
from app.api.routers import GalleryRouter
from app.errors import FaceNotFound, InvalidCursor, PersonNotFound
from app.store.metadata import problem_of
from app.store.records import FaceRecord, Page

router = GalleryRouter(
    prefix="/v1/collections/{collection}", tags=["collections"], route_class=JsonRoute
)


class StoredFaceInfo(BaseModel):
    face_id: Annotated[str, Example("7f8de8f5-53c9-4a52-9e3a-1d2b7f3f1f11")]
    person_id: Annotated[str, Example("obama")]
    quality: Annotated[dict[str, Any], Example(example_of(QualityInfo))]
    quality_problem: StoredProblem = None
    created_at: Annotated[datetime, Example(TIME)]

    @classmethod
    def of(cls, record: FaceRecord, **others: Any) -> Self:
        """A face of the database; `others`: the members of a subclass."""
        return cls(
            face_id=record.face_id,
            person_id=record.person_id,
            quality=dict(record.quality),
            quality_problem=problem_of(record.quality, "quality"),
            created_at=record.created_at,
            **others,
        )


class StoredFaceAnswer(Answer, StoredFaceInfo):
    pass


class StoredFaceList(Listed):
    items: list[StoredFaceInfo]


@router.get("/faces", responses=problems(IN_COLLECTION, (InvalidCursor,)))
@needs(Scope.MANAGE)
async def list_faces(
    context: Context, collection: Collection, limit: Limit = 100, cursor: Cursor = None
) -> StoredFaceList:
    """List the stored faces of a collection."""
    return await _list(context, collection, None, limit, cursor)


@router.get(
    "/persons/{person_id}/faces",
    responses=problems(IN_COLLECTION, (PersonNotFound, InvalidCursor)),
)
@needs(Scope.MANAGE)
async def list_faces_of_person(
    context: Context,
    collection: Collection,
    person_id: str,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> StoredFaceList:
    """List the stored faces of a person."""
    return await _list(context, collection, person_id, limit, cursor)


async def _list(
    context: CallContext, collection: str, person_id: str | None, limit: int, cursor: str | None
) -> StoredFaceList:
    place = (collection,) if person_id is None else (collection, person_id)
    cursors = ListCursors("faces", *place)
    after = cursors.key(cursor)

    def work() -> tuple[Page[FaceRecord], list[StoredFaceInfo]]:
        page = context.store.templates.page(collection, person_id, after, limit)
        return page, [StoredFaceInfo.of(record) for record in page.items]

    page, items = await context.read(work)
    following = cursors.following(page, lambda face: face.face_id)
    return StoredFaceList(items=items, next_cursor=following, **context.envelope())


@router.get("/faces/{face_id}", responses=problems(IN_COLLECTION, (FaceNotFound,)))
@needs(Scope.MANAGE)
async def read_face(context: Context, collection: Collection, face_id: str) -> StoredFaceAnswer:
    """Read the data of a stored face, without its photo and its embedding."""
    record = await context.read(context.store.templates.get, collection, face_id)
    return StoredFaceAnswer.of(record, **context.envelope())


@router.delete(
    "/faces/{face_id}",
    responses=problems(IN_COLLECTION, ANY_WRITE, (FaceNotFound,)),
)
@needs(Scope.MANAGE)
async def delete_face(context: Context, collection: Collection, face_id: str) -> DeletionReceipt:
    """Delete a stored face; its person remains."""
    deletion = await context.delete(context.store.templates.delete, collection, face_id)
    erased = await context.search(context.gallery.follow_deletion, collection)
    return DeletionReceipt.of(deletion.also(erased), **context.envelope())
