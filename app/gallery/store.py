"""The truth in SQL: persons and their templates, one transaction a call."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from app.gallery.backends import shown_url
from app.gallery.sql.bulk import BulkPart
from app.gallery.sql.calibrations import CalibrationPart
from app.gallery.sql.changes import ChangePart
from app.gallery.sql.collections import CollectionPart
from app.gallery.sql.exporting import ExportPart
from app.gallery.sql.moving import MovingPart
from app.gallery.sql.once import OncePart
from app.gallery.sql.pairs import PairPart
from app.gallery.sql.persons import PersonPart
from app.gallery.sql.pruning import PruningPart
from app.gallery.sql.revisions import RevisionPart
from app.gallery.sql.sealing import SealingPart
from app.gallery.sql.spares import SparePart
from app.gallery.sql.stored import InvalidRowsPart
from app.gallery.sql.tables import collections
from app.gallery.sql.templates import TemplatePart


class SqlStore(
    CollectionPart,
    PersonPart,
    TemplatePart,
    BulkPart,
    OncePart,
    ChangePart,
    RevisionPart,
    CalibrationPart,
    SealingPart,
    SparePart,
    MovingPart,
    PairPart,
    ExportPart,
    PruningPart,
    InvalidRowsPart,
):
    """A `TemplateStore` over an SQLAlchemy engine whose tables are up to date."""

    def ping(self) -> None:
        """Raise StoreUnavailable if the database does not answer, or its file was moved."""
        self._database.require_in_place()
        with self._database.reading() as connection:
            connection.execute(select(collections.c.id).limit(1))

    def refusing(self) -> str | None:
        """The error code of the last write, if the database did not take it."""
        return self._database.refusal

    def retry_erasure(self) -> None:
        """Repeat erasures that are pending; called by maintenance."""
        self._database.eraser.retry()

    def erasure_pending_s(self) -> float:
        """For how many seconds deleted bytes have been left in the database's files; 0 if there are
        none, or if the server erases them."""
        return self._database.eraser.pending_s()

    def describe(self) -> Mapping[str, Any]:
        """Facts for `likeness doctor`."""
        return {"database": shown_url(self._database.engine)}

    def close(self) -> None:
        """Close every connection."""
        self._database.engine.dispose()
