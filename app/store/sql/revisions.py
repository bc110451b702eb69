"""The revisions of all collections, which maintenance reads once a second."""

from sqlalchemy import func, select

from app.errors import CollectionNotFound
from app.store.records import CollectionMark, CollectionRecord
from app.store.sql.changes import ADD
from app.store.sql.lookups import collection_record
from app.store.sql.part import Part
from app.store.sql.tables import changes, collections, templates


class RevisionPart(Part):
    """The part of the store that tells which collections changed."""

    def state(self) -> tuple[int, int, int]:
        """Three numbers, at least one of which changes when a collection is created or deleted or
        its templates change: keys are used only once, and revisions only rise."""
        query = select(
            func.count(), func.max(collections.c.id), func.sum(collections.c.revision)
        ).select_from(collections)
        with self._database.reading() as connection:
            count, newest, revisions = connection.execute(query).one()
            return int(count), int(newest or 0), int(revisions or 0)

    def marks(self) -> dict[int, CollectionMark]:
        """The space, revision and stamp of each collection, by key."""
        query = select(
            collections.c.id, collections.c.embedding_space,
            collections.c.revision, collections.c.stamp,
        )  # fmt: skip
        with self._database.reading() as connection:
            return {key: CollectionMark(*mark) for key, *mark in connection.execute(query)}

    def collection_by_key(self, key: int) -> CollectionRecord:
        """A collection by its key in the database."""
        with self._database.reading() as connection:
            row = connection.execute(select(collections).where(collections.c.id == key)).first()
        if row is None:
            raise CollectionNotFound(f"The collection numbered {key} was deleted meanwhile.")
        return collection_record(row)

    def only_added_since(self, key: int, revision: int, stamp: str) -> bool:
        """Whether the log has that revision with that stamp, and after it templates were added to
        the collection but none removed."""
        mine = changes.c.collection == key
        here = mine & (changes.c.revision == revision) & (changes.c.stamp == stamp)
        other = mine & (changes.c.revision > revision) & (changes.c.kind != ADD)
        with self._database.reading() as connection:
            known = connection.execute(select(changes.c.kind).where(here).limit(1)).first()
            return known is not None and (
                connection.execute(select(changes.c.kind).where(other).limit(1)).first() is None
            )

    def large_collections(self, at_least: int) -> dict[int, int]:
        """The numbers of templates of the collections that have `at_least` so many, the most
        recently enrolled into first."""
        count, newest = func.count(), func.max(templates.c.id)
        query = select(templates.c.collection, count).group_by(templates.c.collection)
        query = query.having(count >= at_least).order_by(newest.desc())
        with self._database.reading() as connection:
            return {key: int(held) for key, held in connection.execute(query)}
