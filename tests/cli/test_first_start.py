"""What the commands say where there is no gallery yet, or not one that can be used."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import numpy as np
import pytest
from sqlalchemy import text

from app.cli.console import data_folder
from app.cli.unmatched import unmatched_collections, warning
from app.inference.packs import find_pack, read_pack
from app.services import Services, build_services
from app.settings import Settings
from app.store.records import NewTemplate
from tests.cli.conftest import Run
from tests.waiting import PATIENCE_S
from tests.writing import enroll_person, store_person

NOBODY = 65534  # the user id that Linux has for who owns nothing


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_doctor_checks_the_installation_and_creates_nothing(run: Run, tmp_path: Path) -> None:
    answer = run("doctor")
    assert answer.exit_code == 0, answer.output
    assert f"No database yet at {tmp_path}/data/likeness.db" in answer.stdout
    assert "LIKENESS_DATA_DIR" in answer.stdout
    assert "digests intact" in answer.stdout
    assert "CPUExecutionProvider" in answer.stdout
    assert "The installation has no faults" in answer.stdout
    assert not (tmp_path / "data").exists()


def test_a_data_folder_holds_its_database_whatever_its_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a?b=c#d%41" / "data"
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(folder))
    answer = run("migrate")
    assert answer.exit_code == 0, answer.output
    assert (folder / "likeness.db").is_file()
    assert [one.name for one in tmp_path.iterdir()] == [folder.parent.name]


@pytest.mark.parametrize(
    "command",
    [
        ["doctor", "--repair"],
        ["doctor", "--fix-metadata", "kept.jsonl"],
        ["backup", "FILE"],
        ["export", "FILE.jsonl"],
        ["hygiene"],
        ["calibrate"],
        ["encryption", "status"],
        ["keys", "list"],
        ["keys", "revoke", "gate"],
        ["keys", "rotate", "gate"],
        ["encryption", "rotate"],
        ["models", "migrate", "default", "--to", "default"],
        ["audit", "show"],
        ["person", "export", "anna", "FOLDER"],
        ["retention"],
    ],
)
def test_a_command_that_reads_a_gallery_creates_none(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = run(*command, LIKENESS_PACK="default")
    assert answer.exit_code == 2, answer.output
    assert f"No database yet at {tmp_path}/data/likeness.db" in one_line(answer.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [["migrate"], ["keys", "create", "--name", "a", "--scope", "all"], ["import", "--dry-run"]],
)
def test_a_command_that_makes_a_database_says_where(
    run: Run, tmp_path: Path, command: list[str]
) -> None:
    if command[0] == "import":
        command = [*command, str(tmp_path / "people")]
    first, second = run(*command), run(*command)
    assert f"Data folder {tmp_path}/data, which is new" in first.stderr
    assert "Data folder" not in second.stderr


@pytest.mark.parametrize("made", [False, True])
def test_serve_prints_where_everything_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir() if made else None
    new = "" if made else ", which is new"
    assert data_folder(Settings()) == f"Data folder {tmp_path}/data{new}"


def warned(services: Services) -> str | None:
    return warning(services, unmatched_collections(services))


def test_collections_of_another_embedding_space_are_named(run: Run, tmp_path: Path) -> None:
    """Also where it can read others: a small collection that was migrated hides none."""
    services = build_services(Settings(data_dir=tmp_path / "data"))
    ours, dimension = services.pack.embedding_space, services.pack.recogniser.dimension
    former = read_pack(find_pack("default-1.0", None)).embedding_space
    store, size = services.gallery.store, 8
    store.collections.create("empty", "another-space", size, {})
    vectors = np.eye(dimension, dtype=np.float32)
    assert warned(services) is None  # none has faces
    store.collections.create("other", "another-space", size, {})
    store_person(store, "other", "ada", None, [NewTemplate(vectors[0, :size], "1")])
    said = warned(services)
    assert said is not None
    assert f"is {ours}. The faces of these collections are of another one" in said
    assert ": other (faces: 1, an" in said
    assert said.endswith(f"likeness models migrate other --to {services.pack.name}")
    store.collections.create("ours", ours, dimension, {})
    enroll_person(services.gallery, "ours", "bob", None, [NewTemplate(vectors[0], "1")])
    for number, vector in enumerate(vectors[:2]):
        faces = [NewTemplate(vector, str(number))]
        enroll_person(services.gallery, "default", "eve", None, faces)
    with store.database.writing() as connection:
        connection.execute(
            text("UPDATE collections SET embedding_space = :former WHERE name = 'default'"),
            {"former": former},
        )
    said = warned(services)
    assert said is not None
    assert f": default (faces: 2, {former}, made by default-1.0), other (faces: 1, an" in said
    services.close()
    doctor = run("doctor")
    assert doctor.exit_code == 0, doctor.output
    assert one_line(said) in one_line(doctor.stderr)
    shown = one_line(doctor.stdout)
    assert f"default: not checked: its faces (2) are of the embedding space {former}" in shown
    assert "ours: 1 templates, the index equals the database" in shown
    assert "No fault was found in what was checked. Not checked: the faces of default, other." in (
        shown
    )


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user reaches. That is not so of pytest's, which each run closes again."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_may_not_write_the_data_folder_is_named(open_folder: Path) -> None:
    folders = {name: open_folder / name for name in ("root's", "file", "closed", "read", "new")}
    for name in ("root's", "file", "closed", "read"):
        folders[name].mkdir()
    (folders["file"] / "likeness.db").touch(0o600)
    folders["file"].chmod(0o777)
    (folders["read"] / "likeness.db").touch()
    for path in (folders["closed"], folders["read"], folders["read"] / "likeness.db"):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o500)  # its owner is right, its mode is not
    folders["read"].chmod(0o700)
    (open_folder / "between").mkdir(0o700)
    folders["behind"] = open_folder / "between" / "data"
    folders["behind"].mkdir()
    code = (
        "import json, os, sys\n"
        "from app.errors import DatabaseError\n"
        "from app.store.backends import create_engine\n"
        f"os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "for url in sys.argv[1:]:\n"
        "    try:\n        create_engine(url)\n"
        "    except DatabaseError as error:\n        print(json.dumps(error.detail))\n"
    )
    urls = (f"sqlite:///{folder}/likeness.db" for folder in folders.values())
    done = subprocess.run(
        [sys.executable, "-c", code, *urls],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    change, mode = f"chown -R {NOBODY}:{NOBODY} {{}}", "chmod -R u+rwX {}"
    advices = {
        "root's": change,
        "file": change,
        "closed": mode,
        "read": mode,
        "new": f"install -d -o {NOBODY} -g {NOBODY} {{}}",
    }
    details = map(json.loads, done.stdout.splitlines())
    for (name, folder), said in zip(folders.items(), details, strict=True):
        assert f"user id {NOBODY}" in said
        if name == "behind":  # it may be closed on purpose
            assert "A folder above it cannot be entered" in said
        else:
            assert f"sudo {advices[name].format(quote(str(folder)))} (in a container" in said, name
        assert "LIKENESS_DATA_DIR" in said
