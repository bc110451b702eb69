"""The database's id, marks of revisions, answers kept by key, columns for encryption at rest."""

import uuid
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
TIME = sa.DateTime(timezone=True)


def _owner(name: str, table: str, *, primary_key: bool = False) -> sa.Column[int]:
    reference = sa.ForeignKey(f"{table}.id", ondelete="CASCADE")
    return sa.Column(name, KEY, reference, nullable=False, primary_key=primary_key)


def upgrade() -> None:
    database = op.create_table(
        "database",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("created_at", TIME, nullable=False),
    )
    op.bulk_insert(database, [{"id": str(uuid.uuid4()), "created_at": datetime.now(UTC)}])
    for table in ("collections", "changes"):
        op.add_column(
            table, sa.Column("stamp", sa.String(32), nullable=False, server_default=sa.text("''"))
        )
    op.add_column("persons", sa.Column("data_key", sa.LargeBinary, nullable=True))
    op.add_column("persons", sa.Column("key_id", sa.String(64), nullable=True))
    op.add_column(
        "templates", sa.Column("sealed", sa.Boolean, nullable=False, server_default=sa.false())
    )
    op.create_table(
        "idempotency",
        _owner("collection", "collections", primary_key=True),
        sa.Column(
            "key",
            sa.String(255).with_variant(sa.String(255, collation="C"), "postgresql"),
            primary_key=True,
        ),
        _owner("person", "persons"),
        sa.Column("request_digest", sa.String(64), nullable=False),
        sa.Column("answer", sa.JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
    )
    op.create_index("idempotency_by_age", "idempotency", ["collection", "created_at"])
    op.create_index("idempotency_by_person", "idempotency", ["person"])


def downgrade() -> None:
    op.drop_table("idempotency")
    op.drop_column("templates", "sealed")
    op.drop_column("persons", "key_id")
    op.drop_column("persons", "data_key")
    for table in ("changes", "collections"):
        op.drop_column(table, "stamp")
    op.drop_table("database")
