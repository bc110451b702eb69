"""The best scores of probes in a gallery that is read part by part, and errors counted in them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from app.index.comparator import Comparator
from app.index.person_scores import PersonScore
from app.lab.attestation.requirement import Counted
from app.types import FloatArray

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

BLOCK_ROWS = 512
BLOCK_PERSONS = 4_096
LOWEST = -2.0  # below every score
NOBODY = -1


@dataclass(frozen=True, slots=True)
class Faces:
    """Embeddings (n, d), whose they are (n,), and which template or photo each is (n,)."""

    vectors: FloatArray
    persons: Ids
    keys: Ids


class BestScores:
    """For each probe the highest score of its own person, of any other person, and who that is.

    A probe is not compared with itself (the same key), so that templates of a gallery can be the
    probes that search it.
    """

    def __init__(self, probes: Faces, comparator: Comparator) -> None:
        self.probes = probes
        self._comparator = comparator
        count = len(probes.keys)
        self.own = np.full(count, LOWEST)
        self.other = np.full(count, LOWEST)
        self.other_person: Ids = np.full(count, NOBODY)

    def add(self, gallery: Faces) -> None:
        """Compare all probes with more of the gallery."""
        if not len(gallery.keys):
            return
        for start in range(0, len(self.own), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            persons, keys = self.probes.persons[rows, None], self.probes.keys[rows, None]
            scores = self._comparator.scores(self.probes.vectors[rows], gallery.vectors)
            mine = persons == gallery.persons
            own = np.where(mine & (keys != gallery.keys), scores, LOWEST).max(axis=1)
            self.own[rows] = np.maximum(self.own[rows], own)
            others = np.where(mine, LOWEST, scores)
            best = others.argmax(axis=1)
            highest = others[np.arange(len(best)), best]
            higher = highest > self.other[rows]
            self.other_person[rows] = np.where(
                higher, gallery.persons[best], self.other_person[rows]
            )
            self.other[rows] = np.where(higher, highest, self.other[rows])

    def add_persons(self, gallery: Faces, score: PersonScore) -> None:
        """Compare all probes with a whole gallery by a `score` of persons with several templates,
        which needs all templates of a person at once."""
        order = np.argsort(gallery.persons, kind="stable")
        vectors, keys = gallery.vectors[order], gallery.keys[order]
        persons, starts = np.unique(gallery.persons[order], return_index=True)
        ends = np.append(starts[1:], len(order))
        for first in range(0, len(persons), BLOCK_PERSONS):
            some = slice(first, first + BLOCK_PERSONS)
            place = slice(starts[some][0], ends[some][-1])
            self._compare_others(vectors[place], persons[some], starts[some] - place.start, score)
        for n in np.flatnonzero(np.isin(self.probes.persons, persons)):
            own = np.searchsorted(persons, self.probes.persons[n])
            mine = np.arange(starts[own], ends[own])
            mine = mine[keys[mine] != self.probes.keys[n]]
            if len(mine):
                scores = self._comparator.scores(self.probes.vectors[n : n + 1], vectors[mine])[0]
                self.own[n] = score.of_templates(scores, vectors[mine])

    def _compare_others(
        self, vectors: FloatArray, persons: Ids, starts: Ids, score: PersonScore
    ) -> None:
        """With persons whose templates begin at these rows, each probe's own left out."""
        held = np.diff(starts, append=len(vectors))
        length = np.linalg.norm(np.add.reduceat(vectors, starts, dtype=np.float64), axis=1)
        for start in range(0, len(self.own), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            scores = self._comparator.scores(self.probes.vectors[rows], vectors)
            found = score.of(
                np.maximum.reduceat(scores, starts, axis=1),
                np.add.reduceat(scores, starts, axis=1),
                held,
                length,
            )
            found[self.probes.persons[rows, None] == persons] = LOWEST
            best = found.argmax(axis=1)
            highest = found[np.arange(len(best)), best]
            higher = highest > self.other[rows]
            self.other_person[rows] = np.where(higher, persons[best], self.other_person[rows])
            self.other[rows] = np.where(higher, highest, self.other[rows])

    def of(self, chosen: Mask) -> "BestScores":
        """Some of the probes with what was found for them."""
        probes = self.probes
        some = BestScores(
            Faces(probes.vectors[chosen], probes.persons[chosen], probes.keys[chosen]),
            self._comparator,
        )
        some.own, some.other = self.own[chosen], self.other[chosen]
        some.other_person = self.other_person[chosen]
        return some


def false_positives(
    found: BestScores, threshold: float, chosen: Mask, *, both_ways: bool, rejected: int = 0
) -> Counted:
    """Searches in which someone else reaches the threshold, among the `chosen` probes, each of
    another person; `rejected` more probes had no usable face and so found nobody.

    `both_ways`: the probes are the gallery's own people. A pair of people who match is then an
    error of two searches, so two searches count as one at most; people who match several others
    count for less still (design effect of clusters, Kish, 1965).
    """
    wrong = (found.other >= threshold) & chosen
    searches = int(chosen.sum()) + rejected
    effect = 1.0
    if both_ways:
        links = found.probes.persons[wrong], found.other_person[wrong]
        effect = max(2.0, _design_effect(*links))
    return Counted(int(wrong.sum()), searches, searches / effect)


def false_negatives(
    found: BestScores, threshold: float, chosen: Mask, rejected: int = 0
) -> Counted:
    """Searches whose own person is not first or not at the threshold; a probe without a usable
    face is missed."""
    missed = ((found.own < threshold) | (found.own < found.other)) & chosen
    searches = int(chosen.sum()) + rejected
    return Counted(int(missed.sum()) + rejected, searches, float(searches))


def _design_effect(persons: Ids, others: Ids) -> float:
    """The mean number of errors in the cluster of each error; clusters are linked by matches."""
    if not len(persons):
        return 1.0
    _, numbers = np.unique(np.concatenate([persons, others]), return_inverse=True)
    one, other = numbers[: len(persons)], numbers[len(persons) :]
    size = int(numbers.max()) + 1
    graph: Any = coo_array((np.ones(len(one)), (one, other)), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    sizes = np.bincount(label[one]).astype(float)
    return float((sizes**2).sum() / sizes.sum())
