"""The figures of a folder of labelled people: all but those of pairs and of boxes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.decision.calibration import Calibration
from app.decision.covered import CoveredFaces
from app.decision.domain import SharedDirection
from app.decision.fitting import MIN_PERSONS, Labelled, calibrate
from app.decision.limits import Limits, Orientation
from app.decision.pair_lifts import PairLift
from app.decision.thresholds import ONE_COMPARISON, CollectionPolicy
from app.errors import NotEnoughData
from app.index.port import PRECISION
from app.inference.pack_spec import ModelPack
from app.lab.evaluation.comparing import compare_all, error_versus_discard
from app.lab.evaluation.degrading import (
    MILD_DEGRADATIONS,
    embed_covered,
    embed_degraded,
    photos_to_degrade,
)
from app.lab.evaluation.figures import (
    ComparisonFigures,
    DataFigures,
    DiscardFigures,
    FpirPrediction,
    GroupFigures,
    IdentificationFigures,
    ScoreFigures,
    SettingFigures,
)
from app.lab.evaluation.groups import by_group
from app.lab.evaluation.identification import at_setting, identify
from app.lab.evaluation.labels import LabelledPeople, LabelNoise
from app.lab.evaluation.plan import Bench, EvaluationPlan, folder_name
from app.lab.evaluation.prediction import check_predictions
from app.lab.evaluation.protocol import (
    EnrolledPhotos,
    enrol_photos,
)
from app.lab.evaluation.sample import FaceSample, build_sample, find_problems
from app.lab.evaluation.scores import compare_rules
from app.lab.evaluation.sections import TRIED, LabelledFolder, fit_orientation, with_lifts


@dataclass(frozen=True, slots=True)
class PeopleFigures:
    """The figures of the people of a plan."""

    data: tuple[DataFigures, ...] = ()
    calibration: Calibration | None = None
    comparisons: ComparisonFigures | None = None
    setting: SettingFigures | None = None
    identification: tuple[IdentificationFigures, ...] = ()
    predictions: tuple[FpirPrediction, ...] = ()
    scores: tuple[ScoreFigures, ...] = ()
    discard: tuple[DiscardFigures, ...] = ()
    groups: tuple[GroupFigures, ...] = ()


def fit_direction(plan: EvaluationPlan, people: LabelledPeople, bench: Bench) -> Bench:
    """The bench with what degraded faces share and what they raise; without either where there are
    too few people for a calibration."""
    names = photos_to_degrade(people, plan.noise)
    if len(names) < MIN_PERSONS:
        return replace(bench, shared=None)
    photos = bench.analyser, people.folder, names, plan.selection
    with bench.progress("degraded", len(names)) as tick:
        degraded = embed_degraded(*photos, tick)
    with bench.progress("covered", len(names)) as tick:
        plain, covered = embed_covered(*photos, tick)
    with bench.progress("mildly degraded", len(names)) as tick:
        mild = embed_degraded(*photos, tick, ways=MILD_DEGRADATIONS)
    source = folder_name(people.folder)
    shared = SharedDirection.fit(degraded, source, CoveredFaces.fit(plain, covered, source))
    lift = PairLift.of_degraded(plain, np.stack(list(mild.values()), axis=1), source)
    return replace(bench, shared=shared, degraded=lift)


def measure_people(plan: EvaluationPlan, people: LabelledPeople, bench: Bench) -> PeopleFigures:
    with bench.progress("photos", len(people.images)) as tick:
        photos = enrol_photos(bench.analyser, people.folder, people.images, plan.selection, tick)
    sample = build_sample(people, photos, plan.noise, bench.comparator)
    orientation = _fit_orientation(plan, people, photos, bench) if plan.fit_orientation else None
    generator = np.random.default_rng(plan.seed)
    with bench.progress("figures", 4) as tick:
        calibration = _calibrate(plan, sample, people, bench)
        comparisons = compare_all(sample, calibration)
        tick()
        identification = identify(sample, generator)
        tick()
        predictions = check_predictions(sample, calibration, generator, bench.clock)
        tick()
        if calibration is not None:
            calibration = calibration.changed(orientation=orientation)
        setting = at_setting(
            sample,
            folder_name(people.folder),
            plan.policy,
            bench.shipped,
            bench.pack.decision.threshold,
        )
        thresholds = _thresholds(plan.policy, calibration, identification, setting, bench.pack)
        return PeopleFigures(
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


def _calibrate(
    plan: EvaluationPlan, sample: FaceSample, people: LabelledPeople, bench: Bench
) -> Calibration | None:
    name = folder_name(people.folder)
    labelled = Labelled(sample.data, "photos", name, sample.left_out, bench.shared, _limits(sample))
    try:
        found = calibrate(labelled, bench.pack.embedding_space, PRECISION, bench.clock)
    except NotEnoughData:
        return None
    return with_lifts(found, bench.degraded, sample, plan.attributes)


def _limits(sample: FaceSample) -> Limits:
    return Limits.fit(sample.data.comparator.degradation(sample.data.vectors))


def _fit_orientation(
    plan: EvaluationPlan, people: LabelledPeople, photos: EnrolledPhotos, bench: Bench
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
