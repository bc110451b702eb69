"""Out of one database and into another: of the same kind or not, whole or not at all."""

import hashlib
import io
import math
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine, text

from app.encryption.keys import new_key_line, parse_keys
from app.encryption.ring import KeyRing
from app.gallery.backup_bodies import dump, load, verify
from app.gallery.backup_stream import (
    BackupDamaged,
    BackupError,
    as_file,
    encrypted,
    opened,
    read_blocks,
    write_blocks,
)
from app.gallery.gallery import Gallery
from app.index.factory import IndexFactory
from app.store.backends import create_engine
from app.store.records import NewTemplate
from app.store.schema import migrate
from app.store.store import Store
from tests.gallery.conftest import (
    DIMENSION,
    KEEPS_CROPS,
    SPACE,
    fresh_postgres,
    open_engine,
    template,
)
from tests.writing import delete_person, enroll_person

Draw = Callable[[int], NDArray[np.float32]]
RING = KeyRing(parse_keys(new_key_line("k").encode(), "test"))


@pytest.fixture(params=["sqlite", "postgresql"])
def target_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'restored' / 'likeness.db'}"
    else:
        yield from fresh_postgres(request.getfixturevalue("postgres"))


def ready(url: str) -> Engine:
    engine = open_engine(url)
    migrate(engine)
    return engine


def gallery_of(engine: Engine, ring: KeyRing | None = None) -> Gallery:
    return Gallery(Store(engine, ring=ring), IndexFactory(2), SPACE, DIMENSION)


def fill(gallery: Gallery, vectors: NDArray[np.float32]) -> None:
    for i, vector in enumerate(vectors):
        new = [template(vector, f"{i}")]
        enroll_person(gallery, "default", f"p{i % 7}", {"n": i, "ü": [1, None]}, new)
    delete_person(gallery, "default", "p3")
    gallery.create_collection("staff", {"site": "x"}, {"target_fpir": 0.01})
    gallery.store.calibrations.set(gallery.store.collections.get("staff"), "cal-1", {"n": 1})


def bytes_of(engine: Engine) -> bytes:
    return b"".join(write_blocks(dump(engine)))


def restored(engine: Engine, data: bytes, *, replace: bool = False) -> None:
    load(engine, read_blocks(io.BytesIO(data)), replace=replace)


def tables(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    """Everything but what a restore changes on purpose."""
    queries = {
        "persons": "SELECT id, person_id, created_at, updated_at FROM persons ORDER BY id",
        "templates": "SELECT id, face_id, person, embedding, created_at FROM templates ORDER BY id",
        "collections": "SELECT id, name, dimension, calibration_id FROM collections ORDER BY id",
        "changes": "SELECT revision, template, kind, stamp FROM changes WHERE kind <> 'restore' "
        "ORDER BY collection, revision, template",
        "id": "SELECT id FROM database",
    }
    with engine.connect() as connection:
        return {
            name: [tuple(map(str, row)) for row in connection.execute(text(query))]
            for name, query in queries.items()
            if name not in ("persons", "templates")
        } | {
            name: [
                tuple(v for v in row if not hasattr(v, "year") and "2026-" not in str(v))
                for row in connection.execute(text(queries[name]))
            ]
            for name in ("persons", "templates")
        }


@pytest.mark.slow
@pytest.mark.parametrize("ring", [None, RING], ids=["plain", "encrypted"])
def test_into_any_engine(
    engine_url: str, target_url: str, ring: KeyRing | None, directions: Draw
) -> None:
    source, target = ready(engine_url), ready(target_url)
    vectors = directions(40)
    fill(gallery_of(source, ring), vectors)
    gallery_of(target, ring)  # an empty default collection is no obstacle
    restored(target, bytes_of(source))
    assert tables(target) == tables(source)
    again = gallery_of(target, ring)
    for i, row in enumerate(again.identify("default", vectors, 1).rows):
        if i % 7 != 3:
            assert row[0].face.person_id == f"p{i % 7}"
    assert again.store.persons.get("default", "p0").metadata == {"n": 35, "ü": [1, None]}
    assert again.store.collections.get("staff").policy == {"target_fpir": 0.01}
    assert again.store.calibrations.get(again.store.collections.get("staff")) == {"n": 1}
    assert again.check_index("default").clean
    # Keys that were given out are not given out again, not even those of what was deleted.
    highest = max(key for (key, *_) in tables(source)["templates"])
    (stored,) = enroll_person(again, "default", "new", None, [template(-vectors[0], "new")])
    assert stored.face.template_key > int(str(highest))


def test_an_open_gallery_follows_a_restore(engine_url: str, directions: Draw) -> None:
    engine = ready(engine_url)
    gallery = gallery_of(engine)
    vectors = directions(3)
    enroll_person(gallery, "default", "ada", None, [template(vectors[0], "0")])
    before = bytes_of(engine)
    enroll_person(gallery, "default", "bob", None, [template(vectors[1], "1")])
    assert gallery.size("default").persons == 2
    restored(engine, before, replace=True)
    assert gallery.size("default").persons == 1
    enroll_person(gallery, "default", "eve", None, [template(vectors[2], "2")])
    assert gallery.identify("default", vectors[2:], 1).rows[0][0].face.person_id == "eve"
    assert gallery.check_index("default").clean


def test_what_is_enrolled_after_the_restore_of_another_database_can_be_read(
    engine_url: str, tmp_path: Path, directions: Draw
) -> None:
    """A service that runs meanwhile has used keys that are bound to the former database."""
    ours, other = ready(engine_url), ready(f"sqlite:///{tmp_path / 'other.db'}")
    vectors = directions(3)
    enroll_person(gallery_of(other, RING), "default", "alice", None, [template(vectors[0], "a")])
    running = gallery_of(ours, RING)
    enroll_person(running, "default", "bob", None, [template(vectors[1], "b")])
    restored(ours, bytes_of(other), replace=True)
    enroll_person(running, "default", "carol", None, [template(vectors[2], "c")])
    for gallery in (running, gallery_of(ours, RING)):
        found = gallery.identify("default", vectors, 1).rows
        assert [row[0].face.person_id for row in (found[0], found[2])] == ["alice", "carol"]
        assert gallery.check_index("default").clean


def test_a_full_database_is_not_replaced_unasked(engine_url: str, directions: Draw) -> None:
    engine = ready(engine_url)
    fill(gallery_of(engine), directions(10))
    before = tables(engine)
    with pytest.raises(BackupError, match="--replace"):
        restored(engine, bytes_of(engine))
    assert tables(engine) == before


def test_one_state_while_people_come_and_go(engine_url: str, directions: Draw) -> None:
    engine = ready(engine_url)
    gallery = gallery_of(engine)
    vectors = directions(400)
    for i in range(60):
        enroll_person(gallery, "default", f"p{i}", None, [template(vectors[i], str(i))])
    stop = threading.Event()

    def write() -> None:
        other, i = gallery_of(open_engine(engine_url)), 60
        while not stop.is_set() and i < 400:
            enroll_person(other, "default", f"p{i}", None, [template(vectors[i], str(i))])
            delete_person(other, "default", f"p{i - 60}")
            i += 1

    writer = threading.Thread(target=write)
    writer.start()
    taken = [bytes_of(engine) for _ in range(5)]
    stop.set()
    writer.join()
    for data in taken:
        rows: dict[str, list[dict[str, object]]] = {}
        for body in read_blocks(io.BytesIO(data)):
            if "table" in body:
                rows.setdefault(body["table"], []).extend(body["rows"])
        added = {r["template"] for r in rows["changes"] if r["kind"] == "add"}
        removed = {r["template"] for r in rows["changes"] if r["kind"] == "remove"}
        assert {r["id"] for r in rows["templates"]} == added - removed
        last = max(int(str(r["revision"])) for r in rows["changes"])
        assert rows["collections"][0]["revision"] == last


def test_large_rows_are_in_blocks_of_their_own(engine_url: str, directions: Draw) -> None:
    """A block of more than 256 MiB could not be read; earlier versions stored crops of any size."""
    engine = ready(engine_url)
    gallery = gallery_of(engine)
    gallery.store.collections.update("default", None, KEEPS_CROPS)
    for i, vector in enumerate(directions(5)):
        new = NewTemplate(vector, f"{i}", crop=bytes(7 << 20))
        enroll_person(gallery, "default", "ada", None, [new])
    bodies = read_blocks(io.BytesIO(bytes_of(engine)))
    rows = [len(body["rows"]) for body in bodies if body.get("table") == "crops"]
    assert rows == [3, 2]


class TestDamage:
    @pytest.fixture
    def data(self, database: Path, directions: Draw) -> bytes:
        engine = ready(f"sqlite:///{database}")
        fill(gallery_of(engine), directions(10))
        return bytes_of(engine)

    def test_flipped_anywhere(self, data: bytes) -> None:
        *_, last = write_blocks(read_blocks(io.BytesIO(data)))
        start = len(data) - len(last)  # of the last block, with its length
        places = np.random.default_rng(0).integers(0, len(data), 60).tolist()
        for place in [*places, *range(start, start + 4)]:
            flipped = bytearray(data)
            flipped[place] ^= 4
            with pytest.raises(BackupDamaged):
                verify(read_blocks(io.BytesIO(bytes(flipped))))

    def test_cut_anywhere(self, data: bytes, tmp_path: Path) -> None:
        target = ready(f"sqlite:///{tmp_path / 'other' / 'likeness.db'}")
        lengths = [0, 5, len(data) // 3, len(data) - 1]
        for length in lengths:
            with pytest.raises(BackupDamaged):
                restored(target, data[:length])
        assert tables(target)["templates"] == []
        whole = list(read_blocks(io.BytesIO(data)))
        with pytest.raises(BackupDamaged, match="cut short"):
            restored(target, b"".join(write_blocks(whole[:-1])))
        with pytest.raises(BackupDamaged, match="counts"):
            restored(target, b"".join(write_blocks([whole[0], whole[-1]])))
        assert tables(target)["collections"] == []

    def test_something_else(self) -> None:
        for other in (b"", b"PK\x03\x04 a zip", b"SQLite format 3\0"):
            with pytest.raises(BackupDamaged, match="not a backup"):
                verify(read_blocks(io.BytesIO(other)))

    def test_of_a_newer_version(self, data: bytes) -> None:
        bodies = list(read_blocks(io.BytesIO(data)))
        bodies[0] = {**bodies[0], "schema": "9999"}
        with pytest.raises(BackupError, match="newer version"):
            verify(iter(bodies))

    def test_encrypted(self, data: bytes) -> None:
        whole = b"".join(encrypted(RING, iter([data])))
        assert data[20:60] not in whole
        assert verify(read_blocks(opened(RING, io.BytesIO(whole)))).rows["templates"] == 9
        other = KeyRing(parse_keys(new_key_line("k").encode(), "test"))
        for bad, ring in ((whole[:-1], RING), (whole[:5000], RING), (whole, other)):
            with pytest.raises(BackupDamaged):
                verify(read_blocks(opened(ring, io.BytesIO(bad))))
        with pytest.raises(BackupError, match="key"):
            opened(None, io.BytesIO(whole))
        third = KeyRing(parse_keys(new_key_line("z").encode(), "test"))
        with pytest.raises(BackupError, match="key"):
            verify(read_blocks(opened(third, io.BytesIO(whole))))
        assert as_file([b"a", b"bc"]).read() == b"abc"


def rows_of(bodies: list[Any], table: str) -> list[dict[str, Any]]:
    (found,) = (body["rows"] for body in bodies if body.get("table") == table)
    return cast(list[dict[str, Any]], found)


def add_person(bodies: list[Any], **values: object) -> None:
    people = rows_of(bodies, "persons")
    people.append({**people[0], **values})
    bodies[-1]["end"]["persons"] += 1


Spoil = Callable[[list[Any]], object]


@pytest.fixture(scope="module")
def small_backup(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    engine = create_engine(f"sqlite:///{tmp_path_factory.mktemp('made') / 'likeness.db'}")
    migrate(engine)
    vectors = np.random.default_rng(1).normal(size=(10, DIMENSION)).astype(np.float32)
    fill(gallery_of(engine), vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    made = bytes_of(engine)
    engine.dispose()
    return made


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def unchanged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """An empty database, for backups that are refused: for all of them, as it stays empty."""
    server = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    folder = tmp_path_factory.mktemp("unchanged")
    url = server.new_database() if server else f"sqlite:///{folder / 'likeness.db'}"
    engine = create_engine(url)
    migrate(engine)
    yield engine
    engine.dispose()
    if server:
        server.drop_database(url)


class TestMadeBySomebodyElse:
    """Its checks are right, as they have no key; what it holds is not what a backup holds."""

    @pytest.fixture
    def bodies(self, small_backup: bytes) -> list[Any]:
        return list(read_blocks(io.BytesIO(small_backup)))

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda b: b.insert(1, 5), "block 1 is not one"),
            (lambda b: b.insert(1, {}), "no rows of a table"),
            (lambda b: b.insert(1, {"table": ["x"], "rows": []}), "no table"),
            (lambda b: b.insert(1, {"table": "access_keys", "rows": []}), "no table 'access_keys'"),
            (lambda b: b.insert(1, {"table": "persons", "rows": []}), "'persons' are missing"),
            (lambda b: b.insert(1, {"table": "persons", "rows": 7}), "'persons' are missing"),
            (lambda b: b.insert(1, {"table": "persons", "rows": [7]}), "it is 7, not an object"),
            (lambda b: b.append(None), "continues after its end"),
            (lambda b: b.append({"end": {}}), "continues after its end"),
            (lambda b: b[-1].update(end=3), "block 6 .* counts are 3, not an object"),
            (lambda b: b[0].update(schema=13), "'schema'"),
            (lambda b: b[0].update(database=None), "'database'"),
            (lambda b: b[0].update(database="a\0b"), "'database'"),
            (lambda b: b[0].update(last_keys=None), "'last_keys'"),
            (lambda b: b[0].update(last_keys={"persons": "x"}), "'last_keys'"),
            (lambda b: b[0].update(last_keys={"persons": True}), "'last_keys'"),
            (lambda b: b[0].update(last_keys={"persons": 2**63 - 1}), "'last_keys'"),
            *(
                (lambda b, t=table, c=column, v=value: rows_of(b, t)[0].update({c: v}), words)
                for table, column, value, words in [
                    (
                        "persons",
                        "id",
                        2**63 - 1,
                        r"persons\.id is 9223372036854775807, not a whole",
                    ),
                    ("persons", "id", "1", r"persons\.id is the text '1', not a whole number"),
                    ("persons", "id", True, r"persons\.id is true, not a whole number"),
                    ("persons", "id", 0, r"persons\.id is 0, not a whole number"),
                    ("persons", "id", None, r"persons\.id is null, not a whole number"),
                    ("persons", "collection", 77, r"persons\.collection refers to a row of 'coll"),
                    ("persons", "person_id", None, r"persons\.person_id is null, not a text"),
                    ("persons", "person_id", "a\0b", r"person_id is the text 'a.x00b', not a text"),
                    ("persons", "person_id", "x" * 257, r"person_id is .*, not a text of 256"),
                    ("persons", "metadata", None, r"persons\.metadata is null, not an object"),
                    ("persons", "surprise", 1, "'persons' has no column 'surprise'"),
                    ("persons", "created_at", 5, r"persons\.created_at is 5, not a time"),
                    ("persons", "created_at", "never", r"created_at is the text 'never', not a"),
                    ("persons", "created_at", "9999-12-31T23:59:59-23:59", r"not a time from 1970"),
                    ("persons", "created_at", "0001-01-01T00:00:00", r"not a time from 1970"),
                    ("templates", "embedding", "text", r"templates\.embedding is the text"),
                    ("templates", "sealed", 1, r"templates\.sealed is 1, not true or false"),
                    ("templates", "person", 77, r"templates\.person refers to a row of 'persons'"),
                    (
                        "collections",
                        "name",
                        "/5",
                        r"collections\.name is the text '/5', not a name",
                    ),
                    ("collections", "dimension", -1, r"dimension is -1, not a whole number from 1"),
                    ("collections", "dimension", 2**61, r"dimension is 2.*, not a whole number"),
                    (
                        "collections",
                        "policy",
                        {"a": b""},
                        r"collections\.policy is an object, not an",
                    ),
                    ("collections", "policy", [], r"collections\.policy is a list, not an object"),
                    ("collections", "policy", {"a": math.nan}, r"policy is an object, not an obj"),
                    ("collections", "revision", 0, r"changes\.revision is \d+, later than its"),
                    ("calibrations", "content", None, r"calibrations\.content is null, not an"),
                    ("changes", "kind", "gone", r"changes\.kind is the text 'gone', not a kind"),
                ]
            ),
            (lambda b: rows_of(b, "persons")[0].pop("person_id"), "person_id is missing"),
            (lambda b: [r.pop("metadata") for r in rows_of(b, "persons")], "metadata is missing"),
            (
                lambda b: b.insert(1, b.pop(-2)),
                "a table after it|a row of 'collections' that is not",
            ),
            (lambda b: add_person(b, id=99), "two rows of 'persons' have the same collection and"),
            (lambda b: add_person(b, person_id="x"), "two rows of 'persons' have the same id"),
        ],
    )
    def test_is_refused_in_a_sentence(
        self, unchanged: Engine, bodies: list[Any], spoil: Spoil, words: str
    ) -> None:
        before = tables(unchanged)
        spoil(bodies)
        data = b"".join(write_blocks(bodies))
        with pytest.raises(BackupDamaged, match=words):
            verify(read_blocks(io.BytesIO(data)))
        with pytest.raises(BackupDamaged, match=words):
            restored(unchanged, data)
        assert tables(unchanged) == before

    def test_columns_of_earlier_versions_may_be_missing(
        self, target_url: str, bodies: list[Any]
    ) -> None:
        for table, column in [
            ("persons", "data_key"),
            ("templates", "sealed"),
            ("changes", "stamp"),
        ]:
            rows_of(bodies, table)[0].pop(column)
        target = ready(target_url)
        restored(target, b"".join(write_blocks(bodies)))
        assert gallery_of(target).check_index("default").clean

    def test_times_of_another_zone(self, target_url: str, bodies: list[Any]) -> None:
        rows_of(bodies, "persons")[0]["created_at"] = "2026-01-02T01:00:00+02:00"
        target = ready(target_url)
        restored(target, b"".join(write_blocks(bodies)))
        shown = gallery_of(target).store.persons.get("default", "p0").created_at
        assert shown == datetime(2026, 1, 1, 23, tzinfo=UTC)

    def test_keys_above_the_last_one(
        self, target_url: str, bodies: list[Any], directions: Draw
    ) -> None:
        """None is given out twice."""
        bodies[0]["last_keys"] = {}
        target = ready(target_url)
        restored(target, b"".join(write_blocks(bodies)))
        new = [template(directions(11)[-1], "new")]
        enroll_person(gallery_of(target), "default", "new", None, new)

    @pytest.mark.parametrize("packed", [b"\xc1", b"\x91" * 100_000 + b"\xc0", b"\x81\x90\x01"])
    def test_what_is_not_messagepack(self, bodies: list[Any], packed: bytes) -> None:
        start, header, *_ = write_blocks(bodies)
        check = hashlib.sha256(header[4:36] + packed).digest()
        data = start + header + len(packed).to_bytes(4, "big") + check + packed
        with pytest.raises(BackupDamaged, match="block 1 is not MessagePack"):
            verify(read_blocks(io.BytesIO(data)))

    def test_bytes_after_the_end(self, bodies: list[Any]) -> None:
        with pytest.raises(BackupDamaged):
            verify(read_blocks(io.BytesIO(b"".join(write_blocks(bodies)) + b"more")))
