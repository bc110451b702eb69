"""Collections in SQL."""

from dataclasses import replace

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from app.errors import CollectionExists
from app.index.port import GallerySize
from app.store.identifiers import new_collection_name
from app.store.metadata import check_metadata
from app.store.records import CollectionRecord, DeletionCounts, Page
from app.store.sql.lookups import (
    collection_record,
    count_rows,
    fetch_page,
    get_collection,
    lock_collection,
    to_page,
)
from app.store.sql.part import Part
from app.store.sql.tables import collections, persons, templates
from app.types import JsonObject


class CollectionPart(Part):
    """Creates, reads, changes and deletes collections."""

    def create_collection(
        self,
        name: str,
        embedding_space: str,
        dimension: int,
        metadata: JsonObject,
        policy: JsonObject | None = None,
    ) -> CollectionRecord:
        """Create an empty collection bound to one embedding space. Raises InvalidRequest if the
        name or the metadata breaks the rules."""
        values = {
            "name": new_collection_name(name),
            "embedding_space": embedding_space,
            "dimension": dimension,
            "revision": 0,
            "metadata": dict(check_metadata(metadata)),
            "policy": dict(policy or {}),
            "created_at": self._clock(),
        }
        with self._database.writing() as connection:
            try:
                connection.execute(insert(collections).values(values))
            except IntegrityError as error:
                # Only the insert itself can know: another process may be just as far.
                raise CollectionExists(f"The collection '{name}' exists already.") from error
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
        query = select(collections).order_by(collections.c.name)
        if after is not None:
            query = query.where(collections.c.name > after)
        with self._database.reading() as connection:
            return to_page(fetch_page(connection, query, limit, "metadata"), collection_record)

    def update_collection(
        self, name: str, metadata: JsonObject | None, policy: JsonObject | None
    ) -> CollectionRecord:
        """Replace a collection's metadata, its policy, or both; None leaves one as it is."""
        if metadata is not None:
            check_metadata(metadata)
        given = {"metadata": metadata, "policy": policy}
        values = {column: dict(value) for column, value in given.items() if value is not None}
        with self._database.writing() as connection:
            key = lock_collection(connection, name).key
            if values:
                connection.execute(
                    update(collections).where(collections.c.id == key).values(values)
                )
            return get_collection(connection, name)

    def delete_collection(self, name: str) -> DeletionCounts:
        """Delete a collection with all its persons and templates."""
        with self._database.writing() as connection:
            key = lock_collection(connection, name).key
            deletion = DeletionCounts(
                count_rows(connection, persons, persons.c.collection == key),
                count_rows(connection, templates, templates.c.collection == key),
            )
            connection.execute(delete(collections).where(collections.c.id == key))
        return replace(deletion, erased=self._database.eraser.erase())
