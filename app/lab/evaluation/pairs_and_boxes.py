"""The figures of labelled pairs and of labelled boxes."""

from collections.abc import Sequence

from app.lab.evaluation.figures import (
    DetectionFigures,
    PairsFigures,
)
from app.lab.evaluation.labels import LabelledPairs
from app.lab.evaluation.metrics import (
    Similarities,
    equal_error_rate,
    fnmr_at_fmr,
    operating_point,
    recall_by_size,
    ten_fold_accuracy,
)
from app.lab.evaluation.plan import Bench, EvaluationPlan
from app.lab.evaluation.protocol import (
    DetectedPhotos,
    detect_photos,
    enrol_photos,
    pair_similarities,
)

# Shorter sides in pixels: 32 is the least that can be enrolled, 16 what a crowd asks for.
MIN_SIDES: Sequence[float] = (32.0, 16.0, 0.0)


def measure_pairs(plan: EvaluationPlan, bench: Bench) -> PairsFigures | None:
    source = plan.pairs
    if source is None:
        return None
    with bench.progress("pairs", len(source.pairs.photos)) as tick:
        photos = enrol_photos(
            bench.analyser, source.folder, source.pairs.photos, plan.selection, tick
        )
    return verify_pairs(
        source.path.name,
        source.pairs,
        pair_similarities(source.pairs, photos, bench.comparator),
        len(photos.failures),
        bench.pack.decision.threshold,
    )


def verify_pairs(
    name: str, pairs: LabelledPairs, similarities: Similarities, failures: int, threshold: float
) -> PairsFigures:
    """All verification figures of similarities (n,) in the order of the pairs."""
    same = pairs.same
    return PairsFigures(
        name=name,
        pairs=len(pairs),
        mated=int(same.sum()),
        photos=len(pairs.photos),
        failures=failures,
        accuracy=ten_fold_accuracy(similarities, same),
        eer=equal_error_rate(similarities, same),
        points=fnmr_at_fmr(similarities, same),
        at_threshold=operating_point(similarities, same, threshold),
    )


def measure_boxes(plan: EvaluationPlan, bench: Bench) -> DetectionFigures | None:
    source = plan.boxes
    if source is None:
        return None
    with bench.progress("detection", len(source.boxes)) as tick:
        detected = detect_photos(bench.analyser, source.folder, source.boxes, tick)
    return detection_figures(source.path.name, detected)


def detection_figures(name: str, detected: DetectedPhotos) -> DetectionFigures:
    """All detection figures of matched photos."""
    return DetectionFigures(
        name=name,
        photos=len(detected.matches),
        detections=sum(match.detections for match in detected.matches),
        unmatched=sum(match.unmatched for match in detected.matches),
        recall=recall_by_size(detected.matches, MIN_SIDES),
        failures=detected.failures,
    )
