"""Shows the progress and the result of an import."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from app.cli.console import err, out
from app.importing.outcomes import Counts, RowOutcome, RowResult

LINE_EVERY_S = 1.0
BAR_EVERY_S = 0.2
# By reason of rejection: what to change so that such rows are enrolled.
REMEDIES = {
    "several_faces": "--face largest, or --face centre",
    "face_too_small": "another --gate",
    "low_quality": "another --gate",
    "conflict": "--on-conflict report, or the right person_id",
    "image_too_large": "LIKENESS_MAX_IMAGE_BYTES, or smaller photos",
    "unsupported_image": "photos as JPEG, PNG, WebP, HEIC or AVIF",
    "near_duplicate": "another --near-duplicate",
}


class ImportProgress:
    """Counts rows that are done, and rows that a server has done but not reported yet.

    The thread that imports updates it; `show` may be called by another.
    """

    def __init__(self, counts: Counts) -> None:
        self.total: int | None = None
        self._counts = counts
        self._started = time.monotonic()
        self._under_way = 0
        self._upload: tuple[int, int] | None = None
        self._away = ""

    def count(self, _outcome: RowOutcome) -> None:
        """One more row is done; `counts` has it already."""
        self._under_way = max(0, self._under_way - 1)

    def under_way(self, rows: int) -> None:
        """Set the number of rows that a server has done but not reported."""
        self._under_way = rows

    def upload(self, sent: int, size: int) -> None:
        """Set how many bytes of an archive have been sent to a server, of how many."""
        self._upload = (sent, size) if sent < size else None

    def server_away(self, reason: str) -> None:
        """Set why a server does not answer; empty when it does."""
        self._away = reason

    def show(self) -> None:
        """Show the progress as it is now."""

    @property
    def rows(self) -> int:
        """Rows that are done."""
        return self._counts.total + self._under_way

    def rate(self) -> float:
        """Rows per second."""
        return self.rows / max(time.monotonic() - self._started, 1e-9)

    def seconds_left(self) -> float | None:
        """Estimated seconds left; None if the total is unknown or nothing is done yet."""
        if self.total is None or not self.rows:
            return None
        return max(0, self.total - self.rows) / self.rate()

    def text(self) -> str:
        """Counts, upload, rate and time left."""
        counts = [(self._counts.of(result), result.value) for result in RowResult]
        parts = [f"{count} {name}" for count, name in counts if count]
        if (upload := self._upload) is not None:
            sent, size = upload
            parts.append(f"sending {sent / 1e6:.1f} of {size / 1e6:.1f} MB")
        left = self.seconds_left()
        known = "" if left is None else f", {_duration(left)} left"
        if self._away:
            parts.append(self._away)
        if not parts and not self.rows:
            return "looking for photos"
        return f"{', '.join(parts) or 'reading'}, {self.rate():.0f}/s{known}"

    def members(self) -> dict[str, object]:
        """For JSON."""
        left = self.seconds_left()
        sent, size = self._upload or (None, None)
        return {
            "rows": self.rows,
            "total": self.total,
            "rows_per_second": round(self.rate(), 1),
            "seconds_left": None if left is None else round(left, 1),
            "bytes_sent": sent,
            "bytes_to_send": size,
            **self._counts.members(),
        }


class _Lines(ImportProgress):
    """Prints lines, as JSON if asked."""

    def __init__(self, counts: Counts, *, as_json: bool) -> None:
        super().__init__(counts)
        self._as_json = as_json

    def show(self) -> None:
        if self._as_json:
            typer.echo(json.dumps(self.members()), err=True)
            return
        of_all = "" if self.total is None else f" of {self.total}"
        err.print(f"{self.rows}{of_all}: {self.text()}", highlight=False)


class _Bar(ImportProgress):
    """A progress bar."""

    def __init__(self, counts: Counts, bar: Progress) -> None:
        super().__init__(counts)
        self._bar = bar
        self._task: TaskID = bar.add_task("import", total=None, text="reading")

    def show(self) -> None:
        self._bar.update(self._task, total=self.total, completed=self.rows, text=self.text())


@contextmanager
def import_progress(counts: Counts, *, as_json: bool) -> Iterator[ImportProgress]:
    """A bar on a terminal, elsewhere a line a second, as JSON if asked; on standard error.

    It is shown by a thread of its own, so that it also moves while the import waits."""
    if as_json or not err.is_terminal:
        lines = _Lines(counts, as_json=as_json)
        with _shown_every(LINE_EVERY_S, lines):
            yield lines
        return
    columns = (
        SpinnerColumn(), TextColumn("Importing"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("{task.fields[text]}"),
    )  # fmt: skip
    with Progress(*columns, console=err) as bar:
        progress = _Bar(counts, bar)
        with _shown_every(BAR_EVERY_S, progress):
            yield progress
        progress.show()


@contextmanager
def _shown_every(seconds: float, progress: ImportProgress) -> Iterator[None]:
    ended = threading.Event()

    def show() -> None:
        while not ended.wait(seconds):
            progress.show()

    thread = threading.Thread(target=show, name="import-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def summarise(counts: Counts, *, as_json: bool, dry_run: bool, reported: bool) -> None:
    """Print the numbers of rows by outcome, and the persons, to standard output."""
    if as_json:
        largest = [{"person_id": name, "rows": rows} for name, rows in counts.largest_persons()]
        members = {**counts.members(), "largest_persons": largest, "dry_run": dry_run}
        typer.echo(json.dumps(members))
        return
    rejected = counts.of(RowResult.REJECTED)
    title = "Nothing was stored" if dry_run else None
    table = Table("outcome", "reason", "rows", *["to enroll them"] * bool(rejected), title=title)
    for (result, reason), count in sorted(counts.by_reason.items()):
        remedy = REMEDIES.get(reason, "") if result != RowResult.ENROLLED else ""
        table.add_row(result, reason, str(count), *[remedy] * bool(rejected))
    out.print(table)
    out.print(_persons(counts), markup=False, highlight=False, soft_wrap=True)
    if rejected and not reported:
        out.print("--report FILE lists every row with its reason.", markup=False, highlight=False)


def _persons(counts: Counts) -> str:
    shown = ", ".join(f"{name} ({rows})" for name, rows in counts.largest_persons())
    number = f"{counts.persons:,}" if counts.all_persons else f"more than {counts.persons:,}"
    return f"Persons in the rows: {number}{'; the largest: ' if shown else ''}{shown}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
