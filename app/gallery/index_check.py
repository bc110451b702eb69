"""Compares an index and its saved copy with the database, template by template."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from app.index.port import GallerySize, IndexContent, Position, SearchIndex, Templates
from app.store.records import CollectionRecord
from app.store.sql.changes import ChangeLog

PAGE = 8_192
# An embedding is stored as it was made; lengths differ from 1 by rounding only.
LENGTH_TOLERANCE = 1e-3
# Of a sum of effective numbers: each is rounded to a step, and sums differ in their order.
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class CopyCheck:
    """The numbers of wrong rows in a copy of a collection's templates: `missing` in it, `unknown`
    to the database or there twice, `different` in person or vector, and `unerased`: marked as
    removed although their vector is still there."""

    missing: int = 0
    unknown: int = 0
    different: int = 0
    unerased: int = 0


@dataclass(frozen=True, slots=True)
class IndexCheck:
    """How many templates the database has, and what is wrong with the copies of them: with the
    index in memory, whose own counts are off by `miscounted`, and with the snapshot (None where
    there is none that a start would use). `not_unit` are wrong in the database itself."""

    templates: int
    index: CopyCheck
    snapshot: CopyCheck | None = None
    miscounted: int = 0
    not_unit: int = 0

    @property
    def index_matches(self) -> bool:
        """Whether index and snapshot have exactly the database's templates."""
        right = CopyCheck()
        return self.index == right and self.snapshot in (None, right) and not self.miscounted

    @property
    def clean(self) -> bool:
        """Nothing is wrong."""
        return self.index_matches and not self.not_unit


class ContentComparison:
    """Compares the content of one copy with pages of the database."""

    def __init__(self, content: IndexContent) -> None:
        self._content = content
        self._keys = content.keys
        self._found = self._missing = self._different = 0

    def compare(self, page: Templates, may_miss: Collection[int]) -> None:
        """Compare with a page sorted by key; the keys in `may_miss` may be missing here."""
        held = self._content.templates(np.flatnonzero(np.isin(self._keys, page.keys)))
        rows = np.searchsorted(page.keys, held.keys)
        found = np.unique(rows)
        lacking = np.delete(page.keys, found)
        self._found += len(found)
        self._missing += sum(key not in may_miss for key in lacking.tolist())
        same = (held.vectors == page.vectors[rows]).all(axis=1)
        same &= held.person_keys == page.person_keys[rows]
        self._different += int((~same).sum())

    def outcome(self) -> CopyCheck:
        """The result, after every page was compared."""
        unknown = len(self._keys) - self._found
        return CopyCheck(self._missing, unknown, self._different, self._content.unerased())


def _effective(size: GallerySize) -> float:
    """The sum of the effective numbers of everybody's templates."""
    return sum(n * people for n, people in size.effective) or 1.0


def check_index(changes: ChangeLog, record: CollectionRecord, index: SearchIndex) -> IndexCheck:
    """Compare a collection's index, and its saved copy, with the database, template by template.

    Meant for a gallery that nothing changes: templates that are added or removed meanwhile count
    as wrong, and so do those that another process, which owns the saved copy, has not erased yet.
    """

    def is_known(position: Position) -> bool:
        return changes.stamp_at(record, position.revision) == position.stamp

    content = index.content()
    saved = index.saved_copy.content(is_known)
    held, kept, later = ContentComparison(content), None, set[int]()
    if saved is not None:
        kept = ContentComparison(saved)
        since = changes.since(record, saved.position.revision)
        later = set(since.added.keys.tolist())
    compared = not_unit = last = 0
    while len((page := changes.templates_after(record, last, PAGE)).keys):
        last = int(page.keys[-1])
        compared += len(page.keys)
        held.compare(page, may_miss=())
        if kept is not None:
            kept.compare(page, may_miss=later)
        lengths = np.linalg.norm(page.vectors, axis=1)
        not_unit += int((~(np.abs(lengths - 1) < LENGTH_TOLERANCE)).sum())
    return IndexCheck(
        compared,
        held.outcome(),
        None if kept is None else kept.outcome(),
        _miscounted(index.searcher.extent(), content.extent()),
        not_unit,
    )


def _miscounted(counted: GallerySize, true: GallerySize) -> int:
    """By how much an index's own counts are off."""
    off = abs(counted.templates - true.templates) + abs(counted.persons - true.persons)
    if not off and abs(_effective(counted) / max(_effective(true), 1) - 1) > SUM_TOLERANCE:
        return 1
    return off
