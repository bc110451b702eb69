"""Reads stored embeddings: of a person, by key, by chance, and for an export."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from sqlalchemy import Select, bindparam, func, or_, select

from app.index.port import Templates
from app.store.database import Database
from app.store.records import CollectionRecord, ExportedTemplate, FaceRecord
from app.store.sql.lookups import (
    MAX_KEYS,
    aware,
    face_query,
    face_record,
    get_again,
    get_collection,
    get_person,
    load_templates,
)
from app.store.sql.statements import Statement
from app.store.sql.tables import crops, persons, templates
from app.types import FloatArray

MOST_SAMPLED = 20  # templates of one person, by `sample`: people say more than their templates


class EmbeddingStore:
    """Reads embeddings, decrypted. All raise EncryptionKeyMissing or DamagedData."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of_person(
        self, name: str, person_id: str, space: str | None = None
    ) -> tuple[list[FaceRecord], FloatArray]:
        """A person's faces and their embeddings (n, d), in the same order. Raises
        EmbeddingSpaceMismatch if the collection is not of `space`."""
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            if space is not None:
                collection.require_space(space)
            person = get_person(connection, collection, person_id)
            rows = self._of_person.rows(connection, {"person": person.key})
            vectors = self._database.codec.vectors(collection, rows)
            return [face_record(row) for row in rows], vectors

    @cached_property
    def _of_person(self) -> Statement:
        query = self._database.codec.with_embedding(face_query())
        mine = templates.c.person == bindparam("person", type_=templates.c.person.type)
        return Statement(query.where(mine).order_by(templates.c.id))

    def by_key(self, collection: CollectionRecord, keys: Sequence[int]) -> Templates:
        """The templates of at most MAX_KEYS keys, in ascending order of keys, without deleted
        ones."""
        chosen = (templates.c.collection == collection.key) & templates.c.id.in_(keys)
        with self._database.reading() as connection:
            now = get_again(connection, collection)
            return load_templates(connection, now, chosen, self._database.codec)

    def sample(
        self, collection: CollectionRecord, limit: int, generator: "np.random.Generator"
    ) -> Templates:
        """Templates of people drawn at random, `limit` of them at most, and of each person
        MOST_SAMPLED at most, evenly spaced: no person takes the place of all others."""
        counts = select(templates.c.person, func.count().label("held")).group_by(templates.c.person)
        with self._database.reading() as connection:
            now = get_again(connection, collection)
            rows = connection.execute(
                counts.where(templates.c.collection == collection.key).order_by(templates.c.person)
            ).all()
            order = generator.permutation(len(rows))
            held = np.cumsum([min(rows[i].held, MOST_SAMPLED) for i in order])
            chosen = [rows[i].person for i in order[: int(np.searchsorted(held, limit) + 1)]]
            parts = [
                load_templates(
                    connection,
                    now,
                    templates.c.id.in_(_evenly_spaced(chosen[start : start + MAX_KEYS])),
                    self._database.codec,
                )
                for start in range(0, max(len(chosen), 1), MAX_KEYS)
            ]
            return Templates(
                np.concatenate([part.keys for part in parts])[:limit],
                np.concatenate([part.person_keys for part in parts])[:limit],
                np.concatenate([part.vectors for part in parts])[:limit],
            )

    def exported(
        self, name: str, after: int, limit: int, person: int | None = None
    ) -> list[ExportedTemplate]:
        """Templates in ascending order of keys, those beyond `after`, in one state of the
        database; of one person only, if their key is given."""
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            query = (
                select(
                    templates.c.id, templates.c.face_id, templates.c.person, templates.c.quality,
                    templates.c.content_digest, templates.c.created_at, persons.c.person_id,
                    persons.c.metadata.label("person_metadata"),
                    crops.c.crop, crops.c.sealed.label("crop_sealed"),
                )
                .join(persons, persons.c.id == templates.c.person)
                .outerjoin(crops, crops.c.template == templates.c.id)
                .where(templates.c.collection == collection.key, templates.c.id > after)
                .order_by(templates.c.id)
                .limit(limit)
            )  # fmt: skip
            if person is not None:
                query = query.where(templates.c.person == person)
            rows = connection.execute(self._database.codec.with_embedding(query)).all()
            vectors = self._database.codec.vectors(collection, rows)
            found = []
            for row, vector in zip(rows, vectors, strict=True):
                crop = row.crop
                if row.crop_sealed:
                    key = self._database.codec.known_data_key(connection, collection, row.person)
                    crop = self._database.codec.opened_crop(key, row.face_id, crop)
                # Encrypted rows hold a mark of their person's own, which means nothing elsewhere.
                digest = None if row.sealed else row.content_digest
                found.append(
                    ExportedTemplate(
                        row.id, row.face_id, row.person_id, row.person_metadata, vector,
                        row.quality, digest, crop, aware(row.created_at),
                    )
                )  # fmt: skip
            return found


def _evenly_spaced(person_keys: list[int]) -> Select[tuple[int]]:
    """The keys of the templates of some persons, of each MOST_SAMPLED at most: the first, the last,
    and others evenly between them."""
    place = func.row_number().over(partition_by=templates.c.person, order_by=templates.c.id) - 1
    held = func.count().over(partition_by=templates.c.person)
    numbered = (
        select(templates.c.id, place.label("place"), held.label("held"))
        .where(templates.c.person.in_(person_keys))
        .subquery()
    )
    # The chosen places are first * last // steps for first = 0, 1, … steps: this one is, if the
    # largest `first` that does not lead beyond it leads to it.
    steps, last = MOST_SAMPLED - 1, func.nullif(numbered.c.held - 1, 0)
    reached = (steps * numbered.c.place + (steps - 1)) // last * last
    return select(numbered.c.id).where(
        or_(numbered.c.held <= MOST_SAMPLED, reached >= steps * numbered.c.place)
    )
