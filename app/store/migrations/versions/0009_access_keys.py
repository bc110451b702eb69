"""Access keys of the API."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def _name(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "access_keys",
        sa.Column("key_id", _name(12), primary_key=True),
        sa.Column("name", _name(64), nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("pepper", sa.String(16), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("collections", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=True),
        sa.Column("revoked_at", moment, nullable=True),
        sa.Column("last_used_at", moment, nullable=True),
    )
    op.create_index("access_keys_by_name", "access_keys", ["name"])
    op.create_table(
        "access_state",
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
    )
    op.execute("INSERT INTO access_state (revision) VALUES (0)")


def downgrade() -> None:
    op.drop_table("access_state")
    op.drop_table("access_keys")
