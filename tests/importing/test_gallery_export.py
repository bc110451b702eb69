"""What an export writes, an import takes back: persons, metadata, embeddings, crops, to the bit."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from app import disk
from app.decision.face_selection import FaceSelection
from app.decision.policy import CollectionPolicy
from app.encryption.keys import new_key_line
from app.errors import CollectionNotFound
from app.imaging import encode_crop
from app.importing import gallery_export
from app.importing.gallery_export import GalleryExportError, export
from app.importing.local import LocalImport
from app.importing.options import ImportOptions
from app.importing.outcomes import RowOutcome, RowResult
from app.importing.sources import SourceOptions, rows_of
from app.importing.zips import new_bundle
from app.recognition.enroll import template_from_embedding, template_from_photo
from app.services import Services, build_services
from app.settings import Settings
from tests.writing import delete_collection, enroll_person


@pytest.fixture(params=["plain", "encrypted"])
def services(request: pytest.FixtureRequest, tmp_path: Path, photos: Path) -> Iterator[Services]:
    key = new_key_line("key-1") if request.param == "encrypted" else None
    services = build_services(Settings(data_dir=tmp_path / "data", encryption_key=key))
    policy = CollectionPolicy(keep_crops=True)
    keep = {"policy": policy.model_dump(exclude_unset=True)}
    services.gallery.store.collections.update("default", None, keep["policy"])
    for person, names in {"obama": ("obama", "obama2"), "biden": ("biden",)}.items():
        made = [
            template_from_photo(
                services, (photos / f"{name}.jpg").read_bytes(), FaceSelection.LARGEST, policy
            )
            for name in names
        ]
        enroll_person(services.gallery, "default", person, {"of": person}, made)
    services.gallery.store.persons.create("default", "nobody yet", {"of": "nobody"})
    for other in ("obama", "nobody yet"):
        services.gallery.store.pairs.declare("default", "biden", other)
    services.gallery.create_collection("copy", {}, keep["policy"])
    yield services
    services.close()


def test_a_collection_that_is_deleted_meanwhile_is_not_joined_with_another(
    services: Services, tmp_path: Path
) -> None:
    def replace_collection(_count: int) -> None:
        with ThreadPoolExecutor(1) as another:
            another.submit(delete_collection, services.gallery, "default").result()
            another.submit(services.gallery.create_collection, "default", {}).result()

    record = services.gallery.require("default")
    with pytest.raises(CollectionNotFound, match="'default'"):
        export(services.gallery.store, record, tmp_path / "all.jsonl", replace_collection)
    assert not list(tmp_path.glob("all*"))


def test_what_is_changed_meanwhile_is_not_in_it(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a moved face is in it twice, a renamed person under both ids, and a person who gets
    the first face is missing."""
    gallery = services.gallery
    record = gallery.require("default")
    before, meanwhile = tmp_path / "before.jsonl", tmp_path / "meanwhile.jsonl"
    export(gallery.store, record, before, lambda _: None)
    first, second, _ = gallery.store.embeddings.exported("default", 0, 3)
    made = template_from_embedding(services, -first.embedding)

    def change(count: int) -> None:
        with ThreadPoolExecutor(1) as another:
            if count == 1:
                another.submit(gallery.move_face, "default", first.face_id, "biden").result()
                persons = gallery.store.persons
                another.submit(persons.update, "default", "obama", new_id="barack").result()
            if count == 3:
                given = gallery, "default", "nobody yet", None, [made]
                another.submit(enroll_person, *given).result()

    monkeypatch.setattr(gallery_export, "ROWS_AT_ONCE", 1)
    assert export(gallery.store, record, meanwhile, change) == 3
    assert meanwhile.read_bytes() == before.read_bytes()
    now = gallery.store.embeddings.exported("default", 0, 9)
    assert {one.person_id for one in now} == {"barack", "biden", "nobody yet"}
    assert second.face_id in {one.face_id for one in now}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "zip"])
def test_there_and_back(services: Services, tmp_path: Path, photos: Path, kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    store, path = services.gallery.store, tmp_path / f"all.{kind}"
    record = services.gallery.require("default")
    seen: list[int] = []
    assert export(store, record, path, seen.append) == 3
    assert seen == [3]
    assert path.stat().st_mode & 0o077 == 0

    copy = services.gallery.require("copy")
    reported: list[RowOutcome] = []
    given = SourceOptions(copy.embedding_space, 10_000_000)
    LocalImport(services, copy, ImportOptions()).run(rows_of([str(path)], given), reported.append)
    assert [one.result for one in reported] == [RowResult.ENROLLED] * 6
    assert [one.reason for one in reported[4:]] == ["declared_different"] * 2
    others = store.pairs.of_person("copy", "biden", None, 9).items
    assert [one.other_id for one in others] == ["nobody yet", "obama"]
    assert services.gallery.store.persons.get("copy", "nobody yet").metadata == {"of": "nobody"}
    before, after = (store.embeddings.exported(name, 0, 10) for name in ("default", "copy"))
    for a, b in zip(before, after, strict=True):
        assert (a.person_id, a.metadata, a.quality) == (b.person_id, b.metadata, b.quality)
        assert np.array_equal(a.embedding, b.embedding)
        assert a.crop is not None
        assert b.crop == (a.crop if kind == "zip" else None)
    encrypted = services.settings.encryption_key is not None
    # The photo itself is recognised if its digest could be exported.
    content = ("biden", before[-1].content_digest or "unknown")
    assert (content in store.imports.known_contents("copy", [content])) is not encrypted


@pytest.mark.parametrize("services", ["plain"], indirect=True)
def test_in_another_place_it_is_the_same_gallery(services: Services, tmp_path: Path) -> None:
    """Where no other face has them, also the ids are the same."""
    path = tmp_path / "all.zip"
    export(services.gallery.store, services.gallery.require("default"), path, lambda _: None)
    other = build_services(Settings(data_dir=tmp_path / "other"))
    record = other.gallery.require("default")
    given = SourceOptions(record.embedding_space, 10_000_000)
    LocalImport(other, record, ImportOptions()).run(rows_of([str(path)], given), lambda _: None)
    copied = tmp_path / "again.jsonl"
    export(other.gallery.store, record, copied, lambda _: None)
    export(
        services.gallery.store, services.gallery.require("default"), tmp_path / "a.jsonl",
        lambda _: None,
    )  # fmt: skip
    assert copied.read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    other.close()


def test_what_cannot_be_written(services: Services, tmp_path: Path) -> None:
    record, store = services.gallery.require("default"), services.gallery.store
    for path, message in (
        (tmp_path / "all.xml", "does not end in one of"),
        (tmp_path / "absent" / "all.jsonl", "cannot be written"),
    ):
        with pytest.raises(GalleryExportError, match=message):
            export(store, record, path, lambda _: None)
    (tmp_path / "there.jsonl").write_text("mine")
    with pytest.raises(GalleryExportError, match="exists already"):
        export(store, record, tmp_path / "there.jsonl", lambda _: None)
    assert (tmp_path / "there.jsonl").read_text() == "mine"
    assert not list(tmp_path.glob("*.new"))


def test_it_is_on_disk_before_it_has_its_name(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, store = services.gallery.require("default"), services.gallery.store
    synced: list[tuple[str, bool]] = []
    out = tmp_path / "all.jsonl"
    monkeypatch.setattr(disk, "sync", lambda path: synced.append((path.name, out.exists())))
    export(store, record, out, lambda _: None)
    assert synced == [("all.jsonl.new", False), (tmp_path.name, True)]


def test_what_lies_under_the_unfinished_name_is_left_alone(
    services: Services, tmp_path: Path
) -> None:
    """It may be a link that another user made."""
    record, store = services.gallery.require("default"), services.gallery.store
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "all.jsonl.new").symlink_to(tmp_path / "mine")
    with pytest.raises(GalleryExportError, match=r"all\.jsonl\.new exists"):
        export(store, record, tmp_path / "all.jsonl", lambda _: None)
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "all.jsonl.new").is_symlink()


@pytest.mark.parametrize("services", ["plain"], indirect=True)
@pytest.mark.parametrize("kind", ["no picture", "photo", "too wide", "too small", "too long"])
def test_a_crop_is_an_aligned_face(
    services: Services, tmp_path: Path, photos: Path, kind: str
) -> None:
    """Whatever else it is would be stored, backed up, and stop a move to another recogniser."""
    face = encode_crop(np.zeros((112, 112, 3), np.uint8))
    crop = {
        "no picture": face[:100],
        "photo": (photos / "obama.jpg").read_bytes(),
        "too wide": encode_crop(np.zeros((112, 113, 3), np.uint8)),
        "too small": encode_crop(np.zeros((96, 96, 3), np.uint8)),
        "too long": face + bytes(1 << 20),
    }
    path = tmp_path / "faces.zip"
    (known, *_) = services.gallery.store.embeddings.exported("default", 0, 10)
    copy = services.gallery.require("copy")
    space = copy.embedding_space
    with path.open("wb") as file, new_bundle(file) as bundle:
        for name, content in {"ada": face, "grace": crop[kind]}.items():
            row = {"person_id": name, "embedding": known.embedding, "embedding_space": space}
            bundle.add(row | {"crop": bundle.add_file(f"crops/{name}.png", content)})
    reported: list[RowOutcome] = []
    given = SourceOptions(copy.embedding_space, 10_000_000)
    LocalImport(services, copy, ImportOptions()).run(rows_of([str(path)], given), reported.append)
    assert {(one.person_id, one.reason) for one in reported if one.result is not None} == {
        ("ada", ""), ("grace", "unreadable_image"),
    }  # fmt: skip
