"""The figures of an evaluation as one list of rows: what its tables and its CSV are made of."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from app.decision.rates import Rate
from app.lab.evaluation.figures import (
    ComparisonFigures,
    DataFigures,
    DetectionFigures,
    DiscardFigures,
    Evaluation,
    GroupFigures,
    IdentificationFigures,
    PairsFigures,
    SettingFigures,
)
from app.lab.evaluation.metrics import EqualErrorRate
from app.lab.evaluation.verdict import verdict

Value = float | int | str | bool | None


@dataclass(frozen=True, slots=True)
class FigureRow:
    """One figure: where it belongs, its name and value, and the 95 % interval of a rate."""

    section: str
    condition: str
    metric: str
    value: Value
    low: float | None = None
    high: float | None = None
    extrapolated: bool = False


def rows_of(evaluation: Evaluation) -> Iterator[FigureRow]:
    """Every figure once. Points of curves, the people of single photos and names of photos are not
    among them: those are in the JSON."""
    yield FigureRow("verdict", "", "text", verdict(evaluation))
    yield from _values("model", "", **asdict(evaluation.model), created_at=evaluation.created_at)
    for data in evaluation.data:
        yield from _data_rows(data)
    if evaluation.pairs is not None:
        yield from _pairs_rows(evaluation.pairs)
    if evaluation.comparisons is not None:
        yield from _comparison_rows(evaluation.comparisons)
    if evaluation.setting is not None:
        yield from _setting_rows(evaluation.setting)
    for size in evaluation.identification:
        yield from _identification_rows(size)
    yield from _prediction_rows(evaluation)
    yield from _score_rows(evaluation)
    for curve in evaluation.discard:
        yield from _discard_rows(curve)
    for group in evaluation.groups:
        yield from _group_rows(group)
    if evaluation.detection is not None:
        yield from _detection_rows(evaluation.detection)
    timings = evaluation.timings
    yield from _values(
        "timings", "", measured=timings.measured, cached=timings.cached, seconds=timings.seconds
    )
    for stage, milliseconds in timings.stages_ms.items():
        yield from _values("timings", stage, median_ms=milliseconds)


def _values(section: str, condition: str, **metrics: Value) -> Iterator[FigureRow]:
    for metric, value in metrics.items():
        yield FigureRow(section, condition, metric, value)


def _rates(section: str, condition: str, **rates: Rate | None) -> Iterator[FigureRow]:
    """Rates with their intervals; one that nothing could be counted for is left out."""
    for metric, rate in rates.items():
        if rate is not None:
            yield FigureRow(
                section, condition, metric, rate.value, rate.low, rate.high, rate.extrapolated
            )


def _data_rows(data: DataFigures) -> Iterator[FigureRow]:
    yield from _values(
        "data",
        data.name,
        photos=data.photos,
        people=data.people,
        people_with_one_photo=data.people_with_one_photo,
        failures_to_enrol=data.failures_to_enrol,
        left_out=len(data.left_out),
    )
    for code, count in sorted(Counter(problem.code for problem in data.problems).items()):
        yield FigureRow("data", data.name, f"problems_{code}", count)


def _pairs_rows(pairs: PairsFigures) -> Iterator[FigureRow]:
    yield from _values(
        "pairs",
        pairs.name,
        pairs=pairs.pairs,
        mated=pairs.mated,
        photos=pairs.photos,
        failures=pairs.failures,
        accuracy=pairs.accuracy.mean,
        accuracy_std=pairs.accuracy.std,
    )
    yield from _eer_rows("pairs", pairs.name, pairs.eer)
    points = [(f"{pairs.name}, FMR={point.target_fmr:g}", point) for point in pairs.points]
    points.append((f"{pairs.name}, pack's threshold", pairs.at_threshold))
    for condition, point in points:
        yield from _values(
            "pairs",
            condition,
            threshold=point.threshold,
            false_matches=point.false_matches,
        )
        yield from _rates("pairs", condition, fmr=point.fmr, fnmr=point.fnmr)


def _eer_rows(section: str, condition: str, eer: EqualErrorRate) -> Iterator[FigureRow]:
    yield from _rates(section, condition, eer=eer.interval)
    yield from _values(section, condition, eer_threshold=eer.threshold)


def _comparison_rows(figures: ComparisonFigures) -> Iterator[FigureRow]:
    yield from _values(
        "comparisons",
        "",
        person_pairs=figures.person_pairs,
        comparisons=figures.comparisons,
        mated_people=figures.mated_people,
        mated_comparisons=figures.mated_comparisons,
    )
    yield from _eer_rows("comparisons", "", figures.eer)
    for point in figures.points:
        condition = f"FMR={point.target_fmr:g}"
        yield from _values("comparisons", condition, threshold=point.threshold)
        yield from _rates("comparisons", condition, fmr=point.fmr, fnmr=point.fnmr)


def _setting_rows(setting: SettingFigures) -> Iterator[FigureRow]:
    yield from _values(
        "setting",
        "",
        target_fpir=setting.target_fpir,
        threshold=setting.threshold,
        calibration_id=setting.calibration_id,
        same_data=setting.same_data,
        persons=setting.persons,
        strangers=setting.strangers,
    )
    yield from _rates("setting", "", fpir=setting.fpir, fnir=setting.fnir)


def _identification_rows(figures: IdentificationFigures) -> Iterator[FigureRow]:
    gallery = f"persons={figures.persons}"
    yield from _values(
        "identification",
        gallery,
        repeats=figures.repeats,
        mated_probes=figures.mated_probes,
        non_mated_probes=figures.non_mated_probes,
    )
    yield from _rates("identification", gallery, rank_one=figures.rank_one)
    for point in figures.points:
        condition = f"{gallery}, FPIR={point.target_fpir:g}"
        yield from _values("identification", condition, threshold=point.threshold)
        yield from _rates("identification", condition, fpir=point.fpir, fnir=point.fnir)


def _prediction_rows(evaluation: Evaluation) -> Iterator[FigureRow]:
    for point in evaluation.predictions:
        templates, held_out = point.templates_per_person, "yes" if point.held_out else "no"
        condition = f"persons={point.persons}, templates={templates}, held out={held_out}, "
        condition += f"FPIR={point.target_fpir:g}"
        yield from _rates("predictions", condition, simulated_fpir=point.simulated)
        yield from _values(
            "predictions",
            condition,
            threshold=point.threshold,
            error=point.error,
            kept=point.kept,
        )


def _score_rows(evaluation: Evaluation) -> Iterator[FigureRow]:
    for score in evaluation.scores:
        condition = f"rule={score.rule}, templates={score.templates}, persons={score.persons}"
        yield from _rates("scores", condition, rank_one=score.rank_one)
        for target, fnir in score.fnir.items():
            yield from _rates("scores", f"{condition}, FPIR={target}", fnir=fnir)


def _discard_rows(curve: DiscardFigures) -> Iterator[FigureRow]:
    ends: dict[str, Value] = {}
    if curve.fnmr:
        ends = {"fnmr_of_all": curve.fnmr[0], "discarded": curve.discarded[-1],
                "fnmr_of_the_rest": curve.fnmr[-1]}  # fmt: skip
    yield from _values("discard", curve.measure, threshold=curve.threshold, **ends, gain=curve.gain)


def _group_rows(group: GroupFigures) -> Iterator[FigureRow]:
    condition = f"{group.attribute}={group.group}"
    yield from _values(
        "groups", condition, people=group.people, photos=group.photos, threshold=group.threshold
    )
    yield from _rates(
        "groups",
        condition,
        failures_to_enrol=group.failures_to_enrol,
        fmr=group.fmr,
        fnmr=group.fnmr,
        fpir=group.fpir,
        fnir=group.fnir,
    )


def _detection_rows(figures: DetectionFigures) -> Iterator[FigureRow]:
    yield from _values(
        "detection",
        figures.name,
        photos=figures.photos,
        detections=figures.detections,
        unmatched=figures.unmatched,
        failures=len(figures.failures),
    )
    for size in figures.recall:
        condition = f"{figures.name}, faces of at least {size.min_side:g} px"
        yield from _values("detection", condition, faces=size.faces, found=size.found)
        yield from _rates("detection", condition, recall=size.interval)
