"""Calls done once: `Idempotency-Key` of draft-ietf-httpapi-idempotency-key-header."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Header

from app.api.context import CallContext
from app.api.requests import Call, Fields
from app.errors import EnrolledBefore
from app.store.identifiers import REQUEST_KEY_PATTERN
from app.store.records import RequestKey
from app.types import JsonObject

REPLAYED = "Idempotency-Replayed"

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=REQUEST_KEY_PATTERN,
        description=(
            "A new name for each call, such as a UUID, 1 to 255 printable ASCII characters. A "
            "call that is sent again with the same key within 24 hours is not executed again."
        ),
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ),
]

REPLAYED_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            REPLAYED: {
                "description": "`true` if this is the stored answer of an earlier call with the "
                "same key.",
                "schema": {"type": "string", "const": "true"},
            }
        }
    }
}


async def answer_idempotently(
    context: CallContext,
    call: Call[Fields],
    collection: str,
    key: str | None,
    work: Callable[[RequestKey | None], Awaitable[JsonObject]],
) -> tuple[JsonObject, bool]:
    """Do the work of a call that writes to a collection, or give the answer that it was given
    before under the same key; whether it is that answer.

    The work gets the key under which its answer is kept. Raises IdempotencyKeyReused where the key
    belongs to another call.
    """
    if key is None:
        return await work(None), False
    request = await context.read(request_key, key, call)
    answered = context.store.idempotency.answered
    kept = await context.read(answered, collection, request)
    if kept is None:
        try:
            return await work(request), False
        except EnrolledBefore:  # the same call, sent twice at once: the other was first
            kept = await context.read(answered, collection, request)
            if kept is None:
                raise
    return kept, True


def request_key(key: str, call: Call[Fields]) -> RequestKey:
    """The key with a digest of all that decides what the call does: its fields and its photos,
    in whichever form they were sent."""
    asked = {
        **call.fields.model_dump(mode="json"),
        "image": [hashlib.sha256(photo).hexdigest() for photo in call.images],
    }
    return RequestKey(key, hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest())
