"""The search port: what the gallery requires of a search engine, and the values that pass through.

A search engine is a `SearchEngine` (engine.py), which opens the `SearchIndex` of each collection.
The database is authoritative and an index is derived from it, so an engine may lose everything that
it holds; it may not lose exactness. tests/index/reference.py is the specification as code, and
tests/index/test_congruence.py compares every engine with it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.index.comparator import COSINE, Comparator
from app.index.person_scores import Floats, PersonScore
from app.types import FloatArray

Ids = NDArray[np.int64]
PRECISION = "float32"  # of the similarities that are answered


@dataclass(frozen=True, slots=True)
class GallerySize:
    """How much there is: people, and templates over all of them.

    `spread`: effective numbers of templates (`app.index.person_scores`), and how many people have
    each; where it is empty, everybody has an equal share of the templates, all different.
    `score`: what the templates of a person make together; it says how much each of them adds.
    """

    persons: int
    templates: int
    spread: tuple[tuple[float, int], ...] = ()
    score: PersonScore = PersonScore.BEST

    @classmethod
    def of_person(
        cls, templates: int, effective: float, score: PersonScore = PersonScore.BEST
    ) -> "GallerySize":
        """One person with these templates."""
        return cls(1, templates, ((effective, 1),), score)

    def scored_by(self, score: PersonScore) -> "GallerySize":
        """The same gallery with another score of its persons."""
        return replace(self, score=score)

    @property
    def effective(self) -> tuple[tuple[float, int], ...]:
        """`spread`, even if it is not given."""
        if self.spread or not self.persons:
            return self.spread
        return ((max(self.templates, self.persons) / self.persons, self.persons),)

    def one_more(self, *, person: bool) -> "GallerySize":
        """With one more template, of another `person` or of one who is there. It counts as much as
        a person's only template: it can hardly add more."""
        spread = dict(self.effective)
        spread[1.0] = spread.get(1.0, 0) + 1
        return replace(
            self,
            persons=self.persons + person,
            templates=self.templates + 1,
            spread=tuple(spread.items()),
        )


@dataclass(frozen=True, slots=True)
class Templates:
    """Templates as parallel arrays: their keys (n,), their persons' keys (n,), vectors (n, d)."""

    keys: Ids
    person_keys: Ids
    vectors: FloatArray


@dataclass(frozen=True, slots=True)
class Hit:
    """The best template of one person for one probe; `similarity` is the person's score."""

    person_key: int
    template_key: int
    similarity: float


@dataclass(frozen=True, slots=True)
class NearestOthers:
    """Of each probe (n,): the key of the most similar template of another person, -1 where none
    reaches the floor, and its score, -inf there."""

    keys: Ids
    similarities: FloatArray

    @classmethod
    def joined(cls, parts: "Sequence[NearestOthers]") -> "NearestOthers":
        """One after the other."""
        return cls(
            np.concatenate([part.keys for part in parts]),
            np.concatenate([part.similarities for part in parts]),
        )


@dataclass(slots=True)
class SearchCounts:
    """What searches cost: scans of a shard, rows scored exactly after one, scans that had to be
    widened, shards that were read in full, and searches that a device had to leave to the CPU. An
    engine without shards counts searches only."""

    searches: int = 0
    scans: int = 0
    scored: int = 0
    widened: int = 0
    exhaustive: int = 0
    fallbacks: int = 0

    def __add__(self, other: "SearchCounts") -> "SearchCounts":
        return SearchCounts(
            self.searches + other.searches, self.scans + other.scans,
            self.scored + other.scored, self.widened + other.widened,
            self.exhaustive + other.exhaustive, self.fallbacks + other.fallbacks,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A revision of a collection, with the stamp that distinguishes it from the same revision of
    a database that was set back."""

    revision: int
    stamp: str


class IndexedCollection(Protocol):
    """The properties of a collection that its index needs."""

    @property
    def key(self) -> int: ...
    @property
    def embedding_space(self) -> str: ...
    @property
    def dimension(self) -> int: ...


class IndexContent(Protocol):
    """All templates of an index or of its saved copy, at a position, for the check of an index."""

    @property
    def position(self) -> Position: ...

    @property
    def keys(self) -> Ids:
        """The templates' keys, in ascending order. A template that is held twice is there twice."""
        ...

    def templates(self, places: Ids) -> Templates:
        """The templates at these indices of `keys`."""
        ...

    def extent(self) -> GallerySize:
        """How many people and templates there are, counted template by template."""
        ...

    def unerased(self) -> int:
        """The number of removed templates whose vector is still there."""
        ...


class PersonSearch(Protocol):
    """The questions that an index answers, as a comparison with every template would. Any number
    of threads may ask while templates are added and removed."""

    def search_persons(
        self,
        probes: FloatArray,
        top_k: int,
        allowed_persons: Ids | None = None,
        comparator: Comparator = COSINE,
        score: PersonScore = PersonScore.BEST,
    ) -> list[list[Hit]]:
        """The `top_k` most similar persons for each of (n, d) unit vectors, best first.

        A person counts once, with the best template and the `score` of all templates; equal scores
        are in the order of the templates' keys. With `allowed_persons`, keys in ascending order,
        only these are searched.
        """
        ...

    def nearest_others(
        self, probes: FloatArray, persons: Ids, floor: float, comparator: Comparator = COSINE
    ) -> NearestOthers:
        """Of each of (n, d) unit vectors, which are of the persons (n,), the most similar template
        of any other person that reaches `floor`."""
        ...

    def extent(self, allowed_persons: Ids | None = None) -> GallerySize:
        """How many people and templates a search looks at."""
        ...

    def likeness(self, comparator: Comparator, allowed: Ids | None = None) -> float | None:
        """How similar the people are, or some of them, in ascending order of their keys
        (`app.index.likeness`); None for too few people."""
        ...

    def effective(self, persons: Ids) -> Floats:
        """The effective numbers (n,) of the templates of persons, in ascending order of their keys
        (`app.index.person_scores`); 0 of those who have none."""
        ...


@dataclass(frozen=True, slots=True)
class IndexUsage:
    """`memory`: bytes that an index takes, about, without what is mapped from files. `costs`: what
    its searches cost so far."""

    memory: int
    costs: SearchCounts


class SavedCopy(Protocol):
    """The copy of an index on disk, from which a process starts instead of reading the database.

    One thread at a time calls `save`. An engine without copies has one that is always erased and
    never loaded.
    """

    def load(self, is_known: Callable[[Position], bool]) -> bool:
        """Start the index from the copy, if there is one and the database still knows its
        position. Returns whether that succeeded."""
        ...

    def may_save(self) -> bool:
        """Whether this process may change the copy. Tries to get the right."""
        ...

    @property
    def unsaved(self) -> bool:
        """Whether `save` would keep something new, and this process may."""
        ...

    def save(self) -> None:
        """Save a copy of the index's position or a later one, or none of few templates, in place of
        the last. The caller has updated the index to the database: what another process deleted
        may not be saved again. Raises OSError; then the last copy stays."""
        ...

    def erase(self) -> None:
        """Remove what was removed from the index from the copy too; where that fails, `erased`
        says so and maintenance tries again."""
        ...

    @property
    def erased(self) -> bool:
        """Whether the copy, by whatever process it was written, holds nothing that was removed
        from the index."""
        ...

    @property
    def left_to_erase(self) -> bool:
        """Whether `erase` has something to do, or has failed, in a copy that this process may
        change."""
        ...

    @property
    def settled(self) -> bool:
        """Whether `erase`, `save` and the index's `maintain` have nothing to do before the next
        change."""
        ...

    def content(self, is_known: Callable[[Position], bool]) -> IndexContent | None:
        """What `load` would start from; None where it would not."""
        ...

    def discard(self) -> None:
        """The collection is deleted: remove the copy and never save again."""
        ...


class SearchIndex(Protocol):
    """All templates of one collection at one revision.

    One thread at a time calls `build`, `apply` or the copy's `load`, whose effect is complete when
    they return; one thread at a time calls `maintain` or the copy's `save`. All of it may happen
    while others search.
    """

    @property
    def position(self) -> Position | None:
        """How far the index has come; None before it was first loaded or built."""
        ...

    @property
    def searcher(self) -> PersonSearch:
        """Answers for this position or a later one, for as long as the index is not closed."""
        ...

    @property
    def saved_copy(self) -> SavedCopy:
        """The copy on disk."""
        ...

    @property
    def usage(self) -> IndexUsage:
        """The memory it takes, and what its searches cost."""
        ...

    def build(self, pages: Iterable[Templates], position: Position) -> None:
        """Start from all templates, which take the place of what is held once all are read."""
        ...

    def apply(self, added: Templates, removed: Ids, position: Position) -> None:
        """Add and remove templates, and move to a later position.

        A template that is held already is left as it is, and a key that is not held is ignored, so
        that a change may be applied twice. Vectors that were removed are overwritten in memory
        when this returns.
        """
        ...

    def maintain(self) -> bool:
        """Do one piece of maintenance; returns whether there was one to do."""
        ...

    def content(self) -> IndexContent:
        """What the index holds, for its check."""
        ...

    def close(self) -> bool:
        """Free memory and devices, unless something is still to be erased: returns whether it
        was closed."""
        ...
