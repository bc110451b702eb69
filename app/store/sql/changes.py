"""The log of added and removed templates, by which indexes are updated to the database."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from app.errors import RevisionPruned
from app.index.port import Templates
from app.store.database import Database
from app.store.records import Changes, CollectionRecord
from app.store.sql.lookups import aware, get_again, load_templates, to_ids, to_templates
from app.store.sql.statements import Statement
from app.store.sql.tables import changes, collections, templates

ADD, REMOVE = "add", "remove"
# The collection is of another embedding space: names no template.
SPACE, NO_TEMPLATE = "space", 0
# The collection was restored from a backup: names no template, either.
RESTORED = "restore"
STAMP_BYTES = 8
# Limits of the work of one call that prunes.
COLLECTIONS_AT_ONCE = 100
ROWS_AT_ONCE = 10_000

_MINE = changes.c.collection == bindparam("of")
_RECENT = _MINE & (changes.c.revision > bindparam("revision"))
_REMOVED_AFTER = Statement(select(changes.c.template).where(_RECENT, changes.c.kind == REMOVE))
_STAMP = Statement(
    select(changes.c.stamp).where(_MINE, changes.c.revision == bindparam("revision")).limit(1)
)
_NEXT_REVISION = Statement(
    update(collections)
    .where(collections.c.id == bindparam("of"))
    .values(revision=collections.c.revision + 1, stamp=bindparam("mark"))
    .returning(collections.c.revision)
)
_LOG = Statement(insert(changes))


@dataclass(frozen=True, slots=True)
class _Log:
    """The change log of one collection: its newest revision, its oldest one and the time of
    that."""

    collection: int
    revision: int
    oldest: int
    oldest_at: datetime


@dataclass(frozen=True, slots=True)
class _Limit:
    """What is kept: entries from `since` on, but at most the newest `most_revisions` of each
    log."""

    since: datetime
    most_revisions: int

    def keeps(self, log: _Log, revision: int, created_at: datetime) -> bool:
        if revision >= log.revision:
            return True  # by the newest entry a process sees that nothing has changed
        return created_at >= self.since and revision > log.revision - self.most_revisions


class ChangeLog:
    """What an index is built from and kept up to date by; old entries are pruned, a limited number
    at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def stamp_at(self, collection: CollectionRecord, revision: int) -> str | None:
        """The stamp of a revision; "" for revision 0 and for revisions from before there were
        stamps, None for one that is not, or no longer, in the log."""
        with self._database.reading() as connection:
            return _stamp_at(connection, collection.key, revision)

    def templates_after(self, collection: CollectionRecord, key: int, limit: int) -> Templates:
        """The next `limit` templates at most, in ascending order of keys: page by page everything,
        in short transactions. What changes between two pages is in `since`."""
        mine = (templates.c.collection == collection.key) & (templates.c.id > key)
        with self._database.reading() as connection:
            now = get_again(connection, collection)
            return load_templates(connection, now, mine, self._database.codec, limit=limit)

    def since(
        self, collection: CollectionRecord, revision: int, stamp: str | None = None
    ) -> Changes:
        """What was added (and is still there) and removed after `revision`.

        Raises RevisionPruned if the log does not reach back to that revision, because changes may
        be missing from it then, or has it with another stamp than the one given.
        """
        after = {"of": collection.key, "revision": revision}
        with self._database.reading() as connection:
            now = get_again(connection, collection)
            found = _stamp_at(connection, now.key, revision)
            if found is None or (stamp is not None and found != stamp):
                raise RevisionPruned(
                    f"The change log of '{now.name}' no longer reaches back to revision {revision}."
                )
            added = self._added_after.rows(connection, after)
            return Changes(
                now.revision,
                to_templates(now, added, self._database.codec),
                to_ids([row.template for row in _REMOVED_AFTER.rows(connection, after)]),
                now.stamp,
            )

    @cached_property
    def _added_after(self) -> Statement:
        added = select(changes.c.template).where(_RECENT, changes.c.kind == ADD)
        query = select(templates.c.id, templates.c.person).where(templates.c.id.in_(added))
        return Statement(self._database.codec.with_embedding(query).order_by(templates.c.id))

    def only_added_since(self, key: int, revision: int, stamp: str) -> bool:
        """Whether the log has that revision with that stamp, and after it templates were added to
        the collection but none removed."""
        mine = changes.c.collection == key
        here = mine & (changes.c.revision == revision) & (changes.c.stamp == stamp)
        other = mine & (changes.c.revision > revision) & (changes.c.kind != ADD)
        with self._database.reading() as connection:
            known = connection.execute(select(changes.c.kind).where(here).limit(1)).first()
            return known is not None and (
                connection.execute(select(changes.c.kind).where(other).limit(1)).first() is None
            )

    # --- pruning -----------------------------------------------------------------------------

    def prune(self, after: int, kept: timedelta, most_revisions: int) -> int | None:
        """Remove entries older than `kept`, or more than `most_revisions` behind, from the logs of
        the next collections in ascending order of keys; the newest revision of each is always kept.

        One call does a limited amount of work. Call it with `after` 0, then with the key that it
        returned, until it returns None. Whole revisions are removed, the oldest first, so a log
        that has a revision has all later ones.
        """
        limit = _Limit(self._database.clock() - kept, most_revisions)
        logs, following = self._logs(after)
        removed = 0
        for log in logs:
            if limit.keeps(log, log.oldest, log.oldest_at):
                continue
            count, more = self._prune(log, limit)
            removed += count
            if more:
                return log.collection - 1
            if removed >= ROWS_AT_ONCE:
                return log.collection
        return following

    def _logs(self, after: int) -> tuple[Sequence[_Log], int | None]:
        """Those of the next collections, as far as they have one, and the key of the last
        collection if there may be more."""
        first = (
            select(changes.c.revision)
            .where(changes.c.collection == collections.c.id)
            .order_by(changes.c.revision)
            .limit(1)
            .correlate(collections)
            .scalar_subquery()
        )
        some = (
            select(collections.c.id, collections.c.revision, first.label("oldest"))
            .where(collections.c.id > after, collections.c.revision > 0)
            .order_by(collections.c.id)
            .limit(COLLECTIONS_AT_ONCE)
            .subquery()
        )
        at = (
            select(changes.c.created_at)
            .where(changes.c.collection == some.c.id, changes.c.revision == some.c.oldest)
            .limit(1)
            .correlate(some)
            .scalar_subquery()
        )
        query = select(some, at.label("oldest_at")).order_by(some.c.id)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        logs = [
            _Log(row.id, row.revision, row.oldest, aware(row.oldest_at))
            for row in rows
            if row.oldest is not None  # that of a deleted collection may be removed already
        ]
        return logs, rows[-1].id if len(rows) == COLLECTIONS_AT_ONCE else None

    def _prune(self, log: _Log, limit: _Limit) -> tuple[int, bool]:
        """How many entries of one log were removed, and whether there may be more."""
        mine = changes.c.collection == log.collection
        query = select(changes.c.revision, changes.c.created_at).where(mine)
        with self._database.reading() as connection:
            oldest = connection.execute(
                query.order_by(changes.c.revision, changes.c.template).limit(ROWS_AT_ONCE)
            ).all()
        more, end = False, log.revision
        for row in oldest:
            if limit.keeps(log, row.revision, aware(row.created_at)):
                end = row.revision
                break
        else:
            if len(oldest) == ROWS_AT_ONCE:
                # The last revision may have more entries than were read.
                more, end = True, max(oldest[-1].revision, oldest[0].revision + 1)
        newest = select(collections.c.revision).where(collections.c.id == log.collection)
        with self._database.writing() as connection:
            # A restore may have replaced the log meanwhile: keep its newest entry too.
            done = connection.execute(
                delete(changes).where(
                    mine, changes.c.revision < end, changes.c.revision < newest.scalar_subquery()
                )
            )
            return int(done.rowcount), more and done.rowcount > 0


def _stamp_at(connection: Connection, collection: int, revision: int) -> str | None:
    if revision == 0:  # it has no entry: the log reaches back to it if it has revision 1
        mine = changes.c.collection == collection
        first = connection.execute(select(func.min(changes.c.revision)).where(mine)).scalar_one()
        return "" if first in (None, 1) else None
    row = _STAMP.first(connection, {"of": collection, "revision": revision})
    return None if row is None else str(row.stamp)


def log_space(connection: Connection, collection: CollectionRecord, now: datetime) -> None:
    """Note that a collection is of another embedding space from here on."""
    log_change(connection, collection, SPACE, [NO_TEMPLATE], now)


def log_change(
    connection: Connection,
    collection: CollectionRecord,
    kind: str,
    keys: Sequence[int],
    now: datetime,
) -> CollectionRecord:
    """Raise the collection's revision by one, mark it, and write what happened at it. Returns the
    collection at that revision."""
    if not keys:
        return collection
    stamp = secrets.token_hex(STAMP_BYTES)
    (raised,) = _NEXT_REVISION.rows(connection, {"of": collection.key, "mark": stamp})
    row = {
        "collection": collection.key,
        "revision": raised.revision,
        "kind": kind,
        "stamp": stamp,
        "created_at": now,
    }
    _LOG.run(connection, *({**row, "template": key} for key in keys))
    return replace(collection, revision=raised.revision, stamp=stamp)
