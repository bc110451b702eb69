"""First tables: collections, persons, templates and the log of changes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
TIME = sa.DateTime(timezone=True)


def _name(length: int) -> sa.String:
    """Sorted byte by byte, so that no change of a server's language can break an index."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def _owner(name: str, table: str, *, primary_key: bool = False) -> sa.Column[int]:
    reference = sa.ForeignKey(f"{table}.id", ondelete="CASCADE")
    return sa.Column(name, KEY, reference, nullable=False, primary_key=primary_key)


def upgrade() -> None:
    op.create_table(
        "collections",
        sa.Column("id", KEY, primary_key=True, autoincrement=True),
        sa.Column("name", _name(64), nullable=False, unique=True),
        sa.Column("embedding_space", sa.String(64), nullable=False),
        sa.Column("dimension", sa.Integer, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "persons",
        sa.Column("id", KEY, primary_key=True, autoincrement=True),
        _owner("collection", "collections"),
        sa.Column("person_id", _name(256), nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.UniqueConstraint("collection", "person_id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "templates",
        sa.Column("id", KEY, primary_key=True, autoincrement=True),
        sa.Column("face_id", _name(36), nullable=False, unique=True),
        _owner("collection", "collections"),
        _owner("person", "persons"),
        sa.Column("embedding", sa.LargeBinary, nullable=False),
        sa.Column("content_digest", _name(64), nullable=False),
        sa.Column("quality", sa.JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.UniqueConstraint("person", "content_digest"),
        sqlite_autoincrement=True,
    )
    op.create_index("templates_by_collection", "templates", ["collection", "id"])
    op.create_table(
        "changes",
        _owner("collection", "collections", primary_key=True),
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("template", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
    )


def downgrade() -> None:
    for table in ("changes", "templates", "persons", "collections"):
        op.drop_table(table)
