"""The tables, as the code sees them. `app.store.migrations` is how a database gets there."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Date,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    cast,
    type_coerce,
)
from sqlalchemy.types import TypeDecorator

from app.store.metadata import read_stored

metadata = MetaData()

# SQLite gives out row numbers only to INTEGER keys.
RowKey = BigInteger().with_variant(Integer, "sqlite")


def name(length: int) -> String:
    """Text that is looked up and sorted, byte by byte on every server: the order of a language
    changes with the operating system, and an index that was built in another order is broken."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


class MetadataColumn(TypeDecorator[dict[str, Any]]):
    """A JSON object of a client's. Reading never fails: one that would not be stored today is
    returned as `CorrectedMetadata`."""

    impl = JSON
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Its text: drivers would parse it, and fail where it cannot be."""
        return type_coerce(cast(column, Text), self)

    def result_processor(self, dialect: Dialect, coltype: Any) -> Callable[[Any], Any]:  # noqa: ARG002
        """From its text."""
        return read_stored


# One row. Files derived from a database are marked with its id.
database = Table(
    "database",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

collections = Table(
    "collections",
    metadata,
    Column("id", RowKey, primary_key=True, autoincrement=True),
    Column("name", name(64), nullable=False, unique=True),
    Column("embedding_space", String(64), nullable=False),
    Column("dimension", Integer, nullable=False),
    # Rises under the row's lock, so that changes become visible in the order of their numbers.
    Column("revision", BigInteger, nullable=False),
    Column("metadata", MetadataColumn, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    # How it decides: what the operator set, and the calibration in use (null: the pack's).
    Column("policy", JSON, nullable=False),
    Column("calibration_id", name(64), nullable=True),
    # The mark of its revision, drawn at random: histories that parted after a backup was restored
    # reach the same numbers, but not the same marks.
    Column("stamp", String(32), nullable=False, default=""),
    sqlite_autoincrement=True,
)

# Error rates by similarity, made of a collection's own templates: counts, no embeddings, no ids.
# Those no longer in use are kept, so that the calibration_id of an old answer can be looked up.
calibrations = Table(
    "calibrations",
    metadata,
    Column("collection", ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True),
    Column("calibration_id", name(64), primary_key=True),
    Column("content", JSON, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

persons = Table(
    "persons",
    metadata,
    Column("id", RowKey, primary_key=True, autoincrement=True),
    Column("collection", ForeignKey("collections.id", ondelete="CASCADE"), nullable=False),
    Column("person_id", name(256), nullable=False),
    Column("metadata", MetadataColumn, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    # Encryption at rest: the key of this person's embeddings, wrapped by the key named key_id.
    Column("data_key", LargeBinary, nullable=True),
    Column("key_id", String(64), nullable=True),
    Column("active_at", DateTime(timezone=True), nullable=True),  # to the day
    # Derived from the metadata (`sql.consents`); null without a consent.
    Column("consent_until", DateTime(timezone=True), nullable=True),
    UniqueConstraint("collection", "person_id"),
    Index("persons_by_consent", "collection", "consent_until"),
    sqlite_autoincrement=True,
)

# What `sql.withdrawn` remembers of consents.
withdrawn_consents = Table(
    "withdrawn_consents",
    metadata,
    Column("collection", ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
)

# Index of persons by metadata (`sql.terms`), derived from it and deleted with the person.
metadata_terms = Table(
    "metadata_terms",
    metadata,
    Column("term", BigInteger, primary_key=True, autoincrement=False),
    Column("person", ForeignKey("persons.id", ondelete="CASCADE"), primary_key=True),
    Index("metadata_terms_by_person", "person"),
    sqlite_with_rowid=False,
)

# Persons who were declared to be different, such as twins: a pair once, the lower key first.
declared_pairs = Table(
    "declared_pairs",
    metadata,
    Column("person_a", ForeignKey("persons.id", ondelete="CASCADE"), primary_key=True),
    Column("person_b", ForeignKey("persons.id", ondelete="CASCADE"), primary_key=True),
    Column("created_at", DateTime(timezone=True), nullable=False),
    CheckConstraint("person_a < person_b", name="declared_pairs_in_order"),
    Index("declared_pairs_by_second", "person_b"),
)

templates = Table(
    "templates",
    metadata,
    Column("id", RowKey, primary_key=True, autoincrement=True),
    Column("face_id", name(36), nullable=False, unique=True),
    Column("collection", ForeignKey("collections.id", ondelete="CASCADE"), nullable=False),
    Column("person", ForeignKey("persons.id", ondelete="CASCADE"), nullable=False),
    Column("embedding", LargeBinary, nullable=False),  # float32, little endian; or encrypted
    Column("sealed", Boolean, nullable=False, default=False),
    Column("content_digest", name(64), nullable=False),
    Column("quality", MetadataColumn, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    UniqueConstraint("person", "content_digest"),
    Index("templates_by_collection", "collection", "id"),
    sqlite_autoincrement=True,
)

# Aligned faces, as PNG, where a collection keeps them: what another model pack can embed.
crops = Table(
    "crops",
    metadata,
    Column("template", ForeignKey("templates.id", ondelete="CASCADE"), primary_key=True),
    Column("crop", LargeBinary, nullable=False),  # or encrypted, as its embedding is
    Column("sealed", Boolean, nullable=False),
)

# Embeddings in other spaces than the collection's: of a model pack it goes to, or came from.
alternate_embeddings = Table(
    "spares",
    metadata,
    Column("template", ForeignKey("templates.id", ondelete="CASCADE"), primary_key=True),
    Column("embedding_space", String(64), primary_key=True),
    Column("embedding", LargeBinary, nullable=False),
    Column("sealed", Boolean, nullable=False),
)

# Keys the database was encrypted with: fingerprints that distinguish them; they decrypt nothing.
encryption_keys = Table(
    "encryption_keys",
    metadata,
    Column("key_id", String(64), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

# A log of keys, never of embeddings: of a deleted template only its number remains.
changes = Table(
    "changes",
    metadata,
    Column("collection", ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True),
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("template", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(8), nullable=False),  # add | remove
    Column("stamp", String(32), nullable=False, default=""),  # of the revision
    Column("created_at", DateTime(timezone=True), nullable=False),
)

# Enrollments whose client gave them a key: what was asked, as a digest, and what was answered.
idempotency = Table(
    "idempotency",
    metadata,
    Column("collection", ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True),
    Column("key", name(255), primary_key=True),
    Column("person", ForeignKey("persons.id", ondelete="CASCADE"), nullable=False),
    Column("request_digest", String(64), nullable=False),
    Column("answer", JSON, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("idempotency_by_age", "collection", "created_at"),
    Index("idempotency_by_person", "person"),
)

# Access keys of the API (`app.access`): digests of their tokens. Not part of a backup: a restored
# one must not bring back a key that was revoked.
access_keys = Table(
    "access_keys",
    metadata,
    Column("key_id", name(12), primary_key=True),
    Column("name", name(64), nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("pepper", String(16), nullable=False),  # a fingerprint of the pepper
    Column("scopes", JSON, nullable=False),
    Column("collections", JSON(none_as_null=True), nullable=True),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=True),
    Column("revoked_at", DateTime(timezone=True), nullable=True),
    Column("last_used_at", DateTime(timezone=True), nullable=True),
    Column("limits", JSON(none_as_null=True), nullable=True),
    Index("access_keys_by_name", "name"),
)

# Photos that the keys of a name have used, for limits of photos a day.
access_usage = Table(
    "access_usage",
    metadata,
    Column("name", name(64), primary_key=True),
    Column("day", Date, primary_key=True),  # of UTC
    Column("photos", BigInteger, nullable=False),
)

# One row, whose revision rises with each change of a key.
access_state = Table(
    "access_state",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
)

# The audit log (`sql.audit_log`). No foreign keys: entries outlive what they are about.
audit_entries = Table(
    "audit_entries",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("actor", name(300), nullable=False),
    Column("action", name(40), nullable=False),
    Column("collection", name(64), nullable=True),
    Column("person", BigInteger, nullable=True),
    # These columns are for searches; the chain is of the content, which has them too.
    Column("content", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Index("audit_entries_by_person", "person"),
    Index("audit_entries_by_time", "at"),
)

# One row: the end of the chain, signed.
audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=True),
    Column("signer", String(16), nullable=True),
)
