"""Pairs of persons who were declared to be different."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _person(name: str) -> sa.Column[int]:
    person = sa.ForeignKey("persons.id", ondelete="CASCADE")
    return sa.Column(name, KEY, person, primary_key=True, autoincrement=False)


def upgrade() -> None:
    op.create_table(
        "declared_pairs",
        _person("person_a"),
        _person("person_b"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("person_a < person_b", name="declared_pairs_in_order"),
    )
    op.create_index("declared_pairs_by_second", "declared_pairs", ["person_b"])


def downgrade() -> None:
    op.drop_table("declared_pairs")
