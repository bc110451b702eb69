"""The issues that a gallery may have, as they are found by `hygiene`."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.types import Quality


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Two ids whose faces resemble one another as one person's do, most similar first.
    `expected_by_chance`: pairs of different people at least this similar in the whole gallery, each
    by their most similar templates. `fmr` is that of one comparison; it is None where nothing is
    calibrated, or where it is rarer than the calibration measures: then the upper end of its 95 %
    `fmr_interval` is all that is known. So with the other findings."""

    person_id_a: str
    person_id_b: str
    face_id_a: str
    face_id_b: str
    similarity: float
    fmr: float | None
    fmr_interval: tuple[float, float] | None
    expected_by_chance: float | None


@dataclass(frozen=True, slots=True)
class Mislabel:
    """A face that resembles another person, and none of its own person's other faces."""

    face_id: str
    person_id: str
    looks_like: str
    similarity: float
    own_similarity: float
    fmr: float | None
    fmr_interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Outlier:
    """A face that does not resemble the other faces of its person, nor any other person; `fmr` of
    strangers' faces would resemble them as much."""

    face_id: str
    person_id: str
    own_similarity: float
    fmr: float | None
    fmr_interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Weak:
    """A person with one face, which is poor: with `reasons` (stable codes), and its `quality`."""

    face_id: str
    person_id: str
    reasons: tuple[str, ...]
    quality: Quality


@dataclass(frozen=True, slots=True)
class Degraded:
    """A face that looks degraded or covered to the recogniser: it is not compared with others that
    do, or matches them less often. `covering` is None where that is not known."""

    face_id: str
    person_id: str
    degradation: float
    covering: float | None


@dataclass(frozen=True, slots=True)
class Hygiene:
    """What was found, the worst first; `threshold` is the similarity from which two faces were
    taken for one person. `counts` of all that was found of each kind, also where fewer are listed.

    `duplicates_by_chance` and `mislabels_by_chance`: of those findings so many are expected of
    different people who look alike; None where nothing is calibrated. A threshold beyond what the
    calibration knows gives the number at its end, which is higher.
    """

    persons: int
    faces: int
    threshold: float
    duplicates_by_chance: float | None
    mislabels_by_chance: float | None
    duplicates: tuple[Duplicate, ...]
    mislabels: tuple[Mislabel, ...]
    outliers: tuple[Outlier, ...]
    weak: tuple[Weak, ...]
    degraded: tuple[Degraded, ...]
    counts: Mapping[str, int]
