"""Rows of persons without a consent, where the collection needs one."""

from collections.abc import Sequence
from dataclasses import replace

from app.errors import ConsentMissing
from app.importing.conflicts import Prepared
from app.importing.outcomes import refusal
from app.importing.source_rows import Row
from app.store.records import CollectionRecord
from app.store.sql.consents import consent_until, needs_consent, require_consent
from app.store.store import Store
from app.types import JsonObject


class ConsentChecker:
    """Refuses rows of persons who have no valid consent; does nothing in a collection that needs
    none."""

    def __init__(self, store: Store, record: CollectionRecord) -> None:
        self._store = store
        self._record = record
        self._needed = needs_consent(record)

    def check_metadata(self, row: Row) -> None:
        """Raise ConsentMissing if the row's own metadata has no valid consent, before its photo is
        analysed."""
        if self._needed and row.metadata is not None:
            self._require(row.person_id, row.metadata)

    def check(self, rows: Sequence[Prepared]) -> list[Prepared]:
        """The rows of one transaction; those of persons who will have no consent after it are
        refused."""
        if not self._needed:
            return list(rows)
        stored = [one.row for one in rows if one.template is not None]
        given = {row.person_id for row in stored if row.metadata is not None}
        others = {row.person_id for row in stored} - given
        known = self._store.imports.consents(self._record.name, others)
        now = self._store.database.clock()

        def checked(one: Prepared) -> Prepared:
            if one.template is None or one.row.person_id in given:
                return one
            try:
                until = known.get(one.row.person_id)
                require_consent(self._record, one.row.person_id, until, now)
            except ConsentMissing as error:
                # Without its key: a consent may come later, so the journal must not keep it.
                refused = refusal(one.row, error)
                return replace(one, template=None, outcome=refused, key=None, conflict=None)
            return one

        return [checked(one) for one in rows]

    def _require(self, person_id: str, metadata: JsonObject) -> None:
        now = self._store.database.clock()
        require_consent(self._record, person_id, consent_until(metadata), now)
