"""What the check of an index finds when the database and the index differ."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import text

from app.gallery.gallery import Gallery
from app.gallery.index_check import CopyCheck, IndexCheck
from app.index.certified.index import CertifiedIndex
from app.index.certified.rows import IndexShape
from app.index.factory import IndexFactory
from app.store.schema import migrate
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, certified_of, open_engine, template
from tests.writing import delete_person, enroll_person

Draw = Callable[[int], NDArray[np.float32]]


def fill(gallery: Gallery, vectors: NDArray[np.float32]) -> None:
    for i, vector in enumerate(vectors):
        enroll_person(gallery, "default", f"p{i}", None, [template(vector, str(i))])


def index_of(gallery: Gallery) -> CertifiedIndex:
    return certified_of(next(iter(gallery._replicas.values())))


def test_a_true_index(gallery: Gallery, directions: Draw) -> None:
    fill(gallery, directions(30))
    delete_person(gallery, "default", "p3")
    assert gallery.check_index("default") == IndexCheck(29, CopyCheck())
    assert gallery.check_index("default").clean


def test_a_template_that_the_index_lost(gallery: Gallery, directions: Draw) -> None:
    fill(gallery, directions(5))
    index_of(gallery).remove(np.array([2]))
    found = gallery.check_index("default")
    assert found.index == CopyCheck(missing=1)
    gallery.rebuild("default")
    assert gallery.check_index("default").clean


def test_a_template_that_only_the_index_has(gallery: Gallery, directions: Draw) -> None:
    fill(gallery, directions(5))
    # Behind the log's back, as no version of ours would.
    with gallery.store.database.writing() as connection:
        connection.execute(text("DELETE FROM templates WHERE id = 4"))
    assert gallery.check_index("default") == IndexCheck(4, CopyCheck(unknown=1))


def test_a_template_that_differs_and_one_that_is_no_unit_vector(
    gallery: Gallery, directions: Draw
) -> None:
    fill(gallery, directions(5))
    with gallery.store.database.writing() as connection:
        twice = (2 * directions(1)[0]).tobytes()
        connection.execute(text("UPDATE templates SET embedding = :b WHERE id = 1"), {"b": twice})
    found = gallery.check_index("default")
    assert (found.index.different, found.not_unit) == (1, 1)
    assert not found.index_matches


def test_a_removed_template_that_is_alive_in_the_index_again(
    gallery: Gallery, directions: Draw
) -> None:
    """The counts are right: only the rows themselves tell."""
    fill(gallery, directions(5))
    delete_person(gallery, "default", "p1")
    rows = index_of(gallery).state.write_buffer.rows
    rows.alive[rows.keys == 2] = True
    found = gallery.check_index("default")
    assert (found.index, found.miscounted) == (CopyCheck(unknown=1), 2)


def test_a_template_of_another_person_and_one_that_is_not_erased(
    gallery: Gallery, directions: Draw
) -> None:
    fill(gallery, directions(5))
    delete_person(gallery, "default", "p1")
    rows = index_of(gallery).state.write_buffer.rows
    rows.persons[rows.keys == 1] = rows.persons[rows.keys == 3]
    rows.vectors[rows.keys == 2] = directions(1)
    found = gallery.check_index("default")
    assert (found.index, found.miscounted) == (CopyCheck(different=1, unerased=1), 1)


def test_a_template_held_twice(gallery: Gallery, directions: Draw) -> None:
    fill(gallery, directions(5))
    rows = index_of(gallery).state.write_buffer.rows
    rows.keys[rows.keys == 2] = 3
    assert gallery.check_index("default").index == CopyCheck(missing=1, unknown=1, different=1)


class TestSnapshot:
    """What lies in the files is compared too."""

    @pytest.fixture
    def kept(self, database: Path, directions: Draw) -> Gallery:
        """A gallery with a snapshot: a shard of three and a write buffer of two."""
        engine = open_engine(database)
        migrate(engine)
        shape = IndexShape(encode_at=3, merge_at=9)
        index_factory = IndexFactory(2, database.parent / "index", shape=shape)
        gallery = Gallery(Store(engine), index_factory, SPACE, DIMENSION)
        fill(gallery, directions(3))
        gallery.run_maintenance()
        vectors = directions(5)
        for i in (3, 4):
            enroll_person(gallery, "default", f"p{i}", None, [template(vectors[i], str(i))])
        self.save(gallery)
        return gallery

    def save(self, gallery: Gallery) -> None:
        next(iter(gallery._replicas.values())).save()

    def test_a_true_one(self, kept: Gallery, directions: Draw) -> None:
        delete_person(kept, "default", "p1")
        delete_person(kept, "default", "p4")
        enroll_person(kept, "default", "later", None, [template(directions(6)[5], "later")])
        assert kept.check_index("default") == IndexCheck(4, CopyCheck(), CopyCheck())
        assert kept.check_index("default").clean
        kept.close()

    @pytest.mark.parametrize("key", [2, 5])
    def test_a_deleted_template_that_lies_in_a_file(self, kept: Gallery, key: int) -> None:
        with kept.store.database.writing() as connection:
            connection.execute(text("DELETE FROM templates WHERE id = :key"), {"key": key})
        index_of(kept).remove(np.array([key]))
        found = kept.check_index("default")
        assert (found.snapshot, found.index_matches) == (CopyCheck(unknown=1), False)
        kept.close()

    def test_one_that_the_files_lack(self, kept: Gallery) -> None:
        folder = next(iter(kept._replicas.values())).index.saved_copy._snapshot  # type: ignore[attr-defined]
        folder.erase(np.array([1, 4]))
        found = kept.check_index("default")
        # The index reads the shard from its file, and the write buffer from memory.
        assert (found.index, found.snapshot) == (CopyCheck(different=1), CopyCheck(missing=2))
        kept.close()
