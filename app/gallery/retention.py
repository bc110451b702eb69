"""Deletes persons by age in collections whose policy has `retention_days`, and those whose consent
has ended in collections with `consent_required`.

The age of a person counts from the person's creation, the last enrollment (of a photo or an
embedding) or the last match (identified, or verified), whichever is latest.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.clock import seconds
from app.errors import CollectionNotFound
from app.gallery.gallery import Gallery
from app.locks import new_lock
from app.store.database import now_utc
from app.store.records import CollectionRecord, FaceName
from app.store.sql.consents import needs_consent
from app.store.sql.retention import Expiry, RetentionStore
from app.telemetry.logs import log

CHECK_EVERY_S = 3600.0
# A match counts although the process that answered has not stored it yet: it may be opening a large
# index, which takes minutes. So persons are kept for this long after the period of the policy.
UNSTORED = timedelta(hours=1)
# The clock and the seconds that have passed may differ by this much between two rounds.
JUMP_S = 3600.0
# Persons deleted in one transaction, so that other writes have their turns, and transactions and
# seconds of one round of maintenance.
MOST_AT_ONCE = 200
BATCHES, ROUND_S = 5, 0.5


def expiry_of(collection: CollectionRecord, now: datetime) -> Expiry:
    """The rule that says which persons the collection's policy does not allow to be kept; it is
    falsy if there is none."""
    days = collection.policy.get("retention_days")
    return Expiry(
        None if days is None else inactive_since(int(days), now),
        now if needs_consent(collection) else None,
    )


def inactive_since(days: int, now: datetime) -> datetime:
    """A policy of that many days deletes, at `now`, the persons who were created before this time
    and neither enrolled nor matched since."""
    return now - timedelta(days=days) - UNSTORED


@dataclass(slots=True)
class _Place:
    """A collection, the id up to which its persons were looked at, and whether more are due."""

    name: str
    after: str = ""
    more: bool = True


class RetentionTask:
    """A task of maintenance: checks the collections every hour, and deletes at most `BATCHES` times
    `MOST_AT_ONCE` persons in each round. It keeps nothing on disk: after a kill the next process
    finds those who are left, and a policy that is changed applies to the next transaction."""

    def __init__(
        self,
        gallery: Gallery,
        store_matches: Callable[[], None],
        before_deleting: Callable[[str, Sequence[str]], object],
        now: Callable[[], datetime] = now_utc,
        clock: Callable[[], float] = seconds,
    ) -> None:
        """`store_matches` stores the matches that this process has noted: no person is deleted
        if that fails. Other processes have the time `UNSTORED` to store theirs.
        `before_deleting(collection, person_ids)` is called before the deletion."""
        self._gallery = gallery
        self._store_matches = store_matches
        self._before_deleting = before_deleting
        self._now = now
        self._clock = clock
        self._check_at = -math.inf
        self._last: tuple[datetime, float] | None = None
        self._due: list[_Place] = []

    def round(self) -> None:
        """Delete some persons, if any are due. Raises StoreUnavailable or StoreFull."""
        now, time = self._now(), self._clock()
        if self._has_jumped(now, time):
            self._due = []
            self._check_at = time + CHECK_EVERY_S
        if not self._due and time >= self._check_at:
            self._check_at = time + CHECK_EVERY_S
            records = self._gallery.store.collections.every()
            self._due = [_Place(one.name) for one in records if expiry_of(one, now)]
        if self._due:
            self._store_matches()
            self._delete(now)

    def _delete(self, now: datetime) -> None:
        """Delete some persons, of one collection after another: all that are due have to be done
        within an hour, however many they are."""
        began, batches = self._clock(), BATCHES
        for _ in range(len(self._due)):
            # A collection that fails does not keep the persons of others from being deleted later.
            place = self._due.pop(0)
            try:
                batches -= self._delete_some(place, now, batches)
            finally:
                if place.more:  # also after a failure, such as a full disk
                    self._due.append(place)
            if not batches or self._clock() - began > ROUND_S:
                break

    def _has_jumped(self, now: datetime, time: float) -> bool:
        """Whether the clock was set, by more than JUMP_S, since the last round: it may be wrong."""
        last, self._last = self._last, (now, time)
        if last is None:
            return False
        jump = (now - last[0]).total_seconds() - (time - last[1])
        if abs(jump) <= JUMP_S:
            return False
        log(logging.WARNING, "the clock was set; nobody is deleted by the policies for an hour",
            by_seconds=round(jump))  # fmt: skip
        return True

    def _delete_some(self, place: _Place, now: datetime, most: int) -> int:
        """Delete persons of a collection in at most `most` transactions. Returns in how many."""
        began, done, persons = self._clock(), 0, 0
        try:
            while done < most and place.more:
                found, deleted = self._delete_batch(place, now)
                done += found > 0
                persons += deleted
                if self._clock() - began > ROUND_S:
                    break
        except CollectionNotFound:  # deleted meanwhile
            place.more = False
        finally:
            if persons:
                # Once for all: an erasure keeps other writers waiting for longer than a deletion.
                self._gallery.follow_deletion(place.name)
                self._gallery.store.database.eraser.erase()
                log(logging.INFO, "persons were deleted by the policy", collection=place.name,
                    persons=persons)  # fmt: skip
        return done

    def _delete_batch(self, place: _Place, now: datetime) -> tuple[int, int]:
        """The numbers of persons who were found, and of those who were deleted."""
        store, deleted = self._gallery.store, 0
        rule = expiry_of(store.collections.get(place.name), now)
        due = store.retention.expired(place.name, rule, MOST_AT_ONCE, place.after) if rule else []
        if due:
            self._before_deleting(place.name, due)
            deleted = store.retention.delete_expired(
                place.name, due, lambda one: expiry_of(one, now)
            ).persons
            place.after = due[-1]
        place.more = len(due) == MOST_AT_ONCE
        return len(due), deleted


class MatchTimes:
    """When persons were last matched, to the day: noted in memory, stored by maintenance. What is
    not stored yet is lost if the process is killed. One thread stores."""

    def __init__(self, retention: RetentionStore, now: Callable[[], datetime] = now_utc) -> None:
        self._retention = retention
        self._now = now
        self._lock = new_lock("gallery.matches")
        self._noted: set[tuple[int, str]] = set()  # keys of collections, ids of faces

    def note(self, collection: CollectionRecord, faces: Iterable[FaceName]) -> None:
        """Note that the persons of faces were matched now, if the collection's policy deletes by
        age."""
        if collection.policy.get("retention_days") is None:
            return
        with self._lock:
            self._noted |= {(collection.key, one.face_id) for one in faces}

    def store(self) -> None:
        """Store what was noted. Raises StoreUnavailable or StoreFull; then it stays noted."""
        day = self._now().replace(hour=0, minute=0, second=0, microsecond=0)
        with self._lock:
            noted, self._noted = self._noted, set()
        try:
            if noted:
                self._retention.note_matches(noted, day)
        except BaseException:
            with self._lock:
                self._noted |= noted
            raise
