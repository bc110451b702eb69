"""Pages of lists, bounded in bytes as well as in items."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import orjson

from app.gallery.ports import Page

T = TypeVar("T")
# Of metadata on one page; a thousand items of 16 KiB each would stop the event loop.
MAX_PAGE_BYTES = 256 * 1024


def within_bytes(page: Page[T], metadata_of: Callable[[T], Mapping[str, Any]]) -> Page[T]:
    """The page as far as its metadata fits, one item at least; the others are on the next page."""
    size = 0
    for number, item in enumerate(page.items):
        size += len(orjson.dumps(metadata_of(item)))
        if size > MAX_PAGE_BYTES and number:
            return Page(page.items[:number], True)
    return page
