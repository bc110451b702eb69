"""A collection's second embedding space: kept crops, embeddings made of them, the cut-over."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Connection,
    Exists,
    and_,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)

from app.encryption.embeddings import face_context
from app.errors import DamagedData, EncryptionKeyMissing, NotReembedded
from app.index.port import Templates
from app.store.database import Database
from app.store.pack_specific_policy import require_no_pack_specific_values
from app.store.records import (
    AlternateEmbedding,
    AlternateEmbeddingState,
    CollectionRecord,
    KeptCrop,
)
from app.store.sql.audit_log import note
from app.store.sql.changes import log_space
from app.store.sql.embedding_rows import NO_KEY, plain_vector
from app.store.sql.encryption import encrypt_plain
from app.store.sql.lookups import get_again, get_collection, load_templates, lock_collection
from app.store.sql.tables import alternate_embeddings, collections, crops, persons, templates
from app.types import FloatArray


class AlternateEmbeddingStore:
    """Keeps crops and alternate embeddings; a deleted template takes its own with it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def state(self, name: str, embedding_space: str) -> AlternateEmbeddingState:
        """How many of a collection's templates have an embedding of another space."""
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            mine = templates.c.collection == collection.key
            count = select(func.count()).select_from(templates).where(mine)
            ready = _has_alternate(embedding_space)
            crop = exists().where(crops.c.template == templates.c.id)
            return AlternateEmbeddingState(
                connection.execute(count).scalar_one(),
                connection.execute(count.where(ready)).scalar_one(),
                connection.execute(count.where(~ready, ~crop)).scalar_one(),
            )

    def faces_without_crop(
        self, name: str, embedding_space: str, limit: int
    ) -> list[tuple[str, str]]:
        """The ids of the first faces that have neither an embedding of that space nor a crop, each
        with the id of its person."""
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            query = (
                select(templates.c.face_id, persons.c.person_id)
                .join(persons, persons.c.id == templates.c.person)
                .where(
                    templates.c.collection == collection.key,
                    ~_has_alternate(embedding_space),
                    ~exists().where(crops.c.template == templates.c.id),
                )
            )
            rows = connection.execute(query.order_by(templates.c.id).limit(limit))
            return [(row.face_id, row.person_id) for row in rows]

    def crops_to_reembed(
        self, name: str, embedding_space: str, after: int, limit: int
    ) -> list[KeptCrop]:
        """Crops by rising template key, from `after` on, that lack an embedding of that space.

        Raises EncryptionKeyMissing.
        """
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            query = (
                select(templates.c.id, templates.c.face_id, templates.c.person,
                       crops.c.crop, crops.c.sealed)
                .join(crops, crops.c.template == templates.c.id)
                .where(templates.c.collection == collection.key, templates.c.id > after,
                       ~_has_alternate(embedding_space))
                .order_by(templates.c.id)
                .limit(limit)
            )  # fmt: skip
            return [
                KeptCrop(row.id, row.face_id, self._opened(connection, collection, row))
                for row in connection.execute(query).all()
            ]

    def _opened(
        self, connection: Connection, collection: CollectionRecord, row: Any
    ) -> bytes | None:
        if not row.sealed:
            return bytes(row.crop)
        codec = self._database.codec
        try:
            key = codec.known_data_key(connection, collection, row.person)
            return codec.opened_crop(key, row.face_id, row.crop)
        except DamagedData:  # one damaged face keeps no other from being embedded
            return None

    def put(self, name: str, embedding_space: str, embeddings: Mapping[int, FloatArray]) -> None:
        """Store embeddings (d,) of another space by template key; of those deleted meanwhile
        nothing is kept."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            query = select(templates.c.id, templates.c.face_id, templates.c.person).where(
                templates.c.collection == collection.key, templates.c.id.in_(list(embeddings))
            )
            rows, codec = [], self._database.codec
            encrypted = 0
            for row in connection.execute(query).all():
                key = codec.data_key(connection, collection, row.person)
                if key is not None:  # at the cut-over both are encrypted, or neither
                    encrypted += encrypt_plain(connection, codec, key, templates.c.id == row.id)
                rows.append(
                    {
                        "template": row.id,
                        "embedding_space": embedding_space,
                        "embedding": codec.stored(key, row.face_id, embeddings[row.id]),
                        "sealed": key is not None,
                    }
                )
            there = and_(
                alternate_embeddings.c.embedding_space == embedding_space,
                alternate_embeddings.c.template.in_([row["template"] for row in rows]),
            )
            connection.execute(delete(alternate_embeddings).where(there))
            if rows:
                connection.execute(insert(alternate_embeddings), rows)
        if encrypted:
            self._database.eraser.erase()

    def both_spaces(
        self, name: str, other: CollectionRecord, limit: int, generator: "np.random.Generator"
    ) -> tuple[Templates, Templates]:
        """A sample of templates in the collection's space and the same ones in the `other`'s,
        which says the space and its dimension. Raises EncryptionKeyMissing or DamagedData."""
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            there = replace(
                collection, embedding_space=other.embedding_space, dimension=other.dimension
            )
            ready = select(templates.c.id).where(
                templates.c.collection == collection.key, _has_alternate(other.embedding_space)
            )
            keys = np.array(connection.execute(ready).scalars().all(), np.int64)
            if len(keys) > limit:
                keys = np.sort(generator.choice(keys, limit, replace=False))
            chosen = templates.c.id.in_(keys.tolist())
            return (
                load_templates(connection, collection, chosen, self._database.codec),
                self._load_alternates(connection, there, keys.tolist()),
            )

    def of_person(
        self, collection: CollectionRecord, person: int, keys: Sequence[int]
    ) -> dict[int, list[AlternateEmbedding]]:
        """The embeddings in other spaces of a person's templates, by template key. Raises
        EncryptionKeyMissing or DamagedData."""
        codec, found = self._database.codec, dict[int, list[AlternateEmbedding]]()
        query = (
            select(
                templates.c.id, templates.c.face_id, alternate_embeddings.c.embedding_space,
                alternate_embeddings.c.embedding.label("content"), alternate_embeddings.c.sealed,
            )
            .join(templates, templates.c.id == alternate_embeddings.c.template)
            .where(templates.c.person == person, templates.c.id.in_(keys))
            .order_by(templates.c.id, alternate_embeddings.c.embedding_space)
        )  # fmt: skip
        with self._database.reading() as connection:
            key = codec.known_data_key(connection, get_again(connection, collection), person)
            for row in connection.execute(query):
                plain = codec.moved((key, None), face_context(row.face_id), row)
                one = AlternateEmbedding(row.embedding_space, plain_vector(plain))
                found.setdefault(row.id, []).append(one)
        return found

    def _load_alternates(
        self, connection: Connection, other: CollectionRecord, keys: Sequence[int]
    ) -> Templates:
        query = self._database.codec.with_alternate(
            select(templates.c.id, templates.c.person).where(
                templates.c.id.in_(keys),
                alternate_embeddings.c.embedding_space == other.embedding_space,
            )
        )
        rows = connection.execute(query.order_by(templates.c.id)).all()
        return Templates(
            np.array([row.id for row in rows], np.int64),
            np.array([row.person for row in rows], np.int64),
            self._database.codec.vectors(other, rows),
        )

    def cut_over(
        self, name: str, embedding_space: str, dimension: int, *, same_quality: bool
    ) -> CollectionRecord:
        """Switch a collection to another space in one transaction: its embeddings and the
        alternate embeddings of that space change places. Raises NotReembedded unless all have one,
        and Conflict as `require_no_pack_specific_values`."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            if collection.embedding_space == embedding_space:
                return collection
            require_no_pack_specific_values(collection, same_quality=same_quality)
            note(connection, "collection.migrated", collection.name, to=embedding_space)
            mine = templates.c.collection == collection.key
            lacking = connection.execute(
                select(func.count())
                .select_from(templates)
                .where(mine, ~_has_alternate(embedding_space))
            ).scalar_one()
            if lacking:
                raise NotReembedded(
                    f"{lacking} faces of '{name}' have no embedding of {embedding_space} yet; "
                    "nothing was changed. Call likeness models migrate again, while "
                    "no faces are enrolled."
                )
            self._encrypt_replaced(connection, collection, embedding_space)
            self._swap(connection, collection, embedding_space)
            connection.execute(
                update(collections)
                .where(collections.c.id == collection.key)
                .values(embedding_space=embedding_space, dimension=dimension)
            )
            log_space(connection, collection, self._database.clock())
            migrated = get_collection(connection, name)
        self._database.eraser.erase()
        return migrated

    def _encrypt_replaced(
        self, connection: Connection, collection: CollectionRecord, embedding_space: str
    ) -> None:
        """Encrypt what is plain of templates that an encrypted embedding will take the place of.
        `put` does it as well; earlier versions did not."""
        replaced = select(templates.c.person).distinct().where(
            templates.c.collection == collection.key,
            templates.c.sealed.is_(False),
            _has_alternate(embedding_space, alternate_embeddings.c.sealed),
        )  # fmt: skip
        for person in connection.execute(replaced).scalars().all():
            key = self._database.codec.data_key(connection, collection, person)
            if key is None:
                raise EncryptionKeyMissing(NO_KEY)
            encrypt_plain(connection, self._database.codec, key, templates.c.person == person)

    def _swap(
        self, connection: Connection, collection: CollectionRecord, embedding_space: str
    ) -> None:
        mine = templates.c.collection == collection.key
        ours = select(templates.c.id).where(mine)
        old = alternate_embeddings.c.embedding_space == collection.embedding_space
        connection.execute(
            delete(alternate_embeddings).where(old, alternate_embeddings.c.template.in_(ours))
        )
        kept = select(
            templates.c.id, literal(collection.embedding_space),
            templates.c.embedding, templates.c.sealed,
        ).where(mine)  # fmt: skip
        columns = ["template", "embedding_space", "embedding", "sealed"]
        connection.execute(insert(alternate_embeddings).from_select(columns, kept))
        here = and_(
            alternate_embeddings.c.template == templates.c.id,
            alternate_embeddings.c.embedding_space == embedding_space,
        )
        connection.execute(
            update(templates)
            .where(mine)
            .values(
                embedding=select(alternate_embeddings.c.embedding).where(here).scalar_subquery(),
                sealed=select(alternate_embeddings.c.sealed).where(here).scalar_subquery(),
            )
        )
        new = alternate_embeddings.c.embedding_space == embedding_space
        connection.execute(
            delete(alternate_embeddings).where(new, alternate_embeddings.c.template.in_(ours))
        )

    def drop(self, name: str) -> int:
        """Delete every embedding of other spaces than the collection's; how many there were."""
        with self._database.writing() as connection:
            collection = lock_collection(connection, name)
            ours = select(templates.c.id).where(templates.c.collection == collection.key)
            done = connection.execute(
                delete(alternate_embeddings).where(alternate_embeddings.c.template.in_(ours))
            )
            note(connection, "alternate_embeddings.deleted", name, embeddings=done.rowcount)
        self._database.eraser.erase()
        return int(done.rowcount)


def delete_crops(connection: Connection, collection: CollectionRecord) -> int:
    """Delete every kept crop of a collection; how many there were. The caller erases their bytes
    (`Eraser.erase`)."""
    ours = select(templates.c.id).where(templates.c.collection == collection.key)
    done = connection.execute(delete(crops).where(crops.c.template.in_(ours)))
    if done.rowcount:
        note(connection, "crops.deleted", collection.name, crops=done.rowcount)
    return int(done.rowcount)


def _has_alternate(embedding_space: str, *which: ColumnElement[bool]) -> Exists:
    return exists().where(
        *which,
        alternate_embeddings.c.template == templates.c.id,
        alternate_embeddings.c.embedding_space == embedding_space,
    )
