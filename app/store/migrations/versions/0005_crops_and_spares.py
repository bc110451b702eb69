"""Aligned faces where a collection keeps them, and embeddings of another model pack beside."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _template() -> sa.Column[int]:
    owner = sa.ForeignKey("templates.id", ondelete="CASCADE")
    return sa.Column("template", KEY, owner, primary_key=True, autoincrement=False)


def upgrade() -> None:
    op.create_table(
        "crops",
        _template(),
        sa.Column("crop", sa.LargeBinary, nullable=False),
        sa.Column("sealed", sa.Boolean, nullable=False),
    )
    op.create_table(
        "spares",
        _template(),
        sa.Column("embedding_space", sa.String(64), primary_key=True),
        sa.Column("embedding", sa.LargeBinary, nullable=False),
        sa.Column("sealed", sa.Boolean, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("spares")
    op.drop_table("crops")
