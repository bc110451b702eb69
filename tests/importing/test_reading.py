"""Archives that a service reads in a process of its own: nothing that happens there hurts it."""

import json
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import msgpack
import numpy as np
import psutil
import pytest

from app.importing import reading as module
from app.importing.frames import pack_row, unpack_row
from app.importing.reader import MORE_NICE
from app.importing.reading import ReaderDied, reading
from app.importing.source_rows import ImportSourceError, Row
from app.importing.sources import SourceOptions, rows_of
from tests.waiting import until

MIB = 1 << 20
OPTIONS = SourceOptions("es", 1 * MIB, given_space="es", uploaded=True)
MEMORY = 256 * MIB


def read_all(archive: Path, memory: int = MEMORY) -> list[Row]:
    with reading(archive, OPTIONS, memory, lambda: None) as reader:
        reader.total()
        return list(reader.rows())


def same(row: Row) -> tuple[object, ...]:
    """What two rows are compared by."""
    return (
        row.place, row.person_id, row.read and row.read(), row.crop and row.crop(), row.metadata,
        row.quality, row.content_digest, row.face_id, row.without_face,
        row.problem and (row.problem.code, row.problem.detail),
        None if row.embedding is None else row.embedding.tobytes(),
    )  # fmt: skip


def test_the_rows_are_those_that_the_service_would_read(tmp_path: Path) -> None:
    vector = np.random.default_rng(1).normal(size=8).astype(np.float32).tolist()
    made = {"person_id": "ada", "embedding": vector, "embedding_space": "es"}
    lines = [
        {"person_id": "ada", "image": "1.jpg", "metadata": {"n": 1.5, "name": "Ada ✓"}},
        made | {"quality": {"sharpness": 3.5}, "crop": "1.jpg", "content_digest": "0" * 64},
        made | {"face_id": "0b1f8a52-93b3-4d0e-8f2e-4a59c4f5d0aa", "metadata": {"n": 2**40}},
        {"person_id": "bob", "without_face": True},
        {"person_id": "bob", "image": "absent.jpg"},
        {"person_id": "\ud83d", "image": "1.jpg"},
    ]
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.jsonl", "\n".join(map(json.dumps, lines)))
        archive.writestr("1.jpg", b"photo")
    here = list(rows_of([str(path)], OPTIONS))
    with reading(path, OPTIONS, MEMORY, lambda: None) as reader:
        assert reader.total() == 6
        there = list(reader.rows())
    assert [same(row) for row in there[:5]] == [same(row) for row in here[:5]]
    assert there[5].person_id == "\\ud83d", "as people can read it"
    assert there[5].problem is not None
    assert there[5].problem.code == "invalid_request"


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK broken")
    with pytest.raises(ImportSourceError, match="not a complete zip"):
        read_all(tmp_path / "x.zip")


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A tar whose members take long and give no row."""
    path = tmp_path / "x.tar"
    path.write_bytes(tarfile.TarInfo("empty").tobuf(tarfile.GNU_FORMAT) * 200_000)
    return path


def test_it_ends_when_the_service_says_so(endless: Path) -> None:
    class Cancelled(Exception):
        pass

    cancelled: list[bool] = []

    def check() -> None:
        if cancelled:
            raise Cancelled

    with reading(endless, OPTIONS, MEMORY, check) as reader:
        reader.total()
        cancelled.append(True)
        with pytest.raises(Cancelled):
            list(reader.rows())
    assert reader._process.poll() == -signal.SIGKILL


def test_its_memory_is_bounded(tmp_path: Path) -> None:
    """What a line of 4 MB is in Python takes 100 MB."""
    path = tmp_path / "x.jsonl"
    path.write_text("[" + "{}," * 1_300_000 + "{}]")
    with pytest.raises(ImportSourceError, match="more than 128 MiB of memory"):
        read_all(path, 128 * MIB)


def test_the_death_of_the_reader_is_reported(tmp_path: Path, endless: Path) -> None:
    with reading(endless, OPTIONS, MEMORY, lambda: None) as reader:
        reader._process.kill()
        with pytest.raises(ReaderDied, match="by SIGKILL before the end of the archive"):
            reader.total()


@pytest.mark.parametrize(
    "said", [b"\xc1", b"\x01", b"\x92\xa3row\x80", b"\x92\xa1x\xc0", b"\xdd\xff"]
)
def test_nothing_that_it_says_is_trusted(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attacker who controls it can make the import fail, and no more."""
    script = f"import sys; sys.stdout.buffer.write({said!r})"

    def popen(command: list[str], **options: object) -> "subprocess.Popen[bytes]":
        return real([sys.executable, "-c", script], stdout=subprocess.PIPE)

    real = subprocess.Popen
    monkeypatch.setattr(module.subprocess, "Popen", popen)
    with pytest.raises(ReaderDied):
        read_all(Path("x.zip"))


@pytest.mark.parametrize(
    "members",
    [
        None, [], {}, {"place": "x", "person_id": "a"}, {"problem": 1}, {"problem": ["x"]},
        {"photo": 1}, {"embedding": b"abc"}, {"photo": b"", "metadata": "["},
    ],
)  # fmt: skip
def test_a_row_that_is_none(members: object) -> None:
    with pytest.raises((ValueError, TypeError, LookupError)):
        unpack_row(members)


def test_an_empty_photo_is_a_row() -> None:
    """Its problem is found when it is decoded."""
    _, members = msgpack.unpackb(pack_row(Row("x", "ada", lambda: b"")))
    read = unpack_row(members).read
    assert read is not None
    assert read() == b""


@pytest.mark.skipif(sys.platform != "linux", reason="psutil names other priorities elsewhere")
def test_requests_of_the_service_come_first(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("no row\n" * 20_000)  # more than the pipe holds: the process waits
    with reading(path, OPTIONS, MEMORY, lambda: None) as reader:
        process = psutil.Process(reader._process.pid)
        until(lambda: process.nice() == min(19, psutil.Process().nice() + MORE_NICE))


def test_it_knows_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKENESS_ENCRYPTION_KEY", "secret")
    assert not [name for name in module._environment() if name.startswith("LIKENESS")]


def test_it_starts_without_what_it_does_not_need() -> None:
    """Each import starts one: with networks and settings it would take half a second more."""
    script = "import sys, app.importing.reader; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not {"onnxruntime", "cv2", "pydantic", "sqlalchemy"} & {*loaded.stdout.split()}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_it_ends_with_the_service(endless: Path) -> None:
    """Even if that is killed while the archive gives nothing."""
    script = (
        "import sys; from pathlib import Path; from tests.importing.test_reading import *\n"
        "with reading(Path(sys.argv[1]), OPTIONS, MEMORY, lambda: None) as reader:\n"
        "    print(reader._process.pid, flush=True); list(reader.rows())"
    )
    service = subprocess.Popen(
        [sys.executable, "-c", script, endless], stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    assert service.stdout is not None
    reader = psutil.Process(int(service.stdout.readline()))
    service.kill()
    service.wait()
    service.stdout.close()
    until(lambda: has_ended(reader))


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
