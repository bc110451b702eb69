"""A database's rows as the bodies of a backup, and the way back: one state of the database
is written, and all of it is read back, or nothing is changed."""

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, insert, select, update
from sqlalchemy.exc import DataError, IntegrityError

from app.gallery.backup_consents import withdraw_again, withdrawals
from app.gallery.backup_keys import BackupKeys
from app.gallery.backup_rows import TABLES, ForeignBody, is_key, read_row, rule_of, shown
from app.gallery.backup_stream import BackupDamaged, BackupError
from app.store.backends import backend_of
from app.store.database import Database
from app.store.metadata import CorrectedMetadata
from app.store.schema import newest_revision
from app.store.sql import tables
from app.store.sql.audit_log import DATABASE_RESTORED, note
from app.store.sql.changes import RESTORED, STAMP_BYTES
from app.store.sql.consents import rebuild_consents
from app.store.sql.integrity import compose_ids
from app.store.sql.lookups import count_rows, is_live
from app.store.sql.terms import rebuild_terms

ROWS_AT_ONCE = 500
BYTES_AT_ONCE = 16 << 20  # of texts and bytes: more than 500 ordinary rows have
_ADVICE = "Nothing was changed. Take another copy of it, or another backup."


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
    rows: list[dict[str, Any]] = []
    size = 0
    for row in result.mappings():
        one = {name: _plain(value) for name, value in row.items()}
        size += sum(len(value) for value in one.values() if isinstance(value, bytes | str))
        rows.append(one)
        if len(rows) == ROWS_AT_ONCE or size >= BYTES_AT_ONCE:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _plain(value: Any) -> Any:
    """A value for MessagePack. Metadata that breaks the rules is written as its JSON text."""
    if isinstance(value, CorrectedMetadata):
        return value.original
    return value.isoformat() if isinstance(value, datetime) else value


@dataclass(frozen=True, slots=True)
class Held:
    """The numbers of rows in a backup by table. After a restore also: how many objects of metadata
    or quality were `changed` because they break the rules, how many persons have an id that
    differs from another person's only in how its letters are composed (`clashes`), and how
    many consents the replaced database knew as `withdrawn`."""

    rows: Mapping[str, int]
    changed: int = 0
    clashes: int = 0
    withdrawn: int = 0


class _Contents:
    """A backup's header and rows, each checked before it is used: a check of a backup and a restore
    read it by this alone."""

    def __init__(self, bodies: Iterator[Any]) -> None:
        """Read the header. Raises BackupDamaged, or BackupError for one of a newer version."""
        self._bodies = bodies
        self._keys = BackupKeys()
        self.header = _header(bodies)
        self.counts: Counter[str] = Counter()
        self.corrected = 0  # objects of metadata or quality

    def rows(self) -> Iterator[tuple[Table, list[dict[str, Any]]]]:
        """The rows by table, as they can be stored. Raises BackupDamaged."""
        for number, body in enumerate(self._bodies, 1):  # block 0 is the header
            try:
                if isinstance(body, dict) and "end" in body:
                    self._end(body["end"])
                    return
                block = self._block(body)
            except ForeignBody as error:
                raise BackupDamaged(
                    f"The backup's block {number} is not one that this version of Likeness writes: "
                    f"{error}. {_ADVICE}"
                ) from error
            yield block
        raise BackupDamaged(
            f"The backup of {self.header['database']} was cut short: its end is missing. Nothing "
            "was changed. Take another copy of it."
        )

    def _block(self, body: Any) -> tuple[Table, list[dict[str, Any]]]:
        if not isinstance(body, dict) or not {"table", "rows"} <= body.keys():
            raise ForeignBody("it holds no rows of a table")
        table = next((one for one in TABLES if one.name == body["table"]), None)
        if table is None:
            raise ForeignBody(f"there is no table {body['table']!a} in a backup")
        if not isinstance(body["rows"], list) or not body["rows"]:
            raise ForeignBody(f"its rows of '{table.name}' are missing")
        rows = [read_row(table, row) for row in body["rows"]]
        self._keys.add(table, rows)
        self.counts[table.name] += len(rows)
        self.corrected += sum(
            isinstance(value, CorrectedMetadata) for row in rows for value in row.values()
        )
        return table, rows

    def _end(self, counts: Any) -> None:
        if not isinstance(counts, dict):
            raise ForeignBody(f"its counts are {shown(counts)}, not an object")
        if {name: count for name, count in counts.items() if count} != dict(self.counts):
            raise BackupDamaged(
                "The backup's counts differ from its rows. Nothing was "
                "changed. Take another copy of it."
            )
        if any(True for _ in self._bodies):
            raise BackupDamaged(f"The backup continues after its end. {_ADVICE}")
        self.check_keys()

    def check_keys(self) -> None:
        """Raises BackupDamaged if rows that were read so far do not belong together."""
        try:
            self._keys.check()
        except ForeignBody as error:
            raise BackupDamaged(
                f"The backup's rows contradict one another: {error}. {_ADVICE}"
            ) from error

    def last_keys(self) -> dict[str, int]:
        """The highest key that each table ever gave out."""
        held = self._keys.highest()
        known = self.header["last_keys"]
        return {name: max(known.get(name, 0), held.get(name, 0)) for name in {**known, **held}}


def verify(bodies: Iterator[Any]) -> Held:
    """Read a backup through. Raises BackupDamaged, or BackupError for one of a newer version."""
    contents = _Contents(bodies)
    for _ in contents.rows():
        pass
    return Held(dict(contents.counts))


def load(
    engine: Engine, bodies: Iterator[Any], *, replace: bool, audit_key: bytes | None = None
) -> Held:
    """Put a backup into a database whose tables are up to date.

    It must be empty, unless it is to be replaced. The database takes over the backup's id, to which
    encrypted embeddings are bound. Every collection gets a new revision with a new stamp, so that
    indexes from before the restore are detected. A consent that was withdrawn in the database stays
    so, in a collection of the same name. Metadata that breaks the rules is stored as a
    corrected copy. Raises BackupError, BackupDamaged, StoreFull or StoreUnavailable, and then
    nothing is changed.
    """
    contents = _Contents(bodies)
    database = Database(engine, audit_key=audit_key)
    with database.writing() as connection:
        backend_of(engine).be_patient(connection)
        if not replace and _occupied(connection):
            raise BackupError(
                "The database holds persons or collections already. Restore into an empty "
                "database, or replace its data with --replace."
            )
        # With PostgreSQL others could withdraw a consent after it was read, or wait for each other.
        _lock_collections(connection)
        known = withdrawals(connection)
        highest = _clear(connection)
        connection.execute(update(tables.database).values(id=contents.header["database"]))
        for table, rows in contents.rows():
            _insert(connection, table, rows, contents)
        clashes = compose_ids(connection)
        rebuild_terms(connection)
        rebuild_consents(connection)
        withdrawn = withdraw_again(connection, known)
        _mark(connection, highest)
        note(connection, DATABASE_RESTORED, rows=dict(contents.counts))
        backend_of(engine).set_last_keys(connection, contents.last_keys())
    database.eraser.erase()
    return Held(dict(contents.counts), contents.corrected, clashes, withdrawn)


def _insert(
    connection: Connection, table: Table, rows: list[dict[str, Any]], contents: _Contents
) -> None:
    try:
        connection.execute(insert(table), rows)
    except (IntegrityError, DataError) as error:
        contents.check_keys()  # names the rows
        raise BackupDamaged(
            f"The database refuses the backup's rows of the table '{table.name}'. {_ADVICE}"
        ) from error


def _header(bodies: Iterator[Any]) -> Mapping[str, Any]:
    header = next(bodies, None)
    if not isinstance(header, dict) or not {"schema", "database", "last_keys"} <= header.keys():
        raise BackupDamaged("The backup has no header. Nothing was changed.")
    schema, last_keys = header["schema"], header["last_keys"]
    valid = {
        "schema": isinstance(schema, str),
        "database": rule_of(tables.database.c.id).read(header["database"]) is not None,
        "last_keys": isinstance(last_keys, dict) and all(map(is_key, last_keys.values())),
    }
    for name, is_valid in valid.items():
        if not is_valid:
            raise BackupDamaged(f"The backup's header has no valid '{name}'. {_ADVICE}")
    if schema > newest_revision():
        raise BackupError(
            f"The backup was made by a newer version of Likeness (schema {schema}, this one has "
            f"{newest_revision()}). Restore it with that version."
        )
    return header


def _occupied(connection: Connection) -> bool:
    """Whether there is a person, or a collection besides one."""
    people, several = (
        count_rows(connection, table, is_live(table))
        for table in (tables.persons, tables.collections)
    )
    return bool(people or several > 1)


def _lock_collections(connection: Connection) -> None:
    """Let no other transaction write to a collection until this one ends; each write locks its
    collection first."""
    every = select(tables.collections.c.id).order_by(tables.collections.c.id)
    connection.execute(every.with_for_update())


def _clear(connection: Connection) -> int:
    """Delete all rows that a restore replaces. Returns the highest revision of a collection."""
    first, *others = TABLES
    for table in (tables.metadata_terms, tables.idempotency, *reversed(others)):
        connection.execute(delete(table))
    assert first is tables.collections, "the others refer to it"
    revisions = connection.execute(delete(first).returning(first.c.revision))
    return max(revisions.scalars(), default=0)


def _mark(connection: Connection, highest: int) -> None:
    """A new revision with a new stamp for every collection: one that is above the `highest` before
    the restore, because running services notice changes by revisions that rise."""
    now = datetime.now(UTC)
    query = select(tables.collections.c.id, tables.collections.c.revision)
    for key, restored in connection.execute(query).all():
        revision = max(restored, highest) + 1
        stamp = secrets.token_hex(STAMP_BYTES)
        connection.execute(
            update(tables.collections)
            .where(tables.collections.c.id == key)
            .values(revision=revision, stamp=stamp)
        )
        connection.execute(
            insert(tables.changes).values(
                collection=key, revision=revision, template=0, kind=RESTORED,
                stamp=stamp, created_at=now,
            )
        )  # fmt: skip
