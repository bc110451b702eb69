"""Curves of an evaluation as SVG text that is fit for inlining in HTML.

Every chart function takes a part of what `figure_rows.document_of` makes of the rows and gives one
`<svg>` element, or None where there is nothing to draw (a logarithmic axis cannot
show a rate of zero). The same figures give the same text.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from app.decision.rates import Rate
from app.lab.evaluation.figures import Histogram, Series
from app.lab.evaluation.svg import COLOURS, DASHES, INK, PAPER, Chart, Dash, drawing

# Figures by their names in the document.
Figures = Mapping[str, Any]

_MOST_DECADES, _MARGIN_DECADES = 10, 0.12


def comparison_det(comparisons: Figures) -> str | None:
    """DET curve (Martin et al., 1997): FNMR against FMR, both logarithmic, with its thresholds."""
    x, y = _positive(comparisons["det"])
    if len(x) == 0:
        return None
    with drawing(
        "comparison-det",
        "DET curve of comparisons",
        "False non-match rate against false match rate, both on logarithmic axes; lower is better.",
    ) as chart:
        (line,) = chart.axes.plot(x, y, color=COLOURS[0])
        chart.add(line, "measured")
        reach = _mark_thresholds(chart, comparisons["points"])
        _rate_axis(chart.axes, "x", [*x, *reach[0]], "False match rate (FMR)")
        _rate_axis(chart.axes, "y", [*y, *reach[1]], "False non-match rate (FNMR)")
        return chart.svg()


def _mark_thresholds(chart: Chart, figures: Sequence[Figures]) -> tuple[list[float], list[float]]:
    """Draw the operating points, hollow where extrapolated; their positions, for the axes."""
    reach: tuple[list[float], list[float]] = ([], [])
    for extrapolated in (False, True):
        points = [
            (point["target_fmr"], point["fnmr"])
            for point in figures
            if point["fnmr"] is not None
            and point["fmr"].extrapolated is extrapolated
            and min(point["target_fmr"], point["fnmr"].value) > 0
        ]
        if points:
            dots = _dots(chart.axes, points, (COLOURS[1], "o"), hollow=extrapolated)
            chart.add(dots, "threshold, extrapolated" if extrapolated else "threshold")
        reach[0].extend(fmr for fmr, _ in points)
        reach[1].extend(fnmr.value for _, fnmr in points)
    return reach


def comparison_roc(curve: Series) -> str | None:
    """ROC curve: share of mated comparisons that match against FMR, which is logarithmic."""
    x, y = _positive(curve)
    if len(x) == 0:
        return None
    with drawing(
        "comparison-roc",
        "ROC curve of comparisons",
        "True match rate against false match rate on a logarithmic axis; higher is better.",
    ) as chart:
        chart.axes.plot(x, y, color=COLOURS[0])
        _rate_axis(chart.axes, "x", x, "False match rate (FMR)")
        _share_axis(chart.axes.yaxis, "True match rate (1 − FNMR)")
        return chart.svg()


def score_histogram(
    histogram: Histogram, threshold: float | None = None, threshold_name: str = "threshold"
) -> str | None:
    """Densities of mated and non-mated similarities, with a line at `threshold` if one is given."""
    edges = np.asarray(histogram.edges, dtype=np.float64)
    if len(edges) < 2 or not np.all(np.diff(edges) > 0):
        return None
    with drawing(
        "score-histogram",
        "Similarities of mated and non-mated comparisons",
        "Density of the similarities; the less the two overlap, the fewer errors.",
    ) as chart:
        for n, (label, shares) in enumerate(
            (("non-mated", histogram.non_mated), ("mated", histogram.mated))
        ):
            density = np.asarray(shares, dtype=np.float64) / np.diff(edges)
            steps = chart.axes.stairs(density, edges, color=COLOURS[n], linewidth=1.6)
            steps.set_linestyle(DASHES[n])
            chart.add(steps, label)
        if threshold is not None and math.isfinite(threshold):
            line = chart.axes.axvline(threshold, color=INK, linestyle=DASHES[2])
            chart.add(line, f"{threshold_name} {threshold:.3f}")
        chart.axes.set_xlabel("Similarity")
        chart.axes.set_ylabel("Density")
        return chart.svg()


def identification_det(figures: Sequence[Figures]) -> str | None:
    """FNIR against FPIR, both logarithmic, one line per gallery size, as NIST FRTE 1:N draws it."""
    curves = [(size["persons"], *_positive(size["det"])) for size in figures]
    curves = [curve for curve in curves if len(curve[1])]
    if not curves:
        return None
    with drawing(
        "identification-det",
        "DET curves of open-set identification",
        "False negative against false positive identification rate, both on logarithmic axes, "
        "one line for each gallery size; lower is better.",
    ) as chart:
        for n, (persons, x, y) in enumerate(curves):
            (line,) = chart.axes.plot(x, y, color=_colour(n), linestyle=_dash(n))
            chart.add(line, f"{persons:,} persons")
        _rate_axis(chart.axes, "x", [v for _, x, _ in curves for v in x], "FPIR")
        _rate_axis(chart.axes, "y", [v for _, _, y in curves for v in y], "FNIR")
        return chart.svg()


def error_versus_discard(figures: Sequence[Figures]) -> str | None:
    """FNMR after the worst by each quality measure are left out (Grother & Tabassi, 2007)."""
    drawn = [curve for curve in figures if curve["discarded"]]
    if not drawn:
        return None
    with drawing(
        "error-versus-discard",
        "Error versus discard",
        "False non-match rate against the share of comparisons left out for their quality, one "
        "line for each measure; the faster it falls, the better the measure.",
    ) as chart:
        for n, curve in enumerate(drawn):
            (line,) = chart.axes.plot(
                curve["discarded"], curve["fnmr"], color=_colour(n), linestyle=_dash(n)
            )
            chart.add(line, curve["measure"])
        chart.axes.set_ylim(bottom=0.0)
        _share_axis(chart.axes.xaxis, "Mated comparisons left out")
        _share_axis(chart.axes.yaxis, "False non-match rate (FNMR)")
        return chart.svg()


def predicted_fpir(predictions: Sequence[Figures]) -> str | None:
    """Simulated against promised FPIR with 95 % intervals; what is right is on the diagonal.

    Only of people whom the calibration has not seen, if there are any: that is the fair test.
    """
    drawn = [p for p in predictions if p["target_fpir"] > 0 and p["simulated"].high > 0]
    drawn = [p for p in drawn if p["held_out"]] or drawn
    if not drawn:
        return None
    with drawing(
        "predicted-fpir",
        "Promised and simulated FPIR",
        "False positive identification rate simulated on real faces against the one promised, "
        "with 95 % intervals; on the diagonal both are equal; a rate of zero is drawn at the "
        "lower edge.",
    ) as chart:
        rates = [p["target_fpir"] for p in drawn]
        rates += [v for p in drawn for v in (p["simulated"].value, p["simulated"].high)]
        if any(p["simulated"].value <= 0 for p in drawn):
            rates.append(min(rate for rate in rates if rate > 0) / 10)  # room for none at all
        low = _rate_axis(chart.axes, "x", rates, "Promised FPIR")
        _rate_axis(chart.axes, "y", rates, "Simulated FPIR")
        chart.axes.plot([low, 1.0], [low, 1.0], color=INK, linewidth=0.9)
        cases = sorted({(p["templates_per_person"], p["persons"]) for p in drawn})
        sizes = sorted({persons for _, persons in cases})
        for n, (templates, persons) in enumerate(cases):
            nudge = 10 ** (0.04 * (n - (len(cases) - 1) / 2))  # cases share their targets
            style = (_colour(sizes.index(persons)), "o" if templates == 1 else "s")
            for p in drawn:
                if (p["templates_per_person"], p["persons"]) == (templates, persons):
                    dot = (p["target_fpir"] * nudge, p["simulated"])
                    _dots(chart.axes, [dot], style, hollow=not p["kept"], floor=low)
            (mark,) = chart.axes.plot([], [], style[1], color=style[0])
            chart.add(mark, f"{persons:,} persons × {templates}")
        (missed,) = chart.axes.plot([], [], "o", color=INK, markerfacecolor=PAPER)
        chart.add(missed, "hollow: not kept")
        return chart.svg()


def _dots(
    axes: Axes,
    points: Sequence[tuple[float, Rate]],
    style: tuple[str, str],
    *,
    hollow: bool,
    floor: float = 0.0,
) -> Artist:
    """Rates with their intervals; what is below `floor` is set on it.

    `style`: the colour and the marker."""
    y = np.array([max(rate.value, floor) for _, rate in points])
    ends = np.array([(rate.low, rate.high) for _, rate in points])
    bars = np.maximum([y - ends[:, 0], ends[:, 1] - y], 0.0)
    colour, marker = style
    face = PAPER if hollow else colour
    drawn = axes.errorbar(
        [x for x, _ in points], y, bars, fmt=marker, color=colour, mfc=face, capsize=2
    )
    return drawn.lines[0]


def _colour(n: int) -> str:
    return COLOURS[n % len(COLOURS)]


def _dash(n: int) -> Dash:
    return DASHES[n % len(DASHES)]


def _positive(series: Series) -> tuple[list[float], list[float]]:
    """The points that have a place on two logarithmic axes."""
    kept = [(x, y) for x, y in zip(series.x, series.y, strict=True) if min(x, y) > 0]
    finite = [(x, y) for x, y in kept if math.isfinite(x) and math.isfinite(y)]
    return [x for x, _ in finite], [y for _, y in finite]


def _rate_axis(axes: Axes, which: Literal["x", "y"], values: Iterable[float], label: str) -> float:
    """Make a logarithmic axis of whole decades around the values, to 100 % at most; its lower end
    is returned."""
    logs = [math.log10(value) for value in values if value > 0]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    low = max(min(low, high - 1), high - _MOST_DECADES)
    ends = 10.0 ** (low - _MARGIN_DECADES), min(10.0 ** (high + _MARGIN_DECADES), 1.0)
    limits = {f"{which}scale": "log", f"{which}lim": ends}
    axes.set(**limits, **{f"{which}label": label})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator([10.0**n for n in range(low, high + 1)]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _decade(round(math.log10(value)))))
    return 10.0**low


def _decade(power: int) -> str:
    """0.01 % or, where a per cent is too coarse a unit, 1e-5: as in the report's tables."""
    return f"{10.0 ** (power + 2):g} %" if power >= -4 else f"1e{power}"


def _share_axis(axis: Axis, label: str) -> None:
    """Make an axis of shares that keeps its place and ends at 0 and 100 % at the latest."""
    low, high = axis.get_view_interval()
    axis.set_view_interval(max(low, 0.0), min(high, 1.0), ignore=True)
    axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.6g} %"))
    axis.set_label_text(label)
