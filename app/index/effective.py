"""How many different templates a person's templates amount to.

A stranger has as many chances to be taken for a person as the person has templates, but templates
that are nearly the same are matched by the same strangers. The effective number of m templates is
the magnitude of their set (Leinster & Meckes, Entropy 2016): the sum of the weights w that solve
Z w = 1, where Z = exp(-DECAY * Euclidean distance). Copies of one template count as one, templates
without anything in common as one each, and copies do not change what others count.

DECAY is chosen on LFW (docs/decisions.md): it gives the rise of the false match rate with 2 to 236
photos of a person, and with near-copies of one photo, by one exponent.
"""

import numpy as np
from numpy.typing import NDArray

from app.types import FloatArray

Floats = NDArray[np.float64]

DECAY = 5.0
# Of a person who has more, so many are compared and the others are assumed to be like them.
MOST_COMPARED = 512
# Added to the diagonal, so that the equations have one solution where templates are equal.
_RIDGE = 1e-3


def effective_templates(vectors: FloatArray) -> float:
    """The effective number of the templates of one person, unit vectors (m, d), in any fixed order:
    from 1 to m, and 0 for none."""
    if not len(vectors):
        return 0.0
    chosen = compared(len(vectors))
    return float(effective_numbers(vectors[chosen][np.newaxis], len(vectors))[0])


def compared(count: int) -> NDArray[np.intp]:
    """Which of a person's templates are compared: all, or MOST_COMPARED that are evenly spaced."""
    if count <= MOST_COMPARED:
        return np.arange(count)
    return np.linspace(0, count - 1, MOST_COMPARED).astype(np.intp)


def effective_numbers(vectors: FloatArray, count: int) -> Floats:
    """The effective numbers (k,) of the templates of k persons who have `count` each, of whom the
    unit vectors (k, m, d) are those to compare."""
    k, m, _ = vectors.shape
    if m == 1:
        return np.ones(k)
    similarities = (vectors @ vectors.transpose(0, 2, 1)).astype(np.float64)
    alike = np.exp(-DECAY * np.sqrt(np.maximum(2.0 - 2.0 * similarities, 0.0)))
    alike[:, np.arange(m), np.arange(m)] = 1.0 + _RIDGE
    found = np.linalg.solve(alike, np.ones((k, m, 1))).sum(axis=(1, 2))
    found = np.clip(found, 1.0, m)
    if count > m:
        # m templates of which any two are alike to the same extent: n = m / (1 + (m - 1) z).
        found = count / (1.0 + (count - 1) * (m / found - 1.0) / (m - 1))
    return np.asarray(found, np.float64)
