"""The truth in SQL: one object for each noun, all over one database."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Engine

from app.encryption.ring import KeyRing
from app.store.database import Database, now_utc
from app.store.sql.alternate_embeddings import AlternateEmbeddingStore
from app.store.sql.audit_log import AuditStore
from app.store.sql.calibrations import CalibrationStore
from app.store.sql.changes import ChangeLog
from app.store.sql.collections import CollectionStore
from app.store.sql.corrections import Corrections
from app.store.sql.embeddings import EmbeddingStore
from app.store.sql.encryption import EncryptionStore
from app.store.sql.idempotency import IdempotencyStore
from app.store.sql.imports import ImportStore
from app.store.sql.integrity import IntegrityStore
from app.store.sql.pairs import PairStore
from app.store.sql.persons import PersonStore
from app.store.sql.templates import TemplateStore


class Store:
    """The stores of a database whose tables are up to date.

    Every method of theirs is one transaction; what returned is on disk. All raise StoreUnavailable
    and StoreFull, those that name a collection, person or face also the error of its absence. What
    needs one of them takes that one; the whole is for what hands it on, and for who opens and
    closes the database.
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
