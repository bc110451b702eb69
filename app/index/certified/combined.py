"""Searches by a person's centroid, or by the mean of centroid and best template, certified.

The codes know single templates, so persons are found by their best one. A person left out has no
template above the floor of that search, and so no score above what `PersonScore.most` says for the
largest ratio there is. Where that could still be enough, one more search takes everybody whose best
template reaches what the k-th score found so far would need. So answers equal brute force. A few
persons with very diverse templates, who would widen every search, are always looked at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from app.index.certified.persons import BestPersons, Collector, PersonsAbove, PersonSet
from app.index.certified.rows import Rows
from app.index.comparator import Probe
from app.index.person_scores import Floats, PersonScore, ratios_of
from app.index.port import Hit, Ids
from app.types import FloatArray

# Persons beyond those asked for, whom the first search finds: often the second is not needed then.
EXTRA_PERSONS = 8
# Probes that are looked for together, and persons whose templates are scored together.
PROBES_AT_ONCE = 16
PERSONS_AT_ONCE = 4_096
# Float32 sums of some hundred terms, here and in the scan.
SLACK = 1e-5


class Lengths(Protocol):
    """What an index knows of its persons' templates."""

    def lengths(self, persons: Ids) -> tuple[Ids, FloatArray]:
        """How many templates persons (n,) have, in ascending order of their keys, and the lengths
        of their sums."""
        ...

    def widest(self) -> tuple[Ids, float]:
        """Some persons with diverse templates, and the largest ratio of any other person."""
        ...


@dataclass(frozen=True, slots=True)
class ScoredPersons:
    """Persons (n,): their scores, and the keys of their best templates."""

    persons: Ids
    scores: Floats
    keys: Ids

    def and_more(self, other: "ScoredPersons", most: int) -> "ScoredPersons":
        """The `most` best of both, in their order; equal ones by the keys of their templates."""
        persons = np.concatenate([self.persons, other.persons])
        scores = np.concatenate([self.scores, other.scores])
        keys = np.concatenate([self.keys, other.keys])
        order = np.lexsort((keys, -scores))[:most]
        return ScoredPersons(persons[order], scores[order], keys[order])

    def hits(self) -> list[Hit]:
        """As an answer."""
        scores = np.clip(self.scores, -1.0, 1.0).tolist()
        rows = zip(self.persons.tolist(), self.keys.tolist(), scores, strict=True)
        return [Hit(person, key, score) for person, key, score in rows]


NOBODY = ScoredPersons(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))


class PersonRows:
    """The remaining templates of some persons, in ascending order of their keys, to be scored with
    any probe."""

    def __init__(
        self, parts: Sequence[Rows], persons: Ids, lengths: Lengths, score: PersonScore
    ) -> None:
        self._score = score
        wanted = PersonSet(persons)
        self._rows: list[tuple[Rows, Ids]] = []
        for part in parts:
            numbers = wanted.rows_of(part.persons)
            self._rows.append((part, numbers[part.alive[numbers]]))
        self._keys = np.concatenate([part.keys[mine] for part, mine in self._rows])
        owners = np.concatenate([part.persons[mine] for part, mine in self._rows])
        self._persons, self._place = np.unique(owners, return_inverse=True)
        held, self._length = lengths.lengths(self._persons)
        # Some may have come or gone while the rows were read.
        self._held = np.maximum(held, 1)

    def scored(self, probe: Probe, most: int) -> ScoredPersons:
        """The `most` best of them."""
        scores = np.concatenate([part.scores_of(probe, mine) for part, mine in self._rows])
        count = len(self._persons)
        best = np.full(count, -np.inf, np.float32)
        np.maximum.at(best, self._place, scores)
        total = np.bincount(self._place, scores, minlength=count)
        combined = self._score.of(best.astype(np.float64), total, self._held, self._length)
        first = np.flatnonzero(scores == best[self._place])
        keys = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(keys, self._place[first], self._keys[first])
        return NOBODY.and_more(ScoredPersons(self._persons, combined, keys), most)


@dataclass(frozen=True, slots=True)
class CombinedSearch:
    """The search of some rows by `score`. `cover` leaves none of them unseen that is above the
    floor of a probe's collector."""

    score: PersonScore
    parts: Sequence[Rows]
    lengths: Lengths
    cover: Callable[[Sequence[Probe], Sequence[Collector]], None]

    def hits(
        self, probes: Sequence[Probe], top_k: int, allowed: Ids | None = None
    ) -> list[list[Hit]]:
        """The nearest persons for each probe; of the `allowed`, in ascending order of their keys,
        if given."""
        if allowed is not None:
            rows = PersonRows(self.parts, allowed, self.lengths, self.score)
            return [rows.scored(probe, top_k).hits() for probe in probes]
        found: list[list[Hit]] = []
        for start in range(0, len(probes), PROBES_AT_ONCE):
            found += self._search(probes[start : start + PROBES_AT_ONCE], top_k)
        return found

    def _search(self, probes: Sequence[Probe], top_k: int) -> list[list[Hit]]:
        # Before the rows are read: what grows meanwhile grows by templates that came later.
        wide, ratio = self.lengths.widest()
        nearest = [BestPersons(top_k + EXTRA_PERSONS) for _ in probes]
        self.cover(probes, nearest)
        candidates = np.unique(np.concatenate([wide, *(one.persons for one in nearest)]))
        rows = PersonRows(self.parts, candidates, self.lengths, self.score)
        found = [rows.scored(probe, top_k) for probe in probes]
        floors = [self._floor(one, top_k, ratio) for one in found]
        # A first search that found fewer than it looked for has seen everybody.
        unsure = [i for i, one in enumerate(nearest) if -np.inf < one.floor >= floors[i]]
        above = [PersonsAbove(floors[i]) for i in unsure]
        self.cover([probes[i] for i in unsure], above)
        for i, more in zip(unsure, above, strict=True):
            found[i] = self._widened(found[i], probes[i], top_k, more, candidates)
        return [one.hits() for one in found]

    def _floor(self, found: ScoredPersons, top_k: int, ratio: float) -> float:
        """What the best template of a person must reach who can be among the nearest."""
        if len(found.scores) < top_k:
            return -np.inf
        return self.score.least_best(float(found.scores[-1]), ratio) - SLACK

    def _widened(
        self, found: ScoredPersons, probe: Probe, top_k: int, above: PersonsAbove, known: Ids
    ) -> ScoredPersons:
        """With those of the persons above a floor who are among the nearest, beside the known."""
        persons, best = above.found
        new = ~np.isin(persons, known)
        persons, best = persons[new], best[new]
        held, length = self.lengths.lengths(persons)
        most = self.score.most(best.astype(np.float64), ratios_of(held, length)) + SLACK
        order = np.argsort(-most, kind="stable")
        for start in range(0, len(order), PERSONS_AT_ONCE):
            some = order[start : start + PERSONS_AT_ONCE]
            if len(found.scores) >= top_k:
                some = some[most[some] >= found.scores[-1]]
            if not len(some):
                break
            rows = PersonRows(self.parts, np.sort(persons[some]), self.lengths, self.score)
            found = found.and_more(rows.scored(probe, top_k), top_k)
        return found
