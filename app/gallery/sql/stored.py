"""What a database holds that this version would not store: found, and replaced by what is shown."""

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Select, select, update

from app.gallery.metadata import StoredAmiss, problem_of
from app.gallery.ports import AmissRow, ClashingIds
from app.gallery.sql.composing import id_clashes
from app.gallery.sql.part import Part
from app.gallery.sql.rows import lock_collection
from app.gallery.sql.tables import collections, persons, templates
from app.gallery.sql.terms import index_again, rebuild_terms, wrong_terms

ROWS_AT_ONCE = 2_000
# Each query gives key, collection's name, id and content.
_QUERIES: dict[str, Select[Any]] = {
    "collection": select(
        collections.c.id, collections.c.name.label("collection"), collections.c.name,
        collections.c.metadata.label("content"),
    ),
    "person": select(
        persons.c.id, collections.c.name.label("collection"), persons.c.person_id.label("name"),
        persons.c.metadata.label("content"),
    ).join(collections, collections.c.id == persons.c.collection),
    "face": select(
        templates.c.id, collections.c.name.label("collection"), templates.c.face_id.label("name"),
        templates.c.quality.label("content"),
    ).join(collections, collections.c.id == templates.c.collection),
}  # fmt: skip
_COLUMNS: dict[str, Any] = {
    "collection": collections.c.metadata,
    "person": persons.c.metadata,
    "face": templates.c.quality,
}


class StoredPart(Part):
    """Looks for what was stored before there were rules for it."""

    def stored_amiss(self) -> Iterator[AmissRow]:
        """Collections, persons and faces whose metadata or quality would not be stored today. Read
        page by page: what is written meanwhile may be in it or not."""
        for kind, query in _QUERIES.items():
            column = _COLUMNS[kind]
            for row in self._pages(query, column.table.c.id):
                if isinstance(row.content, StoredAmiss):
                    problem = problem_of(row.content, column.name) or ""
                    yield AmissRow(
                        kind, row.collection, row.name, row.id, problem, row.content.original
                    )

    def _pages(self, query: Select[Any], key: Any) -> Iterator[Any]:
        last = 0
        while True:
            page = query.where(key > last).order_by(key).limit(ROWS_AT_ONCE)
            with self._database.reading() as connection:
                rows = connection.execute(page).all()
            if not rows:
                return
            yield from rows
            last = rows[-1].id

    def store_as_shown(self, amiss: AmissRow, keep: Callable[[AmissRow], None]) -> bool:
        """Let the database hold what is shown of a row; `keep` gets what it held, before it is
        replaced. False where it has changed or gone meanwhile."""
        column = _COLUMNS[amiss.kind]
        mine = column.table.c.id == amiss.key
        with self._database.writing() as connection:
            collection = lock_collection(connection, amiss.collection)
            content = connection.execute(select(column).where(mine)).scalar_one_or_none()
            if not isinstance(content, StoredAmiss) or content.original != amiss.original:
                return False
            keep(amiss)
            shown = update(column.table).where(mine).values({column.name: dict(content)})
            connection.execute(shown)
            if amiss.kind == "person":
                index_again(connection, collection.key, amiss.key, content)
        self._database.eraser.erase()
        return True

    def wrong_terms(self, *, repair: bool = False) -> int:
        """How many persons are not in the index of metadata as they should be, and how much of it
        is nobody's; with `repair` it is built anew where that is so."""
        with self._database.reading() as connection:
            wrong = wrong_terms(connection)
        if wrong and repair:
            with self._database.writing() as connection:
                rebuild_terms(connection)
        return wrong

    def clashing_ids(self) -> list[ClashingIds]:
        """Persons whose id in Form C is another person's."""
        with self._database.reading() as connection:
            found = []
            for clash in id_clashes(connection):
                query = select(collections.c.name).where(collections.c.id == clash.collection)
                other = select(persons.c.person_id).where(persons.c.id == clash.other)
                found.append(
                    ClashingIds(
                        str(connection.execute(query).scalar_one()),
                        clash.person_id,
                        str(connection.execute(other).scalar_one()),
                    )
                )
            return found
