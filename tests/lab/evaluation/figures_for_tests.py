"""Evaluations as a run would give them: one with every section, one with none that is optional."""

import numpy as np

from app.decision.rates import Rate
from app.lab.evaluation.figures import (
    ComparedPair,
    ComparisonFigures,
    ComparisonPoint,
    DataFigures,
    DetectionFigures,
    DiscardFigures,
    Evaluation,
    FpirPrediction,
    GroupFigures,
    Histogram,
    IdentificationFigures,
    IdentificationPoint,
    ModelFigures,
    PairsFigures,
    PhotoProblem,
    ScoreFigures,
    Series,
    SettingFigures,
    TimingFigures,
)
from app.lab.evaluation.metrics import EqualErrorRate, FoldAccuracy, MeasuredPoint, SizeRecall

FNIR = {"0.01": Rate(0.021, 0.01, 0.03)}
HOSTILE = '<script>alert("x")</script>'


def minimal_evaluation() -> Evaluation:
    """Photos were read and nothing else could be measured."""
    return Evaluation(
        model=ModelFigures("default", "1", "space-1", "fp32", None, "largest"),
        created_at="2025-01-02T03:04:05Z",
        data=(DataFigures("empty", 1, 1, 1, 1, (), ()),),
        timings=TimingFigures(0, 1, {}, 0.5),
    )


def complete_evaluation() -> Evaluation:
    """Every section, with a hostile name wherever a name comes from the data."""
    return Evaluation(
        model=ModelFigures("default", "1.2.0", "space-1", "fp32", "cal-7", "largest"),
        created_at="2025-01-02T03:04:05Z",
        data=(_data(),),
        timings=TimingFigures(98, 2, {"decode": 4.25, "detect": 21.5, "embed": 88.0}, 61.2),
        pairs=_pairs(),
        comparisons=_comparisons(),
        setting=SettingFigures(
            1e-2,
            0.42,
            "cal-7",
            False,
            1000,
            2000,
            Rate(0.011, 0.007, 0.017),
            Rate(0.07, 0.05, 0.09),
        ),
        identification=tuple(_identification(persons) for persons in (100, 1000)),
        predictions=_predictions(),
        scores=(
            ScoreFigures("best", 3, 1000, Rate(0.991, 0.98, 0.996), FNIR),
            ScoreFigures("mean", 3, 1000, Rate(0.993, 0.98, 0.997), FNIR),
        ),
        discard=(
            DiscardFigures("sharpness", 0.4, (0.0, 0.1, 0.2), (0.02, 0.015, 0.012), 0.3),
            DiscardFigures("_$embedding_norm$", 0.4, (0.0, 0.1, 0.2), (0.02, 0.01, 0.006), 0.5),
        ),
        groups=_groups(),
        detection=DetectionFigures(
            "wider.csv",
            40,
            120,
            5,
            (SizeRecall(32.0, 100, 98), SizeRecall(0.0, 130, 115), SizeRecall(9999.0, 0, 0)),
            (PhotoProblem("broken.jpg", "unreadable_image", "cut off"),),
        ),
    )


def _data() -> DataFigures:
    problems = [PhotoProblem(f"p/{n}.jpg", "no_face") for n in range(249)]
    problems.append(PhotoProblem(f"{HOSTILE}.jpg", "unreadable_image", "a 'quoted' \"detail\""))
    problems.reverse()
    return DataFigures("lfw & friends", 5000, 1200, 700, 249, (HOSTILE,), tuple(problems))


def _pairs() -> PairsFigures:
    return PairsFigures(
        name="pairs.csv",
        pairs=6000,
        mated=3000,
        photos=7701,
        failures=3,
        accuracy=FoldAccuracy(0.99817, 0.0021, (0.21,) * 10),
        eer=EqualErrorRate(0.0019, 0.2, 3000),
        points=(
            MeasuredPoint(1e-2, 0.18, Rate(0.01, 0.007, 0.014), Rate(0.0013, 0.0004, 0.003), 30),
            MeasuredPoint(1e-3, 0.25, Rate(0.001, 0.0002, 0.003), Rate(0.0023, 0.001, 0.005), 3),
        ),
        at_threshold=MeasuredPoint(None, 0.4, Rate(0.0, 0.0, 0.001), Rate(0.012, 0.01, 0.02), 0),
    )


def _comparisons() -> ComparisonFigures:
    fmr = np.logspace(-7, 0, 200)
    fnmr = np.clip(0.03 * (1e-6 / fmr) ** 0.3 - 2e-5, 0.0, 1.0)
    edges = np.linspace(-0.5, 1.0, 61)
    centres = (edges[:-1] + edges[1:]) / 2
    shares = [np.exp(-(((centres - mean) / 0.12) ** 2)) for mean in (0.62, 0.02)]
    mated, non_mated = (tuple((share / share.sum()).tolist()) for share in shares)
    return ComparisonFigures(
        person_pairs=719400.0,
        comparisons=12_000_000,
        mated_people=500,
        mated_comparisons=9000,
        eer=EqualErrorRate(0.0031, 0.22, 500),
        points=(
            ComparisonPoint(1e-3, 0.24, Rate(1e-3, 9.1e-4, 1.12e-3), Rate(0.0042, 0.003, 0.006)),
            ComparisonPoint(1e-4, 0.31, Rate(1e-4, 8e-5, 1.3e-4), Rate(0.0081, 0.006, 0.011)),
            ComparisonPoint(1e-6, 0.42, Rate(1.2e-6, 2e-7, 4e-6), Rate(0.03, 0.02, 0.05)),
            ComparisonPoint(1e-8, 0.51, Rate(0.0, 0.0, 4.2e-6, extrapolated=True), None),
            ComparisonPoint(
                1e-9, 0.56, Rate(1e-9, 0.0, 4.2e-6, extrapolated=True), Rate(0.09, 0.07, 0.12)
            ),
        ),
        roc=Series(tuple(fmr.tolist()), tuple((1 - fnmr).tolist())),
        det=Series(tuple(fmr.tolist()), tuple(fnmr.tolist())),
        histogram=Histogram(tuple(edges.tolist()), mated, non_mated),
        worst_mated=(
            ComparedPair("a/1.jpg", "a/2.jpg", "Ann", "Ann", -0.0312),
            ComparedPair("a/1.jpg", "gone.jpg", HOSTILE, HOSTILE, 0.05),
        ),
        worst_non_mated=(ComparedPair("a/1.jpg", "b/1.jpg", "Ann", "\"Bob\" 'B'", 0.71),),
    )


def _identification(persons: int) -> IdentificationFigures:
    fpir = np.logspace(-4, 0, 100)
    fnir = np.clip(0.01 * (persons / 100) ** 0.3 * (1e-2 / fpir) ** 0.4, 0.0, 1.0)
    return IdentificationFigures(
        persons=persons,
        repeats=10,
        mated_probes=4000,
        non_mated_probes=2000,
        rank_one=Rate(0.9921, 0.989, 0.9945),
        points=(
            IdentificationPoint(1e-2, 0.38, Rate(0.01, 0.007, 0.014), Rate(0.02, 0.015, 0.026)),
            IdentificationPoint(1e-3, 0.45, Rate(0.0, 0.0, 0.0015), Rate(0.04, 0.03, 0.052)),
        ),
        det=Series(tuple(fpir.tolist()), tuple(fnir.tolist())),
    )


def _predictions() -> tuple[FpirPrediction, ...]:
    return (
        FpirPrediction(100, 1, 1e-2, 0.38, Rate(0.011, 0.008, 0.015), held_out=True),
        FpirPrediction(100, 1, 1e-3, 0.45, Rate(0.0, 0.0, 0.0015), held_out=True),
        FpirPrediction(1000, 3, 1e-2, 0.44, Rate(0.02, 0.016, 0.025), held_out=False),
    )


def _groups() -> tuple[GroupFigures, ...]:
    fine = Rate(1.2e-4, 9e-5, 1.6e-4)
    return (
        GroupFigures(
            "sex", "female", 300, 900, Rate(0.01, 0.004, 0.02), 0.31, fine, fine, None, fine
        ),
        GroupFigures(HOSTILE, "=cmd()", 2, 4, None, 0.31, None, None, None, None),
    )
