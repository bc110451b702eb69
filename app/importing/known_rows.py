"""Rows whose face the person has already: their outcome, and what becomes of their metadata."""

import json
from collections.abc import Sequence
from dataclasses import replace

from app.errors import ConsentMissing, PersonNotFound
from app.importing.checks import Prepared
from app.importing.outcomes import RowOutcome, RowResult, rejection
from app.importing.source_rows import Row
from app.store.store import Store

# A reason: the person has the row's photo or embedding already.
ALREADY = "already_enrolled"
REPLACED = "The row's metadata differed from the person's and replaced it."


def already(row: Row, *, replaced: bool = False) -> RowOutcome:
    """The outcome of such a row; `replaced`: its metadata took the place of the person's."""
    detail = REPLACED if replaced else ""
    return RowOutcome(row.place, row.person_id, RowResult.SKIPPED, ALREADY, detail)


def update_metadata(store: Store, collection: str, row: Row) -> bool:
    """Replace an existing person's metadata by the row's if they differ. Returns whether they did.
    Raises PersonNotFound and ConsentMissing."""
    if row.metadata is None:
        return False
    stored = store.persons.get(collection, row.person_id).metadata
    # As texts: to Python, 1 equals true.
    if json.dumps(row.metadata, sort_keys=True) == json.dumps(dict(stored), sort_keys=True):
        return False
    store.persons.update(collection, row.person_id, row.metadata)
    return True


def replace_metadata(store: Store, collection: str, rows: Sequence[Prepared]) -> list[Prepared]:
    """Store the metadata of rows whose photo was enrolled before. Of several rows of a person the
    last one counts, so a later row that was just stored keeps its own. Returns all rows; one whose
    metadata has no consent, where one is needed by now, is rejected."""
    last = {
        one.row.person_id: place
        for place, one in enumerate(rows)
        if one.row.metadata is not None and (one.template is not None or _is_known(one))
    }
    decided = list(rows)
    for place in last.values():
        one = rows[place]
        if one.template is not None:
            continue
        try:
            if update_metadata(store, collection, one.row):
                decided[place] = replace(one, outcome=already(one.row, replaced=True))
        except PersonNotFound:  # deleted meanwhile
            continue
        except ConsentMissing as error:
            decided[place] = replace(one, outcome=rejection(one.row, error))
    return decided


def _is_known(one: Prepared) -> bool:
    return one.outcome is not None and one.outcome.reason == ALREADY
