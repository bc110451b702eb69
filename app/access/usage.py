"""Photos that keys have used, by day (UTC), in the database: shared by every process."""

from datetime import date, timedelta

from sqlalchemy import Connection, delete, insert, select, update

from app.store.database import Database
from app.store.sql.tables import access_state, access_usage

KEPT_DAYS = 31


class UsageStore:
    """Reserves photos of a daily quota. A reservation counts as used until it is released."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def reserve(
        self, name: str, day: date, needed: int, wanted: int, quota: int
    ) -> tuple[int, int]:
        """Reserve up to `wanted` photos, or none if fewer than `needed` are left.

        Returns how many were reserved, and how many are left for further reservations.
        """
        row = (access_usage.c.name == name) & (access_usage.c.day == day)
        with self._database.writing() as connection:
            # First, without a change: it makes reservations wait for each other.
            connection.execute(update(access_state).values(revision=access_state.c.revision))
            used = connection.execute(select(access_usage.c.photos).where(row)).scalar()
            if used is None:
                _begin_day(connection, name, day)
            left = max(0, quota - int(used or 0))
            if left < needed:
                return 0, left
            reserved = min(max(needed, wanted), left)
            connection.execute(
                update(access_usage).where(row).values(photos=access_usage.c.photos + reserved)
            )
        return reserved, left - reserved

    def release(self, name: str, day: date, photos: int) -> None:
        """Give back what was reserved and not used."""
        row = (access_usage.c.name == name) & (access_usage.c.day == day)
        with self._database.writing() as connection:
            connection.execute(
                update(access_usage).where(row).values(photos=access_usage.c.photos - photos)
            )


def _begin_day(connection: Connection, name: str, day: date) -> None:
    oldest = day - timedelta(days=KEPT_DAYS)
    connection.execute(delete(access_usage).where(access_usage.c.day < oldest))
    connection.execute(insert(access_usage).values(name=name, day=day, photos=0))
