"""The figures of a folder of labelled people: all but those of pairs and of boxes; and those of
each group of people, at one threshold for all groups, that of the whole sample, as in a service."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.decision.calibration import Calibration
from app.decision.comparisons import ErrorCurve, Indices, PersonPair, compare_mated, rates_at
from app.decision.domain import Limits, Orientation, SharedDirection
from app.decision.fitting import MIN_PERSONS, Labelled, calibrate
from app.decision.pair_lifts import CoveredFaces, PairLift
from app.decision.policy import CollectionPolicy
from app.decision.rates import Rate
from app.decision.thresholds import ONE_COMPARISON
from app.errors import NotEnoughData
from app.index.port import PRECISION
from app.inference.pack_spec import ModelPack
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
from app.lab.evaluation.identification import (
    at_setting,
    by_person,
    compare_rules,
    identify,
    search,
    split,
)
from app.lab.evaluation.labels import LabelledPeople, LabelNoise
from app.lab.evaluation.metrics import binomial
from app.lab.evaluation.prediction import check_predictions
from app.lab.evaluation.protocol import (
    Bench,
    EnrolledPhotos,
    EvaluationPlan,
    enrol_photos,
    folder_name,
)
from app.lab.evaluation.sample import (
    FaceSample,
    build_sample,
    compare_all,
    error_versus_discard,
    find_problems,
)
from app.lab.evaluation.sections import TRIED, LabelledFolder, fit_orientation, with_lifts

MIN_GROUP = 2


def by_group(
    sample: FaceSample,
    people: LabelledPeople,
    photos: EnrolledPhotos,
    attributes: Mapping[str, Mapping[str, str]],
    thresholds: tuple[float, float],
) -> tuple[GroupFigures, ...]:
    """Figures for each group of each attribute, at the sample's thresholds for comparisons and
    for searches among everybody. People of no group are in no group's figures."""
    figures = []
    for attribute, group_of in attributes.items():
        for group in sorted(set(group_of.values())):
            members = np.array(
                [i for i, name in enumerate(sample.names) if group_of.get(name) == group], np.intp
            )
            figures.append(
                _figures(sample, members, thresholds, attribute, group)
                if len(members) >= MIN_GROUP
                else _too_few(attribute, group, len(members), thresholds[0])
            )
            failures = _failures(people, photos, group_of, group)
            figures[-1] = replace(figures[-1], failures_to_enrol=failures)
    return tuple(figures)


def _failures(
    people: LabelledPeople, photos: EnrolledPhotos, group_of: Mapping[str, str], group: str
) -> Rate | None:
    images = [
        image
        for image, person in zip(people.images, people.persons, strict=True)
        if group_of.get(person) == group
    ]
    if not images:
        return None
    failed = sum(image not in photos.faces for image in images)
    return binomial(failed / len(images), len(images))


def _too_few(attribute: str, group: str, people: int, threshold: float) -> GroupFigures:
    return GroupFigures(attribute, group, people, 0, None, threshold, None, None, None, None)


def _figures(
    sample: FaceSample,
    members: Indices,
    thresholds: tuple[float, float],
    attribute: str,
    group: str,
) -> GroupFigures:
    number = {int(person): i for i, person in enumerate(members)}
    left_out: frozenset[PersonPair] = frozenset(
        (number[a], number[b]) for a, b in sample.left_out if a in number and b in number
    )
    data = sample.data.of_persons(members)
    comparing, searching = thresholds
    mated = compare_mated(data, np.array([comparing]))
    fpir, fnir = _searches(sample, members, searching)
    return GroupFigures(
        attribute=attribute,
        group=group,
        people=len(members),
        photos=len(data.persons),
        failures_to_enrol=None,
        threshold=comparing,
        fmr=_first(rates_at(data, np.array([comparing]), left_out)),
        fnmr=None if mated is None else _first(mated[0]),
        fpir=fpir,
        fnir=fnir,
    )


def _searches(
    sample: FaceSample, members: Indices, threshold: float
) -> tuple[Rate | None, Rate | None]:
    """FPIR of the group's strangers and FNIR of its known people, among everybody."""
    enrolled, strangers = split(sample)
    if len(enrolled) < MIN_GROUP or len(strangers) == 0:
        return None, None
    found = search(sample, enrolled, strangers)
    mine = np.isin(found.persons, members)
    wrong = (found.strangers >= threshold)[np.isin(strangers, members)]
    missed = (~found.first | (found.own < threshold))[mine]
    return (
        by_person(wrong, np.arange(len(wrong))) if len(wrong) else None,
        by_person(missed, found.persons[mine]) if len(missed) else None,
    )


def _first(curve: ErrorCurve) -> Rate:
    return Rate(float(curve.rates[0]), float(curve.low[0]), float(curve.high[0]))


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
    """The bench with what degraded faces share and what they raise; as it is where there are too
    few people, or usable faces of them, for a calibration."""
    names = photos_to_degrade(people, plan.noise)
    if len(names) < MIN_PERSONS:
        return bench
    photos = bench.analyser, people.folder, names, plan.selection
    with bench.progress("degraded", len(names)) as tick:
        degraded = embed_degraded(*photos, tick)
    if min(map(len, degraded.values()), default=0) < MIN_PERSONS:
        return bench
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
    # The tail of some hundred people may end above the target.
    if calibration is not None:
        found = calibration.threshold_if_supported(policy.target_fmr, ONE_COMPARISON)
        comparing = comparing if found is None else found
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
