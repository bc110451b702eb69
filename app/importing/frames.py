"""The frames in which the process that reads an archive gives its rows.

A row is a MessagePack map without the members that are null or false; metadata in it is JSON text,
because JSON has numbers that MessagePack has not.
"""

import io
import json
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from app.errors import InvalidRequest, LikenessError, UnsupportedImage
from app.importing.outcomes import MAX_DETAIL, MAX_NAME
from app.importing.source_rows import (
    ImportSourceError,
    NotAPhoto,
    Row,
    UnreadableFile,
    content_of,
    printable,
    storable,
)

TOTAL, ROW, FAILED, END = "total", "row", "failed", "end"
# All of a row but its photo and its crop.
MAX_TEXT = 1 << 20
PROBLEMS = {
    one.code: one
    for one in (ImportSourceError, InvalidRequest, NotAPhoto, UnreadableFile, UnsupportedImage)
}


def pack_row(row: Row) -> bytes:
    """The frame of a row, with its photo."""
    try:
        return _packed(storable(row))
    except LikenessError as problem:  # data that the gallery would refuse is not sent
        return _packed(Row(row.place, row.person_id, problem=problem))


def _packed(row: Row) -> bytes:
    problem = row.problem
    vector = row.embedding
    members = {
        "place": printable(row.place),
        "person_id": printable(row.person_id, MAX_NAME),
        "photo": None if row.read is None else content_of(row.read),
        "embedding": None if vector is None else np.asarray(vector, "<f4").tobytes(),
        "metadata": None if row.metadata is None else json.dumps(dict(row.metadata)),
        "quality": json.dumps(dict(row.quality)) if row.quality else None,
        "content_digest": row.content_digest,
        "face_id": row.face_id,
        "crop": None if row.crop is None else content_of(row.crop),
        "problem": problem and [problem.code, printable(problem.detail, MAX_DETAIL)],
        "without_face": row.without_face,
        "different_from": row.different_from,
    }
    return pack(ROW, {k: v for k, v in members.items() if v is not None and v is not False})


def unpack_row(members: Any) -> Row:
    """The row of a frame. Raises ValueError, TypeError, LookupError or RecursionError if it is
    invalid."""
    if not isinstance(members, dict):
        raise ValueError("a row is no map")
    get = members.get
    place, person_id = str(get("place", "")), str(get("person_id", ""))
    if problem := get("problem"):  # an archive may have a million of these
        kind = PROBLEMS.get(problem[0], ImportSourceError)
        return Row(place, person_id, problem=kind(str(problem[1])))
    photo, vector, other = get("photo"), get("embedding"), get("different_from")
    without_face, metadata = bool(get("without_face")), get("metadata")
    if photo is None and vector is None and other is None and not without_face:
        raise ValueError("a row without content")
    return Row(
        place,
        person_id,
        _reader(photo),
        None if vector is None else np.frombuffer(vector, "<f4"),
        None if metadata is None else dict(json.loads(metadata)),
        dict(json.loads(get("quality", "{}"))),
        get("content_digest"),
        get("face_id"),
        _reader(get("crop")),
        without_face=without_face,
        different_from=None if other is None else str(other),
    )


def _reader(content: bytes | None) -> Callable[[], bytes] | None:
    return None if content is None else io.BytesIO(content).getvalue


def pack(kind: str, members: Any) -> bytes:
    """A frame of the reader process: its kind and its content, in MessagePack."""
    packed: bytes = msgpack.packb([kind, members])
    return packed


def unpacker(max_bytes: int) -> Any:
    """An unpacker of frames whose photos have at most `max_bytes`."""
    return msgpack.Unpacker(max_buffer_size=2 * max_bytes + MAX_TEXT)
