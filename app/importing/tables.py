"""CSV and JSON Lines tables: each row has a person and a photo or an embedding."""

import csv
import io
import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from itertools import chain
from typing import IO, Any, TextIO

import numpy as np

from app.errors import LikenessError
from app.importing.source_rows import ImportSourceError, Row, person_text, printable
from app.types import FloatArray

PERSON, IMAGE, EMBEDDING, SPACE = "person_id", "image", "embedding", "embedding_space"
METADATA, QUALITY = "metadata", "quality"
# Columns with the numbers of the rows, which pandas writes into CSV and Parquet unasked.
INDEX = {"", "__index_level_0__"}
# What an export adds.
FACE_ID, DIGEST, CROP, WITHOUT_FACE = "face_id", "content_digest", "crop", "without_face"
DIFFERENT = "different_from"  # another person, not the one of the row
OWN = {
    PERSON, IMAGE, EMBEDDING, SPACE, METADATA, QUALITY, FACE_ID, DIGEST, CROP, WITHOUT_FACE,
    DIFFERENT,
}  # fmt: skip
NEEDED = {IMAGE, EMBEDDING, WITHOUT_FACE, DIFFERENT}  # one of them, beside the person
SHA256 = re.compile(r"[0-9a-f]{64}")
# A field of a CSV may be a whole embedding, a line metadata beside it.
MAX_FIELD = 1_000_000
MAX_LINE = 4_000_000
SEPARATORS = ",;\t"  # of a CSV: spreadsheets choose by country

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
    """Columns without a meaning here are metadata. Rows whose fields are all empty are left out."""
    csv.field_size_limit(MAX_FIELD)
    bounded = _Lines(lines, name)
    first, passed = bounded.first()
    reader = csv.DictReader(chain([first], bounded), delimiter=_separator(first))
    try:
        check_columns(reader.fieldnames or (), name)
        while True:
            bounded.start_record()
            record = next(reader, None)
            if record is None:
                return
            # A value is text, None if the row is short, or the list of fields too many.
            if not any(any(value or ()) for value in record.values()):
                continue
            place = f"{name}:{passed + reader.line_num}"
            if None in record:  # more fields than columns
                yield Row(place, printable(record[PERSON] or ""), problem=_too_many(record))
                continue
            known = {k: v for k, v in record.items() if v not in (None, "")}
            yield _checked_row(place, known, context)
    except csv.Error as error:
        raise ImportSourceError(
            f"{name} is not valid CSV at line {passed + reader.line_num}: {error}."
        ) from error


def _separator(first_line: str) -> str:
    """The separator with which the line has a column `person_id`; otherwise the comma."""
    for separator in SEPARATORS:
        try:
            if PERSON in next(csv.reader([first_line], delimiter=separator), []):
                return separator
        except csv.Error:
            continue
    return ","


def _too_many(record: dict[Any, Any]) -> ImportSourceError:
    columns = len(record) - 1
    return ImportSourceError(
        f"The row has {columns + len(record[None])} fields, and the table has {columns} columns; "
        "put fields that contain the separator into quotes."
    )


def jsonl_rows(lines: TextIO, name: str, context: TableContext) -> Iterator[Row]:
    """One JSON object per line."""
    bounded = _Lines(lines, name)
    for number, line in enumerate(bounded, start=1):
        bounded.start_record()
        if not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            yield table_row(place, _json_object(line), context)
        except ImportSourceError as problem:
            yield Row(place, "", problem=problem)


def _json_object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(_utf8(line))
    except (ValueError, RecursionError) as error:
        raise ImportSourceError(f"The line is not valid JSON: {error}.") from error
    if not isinstance(record, dict):
        raise ImportSourceError("The line is not a JSON object.")
    return record


TABLES: dict[str, Callable[[TextIO, str, TableContext], Iterator[Row]]] = {
    ".csv": csv_rows, ".jsonl": jsonl_rows, ".ndjson": jsonl_rows,
}  # fmt: skip


def is_manifest(name: str) -> bool:
    """Whether a file's name says that it is the table of its archive."""
    stem, _, suffix = name.lower().rpartition(".")
    return stem in ("manifest", "persons") and f".{suffix}" in TABLES


def has_columns(text: TextIO, suffix: str) -> bool:
    """Whether a table names persons and what shows them, by its first line that is not empty."""
    try:
        line, _ = _Lines(text, "It").first()
        if suffix == ".csv":
            names = set(next(csv.reader([line], delimiter=_separator(line)), []))
        else:
            names = set(_json_object(line))
    except (csv.Error, ImportSourceError):
        return False
    return PERSON in names and bool(NEEDED & names)


def count_rows(file: IO[bytes], suffix: str) -> int:
    """Lines, the last of which may lack its end; of a CSV without the first."""
    lines, last = 0, b""
    while chunk := file.read(1 << 20):
        lines += chunk.count(b"\n")
        last = chunk[-1:]
    return max(0, lines + (last not in (b"", b"\n")) - (suffix == ".csv"))


class _Lines:
    """The lines of a table, with a limit on the length of a record."""

    def __init__(self, text: TextIO, name: str) -> None:
        self._text, self._name = text, name
        self._left = MAX_LINE

    def first(self) -> tuple[str, int]:
        """The first line that is not empty, and how many were passed over; "" if there is none."""
        for passed, line in enumerate(self):
            if line.strip():
                return line, passed
        return "", 0

    def start_record(self) -> None:
        """Begin another record: a CSV record can have several lines in quoted fields."""
        self._left = MAX_LINE

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._left + 1)
        if not line:
            raise StopIteration
        self._left -= len(line)
        if self._left < 0:
            raise ImportSourceError(
                f"{self._name} has a row of more than {MAX_LINE:,} characters: it is not a table, "
                "or a quote is missing."
            )
        return line


def _utf8(text: str) -> str:
    """The text, if it was UTF-8. Raises ImportSourceError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ImportSourceError("The row is not UTF-8; save the table as UTF-8.") from None
    return text


def check_columns(names: Any, name: str) -> None:
    """Raise ImportSourceError where a table lacks what it needs."""
    if any("\0" in one for one in names):  # every second byte, for most letters
        raise ImportSourceError(
            f"{name} is text in UTF-16; save it as UTF-8 (in a spreadsheet: CSV UTF-8)."
        )
    if PERSON not in names or not NEEDED & set(names):
        raise ImportSourceError(
            f"{name} needs the column {PERSON} and one of {', '.join(sorted(NEEDED))}; it has "
            f"{printable(', '.join(names)) or 'none'}. A table is text in UTF-8."
        )
    if twice := [one for one, times in Counter(names).items() if one and times > 1]:
        raise ImportSourceError(
            f"{name} has several columns {printable(twice[0])}; remove or rename all but one."
        )


def _checked_row(place: str, record: Mapping[str, str], context: TableContext) -> Row:
    """The row of a CSV record, with a problem if its text is not UTF-8."""
    try:
        for value in record.values():
            if not value.isascii():
                _utf8(value)
    except ImportSourceError as problem:
        return Row(place, printable(record.get(PERSON) or ""), problem=problem)
    return table_row(place, record, context)


def table_row(place: str, record: Mapping[str, Any], context: TableContext) -> Row:
    """The row of one record; what is wrong with the record is the row's problem."""
    person_id = ""
    try:
        person_id = person_text(record.get(PERSON))
        others = {key: value for key, value in record.items() if key not in OWN | INDEX}
        if record.get(DIFFERENT) is not None:
            return Row(place, person_id, different_from=_other_person(record))
        metadata = _jsonable({**others, **_object(record, METADATA)}) or None
        if record.get(EMBEDDING) is not None:
            _check_space(record.get(SPACE) or context.given_space, context.space)
            crop = record.get(CROP)
            return Row(
                place,
                person_id,
                embedding=_vector(_json_or_text(record[EMBEDDING])),
                metadata=metadata,
                quality=_object(record, QUALITY),
                content_digest=_digest(record.get(DIGEST)),
                face_id=_face_id(record.get(FACE_ID)),
                crop=context.find(crop) if isinstance(crop, str) else None,
            )
        if _json_or_text(record.get(WITHOUT_FACE)) is True:
            return Row(place, person_id, metadata=metadata, without_face=True)
        if not isinstance(record.get(IMAGE), str):
            raise ImportSourceError(f"The row has neither {IMAGE} nor {EMBEDDING}.")
        return Row(place, person_id, context.find(record[IMAGE]), metadata=metadata)
    except LikenessError as problem:
        return Row(place, person_id, problem=problem)
    except RecursionError:  # far deeper than metadata may be
        return Row(place, person_id, problem=ImportSourceError("The row is nested too deeply."))


def _other_person(record: Mapping[str, Any]) -> str:
    if any(record.get(name) is not None for name in (IMAGE, EMBEDDING, WITHOUT_FACE)):
        raise ImportSourceError(
            f"The row has {DIFFERENT} beside a face; put it into a row of its own, after those of "
            "the two persons."
        )
    return person_text(record[DIFFERENT], DIFFERENT)


def _vector(value: Any) -> FloatArray:
    # NumPy would take texts, true and null for numbers.
    if isinstance(value, list) and any(isinstance(one, str | bool | None) for one in value):
        raise ImportSourceError("The embedding is not a list of numbers.")
    with suppress(TypeError, ValueError, OverflowError), np.errstate(over="ignore"):
        vector = np.asarray(value, np.float32)  # what is infinite then is refused as such
        if vector.ndim == 1:
            return vector
    raise ImportSourceError("The embedding is not a list of numbers.")


def _jsonable(value: Any) -> Any:
    """A value converted for JSON: dates as text. Raises ImportSourceError for other types."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(one) for one in value]
    raise ImportSourceError(
        f"A value of the type {type(value).__name__} cannot be metadata, which is JSON."
    )


def _digest(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and SHA256.fullmatch(value)):
        return value
    raise ImportSourceError(f"{DIGEST} is not a SHA-256 in hexadecimal.")


def _face_id(value: Any) -> str | None:
    try:
        return None if value is None else str(uuid.UUID(value))
    except (ValueError, AttributeError, TypeError):
        raise ImportSourceError(f"{FACE_ID} is not a UUID.") from None


def _object(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = _json_or_text(record.get(key))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ImportSourceError(f"{key} is not a JSON object.")
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
    """UTF-8 text, with or without a byte order mark, where other bytes are surrogates; the binary
    file stays open afterwards."""
    text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield text
    finally:
        text.detach()
