"""A collection as a file that an import takes back: Parquet, JSON Lines, or a zip with crops."""

import importlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from app.gallery.ports import CollectionRecord, ExportedTemplate, TemplateStore
from app.importing.rows import ImportSourceError

ROWS_AT_ONCE = 2_048
CROPS, MANIFEST = "crops", "manifest.jsonl"

Pages = Iterator[Sequence[ExportedTemplate]]
Progress = Callable[[int], None]


def export(store: TemplateStore, record: CollectionRecord, out: Path, progress: Progress) -> int:
    """Write a collection's persons, metadata, embeddings and kept crops to the new file `out`; how
    many templates. The kind is told by its name: .parquet, .jsonl or .zip (the one with crops).

    It appears under its name when it is whole. Raises ImportSourceError.
    """
    writers = {".parquet": _parquet, ".jsonl": _jsonl, ".zip": _zip}
    if out.suffix not in writers:
        raise ImportSourceError(f"{out} should end in {', '.join(writers)}.")
    if out.exists():
        raise ImportSourceError(f"{out} exists already; name another file.")
    unfinished = out.with_name(f".{out.name}.unfinished")
    counted = [0]

    def pages() -> Pages:
        after = 0
        while page := store.exported(record.name, after, ROWS_AT_ONCE):
            after = page[-1].template_key
            yield page
            counted[0] += len(page)
            progress(counted[0])

    try:
        # It holds biometric data: its owner's alone.
        unfinished.touch(mode=0o600)
        writers[out.suffix](unfinished, pages(), record)
        unfinished.replace(out)
    except OSError as error:
        raise ImportSourceError(f"{out} cannot be written: {error.strerror}.") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return counted[0]


def _members(one: ExportedTemplate, record: CollectionRecord) -> dict[str, Any]:
    return {
        "person_id": one.person_id,
        "metadata": dict(one.metadata),
        "face_id": one.face_id,
        "quality": dict(one.quality),
        "content_digest": one.content_digest,
        "embedding_space": record.embedding_space,
        "embedding": one.embedding,
    }


def _line(members: dict[str, Any]) -> bytes:
    return orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def _jsonl(path: Path, pages: Pages, record: CollectionRecord) -> None:
    with path.open("wb") as file:
        for page in pages:
            file.writelines(_line(_members(one, record)) for one in page)


def _zip(path: Path, pages: Pages, record: CollectionRecord) -> None:
    """Crops as they come, then the table; an import reads the table first."""
    lines: list[bytes] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for page in pages:
            for one in page:
                members = _members(one, record)
                if one.crop is not None:
                    members["crop"] = f"{CROPS}/{one.face_id}.png"
                    archive.writestr(members["crop"], one.crop, zipfile.ZIP_STORED)
                lines.append(_line(members))
        archive.writestr(MANIFEST, b"".join(lines))


def _parquet(path: Path, pages: Pages, record: CollectionRecord) -> None:
    try:
        pa, pq = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    except ModuleNotFoundError as error:
        raise ImportSourceError(
            "Parquet needs pyarrow, which is not installed: pip install 'likeness[parquet]'."
        ) from error
    vector = pa.list_(pa.float32(), record.dimension)
    texts = ("person_id", "metadata", "face_id", "quality", "content_digest", "embedding_space")
    schema = pa.schema([(name, pa.string()) for name in texts] + [("embedding", vector)])
    with pq.ParquetWriter(path, schema) as writer:
        for page in pages:
            rows = [_members(one, record) for one in page]
            columns: dict[str, Any] = {name: [row[name] for row in rows] for name in texts}
            for name in ("metadata", "quality"):
                columns[name] = [json.dumps(value) for value in columns[name]]
            flat = np.concatenate([one.embedding for one in page])
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(
                pa.array(flat), record.dimension
            )
            writer.write_table(pa.table(columns, schema=schema))
