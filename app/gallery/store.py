"""The truth in SQL: persons and their templates, one transaction a call."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from app.errors import (
    CollectionExists,
    PersonExists,
)
from app.gallery.ports import (
    Changes,
    CollectionRecord,
    FaceRecord,
    GallerySize,
    NewTemplate,
    Page,
    PersonRecord,
    Receipt,
    StoredTemplate,
    Templates,
)
from app.gallery.rows import (
    STORED_DTYPE,
    collection_query,
    collection_record,
    count_rows,
    face_query,
    face_record,
    find_person,
    get_again,
    get_collection,
    get_face,
    get_person,
    load_templates,
    person_query,
    person_record,
    to_ids,
    to_page,
    to_vectors,
)
from app.gallery.tables import calibrations, changes, collections, persons, templates
from app.gallery.transactions import Transactions
from app.types import FloatArray, JsonObject

ADD, REMOVE = "add", "remove"
MAX_KEYS = 10_000  # in one statement; SQLite takes 32,766 parameters


def now_utc() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class SqlStore:
    """A `TemplateStore` over an SQLAlchemy engine whose tables are up to date."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime] = now_utc) -> None:
        self._database = Transactions(engine)
        self._clock = clock

    # --- collections -------------------------------------------------------------------------

    def create_collection(
        self,
        name: str,
        embedding_space: str,
        dimension: int,
        metadata: JsonObject,
        policy: JsonObject | None = None,
    ) -> CollectionRecord:
        """Create an empty collection bound to one embedding space."""
        values = {
            "name": name,
            "embedding_space": embedding_space,
            "dimension": dimension,
            "revision": 0,
            "metadata": dict(metadata),
            "policy": dict(policy or {}),
            "created_at": self._clock(),
        }
        with self._database.writing() as connection:
            if connection.execute(collection_query(name)).one_or_none():
                raise CollectionExists(f"The collection '{name}' exists already.")
            connection.execute(insert(collections).values(values))
            return get_collection(connection, name)

    def collection(self, name: str) -> CollectionRecord:
        """One collection by name."""
        with self._database.reading() as connection:
            return get_collection(connection, name)

    def count(self, collection: CollectionRecord) -> GallerySize:
        """How many persons and templates it holds."""
        with self._database.reading() as connection:
            return GallerySize(
                count_rows(connection, persons, persons.c.collection == collection.key),
                count_rows(connection, templates, templates.c.collection == collection.key),
            )

    def collections(self, after: str | None, limit: int) -> Page[CollectionRecord]:
        """Collections by name, those after `after`."""
        query = select(collections).order_by(collections.c.name).limit(limit + 1)
        if after is not None:
            query = query.where(collections.c.name > after)
        with self._database.reading() as connection:
            return to_page([collection_record(row) for row in connection.execute(query)], limit)

    def update_collection(
        self, name: str, metadata: JsonObject | None, policy: JsonObject | None
    ) -> CollectionRecord:
        """Replace a collection's metadata, its policy, or both; None leaves one as it is."""
        given = {"metadata": metadata, "policy": policy}
        values = {column: dict(value) for column, value in given.items() if value is not None}
        with self._database.writing() as connection:
            key = get_collection(connection, name).key
            if values:
                connection.execute(
                    update(collections).where(collections.c.id == key).values(values)
                )
            return get_collection(connection, name)

    def delete_collection(self, name: str) -> Receipt:
        """Delete a collection with all its persons and templates."""
        with self._database.writing() as connection:
            key = get_collection(connection, name).key
            receipt = Receipt(
                count_rows(connection, persons, persons.c.collection == key),
                count_rows(connection, templates, templates.c.collection == key),
            )
            connection.execute(delete(collections).where(collections.c.id == key))
        self._database.erase_deleted()
        return receipt

    # --- persons -----------------------------------------------------------------------------

    def create_person(self, name: str, person_id: str, metadata: JsonObject) -> PersonRecord:
        """Create a person without templates."""
        with self._database.writing() as connection:
            collection = get_collection(connection, name)
            if find_person(connection, collection, person_id):
                raise PersonExists(f"The person '{person_id}' exists in '{name}' already.")
            self._insert_person(connection, collection, person_id, metadata)
            return get_person(connection, collection, person_id)

    def person(self, name: str, person_id: str) -> PersonRecord:
        """One person by id."""
        with self._database.reading() as connection:
            return get_person(connection, get_collection(connection, name), person_id)

    def persons(self, name: str, after: str | None, limit: int) -> Page[PersonRecord]:
        """Persons by id, those after `after`."""
        with self._database.reading() as connection:
            key = get_collection(connection, name).key
            query = person_query().where(persons.c.collection == key)
            if after is not None:
                query = query.where(persons.c.person_id > after)
            rows = connection.execute(query.order_by(persons.c.person_id).limit(limit + 1))
            return to_page([person_record(row) for row in rows], limit)

    def update_person(self, name: str, person_id: str, metadata: JsonObject) -> PersonRecord:
        """Replace a person's metadata."""
        with self._database.writing() as connection:
            collection = get_collection(connection, name)
            key = get_person(connection, collection, person_id).key
            self._set_metadata(connection, key, metadata)
            return get_person(connection, collection, person_id)

    def delete_person(self, name: str, person_id: str) -> Receipt:
        """Delete a person and every template of theirs."""
        with self._database.writing() as connection:
            collection = get_collection(connection, name)
            person = get_person(connection, collection, person_id)
            query = select(templates.c.id).where(templates.c.person == person.key)
            keys = list(connection.execute(query).scalars())
            self._log(connection, collection, REMOVE, keys)
            connection.execute(delete(persons).where(persons.c.id == person.key))
        self._database.erase_deleted()
        return Receipt(persons=1, templates=len(keys))

    # --- templates ---------------------------------------------------------------------------

    def enroll(
        self,
        name: str,
        person_id: str,
        metadata: JsonObject | None,
        new_templates: Sequence[NewTemplate],
    ) -> list[StoredTemplate]:
        """Store templates of a person, who is created if need be; all of them or none.

        Metadata replaces what the person had, unless it is None.
        """
        with self._database.writing() as connection:
            collection = get_collection(connection, name)
            person = find_person(connection, collection, person_id)
            if person is None:
                key = self._insert_person(connection, collection, person_id, metadata or {})
            else:
                key = person.key
                if metadata is not None:
                    self._set_metadata(connection, key, metadata)
            stored = [self._put(connection, collection, key, new) for new in new_templates]
            added = [one.face.template_key for one in stored if not one.duplicate]
            self._log(connection, collection, ADD, added)
            return stored

    def face(self, name: str, face_id: str) -> FaceRecord:
        """One stored face by id."""
        with self._database.reading() as connection:
            return get_face(connection, get_collection(connection, name), face_id)

    def faces(
        self, name: str, person_id: str | None, after: str | None, limit: int
    ) -> Page[FaceRecord]:
        """Stored faces by id, of the whole collection or of one person."""
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            query = face_query().where(templates.c.collection == collection.key)
            if person_id is not None:
                person = get_person(connection, collection, person_id)
                query = query.where(templates.c.person == person.key)
            if after is not None:
                query = query.where(templates.c.face_id > after)
            rows = connection.execute(query.order_by(templates.c.face_id).limit(limit + 1))
            return to_page([face_record(row) for row in rows], limit)

    def delete_face(self, name: str, face_id: str) -> Receipt:
        """Delete one template; its person stays."""
        with self._database.writing() as connection:
            collection = get_collection(connection, name)
            face = get_face(connection, collection, face_id)
            self._log(connection, collection, REMOVE, [face.template_key])
            connection.execute(delete(templates).where(templates.c.id == face.template_key))
        self._database.erase_deleted()
        return Receipt(persons=0, templates=1)

    def stored_digests(self, name: str, person_id: str) -> set[str]:
        """Digests of what a person's templates were made from; empty for an unknown person."""
        with self._database.reading() as connection:
            person = find_person(connection, get_collection(connection, name), person_id)
            if person is None:
                return set()
            query = select(templates.c.content_digest).where(templates.c.person == person.key)
            return set(connection.execute(query).scalars())

    def embeddings(self, name: str, person_id: str) -> tuple[list[FaceRecord], FloatArray]:
        """A person's faces and their embeddings (n, d), in the same order."""
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            person = get_person(connection, collection, person_id)
            query = face_query().add_columns(templates.c.embedding)
            rows = connection.execute(
                query.where(templates.c.person == person.key).order_by(templates.c.id)
            ).all()
            vectors = to_vectors([row.embedding for row in rows], collection.dimension)
            return [face_record(row) for row in rows], vectors

    def faces_by_key(self, keys: Sequence[int]) -> Mapping[int, FaceRecord]:
        """The faces of template keys; those deleted since are missing."""
        found: dict[int, FaceRecord] = {}
        with self._database.reading() as connection:
            for start in range(0, len(keys), MAX_KEYS):
                some = keys[start : start + MAX_KEYS]
                rows = connection.execute(face_query().where(templates.c.id.in_(some)))
                found.update((row.id, face_record(row)) for row in rows)
        return found

    def person_keys(self, collection: CollectionRecord, metadata: JsonObject) -> set[int]:
        """Keys of the persons whose metadata holds every given member with that very value."""
        query = select(persons.c.id, persons.c.metadata).where(
            persons.c.collection == collection.key
        )
        with self._database.reading() as connection:
            return {
                row.id
                for row in connection.execute(query)
                if all(k in row.metadata and row.metadata[k] == v for k, v in metadata.items())
            }

    # --- for the index -----------------------------------------------------------------------

    def all_templates(self, collection: CollectionRecord) -> Changes:
        """Every template, as one addition, with the revision it stands at."""
        with self._database.reading() as connection:
            collection = get_again(connection, collection)
            added = load_templates(connection, collection, templates.c.collection == collection.key)
            return Changes(collection.revision, added, to_ids([]))

    def changes_since(self, collection: CollectionRecord, revision: int) -> Changes:
        """What was added (and is still there) and removed after `revision`."""
        with self._database.reading() as connection:
            collection = get_again(connection, collection)
            recent = (changes.c.collection == collection.key) & (changes.c.revision > revision)
            added = select(changes.c.template).where(recent, changes.c.kind == ADD)
            removed = select(changes.c.template).where(recent, changes.c.kind == REMOVE)
            return Changes(
                collection.revision,
                load_templates(connection, collection, templates.c.id.in_(added)),
                to_ids(list(connection.execute(removed).scalars())),
            )

    # --- calibration -------------------------------------------------------------------------

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
            key = get_collection(connection, name).key
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
            self._use_calibration(connection, key, calibration_id)

    def clear_calibration(self, name: str) -> None:
        """Use no calibration of the collection's own; those made are kept."""
        with self._database.writing() as connection:
            self._use_calibration(connection, get_collection(connection, name).key, None)

    def calibration(self, collection: CollectionRecord) -> JsonObject | None:
        """The content of the calibration that the record says is in use; None without one."""
        query = select(calibrations.c.content).where(
            calibrations.c.collection == collection.key,
            calibrations.c.calibration_id == collection.calibration_id,
        )
        with self._database.reading() as connection:
            content: JsonObject | None = connection.execute(query).scalar_one_or_none()
            return content

    # --- upkeep ------------------------------------------------------------------------------

    def ping(self) -> None:
        """Raise StoreUnavailable unless the database answers."""
        with self._database.reading() as connection:
            connection.execute(select(collections.c.id).limit(1))

    def describe(self) -> Mapping[str, Any]:
        """Facts for `likeness doctor`."""
        return {"database": self._database.engine.url.render_as_string(hide_password=True)}

    def close(self) -> None:
        """Close every connection."""
        self._database.engine.dispose()

    # --- inside ------------------------------------------------------------------------------

    def _put(
        self, connection: Connection, collection: CollectionRecord, person: int, new: NewTemplate
    ) -> StoredTemplate:
        same = (templates.c.person == person) & (templates.c.content_digest == new.content_digest)
        known = connection.execute(face_query().where(same)).one_or_none()
        if known is not None:
            return StoredTemplate(face_record(known), duplicate=True)
        key = connection.execute(
            insert(templates)
            .values(
                face_id=str(uuid.uuid4()),
                collection=collection.key,
                person=person,
                embedding=new.embedding.astype(STORED_DTYPE).tobytes(),
                content_digest=new.content_digest,
                quality=dict(new.quality),
                created_at=self._clock(),
            )
            .returning(templates.c.id)
        ).scalar_one()
        row = connection.execute(face_query().where(templates.c.id == key)).one()
        return StoredTemplate(face_record(row), duplicate=False)

    def _insert_person(
        self,
        connection: Connection,
        collection: CollectionRecord,
        person_id: str,
        metadata: JsonObject,
    ) -> int:
        now = self._clock()
        result = connection.execute(
            insert(persons)
            .values(
                collection=collection.key,
                person_id=person_id,
                metadata=dict(metadata),
                created_at=now,
                updated_at=now,
            )
            .returning(persons.c.id)
        )
        return int(result.scalar_one())

    def _set_metadata(self, connection: Connection, person: int, metadata: JsonObject) -> None:
        connection.execute(
            update(persons)
            .where(persons.c.id == person)
            .values(metadata=dict(metadata), updated_at=self._clock())
        )

    def _use_calibration(
        self, connection: Connection, collection: int, calibration_id: str | None
    ) -> None:
        connection.execute(
            update(collections)
            .where(collections.c.id == collection)
            .values(calibration_id=calibration_id)
        )

    def _log(
        self, connection: Connection, collection: CollectionRecord, kind: str, keys: Sequence[int]
    ) -> None:
        """Raise the collection's revision by one and write what happened at it."""
        if not keys:
            return
        row = connection.execute(
            update(collections)
            .where(collections.c.id == collection.key)
            .values(revision=collections.c.revision + 1)
            .returning(collections.c.revision)
        ).one()
        now = self._clock()
        connection.execute(
            insert(changes),
            [
                {
                    "collection": collection.key,
                    "revision": row.revision,
                    "template": key,
                    "kind": kind,
                    "created_at": now,
                }
                for key in keys
            ],
        )
