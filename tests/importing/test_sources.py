"""Sources: the same four photos of two people, in every form they come in."""

import io
import json
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from app.importing import tars
from app.importing.source_rows import ImportSourceError
from app.importing.sources import total_of
from tests.importing.conftest import EXPECTED, OPTIONS, contents, read_all


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


@pytest.mark.parametrize(
    ("option", "value"),
    [("pattern", "{person_id}/**"), ("person_from", "folder"), ("names_encoding", "gbk")],
)
def test_options_of_names_are_refused_where_no_names_are_read(
    folder: Path, tmp_path: Path, option: str, value: str
) -> None:
    """A table says itself whose a photo is."""
    table = tmp_path / "people.csv"
    table.write_text("person_id,path\n")
    name = f"--{option.replace('_', '-')}"
    with pytest.raises(ImportSourceError, match=f"{name} is for a folder or an archive"):
        read_all(table, **{option: value})
    with pytest.raises(ImportSourceError, match="does not exist"):
        read_all(tmp_path / "mistyped", **{option: value})
    if option == "names_encoding":
        assert read_all(folder, **{option: value})


def test_options_of_tables_are_refused_where_there_is_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ImportSourceError, match="--images is for a table"):
        read_all(folder, images=tmp_path)
    with pytest.raises(ImportSourceError, match="--space is for a table"):
        read_all(folder, given_space="bogus")
    (tmp_path / "none.csv").write_text("person_id,image\n")
    with pytest.raises(ImportSourceError, match=r"no folder \(--images\)"):
        read_all(tmp_path / "none.csv", images=tmp_path / "nope")
    assert read_all(tmp_path / "none.csv", images=tmp_path, given_space="any") == []
    assert read_all(folder, given_space="any", uploaded=True), "a call has no options"


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
        ("x.zip", b"PK broken", "not a complete zip"),
        ("x.tar", b"broken", "not a complete tar"),
        ("x.parquet", b"PAR1 broken", "not a complete Parquet"),
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
