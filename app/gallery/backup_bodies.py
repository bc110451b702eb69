"""A database's rows as the bodies of a backup, and the way back: one state of the database
is written, and all of it is read back, or nothing is changed."""

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Engine,
    Table,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DataError, IntegrityError

from app.errors import BackupDamaged, BackupError
from app.store.backends import backend_of
from app.store.database import Database
from app.store.metadata import CorrectedMetadata, as_storable, find_problem, read_stored
from app.store.schema import newest_revision
from app.store.sql import tables
from app.store.sql.audit_log import DATABASE_RESTORED, note
from app.store.sql.changes import STAMP_BYTES
from app.store.sql.consents import rebuild_consents
from app.store.sql.integrity import compose_ids
from app.store.sql.lookups import count_rows, is_live
from app.store.sql.tables import MetadataColumn
from app.store.sql.terms import rebuild_terms

ROWS_AT_ONCE = 500
# A database that gave out a key near the end of its range could give out none after it.
HIGHEST_KEY = 2**62
_ADVICE = "Nothing was changed. Take another copy of it, or another backup."
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
    tables.templates,
    tables.crops,
    tables.alternate_embeddings,
    tables.changes,
)


def dump(engine: Engine) -> Iterator[Mapping[str, Any]]:
    """Header, rows and counts, read in one transaction that waits for no writer and delays none.

    Raises StoreUnavailable.
    """
    with Database(engine).reading() as connection:
        backend_of(engine).be_patient(connection)
        yield {
            "schema": newest_revision(),
            "database": connection.execute(select(tables.database.c.id)).scalar_one(),
            "last_keys": backend_of(engine).last_keys(connection),
        }
        counts = {}
        for table in TABLES:
            counts[table.name] = 0
            for rows in _batches(connection, table):
                counts[table.name] += len(rows)
                yield {"table": table.name, "rows": rows}
        yield {"end": counts}


def _batches(connection: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    query = select(table).order_by(*table.primary_key.columns)
    if table is not tables.encryption_keys:
        query = query.where(is_live(table))
    result = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(query)
    for part in result.mappings().partitions(ROWS_AT_ONCE):
        yield [{name: _plain(value) for name, value in row.items()} for row in part]


def _plain(value: Any) -> Any:
    """A value for MessagePack. Metadata that breaks the rules is written as its JSON text."""
    if isinstance(value, CorrectedMetadata):
        return value.original
    return value.isoformat() if isinstance(value, datetime) else value


RESTORED = "restore"  # kind of change; names no template


@dataclass(frozen=True, slots=True)
class Held:
    """The numbers of rows in a backup by table. After a restore also: how many objects of metadata
    or quality were `changed` because they break the rules, and how many persons have an id that
    differs from another person's only in how its letters are composed (`clashes`)."""

    rows: Mapping[str, int]
    changed: int = 0
    clashes: int = 0


def verify(bodies: Iterator[Any]) -> Held:
    """Read a backup through. Raises BackupDamaged."""
    header = _header(bodies)
    counts: Counter[str] = Counter()
    for table, rows, _ in _rows(bodies, header, counts):
        counts[table.name] += len(rows)
    return Held(dict(counts))


def load(
    engine: Engine, bodies: Iterator[Any], *, replace: bool, audit_key: bytes | None = None
) -> Held:
    """Put a backup into a database whose tables are up to date.

    It must be empty, unless it is to be replaced. The database takes over the backup's id, to which
    encrypted embeddings are bound. Every collection gets a new revision with a new stamp, so that
    indexes from before the restore are detected. Metadata that breaks the rules is stored as a
    corrected copy. Raises BackupError, BackupDamaged, StoreFull or StoreUnavailable, and then
    nothing is changed.
    """
    header = _header(bodies)
    counts: Counter[str] = Counter()
    database = Database(engine, audit_key=audit_key)
    changed = 0
    with database.writing() as connection:
        backend_of(engine).be_patient(connection)
        if not replace and _occupied(connection):
            raise BackupError(
                "The database holds persons or collections already. Restore into an empty "
                "database, or replace its data with --replace."
            )
        for table in (tables.metadata_terms, *reversed(TABLES)):
            connection.execute(delete(table))
        connection.execute(delete(tables.idempotency))
        connection.execute(update(tables.database).values(id=header["database"]))
        for table, rows, corrected in _rows(bodies, header, counts):
            counts[table.name] += len(rows)
            changed += corrected
            _insert(connection, table, rows)
        clashes = compose_ids(connection)
        rebuild_terms(connection)
        rebuild_consents(connection)
        _mark(connection)
        note(connection, DATABASE_RESTORED, rows=dict(counts))
        backend_of(engine).set_last_keys(connection, header["last_keys"])
    database.eraser.erase()  # the replaced rows; if that fails now, a service does it later
    return Held(dict(counts), changed, clashes)


def _insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    try:
        connection.execute(insert(table), rows)
    except (IntegrityError, DataError) as error:
        raise BackupDamaged(
            f"The backup's rows of the table '{table.name}' contradict one another, or lack what "
            f"this version stores. {_ADVICE}"
        ) from error


def _header(bodies: Iterator[Any]) -> Mapping[str, Any]:
    header = next(bodies, None)
    if not isinstance(header, dict) or not {"schema", "database", "last_keys"} <= header.keys():
        raise BackupDamaged("The backup has no header. Nothing was changed.")
    for name, expected in (("schema", str), ("database", str), ("last_keys", dict)):
        if not isinstance(header[name], expected):
            raise BackupDamaged(f"The backup's header has no valid '{name}'. {_ADVICE}")
    if header["schema"] > newest_revision():
        raise BackupError(
            f"The backup was made by a newer version of Likeness (schema {header['schema']}, this "
            f"one has {newest_revision()}). Restore it with that version."
        )
    for key in header["last_keys"].values():
        if not isinstance(key, int) or not 0 <= key <= HIGHEST_KEY:
            raise BackupDamaged(f"The backup's header has no valid 'last_keys'. {_ADVICE}")
    return header


def _rows(
    bodies: Iterator[Any], header: Mapping[str, Any], counts: Counter[str]
) -> Iterator[tuple[Table, list[dict[str, Any]], int]]:
    """The rows by table, as they can be stored, and how many objects were corrected for that.
    Raises BackupDamaged for what no backup has, and unless the counts at the end are those met."""
    for number, body in enumerate(bodies, 1):  # block 0 is the header
        try:
            is_end = isinstance(body, dict) and "end" in body
            block = None if is_end else _read_block(body)
            end = {name: n for name, n in body["end"].items() if n} if is_end else {}
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise BackupDamaged(
                f"The backup's block {number} is not one that this version of Likeness writes: "
                f"{error}. {_ADVICE}"
            ) from error
        if block:
            yield block
            continue
        if end != dict(counts):
            raise BackupDamaged(
                "The backup's counts differ from its rows. Nothing was "
                "changed. Take another copy of it."
            )
        for _ in bodies:
            raise BackupDamaged(f"The backup continues after its end. {_ADVICE}")
        return
    raise BackupDamaged(
        f"The backup of {header['database']} was cut short: its end is missing. Nothing was "
        "changed. Take another copy of it."
    )


def _occupied(connection: Connection) -> bool:
    """Whether there is a person, or a collection besides one."""
    people, several = (
        count_rows(connection, table, is_live(table))
        for table in (tables.persons, tables.collections)
    )
    return bool(people or several > 1)


def _read_block(body: Any) -> tuple[Table, list[dict[str, Any]], int]:
    """The table, its rows and how many objects were corrected. Raises AttributeError, LookupError,
    TypeError or ValueError if they are not of this version."""
    if not isinstance(body, dict) or not {"table", "rows"} <= body.keys():
        raise ValueError("it holds no rows of a table")
    table = next((one for one in TABLES if one.name == body["table"]), None)
    if table is None:
        raise LookupError(f"there is no table {body['table']!r}")
    kinds = {column.name: _kind(column) for column in table.columns}
    rows = [_typed(table, kinds, row) for row in body["rows"]]
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError(f"its rows of '{table.name}' are missing, or differ in their columns")
    return table, rows, sum(_make_storable(table, row) for row in rows)


def _kind(column: Column[Any]) -> type:
    """Of the column's values; `object` for JSON."""
    return object if isinstance(column.type, JSON | MetadataColumn) else column.type.python_type


def _typed(table: Table, kinds: Mapping[str, type], row: Mapping[str, Any]) -> dict[str, Any]:
    typed = {}
    for name, value in row.items():
        if name not in kinds:
            raise LookupError(f"'{table.name}' has no column {name!r}")
        kind, found = kinds[name], value
        if kind is datetime and value is not None:
            found = datetime.fromisoformat(value)
        if found is not None and not isinstance(found, kind):
            raise TypeError(f"a value of {table.name}.{name} is not of its type")
        if kind is int and isinstance(found, int) and abs(found) > HIGHEST_KEY:
            raise ValueError(f"{found} in {table.name}.{name} is too large")
        typed[name] = found
    return typed


def _make_storable(table: Table, row: dict[str, Any]) -> int:
    """Correct the row's metadata or quality; returns how many objects were changed."""
    changed = 0
    for column in table.columns:
        if isinstance(column.type, MetadataColumn):
            value = row[column.name]
            members = read_stored(value) if isinstance(value, str) else value
            if isinstance(value, str) or find_problem(members) is not None:
                row[column.name] = as_storable(members)
                changed += 1
    return changed


def _mark(connection: Connection) -> None:
    """A new revision with a new stamp for every collection."""
    now = datetime.now(UTC)
    query = select(tables.collections.c.id, tables.collections.c.revision)
    for key, revision in connection.execute(query).all():
        stamp = secrets.token_hex(STAMP_BYTES)
        connection.execute(
            update(tables.collections)
            .where(tables.collections.c.id == key)
            .values(revision=revision + 1, stamp=stamp)
        )
        connection.execute(
            insert(tables.changes).values(
                collection=key, revision=revision + 1, template=0, kind=RESTORED,
                stamp=stamp, created_at=now,
            )
        )  # fmt: skip
