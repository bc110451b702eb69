"""docs/concurrency.md names every lock and thread of the source, and the order that is kept."""

import re
from pathlib import Path

import numpy as np

from app.access.refused import CallLog, CallOutcome, RefusedCall, RefusedCalls
from app.encryption.ring import KeyRing
from app.gallery.gallery import Gallery
from app.index.certified.rows import IndexShape
from app.index.device_rows import DeviceGalleries
from app.index.factory import IndexFactory
from app.locks import made_by
from app.store.records import PersonTemplate
from app.store.schema import migrate
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, open_engine, template
from tests.index.conftest import HostDevice, unit
from tests.index.test_snapshot import KEY
from tests.locks import PAGE, Order, documented
from tests.writing import delete_collection, delete_person, enroll_person

SOURCE = [
    (path.name, path.read_text())
    for path in sorted((Path(__file__).parents[1] / "app").rglob("*.py"))
]
THREADS = (
    r"thread_name_prefix=\"([a-z-]+)\"",
    r"threading\.Thread\((?s:.{0,120}?)name=\"([a-z-]+)\"",
    r"ThreadPoolExecutor\(\s*\w+, \"([a-z-]+)\"",
    r"_timer\.name, .* = \"([a-z-]+)\"",
    r"FairThreadPool\(\"([a-z-]+)\"",
)


def found(pattern: str) -> set[str]:
    return {name for _, text in SOURCE for name in re.findall(pattern, text)}


def test_every_lock_has_a_line() -> None:
    assert found(r"new_(?:lock|condition)\(\s*\"([a-z.]+)\"") == set(documented())


def test_locks_are_made_in_one_place() -> None:
    elsewhere = r"(?<!asyncio\.)\b(?:threading\.)?(?:R?Lock|Condition|Semaphore)\(\)"
    assert [name for name, text in SOURCE if re.search(elsewhere, text)] == ["locks.py"]


def test_every_thread_has_a_line() -> None:
    table = PAGE.read_text().split("## Threads")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE))
    assert set().union(*map(found, THREADS)) == named


def test_locks_are_taken_in_the_order_of_the_page(tmp_path: Path) -> None:
    """All that takes two, with plain snapshots, with encrypted ones, and on a device."""
    order = Order()
    with made_by(order.lock):
        live(tmp_path / "plain" / "likeness.db", None)
        live(tmp_path / "encrypted" / "likeness.db", KEY)
        live(tmp_path / "device" / "likeness.db", None, on_a_device=True)
    assert order.undocumented() == set()
    expected = {(outer, inner) for inner, outers in direct().items() for outer in outers}
    assert expected <= order.pairs, "the page has pairs that do not happen"


def live(database: Path, ring: KeyRing | None, *, on_a_device: bool = False) -> None:
    """Follow, build, encrypt, save, erase, discard, at a start and at the end."""
    vectors = unit(np.random.default_rng(0).standard_normal((40, DIMENSION)))
    people = [PersonTemplate(f"p{i}", None, template(v, f"{i}")) for i, v in enumerate(vectors)]
    gallery = opened(database, ring, on_a_device)
    gallery.enroll_many("default", people)
    gallery.identify("default", vectors[:2], 3)
    gallery.run_maintenance()
    gallery.identify("default", vectors[:2], 3)
    delete_person(gallery, "default", "p3")
    gallery.create_collection("staff", {})
    enroll_person(gallery, "staff", "ada", None, [template(vectors[0], "a")])
    refused = RefusedCalls(CallLog(gallery.store.database))
    refused.note(RefusedCall("caller", CallOutcome.FAILED, "GET /", "internal_error"), (None, None))
    refused.round()
    gallery.close()
    again = opened(database, ring, on_a_device)
    again.prepare()
    delete_collection(again, "staff")
    again.run_maintenance()
    again.close()


def direct() -> dict[str, set[str]]:
    """What each lock's own line names."""
    lines = re.findall(r"^\| `([a-z.]+)` \|.*\| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE)
    return {name: set(re.findall(r"`([a-z.]+)`", last)) for name, last in lines}


def opened(database: Path, ring: KeyRing | None, on_a_device: bool) -> Gallery:
    engine = open_engine(database)
    migrate(engine)
    shape = IndexShape(encode_at=8, merge_at=2)
    gpu = DeviceGalleries(HostDevice()) if on_a_device else None
    index_factory = IndexFactory(2, database.parent / "index", ring, shape, gpu)
    return Gallery(Store(engine, ring=ring), index_factory, SPACE, DIMENSION)
