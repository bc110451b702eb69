"""Collections, which of them have changed, and their calibrations: those made, and the one in
use."""

from collections.abc import Callable, Collection, Iterator

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from app.errors import CollectionExists, CollectionNotFound
from app.index.port import GallerySize
from app.store.database import Database
from app.store.identifiers import new_collection_name
from app.store.metadata import check_metadata
from app.store.records import CollectionMark, CollectionRecord, DeletionCounts, Erasure, Page
from app.store.sql.alternate_embeddings import delete_crops
from app.store.sql.audit_log import note
from app.store.sql.collection_removal import CollectionRemoval
from app.store.sql.consents import needs_consent
from app.store.sql.lookups import (
    collection_query,
    collection_record,
    count_rows,
    fetch_page,
    get_again,
    get_collection,
    is_live,
    lock_collection,
    to_page,
)
from app.store.sql.required_consents import require_all_consents
from app.store.sql.tables import calibrations, collections, persons, templates
from app.types import JsonObject

PAGE = 100


def _changed(before: JsonObject, after: JsonObject) -> JsonObject:
    """The members of a policy that were changed, for the audit log: their names, and their values
    before and after; null: not set."""
    names = sorted({name for name in {*before, *after} if before.get(name) != after.get(name)})
    if not names:
        return {}
    values = ({name: one.get(name) for name in names} for one in (before, after))
    return {"policy": names} | dict(zip(("before", "after"), values, strict=True))


class CollectionStore:
    """Creates, reads, changes and deletes collections; maintenance asks it once a second which of
    them have changed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.removal = CollectionRemoval(database)

    def create(
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
            "created_at": self._database.clock(),
        }
        with self._database.writing() as connection:
            try:
                connection.execute(insert(collections).values(values))
            except IntegrityError as error:
                # Only the insert itself can know: another process may be just as far.
                raise CollectionExists(f"The collection '{name}' exists already.") from error
            created = get_collection(connection, name)
            note(connection, "collection.created", name, **_changed({}, created.policy))
            return created

    def every(self) -> Iterator[CollectionRecord]:
        """All collections, page by page."""
        after: str | None = None
        while True:
            page = self.page(after, PAGE)
            yield from page.items
            if not page.more:
                return
            after = page.items[-1].name

    def get(self, name: str) -> CollectionRecord:
        """One collection by name."""
        with self._database.reading_once() as connection:
            return get_collection(connection, name)

    def by_key(self, key: int) -> CollectionRecord:
        """A collection by its key in the database."""
        query = collection_query().where(collections.c.id == key)
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise CollectionNotFound(f"The collection numbered {key} was deleted meanwhile.")
        return collection_record(row)

    def count(self, collection: CollectionRecord) -> GallerySize:
        """How many persons and templates it holds."""
        with self._database.reading() as connection:
            return GallerySize(
                count_rows(connection, persons, persons.c.collection == collection.key),
                count_rows(connection, templates, templates.c.collection == collection.key),
            )

    def page(
        self, after: str | None, limit: int, only: Collection[str] | None = None
    ) -> Page[CollectionRecord]:
        """Collections by name, those after `after`; of those names only, if they are given."""
        query = collection_query().order_by(collections.c.name)
        if after is not None:
            query = query.where(collections.c.name > after)
        if only is not None:
            query = query.where(collections.c.name.in_(only))
        with self._database.reading() as connection:
            return to_page(fetch_page(connection, query, limit, "metadata"), collection_record)

    def update(
        self,
        name: str,
        metadata: JsonObject | None,
        policy: JsonObject | Callable[[CollectionRecord], JsonObject] | None,
        *,
        check: Callable[[CollectionRecord], None] | None = None,
    ) -> CollectionRecord:
        """Replace a collection's metadata, its policy, or both; None leaves one as it is. Functions
        are given the collection as it is, which nobody else can change meanwhile: `policy` returns
        the new policy; if `check` raises, nothing is changed. A policy without `keep_crops` deletes
        the kept crops. Raises ConsentMissing if the policy requires consents that persons do not
        have."""
        if metadata is not None:
            check_metadata(metadata)
        with self._database.writing() as connection:
            before = lock_collection(connection, name)
            if check is not None:
                check(before)
            new = policy(before) if callable(policy) else policy
            given = {"metadata": metadata, "policy": new}
            values = {column: dict(value) for column, value in given.items() if value is not None}
            if not values:
                return before
            mine = collections.c.id == before.key
            connection.execute(update(collections).where(mine).values(values))
            after = get_collection(connection, name)
            if needs_consent(after) and not needs_consent(before):
                require_all_consents(connection, after, self._database.clock())
            changed = _changed(before.policy, after.policy)
            note(connection, "collection.changed", name, fields=sorted(values), **changed)
            dropped = 0
            if new is not None and not after.keeps_crops:
                dropped = delete_crops(connection, after)
        if dropped:
            self._database.eraser.erase()
        return after

    def delete(
        self, name: str, forget_imports: Callable[[], Erasure] | None = None
    ) -> DeletionCounts:
        """Delete a collection with all its persons and templates, as `CollectionRemoval.delete`."""
        return self.removal.delete(name, forget_imports)

    # --- which have changed ------------------------------------------------------------------

    def state(self) -> tuple[int, int, int]:
        """Three numbers, at least one of which changes when a collection is created or deleted or
        its templates change, also by a restore: keys are used only once, and revisions only
        rise."""
        query = select(
            func.count(), func.max(collections.c.id), func.sum(collections.c.revision)
        ).where(is_live())
        with self._database.reading() as connection:
            count, newest, revisions = connection.execute(query).one()
            return int(count), int(newest or 0), int(revisions or 0)

    def marks(self) -> dict[int, CollectionMark]:
        """The space, revision and stamp of each collection, by key."""
        query = select(
            collections.c.id, collections.c.embedding_space,
            collections.c.revision, collections.c.stamp,
        ).where(is_live())  # fmt: skip
        with self._database.reading() as connection:
            return {key: CollectionMark(*mark) for key, *mark in connection.execute(query)}

    def large(self, at_least: int) -> dict[int, int]:
        """The numbers of templates of the collections that have `at_least` so many, the most
        recently enrolled into first."""
        count, newest = func.count(), func.max(templates.c.id)
        query = select(templates.c.collection, count).group_by(templates.c.collection)
        query = query.where(is_live(templates))
        query = query.having(count >= at_least).order_by(newest.desc())
        with self._database.reading() as connection:
            return {key: int(held) for key, held in connection.execute(query)}


class CalibrationStore:
    """Keeps the calibrations of collections, as JSON; each has at most one in use."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set(self, collection: CollectionRecord, calibration_id: str, content: JsonObject) -> None:
        """Keep a calibration of the collection and put it to use.

        Raises CollectionNotFound if it was deleted meanwhile, even if another one has its name, and
        EmbeddingSpaceMismatch if it changed its space.
        """
        name = collection.name
        with self._database.writing() as connection:
            lock_collection(connection, name)
            key = get_again(connection, collection).key
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
