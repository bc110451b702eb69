"""Archives and tables that are made to hurt: what is read of them is bounded, a row fails alone."""

import bz2
import io
import json
import lzma
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.importing import expansion, tables, zips
from app.importing.outcomes import RowOutcome, RowResult, report_writer
from app.importing.source_rows import ImportSourceError, Row, UnreadableFile
from app.importing.sources import SourceOptions, rows_of
from app.importing.tars import MAX_SIDECAR, tar_rows
from app.importing.unpacking import READABLE, decompressed, open_member

pytestmark = pytest.mark.slow

MIB = 1 << 20
OPTIONS = SourceOptions("es", 1 * MIB)
OF_EMBEDDINGS = replace(OPTIONS, given_space="es")


def read_all(source: Path, **options: object) -> list[Row]:
    options_of = OPTIONS if ".tar" in source.name else OF_EMBEDDINGS
    return list(rows_of([str(source)], replace(options_of, **options)))


def problems(rows: list[Row]) -> list[str]:
    return [row.problem.detail if row.problem else "" for row in rows]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Fails a test whose subject holds more than some MiB at any moment."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 * MIB


@pytest.fixture(params=[zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def zip_of_zeros(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "zeros.zip"
    with zipfile.ZipFile(path, "w", request.param) as archive:
        archive.writestr("ada/1.jpg", bytes(64 * MIB))
        archive.writestr("bob/1.jpg", b"photo")
    return path


@pytest.mark.slow
def test_a_member_is_read_as_far_as_a_photo_may_be_large(
    zip_of_zeros: Path, little_memory: None
) -> None:
    sizes = [len(row.read()) for row in rows_of([str(zip_of_zeros)], OPTIONS) if row.read]
    assert sizes == [1 * MIB + 1, 5]


@pytest.mark.parametrize("method", READABLE)
def test_members_of_every_compression_are_read_and_checked(method: int) -> None:
    content = os.urandom(100_000) + b"abc" * 100_000
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a", content)
        archive.writestr("empty", b"")
    with zipfile.ZipFile(file) as archive:
        assert open_member(archive, archive.getinfo("a")).read() == content
        assert open_member(archive, archive.getinfo("a")).read(7) == content[:7]
        assert open_member(archive, archive.getinfo("empty")).read() == b""
        damaged = archive.getinfo("a")
        damaged.CRC ^= 1
        with pytest.raises(zipfile.BadZipFile):
            open_member(archive, damaged).read()


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress])
def test_streams_that_follow_one_another_are_one(compress: Callable[[bytes], bytes]) -> None:
    assert decompressed(io.BytesIO(compress(b"a") + compress(b"b") + bytes(8))).read() == b"ab"
    with pytest.raises(EOFError):
        decompressed(io.BytesIO(compress(b"abc")[:-5])).read()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_a_tar_is_bounded(tmp_path: Path, kind: bytes, little_memory: None) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, 600 * MIB
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 600 * MIB)
    with pytest.raises(ImportSourceError, match="headers have more than 1,048,576 bytes"):
        read_all(path)


def test_headers_that_announce_headers_end_it(tmp_path: Path) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, 512
    (tmp_path / "x.tar").write_bytes((info.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 2_000)
    with pytest.raises(ImportSourceError, match="is not a complete tar file"):
        read_all(tmp_path / "x.tar")


def test_a_tar_that_is_damaged_in_the_middle_is_no_whole_one(tmp_path: Path) -> None:
    """tarfile takes that for the end."""
    path = tar_of(tmp_path / "x.tar", {"ada/1.jpg": b"1", "bob/1.jpg": b"2"})
    content = bytearray(path.read_bytes())
    content[1024 + 150] ^= 1  # in the second member's checksum
    path.write_bytes(content)
    with pytest.raises(ImportSourceError, match="header is damaged"):
        read_all(path)
    path.write_bytes(content[: 1024 - 10])
    with pytest.raises(ImportSourceError, match="ends within a member"):
        read_all(path)


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_an_archive_has_so_many_members(tmp_path: Path, suffix: str) -> None:
    files = {f"ada/{number}.jpg": b"1" for number in range(5)}
    path = tmp_path / f"x.{suffix}"
    if suffix == "tar":
        tar_of(path, files)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    assert len(read_all(path, max_members=5)) == 5
    with pytest.raises(ImportSourceError, match="has more than 4"):
        read_all(path, max_members=4)


def test_a_table_within_an_archive_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("manifest.jsonl", "x\n" * 100)
    assert problems(read_all(tmp_path / "x.zip"))[0].startswith("The line is not valid JSON")
    monkeypatch.setattr(zips, "MAX_TABLE", 199)
    with pytest.raises(ImportSourceError, match=r"manifest\.jsonl in x\.zip has 200 bytes"):
        read_all(tmp_path / "x.zip")


@pytest.mark.parametrize("suffix", [".tar.bz2", ".tar.gz", ".tar.xz"])
def test_a_few_bytes_that_expand_to_many_end_the_import(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for terabytes that a file of some kilobytes stands for."""
    path = tmp_path / f"zeros{suffix}"
    with tarfile.open(path, f"w:{suffix.rpartition('.')[2]}") as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"ada/{number}.mov")
            info.size = 8 * MIB
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    monkeypatch.setattr(expansion, "LEAST_EXPANDED", 20 * MIB)
    monkeypatch.setattr(expansion, "MAX_EXPANSION", 2)
    with pytest.raises(ImportSourceError, match="expands to more than 20,971,520, the limit"):
        read_all(path)
    monkeypatch.setattr(expansion, "MAX_EXPANSION", 10_000_000)
    assert len(list(tar_rows(path, OPTIONS))) == 3


@pytest.mark.parametrize("table", [False, True])
def test_members_of_a_zip_that_expand_to_many_bytes_end_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: bool
) -> None:
    """The rows before them are kept."""
    path = tmp_path / "zeros.zip"
    names = [f"ada/{number}.jpg" for number in range(1, 6)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if table:
            lines = "".join(f"ada,{name}\n" for name in names)
            archive.writestr("manifest.csv", f"person_id,image\n{lines}")
        archive.writestr(names[0], b"photo")
        for name in names[1:]:
            archive.writestr(name, bytes(MIB))
    monkeypatch.setattr(expansion, "LEAST_EXPANDED", 2 * MIB + 1_000)
    rows: list[Row] = []
    with pytest.raises(ImportSourceError, match="expands to more than"):
        rows.extend(rows_of([str(path)], OPTIONS))
    assert problems(rows) == [""] * 3


def test_a_table_of_a_zip_that_expands_to_many_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.csv", "person_id,image\n" + "ada,1.jpg\n" * 15_000)
    monkeypatch.setattr(expansion, "LEAST_EXPANDED", MIB // 10)
    with pytest.raises(ImportSourceError, match="expands to more than"):
        read_all(path)


def table_of_rows(path: Path, metadata: int, rows: int, suffix: str = "") -> None:
    """A zip whose table has rows that differ in their ids alone."""
    text = "The person has given consent. " * (metadata // 30)
    lines = (
        json.dumps({"person_id": f"p{number}", "without_face": True, "metadata": {"text": text}})
        for number in range(rows)
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("manifest.jsonl", "\n".join(lines) + suffix)


def test_long_rows_that_repeat_are_no_reason_to_refuse_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an export has them: persons without a face, with the same text of consent."""
    path = tmp_path / "export.zip"
    table_of_rows(path, 15_000, 500)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("manifest.jsonl").file_size > 120 * path.stat().st_size
    monkeypatch.setattr(expansion, "LEAST_EXPANDED", MIB)
    rows = list(rows_of([str(path)], OPTIONS))
    assert len(rows) == 500
    assert all(row.problem is None for row in rows)


def test_more_rows_than_the_archive_has_bytes_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bzip2 makes a quarter of a byte of a long row that is there again and again."""
    path = tmp_path / "x.zip"
    line = json.dumps({"person_id": "ada", "metadata": {"text": "x" * 15_000}}) + "\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("manifest.jsonl", line * 20_000)
    monkeypatch.setattr(expansion, "LEAST_EXPANDED", MIB)
    given: list[Row] = []
    with pytest.raises(ImportSourceError, match="expands to more than"):
        given.extend(rows_of([str(path)], OPTIONS))
    assert 0 < len(given) < path.stat().st_size


@pytest.mark.parametrize(
    ("metadata", "rows", "suffix", "most"),
    [
        # Few rows from many bytes; short rows; and bytes of which no rows come.
        (600_000, 10, "", 10),
        (0, 40_000, "", 20_000),
        (0, 10, ("\n" + " " * 1_000) * 3_000, 10),
    ],
)
def test_a_table_is_still_refused_where_its_rows_do_not_explain_its_bytes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    metadata: int,
    rows: int,
    suffix: str,
    most: int,
) -> None:
    path = tmp_path / "x.zip"
    table_of_rows(path, metadata, rows, suffix)
    monkeypatch.setattr(expansion, "LEAST_EXPANDED", MIB)
    monkeypatch.setattr(expansion, "MAX_EXPANSION", 2)
    given: list[Row] = []
    with pytest.raises(ImportSourceError, match="expands to more than 1,048,576, the limit"):
        given.extend(rows_of([str(path)], OPTIONS))
    assert 0 < len(given) <= most


def test_sidecars_that_cannot_be_read_refuse_their_photo(tmp_path: Path) -> None:
    sidecars = [b"[" * 400_000, b'"text"', b"\xff", b'{"person_id": "ada"}']
    files = {}
    for number, sidecar in enumerate(sidecars):
        files |= {f"{number}.jpg": b"1", f"{number}.json": sidecar}
    rows = read_all(tar_of(tmp_path / "x.tar", files))
    found = problems(rows)
    assert found[0].startswith("The .json of the photo cannot be read: maximum recursion depth")
    assert found[1] == "The .json of the photo is not a JSON object."
    assert "codec can't decode" in found[2]
    assert (found[3], rows[3].person_id) == ("", "ada")


def test_a_large_file_beside_photos_ends_nothing(tmp_path: Path) -> None:
    """Not every text is about a photo."""
    large = b"x" * (MAX_SIDECAR + 1)
    files = {
        "ada/1.jpg": b"1", "ada/README.txt": large, "bob/2.jpg": b"2", "bob/2.json": large,
        "bob/3.jpg": b"3",
    }  # fmt: skip
    rows = read_all(tar_of(tmp_path / "photos.tar", files), person_from="folder")
    assert [(row.person_id, row.problem is None) for row in rows if row.place.endswith(".jpg")] == [
        ("ada", True), ("bob", False), ("bob", True),
    ]  # fmt: skip
    (problem,) = [str(row.problem) for row in rows if row.place.endswith("bob/2.jpg")]
    assert "it has more than 1,000,000 bytes" in problem


def test_a_hostile_row_of_a_table_fails_alone(tmp_path: Path) -> None:
    long = "9" * 401
    rows = [
        f'{{"person_id": "a", "embedding": [{long}]}}',
        f'{{"person_id": "a", "embedding": {long}}}',
        f'{{"person_id": {long * 20}, "embedding": [1]}}',
        '{"person_id": "a", "embedding": [[1], [2]]}',
        '{"person_id": "a", "embedding": {"x": 1}}',
        '{"person_id": "a", "embedding": "text"}',
        "[" * 100_000,
        json.dumps({"person_id": "a", "image": "x" * 5_000}),
        '{"person_id": "a", "image": "\\u0000"}',
        '{"person_id": "a", "embedding": [1e300]}',
        '{"person_id": "good", "embedding": [1]}',
        *(f'{{"person_id": "a", "embedding": [1, {one}]}}' for one in ('"2"', "true", "null")),
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    read = read_all(tmp_path / "x.jsonl")
    found = problems(read)
    no_list = "The embedding is not a list of numbers."
    assert [found[0], found[1], *found[3:6]] == [no_list] * 5
    assert "not valid JSON" in found[2]
    assert "recursion" in found[6]
    assert all("cannot be found" in one for one in found[7:9])
    assert found[9:11] == ["", ""], "infinity is refused where the embedding is checked"
    assert found[11:] == [no_list] * 3


def test_a_row_nested_too_deeply_is_refused_alone(tmp_path: Path) -> None:
    """So deep that the parser still takes it."""
    deep = "[" * 700 + "]" * 700
    rows = [f'{{"person_id": "a", "embedding": [1], {one}}}' for one in (
        f'"x": {deep}', f'"metadata": {{"x": {deep}}}', f'"metadata": "{deep}"', '"x": []',
    )]  # fmt: skip
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    assert problems(read_all(tmp_path / "x.jsonl")) == [
        "The row is nested too deeply.", "The row is nested too deeply.",
        "metadata is not a JSON object.", "",
    ]  # fmt: skip


def test_bytes_that_are_no_utf_8_refuse_their_row(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(
        b'{"person_id": "J\xf6rg", "embedding": [1]}\n{"person_id": "ada", "embedding": [1]}\n'
    )
    (tmp_path / "x.csv").write_bytes(b"person_id,embedding\nJ\xf6rg,[1]\nada,[1]\n")
    for suffix in ("csv", "jsonl"):
        rows = read_all(tmp_path / f"x.{suffix}")
        assert problems(rows) == ["The row is not UTF-8; save the table as UTF-8.", ""]
        assert rows[1].person_id == "ada"


def test_empty_lines_before_the_columns_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("\n \nperson_id;embedding\n\nada;[1]\nbob;\n")
    rows = read_all(tmp_path / "x.csv")
    assert [(row.place, row.person_id) for row in rows] == [("x.csv:5", "ada"), ("x.csv:6", "bob")]
    (tmp_path / "x.csv").write_text("\n\n")
    with pytest.raises(ImportSourceError, match="it has none"):
        read_all(tmp_path / "x.csv")


def test_a_row_of_a_csv_that_never_ends_is_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines are short, and quotes make one row of them."""
    monkeypatch.setattr(tables, "MAX_LINE", 1_000)
    (tmp_path / "x.csv").write_text("person_id,image\n" + 'x,"\n",' * 300)
    with pytest.raises(ImportSourceError, match="a row of more than 1,000 characters"):
        read_all(tmp_path / "x.csv")


def write_parquet(path: Path, **columns: Any) -> None:
    arrow = pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns), path)


def test_values_that_python_lacks_refuse_their_row(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    path = tmp_path / "x.parquet"
    moments = arrow.array([1_000, 1], arrow.timestamp("ns"))
    write_parquet(path, person_id=["a", "b"], embedding=[[1.0], [1.0]], taken=moments)
    rows = read_all(path)
    assert rows[0].metadata == {"taken": "1970-01-01T00:00:00.000001"}
    assert rows[1].problem is not None
    assert rows[1].problem.detail.startswith("taken: A value of timestamp[ns] cannot be read")
    write_parquet(path, person_id=["a", "b"], embedding=["text", "[1.0]"])
    assert problems(read_all(path)) == ["The embedding is not a list of numbers.", ""]
    write_parquet(path, person_id=["a", "b"], embedding=[["x"], ["y"]])
    assert problems(read_all(path)) == ["The embedding is not a list of numbers."] * 2
    write_parquet(path, person_id=["a"], embedding=[[1.0]], raw=[b"bytes"])
    assert problems(read_all(path)) == [
        "A value of the type bytes cannot be metadata, which is JSON."
    ]


def test_a_text_that_is_stored_once_for_many_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    text = "x" * 700_000
    count = 60
    write_parquet(path, person_id=["a"] * count, embedding=[[1.0]] * count, note=[text] * count)
    kept = 0
    tracemalloc.start()
    for row in rows_of([str(path)], OF_EMBEDDINGS):
        kept += len(row.metadata["note"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept == count * len(text)
    assert peak < 16 * MIB
    write_parquet(path, person_id=["a"], embedding=[[1.0]], note=["x" * 1_000_001])
    assert problems(read_all(path)) == [
        "note: The text has more than 1,000,000 characters; shorten it."
    ]


def test_only_regular_files_are_photos(tmp_path: Path) -> None:
    """A FIFO would be waited for without end."""
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "photo.jpg").write_bytes(b"photo")
    names = ("fifo.jpg", "loop", "loop/photo.jpg", "photo.jpg")
    lines = [json.dumps({"person_id": "ada", "image": name}) for name in names]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    rows = read_all(tmp_path / "x.jsonl")
    assert rows[0].read is not None
    with pytest.raises(UnreadableFile, match=r"fifo\.jpg is not a regular file"):
        rows[0].read()
    assert all(row.problem and "cannot be found" in row.problem.detail for row in rows[1:3])
    assert rows[3].read is not None
    assert rows[3].read() == b"photo"


def test_what_is_reported_is_short(tmp_path: Path) -> None:
    outcome = RowOutcome(
        "p" * 1_000_000, "n\udcff" * 500_000, RowResult.REJECTED, "", "d" * 1_000_000
    )
    assert len(json.dumps([outcome.place, outcome.person_id, outcome.detail])) < 5_000
    with report_writer(tmp_path / "r.jsonl", 3) as on_outcome:
        for _ in range(10):
            on_outcome(outcome)
        on_outcome(RowOutcome("a", "ada", RowResult.ENROLLED))
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines[-2:]] == ["", "not_listed"]
    assert len(lines) == 5
    assert "7 more rows" in lines[-1]["detail"]


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
