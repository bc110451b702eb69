"""Consents of the rows of an import, checked before their photos are analysed: no photo is, of a
person without the consent that the collection needs. The store checks them again."""

from collections.abc import Sequence

from app.errors import ConsentMissing
from app.importing.source_rows import Row
from app.store.records import CollectionRecord
from app.store.sql.consents import MEMBER, consent_until, require_consent
from app.store.store import Store
from app.types import JsonObject

# Persons of rows that are not stored yet: more than a transaction has, and all that are read ahead.
MOST_BROUGHT = 8_192


class RowConsents:
    """The consents that rows bring, and the persons who have none."""

    def __init__(self, store: Store, record: CollectionRecord) -> None:
        self._store = store
        self._record = record
        # The consent that a row brought last, as metadata, by the person's id; the last rows' last.
        self._brought: dict[str, JsonObject] = {}

    def require(self, row: Row) -> None:
        """Raise ConsentMissing if the row's metadata has no consent that is valid, and one is
        needed."""
        if row.metadata is None:
            return
        now, until = self._store.database.clock(), consent_until(row.metadata)
        require_consent(self._record, row.person_id, until, now, row.metadata)
        if until is not None and until > now:
            self._brought.pop(row.person_id, None)
            self._brought[row.person_id] = {MEMBER: row.metadata[MEMBER]}
            if len(self._brought) > MOST_BROUGHT:
                del self._brought[next(iter(self._brought))]

    def refusals(self, rows: Sequence[Row]) -> list[ConsentMissing | None]:
        """For each row why it cannot be stored, or None: its person has no consent that is valid
        and none of the rows so far brings one, or the row has one that was withdrawn."""
        given = [(row.person_id, row.metadata) for row in rows]
        brought: dict[int, int] = {}  # by a row's place, that of the consent it relies on
        for place, row in enumerate(rows):
            if row.metadata is None and row.person_id in self._brought:
                brought[place] = len(given)
                given.append((row.person_id, self._brought[row.person_id]))
        refused = self._store.persons.refused_consents(self._record.name, given) if rows else {}
        return [
            refused.get(place) if brought.get(place, place) in refused else None
            for place in range(len(rows))
        ]
