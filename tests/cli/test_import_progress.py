"""How far an import is, and how it ended: lines for people and programs."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.cli import import_gallery, import_progress
from app.cli.import_progress import ImportProgress, summarise
from app.importing import outcomes
from app.importing.local import LocalImport
from app.importing.outcomes import Counts, Outcome, Result
from app.importing.rows import Row

Captured = pytest.CaptureFixture[str]


def counted(*rows: tuple[str, Result, str]) -> Counts:
    counts = Counts()
    for person_id, result, reason in rows:
        counts(Outcome("a", person_id, result, reason))
    return counts


def test_progress_for_programs(capsys: Captured, monkeypatch: Any) -> None:
    monkeypatch.setattr(import_progress, "PLAIN_LINE_EVERY_S", 0)
    counts = Counts()
    with import_progress.import_progress(4, counts, as_json=True) as progress:
        for result in (Result.ENROLLED, Result.REJECTED):
            outcome = Outcome("a", "ada", result, "no_face" if result is Result.REJECTED else "")
            counts(outcome)
            progress.tell(outcome)
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["rows"], first["total"], first["enrolled"], first["rejected"]) == (1, 4, 1, 0)
    assert second["reasons"][1] == {"result": "rejected", "reason": "no_face", "rows": 1}
    assert second["rows_per_second"] > 0
    assert second["seconds_left"] >= 0


def test_rows_that_a_server_is_done_with_count(capsys: Captured, monkeypatch: Any) -> None:
    """They are not told yet; and no time is promised before one is done."""
    monkeypatch.setattr(import_progress, "PLAIN_LINE_EVERY_S", 0)
    counts = Counts()
    with import_progress.import_progress(582, counts, as_json=False) as progress:
        progress.under_way(0)
        progress.under_way(100)
        outcome = Outcome("a", "ada", Result.ENROLLED)
        counts(outcome)
        progress.tell(outcome)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("0 of 582: reading")
    assert "left" not in lines[0]
    assert lines[1].startswith("100 of 582: ")
    assert "left" in lines[1]
    assert lines[2].startswith("100 of 582: 1 enrolled")


def test_time_left_follows_what_is_done() -> None:
    counts = counted(*[("ada", Result.ENROLLED, "")] * 10)
    progress = ImportProgress(20, counts)
    progress._started -= 10
    assert progress.seconds_left() == pytest.approx(10, rel=0.2)


def test_the_summary_says_whose_rows_they_were_and_what_would_take_others(
    capsys: Captured, monkeypatch: Any
) -> None:
    rows = [("ada", Result.ENROLLED, "")] * 3 + [("bob", Result.REJECTED, "several_faces")]
    rows += [(f"p{i}", Result.SKIPPED, "already_enrolled") for i in range(6)]
    rows += [("readme", Result.SKIPPED, "not_a_photo")]
    counts = counted(*rows)
    summarise(counts, as_json=False, dry_run=True, reported=False)
    printed = capsys.readouterr().out
    assert "Nothing was stored" in printed
    assert "--face largest" in printed
    assert "Persons in the rows: 8; the largest: ada (3), bob (1), p0 (1)" in printed
    assert "--report FILE lists every row" in printed
    summarise(counts, as_json=True, dry_run=False, reported=True)
    found = json.loads(capsys.readouterr().out)
    assert found["persons"] == 8
    assert found["largest_persons"][0] == {"person_id": "ada", "rows": 3}
    monkeypatch.setattr(outcomes, "MOST_PERSONS", 2)
    summarise(counted(*rows), as_json=False, dry_run=False, reported=True)
    assert "more than 2; the largest: ada (3)" in capsys.readouterr().out


def test_an_interruption_says_how_to_go_on(
    tmp_path: Path, photos: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("LIKENESS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(LocalImport, "run", interrupted)
    with pytest.raises(import_gallery.typer.Exit) as caught:
        import_gallery.import_folder([str(photos)])
    assert caught.value.exit_code == import_gallery.EXIT_INTERRUPTED
    assert "Run it again to continue" in capsys.readouterr().err


def test_a_sample_takes_names_of_any_bytes() -> None:
    rows = [Row(f"{number}\udcf6.jpg", "ada") for number in range(200)]
    some = list(import_gallery._chosen(iter(rows), None, 0.5))
    assert 60 < len(some) < 140
    assert some == list(import_gallery._chosen(iter(rows), None, 0.5))
