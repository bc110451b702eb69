"""Making a calibration from labelled faces; beyond what was counted, from a generalised Pareto tail
of the non-mated similarities.

Peaks over a threshold (Pickands, 1975; Davison & Smith, 1990): above a high similarity u, the
excess y has the survival (1 + shape * y / scale) ** (-1 / shape)."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.decision.calibration import (
    Calibration,
    CalibrationFaces,
    Curve,
    NonMatedCurve,
    ScoreExponents,
)
from app.decision.comparisons import (
    RATES_PER_DECADE,
    ErrorCurve,
    LabelledEmbeddings,
    NonMated,
    NonMatedPairs,
    PersonPair,
    compare_mated,
    compare_non_mated,
)
from app.decision.domain import (
    NO_LIMITS,
    Domain,
    Limits,
    SharedDirection,
    collection_likeness,
    labelled_likeness,
)
from app.decision.pair_lifts import NO_LIFTS, PairLifts
from app.decision.rates import Floats, clopper_pearson
from app.errors import NotEnoughData
from app.index.person_scores import PersonScore, effective_numbers

GROUPS = 20
# Student's t for a 95 % interval with GROUPS - 1 degrees of freedom.
T_QUANTILE = 2.093
MIN_EXCESSES = 50


@dataclass(frozen=True, slots=True)
class Tail:
    """A fitted tail: `rate` is the share of pairs of people above `start`."""

    start: float
    rate: float
    scale: float
    shape: float

    def rate_at(self, similarity: float) -> float:
        """Expected share of pairs of people at or above a similarity; 0 beyond the tail's end."""
        excess = similarity - self.start
        if abs(self.shape) < 1e-6:
            return float(self.rate * np.exp(-excess / self.scale))
        base = 1.0 + self.shape * excess / self.scale
        return float(self.rate * base ** (-1.0 / self.shape)) if base > 0 else 0.0

    def similarity_at(self, rate: float) -> float:
        """The similarity that a share of pairs of people reaches."""
        if abs(self.shape) < 1e-6:
            return float(self.start + self.scale * np.log(self.rate / rate))
        return float(
            self.start + self.scale / self.shape * ((rate / self.rate) ** -self.shape - 1.0)
        )


def fit_tail(top: NonMatedPairs, pairs: float) -> Tail | None:
    """Fit by maximum likelihood to the most similar of `pairs` pairs of people, weighted.

    None with fewer than MIN_EXCESSES comparisons: a tail fitted to less means nothing.
    """
    if len(top.similarities) < MIN_EXCESSES:
        return None
    start = float(top.similarities[-1])
    excess = top.similarities.astype(np.float64) - start + 1e-9
    weights = top.weights / top.weights.mean()
    mean = float(np.average(excess, weights=weights))

    from scipy.optimize import minimize  # noqa: PLC0415 (only a calibration needs it)

    def loss(parameters: Floats) -> float:
        scale, shape = np.exp(parameters[0]), parameters[1]
        base = 1.0 + shape * excess / scale
        if base.min() <= 0:
            return 1e300
        if abs(shape) < 1e-6:
            return float((weights * (parameters[0] + excess / scale)).sum())
        return float((weights * (parameters[0] + (1.0 + 1.0 / shape) * np.log(base))).sum())

    options = {"xatol": 1e-4, "fatol": 1e-4, "maxiter": 1000}
    # Non-mated similarities have thin tails; the start says so, the data may disagree.
    found = minimize(loss, [np.log(mean), -0.1], method="Nelder-Mead", options=options).x
    return Tail(start, float(top.weights.sum() / pairs), float(np.exp(found[0])), float(found[1]))


def log_rate_stderr(top: NonMatedPairs, pairs: float, people: int, similarities: Floats) -> Floats:
    """Standard error of the logarithm of the tail's rate at each similarity (n,).

    The tail is fitted GROUPS times, each time without a twentieth of the people and all
    their comparisons (delete-a-group jackknife; Kott, Journal of Official Statistics 2001).
    """
    group = np.arange(people) % GROUPS  # people are numbered in the order of their labels
    logs = []
    for left_out in range(GROUPS):
        kept = (group[top.persons_a] != left_out) & (group[top.persons_b] != left_out)
        remaining = int((group != left_out).sum())
        share = remaining * (remaining - 1) / (people * (people - 1))
        tail = fit_tail(top.take(kept), pairs * share)
        if tail is None:
            return np.full(len(similarities), np.inf)
        rates = np.array([tail.rate_at(similarity) for similarity in similarities])
        logs.append(np.log(np.maximum(rates, 1e-30)))
    deviations = np.array(logs) - np.mean(logs, axis=0)
    return np.asarray(np.sqrt((GROUPS - 1) / GROUPS * (deviations**2).sum(axis=0)))


# 4,950 pairs of people: an FMR of 1e-3 still rests on five of them.
MIN_PERSONS = 100
# The tail is fitted to this many of the most similar pairs of people, a twentieth at most.
TAIL_PAIRS = 500
TAIL_SHARE = 0.05
# How far it is followed: to a tenth of one pair, while its interval spans no more than this.
TAIL_REACH_PAIRS = 0.1
TAIL_FACTOR = 100.0
# Similarities of the FNMR, in steps of 0.02.
MATED_GRID = np.linspace(-0.2, 1.0, 61)
EXPONENT_MATCHES = 100
EXPONENT_FMR = (1e-4, 1e-3)


@dataclass(frozen=True, slots=True)
class Labelled:
    """Faces to calibrate on and what to write down of them. `shared` is the direction by which
    they are compared, if any; `limits` are those of the decisions on such scores, and
    `verification` is what raises the threshold for two faces."""

    data: LabelledEmbeddings
    kind: Literal["photos", "collection"]
    name: str
    left_out: frozenset[PersonPair] = frozenset()
    shared: SharedDirection | None = None
    limits: Limits = NO_LIMITS
    verification: PairLifts = NO_LIFTS

    def domain(self) -> Domain | None:
        """The domain of these faces; None where they are compared by the cosine."""
        if self.shared is None:
            return None
        of_people = collection_likeness if self.kind == "collection" else labelled_likeness
        return Domain.of(self.shared, of_people(self.data), self.limits, self.verification)


def calibrate(
    faces: Labelled,
    embedding_space: str,
    precision: str,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Calibration:
    """Count every comparison and fit what lies beyond. Raises NotEnoughData."""
    data = faces.data
    require_persons(data)
    doubtful = len(faces.left_out) if faces.kind == "collection" else 0
    pairs = data.person_count * (data.person_count - 1) / 2
    tail_pairs = int(min(TAIL_PAIRS, TAIL_SHARE * pairs))
    non_mated = compare_non_mated(data, tail_pairs, faces.left_out, doubtful)
    mated = compare_mated(data, MATED_GRID)
    exponents = template_exponents(data, faces.left_out)
    return Calibration(
        embedding_space=embedding_space,
        precision=precision,
        created_at=clock().replace(microsecond=0),
        source=CalibrationFaces(
            kind=faces.kind,
            name=faces.name,
            persons=data.person_count,
            faces=len(data.persons),
            person_pairs=non_mated.pairs,
            mated_persons=mated[1] if mated else 0,
            digest=hashlib.sha256(data.vectors.astype("<f4").tobytes()).hexdigest(),
            left_out=len(faces.left_out),
        ),
        fmr=_with_tail(non_mated, data.person_count, doubtful),
        fnmr=_curve(mated[0]) if mated else None,
        template_exponent=exponents[PersonScore.BEST],
        score_exponents=ScoreExponents(
            centroid=exponents[PersonScore.CENTROID], fused=exponents[PersonScore.FUSED]
        ),
        domain=faces.domain(),
    )


# What an error says of a collection without a calibration of its own.
UNTIL_THEN = (
    "Until then the model pack's calibration decides, or its fixed threshold if it has none."
)


def require_persons(data: LabelledEmbeddings) -> None:
    """Raise NotEnoughData unless there are people enough to calibrate on."""
    if data.person_count < MIN_PERSONS:
        raise NotEnoughData(
            f"{data.person_count} people are too few to calibrate on; {MIN_PERSONS} are needed. "
            f"{UNTIL_THEN}",
            {"persons": data.person_count, "needed": MIN_PERSONS},
        )


def _with_tail(counted: NonMated, people: int, doubtful: int) -> NonMatedCurve:
    """The counted curve and, beyond its end, the fitted one; `doubtful` pairs of people, who may be
    false matches at every similarity, raise the upper limits of both."""
    curve, measured = counted.curve, len(counted.curve.similarities)
    beyond = _extrapolate(counted, people, doubtful)
    if beyond is not None:
        parts = zip(_columns(curve), _columns(beyond), strict=True)
        curve = ErrorCurve(*(np.concatenate(part) for part in parts))
    variation = np.append(
        counted.variation, np.full(len(curve.rates) - measured, counted.variation[-1])
    )
    base = _curve(curve).model_dump()
    return NonMatedCurve(**base, variation=_rounded(variation), measured=measured)


def _extrapolate(counted: NonMated, people: int, doubtful: int) -> ErrorCurve | None:
    tail = fit_tail(counted.top, counted.pairs)
    end = counted.curve
    if tail is None:
        return None
    last, reach = float(end.rates[-1]), TAIL_REACH_PAIRS / counted.pairs
    steps = np.arange(1, int(np.log10(last / reach) * RATES_PER_DECADE) + 1)
    rates: Floats = last * 10.0 ** (-steps / RATES_PER_DECADE)
    similarities = np.array([tail.similarity_at(rate) for rate in rates])
    # The fit need not meet the last counted row: follow it from where it lies beyond, as far as a
    # similarity can go, in steps that are still steps when they are written down.
    written = np.array(_rounded(similarities))
    before = np.maximum.accumulate([_rounded(end.similarities)[-1], *written])[:-1]
    possible = (written > before) & (similarities <= 1)
    rates, similarities = rates[possible], similarities[possible]
    if not len(rates):
        return None
    half_width = T_QUANTILE * log_rate_stderr(counted.top, counted.pairs, people, similarities)
    known = half_width <= np.log(TAIL_FACTOR)
    known &= np.cumsum(~known) == 0
    rates, similarities, half_width = (x[known] for x in (rates, similarities, half_width))
    if not len(rates):
        return None
    low, high = rates * np.exp(-half_width), rates * np.exp(half_width)
    high = _with_doubtful(rates, high, doubtful, counted.pairs)
    return ErrorCurve(similarities, rates, low, np.minimum(high, end.high[-1]))


def _with_doubtful(rates: Floats, high: Floats, doubtful: int, pairs: float) -> Floats:
    """Upper limits (T,) of rates with upper limits `high`, plus the share of `doubtful` pairs.

    Of the sum of two rates that are estimated independently (Zou & Donner, "Construction of
    confidence limits about effect measures", Statistics in Medicine 2008).
    """
    if not doubtful:
        return high
    share = doubtful / pairs
    _, most = clopper_pearson(np.array([float(doubtful)]), np.array([pairs]))
    return np.asarray(rates + share + np.hypot(high - rates, most - share))


def template_exponents(
    data: LabelledEmbeddings, left_out: frozenset[PersonPair] = frozenset()
) -> dict[PersonScore, float]:
    """By which power of the effective number of templates a person's false match rate grows, 0 to
    1, by each score.

    Measured with two templates of each person who has them, against one face of everyone else, at
    the lowest FMR that EXPONENT_MATCHES comparisons reach within EXPONENT_FMR; 1 (as if all were
    strangers to one another) where there are fewer than MIN_PERSONS such people.
    """
    starts = np.searchsorted(data.persons, np.arange(data.person_count))
    several = np.flatnonzero(data.counts > 1)
    if len(several) < MIN_PERSONS:
        return dict.fromkeys(PersonScore, 1.0)
    first, second = (data.similarities(starts, starts[several] + i) for i in (0, 1))
    others = _others(several, data.person_count, left_out)
    one = np.concatenate([first[others], second[others]])
    threshold = np.quantile(one, 1 - np.clip(EXPONENT_MATCHES / len(one), *EXPONENT_FMR))
    pairs = data.vectors[starts[several][:, np.newaxis] + np.arange(2)]
    different = float(np.log(effective_numbers(pairs, 2).mean()))
    # Copies of one photo do not show how the rate grows.
    if different < 0.01:
        return dict.fromkeys(PersonScore, 1.0)
    length = np.linalg.norm(pairs.sum(axis=1), axis=1)
    found = {}
    for score in PersonScore:
        both = score.of(np.maximum(first, second), first + second, np.array(2), length)
        growth = np.log(np.mean(both[others] >= threshold) / np.mean(one >= threshold))
        found[score] = float(np.clip(growth / different, 0.0, 1.0).round(3))
    return found


def _others(
    several: NDArray[np.intp], people: int, left_out: frozenset[PersonPair]
) -> NDArray[np.bool_]:
    """Whether each person (rows) is another one than each of some (columns), and not left out."""
    others = np.arange(people)[:, np.newaxis] != several[np.newaxis]
    place = {int(person): column for column, person in enumerate(several)}
    for a, b in left_out:
        for probe, person in ((a, b), (b, a)):
            if person in place:
                others[probe, place[person]] = False
    return np.asarray(others)


def _columns(curve: ErrorCurve) -> tuple[Floats, Floats, Floats, Floats]:
    return curve.similarities, curve.rates, curve.low, curve.high


def _curve(curve: ErrorCurve) -> Curve:
    similarity, rate, low, high = (_rounded(column) for column in _columns(curve))
    return Curve(similarity=similarity, rate=rate, low=low, high=high)


def _rounded(values: Floats) -> tuple[float, ...]:
    """Six digits: more than the data knows, and a file that can be read."""
    return tuple(float(f"{value:.6g}") for value in values)
