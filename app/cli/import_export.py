"""`likeness import SOURCE…`: many photos, or embeddings, into a collection. `likeness export FILE`:
a collection as a file that `likeness import` takes back."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress

from app.access.keys import audit_key
from app.cli.console import announce_new_database, err, out, read_settings, require_database, warn
from app.cli.import_progress import ImportProgress, import_progress, summarise
from app.cli.output import require_not_read
from app.decision.face_selection import FaceSelection
from app.decision.gates import require_passable
from app.encryption.ring import KeyRing
from app.errors import CollectionExists, CollectionNotFound
from app.findings import findings
from app.importing.gallery_export import export
from app.importing.local import LocalImport
from app.importing.options import ImportOptions, ImportStopped, OnConflict, OnError
from app.importing.outcomes import Counts, OutcomeCallback, RowOutcome, RowResult, report_writer
from app.importing.remote import RemoteImport
from app.importing.source_options import PersonFrom, SourceOptions
from app.importing.source_rows import ImportSourceError, Row
from app.importing.sources import rows_of, total_of
from app.services import build_services
from app.settings import MOST, Settings
from app.store.identifiers import DEFAULT_COLLECTION
from app.store.store import opened_store, switch_default_collection

EXIT_SOME_REJECTED, EXIT_CANNOT_RUN, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 2, 3, 130


Sources = Annotated[
    list[str],
    typer.Argument(
        help=(
            "A folder with one subfolder for each person; a CSV, JSON Lines or Parquet "
            "table (person_id, and image or embedding); a zip of such folders or of one CSV or "
            "JSON Lines table; a tar of such folders or of WebDataset samples; "
            "compreface:http://host:8000; - for standard input."
        )
    ),
]
CollectionName = Annotated[
    str, typer.Option(help="Name of the collection; created if it does not exist.")
]
FaceOption = Annotated[
    FaceSelection,
    typer.Option(
        help="Which face is enrolled if a photo has several. only: it must be the only one, or the "
        "photo is rejected (faces less than half as large are ignored); largest: the largest; "
        "centre: the one nearest the centre."
    ),
]
Gate = Annotated[
    str | None,
    typer.Option(
        help=(
            "Quality gate as JSON, instead of the collection's enroll_gate: "
            '{"min_face_size_px": 60}.'
        )
    ),
]
Pattern = Annotated[
    str | None,
    typer.Option(
        help=(
            "Pattern of file names, or of paths if it contains /, with the person's id: "
            "{person_id}_*.jpg, {person_id}/**. * matches anything but /, ** matches "
            "anything; at most three wildcards (* or **) in all. Case does not matter."
        )
    ),
]
PersonFromOption = Annotated[
    PersonFrom | None,
    typer.Option(
        help="Where the person's id is, if the source is ambiguous. folder: in the name of the "
        "folder that contains the photo; top-folder: in that of the first folder of its path; "
        "json, cls or txt (in a tar): in the file with the same name and this extension."
    ),
]
NamesEncoding = Annotated[
    str | None, typer.Option(help="Encoding of file names that are not UTF-8: gbk, cp1252.")
]
ImageFolder = Annotated[
    Path | None, typer.Option(help="Folder of a table's photos; default: the folder of the table.")
]
SpaceOption = Annotated[
    str | None, typer.Option(help="Embedding space of rows that do not name one.")
]
StdinFormat = Annotated[str, typer.Option(help="Format of standard input: csv, jsonl or tar.")]
NearDuplicate = Annotated[
    float | None,
    typer.Option(
        min=-1,
        max=1,
        help="Skip a face that is at least this similar to a face that its person already has.",
    ),
]
OnConflictOption = Annotated[
    OnConflict | None,
    typer.Option(
        help=(
            "What to do about a face that resembles another person more than its own. report: "
            "enroll it and report the conflict; skip: reject the row; stop: reject it and end the "
            "import; off: do not look for conflicts. "
            "Default: report for photos, off for embeddings."
        )
    ),
]
OnErrorOption = Annotated[
    OnError, typer.Option(help="Continue after a rejected row, or stop at the first.")
]
RetryRefused = Annotated[
    bool, typer.Option(help="Analyse rows again that an earlier run rejected or skipped.")
]
DryRun = Annotated[
    bool,
    typer.Option(
        help="Analyse and report, store nothing; rows are not compared with the rows before them."
    ),
]
RowLimit = Annotated[
    int | None, typer.Option(min=1, max=MOST, help="Import at most this many rows.")
]
SampleShare = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Import this share of the rows, such as 0.01; the same rows each time.",
    ),
]
ReportFile = Annotated[Path | None, typer.Option(help="Outcome of each row: .csv or .jsonl.")]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="The summary on stdout and progress on stderr as JSON, one object per line."
    ),
]
ServerUrl = Annotated[
    str | None,
    typer.Option(help="Import into the running service at this URL instead of the local database."),
]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="LIKENESS_API_KEY", help="Access key or bearer token for that service."),
]
SourceKey = Annotated[
    str | None, typer.Option(envvar="LIKENESS_SOURCE_KEY", help="CompreFace's API key.")
]


def import_folder(
    sources: Sources,
    *,
    collection: CollectionName = DEFAULT_COLLECTION,
    face: FaceOption = FaceSelection.ONLY,
    gate: Gate = None,
    pattern: Pattern = None,
    person_from: PersonFromOption = None,
    names_encoding: NamesEncoding = None,
    images: ImageFolder = None,
    space: SpaceOption = None,
    stdin_format: StdinFormat = "jsonl",
    near_duplicate: NearDuplicate = None,
    on_conflict: OnConflictOption = None,
    on_error: OnErrorOption = OnError.CONTINUE,
    retry_refused: RetryRefused = False,
    dry_run: DryRun = False,
    limit: RowLimit = None,
    sample: SampleShare = None,
    report: ReportFile = None,
    as_json: AsJson = False,
    url: ServerUrl = None,
    api_key: ApiKey = None,
    source_key: SourceKey = None,
) -> None:
    """Enroll photos or embeddings. Run it again to continue, also after it was killed.

    Exit status: 0 no row rejected, 1 some rows rejected, 2 the import could not run, 3 stopped at a
    row, 130 interrupted.
    """
    settings = read_settings()
    counts = Counts()
    with ExitStack() as stack:
        options = _options(
            face=face, gate=gate, near_duplicate=near_duplicate, on_conflict=on_conflict,
            on_error=on_error, retry_refused=retry_refused, dry_run=dry_run,
        )  # fmt: skip
        callbacks: list[OutcomeCallback] = [counts]
        if report is not None:
            # Of a folder only photos are read, which a report cannot be.
            require_not_read(report, [path for path in map(Path, sources) if not path.is_dir()])
            callbacks.append(stack.enter_context(report_writer(report)))
        progress = stack.enter_context(import_progress(counts, as_json=as_json))
        callbacks.append(progress.count)
        if url is None:
            work, target = _local(stack, settings, collection, options)
        else:
            remote = RemoteImport(url, collection, options, settings.max_image_bytes, key=api_key)
            work, target = _remote(remote, progress)
        given = SourceOptions(
            target, settings.max_image_bytes, space, images, pattern, stdin_format, source_key,
            person_from=person_from, names_encoding=names_encoding,
        )  # fmt: skip
        every_row = limit is None and sample is None
        progress.total = total_of(sources, given) if every_row else limit
        ended = _run(work, _chosen(rows_of(sources, given), limit, sample), callbacks)
    summarise(counts, as_json=as_json, dry_run=dry_run, reported=report is not None)
    _exit(ended, counts)


Work = Callable[[Iterator[Row], OutcomeCallback], None]


def _options(**given: Any) -> ImportOptions:
    try:
        return ImportOptions(**given)
    except ValidationError as error:
        place, message = findings(error.errors())[0]
        raise ImportSourceError(f"--{place}: {message}.") from error


def _local(
    stack: ExitStack, settings: Settings, collection: str, options: ImportOptions
) -> tuple[Work, str]:
    """What imports rows into the database of the settings, and the embedding space they go to."""
    announce_new_database(settings)
    services = build_services(settings)
    stack.callback(services.close)
    if options.gate is not None:
        require_passable(options.gate, "gate", services.measurable)
    pack, gallery = services.pack, services.gallery
    switch_default_collection(gallery.store, pack.embedding_space, pack.recogniser.dimension)
    try:
        record = gallery.require(collection)
    except CollectionNotFound:
        with suppress(CollectionExists):  # another command was faster
            gallery.create_collection(collection, {})
            _say_new(collection)
        record = gallery.require(collection)
    return LocalImport(services, record, options).run, record.embedding_space


def _remote(remote: RemoteImport, progress: ImportProgress) -> tuple[Work, str]:
    """The same for a running server, whose progress is shown."""
    remote.watch, remote.watch_upload = progress.under_way, progress.upload
    remote.watch_server = progress.server_away
    space, is_new = remote.ensure_collection()
    if is_new:
        _say_new(remote.collection)
    return remote.run, space


def _say_new(collection: str) -> None:
    """A mistyped name makes a collection without the policy of the one that was meant."""
    warn(f"The collection '{collection}' did not exist; it was made, with the default policy.")


def _run(
    work: Work, rows: Iterator[Row], callbacks: list[OutcomeCallback]
) -> ImportStopped | KeyboardInterrupt | None:
    """Import the rows; returns what ended the import early."""

    def on_outcome(outcome: RowOutcome) -> None:
        for one in callbacks:
            one(outcome)

    try:
        work(rows, on_outcome)
    except (ImportStopped, KeyboardInterrupt) as reason:
        return reason
    return None


def _exit(ended: ImportStopped | KeyboardInterrupt | None, counts: Counts) -> None:
    """Raise the exit status, after a message if the import ended early."""
    if isinstance(ended, ImportStopped):
        err.print(f"Stopped: {ended.detail}", markup=False, highlight=False)
        raise typer.Exit(EXIT_STOPPED)
    if ended is not None:
        err.print("Interrupted. Run it again to continue: nothing is enrolled twice.")
        raise typer.Exit(EXIT_INTERRUPTED)
    if counts.of(RowResult.REJECTED):
        raise typer.Exit(EXIT_SOME_REJECTED)


def _chosen(rows: Iterator[Row], limit: int | None, sample: float | None) -> Iterator[Row]:
    """Some of the rows, the same in every run."""
    if sample is not None:
        rows = (row for row in rows if _draw(row.place) < sample)
    return rows if limit is None else itertools.islice(rows, limit)


def _draw(place: str) -> float:
    return int.from_bytes(hashlib.sha256(place.encode(errors="surrogatepass")).digest()[:8]) / 2**64


def export_collection(
    file: Annotated[Path, typer.Argument(help=".parquet, .jsonl, or .zip (with kept crops).")],
    collection: Annotated[str, typer.Option(help="Name of the collection.")] = DEFAULT_COLLECTION,
) -> None:
    """Write persons, metadata and embeddings to a file, unencrypted: protect it like photos.

    A service over the same database can run meanwhile. For a copy of all
    collections, with policies and calibrations, use likeness backup.
    """
    settings = read_settings()
    url = require_database(settings).resolved_database_url
    with opened_store(url, KeyRing.from_settings(settings), audit_key(settings)) as store:
        record = store.collections.get(collection)
        total = store.collections.count(record).templates
        with Progress(BarColumn(), MofNCompleteColumn(), console=err, transient=True) as bar:
            task = bar.add_task("", total=total)
            count = export(store, record, file, lambda n: bar.update(task, completed=n))
    out.print(f"{file}: {count} faces of {collection}, {record.embedding_space}", soft_wrap=True)
