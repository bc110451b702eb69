"""Two people in a folder, and how their photos are read from any source."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.importing.source_rows import NotAPhoto, Row
from app.importing.sources import SourceOptions, rows_of

OPTIONS = SourceOptions("es-here", 1_000_000)
FILES = {"ada/one.jpg": b"1", "ada/two.png": b"22", "bob/one.jpg": b"333"}


@pytest.fixture(scope="session")
def photos(small_photos: Path) -> Path:
    """Small ones: what matters here is what becomes of a row."""
    return small_photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "people" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "people" / "ada" / "note.txt").write_text("no photo")
    return tmp_path / "people"


def read_all(source: Path | str, **options: object) -> list[Row]:
    return list(rows_of([str(source)], replace(OPTIONS, **options)))


def contents(rows: list[Row]) -> list[tuple[str, bytes]]:
    problems = [row.problem for row in rows if not isinstance(row.problem, NotAPhoto)]
    assert set(problems) <= {None}, problems
    return [(row.person_id, row.read()) for row in rows if row.read]


EXPECTED = [("ada", b"1"), ("ada", b"22"), ("bob", b"333")]
