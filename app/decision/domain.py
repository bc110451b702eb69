"""What a calibration knows of faces that are unlike those it was counted on.

Degraded faces share a direction of the embedding space, and people of one group are more alike than
people of all groups. Both raise the scores of different people above what was counted.
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.decision.comparisons import LabelledEmbeddings
from app.decision.covered import CoveredFaces
from app.decision.limits import NO_LIMITS, Limits
from app.decision.pair_lifts import NO_LIFTS, PairLifts
from app.index.comparator import Comparator
from app.index.likeness import likeness_of_scores
from app.index.port import GallerySize
from app.types import FloatArray, Quality

# Chosen on the development half of LFW's people; docs/adr/0018-degraded-faces.md has the figures.
WEIGHT = 1.5
LIFT = 0.75
SMALL_LIFT = 1.0
SMALL_GALLERY = 100
# So many of a calibration's people are compared with one another.
LIKENESS_PERSONS = 2_000
COVERED = "covered"
# Of the numbers of a unit vector: what an exact rewrite of a network changes is less.
SAME_DIRECTION = 1e-5
# By how much the length of a unit vector may differ from 1 when its numbers have six digits.
UNIT_LENGTH = 1e-3


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SharedDirection(_Section):
    """The direction (d,) that degraded faces share, and its weight in the comparison score. Fitted
    to so many faces, degraded in each of these ways; `digest` is the SHA-256 of the embeddings.
    `covered`: what covered faces share; None where that is not known."""

    direction: Annotated[tuple[float, ...], Field(min_length=2)]
    weight: Annotated[float, Field(ge=0, le=10)]
    source: str
    faces: Annotated[int, Field(gt=0)]
    degradations: tuple[str, ...]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    covered: CoveredFaces | None = None

    @model_validator(mode="after")
    def _check(self) -> "SharedDirection":
        length = float(np.hypot.reduce(self.direction))
        if not abs(length - 1) <= UNIT_LENGTH:
            raise ValueError(f"the direction must have length 1, not {length:g}")
        if self.covered is not None and len(self.covered.direction) != len(self.direction):
            raise ValueError("both directions must have as many numbers")
        return self

    def scores_at_most(self, other: "SharedDirection") -> bool:
        """Whether scores by this are never higher than by another one, made before covered faces
        were known of, or made again from the same faces."""
        mine, theirs = (np.array(one.direction) for one in (self, other))
        return (
            mine.shape == theirs.shape
            and bool(np.abs(mine - theirs).max() <= SAME_DIRECTION)
            and self.weight == other.weight
            and other.covered in (None, self.covered)
        )

    @cached_property
    def comparator(self) -> Comparator:
        """What compares two embeddings by it."""
        direction = np.array(self.direction)
        return Comparator(
            (direction / np.linalg.norm(direction)).astype(np.float32),
            self.weight,
            None if self.covered is None else self.covered.covering,
        )

    @classmethod
    def fit(
        cls,
        degraded: Mapping[str, FloatArray],
        source: str,
        covered: CoveredFaces | None = None,
    ) -> "SharedDirection":
        """From the embeddings (n, d) of degraded faces, by kind of degradation.

        The kinds weigh alike: the direction is that of the sum of their mean embeddings, each
        scaled to length 1. Raises ValueError where there is no such direction.
        """
        means = [vectors.mean(axis=0, dtype=np.float64) for vectors in degraded.values()]
        total = np.sum([mean / np.linalg.norm(mean) for mean in means], axis=0)
        length = float(np.linalg.norm(total))
        if not np.isfinite(length) or length == 0:
            raise ValueError("degraded faces share no direction")
        digest = hashlib.sha256()
        for vectors in degraded.values():
            digest.update(vectors.astype("<f4").tobytes())
        return cls(
            direction=tuple(float(f"{value:.6g}") for value in total / length),
            weight=WEIGHT,
            source=source,
            faces=max(len(vectors) for vectors in degraded.values()),
            degradations=tuple(degraded),
            digest=digest.hexdigest(),
            covered=covered,
        )


class Domain(_Section):
    """How decisions allow for faces and galleries that are unlike those of the calibration.

    `likeness`: the 99th percentile of the scores of its people, one face each. A gallery whose own
    is higher raises the threshold by `lift` times the difference, or by `small_lift` times in a
    gallery of fewer than `small_gallery` people. `limits`: beyond which two faces are not compared.
    `verification`: how the threshold for two faces follows them.
    """

    shared: SharedDirection
    likeness: Annotated[float, Field(ge=-1, le=1)]
    lift: Annotated[float, Field(ge=0, le=2)] = LIFT
    small_lift: Annotated[float, Field(ge=0, le=2)] = SMALL_LIFT
    small_gallery: Annotated[int, Field(ge=0)] = SMALL_GALLERY
    limits: Limits = NO_LIMITS
    verification: PairLifts = NO_LIFTS

    @model_validator(mode="after")
    def _check(self) -> "Domain":
        numbers = len(self.shared.direction)
        if any(len(part.direction) != numbers for part in self.verification.parts):
            raise ValueError("the directions of a domain must have as many numbers")
        return self

    @classmethod
    def of(
        cls,
        shared: SharedDirection,
        data: LabelledEmbeddings,
        limits: Limits,
        verification: PairLifts = NO_LIFTS,
    ) -> "Domain":
        """The domain of the people whom a calibration is counted on."""
        likeness = round(labelled_likeness(data), 6)
        return cls(shared=shared, likeness=likeness, limits=limits, verification=verification)

    def verification_of(self, data: LabelledEmbeddings) -> PairLifts:
        """The lifts for a calibration that is counted on other people: where these are more alike
        than those here, its thresholds are higher already."""
        return self.verification.less_typical(self.lift * (labelled_likeness(data) - self.likeness))

    def marks(
        self, quality: Quality | None, degradation: float | None, covering: float | None
    ) -> tuple[str, ...]:
        """The limits that a template exceeds, and whether it looks covered, as stable codes."""
        covered = covering is not None and covering >= 1
        return self.limits.beyond(quality, degradation) + ((COVERED,) if covered else ())

    def left_out(self) -> dict[str, Any]:
        """Members that are not written where there are none, by section: a calibration from before
        there were any keeps its id."""
        found: dict[str, Any] = {
            "shared": {"covered"} if self.shared.covered is None else set(),
            "limits": {"min_face_size_px"} if self.limits.min_face_size_px is None else set(),
        }
        return found if self.verification.parts else found | {"verification": True}

    def lift_of(self, likeness: float | None, size: GallerySize) -> float:
        """By how much a gallery of that likeness raises thresholds; 0 where it is not known."""
        if likeness is None:
            return 0.0
        factor = self.small_lift if size.persons < self.small_gallery else self.lift
        return factor * max(0.0, likeness - self.likeness)


def labelled_likeness(data: LabelledEmbeddings) -> float:
    """The likeness of labelled people, by the first face of each; of LIKENESS_PERSONS of them at
    most, spread over all."""
    first = np.searchsorted(data.persons, np.arange(data.person_count))
    some = first[np.unique(np.linspace(0, len(first) - 1, LIKENESS_PERSONS).astype(np.intp))]
    return likeness_of_scores(data.mated(some))
