"""Reads Parquet tables a few rows at a time, so that memory does not grow with the file."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from app.importing.source_rows import ImportSourceError, Row
from app.importing.tables import (
    EMBEDDING,
    MAX_FIELD,
    PERSON,
    TableContext,
    check_columns,
    table_row,
)

ROWS_AT_ONCE = 256


def parquet_rows(path: Path, context: TableContext) -> Iterator[Row]:
    """The rows of a Parquet file. Raises ImportSourceError."""
    arrow, parquet = _arrow()
    try:
        texts = _texts(arrow, parquet.read_schema(path))
        # A text that is stored once for many rows is kept once.
        with parquet.ParquetFile(path, pre_buffer=False, read_dictionary=texts) as file:
            check_columns(file.schema_arrow.names, path.name)
            number = 0
            for batch in _batches(file):
                for record in _records(arrow, batch):
                    number += 1
                    yield _row(f"{path.name}:{number}", record, context)
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError) as error:
        # Arrow's own errors are subclasses of these.
        raise ImportSourceError(f"{path.name} is not a complete Parquet file: {error}") from error


def count_parquet(path: Path) -> int | None:
    """The number of rows in a Parquet file's footer; None if it is not a Parquet file."""
    _, parquet = _arrow()
    try:
        return int(parquet.read_metadata(path).num_rows)
    except (OSError, ValueError):
        return None


def _arrow() -> tuple[Any, Any]:
    try:  # heavy, and only these tables need it
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise ImportSourceError(
            "Parquet needs pyarrow, which is not installed: pip install 'likeness[parquet]'."
        ) from error


def _texts(arrow: Any, schema: Any) -> list[str]:
    types = arrow.types
    return [
        one.name for one in schema if types.is_string(one.type) or types.is_large_string(one.type)
    ]


def _batches(file: Any) -> Iterator[Any]:
    """Batches, one row group after the other: otherwise Arrow keeps all that it has read."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(ROWS_AT_ONCE, row_groups=[group], use_threads=False)


def _records(arrow: Any, batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a batch: by column a value, or an ImportSourceError if it cannot be read."""
    columns = {name: batch.column(name) for name in batch.schema.names}
    vectors = _matrix(arrow, columns[EMBEDDING]) if EMBEDDING in columns else None
    for index in range(batch.num_rows):
        record = {}
        for name, column in columns.items():
            regular = name == EMBEDDING and vectors is not None
            value = vectors[index] if regular and vectors is not None else _value(column, index)
            if value is not None:
                record[name] = value
        yield record


def _value(column: Any, index: int) -> Any:
    """One value as a Python object; converted singly, because many may be copies of a large one."""
    try:
        value = column[index].as_py()
    except (ValueError, OverflowError, TypeError, NotImplementedError) as error:
        return ImportSourceError(f"A value of {column.type} cannot be read: {error}.")
    if isinstance(value, str) and len(value) > MAX_FIELD:
        return ImportSourceError(f"The text has more than {MAX_FIELD:,} characters; shorten it.")
    return value


def _row(place: str, record: dict[str, Any], context: TableContext) -> Row:
    for name, value in record.items():
        if isinstance(value, ImportSourceError):
            person_id = record.get(PERSON)
            problem = ImportSourceError(f"{name}: {value.detail}")
            return Row(place, person_id if isinstance(person_id, str) else "", problem=problem)
    return table_row(place, record, context)


def _matrix(arrow: Any, column: Any) -> Any:
    """Embeddings converted at once to a matrix; None if their lengths differ."""
    types = arrow.types
    fixed = types.is_fixed_size_list(column.type)
    if not (fixed or types.is_list(column.type) or types.is_large_list(column.type)):
        return None
    value = column.type.value_type
    if not (types.is_floating(value) or types.is_integer(value)) or column.null_count:
        return None
    if not fixed and len(np.unique(np.diff(column.offsets.to_numpy()))) > 1:
        return None
    flat = column.flatten()
    if flat.null_count or not len(column) or len(flat) % len(column):
        return None
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)
