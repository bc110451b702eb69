"""How two embeddings are compared.

The comparison score is the cosine of the angle between two unit vectors, less what faces that are
alike for another reason than their person have in common. Embeddings of blurred, dark or
upside-down faces all share a component in one direction of the embedding space; those of faces
whose lower half is covered differ from others in another one. Of such directions, let a(x) be
how far a face goes along one, at least 0, and k the weight of that direction. The score is

    x.y - sum of k * a(x) * a(y)

It equals the cosine unless both faces look degraded, or both look covered, and is never above the
cosine. So whatever bounds the cosine from above bounds the score; `UpperBound` is a tighter bound.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import InvalidEmbedding
from app.types import FloatArray

# Of the length of a unit vector that was rounded to float32.
UNIT_TOLERANCE = 1e-6
SCORE_ROUNDING = 1e-5  # of a score in float32
# A shorter vector would make the rounding of a score too large a part of a cosine.
SHORTEST_BOUND = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Covering:
    """How covered a face looks: x.direction - offset, within 0 and `most`. `direction` (d,) is no
    unit vector. The bound keeps vectors unlike any face from being lowered without limit."""

    direction: FloatArray
    offset: float
    weight: float
    most: float = 1.0

    def of(self, vectors: FloatArray) -> FloatArray:
        """How covered each of (n, d) faces looks (n,)."""
        along = vectors @ self.direction - np.float32(self.offset)
        return _within(along, self.most)


@dataclass(frozen=True, slots=True)
class Lowering:
    """What a probe has in common with others: the score of a row y is lowered by y.vector - offset,
    within 0 and `most`."""

    vector: FloatArray
    offset: float
    most: float

    def of(self, products: FloatArray) -> FloatArray:
        """By how much scores are lowered (n,), from the products y.vector of rows (n,)."""
        return _within(products - np.float32(self.offset), self.most)


def _within(amounts: FloatArray, most: float) -> FloatArray:
    # `np.clip` takes several times as long for the few numbers of a search.
    return np.asarray(np.minimum(np.maximum(amounts, 0), np.float32(most)))


@dataclass(frozen=True, slots=True)
class UpperBound:
    """What no score of a probe is above: `length` times the cosine with a unit vector (d,)."""

    vector: FloatArray
    length: float = 1.0

    def least_cosine(self, score: float) -> float:
        """The least cosine with the vector of a row that has at least this score (> 0)."""
        return score if self.length == 1 else (score - SCORE_ROUNDING) / self.length


@dataclass(frozen=True, slots=True)
class Probe:
    """One vector (d,) to be compared with many, and what lowers its scores. `lowered`: about by how
    much, compared with an imagined row whose component along each of the directions is 1."""

    vector: FloatArray
    lowerings: tuple[Lowering, ...]
    lowered: float
    upper_bound: UpperBound


@dataclass(frozen=True, slots=True, eq=False)
class Comparator:
    """Compares unit vectors of float32. `direction` is the unit vector (d,) that degraded faces
    share, None for the cosine; `covering`, which needs a direction, says what covered ones share,
    as `others` do of what else lowers a score.
    """

    direction: FloatArray | None = None
    weight: float = 0.0
    covering: Covering | None = None
    others: tuple[Covering, ...] = ()

    def probe(self, vector: FloatArray) -> Probe:
        """A vector (d,) to be compared with many."""
        lowerings, lowered = [], 0.0
        for part in self._parts():
            amount = part.weight * float(part.of(vector[np.newaxis])[0])
            if amount:
                along = np.float32(amount) * part.direction
                lowerings.append(Lowering(along, amount * part.offset, amount * part.most))
                lowered += amount
        return Probe(vector, tuple(lowerings), lowered, self._upper_bound(vector))

    def _upper_bound(self, vector: FloatArray) -> UpperBound:
        """A score is lowered by at least amount * max(0, y.direction), which is at least any share
        of amount * y.direction, whichever sign that has. So it is at most y.(x - share * amount *
        direction). With a half the bound is as near for rows on both sides; with 1 / weight the
        vector is shortest."""
        if self.direction is None:
            return UpperBound(vector)
        amount = self.weight * max(float(vector @ self.direction), 0.0)
        share = min(0.5, 1 / self.weight) if amount else 0.0
        below = vector - np.float32(share * amount) * self.direction
        length = float(np.linalg.norm(below))
        if amount == 0 or length < SHORTEST_BOUND:
            return UpperBound(vector)
        return UpperBound(np.asarray(below / np.float32(length), np.float32), length)

    def scores(self, probes: FloatArray, references: FloatArray) -> FloatArray:
        """The score of each of (n, d) vectors with each of (m, d) others: (n, m)."""
        if self.direction is None:
            return np.asarray(probes @ references.T)
        # One more number per vector for each direction, so that the score is one product.
        amounts = [np.float32(-part.weight) * part.of(probes) for part in self._parts()]
        others = [part.of(references) for part in self._parts()]
        return np.asarray(
            np.column_stack([probes, *amounts]) @ np.column_stack([references, *others]).T
        )

    def pairwise(self, probes: FloatArray, references: FloatArray) -> FloatArray:
        """The score of each of (n, d) vectors with the other in its place: (n,)."""
        scores = np.einsum("nd,nd->n", probes, references)
        for part in self._parts():
            scores -= np.float32(part.weight) * part.of(probes) * part.of(references)
        return np.asarray(scores)

    def score(self, probe: FloatArray, reference: FloatArray) -> float:
        """The score of two vectors (d,), within -1 and 1."""
        return float(np.clip(self.scores(probe[np.newaxis], reference[np.newaxis])[0, 0], -1, 1))

    def degradation(self, vectors: FloatArray) -> FloatArray | None:
        """The component of each of (n, d) vectors in the shared direction (n,), -1 to 1; None
        where nothing is known of one."""
        return None if self.direction is None else np.asarray(vectors @ self.direction)

    def degradation_of(self, vector: FloatArray) -> float | None:
        """`degradation` of one vector (d,)."""
        return None if self.direction is None else float(vector @ self.direction)

    def coverings(self, vectors: FloatArray) -> FloatArray | None:
        """How covered each of (n, d) faces looks (n,), 0 to 1; None where that is not known."""
        return None if self.covering is None else self.covering.of(vectors)

    def covering_of(self, vector: FloatArray) -> float | None:
        """`coverings` of one vector (d,)."""
        found = self.coverings(vector[np.newaxis])
        return None if found is None else float(found[0])

    def _parts(self) -> Iterator[Covering]:
        if self.direction is not None:
            yield Covering(self.direction, 0.0, self.weight, most=np.inf)
        if self.covering is not None:
            yield self.covering
        yield from self.others


COSINE = Comparator()


def unit_embedding(
    values: Sequence[float] | FloatArray, dimension: int, embedding_space: str
) -> FloatArray:
    """An embedding made elsewhere as a unit vector (d,). Raises InvalidEmbedding."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (dimension,):
        raise InvalidEmbedding(
            f"The embedding has {vector.size} numbers; this service's model pack makes "
            f"{dimension}. Only embeddings of {embedding_space} can be enrolled."
        )
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm < 1e-6:
        raise InvalidEmbedding(
            "The embedding has length 0 or a number that is not finite. "
            "Send the embedding as the model pack made it."
        )
    if abs(norm - 1) < UNIT_TOLERANCE:
        return vector.astype(np.float32)  # as it was: one that was exported comes back the same
    return (vector / norm).astype(np.float32)
