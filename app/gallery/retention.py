"""Erases persons by age in collections whose policy has `retention_days`, and persons whose consent
has ended in those with `consent_required`.

The age of a person counts from the last enrollment of a photo or the last match (identified, or
verified), whichever is later.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from app.errors import CollectionNotFound
from app.gallery.gallery import Gallery
from app.locks import new_lock
from app.store.consent import needs_consent
from app.store.database import now_utc
from app.store.records import CollectionRecord
from app.store.sql.retention import Expiry, RetentionStore
from app.telemetry.logs import log

CHECK_EVERY_S = 3600.0
# The clock and the seconds that have passed may differ by this much between two rounds.
JUMP_S = 3600.0
# Persons erased in one round of maintenance, so that other writes have their turns.
MOST_AT_ONCE = 200


def expiry_of(collection: CollectionRecord, now: datetime) -> Expiry:
    """Whom the collection's policy does not allow to be kept; false if it has no such rule."""
    days = collection.policy.get("retention_days")
    return Expiry(
        None if days is None else now - timedelta(days=int(days)),
        now if needs_consent(collection) else None,
    )


class RetentionTask:
    """A task of maintenance: checks the collections every hour, and erases at most `MOST_AT_ONCE`
    persons in each round."""

    def __init__(
        self,
        gallery: Gallery,
        store_matches: Callable[[], None],
        before_erasing: Callable[[str, Sequence[str]], object],
        now: Callable[[], datetime] = now_utc,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`store_matches` stores the matches that this process has noted: nobody is erased if that
        fails. `before_erasing(collection, person_ids)` is called before persons are deleted."""
        self._gallery = gallery
        self._store_matches = store_matches
        self._before_erasing = before_erasing
        self._now = now
        self._clock = clock
        self._check_at = -math.inf
        self._last: tuple[datetime, float] | None = None
        self._due: list[str] = []  # collections with persons to erase

    def round(self) -> None:
        """Erase some persons, if any are due. Raises StoreUnavailable or StoreFull."""
        now, seconds = self._now(), self._clock()
        if self._has_jumped(now, seconds):
            self._due = []
            self._check_at = seconds + CHECK_EVERY_S
        if not self._due and seconds >= self._check_at:
            self._check_at = seconds + CHECK_EVERY_S
            records = self._gallery.store.collections.every()
            self._due = [one.name for one in records if expiry_of(one, now)]
        if self._due:
            self._store_matches()
            # One after another: a collection that fails does not keep the others from being erased.
            name = self._due.pop(0)
            if self._erase_some(name, now):
                self._due.append(name)

    def _has_jumped(self, now: datetime, seconds: float) -> bool:
        """Whether the clock was set, by more than JUMP_S, since the last round: it may be wrong."""
        last, self._last = self._last, (now, seconds)
        if last is None:
            return False
        jump = (now - last[0]).total_seconds() - (seconds - last[1])
        if abs(jump) <= JUMP_S:
            return False
        log(logging.WARNING, "the clock was set; nobody is erased by age for an hour",
            by_seconds=round(jump))  # fmt: skip
        return True

    def _erase_some(self, name: str, now: datetime) -> bool:
        """Erase some persons of a collection. Returns whether there may be more."""
        retention, collections = self._gallery.store.retention, self._gallery.store.collections
        try:
            due = retention.expired(name, expiry_of(collections.get(name), now), MOST_AT_ONCE)
            if not due:
                return False
            self._before_erasing(name, due)
            deletion = retention.delete_expired(name, due, lambda one: expiry_of(one, now))
            self._gallery.follow_deletion(name)
        except CollectionNotFound:  # deleted meanwhile
            return False
        log(logging.INFO, "persons were erased by the policy", collection=name,
            persons=deletion.persons)  # fmt: skip
        return len(due) == MOST_AT_ONCE


class MatchTimes:
    """When persons were last matched, to the day: noted in memory, stored by maintenance. What is
    not stored yet is lost if the process is killed."""

    def __init__(self, retention: RetentionStore, now: Callable[[], datetime] = now_utc) -> None:
        self._retention = retention
        self._now = now
        self._lock = new_lock("gallery.matches")
        self._day: datetime | None = None
        self._stored: set[tuple[int, str]] = set()  # today
        self._noted: set[tuple[int, str]] = set()

    def note(self, collection: CollectionRecord, person_ids: Iterable[str]) -> None:
        """Note that persons were matched now, if the collection's policy erases by age."""
        if collection.policy.get("retention_days") is None:
            return
        with self._lock:
            self._noted |= {(collection.key, one) for one in person_ids} - self._stored

    def store(self) -> None:
        """Store what was noted. Raises StoreUnavailable or StoreFull; then it stays noted."""
        day = self._now().replace(hour=0, minute=0, second=0, microsecond=0)
        with self._lock:
            if day != self._day:
                self._day, self._stored = day, set()
            noted = self._noted - self._stored
        if not noted:
            return
        self._retention.note_matches(noted, day)
        with self._lock:
            self._stored |= noted
            self._noted -= noted
