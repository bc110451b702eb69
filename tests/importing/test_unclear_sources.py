"""What could be read in two ways, or only in part, is refused with a sentence, not guessed."""

import io
import json
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from app.importing.source_rows import ImportSourceError, Row
from app.importing.sources import SourceOptions, rows_of

OPTIONS = SourceOptions("es-here", 1_000_000)


def read_all(source: Path) -> list[Row]:
    return list(rows_of([str(source)], OPTIONS))


@pytest.mark.parametrize("person_id", [True, False, 1.0, [], ["ada"], {"id": "ada"}])
def test_a_person_id_is_text_or_a_whole_number(tmp_path: Path, person_id: Any) -> None:
    (tmp_path / "1.jpg").write_bytes(b"photo")
    lines = [{"person_id": person_id, "image": "1.jpg"}, {"person_id": 7, "image": "1.jpg"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    refused, read = read_all(tmp_path / "x.jsonl")
    assert refused.problem is not None
    assert "person_id is neither text nor a whole number" in refused.problem.detail
    assert (read.person_id, read.problem) == ("7", None)


def test_the_same_in_a_sidecar_of_a_tar(tmp_path: Path) -> None:
    members = {"1.jpg": b"photo", "1.json": b'{"person_id": true}'}
    (tmp_path / "x.tar").write_bytes(tar_of(members))
    (row,) = read_all(tmp_path / "x.tar")
    assert row.problem is not None
    assert "write it as text" in row.problem.detail


def test_a_row_has_no_more_fields_than_columns(tmp_path: Path) -> None:
    """A comma that is not in quotes would move the fields after it."""
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(b"photo")
    table = tmp_path / "x.csv"
    table.write_text("person_id,image,note\nada,1.jpg,tall, blue\nbob,2.jpg\n")
    ada, bob = read_all(table)
    assert ada.problem is not None
    assert "The row has 4 fields, and the table has 3 columns" in ada.problem.detail
    assert (ada.person_id, ada.place) == ("ada", "x.csv:2")
    assert (bob.person_id, bob.problem) == ("bob", None)


def test_no_two_columns_have_one_name(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("person_id,image,image\nada,1.jpg,2.jpg\n")
    with pytest.raises(ImportSourceError, match="several columns image; remove or rename"):
        read_all(tmp_path / "x.csv")


def tar_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def test_a_tar_after_a_tar_is_not_passed_over(tmp_path: Path) -> None:
    """`cat` makes such files; their first end is the end for programs that unpack."""
    one, two = tar_of({"ada/1.jpg": b"photo"}), tar_of({"bob/1.jpg": b"photo"})
    (tmp_path / "x.tar").write_bytes(one + two)
    with pytest.raises(ImportSourceError, match="another tar after its end"):
        read_all(tmp_path / "x.tar")
    (tmp_path / "y.tar").write_bytes(one + bytes(100_000))  # padding
    assert [row.person_id for row in read_all(tmp_path / "y.tar")] == ["ada"]


def test_a_compression_that_is_not_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(60))
    with pytest.raises(ImportSourceError, match="Zstandard; compress it by gzip"):
        read_all(tmp_path / "x.tar.zst")


def test_links_and_encrypted_photos_of_a_zip_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("ada/1.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bob/1.jpg", b"photo")
    content = bytearray(path.read_bytes())
    at = content.rindex(b"bob/1.jpg") - 46  # its entry in the directory
    content[at + 8] |= 1
    path.write_bytes(content)
    details = [row.problem.detail for row in read_all(path) if row.problem]
    assert [detail.split(": ")[1] for detail in details] == [
        "it is a link, not a regular file.",
        "it is encrypted; make the zip without a password.",
    ]
