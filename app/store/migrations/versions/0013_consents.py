"""Until when the consent of a person is valid, and the outcome of what is in the audit log."""

import sqlalchemy as sa
from alembic import op

from app.store.sql.consents import rebuild_consents

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("persons", sa.Column("consent_until", sa.DateTime(timezone=True), nullable=True))
    op.create_index("persons_by_consent", "persons", ["collection", "consent_until"])
    rebuild_consents(op.get_bind())


def downgrade() -> None:
    op.drop_index("persons_by_consent", "persons")
    op.drop_column("persons", "consent_until")
