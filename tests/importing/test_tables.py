"""Tables: CSV, JSON Lines and Parquet, of photos or of embeddings."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.importing import tables
from app.importing.source_rows import ImportSourceError, NotAPhoto
from app.importing.sources import total_of
from tests.importing.conftest import EXPECTED, FILES, OPTIONS, contents, read_all


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_of_photos(folder: Path, suffix: str) -> None:
    records = [{"person_id": name.split("/")[0], "image": name, "team": "night"} for name in FILES]
    table = folder / f"table.{suffix}"
    write_table(table, records)
    rows = read_all(table)
    assert contents(rows) == EXPECTED
    assert all(row.metadata == {"team": "night"} for row in rows)
    assert total_of([str(table)], OPTIONS) == 3


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_of_embeddings(tmp_path: Path, suffix: str) -> None:
    vectors = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    records = [
        {
            "person_id": f"p{index}",
            "embedding": vector.tolist(),
            "embedding_space": space,
            "metadata": json.dumps({"n": index}),
        }
        for index, (vector, space) in enumerate(
            zip(vectors, ("es-here", "es-here", "es-elsewhere"), strict=True)
        )
    ]
    table = tmp_path / f"table.{suffix}"
    write_table(table, records)
    rows = read_all(table)
    for row, vector in zip(rows[:2], vectors, strict=False):
        np.testing.assert_allclose(row.embedding, vector, rtol=1e-6)
    assert rows[1].metadata == {"n": 1}
    assert rows[2].problem is not None
    assert "es-elsewhere" in rows[2].problem.detail


def test_an_embedding_says_its_space_or_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    write_table(table, [{"person_id": "ada", "embedding": [1.0, 0.0]}])
    (row,) = read_all(table)
    assert row.problem is not None
    assert "--space es-here" in row.problem.detail
    (row,) = read_all(table, given_space="es-here")
    assert row.embedding is not None


def test_bad_rows_fail_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.jpg").write_bytes(b"secret")
    table = folder / "table.jsonl"
    lines = [
        "{no json",
        json.dumps([1]),
        json.dumps({"person_id": "ada"}),
        json.dumps({"person_id": "ada", "image": "../outside.jpg"}),
        json.dumps({"person_id": "ada", "embedding": ["x"], "embedding_space": "es-here"}),
        json.dumps({"person_id": 7, "image": "ada/one.jpg"}),
    ]
    table.write_text("\n".join(lines))
    rows = read_all(table)
    assert [row.problem is None for row in rows] == [False] * 5 + [True]
    assert rows[5].person_id == "7"
    assert "lies outside" in rows[3].problem.detail


def test_what_an_export_says_must_be_what_it_is(tmp_path: Path) -> None:
    made = {"person_id": "ada", "embedding": [1.0], "embedding_space": "es-here"}
    face_id = "0B1F8A52-93b3-4d0e-8f2e-4a59c4f5d0aa"
    table = tmp_path / "table.jsonl"
    lines = [
        made | {"content_digest": ["x"]},
        made | {"face_id": "../x"},
        made | {"face_id": face_id, "content_digest": "0" * 64},
        {"person_id": "bob", "without_face": True, "metadata": {"n": 1}},
    ]
    write_table(table, lines)
    rows = read_all(table)
    assert [row.problem.detail if row.problem else None for row in rows] == [
        "content_digest is not a SHA-256 in hexadecimal.", "face_id is not a UUID.", None, None,
    ]  # fmt: skip
    assert rows[2].face_id == face_id.lower()
    assert (rows[3].without_face, rows[3].metadata) == (True, {"n": 1})


def test_a_table_of_persons_without_faces(tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("person_id,without_face,team\nada,true,red\n")
    (row,) = read_all(tmp_path / "people.csv")
    assert (row.without_face, row.metadata, row.problem) == (True, {"team": "red"}, None)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_numbers_of_rows_that_pandas_writes_are_no_metadata(tmp_path: Path, suffix: str) -> None:
    """They would replace the metadata of persons who exist."""
    path = tmp_path / f"people{suffix}"
    name, true = ("", "true") if suffix == ".csv" else ("__index_level_0__", True)
    write_table(path, [{name: 0, "person_id": "ada", "without_face": true, "office": "Rome"}])
    (row,) = read_all(path)
    assert (row.problem, row.metadata) == (None, {"office": "Rome"})


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_line_without_an_end_is_no_table(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_LINE", 1_000)
    path = tmp_path / f"table.{suffix}"
    path.write_text("person_id,image\n" + "x" * 1_001 if suffix == "csv" else "[" * 1_001)
    with pytest.raises(ImportSourceError, match="1,000 characters"):
        read_all(path)


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("archived", [False, True])
def test_a_table_of_a_spreadsheet(folder: Path, separator: str, archived: bool) -> None:
    """With a byte order mark, the separator of the country, and empty rows at its end, of as many
    fields as the table has, of more, and of fewer."""
    lines = ["person_id,image,note", "ada,ada\\one.jpg,Größe", "bob,bob/one.jpg,"]
    lines += [",,", ",,,,", ","]
    content = "".join(f"{line}\r\n" for line in lines).replace(",", separator)
    table = folder / "people.csv"
    table.write_bytes(content.encode("utf-8-sig"))
    source = shutil.make_archive(str(folder.parent / "x"), "zip", folder) if archived else table
    rows = [row for row in read_all(source) if not isinstance(row.problem, NotAPhoto)]
    assert contents(rows) == [("ada", b"1"), ("bob", b"333")]
    assert rows[0].metadata == {"note": "Größe"}


def write_table(path: Path, records: list[dict[str, object]]) -> None:
    writers: dict[str, Callable[[], object]] = {
        ".csv": lambda: write_csv(path, records),
        ".jsonl": lambda: path.write_text("\n".join(json.dumps(one) for one in records) + "\n"),
        ".parquet": lambda: write_parquet(path, records),
    }
    writers[path.suffix]()


def write_csv(path: Path, records: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        for record in records:
            writer.writerow(
                {k: json.dumps(v) if isinstance(v, list) else v for k, v in record.items()}
            )


def write_parquet(path: Path, records: list[dict[str, object]]) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="the parquet extra is not installed")
    pa = pytest.importorskip("pyarrow")
    pq.write_table(pa.Table.from_pylist(records), path)


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"")
    assert total_of([str(tmp_path / "x.csv")], OPTIONS) == 0
