"""The certified index: exact answers in about the time of a compressed scan."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np

from app.index.certified.codes import Quantiser, bound_of
from app.index.certified.combined import CombinedSearch
from app.index.certified.counts import PersonCounts
from app.index.certified.likeness import SampleCache, likeness_among, sample_of
from app.index.certified.persons import BestPersons, Collector, PersonSet
from app.index.certified.rows import (
    FIRST_CAPACITY,
    Flags,
    IndexShape,
    Rows,
    WriteBuffer,
    living,
)
from app.index.certified.search import OtherPersonSearch, ProbeSearch, ShardScanner, ThreadScanner
from app.index.certified.shards import SearchState, Shard
from app.index.comparator import COSINE, Comparator, Probe
from app.index.person_scores import Floats, PersonScore
from app.index.port import GallerySize, Hit, Ids, NearestOthers, SearchCounts, Templates
from app.locks import new_lock
from app.types import FloatArray

PROBES_A_SCAN = 64  # where many are looked for at once
OBJECTS_BYTES = 8 * 1024  # of Python objects, whatever it holds


class CertifiedIndex:
    """Every template, searchable by comparison score; answers equal those of brute force.

    Searches take no lock and run while rows are added and removed. `add` and `remove` are in force
    when they return. `maintain` does the slow work and may run in a thread of its own.
    """

    def __init__(
        self,
        dimension: int,
        threads: Executor,
        shape: IndexShape | None = None,
        scanner: ShardScanner | None = None,
    ) -> None:
        """`scanner` searches the shards: by default the threads do."""
        self._dimension = dimension
        self._threads = threads
        self._scanner = scanner or ThreadScanner(threads)
        self.shape = shape or IndexShape()
        self._bound = bound_of(dimension) if Quantiser.fits(dimension) else None
        self.quantiser: Quantiser | None = None  # drawn for the first shard: it takes d² numbers
        self._state = SearchState((), WriteBuffer(dimension))
        self._counts = PersonCounts()
        self._sample = SampleCache()
        self._removed: list[Ids] | None = None  # while rows are rewritten: what went since
        self._writing = new_lock("index.writing")
        self._maintaining = new_lock("index.maintaining")
        self.costs = SearchCounts()

    @property
    def state(self) -> SearchState:
        """Shards and write buffer as they are now."""
        return self._state

    @property
    def size(self) -> int:
        """Templates held."""
        return self._counts.size.templates

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes, about, without what is mapped from files."""
        state = self._state
        rotation = 0 if self.quantiser is None else self.quantiser.rotation.nbytes
        shards = sum(shard.memory for shard in state.shards)
        others = self._counts.memory + self._sample.memory
        return OBJECTS_BYTES + rotation + shards + state.write_buffer.memory + others

    def extent(self, allowed_persons: Ids | None = None) -> GallerySize:
        """How many people and templates a search looks at."""
        with self._writing:
            if allowed_persons is None:
                return self._counts.size
            return self._counts.among(allowed_persons)

    def likeness(self, comparator: Comparator, allowed: Ids | None = None) -> float | None:
        """How similar the people are, or some of them, in ascending order of their keys; None for
        too few people. The number for all is kept until a change may alter it."""
        if allowed is not None:
            return likeness_among(self.parts(), allowed, comparator)
        with self._writing:
            if (sample := self._sample.of(comparator)) is not None:
                return sample.likeness
            parts, changes = self._state.parts, self._sample.changes
        sample = sample_of(parts, comparator)
        with self._writing:
            self._sample.keep(sample, comparator, changes)
        return sample.likeness

    def effective(self, persons: Ids) -> Floats:
        """The effective numbers of the templates of persons, in ascending order of their keys; 0
        without any."""
        with self._writing:
            return self._counts.effective(persons)

    def lengths(self, persons: Ids) -> tuple[Ids, FloatArray]:
        """How many templates persons have, in ascending order of their keys, and the lengths of
        their sums."""
        with self._writing:
            return self._counts.lengths(persons)

    def widest(self) -> tuple[Ids, float]:
        """The persons with the most diverse templates, and the largest ratio of any other
        person."""
        with self._writing:
            return self._counts.widest()

    def parts(self) -> list[Rows]:
        """All rows as they are now, removed ones too: those of every shard, and the write
        buffer's."""
        return self._state.parts

    # --- change ------------------------------------------------------------------------------

    def restore(
        self, quantiser: Quantiser | None, shards: Iterable[Shard], write_buffer: Rows
    ) -> None:
        """Start from rows that a snapshot kept."""
        with self._writing:
            self.quantiser = quantiser or self.quantiser
            fresh = WriteBuffer(self._dimension, max(len(write_buffer), FIRST_CAPACITY))
            fresh.append(write_buffer.templates(write_buffer.alive))
            self._state = SearchState(tuple(shards), fresh)
            self._sample.clear()
            self._counts = PersonCounts.of(self._state.parts)

    def add(self, templates: Templates) -> None:
        """Add templates; one already held is left as it is, so a replayed change does no harm."""
        with self._writing:
            new = ~self._has(templates.keys)
            if new.any():
                self._state.write_buffer.append(
                    Templates(
                        templates.keys[new], templates.person_keys[new], templates.vectors[new]
                    )
                )
                self._counts.change(self._state.parts, templates.person_keys[new], 1)
                self._sample.note_change(templates.person_keys[new], np.empty(0, np.int64))

    def _has(self, keys: Ids) -> Flags:
        write_buffer = self._state.write_buffer
        held = np.array([key in write_buffer for key in keys.tolist()], np.bool_)
        for shard in self._state.shards:
            if len(keys) and len(shard.rows) and keys.min() > shard.rows.keys[-1]:
                continue  # new templates have higher keys than all others
            held |= np.isin(keys, shard.rows.keys[shard.rows.find(keys)])
        return held

    def remove(self, keys: Ids) -> None:
        """Remove templates; keys that are not held are ignored."""
        if not len(keys):
            return
        with self._writing:
            if self._removed is not None:
                self._removed.append(keys)
            persons = [self._state.write_buffer.remove(keys)]
            for shard in self._state.shards:
                numbers = shard.remove(keys)
                self._scanner.remove(shard, numbers)
                persons.append(shard.rows.persons[numbers])
            self._counts.change(self._state.parts, np.concatenate(persons), -1)
            self._sample.note_change(np.empty(0, np.int64), keys)

    # --- search ------------------------------------------------------------------------------

    def search_persons(
        self,
        probes: FloatArray,
        top_k: int,
        allowed_persons: Ids | None = None,
        comparator: Comparator = COSINE,
        score: PersonScore = PersonScore.BEST,
    ) -> list[list[Hit]]:
        """As `PersonSearch` has it. Of `allowed_persons` all templates are scored exactly."""
        probes = np.ascontiguousarray(probes, np.float32)
        if not len(probes):
            return []
        shards, parts = (state := self._state).shards, state.parts
        wanted = [comparator.probe(vector) for vector in probes]
        self.costs.searches += len(probes)

        def cover(some: Sequence[Probe], found: Sequence[Collector]) -> None:
            self._score_buffer(parts[-1], some, found, comparator)
            self._search_shards(shards, some, found)

        if score is not PersonScore.BEST and self._several():
            search = CombinedSearch(score, parts, self, cover)
            return search.hits(wanted, top_k, allowed_persons)
        best = [BestPersons(top_k) for _ in probes]
        if allowed_persons is not None:
            self._search_among(parts, wanted, allowed_persons, best)
        else:
            cover(wanted, best)
        return [one.hits() for one in best]

    def _several(self) -> bool:
        """Whether anybody has several templates that differ: else all scores are the same."""
        wide, ratio = self.widest()
        return len(wide) > 0 or ratio > 1.0

    def nearest_others(
        self,
        probes: FloatArray,
        persons: Ids,
        floor: float,
        comparator: Comparator = COSINE,
    ) -> NearestOthers:
        """Of each of (n, d) unit vectors, which are of the persons (n,), the most similar template
        of any other person that reaches `floor`."""
        state = self._state
        probes = np.ascontiguousarray(probes, np.float32)

        def search(start: int) -> NearestOthers:
            some = slice(start, start + PROBES_A_SCAN)
            one = OtherPersonSearch(probes[some], persons[some], floor, comparator)
            one.score_all(state.write_buffer.rows)
            if self.quantiser is not None and self._bound is not None:
                one.cover(state.shards, self.quantiser, self._bound)
            return one.found

        self.costs.searches += len(probes)
        return NearestOthers.joined(
            list(self._threads.map(search, range(0, len(probes), PROBES_A_SCAN)))
        )

    def _score_buffer(
        self,
        rows: Rows,
        probes: Sequence[Probe],
        best: Sequence[Collector],
        comparator: Comparator,
    ) -> None:
        if not probes or not len(rows):
            return
        if len(probes) == 1:
            rows.score_all(probes[0], best[0])
            return
        # Many probes at once are one matrix product, which reads the rows once for all of them.
        vectors = np.array([probe.vector for probe in probes], np.float32)
        for scores, one in zip(comparator.scores(vectors, rows.vectors), best, strict=True):
            rows.offer(scores, one)

    def _search_shards(
        self, shards: Sequence[Shard], probes: Sequence[Probe], best: Sequence[Collector]
    ) -> None:
        if not shards or not probes or self.quantiser is None or self._bound is None:
            return
        searches = [
            ProbeSearch(probe, one, self.quantiser, self._bound, self.costs)
            for probe, one in zip(probes, best, strict=True)
        ]
        self._scanner.cover(shards, searches)

    def _search_among(
        self,
        parts: Sequence[Rows],
        probes: Sequence[Probe],
        allowed: Ids,
        best: Sequence[Collector],
    ) -> None:
        wanted = PersonSet(allowed)

        def search(rows: Rows) -> None:
            numbers = wanted.rows_of(rows.persons)
            for probe, one in zip(probes, best, strict=True):
                rows.score(probe, numbers, one)

        list(self._threads.map(search, parts))

    # --- maintenance ---------------------------------------------------------------------------

    def maintain(self) -> bool:
        """Do one piece of maintenance, if any is due; searches and changes may run meanwhile."""
        with self._maintaining:
            state, shape = self._state, self.shape
            small = [s for s in state.shards if len(s.rows) < shape.large // 2]
            worn = [s for s in state.shards if (~s.rows.alive).mean() > shape.dead_share]
            if self._bound is not None and len(state.write_buffer.rows) >= shape.encode_at:
                self._rewrite((), min(len(state.write_buffer.rows), shape.large))
            elif len(small) >= shape.merge_at:
                self._rewrite(small[: shape.merge_at])
            elif worn:
                self._rewrite(worn[:1])
            elif state.write_buffer.dead > max(64, shape.dead_share * len(state.write_buffer.rows)):
                self._refresh_buffer()
            else:
                return False
            return True

    def _rewrite(self, shards: Sequence[Shard], buffered: int = 0) -> None:
        """Put one new shard in the place of some, or of the write buffer's first rows.

        What is removed meanwhile is removed from the new shard before anybody sees it, by key: the
        arrays that it was made from may be in use no more by then.
        """
        if self.quantiser is None:
            self.quantiser = Quantiser.random(self._dimension, np.random.default_rng())
        with self._writing:
            parts = [shard.rows for shard in shards] + [
                self._state.write_buffer.rows.first(buffered)
            ]
            masks = [part.alive.copy() for part in parts]
            removed: list[Ids] = []
            self._removed = removed
        try:
            rows = living(parts, masks)
            fresh = [Shard.of(rows, self.quantiser)] if len(rows) else []
            with self._writing:
                for shard in fresh:
                    for keys in removed:
                        shard.remove(keys)
                kept = [shard for shard in self._state.shards if shard not in shards]
                rest = self._state.write_buffer
                self._state = SearchState(
                    (*kept, *fresh), rest.after(buffered) if buffered else rest
                )
        finally:
            self._removed = None
        self._scanner.forget(shards)

    def close(self) -> None:
        """Free what is on a device."""
        self._scanner.forget(self._state.shards)

    def _refresh_buffer(self) -> None:
        with self._writing:
            self._state = replace(self._state, write_buffer=self._state.write_buffer.after(0))
