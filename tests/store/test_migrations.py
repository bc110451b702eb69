"""A database of an earlier version is brought along with all it holds, on every engine."""

import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

from app.errors import DatabaseError
from app.store.schema import MIGRATIONS, migrate, newest_revision, pending
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, open_engine, template
from tests.writing import store_person

VECTOR = np.eye(DIMENSION, dtype=np.float32)[0]


@pytest.fixture
def engine(empty_url: str) -> Engine:
    return open_engine(empty_url)


def run(engine: Engine, statement: str, **values: object) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), {"now": datetime(2026, 1, 1, tzinfo=UTC), **values})


def fill_old_database(engine: Engine) -> None:
    """A collection with one person and one template, as versions 1 and 2 wrote them."""
    run(
        engine,
        "INSERT INTO collections (name, embedding_space, dimension, revision, metadata, created_at)"
        " VALUES ('old', 'es-test', 16, 3, '{\"a\": 1}', :now)",
    )
    run(
        engine,
        "INSERT INTO persons (collection, person_id, metadata, created_at, updated_at)"
        " VALUES (1, 'ada', '{\"b\": 2}', :now, :now)",
    )
    run(
        engine,
        "INSERT INTO templates (face_id, collection, person, embedding, content_digest, quality,"
        " created_at) VALUES ('f', 1, 1, :embedding, 'c', '{}', :now)",
        embedding=VECTOR.tobytes(),
    )
    run(
        engine,
        "INSERT INTO changes (collection, revision, template, kind, created_at)"
        " VALUES (1, 3, 1, 'add', :now)",
    )


@pytest.mark.parametrize("version", ["0001", "0002"])
def test_an_old_database_keeps_all_it_holds(engine: Engine, version: str) -> None:
    migrate(engine, version)
    fill_old_database(engine)
    migrate(engine)
    store = Store(engine)
    record = store.collections.get("old")
    assert (record.policy, record.calibration_id, record.metadata) == ({}, None, {"a": 1})
    assert (record.revision, record.stamp, store.changes.stamp_at(record, 3)) == (3, "", "")
    assert store.persons.get("old", "ada").metadata == {"b": 2}
    page = store.changes.templates_after(record, 0, 9)
    assert page.keys.tolist() == [1]
    assert np.array_equal(page.vectors[0], VECTOR)
    assert store.changes.since(record, 3).added.keys.tolist() == []
    with engine.connect() as connection:
        row = connection.execute(
            text("SELECT sealed, data_key, key_id FROM templates, persons")
        ).one()
    assert (bool(row.sealed), row.data_key, row.key_id) == (False, None, None)
    store_person(store, "old", "ada", None, [template(VECTOR, "d")])
    assert (store.collections.get("old").revision, len(store.collections.get("old").stamp)) == (
        4,
        16,
    )
    assert store.persons.delete("old", "ada").templates == 2


def test_the_newest_revision_is_that_of_the_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert newest_revision() == ScriptDirectory.from_config(config).get_current_head()


def contents(engine: Engine) -> tuple[list[str], dict[str, list[tuple[object, ...]]]]:
    """The statements that make the tables and indexes of an SQLite database, and all its rows."""
    with engine.connect() as connection:
        statements = [
            "\n".join(line.rstrip() for line in sql.strip().splitlines())
            for sql in connection.scalars(
                text("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
            )
            if "sqlite_sequence" not in sql  # which SQLite makes itself
        ]
        tables = inspect(engine).get_table_names()
        rows = {one: [*connection.execute(text(f'SELECT * FROM "{one}"'))] for one in tables}
    return statements, {name: [tuple(row) for row in found] for name, found in rows.items()}


def literal(value: object) -> str:
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    return "NULL" if value is None else repr(value)


def test_a_new_sqlite_database_is_what_the_migrations_make(tmp_path: Path) -> None:
    """`make tables` writes the script."""
    engines = [open_engine(f"sqlite:///{tmp_path / name}") for name in ("steps.db", "script.db")]
    migrate(engines[0], newest_revision())
    statements, rows = contents(engines[0])
    ((identity, _),) = rows.pop("database")
    script = ";\n".join(
        [
            *statements,
            *(
                f'INSERT INTO "{table}" VALUES ({", ".join(map(literal, row))})'
                for table, found in rows.items()
                for row in found
            ),
        ]
    )
    if os.environ.get("UPDATE_TABLES"):
        (MIGRATIONS / "new_sqlite.sql").write_text(f"{script}\n", "utf-8")
    migrate(engines[1])
    made, found = contents(engines[1])
    ((other, _),) = found.pop("database")
    assert (made, found) == (statements, rows), "make tables, and look at the diff"
    assert len(str(other)) == 36
    assert other != identity


def test_the_id_is_made_once(engine: Engine) -> None:
    migrate(engine)
    first = Store(engine).database.identity()
    migrate(engine)
    assert Store(engine).database.identity() == first


def test_a_dry_run_says_what_would_be_done(engine: Engine) -> None:
    steps = pending(engine)
    numbers = [step.split()[0] for step in steps]
    assert numbers == [f"{number:04}" for number in range(1, len(steps) + 1)]
    assert numbers[-1] == newest_revision()
    assert "First tables" in steps[0]
    assert inspect(engine).get_table_names() == []
    migrate(engine, "0002")
    assert pending(engine) == steps[2:]
    migrate(engine)
    assert pending(engine) == []


def test_a_database_from_the_future_is_refused(engine: Engine) -> None:
    migrate(engine)
    run(engine, "UPDATE alembic_version SET version_num = '9999'")
    for attempt in (migrate, pending):
        with pytest.raises(DatabaseError, match=r"newer version.*9999.*restore a backup"):
            attempt(engine)


def test_a_migration_that_fails_changes_nothing(engine: Engine) -> None:
    migrate(engine, "0002")
    run(engine, "CREATE TABLE idempotency (in_the_way INTEGER)")
    steps = pending(engine)
    with pytest.raises(DatabaseError):
        migrate(engine)
    assert not inspect(engine).has_table("database")
    assert pending(engine) == steps
    run(engine, "DROP TABLE idempotency")
    migrate(engine)
    assert len(Store(engine).database.identity()) == 36


def test_policy_and_calibration_of_a_collection(engine: Engine) -> None:
    migrate(engine)
    store = Store(engine)
    made = store.collections.create("staff", SPACE, DIMENSION, {}, {"target_fpir": 0.1})
    assert made.policy == {"target_fpir": 0.1}
    changed = store.collections.update("staff", {"site": 1}, None)
    assert (changed.metadata, changed.policy) == ({"site": 1}, {"target_fpir": 0.1})
    changed = store.collections.update("staff", None, {})
    assert (changed.metadata, changed.policy) == ({"site": 1}, {})
    assert store.calibrations.get(changed) is None
    store.calibrations.set(store.collections.get("staff"), "cal-1", {"n": 1})
    store.calibrations.set(store.collections.get("staff"), "cal-2", {"n": 2})
    store.calibrations.set(store.collections.get("staff"), "cal-1", {"n": 3})
    assert store.calibrations.get(store.collections.get("staff")) == {"n": 3}
    store.calibrations.clear("staff")
    assert store.calibrations.get(store.collections.get("staff")) is None
    store.collections.delete("staff")
    with engine.begin() as connection:
        left = connection.execute(text("SELECT count(*) FROM calibrations")).scalar_one()
    assert left == 0
