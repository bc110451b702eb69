"""Estimates how many pairs of different people in a gallery look alike by chance."""

from dataclasses import dataclass

import numpy as np

from app.decision.calibration import Calibration
from app.decision.rates import Floats

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
