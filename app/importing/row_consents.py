"""Consents of the rows of an import, looked at before their photos are: nobody's photo is analysed
where a consent is needed and missing. The store decides when it stores the rows."""

from collections.abc import Mapping, Sequence

from app.errors import ConsentMissing
from app.importing.source_rows import Row
from app.store.records import CollectionRecord
from app.store.sql.consents import consent_until, require_consent
from app.store.store import Store

# Persons of rows that are not stored yet: more than a transaction has, and all that are read ahead.
MOST_BROUGHT = 8_192


class RowConsents:
    """The consents that rows bring, and the persons who have none."""

    def __init__(self, store: Store, record: CollectionRecord) -> None:
        self._store = store
        self._record = record
        self._brought: dict[str, None] = {}  # ids of persons, the last rows' last

    def require(self, row: Row) -> None:
        """Raise ConsentMissing if the row's metadata has no consent that is valid, and one is
        needed."""
        if row.metadata is None:
            return
        now, until = self._store.database.clock(), consent_until(row.metadata)
        require_consent(self._record, row.person_id, until, now, row.metadata)
        if until is not None and until > now:
            self._brought.pop(row.person_id, None)
            self._brought[row.person_id] = None
            if len(self._brought) > MOST_BROUGHT:
                del self._brought[next(iter(self._brought))]

    def missing(self, rows: Sequence[Row]) -> Mapping[str, ConsentMissing]:
        """By the person's id, why rows without metadata cannot be stored: the person has no consent
        that is valid, and none of the rows so far brings one."""
        ids = {row.person_id for row in rows if row.metadata is None} - self._brought.keys()
        return self._store.persons.without_consent(self._record.name, ids) if ids else {}
