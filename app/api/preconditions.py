"""`If-Match` (RFC 9110): a change is made only to what its client has read."""

import hashlib
import re
from collections.abc import Callable
from typing import Annotated, Any

import orjson
from fastapi import Header

from app.errors import InvalidRequest, PreconditionFailed
from app.store.records import CollectionRecord, PersonRecord

ETAG = "ETag"
_TAG = re.compile(r'\s*(?:W/)?("[\x21\x23-\x7e]*")\s*(?:,|$)')

IfMatch = Annotated[
    str | None,
    Header(
        alias="If-Match",
        max_length=1024,
        description="An `ETag` of an earlier answer: if somebody has changed this since, nothing "
        "is done and the answer is 412.",
    ),
]

# The header of answers that have an entity tag.
TAGGED: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            ETAG: {
                "description": "Changes with the id and the metadata; for a collection with its "
                "metadata, policy and calibration. For `If-Match`.",
                "schema": {"type": "string"},
            }
        }
    }
}


def etag_of(record: PersonRecord | CollectionRecord) -> str:
    """The entity tag of what PATCH can change, and the calibration in use; not of faces."""
    match record:
        case PersonRecord():
            shown: list[Any] = [record.person_id]
        case CollectionRecord():
            shown = [record.name, dict(record.policy), record.calibration_id]
    content = [record.key, dict(record.metadata), *shown]
    written = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    return f'"{hashlib.sha256(written).hexdigest()[:32]}"'


def unchanged(if_match: str | None) -> Callable[[PersonRecord | CollectionRecord], None]:
    """A check of a record as it is before the change: raises PreconditionFailed if none of the
    entity tags of an `If-Match` is its own. Raises InvalidRequest if they are not entity tags."""
    wanted = None if if_match is None or if_match.strip() == "*" else _tags(if_match)

    def check(record: PersonRecord | CollectionRecord) -> None:
        if wanted is not None and etag_of(record) not in wanted:
            raise PreconditionFailed(
                "It was changed after the answer whose ETag is in If-Match. Read it again, and "
                "repeat the change with the new ETag."
            )

    return check


def _tags(text: str) -> set[str]:
    """The entity tags of a list. A weak one counts as well: a proxy that compresses an answer makes
    its tag weak, and here both stand for the same."""
    found, place = set(), 0
    while place < len(text) or not text:
        tag = _TAG.match(text, place)
        if tag is None:
            raise InvalidRequest(
                f"If-Match is {text[:80]!a}, not '*' or entity tags with their quotes, such as "
                '"5f8e…"; send the header ETag of an answer as it is.'
            )
        found.add(tag[1])
        place = tag.end()
    return found
