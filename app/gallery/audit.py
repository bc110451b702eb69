"""Truth against index: every template of the database as it is, and nothing else?"""

from dataclasses import dataclass

import numpy as np

from app.gallery.index.certified import CertifiedIndex
from app.gallery.ports import CollectionRecord, TemplateStore

PAGE = 8_192
# An embedding is stored as it was made; lengths differ from 1 by rounding only.
LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Audit:
    """How many templates of a collection were compared, and how many were not as they should be."""

    templates: int
    missing: int
    unknown: int
    different: int
    not_unit: int

    @property
    def index_is_true(self) -> bool:
        """The index holds the database's templates and nothing else."""
        return not (self.missing or self.unknown or self.different)

    @property
    def clean(self) -> bool:
        """Nothing is wrong."""
        return self.index_is_true and not self.not_unit


def audit(store: TemplateStore, record: CollectionRecord, index: CertifiedIndex) -> Audit:
    """Compare a collection's index with the database, template by template.

    Meant for a gallery at rest: what is enrolled meanwhile counts as missing or unknown.
    """
    compared = missing = different = not_unit = last = 0
    while len((page := store.templates_after(record, last, PAGE)).keys):
        last = int(page.keys[-1])
        compared += len(page.keys)
        held = index.held(page.keys)
        found = np.isin(page.keys, held.keys)
        missing += int((~found).sum())
        # Both are sorted by key.
        same = (page.vectors[found] == held.vectors).all(axis=1)
        same &= page.person_keys[found] == held.person_keys
        different += int((~same).sum())
        lengths = np.linalg.norm(page.vectors, axis=1)
        not_unit += int((~(np.abs(lengths - 1) < LENGTH_TOLERANCE)).sum())
    unknown = index.size - (compared - missing)
    return Audit(compared, missing, unknown, different, not_unit)
