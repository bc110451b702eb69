"""What a calibration knows of faces that are unlike those it was counted on, and beyond which
limits two faces are not compared, or a photo is also analysed turned.

Degraded faces share a direction of the embedding space, and people of one group are more alike than
people of all groups. Both raise the scores of different people above what was counted. A degraded
face compared with a good one causes false non-matches only. Two faces that are degraded in the same
way cause false matches, so nothing is decided by their comparison.
"""

import hashlib
import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.decision.comparisons import Indices, LabelledEmbeddings
from app.decision.pair_lifts import NO_LIFTS, CoveredFaces, PairLifts
from app.faces.orientation import OrientationLimits
from app.index.comparator import Comparator
from app.index.likeness import likeness_of, likeness_of_scores
from app.index.port import GallerySize
from app.inference.pack_spec import ModelPack, Sha256
from app.telemetry.logs import log
from app.types import FloatArray, Quality

# So many of a calibration's own faces are beyond the limit; of their comparisons far fewer have
# both faces beyond it.
DEGRADED_SHARE = 0.01
# Where the false match rate of two such faces exceeds the promised one by far, even by the score.
MIN_SHARPNESS = 15.0
MIN_BRIGHTNESS = 0.05
MIN_FACE_SIZE_PX = 20.0
# The limit that also a search keeps: it follows the gallery's likeness, which covers the others.
DEGRADED = "degraded"


class Limits(BaseModel):
    """How degraded, unsharp, dark and small one of two compared faces may be; None: any."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_degradation: float | None = Field(None, ge=-1, le=1)
    min_sharpness: float | None = Field(None, ge=0)
    min_brightness: float | None = Field(None, ge=0, le=1)
    min_face_size_px: float | None = Field(None, ge=0)

    @classmethod
    def fit(cls, degradation: FloatArray | None) -> "Limits":
        """From the degradation (n,) of a calibration's faces, if there is a direction for it."""
        most = None if degradation is None else np.quantile(degradation, 1 - DEGRADED_SHARE)
        return cls(
            max_degradation=None if most is None else round(float(most), 4),
            min_sharpness=MIN_SHARPNESS,
            min_brightness=MIN_BRIGHTNESS,
            min_face_size_px=MIN_FACE_SIZE_PX,
        )

    def beyond(self, quality: Quality | None, degradation: float | None) -> tuple[str, ...]:
        """The limits (stable codes) that a face is beyond; what is not known is within."""
        found = {
            DEGRADED: _exceeds(degradation, self.max_degradation),
            "blurred": quality is not None and _exceeds(self.min_sharpness, quality.sharpness),
            "too_dark": quality is not None and _exceeds(self.min_brightness, quality.brightness),
            "face_too_small": quality is not None
            and _exceeds(self.min_face_size_px, quality.face_size_px),
        }
        return tuple(code for code, beyond in found.items() if beyond)


def _exceeds(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit


NO_LIMITS = Limits()


class Orientation(BaseModel):
    """Limits of one detector's looks, and what they were fitted to.

    `source`: the folder of photos. Of its `photos`, the share `looked_again` would be looked at
    turned. `turned`: how many turned photos were tried, a third each by 90, 180 and 270 degrees;
    the share `righted` of them was set upright.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    detector: Sha256
    score_below: Annotated[float, Field(gt=0, lt=1)]
    roll_above: Annotated[float, Field(gt=0, lt=180)]
    source: str
    photos: Annotated[int, Field(gt=0)]
    looked_again: Annotated[float, Field(ge=0, le=1)]
    turned: Annotated[int, Field(gt=0)]
    righted: Annotated[float, Field(ge=0, le=1)]

    def limits_for(self, pack: ModelPack) -> OrientationLimits | None:
        """The limits for a pack's pipeline; None, with a warning in the log, if they were measured
        with another detector."""
        if self.detector != pack.detector.sha256:
            log(
                logging.WARNING,
                "photos are not turned upright: the calibration's limits are of another detector",
                pack=pack.name,
                detector=pack.detector.sha256,
            )
            return None
        return OrientationLimits(self.score_below, self.roll_above)


# Chosen on the development half of LFW's people; docs/adr/0018-degraded-faces.md has the figures.
WEIGHT = 1.5
LIFT = 0.75
SMALL_LIFT = 1.0
SMALL_GALLERY = 100
# More than this is not the likeness of different people: ids of one person were not recognised.
MOST_SMALL_LIFT = 0.12
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
        likeness: float,
        limits: Limits,
        verification: PairLifts = NO_LIFTS,
    ) -> "Domain":
        """The domain of people of that likeness, whom a calibration is counted on."""
        likeness = round(likeness, 6)
        return cls(shared=shared, likeness=likeness, limits=limits, verification=verification)

    def verification_of(self, likeness: float) -> PairLifts:
        """The lifts for a calibration that is counted on other people: where these are more alike
        than those here, its thresholds are higher already."""
        return self.verification.less_typical(self.lift * (likeness - self.likeness))

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
        excess = max(0.0, likeness - self.likeness)
        if size.persons < self.small_gallery:
            return min(MOST_SMALL_LIFT, self.small_lift * excess)
        return self.lift * excess


def labelled_likeness(data: LabelledEmbeddings) -> float:
    """The likeness of labelled people, by the first face of each; of LIKENESS_PERSONS of them at
    most, spread over all."""
    return likeness_of_scores(data.mated(_first_faces(data)))


def collection_likeness(data: LabelledEmbeddings) -> float:
    """The likeness of the people of a collection: two ids may be of one person. With too few
    different people it is that of all ids."""
    found = likeness_of(data.vectors[_first_faces(data)], data.comparator)
    return labelled_likeness(data) if found is None else found


def _first_faces(data: LabelledEmbeddings) -> Indices:
    """The first face of each person; of LIKENESS_PERSONS persons at most, spread over all."""
    first = np.searchsorted(data.persons, np.arange(data.person_count))
    return first[np.unique(np.linspace(0, len(first) - 1, LIKENESS_PERSONS).astype(np.intp))]
