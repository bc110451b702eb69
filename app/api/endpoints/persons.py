"""`/v1/collections/{c}/persons`: who is enrolled."""

import json
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from fastapi import Query, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from app.access.keys import Scope
from app.api.access import needs
from app.api.context import Context
from app.api.fields import CallFields, Collection, Filter, Metadata, PersonId
from app.api.json_bodies import JsonRoute
from app.api.preconditions import ETAG, TAGGED, IfMatch, etag_of, unchanged
from app.api.problems import ANY_BODY, ANY_WRITE, IN_COLLECTION, describe_validation, problems
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
)
from app.api.routers import GalleryRouter
from app.errors import (
    ConsentMissing,
    InvalidCursor,
    InvalidRequest,
    PersonExists,
    PersonNotFound,
    PreconditionFailed,
)
from app.store.identifiers import MAX_PERSON_ID
from app.store.metadata import problem_of
from app.store.records import DeletionCounts, Page, PersonRecord
from app.store.sql.consents import BY_WITHDRAWAL
from app.types import JsonObject

router = GalleryRouter(
    prefix="/v1/collections/{collection}/persons", tags=["collections"], route_class=JsonRoute
)

MAX_PERSONS_AT_ONCE = 1000
_FILTER: TypeAdapter[JsonObject] = TypeAdapter(Filter)

Prefix = Annotated[
    str, Query(max_length=MAX_PERSON_ID, description="Only persons whose id begins with this.")
]
FilterText = Annotated[
    str | None,
    Query(description="A JSON object: only persons whose metadata has these members and values."),
]


class NewPerson(CallFields):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"person_id": "ada", "metadata": {"team": "night"}}]}
    )
    person_id: PersonId
    metadata: Metadata = Field(default={})


class PersonUpdate(CallFields):
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


class DeletionReason(StrEnum):
    """Why persons are deleted, for the audit log."""

    CONSENT_WITHDRAWN = BY_WITHDRAWAL
    REQUEST_OF_PERSON = "request_of_person"
    NO_LONGER_NEEDED = "no_longer_needed"


Reason = Annotated[DeletionReason | None, Query(description="Why; written to the audit log.")]


class DeletePersons(CallFields):
    model_config = ConfigDict(json_schema_extra={"examples": [{"person_ids": ["ada", "grace"]}]})
    person_ids: Annotated[list[str], Field(min_length=1, max_length=MAX_PERSONS_AT_ONCE)]
    reason: DeletionReason | None = None


class PersonInfo(BaseModel):
    person_id: Annotated[str, Example("obama")]
    metadata: Annotated[dict[str, Any], Example({"office": "president"})]
    metadata_problem: StoredProblem = None
    faces: Annotated[int, Example(2)]
    created_at: Annotated[datetime, Example(TIME)]
    updated_at: Annotated[datetime, Example(TIME)]

    @classmethod
    def of(cls, record: PersonRecord, **others: Any) -> Self:
        """A person of the database; `others`: the members of a subclass."""
        return cls(
            person_id=record.person_id,
            metadata=dict(record.metadata),
            metadata_problem=problem_of(record.metadata),
            faces=record.templates,
            created_at=record.created_at,
            updated_at=record.updated_at,
            **others,
        )


class PersonAnswer(Answer, PersonInfo):
    pass


class PersonList(Listed):
    items: list[PersonInfo]


class PersonsReceipt(DeletionReceipt):
    """What was removed, and the ids that no person had."""

    not_found: Annotated[list[str], Example(["grace"])]


@router.get("", responses=problems(IN_COLLECTION, (InvalidCursor,)))
@needs(Scope.MANAGE)
async def list_persons(
    context: Context,
    collection: Collection,
    limit: Limit = 100,
    cursor: Cursor = None,
    *,
    prefix: Prefix = "",
    filter: FilterText = None,  # noqa: A002 (the API's name)
) -> PersonList:
    """List the persons of a collection, sorted by id.

    `prefix` and `filter` select persons by the beginning of the id and by metadata.
    """
    wanted = _parsed(filter)
    cursors = ListCursors("persons", collection, prefix, json.dumps(wanted or {}, sort_keys=True))
    after = cursors.key(cursor)

    def work() -> tuple[Page[PersonRecord], list[PersonInfo]]:
        page = context.store.persons.page(collection, after, limit, prefix=prefix, metadata=wanted)
        return page, [PersonInfo.of(record) for record in page.items]

    page, items = await context.read(work)
    following = cursors.following(page, lambda person: person.person_id)
    return PersonList(items=items, next_cursor=following, **context.envelope())


def _parsed(text: str | None) -> JsonObject | None:
    """A filter given as text. Raises InvalidRequest."""
    try:
        return _FILTER.validate_python(text) if text else None
    except ValidationError as error:
        raise InvalidRequest(f"filter: {describe_validation(error.errors())}") from error


@router.post(
    "",
    status_code=201,
    responses=problems(IN_COLLECTION, ANY_BODY, ANY_WRITE, (PersonExists, ConsentMissing)),
)
@needs(Scope.MANAGE)
async def create_person(context: Context, collection: Collection, body: NewPerson) -> PersonAnswer:
    """Create a person without faces.

    Enrolling a photo under an id that no person has creates the person, too.
    """
    record = await context.write(
        context.store.persons.create, collection, body.person_id, body.metadata
    )
    return PersonAnswer.of(record, **context.envelope())


@router.get("/{person_id}", responses={**problems(IN_COLLECTION, (PersonNotFound,)), **TAGGED})
@needs(Scope.MANAGE)
async def read_person(
    context: Context, collection: Collection, person_id: str, response: Response
) -> PersonAnswer:
    """Read a person, with the number of their faces."""
    record = await context.read(context.store.persons.get, collection, person_id)
    response.headers[ETAG] = etag_of(record)
    return PersonAnswer.of(record, **context.envelope())


@router.patch(
    "/{person_id}",
    responses={
        **problems(
            IN_COLLECTION,
            ANY_BODY,
            ANY_WRITE,
            (PersonNotFound, PersonExists, ConsentMissing, PreconditionFailed),
        ),
        **TAGGED,
    },
)
@needs(Scope.MANAGE)
async def update_person(
    context: Context,
    collection: Collection,
    person_id: str,
    body: PersonUpdate,
    response: Response,
    *,
    if_match: IfMatch = None,
) -> PersonAnswer:
    """Replace a person's metadata, change their id, or both."""
    store, eraser = context.store, context.imports.eraser
    check = unchanged(if_match)

    def update() -> PersonRecord:
        if body.person_id is not None:
            check(store.persons.get(collection, person_id))
            eraser.note(collection, person_id)  # no person has the id afterwards
        return store.persons.update(
            collection, person_id, body.metadata, new_id=body.person_id, check=check
        )

    record = await context.write(update)
    response.headers[ETAG] = etag_of(record)
    return PersonAnswer.of(record, **context.envelope())


@router.post("/delete", responses=problems(IN_COLLECTION, ANY_BODY, ANY_WRITE))
@needs(Scope.MANAGE)
async def delete_persons(
    context: Context, collection: Collection, body: DeletePersons
) -> PersonsReceipt:
    """Delete several persons with all their faces, in one transaction.

    Ids that no person has are listed in `not_found`; the other persons are deleted.
    """
    store, eraser = context.store, context.imports.eraser

    def delete() -> tuple[DeletionCounts, list[str]]:
        # Others are neither noted nor deleted, even if they are enrolled meanwhile.
        known = store.persons.existing(collection, body.person_ids)
        noted = eraser.note(collection, *known)
        deletion, gone = store.persons.delete_many(collection, known, body.reason)
        found = set(known).difference(gone)
        missing = [one for one in dict.fromkeys(body.person_ids) if one not in found]
        return deletion.also(noted), missing

    deletion, missing = await context.delete(delete)
    erased = await context.search(context.gallery.follow_deletion, collection)
    return PersonsReceipt.of(deletion.also(erased), not_found=missing, **context.envelope())


@router.delete(
    "/{person_id}",
    responses=problems(IN_COLLECTION, ANY_WRITE, (PersonNotFound, PreconditionFailed)),
)
@needs(Scope.MANAGE)
async def delete_person(
    context: Context,
    collection: Collection,
    person_id: str,
    reason: Reason = None,
    if_match: IfMatch = None,
) -> DeletionReceipt:
    """Delete a person with all their faces."""
    store, eraser = context.store, context.imports.eraser
    check = unchanged(if_match)

    def delete() -> DeletionCounts:
        # Nothing is noted for a person who is unknown or was changed.
        check(store.persons.get(collection, person_id))
        noted = eraser.note(collection, person_id)
        return store.persons.delete(collection, person_id, reason, check=check).also(noted)

    deletion = await context.delete(delete)
    erased = await context.search(context.gallery.follow_deletion, collection)
    return DeletionReceipt.of(deletion.also(erased), **context.envelope())
