"""Limits of access keys, and what they have used of their daily quotas."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("access_keys", sa.Column("limits", sa.JSON(none_as_null=True), nullable=True))
    op.create_table(
        "access_usage",
        sa.Column(
            "name",
            sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql"),
            primary_key=True,
        ),
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("photos", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("access_usage")
    op.drop_column("access_keys", "limits")
