"""Analysed photos kept between runs, so that the second evaluation of a pack takes seconds.

A row is found by what was in the photo's file and by everything that shapes the answer, of which
the module `pipeline_digest` makes one digest. It holds biometric data, as the gallery does.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from app.disk import private_folder
from app.locks import new_lock
from app.types import AnalysedImage, Face, FloatArray, Quality

BUSY_TIMEOUT_S = 30


class _Damaged(Exception):
    """A row is not what was kept."""


class PhotoCache:
    """Analysed images by the digest of their file, in one SQLite file. Thread-safe.

    Readable by its owner alone. Two runs may share it: the second one writes the same content.
    If the file cannot be used, or stops being usable, the cache is off: it finds and keeps nothing.
    """

    def __init__(self, path: Path, pipeline: str, warn: Callable[[str], None]) -> None:
        """`pipeline`: the digest of what computes the answers. `warn` gets a sentence, once, where
        the file cannot be used."""
        self._path = path
        self._pipeline = pipeline
        self._warn = warn
        self._lock = new_lock("evaluation.cache")
        self._connection: sqlite3.Connection | None = None
        with self._disabled_on_error():
            private_folder(path.parent)
            # Created with its permissions, so that there is no moment without them.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._connection = sqlite3.connect(path, BUSY_TIMEOUT_S, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS photos (pipeline TEXT, photo TEXT, kind TEXT, "
                "answer BLOB, PRIMARY KEY (pipeline, photo, kind)) WITHOUT ROWID"
            )

    def get(self, photo: str, kind: str) -> AnalysedImage | None:
        """The answer for a photo's digest; None where there is none, or it cannot be read."""
        query = "SELECT answer FROM photos WHERE pipeline = ? AND photo = ? AND kind = ?"
        with self._lock, self._disabled_on_error():
            row = self._execute(query, photo, kind)
            return None if row is None else _unpack(row[0])

    def put(self, photo: str, kind: str, image: AnalysedImage) -> None:
        """Keep an answer."""
        packed = _pack(image)
        with self._lock, self._disabled_on_error():
            self._execute("INSERT OR REPLACE INTO photos VALUES (?, ?, ?, ?)", photo, kind, packed)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _execute(self, statement: str, *values: str | bytes) -> tuple[Any, ...] | None:
        """The first row of a statement whose first parameter is the pipeline; None if there is none
        and while the cache is off."""
        if self._connection is None:
            return None
        with self._connection:
            found = self._connection.execute(statement, (self._pipeline, *values))
            row: tuple[Any, ...] | None = found.fetchone()
        return row

    @contextmanager
    def _disabled_on_error(self) -> Iterator[None]:
        """A file that is locked, full, damaged or another user's must not end an evaluation that
        may have run for hours."""
        try:
            yield
        except (sqlite3.Error, OSError, _Damaged) as error:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            self._warn(
                f"{self._path} cannot be used ({reason}). The evaluation goes on without this "
                "cache. Delete the file if it is damaged, or do without it: --no-cache."
            )


def _pack(image: AnalysedImage) -> bytes:
    faces = [
        {
            "box": face.box.tolist(),
            "landmarks": face.landmarks.tolist(),
            "score": face.score,
            "quality": asdict(face.quality),
            "rotation": face.rotation,
            "embedding": None if face.embedding is None else face.embedding.astype("<f4").tobytes(),
        }
        for face in image.faces
    ]
    content = {
        "width": image.width,
        "height": image.height,
        "faces": faces,
        "faces_found": image.faces_found,
    }
    packed: bytes = msgpack.packb(content)
    return packed


def _unpack(packed: bytes) -> AnalysedImage:
    """The kept answer. Raises _Damaged for other content."""
    try:
        content = msgpack.unpackb(packed)
        faces = tuple(_face(members) for members in content["faces"])
        return AnalysedImage(content["width"], content["height"], faces, {}, content["faces_found"])
    except (ValueError, KeyError, TypeError) as error:
        raise _Damaged("a row in it is damaged") from error


def _face(members: Mapping[str, Any]) -> Face:
    embedding: FloatArray | None = None
    if members["embedding"] is not None:
        embedding = np.frombuffer(members["embedding"], dtype="<f4").astype(np.float32)
    return Face(
        np.array(members["box"], np.float32),
        np.array(members["landmarks"], np.float32),
        members["score"],
        Quality(**members["quality"]),
        embedding,
        rotation=members["rotation"],
    )
