"""What every part of the store stands on: one database and one clock."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property

from sqlalchemy import Engine, select

from app.encryption.embeddings import EmbeddingCipher
from app.encryption.ring import KeyRing
from app.store.sql.embedding_rows import EmbeddingRowCodec
from app.store.sql.tables import database
from app.store.sql.transactions import Transactions


def now_utc() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class Part:
    """Some methods of the store; each is one transaction."""

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], datetime] = now_utc,
        ring: KeyRing | None = None,
    ) -> None:
        """With a key ring embeddings are sealed when they are written."""
        self._database = Transactions(engine)
        self._clock = clock
        self._ring = ring

    def identity(self) -> str:
        """The database's own id: random, made once, the same for all who open it."""
        with self._database.reading() as connection:
            return str(connection.execute(select(database.c.id)).scalar_one())

    @cached_property
    def _codec(self) -> EmbeddingRowCodec:
        return EmbeddingRowCodec(
            EmbeddingCipher(self._ring, self.identity()) if self._ring else None
        )
