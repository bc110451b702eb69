"""Making a calibration from labelled faces."""

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
    PersonPair,
    compare_mated,
    compare_non_mated,
)
from app.decision.domain import Domain, SharedDirection
from app.decision.limits import NO_LIMITS, Limits
from app.decision.pair_lifts import NO_LIFTS, PairLifts
from app.decision.rates import Floats
from app.decision.tail import T_QUANTILE, fit_tail, log_rate_stderr
from app.errors import NotEnoughData
from app.index.person_scores import PersonScore, effective_numbers

# 4,950 pairs of people: an FMR of 1e-3 still rests on five of them.
MIN_PERSONS = 100
# The tail is fitted to this many of the most similar pairs of people, a twentieth at most.
TAIL_PAIRS = 500
TAIL_SHARE = 0.05
# How far it is followed: to a tenth of one pair, while its interval spans no more than this.
TAIL_REACH_PAIRS = 0.1
TAIL_FACTOR = 100.0
MATED_STEP = 0.02
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
        return Domain.of(self.shared, self.data, self.limits, self.verification)


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
    mated = compare_mated(data, np.arange(-0.2, 1.0, MATED_STEP))
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
        fmr=_with_tail(non_mated, data.person_count),
        fnmr=_curve(mated[0]) if mated else None,
        template_exponent=exponents[PersonScore.BEST],
        score_exponents=ScoreExponents(
            centroid=exponents[PersonScore.CENTROID], fused=exponents[PersonScore.FUSED]
        ),
        domain=faces.domain(),
    )


def require_persons(data: LabelledEmbeddings) -> None:
    """Raise NotEnoughData unless there are people enough to calibrate on."""
    if data.person_count < MIN_PERSONS:
        raise NotEnoughData(
            f"{data.person_count} people are too few to calibrate on; {MIN_PERSONS} are needed. "
            "Until then the model pack's calibration is used.",
            {"persons": data.person_count, "needed": MIN_PERSONS},
        )


def _with_tail(counted: NonMated, people: int) -> NonMatedCurve:
    """The counted curve and, beyond its end, the fitted one."""
    curve, measured = counted.curve, len(counted.curve.similarities)
    beyond = _extrapolate(counted, people)
    if beyond is not None:
        parts = zip(_columns(curve), _columns(beyond), strict=True)
        curve = ErrorCurve(*(np.concatenate(part) for part in parts))
    variation = np.append(
        counted.variation, np.full(len(curve.rates) - measured, counted.variation[-1])
    )
    base = _curve(curve).model_dump()
    return NonMatedCurve(**base, variation=_rounded(variation), measured=measured)


def _extrapolate(counted: NonMated, people: int) -> ErrorCurve | None:
    tail = fit_tail(counted.top, counted.pairs)
    end = counted.curve
    if tail is None:
        return None
    last, reach = float(end.rates[-1]), TAIL_REACH_PAIRS / counted.pairs
    steps = np.arange(1, int(np.log10(last / reach) * RATES_PER_DECADE) + 1)
    rates: Floats = last * 10.0 ** (-steps / RATES_PER_DECADE)
    similarities = np.array([tail.similarity_at(rate) for rate in rates])
    # The fit need not meet the last counted row: follow it from where it lies beyond.
    rates, similarities = (x[similarities > end.similarities[-1]] for x in (rates, similarities))
    half_width = T_QUANTILE * log_rate_stderr(counted.top, counted.pairs, people, similarities)
    known = half_width <= np.log(TAIL_FACTOR)
    known &= np.cumsum(~known) == 0
    rates, similarities, half_width = (x[known] for x in (rates, similarities, half_width))
    if not len(rates):
        return None
    low, high = rates * np.exp(-half_width), rates * np.exp(half_width)
    return ErrorCurve(similarities, rates, low, np.minimum(high, end.high[-1]))


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
