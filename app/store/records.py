"""The records of the store: collections, persons, templates, changes."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeVar

from app.errors import EmbeddingSpaceMismatch
from app.index.port import Ids, Templates
from app.types import FloatArray, JsonObject

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CollectionRecord:
    """One gallery. `key` is the database's own number, never shown; `revision` rises with every
    change to its templates, and `stamp` is that revision's random mark ("" where nothing was
    marked yet). `policy` and `calibration_id` say how it decides; the gallery only keeps them.
    `database` is the id of the database, which a restore replaces."""

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
    database: str = ""

    @property
    def keeps_crops(self) -> bool:
        """Whether its policy has aligned faces stored."""
        return bool(self.policy.get("keep_crops"))

    def require_space(
        self, embedding_space: str, packs: Mapping[str, str] | None = None
    ) -> "CollectionRecord":
        """Itself. Raises EmbeddingSpaceMismatch unless it is of that space; `packs` are names of
        model packs by their embedding space, for the error's text."""
        if self.embedding_space == embedding_space:
            return self
        made_by, running = (
            (packs or {}).get(one) for one in (self.embedding_space, embedding_space)
        )
        serve = f"Set LIKENESS_PACK={made_by}" if made_by else "Serve the pack it was made with"
        target = f" {self.name} --to {running}" if running else ""
        raise EmbeddingSpaceMismatch(
            f"The collection '{self.name}' holds embeddings of {self.embedding_space}, the "
            f"running pack makes {embedding_space}; they cannot be compared. {serve} to continue "
            f"with them, migrate the collection to the running pack (likeness models migrate"
            f"{target}), or enroll into a new collection."
        )


@dataclass(frozen=True, slots=True)
class CollectionMark:
    """A collection's embedding space, its revision, and that revision's stamp."""

    embedding_space: str
    revision: int
    stamp: str


@dataclass(frozen=True, slots=True)
class PersonRecord:
    """One person; `key` is the database's own number. `active_at`: the day of the last match or
    enrollment where the policy deletes by age; `consent_until`: the end of the consent, if there is
    one."""

    key: int
    person_id: str
    metadata: JsonObject
    templates: int
    created_at: datetime
    updated_at: datetime
    active_at: datetime | None = None
    consent_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class FaceName:
    """What names one stored template and its person: the database's own numbers, and the ids that
    clients see."""

    template_key: int
    person_key: int
    face_id: str
    person_id: str


@dataclass(frozen=True, slots=True)
class FaceRecord(FaceName):
    """One stored template as clients see it: `face_id` names it, the embedding stays inside."""

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
class IdempotencyRequest(RequestKey):
    """An enrollment that is done once however often it is sent; `answer` makes of its outcome what
    is kept to answer again."""

    answer: Callable[[Sequence[StoredTemplate]], JsonObject]


@dataclass(frozen=True, slots=True)
class PersonEnrollment:
    """Templates to store of one person, who is created if need be; all of them or none. Metadata
    replaces what the person had, unless it is None. With `idempotency` it is done once.

    `context` is that of the caller: the audit log names who acted, and for which request.
    """

    person_id: str
    metadata: JsonObject | None
    templates: Sequence[NewTemplate]
    idempotency: IdempotencyRequest | None = None
    context: Context = field(default_factory=copy_context)


@dataclass(frozen=True, slots=True)
class EnrolledTogether:
    """Of several enrollments into one collection the outcome of each: what is stored, or why
    nothing is. `added` are the new templates, by which the collection went from the revision of
    `before` to that of `after`."""

    outcomes: Sequence[Sequence[StoredTemplate] | Exception]
    before: CollectionRecord
    after: CollectionRecord
    added: Templates


# JSON of one page; a thousand items of 16 KiB each would take a second to read.
MAX_PAGE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some records and whether more follow."""

    items: Sequence[T]
    more: bool


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
    created_at: datetime


@dataclass(frozen=True, slots=True)
class AlternateEmbedding:
    """The embedding (d,) of a template in another space than its collection's."""

    embedding_space: str
    embedding: FloatArray


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """The answer of an enrollment that is kept for its Idempotency-Key."""

    key: str
    answer: JsonObject
    created_at: datetime


@dataclass(frozen=True, slots=True)
class KeptCrop:
    """The aligned face of a template, as PNG; None if it is damaged."""

    template_key: int
    face_id: str
    crop: bytes | None


@dataclass(frozen=True, slots=True)
class AlternateEmbeddingState:
    """Of all templates: how many have an embedding of another space, and how many of the others
    have no crop to make one of."""

    templates: int
    ready: int
    without_crop: int


class Erasure(StrEnum):
    """Whether deleted bytes are erased from every file of the service."""

    DONE = "done"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class DeletionCounts:
    """What a deletion removed, and whether its bytes are erased at this moment."""

    persons: int
    templates: int
    erased: Erasure = Erasure.DONE

    def also(self, erased: Erasure) -> "DeletionCounts":
        """These counts combined with the state of other files: pending if either is."""
        return replace(self, erased=erased) if erased is Erasure.PENDING else self


@dataclass(frozen=True, slots=True)
class DeclaredPair:
    """Two persons who were declared to be different; `keys` are their keys in the database."""

    keys: tuple[int, int]
    person_id: str
    other_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class EncryptionState:
    """How many templates are plain and encrypted, how many persons' keys each key wraps, how many
    crops are plain, and how many alternate embeddings are plain and encrypted."""

    plain: int
    encrypted: int
    persons_by_key: Mapping[str, int]
    plain_crops: int
    plain_alternates: int
    encrypted_alternates: int


@dataclass(frozen=True, slots=True)
class Reencrypted:
    """How many persons of a collection were encrypted, or their keys wrapped again; and the ids of
    those whose data could not be read."""

    persons: int
    failed: Sequence[str]


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
