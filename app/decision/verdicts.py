"""Verdicts: identified, ambiguous, unknown or rejected, for each face of an identification, and
whether two faces match; no verdict is given on what is outside the calibrated domain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from app.decision.domain import DEGRADED, Limits
from app.decision.gates import QualityGate, gate_failures
from app.decision.thresholds import ThresholdDecision
from app.gallery.candidates import Candidate, Comparison
from app.gallery.gallery import Gallery
from app.store.records import FaceName
from app.types import Face, Quality


class Status(StrEnum):
    """The answer of an identification for one face.

    `rejected`: the probe was not good enough to decide, however similar a person is. `ambiguous`:
    it is one of several persons who were declared to be different, and not clear which.
    """

    IDENTIFIED = "identified"
    AMBIGUOUS = "ambiguous"
    UNKNOWN = "unknown"
    REJECTED = "rejected"


class VerifyStatus(StrEnum):
    """The answer of a verification. `ambiguous` and `rejected`: as `Status` has them; neither is a
    match."""

    MATCH = "match"
    NO_MATCH = "no_match"
    AMBIGUOUS = "ambiguous"
    REJECTED = "rejected"


# The reason of a face whose person is assigned to another face of the photo, and identified there
# unless that is ambiguous or rejected.
IN_OTHER_FACE = "assigned_to_other_face"


def is_match(similarity: float, threshold: float) -> bool:
    """Whether a similarity counts as the same person: the threshold itself does."""
    return similarity >= threshold


@dataclass(frozen=True, slots=True)
class Doubt:
    """Persons declared to be different, between whom it is not decided, the most similar first.
    `margin` is the lead that was needed, None where none can be calculated."""

    between: tuple[Candidate, ...]
    margin: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`person` is set when identified, `reasons` (stable codes) when rejected or ambiguous, or
    unknown although a person is similar enough, `doubt` when ambiguous."""

    status: Status
    person: Candidate | None = None
    reasons: tuple[str, ...] = ()
    doubt: Doubt | None = None


def decide(
    faces: Sequence[Face],
    rows: Sequence[Sequence[Candidate]],
    threshold: float,
    gate: QualityGate,
    *,
    one_person_once: bool = False,
) -> list[Verdict]:
    """One verdict per face of one photo; `rows` are each face's nearest persons, best first.

    With `one_person_once` no person is found twice; rows must then be at least as long as there
    are faces. A face that fails the gate is rejected, and its person may be found for another face.
    """
    reasons = [tuple(c.code for c in gate_failures(face.quality, gate)) for face in faces]
    open_rows = [() if why else row for why, row in zip(reasons, rows, strict=True)]
    if one_person_once:
        persons = assign_persons(open_rows, threshold)
        return [
            Verdict(Status.UNKNOWN, reasons=(IN_OTHER_FACE,))
            if person is None and _nearest(row, threshold)
            else _verdict(why, person)
            for why, person, row in zip(reasons, persons, open_rows, strict=True)
        ]
    return [
        _verdict(why, _nearest(row, threshold)) for why, row in zip(reasons, open_rows, strict=True)
    ]


def _nearest(row: Sequence[Candidate], threshold: float) -> Candidate | None:
    return row[0] if row and is_match(row[0].similarity, threshold) else None


def _verdict(reasons: tuple[str, ...], person: Candidate | None) -> Verdict:
    if reasons:
        return Verdict(Status.REJECTED, reasons=reasons)
    if person is None:
        return Verdict(Status.UNKNOWN)
    return Verdict(Status.IDENTIFIED, person)


def assign_persons(rows: Sequence[Sequence[Candidate]], threshold: float) -> list[Candidate | None]:
    """For each face the candidate it is taken for, no person twice, or None.

    Optimal: of all ways to give each face at most one person at the threshold or above, the one
    with the largest sum of similarities over the threshold (the assignment problem; Kuhn 1955,
    solved after Jonker & Volgenant). Exact when each row of n faces holds its n nearest persons.
    """
    if len(rows) < 2:
        return [_nearest(row, threshold) for row in rows]
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 (see `services.import_scipy`)

    persons = sorted({candidate.face.person_id for row in rows for candidate in row})
    column = {person: i for i, person in enumerate(persons)}
    gain = np.zeros(
        (len(rows), len(persons) + len(rows))
    )  # one column for each face to stay unassigned
    chosen: dict[tuple[int, int], Candidate] = {}
    for i, row in enumerate(rows):
        for candidate in row:
            if is_match(candidate.similarity, threshold):
                j = column[candidate.face.person_id]
                # An assignment exactly at the threshold is still better than none.
                gain[i, j] = candidate.similarity - threshold + 1e-9
                chosen[i, j] = candidate
    faces, columns = linear_sum_assignment(gain, maximize=True)
    return [chosen.get((int(i), int(j))) for i, j in zip(faces, columns, strict=True)]


OUTSIDE_CALIBRATION = "outside_calibration"


@dataclass(frozen=True, slots=True)
class Rejections:
    """Applies the limits of one calibration to the decisions of one collection."""

    gallery: Gallery
    collection: str
    limits: Limits

    @classmethod
    def of(
        cls, gallery: Gallery, collection: str, threshold: ThresholdDecision
    ) -> "Rejections | None":
        """Those for a threshold; None where no error rate is promised: its calibration has no
        domain, or the threshold is fixed."""
        domain = None if threshold.calibration is None else threshold.calibration.domain
        if domain is None or threshold.target is None:
            return None
        return cls(gallery, collection, domain.limits)

    def applied(self, verdicts: Sequence[Verdict], faces: Sequence[Face]) -> list[Verdict]:
        """The verdicts; those are rejected that rest on a comparison of two faces that both look
        degraded."""
        codes = [DEGRADED in self._codes_of(face) for face in faces]
        doubtful = [
            verdict.person.face
            for verdict, mine in zip(verdicts, codes, strict=True)
            if mine and verdict.person is not None
        ]
        degradations = self._degradations(doubtful) if doubtful else {}
        return [
            replace(verdict, status=Status.REJECTED, person=None, reasons=(OUTSIDE_CALIBRATION,))
            if mine
            and verdict.person is not None
            and self._is_degraded(verdict.person, degradations)
            else verdict
            for verdict, mine in zip(verdicts, codes, strict=True)
        ]

    def rejects(self, probe: Face, other: Face | Comparison) -> bool:
        """Whether the comparison of a face with another, or with the nearest of a person's
        templates, is outside the limits."""
        mine = self._codes_of(probe)
        if isinstance(other, Comparison):
            theirs = self.limits.beyond(Quality.read(other.face.quality), other.degradation)
        else:
            theirs = self._codes_of(other)
        return bool(set(mine) & set(theirs))

    def _codes_of(self, face: Face) -> tuple[str, ...]:
        return self.limits.beyond(face.quality, degradation_of(face, self.gallery))

    def _is_degraded(self, person: Candidate, degradations: Mapping[int, float]) -> bool:
        return DEGRADED in self.limits.beyond(None, degradations.get(person.face.template_key))

    def _degradations(self, faces: Sequence[FaceName]) -> dict[int, float]:
        """Of stored templates by key, without those that were deleted since."""
        return self.gallery.degradations(self.collection, [face.template_key for face in faces])


def degradation_of(face: Face, gallery: Gallery) -> float | None:
    """How degraded an embedded face looks, by the gallery's comparator."""
    return None if face.embedding is None else gallery.comparator.degradation_of(face.embedding)
