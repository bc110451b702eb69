"""The SQL database: one object for each entity, all over one database; and the default collection,
which is always there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine

from app.encryption.ring import KeyRing
from app.errors import CollectionExists, NotReembedded
from app.store.database import Database, now_utc
from app.store.identifiers import DEFAULT_COLLECTION
from app.store.schema import opened_database
from app.store.sql.alternate_embeddings import AlternateEmbeddingStore
from app.store.sql.audit_log import AuditStore
from app.store.sql.changes import ChangeLog
from app.store.sql.collections import CalibrationStore, CollectionStore
from app.store.sql.corrections import Corrections
from app.store.sql.embeddings import EmbeddingStore
from app.store.sql.encryption import EncryptionStore
from app.store.sql.idempotency import IdempotencyStore
from app.store.sql.imports import ImportStore
from app.store.sql.integrity import IntegrityStore
from app.store.sql.pairs import PairStore
from app.store.sql.persons import PersonStore
from app.store.sql.retention import RetentionStore
from app.store.sql.templates import TemplateStore


class Store:
    """The stores of a database whose tables are up to date.

    Each of their methods is one transaction; when it returns, its changes are on disk. All raise
    StoreUnavailable, those that write also StoreFull, and those that take the name of a collection,
    person or face raise CollectionNotFound, PersonNotFound or FaceNotFound.

    Consumers take the class that they need. The whole `Store` is for the gallery, which gives
    access to it, for commands that open and close the database, and for the few functions that need
    several classes (consent, a person's record, exports, re-embedding).
    """

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], datetime] = now_utc,
        ring: KeyRing | None = None,
        audit_key: bytes | None = None,
    ) -> None:
        """With a key ring embeddings are encrypted when they are written; `audit_key` signs the end
        of the audit log."""
        database = self.database = Database(engine, clock, ring, audit_key)
        self.collections = CollectionStore(database)
        self.persons = PersonStore(database)
        self.templates = TemplateStore(database)
        self.embeddings = EmbeddingStore(database)
        self.corrections = Corrections(database)
        self.imports = ImportStore(database)
        self.idempotency = IdempotencyStore(database)
        self.retention = RetentionStore(database)
        self.pairs = PairStore(database)
        self.changes = ChangeLog(database)
        self.calibrations = CalibrationStore(database)
        self.alternate_embeddings = AlternateEmbeddingStore(database)
        self.encryption = EncryptionStore(database)
        self.audit = AuditStore(database)
        self.integrity = IntegrityStore(database)

    def close(self) -> None:
        """Close every connection."""
        self.database.close()


@contextmanager
def opened_store(
    url: str | Path, ring: KeyRing | None, audit_key: bytes | None = None
) -> Iterator[Store]:
    """A database with this version's tables, whose embeddings the ring decrypts, until the block
    ends. Raises DatabaseError, EncryptionKeyMissing and StoreUnavailable."""
    with opened_database(url) as engine:
        store = Store(engine, ring=ring, audit_key=audit_key)
        store.encryption.check_keys()
        yield store


def create_default_collection(store: Store, embedding_space: str, dimension: int) -> None:
    """Create it where it is missing."""
    with suppress(CollectionExists):  # several processes may start at the same moment
        store.collections.create(DEFAULT_COLLECTION, embedding_space, dimension, {})


def switch_default_collection(store: Store, embedding_space: str, dimension: int) -> None:
    """Switch it to another embedding space if it has no faces: it holds nothing that could not be
    compared, and a change of the pack needs no migration then. What only looks at a database does
    not do this."""
    record = store.collections.get(DEFAULT_COLLECTION)
    if record.embedding_space == embedding_space or store.collections.count(record).templates:
        return
    with suppress(NotReembedded):  # somebody was enrolled meanwhile
        store.alternate_embeddings.cut_over(
            DEFAULT_COLLECTION, embedding_space, dimension, same_quality=True
        )
