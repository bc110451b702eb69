"""Answers: the members of every one, their examples in the OpenAPI document, pages of lists, and
writing answers with many numbers."""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar, get_args

import orjson
from fastapi import Query, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from app.errors import InvalidCursor
from app.store.records import MAX_PAGE_BYTES, DeletionCounts, Erasure, Page

T = TypeVar("T")
MAX_PAGE = 1000
MARK_BYTES = 9

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Items on a page.")]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the previous page.")]
TIME = "2026-11-23T12:00:00Z"
MAX_AT_ONCE = 4  # items of a list that are written in one piece

# --- examples ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Example:
    """Annotates a field with its value in the example of its model. One that holds a model, or a
    list of them, has their example without it; one that has a default is left out without it."""

    value: Any


def with_example(**instead: Any) -> ConfigDict:
    """The `model_config` of a model with an example, made of those of its fields; `instead`
    replaces or adds members of it."""

    def add(schema: dict[str, Any], model: type[BaseModel]) -> None:
        schema["examples"] = [{**example_of(model, but=instead), **instead}]

    return ConfigDict(json_schema_extra=add)


def example_of(model: type[BaseModel], *, but: Collection[str] = ()) -> dict[str, Any]:
    """The examples of a model's fields, `but` of these. Raises LookupError for a required field
    without one."""
    found = {}
    for name, field in model.model_fields.items():
        if name in but:
            continue
        given = [one.value for one in field.metadata if isinstance(one, Example)]
        if given:
            found[name] = given[-1]
        elif field.is_required():
            found[name] = _nested_example(field, f"{model.__name__}.{name}")
    return found


def _nested_example(field: FieldInfo, name: str) -> Any:
    kind = field.annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return example_of(kind)
    for item in get_args(kind):
        if isinstance(item, type) and issubclass(item, BaseModel):
            return [example_of(item)]
    raise LookupError(f"{name} has no example: annotate it with Example(...)")


# --- members ----------------------------------------------------------------------------------


class ModelInfo(BaseModel):
    """The model pack that answered; equal embedding spaces can be compared."""

    pack: Annotated[str, Example("default")]
    version: Annotated[str, Example("2.0.0")]
    embedding_space: Annotated[str, Example("es-d95369e552dd4d70")]


class Answer(BaseModel):
    """What every answer carries."""

    model_config = with_example()
    request_id: Annotated[str | None, Example("0d7c4c0b2c5f4c0c8f5d3b1f8e6a9b7d")]
    model: ModelInfo
    timings_ms: Annotated[
        dict[str, float],
        Example(
            {
                "decode": 11.8,
                "detect": 50.9,
                "landmarks": 1.4,
                "align": 0.4,
                "embed": 10.2,
                "total": 75.8,
            }
        ),
    ]


StoredProblem = Annotated[
    str | None,
    Field(
        description="Why the value shown is a corrected copy: an earlier version stored a value "
        "that is not allowed. Normally null."
    ),
]
Erased = Annotated[
    Erasure,
    Field(
        description="`done`: the deleted bytes are erased from every file of the service. "
        "`pending`: some are left, because another process reads an older state of the "
        "database or owns the index's snapshot, or because reports of imports may name the "
        "person; the service erases them as soon as it can, also after a restart. "
        "With PostgreSQL always `pending`: its own VACUUM frees the bytes."
    ),
    Example("done"),
]


class DeletionReceipt(Answer):
    """What a deletion removed; searches no longer find it."""

    deleted: Annotated[dict[str, int], Example({"persons": 1, "faces": 2})]
    erased: Erased

    @classmethod
    def of(cls, deletion: DeletionCounts, **others: Any) -> Self:
        """The counts of a deletion, with the `others` members of the answer."""
        deleted = {"persons": deletion.persons, "faces": deletion.templates}
        return cls(deleted=deleted, erased=deletion.erased, **others)


def written_answer(answer: BaseModel) -> Response:
    """An answer as pydantic writes it, for a thread: FastAPI would write it on the event loop."""
    return Response(answer.model_dump_json(), media_type="application/json")


def json_answer(answer: BaseModel) -> Response:
    """An answer as JSON, arrays of numbers included: embeddings are most of its length, and
    pydantic would write them number by number.

    Long lists are written item by item, so that other threads have their turns between."""
    members = vars(answer)
    if not any(isinstance(value, list) and len(value) > MAX_AT_ONCE for value in members.values()):
        return Response(_json(members), media_type="application/json")
    written = (_json(name) + b":" + _json_of(value) for name, value in members.items())
    return Response(b"{" + b",".join(written) + b"}", media_type="application/json")


def _json_of(value: Any) -> bytes:
    if isinstance(value, list):
        return b"[" + b",".join(map(_json, value)) + b"]"
    return _json(value)


def _json(value: Any) -> bytes:
    return orjson.dumps(value, default=vars, option=orjson.OPT_SERIALIZE_NUMPY)


# --- pages of lists, limited in items and in bytes ---------------------------------------------


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


class ListCursors:
    """The cursors of one list: after a mark of the list each has the key of a page's last item, so
    that one of another list, or of other items of the same, is refused."""

    def __init__(self, *parts: str) -> None:
        """`parts`: the kind of list, where it is, and what selects its items."""
        text = json.dumps(parts).encode()
        self._mark = hashlib.blake2b(text, digest_size=MARK_BYTES).digest()

    def key(self, cursor: str | None) -> str | None:
        """The key after which the page begins; None for the first. Raises InvalidCursor."""
        if cursor is None:
            return None
        try:
            content = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True)
            if content.startswith(self._mark):
                return content[MARK_BYTES:].decode()
        except (binascii.Error, ValueError) as error:
            raise self.invalid() from error
        raise self.invalid()

    def following(self, page: Page[T], key: Callable[[T], str]) -> str | None:
        """The cursor of the page that follows; None for the last."""
        if not page.more:
            return None
        return base64.urlsafe_b64encode(self._mark + key(page.items[-1]).encode()).decode()

    @staticmethod
    def invalid() -> InvalidCursor:
        """What refuses a cursor."""
        return InvalidCursor(
            "The cursor is not a next_cursor of this list. Send one unchanged, with the path and "
            "the other parameters of the call that gave it (limit may differ), or send none."
        )
