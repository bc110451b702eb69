"""Which error rates labelled data is large enough to tell: the one place that decides it."""

import numpy as np

from app.decision.rates import Rate, clopper_pearson

# Rule of three (Jovanovic & Levy, 1997): without an error in n independent trials the rate is known
# to be at most 3 / n. A rate below that cannot be distinguished from zero.
RULE_OF_THREE = 3.0
# "Rule of 30" (ISO/IEC 19795-1; Doddington et al., 2000): with 30 errors a rate is within 30 %.
RULE_OF_THIRTY = 30


def can_tell(rate: float, trials: float) -> bool:
    """Whether an operating point at that error rate can be set or tested with so many independent
    trials: at least three errors are to be expected among them."""
    return rate * trials >= RULE_OF_THREE - 1e-9


def least_trials(rate: float) -> int:
    """How many independent trials an operating point at that rate needs."""
    return int(np.ceil(RULE_OF_THREE / rate - 1e-9))


def binomial(share: float, trials: float) -> Rate:
    """A share of independent trials with its 95 % interval (Clopper & Pearson, 1934)."""
    low, high = clopper_pearson(np.array([share * trials]), np.array([float(trials)]))
    return Rate(float(share), float(low[0]), float(high[0]))
