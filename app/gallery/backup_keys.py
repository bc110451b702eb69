"""Whether the rows of a backup belong together: what a database would refuse is found without
one."""

from array import array
from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgpack
import numpy as np
from sqlalchemy import ForeignKey, PrimaryKeyConstraint, Table, UniqueConstraint

from app.gallery.backup_rows import TABLES, ForeignBody
from app.store.sql import tables

_DIGEST_BYTES = 16


class BackupKeys:
    """The keys of the rows read so far, and which rows they refer to: some 150 bytes for each
    person and each face."""

    def __init__(self) -> None:
        self._unique: defaultdict[tuple[Table, tuple[str, ...]], bytearray] = defaultdict(bytearray)
        self._keys: defaultdict[Table, array[int]] = defaultdict(lambda: array("q"))
        self._references: defaultdict[ForeignKey, array[int]] = defaultdict(lambda: array("q"))
        self._place = 0  # of the table in TABLES
        self._revisions: dict[int, int] = {}  # of collections, by key

    def add(self, table: Table, rows: Sequence[dict[str, Any]]) -> None:
        """Note rows of which each can be stored. Raises ForeignBody if one cannot be beside those
        before it."""
        place = TABLES.index(table)
        if place < self._place:
            raise ForeignBody(f"its rows of '{table.name}' follow those of a table after it")
        self._place = place
        for columns in _unique_columns(table):
            held = self._unique[table, columns]
            for row in rows:
                key = msgpack.packb([row[name] for name in columns])
                held += blake2b(key, digest_size=_DIGEST_BYTES).digest()
        if "id" in table.c:
            self._keys[table].extend(row["id"] for row in rows)
        for reference in table.foreign_keys:
            self._references[reference].extend(row[reference.parent.name] for row in rows)
        if table is tables.collections:
            self._revisions.update((row["id"], row["revision"]) for row in rows)
        elif table is tables.changes:
            for row in rows:
                if row["revision"] > self._revisions.get(row["collection"], row["revision"]):
                    raise ForeignBody(
                        f"changes.revision is {row['revision']}, later than its collection's"
                    )
        elif table is tables.declared_pairs:
            for row in rows:
                if row["person_a"] >= row["person_b"]:
                    raise ForeignBody("declared_pairs.person_a is not lower than its person_b")

    def check(self) -> None:
        """Raises ForeignBody if rows have the same key, or refer to one that is not there."""
        for (table, columns), held in self._unique.items():
            digests = np.frombuffer(held, f"S{_DIGEST_BYTES}")
            if len(np.unique(digests)) < len(digests):
                names = " and ".join(columns)
                raise ForeignBody(f"two rows of '{table.name}' have the same {names}")
        for reference, found in self._references.items():
            owner = reference.column.table
            if not np.isin(found, self._keys[owner]).all():
                raise ForeignBody(
                    f"{reference.parent.table.name}.{reference.parent.name} refers to a row of "
                    f"'{owner.name}' that is not there"
                )

    def highest(self) -> dict[str, int]:
        """The highest key of each table that has keys."""
        return {table.name: max(keys) for table, keys in self._keys.items() if keys}


def _unique_columns(table: Table) -> list[tuple[str, ...]]:
    return [
        tuple(constraint.columns.keys())
        for constraint in table.constraints
        if isinstance(constraint, PrimaryKeyConstraint | UniqueConstraint)
    ]
