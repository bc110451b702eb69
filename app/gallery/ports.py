"""What the gallery needs of a database: `TemplateStore`, and the records it speaks in."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.errors import EmbeddingSpaceMismatch
from app.types import FloatArray, JsonObject

Ids = NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CollectionRecord:
    """One gallery. `key` is the database's own number, never shown; `revision` rises with every
    change to its templates, and `stamp` is that revision's random mark ("" where nothing was
    marked yet). `policy` and `calibration_id` say how it decides; the gallery only keeps them."""

    key: int
    name: str
    embedding_space: str
    dimension: int
    revision: int
    metadata: JsonObject
    created_at: datetime
    policy: JsonObject = field(default_factory=dict)
    calibration_id: str | None = None
    stamp: str = ""

    def require_space(self, embedding_space: str) -> "CollectionRecord":
        """Itself. Raises EmbeddingSpaceMismatch unless it is of that space."""
        if self.embedding_space == embedding_space:
            return self
        raise EmbeddingSpaceMismatch(
            f"The collection '{self.name}' holds embeddings of {self.embedding_space}, the running "
            f"pack makes {embedding_space}; they cannot be compared. Start the pack it was made "
            "with, let it follow this one (likeness models migrate), or enroll into a new "
            "collection."
        )


@dataclass(frozen=True, slots=True)
class CollectionMark:
    """A collection's embedding space, its revision, and that revision's stamp."""

    embedding_space: str
    revision: int
    stamp: str


@dataclass(frozen=True, slots=True)
class GallerySize:
    """How much there is: people, and templates over all of them.

    `spread`: effective numbers of templates (`app.gallery.effective`), and how many people have
    each; where it is empty, everybody has an equal share of the templates, all different.
    """

    persons: int
    templates: int
    spread: tuple[tuple[float, int], ...] = ()

    @classmethod
    def of_person(cls, templates: int, effective: float) -> "GallerySize":
        """One person with these templates."""
        return cls(1, templates, ((effective, 1),))

    @property
    def effective(self) -> tuple[tuple[float, int], ...]:
        """`spread`, also where it is not given."""
        if self.spread or not self.persons:
            return self.spread
        return ((max(self.templates, self.persons) / self.persons, self.persons),)

    def one_more(self, *, person: bool) -> "GallerySize":
        """With one more template, of another `person` or of one who is there. It counts as much as
        a person's only template: it can hardly add more."""
        spread = dict(self.effective)
        spread[1.0] = spread.get(1.0, 0) + 1
        return GallerySize(self.persons + person, self.templates + 1, tuple(spread.items()))


@dataclass(frozen=True, slots=True)
class PersonRecord:
    """One person; `key` is the database's own number."""

    key: int
    person_id: str
    metadata: JsonObject
    templates: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class FaceRecord:
    """One stored template as clients see it: `face_id` names it, the embedding stays inside."""

    template_key: int
    face_id: str
    person_id: str
    quality: JsonObject
    created_at: datetime


@dataclass(frozen=True, slots=True)
class NewTemplate:
    """A template to store: `embedding` is (d,) float32 of length 1, `content_digest` the SHA-256
    of what it was made from, so that the same photo is stored once for a person. `crop` is the
    aligned face as PNG, where the collection keeps it."""

    embedding: FloatArray
    content_digest: str
    quality: JsonObject = field(default_factory=dict)
    crop: bytes | None = None


@dataclass(frozen=True, slots=True)
class PersonTemplate:
    """A template and whose it is; metadata replaces what the person had, unless it is None. It is
    stored as `face_id` where no other has that id, else under a new one."""

    person_id: str
    metadata: JsonObject | None
    template: NewTemplate
    face_id: str | None = None


@dataclass(frozen=True, slots=True)
class StoredTemplate:
    """The outcome for one NewTemplate; `duplicate` where that content was already there."""

    face: FaceRecord
    duplicate: bool


@dataclass(frozen=True, slots=True)
class RequestKey:
    """A client's key for a request to one collection, and a digest of what was asked under it."""

    key: str
    request_digest: str


@dataclass(frozen=True, slots=True)
class OnceRequest(RequestKey):
    """An enrolment that is done once however often it is sent; `answer` makes of its outcome what
    is kept to answer again."""

    answer: Callable[[Sequence[StoredTemplate]], JsonObject]


# JSON of one page; a thousand items of 16 KiB each would take a second to read.
MAX_PAGE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some records and whether more follow."""

    items: Sequence[T]
    more: bool


@dataclass(frozen=True, slots=True)
class Templates:
    """Templates as parallel arrays: their keys (n,), their persons' keys (n,), vectors (n, d)."""

    keys: Ids
    person_keys: Ids
    vectors: FloatArray


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened to a collection's templates up to `revision`, which is marked `stamp`."""

    revision: int
    added: Templates
    removed: Ids
    stamp: str = ""


@dataclass(frozen=True, slots=True)
class ExportedTemplate:
    """A template with all that belongs to it: its person's metadata, the embedding (d,), the digest
    of its content where it is stored in the clear, and the crop (PNG) where one is kept."""

    template_key: int
    face_id: str
    person_id: str
    metadata: JsonObject
    embedding: FloatArray
    quality: JsonObject
    content_digest: str | None
    crop: bytes | None


@dataclass(frozen=True, slots=True)
class KeptCrop:
    """The aligned face of a template, as PNG."""

    template_key: int
    crop: bytes


@dataclass(frozen=True, slots=True)
class SpareState:
    """Of all templates: how many have an embedding of another space, and how many of the others
    have no crop to make one of."""

    templates: int
    ready: int
    without_crop: int


class Erasure(StrEnum):
    """Whether deleted bytes are gone from every file of the service."""

    DONE = "done"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a deletion removed, and whether its bytes are erased at this moment."""

    persons: int
    templates: int
    erased: Erasure = Erasure.DONE

    def also(self, erased: Erasure) -> "Receipt":
        """This receipt combined with the state of other files: pending if either is."""
        return replace(self, erased=erased) if erased is Erasure.PENDING else self


@dataclass(frozen=True, slots=True)
class DeclaredPair:
    """Two persons who were declared to be different; `keys` are their keys in the database."""

    keys: tuple[int, int]
    person_id: str
    other_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Hit:
    """The best template of one person for one probe; `similarity` is their comparison score."""

    person_key: int
    template_key: int
    similarity: float


@dataclass(frozen=True, slots=True)
class SealingState:
    """How many templates are plain and sealed, and how many persons' keys each key wraps."""

    plain: int
    sealed: int
    persons_by_key: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class InvalidRow:
    """A collection, person or face (`kind`) whose stored metadata or quality breaks the rules: its
    collection, its own id, the `problem` as a sentence, and the `original` JSON text."""

    kind: str
    collection: str
    name: str
    key: int
    problem: str
    original: str


@dataclass(frozen=True, slots=True)
class ClashingIds:
    """A person whose id differs from another person's only in how its letters are composed."""

    collection: str
    person_id: str
    other_id: str


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

    def delete_collection(self, name: str) -> Receipt: ...

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

    def delete_person(self, name: str, person_id: str) -> Receipt: ...

    def delete_persons(self, name: str, person_ids: Sequence[str]) -> tuple[Receipt, list[str]]: ...

    def enroll(
        self,
        name: str,
        person_id: str,
        metadata: JsonObject | None,
        new_templates: Sequence[NewTemplate],
        *,
        once: OnceRequest | None = None,
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

    def delete_face(self, name: str, face_id: str) -> Receipt: ...

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

    def spare_state(self, name: str, embedding_space: str) -> SpareState: ...

    def crops_to_reembed(
        self, name: str, embedding_space: str, after: int, limit: int
    ) -> list[KeptCrop]: ...

    def put_spares(
        self, name: str, embedding_space: str, embeddings: Mapping[int, FloatArray]
    ) -> None: ...

    def both_spaces(
        self, name: str, other: CollectionRecord, limit: int, generator: np.random.Generator
    ) -> tuple[Templates, Templates]: ...

    def cut_over(self, name: str, embedding_space: str, dimension: int) -> CollectionRecord: ...

    def drop_spares(self, name: str) -> int: ...

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
