"""Tables: a person and a photo, or an embedding, a row. CSV, JSON Lines, Parquet."""

import csv
import importlib
import io
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

import numpy as np

from app.importing.rows import ImportSourceError, Row

PERSON, IMAGE, EMBEDDING, SPACE = "person_id", "image", "embedding", "embedding_space"
METADATA, QUALITY = "metadata", "quality"
# What an export adds.
FACE_ID, DIGEST, CROP, WITHOUT_FACE = "face_id", "content_digest", "crop", "without_face"
OWN = {
    PERSON, IMAGE, EMBEDDING, SPACE, METADATA, QUALITY, FACE_ID, DIGEST, CROP, WITHOUT_FACE,
}  # fmt: skip
SHA256 = re.compile(r"[0-9a-f]{64}")
# A field of a CSV may be a whole embedding, a line metadata beside it.
MAX_FIELD = 1_000_000
MAX_LINE = 4_000_000
PARQUET_ROWS_AT_ONCE = 2_048

FindPhoto = Callable[[str], Callable[[], bytes]]


@dataclass(frozen=True, slots=True)
class TableContext:
    """What the rows of a table refer to: `find` gives the reader of an image by its name in the
    table and raises ImportSourceError; embeddings must be of `space`, whatever else a row says,
    and are of `given_space` where it says nothing."""

    find: FindPhoto
    space: str
    given_space: str | None = None


def csv_rows(lines: TextIO, name: str, context: TableContext) -> Iterator[Row]:
    """The first line names the columns; those that have no meaning here are metadata."""
    csv.field_size_limit(MAX_FIELD)
    reader = csv.DictReader(_lines(lines, name))
    try:
        _check_columns(reader.fieldnames or (), name)
        for number, record in enumerate(reader, start=2):
            known = {
                key: _json_or_text(value) if key == EMBEDDING else value
                for key, value in record.items()
                if key is not None and value not in (None, "")
            }
            yield _row(f"{name}:{number}", known, context)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ImportSourceError(f"{name} is not a CSV in UTF-8: {error}.") from error


def jsonl_rows(lines: TextIO, name: str, context: TableContext) -> Iterator[Row]:
    """One JSON object a line."""
    try:
        for number, line in enumerate(_lines(lines, name), start=1):
            if not line.strip():
                continue
            place = f"{name}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                yield _row(place, record, context)
            else:
                yield Row(place, "", problem=ImportSourceError("The line is no JSON object."))
    except UnicodeDecodeError as error:
        raise ImportSourceError(f"{name} is not JSON Lines in UTF-8: {error}.") from error


def count_lines(file: IO[bytes]) -> int:
    """Lines, the last of which may lack its end."""
    lines, last = 0, b""
    while chunk := file.read(1 << 20):
        lines += chunk.count(b"\n")
        last = chunk[-1:]
    return lines + (last not in (b"", b"\n"))


def _lines(text: TextIO, name: str) -> Iterator[str]:
    """Lines, none of them longer than memory should bear."""
    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith("\n"):
            raise ImportSourceError(
                f"{name} has a line of more than {MAX_LINE:,} characters: it is no table."
            )
        yield line


def parquet_rows(path: Path, context: TableContext) -> Iterator[Row]:
    """A Parquet file, some rows at a time: memory does not grow with the file."""
    parquet = _parquet()
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            _check_columns(file.schema_arrow.names, path.name)
            number = 0
            for batch in _batches(file):
                for record in _records(batch):
                    number += 1
                    yield _row(f"{path.name}:{number}", record, context)
    except (OSError, ValueError) as error:  # Arrow's own are among these
        raise ImportSourceError(f"{path} is not a Parquet file: {error}") from error


def _batches(file: Any) -> Iterator[Any]:
    """A row group after the other: asked for all at once, Arrow keeps those that it has read."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(PARQUET_ROWS_AT_ONCE, row_groups=[group], use_threads=False)


def count_parquet(path: Path) -> int | None:
    """Rows of a Parquet file, by its footer; None for what is none."""
    try:
        return int(_parquet().read_metadata(path).num_rows)
    except (OSError, ValueError):
        return None


def _parquet() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")  # heavy, and only tables need it
    except ModuleNotFoundError as error:
        raise ImportSourceError(
            "Parquet needs pyarrow, which is not installed: pip install 'likeness[parquet]'."
        ) from error


def _records(batch: Any) -> Iterator[dict[str, Any]]:
    """Rows of a batch; embeddings as rows of one matrix, not number by number."""
    names = [name for name in batch.schema.names if name != EMBEDDING]
    columns = {name: batch.column(name).to_pylist() for name in names}
    vectors = _matrix(batch.column(EMBEDDING)) if EMBEDDING in batch.schema.names else None
    for index in range(batch.num_rows):
        record = {name: columns[name][index] for name in names if columns[name][index] is not None}
        if vectors is not None and vectors[index] is not None:
            record[EMBEDDING] = vectors[index]
        yield record


def _matrix(column: Any) -> Any:
    """Something with one vector a row, None for a missing one."""
    if column.null_count == 0:
        flat = column.flatten().to_numpy(zero_copy_only=False)
        if len(column) and len(flat) % len(column) == 0 and _regular(column):
            return flat.reshape(len(column), -1)
    return column.to_pylist()


def _regular(column: Any) -> bool:
    """Whether all its lists are as long as one another."""
    if hasattr(column.type, "list_size"):
        return True
    return len(np.unique(np.diff(column.offsets.to_numpy()))) <= 1


def _check_columns(names: Any, name: str) -> None:
    if PERSON not in names or not {IMAGE, EMBEDDING} & set(names):
        raise ImportSourceError(
            f"{name} needs the column {PERSON} and one of {IMAGE} and {EMBEDDING}; it has "
            f"{', '.join(names) or 'none'}."
        )


def _row(place: str, record: Mapping[str, Any], context: TableContext) -> Row:
    person_id = record.get(PERSON)
    if not isinstance(person_id, str):
        person_id = "" if person_id is None else str(person_id)
    others = {key: value for key, value in record.items() if key not in OWN}
    try:
        metadata = {**others, **_object(record, METADATA)} or None
        if record.get(EMBEDDING) is not None:
            _check_space(record.get(SPACE) or context.given_space, context.space)
            vector = np.asarray(record[EMBEDDING], np.float32)
            quality = _object(record, QUALITY)
            crop = record.get(CROP)
            return Row(
                place,
                person_id,
                embedding=vector,
                metadata=metadata,
                quality=quality,
                content_digest=_digest(record.get(DIGEST)),
                face_id=_face_id(record.get(FACE_ID)),
                crop=context.find(crop) if isinstance(crop, str) else None,
            )
        if _json_or_text(record.get(WITHOUT_FACE)) is True:
            return Row(place, person_id, metadata=metadata, without_face=True)
        if not isinstance(record.get(IMAGE), str):
            raise ImportSourceError(f"The row has neither {IMAGE} nor {EMBEDDING}.")
        return Row(place, person_id, context.find(record[IMAGE]), metadata=metadata)
    except ImportSourceError as problem:
        return Row(place, person_id, problem=problem)
    except (TypeError, ValueError):
        return Row(
            place, person_id, problem=ImportSourceError("The embedding is no list of numbers.")
        )


def _digest(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and SHA256.fullmatch(value)):
        return value
    raise ImportSourceError(f"{DIGEST} is no SHA-256 in hexadecimal.")


def _face_id(value: Any) -> str | None:
    try:
        return None if value is None else str(uuid.UUID(value))
    except (ValueError, AttributeError, TypeError):
        raise ImportSourceError(f"{FACE_ID} is no UUID.") from None


def _object(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = _json_or_text(record.get(key))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ImportSourceError(f"{key} is no JSON object.")
    return value


def _check_space(given: Any, wanted: str) -> None:
    if given is None:
        raise ImportSourceError(
            f"The row does not say which {SPACE} its embedding is of; say it there, or for all by "
            f"--space {wanted}."
        )
    if given != wanted:
        raise ImportSourceError(f"The embedding is of {given}; the collection is of {wanted}.")


def _json_or_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


@contextmanager
def text_of(binary: Any) -> Iterator[TextIO]:
    """UTF-8 text, with or without a byte order mark; the binary file stays open afterwards."""
    text = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
    try:
        yield text
    finally:
        text.detach()
