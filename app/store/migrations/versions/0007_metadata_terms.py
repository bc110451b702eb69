"""An index of persons' metadata, for filters."""

import sqlalchemy as sa
from alembic import op

from app.store.sql.terms import rebuild_terms

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "metadata_terms",
        sa.Column("term", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column(
            "person",
            KEY,
            sa.ForeignKey("persons.id", ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        ),
        sqlite_with_rowid=False,
    )
    op.create_index("metadata_terms_by_person", "metadata_terms", ["person"])
    rebuild_terms(op.get_bind())


def downgrade() -> None:
    op.drop_table("metadata_terms")
