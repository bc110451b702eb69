"""A collection as a file that an import takes back: Parquet, JSON Lines, or a zip with crops."""

import importlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.disk import publish, unfinished
from app.errors import LikenessError
from app.importing.zips import line, new_bundle
from app.store.records import CollectionRecord, ExportedTemplate, PersonRecord
from app.store.sql.lookups import bound_to
from app.store.store import Store

ROWS_AT_ONCE = 2_048

Progress = Callable[[int], None]


class GalleryExportError(LikenessError):
    """A collection cannot be written; `detail` says why and what to do."""

    code, status, title = "export_error", 422, "The collection cannot be exported"


class _ExportedCollection:
    """What is exported: templates, the persons that have none, and who is declared different."""

    def __init__(self, store: Store, record: CollectionRecord, progress: Progress) -> None:
        self._store = store
        self._progress = progress
        self.record = record
        self.count = 0

    def templates(self) -> Iterator[Sequence[ExportedTemplate]]:
        after = 0
        while page := self._store.embeddings.exported(self.record.name, after, ROWS_AT_ONCE):
            after = page[-1].template_key
            yield page
            self.count += len(page)
            self._progress(self.count)

    def without_face(self) -> Iterator[dict[str, Any]]:
        more, after = True, None
        while more:
            page = self._store.persons.page(self.record.name, after, ROWS_AT_ONCE)
            yield from (_without_face(person) for person in page.items if not person.templates)
            more, after = page.more, page.items[-1].person_id if page.items else None

    def members(self, one: ExportedTemplate) -> dict[str, Any]:
        return {
            "person_id": one.person_id,
            "metadata": dict(one.metadata),
            "face_id": one.face_id,
            "quality": dict(one.quality),
            "content_digest": one.content_digest,
            "embedding_space": self.record.embedding_space,
            "embedding": one.embedding,
        }

    def declared(self) -> Iterator[dict[str, Any]]:
        """After the persons, so that an import finds both."""
        after: tuple[int, int] | None = None
        while page := self._store.pairs.page(self.record.name, after, ROWS_AT_ONCE):
            yield from (
                {"person_id": pair.person_id, "different_from": pair.other_id} for pair in page
            )
            after = page[-1].keys

    def without_embedding(self) -> Iterator[dict[str, Any]]:
        """What comes after the templates."""
        yield from self.without_face()
        yield from self.declared()


def _without_face(person: PersonRecord) -> dict[str, Any]:
    members = {"person_id": person.person_id, "metadata": dict(person.metadata)}
    return {**members, "without_face": True}


def export(store: Store, record: CollectionRecord, out: Path, progress: Progress) -> int:
    """Write a collection's persons, metadata, embeddings, kept crops and declared pairs to the new
    file `out`; how many templates. The file's suffix says which format: .parquet, .jsonl or .zip
    (the one with crops).

    All of it is of one state of the database, whatever is changed meanwhile. It appears under its
    name when it is whole, and the audit log has an entry before anything is written. Raises
    GalleryExportError, StoreFull if there is no room for the entry, and CollectionNotFound if the
    collection is deleted meanwhile.
    """
    writers = {".parquet": _parquet, ".jsonl": _jsonl, ".zip": _zip}
    if out.suffix not in writers:
        raise GalleryExportError(f"{out} does not end in one of {', '.join(writers)}.")
    if out.exists():
        raise GalleryExportError(f"{out} exists already; name another file.")
    written = unfinished(out)
    try:
        # It holds biometric data: its owner's alone, and no file that was there, nor a link.
        os.close(os.open(written, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise GalleryExportError(
            f"{written} exists, and {out} is written under that name first. Delete it if an "
            "earlier command left it; otherwise name another file."
        ) from None
    except OSError as error:
        raise _cannot_write(out, error) from error
    try:
        store.audit.record("collection.exported", record.name)
        with bound_to(record):
            with store.database.one_state():
                # As it is in this state: its embedding space may have been changed meanwhile.
                now = store.collections.get(record.name)
                source = _ExportedCollection(store, now, progress)
                writers[out.suffix](written, source)
            store.collections.get(record.name)  # it may have been deleted meanwhile
        publish(written, out)
    except OSError as error:
        raise _cannot_write(out, error) from error
    finally:
        written.unlink(missing_ok=True)
    return source.count


def _cannot_write(out: Path, error: OSError) -> GalleryExportError:
    return GalleryExportError(f"{out} cannot be written: {error.strerror}.")


def _jsonl(path: Path, source: _ExportedCollection) -> None:
    with path.open("wb") as file:
        for page in source.templates():
            file.writelines(line(source.members(one)) for one in page)
        file.writelines(line(members) for members in source.without_embedding())


def _zip(path: Path, source: _ExportedCollection) -> None:
    with new_bundle(str(path)) as bundle:
        for page in source.templates():
            for one in page:
                members = source.members(one)
                if one.crop is not None:
                    members["crop"] = bundle.add_file(f"crops/{one.face_id}.png", one.crop)
                bundle.add(members)
        for members in source.without_embedding():
            bundle.add(members)


def _parquet(path: Path, source: _ExportedCollection) -> None:
    try:
        pa, pq = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    except ModuleNotFoundError as error:
        raise GalleryExportError(
            "Parquet needs pyarrow, which is not installed: pip install 'likeness[parquet]'."
        ) from error
    dimension = source.record.dimension
    vector = pa.list_(pa.float32(), dimension)
    texts = (
        "person_id", "metadata", "face_id", "quality", "content_digest", "embedding_space",
        "different_from",
    )  # fmt: skip
    schema = pa.schema(
        [(name, pa.string()) for name in texts]
        + [("embedding", vector), ("without_face", pa.bool_())]
    )

    def table(rows: Sequence[dict[str, Any]], embeddings: Any) -> Any:
        columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in texts}
        for name in ("metadata", "quality"):
            columns[name] = [
                None if value is None else json.dumps(value) for value in columns[name]
            ]
        columns["embedding"] = embeddings
        columns["without_face"] = [row.get("without_face") for row in rows]
        return pa.table(columns, schema=schema)

    with pq.ParquetWriter(path, schema) as writer:
        for page in source.templates():
            flat = pa.array(np.concatenate([one.embedding for one in page]))
            embeddings = pa.FixedSizeListArray.from_arrays(flat, dimension)
            writer.write_table(table([source.members(one) for one in page], embeddings))
        rows = list(source.without_embedding())
        if rows:
            writer.write_table(table(rows, pa.nulls(len(rows), vector)))
