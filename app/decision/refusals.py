"""Decisions that are not made, because what was compared is outside the calibrated domain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from app.decision.limits import DEGRADED, Limits
from app.decision.policy import Status
from app.decision.thresholds import ThresholdDecision
from app.decision.verdicts import Verdict
from app.gallery.candidates import Candidate, Comparison
from app.gallery.gallery import Gallery
from app.store.records import FaceRecord
from app.types import Face, Quality

OUTSIDE_CALIBRATION = "outside_calibration"


@dataclass(frozen=True, slots=True)
class Refusals:
    """Applies the limits of one calibration to the decisions of one collection."""

    gallery: Gallery
    collection: str
    limits: Limits

    @classmethod
    def of(
        cls, gallery: Gallery, collection: str, threshold: ThresholdDecision
    ) -> "Refusals | None":
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

    def refuses(self, probe: Face, other: Face | Comparison) -> bool:
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

    def _degradations(self, faces: Sequence[FaceRecord]) -> dict[int, float]:
        """Of stored templates by key, without those that were deleted since."""
        return self.gallery.degradations(self.collection, [face.template_key for face in faces])


def degradation_of(face: Face, gallery: Gallery) -> float | None:
    """How degraded an embedded face looks, by the gallery's comparator."""
    return None if face.embedding is None else gallery.comparator.degradation_of(face.embedding)
