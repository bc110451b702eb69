"""Calibrations: those made, and the one in use."""

from sqlalchemy import Connection, delete, insert, select, update

from app.store.database import Database
from app.store.records import CollectionRecord
from app.store.sql.audit_log import note
from app.store.sql.lookups import lock_collection
from app.store.sql.tables import calibrations, collections
from app.types import JsonObject


class CalibrationStore:
    """Keeps the calibrations of collections, as JSON; each has at most one in use."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set(self, name: str, calibration_id: str, content: JsonObject) -> None:
        """Keep a calibration and put it to use."""
        with self._database.writing() as connection:
            key = lock_collection(connection, name).key
            same = (calibrations.c.collection == key) & (
                calibrations.c.calibration_id == calibration_id
            )
            connection.execute(delete(calibrations).where(same))
            connection.execute(
                insert(calibrations).values(
                    collection=key,
                    calibration_id=calibration_id,
                    content=dict(content),
                    created_at=self._database.clock(),
                )
            )
            _use(connection, key, calibration_id)
            note(connection, "calibration.set", name, calibration_id=calibration_id)

    def clear(self, name: str) -> None:
        """Use no calibration of the collection's own; those made are kept."""
        with self._database.writing() as connection:
            _use(connection, lock_collection(connection, name).key, None)
            note(connection, "calibration.cleared", name)

    def get(self, collection: CollectionRecord) -> JsonObject | None:
        """The content of the calibration that the record says is in use; None without one."""
        query = select(calibrations.c.content).where(
            calibrations.c.collection == collection.key,
            calibrations.c.calibration_id == collection.calibration_id,
        )
        with self._database.reading() as connection:
            content: JsonObject | None = connection.execute(query).scalar_one_or_none()
            return content


def _use(connection: Connection, collection: int, calibration_id: str | None) -> None:
    connection.execute(
        update(collections)
        .where(collections.c.id == collection)
        .values(calibration_id=calibration_id)
    )
