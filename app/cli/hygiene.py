"""`likeness hygiene`: finds what may be wrong in a gallery, and corrects it."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from app.cli.console import (
    CollectionArgument,
    CollectionOption,
    collection_name,
    err,
    finish_erasure,
    out,
    read_settings,
    require_database,
)
from app.decision.gallery_issues import Hygiene
from app.decision.hygiene import find_gallery_issues
from app.gallery.gallery import Gallery
from app.importing.job_folder import JobFolder
from app.importing.reports import ReportEraser
from app.services import Services, build_services
from app.settings import MOST
from app.store.sql.pairs import PairStore

FindingLimit = Annotated[int, typer.Option(min=1, max=MOST, help="Findings of each kind to show.")]
AsJson = Annotated[bool, typer.Option("--json", help="All findings as JSON.")]
MergeIds = Annotated[
    tuple[str, str] | None,
    typer.Option(help="FROM INTO: move all faces of FROM to INTO, then delete FROM."),
]
MoveIds = Annotated[
    tuple[str, str] | None,
    typer.Option(help="FACE_ID PERSON_ID: assign the face to that person."),
]
DeleteId = Annotated[str | None, typer.Option(help="FACE_ID: delete that face.")]
RenameIds = Annotated[
    tuple[str, str] | None, typer.Option(help="PERSON_ID NEW_ID: give a person another id.")
]
DifferentIds = Annotated[
    tuple[str, str] | None,
    typer.Option(help="PERSON_ID OTHER_ID: declare two persons to be different."),
]
WithdrawIds = Annotated[
    tuple[str, str] | None, typer.Option(help="PERSON_ID OTHER_ID: withdraw --different.")
]


def hygiene(
    name: CollectionArgument = None,
    *,
    named: CollectionOption = None,
    limit: FindingLimit = 20,
    as_json: AsJson = False,
    merge: MergeIds = None,
    move: MoveIds = None,
    delete: DeleteId = None,
    rename: RenameIds = None,
    different: DifferentIds = None,
    withdraw: WithdrawIds = None,
) -> None:
    """List ids that may be one person, faces under a wrong id, outliers, weak single faces, and
    degraded faces.

    With --merge, --move, --delete, --rename, --different or --withdraw change the gallery instead,
    each in one transaction.
    """
    collection = collection_name(name, named)
    services = build_services(require_database(read_settings()))
    try:
        for given_up in (pair[0] for pair in (rename, merge) if pair):
            _note(services, collection, given_up)
        if rename:
            renamed = services.gallery.store.persons.update(collection, rename[0], new_id=rename[1])
            out.print(f"The person's id is {renamed.person_id} now.", markup=False)
        if merge or move or delete:
            _correct(services.gallery, collection, merge, move, delete)
        if different or withdraw:
            _declare(services.gallery.store.pairs, collection, different, withdraw)
        if merge or move or delete or withdraw:
            finish_erasure(services.gallery.store.database)
        if rename or merge or move or delete or different or withdraw:
            return
        with Progress(console=err, transient=True) as progress:
            task = progress.add_task("faces", total=None)
            found = find_gallery_issues(
                services.gallery,
                services.calibrations,
                collection,
                lambda done, total: progress.update(task, completed=done, total=total),
                None if as_json else limit,
            )
    finally:
        services.close()
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        _print(found)


def _note(services: Services, collection: str, person_id: str) -> None:
    """Note an id that no person will have any more, so that the service erases it from import
    reports."""
    folder = JobFolder(services.settings.data_dir / "imports")
    if services.gallery.has_person(collection, person_id):
        ReportEraser(folder, services.gallery.has_person).note(collection, person_id)


def _correct(
    gallery: Gallery,
    collection: str,
    merge: tuple[str, str] | None,
    move: tuple[str, str] | None,
    delete: str | None,
) -> None:
    if merge:
        merged = gallery.merge_persons(collection, *merge)
        out.print(f"{merge[0]} is {merge[1]} now, who has {merged.templates} faces.", markup=False)
    if move:
        moved = gallery.move_face(collection, *move)
        out.print(f"The face {moved.face_id} is of {moved.person_id}.", markup=False)
    if delete:
        gallery.delete_face(collection, delete)
        out.print(f"The face {delete} is deleted.", markup=False)


def _declare(
    pairs: PairStore,
    collection: str,
    different: tuple[str, str] | None,
    withdraw: tuple[str, str] | None,
) -> None:
    if different:
        pairs.declare(collection, *different)
        out.print(f"{different[0]} and {different[1]} are different persons.", markup=False)
    if withdraw:
        pairs.withdraw(collection, *withdraw)
        out.print(
            f"{withdraw[0]} and {withdraw[1]} are no longer declared to be different.", markup=False
        )


def _print(found: Hygiene) -> None:
    out.print(f"{found.faces} faces of {found.persons} persons; threshold {found.threshold:.3f}.")
    _table(
        "Possibly one person under two ids" + _by_chance(found.duplicates_by_chance),
        ("person", "person", "similarity", "such pairs by chance"),
        [
            (
                one.person_id_a,
                one.person_id_b,
                f"{one.similarity:.3f}",
                _rate(one.expected_by_chance),
            )
            for one in found.duplicates
        ],
        found.counts["duplicates"],
    )
    _table(
        "Possibly under the wrong id" + _by_chance(found.mislabels_by_chance),
        ("face", "person", "looks like", "similarity", "to its own"),
        [
            (one.face_id, one.person_id, one.looks_like, f"{one.similarity:.3f}",
             f"{one.own_similarity:.3f}")
            for one in found.mislabels
        ],
        found.counts["mislabels"],
    )  # fmt: skip
    _table(
        "Outliers: unlike the other faces of their person",
        ("face", "person", "to its own"),
        [(one.face_id, one.person_id, f"{one.own_similarity:.3f}") for one in found.outliers],
        found.counts["outliers"],
    )
    _table(
        "Weak: a person's only face, of poor quality",
        ("face", "person", "reasons"),
        [(one.face_id, one.person_id, ", ".join(one.reasons)) for one in found.weak],
        found.counts["weak"],
    )
    _table(
        "Degraded (blurred, dark, turned) or covered: hardly comparable with other such faces",
        ("face", "person", "degradation", "covering"),
        [
            (
                one.face_id,
                one.person_id,
                f"{one.degradation:.2f}",
                "" if one.covering is None else f"{one.covering:.2f}",
            )
            for one in found.degraded
        ],
        found.counts["degraded"],
    )


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], count: int) -> None:
    if not rows:
        out.print(f"{title}: none.")
        return
    table = Table(title=f"{title}: {count}", title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")  # ids are arguments of --move and --merge
    for row in rows:
        table.add_row(*row)
    out.print(table)


def _by_chance(expected: float | None) -> str:
    """How many findings of a table are expected by chance, as text."""
    if expected is None:
        return " (no calibration: the number expected by chance is unknown)"
    shown = f"{expected:,.0f}" if expected >= 10 else f"{expected:.2g}"
    return f" (about {shown} expected by chance)"


def _rate(value: float | None) -> str:
    return "rarer than the calibration measures" if value is None else f"{value:.2g}"
