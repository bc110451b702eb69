"""How a collection decides: its policy, and calibrations made of its own templates."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column(
        "collections", sa.Column("policy", sa.JSON, nullable=False, server_default=sa.text("'{}'"))
    )
    op.add_column("collections", sa.Column("calibration_id", NAME, nullable=True))
    op.create_table(
        "calibrations",
        sa.Column(
            "collection",
            KEY,
            sa.ForeignKey("collections.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("calibration_id", NAME, primary_key=True),
        sa.Column("content", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("calibrations")
    op.drop_column("collections", "calibration_id")
    op.drop_column("collections", "policy")
