"""`/v1/collections/{c}/persons/{p}/different-from`: persons who must never be confused."""

from typing import Any

from fastapi import APIRouter, Request

from app.api.json_routes import JsonRoute
from app.api.pages import Cursor, Limit, cursor_to_key, next_cursor
from app.api.problems import ANY_WRITE, IN_COLLECTION, problems
from app.api.responses import AnswerHead
from app.api.routes.collections import Collection
from app.api.schemas.pairs import PairAnswer, PairList, PairReceipt
from app.errors import InvalidCursor, PairNotFound, PersonNotFound
from app.store.records import DeclaredPair

router = APIRouter(
    prefix="/v1/collections/{collection}/persons/{person_id}/different-from",
    tags=["collections"],
    route_class=JsonRoute,
)


@router.post(
    "/{other_id}",
    response_model=PairAnswer,
    responses=problems(IN_COLLECTION, ANY_WRITE, (PersonNotFound,)),
)
async def declare_different(
    request: Request, collection: Collection, person_id: str, other_id: str
) -> Any:
    """Declare two persons to be different: twins, look-alikes, or one who was taken for the other.

    From then on identify and verify decide between the two only with a margin that is calculated
    for this pair; otherwise their answer is `ambiguous`. Hygiene does not list the pair again. The
    declaration has no direction, and declaring a pair again changes nothing. It enrolls nobody. It
    is kept until it is withdrawn, or until one of the two is deleted.
    """
    head = AnswerHead(request)
    store = head.services.gallery.store
    pair = await head.services.scheduler.write(
        store.declare_different, collection, person_id, other_id
    )
    return {**head.envelope(), "person_id": pair.person_id, **_pair(pair)}


@router.get(
    "",
    response_model=PairList,
    responses=problems(IN_COLLECTION, (PersonNotFound, InvalidCursor)),
)
async def list_different(
    request: Request,
    collection: Collection,
    person_id: str,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Any:
    """List the persons who are declared to be different from this one, sorted by id."""
    head = AnswerHead(request)
    page = await head.services.scheduler.read(
        head.services.gallery.store.different_from,
        collection, person_id, cursor_to_key(cursor), limit,
    )  # fmt: skip
    following = next_cursor(page, lambda pair: pair.other_id)
    return {
        **head.envelope(),
        "items": [_pair(pair) for pair in page.items],
        "next_cursor": following,
    }


@router.delete(
    "/{other_id}",
    response_model=PairReceipt,
    responses=problems(IN_COLLECTION, ANY_WRITE, (PersonNotFound, PairNotFound)),
)
async def withdraw_different(
    request: Request, collection: Collection, person_id: str, other_id: str
) -> Any:
    """Withdraw the declaration that two persons are different."""
    head = AnswerHead(request)
    store = head.services.gallery.store
    erased = await head.services.scheduler.delete(
        store.withdraw_different, collection, person_id, other_id
    )
    return {**head.envelope(), "erased": erased}


def _pair(pair: DeclaredPair) -> dict[str, Any]:
    return {"different_from": pair.other_id, "declared_at": pair.created_at}
