"""Transactions over one database, its failures told as ours."""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import StoreFull, StoreUnavailable
from app.gallery.backends.sqlite import WRITING, empty_log
from app.telemetry.logs import log


class Transactions:
    """Opens transactions that see one state of the database and are kept whole or not at all.

    Both kinds raise StoreFull or StoreUnavailable where the database fails.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writer = engine.execution_options(**{WRITING: True})

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            _raise_ours(error)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes, alone; on disk when the block is left."""
        try:
            with self._writer.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            _raise_ours(error)

    def erase_deleted(self) -> None:
        """Leave no copy of deleted rows behind. The deletion itself has been acknowledged by the
        database, so a failure here is logged, not raised."""
        try:
            empty_log(self.engine)
        except (sqlite3.Error, SQLAlchemyError) as error:
            log(logging.WARNING, "deleted rows stay in the write-ahead log for now", error)


def _raise_ours(error: SQLAlchemyError) -> NoReturn:
    if isinstance(error, IntegrityError):
        raise error  # a broken promise of ours, not of the database's
    if isinstance(error, DBAPIError) and "full" in str(error.orig).lower():
        raise StoreFull(
            "The disk that holds the database is full; nothing was changed. Free some room and "
            "send the request again."
        ) from error
    if isinstance(error, DBAPIError | PoolTimeout):
        raise StoreUnavailable(
            "The database did not take the request; nothing was changed. Try again in a moment.",
            {"retry_after": 1},
        ) from error
    raise error
