"""Templates with all that belongs to them, for an export."""

from sqlalchemy import select

from app.store.records import ExportedTemplate
from app.store.sql.lookups import get_collection
from app.store.sql.part import Part
from app.store.sql.tables import crops, persons, templates


class ExportPart(Part):
    """Reads what an export writes."""

    def exported(self, name: str, after: int, limit: int) -> list[ExportedTemplate]:
        """Templates by rising key, those beyond `after`, in one state of the database.

        Raises EncryptionKeyMissing or DamagedData.
        """
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            query = (
                select(
                    templates.c.id, templates.c.face_id, templates.c.person, templates.c.quality,
                    templates.c.content_digest, persons.c.person_id,
                    persons.c.metadata.label("person_metadata"),
                    crops.c.crop, crops.c.sealed.label("crop_sealed"),
                )
                .join(persons, persons.c.id == templates.c.person)
                .outerjoin(crops, crops.c.template == templates.c.id)
                .where(templates.c.collection == collection.key, templates.c.id > after)
                .order_by(templates.c.id)
                .limit(limit)
            )  # fmt: skip
            rows = connection.execute(self._codec.with_embedding(query)).all()
            vectors = self._codec.vectors(collection, rows)
            found = []
            for row, vector in zip(rows, vectors, strict=True):
                crop = row.crop
                if row.crop_sealed:
                    key = self._codec.known_key(connection, collection, row.person)
                    crop = self._codec.opened_crop(key, row.face_id, crop)
                # Sealed rows hold a mark of their person's own, which means nothing elsewhere.
                digest = None if row.sealed else row.content_digest
                found.append(
                    ExportedTemplate(
                        row.id, row.face_id, row.person_id, row.person_metadata, vector,
                        row.quality, digest, crop,
                    )
                )  # fmt: skip
            return found
