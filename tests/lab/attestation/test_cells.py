"""Best scores of probes in a gallery read in parts, and errors counted in them."""

import numpy as np
import pytest

from app.index.comparator import COSINE
from app.lab.attestation.cells import (
    MIN_GROUP,
    SMALL,
    BestScores,
    Faces,
    false_negatives,
    false_positives,
    groups_of,
)
from app.lab.attestation.document import AttestationError
from tests.decision.conftest import people


def faces(count: int, each: int, noise: float = 0.5) -> Faces:
    data = people(count, each, dimension=16, noise=noise)
    return Faces(data.vectors, data.persons.astype(np.int64), np.arange(len(data.persons)))


def part(gallery: Faces, chosen: np.ndarray) -> Faces:
    return Faces(gallery.vectors[chosen], gallery.persons[chosen], gallery.keys[chosen])


def test_best_scores_equal_those_of_all_at_once() -> None:
    gallery = faces(30, 3)
    probes = part(gallery, np.arange(0, 90, 3))
    found = BestScores(probes, COSINE)
    for chosen in np.array_split(np.arange(90), 7):
        found.add(part(gallery, chosen))
    found.add(part(gallery, np.arange(0)))
    scores = probes.vectors @ gallery.vectors.T
    for n in range(30):
        own = (gallery.persons == n) & (gallery.keys != probes.keys[n])
        other = gallery.persons != n
        assert found.own[n] == pytest.approx(scores[n][own].max())
        assert found.other[n] == pytest.approx(scores[n][other].max())
        best = np.flatnonzero(other)[scores[n][other].argmax()]
        assert found.other_person[n] == gallery.persons[best]


def test_a_match_of_two_people_is_one_event_though_two_searches_err() -> None:
    gallery = faces(40, 1)
    vectors = gallery.vectors.copy()
    vectors[1] = vectors[0]  # two people who look the same
    gallery = Faces(vectors, gallery.persons, gallery.keys)
    found = BestScores(gallery, COSINE)
    found.add(gallery)
    everyone = np.ones(40, np.bool_)
    both = false_positives(found, 0.999, everyone, both_ways=True)
    assert (both.errors, both.searches, both.effective) == (2, 40, 20)
    once = false_positives(found, 0.999, everyone, both_ways=False, rejected=10)
    assert (once.errors, once.searches, once.effective) == (2, 50, 50)


def test_a_template_that_everybody_matches_is_one_event_too() -> None:
    gallery = faces(40, 1)
    vectors = gallery.vectors.copy()
    vectors[:11] = vectors[0]
    gallery = Faces(vectors, gallery.persons, gallery.keys)
    found = BestScores(gallery, COSINE)
    found.add(gallery)
    counted = false_positives(found, 0.999, np.ones(40, np.bool_), both_ways=True)
    assert counted.errors == 11
    assert counted.effective == pytest.approx(40 / 11)


def test_missed_people_are_those_not_first_or_not_at_the_threshold() -> None:
    gallery = faces(60, 2, noise=1.5)
    probes = part(gallery, np.arange(0, 120, 2))
    found = BestScores(probes, COSINE)
    found.add(gallery)
    everyone = np.ones(60, np.bool_)
    expected = int(((found.own < 0.4) | (found.own < found.other)).sum())
    assert 0 < expected < 60
    counted = false_negatives(found, 0.4, everyone, rejected=3)
    assert (counted.errors, counted.searches) == (expected + 3, 63)


def test_groups_too_small_to_hide_a_person_are_one_without_a_name() -> None:
    group_of = {f"p{n}": "many" for n in range(MIN_GROUP)} | {"q1": "Ann Smith", "q2": "few"}
    found = {group: held for group, _, held in groups_of({"job": group_of}, {*group_of, "r"})}
    assert list(found) == ["everybody", "job=many", f"job: {SMALL}"]
    assert found[f"job: {SMALL}"] == {"q1", "q2"}


def test_an_attribute_with_a_group_for_everyone_is_refused() -> None:
    ids = {f"p{n}": f"id {n}" for n in range(500)}
    with pytest.raises(AttestationError, match="has 500 groups"):
        list(groups_of({"id": ids}, set(ids)))
