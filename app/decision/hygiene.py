"""Finds what may be wrong in a gallery: one person under two ids, faces under the wrong id, faces
that resemble nobody, people with one weak face. Every template is searched for in the collection's
own index, like a probe, so that not every template has to be compared with every other.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from app.decision.calibration import Calibration
from app.decision.calibrations import Calibrations
from app.decision.gallery_issues import (
    ChancePairs,
    Degraded,
    Duplicate,
    Hygiene,
    Mislabel,
    Outlier,
    Weak,
)
from app.decision.gates import MILD_GATE, QualityGate, gate_failures
from app.decision.neighbours import Neighbours, Progress, RowIndices, find_neighbours
from app.decision.pairs import all_declared
from app.decision.policy import policy_of
from app.decision.thresholds import (
    ONE_COMPARISON,
    ThresholdDecision,
    ThresholdRequest,
    identification_threshold,
)
from app.gallery.gallery import Gallery
from app.index.person_scores import PersonScore
from app.index.port import GallerySize
from app.store.records import FaceRecord
from app.types import FloatArray, Quality

FACES_AT_ONCE = 10_000
# A face that its own person's others reach less than one stranger in a hundred does.
OUTLIER_FMR = 1e-2
FACES_TO_BE_AN_OUTLIER = 3
# Of the faces that are their person's only one, by the length of the raw embedding.
WEAK_SHARE = 0.05
ENOUGH_FACES = 1 / WEAK_SHARE


def find_gallery_issues(
    gallery: Gallery,
    calibrations: Calibrations,
    name: str,
    progress: Progress,
    limit: int | None = None,
) -> Hygiene:
    """Look through a collection; list so many findings of each kind, the worst, or all of them.

    Persons who are declared to be different are neither duplicates nor mislabels of each other.
    `progress` is called with templates done and all, and may raise to end it. Raises
    CollectionNotFound or EmbeddingSpaceMismatch.
    """
    record = gallery.require(name)
    size = gallery.size(name)
    # Single templates are compared here, whatever the score of a person is.
    policy, chain = policy_of(record), calibrations.chain(record, PersonScore.BEST)
    rule = identification_threshold(
        ThresholdRequest(), policy, chain, size, likeness=gallery.likeness(name)
    )
    threshold = rule.threshold
    calibration = rule.calibration  # the likeness that shifts similarities is of this one
    # Without a calibration it is not known how little strangers resemble one another.
    low = -1.0 if calibration is None else calibration.threshold_at(OUTLIER_FMR, ONE_COMPARISON)
    declared = all_declared(gallery.store.pairs, name)
    enough = max(threshold, low)
    near = find_neighbours(gallery, name, threshold, enough, progress, declared=declared)
    find = _Findings(gallery, name, near, calibration, rule)
    pairs, misplaced, alone = find.pairs(), find.misplaced(), find.alone(low)
    weak, weak_count = find.weak(limit)
    degraded = find.degraded_rows()
    return Hygiene(
        size.persons,
        len(near.keys),
        threshold,
        find.duplicates_by_chance(),
        find.mislabels_by_chance(size),
        find.duplicates(pairs[:limit]),
        find.mislabels(misplaced[:limit]),
        find.outliers(alone[:limit]),
        weak,
        find.degraded(degraded[:limit]),
        {
            "duplicates": len(pairs),
            "mislabels": len(misplaced),
            "outliers": len(alone),
            "weak": weak_count,
            "degraded": len(degraded),
        },
    )


class _Findings:
    """The findings, with the ids of faces and persons."""

    def __init__(
        self,
        gallery: Gallery,
        name: str,
        near: Neighbours,
        calibration: Calibration | None,
        rule: ThresholdDecision,
    ) -> None:
        self._gallery = gallery
        self._near = near
        self._calibration = calibration
        # Where similarities of this gallery are on the calibration's curves.
        self._unshifted = rule.unshifted
        self._threshold = threshold = rule.threshold
        persons, self._first, self._person, self._held = np.unique(
            near.person_keys, return_index=True, return_inverse=True, return_counts=True
        )
        # A face that resembles none of its own person's is out of place where another person's
        # resembles it.
        self._doubtful = (near.own < threshold) & np.isfinite(near.own)
        self._misplaced = self._doubtful & (near.other >= 0)
        # Of those who were deleted meanwhile nothing is known but that they had one or more.
        self._effective = np.maximum(gallery.effective_templates(name, persons), 1.0)
        self._by_chance = (
            None if calibration is None else (ChancePairs.of(calibration, self._effective))
        )

    def duplicates_by_chance(self) -> float | None:
        """How many of the duplicates are expected by chance. A doubtful face makes a mislabel."""
        if self._calibration is None:
            return None
        steady = np.bincount(self._person[~self._doubtful], minlength=len(self._held))
        # What is left of a person's templates is about as different as all of them.
        share = np.maximum(steady - 1, 0) / np.maximum(self._held - 1, 1)
        effective = np.where(steady > 0, 1 + (self._effective - 1) * share, 0.0)
        pairs = ChancePairs.of(self._calibration, effective)
        return pairs.at_most(self._unshifted(self._threshold))

    def mislabels_by_chance(self, size: GallerySize) -> float | None:
        """How many of the mislabels are expected by chance: a doubtful face meets a stranger."""
        if self._calibration is None:
            return None
        end = self._calibration.fmr.similarity[-1]
        rate = self._calibration.fpir_at(min(self._unshifted(self._threshold), end), size)
        assert rate is not None, "the end belongs to the curve"
        return int(self._doubtful.sum()) * rate.value

    def pairs(self) -> RowIndices:
        """Of each pair of people with faces beyond the threshold the row of the most similar one,
        unless a face only seems misplaced: one under the wrong id resembles those under the right
        one, and is a mislabel. The most similar first."""
        near, persons = self._near, self._near.person_keys
        reached = (near.other >= 0) & ~self._misplaced & ~self._misplaced[near.other]
        rows = np.flatnonzero(reached)
        mine, theirs = persons[rows], persons[near.other[rows]]
        one, other = np.minimum(mine, theirs), np.maximum(mine, theirs)
        order = np.lexsort((rows, -near.similarity[rows], other, one))
        new = np.ones(len(rows), np.bool_)
        new[1:] = np.diff(one[order]).astype(np.bool_) | np.diff(other[order]).astype(np.bool_)
        best = rows[order[new]]
        return best[np.lexsort((best, near.similarity[best]))[::-1]]

    def misplaced(self) -> RowIndices:
        """The rows of faces that resemble another person, but none of the faces of their own
        person."""
        rows = np.flatnonzero(self._misplaced)
        return rows[np.argsort(-self._near.similarity[rows], kind="stable")]

    def alone(self, low: float) -> RowIndices:
        """The rows of faces that neither their own people nor any other person resembles."""
        near = self._near
        # Of some nothing is known: their person's other faces were deleted meanwhile.
        alone = (near.own < low) & np.isfinite(near.own)
        alone &= self._held[self._person] >= FACES_TO_BE_AN_OUTLIER
        rows = np.flatnonzero(alone & (near.other < 0))
        return rows[np.argsort(near.own[rows], kind="stable")]

    def degraded_rows(self) -> RowIndices:
        """The rows of faces that look degraded beyond the calibration's limit, the worst first, and
        then of those that only look covered."""
        domain = None if self._calibration is None else self._calibration.domain
        limit = None if domain is None else domain.limits.max_degradation
        degradations, coverings = self._near.degradation, self._near.covering
        degraded = np.zeros(len(degradations), np.bool_) if limit is None else degradations > limit
        covered = (coverings >= 1) & ~degraded
        return np.concatenate(
            [_worst_first(degraded, degradations), _worst_first(covered, coverings)]
        )

    def degraded(self, rows: RowIndices) -> tuple[Degraded, ...]:
        """The findings about degraded faces."""
        degradations, coverings = self._near.degradation, self._near.covering
        return tuple(
            Degraded(face[0], face[1], round(float(degradations[row]), 4), _known(coverings[row]))
            for row, face in zip(rows, self._faces(rows), strict=True)
            if face is not None
        )

    def duplicates(self, rows: RowIndices) -> tuple[Duplicate, ...]:
        """The findings about pairs of people."""
        near = self._near
        named = zip(rows, self._faces(rows), self._faces(near.other[rows]), strict=True)
        return tuple(
            Duplicate(
                a[1], b[1], a[0], b[0], (similarity := float(near.similarity[row])),
                *self._fmr(similarity),
                self._expected(similarity),
            )
            for row, a, b in named
            if a is not None and b is not None and a[1] != b[1]
        )  # fmt: skip

    def mislabels(self, rows: RowIndices) -> tuple[Mislabel, ...]:
        """The findings about misplaced faces."""
        near = self._near
        named = zip(rows, self._faces(rows), self._faces(near.other[rows]), strict=True)
        return tuple(
            Mislabel(
                face[0], face[1], other[1], float(near.similarity[row]), float(near.own[row]),
                *self._fmr(float(near.similarity[row])),
            )
            for row, face, other in named
            if face is not None and other is not None and face[1] != other[1]
        )  # fmt: skip

    def outliers(self, rows: RowIndices) -> tuple[Outlier, ...]:
        """The findings about faces that nobody resembles."""
        own = self._near.own
        return tuple(
            Outlier(face[0], face[1], float(own[row]), *self._fmr(float(own[row])))
            for row, face in zip(rows, self._faces(rows), strict=True)
            if face is not None
        )

    def weak(self, limit: int | None) -> tuple[tuple[Weak, ...], int]:
        """People whose only face fails the mild gate, or is among the shortest embeddings; so many
        of them, and how many there are."""
        rows = self._first[self._held == 1]
        norms = np.full(len(rows), np.nan)
        poor = np.zeros(len(rows), np.bool_)
        for start, records in self._records(rows):
            for place, record in enumerate(records, start):
                quality = None if record is None else Quality.read(record.quality)
                if quality is not None:
                    norms[place] = np.nan if (norm := quality.embedding_norm) is None else norm
                    poor[place] = bool(gate_failures(quality, MILD_GATE))
        known = norms[np.isfinite(norms)]
        short = float(np.quantile(known, WEAK_SHARE)) if len(known) >= ENOUGH_FACES else None
        rows = rows[poor | (norms < (-np.inf if short is None else short))]
        found: list[Weak] = []
        for _, records in self._records(rows):
            found += _weak(records, _gate(short))
            found = sorted(found, key=_how_weak)[:limit]
        return tuple(found), len(rows)

    def _fmr(self, similarity: float) -> tuple[float | None, tuple[float, float] | None]:
        """How many comparisons of different people are as similar, and its 95 % interval."""
        if self._calibration is None:
            return None, None
        rate = self._calibration.fmr_at(self._unshifted(similarity))
        if rate is None:
            return None, (0.0, float(self._calibration.fmr.upper[-1]))
        return rate.value, (rate.low, rate.high)

    def _expected(self, similarity: float) -> float | None:
        """How many pairs of different people are expected to be at least as similar."""
        by_chance = self._by_chance
        return None if by_chance is None else by_chance.at(self._unshifted(similarity))

    def _faces(self, rows: RowIndices) -> list[tuple[str, str] | None]:
        """Face id and person id of rows; None for what was deleted meanwhile."""
        return [
            None if record is None else (record.face_id, record.person_id)
            for _, records in self._records(rows)
            for record in records
        ]

    def _records(self, rows: RowIndices) -> Iterator[tuple[int, list[FaceRecord | None]]]:
        """The faces of rows, some at a time, and where these start; None for deleted ones."""
        for start in range(0, len(rows), FACES_AT_ONCE):
            keys = self._near.keys[rows[start : start + FACES_AT_ONCE]].tolist()
            found = self._gallery.store.templates.by_key(keys)
            yield start, [found.get(key) for key in keys]


def _known(value: np.float32) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def _worst_first(mask: NDArray[np.bool_], by: FloatArray) -> RowIndices:
    """The rows of a mask, those with the highest value first."""
    rows = np.flatnonzero(mask)
    return rows[np.argsort(-by[rows], kind="stable")]


def _weak(records: list[FaceRecord | None], gate: QualityGate) -> Iterator[Weak]:
    """Those of some faces that fail the gate."""
    for record in records:
        quality = None if record is None else Quality.read(record.quality)
        if record is not None and quality is not None:
            reasons = tuple(failure.code for failure in gate_failures(quality, gate))
            if reasons:
                yield Weak(record.face_id, record.person_id, reasons, quality)


def _how_weak(one: Weak) -> tuple[int, float, str]:
    """The worst first."""
    return -len(one.reasons), one.quality.embedding_norm or 0.0, one.person_id


def _gate(norm: float | None) -> QualityGate:
    """The mild gate, and a least length of the raw embedding."""
    return MILD_GATE.model_copy(update={"min_embedding_norm": norm})
