"""`TemplateStore`: what the gallery needs of a database."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol

import numpy as np

from app.index.port import GallerySize, Ids, Templates
from app.store.records import (
    AlternateEmbeddingState,
    Changes,
    ClashingIds,
    CollectionMark,
    CollectionRecord,
    DeclaredPair,
    DeletionCounts,
    Erasure,
    ExportedTemplate,
    FaceRecord,
    IdempotencyRequest,
    InvalidRow,
    KeptCrop,
    NewTemplate,
    Page,
    PersonRecord,
    PersonTemplate,
    RequestKey,
    SealingState,
    StoredTemplate,
)
from app.types import FloatArray, JsonObject


class TemplateStore(Protocol):
    """The truth. Every method is one transaction; what returned is on disk.

    Raises CollectionNotFound, PersonNotFound, FaceNotFound, PairNotFound, CollectionExists,
    PersonExists, DeclaredDifferent, IdempotencyKeyReused, EnrolledBefore, StoreUnavailable and
    StoreFull.
    """

    def create_collection(
        self,
        name: str,
        embedding_space: str,
        dimension: int,
        metadata: JsonObject,
        policy: JsonObject | None = None,
    ) -> CollectionRecord: ...

    def collection(self, name: str) -> CollectionRecord: ...

    def count(self, collection: CollectionRecord) -> GallerySize: ...

    def collections(self, after: str | None, limit: int) -> Page[CollectionRecord]: ...

    def update_collection(
        self, name: str, metadata: JsonObject | None, policy: JsonObject | None
    ) -> CollectionRecord: ...

    def delete_collection(self, name: str) -> DeletionCounts: ...

    def create_person(self, name: str, person_id: str, metadata: JsonObject) -> PersonRecord: ...

    def person(self, name: str, person_id: str) -> PersonRecord: ...

    def persons(
        self,
        name: str,
        after: str | None,
        limit: int,
        *,
        prefix: str = "",
        metadata: JsonObject | None = None,
    ) -> Page[PersonRecord]: ...

    def update_person(
        self,
        name: str,
        person_id: str,
        metadata: JsonObject | None = None,
        *,
        new_id: str | None = None,
    ) -> PersonRecord: ...

    def delete_person(self, name: str, person_id: str) -> DeletionCounts: ...

    def delete_persons(
        self, name: str, person_ids: Sequence[str]
    ) -> tuple[DeletionCounts, list[str]]: ...

    def enroll(
        self,
        name: str,
        person_id: str,
        metadata: JsonObject | None,
        new_templates: Sequence[NewTemplate],
        *,
        idempotency: IdempotencyRequest | None = None,
        space: str | None = None,
    ) -> list[StoredTemplate]: ...

    def enroll_many(
        self, name: str, rows: Sequence[PersonTemplate], space: str
    ) -> list[str | None]: ...

    def move_face(self, name: str, face_id: str, person_id: str) -> FaceRecord: ...

    def merge_persons(self, name: str, source: str, target: str) -> PersonRecord: ...

    def declare_different(self, name: str, person_id: str, other_id: str) -> DeclaredPair: ...

    def withdraw_different(self, name: str, person_id: str, other_id: str) -> Erasure: ...

    def different_from(
        self, name: str, person_id: str, after: str | None, limit: int
    ) -> Page[DeclaredPair]: ...

    def counterparts(
        self, collection: CollectionRecord, person_ids: Collection[str]
    ) -> dict[str, list[str]]: ...

    def declared_pairs(
        self, name: str, after: tuple[int, int] | None, limit: int
    ) -> list[DeclaredPair]: ...

    def exported(self, name: str, after: int, limit: int) -> list[ExportedTemplate]: ...

    def answered(self, name: str, request: RequestKey) -> JsonObject | None: ...

    def face(self, name: str, face_id: str) -> FaceRecord: ...

    def faces(
        self, name: str, person_id: str | None, after: str | None, limit: int
    ) -> Page[FaceRecord]: ...

    def delete_face(self, name: str, face_id: str) -> DeletionCounts: ...

    def known_contents(
        self, name: str, contents: Collection[tuple[str, str]]
    ) -> set[tuple[str, str]]: ...

    def embeddings(self, name: str, person_id: str) -> tuple[list[FaceRecord], FloatArray]: ...

    def faces_by_key(self, keys: Sequence[int]) -> Mapping[int, FaceRecord]: ...

    def with_faces(self, name: str, person_ids: Collection[str]) -> set[str]: ...

    def person_keys(self, collection: CollectionRecord, metadata: JsonObject) -> Ids: ...

    def identity(self) -> str: ...

    def state(self) -> tuple[int, int, int]: ...

    def marks(self) -> dict[int, CollectionMark]: ...

    def collection_by_key(self, key: int) -> CollectionRecord: ...

    def only_added_since(self, key: int, revision: int, stamp: str) -> bool: ...

    def large_collections(self, at_least: int) -> dict[int, int]: ...

    def stamp_at(self, collection: CollectionRecord, revision: int) -> str | None: ...

    def templates_after(self, collection: CollectionRecord, key: int, limit: int) -> Templates: ...

    def templates_by_key(self, collection: CollectionRecord, keys: Sequence[int]) -> Templates: ...

    def changes_since(self, collection: CollectionRecord, revision: int) -> Changes: ...

    def prune_changes(self, after: int, kept: timedelta, most_revisions: int) -> int | None: ...

    def sample_templates(
        self, collection: CollectionRecord, limit: int, generator: np.random.Generator
    ) -> Templates: ...

    def set_calibration(self, name: str, calibration_id: str, content: JsonObject) -> None: ...

    def clear_calibration(self, name: str) -> None: ...

    def calibration(self, collection: CollectionRecord) -> JsonObject | None: ...

    def alternate_embedding_state(
        self, name: str, embedding_space: str
    ) -> AlternateEmbeddingState: ...

    def crops_to_reembed(
        self, name: str, embedding_space: str, after: int, limit: int
    ) -> list[KeptCrop]: ...

    def put_alternate_embeddings(
        self, name: str, embedding_space: str, embeddings: Mapping[int, FloatArray]
    ) -> None: ...

    def both_spaces(
        self, name: str, other: CollectionRecord, limit: int, generator: np.random.Generator
    ) -> tuple[Templates, Templates]: ...

    def cut_over(self, name: str, embedding_space: str, dimension: int) -> CollectionRecord: ...

    def drop_alternate_embeddings(self, name: str) -> int: ...

    def drop_crops(self, name: str) -> int: ...

    def sealing(self) -> SealingState: ...

    def retry_erasure(self) -> None: ...

    def erasure_pending_s(self) -> float: ...

    def invalid_rows(self) -> Iterator[InvalidRow]: ...

    def store_corrected(self, amiss: InvalidRow, keep: Callable[[InvalidRow], None]) -> bool: ...

    def clashing_ids(self) -> list[ClashingIds]: ...

    def wrong_terms(self, *, repair: bool = False) -> int: ...

    def ping(self) -> None: ...

    def refusing(self) -> str | None: ...

    def describe(self) -> Mapping[str, Any]: ...

    def close(self) -> None: ...
