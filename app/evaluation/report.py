"""The figures of one evaluation as plain values, for a table or for JSON."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.evaluation.labels import LabelledPairs
from app.evaluation.metrics import (
    EqualErrorRate,
    FoldAccuracy,
    OperatingPoint,
    Similarities,
    SizeRecall,
    equal_error_rate,
    operating_point,
    recall_by_size,
    tar_at_far,
    ten_fold_accuracy,
)
from app.evaluation.protocol import DetectedPhotos, Failure

# Shorter sides in pixels: 32 is the least that can be enrolled, 16 what a crowd asks for.
MIN_SIDES = (32.0, 16.0, 0.0)


@dataclass(frozen=True, slots=True)
class PairsReport:
    """Verification on labelled pairs. `at_threshold` is the pack's own threshold."""

    pairs: int
    mated: int
    photos: int
    accuracy: FoldAccuracy
    eer: EqualErrorRate
    at_far: tuple[OperatingPoint, ...]
    at_threshold: OperatingPoint
    failures: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class DetectionReport:
    """Detection on labelled boxes. `unmatched` detections lie on no labelled face.

    They are not all false: labels leave out faces that nobody cared to draw.
    """

    photos: int
    detections: int
    unmatched: int
    recall: tuple[SizeRecall, ...]
    failures: tuple[Failure, ...]


def report_pairs(
    pairs: LabelledPairs,
    similarities: Similarities,
    failures: Sequence[Failure],
    threshold: float,
) -> PairsReport:
    """All verification figures of similarities (n,) in the order of the pairs."""
    same = pairs.same
    return PairsReport(
        pairs=len(pairs),
        mated=int(same.sum()),
        photos=len(pairs.photos),
        accuracy=ten_fold_accuracy(similarities, same),
        eer=equal_error_rate(similarities, same),
        at_far=tar_at_far(similarities, same),
        at_threshold=operating_point(similarities, same, threshold),
        failures=tuple(failures),
    )


def report_detection(detected: DetectedPhotos) -> DetectionReport:
    """All detection figures of matched photos."""
    return DetectionReport(
        photos=len(detected.matches),
        detections=sum(match.detections for match in detected.matches),
        unmatched=sum(match.unmatched for match in detected.matches),
        recall=recall_by_size(detected.matches, MIN_SIDES),
        failures=detected.failures,
    )
