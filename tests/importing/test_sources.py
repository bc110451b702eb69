"""Sources: the same four photos of two people, in every form they come in."""

import csv
import io
import json
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.importing import tables, tars
from app.importing.source_rows import ImportSourceError, NotAPhoto, Row
from app.importing.sources import SourceOptions, rows_of, total_of

OPTIONS = SourceOptions("es-here", 1_000_000)
FILES = {"ada/one.jpg": b"1", "ada/two.png": b"22", "bob/one.jpg": b"333"}


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


def test_a_folder_a_person(folder: Path) -> None:
    rows = read_all(folder)
    assert contents(rows) == EXPECTED
    assert [row.place for row in rows if row.problem] == ["ada/note.txt"]
    assert total_of([str(folder)], OPTIONS) == 4


def test_links_that_leave_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (folder / "ada" / "three.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "secret.jpg").write_bytes(b"secret")
    (folder / "eve").symlink_to(tmp_path / "others")
    (folder / "bob" / "dead.jpg").symlink_to("absent.jpg")
    (folder / "bob" / "again").symlink_to(folder)
    (folder / "bob" / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "bob" / "fifo.jpg")
    (folder / "zoe").symlink_to(folder / "ada")
    (folder / "zed").symlink_to(folder / "eve")
    rows = read_all(folder)
    read = [(row.person_id, row.read()) for row in rows if row.read]
    assert read == [*EXPECTED, ("zoe", b"1"), ("zoe", b"22")]
    out, nowhere = (
        "The link leads out of the folder; it is not followed.",
        "The link is broken: it leads to no file.",
    )
    reported = {row.place: row.problem.detail for row in rows if row.problem}
    assert {place: reported[place] for place in reported if "note" not in place} == {
        "ada/three.jpg": out,
        "bob/again": "The link is not followed: it leads back to a folder above it, or is itself "
        "behind another link.",
        "bob/dead.jpg": nowhere,
        "bob/fifo.jpg": "It is not a regular file.",
        "bob/loop.jpg": nowhere,
        "eve": out,
        "zed": out,
        "zoe/three.jpg": out,
    }


def test_photos_in_another_place_are_an_error(folder: Path) -> None:
    """As rows that cannot be used: nobody misses them in silence."""
    (folder / "lost.jpg").write_bytes(b"whose?")
    (folder / "ada" / "2024").mkdir()
    (folder / "ada" / "2024" / "deep.jpg").write_bytes(b"4")
    (folder / "bob" / "phone.HEIC").write_bytes(b"5")
    rows = read_all(folder)
    assert [(row.place, row.problem.detail) for row in rows if row.problem] == [
        (
            "ada/2024/deep.jpg",
            "The photo is in a subfolder of a person's folder; --person-from top-folder "
            "accepts it.",
        ),
        ("ada/note.txt", "note.txt does not have the extension of a photo."),
        ("lost.jpg", "The photo lies in no folder that is named by a person."),
    ]
    assert "bob/phone.HEIC" in [row.place for row in rows]
    assert total_of([str(folder)], OPTIONS) == len(rows)
    (folder / "carol.jpg").mkdir()
    (folder / "carol.jpg" / "one.jpg").write_bytes(b"6")
    assert ("carol.jpg", b"6") in [
        (row.person_id, row.read()) for row in read_all(folder) if row.read
    ]


def test_nothing_to_import_is_another_source_than_was_meant(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ImportSourceError, match=r"no folders of people.*--pattern"):
        read_all(folder / "ada")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImportSourceError, match="no photos to import"):
        read_all(tmp_path / "empty")
    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as archive:
        archive.writestr("readme.txt", "no photo")
    with pytest.raises(ImportSourceError, match="no photos to import"):
        read_all(tmp_path / "notes.zip")
    with pytest.raises(ImportSourceError, match=r"^notes\.zip has"):  # a client learns no path
        read_all(tmp_path / "notes.zip", uploaded=True)
    (tmp_path / "none.csv").write_text("person_id,image\n")
    assert read_all(tmp_path / "none.csv") == []


def test_names_that_the_shell_did_not_expand(folder: Path, tmp_path: Path) -> None:
    make_tar(tmp_path / "shard-1.tar", {"bob/1.jpg": b"333"})
    make_tar(tmp_path / "shard-0.tar", {"ada/1.jpg": b"1"})
    assert contents(read_all(tmp_path / "shard-*.tar")) == [("ada", b"1"), ("bob", b"333")]
    (tmp_path / "[odd].tar").write_bytes((tmp_path / "shard-0.tar").read_bytes())
    assert contents(read_all(tmp_path / "[odd].tar")) == [("ada", b"1")]
    with pytest.raises(ImportSourceError, match="does not exist"):
        read_all(tmp_path / "absent-*.tar")


def test_a_flat_folder_with_the_person_in_the_name(tmp_path: Path) -> None:
    for name in ("ada_l_1.jpg", "ada_l_2.jpg", "bob_1.jpg", "nobody.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    rows = read_all(tmp_path, pattern="{person_id}_*.jpg")
    assert [row.person_id for row in rows] == ["ada_l", "ada_l", "bob", ""], "the longest"
    rows = read_all(tmp_path, pattern="{person_id}_1.jpg")
    assert [(row.person_id, row.problem is None) for row in rows] == [
        ("ada_l", True), ("", False), ("bob", True), ("", False),
    ]  # fmt: skip
    with pytest.raises(ImportSourceError, match="once"):
        read_all(tmp_path, pattern="*.jpg")


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


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_line_without_an_end_is_no_table(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_LINE", 1_000)
    path = tmp_path / f"table.{suffix}"
    path.write_text("person_id,image\n" + "x" * 1_001 if suffix == "csv" else "[" * 1_001)
    with pytest.raises(ImportSourceError, match="1,000 characters"):
        read_all(path)


@pytest.mark.parametrize("damage", ["content", "encrypted"])
def test_a_damaged_photo_in_a_zip_fails_alone(folder: Path, tmp_path: Path, damage: str) -> None:
    (folder / "ada" / "one.jpg").write_bytes(b"the photo " * 100)
    (folder / "ada" / "note.txt").unlink()
    archive = Path(shutil.make_archive(str(tmp_path / "people"), "zip", folder))
    content = bytearray(archive.read_bytes())
    name = content.index(b"ada/one.jpg")
    if damage == "content":
        content[name + 12] ^= 0xFF  # in the compressed bytes
    else:
        directory = content.rindex(b"ada/one.jpg")
        content[name - 30 + 6] |= 1
        content[directory - 46 + 8] |= 1
    archive.write_bytes(content)
    rows = read_all(archive)
    assert [row.problem is None for row in rows] == [False, True, True]
    assert rows[0].person_id == "ada"
    assert "cannot be read from the archive" in rows[0].problem.detail


def test_a_deepface_database_is_a_folder_of_people(folder: Path) -> None:
    """Its pickle of embeddings is not opened: reading one runs what it says."""
    (folder / "ds_model_arcface_detector_opencv.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    (folder / "ada" / "ds_model.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert contents(read_all(folder)) == EXPECTED


@pytest.mark.parametrize("mode", ["zip", "tar", "tar.gz"])
def test_an_archive_of_folders(folder: Path, tmp_path: Path, mode: str) -> None:
    form = {"zip": "zip", "tar": "tar", "tar.gz": "gztar"}[mode]
    archive = shutil.make_archive(str(tmp_path / "people"), form, folder.parent, folder.name)
    assert sorted(contents(read_all(archive))) == EXPECTED
    assert total_of([archive], OPTIONS) == (4 if mode == "zip" else None)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_several_files_of_one_name_in_a_zip_the_last_counts(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("ada/1.jpg", b"old")
        archive.writestr("ada/1.jpg", b"new")
    assert contents(read_all(tmp_path / "twice.zip")) == [("ada", b"new")]


def test_a_zip_with_a_table(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "people.zip", "w") as archive:
        archive.writestr("manifest.jsonl", json.dumps({"person_id": "ada", "image": "a/1.jpg"}))
        archive.writestr("a/1.jpg", b"1")
        archive.writestr("b/2.jpg", b"not in the table")
    assert contents(read_all(tmp_path / "people.zip")) == [("ada", b"1")]
    assert total_of([str(tmp_path / "people.zip")], OPTIONS) == 1


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


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


def test_webdataset_shards(tmp_path: Path) -> None:
    said = json.dumps({"person_id": "ada", "metadata": {"team": "night"}}).encode()
    shard = make_tar(
        tmp_path / "shard-000.tar",
        {"000.jpg": b"1", "000.json": said, "001.cls": b"bob\n", "001.jpg": b"333"},
    )
    rows = read_all(shard)
    assert contents(rows) == [("ada", b"1"), ("bob", b"333")]
    assert rows[0].metadata == {"team": "night"}


def test_a_person_with_many_photos_of_one_key_is_read_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WebDataset's key ends at the first dot, and so does dr.no's name."""
    monkeypatch.setattr(tars, "MAX_PHOTOS_A_SAMPLE", 3)
    files = {f"no/dr.no.{i}.jpg": b"%d" % i for i in range(8)}
    tar = make_tar(tmp_path / "x.tar", files)
    assert contents(read_all(tar)) == [("no", b"%d" % i) for i in range(8)]
    named = {"x.json": b'{"person_id": "ada"}', **{f"x.{i}.jpg": b"%d" % i for i in range(5)}}
    rows = read_all(make_tar(tmp_path / "y.tar", named))
    assert contents(rows) == [("ada", b"%d" % i) for i in range(5)]


def test_standard_input(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        buffer = io.BytesIO(json.dumps({"person_id": "ada", "image": "ada/one.jpg"}).encode())

    monkeypatch.setattr(sys, "stdin", Stream)
    assert contents(read_all("-", images=folder)) == [("ada", b"1")]
    tar = make_tar(tmp_path / "x.tar", {"ada/1.jpg": b"1"})
    Stream.buffer = io.BytesIO(tar.read_bytes())
    assert contents(read_all("-", stdin_format="tar")) == [("ada", b"1")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.zip", b"PK broken", "not a whole zip"),
        ("x.tar", b"broken", "not a whole tar"),
        ("x.parquet", b"PAR1 broken", "not a whole Parquet"),
        ("x.csv", b"a,b\n1,2\n", "needs the column person_id"),
        ("x.csv", b"\xff\xfe\x00", "UTF-8"),
        ("x.csv", "person_id\timage\r\n".encode("utf-16"), "x.csv is text in UTF-16; save it as"),
        ("x.zip", b"Rar!\x1a\x07\x01\x00...", "x.zip is a RAR archive, not a zip; unpack it"),
        ("x.zip", b"7z\xbc\xaf\x27\x1c\x00\x04", "x.zip is a 7z archive, not a zip"),
        ("x.zip", b"\x1f\x8b\x08...", "x.zip is a gzip file, not a zip"),
        ("x.zip", tarfile.TarInfo("ann/1.jpg").tobuf(), "x.zip is a tar archive, not a zip"),
        ("x.zip", b"<!DOCTYPE html><title>Sign in</title>", "x.zip is a web page, not a zip"),
        ("x.zip", b"", "x.zip is an empty file, not a zip"),
        ("x.rar", b"", "is not a source"),
    ],
)
def test_what_is_no_source(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImportSourceError, match=message):
        read_all(tmp_path / name)
    with pytest.raises(ImportSourceError, match="does not exist"):
        read_all(tmp_path / f"absent-{name}")


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
