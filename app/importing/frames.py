"""The format of rows between the process that reads an archive and the service.

The service trusts nothing that it receives. Each row is a MessagePack map; metadata in it is JSON
text, because JSON has numbers that MessagePack has not.
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
        "quality": json.dumps(dict(row.quality)),
        "content_digest": row.content_digest,
        "face_id": row.face_id,
        "crop": None if row.crop is None else content_of(row.crop),
        "problem": problem and [problem.code, printable(problem.detail, MAX_DETAIL)],
        "without_face": row.without_face,
        "different_from": row.different_from,
    }
    return pack(ROW, members)


def unpack_row(members: Any) -> Row:
    """The row of a frame. Raises ValueError, TypeError, LookupError or RecursionError if it is
    invalid."""
    photo, crop, vector = members["photo"], members["crop"], members["embedding"]
    metadata, problem = members["metadata"], members["problem"]
    return Row(
        str(members["place"]),
        str(members["person_id"]),
        _reader(photo),
        None if vector is None else np.frombuffer(vector, "<f4"),
        None if metadata is None else dict(json.loads(metadata)),
        dict(json.loads(members["quality"])),
        members["content_digest"],
        members["face_id"],
        _reader(crop),
        problem and PROBLEMS.get(problem[0], ImportSourceError)(str(problem[1])),
        bool(members["without_face"]),
        None if members["different_from"] is None else str(members["different_from"]),
    )


def _reader(content: bytes | None) -> Callable[[], bytes] | None:
    return None if content is None else io.BytesIO(content).getvalue


def pack(kind: str, members: Any) -> bytes:
    """A frame."""
    packed: bytes = msgpack.packb([kind, members])
    return packed


def unpacker(max_bytes: int) -> Any:
    """An unpacker of frames whose photos have at most `max_bytes`."""
    return msgpack.Unpacker(max_buffer_size=2 * max_bytes + MAX_TEXT)
