"""`/v1/collections`: galleries with their policies."""

from datetime import datetime
from functools import partial
from typing import Annotated, Any, Self

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field, create_model

from app.access.keys import Scope
from app.api.access import needs
from app.api.context import CallContext, Context
from app.api.fields import CallFields, Collection, CollectionName, Metadata
from app.api.json_bodies import JsonRoute
from app.api.preconditions import ETAG, TAGGED, IfMatch, etag_of, unchanged
from app.api.problems import ANY_BODY, ANY_WRITE, IN_COLLECTION, problems
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
    within_bytes,
)
from app.api.routers import GalleryRouter
from app.decision.policy import CollectionPolicy, check_gates, policy_of
from app.errors import (
    CollectionExists,
    CollectionProtected,
    ConsentMissing,
    Forbidden,
    InvalidCursor,
    LivenessUnavailable,
    NotCalibrated,
    PreconditionFailed,
    RateOutOfReach,
)
from app.gallery.gallery import Gallery
from app.services import Services
from app.store.identifiers import DEFAULT_COLLECTION
from app.store.metadata import problem_of
from app.store.records import CollectionRecord, DeletionCounts, Page
from app.types import JsonObject

router = GalleryRouter(prefix="/v1/collections", tags=["collections"], route_class=JsonRoute)


class NewCollection(CallFields):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "visitors", "policy": {"target_fpir": 0.003}}]}
    )
    name: CollectionName
    metadata: Metadata = Field(default={})
    policy: Annotated[CollectionPolicy, Field(description="How it decides.")] = CollectionPolicy()


class _PolicyUpdate(BaseModel):
    """Members of a policy to be changed. Those that are left out stay as they are; null gives a
    member its default. A gate that is given replaces the whole gate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def merged(self, policy: JsonObject) -> JsonObject:
        """A stored policy, changed. Only members that were set are stored: the others follow the
        defaults of later versions."""
        changed = {**policy, **self.model_dump(mode="json", exclude_unset=True)}
        return {name: value for name, value in changed.items() if value is not None}


_FIELDS: dict[str, Any] = {
    name: (field.rebuild_annotation() | None, None)
    for name, field in CollectionPolicy.model_fields.items()
}
PolicyUpdate = create_model(
    "CollectionPolicyUpdate", __base__=_PolicyUpdate, __doc__=_PolicyUpdate.__doc__, **_FIELDS
)


class CollectionUpdate(CallFields):
    """Metadata is replaced as a whole. Of the policy only the members that are given are changed
    (as a JSON merge patch does, RFC 7396): null gives a member its default, a gate is replaced as a
    whole. `keep_crops` that is false or null deletes the kept crops."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"policy": {"target_fpir": 0.003, "identify_gate": {"min_face_size_px": 40}}}
            ]
        }
    )
    metadata: Metadata | None = None
    policy: PolicyUpdate | None = None


class CollectionInfo(BaseModel):
    name: Annotated[str, Example("default")]
    embedding_space: Annotated[str, Example("es-d95369e552dd4d70")]
    dimension: Annotated[int, Example(192)]
    persons: Annotated[int, Example(2)]
    faces: Annotated[int, Example(3)]
    metadata: Annotated[dict[str, Any], Example({})]
    metadata_problem: StoredProblem = None
    policy: Annotated[CollectionPolicy, Example(CollectionPolicy().model_dump())]
    calibration_id: Annotated[
        str | None,
        Field(description="The collection's own calibration; null if the model pack's is used."),
        Example(None),
    ] = None
    created_at: Annotated[datetime, Example(TIME)]

    @classmethod
    def of(cls, gallery: Gallery, record: CollectionRecord, **others: Any) -> Self:
        """Reads the number of persons and faces from the database; `others`: of a subclass."""
        counts = gallery.store.collections.count(record)
        return cls(
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
            **others,
        )


class CollectionAnswer(Answer, CollectionInfo):
    pass


class CollectionList(Listed):
    items: list[CollectionInfo]


def _stored(policy: CollectionPolicy) -> dict[str, Any]:
    """Only the values that were set: defaults may improve, and answers show which are defaults."""
    return policy.model_dump(mode="json", exclude_unset=True)


@router.get("", responses=problems((InvalidCursor,)))
@needs(Scope.MANAGE)
async def list_collections(
    context: Context, limit: Limit = 100, cursor: Cursor = None
) -> CollectionList:
    """List the collections, sorted by name."""
    cursors = ListCursors("collections")
    after = cursors.key(cursor)

    def work() -> tuple[Page[CollectionRecord], list[CollectionInfo]]:
        found = context.store.collections.page(after, limit, context.access.collections)
        page = within_bytes(found, lambda record: record.metadata)
        return page, [CollectionInfo.of(context.gallery, record) for record in page.items]

    page, items = await context.read(work)
    following = cursors.following(page, lambda record: record.name)
    return CollectionList(items=items, next_cursor=following, **context.envelope())


@router.post(
    "",
    status_code=201,
    responses=problems(
        ANY_BODY, ANY_WRITE, (CollectionExists, LivenessUnavailable, NotCalibrated, RateOutOfReach)
    ),
)
@needs(Scope.MANAGE)
async def create_collection(context: Context, body: NewCollection) -> CollectionAnswer:
    """Create an empty collection, bound to the running pack's embedding space."""
    if not context.access.sees(body.name):
        raise Forbidden(f"The access key is not for a collection named '{body.name}'.")

    def create() -> CollectionAnswer:
        _check(context.services, body.policy, None)
        record = context.gallery.create_collection(body.name, body.metadata, _stored(body.policy))
        return _answer(context, record)

    return await context.write(create)


@router.get("/{collection}", responses={**problems(IN_COLLECTION), **TAGGED})
@needs(Scope.MANAGE)
async def read_collection(
    context: Context, collection: Collection, response: Response
) -> CollectionAnswer:
    """Read a collection, with the number of its persons and faces."""

    def read() -> CollectionAnswer:
        record = context.store.collections.get(collection)
        response.headers[ETAG] = etag_of(record)
        return _answer(context, record)

    return await context.read(read)


@router.patch(
    "/{collection}",
    responses={
        **problems(
            IN_COLLECTION,
            ANY_BODY,
            ANY_WRITE,
            (
                LivenessUnavailable,
                NotCalibrated,
                RateOutOfReach,
                ConsentMissing,
                PreconditionFailed,
            ),
        ),
        **TAGGED,
    },
)
@needs(Scope.MANAGE)
async def update_collection(
    context: Context,
    collection: Collection,
    body: CollectionUpdate,
    response: Response,
    if_match: IfMatch = None,
) -> CollectionAnswer:
    """Replace a collection's metadata, change members of its policy, or both."""
    patch, check = body.policy, unchanged(if_match)

    def merged(known: CollectionRecord) -> JsonObject:
        assert patch is not None
        changed = patch.merged(known.policy)
        checked = CollectionPolicy.model_validate(changed)
        _check(context.services, checked, known)
        return changed

    def update() -> CollectionAnswer:
        policy = None if patch is None else merged
        record = context.store.collections.update(collection, body.metadata, policy, check=check)
        response.headers[ETAG] = etag_of(record)
        return _answer(context, record)

    return await context.write(update)


def _check(services: Services, policy: CollectionPolicy, known: CollectionRecord | None) -> None:
    """Refuse a policy that cannot be put to use in a collection, or in a new one (None)."""
    services.calibrations.check(policy, known)
    check_gates(policy, None if known is None else policy_of(known), services.measurable)


def _answer(context: CallContext, record: CollectionRecord) -> CollectionAnswer:
    return CollectionAnswer.of(context.gallery, record, **context.envelope())


@router.delete(
    "/{collection}", responses=problems(IN_COLLECTION, ANY_WRITE, (CollectionProtected,))
)
@needs(Scope.MANAGE)
async def delete_collection(context: Context, collection: Collection) -> DeletionReceipt:
    """Delete a collection with all its persons, faces and imports.

    The default collection cannot be deleted.
    """
    if collection == DEFAULT_COLLECTION:
        raise CollectionProtected(
            "The collection 'default' always exists; delete its persons instead."
        )

    def delete() -> tuple[CollectionRecord, DeletionCounts]:
        record = context.store.collections.get(collection)
        imports = partial(context.imports.forget_collection, collection)
        return record, context.store.collections.delete(collection, imports)

    record, deletion = await context.delete(delete)
    erased = await context.search(context.gallery.forget, record)
    return DeletionReceipt.of(deletion.also(erased), **context.envelope())
