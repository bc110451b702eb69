"""What a row of a backup may hold: each value is checked once, by the rule of its column, and is
converted to what is stored."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

from sqlalchemy import JSON, Boolean, Column, DateTime, Integer, LargeBinary, String, Table

from app.store.identifiers import not_storable, problem_of_name
from app.store.metadata import CorrectedMetadata, as_storable, find_problem, read_stored
from app.store.sql import tables
from app.store.sql.changes import ADD, REMOVE, RESTORED, SPACE
from app.store.sql.consents import WITHDRAWN, WITHOUT_END
from app.store.sql.lookups import aware
from app.store.sql.tables import MetadataColumn
from app.types import MAX_DIMENSION

# In an order in which each row finds what it refers to. Terms of metadata are not among them, as
# they are derived from it; nor are answers kept for Idempotency-Keys: they are gone in a day, and a
# retry after a restore must be done again. Access keys, their use and the audit log stay as they
# are: a restore must not bring back a revoked key (docs/database.md).
TABLES: tuple[Table, ...] = (
    tables.collections,
    tables.calibrations,
    tables.encryption_keys,
    tables.persons,
    tables.declared_pairs,
    tables.withdrawn_consents,
    tables.templates,
    tables.crops,
    tables.alternate_embeddings,
    tables.changes,
)
# A database that gave out a key near the end of its range could give out none after it.
HIGHEST_INTEGER = 2**62
_MOST_SHOWN = 40


class ForeignBody(Exception):
    """What a body has that no backup has, as a clause: 'persons.id is null, not …'."""


@dataclass(frozen=True, slots=True)
class ColumnRule:
    """What a column may hold. `read` returns a value as it is stored, None for any other one; a
    backup of an earlier version may lack the column if there is a `default`."""

    name: str  # with its table
    expected: str
    read: Callable[[Any], Any]
    nullable: bool
    default: Any

    def checked(self, value: Any) -> Any:
        """The value as it is stored. Raises ForeignBody."""
        if value is None and self.nullable:
            return None
        found = self.read(value)
        if found is None:
            raise ForeignBody(f"{self.name} is {shown(value)}, not {self.expected}")
        return found

    def missing(self) -> Any:
        """What is stored in a row without the column. Raises ForeignBody."""
        if self.default is None and not self.nullable:
            raise ForeignBody(f"{self.name} is missing")
        return self.default


def read_row(table: Table, row: Any) -> dict[str, Any]:
    """The row as it can be stored, with all columns. Raises ForeignBody."""
    if not isinstance(row, dict):
        raise ForeignBody(f"it is {shown(row)}, not an object with the columns of '{table.name}'")
    rules = _rules_of(table)
    for name in row.keys() - rules.keys():
        raise ForeignBody(f"'{table.name}' has no column {name!a}")
    return {
        name: rule.checked(row[name]) if name in row else rule.missing()
        for name, rule in rules.items()
    }


@cache
def _rules_of(table: Table) -> Mapping[str, ColumnRule]:
    return {column.name: rule_of(column) for column in table.columns}


def rule_of(column: Column[Any]) -> ColumnRule:
    """The rule of a column of a backup."""
    expected, read = _SPECIAL.get(column) or _of_type(column)
    default = getattr(column.default, "arg", None)
    name = f"{column.table.name}.{column.name}"
    return ColumnRule(name, expected, read, bool(column.nullable), default)


_Reading = tuple[str, Callable[[Any], Any]]


def _of_type(column: Column[Any]) -> _Reading:
    match column.type:
        case MetadataColumn():
            return "an object", _metadata
        case JSON():
            return "an object that JSON can represent", _json_object
        case Boolean():
            return "true or false", lambda value: value if type(value) is bool else None
        case Integer():
            is_key = column.name == "id" or bool(column.foreign_keys)
            return _integers(1 if is_key else 0, HIGHEST_INTEGER)
        case LargeBinary():
            return "bytes", lambda value: value if type(value) is bytes else None
        case DateTime():
            return "a time from 1970 to 9999", _time
        case String(length=int() as length):
            expected = f"a text of {length} characters at most, without NUL"
            return expected, partial(_text, length)
    raise TypeError(f"no rule for {column!r}")


def _integers(lowest: int, highest: int) -> _Reading:
    return f"a whole number from {lowest} to {highest:,}", partial(_integer, lowest, highest)


def _integer(lowest: int, highest: int, value: Any) -> int | None:
    return value if type(value) is int and lowest <= value <= highest else None


def is_key(value: Any) -> bool:
    """Whether it can be the last key that a table gave out; 0 if none."""
    return _integer(0, HIGHEST_INTEGER, value) is not None


def _text(length: int, value: Any) -> str | None:
    fits = type(value) is str and len(value) <= length and not_storable(value) is None
    return value if fits else None


def _time(value: Any) -> datetime | None:
    """In UTC, as it is without a zone."""
    if type(value) is not str:
        return None
    try:
        moment = aware(datetime.fromisoformat(value)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return moment if WITHDRAWN <= moment <= WITHOUT_END else None


def _json_object(value: Any) -> dict[str, Any] | None:
    if type(value) is not dict:
        return None
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return value


def _metadata(value: Any) -> dict[str, Any] | None:
    """CorrectedMetadata if it breaks the rules of this version."""
    if type(value) is str:
        return read_stored(value)
    if type(value) is not dict:
        return None
    problem = find_problem(value)
    return value if problem is None else CorrectedMetadata(as_storable(value), problem, "")


def _name(value: Any) -> str | None:
    return value if type(value) is str and problem_of_name(value) is None else None


def _kind(value: Any) -> str | None:
    return value if value in (ADD, REMOVE, SPACE, RESTORED) else None


_SPECIAL: Mapping[Column[Any], _Reading] = {
    tables.collections.c.name: ("a name that a collection can have", _name),
    tables.collections.c.dimension: _integers(1, MAX_DIMENSION),
    tables.changes.c.kind: ("a kind of change", _kind),
}


def shown(value: Any) -> str:
    """A value for a message; texts are cut."""
    match value:
        case None | bool() | int() | float():
            return json.dumps(value)
        case str():
            rest = " …" if len(value) > _MOST_SHOWN else ""
            return f"the text {value[:_MOST_SHOWN]!a}{rest}"
        case bytes():
            return "bytes"
        case list():
            return "a list"
    return "an object"
