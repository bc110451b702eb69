"""Rows that the gallery would not store are rejected with their reason; the others go on."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli.commands import app
from app.errors import InvalidRequest
from app.importing.source_rows import Row, storable
from app.services import Services, build_services
from app.settings import Settings

COMPOSED, DECOMPOSED = "jos\u00e9", "jose\u0301"


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def services(data: Path) -> Iterator[Services]:
    services = build_services(Settings())
    yield services
    services.close()


def table(folder: Path, dimension: int, rows: list[dict[str, object]]) -> Path:
    """JSON Lines in which each person has an embedding of her own."""
    vectors = np.eye(dimension, dtype=np.float32)[: len(rows)].tolist()
    file = folder / "rows.jsonl"
    lines = [json.dumps({"embedding": v, **row}) for v, row in zip(vectors, rows, strict=True)]
    file.write_text("\n".join(lines))
    return file


def test_bad_rows_are_rejected_alone(services: Services, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"person_id": "ann\ud83d"},
        {"person_id": "bob", "note": "\ud83d"},
        {"person_id": "cid", "metadata": {"n": float("nan")}},
        {"person_id": "dan", "blob": "x" * 100_000},
        {"person_id": "eve", "quality": {"sharpness": float("inf")}},
        {"person_id": "fay\u202e"},
        {"person_id": DECOMPOSED, "note": "kept"},
        {"person_id": COMPOSED},
        {"person_id": DECOMPOSED, "without_face": True, "embedding": None},
    ]
    file = table(tmp_path, services.pack.recogniser.dimension, rows)
    space = services.pack.embedding_space
    for name in ("report.csv", "report.jsonl"):
        command = ["import", str(file), "--space", space, "--report", str(tmp_path / name)]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 1, result.output
    outcomes = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [one["result"] for one in outcomes] == ["rejected"] * 6 + ["skipped"] * 3
    for outcome, words in zip(
        outcomes,
        ("U+D83D (lone surrogate) at position 4", "note contains U+D83D", "finite", "16,384",
         "quality.sharpness must be a finite", "U+202E RIGHT-TO-LEFT OVERRIDE"),
        strict=False,
    ):  # fmt: skip
        assert words in outcome["detail"]
    (person,) = services.gallery.store.persons.page("default", None, 100).items
    assert (person.person_id, person.templates) == (COMPOSED, 2)
    assert person.metadata == {"note": "kept"}
    for command in (["backup", str(tmp_path / "b")], ["export", str(tmp_path / "e.zip")]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output


def test_a_row_is_brought_to_what_is_stored() -> None:
    assert storable(Row("1", DECOMPOSED, metadata={"a": 1})).person_id == COMPOSED
    with pytest.raises(InvalidRequest, match="type bytes"):
        storable(Row("1", "ada", metadata={"a": b"x"}))
