"""Rows into a database: in order, once, and what is suspicious is reported."""

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import update

from app.encryption.keys import new_key_line
from app.errors import CollectionNotFound, StoreUnavailable, WorkerDied
from app.imaging import encode_crop
from app.importing import in_flight
from app.importing import local as module
from app.importing.folders import folder_rows
from app.importing.known_rows import REPLACED
from app.importing.local import LocalImport
from app.importing.options import ImportOptions, ImportStopped, OnConflict, OnError
from app.importing.outcomes import IN_A_TABLE, RowOutcome, RowResult, report_writer
from app.importing.source_options import SourceOptions
from app.importing.source_rows import ImportSourceError, Row
from app.importing.sources import rows_of
from app.inference.machine import usable_cores
from app.services import Services, build_services
from app.settings import Settings
from app.store.records import NewTemplate
from app.store.sql.audit_log import AuditFilter
from app.store.sql.tables import persons
from app.types import JsonObject
from tests.waiting import PATIENCE_S
from tests.writing import delete_collection, delete_person

Run = Callable[..., list[RowOutcome]]


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    services = build_services(Settings(data_dir=tmp_path / "data"))
    yield services
    services.close()


@pytest.fixture
def people(tmp_path: Path, photos: Path) -> Path:
    folder = tmp_path / "people"
    for person, files in {"obama": ["obama", "obama2"], "biden": ["biden"]}.items():
        (folder / person).mkdir(parents=True)
        for file in files:
            shutil.copy(photos / f"{file}.jpg", folder / person)
    return folder


@pytest.fixture
def run(services: Services) -> Run:
    def call(rows: Path | Iterable[Row], **options: object) -> list[RowOutcome]:
        record = services.gallery.require("default")
        if isinstance(rows, Path):
            given = SourceOptions(record.embedding_space, 10_000_000)
            source = rows_of([str(rows)], given)
        else:
            source = iter(rows)
        reported: list[RowOutcome] = []
        LocalImport(services, record, ImportOptions(**options)).run(source, reported.append)
        return reported

    return call


def test_once_and_in_order(run: Run, people: Path, services: Services) -> None:
    first = run(people)
    assert [(Path(one.place).name, one.result) for one in first] == [
        ("biden.jpg", RowResult.ENROLLED),
        ("obama.jpg", RowResult.ENROLLED),
        ("obama2.jpg", RowResult.ENROLLED),
    ]
    assert {one.face_id for one in first} == {
        face.face_id
        for face in services.gallery.store.templates.page("default", None, None, 10).items
    }
    again = run(people)
    assert [(one.result, one.reason) for one in again] == [
        (RowResult.SKIPPED, "already_enrolled")
    ] * 3


def test_a_dry_run_stores_nothing(run: Run, people: Path, services: Services) -> None:
    reported = run(people, dry_run=True)
    assert [one.result for one in reported] == [RowResult.ENROLLED] * 3
    assert (
        services.gallery.store.collections.count(services.gallery.require("default")).templates == 0
    )


def test_refusals_are_remembered_until_something_else_decides(
    run: Run, people: Path, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    (people / "biden" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    assert [one.reason for one in run(people)] == ["", "unreadable_image", "", ""]
    analysed: list[bytes] = []
    real = module.template_from_photo

    def counting(services: Services, data: bytes, *rest: Any) -> NewTemplate:
        analysed.append(data)
        return real(services, data, *rest)

    monkeypatch.setattr(module, "template_from_photo", counting)
    assert [one.reason for one in run(people)] == [
        "already_enrolled", "unreadable_image", "already_enrolled", "already_enrolled",
    ]  # fmt: skip
    assert analysed == []
    run(people, near_duplicate=0.99)
    assert len(analysed) == 1


def test_a_face_of_another_person_is_reported(
    run: Run, people: Path, photos: Path, services: Services
) -> None:
    (people / "zoe").mkdir()
    shutil.copy(photos / "obama3.jpg", people / "zoe")
    *_, last = run(people)
    assert (last.result, last.reason, last.conflict_with) == (
        RowResult.ENROLLED, "conflict", "obama",
    )  # fmt: skip
    assert last.similarity > 0.7
    delete_person(services.gallery, "default", "zoe")
    *_, last = run(people, on_conflict=OnConflict.SKIP)
    assert (last.result, last.reason) == (RowResult.REJECTED, "conflict")
    with pytest.raises(ImportStopped, match=r"zoe.*resembles obama"):
        run(people, on_conflict=OnConflict.STOP)
    *_, last = run(people, on_conflict=OnConflict.OFF)
    assert (last.result, last.reason) == (RowResult.ENROLLED, "")


def test_a_refused_conflict_is_remembered_until_it_is_to_be_looked_at_again(
    run: Run, people: Path, photos: Path, services: Services
) -> None:
    """Else an interrupted import, whose later rows are there already, could end otherwise."""
    (people / "zoe").mkdir()
    shutil.copy(photos / "obama3.jpg", people / "zoe")
    run(people, on_conflict=OnConflict.SKIP)
    delete_person(services.gallery, "default", "obama")
    zoe = [
        row for row in folder_rows(people, SourceOptions("", 10_000_000)) if row.person_id == "zoe"
    ]
    (last,) = run(zoe, on_conflict=OnConflict.SKIP)
    assert (last.reason, last.conflict_with) == ("conflict", None)
    assert "obama" not in last.detail, "the journal names nobody"
    (last,) = run(zoe, on_conflict=OnConflict.SKIP, retry_refused=True)
    assert last.result is RowResult.ENROLLED


def test_a_dry_run_is_not_remembered(run: Run, people: Path, photos: Path) -> None:
    """It compares with a gallery without the rows before."""
    with Image.open(photos / "biden.jpg") as image:
        image.save(people / "biden" / "biden_again.jpg", quality=80)
    options = {"near_duplicate": 0.95}
    assert {one.reason for one in run(people, dry_run=True, **options)} == {""}
    assert "near_duplicate" in {one.reason for one in run(people, **options)}


def test_it_stops_at_the_first_row_that_is_rejected(
    run: Run, people: Path, services: Services
) -> None:
    (people / "biden" / "zz.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(ImportStopped, match=r"biden/zz\.jpg"):
        run(people, on_error=OnError.STOP)
    assert services.gallery.size("default").templates == 1, "nothing after it is stored"


def test_a_source_that_breaks_ends_after_what_came_before(
    run: Run, people: Path, services: Services
) -> None:
    def broken() -> Iterator[Row]:
        yield from folder_rows(people, SourceOptions("", 10_000_000))
        raise ImportSourceError("The rest is not there.")

    with pytest.raises(ImportSourceError, match="The rest"):
        run(broken())
    assert services.gallery.size("default").templates == 3


def test_persons_without_a_face(run: Run, services: Services) -> None:
    rows = [Row("t:1", "ada", metadata={"n": 1}, without_face=True)]
    assert [one.result for one in run(rows, dry_run=True)] == [RowResult.ENROLLED]
    assert [one.result for one in run(rows)] == [RowResult.ENROLLED]
    rows = [Row("t:1", "ada", metadata={"n": 2}, without_face=True)]
    for detail in (REPLACED, ""):
        (again,) = run(rows)
        assert (again.reason, again.detail) == ("already_enrolled", detail)
    assert services.gallery.store.persons.get("default", "ada").metadata == {"n": 2}


def test_the_metadata_of_a_photo_that_is_enrolled_already(
    run: Run, photos: Path, services: Services
) -> None:
    """A corrected table that is imported again corrects the metadata, as it does with embeddings
    and with persons without a face."""

    def row(file: str, metadata: dict[str, Any] | None) -> Row:
        return Row(file, "obama", metadata=metadata, read=(photos / file).read_bytes)

    def stored() -> tuple[JsonObject, int]:
        store = services.gallery.store
        replaced = store.audit.latest(100, AuditFilter(action="person.metadata_replaced"))
        return store.persons.get("default", "obama").metadata, len(replaced)

    run([row("obama.jpg", {"n": 1})])
    run([row("obama.jpg", {"n": 2})], dry_run=True)
    assert stored() == ({"n": 1}, 0)
    for metadata, detail in (({"n": 2}, REPLACED), ({"n": 2}, ""), (None, "")):
        (again,) = run([row("obama.jpg", metadata)])
        assert (again.reason, again.detail) == ("already_enrolled", detail)
    assert stored() == ({"n": 2}, 1), "what is equal or missing replaces nothing"
    run([row("obama.jpg", {"n": 3}), row("obama2.jpg", {"n": 4})])
    assert stored() == ({"n": 4}, 1), "the last row counts: one that is new"
    run([row("obama3.jpg", {"n": 5}), row("obama.jpg", {"n": True}), row("obama2.jpg", None)])
    assert stored() == ({"n": True}, 2), "the last row counts: one that is known"
    run([row("obama.jpg", {"n": 1})])
    assert stored() == ({"n": 1}, 3), "1 and true are different values"


def test_persons_who_are_declared_different(run: Run, services: Services, tmp_path: Path) -> None:
    """Rows of their own, after those of the two; a table may hold nothing else."""
    store = services.gallery.store
    people = [Row(f"t:{one}", one, without_face=True) for one in ("ada", "jos\u00e9")]
    pair = Row("t:3", "ada", different_from="jose\u0301")
    reported = run([*people, pair], dry_run=True)
    assert [one.result for one in reported] == [RowResult.ENROLLED] * 3
    reported = run([*people, pair, pair])
    assert [one.reason for one in reported] == ["", "", "declared_different", "declared_different"]
    assert [one.other_id for one in store.pairs.of_person("default", "ada", None, 9).items] == [
        "jos\u00e9"
    ]
    store.pairs.withdraw("default", "ada", "jos\u00e9")
    table = tmp_path / "pairs.csv"
    table.write_text(
        "person_id,different_from,image\nada,jos\u00e9,\nada,ada,\nada,nobody,\nada,a/b,\n"
        "ada,jos\u00e9,photo.jpg\n",
        encoding="utf-8",
    )
    reported = run(table)
    assert [one.reason for one in reported] == [
        "declared_different", "invalid_request", "person_not_found", "invalid_request",
        "import_source",
    ]  # fmt: skip
    # What is kept in reports names nobody who may be deleted later.
    assert "nobody" not in reported[2].detail
    assert len(store.pairs.page("default", None, 9)) == 1


def test_face_ids_are_kept_where_they_are_free(run: Run, services: Services) -> None:
    first, second, third = embeddings(3, services.pack.recogniser.dimension)
    wanted = "0b1f8a52-93b3-4d0e-8f2e-4a59c4f5d0aa"
    reported = run([replace(row, face_id=wanted) for row in (first, second)])
    assert [one.face_id == wanted for one in reported] == [True, False]
    (late,) = run([replace(third, face_id=wanted)])
    assert late.face_id not in (None, wanted)


def test_an_error_of_the_service_does_not_refuse_a_photo(
    run: Run, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: object) -> None:
        raise WorkerDied("A worker ended.")

    with monkeypatch.context() as patch:
        patch.setattr(module, "template_from_photo", dying)
        with pytest.raises(WorkerDied):
            run(people)
    assert {one.result for one in run(people)} == {RowResult.ENROLLED}


@pytest.mark.parametrize("most", [1, 0])
def test_a_photo_at_which_a_library_fails_is_rejected_alone(
    run: Run,
    people: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    most: int,
) -> None:
    """Unless all photos fail. It is analysed again by the next run."""
    monkeypatch.setattr(module, "MOST_UNEXPECTED", most)
    analyse, failing = module.template_from_photo, (people / "biden" / "biden.jpg").read_bytes()

    def at_one(services: Services, data: bytes, *arguments: Any) -> NewTemplate:
        if data == failing:
            raise RuntimeError("Non-zero status code returned while running Conv node.")
        return analyse(services, data, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "template_from_photo", at_one)
        if not most:
            with pytest.raises(RuntimeError, match="Conv node"):
                run(people)
            return
        assert [one.reason for one in run(people)] == ["internal_error", "", ""]
        (logged,) = [one for one in caplog.records if one.msg == "a photo of an import failed"]
        assert logged.exc_info
        assert logged.fields == {"import_id": None, "row": 1}
    assert [one.reason for one in run(people)] == ["", "already_enrolled", "already_enrolled"]


def test_failing_photos_are_counted_in_the_order_of_rows(
    services: Services, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the order in which threads are done with them."""
    monkeypatch.setattr(module, "MOST_UNEXPECTED", 1)
    analyse, good = module.template_from_photo, (people / "obama" / "obama.jpg").read_bytes()
    failed = threading.Event()

    def but_one(services: Services, data: bytes, *arguments: Any) -> NewTemplate:
        if data == good:
            assert failed.wait(PATIENCE_S)
            return analyse(services, data, *arguments)
        if data == b"last":
            failed.set()
        raise RuntimeError("Non-zero status code returned while running Conv node.")

    monkeypatch.setattr(module, "template_from_photo", but_one)
    photos = [b"first", good, b"last"]
    rows = [Row(f"{n}", "ada", read=lambda data=data: data) for n, data in enumerate(photos)]
    found: list[RowOutcome] = []
    record = services.gallery.require("default")
    LocalImport(services, record, ImportOptions(), workers=3).run(iter(rows), found.append)
    assert [one.reason for one in found] == ["internal_error", "", "internal_error"]


def test_a_journal_that_fails_is_no_reason_to_refuse_a_row(
    run: Run, people: Path, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = services.settings.data_dir / "imports.db"
    path.write_bytes(b"no database " * 1_000)
    with pytest.raises(StoreUnavailable, match=r"imports.db.*not a database.*may be removed"):
        run(people)
    path.unlink()

    def failing(*_: object) -> None:
        raise StoreUnavailable("The disk is gone.")

    with monkeypatch.context() as patch:
        patch.setattr(module.Journal, "find", failing)
        with pytest.raises(StoreUnavailable, match="is gone"):
            run(people)
    assert [one.reason for one in run(people)] == ["", "", ""]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize("name", ["report.csv", "report.jsonl"])
def test_a_report_that_cannot_be_written_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/full")
    outcome = RowOutcome("a", "ada", RowResult.ENROLLED)
    with (
        pytest.raises(ImportSourceError, match=rf"{name} cannot be written: No space"),
        report_writer(tmp_path / name) as on_outcome,
    ):
        on_outcome(outcome)


def test_a_report_of_another_format_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ImportSourceError, match=r"\.csv or \.jsonl"),
        report_writer(tmp_path / "report.txt"),
    ):
        pass
    assert not (tmp_path / "report.txt").exists()


def test_nearly_the_same_face_is_skipped(run: Run, people: Path, photos: Path) -> None:
    with Image.open(photos / "obama.jpg") as image:
        image.save(people / "obama" / "obama_again.jpg", quality=80)
    reported = {Path(one.place).name: one for one in run(people, near_duplicate=0.95)}
    assert reported["obama_again.jpg"].reason == "near_duplicate"
    assert reported["obama2.jpg"].result is RowResult.ENROLLED


def embeddings(count: int, dimension: int, seed: int = 3) -> list[Row]:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return [
        Row(f"t:{i}", f"person {i // 2}", embedding=vector, metadata={"n": i})
        for i, vector in enumerate(vectors)
    ]


@pytest.mark.slow
def test_few_large_photos_are_read_ahead(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded in bytes, whatever their number."""
    data = (photos / "obama.jpg").read_bytes()
    monkeypatch.setattr(in_flight, "BYTES_AHEAD", 2 * len(data))
    read, analysed, most = [0], [0], [0]
    real = module.template_from_photo

    def counting(*arguments: Any) -> NewTemplate:
        made = real(*arguments)
        analysed[0] += 1
        return made

    def reading(number: int) -> bytes:
        read[0] += 1
        most[0] = max(most[0], read[0] - analysed[0])
        return data + bytes([number])

    monkeypatch.setattr(module, "template_from_photo", counting)
    rows = [Row(str(i), f"p{i}", partial(reading, i)) for i in range(40)]
    assert len(run(rows)) == 40
    # Those at work and waiting, and three that are more than two photos' bytes.
    assert most[0] <= usable_cores() * in_flight.AT_LEAST_AHEAD + 3


@pytest.mark.slow
def test_embeddings_of_many_people(run: Run, services: Services) -> None:
    rows = embeddings(2_501, services.pack.recogniser.dimension)
    reported = run(rows)
    assert [one.result for one in reported] == [RowResult.ENROLLED] * 2_501
    assert services.gallery.size("default").templates == 2_501
    assert services.gallery.store.persons.get("default", "person 3").metadata == {"n": 7}
    probe = rows[2_000].embedding[None] / np.linalg.norm(rows[2_000].embedding)
    (found,) = services.gallery.identify("default", probe, 1).rows
    assert found[0].face.person_id == "person 1000"
    assert {one.reason for one in run(rows)} == {"already_enrolled"}


@pytest.mark.parametrize("kind", ["embedding", "person"])
def test_a_collection_that_is_deleted_ends_it_though_another_gets_the_name(
    services: Services, kind: str
) -> None:
    gallery = services.gallery
    gallery.create_collection("staff", {})
    record = gallery.require("staff")
    rows = embeddings(2, services.pack.recogniser.dimension)
    if kind == "person":
        rows = [replace(row, embedding=None, without_face=True) for row in rows]

    def replace_collection() -> None:
        delete_collection(gallery, "staff")
        gallery.create_collection("staff", {})

    def meanwhile() -> Iterator[Row]:
        yield rows[0]
        with ThreadPoolExecutor(1) as another:
            another.submit(replace_collection).result()
        yield rows[1]

    with pytest.raises(CollectionNotFound, match="'staff'"):
        LocalImport(services, record, ImportOptions()).run(meanwhile(), lambda _: None)
    assert gallery.size("staff").persons == 0


def test_rows_that_cannot_be_used_fail_alone(run: Run, services: Services) -> None:
    good = embeddings(1, services.pack.recogniser.dimension)
    bad = [
        Row("t:1", "ada", embedding=np.ones(3, np.float32)),
        Row("t:2", "a/b", embedding=good[0].embedding),
        Row("t:3", "", embedding=good[0].embedding),
        Row("t:4", "ada", read=Path("/absent.jpg").read_bytes),
    ]
    reported = run([*bad, *good])
    assert [one.reason for one in reported] == [
        "invalid_embedding", "invalid_request", "invalid_request", "unreadable_file", "",
    ]  # fmt: skip


def test_rows_without_a_consent_where_one_is_needed(services: Services) -> None:
    """They are refused one by one, and looked at again by the next import."""
    store, size = services.gallery.store, services.pack.recogniser.dimension
    space = services.pack.embedding_space
    store.collections.create("staff", space, size, {}, {"consent_required": True})
    record = services.gallery.require("staff")
    consent = {"consent": {"reference": "form 17"}}

    def rows(metadata: dict[str, Any] | None) -> Iterator[Row]:
        given = {"ada": consent, "bob": metadata, "eve": {"consent": {"reference": ""}}}
        for number, (person, one) in enumerate(given.items()):
            yield Row(f"{number}", person, metadata=one, embedding=np.eye(size)[number].tolist())
        yield Row("3", "ada", embedding=np.eye(size)[3].tolist())
        yield Row("4", "eve", embedding=np.eye(size)[4].tolist())
        yield Row("5", "faceless", metadata=metadata, without_face=True)

    def outcomes(metadata: dict[str, Any] | None) -> list[tuple[str, str]]:
        found: list[RowOutcome] = []
        LocalImport(services, record, ImportOptions()).run(rows(metadata), found.append)
        return [(one.result.value, one.reason) for one in found]

    missing, enrolled = ("rejected", "consent_missing"), ("enrolled", "")
    skipped = ("skipped", "already_enrolled")
    assert outcomes(None) == [enrolled, missing, missing, enrolled, missing, missing]
    assert outcomes(consent) == [skipped, enrolled, missing, skipped, missing, enrolled]


def test_photos_of_persons_without_a_consent_are_not_analysed(
    run: Run, people: Path, services: Services
) -> None:
    """A photo that was analysed would be rejected because it has no face."""
    store = services.gallery.store
    consent = {"consent": {"reference": "form 17"}}
    photo, other = ((people / one / f"{one}.jpg").read_bytes for one in ("biden", "obama"))
    faceless = encode_crop(np.zeros((99, 99, 3), np.uint8))
    run([Row("0", "biden", read=photo, metadata=consent)])
    store.collections.update("default", None, {"consent_required": True})
    store.persons.create("default", "ended", consent)
    store.persons.update("default", "ended", {"consent": {"reference": "b", "withdrawn": True}})
    rows = [
        Row("1", "stranger", read=lambda: faceless),
        Row("2", "ended", read=lambda: faceless),
        Row("3", "biden", read=lambda: faceless),
        Row("4", "biden", read=photo),
        Row("5", "obama", read=other, metadata=consent),
        Row("6", "obama", read=lambda: faceless),
        Row("7", "ended", read=lambda: faceless, metadata=consent),  # which was withdrawn
    ]
    assert [one.reason for one in run(rows)] == [
        "consent_missing", "consent_missing", "no_face", "already_enrolled", "", "no_face",
        "consent_missing",
    ]  # fmt: skip


def test_a_known_photo_does_not_revive_a_consent(
    run: Run, people: Path, services: Services
) -> None:
    store = services.gallery.store
    consent = {"consent": {"reference": "form 17"}}
    gone = {"consent": {"reference": "form 17", "withdrawn": True}}
    photo = (people / "biden" / "biden.jpg").read_bytes()
    rows = [Row("0", "biden", read=lambda: photo, metadata=consent)]
    run(rows)
    store.collections.update("default", None, {"consent_required": True})
    store.persons.update("default", "biden", gone)
    faceless = Row("1", "biden", metadata=consent, without_face=True)
    found = run([*rows, faceless])
    assert [one.reason for one in found] == ["consent_missing"] * 2
    assert store.persons.get("default", "biden").metadata == gone


def test_a_row_of_a_csv_without_a_consent_says_where_it_belongs(
    run: Run, services: Services
) -> None:
    services.gallery.store.collections.update("default", None, {"consent_required": True})
    ended = {"consent": {"reference": "form 17", "expires": "2020-01-01"}}
    as_text = {"consent": '{"reference": "form 17"}'}
    rows = [Row("0", "ada", metadata=one, without_face=True) for one in (as_text, None, ended)]
    found = run(rows)
    assert [one.reason for one in found] == ["consent_missing"] * 3
    assert [IN_A_TABLE in one.detail for one in found] == [True, True, False]


def test_a_row_that_the_store_refuses_is_no_reason_for_a_conflict(services: Services) -> None:
    """Its person's consent was in a row that is rejected for another conflict."""
    store, size = services.gallery.store, services.pack.recogniser.dimension
    space = services.pack.embedding_space
    store.collections.create("staff", space, size, {}, {"consent_required": True})
    consent = {"consent": {"reference": "form 17"}}
    zoe, ann = np.eye(size)[:2]
    rows = [
        Row("0", "zoe", metadata=consent, embedding=zoe.tolist()),
        Row("1", "ann", embedding=ann.tolist()),
        Row("2", "ann", metadata=consent, embedding=(zoe + 0.01 * ann).tolist()),
        Row("3", "bob", metadata=consent, embedding=(ann + 0.01 * zoe).tolist()),
    ]
    found: list[RowOutcome] = []
    options = ImportOptions(on_conflict=OnConflict.SKIP)
    LocalImport(services, services.gallery.require("staff"), options).run(iter(rows), found.append)
    assert [one.reason for one in found] == ["", "consent_missing", "conflict", ""]
    assert [one.conflict_with for one in found] == [None, None, "zoe", None]


def test_a_dry_run_stops_where_the_import_would(services: Services) -> None:
    """Consents of rows beyond that one count for neither."""
    store, size = services.gallery.store, services.pack.recogniser.dimension
    space = services.pack.embedding_space
    store.collections.create("staff", space, size, {}, {"consent_required": True})
    consent = {"consent": {"reference": "form 17"}}
    given = [("ada", consent), ("bob", None), ("eve", None), ("bob", consent)]
    rows = [
        Row(f"{number}", person, metadata=metadata, embedding=np.eye(size)[number].tolist())
        for number, (person, metadata) in enumerate(given)
    ]
    stopped = []
    for dry_run in (True, False):
        options = ImportOptions(on_error=OnError.STOP, dry_run=dry_run)
        with pytest.raises(ImportStopped, match="'bob' has none") as raised:
            LocalImport(services, services.gallery.require("staff"), options).run(
                iter(rows), lambda _: None
            )
        stopped.append(raised.value.detail)
    assert stopped[0] == stopped[1]


@pytest.mark.parametrize("calls", range(1, 6))
def test_a_consent_that_ends_meanwhile_ends_no_import(services: Services, calls: int) -> None:
    """Whenever it ends, after a call of the clock: the other rows are stored."""
    store, size = services.gallery.store, services.pack.recogniser.dimension
    store.collections.create(
        "staff", services.pack.embedding_space, size, {}, {"consent_required": True}
    )
    record = services.gallery.require("staff")
    end = datetime(2026, 11, 29, tzinfo=UTC)
    asked = count(1)
    store.database.clock = lambda: end + timedelta(seconds=1 if next(asked) > calls else -1)
    lasting = {"consent": {"reference": "form 17"}}
    ending = {"consent": {"reference": "form 18", "expires": "2026-11-28"}}
    rows = [
        Row("0", "bob", metadata=ending, embedding=np.eye(size)[0].tolist()),
        Row("1", "ada", metadata=lasting, embedding=np.eye(size)[1].tolist()),
    ]
    found: list[RowOutcome] = []
    LocalImport(services, record, ImportOptions()).run(iter(rows), found.append)
    assert next(asked) > calls, "the consent ended while the import ran"
    assert (found[0].result.value, found[0].reason) in [
        ("rejected", "consent_missing"), ("enrolled", ""),
    ]  # fmt: skip
    assert (found[1].result.value, found[1].reason) == ("enrolled", "")
    stored = sum(one.result is RowResult.ENROLLED for one in found)
    assert store.collections.count(record).templates == stored


def test_a_policy_that_is_set_meanwhile_rejects_rows_without_a_consent(services: Services) -> None:
    store, size = services.gallery.store, services.pack.recogniser.dimension
    record = services.gallery.require("default")
    consent = {"consent": {"reference": "form 17"}}
    store.persons.create("default", "faceless", consent)

    def face(number: int) -> list[float]:
        row: list[float] = np.eye(size)[number].tolist()
        return row

    def outcomes(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
        found: list[RowOutcome] = []
        LocalImport(services, record, ImportOptions()).run(iter(rows), found.append)
        return [(one.person_id, one.result.value, one.reason) for one in found]

    outcomes([Row("0", "ada", embedding=face(0), metadata=consent)])

    def meanwhile() -> Iterator[Row]:
        yield Row("1", "eve", embedding=face(1), metadata=consent)
        store.collections.update("default", None, {"consent_required": True})
        yield Row("2", "bob", embedding=face(2), metadata={"team": "sales"})
        yield Row("3", "ada", embedding=face(3))
        yield Row("4", "faceless", metadata={"team": "sales"}, without_face=True)

    missing = ("rejected", "consent_missing")
    assert outcomes(meanwhile()) == [
        ("eve", "enrolled", ""), ("bob", *missing), ("ada", "enrolled", ""), ("faceless", *missing),
    ]  # fmt: skip


def test_known_rows_of_a_policy_that_is_set_meanwhile(
    run: Run, people: Path, services: Services
) -> None:
    """Metadata without a consent is rejected with its row; the rows after it are imported."""
    store = services.gallery.store
    consent = {"consent": {"reference": "form 17"}}
    photo = (people / "biden" / "biden.jpg").read_bytes()
    run([Row("0", "biden", read=lambda: photo, metadata=consent)])

    def meanwhile() -> Iterator[Row]:
        yield Row("1", "biden", read=lambda: photo, metadata={"team": "sales"})
        store.collections.update("default", None, {"consent_required": True})
        other = (people / "obama" / "obama.jpg").read_bytes()
        yield Row("2", "obama", read=lambda: other, metadata=consent)

    found = run(meanwhile())
    assert [(one.result.value, one.reason) for one in found] == [
        ("rejected", "consent_missing"), ("enrolled", ""),
    ]  # fmt: skip
    assert store.persons.get("default", "biden").metadata == consent


def test_where_rows_without_a_consent_end_an_import(run: Run, services: Services) -> None:
    """The policy was set after the rows were read: the store finds it, and stores none beyond."""
    size = services.pack.recogniser.dimension
    store = services.gallery.store
    consent = {"consent": {"reference": "form 17"}}

    def rows() -> Iterator[Row]:
        for number, person in enumerate(["ada", "bob", "eve"]):
            metadata = None if person == "bob" else consent
            face = np.eye(size)[number].tolist()
            yield Row(f"{number}", person, metadata=metadata, embedding=face)
        store.collections.update("default", None, {"consent_required": True})

    found: list[RowOutcome] = []
    record = services.gallery.require("default")
    options = ImportOptions(on_error=OnError.STOP)
    with pytest.raises(ImportStopped, match=r"1: .*needs the consent of each person"):
        LocalImport(services, record, options).run(rows(), found.append)
    assert [one.reason for one in found] == ["", "consent_missing"]
    assert [one.person_id for one in store.persons.page("default", None, 9).items] == ["ada"]


def test_rows_of_a_person_whose_key_is_damaged(tmp_path: Path, people: Path) -> None:
    """Each is rejected; those of others are imported, and a later run tries again."""
    settings = Settings(data_dir=tmp_path / "data", encryption_key=new_key_line("first"))
    with closing(build_services(settings)) as services:
        store, size = services.gallery.store, services.pack.recogniser.dimension
        record = services.gallery.require("default")
        face = [np.eye(size)[number].tolist() for number in range(2)]

        def outcomes(rows: Iterable[Row], **options: object) -> list[tuple[str, str]]:
            given = SourceOptions(record.embedding_space, 10_000_000)
            both = [*rows_of([str(people)], given), *rows]
            found: list[RowOutcome] = []
            LocalImport(services, record, ImportOptions(**options)).run(iter(both), found.append)
            for one in found:
                if one.reason == "damaged_data":
                    assert "The data key of 'obama' cannot be read." in one.detail
            return [(one.person_id, one.reason) for one in found]

        assert outcomes([]) == [("biden", ""), ("obama", ""), ("obama", "")]
        with store.database.engine.begin() as connection:
            kept = connection.exec_driver_sql("SELECT id, data_key FROM persons").all()
            connection.exec_driver_sql(
                "UPDATE persons SET data_key = zeroblob(61) WHERE person_id = 'obama'"
            )
        rows = [
            Row("3", "obama", metadata={"team": "sales"}, embedding=face[0]),
            Row("4", "ada", embedding=face[1]),
        ]
        known = ("biden", "already_enrolled")
        refused = [known, *[("obama", "damaged_data")] * 3, ("ada", "")]
        assert outcomes(rows, dry_run=True) == outcomes(rows) == refused
        assert store.persons.get("default", "obama").metadata == {}
        with store.database.engine.begin() as connection:
            for key, data_key in kept:
                mine = update(persons).where(persons.c.id == key)
                connection.execute(mine.values(data_key=data_key))
        already = ("obama", "already_enrolled")
        assert outcomes(rows) == [
            known, already, already, ("obama", ""), ("ada", "already_enrolled"),
        ]  # fmt: skip


def test_a_consent_of_a_row_that_is_refused_for_its_face_is_none(
    run: Run, services: Services
) -> None:
    """The row of the same person that relied on it is rejected, and the import goes on."""
    size = services.pack.recogniser.dimension
    store = services.gallery.store
    consent = {"consent": {"reference": "form 17"}}
    face = [np.eye(size)[number].tolist() for number in range(3)]
    run([Row("0", "ada", embedding=face[0], metadata=consent)])
    store.collections.update("default", None, {"consent_required": True})
    found = run(
        [
            Row("1", "bob", embedding=face[0], metadata=consent),
            Row("2", "bob", embedding=face[1]),
            Row("3", "eve", embedding=face[2], metadata=consent),
        ],
        on_conflict=OnConflict.SKIP,
    )
    assert [one.reason for one in found] == ["conflict", "consent_missing", ""]
