"""The gallery: the one object that keeps the database and its derived indexes in step."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from app.errors import CollectionNotFound, EmbeddingSpaceMismatch, LikenessError, PersonNotFound
from app.gallery.candidates import MAX_REPEATS, Comparison, SearchQuery, SearchResult, overtaken
from app.gallery.index_check import IndexCheck, check_index
from app.gallery.indexes import Indexes
from app.gallery.replicas import OpenIndexes
from app.index.comparator import COSINE, Comparator, unit_embedding
from app.index.engine import SearchEngine
from app.index.person_scores import Floats, PersonScore, effective_templates
from app.index.port import GallerySize, Ids, NearestOthers, PersonSearch, SearchCounts, Templates
from app.store.records import (
    CollectionRecord,
    DeletionCounts,
    Erasure,
    FaceRecord,
    PersonEnrollment,
    PersonRecord,
    PersonTemplate,
    StoredTemplate,
)
from app.store.store import Store, create_default_collection
from app.telemetry.logs import log
from app.types import FloatArray, JsonObject

T = TypeVar("T")
TEMPLATES_AT_ONCE = 8_192
FACES_AT_ONCE = 500


class Gallery:
    """Enrolls, searches and deletes. Thread-safe; several processes may share one database.

    Every answer is as new as the database: the index catches up to the collection's revision
    before it is searched. A write is answered as stored, even if the index cannot be updated then.
    """

    def __init__(
        self,
        store: Store,
        engine: SearchEngine,
        embedding_space: str,
        dimension: int,
        comparator: Comparator = COSINE,
        *,
        packs: Mapping[str, str] | None = None,
    ) -> None:
        """Open the gallery and the default collection. `comparator` gives the similarities that it
        answers; `packs` are names of model packs by embedding space, for errors."""
        self.store = store
        self.comparator = comparator
        self.precision = engine.precision  # of the similarities that it answers
        self._engine = engine
        self._embedding_space = embedding_space
        self._dimension = dimension
        self._packs = packs
        self._indexes = Indexes(store, engine, embedding_space)
        self._replicas = self._indexes.replicas
        create_default_collection(store, embedding_space, dimension)

    def create_collection(
        self, name: str, metadata: JsonObject, policy: JsonObject | None = None
    ) -> CollectionRecord:
        """Create a collection in the running pack's embedding space."""
        return self.store.collections.create(
            name, self._embedding_space, self._dimension, metadata, policy
        )

    def require(self, collection: str) -> CollectionRecord:
        """The collection, if it exists and holds embeddings that the running pack can compare.

        Raises CollectionNotFound or EmbeddingSpaceMismatch.
        """
        return self.store.collections.get(collection).require_space(
            self._embedding_space, self._packs
        )

    def enroll_together(
        self, collection: str, enrollments: Sequence[PersonEnrollment]
    ) -> tuple[Sequence[Sequence[StoredTemplate] | Exception], bool]:
        """Store templates of several persons, on disk when this returns: of each what is stored, or
        its error; that of a single one is raised. The second value is whether the index is open:
        then it has the templates, or another thread is updating it. The next search makes sure."""
        try:
            done = self.store.templates.enroll_together(
                collection, enrollments, self._embedding_space
            )
        except EmbeddingSpaceMismatch:
            self.require(collection)  # its error names the packs
            raise
        try:
            index_is_open = self._indexes.add(done)
        except (LikenessError, MemoryError):  # the templates are stored all the same
            index_is_open = False
        return done.outcomes, index_is_open

    def enroll_many(
        self, collection: str, rows: Sequence[PersonTemplate], *, until_refused: bool = False
    ) -> list[str | LikenessError | None]:
        """Store one template for each row, on disk when this returns; searches find it when they
        catch up. Answers for each row as `ImportStore.enroll`."""
        space = self.require(collection).embedding_space
        return self.store.imports.enroll(collection, rows, space, until_refused=until_refused)

    def identify(
        self,
        collection: str,
        probes: FloatArray,
        top_k: int,
        metadata_filter: JsonObject | None = None,
        score: PersonScore = PersonScore.BEST,
    ) -> SearchResult:
        """The `top_k` nearest persons by a `score` for each of (n, d) unit vectors, best first,
        exactly; without those whose consent has ended, where one is needed."""

        def search() -> SearchResult:
            record = self.require(collection)
            with self._indexes.searching(record) as index:
                keys = self.store.persons.keys(record, metadata_filter) if metadata_filter else None
                return self._found(index, record, SearchQuery(probes, top_k, score, keys))

        for _ in range(MAX_REPEATS):
            found = search()
            if not found.outdated:
                return found
        raise overtaken(collection)

    def identify_at_once(self, record: CollectionRecord, query: SearchQuery) -> SearchResult | None:
        """`identify` at the record's revision or later; None, and nothing is done, if it might take
        longer than a photo: the index is not open, or behind the database, or too large, or the
        search was outdated in both attempts."""
        for attempt in (record, None):  # by now the index may have passed the record
            now = attempt or self.require(record.name)
            with self._indexes.at_revision(now) as index:
                if index is None:
                    continue
                if not query.is_quick(index.extent()):
                    return None
                found = self._found(index, now, query)
            if not found.outdated:
                return found
        return None

    def _found(
        self, index: PersonSearch, record: CollectionRecord, query: SearchQuery
    ) -> SearchResult:
        faces_of = partial(self.store.templates.matchable, record)
        rows, outdated = query.candidates(index, faces_of, self.comparator)
        searched = index.extent(query.allowed).scored_by(query.score)
        return SearchResult(rows, searched, self._likeness(index, query.allowed), outdated)

    def _likeness(self, index: PersonSearch, allowed: Ids | None = None) -> float | None:
        """None where no direction keeps degraded faces apart: they would look like one group."""
        if self.comparator.direction is None:
            return None
        return index.likeness(self.comparator, allowed)

    def size(self, collection: str) -> GallerySize:
        """How many people with templates a search of the collection would look at."""
        with self._indexes.searching(self.require(collection)) as index:
            return index.extent()

    def likeness(self, collection: str) -> float | None:
        """How similar the collection's people are; None where it is not known."""
        with self._indexes.searching(self.require(collection)) as index:
            return self._likeness(index)

    def effective_templates(self, collection: str, person_keys: Ids) -> Floats:
        """The effective numbers (n,) of templates, of persons in ascending order of their keys."""
        with self._indexes.searching(self.require(collection)) as index:
            return index.effective(person_keys)

    def compare(
        self,
        collection: str,
        person_id: str,
        probe: FloatArray,
        score: PersonScore = PersonScore.BEST,
    ) -> Comparison | None:
        """A probe and a person, by a `score`: the nearest of the person's templates, and the
        similarity. None if the person has no templates."""
        try:
            faces, vectors = self.store.embeddings.of_person(
                collection, person_id, self._embedding_space
            )
        except EmbeddingSpaceMismatch:
            self.require(collection)  # its error names the packs
            raise
        if not faces:
            return None
        scores = self.comparator.scores(probe[np.newaxis], vectors)[0]
        best = int(np.argmax(scores))
        similarity = float(np.clip(score.of_templates(scores, vectors), -1.0, 1.0))
        compared = GallerySize.of_person(len(faces), effective_templates(vectors), score)
        degradation = self.comparator.degradation_of(vectors[best])
        return Comparison(faces[best], similarity, compared, degradation, vectors[best])

    def degradations(self, collection: str, keys: Sequence[int]) -> dict[int, float]:
        """How degraded stored faces look, by template key; without those deleted since, and empty
        where the comparator has no direction of degraded faces."""
        record = self.require(collection)
        found: dict[int, float] = {}
        for start in range(0, len(keys), FACES_AT_ONCE):
            some = self.store.embeddings.by_key(
                record, sorted(set(keys[start : start + FACES_AT_ONCE]))
            )
            degradations = self.comparator.degradation(some.vectors)
            if degradations is not None:
                found |= dict(zip(some.keys.tolist(), degradations.tolist(), strict=True))
        return found

    def has_person(self, collection: str, person_id: str) -> bool:
        """Whether a person has that id."""
        try:
            self.store.persons.get(collection, person_id)
        except (CollectionNotFound, PersonNotFound):
            return False
        return True

    def delete_face(self, collection: str, face_id: str) -> DeletionCounts:
        """Delete one template; no search that starts after this returns can find it."""
        deletion = self.store.templates.delete(collection, face_id)
        return deletion.also(self.follow_deletion(collection))

    def follow_deletion(self, collection: str) -> Erasure:
        """Remove what was deleted from the database from this process's index and its snapshot; no
        search that starts after this finds it. Returns whether the snapshot is erased too."""
        return self._after_write(collection, self._indexes.erase, Erasure.PENDING)

    def move_face(self, collection: str, face_id: str, person_id: str) -> FaceRecord:
        """Move a template to another person; searches that start after this use the new person."""
        moved = self.store.corrections.move_face(collection, face_id, person_id)
        self.follow_move(collection)
        return moved

    def merge_persons(self, collection: str, source: str, target: str) -> PersonRecord:
        """Move all templates of one person to another, and delete the first."""
        merged = self.store.corrections.merge_persons(collection, source, target)
        self.follow_move(collection)
        return merged

    def follow(self, collection: str) -> None:
        """Update the index from the database if it is open or there is memory to open it, unless
        another thread is updating it: each search makes sure of it."""
        self._after_write(collection, self._indexes.follow, None)

    def follow_move(self, collection: str) -> None:
        """Update the index, after a thread that is updating it, and erase the previous rows of the
        moved templates from the snapshot."""
        self._after_write(collection, self._indexes.erase, Erasure.PENDING)

    def _after_write(
        self, collection: str, update: Callable[[CollectionRecord], T], otherwise: T
    ) -> T:
        """Update the index by what is stored already. If that fails the write is answered all the
        same: it cannot be taken back, and each search updates the index first."""
        try:
            return update(self.store.collections.get(collection))
        except CollectionNotFound:  # deleted meanwhile, with everything in it
            return otherwise
        except (LikenessError, MemoryError) as error:
            log(logging.WARNING, "the index was not updated after a write", error,
                collection=collection)  # fmt: skip
            return otherwise

    def templates(self, collection: str) -> Iterator[Templates]:
        """All templates of a collection in ascending order of keys, some at a time."""
        record, last = self.require(collection), 0
        while len(
            (page := self.store.changes.templates_after(record, last, TEMPLATES_AT_ONCE)).keys
        ):
            last = int(page.keys[-1])
            yield page

    def templates_by_key(self, collection: str, keys: Ids) -> Templates:
        """Templates in ascending order of keys, without those that were deleted since. At most as
        many keys as one SQL statement can have."""
        return self.store.embeddings.by_key(self.require(collection), keys.tolist())

    def nearest_others(
        self, collection: str, vectors: FloatArray, person_keys: Ids, floor: float
    ) -> NearestOthers:
        """Of templates, given by their (n, d) unit vectors and persons (n,): the most similar one
        of any other person that reaches `floor`."""
        with self._indexes.searching(self.require(collection)) as index:
            return index.nearest_others(vectors, person_keys, floor, self.comparator)

    def forget(self, record: CollectionRecord) -> Erasure:
        """Drop the index and the snapshot of a collection; pending if another process owns that."""
        return self._indexes.forget(record.key)

    def check_embedding(self, values: Sequence[float] | FloatArray) -> FloatArray:
        """An embedding made elsewhere as a unit vector. Raises InvalidEmbedding."""
        return unit_embedding(values, self._dimension, self._embedding_space)

    def prepare(self) -> None:
        """Open the indexes of large collections, and finish erasures that the previous process left
        pending."""
        self.store.database.eraser.retry()
        self._indexes.prepare()

    def erasure_pending_s(self) -> float:
        """For how many seconds deleted rows or their bytes have been left, in the database or in
        saved copies of indexes; 0 if there are none."""
        return max(self.store.database.eraser.pending_s(), self._indexes.unerased_s())

    def run_maintenance(self) -> None:
        """One round of maintenance, called once a second by one thread beside searches and writes:
        follow what other processes changed, encode, compact, save snapshots. Repeats a pending
        erasure, also if an index fails; raises its error."""
        try:
            self._indexes.run_maintenance()
        finally:
            self.store.database.eraser.retry()

    def check_index(self, collection: str) -> IndexCheck:
        """Compare the collection's index, and its snapshot, with the database. Raises as `require`
        does."""
        record = self.require(collection)
        with self._indexes.current(record) as index:
            return check_index(self.store.changes, record, index)

    def rebuild(self, collection: str) -> None:
        """Discard the collection's index and its snapshot; the next use rebuilds it."""
        self.forget(self.require(collection))

    def costs(self) -> SearchCounts:
        """What all searches cost so far."""
        return self._replicas.costs()

    def open_indexes(self) -> OpenIndexes:
        """The number of open indexes, and their memory."""
        return self._replicas.counts()

    def close(self) -> None:
        """Save snapshots of the collections that still exist, then close the database."""
        self._indexes.close()
        self._engine.close()
        self.store.close()
