"""An evaluation as tables on the terminal."""

from rich.table import Table

from app.cli.console import out
from app.decision.rates import Rate
from app.evaluation.figures import (
    ComparisonFigures,
    DataFigures,
    DetectionFigures,
    Evaluation,
    FpirPrediction,
    IdentificationFigures,
    PairsFigures,
    ScoreFigures,
)

SHOWN_PROBLEMS = 10


def print_evaluation(evaluation: Evaluation) -> None:
    """Every section that there is; the report has the curves and the full lists."""
    model = evaluation.model
    out.print(f"[bold]{model.pack} {model.version}[/] ({model.embedding_space})", highlight=False)
    for data in evaluation.data:
        _print_data(data)
    if evaluation.pairs is not None:
        _print_pairs(evaluation.pairs)
    if evaluation.comparisons is not None:
        _print_comparisons(evaluation.comparisons)
    if evaluation.identification:
        _print_identification(evaluation.identification)
    if evaluation.predictions:
        _print_predictions(evaluation.predictions)
    if evaluation.scores:
        _print_scores(evaluation.scores)
    if evaluation.discard:
        _print_discard(evaluation)
    if evaluation.groups:
        _print_groups(evaluation)
    if evaluation.detection is not None:
        _print_detection(evaluation.detection)
    _print_timings(evaluation)


def percent(rate: Rate | None) -> str:
    """A rate with its interval, in per cent; a dash where there is none."""
    if rate is None:
        return "–"
    return f"{rate.value:.2%} ({rate.low:.2%}–{rate.high:.2%})"


def small(rate: Rate) -> str:
    """A very small rate with its interval."""
    mark = ", extrapolated" if rate.extrapolated else ""
    return f"{rate.value:.2g} ({rate.low:.2g}–{rate.high:.2g}{mark})"


def _print_data(data: DataFigures) -> None:
    out.print(
        f"{data.name}: {data.photos} photos of {data.people} people, {data.people_with_one_photo} "
        f"with one photo; {data.failures_to_enrol} failed to enrol; {len(data.left_out)} known "
        "mistakes in the labels left out.",
        markup=False,
        highlight=False,
    )
    shown = [problem for problem in data.problems if problem.code != "one_photo"]
    for problem in shown[:SHOWN_PROBLEMS]:
        out.print(f"  {problem.image}: {problem.code}", markup=False, highlight=False)
    if len(shown) > SHOWN_PROBLEMS:
        out.print(f"  … and {len(shown) - SHOWN_PROBLEMS} more; --json lists all.")


def _print_pairs(pairs: PairsFigures) -> None:
    accuracy, own = pairs.accuracy, pairs.at_threshold
    table = Table("figure", "value", "threshold", title=f"Verification: {pairs.name}")
    table.add_row("pairs", f"{pairs.mated} mated, {pairs.pairs - pairs.mated} non-mated")
    table.add_row("photos", f"{pairs.photos}, {pairs.failures} failed to enrol")
    table.add_row(
        "accuracy, 10 folds",
        f"{accuracy.mean:.4f} ± {accuracy.std:.4f}",
        f"{min(accuracy.thresholds):.3f}…{max(accuracy.thresholds):.3f}",
    )
    table.add_row("EER", f"{pairs.eer.rate:.4f}", f"{pairs.eer.threshold:.3f}")
    for point in pairs.at_far:
        table.add_row(f"TAR at FAR {point.far:g}", f"{point.tar:.4f}", f"{point.threshold:.3f}")
    rates = f"FMR {own.fmr:.4f} ({own.false_matches} matches), FNMR {own.fnmr:.4f}"
    table.add_row("pack's constant", rates, f"{own.threshold:.3f}")
    out.print(table)


def _print_comparisons(figures: ComparisonFigures) -> None:
    title = (
        f"Every photo against every other: {figures.comparisons:,} comparisons of "
        f"{figures.person_pairs:,.0f} pairs of people, {figures.mated_comparisons:,} mated ones of "
        f"{figures.mated_people:,} people; EER {figures.eer.rate:.2%}"
    )
    table = Table("FMR", "threshold", "measured (95 %)", "FNMR (95 %)", title=title)
    for point in figures.points:
        table.add_row(
            f"{point.target_fmr:g}", f"{point.threshold:.3f}", small(point.fmr),
            percent(point.fnmr),
        )  # fmt: skip
    out.print(table)


def _print_identification(sizes: tuple[IdentificationFigures, ...]) -> None:
    table = Table(
        "persons", "rank 1", "FPIR", "threshold", "TPIR", "FNIR (95 %)",
        title=f"Open-set identification, one photo enrolled a person, "
        f"{sizes[-1].mated_probes} mated probes, {sizes[-1].non_mated_probes} strangers",
    )  # fmt: skip
    for figures in sizes:
        for point in figures.points:
            table.add_row(
                str(figures.persons), f"{figures.rank_one.value:.2%}", f"{point.target_fpir:g}",
                f"{point.threshold:.3f}", f"{1 - point.fnir.value:.2%}", percent(point.fnir),
            )  # fmt: skip
    out.print(table)


def _print_predictions(predictions: tuple[FpirPrediction, ...]) -> None:
    table = Table(
        "people", "persons", "templates", "promised", "threshold", "simulated (95 %)", "error",
        "kept",
        "by max of N", title="FPIR: promised by the calibration, simulated on real faces",
    )  # fmt: skip
    for one in predictions:
        table.add_row(
            "held out" if one.held_out else "the same", str(one.persons),
            str(one.templates_per_person), f"{one.target_fpir:.1%}", f"{one.threshold:.3f}",
            percent(one.simulated), f"{one.error:+.0%}", "yes" if one.kept else "no",
            "–" if one.by_maximum is None else f"{one.by_maximum:.2%}",
        )  # fmt: skip
    out.print(table)


def _print_scores(scores: tuple[ScoreFigures, ...]) -> None:
    targets = list(scores[0].fnir)
    columns = [f"TPIR at FPIR {target}" for target in targets]
    table = Table(
        "templates", "persons", "score", "rank 1", *columns, title="One score of several templates"
    )
    for one in scores:
        table.add_row(
            str(one.templates), str(one.persons), one.rule, f"{one.rank_one:.2%}",
            *(f"{1 - one.fnir[target]:.2%}" for target in targets),
        )  # fmt: skip
    out.print(table)


def _print_discard(evaluation: Evaluation) -> None:
    columns = [f"{share:.0%}" for share in evaluation.discard[0].discarded]
    threshold = evaluation.discard[0].threshold
    table = Table(
        "measure", *columns, "gain",
        title=f"FNMR at {threshold:.3f} when the worst photos are discarded",
    )  # fmt: skip
    for one in evaluation.discard:
        table.add_row(one.measure, *(f"{value:.2%}" for value in one.fnmr), f"{one.gain:+.0%}")
    out.print(table)


def _print_groups(evaluation: Evaluation) -> None:
    table = Table(
        "attribute", "group", "people", "photos", "failed", "FMR", "FNMR", "FPIR", "FNIR",
        title="By group, at the thresholds of everybody",
    )  # fmt: skip
    for one in evaluation.groups:
        table.add_row(
            one.attribute, one.group, str(one.people), str(one.photos),
            percent(one.failures_to_enrol), "–" if one.fmr is None else small(one.fmr),
            percent(one.fnmr), percent(one.fpir), percent(one.fnir),
        )  # fmt: skip
    out.print(table)


def _print_detection(figures: DetectionFigures) -> None:
    table = Table("figure", "value", "of", title=f"Detection: {figures.name}")
    table.add_row("photos", str(figures.photos), f"{len(figures.failures)} cannot be read")
    for size in figures.recall:
        name = f"recall, shorter side ≥ {size.min_side:g} px" if size.min_side else "recall, all"
        table.add_row(name, f"{size.recall:.3f}", f"{size.found} of {size.faces}")
    table.add_row("on no labelled face", str(figures.unmatched), f"{figures.detections} detections")
    out.print(table)


def _print_timings(evaluation: Evaluation) -> None:
    timings = evaluation.timings
    stages = ", ".join(f"{name} {spent:.1f}" for name, spent in timings.stages_ms.items())
    measured = f"; median ms a photo on one thread: {stages}" if stages else ""
    out.print(
        f"{timings.seconds:.1f} s; {timings.measured} photos analysed, {timings.cached} from the "
        f"cache{measured}.",
        highlight=False,
    )
