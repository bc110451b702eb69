"""What tells faces whose lower half is covered from others, in the embeddings of one recogniser."""

import hashlib
from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from app.index.comparator import Covering
from app.types import FloatArray

# Chosen on the development half of LFW's people; docs/adr/0018-degraded-faces.md has the figures.
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
