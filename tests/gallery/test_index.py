"""The derived index on its own."""

import threading

import numpy as np
import pytest

from app.gallery.index import FlatIndex
from app.gallery.locks import ReadWriteLock
from app.gallery.ports import GallerySize, Templates


def templates(keys: list[int], persons: list[int], vectors: np.ndarray) -> Templates:
    return Templates(np.array(keys), np.array(persons), vectors.astype(np.float32))


@pytest.fixture
def index() -> FlatIndex:
    index = FlatIndex(4)
    index.add(templates([1, 2, 3], [10, 10, 20], np.eye(4)[:3]))
    return index


def test_a_person_counts_once_with_the_best_template(index: FlatIndex) -> None:
    probe = np.array([[0.6, 0.8, 0, 0]], dtype=np.float32)
    (hits,) = index.search_persons(probe, 5)
    assert [(hit.person_key, hit.template_key) for hit in hits] == [(10, 2), (20, 3)]
    assert hits[0].similarity == pytest.approx(0.8)


def test_adding_again_changes_nothing(index: FlatIndex) -> None:
    index.add(templates([3], [20], -np.eye(4)[2:3]))
    assert index.size == 3
    (hits,) = index.search_persons(np.eye(4, dtype=np.float32)[2:3], 1)
    assert hits[0].similarity == pytest.approx(1)


def test_removed_templates_never_answer(index: FlatIndex) -> None:
    index.remove(np.array([2, 99]))
    assert index.size == 2
    (hits,) = index.search_persons(np.eye(4, dtype=np.float32)[1:2], 5)
    assert {hit.template_key for hit in hits} == {1, 3}


def test_nothing_to_search(index: FlatIndex) -> None:
    assert index.search_persons(np.empty((0, 4), np.float32), 3) == []
    assert FlatIndex(4).search_persons(np.eye(4, dtype=np.float32), 3) == [[], [], [], []]
    assert index.search_persons(np.eye(4, dtype=np.float32)[:1], 3, allowed_persons=set()) == [[]]


def test_only_the_allowed_persons(index: FlatIndex) -> None:
    (hits,) = index.search_persons(np.eye(4, dtype=np.float32)[:1], 3, allowed_persons={20})
    assert [hit.person_key for hit in hits] == [20]


def test_a_writer_waits_for_readers_and_keeps_new_ones_out() -> None:
    lock = ReadWriteLock()
    events: list[str] = []

    def write() -> None:
        with lock.writing():
            events.append("written")

    def read() -> None:
        with lock.reading():
            events.append("read")

    writer, reader = threading.Thread(target=write), threading.Thread(target=read)
    with lock.reading():
        with lock.reading():  # readers share
            pass
        writer.start()
        writer.join(0.1)
        reader.start()
        reader.join(0.1)
        assert events == []
    writer.join(5)
    reader.join(5)
    assert events == ["written", "read"]


def test_extent_counts_people_and_templates_as_they_come_and_go() -> None:
    index = FlatIndex(4)
    vectors = np.eye(4, dtype=np.float32)
    index.add(Templates(np.array([1, 2, 3, 4]), np.array([7, 7, 8, 9]), vectors))
    assert index.extent() == GallerySize(3, 4)
    assert index.extent({7, 9, 100}) == GallerySize(2, 3)
    index.remove(np.array([1, 3, 99]))
    assert index.extent() == GallerySize(2, 2)
    assert index.extent(set()) == GallerySize(0, 0)
