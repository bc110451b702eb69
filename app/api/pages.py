"""Pages of lists, limited in items and in bytes, and cursors to the next page."""

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Query
from pydantic import Field

from app.api.examples import Example
from app.api.responses import Answer
from app.errors import InvalidCursor
from app.store.records import MAX_PAGE_BYTES, Page

T = TypeVar("T")
MAX_PAGE = 1000

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Items on a page.")]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the previous page.")]


class Listed(Answer):
    """One page of a list."""

    next_cursor: Annotated[
        str | None,
        Field(description="Give it as `cursor` for the next page; null at the end."),
        Example(None),
    ] = None


def within_bytes(page: Page[T], metadata_of: Callable[[T], Mapping[str, Any]]) -> Page[T]:
    """The page, cut where its metadata gets too long, with at least one item; the other items are
    on the next page."""
    size = 0
    for number, item in enumerate(page.items):
        size += len(orjson.dumps(metadata_of(item)))
        if size > MAX_PAGE_BYTES and number:
            return Page(page.items[:number], True)
    return page


def cursor_to_key(cursor: str | None) -> str | None:
    """The key after which the page begins. Raises InvalidCursor."""
    if cursor is None:
        return None
    try:
        return base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidCursor(
            "The cursor is not a next_cursor of this API; send one unchanged, or none."
        ) from error


def next_cursor(page: Page[T], key: Callable[[T], str]) -> str | None:
    """The cursor of the page that follows; None for the last."""
    return base64.urlsafe_b64encode(key(page.items[-1]).encode()).decode() if page.more else None
