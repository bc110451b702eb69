"""Of each template of a collection the nearest one of another person, and of its own person.

Vectors are read from the database some at a time: besides the index, memory holds a few thousand of
them, and about 50 bytes per template, however large the collection or one of its persons is.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.gallery.gallery import Gallery
from app.index.port import Ids, Templates
from app.types import FloatArray

PROBES_AT_ONCE = 1024
# Templates whose vectors, and whose similarities with as many others, are in memory at a time.
OWN_AT_ONCE = 2048

Progress = Callable[[int, int], None]
RowIndices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Of each template (n,), in ascending order of keys: its key and its person's, the nearest
    template of another person that reaches the threshold (a row, -1 for none), its similarity
    (-inf for none), that of the nearest other one of its own person (-inf for none), and how
    degraded and how covered it looks (NaN where the comparator does not know)."""

    keys: Ids
    person_keys: Ids
    other: RowIndices
    similarity: FloatArray
    own: FloatArray
    degradation: FloatArray
    covering: FloatArray


def find_neighbours(
    gallery: Gallery,
    name: str,
    threshold: float,
    enough: float,
    progress: Progress,
    *,
    own_at_once: int = OWN_AT_ONCE,
    declared: Mapping[int, Collection[int]] | None = None,
) -> Neighbours:
    """Look at every template of a collection. Nothing below `threshold` is looked for among other
    people; an own similarity of at least `enough` may be less than the highest. Of one person's
    templates `own_at_once` are compared at a time. Persons who are `declared` to be different, by
    keys, are no neighbours of each other.

    `progress` is called with templates done and all, and may raise to end it. Time grows with the
    templates times those they are compared with: the whole collection, and all of their person.
    Raises CollectionNotFound or EmbeddingSpaceMismatch.
    """
    keys, persons, others, similarity, *looks = _search(gallery, name, threshold, progress)
    places = np.minimum(np.searchsorted(keys, others), max(len(keys) - 1, 0))
    # What was enrolled meanwhile is not examined.
    known = keys[places] == others
    go_on = lambda: progress(len(keys), len(keys))  # noqa: E731
    own = _Own(gallery, name, keys, persons, at_once=own_at_once, go_on=go_on)
    near = Neighbours(
        keys,
        persons,
        np.where(known, places, -1),
        np.where(known, similarity, np.float32(-np.inf)),
        own.similarities(enough),
        *looks,
    )
    if declared:
        _Beyond(gallery, name, threshold, declared).replace_in(near, go_on)
    return near


@dataclass(frozen=True, slots=True)
class _Beyond:
    """Looks beyond neighbours who are declared to be different."""

    gallery: Gallery
    name: str
    threshold: float
    declared: Mapping[int, Collection[int]]

    def replace_in(self, near: Neighbours, go_on: Callable[[], None]) -> None:
        """Replace them by the nearest who are not, if these reach the threshold."""
        persons, declared = near.person_keys, self.declared
        likely = (near.other >= 0) & np.isin(persons, list(declared))
        rows = np.array(
            [
                row
                for row in np.flatnonzero(likely).tolist()
                if persons[near.other[row]] in declared[persons[row]]
            ],
            np.int64,
        )
        for start in range(0, len(rows), PROBES_AT_ONCE):
            go_on()
            self._replace(near, rows[start : start + PROBES_AT_ONCE])

    def _replace(self, near: Neighbours, rows: RowIndices) -> None:
        near.other[rows], near.similarity[rows] = -1, -np.inf
        # A person, those declared to be different, and one more.
        wanted = 2 + max(len(self.declared[person]) for person in near.person_keys[rows].tolist())
        probes = self.gallery.templates_by_key(self.name, near.keys[rows])
        found = self.gallery.identify(self.name, probes.vectors, wanted).rows
        for row, candidates in zip(np.searchsorted(near.keys, probes.keys), found, strict=True):
            mine = int(near.person_keys[row])
            for one in candidates:
                other = int(np.searchsorted(near.keys, one.face.template_key))
                if other == len(near.keys) or near.keys[other] != one.face.template_key:
                    continue  # enrolled meanwhile
                person = int(near.person_keys[other])
                if person == mine or person in self.declared[mine]:
                    continue
                if one.similarity >= self.threshold:
                    near.other[row], near.similarity[row] = other, one.similarity
                break


def _search(
    gallery: Gallery, name: str, threshold: float, progress: Progress
) -> tuple[Ids, Ids, Ids, FloatArray, FloatArray, FloatArray]:
    """Keys, persons' keys, key (-1 for none) and similarity of the nearest of other people, how
    degraded and how covered each template looks."""
    # By rising key those enrolled meanwhile come last: an import beside this does not prolong it.
    total, done = gallery.size(name).templates, 0
    keys, persons, others = ([np.empty(0, np.int64)] for _ in range(3))
    similarity, degradations, coverings = ([np.empty(0, np.float32)] for _ in range(3))
    for page in gallery.templates(name):
        for start in range(0, len(page.keys), PROBES_AT_ONCE):
            some = slice(start, start + PROBES_AT_ONCE)
            found = gallery.nearest_others(
                name, page.vectors[some], page.person_keys[some], threshold
            )
            others.append(found.keys)
            similarity.append(found.similarities)
            done += len(found.keys)
            progress(done, max(done, total))
        degradations.append(_known(gallery.comparator.degradation(page.vectors), page))
        coverings.append(_known(gallery.comparator.coverings(page.vectors), page))
        keys.append(page.keys)
        persons.append(page.person_keys)
        if done >= total:
            break
    return (
        np.concatenate(keys),
        np.concatenate(persons),
        np.concatenate(others),
        np.concatenate(similarity),
        np.concatenate(degradations),
        np.concatenate(coverings),
    )


def _known(found: FloatArray | None, page: Templates) -> FloatArray:
    """NaN where nothing is known."""
    return np.full(len(page.keys), np.nan, np.float32) if found is None else found


class _Own:
    """Compares the templates of each person with one another."""

    def __init__(
        self,
        gallery: Gallery,
        name: str,
        keys: Ids,
        persons: Ids,
        *,
        at_once: int,
        go_on: Callable[[], None],
    ) -> None:
        self._gallery = gallery
        self._name = name
        self._keys = keys
        self._persons = persons
        self._at_once = at_once
        self._go_on = go_on
        self._own = np.full(len(keys), -np.inf, np.float32)

    def similarities(self, enough: float) -> FloatArray:
        """Of each template: that of its person's nearest other one, or of one that is `enough`."""
        for rows in _batches(self._persons, self._at_once):
            self._go_on()
            if len(rows) <= self._at_once:
                self._compare_persons(rows)
            else:
                self._compare_blocks(np.array_split(rows, -(-len(rows) // self._at_once)), enough)
        return self._own

    def _load(self, rows: RowIndices) -> tuple[RowIndices, FloatArray]:
        """The vectors of rows, without those deleted meanwhile; by rising row."""
        found = self._gallery.templates_by_key(self._name, self._keys[rows])
        return np.searchsorted(self._keys, found.keys), found.vectors

    def _compare_persons(self, rows: RowIndices) -> None:
        rows, vectors = self._load(rows)
        compare = self._gallery.comparator.scores
        order = np.argsort(self._persons[rows], kind="stable")
        edges = np.flatnonzero(np.diff(self._persons[rows[order]])) + 1
        for mine in np.split(order, edges):
            if len(mine) > 1:
                among = compare(vectors[mine], vectors[mine])
                np.fill_diagonal(among, -np.inf)
                self._own[rows[mine]] = among.max(axis=1)

    def _compare_blocks(self, blocks: list[RowIndices], enough: float) -> None:
        """One person's templates, block by block; those that have found enough are left out."""
        compare = self._gallery.comparator.scores
        for block in blocks:
            rows, vectors = self._load(block)
            pending = np.arange(len(rows))
            for other in [block, *(one for one in blocks if one is not block)]:
                self._go_on()
                their_rows, theirs = (rows, vectors) if other is block else self._load(other)
                if not len(their_rows):
                    continue
                among = compare(vectors[pending], theirs)
                among[rows[pending, np.newaxis] == their_rows] = -np.inf
                best = np.maximum(self._own[rows[pending]], among.max(axis=1))
                self._own[rows[pending]] = best
                pending = pending[best < enough]
                if not len(pending):
                    break


def _batches(persons: Ids, at_once: int) -> Iterator[RowIndices]:
    """The rows of people with several templates: of whole people, `at_once` at most together, or
    of one who has more."""
    order = np.argsort(persons, kind="stable")
    _, starts, sizes = np.unique(persons[order], return_index=True, return_counts=True)
    batch: list[RowIndices] = []
    held = 0
    for one in np.flatnonzero(sizes > 1):
        rows = order[starts[one] : starts[one] + sizes[one]]
        if held and held + len(rows) > at_once:
            yield np.concatenate(batch)
            batch, held = [], 0
        batch.append(rows)
        held += len(rows)
    if batch:
        yield np.concatenate(batch)
