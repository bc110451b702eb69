"""Digests of withdrawn consents that no metadata has any more."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "withdrawn_consents",
        sa.Column(
            "collection",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            sa.ForeignKey("collections.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("digest", sa.LargeBinary(), primary_key=True),
    )


def downgrade() -> None:
    op.drop_table("withdrawn_consents")
