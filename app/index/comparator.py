"""How two embeddings are compared.

The comparison score is the cosine of the angle between two unit vectors, less what two degraded
faces have in common: embeddings of blurred, dark or upside-down faces all lean towards one
direction of the embedding space, whatever their person. With that direction d and a weight k, the
score is

    x.y - k * max(0, x.d) * max(0, y.d)

It equals the cosine unless both faces look degraded, and is never above the cosine. So whatever
bounds the cosine from above bounds the score.
"""

from dataclasses import dataclass

import numpy as np

from app.types import FloatArray


@dataclass(frozen=True, slots=True)
class Probe:
    """One vector (d,) to be compared with many; `shared` (d,) is the shared direction times
    k * max(0, x.d), None where that is zero: the score of a row y is x.y - max(0, y.shared)."""

    vector: FloatArray
    shared: FloatArray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Comparator:
    """Compares unit vectors of float32. `direction` is a unit vector (d,), None for the cosine."""

    direction: FloatArray | None = None
    weight: float = 0.0

    def probe(self, vector: FloatArray) -> Probe:
        """A vector (d,) to be compared with many."""
        if self.direction is None:
            return Probe(vector)
        lean = self.weight * max(0.0, float(vector @ self.direction))
        return Probe(vector, np.float32(lean) * self.direction if lean else None)

    def scores(self, probes: FloatArray, references: FloatArray) -> FloatArray:
        """The score of each of (n, d) vectors with each of (m, d) others: (n, m)."""
        if self.direction is None:
            return np.asarray(probes @ references.T)
        # One more number a vector, so that the score is one product.
        lean = np.float32(-self.weight) * np.maximum(probes @ self.direction, 0)
        other = np.maximum(references @ self.direction, 0)
        return np.asarray(np.column_stack([probes, lean]) @ np.column_stack([references, other]).T)

    def pairwise(self, probes: FloatArray, references: FloatArray) -> FloatArray:
        """The score of each of (n, d) vectors with the other in its place: (n,)."""
        scores = np.einsum("nd,nd->n", probes, references)
        if self.direction is not None:
            both = np.maximum(probes @ self.direction, 0) * np.maximum(
                references @ self.direction, 0
            )
            scores -= np.float32(self.weight) * both
        return np.asarray(scores)

    def score(self, probe: FloatArray, reference: FloatArray) -> float:
        """The score of two vectors (d,), within -1 and 1."""
        return float(np.clip(self.scores(probe[np.newaxis], reference[np.newaxis])[0, 0], -1, 1))

    def degradation(self, vectors: FloatArray) -> FloatArray | None:
        """How far each of (n, d) vectors leans towards the shared direction (n,), -1 to 1; None
        where nothing is known of one."""
        return None if self.direction is None else np.asarray(vectors @ self.direction)

    def lean(self, vector: FloatArray) -> float | None:
        """`degradation` of one vector (d,)."""
        return None if self.direction is None else float(vector @ self.direction)


COSINE = Comparator()
