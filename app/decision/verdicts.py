"""The answers of an identification: identified, unknown or rejected, for each face."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.decision.assignment import assign_persons
from app.decision.gates import QualityGate, gate_failures
from app.decision.policy import Status, is_match
from app.gallery.candidates import Candidate
from app.types import Face


@dataclass(frozen=True, slots=True)
class Doubt:
    """Persons declared to be different, between whom it is not decided, the most similar first.
    `margin` is the lead that was needed, None where none can be calculated."""

    between: tuple[Candidate, ...]
    margin: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`person` is set when identified, `reasons` (stable codes) when rejected or ambiguous, `doubt`
    when ambiguous."""

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
    """One verdict a face of one photo; `rows` are each face's nearest persons, best first.

    With `one_person_once` nobody is found twice; rows must then be at least as long as there are
    faces. A face that fails the gate is rejected and keeps nobody from being found elsewhere.
    """
    reasons = [tuple(c.code for c in gate_failures(face.quality, gate)) for face in faces]
    open_rows = [() if why else row for why, row in zip(reasons, rows, strict=True)]
    if one_person_once:
        persons = assign_persons(open_rows, threshold)
    else:
        persons = [_nearest(row, threshold) for row in open_rows]
    return [_verdict(why, person) for why, person in zip(reasons, persons, strict=True)]


def _nearest(row: Sequence[Candidate], threshold: float) -> Candidate | None:
    return row[0] if row and is_match(row[0].similarity, threshold) else None


def _verdict(reasons: tuple[str, ...], person: Candidate | None) -> Verdict:
    if reasons:
        return Verdict(Status.REJECTED, reasons=reasons)
    if person is None:
        return Verdict(Status.UNKNOWN)
    return Verdict(Status.IDENTIFIED, person)
