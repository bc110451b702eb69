"""Persons who may not be kept any longer, and when persons were last enrolled or matched."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    exists,
    false,
    func,
    or_,
    select,
    update,
)

from app.store.database import Database
from app.store.records import CollectionRecord, DeletionCounts, Erasure
from app.store.sql.consents import without_consent
from app.store.sql.lookups import MAX_KEYS, aware, get_collection, lock_collection
from app.store.sql.persons import delete_persons
from app.store.sql.tables import collections, persons, templates

# Reasons of deletions, for the audit log.
CONSENT_ENDED, RETENTION = "consent_ended", "retention"


@dataclass(frozen=True, slots=True)
class Expiry:
    """Who may not be kept: those who were neither enrolled nor matched since `inactive_since`, and
    those who have no consent that is valid at `consent_at`. None: no such rule."""

    inactive_since: datetime | None = None
    consent_at: datetime | None = None

    def __bool__(self) -> bool:
        return self.inactive_since is not None or self.consent_at is not None


class RetentionStore:
    """Finds and deletes persons who may not be kept any longer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def expired(self, name: str, rule: Expiry, limit: int, after: str = "") -> list[str]:
        """The ids of at most `limit` persons whom a rule does not allow to be kept, in their order,
        from those after `after`."""
        with self._database.reading() as connection:
            key = get_collection(connection, name).key
            # By the index of ids, which needs no sorting of all persons for a few of them.
            query = _expired(key, rule).where(persons.c.person_id > after)
            query = query.order_by(persons.c.person_id).limit(limit)
            return [row.person_id for row in connection.execute(query)]

    def count_expired(self, name: str, rule: Expiry) -> int:
        """How many persons a rule does not allow to be kept."""
        with self._database.reading() as connection:
            query = _expired(get_collection(connection, name).key, rule).subquery()
            return int(connection.execute(select(func.count()).select_from(query)).scalar_one())

    def delete_expired(
        self,
        name: str,
        person_ids: Sequence[str],
        rule: Callable[[CollectionRecord], Expiry],
    ) -> DeletionCounts:
        """Delete those of the persons whom the collection's rule, as it is now, does not allow to
        be kept. The caller erases their bytes (`Eraser.erase`)."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            query = _expired(collection.key, rule(collection))
            found = connection.execute(query.where(persons.c.person_id.in_(person_ids))).all()
            reasons = {row.id: CONSENT_ENDED if row.unconsented else RETENTION for row in found}
            keys = delete_persons(connection, collection, reasons, self._database.clock())
        return DeletionCounts(len(reasons), len(keys), Erasure.PENDING)

    def note_matches(self, matched: Collection[tuple[int, str]], day: datetime) -> None:
        """Store that persons were matched on a day: those who have the matched faces now, each
        given by the key of its collection and its face id. So a person who was renamed or merged
        since the match is the one who was matched."""
        earlier = persons.c.active_at.is_(None) | (persons.c.active_at < day)
        new = self._not_yet(matched, earlier)
        if not new:
            return
        its = select(templates.c.person).where(
            templates.c.collection == bindparam("of"), templates.c.face_id == bindparam("face")
        )
        mine = persons.c.id == its.scalar_subquery()
        statement = update(persons).where(mine, earlier).values(active_at=day)
        with self._database.writing() as connection:
            # As every write does: a person who is being deleted by age has to be seen as matched.
            for key in sorted({key for key, _ in new}):
                one = select(collections.c.id).where(collections.c.id == key)
                connection.execute(one.with_for_update())
            connection.execute(statement, [{"of": key, "face": face} for key, face in new])

    def _not_yet(
        self, matched: Collection[tuple[int, str]], earlier: ColumnElement[bool]
    ) -> list[tuple[int, str]]:
        """Those of the faces whose persons fulfil a condition, so that most matches of a day need
        no write."""
        query = select(templates.c.collection, templates.c.face_id).join(
            persons, persons.c.id == templates.c.person
        )
        faces, found = sorted({face for _, face in matched}), set()
        with self._database.reading() as connection:
            for start in range(0, len(faces), MAX_KEYS):
                some = templates.c.face_id.in_(faces[start : start + MAX_KEYS])
                found |= {
                    (row[0], row[1]) for row in connection.execute(query.where(some, earlier))
                }
        return sorted(found.intersection(matched))


def note_activity(
    connection: Connection, collection: CollectionRecord, people: Collection[int], now: datetime
) -> None:
    """Store that persons were enrolled today, if the collection's policy deletes by age."""
    if collection.policy.get("retention_days") is None or not people:
        return
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    earlier = persons.c.active_at.is_(None) | (persons.c.active_at < day)
    mine = update(persons).where(persons.c.id.in_(people), earlier)
    connection.execute(mine.values(active_at=day))


def take_over_activity(
    connection: Connection, collection: CollectionRecord, old: int, new: int
) -> None:
    """Let a person, by key, have been active on the day when another was, if that is later and the
    collection's policy deletes by age."""
    if collection.policy.get("retention_days") is None:
        return
    query = select(persons.c.created_at, persons.c.active_at).where(persons.c.id == old)
    last = max(aware(one) for one in connection.execute(query).one() if one is not None)
    day = last.replace(hour=0, minute=0, second=0, microsecond=0)
    earlier = persons.c.active_at.is_(None) | (persons.c.active_at < day)
    mine = update(persons).where(persons.c.id == new, earlier)
    connection.execute(mine.values(active_at=day))


def _expired(collection: int, rule: Expiry) -> Select[Any]:
    unconsented = false() if rule.consent_at is None else without_consent(rule.consent_at)
    conditions = [unconsented]
    if rule.inactive_since is not None:
        conditions.append(_inactive(rule.inactive_since))
    query = select(persons.c.id, persons.c.person_id, unconsented.label("unconsented"))
    return query.where(persons.c.collection == collection, or_(*conditions))


def _inactive(since: datetime) -> ColumnElement[bool]:
    day = since - timedelta(days=1)  # a day is stored by its beginning
    enrolled = exists().where(templates.c.person == persons.c.id, templates.c.created_at >= since)
    return and_(
        persons.c.created_at < since,
        persons.c.active_at.is_(None) | (persons.c.active_at <= day),
        ~enrolled,
    )
