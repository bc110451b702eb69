"""Person ids in Unicode's Form C; those of which two would become one stay, for the doctor."""

import logging

from alembic import op

from app.store.sql.integrity import compose_ids
from app.telemetry.logs import log

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    clashes = compose_ids(op.get_bind())
    if clashes:
        log(
            logging.WARNING,
            "person ids that differ only in how their letters are composed; likeness doctor names "
            "them and says how to merge or rename them",
            persons=clashes,
        )


def downgrade() -> None:
    """What was composed stays composed."""
