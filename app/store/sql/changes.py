"""The log of what was added and removed, by which derived indexes follow the truth."""

import secrets
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, func, insert, select, update

from app.errors import RevisionPruned
from app.index.port import Templates
from app.store.records import Changes, CollectionRecord
from app.store.sql.lookups import get_again, load_templates, to_ids
from app.store.sql.part import Part
from app.store.sql.tables import changes, collections, templates

ADD, REMOVE = "add", "remove"
# The collection is of another embedding space: names no template.
SPACE, NO_TEMPLATE = "space", 0
STAMP_BYTES = 8


class ChangePart(Part):
    """What an index is built from and kept up to date by."""

    def stamp_at(self, collection: CollectionRecord, revision: int) -> str | None:
        """The stamp of a revision; "" for revision 0 and for revisions from before there were
        stamps, None for one that is not, or no longer, in the log."""
        with self._database.reading() as connection:
            return _stamp_at(connection, collection.key, revision)

    def templates_after(self, collection: CollectionRecord, key: int, limit: int) -> Templates:
        """The next `limit` templates at most, by rising key: page by page everything, in short
        transactions. What changes between two pages is in `changes_since`."""
        mine = (templates.c.collection == collection.key) & (templates.c.id > key)
        with self._database.reading() as connection:
            now = get_again(connection, collection)
            return load_templates(connection, now, mine, self._codec, limit=limit)

    def templates_by_key(self, collection: CollectionRecord, keys: Sequence[int]) -> Templates:
        """The templates of at most MAX_KEYS keys, by rising key, without deleted ones."""
        chosen = (templates.c.collection == collection.key) & templates.c.id.in_(keys)
        with self._database.reading() as connection:
            now = get_again(connection, collection)
            return load_templates(connection, now, chosen, self._codec)

    def changes_since(self, collection: CollectionRecord, revision: int) -> Changes:
        """What was added (and is still there) and removed after `revision`.

        Raises RevisionPruned if the log does not reach back to that revision, because changes may
        be missing from it then.
        """
        with self._database.reading() as connection:
            now = get_again(connection, collection)
            if _stamp_at(connection, now.key, revision) is None:
                raise RevisionPruned(
                    f"The change log of '{now.name}' no longer reaches back to revision {revision}."
                )
            recent = (changes.c.collection == now.key) & (changes.c.revision > revision)
            added = select(changes.c.template).where(recent, changes.c.kind == ADD)
            removed = select(changes.c.template).where(recent, changes.c.kind == REMOVE)
            return Changes(
                now.revision,
                load_templates(connection, now, templates.c.id.in_(added), self._codec),
                to_ids(list(connection.execute(removed).scalars())),
                now.stamp,
            )


def _stamp_at(connection: Connection, collection: int, revision: int) -> str | None:
    mine = changes.c.collection == collection
    if revision == 0:  # it has no entry: the log reaches back to it if it has revision 1
        first = connection.execute(select(func.min(changes.c.revision)).where(mine)).scalar_one()
        return "" if first in (None, 1) else None
    query = select(changes.c.stamp).where(mine, changes.c.revision == revision).limit(1)
    stamp: str | None = connection.execute(query).scalar_one_or_none()
    return stamp


def log_space(connection: Connection, collection: CollectionRecord, now: datetime) -> None:
    """Note that a collection is of another embedding space from here on."""
    log_change(connection, collection, SPACE, [NO_TEMPLATE], now)


def log_change(
    connection: Connection,
    collection: CollectionRecord,
    kind: str,
    keys: Sequence[int],
    now: datetime,
) -> None:
    """Raise the collection's revision by one, mark it, and write what happened at it."""
    if not keys:
        return
    stamp = secrets.token_hex(STAMP_BYTES)
    revision = connection.execute(
        update(collections)
        .where(collections.c.id == collection.key)
        .values(revision=collections.c.revision + 1, stamp=stamp)
        .returning(collections.c.revision)
    ).scalar_one()
    row = {
        "collection": collection.key,
        "revision": revision,
        "kind": kind,
        "stamp": stamp,
        "created_at": now,
    }
    connection.execute(insert(changes), [{**row, "template": key} for key in keys])
