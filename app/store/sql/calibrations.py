"""Calibrations in SQL, and the templates they are counted on."""

import numpy as np
from sqlalchemy import Connection, delete, func, insert, select, update

from app.index.port import Templates
from app.store.records import CollectionRecord
from app.store.sql.lookups import MAX_KEYS, load_templates, lock_collection
from app.store.sql.part import Part
from app.store.sql.tables import calibrations, collections, templates
from app.types import JsonObject


class CalibrationPart(Part):
    """Draws templates to calibrate on, and keeps what comes of it."""

    def sample_templates(
        self, collection: CollectionRecord, limit: int, generator: np.random.Generator
    ) -> Templates:
        """The templates of people drawn at random, about `limit` of them at most."""
        counts = select(templates.c.person, func.count().label("held")).group_by(templates.c.person)
        with self._database.reading() as connection:
            rows = connection.execute(
                counts.where(templates.c.collection == collection.key).order_by(templates.c.person)
            ).all()
            order = generator.permutation(len(rows))
            held = np.cumsum([rows[i].held for i in order])
            chosen = [rows[i].person for i in order[: int(np.searchsorted(held, limit) + 1)]]
            parts = [
                load_templates(
                    connection,
                    collection,
                    templates.c.person.in_(chosen[start : start + MAX_KEYS]),
                    self._codec,
                )
                for start in range(0, max(len(chosen), 1), MAX_KEYS)
            ]
            return Templates(
                np.concatenate([part.keys for part in parts])[:limit],
                np.concatenate([part.person_keys for part in parts])[:limit],
                np.concatenate([part.vectors for part in parts])[:limit],
            )

    def set_calibration(self, name: str, calibration_id: str, content: JsonObject) -> None:
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
                    created_at=self._clock(),
                )
            )
            _use(connection, key, calibration_id)

    def clear_calibration(self, name: str) -> None:
        """Use no calibration of the collection's own; those made are kept."""
        with self._database.writing() as connection:
            _use(connection, lock_collection(connection, name).key, None)

    def calibration(self, collection: CollectionRecord) -> JsonObject | None:
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
