"""Whose photo it is: recognised where it can be read in one way, else the import does not begin."""

import io
import json
import os
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from app.importing.layouts import AmbiguousLayout
from app.importing.source_options import PersonFrom, SourceOptions
from app.importing.source_rows import ImportSourceError, NotAPhoto, Row
from app.importing.sources import rows_of

OPTIONS = SourceOptions("es", 1_000_000)
Pack = Callable[[dict[str, bytes]], Path]


def pack_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path.with_suffix(".zip")


def pack_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path.with_suffix(".tar"), "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path.with_suffix(".tar")


def pack_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path


@pytest.fixture(params=[pack_zip, pack_tar, pack_folder])
def pack(request: pytest.FixtureRequest, tmp_path: Path) -> Pack:
    """The same files as a zip, a tar and a folder."""
    return lambda files: request.param(tmp_path / "source", files)


def read_all(source: Path, **options: object) -> list[Row]:
    return list(rows_of([str(source)], replace(OPTIONS, **options)))


def people(rows: list[Row]) -> list[tuple[str, bytes]]:
    """Whose photos are read."""
    return sorted((row.person_id, row.read()) for row in rows if row.read)


def rejected(rows: list[Row]) -> list[str]:
    return [
        row.place.partition("/")[2] or row.place
        for row in rows
        if row.problem and not isinstance(row.problem, NotAPhoto)
    ]


TWO = [("ann", b"1"), ("bob", b"2")]


@pytest.mark.parametrize("around", ["", "people/", "./", "a/b/c/"])
def test_folders_of_people_and_folders_around_them(pack: Pack, around: str) -> None:
    rows = read_all(pack({f"{around}ann/1.jpg": b"1", f"{around}bob/1.jpg": b"2"}))
    assert people(rows) == TWO


@pytest.mark.parametrize(
    "files",
    [
        ["ann/2023/1.jpg", "bob/2023/1.jpg"],  # by year
        ["2023/1.jpg", "2024/2.jpg"],
        ["images/1.jpg", "images/2.jpg"],  # one folder, and no table
        ["train/ann/1.jpg", "test/bob/2.jpg"],
        ["ann/1.jpg", "bob/1.jpg", "carol/2023/3.jpg"],
        ["export/ann/1.jpg"],  # ann, or export
        ["people/ann/1.jpg", "people/2.jpg"],
        ["1.jpg", "2.jpg"],
    ],
)
def test_what_can_be_read_in_two_ways_is_not_imported(pack: Pack, files: list[str]) -> None:
    source = pack(dict.fromkeys(files, b"1"))
    with pytest.raises(AmbiguousLayout) as caught:
        next(rows_of([str(source)], OPTIONS))
    assert "--pattern" in caught.value.detail


def test_the_guesses_and_the_options_that_decide_are_shown(pack: Pack) -> None:
    source = pack({f"{name}/2023/1.jpg": b"1" for name in "abcdefghijklm"})
    with pytest.raises(AmbiguousLayout) as caught:
        read_all(source)
    lines = caught.value.detail.splitlines()
    assert lines[1:11] == [f"  {name}/2023/1.jpg → 2023" for name in "abcdefghij"]
    assert "--person-from folder (as above), --person-from top-folder (a, …)" in lines[11]
    assert len(lines) == 12


def test_what_was_asked_for_decides(pack: Pack) -> None:
    source = pack({"ann/2023/1.jpg": b"1", "bob/2024/1.jpg": b"2", "lost.jpg": b"3"})
    top = read_all(source, person_from=PersonFrom.TOP_FOLDER)
    assert (people(top), rejected(top)) == (TWO, ["lost.jpg"])
    assert people(read_all(source, person_from=PersonFrom.FOLDER)) == [
        ("2023", b"1"),
        ("2024", b"2"),
    ]
    assert people(read_all(source, pattern="{person_id}/*/*.jpg")) == TWO
    assert people(read_all(source, pattern="{person_id}/**")) == TWO
    assert people(read_all(source, pattern="**/{person_id}/1.jpg")) == [
        ("2023", b"1"), ("2024", b"2"),
    ]  # fmt: skip


def test_files_of_operating_systems_are_no_persons(pack: Pack) -> None:
    junk = [
        "@eaDir/ann/1.jpg", "@tmp/1.jpg", "@Recycle/1.jpg", "@Recently-Snapshot/a/1.jpg",
        "ann/@eaDir/1.jpg/thumb.jpg", "#recycle/1.jpg", "__MACOSX/ann/._1.jpg",
        ".DS_Store", "ann/.DS_Store", "ann/Thumbs.db", ".hidden/1.jpg", "ann/.hidden.jpg",
        "$RECYCLE.BIN/1.jpg", "desktop.ini",
    ]  # fmt: skip
    rows = read_all(pack({"ann/1.jpg": b"1", "bob/1.jpg": b"2", **dict.fromkeys(junk, b"x")}))
    assert people(rows) == TWO
    assert len(rows) == 2


def test_a_file_that_is_no_photo_is_reported(pack: Pack) -> None:
    others = ["raw.dng", "raw.CR2", "new.jxl", "old.jp2", "burst.heics", "more.zip"]
    passed = ["IMG_0001", "notes.pdf", "clip.mov"]
    files = {"ann/1.jpg": b"1", "bob/1.jpg": b"2", "ann/x.jpe": b"4"}
    rows = read_all(pack(files | {f"ann/{name}": b"x" for name in others + passed}))
    assert people(rows) == [("ann", b"1"), ("ann", b"4"), ("bob", b"2")]
    refused = {row.place.rpartition("/")[2]: row.problem for row in rows if row.problem}
    assert set(refused) == {*others, *passed}
    assert {refused[name].code for name in passed} == {"not_a_photo"}
    assert {refused[name].code for name in others[:5]} == {"unsupported_image"}
    assert "import it separately" in refused["more.zip"].detail


@pytest.mark.parametrize(
    "manifest",
    ["manifest.csv", "Manifest.CSV", "people.csv", "gallery/manifest.csv", "a/b/PERSONS.JSONL"],
)
def test_the_only_table_of_a_zip_counts(tmp_path: Path, manifest: str) -> None:
    folder = manifest.rpartition("/")[0]
    lines = ["person_id,image", "ann,images/1.jpg", "bob,images\\2.jpg"]
    if manifest.lower().endswith("jsonl"):
        names = {"ann": "images/1.jpg", "bob": "images\\2.jpg"}
        lines = [json.dumps({"person_id": who, "image": name}) for who, name in names.items()]
    files = {manifest: "\n".join(lines).encode(), "other.csv": b"a,b\n"}
    files |= {f"{folder}/images/1.jpg".lstrip("/"): b"1", "images/2.jpg": b"2"}
    assert people(read_all(pack_zip(tmp_path / "x", files))) == TWO


def test_the_table_of_a_zip_may_begin_with_empty_lines(tmp_path: Path) -> None:
    table = b"\n \nperson_id,image\nann,1.jpg\nbob,2.jpg\n"
    files = {"people.csv": table, "1.jpg": b"1", "2.jpg": b"2"}
    assert people(read_all(pack_zip(tmp_path / "x", files))) == TWO


def test_a_table_without_persons_is_an_error(tmp_path: Path) -> None:
    table = b"person_id,image\nann,images/9.jpg\n"
    source = pack_zip(tmp_path / "x", {"a/people.csv": table, "images/1.jpg": b"1"})
    (row,) = read_all(source)
    assert "neither a file a/images/9.jpg" in row.problem.detail
    source = pack_zip(tmp_path / "x", {"a.csv": table, "b.csv": table, "images/1.jpg": b"1"})
    with pytest.raises(ImportSourceError, match=r"several tables of persons, a\.csv, b\.csv"):
        read_all(source)
    source = pack_zip(tmp_path / "x", {"manifest.csv": b"name,image\n", "images/1.jpg": b"1"})
    with pytest.raises(ImportSourceError, match="needs the column person_id"):
        read_all(source)
    with pytest.raises(ImportSourceError, match="tables are read in zips only"):
        read_all(pack_tar(tmp_path / "x", {"manifest.csv": table, "images/1.jpg": b"1"}))


def test_captions_are_no_persons(tmp_path: Path) -> None:
    caption = b"on the beach"
    files = {"ann/1.jpg": b"1", "ann/1.txt": caption, "bob/1.jpg": b"2", "bob/1.txt": caption}
    tar = pack_tar(tmp_path / "x", files)
    assert people(read_all(tar)) == TWO
    assert {row.person_id for row in read_all(tar, person_from=PersonFrom.TXT)} == {"on the beach"}


def test_a_shard_whose_texts_may_be_captions_is_not_imported(tmp_path: Path) -> None:
    files = {"0.jpg": b"1", "0.txt": b"ann", "1.jpg": b"2", "1.txt": b"bob"}
    shard = pack_tar(tmp_path / "x", files)
    with pytest.raises(AmbiguousLayout, match="--person-from txt"):
        read_all(shard)
    assert people(read_all(shard, person_from=PersonFrom.TXT)) == TWO
    labelled = {name.replace("txt", "cls"): content for name, content in files.items()}
    assert people(read_all(pack_tar(tmp_path / "x", labelled))) == TWO
    del labelled["1.cls"]
    shard = pack_tar(tmp_path / "x", labelled)
    with pytest.raises(AmbiguousLayout, match="--person-from cls"):
        read_all(shard)
    assert rejected(read_all(shard, person_from=PersonFrom.CLS)) == ["1.jpg"]
    with pytest.raises(ImportSourceError, match="for tars only"):
        read_all(pack_zip(tmp_path / "x", {"0.jpg": b"1"}), person_from=PersonFrom.CLS)


LATIN = b"J\xf6rg"


def test_names_that_are_not_utf_8_refuse_their_rows(tmp_path: Path) -> None:
    name = os.fsdecode(LATIN)
    folder = pack_folder(tmp_path / "x", {f"{name}/1.jpg": b"1", "ann/1.jpg": b"1"})
    pack_folder(folder, {f"bob/{name}.jpg": b"2", "bob/2.jpg": b"2"})
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(folder, "people")
    for source in (folder, tmp_path / "x.tar"):
        rows = read_all(source)
        assert people(rows) == TWO
        reported = [row.problem.detail for row in rows if row.problem]
        assert len(reported) == 2
        assert all("is not UTF-8; give its encoding, such as --names" in one for one in reported)
        decoded = people(read_all(source, names_encoding="latin-1"))
        assert decoded == [("Jörg", b"1"), *TWO, ("bob", b"2")]
    with pytest.raises(ImportSourceError, match="not a known encoding"):
        read_all(folder, names_encoding="klingon")


@pytest.mark.parametrize("encoding", ["idna", "iso2022_jp"])
def test_a_name_that_its_encoding_refuses_is_that_of_one_row(tmp_path: Path, encoding: str) -> None:
    """These do not give surrogates for all bytes that they cannot decode."""
    name = b"\x1b$B\xf6r1"
    folder = pack_folder(tmp_path / "x", {f"ann/{os.fsdecode(name)}.jpg": b"1", "ann/1.jpg": b"1"})
    with tarfile.open(tmp_path / "y.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(folder, "people")
    zipped = zip_of_bytes(tmp_path / "z", [b"ann/" + name + b".jpg", "ann/ö.jpg".encode("latin-1")])
    for source in (folder, tmp_path / "y.tar", zipped):
        rows = read_all(source, names_encoding=encoding, person_from=PersonFrom.FOLDER)
        assert len(rows) == 2
        assert any("is not UTF-8" in row.problem.detail for row in rows if row.problem)


def zip_of_bytes(path: Path, names: list[bytes]) -> Path:
    """A zip whose names are these bytes, without the flag that says they are UTF-8."""
    marks = [f"{number:0{len(name)}d}".replace("0", "x") for number, name in enumerate(names, 1)]
    content = pack_zip(path, dict.fromkeys(marks, b"1")).read_bytes()
    for mark, name in zip(marks, names, strict=True):
        content = content.replace(mark.encode(), name)
    path.with_suffix(".zip").write_bytes(content)
    return path.with_suffix(".zip")


def test_names_of_a_zip_without_the_flag_of_utf_8(tmp_path: Path) -> None:
    """All of them are UTF-8, or of the encoding that is given: never what they happen to be."""
    source = zip_of_bytes(tmp_path / "x", ["Müller/1.jpg".encode(), b"ann/2.jpg"])
    assert {row.person_id for row in read_all(source)} == {"Müller", "ann"}
    # 李雷 in GBK, and a name that would be UTF-8 as well.
    names = ["李雷".encode("gbk") + b"/1.jpg", "é".encode() + b"/2.jpg", b"ann/3.jpg"]
    source = zip_of_bytes(tmp_path / "x", names)
    rows = read_all(source)
    assert "李雷" not in {row.person_id for row in rows}
    assert [row.problem is None for row in rows].count(False) >= 1
    found = {row.person_id for row in read_all(source, names_encoding="gbk")}
    assert found == {"李雷", "é".encode().decode("gbk"), "ann"}


def test_both_unicode_forms_of_a_name_are_one(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
    assert composed != apart
    folder = pack_folder(tmp_path / "x", {f"{composed}/1.jpg": b"1", f"{apart}/{apart}.jpg": b"2"})
    pack_folder(folder, {"ann/1.jpg": b"3"})
    assert {row.person_id for row in read_all(folder)} == {composed, "ann"}
    table = folder / "t.csv"
    table.write_text(f"person_id,image\nann,{apart}/{composed}.jpg\n")
    assert people(read_all(table)) == [("ann", b"2")]
    files = {f"{apart}/1.jpg": b"1", "t.csv": f"person_id,image\nann,{composed}/1.jpg".encode()}
    assert people(read_all(pack_zip(tmp_path / "x", files))) == [("ann", b"1")]


def test_suffixes_of_any_case(tmp_path: Path) -> None:
    files = {"ann/1.jpg": b"1", "bob/1.JPG": b"2"}
    assert people(read_all(pack_zip(tmp_path / "x", files).rename(tmp_path / "X.ZIP"))) == TWO
    assert people(read_all(pack_tar(tmp_path / "x", files).rename(tmp_path / "X.TAR"))) == TWO
    folder = pack_folder(tmp_path / "people", files)
    (folder / "T.CSV").write_text("person_id,image\nann,ann/1.jpg\nbob,bob\\1.JPG\n")
    assert people(read_all(folder / "T.CSV")) == TWO


def test_sentences_name_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("person_id,image\nann,elsewhere\\2.jpg\n")
    (row,) = read_all(tmp_path / "x.csv")
    assert row.problem.detail == f"There is no file {tmp_path}/elsewhere\\2.jpg."
    with pytest.raises(ImportSourceError, match=r"absent does not exist"):
        read_all(tmp_path / "absent")


@pytest.mark.parametrize(
    ("options", "files", "person"),
    [
        ({"pattern": "{person_id}_*"}, ["ada_1.dng", "x/ada_2.dng"], "ada"),
        ({"person_from": PersonFrom.TOP_FOLDER}, ["ada/2020/1.dng", "ada/2020/note.txt"], "ada"),
        ({"person_from": PersonFrom.FOLDER}, ["2020/ada/1.dng", "2020/ada/note.txt"], "ada"),
        ({}, ["ada/1.dng"], "ada"),
    ],
)
def test_a_file_that_is_no_photo_is_of_the_person_whose_it_would_be(
    pack: Pack, options: dict[str, object], files: list[str], person: str
) -> None:
    """Deleting a person erases from reports the rows that have the person's id."""
    rows = read_all(pack({"grace/1.jpg": b"1"} | dict.fromkeys(files, b"2")), **options)
    for file in files:
        (row,) = [row for row in rows if row.place.endswith(file)]
        assert row.problem is not None
        assert row.person_id == person
