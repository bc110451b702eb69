"""The tables, as the code sees them. `migrations/` is how a database gets there."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

metadata = MetaData()

# SQLite gives out row numbers only to INTEGER keys.
Key = BigInteger().with_variant(Integer, "sqlite")

collections = Table(
    "collections",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("embedding_space", String(64), nullable=False),
    Column("dimension", Integer, nullable=False),
    # Rises under the row's lock, so that changes become visible in the order of their numbers.
    Column("revision", BigInteger, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    # How it decides: what the operator set, and the calibration in use (null: the pack's).
    Column("policy", JSON, nullable=False),
    Column("calibration_id", String(64), nullable=True),
    sqlite_autoincrement=True,
)

# Error rates by similarity, made of a collection's own templates: counts, no embeddings, no ids.
# Those no longer in use are kept, so that the calibration_id of an old answer can be looked up.
calibrations = Table(
    "calibrations",
    metadata,
    Column("collection", ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True),
    Column("calibration_id", String(64), primary_key=True),
    Column("content", JSON, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

persons = Table(
    "persons",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("collection", ForeignKey("collections.id", ondelete="CASCADE"), nullable=False),
    Column("person_id", String(256), nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    UniqueConstraint("collection", "person_id"),
    sqlite_autoincrement=True,
)

templates = Table(
    "templates",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("face_id", String(36), nullable=False, unique=True),
    Column("collection", ForeignKey("collections.id", ondelete="CASCADE"), nullable=False),
    Column("person", ForeignKey("persons.id", ondelete="CASCADE"), nullable=False),
    Column("embedding", LargeBinary, nullable=False),  # float32, little endian
    Column("content_digest", String(64), nullable=False),
    Column("quality", JSON, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    UniqueConstraint("person", "content_digest"),
    Index("templates_by_collection", "collection", "id"),
    sqlite_autoincrement=True,
)

# A log of keys, never of embeddings: a deleted template leaves nothing behind but its number.
changes = Table(
    "changes",
    metadata,
    Column("collection", ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True),
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("template", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(8), nullable=False),  # add | remove
    Column("created_at", DateTime(timezone=True), nullable=False),
)
