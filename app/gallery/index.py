"""The derived index: FAISS flat inner product, exact, over unit vectors."""

from collections import Counter

import faiss
import numpy as np

from app.gallery.locks import ReadWriteLock
from app.gallery.ports import GallerySize, Hit, Ids, Templates
from app.types import FloatArray

# Templates fetched for each person asked for in the first round; widened until persons suffice.
TEMPLATES_PER_PERSON = 4
MIN_FETCH = 32


class FlatIndex:
    """Every template in memory as float32; answers equal brute force."""

    def __init__(self, dimension: int) -> None:
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
        self._person_of: dict[int, int] = {}
        self._templates_of: Counter[int] = Counter()
        self._lock = ReadWriteLock()

    @property
    def size(self) -> int:
        """Templates held."""
        return len(self._person_of)

    @property
    def precision(self) -> str:
        """Of the similarities it answers."""
        return "float32"

    def extent(self, allowed_persons: set[int] | None = None) -> GallerySize:
        """How many people and templates a search looks at."""
        with self._lock.reading():
            if allowed_persons is None:
                return GallerySize(len(self._templates_of), len(self._person_of))
            held = [self._templates_of[p] for p in allowed_persons if p in self._templates_of]
            return GallerySize(len(held), sum(held))

    def add(self, templates: Templates) -> None:
        """Add templates; one already held is left as it is, so a replayed change does no harm."""
        with self._lock.writing():
            new = [i for i, key in enumerate(templates.keys.tolist()) if key not in self._person_of]
            if not new:
                return
            self._index.add_with_ids(
                np.ascontiguousarray(templates.vectors[new], dtype=np.float32), templates.keys[new]
            )
            self._person_of.update(
                zip(templates.keys[new].tolist(), templates.person_keys[new].tolist(), strict=True)
            )
            self._templates_of.update(templates.person_keys[new].tolist())

    def remove(self, keys: Ids) -> None:
        """Remove templates; keys not held are passed over."""
        with self._lock.writing():
            held = [key for key in keys.tolist() if key in self._person_of]
            for key in held:
                self._forget(self._person_of.pop(key))
            if held:
                self._index.remove_ids(faiss.IDSelectorBatch(np.array(held, dtype=np.int64)))

    def _forget(self, person: int) -> None:
        self._templates_of[person] -= 1
        if not self._templates_of[person]:
            del self._templates_of[person]

    def search_persons(
        self, probes: FloatArray, top_k: int, allowed_persons: set[int] | None = None
    ) -> list[list[Hit]]:
        """The `top_k` most similar persons for each of (n, d) probes, best first.

        A person counts once, with the best template. With `allowed_persons` only they are looked
        at, exactly.
        """
        with self._lock.reading():
            selector, reachable = self._selector(allowed_persons)
            if reachable == 0 or len(probes) == 0:
                return [[] for _ in probes]
            fetch = min(reachable, max(MIN_FETCH, TEMPLATES_PER_PERSON * top_k))
            while True:
                answers = self._search(probes, fetch, selector)
                short = any(len(hits) < top_k for hits in answers)
                if not short or fetch >= reachable:
                    return [hits[:top_k] for hits in answers]
                fetch = min(reachable, fetch * 4)

    def _selector(self, allowed: set[int] | None) -> tuple[faiss.IDSelector | None, int]:
        if allowed is None:
            return None, len(self._person_of)
        keys = [key for key, person in self._person_of.items() if person in allowed]
        return faiss.IDSelectorBatch(np.array(keys, dtype=np.int64)), len(keys)

    def _search(
        self, probes: FloatArray, fetch: int, selector: faiss.IDSelector | None
    ) -> list[list[Hit]]:
        parameters = faiss.SearchParameters()
        parameters.sel = selector
        similarities, keys = self._index.search(
            np.ascontiguousarray(probes, dtype=np.float32), fetch, params=parameters
        )
        return [
            self._best_by_person(row_keys, row)
            for row_keys, row in zip(keys.tolist(), similarities.tolist(), strict=True)
        ]

    def _best_by_person(self, keys: list[int], similarities: list[float]) -> list[Hit]:
        best: dict[int, Hit] = {}
        for key, similarity in zip(keys, similarities, strict=True):
            if key < 0:  # FAISS pads short answers
                continue
            person = self._person_of[key]
            if person not in best:
                best[person] = Hit(person, key, max(-1.0, min(1.0, similarity)))
        return list(best.values())
