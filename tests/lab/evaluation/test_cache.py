"""A cache that cannot be used, or no longer, costs time and nothing else."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.commands import app
from app.faces.pipeline import FacePipeline
from app.lab.evaluation import cache
from app.lab.evaluation.cache import PhotoCache
from app.lab.evaluation.protocol import Analyser, enrol_photos
from app.types import AnalysedImage
from tests.lab.evaluation.conftest import PHOTOS

NAMES = ["obama.jpg", "biden.jpg", "collins.jpg"]


def _filled(path: Path, pipeline: FacePipeline) -> None:
    store = PhotoCache(path, "one pipeline", pytest.fail)
    enrol_photos(Analyser(pipeline, store), PHOTOS, NAMES)
    store.close()


def test_a_kept_answer_is_the_computed_one(pipeline: FacePipeline, tmp_path: Path) -> None:
    """Also of a photo of which only the largest of several faces was asked for."""
    store = PhotoCache(tmp_path / "photos.db", "one pipeline", pytest.fail)
    (face,) = pipeline.analyse((PHOTOS / "obama.jpg").read_bytes(), max_faces=1).faces
    image = AnalysedImage(640, 480, (face,), {}, 3)
    store.put("a photo", "largest", image)
    found = store.get("a photo", "largest")
    store.close()
    assert found is not None
    assert (found.width, found.height, found.faces_found) == (640, 480, 3)
    assert len(found.faces) == 1


def _no_database(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


def _folder(path: Path) -> None:
    path.mkdir()


def _another_table(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    connection.close()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_no_database, "file is not a database"),
        (_folder, "Is a directory"),
        (_another_table, "no such column"),
    ],
)
def test_a_file_that_is_no_cache(
    make: Callable[[Path], None], reason: str, pipeline: FacePipeline, tmp_path: Path
) -> None:
    make(tmp_path / "photos.db")
    warnings: list[str] = []
    store = PhotoCache(tmp_path / "photos.db", "one pipeline", warnings.append)
    analyser = Analyser(pipeline, store)
    for _ in range(2):
        assert set(enrol_photos(analyser, PHOTOS, NAMES).faces) == set(NAMES)
    store.close()
    assert analyser.cached == 0
    assert len(warnings) == 1
    assert str(tmp_path / "photos.db") in warnings[0]
    assert reason in warnings[0]


def test_a_data_folder_that_cannot_be_made(pipeline: FacePipeline, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    warnings: list[str] = []
    store = PhotoCache(tmp_path / "file" / "photos.db", "one pipeline", warnings.append)
    assert set(enrol_photos(Analyser(pipeline, store), PHOTOS, NAMES).faces) == set(NAMES)
    assert len(warnings) == 1
    assert "File exists" in warnings[0]


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x80", b"\x01", b"\x81\xa5faces\x93"])
def test_rows_that_are_damaged(content: bytes, pipeline: FacePipeline, tmp_path: Path) -> None:
    path = tmp_path / "photos.db"
    _filled(path, pipeline)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE photos SET answer = ?", (content,))
    connection.close()
    warnings: list[str] = []
    store = PhotoCache(path, "one pipeline", warnings.append)
    assert set(enrol_photos(Analyser(pipeline, store), PHOTOS, NAMES).faces) == set(NAMES)
    store.close()
    assert len(warnings) == 1
    assert "a row in it is damaged" in warnings[0]


def test_a_file_that_another_process_has_locked(
    pipeline: FacePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "BUSY_TIMEOUT_S", 0.01)
    path = tmp_path / "photos.db"
    warnings: list[str] = []
    store = PhotoCache(path, "one pipeline", warnings.append)
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    assert set(enrol_photos(Analyser(pipeline, store), PHOTOS, NAMES).faces) == set(NAMES)
    other.close()
    store.close()
    assert len(warnings) == 1
    assert "database is locked" in warnings[0]


def test_the_command_says_so_and_ends_well(
    labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIKENESS_PACK", raising=False)
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    _no_database(tmp_path / "data" / "evaluation-cache.db")
    arguments = ["evaluate", str(labelled_folder / "pairs.csv"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("cannot be used (file is not a database)") == 1
