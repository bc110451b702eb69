"""`likeness backup` and `likeness restore` as an operator runs them."""

import os
import sqlite3
import stat
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from app.cli.commands import app
from app.encryption.keys import new_key_line, parse_keys
from app.encryption.ring import KeyRing
from app.gallery.gallery import Gallery
from app.index.factory import IndexFactory
from app.store import eraser
from app.store.backends import create_engine
from app.store.eraser import Eraser
from app.store.schema import migrate
from app.store.sql.tables import templates
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, template
from tests.gallery.test_erasing import long_reader
from tests.writing import store_person


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def with_people(folder: Path, *people: str) -> None:
    engine = create_engine(f"sqlite:///{folder / 'likeness.db'}")
    migrate(engine)
    gallery = Gallery(Store(engine), IndexFactory(1), SPACE, DIMENSION)
    for person in people:
        gallery.store.persons.create("default", person, {})
    gallery.close()


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join((result.output + result.stderr).split())  # terminals break lines


def people_in(folder: Path) -> list[str]:
    engine = create_engine(f"sqlite:///{folder / 'likeness.db'}")
    store = Store(engine)
    found = [person.person_id for person in store.persons.page("default", None, 10).items]
    store.close()
    return found


def test_there_and_back(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_people(data, "ada", "bob")
    file = tmp_path / "backup"
    said = run("backup", file)
    assert "not encrypted" in said
    assert "2 persons" in said
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "--force" in run("backup", file, code=2)
    run("backup", file, "--force")
    assert "complete and undamaged" in run("restore", file, "--verify")
    assert "--replace" in run("restore", file, code=2)
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(tmp_path / "other"))
    assert "2 persons" in run("restore", file)
    assert people_in(tmp_path / "other") == ["ada", "bob"]


def test_over_a_pipe(data: Path, tmp_path: Path) -> None:
    with_people(data, "ada")
    result = CliRunner().invoke(app, ["backup", "-"])
    assert result.exit_code == 0
    again = CliRunner().invoke(app, ["restore", "-", "--replace"], input=result.stdout_bytes)
    assert again.exit_code == 0, again.output
    assert people_in(data) == ["ada"]


def test_encrypted_by_the_key_that_is_configured(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_people(data, "ada-lovelace")
    key = tmp_path / "key"
    key.write_text(new_key_line())
    key.chmod(0o600)
    monkeypatch.setenv("LIKENESS_ENCRYPTION_KEY_FILE", str(key))
    assert "not encrypted" not in run("backup", tmp_path / "encrypted")
    assert b"ada-lovelace" not in (tmp_path / "encrypted").read_bytes()
    assert "1 persons" in run("restore", tmp_path / "encrypted", "--replace")
    monkeypatch.delenv("LIKENESS_ENCRYPTION_KEY_FILE")
    assert "key" in run("restore", tmp_path / "encrypted", "--verify", code=2)


def key_file(path: Path, key_id: str) -> Path:
    path.write_text(new_key_line(key_id))
    path.chmod(0o600)
    return path


def with_faces(folder: Path, keys: Path | None, *people: str) -> None:
    """One face of each, encrypted by those keys; none of them is kept as a crop."""
    ring = None if keys is None else KeyRing(parse_keys(keys.read_bytes(), "test"))
    engine = create_engine(f"sqlite:///{folder / 'likeness.db'}")
    migrate(engine)
    store = Store(engine, ring=ring)
    store.encryption.check_keys()
    gallery = Gallery(store, IndexFactory(1), SPACE, DIMENSION)
    for number, person in enumerate(people):
        vector = np.eye(DIMENSION, dtype=np.float32)[number]
        store_person(store, "default", person, {}, [template(vector, person)])
    gallery.close()


def with_alternate(folder: Path, keys: Path) -> None:
    """One stored face gets an embedding of another space, as `models migrate` stores it."""
    ring = KeyRing(parse_keys(keys.read_bytes(), "test"))
    store = Store(create_engine(f"sqlite:///{folder / 'likeness.db'}"), ring=ring)
    with store.database.reading() as connection:
        face = connection.execute(select(templates.c.id).limit(1)).scalar_one()
    vector = np.eye(DIMENSION, dtype=np.float32)[0]
    store.alternate_embeddings.put("default", "es-other", {face: vector})


def test_an_encrypted_database_without_its_key_is_backed_up_only_with_plain(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = key_file(tmp_path / "key", "k1"), key_file(tmp_path / "other", "k2")
    with_faces(data, key, "ada", "bob")
    file = tmp_path / "backup"
    said = run("backup", file, code=2)
    assert "encrypted by k1, and no key was given. Set LIKENESS_ENCRYPTION_KEY" in said
    assert "--plain" in said
    # Nor by another key than its own: that backup could be restored by nobody who has k1 alone.
    monkeypatch.setenv("LIKENESS_ENCRYPTION_KEY_FILE", str(other))
    assert "keys that were not given: k1" in run("backup", file, code=2)
    assert not file.exists()
    monkeypatch.delenv("LIKENESS_ENCRYPTION_KEY_FILE")
    assert "2 templates" in run("backup", file, "--plain")


def test_what_is_said_about_a_backup_that_is_not_encrypted_is_true(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_faces(data, None, "ada", "bob")
    said = run("backup", tmp_path / "plain")
    assert "can read 2 embeddings and the ids and metadata of persons." in said
    assert "encrypted by" not in said
    key = key_file(tmp_path / "key", "k1")
    monkeypatch.setenv("LIKENESS_ENCRYPTION_KEY_FILE", str(key))
    with_faces(data, key, "cleo")
    said = run("backup", tmp_path / "mixed", "--plain")
    assert "can read 2 embeddings and the ids" in said
    assert "1 embeddings in it are encrypted by k1." in said
    run("encryption", "rotate")
    said = run("backup", tmp_path / "encrypted", "--plain")
    assert "can read the ids and metadata of persons." in said
    assert "3 embeddings in it are encrypted by k1." in said
    with_alternate(data, key)
    assert "4 embeddings in it are" in run("backup", tmp_path / "migrating", "--plain")
    vector = np.eye(DIMENSION, dtype=np.float32)[1].tobytes()
    readable = [vector in (tmp_path / name).read_bytes() for name in ("plain", "encrypted")]
    assert readable == [True, False]


def test_a_restore_with_a_key_says_what_stays_plain(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_faces(data, None, "ada", "bob")
    run("backup", tmp_path / "plain")
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(tmp_path / "other"))
    monkeypatch.setenv("LIKENESS_ENCRYPTION_KEY_FILE", str(key_file(tmp_path / "key", "k1")))
    said = run("restore", tmp_path / "plain")
    assert "2 embeddings are stored unencrypted, as in the backup" in said
    assert "likeness encryption rotate" in said
    run("encryption", "rotate")
    run("backup", tmp_path / "encrypted")
    assert "unencrypted" not in run("restore", tmp_path / "encrypted", "--replace")


@pytest.mark.parametrize("reads", [True, False], ids=["beside a long reader", "alone"])
def test_commands_say_whether_old_bytes_are_left(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    """In a database that takes longer to go through than a deletion waits."""
    with_people(data, "ada", "bob")
    run("backup", tmp_path / "backup")
    (tmp_path / "key").write_text(new_key_line("k1"))
    (tmp_path / "key").chmod(0o600)
    monkeypatch.setattr(eraser, "DELETION_S", 0.0)
    monkeypatch.setattr(eraser, "PAGES_AT_ONCE", 1)
    finish = Eraser.finish
    monkeypatch.setattr(Eraser, "finish", lambda self: finish(self, 0.2 if reads else 60.0))
    with long_reader(data / "likeness.db") if reads else nullcontext():
        for command in (["restore", "--replace", tmp_path / "backup"], ["encryption", "rotate"]):
            monkeypatch.setenv("LIKENESS_ENCRYPTION_KEY_FILE", str(tmp_path / "key"))
            assert ("are still in the database's files" in run(*command)) == reads, command


def test_what_cannot_be_read_or_written(data: Path, tmp_path: Path) -> None:
    with_people(data, "ada")
    shown = run("restore", tmp_path / "none", code=2)
    assert "Backup or restore failed" in shown
    assert "cannot be read" in shown
    assert "cannot be read: Input/output error" in run("restore", "/proc/self/mem", code=2)
    for target in (tmp_path / "none" / "backup", "/dev/full/backup"):
        shown = run("backup", target, code=2)
        assert "Writing failed" in shown
        assert "cannot be written" in shown
    (tmp_path / "text").write_text("hello, this is no backup at all")
    assert "not a backup" in run("restore", tmp_path / "text", code=2)


def test_a_backup_that_cannot_be_restored_replaces_none(data: Path, tmp_path: Path) -> None:
    """Of a database with a row that no backup may have."""
    with_people(data, "ada")
    file = tmp_path / "backup"
    run("backup", file)
    before = file.read_bytes()
    with closing(sqlite3.connect(data / "likeness.db")) as connection, connection:
        connection.execute("UPDATE persons SET created_at = '1969-06-01 00:00:00'")
    shown = run("backup", file, "--force", code=2)
    assert "persons.created_at is the text '1969-06-01" in shown
    assert file.read_bytes() == before
    assert not list(tmp_path.glob("*.new"))


def test_what_is_no_regular_file_is_not_replaced(data: Path, tmp_path: Path) -> None:
    with_people(data, "ada")
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for target in (pipe, link):
        assert "not a regular file" in run("backup", target, "--force", code=2)
    assert pipe.is_fifo()
    assert link.is_symlink()


def test_another_file_under_the_unfinished_name_is_left_alone(data: Path, tmp_path: Path) -> None:
    with_people(data, "ada")
    other = tmp_path / "backup.new"
    other.write_text("precious")
    assert "backup.new exists" in run("backup", tmp_path / "backup", "--force", code=2)
    assert other.read_text() == "precious"
