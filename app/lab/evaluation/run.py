"""One evaluation from its sources to its figures."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from app.decision.calibration import Calibration, pack_calibration
from app.decision.domain import SharedDirection
from app.decision.fitting import MIN_PERSONS, Labelled, calibrate
from app.decision.limits import Limits
from app.decision.orientation import Orientation
from app.decision.policy import FaceSelection
from app.decision.thresholds import ONE_COMPARISON, CollectionPolicy
from app.errors import NotEnoughData
from app.index.comparator import COSINE, Comparator
from app.inference.pack_spec import ModelPack
from app.lab.evaluation.comparing import compare_all
from app.lab.evaluation.degrading import embed_degraded, photos_to_degrade
from app.lab.evaluation.discard import error_versus_discard
from app.lab.evaluation.figures import (
    ComparisonFigures,
    DataFigures,
    DetectionFigures,
    DiscardFigures,
    Evaluation,
    FpirPrediction,
    GroupFigures,
    IdentificationFigures,
    ModelFigures,
    PairsFigures,
    ScoreFigures,
    SettingFigures,
    TimingFigures,
)
from app.lab.evaluation.groups import by_group
from app.lab.evaluation.identification import identify
from app.lab.evaluation.labels import LabelledPairs, LabelledPeople, LabelNoise
from app.lab.evaluation.orientation import TRIED, LabelledFolder, fit_orientation
from app.lab.evaluation.prediction import check_predictions
from app.lab.evaluation.protocol import (
    Analyser,
    EnrolledPhotos,
    Tick,
    check_pairs,
    check_photos,
    detect_photos,
    enrol_photos,
    pair_similarities,
)
from app.lab.evaluation.sample import FaceSample, build_sample, find_problems
from app.lab.evaluation.scores import compare_rules
from app.lab.evaluation.setting import at_setting
from app.lab.evaluation.verification import detection_figures, verify_pairs
from app.types import FloatArray

PRECISION = "float32"
DEFAULT_POLICY = CollectionPolicy()

Progress = Callable[[str, int], AbstractContextManager[Tick]]


@dataclass(frozen=True, slots=True)
class PairsSource:
    """Labelled pairs and the folder their photos lie below."""

    path: Path
    folder: Path
    pairs: LabelledPairs


@dataclass(frozen=True, slots=True)
class BoxesSource:
    """Photos with labelled boxes (n, 4), and the folder they lie below."""

    path: Path
    folder: Path
    boxes: dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, on what, and how. `attributes`: group of each person, by attribute.
    `fit_direction`: find the direction that degraded faces share anew, and compare by it; otherwise
    faces are compared as the pack's calibration says. `policy`: the setting of the collections that
    the figures are wanted for. `fit_orientation`: whether the calibration gets limits for turned
    photos, which takes time."""

    people: LabelledPeople | None = None
    pairs: PairsSource | None = None
    boxes: BoxesSource | None = None
    noise: LabelNoise = field(default_factory=LabelNoise)
    attributes: dict[str, dict[str, str]] = field(default_factory=dict)
    selection: FaceSelection = FaceSelection.CENTRE
    seed: int = 0
    fit_direction: bool = False
    policy: CollectionPolicy = DEFAULT_POLICY
    fit_orientation: bool = False


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The figures, the calibration made of the people (None: too few), and where photos lie."""

    evaluation: Evaluation
    calibration: Calibration | None
    folders: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class _Sections:
    """What the people of a plan gave."""

    data: tuple[DataFigures, ...] = ()
    calibration: Calibration | None = None
    comparisons: ComparisonFigures | None = None
    setting: SettingFigures | None = None
    identification: tuple[IdentificationFigures, ...] = ()
    predictions: tuple[FpirPrediction, ...] = ()
    scores: tuple[ScoreFigures, ...] = ()
    discard: tuple[DiscardFigures, ...] = ()
    groups: tuple[GroupFigures, ...] = ()


@dataclass(frozen=True, slots=True)
class _Bench:
    """What measures: the pack, its pipeline, a way to show progress, a clock, the pack's
    calibration, and the direction by which faces are compared."""

    pack: ModelPack
    analyser: Analyser
    progress: Progress
    clock: Callable[[], datetime]
    shipped: Calibration | None
    shared: SharedDirection | None = None

    @property
    def comparator(self) -> Comparator:
        return COSINE if self.shared is None else self.shared.comparator


def evaluate(
    plan: Plan,
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
    bench = _Bench(pack, analyser, progress, clock, shipped)
    shared = None if shipped is None or shipped.domain is None else shipped.domain.shared
    if plan.fit_direction and plan.people is not None:
        shared = _fit_direction(plan, plan.people, bench)
    bench = replace(bench, shared=shared)
    sections = _Sections() if plan.people is None else _measure_people(plan, plan.people, bench)
    pairs = _measure_pairs(plan, bench)
    detection = _measure_boxes(plan, bench)
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


def _check(plan: Plan) -> None:
    """Before minutes are spent: what can be known to be wrong."""
    if plan.pairs is not None:
        check_pairs(plan.pairs.pairs)
        check_photos(plan.pairs.folder, plan.pairs.pairs.photos)
    if plan.boxes is not None:
        check_photos(plan.boxes.folder, list(plan.boxes.boxes))


def _fit_direction(plan: Plan, people: LabelledPeople, bench: _Bench) -> SharedDirection | None:
    """None where there are too few people for a calibration."""
    names = photos_to_degrade(people, plan.noise)
    if len(names) < MIN_PERSONS:
        return None
    with bench.progress("degraded", len(names)) as tick:
        degraded = embed_degraded(bench.analyser, people.folder, names, plan.selection, tick)
    return SharedDirection.fit(degraded, folder_name(people.folder))


def _measure_people(plan: Plan, people: LabelledPeople, bench: _Bench) -> _Sections:
    with bench.progress("photos", len(people.images)) as tick:
        photos = enrol_photos(bench.analyser, people.folder, people.images, plan.selection, tick)
    sample = build_sample(people, photos, plan.noise, bench.comparator)
    orientation = _fit_orientation(plan, people, photos, bench) if plan.fit_orientation else None
    generator = np.random.default_rng(plan.seed)
    with bench.progress("figures", 4) as tick:
        calibration = _calibrate(sample, people, bench)
        comparisons = compare_all(sample, calibration)
        tick()
        identification = identify(sample, generator)
        tick()
        predictions = check_predictions(sample, calibration, generator, bench.clock)
        tick()
        if calibration is not None:
            calibration = calibration.model_copy(update={"orientation": orientation})
        setting = at_setting(
            sample,
            folder_name(people.folder),
            plan.policy,
            bench.shipped,
            bench.pack.decision.threshold,
        )
        thresholds = _thresholds(plan.policy, calibration, identification, setting, bench.pack)
        return _Sections(
            data=(_data(people, photos, plan.noise),),
            calibration=calibration,
            comparisons=comparisons,
            setting=setting,
            identification=identification,
            predictions=predictions,
            scores=compare_rules(sample, generator),
            discard=error_versus_discard(sample, thresholds[0]),
            groups=by_group(sample, people, photos, plan.attributes, thresholds),
        )


def _calibrate(sample: FaceSample, people: LabelledPeople, bench: _Bench) -> Calibration | None:
    name = folder_name(people.folder)
    labelled = Labelled(sample.data, "photos", name, sample.left_out, bench.shared, _limits(sample))
    try:
        return calibrate(labelled, bench.pack.embedding_space, PRECISION, bench.clock)
    except NotEnoughData:
        return None


def _limits(sample: FaceSample) -> Limits:
    return Limits.fit(sample.data.comparator.degradation(sample.data.vectors))


def _fit_orientation(
    plan: Plan, people: LabelledPeople, photos: EnrolledPhotos, bench: _Bench
) -> Orientation | None:
    source = LabelledFolder(people.folder, folder_name(people.folder), photos, plan.selection)
    generator = np.random.default_rng(plan.seed)
    with bench.progress("turned photos", min(TRIED, len(photos.faces))) as tick:
        return fit_orientation(source, bench.pack, bench.analyser, generator, tick)


def _thresholds(
    policy: CollectionPolicy,
    calibration: Calibration | None,
    identification: Sequence[IdentificationFigures],
    setting: SettingFigures | None,
    pack: ModelPack,
) -> tuple[float, float]:
    """For one comparison at the policy's FMR, and for a search among all at its FPIR: of this data
    where it is enough to set them, and otherwise those of the pack."""
    comparing = pack.decision.threshold
    if calibration is not None:
        comparing = calibration.threshold_at(policy.target_fmr, ONE_COMPARISON)
    searching = comparing if setting is None else setting.threshold
    points = identification[-1].points if identification else ()
    return comparing, next(
        (p.threshold for p in points if p.target_fpir == policy.target_fpir), searching
    )


def _measure_pairs(plan: Plan, bench: _Bench) -> PairsFigures | None:
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


def _measure_boxes(plan: Plan, bench: _Bench) -> DetectionFigures | None:
    source = plan.boxes
    if source is None:
        return None
    with bench.progress("detection", len(source.boxes)) as tick:
        detected = detect_photos(bench.analyser, source.folder, source.boxes, tick)
    return detection_figures(source.path.name, detected)


def _data(people: LabelledPeople, photos: EnrolledPhotos, noise: LabelNoise) -> DataFigures:
    problems = find_problems(people, photos)
    left_out = [*sorted(noise.images), *(f"{a} = {b}" for a, b in noise.same_people)]
    return DataFigures(
        name=folder_name(people.folder),
        photos=len(people.images),
        people=len(set(people.persons)),
        people_with_one_photo=sum(problem.code == "one_photo" for problem in problems),
        failures_to_enrol=len(photos.failures),
        left_out=tuple(left_out),
        problems=problems,
    )


def folder_name(folder: Path) -> str:
    """The folder with the one it lies in: "images" alone says little."""
    return "/".join(folder.resolve().parts[-2:])


def _timings(analyser: Analyser, seconds: float) -> TimingFigures:
    stages = {name: float(np.median(spent)) for name, spent in analyser.stages_ms.items()}
    measured = max((len(spent) for spent in analyser.stages_ms.values()), default=0)
    return TimingFigures(measured, analyser.cached, stages, seconds)


def photo_reader(folders: Sequence[Path]) -> Callable[[str], bytes | None]:
    """Bytes of a photo named in the figures; None where it cannot be read."""

    def read(name: str) -> bytes | None:
        for folder in folders:
            try:
                return (folder / name).read_bytes()
            except OSError:
                continue
        return None

    return read
