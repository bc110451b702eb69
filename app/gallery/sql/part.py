"""What every part of the store stands on: one database and one clock."""

from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import Engine

from app.gallery.sql.transactions import Transactions


def now_utc() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class Part:
    """Some methods of the store; each is one transaction."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime] = now_utc) -> None:
        self._database = Transactions(engine)
        self._clock = clock
