"""One evaluation from its sources to its figures."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from app.decision.calibration import Calibration
from app.decision.calibrations import pack_calibration
from app.errors import ImageError
from app.index.port import PRECISION
from app.inference.pack_spec import ModelPack
from app.lab.evaluation.figures import (
    DetectionFigures,
    Evaluation,
    ModelFigures,
    PairsFigures,
    TimingFigures,
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
from app.lab.evaluation.people import PeopleFigures, fit_direction, measure_people
from app.lab.evaluation.protocol import (
    Analyser,
    Bench,
    DetectedPhotos,
    EvaluationPlan,
    Progress,
    check_pairs,
    check_photos,
    detect_photos,
    enrol_photos,
    pair_similarities,
    read_photo,
)


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The figures, the calibration made of the people (None: too few), and where photos lie."""

    evaluation: Evaluation
    calibration: Calibration | None
    folders: tuple[Path, ...]


def evaluate(
    plan: EvaluationPlan,
    pack: ModelPack,
    analyser: Analyser,
    progress: Progress,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> EvaluationResult:
    """Measure everything that the plan's data allows. Raises EvaluationError for data that can
    not be used at all; what is wrong with single photos is in the figures."""
    start = time.monotonic()
    _check(plan)
    shipped = pack_calibration(pack.folder, pack.embedding_space, PRECISION)
    shared = None if shipped is None or shipped.domain is None else shipped.domain.shared
    bench = Bench(pack, analyser, progress, clock, shipped, shared)
    if plan.fit_direction and plan.people is not None:
        bench = fit_direction(plan, plan.people, bench)
    sections = PeopleFigures() if plan.people is None else measure_people(plan, plan.people, bench)
    pairs = measure_pairs(plan, bench)
    detection = measure_boxes(plan, bench)
    evaluation = Evaluation(
        model=ModelFigures(
            pack.name,
            pack.version,
            pack.embedding_space,
            PRECISION,
            shipped.calibration_id if shipped else None,
            plan.selection.value,
        ),
        created_at=clock().isoformat(timespec="seconds"),
        data=sections.data,
        timings=_timings(analyser, time.monotonic() - start),
        pairs=pairs,
        comparisons=sections.comparisons,
        setting=sections.setting,
        identification=sections.identification,
        predictions=sections.predictions,
        scores=sections.scores,
        discard=sections.discard,
        groups=sections.groups,
        detection=detection,
    )
    folders = [source.folder for source in (plan.people, plan.pairs, plan.boxes) if source]
    return EvaluationResult(evaluation, sections.calibration, tuple(folders))


def _check(plan: EvaluationPlan) -> None:
    """Find errors that can be found before minutes are spent."""
    if plan.pairs is not None:
        check_pairs(plan.pairs.pairs)
        check_photos(plan.pairs.folder, plan.pairs.pairs.photos)
    if plan.boxes is not None:
        check_photos(plan.boxes.folder, list(plan.boxes.boxes))


def _timings(analyser: Analyser, seconds: float) -> TimingFigures:
    stages = {name: float(np.median(spent)) for name, spent in analyser.stages_ms.items()}
    measured = max((len(spent) for spent in analyser.stages_ms.values()), default=0)
    return TimingFigures(measured, analyser.cached, stages, seconds)


def photo_reader(folders: Sequence[Path]) -> Callable[[str], bytes | None]:
    """Bytes of a photo named in the figures; None where it cannot be read."""

    def read(name: str) -> bytes | None:
        for folder in folders:
            try:
                return read_photo(folder / name)
            except ImageError:
                continue
        return None

    return read


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
