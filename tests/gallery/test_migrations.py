"""A database of an earlier version is brought along with all it holds."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text

from app.gallery.backends.sqlite import WRITING
from app.gallery.schema import MIGRATIONS, migrate
from app.gallery.store import SqlStore
from tests.gallery.conftest import open_engine


def upgrade_to(engine: Engine, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    with engine.execution_options(**{WRITING: True}).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_collections_made_before_there_were_policies(database: Path) -> None:
    engine = open_engine(database)
    upgrade_to(engine, "0001")
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO collections (name, embedding_space, dimension, revision, metadata, "
                "created_at) VALUES ('old', 'es-test', 16, 3, '{\"a\": 1}', '2026-01-01')"
            )
        )
    migrate(engine)
    record = SqlStore(engine).collection("old")
    assert (record.policy, record.calibration_id, record.metadata) == ({}, None, {"a": 1})


def test_policy_and_calibration_of_a_collection(database: Path) -> None:
    engine = open_engine(database)
    migrate(engine)
    store = SqlStore(engine)
    made = store.create_collection("staff", "es-test", 16, {}, {"target_fpir": 0.1})
    assert made.policy == {"target_fpir": 0.1}
    changed = store.update_collection("staff", {"site": 1}, None)
    assert (changed.metadata, changed.policy) == ({"site": 1}, {"target_fpir": 0.1})
    changed = store.update_collection("staff", None, {})
    assert (changed.metadata, changed.policy) == ({"site": 1}, {})
    assert store.calibration(changed) is None
    store.set_calibration("staff", "cal-1", {"n": 1})
    store.set_calibration("staff", "cal-2", {"n": 2})
    store.set_calibration("staff", "cal-1", {"n": 3})
    assert store.calibration(store.collection("staff")) == {"n": 3}
    store.clear_calibration("staff")
    assert store.calibration(store.collection("staff")) is None
    store.delete_collection("staff")
    with engine.begin() as connection:
        left = connection.execute(text("SELECT count(*) FROM calibrations")).scalar_one()
    assert left == 0
