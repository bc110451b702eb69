"""Error rates from similarities, and detections against labelled boxes. Pure functions.

Words of ISO/IEC 19795-1, which NIST FRTE uses too: a comparison is *mated* (one person) or
*non-mated*. At a threshold t a comparison is a match when its similarity is at least t; FMR is the
share of non-mated comparisons that match, FNMR the share of mated ones that do not. `can_tell`
alone decides which error rates labelled data is large enough to tell.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.decision.rates import Rate, clopper_pearson
from app.types import FloatArray

Similarities = NDArray[np.floating]
Labels = NDArray[np.bool_]
Indices = NDArray[np.intp]

FOLDS = 10
TARGET_FMRS = (1e-2, 1e-3)
MATCH_IOU = 0.5
# Rule of three (Jovanovic & Levy, 1997): without an error in n independent trials the rate is known
# to be at most 3 / n. A rate below that cannot be distinguished from zero.
RULE_OF_THREE = 3.0
# "Rule of 30" (ISO/IEC 19795-1; Doddington et al., 2000): with 30 errors a rate is within 30 %.
RULE_OF_THIRTY = 30


def can_tell(rate: float, trials: float) -> bool:
    """Whether an operating point at that error rate can be set or tested with so many independent
    trials: at least three errors are to be expected among them."""
    return rate * trials >= RULE_OF_THREE - 1e-9


def least_trials(rate: float) -> int:
    """How many independent trials an operating point at that rate needs."""
    return int(np.ceil(RULE_OF_THREE / rate - 1e-9))


def binomial(share: float, trials: float) -> Rate:
    """A share of independent trials with its 95 % interval (Clopper & Pearson, 1934)."""
    low, high = clopper_pearson(np.array([share * trials]), np.array([float(trials)]))
    return Rate(float(share), float(low[0]), float(high[0]))


@dataclass(frozen=True, slots=True)
class FoldAccuracy:
    """Share of pairs decided rightly: mean and (population) standard deviation over the folds."""

    mean: float
    std: float
    thresholds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """What a threshold does, with 95 % intervals that take the pairs for independent.

    `target_fmr` is what the threshold was set for; None where the threshold was given.
    """

    target_fmr: float | None
    threshold: float
    fmr: Rate
    fnmr: Rate
    false_matches: int


@dataclass(frozen=True, slots=True)
class EqualErrorRate:
    """The rate at which FMR and FNMR meet, the threshold where they do, and how many independent
    trials the scarcer kind of comparison gives."""

    rate: float
    threshold: float
    trials: float

    @property
    def interval(self) -> Rate:
        """The rate with its 95 % interval."""
        return binomial(self.rate, self.trials)


def ten_fold_accuracy(similarities: Similarities, same: Labels) -> FoldAccuracy:
    """Verification accuracy after the protocol of LFW (Huang et al., 2007), "View 2".

    The threshold that decides most pairs of nine folds rightly is tested on the tenth, ten times.
    Folds are runs of neighbours in the order of the pairs, mated and non-mated apart, so that each
    fold has its share of both: lists of pairs keep a person's pairs together, and then a
    person is seldom in two folds. Raises ValueError with fewer than ten pairs of a kind.
    """
    fold = _folds(same)
    values = similarities.astype(np.float64)  # a threshold may lie between two float32 neighbours
    accuracies, thresholds = [], []
    for k in range(FOLDS):
        test = fold == k
        threshold = most_accurate_threshold(values[~test], same[~test])
        accuracies.append(float(np.mean((values[test] >= threshold) == same[test])))
        thresholds.append(threshold)
    return FoldAccuracy(float(np.mean(accuracies)), float(np.std(accuracies)), tuple(thresholds))


def _folds(same: Labels) -> Indices:
    """The number of the fold of each pair (n,)."""
    fold = np.empty(len(same), dtype=np.intp)
    for kind in (np.flatnonzero(same), np.flatnonzero(~same)):
        if len(kind) < FOLDS:
            raise ValueError(f"{FOLDS} folds need {FOLDS} mated and {FOLDS} non-mated pairs")
        fold[kind] = np.arange(len(kind)) * FOLDS // len(kind)
    return fold


def most_accurate_threshold(similarities: Similarities, same: Labels) -> float:
    """The threshold that decides most pairs rightly, in the middle of the gap it falls in.

    Of several equally good ones the highest, which has the fewest false matches.
    """
    order = np.argsort(-similarities, kind="stable")
    values = similarities[order].astype(np.float64)
    mated = same[order]
    accepted_mates = np.concatenate([[0], np.cumsum(mated)])
    accepted_others = np.concatenate([[0], np.cumsum(~mated)])
    right = accepted_mates + (accepted_others[-1] - accepted_others)
    # A threshold cannot fall between equal values: there the cut does not exist.
    right[1:-1][values[1:] == values[:-1]] = -1
    cut = int(np.argmax(right))
    if cut == 0:
        return math.nextafter(float(values[0]), math.inf)
    if cut == len(values):
        return float(values[-1])
    return float((values[cut - 1] + values[cut]) / 2)


def fnmr_at_fmr(
    similarities: Similarities, same: Labels, targets: Sequence[float] = TARGET_FMRS
) -> tuple[MeasuredPoint, ...]:
    """FNMR at each FMR that the non-mated pairs are enough for. Raises ValueError unless there are
    both mated and non-mated pairs."""
    _, others = _by_kind(similarities, same)
    return tuple(
        point_at_fmr(similarities, same, target)
        for target in targets
        if can_tell(target, len(others))
    )


def point_at_fmr(similarities: Similarities, same: Labels, target: float) -> MeasuredPoint:
    """FMR and FNMR at `lowest_threshold`, so that the measured FMR never exceeds `target`.

    Raises ValueError unless there are both mated and non-mated pairs.
    """
    mated, others = _by_kind(similarities, same)
    return _operating_point(target, lowest_threshold(others, target), mated, others)


def lowest_threshold(non_mated: NDArray[np.float64], target: float) -> float:
    """The lowest threshold that no more than that share of non-mates (n,) reach: of comparisons,
    or of strangers by the highest similarity of anyone.

    Estimator: of n non-mated similarities at most k = floor(target * n) may match, so the threshold
    is the next number above the (k + 1)-th highest; nothing is interpolated.
    """
    descending = np.sort(non_mated)[::-1]
    allowed = math.floor(target * len(descending) + 1e-9)  # 0.29 * 100 is 28.999999999999996
    if allowed >= len(descending):
        return float(descending[-1])
    return math.nextafter(float(descending[allowed]), math.inf)


def operating_point(similarities: Similarities, same: Labels, threshold: float) -> MeasuredPoint:
    """FMR and FNMR at a given threshold.

    Raises ValueError unless there are both mated and non-mated pairs.
    """
    mated, others = _by_kind(similarities, same)
    return _operating_point(None, threshold, mated, others)


def _operating_point(
    target: float | None,
    threshold: float,
    mated: NDArray[np.float64],
    others: NDArray[np.float64],
) -> MeasuredPoint:
    false_matches = int(np.count_nonzero(others >= threshold))
    return MeasuredPoint(
        target_fmr=target,
        threshold=threshold,
        fmr=binomial(false_matches / len(others), len(others)),
        fnmr=binomial(float(np.mean(mated < threshold)), len(mated)),
        false_matches=false_matches,
    )


def equal_error_rate(similarities: Similarities, same: Labels) -> EqualErrorRate:
    """The EER: over all thresholds the mean of FMR and FNMR where they differ least.

    Both are step functions, so they may never be equal. Raises ValueError unless there are both
    mated and non-mated pairs.
    """
    mated, others = _by_kind(similarities, same)
    mated, others = np.sort(mated), np.sort(others)
    values = np.unique(np.concatenate([mated, others]))
    thresholds = np.append(values, math.nextafter(float(values[-1]), math.inf))
    fnmr = np.searchsorted(mated, thresholds, side="left") / len(mated)
    fmr = 1.0 - np.searchsorted(others, thresholds, side="left") / len(others)
    best = int(np.argmin(np.abs(fmr - fnmr)))
    return EqualErrorRate(
        float((fmr[best] + fnmr[best]) / 2), float(thresholds[best]), min(len(mated), len(others))
    )


def _by_kind(
    similarities: Similarities, same: Labels
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mated and non-mated similarities, as float64 so that a threshold between two exists."""
    values = similarities.astype(np.float64)
    mated, others = values[same], values[~same]
    if len(mated) == 0 or len(others) == 0:
        raise ValueError("error rates need mated and non-mated pairs")
    return mated, others


@dataclass(frozen=True, slots=True)
class FaceMatches:
    """One photo's labelled faces against its detections.

    `face_sides` (m,): the shorter side of each labelled box, pixels; `face_found` (m,): whether a
    detection matched it; `unmatched`: detections that matched no labelled face.
    """

    face_sides: FloatArray
    face_found: Labels
    detections: int
    unmatched: int


@dataclass(frozen=True, slots=True)
class SizeRecall:
    """Labelled faces whose shorter side is at least `min_side` pixels, and those found."""

    min_side: float
    faces: int
    found: int

    @property
    def recall(self) -> float:
        """Share found; nan where there is no such face."""
        return self.found / self.faces if self.faces else math.nan

    @property
    def interval(self) -> Rate | None:
        """The share found with its 95 % interval, faces taken for independent."""
        return binomial(self.found / self.faces, self.faces) if self.faces else None


def intersection_over_union(a: FloatArray, b: FloatArray) -> NDArray[np.float64]:
    """IoU of boxes (n, 4) and (m, 4), x1 y1 x2 y2, as (n, m); 0 where both are empty."""
    one, two = a.astype(np.float64)[:, np.newaxis], b.astype(np.float64)[np.newaxis]
    corners = np.minimum(one[..., 2:], two[..., 2:]) - np.maximum(one[..., :2], two[..., :2])
    shared = np.prod(np.maximum(corners, 0.0), axis=2)
    areas = [np.prod(boxes[..., 2:] - boxes[..., :2], axis=2) for boxes in (one, two)]
    union: NDArray[np.float64] = areas[0] + areas[1] - shared
    overlap: NDArray[np.float64] = np.zeros_like(shared)
    np.divide(shared, union, out=overlap, where=union > 0)
    return overlap


def match_faces(
    boxes: FloatArray, scores: FloatArray, labelled: FloatArray, min_iou: float = MATCH_IOU
) -> FaceMatches:
    """Match detections (n, 4) to labelled boxes (m, 4), as PASCAL VOC does (Everingham, 2010).

    Greedy: detections by falling score, each takes the free labelled face that it overlaps most,
    if their IoU is at least `min_iou`; a second detection of the same face stays unmatched.
    """
    overlap = intersection_over_union(boxes, labelled)
    found = np.zeros(len(labelled), dtype=np.bool_)
    unmatched = 0
    for detection in np.argsort(-scores, kind="stable"):
        free = np.where(found, -1.0, overlap[detection])
        best = int(np.argmax(free)) if len(free) else -1
        if best >= 0 and free[best] >= min_iou:
            found[best] = True
        else:
            unmatched += 1
    sides = (labelled[:, 2:] - labelled[:, :2]).min(axis=1)
    return FaceMatches(sides.astype(np.float32), found, len(scores), unmatched)


def recall_by_size(
    matches: Sequence[FaceMatches], min_sides: Sequence[float]
) -> tuple[SizeRecall, ...]:
    """Recall over many photos among the faces of at least each size."""
    empty = [np.empty(0, dtype=np.float32)]
    sides = np.concatenate(empty + [match.face_sides for match in matches])
    found = np.concatenate([np.empty(0, dtype=np.bool_)] + [match.face_found for match in matches])
    return tuple(
        SizeRecall(side, int(np.sum(sides >= side)), int(np.sum(found[sides >= side])))
        for side in min_sides
    )
