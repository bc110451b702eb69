"""Verdicts of the faces of one photo, and nobody found twice."""

import itertools

import numpy as np
import pytest

from app.decision.gates import OPEN_GATE, QualityGate
from app.decision.verdicts import Status, Verdict, assign_persons, decide, is_match
from app.gallery.candidates import Candidate
from tests.decision.conftest import candidate, face

Row = list[Candidate]


def row(**similarities: float) -> Row:
    ordered = sorted(similarities.items(), key=lambda item: -item[1])
    return [candidate(person, similarity) for person, similarity in ordered]


def names(verdicts: list[Verdict]) -> list[str | None]:
    return [v.person.face.person_id if v.person else None for v in verdicts]


def test_the_nearest_person_at_the_threshold_is_found() -> None:
    rows: list[Row] = [row(ada=0.4, bob=0.1), row(ada=0.39), []]
    verdicts = decide([face()] * 3, rows, 0.4, OPEN_GATE)
    assert [v.status for v in verdicts] == [Status.IDENTIFIED, Status.UNKNOWN, Status.UNKNOWN]
    assert names(verdicts) == ["ada", None, None]


def test_a_face_that_fails_the_gate_is_rejected_at_any_similarity() -> None:
    gate = QualityGate(min_sharpness=50, min_face_size_px=40)
    faces = [face(sharpness=10, size=20), face()]
    blurred, clear = decide(faces, [row(ada=0.9), row(ada=0.9)], 0.4, gate)
    assert blurred == Verdict(Status.REJECTED, None, ("face_too_small", "blurred"))
    assert clear.status is Status.IDENTIFIED


def test_without_the_option_one_person_may_be_found_twice() -> None:
    rows = [row(ada=0.9), row(ada=0.8)]
    assert names(decide([face()] * 2, rows, 0.4, OPEN_GATE)) == ["ada", "ada"]


def test_with_it_the_better_face_keeps_the_person() -> None:
    rows = [row(ada=0.8, bob=0.5), row(ada=0.9, bob=0.3)]
    verdicts = decide([face()] * 2, rows, 0.4, OPEN_GATE, one_person_once=True)
    assert names(verdicts) == ["bob", "ada"]


def test_the_other_face_says_where_its_person_was_found() -> None:
    """It is not a stranger's: a second photo of the person, a mirror, a look-alike."""
    rows = [row(ada=0.8, bob=0.3), row(ada=0.9), row(ada=0.2)]
    verdicts = decide([face()] * 3, rows, 0.4, OPEN_GATE, one_person_once=True)
    assert names(verdicts) == [None, "ada", None]
    assert [one.status for one in verdicts].count(Status.UNKNOWN) == 2
    assert [one.reasons for one in verdicts] == [("assigned_to_other_face",), (), ()]


def test_a_rejected_face_takes_nobody() -> None:
    gate = QualityGate(min_sharpness=50)
    rows = [row(ada=0.95), row(ada=0.8)]
    verdicts = decide([face(sharpness=1), face()], rows, 0.4, gate, one_person_once=True)
    assert names(verdicts) == [None, "ada"]


def best_by_trying_all(rows: list[Row], threshold: float) -> float:
    """The largest sum of similarities over the threshold that any assignment reaches."""
    choices = [[None, *(c for c in one if is_match(c.similarity, threshold))] for one in rows]
    best = 0.0
    for chosen in itertools.product(*choices):
        taken = [c.face.person_id for c in chosen if c]
        if len(taken) == len(set(taken)):
            best = max(best, sum(c.similarity - threshold for c in chosen if c))
    return best


@pytest.mark.parametrize("seed", range(20))
def test_the_assignment_is_the_best_there_is(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = [
        row(**{f"p{i}": float(s) for i, s in enumerate(generator.uniform(0, 1, size=5))})
        for _ in range(4)
    ]
    chosen = assign_persons(rows, 0.5)
    taken = [c.face.person_id for c in chosen if c]
    assert len(taken) == len(set(taken))
    assert all(c.similarity >= 0.5 for c in chosen if c)
    total = sum(c.similarity - 0.5 for c in chosen if c)
    assert total == pytest.approx(best_by_trying_all(rows, 0.5), abs=1e-6)


def test_a_similarity_at_the_threshold_itself_is_somebody() -> None:
    assert assign_persons([row(ada=0.5)], 0.5)[0] is not None


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_nobody_near(rows: list[Row]) -> None:
    assert assign_persons(rows, 0.5) == [None] * len(rows)


class TestMatch:
    def test_the_threshold_itself_matches(self) -> None:
        assert is_match(0.4, 0.4)
        assert is_match(float(np.nextafter(0.4, 1)), 0.4)
        assert not is_match(float(np.nextafter(0.4, 0)), 0.4)

    @pytest.mark.parametrize("threshold", [-1.0, 0.0, 1.0])
    def test_at_the_ends(self, threshold: float) -> None:
        assert is_match(1.0, threshold)
        assert is_match(-1.0, threshold) is (threshold == -1.0)

    def test_not_a_number_is_nobody(self) -> None:
        assert not is_match(float("nan"), -1.0)
