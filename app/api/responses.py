"""The members of every answer, and writing answers with many numbers."""

from typing import Annotated, Any, Self

import orjson
from fastapi import Response
from pydantic import BaseModel, Field

from app.api.examples import Example, with_example
from app.store.records import DeletionCounts, Erasure


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


def json_answer(answer: BaseModel) -> Response:
    """An answer as JSON, arrays of numbers included: embeddings are most of its length, and
    pydantic would write them number by number.

    Lists are written item by item, so that other threads have their turns between."""
    written = (_json(name) + b":" + _json_of(value) for name, value in vars(answer).items())
    return Response(b"{" + b",".join(written) + b"}", media_type="application/json")


def _json_of(value: Any) -> bytes:
    if isinstance(value, list):
        return b"[" + b",".join(map(_json, value)) + b"]"
    return _json(value)


def _json(value: Any) -> bytes:
    return orjson.dumps(value, default=vars, option=orjson.OPT_SERIALIZE_NUMPY)
