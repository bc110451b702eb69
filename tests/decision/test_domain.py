"""What a calibration learns of faces outside press photos, and what it changes."""

from dataclasses import replace

import numpy as np
import pytest

from app.decision.comparisons import LabelledEmbeddings
from app.decision.domain import Domain, SharedDirection, labelled_likeness
from app.decision.fitting import Labelled, calibrate
from app.decision.thresholds import ONE_COMPARISON
from app.index.comparator import COSINE
from tests.decision.conftest import people
from tests.decision.test_calibration import calibration

D = 64
LEAN = np.eye(D, dtype=np.float32)[0]


def leaning(data: LabelledEmbeddings, by: float = 1.2) -> LabelledEmbeddings:
    """The same faces, each leaning towards one direction."""
    vectors = data.vectors + np.float32(by) * LEAN
    return replace(data, vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def shared() -> SharedDirection:
    kinds = {name: leaning(people(300, seed=seed)).vectors for seed, name in enumerate("ab", 5)}
    return SharedDirection.fit(kinds, "made up")


def test_the_direction_is_that_of_all_kinds_of_degraded_faces() -> None:
    found = shared()
    assert found.comparator.direction is not None
    assert float(found.comparator.direction @ LEAN) > 0.99
    assert (found.faces, found.degradations) == (300, ("a", "b"))
    kept = SharedDirection.model_validate_json(found.model_dump_json())
    assert kept == found
    np.testing.assert_array_equal(kept.comparator.direction, found.comparator.direction)


def test_kinds_weigh_alike_however_many_faces_each_has() -> None:
    one, other = np.eye(D, dtype=np.float32)[:2]
    found = SharedDirection.fit({"many": np.tile(one, (90, 1)), "few": other[np.newaxis]}, "x")
    assert np.array(found.direction[:2]) == pytest.approx([0.7071, 0.7071], abs=1e-4)


def test_faces_that_share_nothing_have_no_direction() -> None:
    one = np.eye(D, dtype=np.float32)[:1]
    with pytest.raises(ValueError, match="share no direction"):
        SharedDirection.fit({"a": one, "b": -one}, "x")


def test_strangers_whose_faces_are_all_degraded_match_no_more_often_than_promised() -> None:
    """Without the direction nearly all of them do."""
    good, direction = people(300), shared()
    bad = leaning(people(300, seed=3))
    pairs = np.triu_indices(300, 1)
    matching = {}
    for name, comparator in (("cosine", COSINE), ("score", direction.comparator)):
        found = calibrate(
            Labelled(
                replace(good, comparator=comparator), "photos", "x",
                shared=None if name == "cosine" else direction,
            ),
            "es-test",
            "float32",
        )  # fmt: skip
        threshold = found.threshold_at(1e-2, ONE_COMPARISON)
        scores = found.comparator.scores(bad.vectors, bad.vectors)[pairs]
        matching[name] = float((scores >= threshold).mean())
    assert matching["cosine"] > 0.9
    assert matching["score"] < 1e-2


def test_a_calibration_keeps_its_domain() -> None:
    direction = shared()
    data = replace(people(150), comparator=direction.comparator)
    made = calibrate(Labelled(data, "photos", "x", shared=direction), "es-test", "float32")
    assert made.domain is not None
    assert made.domain.shared == direction
    assert made.domain.likeness == pytest.approx(labelled_likeness(data), abs=1e-5)
    assert made.comparator is direction.comparator


def test_likeness_is_the_99th_percentile_of_different_people_s_scores() -> None:
    data = people(200, 3)
    first = data.vectors[::3]
    expected = np.quantile((first @ first.T)[np.triu_indices(200, 1)], 0.99)
    assert labelled_likeness(data) == pytest.approx(expected, abs=1e-6)
    assert labelled_likeness(leaning(data)) > labelled_likeness(data)


def test_without_a_domain_everything_is_as_before() -> None:
    """Collections keep calibrations that were made before there were domains."""
    before = calibration()
    assert before.domain is None
    assert before.comparator is COSINE
    assert "domain" not in before.content()
    with_one = calibration(domain=Domain(shared=shared(), likeness=0.2).model_dump())
    assert with_one.calibration_id != before.calibration_id
