"""What the audit finds when truth and index differ."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text

from app.gallery.audit import Audit
from app.gallery.gallery import Gallery
from tests.gallery.conftest import template

Draw = Callable[[int], NDArray[np.float32]]


def fill(gallery: Gallery, vectors: NDArray[np.float32]) -> None:
    for i, vector in enumerate(vectors):
        gallery.enroll("default", f"p{i}", None, [template(vector, str(i))])


def index_of(gallery: Gallery):  # type: ignore[no-untyped-def]
    return next(iter(gallery._replicas.values())).index


def test_a_true_index(gallery: Gallery, directions: Draw) -> None:
    fill(gallery, directions(30))
    gallery.delete_person("default", "p3")
    assert gallery.audit("default") == Audit(29, 0, 0, 0, 0)
    assert gallery.audit("default").clean


def test_a_template_that_the_index_lost(gallery: Gallery, directions: Draw) -> None:
    fill(gallery, directions(5))
    index_of(gallery).remove(np.array([2]))
    found = gallery.audit("default")
    assert (found.missing, found.unknown, found.different) == (1, 0, 0)
    gallery.rebuild("default")
    assert gallery.audit("default").clean


def test_a_template_that_only_the_index_has(gallery: Gallery, directions: Draw) -> None:
    fill(gallery, directions(5))
    # Behind the log's back, as no version of ours would.
    with gallery.store._database.writing() as connection:  # type: ignore[attr-defined]
        connection.execute(text("DELETE FROM templates WHERE id = 4"))
    assert gallery.audit("default") == Audit(4, 0, 1, 0, 0)


def test_a_template_that_differs_and_one_that_is_no_unit_vector(
    gallery: Gallery, directions: Draw
) -> None:
    fill(gallery, directions(5))
    with gallery.store._database.writing() as connection:  # type: ignore[attr-defined]
        twice = (2 * directions(1)[0]).tobytes()
        connection.execute(text("UPDATE templates SET embedding = :b WHERE id = 1"), {"b": twice})
    found = gallery.audit("default")
    assert (found.different, found.not_unit) == (1, 1)
    assert not found.index_is_true
