"""How far an import is, and how it ended: lines for people and programs."""

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from app.cli import import_export, import_progress
from app.cli.import_progress import ImportProgress, summarise
from app.importing import outcomes
from app.importing.local import LocalImport
from app.importing.outcomes import Counts, RowOutcome, RowResult
from app.importing.source_rows import Row

Captured = pytest.CaptureFixture[str]


def counted(*rows: tuple[str, RowResult, str]) -> Counts:
    counts = Counts()
    for person_id, result, reason in rows:
        counts(RowOutcome("a", person_id, result, reason))
    return counts


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is shown but those that a test asks for."""
    monkeypatch.setattr(import_progress, "LINE_EVERY_S", 3600)


def test_progress_for_programs(capsys: Captured, seldom: None) -> None:
    counts = Counts()
    with import_progress.import_progress(counts, as_json=True) as progress:
        progress.total = 4
        for result in (RowResult.ENROLLED, RowResult.REJECTED):
            outcome = RowOutcome(
                "a", "ada", result, "no_face" if result is RowResult.REJECTED else ""
            )
            counts(outcome)
            progress.count(outcome)
            progress.show()
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["rows"], first["total"], first["enrolled"], first["rejected"]) == (1, 4, 1, 0)
    assert second["reasons"][1] == {"result": "rejected", "reason": "no_face", "rows": 1}
    assert second["rows_per_second"] > 0
    assert second["seconds_left"] >= 0
    assert second["bytes_to_send"] is None


def test_rows_that_a_server_is_done_with_count(capsys: Captured, seldom: None) -> None:
    """They are not reported yet; and no time is promised before one is done."""
    counts = Counts()
    with import_progress.import_progress(counts, as_json=False) as progress:
        progress.total = 582
        progress.under_way(0)
        progress.show()
        progress.under_way(100)
        progress.show()
        outcome = RowOutcome("a", "ada", RowResult.ENROLLED)
        counts(outcome)
        progress.count(outcome)
        progress.show()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("0 of 582: looking for photos")
    assert "left" not in lines[0]
    assert lines[1].startswith("100 of 582: ")
    assert "left" in lines[1]
    assert lines[2].startswith("100 of 582: 1 enrolled")


def test_an_upload_is_shown_until_it_is_sent(capsys: Captured, seldom: None) -> None:
    with import_progress.import_progress(Counts(), as_json=True) as progress:
        for sent in (0, 1_500_000, 3_000_000):
            progress.upload(sent, 3_000_000)
            progress.show()
            if sent == 1_500_000:
                assert progress.text().startswith("sending 1.5 of 3.0 MB, ")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [one["bytes_sent"] for one in lines] == [0, 1_500_000, None]
    assert [one["bytes_to_send"] for one in lines] == [3_000_000, 3_000_000, None]


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_moves_while_the_import_waits(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    """No row is reported, as while a part is uploaded or a busy server is waited for."""
    for name in ("LINE_EVERY_S", "BAR_EVERY_S"):
        monkeypatch.setattr(import_progress, name, 0.01)
    console = Console(file=io.StringIO(), force_terminal=terminal)
    monkeypatch.setattr(import_progress, "err", console)
    shown = threading.Semaphore(0)
    kind = import_progress._Bar if terminal else import_progress._Lines
    show = kind.show
    monkeypatch.setattr(kind, "show", lambda self: (show(self), shown.release()))
    with import_progress.import_progress(Counts(), as_json=False):
        for _ in range(3):
            assert shown.acquire(timeout=60)


def test_time_left_follows_what_is_done() -> None:
    counts = counted(*[("ada", RowResult.ENROLLED, "")] * 10)
    progress = ImportProgress(counts)
    progress.total = 20
    progress._started -= 10
    assert progress.seconds_left() == pytest.approx(10, rel=0.2)


def test_the_summary_says_whose_rows_they_were_and_what_would_take_others(
    capsys: Captured, monkeypatch: Any
) -> None:
    rows = [("ada", RowResult.ENROLLED, "")] * 3 + [("bob", RowResult.REJECTED, "several_faces")]
    rows += [(f"p{i}", RowResult.SKIPPED, "already_enrolled") for i in range(6)]
    rows += [("readme", RowResult.SKIPPED, "not_a_photo")]
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
    with pytest.raises(import_export.typer.Exit) as caught:
        import_export.import_folder([str(photos)])
    assert caught.value.exit_code == import_export.EXIT_INTERRUPTED
    assert "Run it again to continue" in capsys.readouterr().err


def test_a_sample_takes_names_of_any_bytes() -> None:
    rows = [Row(f"{number}\udcf6.jpg", "ada") for number in range(200)]
    some = list(import_export._chosen(iter(rows), None, 0.5))
    assert 60 < len(some) < 140
    assert some == list(import_export._chosen(iter(rows), None, 0.5))
