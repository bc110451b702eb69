"""What `likeness audit` shows, and what it finds in a log that was changed."""

import json
import stat
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from app.cli import audit
from app.cli.commands import app
from app.gallery.backup_bodies import dump, load
from app.store.records import NewTemplate
from app.store.sql.collection_removal import CollectionRemoval
from app.store.sql.lookups import count_rows
from app.store.sql.tables import persons
from tests.gallery.conftest import open_store
from tests.writing import store_person

runner = CliRunner()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(tmp_path))
    for name in ("entrance", "exit"):
        made = runner.invoke(app, ["keys", "create", "--name", name, "--scope", "identify"])
        assert made.exit_code == 0
    return tmp_path


def test_what_commands_did(folder: Path) -> None:
    shown = runner.invoke(app, ["audit", "show", "--json", "--action", "key.created"])
    first, second = (json.loads(line) for line in shown.stdout.splitlines())
    assert first["actor"].startswith("user:")
    assert [first["details"]["name"], second["details"]["name"]] == ["entrance", "exit"]
    assert "key.created" in runner.invoke(app, ["audit", "show", "--last", "1"]).stdout


def test_copies_of_embeddings_are_in_the_log(folder: Path, tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{folder / 'likeness.db'}")
    store.collections.create("staff", "es-1", 4, {})
    store_person(store, "staff", "carol", None, [NewTemplate(np.ones(4, np.float32), "photo")])
    number = store.persons.get("staff", "carol").key
    for copied in (
        ["person", "export", "carol", str(tmp_path / "carol"), "--collection", "staff"],
        ["export", str(tmp_path / "staff.jsonl"), "--collection", "staff"],
        ["backup", str(tmp_path / "backup")],
    ):
        assert runner.invoke(app, copied).exit_code == 0
    shown = runner.invoke(app, ["audit", "show", "--json", "--last", "3"])
    person, collection, backup = (json.loads(line) for line in shown.stdout.splitlines())
    assert [person["action"], person["person"], person["details"]] == [
        "person.exported", number, {"faces": 1},
    ]  # fmt: skip
    assert [collection["action"], collection["collection"]] == ["collection.exported", "staff"]
    assert backup["action"] == "backup.written"
    assert runner.invoke(app, ["backup", str(tmp_path / "backup")]).exit_code == 2, "it exists"
    last = runner.invoke(app, ["audit", "show", "--json", "--last", "1"]).stdout
    assert json.loads(last) == backup
    assert {one["actor"].split(":")[0] for one in (person, collection, backup)} == {"user"}
    assert runner.invoke(app, ["audit", "verify"]).exit_code == 0


def test_a_backup_is_made_also_if_the_log_cannot_have_an_entry(folder: Path) -> None:
    engine = create_engine(f"sqlite:///{folder / 'likeness.db'}")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM audit_head"))
    engine.dispose()
    pepper = (folder / "access-pepper").read_text()
    for number, content in enumerate((pepper, "not a pepper")):
        (folder / "access-pepper").write_text(content)
        made = runner.invoke(app, ["backup", str(folder / f"backup-{number}")])
        assert made.exit_code == 0
        assert "audit log has no entry" in " ".join(made.stderr.split())
    refused = runner.invoke(app, ["export", str(folder / "all.jsonl")])
    assert refused.exit_code == 2
    assert not (folder / "all.jsonl").exists()


def test_a_log_that_is_whole_and_one_that_is_not(folder: Path) -> None:
    assert runner.invoke(app, ["audit", "verify"]).exit_code == 0
    exported = folder / "audit.jsonl"
    assert runner.invoke(app, ["audit", "export", str(exported)]).exit_code == 0
    assert runner.invoke(app, ["audit", "verify", "--file", str(exported)]).exit_code == 0
    engine = create_engine(f"sqlite:///{folder / 'likeness.db'}")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM audit_entries WHERE sequence = 1"))
    engine.dispose()
    found = runner.invoke(app, ["audit", "verify"])
    assert found.exit_code == 1
    assert "entry 1 is missing" in found.output
    exported.write_text("[]\n")
    found = runner.invoke(app, ["audit", "verify", "--file", str(exported)])
    assert found.exit_code == 1
    assert "line 1" in found.output


def test_a_person_who_is_not_there(folder: Path) -> None:
    asked = ["audit", "show", "--person", "ada", "--collection", "default"]
    found = runner.invoke(app, asked)
    assert found.exit_code == 2
    assert "default" in found.output


def test_persons_of_a_database_that_was_replaced_are_not_named(folder: Path) -> None:
    """Numbers begin anew in the other database: its first person would be taken for ours."""
    ours, other = (open_store(f"sqlite:///{folder / name}.db") for name in ("likeness", "other"))
    for store, person in ((ours, "carol"), (other, "alice")):
        store.collections.create("staff", "es-1", 4, {})
        store.persons.create("staff", person, {})
    number = ours.persons.get("staff", "carol").key
    load(ours.database.engine, dump(other.database.engine), replace=True)
    ours.persons.update("staff", "alice", {"n": 1})
    lines = runner.invoke(app, ["audit", "show", "--collection", "staff"]).stdout.splitlines()
    about = [line for line in lines if f"#{number}" in line]
    assert ["alice" in line for line in about] == [False, True]
    assert "(before a restore)" in about[0]


def test_persons_of_a_deleted_collection_are_not_named(folder: Path) -> None:
    """Although their rows are deleted later."""
    store = open_store(f"sqlite:///{folder / 'likeness.db'}")
    store.collections.create("staff", "es-1", 4, {})
    new = NewTemplate(np.ones(4, np.float32), "photo")
    store_person(store, "staff", "carol", None, [new])
    number = store.persons.get("staff", "carol").key
    CollectionRemoval(store.database, count(0, 100).__next__).delete("staff")
    with store.database.reading() as connection:
        assert count_rows(connection, persons, persons.c.id == number)
    shown = runner.invoke(app, ["audit", "show", "--action", "person.enrolled"])
    (line,) = shown.stdout.splitlines()
    assert f"(deleted) #{number}" in line


def test_a_log_that_was_put_back_to_an_earlier_state(folder: Path) -> None:
    """Its end is signed, as it was then; a digest that was kept elsewhere shows it."""
    earlier = (folder / "likeness.db").read_bytes()
    old = runner.invoke(app, ["audit", "verify"]).stdout.split()[-1]
    runner.invoke(app, ["keys", "create", "--name", "roof", "--scope", "identify"])
    kept = runner.invoke(app, ["audit", "verify"]).stdout.split()[-1]
    expecting = ["audit", "verify", "--expect", old, "--expect", kept]
    assert runner.invoke(app, expecting).exit_code == 0
    exported = folder / "audit.jsonl"
    runner.invoke(app, ["audit", "export", str(exported)])
    assert runner.invoke(app, [*expecting, "--file", str(exported)]).exit_code == 0
    for path in folder.glob("likeness.db*"):
        path.unlink()
    (folder / "likeness.db").write_bytes(earlier)
    assert runner.invoke(app, ["audit", "verify"]).exit_code == 0
    found = runner.invoke(app, expecting)
    assert found.exit_code == 1
    assert kept in found.output
    assert old not in found.output
    for wrong in ("5f", "g" * 64, "5f" * 33):
        assert runner.invoke(app, ["audit", "verify", "--expect", wrong]).exit_code == 2


def test_an_exported_log_is_private_and_replaces_nothing_unasked(folder: Path) -> None:
    exported = folder / "audit.jsonl"
    command = ["audit", "export", str(exported)]
    assert runner.invoke(app, command).exit_code == 0
    assert stat.S_IMODE(exported.stat().st_mode) == 0o600
    exported.write_text("the older one")
    refused = runner.invoke(app, command)
    assert refused.exit_code == 2
    assert "--force" in refused.output
    assert exported.read_text() == "the older one"
    assert runner.invoke(app, [*command, "--force"]).exit_code == 0
    assert runner.invoke(app, ["audit", "verify", "--file", str(exported)]).exit_code == 0


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\n", b"[" * 100, b'"\\ud800"', b" " * 2_000 + b'"?"']
)
def test_an_exported_log_with_what_is_no_text_or_no_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(audit, "MOST_OF_LINE", 1_000)
    exported = folder / "audit.jsonl"
    runner.invoke(app, ["audit", "export", str(exported)])
    first = json.loads(exported.read_text().splitlines()[0])
    exported.write_bytes(json.dumps(first | {"content": "?"}).encode().replace(b'"?"', content))
    found = runner.invoke(app, ["audit", "verify", "--file", str(exported)])
    assert found.exit_code == 1
    assert "line 1 is not a line of an exported audit log" in " ".join(found.output.split())


@pytest.mark.parametrize("target", ["none/audit.jsonl", "a-folder"])
def test_a_log_that_cannot_be_written(folder: Path, target: str) -> None:
    (folder / "a-folder").mkdir()
    found = runner.invoke(app, ["audit", "export", str(folder / target), "--force"])
    assert found.exit_code == 2
    assert "Writing failed" in found.output
    assert "cannot be written" in found.output
