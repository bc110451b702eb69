"""Every comparison among labelled faces: each pair of people counts once, each person once.

A person with a hundred photos tells no more about strangers than one with a single photo, so all
comparisons of two people together have weight 1, and so have the mated comparisons of one person.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.decision.rates import Floats, clopper_pearson, dyadic_variance, effective_trials
from app.index.comparator import COSINE, Comparator
from app.types import FloatArray

Indices = NDArray[np.intp]
FaceIndices = Indices | slice
PersonPair = tuple[int, int]

BLOCK_ROWS = 512
BINS_PER_UNIT = 4096
FIRST_RATE = 0.3
RATES_PER_DECADE = 10


@dataclass(frozen=True, slots=True)
class LabelledEmbeddings:
    """Unit vectors (n, d) float32 and whose they are: persons (n,), numbers 0 to P - 1, rising;
    and how they are compared."""

    vectors: FloatArray
    persons: Indices
    comparator: Comparator = COSINE

    @classmethod
    def of(
        cls,
        vectors: FloatArray,
        persons: NDArray[np.generic],
        comparator: Comparator = COSINE,
    ) -> "LabelledEmbeddings":
        """From labels of any kind, in any order; people are numbered in the labels' order."""
        _, numbers = np.unique(persons, return_inverse=True)
        order = np.argsort(numbers, kind="stable")
        return cls(np.ascontiguousarray(vectors[order]), numbers[order], comparator)

    @property
    def person_count(self) -> int:
        return int(self.persons[-1]) + 1 if len(self.persons) else 0

    @property
    def counts(self) -> Indices:
        """Faces of each person (P,)."""
        return np.bincount(self.persons, minlength=self.person_count)

    def of_persons(self, chosen: Indices) -> "LabelledEmbeddings":
        """The faces of some people, numbered from 0 again."""
        kept = np.isin(self.persons, chosen)
        return LabelledEmbeddings.of(self.vectors[kept], self.persons[kept], self.comparator)

    def similarities(self, faces: FaceIndices, others: FaceIndices) -> FloatArray:
        """The comparison scores of some faces with others, by number: (faces, others)."""
        return self.comparator.scores(self.vectors[faces], self.vectors[others])

    def mated(self, faces: Indices) -> FloatArray:
        """The score of each two of some faces once, in the order of `np.triu_indices(n, 1)`."""
        return np.asarray(self.similarities(faces, faces)[np.triu_indices(len(faces), 1)])


@dataclass(frozen=True, slots=True)
class NonMatedPairs:
    """Comparisons of different people, most similar first: parallel arrays (n,).

    `weights` are shares of a pair of people: 1 / (faces of one x faces of the other). Faces and
    persons are numbers in the data they were compared in.
    """

    similarities: FloatArray
    weights: Floats
    faces_a: Indices
    faces_b: Indices
    persons_a: Indices
    persons_b: Indices

    def take(self, chosen: NDArray[np.generic]) -> "NonMatedPairs":
        """Those at `chosen`, indices or a mask."""
        return NonMatedPairs(*(column[chosen] for column in self.columns()))

    def columns(self) -> tuple[NDArray[Any], ...]:
        """All arrays, in the order of the fields."""
        return tuple(getattr(self, name.name) for name in fields(self))


@dataclass(frozen=True, slots=True)
class ErrorCurve:
    """A rate with its interval at rising similarities, arrays (T,)."""

    similarities: Floats
    rates: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True)
class NonMated:
    """How often different people match.

    `variation`: by how much the rate differs from probe to probe at each similarity (squared
    coefficient of variation). `pairs`: pairs of people compared. `top`: the most similar.
    `histogram`: pairs of people in bins of 1 / BINS_PER_UNIT from -1 on.
    """

    curve: ErrorCurve
    variation: Floats
    pairs: float
    top: NonMatedPairs
    histogram: Floats


def compare_non_mated(
    data: LabelledEmbeddings,
    top_pairs: int,
    left_out: frozenset[PersonPair] = frozenset(),
    doubtful: int = 0,
) -> NonMated:
    """FMR over all comparisons of different people, `left_out` pairs of people aside.

    `doubtful` pairs of people, who may be false matches at every similarity, raise the upper
    limits. The curve goes as far as ten pairs of people match; `top` holds about `top_pairs` of
    them. Raises ValueError with fewer than two people.
    """
    people = data.person_count
    if people < 2:
        raise ValueError("non-mated comparisons need two people")
    pairs = people * (people - 1) / 2 - len(left_out)
    histogram = _histogram(data, left_out)
    exceeding = histogram[::-1].cumsum()[::-1]
    lowest_top = _similarity_at(exceeding, min(float(top_pairs), pairs))
    curve, counted = _counted(data, left_out, _grid(exceeding, pairs), doubtful, lowest_top)
    return NonMated(curve, _variation(counted), pairs, counted.top, histogram)


def rates_at(
    data: LabelledEmbeddings,
    similarities: Floats,
    left_out: frozenset[PersonPair] = frozenset(),
) -> ErrorCurve:
    """FMR with its interval at the given thresholds, rising. Raises ValueError with fewer than
    two people."""
    people = data.person_count
    if people < 2:
        raise ValueError("non-mated comparisons need two people")
    return _counted(data, left_out, similarities, 0)[0]


def compare_mated(data: LabelledEmbeddings, similarities: Floats) -> tuple[ErrorCurve, int] | None:
    """FNMR at the given similarities and how many people it rests on; None without a pair."""
    own: list[Floats] = []
    for person in np.flatnonzero(data.counts > 1):
        values = np.sort(data.mated(np.flatnonzero(data.persons == person)))
        own.append(np.searchsorted(values, similarities, side="left") / len(values))
    if not own:
        return None
    shares = np.array(own)
    rates = shares.mean(axis=0)
    people = float(len(shares))
    variance = shares.var(axis=0, ddof=1) / people if people > 1 else np.zeros_like(rates)
    effective = np.minimum(effective_trials(rates, variance), people)
    low, high = clopper_pearson(rates * effective, effective)
    return ErrorCurve(similarities, rates, low, high), len(shares)


def nearest_person_pairs(data: LabelledEmbeddings, count: int) -> NonMatedPairs:
    """The most similar comparison of each of about `count` nearest pairs of people."""
    top = compare_non_mated(data, count).top
    _, first = np.unique(top.persons_a * data.person_count + top.persons_b, return_index=True)
    return top.take(np.sort(first))


# --- inside ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Counts:
    """Pairs of people at or above each similarity: by person (P, T), squared (T,), and how many
    pairs each person is in (P,)."""

    by_person: Floats
    squares: Floats
    trials: Floats
    top: NonMatedPairs


def _counted(
    data: LabelledEmbeddings,
    left_out: frozenset[PersonPair],
    grid: Floats,
    doubtful: int,
    lowest_top: float = np.inf,
) -> tuple[ErrorCurve, _Counts]:
    counted = _count(data, left_out, grid, lowest_top)
    pairs = float(counted.trials.sum() / 2)
    rates = counted.by_person.sum(axis=0) / 2 / pairs
    variance = dyadic_variance(rates, counted.by_person, counted.trials, counted.squares, pairs)
    effective = np.minimum(effective_trials(rates, variance), pairs)
    low, _ = clopper_pearson(rates * effective, effective)
    _, high = clopper_pearson((rates + doubtful / pairs) * effective, effective)
    return ErrorCurve(grid, rates, low, high), counted


def _blocks(data: LabelledEmbeddings, left_out: frozenset[PersonPair]) -> Iterator[NonMatedPairs]:
    """All comparisons of different people, once each, some rows at a time."""
    counts = data.counts.astype(np.float64)
    for start in range(0, len(data.persons), BLOCK_ROWS):
        rows, columns = data.persons[start : start + BLOCK_ROWS], data.persons[start:]
        similarities = data.similarities(slice(start, start + BLOCK_ROWS), slice(start, None))
        # People are in order: a smaller number to the left counts every pair once.
        wanted = rows[:, np.newaxis] < columns[np.newaxis]
        for one, other in map(sorted, left_out):
            if rows[0] <= one <= rows[-1]:
                wanted[np.ix_(rows == one, columns == other)] = False
        i, j = np.nonzero(wanted)
        a, b = rows[i], columns[j]
        weights = 1.0 / (counts[a] * counts[b])
        yield NonMatedPairs(similarities[i, j], weights, i + start, j + start, a, b)


def _histogram(data: LabelledEmbeddings, left_out: frozenset[PersonPair]) -> Floats:
    """Pairs of people by similarity, in bins of 1 / BINS_PER_UNIT from -1 to 1."""
    total = np.zeros(2 * BINS_PER_UNIT + 1)
    for block in _blocks(data, left_out):
        # In float32 the sum would round up, into a bin above the similarity.
        similarities = np.clip(block.similarities.astype(np.float64), -1, 1)
        bins = ((similarities + 1) * BINS_PER_UNIT).astype(np.intp)
        total += np.bincount(bins, block.weights, minlength=len(total))
    return total


def _similarity_at(exceeding: Floats, pairs: float) -> float:
    """The lower edge of the bin from which on `pairs` pairs of people lie above."""
    return int(np.searchsorted(-exceeding, -pairs, side="right") - 1) / BINS_PER_UNIT - 1.0


def _grid(exceeding: Floats, pairs: float) -> Floats:
    """Similarities at which the rate takes ten values a decade, down to ten pairs of people."""
    decades = np.log10(max(FIRST_RATE * pairs / 10.0, 1.0))
    steps = np.arange(int(decades * RATES_PER_DECADE) + 1)
    wanted = FIRST_RATE * pairs * 10.0 ** (-steps / RATES_PER_DECADE)
    return np.unique([_similarity_at(exceeding, value) for value in wanted])


def _count(
    data: LabelledEmbeddings, left_out: frozenset[PersonPair], grid: Floats, lowest_top: float
) -> _Counts:
    people, width = data.person_count, len(grid) + 1
    sums = np.zeros(people * width)
    squares = np.zeros(width)
    tops = []
    for everything in _blocks(data, left_out):
        block = everything.take(everything.similarities >= grid[0])
        passed = np.searchsorted(grid, block.similarities, side="right")
        for persons in (block.persons_a, block.persons_b):
            sums += np.bincount(persons * width + passed, block.weights, minlength=len(sums))
        squares += np.bincount(passed, block.weights**2, minlength=width)
        tops.append(block.take(block.similarities >= lowest_top))
    columns = zip(*(part.columns() for part in tops), strict=True)
    top = NonMatedPairs(*(np.concatenate(parts) for parts in columns))
    by_person = sums.reshape(people, width)[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    above = squares[::-1].cumsum()[::-1][1:]
    missing = np.array([person for pair in left_out for person in pair], dtype=np.intp)
    trials = (people - 1 - np.bincount(missing, minlength=people)).astype(np.float64)
    return _Counts(by_person, above, trials, top.take(np.argsort(-top.similarities, kind="stable")))


def _variation(counted: _Counts) -> Floats:
    """Squared coefficient of variation of the probes' own rates, beyond what chance makes.

    Held at its last value where fewer than a hundred pairs match: it cannot be estimated there.
    """
    sums, totals = counted.by_person, counted.by_person.sum(axis=0) / 2
    rates = totals * 2 / counted.trials.sum()
    expected = counted.trials.mean() * rates
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = sums.var(axis=0) - expected * (1 - rates)
        variation = np.where(expected > 0, np.maximum(excess, 0.0) / expected**2, 0.0)
    known = np.flatnonzero(totals >= 100)
    return np.asarray(variation[np.minimum(np.arange(len(rates)), known[-1] if len(known) else 0)])
