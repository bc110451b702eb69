"""What raises the threshold of a verification: how degraded and how typical both faces look; and
what tells faces whose lower half is covered from others, in the embeddings of one recogniser.

The threshold of a search depends on the likeness of its gallery. A verification has no gallery, so
its threshold depends on the two faces. Mildly degraded faces (small, a little blurred, noisy,
compressed) match one another more often than promised, and so do two faces of a group whose people
are more alike than others.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from app.index.comparator import Comparator, Covering
from app.types import FloatArray

# Chosen on the development half of LFW's people; docs/adr/0044-covered-faces.md has the figures.
WEIGHT = 0.14
# So many uncovered faces look covered by 0.
UNCOVERED_SHARE = 0.8
# At this part of the way from there to the median covered face one looks covered by 1.
WAY_TO_MEDIAN = 0.7
# Added to the covariance, in shares of its mean variance. Small: a direction in which only a cover
# makes a difference, and neither the person nor the photo does, lowers no other scores.
RIDGE = 3e-5
# Of people who were not fitted, so many covered faces must look more covered than this share of the
# uncovered ones; otherwise the fit does not hold for other people.
LEAST_SEEN = 0.5
SEEN_BEYOND = 0.95

# Far beyond what a fit gives, and far within what float32 holds.
_Number = Annotated[float, Field(ge=-1e6, le=1e6)]


class CoveredFaces(BaseModel):
    """A measure of how covered a face looks, x·direction - offset within 0 and 1, and its weight in
    the comparison score: 0 for most faces, 1 for most covered ones. Fitted to so many faces, each
    as it was and covered; `digest` is the SHA-256 of the embeddings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    direction: Annotated[tuple[_Number, ...], Field(min_length=2)]
    offset: _Number
    weight: Annotated[float, Field(ge=0, le=10)]
    source: str
    faces: Annotated[int, Field(gt=0)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @cached_property
    def covering(self) -> Covering:
        """As the comparison score uses it."""
        return Covering(np.array(self.direction, np.float32), self.offset, self.weight)

    @classmethod
    def fit(cls, plain: FloatArray, covered: FloatArray, source: str) -> "CoveredFaces | None":
        """From the embeddings (n, d) of faces of different people as they are, and (n, m, d) of
        the same faces covered in m ways.

        None where covered faces of other people than those of the fit do not stand out.
        """
        whole = Discriminant.of_others(plain, covered)
        if whole is None:
            return None
        digest = hashlib.sha256(plain.astype("<f4").tobytes())
        digest.update(covered.astype("<f4").tobytes())
        return cls(
            direction=tuple(float(f"{value:.6g}") for value in whole.direction),
            offset=float(f"{whole.offset:.6g}"),
            weight=WEIGHT,
            source=source,
            faces=len(plain),
            digest=digest.hexdigest(),
        )


class Discriminant:
    """Fisher's linear discriminant between faces (n, d) and the same covered, or changed in another
    way, (n, m, d)."""

    def __init__(self, direction: NDArray[np.float64], offset: float) -> None:
        self.direction = direction
        self.offset = offset

    @classmethod
    def of_others(cls, plain: FloatArray, covered: FloatArray) -> "Discriminant | None":
        """The discriminant; None if it does not hold for people who were not used for the fit."""
        half = np.arange(len(plain)) % 2 == 0
        folds = [(half, ~half), (~half, half)]
        seen = [
            cls.fit(plain[one], covered[one]).seen(plain[other], covered[other])
            for one, other in folds
        ]
        return cls.fit(plain, covered) if min(seen) >= LEAST_SEEN else None

    @classmethod
    def fit(cls, plain: FloatArray, covered: FloatArray) -> "Discriminant":
        flat = covered.reshape(-1, covered.shape[2])
        means = [one.mean(axis=0, dtype=np.float64) for one in (plain, flat)]
        within = np.concatenate([plain - means[0], flat - means[1]])
        variance = within.T @ within / len(within)
        variance += RIDGE * np.trace(variance) / len(variance) * np.eye(len(variance))
        direction = np.linalg.solve(variance, means[1] - means[0])
        zero = float(np.quantile(plain @ direction, UNCOVERED_SHARE))
        length = WAY_TO_MEDIAN * (float(np.median(flat @ direction)) - zero)
        if length <= 0:  # no covered face stands out
            return cls(np.zeros_like(direction), 1.0)
        return cls(direction / length, zero / length)

    def of(self, vectors: FloatArray) -> NDArray[np.float64]:
        """The measure of faces (n, d), within 0 and 1 (n,)."""
        return np.asarray(np.clip(vectors @ self.direction - self.offset, 0, 1))

    def seen(self, plain: FloatArray, covered: FloatArray) -> float:
        """The share of covered faces (n, m, d) that look more covered than SEEN_BEYOND of the
        uncovered ones (n, d)."""
        limit = np.quantile(plain @ self.direction, SEEN_BEYOND)
        return float((covered @ self.direction > limit).mean())


# Chosen on the development half of LFW's people (docs/adr/0045-thresholds-of-two-faces.md).
DEGRADED_LIFT = 0.04
# How typical a face is, is learned from this percentile of its scores with its own group.
TYPICAL_QUANTILE = 0.99
# Faces look typical by 0 and by 1 at these shares of the faces fitted to, groups weighing alike.
TYPICAL_SHARES = (0.1, 0.9)
# Added to the covariance, in shares of its mean variance: a few hundred people are fitted to.
TYPICAL_RIDGE = 1.0
# A group needs so many people; of fewer, no false match rate of 1e-3 can be counted.
GROUP_PERSONS = 200
# The lift is the lowest of these steps at which no group exceeds this false match rate.
GROUP_FMR = 1e-3
LIFT_STEP = 0.001
MOST_LIFT = 0.1


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PairLift(_Section):
    """A measure a(x) = x·direction - offset, within 0 and 1, of a face: the threshold of two faces
    is raised by lift · a(x) · a(y). Fitted to so many faces; `digest` is the SHA-256 of the
    embeddings, `groups` are the numbers of people in the groups that it was fitted to, if any."""

    direction: Annotated[tuple[_Number, ...], Field(min_length=2)]
    offset: _Number
    lift: Annotated[float, Field(ge=0, le=1)]
    source: str
    faces: Annotated[int, Field(gt=0)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    groups: tuple[Annotated[int, Field(gt=0)], ...] = ()

    @cached_property
    def part(self) -> Covering:
        """As a comparison score would be lowered by it, which is the same as a raised threshold."""
        return Covering(np.array(self.direction, np.float32), self.offset, self.lift)

    @classmethod
    def of_degraded(cls, plain: FloatArray, degraded: FloatArray, source: str) -> "PairLift | None":
        """From the embeddings (n, d) of faces of different people as they are, and (n, m, d) of
        the same faces mildly degraded in m ways. None where these do not stand out."""
        found = Discriminant.of_others(plain, degraded)
        if found is None:
            return None
        return cls._of(found, DEGRADED_LIFT, source, (plain, degraded))

    @classmethod
    def of_typical(
        cls,
        faces: FloatArray,
        groups: NDArray[np.generic],
        comparator: Comparator,
        threshold: float,
        source: str,
    ) -> "PairLift | None":
        """From one face (n, d) of each of n people and their groups (n,), by the threshold whose
        false match rate is GROUP_FMR over everybody.

        How similar the most similar people of the own group are is predicted from an embedding by
        ridge regression. None where there are not two groups of GROUP_PERSONS, where no group
        exceeds the rate, or where no lift keeps it in each.
        """
        names, number = np.unique(groups, return_inverse=True)
        rows = [np.flatnonzero(number == i) for i in range(len(names))]
        rows = [some for some in rows if len(some) >= GROUP_PERSONS]
        if len(rows) < 2:
            return None
        scores = [comparator.scores(faces[some], faces[some]) for some in rows]
        found = _typical(faces, rows, scores)
        for lift in np.arange(0, MOST_LIFT + LIFT_STEP / 2, LIFT_STEP):
            rates = [
                _match_rate(own, float(lift), found.of(faces[some]), threshold)
                for own, some in zip(scores, rows, strict=True)
            ]
            if max(rates) <= GROUP_FMR:
                sizes = tuple(len(some) for some in rows)
                used = faces[np.concatenate(rows)]
                return cls._of(found, float(lift), source, (used,), sizes) if lift else None
        return None

    @classmethod
    def _of(
        cls,
        found: Discriminant,
        lift: float,
        source: str,
        data: Sequence[FloatArray],
        groups: tuple[int, ...] = (),
    ) -> "PairLift":
        digest = hashlib.sha256()
        for vectors in data:
            digest.update(vectors.astype("<f4").tobytes())
        return cls(
            direction=tuple(float(f"{value:.6g}") for value in found.direction),
            offset=float(f"{found.offset:.6g}"),
            lift=round(lift, 6),
            source=source,
            faces=len(data[0]),
            digest=digest.hexdigest(),
            groups=groups,
        )


class PairLifts(_Section):
    """The lifts of a verification's threshold; None: not known."""

    degraded: PairLift | None = None
    typical: PairLift | None = None

    def of(self, probe: FloatArray, reference: FloatArray) -> float:
        """By how much two faces (d,) raise the threshold."""
        amounts = (
            part.weight * float(part.of(probe[np.newaxis])[0] * part.of(reference[np.newaxis])[0])
            for part in self.parts
        )
        return sum(amounts, 0.0)

    @property
    def parts(self) -> tuple[Covering, ...]:
        """Those that are known."""
        return tuple(one.part for one in (self.degraded, self.typical) if one is not None)

    def lifted(self, comparator: Comparator) -> Comparator:
        """Scores less the lift: at a threshold without a lift they decide as a verification."""
        return Comparator(comparator.direction, comparator.weight, comparator.covering, self.parts)

    def less_typical(self, amount: float) -> "PairLifts":
        """In a calibration whose own thresholds are that much higher for the same reason."""
        if self.typical is None or amount <= 0:
            return self
        rest = self.typical.lift - amount
        if rest <= 0:
            return PairLifts(degraded=self.degraded)
        typical = PairLift(**self.typical.model_dump() | {"lift": round(rest, 6)})
        return PairLifts(degraded=self.degraded, typical=typical)


NO_LIFTS = PairLifts()


def _typical(
    faces: FloatArray, rows: Sequence[NDArray[np.intp]], scores: Sequence[FloatArray]
) -> Discriminant:
    """How typical a face is, from the scores within each group; groups weigh alike."""
    used = faces[np.concatenate(rows)].astype(np.float64)
    weights = np.concatenate([np.full(len(some), 1 / len(some) / len(rows)) for some in rows])
    alike = np.concatenate([_highest(own) for own in scores])
    centred = used - weights @ used
    covariance = (centred * weights[:, np.newaxis]).T @ centred
    size = len(covariance)
    covariance += TYPICAL_RIDGE * np.trace(covariance) / size * np.eye(size)
    direction = np.linalg.solve(covariance, centred.T @ (weights * (alike - weights @ alike)))
    along = used @ direction
    low, high = np.quantile(along, TYPICAL_SHARES)
    if high <= low:
        return Discriminant(np.zeros_like(direction), 1.0)
    return Discriminant(direction / (high - low), float(low / (high - low)))


def _highest(scores: FloatArray) -> NDArray[np.float64]:
    """Of the scores (n, n) within a group, the percentile of each face's with the others (n,)."""
    others = scores[~np.eye(len(scores), dtype=np.bool_)].reshape(len(scores), -1)
    return np.asarray(np.quantile(others, TYPICAL_QUANTILE, axis=1))


def _match_rate(
    scores: FloatArray, lift: float, amounts: NDArray[np.float64], threshold: float
) -> float:
    """The share of the pairs within a group that reach the threshold less what raises it."""
    pairs = np.triu_indices(len(scores), 1)
    lowered = scores[pairs] - lift * amounts[pairs[0]] * amounts[pairs[1]]
    return float(np.mean(lowered >= threshold))
