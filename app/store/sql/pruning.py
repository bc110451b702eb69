"""Removes old entries of the change log, a limited number at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select

from app.store.sql.lookups import aware
from app.store.sql.part import Part
from app.store.sql.tables import changes, collections

COLLECTIONS_AT_ONCE = 100
ROWS_AT_ONCE = 10_000


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


class PruningPart(Part):
    """The part of the store that prunes the change log."""

    def prune_changes(self, after: int, kept: timedelta, most_revisions: int) -> int | None:
        """Remove entries older than `kept`, or more than `most_revisions` behind, from the logs of
        the next collections by rising key; the newest revision of each is always kept.

        One call does a limited amount of work. Call it with `after` 0, then with the key that it
        returned, until it returns None. Whole revisions are removed, the oldest first, so a log
        that has a revision has all later ones.
        """
        limit = _Limit(self._clock() - kept, most_revisions)
        logs = self._logs(after)
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
        return logs[-1].collection if len(logs) == COLLECTIONS_AT_ONCE else None

    def _logs(self, after: int) -> Sequence[_Log]:
        """Those of the next collections that have one."""
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
            return [
                _Log(row.id, row.revision, row.oldest, aware(row.oldest_at))
                for row in connection.execute(query)
                if row.oldest is not None
            ]

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
