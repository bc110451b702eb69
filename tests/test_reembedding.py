"""A collection into another pack's space: real networks, real databases, the way there and back."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from app.cli.commands import app
from app.decision.face_selection import FaceSelection
from app.decision.policy import CollectionPolicy
from app.encryption.keys import new_key_line
from app.errors import Conflict, DamagedData, EmbeddingSpaceMismatch, NotReembedded
from app.inference.pack_spec import ModelPack, QualitySpec
from app.inference.packs import load_pack
from app.lab.packing.composed import ACCURATE, compose
from app.lab.packing.joined import described
from app.lab.packing.own import OwnNetworks, make_pack
from app.recognition.enroll import template_from_photo
from app.reembedding import Reembedding, same_quality_scale
from app.services import Services, build_services
from app.settings import Device, Settings
from app.store.backends import create_engine
from app.store.store import opened_store
from tests.writing import delete_person, enroll_person

pytestmark = pytest.mark.slow

PEOPLE = {"obama": ("obama.jpg", "obama2.jpg"), "biden": ("biden.jpg",)}


@pytest.fixture(scope="session")
def other_pack(
    pack: ModelPack, eval_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> ModelPack:
    """The default detector with another recogniser: 512 numbers instead of 192."""
    network = eval_models / "insightface" / "w600k_mbf.onnx"
    own = OwnNetworks(recognisers=described(pack, [network], stds=["127.5"]), threshold=0.3)
    return make_pack(pack, own, tmp_path_factory.mktemp("packs") / "other")


@dataclass
class Place:
    """One database, and services of any pack over it."""

    settings: Settings
    opened: list[Services]

    def serve(self, pack: ModelPack) -> Services:
        services = build_services(self.settings.model_copy(update={"pack": str(pack.folder)}))
        self.opened.append(services)
        return services

    def engine(self) -> Engine:
        return create_engine(self.settings.resolved_database_url)


@pytest.fixture(params=["sqlite", "sqlite, encrypted", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    options: dict[str, object] = {"data_dir": tmp_path / "data"}
    if request.param == "postgresql":
        options["database_url"] = request.getfixturevalue("postgres").new_database(migrated=True)
    if "encrypted" in request.param:
        options["encryption_key"] = new_key_line("key-1")
    place = Place(Settings(**options), [])
    yield place
    for services in place.opened:
        services.close()


Enroll = Callable[..., None]


@pytest.fixture
def enroll(photos: Path) -> Enroll:
    def call(services: Services, *, keep_crops: bool = True, **people: tuple[str, ...]) -> None:
        services.gallery.store.collections.update("default", None, {"keep_crops": True})
        policy = CollectionPolicy(keep_crops=keep_crops)
        for person, files in (people or PEOPLE).items():
            made = [
                template_from_photo(
                    services, (photos / file).read_bytes(), FaceSelection.LARGEST, policy
                )
                for file in files
            ]
            enroll_person(services.gallery, "default", person, None, made)

    return call


def probe(services: Services, photo: Path) -> np.ndarray:
    face = services.pipeline.analyse(photo.read_bytes(), max_faces=1).faces[0]
    assert face.embedding is not None
    return face.embedding[np.newaxis]


def silent(_done: int, _total: int) -> None:
    pass


@pytest.mark.slow
def test_to_version_2_of_the_default_pack(
    place: Place, pack: ModelPack, enroll: Enroll, photos: Path
) -> None:
    """From version 1. Its recogniser sees the kept faces and their mirror images."""
    old = place.serve(load_pack("default-1.0"))
    enroll(old)
    before = old.gallery.identify("default", probe(old, photos / "obama3.jpg"), 2).rows[0]
    new = place.serve(pack)
    with pytest.raises(EmbeddingSpaceMismatch, match=r"LIKENESS_PACK=default-1\.0 .*--to default"):
        new.gallery.require("default")
    migration = Reembedding(old.gallery.store, "default", old.pack, pack, Device.CPU)
    migration.build(silent)
    migration.cut_over()
    (rows,) = new.gallery.identify("default", probe(new, photos / "obama3.jpg"), 2).rows
    assert [one.face.person_id for one in rows] == ["obama", "biden"]
    assert rows[0].similarity > 0.7
    again = new.gallery.identify("default", probe(new, photos / "obama.jpg"), 1).rows[0][0]
    assert 0.9 < again.similarity < 0.9999  # aligned by other landmarks than the kept face
    back = Reembedding(old.gallery.store, "default", None, old.pack, Device.CPU)
    back.build(silent)
    back.cut_over()
    found = old.gallery.identify("default", probe(old, photos / "obama3.jpg"), 2).rows[0]
    assert [(one.face, one.similarity) for one in found] == [
        (one.face, pytest.approx(one.similarity)) for one in before
    ]


@pytest.mark.slow
def test_to_the_accurate_pack(
    place: Place, pack: ModelPack, eval_models: Path, enroll: Enroll, photos: Path, tmp_path: Path
) -> None:
    """Its recognisers see the kept faces as the default pack aligned them, which is as it does."""
    content = (eval_models / "foamliu" / "mobilefacenet.pt").read_bytes()
    accurate = compose(ACCURATE, content, tmp_path / "installed")
    old = place.serve(pack)
    enroll(old)
    migration = Reembedding(old.gallery.store, "default", old.pack, accurate, Device.CPU)
    migration.build(silent)
    migration.cut_over()
    new = place.serve(accurate)
    (rows,) = new.gallery.identify("default", probe(new, photos / "obama3.jpg"), 2).rows
    assert [one.face.person_id for one in rows] == ["obama", "biden"]
    assert rows[0].similarity > accurate.decision.threshold > rows[1].similarity
    photo = (photos / "obama.jpg").read_bytes()
    again = template_from_photo(new, photo, FaceSelection.LARGEST, CollectionPolicy())
    (same,) = new.gallery.identify("default", again.embedding[np.newaxis], 1).rows[0]
    assert same.similarity > 0.999


@pytest.mark.slow
def test_there_and_back(
    place: Place, pack: ModelPack, other_pack: ModelPack, enroll: Enroll, photos: Path
) -> None:
    old = place.serve(pack)
    enroll(old)
    before = old.gallery.identify("default", probe(old, photos / "obama3.jpg"), 2).rows[0]
    store = old.gallery.store
    there = Reembedding(store, "default", pack, other_pack, Device.CPU)
    there.build(silent)
    # Until the cut-over nothing has changed for anybody.
    assert old.gallery.identify("default", probe(old, photos / "obama3.jpg"), 2).rows[0] == before
    found = there.compare(np.random.default_rng(0))
    assert (found.templates, found.before.mated, found.after.mated) == (3, 1, 1)
    assert found.after.mated_accepted == 1
    assert found.after.rank_1 == 1.0

    there.cut_over()
    with pytest.raises(EmbeddingSpaceMismatch, match="likeness models migrate"):
        old.gallery.identify("default", probe(old, photos / "obama3.jpg"), 2)
    with pytest.raises(EmbeddingSpaceMismatch):
        enroll(old, x=("collins.jpg",))
    new = place.serve(other_pack)
    after = new.gallery.identify("default", probe(new, photos / "obama3.jpg"), 2).rows[0]
    assert [one.face.person_id for one in after] == ["obama", "biden"]
    # Ids are those that clients know.
    assert {one.face.face_id for one in before} >= {after[1].face.face_id}
    enroll(new, collins=("collins.jpg",))

    back = Reembedding(store, "default", None, pack, Device.CPU)
    back.build(silent)
    back.cut_over()
    again = old.gallery.identify("default", probe(old, photos / "obama3.jpg"), 3).rows[0]
    assert [(one.face, one.similarity) for one in again[:2]] == [
        (one.face, pytest.approx(one.similarity)) for one in before
    ]
    assert again[2].face.person_id == "collins"
    assert store.alternate_embeddings.drop("default") == 4


def test_the_new_embeddings_are_those_of_the_photos(
    place: Place, pack: ModelPack, other_pack: ModelPack, enroll: Enroll, photos: Path
) -> None:
    """Same detector, same crop: what migration makes is what enrollment would have made."""
    old = place.serve(pack)
    enroll(old)
    work = Reembedding(old.gallery.store, "default", pack, other_pack, Device.CPU)
    work.build(silent)
    work.cut_over()
    new = place.serve(other_pack)
    _, vectors = new.gallery.store.embeddings.of_person("default", "biden")
    similarity = float((vectors @ probe(new, photos / "biden.jpg").T)[0, 0])
    assert similarity == pytest.approx(1, abs=1e-5)


def test_faces_without_crops_are_counted(
    place: Place, pack: ModelPack, other_pack: ModelPack, enroll: Enroll
) -> None:
    services = place.serve(pack)
    enroll(services, biden=("biden.jpg",))
    enroll(services, keep_crops=False, obama=("obama.jpg",))
    work = Reembedding(services.gallery.store, "default", pack, other_pack, Device.CPU)
    with pytest.raises(NotReembedded, match=r"1 of 2 faces .*keep_crops"):
        work.build(silent)
    (face,) = services.gallery.store.templates.page("default", "obama", None, 9).items
    with pytest.raises(NotReembedded, match=rf"1 of 2 faces .*{face.face_id} of 'obama'"):
        work.cut_over()
    assert services.gallery.store.collections.get("default").embedding_space == pack.embedding_space


def test_a_damaged_crop_keeps_no_other_from_being_embedded(
    place: Place, pack: ModelPack, other_pack: ModelPack, enroll: Enroll
) -> None:
    services = place.serve(pack)
    enroll(services)
    store = services.gallery.store
    (face,) = store.templates.page("default", "biden", None, 9).items
    damage = text("UPDATE crops SET crop = :nothing WHERE template = :key")
    engine = place.engine()
    with engine.begin() as connection:
        connection.execute(damage, {"nothing": b"damaged", "key": face.template_key})
    engine.dispose()
    work = Reembedding(store, "default", pack, other_pack, Device.CPU)
    with pytest.raises(DamagedData, match=rf"1 kept faces .* {face.face_id}\. All others were"):
        work.build(silent)
    assert store.alternate_embeddings.state("default", other_pack.embedding_space).ready == 2
    services.gallery.delete_face("default", face.face_id)
    work.build(silent)
    work.cut_over()


def test_a_threshold_of_the_policy_does_not_get_into_another_space(
    place: Place, pack: ModelPack, other_pack: ModelPack, enroll: Enroll
) -> None:
    services = place.serve(pack)
    enroll(services)
    collections = services.gallery.store.collections
    collections.update("default", None, {"threshold": 0.31, "keep_crops": True})
    work = Reembedding(services.gallery.store, "default", pack, other_pack, Device.CPU)
    work.build(silent)
    assert work.compare(np.random.default_rng(0)).before.threshold == 0.31
    with pytest.raises(Conflict, match=rf"the threshold 0\.31\. .* only .* {pack.embedding_space}"):
        work.cut_over()
    assert collections.get("default").embedding_space == pack.embedding_space
    collections.update("default", None, {"keep_crops": True})
    assert work.cut_over().embedding_space == other_pack.embedding_space


def test_limits_of_one_packs_scale_do_not_get_into_another_space(
    place: Place, pack: ModelPack, other_pack: ModelPack, enroll: Enroll
) -> None:
    services = place.serve(pack)
    enroll(services)
    store = services.gallery.store
    policy = {
        "keep_crops": True,
        "identify_gate": {"min_embedding_norm": 51.0, "min_sharpness": 8.0},
        "enroll_gate": {"min_embedding_norm": None, "min_quality_score": 0.5},
    }
    store.collections.update("default", None, policy)
    work = Reembedding(store, "default", pack, other_pack, Device.CPU)
    work.build(silent)
    with pytest.raises(Conflict) as refused:
        work.cut_over()
    assert "identify_gate.min_embedding_norm 51, enroll_gate.min_quality_" in refused.value.detail
    patch = re.search(r"with (\{.*\});", refused.value.detail)
    assert patch is not None
    change = json.loads(patch[1])["policy"]
    assert change == {"identify_gate": {"min_sharpness": 8.0}, "enroll_gate": {}}
    store.collections.update("default", None, {**policy, **change})
    assert work.cut_over().embedding_space == other_pack.embedding_space


def test_a_quality_limit_stays_where_both_packs_have_the_network(pack: ModelPack) -> None:
    network = QualitySpec(
        file="q.onnx", sha256="0" * 64, colour="rgb", mean=127.5, std=127.5, source="here"
    )
    packs = [
        pack.model_copy(update={"quality": quality})
        for quality in (
            network,
            network.model_copy(update={"file": "other.onnx", "source": "there"}),
            network.model_copy(update={"mean": 0.0}),
            None,
        )
    ]
    assert [same_quality_scale(packs[0], other) for other in packs] == [True, True, False, False]
    assert not same_quality_scale(None, packs[0])


def test_the_command_refuses_before_the_work(
    tmp_path: Path, pack: ModelPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(tmp_path))
    with opened_store(Settings().resolved_database_url, None) as store:
        size = pack.recogniser.dimension
        store.collections.create("a", pack.embedding_space, size, {}, {"threshold": 0.31})
    command = ["models", "migrate", "a", "--to", "default-1.0"]
    refused = CliRunner().invoke(app, [*command, "--cut-over"], env={"COLUMNS": "400"})
    assert refused.exit_code == 2
    assert "has the threshold 0.31" in refused.output
    forgotten = CliRunner().invoke(app, [*command, "--forget"], env={"COLUMNS": "400"})
    assert forgotten.exit_code == 2
    assert "--cut-over" in forgotten.output


def test_what_is_enrolled_after_the_building_is_embedded_by_the_cut_over(
    place: Place, pack: ModelPack, other_pack: ModelPack, enroll: Enroll
) -> None:
    """A service that always gets new faces can be cut over, too."""
    services = place.serve(pack)
    enroll(services)
    store = services.gallery.store
    work = Reembedding(store, "default", pack, other_pack, Device.CPU)
    work.build(silent)
    enroll(services, collins=("collins.jpg",))
    space = other_pack.embedding_space
    with pytest.raises(NotReembedded, match="1 faces"):
        store.alternate_embeddings.cut_over(
            "default", space, other_pack.recogniser.dimension, same_quality=True
        )
    reported: list[tuple[int, int]] = []
    work.build(lambda *seen: reported.append(seen))
    assert reported == [(3, 4), (4, 4)]
    enroll(services, clinton=("obama3.jpg",))
    assert work.cut_over().embedding_space == space
    found = place.serve(other_pack).gallery.store.templates.page("default", "clinton", None, 9)
    assert len(found.items) == 1


def test_deletion_includes_crops_and_alternate_embeddings(
    place: Place, pack: ModelPack, other_pack: ModelPack, enroll: Enroll
) -> None:
    services = place.serve(pack)
    enroll(services)
    Reembedding(services.gallery.store, "default", pack, other_pack, Device.CPU).build(silent)
    delete_person(services.gallery, "default", "obama")
    engine = place.engine()
    with engine.connect() as connection:
        left = [
            connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
            for table in ("crops", "spares")
        ]
    engine.dispose()
    assert left == [1, 1]


def test_crops_are_encrypted_where_embeddings_are(
    place: Place, pack: ModelPack, enroll: Enroll
) -> None:
    services = place.serve(pack)
    enroll(services)
    engine = place.engine()
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT crop, sealed FROM crops")).all()
    engine.dispose()
    encrypted = place.settings.encryption_key is not None
    assert len(rows) == 3
    for row in rows:
        assert bool(row.sealed) is encrypted
        assert bytes(row.crop).startswith(b"\x89PNG") is not encrypted


def test_crops_go_with_the_policy_that_kept_them(
    place: Place, pack: ModelPack, enroll: Enroll
) -> None:
    """In its transaction: a kill between the two would leave them."""
    services = place.serve(pack)
    enroll(services)
    store = services.gallery.store
    store.collections.update("default", None, {"keep_crops": True, "target_fpir": 0.02})
    assert store.alternate_embeddings.state("default", "es-other").without_crop == 0
    store.collections.update("default", None, {"target_fpir": 0.02})
    assert store.alternate_embeddings.state("default", "es-other").without_crop == 3
    changed, deleted = (one.members for one in store.audit.latest(2))
    assert [changed["action"], deleted["action"]] == ["collection.changed", "crops.deleted"]
    assert changed["at"] == deleted["at"]
