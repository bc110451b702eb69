"""Rows that an import refuses or marks: a face that resembles another person's, or one that its
person has already; and those that the store refuses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.decision.policy import policy_of
from app.decision.thresholds import ThresholdRequest, identification_threshold
from app.errors import LikenessError, PersonNotFound
from app.gallery.candidates import Candidate, SearchResult
from app.importing.options import ImportOptions, OnConflict
from app.importing.outcomes import RowOutcome, RowResult, rejection
from app.importing.source_rows import Row
from app.index.comparator import Comparator
from app.index.person_scores import PersonScore
from app.services import Services
from app.store.records import CollectionRecord, NewTemplate, PersonTemplate
from app.types import FloatArray

# A reason: the face resembles another person more than its own.
CONFLICT = "conflict"
# Of the nearest people, one may be the face's own.
NEAREST = 2


@dataclass(frozen=True, slots=True)
class Prepared:
    """A row with its template, or with what already became of it; neither where it is a person
    without a face. `key` identifies it in the journal; `conflict` is another person whom the face
    resembles more than its own, with the similarity; `failure` is an unexpected error at its photo.
    """

    row: Row
    template: NewTemplate | None = None
    outcome: RowOutcome | None = None
    key: bytes | None = None
    conflict: tuple[str, float] | None = None
    failure: Exception | None = None

    def refused(self, error: LikenessError) -> "Prepared":
        """The row as the store refuses it. Without its key: the store may accept it later, so the
        journal must not keep it."""
        return Prepared(self.row, outcome=rejection(self.row, error))


def to_store(rows: Sequence[Prepared]) -> list[PersonTemplate]:
    """What is to be stored of rows that have a template, in their order."""
    return [
        PersonTemplate(one.row.person_id, one.row.metadata, one.template, one.row.face_id)
        for one in rows
        if one.template is not None
    ]


def _count_of_templates(rows: Sequence[Prepared]) -> int:
    return sum(one.template is not None for one in rows)


class ConflictChecker:
    """Checks rows together as if each were stored before the next came."""

    def __init__(
        self, services: Services, record: CollectionRecord, options: ImportOptions
    ) -> None:
        self._services = services
        self._record = record
        self._options = options
        self._policy = policy_of(record)
        # Single faces are compared here, whatever the score of a person is.
        self._chain = services.calibrations.chain(record, PersonScore.BEST)

    def concerns(self, row: Row) -> bool:
        """Whether a face of that row is checked at all."""
        on_conflict = self._options.on_conflict
        if on_conflict is None:
            on_conflict = OnConflict.REPORT if row.read is not None else OnConflict.OFF
        return on_conflict is not OnConflict.OFF or self._options.near_duplicate is not None

    def check(self, rows: Sequence[Prepared]) -> list[Prepared]:
        """The rows in their order, some with an outcome or a conflict now."""
        rows = list(rows)
        # No row is compared with one that will not be stored: neither with one that the store
        # refuses, nor with one that it refuses once the row with its person's consent is rejected.
        while self._probes(rows):
            rows = self._acceptable(rows)
            checked = self._compared(rows)
            if _count_of_templates(checked) == _count_of_templates(rows):
                return checked
            stored = self._acceptable(checked)
            if _count_of_templates(stored) == _count_of_templates(checked):
                return checked
            rows = [
                then if one.template is not None and then.template is None else row
                for row, one, then in zip(rows, checked, stored, strict=True)
            ]
        return rows

    def _compared(self, rows: Sequence[Prepared]) -> list[Prepared]:
        """The rows after their faces were compared with the gallery and with one another."""
        if not (probes := self._probes(rows)):
            return list(rows)
        gallery, name = self._services.gallery, self._record.name
        # Only who searches needs the index, which maintenance keeps compressed.
        self._services.maintenance.start()
        people = {one.row.person_id for one in rows}
        # Who is declared to be different resembles the person, and is no conflict.
        others = gallery.store.pairs.counterparts(self._record, people)
        most = max(map(len, others.values()), default=0)
        found = gallery.identify(name, np.stack(probes), NEAREST + most)
        known = gallery.store.imports.with_faces(name, people)
        before = _GallerySoFar(found, set(known), gallery.comparator)
        nearest, checked = iter(found.rows), []
        for one in rows:
            decided = one
            if one.template is not None and self.concerns(one.row):
                candidates = next(nearest)
                similar = before.nearest(one.template, candidates)
                if self._options.near_duplicate is not None and one.row.person_id in known:
                    self._add_own(one, candidates, similar)
                for other in others.get(one.row.person_id, ()):
                    similar.pop(other, None)
                decided = self._checked(one, similar, before)
            if decided.template is not None and not self._options.dry_run:
                before.add(one.row.person_id, decided.template)
            checked.append(decided)
        return checked

    def _probes(self, rows: Sequence[Prepared]) -> list[FloatArray]:
        return [
            one.template.embedding
            for one in rows
            if one.template is not None and self.concerns(one.row)
        ]

    def _acceptable(self, rows: Sequence[Prepared]) -> list[Prepared]:
        """The rows; those that the store would refuse are refused."""
        imports = self._services.gallery.store.imports
        errors = iter(imports.refused(self._record.name, to_store(rows)))
        return [
            one.refused(error) if one.template is not None and (error := next(errors)) else one
            for one in rows
        ]

    def _checked(
        self, one: Prepared, nearest: dict[str, float], before: "_GallerySoFar"
    ) -> Prepared:
        row, limit = one.row, self._options.near_duplicate
        own = nearest.get(row.person_id)
        if limit is not None and own is not None and own >= limit:
            outcome = RowOutcome(
                row.place, row.person_id, RowResult.SKIPPED, "near_duplicate",
                "The person already has a nearly identical face.", similarity=own,
            )  # fmt: skip
            return Prepared(row, outcome=outcome, key=one.key)
        first = max(nearest, key=lambda person_id: nearest[person_id], default=row.person_id)
        if first == row.person_id or self._options.on_conflict is OnConflict.OFF:
            return one
        rule = identification_threshold(
            ThresholdRequest(), self._policy, self._chain, before.size, likeness=before.likeness
        )
        if nearest[first] < rule.threshold:
            return one
        return self._conflicting(one, first, nearest[first])

    def _add_own(
        self, one: Prepared, candidates: Sequence[Candidate], similar: dict[str, float]
    ) -> None:
        """Add the similarity to the stored faces of the row's person, if others are nearer."""
        person_id = one.row.person_id
        if one.template is None or any(found.face.person_id == person_id for found in candidates):
            return
        gallery, name = self._services.gallery, self._record.name
        try:
            own = gallery.compare(name, person_id, one.template.embedding)
        except PersonNotFound:  # deleted meanwhile
            return
        if own is not None:
            similar[person_id] = max(own.similarity, similar.get(person_id, own.similarity))

    def _conflicting(self, one: Prepared, other: str, similarity: float) -> Prepared:
        if self._options.on_conflict not in (OnConflict.SKIP, OnConflict.STOP):
            return replace(one, conflict=(other, similarity))
        outcome = RowOutcome(
            one.row.place, one.row.person_id, RowResult.REJECTED, CONFLICT, resembles(other),
            conflict_with=other, similarity=similarity,
        )  # fmt: skip
        # Only if the import continues is it in the journal: what follows could change the answer.
        goes_on = self._options.on_conflict is OnConflict.SKIP
        return Prepared(one.row, outcome=outcome, key=one.key if goes_on else None)


class _GallerySoFar:
    """What a row is compared with: the gallery that was searched, where those in `known` have
    faces, and the rows before it."""

    def __init__(self, found: SearchResult, known: set[str], comparator: Comparator) -> None:
        self._comparator = comparator
        self.likeness = found.likeness
        self.size = found.searched
        self._known = known
        self._people: list[str] = []
        self._embeddings: list[FloatArray] = []

    def nearest(self, template: NewTemplate, candidates: Sequence[Candidate]) -> dict[str, float]:
        """Similarities of the nearest people."""
        best = {one.face.person_id: one.similarity for one in candidates}
        if self._embeddings:
            similarities = self._comparator.scores(
                template.embedding[np.newaxis], np.stack(self._embeddings)
            )[0]
            for person_id, similarity in zip(self._people, similarities.tolist(), strict=True):
                best[person_id] = max(similarity, best.get(person_id, similarity))
        return best

    def add(self, person_id: str, template: NewTemplate) -> None:
        """Add a template that will be stored."""
        new = person_id not in self._known
        self.size = self.size.one_more(person=new)
        self._known.add(person_id)
        self._people.append(person_id)
        self._embeddings.append(template.embedding)


def resembles(other: str) -> str:
    """The message of a conflict."""
    return f"The face resembles {other} more than anybody else."
