"""The truth in SQL: persons and their templates, one transaction a call."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from app.store.backends import shown_url
from app.store.sql.alternate_embeddings import AlternateEmbeddingPart
from app.store.sql.bulk import BulkPart
from app.store.sql.calibrations import CalibrationPart
from app.store.sql.changes import ChangePart
from app.store.sql.collections import CollectionPart
from app.store.sql.exporting import ExportPart
from app.store.sql.idempotency import IdempotencyPart
from app.store.sql.moving import MovingPart
from app.store.sql.pairs import PairPart
from app.store.sql.persons import PersonPart
from app.store.sql.pruning import PruningPart
from app.store.sql.revisions import RevisionPart
from app.store.sql.sealing import SealingPart
from app.store.sql.stored import InvalidRowsPart
from app.store.sql.tables import collections
from app.store.sql.templates import TemplatePart


class SqlStore(
    CollectionPart,
    PersonPart,
    TemplatePart,
    BulkPart,
    IdempotencyPart,
    ChangePart,
    RevisionPart,
    CalibrationPart,
    SealingPart,
    AlternateEmbeddingPart,
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
