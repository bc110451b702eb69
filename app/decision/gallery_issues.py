"""The issues that a gallery may have, as they are found by `hygiene`; and one of them found: one
person under two ids."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app.decision.calibration import Calibration
from app.decision.comparisons import LabelledEmbeddings, NonMatedPairs, nearest_person_pairs
from app.decision.fitting import MIN_EXCESSES, MIN_PERSONS, UNTIL_THEN, fit_tail
from app.decision.rates import Floats
from app.errors import NotEnoughData
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
    taken for one person. `counts` of all that was found of each kind, even if fewer are listed.

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


# Expected number of pairs of different people, in the whole gallery, as similar as a suspect.
EXPECTED_BY_CHANCE = 0.05
# The nearest pairs that are examined: so many, or so many for each person, but no more than this
# share of all pairs. Each person who is enrolled twice adds one pair.
NEAREST_PAIRS = 500
NEAREST_PAIRS_EACH = 2
NEAREST_SHARE = 0.05
# From this similarity on two embeddings are of one photo.
SAME_PHOTO = 0.999
MAX_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class SuspectedPair:
    """Two people, by number, who are probably one, and their highest similarity."""

    person_a: int
    person_b: int
    similarity: float


def suspected_duplicates(data: LabelledEmbeddings) -> list[SuspectedPair]:
    """Pairs of people that chance does not explain, most similar first.

    A tail is fitted to the nearest pairs of people that are not suspected; a pair so far above it
    that less than EXPECTED_BY_CHANCE such pairs are to be expected is suspected, and the fit is
    made again, until no pair is added. Twins and close relatives are found as well: the tail of
    strangers does not hold them. Pairs with the same photo are always suspected.

    Raises NotEnoughData if so many ids have the same photos that fewer than MIN_PERSONS people, or
    less than 95 % of the pairs, are left.
    """
    people = data.person_count
    pairs = people * (people - 1) / 2
    everyone = _nearest(data, pairs)
    same = int((everyone.similarities >= SAME_PHOTO).sum())
    _require_different(everyone, same, people)
    suspects = max(same, _gross(everyone))
    for _ in range(MAX_ROUNDS):
        rest = everyone.take(np.arange(suspects, len(everyone.similarities)))
        tail = fit_tail(rest, pairs)
        if tail is None:
            break
        expected = [tail.rate_at(float(s)) * pairs for s in everyone.similarities[: suspects + 5]]
        explained = (i for i, e in enumerate(expected) if e >= EXPECTED_BY_CHANCE)
        following = max(same, next(explained, len(expected)))
        if following == suspects:
            break
        suspects = following
    return [
        SuspectedPair(int(a), int(b), float(s))
        for a, b, s in zip(
            everyone.persons_a[:suspects],
            everyone.persons_b[:suspects],
            everyone.similarities[:suspects],
            strict=True,
        )
    ]


def _nearest(data: LabelledEmbeddings, pairs: float) -> NonMatedPairs:
    """The nearest pairs of people, more than those with the same photo if possible."""
    most = int(NEAREST_SHARE * pairs)
    count = min(max(NEAREST_PAIRS, NEAREST_PAIRS_EACH * data.person_count), most)
    while True:
        nearest = nearest_person_pairs(data, count)
        if count == most or nearest.similarities[-1] < SAME_PHOTO:
            # There is one comparison for each pair of people here, so all weights are 1.
            return replace(nearest, weights=np.ones(len(nearest.weights)))
        count = min(4 * count, most)


def _require_different(nearest: NonMatedPairs, same: int, people: int) -> None:
    """Raise NotEnoughData if the first `same` pairs leave too few different people."""
    from scipy.sparse import coo_array  # noqa: PLC0415 (only a calibration needs it)
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    ends = nearest.persons_a[:same], nearest.persons_b[:same]
    links: Any = coo_array((np.ones(same), ends), shape=(people, people))
    different = int(connected_components(links, directed=False, return_labels=False))
    if different >= MIN_PERSONS and same < len(nearest.similarities):
        return
    raise NotEnoughData(
        f"Of {people} people so many have the same photo as another ({same} pairs at least) that "
        "the collection cannot be calibrated. Merge or delete the duplicates that hygiene lists. "
        f"{UNTIL_THEN}",
        {"persons": different, "needed": MIN_PERSONS},
    )


def _gross(pairs: NonMatedPairs) -> int:
    """How many of the top lie beyond an exponential tail through the median excess, which a
    quarter of the pairs can be wrong without moving much: the first suspects, so that many cannot
    hide one another."""
    count = len(pairs.similarities)
    if count < MIN_EXCESSES:
        return 0
    excess = pairs.similarities - pairs.similarities[-1]
    scale = float(np.median(excess)) / np.log(2)
    expected = count * np.exp(-excess / max(scale, 1e-9))
    return int(np.searchsorted(expected, EXPECTED_BY_CHANCE, side="left"))


# Sizes of pairs whose rates are in memory at a time.
SIZES_AT_ONCE = 4096
STEPS = 50


@dataclass(frozen=True, slots=True)
class ChancePairs:
    """Expected pairs of different people with templates at or above each similarity (T,), rising;
    `people` pairs there are in all."""

    similarities: Floats
    expected: Floats
    people: float

    @classmethod
    def of(cls, calibration: Calibration, effective: Floats) -> "ChancePairs":
        """For P people with these effective numbers of templates (P,); 0 of who has none.

        The most similar of the templates of two people decides. As a search compares a probe with n
        different templates of a person as if with n ** template_exponent independent ones, a pair
        of people with m and n is worth (m n) ** template_exponent comparisons.
        """
        # In steps of 2 %: some hundred different numbers at most, however many people there are.
        steps = np.rint(np.log(np.maximum(effective[effective > 0], 1.0)) * STEPS)
        steps, people = np.unique(steps, return_counts=True)
        held = np.exp(steps / STEPS)
        one, other = np.triu_indices(len(held))
        pairs = people[one] * np.where(one == other, (people[other] - 1) / 2, people[other])
        comparisons = (held[one] * held[other]) ** calibration.template_exponent
        expected = np.zeros(len(calibration.fmr.similarity))
        for start in range(0, len(pairs), SIZES_AT_ONCE):
            some = slice(start, start + SIZES_AT_ONCE)
            expected += calibration.match_rates(comparisons[some]) @ pairs[some]
        return cls(np.array(calibration.fmr.similarity), expected, float(pairs.sum()))

    def at(self, similarity: float) -> float | None:
        """Pairs expected at or above a similarity; None beyond the end of the calibration, where
        they are fewer than at its end."""
        if similarity > self.similarities[-1]:
            return None
        if similarity < self.similarities[0]:
            return self.people
        if not self.people:
            return 0.0
        return float(np.exp(np.interp(similarity, self.similarities, np.log(self.expected))))

    def at_most(self, similarity: float) -> float:
        """Pairs expected at or above a similarity; beyond the end those at the end."""
        return self.at(min(similarity, float(self.similarities[-1]))) or 0.0
