"""The consent of a person, as the member `consent` of their metadata says it.

`{"consent": {"reference": "form 2026-0117", "expires": "2029-11-26"}}`: where the consent is kept,
and until when it is valid. `"withdrawn": true` ends it at once.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from app.errors import ConsentMissing
from app.store.records import CollectionRecord
from app.types import JsonObject

MEMBER = "consent"
MAX_REFERENCE = 300
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


def consent_of(metadata: JsonObject) -> Consent | None:
    """The consent that metadata has; None if there is none in the expected form."""
    found = metadata.get(MEMBER)
    if not isinstance(found, dict):
        return None
    reference, withdrawn = found.get("reference"), found.get("withdrawn")
    if not isinstance(reference, str) or not 1 <= len(reference.strip()) <= MAX_REFERENCE:
        return None
    if withdrawn is not None and withdrawn is not False:
        return Consent(reference, WITHDRAWN)
    until = _end_of(found.get("expires"))
    return None if until is None else Consent(reference, min(max(until, EARLIEST), WITHOUT_END))


def consent_until(metadata: JsonObject) -> datetime | None:
    """Until when the consent in metadata is valid; None without one."""
    found = consent_of(metadata)
    return None if found is None else found.until


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
    collection: CollectionRecord, person_id: str, until: datetime | None, now: datetime
) -> None:
    """Raise ConsentMissing if the collection needs a consent and this one is not valid now."""
    if not needs_consent(collection) or (until is not None and until > now):
        return
    if until is None:
        raise ConsentMissing(
            f"The collection '{collection.name}' needs the consent of each person, and "
            f"'{person_id}' has none. {FORM}"
        )
    raise ConsentMissing(
        f"The consent of '{person_id}' has ended, and the collection '{collection.name}' needs "
        "one: the person is not matched any more, and is erased soon. Send metadata with a new "
        "consent if there is one."
    )
