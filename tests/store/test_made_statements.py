"""Statements that are made once give the same rows and errors as SQLAlchemy does."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import bindparam, column, insert, select, table
from sqlalchemy.exc import DBAPIError, IntegrityError

from app.store.database import Database
from app.store.metadata import CorrectedMetadata
from app.store.sql.lookups import aware
from app.store.sql.statements import Statement
from app.store.sql.tables import collections, templates
from app.store.store import Store
from tests.gallery.conftest import SPACE

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
BY_NAME = Statement(select(collections).where(collections.c.name == bindparam("wanted")).limit(1))
ADD = Statement(insert(collections).returning(collections.c.id))


@pytest.fixture
def database(store: Store) -> Database:
    return store.database


def row(name: str) -> dict[str, object]:
    return {
        "name": name,
        "embedding_space": SPACE,
        "dimension": 16,
        "revision": 0,
        "metadata": {"site": 1},
        "policy": {"margin": 0.1},
        "created_at": NOW,
        "stamp": "",
    }


def test_values_are_converted_both_ways(database: Database) -> None:
    with database.writing() as connection:
        (made,) = ADD.rows(connection, row("staff"))
        found = BY_NAME.first(connection, {"wanted": "staff"})
        assert BY_NAME.first(connection, {"wanted": "nobody"}) is None
    assert found.id == made.id
    assert (found.metadata, found.policy) == ({"site": 1}, {"margin": 0.1})
    assert aware(found.created_at) == NOW
    assert found.calibration_id is None


def test_metadata_that_breaks_the_rules_is_corrected(database: Database) -> None:
    with database.writing() as connection:
        ADD.rows(connection, row("staff") | {"metadata": {"n": 10**30}})
        found = BY_NAME.first(connection, {"wanted": "staff"})
    assert isinstance(found.metadata, CorrectedMetadata)


def test_errors_are_those_of_sqlalchemy_and_name_no_value(database: Database) -> None:
    add = Statement(insert(collections))
    with pytest.raises(IntegrityError) as caught, database.writing() as connection:
        add.run(connection, row("staff"), row("staff"))
    assert "staff" not in str(caught.value)
    with database.reading() as connection:
        assert BY_NAME.rows(connection, {"wanted": "staff"}) == []


def test_a_column_without_a_value_is_an_error(database: Database) -> None:
    with pytest.raises(IntegrityError), database.writing() as connection:
        Statement(insert(templates)).run(connection, {"face_id": "1", "quality": {}})


def test_a_failing_statement_is_an_operational_error(database: Database) -> None:
    missing = Statement(select(table("no_table", column("id"))))
    with database.engine.begin() as connection, pytest.raises(DBAPIError) as caught:
        missing.rows(connection, {})
    assert caught.value.orig is not None
