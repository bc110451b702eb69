"""The search port's specification as code: every method in the simplest way, with NumPy.

It compares each probe with every template and saves everything in one file, so it is slow, but
correct by inspection. test_congruence.py requires the same answers of every engine. A new engine
can begin as a copy of this file.
"""

import io
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock

import numpy as np

from app.disk import Ownership, private_folder, write_whole
from app.index.comparator import COSINE, Comparator
from app.index.likeness import (
    FILTERED_CHOICE,
    FILTERED_PERSONS,
    PERSONS,
    digests_of,
    likeness_of,
)
from app.index.person_scores import SHORTEST, Floats, PersonScore, effective_templates
from app.index.port import (
    PRECISION,
    GallerySize,
    Hit,
    Ids,
    IndexedCollection,
    IndexUsage,
    NearestOthers,
    Position,
    SearchCounts,
    Templates,
)
from app.types import FloatArray

KnownPosition = Callable[[Position], bool]


class ReferenceContent:
    """`IndexContent`: templates by rising key."""

    def __init__(self, held: Templates, position: Position) -> None:
        self.position = position
        self.keys = held.keys
        self._held = held

    def templates(self, places: Ids) -> Templates:
        return Templates(
            self.keys[places], self._held.person_keys[places], self._held.vectors[places]
        )

    def extent(self) -> GallerySize:
        return extent_of(self._held)

    def unerased(self) -> int:
        return 0  # removed rows are not kept


def extent_of(held: Templates) -> GallerySize:
    effective = [
        effective_templates(held.vectors[held.person_keys == person])
        for person in np.unique(held.person_keys)
    ]
    spread = {n: effective.count(n) for n in sorted(effective)}
    return GallerySize(len(effective), len(held.keys), tuple(spread.items()))


class ReferenceIndex:
    """`SearchIndex` and `PersonSearch` over one array that is replaced with every change."""

    def __init__(self, catalog: "ReferenceCatalog", collection: IndexedCollection) -> None:
        self._costs = SearchCounts()
        self._dimension = collection.dimension
        self._reached: tuple[Templates, Position | None] = (self._nothing(), None)
        self.removals = 0
        self.saved_copy = ReferenceCopy(self, catalog, catalog.file(collection.key))

    def _nothing(self) -> Templates:
        no_keys: Ids = np.empty(0, np.int64)
        return Templates(no_keys, no_keys, np.empty((0, self._dimension), np.float32))

    @property
    def position(self) -> Position | None:
        return self._reached[1]

    @property
    def reached(self) -> tuple[Templates, Position]:
        """Both at once."""
        held, position = self._reached
        assert position is not None
        return held, position

    @property
    def searcher(self) -> "ReferenceIndex":
        return self

    @property
    def usage(self) -> IndexUsage:
        held, position = self._reached
        memory = 0 if position is None else held.vectors.nbytes + 16 * len(held.keys)
        return IndexUsage(memory, self._costs)

    # --- search ------------------------------------------------------------------------------

    def _searched(self, allowed: Ids | None) -> Templates:
        held = self._reached[0]
        return held if allowed is None else only(held, np.isin(held.person_keys, allowed))

    def search_persons(
        self,
        probes: FloatArray,
        top_k: int,
        allowed_persons: Ids | None = None,
        comparator: Comparator = COSINE,
        score: PersonScore = PersonScore.BEST,
    ) -> list[list[Hit]]:
        held = self._searched(allowed_persons)
        self._costs.searches += len(probes)
        persons, place, count = np.unique(held.person_keys, return_inverse=True, return_counts=True)
        sums = np.zeros((len(persons), self._dimension))
        np.add.at(sums, place, held.vectors)
        lengths = np.maximum(np.linalg.norm(sums, axis=1), SHORTEST)
        answers = []
        for scores in comparator.scores(probes, held.vectors):
            order = np.lexsort((held.keys, -scores))
            best_rows = order[np.unique(place[order], return_index=True)[1]]
            best = scores[best_rows].astype(np.float64)
            total = np.bincount(place, scores, minlength=len(persons))
            centroid = np.where(count > 1, total / lengths, best)
            combined = {
                PersonScore.BEST: best,
                PersonScore.CENTROID: centroid,
                PersonScore.FUSED: (best + centroid) / 2,
            }[score]
            nearest = np.lexsort((held.keys[best_rows], -combined))[:top_k]
            answers.append([
                Hit(int(persons[n]), int(held.keys[best_rows[n]]), float(combined[n].clip(-1, 1)))
                for n in nearest.tolist()
            ])  # fmt: skip
        return answers

    def nearest_others(
        self, probes: FloatArray, persons: Ids, floor: float, comparator: Comparator = COSINE
    ) -> NearestOthers:
        held = self._reached[0]
        self._costs.searches += len(probes)
        keys, best = np.full(len(probes), -1, np.int64), np.full(len(probes), -np.inf, np.float32)
        for number, scores in enumerate(comparator.scores(probes, held.vectors)):
            others = np.flatnonzero((held.person_keys != persons[number]) & (scores >= floor))
            if len(others):
                first = others[np.lexsort((held.keys[others], -scores[others]))[0]]
                keys[number], best[number] = held.keys[first], scores[first]
        return NearestOthers(keys, best)

    def extent(self, allowed_persons: Ids | None = None) -> GallerySize:
        return extent_of(self._searched(allowed_persons))

    def likeness(self, comparator: Comparator, allowed: Ids | None = None) -> float | None:
        if allowed is not None:
            allowed = allowed[np.argsort(digests_of(allowed))][:FILTERED_CHOICE]
        held = self._searched(allowed)
        persons, first = np.unique(held.person_keys, return_index=True)  # keys rise
        most = PERSONS if allowed is None else FILTERED_PERSONS
        chosen = first[np.lexsort((persons, digests_of(persons)))][:most]
        return likeness_of(held.vectors[chosen], comparator)

    def effective(self, persons: Ids) -> Floats:
        held = self._reached[0]
        return np.array(
            [effective_templates(held.vectors[held.person_keys == one]) for one in persons]
        )

    # --- follow the database -----------------------------------------------------------------

    def build(self, pages: Iterable[Templates], position: Position) -> None:
        held = self._nothing()
        for page in pages:
            held = joined(held, page)
        self.start(held, position)
        self.saved_copy.forget()

    def start(self, held: Templates, position: Position) -> None:
        self._reached = (held, position)

    def apply(self, added: Templates, removed: Ids, position: Position) -> None:
        held = self._reached[0]
        held = joined(held, only(added, ~np.isin(added.keys, held.keys)))
        if len(removed):
            self.removals += 1
            self.saved_copy.note_removal()
        self.start(only(held, ~np.isin(held.keys, removed)), position)

    def maintain(self) -> bool:
        return False

    def content(self) -> ReferenceContent:
        return ReferenceContent(*self.reached)

    def close(self) -> bool:
        return self.saved_copy.nothing_to_erase


class ReferenceCopy:
    """`SavedCopy`: one file, or none."""

    def __init__(
        self, index: ReferenceIndex, catalog: "ReferenceCatalog", file: Path | None
    ) -> None:
        self._index = index
        self._catalog = catalog
        self._file = file
        self._saved: Position | None = None
        self._clean = False  # the owner read or wrote the file, and nothing was removed since
        self._saving = Lock()
        self._discarded = False

    def load(self, is_known: KnownPosition) -> bool:
        saved = self._read(is_known)
        if saved is None:
            return False
        self._index.start(*saved)
        self._saved, self._clean = saved[1], self._catalog.own()
        return True

    def forget(self) -> None:
        self._saved, self._clean = None, False

    def note_removal(self) -> None:
        self._clean = False

    @property
    def nothing_to_erase(self) -> bool:
        return self._clean or not self.may_save()

    def may_save(self) -> bool:
        return self._file is not None and not self._discarded and self._catalog.own()

    @property
    def unsaved(self) -> bool:
        position = self._index.position
        return self.may_save() and position is not None and position != self._saved

    def save(self) -> None:
        if self._file is None or self._index.position is None or not self.may_save():
            return
        with self._saving:  # `erase` waits for it
            held, position = self._index.reached
            removals = self._index.removals
            content = io.BytesIO()
            np.savez(
                content, keys=held.keys, persons=held.person_keys, vectors=held.vectors,
                revision=position.revision, stamp=position.stamp,
            )  # fmt: skip
            private_folder(self._file.parent)
            write_whole(self._file, [content.getvalue()])
            self._saved, self._clean = position, removals == self._index.removals

    def erase(self) -> None:
        """All is in one file, so it goes as a whole; the next `save` writes it again."""
        with self._saving:
            if self._file is not None and not self._clean and self.may_save():
                self._file.unlink(missing_ok=True)
                self._saved, self._clean = None, True

    @property
    def erased(self) -> bool:
        """Another process may be writing a copy, or own one."""
        return self._file is None or (self._catalog.own() and self._clean)

    @property
    def left_to_erase(self) -> bool:
        return not self.nothing_to_erase

    @property
    def settled(self) -> bool:
        return not self.unsaved

    def content(self, is_known: KnownPosition) -> ReferenceContent | None:
        saved = self._read(is_known)
        return None if saved is None else ReferenceContent(*saved)

    def _read(self, is_known: KnownPosition) -> tuple[Templates, Position] | None:
        if self._file is None or not self._file.exists():
            return None
        with np.load(self._file) as file:
            position = Position(int(file["revision"]), str(file["stamp"]))
            held = Templates(file["keys"], file["persons"], file["vectors"])
        return (held, position) if is_known(position) else None

    def discard(self) -> None:
        with self._saving:
            self._discarded = True
            if self._file is not None and self._catalog.own():
                shutil.rmtree(self._file.parent, ignore_errors=True)


class ReferenceCatalog:
    """`IndexCatalog` in a folder with one file for each collection, or without saved copies."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._owner = None if folder is None else Ownership(folder)

    def file(self, key: int) -> Path | None:
        return None if self._folder is None else self._folder / str(key) / "rows.npz"

    def open(self, collection: IndexedCollection) -> ReferenceIndex:
        return ReferenceIndex(self, collection)

    def own(self) -> bool:
        return self._owner is None or self._owner.own()

    def release(self) -> None:
        if self._owner is not None:
            self._owner.release()

    def saved(self) -> set[int]:
        if self._folder is None or not self._folder.exists():
            return set()
        return {int(one.name) for one in self._folder.iterdir() if one.name.isdecimal()}

    def may_be_saved(self, key: int) -> bool:
        file = self.file(key)
        return file is not None and file.exists()

    def saved_position(self, key: int) -> Position | None:
        file = self.file(key)
        if file is None or not file.exists():
            return None
        with np.load(file) as content:
            return Position(int(content["revision"]), str(content["stamp"]))

    def remove(self, key: int) -> None:
        file = self.file(key)
        if file is not None and self.own():
            shutil.rmtree(file.parent, ignore_errors=True)


class ReferenceEngine:
    """`SearchEngine`."""

    precision = PRECISION
    max_bytes = sys.maxsize
    least_saved = 1

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def expected_memory(self, templates: int, dimension: int) -> int:
        return templates * 4 * dimension

    def catalog(self, database: str) -> ReferenceCatalog:
        return ReferenceCatalog(None if self._folder is None else self._folder / database)

    def close(self) -> None:
        """There are no threads."""


def only(held: Templates, mask: np.ndarray) -> Templates:
    return Templates(held.keys[mask], held.person_keys[mask], held.vectors[mask])


def joined(held: Templates, more: Templates) -> Templates:
    """Both, by rising key."""
    keys = np.concatenate([held.keys, more.keys])
    order = np.argsort(keys, kind="stable")
    persons = np.concatenate([held.person_keys, more.person_keys])
    vectors = np.concatenate([held.vectors, more.vectors]).astype(np.float32)
    return Templates(keys[order], persons[order], vectors[order])
