"""`/v1/collections/{c}/persons/{p}/different-from`: persons declared to be different."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field

from app.access.keys import Scope
from app.api.access import needs
from app.api.context import Context
from app.api.fields import Collection
from app.api.json_bodies import JsonRoute
from app.api.problems import ANY_WRITE, IN_COLLECTION, problems
from app.api.responses import (
    TIME,
    Answer,
    Cursor,
    Erased,
    Example,
    Limit,
    ListCursors,
    Listed,
)
from app.api.routers import GalleryRouter
from app.errors import InvalidCursor, PairNotFound, PersonNotFound
from app.store.records import DeclaredPair

router = GalleryRouter(
    prefix="/v1/collections/{collection}/persons/{person_id}/different-from",
    tags=["collections"],
    route_class=JsonRoute,
)


class PairInfo(BaseModel):
    different_from: Annotated[
        str, Field(description="The id of the other person."), Example("ada.twin")
    ]
    declared_at: Annotated[datetime, Example(TIME)]

    @classmethod
    def of(cls, pair: DeclaredPair, **others: Any) -> Self:
        """A pair as it is listed for one of the two; `others`: the members of a subclass."""
        return cls(different_from=pair.other_id, declared_at=pair.created_at, **others)


class PairAnswer(Answer, PairInfo):
    person_id: Annotated[str, Example("ada")]


class PairList(Listed):
    items: list[PairInfo]


class PairReceipt(Answer):
    """The declaration is withdrawn."""

    erased: Erased


@router.post("/{other_id}", responses=problems(IN_COLLECTION, ANY_WRITE, (PersonNotFound,)))
@needs(Scope.MANAGE)
async def declare_different(
    context: Context, collection: Collection, person_id: str, other_id: str
) -> PairAnswer:
    """Declare two persons to be different: twins, look-alikes, or one who was taken for the other.

    From then on identify and verify decide between the two only with a margin that is calculated
    for this pair; otherwise their answer is `ambiguous`. Hygiene does not list the pair again. The
    declaration has no direction, and declaring a pair again changes nothing. Nothing is enrolled.
    It is kept until it is withdrawn, or until one of the two is deleted.
    """
    pair = await context.write(context.store.pairs.declare, collection, person_id, other_id)
    return PairAnswer.of(pair, person_id=pair.person_id, **context.envelope())


@router.get("", responses=problems(IN_COLLECTION, (PersonNotFound, InvalidCursor)))
@needs(Scope.MANAGE)
async def list_different(
    context: Context,
    collection: Collection,
    person_id: str,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> PairList:
    """List the persons who are declared to be different from this one, sorted by id."""
    cursors = ListCursors("different-from", collection, person_id)
    after = cursors.key(cursor)
    page = await context.read(context.store.pairs.of_person, collection, person_id, after, limit)
    return PairList(
        items=[PairInfo.of(pair) for pair in page.items],
        next_cursor=cursors.following(page, lambda pair: pair.other_id),
        **context.envelope(),
    )


@router.delete(
    "/{other_id}", responses=problems(IN_COLLECTION, ANY_WRITE, (PersonNotFound, PairNotFound))
)
@needs(Scope.MANAGE)
async def withdraw_different(
    context: Context, collection: Collection, person_id: str, other_id: str
) -> PairReceipt:
    """Withdraw the declaration that two persons are different."""
    erased = await context.delete(context.store.pairs.withdraw, collection, person_id, other_id)
    return PairReceipt(erased=erased, **context.envelope())
