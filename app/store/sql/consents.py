"""The consents of persons: the member `consent` of their metadata, and the column derived from it.

`{"consent": {"reference": "form 2026-0117", "expires": "2029-11-26"}}`: where the consent is kept,
and until when it is valid. `"withdrawn": true` ends it at once. The end is stored in a column when
metadata is written, so that ended consents are found without reading all metadata.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Text,
    cast,
    or_,
    select,
    update,
)

from app.errors import ConsentMissing, NoConsent
from app.store.identifiers import composed
from app.store.records import CollectionRecord
from app.store.sql.audit_log import note
from app.store.sql.lookups import aware
from app.store.sql.tables import persons
from app.store.sql.withdrawn import digest_of, remember, remembered
from app.types import JsonObject

MEMBER = "consent"
# A reason for which a person is deleted.
BY_WITHDRAWAL = "consent_withdrawn"
MAX_REFERENCE = 300
MAX_SHOWN = 40
WITHOUT_END = datetime(9999, 12, 31, tzinfo=UTC)
WITHDRAWN = datetime(1970, 1, 1, tzinfo=UTC)
# Ends are between these: in the time zone of a PostgreSQL session none is beyond the years 1 to
# 9999, which Python could not read.
EARLIEST = WITHDRAWN + timedelta(days=1)
FORM = (
    'metadata.consent must be an object such as {"reference": "form 2026-0117", "expires": '
    '"2029-11-26"}: reference is a text of 1 to 300 characters, expires is left out, or a date or '
    'a time with its zone, and "withdrawn": true ends the consent.'
)


@dataclass(frozen=True, slots=True)
class Consent:
    """Where a consent is kept, and the first moment at which it is no longer valid."""

    reference: str
    until: datetime

    @property
    def withdrawn(self) -> bool:
        return self.until == WITHDRAWN

    @property
    def valid_until(self) -> datetime | None:
        """`until`; None if the consent does not end or was withdrawn."""
        return None if self.until in (WITHOUT_END, WITHDRAWN) else self.until


class _Malformed(ValueError):
    """A consent is not in the expected form; the text says which member is wrong."""


def consent_of(metadata: JsonObject) -> Consent | None:
    """The consent that metadata has; None if there is none in the expected form."""
    try:
        return _parsed(metadata)
    except _Malformed:
        return None


def consent_until(metadata: JsonObject) -> datetime | None:
    """Until when the consent in metadata is valid; None without one."""
    found = consent_of(metadata)
    return None if found is None else found.until


def _parsed(metadata: JsonObject) -> Consent | None:
    """The consent that metadata has; None without the member. Raises _Malformed."""
    if MEMBER not in metadata:
        return None
    found = metadata[MEMBER]
    if not isinstance(found, dict):
        raise _Malformed(f"metadata.consent is {_shown(found)}, not an object")
    reference, withdrawn = found.get("reference"), found.get("withdrawn")
    if not isinstance(reference, str):
        raise _Malformed(f"metadata.consent.reference is {_shown(reference)}, not a text")
    if not 1 <= len(reference.strip()) <= MAX_REFERENCE:
        count = len(reference.strip())
        raise _Malformed(f"metadata.consent.reference has {count:,} characters")
    if withdrawn is True:
        return Consent(reference, WITHDRAWN)
    if withdrawn is not None and withdrawn is not False:
        raise _Malformed(f"metadata.consent.withdrawn is {_shown(withdrawn)}, not true or false")
    expires = found.get("expires")
    until = _end_of(expires)
    if until is None:
        raise _Malformed(
            f"metadata.consent.expires is {_shown(expires)}, not a day and not a time with its zone"
        )
    return Consent(reference, min(max(until, EARLIEST), WITHOUT_END))


def _shown(value: object) -> str:
    """A value of metadata as a message shows it; values can be long."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    text = str(value)
    text = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    return f"'{text}'" if isinstance(value, str) else text


def _end_of(expires: object) -> datetime | None:
    """The first moment after `expires`: a day, whose end is that in UTC, or a time with its zone.
    None if it is neither."""
    if expires is None:
        return WITHOUT_END
    if not isinstance(expires, str):
        return None
    try:
        if len(expires) == len("2029-11-26"):
            last = date.fromisoformat(expires)
            if last >= WITHOUT_END.date():  # in other systems that often means: never
                return WITHOUT_END
            day = last + timedelta(days=1)
            return datetime(day.year, day.month, day.day, tzinfo=UTC)
        moment = datetime.fromisoformat(expires)
        return None if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def needs_consent(collection: CollectionRecord) -> bool:
    """Whether the collection's policy has `consent_required`."""
    return collection.policy.get("consent_required") is True


def require_consent(
    collection: CollectionRecord,
    person_id: str,
    until: datetime | None,
    now: datetime,
    metadata: JsonObject | None = None,
) -> None:
    """Raise ConsentMissing if the collection needs a consent and this one is not valid now.
    `metadata`: what the call gave, if the consent is from there and not a stored person's."""
    if not needs_consent(collection) or (until is not None and until > now):
        return
    if until is None:
        fault = _fault(metadata) or f"'{person_id}' has none"
        raise NoConsent(
            f"The collection '{collection.name}' needs the consent of each person, and {fault}. "
            f"{FORM}"
        )
    if metadata is not None:
        consent = metadata[MEMBER]
        member = "withdrawn" if until == WITHDRAWN else "expires"
        raise ConsentMissing(
            f"The collection '{collection.name}' needs a consent of '{person_id}' that is valid "
            f"now, and metadata.consent.{member} is {_shown(consent[member])}: this consent has "
            "ended. Send metadata with a valid one."
        )
    raise ConsentMissing(
        f"The consent of '{person_id}' has ended, and the collection '{collection.name}' needs "
        "one: the person is not matched any more, and is deleted soon. Send metadata with a new "
        "consent if there is one."
    )


def _fault(metadata: JsonObject | None) -> str | None:
    """What is wrong with the form of a consent; None if there is no consent."""
    try:
        _parsed(metadata or {})
    except _Malformed as error:
        return str(error)
    return None


PERSONS_AT_ONCE = 1_000


def keep_consent(
    connection: Connection, collection: CollectionRecord, person: int, metadata: JsonObject
) -> None:
    """Store until when the consent in a person's new metadata is valid, and note a change of it.
    Raises ConsentMissing if the collection needs one and there is none, valid or ended, or if it is
    one that was withdrawn."""
    after = consent_until(metadata)
    if after is None and needs_consent(collection):
        raise NoConsent(
            f"The collection '{collection.name}' needs the consent of each person, and "
            f"{_fault(metadata) or 'the metadata has none'}. {FORM} If the person has no consent, "
            "delete the person."
        )
    query = select(persons.c.person_id, persons.c.metadata, persons.c.consent_until)
    stored = connection.execute(query.where(persons.c.id == person)).one()
    require_new_reference(connection, collection, stored.person_id, metadata)
    old, new = consent_of(stored.metadata), consent_of(metadata)
    if old is not None and (old.withdrawn or after == WITHDRAWN):
        digest = digest_of(stored.person_id, old.reference)
        held = new is not None and digest_of(stored.person_id, new.reference) == digest
        if not (held and after == WITHDRAWN):
            remember(connection, collection, [digest])
    before = None if stored.consent_until is None else aware(stored.consent_until)
    if before == after:
        return
    connection.execute(update(persons).where(persons.c.id == person).values(consent_until=after))
    note_consent(connection, collection.name, person, after)


def require_new_reference(
    connection: Connection, collection: CollectionRecord, person_id: str, metadata: JsonObject
) -> None:
    """Raise the error of `withdrawn_before`, if there is one."""
    for error in withdrawn_before(connection, collection, [(person_id, metadata)]).values():
        raise error


def withdrawn_before(
    connection: Connection,
    collection: CollectionRecord,
    given: Sequence[tuple[str, JsonObject | None]],
) -> dict[int, ConsentMissing]:
    """The errors, by their place, of new metadata of persons that has as valid a consent which the
    person withdrew: a list that is sent again does not know of that. None in a collection that
    needs no consents."""
    ids: dict[int, str] = {}
    digests: dict[int, bytes] = {}
    for place, (person_id, metadata) in enumerate(given if needs_consent(collection) else ()):
        new = None if metadata is None else consent_of(metadata)
        if new is not None and not new.withdrawn:
            ids[place], digests[place] = person_id, digest_of(person_id, new.reference)
    if not ids:
        return {}
    query = select(persons.c.person_id, persons.c.metadata).where(
        persons.c.collection == collection.key,
        persons.c.person_id.in_({*ids.values(), *map(composed, ids.values())}),
        persons.c.consent_until == WITHDRAWN,
    )
    withdrawn = remembered(connection, collection, set(digests.values()))
    for row in connection.execute(query):
        if (old := consent_of(row.metadata)) is not None:
            withdrawn.add(digest_of(row.person_id, old.reference))
    return {
        place: ConsentMissing(
            f"'{ids[place]}' has withdrawn the consent that metadata.consent.reference names. Send "
            "metadata with a new consent, which has another reference, if there is one."
        )
        for place, digest in digests.items()
        if digest in withdrawn
    }


def remember_withdrawn(
    connection: Connection, collection: CollectionRecord, people: Mapping[int, str | None]
) -> None:
    """Remember the withdrawn consents of persons who are deleted, merged or renamed, by their keys;
    also those that end for the reason `consent_withdrawn`."""
    by_reason = [key for key, reason in people.items() if reason == BY_WITHDRAWAL]
    query = select(persons.c.person_id, persons.c.metadata).where(
        persons.c.id.in_(people),
        or_(persons.c.consent_until == WITHDRAWN, persons.c.id.in_(by_reason)),
    )
    found = [
        digest_of(row.person_id, consent.reference)
        for row in connection.execute(query)
        if (consent := consent_of(row.metadata)) is not None
    ]
    remember(connection, collection, found)


def note_consent(
    connection: Connection, collection: str, person: int, until: datetime | None
) -> None:
    """Note what became of a person's consent: its last day (of UTC) or null, never its
    reference."""
    if until is None:
        note(connection, "consent.removed", collection, person)
    elif until == WITHDRAWN:
        note(connection, "consent.withdrawn", collection, person)
    else:
        last = until - timedelta(microseconds=1)
        day = None if until == WITHOUT_END else f"{last:%Y-%m-%d}"
        note(connection, "consent.recorded", collection, person, last_day=day)


def without_consent(now: datetime | BindParameter[Any]) -> ColumnElement[bool]:
    """The condition that a person has no consent that is valid now."""
    return or_(persons.c.consent_until.is_(None), persons.c.consent_until <= now)


def rebuild_consents(connection: Connection) -> None:
    """Derive every person's `consent_until` again."""
    connection.execute(update(persons).values(consent_until=None))
    for row in _with_member(connection):
        until = consent_until(row.metadata)
        if until is not None:
            mine = update(persons).where(persons.c.id == row.id)
            connection.execute(mine.values(consent_until=until))


def _with_member(connection: Connection) -> Iterator[Any]:
    """The persons whose metadata may have a consent."""
    after = 0
    query = select(persons.c.id, persons.c.metadata).where(
        cast(persons.c.metadata, Text).like('%"consent"%')
    )
    while rows := connection.execute(
        query.where(persons.c.id > after).order_by(persons.c.id).limit(PERSONS_AT_ONCE)
    ).all():
        yield from rows
        after = rows[-1].id
