"""A database's rows as the bodies of a backup: one state of it, independent of what is written
meanwhile."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Table, select

from app.store.backends import backend_of
from app.store.database import Database
from app.store.metadata import CorrectedMetadata
from app.store.schema import newest_revision
from app.store.sql import tables

ROWS_AT_ONCE = 500
# In an order in which each row finds what it refers to. Terms of metadata are not among them, as
# they are derived from it; nor are answers kept for Idempotency-Keys: they are gone in a day, and a
# retry after a restore must be done again.
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
    result = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(query)
    for part in result.mappings().partitions(ROWS_AT_ONCE):
        yield [{name: _plain(value) for name, value in row.items()} for row in part]


def _plain(value: Any) -> Any:
    """A value for MessagePack. Metadata that breaks the rules is written as its JSON text."""
    if isinstance(value, CorrectedMetadata):
        return value.original
    return value.isoformat() if isinstance(value, datetime) else value
