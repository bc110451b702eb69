"""`/v1/audit`: who changed what. The command line has the same, `likeness audit`."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from fastapi import Query, Response
from pydantic import BaseModel, Field

from app.access.keys import Scope
from app.api.access import needs
from app.api.context import Context
from app.api.fields import CollectionName, DayOrTime
from app.api.json_bodies import JsonRoute
from app.api.problems import problems
from app.api.responses import MAX_PAGE, TIME, Answer, Example, with_example, written_answer
from app.api.routers import GalleryRouter
from app.store.sql.audit_log import AuditEntry, AuditFilter

router = GalleryRouter(prefix="/v1/audit", tags=["access"], route_class=JsonRoute)
MAX_SEQUENCE = 2**63 - 1


class AuditEntryInfo(BaseModel):
    """One change. `digest` is computed of the digest before it, `sequence` and `content`."""

    model_config = with_example()
    sequence: Annotated[int, Example(42)]
    at: Annotated[datetime, Example(TIME)]
    actor: Annotated[
        str,
        Field(
            description="key:ID, token:SUBJECT, caller, import:ID, user:NAME, or service; "
            "anonymous for refused calls without a valid key."
        ),
        Example("key:q7w2m9x4k6ab"),
    ]
    action: Annotated[str, Example("person.deleted")]
    outcome: Annotated[
        Literal["done", "denied", "limited", "failed"],
        Field(description="Not `done` for the actions call.denied, call.limited, call.failed."),
        Example("done"),
    ]
    collection: Annotated[str | None, Example("staff")] = None
    person: Annotated[
        int | None,
        Field(
            description="The person's number; after the person is deleted, nothing connects "
            "it with an id."
        ),
        Example(17),
    ] = None
    request_id: Annotated[str | None, Example("0d7c4c0b2c5f4c0c8f5d3b1f8e6a9b7d")] = None
    client: Annotated[
        str | None,
        Field(description="The address that the request came from."),
        Example("192.0.2.7"),
    ] = None
    details: Annotated[dict[str, Any], Example({"templates": 2})]
    content: Annotated[str, Example("{…}")]
    digest: Annotated[str, Field(description="In hexadecimal."), Example("5f" * 32)]

    @classmethod
    def of(cls, entry: AuditEntry) -> Self:
        """An entry as an answer shows it."""
        digest = entry.digest.hex()
        return cls(sequence=entry.sequence, content=entry.content, digest=digest, **entry.members)


class AuditPage(Answer):
    """Entries in the order in which they were written."""

    items: list[AuditEntryInfo]
    more: Annotated[bool, Field(description="Whether more entries follow."), Example(False)]


@router.get("", responses=problems(), response_model=AuditPage)
@needs(Scope.ADMIN)
async def list_audit(
    context: Context,
    *,
    after: Annotated[
        int, Query(ge=0, le=MAX_SEQUENCE, description="Only entries with a higher `sequence`.")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Entries on a page.")] = 100,
    actor: Annotated[
        str | None, Query(max_length=300, description="Only changes by this actor.")
    ] = None,
    action: Annotated[
        str | None, Query(max_length=40, description="Only this action, as `person.deleted`.")
    ] = None,
    collection: CollectionName | None = None,
    since: Annotated[
        DayOrTime | None,
        Query(description="Only entries since this day or time: 2026-11-26 (UTC)."),
    ] = None,
) -> Response:
    """List the entries of the audit log: who changed what, and when.

    Continue with `after`, the `sequence` of the last entry that you have. A page of long entries
    has fewer than `limit`.
    """
    wanted = AuditFilter(actor, action, collection, since=since)

    def answer() -> Response:  # written on the thread: a page of 1,000 entries took 30 ms
        entries, more = context.store.audit.page(after, limit, wanted)
        items = [AuditEntryInfo.of(one) for one in entries]
        return written_answer(AuditPage(items=items, more=more, **context.envelope()))

    return await context.read(answer)
