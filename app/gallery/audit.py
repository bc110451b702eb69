"""Compares the index and its snapshot with the database, row by row."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from app.index.certified.counts import PersonCounts
from app.index.certified.index import CertifiedIndex
from app.index.certified.rows import Rows
from app.index.port import GallerySize, Ids, Templates
from app.index.snapshots.folder import Restored
from app.store.port import TemplateStore
from app.store.records import CollectionRecord
from app.types import FloatArray

N = TypeVar("N", np.int64, np.float32)
PAGE = 8_192
# An embedding is stored as it was made; lengths differ from 1 by rounding only.
LENGTH_TOLERANCE = 1e-3
# Of a sum of effective numbers: each is rounded to a step, and sums differ in their order.
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Copy:
    """The numbers of wrong rows in a copy of a collection's templates: `missing` in it, `unknown`
    to the database or there twice, `different` in person or vector, and `unerased`: marked as
    removed although their vector is still there."""

    missing: int = 0
    unknown: int = 0
    different: int = 0
    unerased: int = 0


@dataclass(frozen=True, slots=True)
class Audit:
    """How many templates the database has, and what is wrong with the copies of them: with the
    index in memory, whose own counts are off by `miscounted`, and with the snapshot (None where
    there is none that a start would use). `not_unit` are wrong in the database itself."""

    templates: int
    index: Copy
    snapshot: Copy | None = None
    miscounted: int = 0
    not_unit: int = 0

    @property
    def index_is_true(self) -> bool:
        """Whether index and snapshot have exactly the database's templates."""
        return self.index == Copy() and self.snapshot in (None, Copy()) and not self.miscounted

    @property
    def clean(self) -> bool:
        """Nothing is wrong."""
        return self.index_is_true and not self.not_unit


class RowComparison:
    """Compares the rows of one copy with pages of the database."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        living = [np.flatnonzero(part.alive) for part in parts]
        keys = np.concatenate([part.keys[rows] for part, rows in zip(parts, living, strict=True)])
        order = np.argsort(keys, kind="stable")
        self.keys = keys[order]
        self._rows = np.concatenate(living)[order]
        self._part = np.repeat(np.arange(len(parts)), [len(rows) for rows in living])[order]
        self._found = self._missing = self._different = 0

    def compare(self, page: Templates, may_miss: Collection[int]) -> None:
        """Compare with a page sorted by key; the keys in `may_miss` may be missing here."""
        places = np.flatnonzero(np.isin(self.keys, page.keys))
        rows = np.searchsorted(page.keys, self.keys[places])
        found = np.unique(rows)
        lacking = np.delete(page.keys, found)
        self._found += len(found)
        self._missing += sum(key not in may_miss for key in lacking.tolist())
        same = (self._vectors(places) == page.vectors[rows]).all(axis=1)
        same &= self.persons(places) == page.person_keys[rows]
        self._different += int((~same).sum())

    def persons(self, places: Ids) -> Ids:
        """The persons of some of the rows."""
        return self._gather([part.persons for part in self._parts], places)

    def _vectors(self, places: Ids) -> FloatArray:
        return self._gather([part.vectors for part in self._parts], places)

    def _gather(self, arrays: Sequence[NDArray[N]], places: Ids) -> NDArray[N]:
        gathered = np.empty((len(places), *arrays[0].shape[1:]), arrays[0].dtype)
        for number, array in enumerate(arrays):
            mine = self._part[places] == number
            gathered[mine] = array[self._rows[places[mine]]]
        return gathered

    def size(self) -> GallerySize:
        """How much there is, counted row by row."""
        return PersonCounts.of(list(self._parts)).size

    def outcome(self) -> Copy:
        """The result, after every page was compared."""
        unerased = sum(_unerased(part) for part in self._parts)
        unknown = len(self.keys) - self._found
        return Copy(self._missing, unknown, self._different, unerased)


def _effective(size: GallerySize) -> float:
    """The sum of the effective numbers of everybody's templates."""
    return sum(n * people for n, people in size.effective) or 1.0


def _unerased(rows: Rows) -> int:
    dead = np.flatnonzero(~rows.alive)
    starts = range(0, len(dead), PAGE)
    return sum(int(rows.vectors[dead[s : s + PAGE]].any(axis=1).sum()) for s in starts)


def audit(
    store: TemplateStore,
    record: CollectionRecord,
    index: CertifiedIndex,
    snapshot: Restored | None = None,
) -> Audit:
    """Compare a collection's index, and its snapshot, with the database, template by template.

    Meant for a gallery that nothing changes: rows that are added or removed meanwhile count as
    wrong, and so do rows that another process, which owns the snapshot, has not erased yet.
    """
    held = RowComparison(index.parts())
    kept, later = None, set[int]()
    if snapshot is not None:
        kept = RowComparison([*(shard.rows for shard in snapshot.shards), snapshot.write_buffer])
        later = set(store.changes_since(record, snapshot.revision).added.keys.tolist())
    compared = not_unit = last = 0
    while len((page := store.templates_after(record, last, PAGE)).keys):
        last = int(page.keys[-1])
        compared += len(page.keys)
        held.compare(page, may_miss=())
        if kept is not None:
            kept.compare(page, may_miss=later)
        lengths = np.linalg.norm(page.vectors, axis=1)
        not_unit += int((~(np.abs(lengths - 1) < LENGTH_TOLERANCE)).sum())
    counted, true = index.extent(), held.size()
    miscounted = abs(counted.templates - true.templates) + abs(counted.persons - true.persons)
    if not miscounted and abs(_effective(counted) / max(_effective(true), 1) - 1) > SUM_TOLERANCE:
        miscounted = 1
    return Audit(
        compared, held.outcome(), None if kept is None else kept.outcome(), miscounted, not_unit
    )
