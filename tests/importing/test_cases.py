"""Inputs that people really have, from the folder `cases` beside the evaluation data: the command
reads each as the README there says. `pytest -m slow tests/importing/test_cases.py` shows them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import ImageError
from app.imaging import ImageLimits, decode_image
from app.inference.pack_spec import ModelPack

pytestmark = pytest.mark.slow

LIKENESS = Path(sys.executable).parent / "likeness"
Import = Callable[..., "tuple[int, list[dict[str, str]], str]"]


@pytest.fixture
def imported(tmp_path: Path, cases: Path) -> Import:
    def run(name: str, *options: str) -> tuple[int, list[dict[str, str]], str]:
        """The exit status, the report's rows, and what was printed."""
        report = tmp_path / "r.jsonl"
        done = likeness(tmp_path, "import", cases / name, "--report", report, *options)
        rows = [json.loads(line) for line in report.read_text().splitlines()]
        return done.returncode, rows, done.stdout + done.stderr

    return run


def likeness(folder: Path, *command: "str | Path") -> "subprocess.CompletedProcess[str]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LIKENESS_")}
    return subprocess.run(
        [LIKENESS, *command],
        env={**clean, "LIKENESS_DATA_DIR": str(folder / "data"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "people"),
    [
        ("dot_entry.tar", ["ann"]),
        ("hidden_member.tar", ["ann"]),
        ("manifest_in_folder.zip", ["ann", "bob"]),
        ("manifest_upper_case.zip", ["ann", "bob"]),
        ("caption_txt.tar", ["ann", "bob"]),
        ("utf8_name_without_flag.zip", ["Müller"]),
        ("UPPER.ZIP", ["ann"]),
    ],
)
def test_photos_are_read_as_these_people_s(imported: Import, name: str, people: list[str]) -> None:
    status, rows, printed = imported(name)
    assert [(row["person_id"], row["reason"]) for row in rows] == [(p, "no_face") for p in people]
    assert status == 1
    assert f"Persons in the rows: {len(people)}; the largest: {people[0]} (1)" in printed


def test_folders_two_deep(imported: Import) -> None:
    status, rows, printed = imported("folders_two_deep.zip")
    assert (status, rows) == (2, [])
    assert "ann/2023/1.jpg → 2023" in printed
    status, rows, _ = imported("folders_two_deep.zip", "--person-from", "top-folder")
    assert [row["person_id"] for row in rows] == ["ann", "bob"]


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("person_lone_surrogate.jsonl", ["invalid_request", "no_face"]),
        ("metadata_lone_surrogate.jsonl", ["invalid_request"]),
        ("metadata_nan_and_100kb.jsonl", ["invalid_request"]),
    ],
)
def test_hostile_rows(
    imported: Import, tmp_path: Path, pack: ModelPack, name: str, reasons: list[str]
) -> None:
    _, rows, printed = imported(name, "--space", pack.embedding_space)
    assert [row["reason"] for row in rows] == reasons
    assert "Traceback" not in printed
    for command in (["export", tmp_path / "x.jsonl"], ["backup", tmp_path / "x.backup"]):
        done = likeness(tmp_path, *command)
        assert done.returncode == 0, done.stderr


def test_the_file_that_was_looked_for_is_named(imported: Import, cases: Path) -> None:
    _, rows, _ = imported("backslash.csv")
    assert rows[0]["detail"] == f"There is no file {cases.resolve()}/elsewhere\\2.jpg."


@pytest.mark.parametrize(
    "name", ["jpeg_without_end_marker.jpg", "png_text_over_1mib.png", "png_text_wrong_crc.png"]
)
def test_whole_pixels_are_decoded(cases: Path, name: str) -> None:
    assert decode_image((cases / name).read_bytes(), ImageLimits()).size


def test_a_film_is_no_heic(cases: Path) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image((cases / "movie.mov").read_bytes(), ImageLimits())
    assert caught.value.detail.startswith("QuickTime")
