"""`likeness import FOLDER`: enrol a folder of people, one sub-folder a person."""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from app.cli.console import clear_errors, err, out, read_settings
from app.decision.calibrations import policy_of
from app.decision.policy import FaceSelection
from app.decision.rules import CollectionPolicy
from app.errors import CollectionNotFound, LikenessError, StoreFull, StoreUnavailable
from app.folders import PersonPhoto, find_photos
from app.gallery.gallery import DEFAULT_COLLECTION
from app.services import Services, build_services, check_person_id, content_digest

EXIT_SOME_REJECTED = 1
# Photos read ahead of each worker: enough to keep it busy, few enough to stay small in memory.
AHEAD = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file: enrolled, duplicate, or rejected with a stable reason."""

    photo: PersonPhoto
    result: str
    reason: str = ""
    detail: str = ""


def import_folder(
    folder: Annotated[Path, typer.Argument(help="Holds one folder a person, named by its id.")],
    collection: Annotated[str, typer.Option(help="Made if missing.")] = DEFAULT_COLLECTION,
    face: Annotated[
        FaceSelection, typer.Option(help="Which face counts where a photo has several.")
    ] = FaceSelection.ONLY,
    report: Annotated[
        Path | None, typer.Option(help="Write the outcome of each file (CSV).")
    ] = None,
) -> None:
    """Enrol every photo of FOLDER/<person_id>/. Safe to run again: nothing is stored twice.

    Exit status: 0 all enrolled, 1 some photos rejected, 2 the import could not run.
    """
    if not folder.is_dir():
        err.print(f"{folder} is not a folder.", markup=False)
        raise typer.Exit(2)
    with clear_errors():
        services = build_services(read_settings())
        services.upkeep.start()  # else the index of a large import stays uncompressed
        try:
            target = _ensure_collection(services, collection)
            outcomes = _run(services, target, find_photos(folder), face)
        finally:
            services.close()
    _summarise(outcomes)
    if report is not None:
        write_report(report, outcomes)
        out.print(f"Outcome of each file: {report}")
    if any(outcome.result == "rejected" for outcome in outcomes):
        raise typer.Exit(EXIT_SOME_REJECTED)


@dataclass(frozen=True, slots=True)
class Target:
    """Where photos go, and what a face must be to get there."""

    collection: str
    policy: CollectionPolicy


def _ensure_collection(services: Services, name: str) -> Target:
    try:
        record = services.gallery.require(name)
    except CollectionNotFound:
        record = services.gallery.create_collection(name, {})
    return Target(name, policy_of(record))


def _run(
    services: Services, target: Target, photos: list[PersonPhoto], face: FaceSelection
) -> list[Outcome]:
    columns = (
        TextColumn("Importing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[counts]}"),
    )  # fmt: skip
    outcomes: list[Outcome] = []
    counts: Counter[str] = Counter()
    with Progress(*columns, console=err) as progress:
        task = progress.add_task("import", total=len(photos), counts="")
        for outcome in _in_parallel(services, target, photos, face):
            outcomes.append(outcome)
            counts[outcome.result] += 1
            shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
            progress.update(task, advance=1, counts=shown)
    return outcomes


def _in_parallel(
    services: Services, target: Target, photos: Iterable[PersonPhoto], face: FaceSelection
) -> Iterator[Outcome]:
    """Outcomes as they come; a bounded number of photos is under way at a time."""
    under_way: set[Future[Outcome]] = set()
    with ThreadPoolExecutor(services.scheduler.workers, thread_name_prefix="import") as threads:
        try:
            for photo in photos:
                under_way.add(threads.submit(import_photo, services, target, photo, face))
                if len(under_way) >= services.scheduler.workers * AHEAD:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in wait(under_way).done)
        finally:
            threads.shutdown(cancel_futures=True)


def import_photo(
    services: Services, target: Target, photo: PersonPhoto, face: FaceSelection
) -> Outcome:
    """Enrol one file. A file that cannot be used is an outcome; a database that cannot be used
    is raised and ends the import."""
    try:
        check_person_id(photo.person_id)
        data = _read(photo.path, services.settings.max_image_bytes)
        if services.gallery.store.knows(target.collection, photo.person_id, content_digest(data)):
            return Outcome(photo, "duplicate", "already_enrolled")
        _, template = services.template_from_photo(data, face, target.policy)
        stored = services.gallery.enroll(target.collection, photo.person_id, None, [template])
    except (StoreFull, StoreUnavailable):
        raise
    except LikenessError as error:
        return Outcome(photo, "rejected", error.code, error.detail)
    except OSError as error:
        return Outcome(photo, "rejected", "unreadable_file", str(error.strerror))
    if stored[0].duplicate:
        return Outcome(photo, "duplicate", "already_enrolled")
    return Outcome(photo, "enrolled")


def _read(path: Path, limit: int) -> bytes:
    """The file, or just enough of it to be refused as too large."""
    with path.open("rb") as file:
        return file.read(limit + 1)


def _summarise(outcomes: list[Outcome]) -> None:
    table = Table("outcome", "reason", "photos")
    for (result, reason), count in sorted(Counter((o.result, o.reason) for o in outcomes).items()):
        table.add_row(result, reason, str(count))
    out.print(table)
    persons = {outcome.photo.person_id for outcome in outcomes}
    reached = {o.photo.person_id for o in outcomes if o.result != "rejected"}
    out.print(f"{len(reached)} of {len(persons)} persons have at least one face.")


def write_report(path: Path, outcomes: list[Outcome]) -> None:
    """One CSV row a file, in the order of the files."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["person_id", "file", "outcome", "reason", "detail"])
        for one in sorted(outcomes, key=lambda outcome: outcome.photo.path):
            writer.writerow(
                [one.photo.person_id, one.photo.path, one.result, one.reason, one.detail]
            )
