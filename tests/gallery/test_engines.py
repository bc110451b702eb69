"""The gallery needs nothing of a search engine but the port: here it runs over the reference."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.gallery.gallery import Gallery
from app.gallery.index_check import CopyCheck, IndexCheck
from app.store.records import Erasure
from app.store.schema import migrate
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, open_engine, template
from tests.index.reference import ReferenceEngine
from tests.writing import delete_collection, delete_person, enroll_person

Draw = Callable[[int], NDArray[np.float32]]


def open_gallery(database: Path) -> Gallery:
    engine = open_engine(database)
    migrate(engine)
    search = ReferenceEngine(database.parent / "index")
    return Gallery(Store(engine), search, SPACE, DIMENSION)


def nearest(gallery: Gallery, vector: NDArray[np.float32]) -> str | None:
    (row,) = gallery.identify("default", vector[np.newaxis], 1).rows
    return row[0].face.person_id if row and row[0].similarity > 0.999 else None


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_life_of_a_gallery(database: Path, directions: Draw) -> None:
    vectors = directions(20)
    first, second = open_gallery(database), open_gallery(database)
    first.prepare()  # which makes it the owner of what is saved
    for number, vector in enumerate(vectors):
        enroll_person(first, "default", f"p{number}", {}, [template(vector, f"{number}")])
    assert nearest(second, vectors[3]) == "p3"
    first.run_maintenance()
    assert vectors[3].tobytes() in on_disk(database.parent / "index")
    assert delete_person(second, "default", "p4").erased is Erasure.PENDING
    assert delete_person(first, "default", "p3").erased is Erasure.DONE
    left = on_disk(database.parent)
    assert not any(vector.tobytes() in left for vector in (vectors[3], vectors[4]))
    first.merge_persons("default", "p5", "p6")
    for gallery in (first, second):
        assert (nearest(gallery, vectors[3]), nearest(gallery, vectors[5])) == (None, "p6")
    first.close()
    third = open_gallery(database)
    assert third.check_index("default") == IndexCheck(18, CopyCheck(), CopyCheck())
    assert third.size("default").persons == 17
    for gallery in (second, third):
        gallery.close()


def test_closed_indexes_come_back_from_what_was_saved(database: Path, directions: Draw) -> None:
    gallery = open_gallery(database)
    gallery._indexes.replicas._limit = 1  # byte
    vectors = directions(6)
    for name in ("a", "b"):
        gallery.create_collection(name, {})
        for number, vector in enumerate(vectors):
            enroll_person(gallery, name, f"p{number}", {}, [template(vector, f"{number}")])
    assert delete_person(gallery, "a", "p1").erased is Erasure.DONE
    assert gallery.size("a").persons == 5
    assert gallery.size("b").persons == 6
    assert gallery.open_indexes().open == 1
    assert delete_collection(gallery, "a").erased is Erasure.DONE
    assert gallery.check_index("b").clean
    gallery.close()
