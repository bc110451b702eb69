"""What a calibration learns of faces whose lower half is covered."""

import numpy as np
import pytest

from app.decision.covered import UNCOVERED_SHARE, CoveredFaces
from app.decision.domain import Domain, SharedDirection
from app.index.comparator import COSINE
from app.types import FloatArray
from tests.decision.conftest import people
from tests.decision.test_calibration import calibration

D = 64
COVER = np.eye(D, dtype=np.float32)[3]
WAYS = 3


def covered(faces: FloatArray, by: float = 0.8, seed: int = 0) -> FloatArray:
    """Each of the faces (n, d) covered in WAYS ways, which differ a little: (n, WAYS, d)."""
    noise = np.random.default_rng(seed).normal(0, 0.02, (len(faces), WAYS, D))
    vectors = faces[:, np.newaxis] + by * COVER + noise
    return (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted() -> CoveredFaces:
    plain = people(300).vectors
    found = CoveredFaces.fit(plain, covered(plain), "made up")
    assert found is not None
    return found


def seen(fitted: CoveredFaces, faces: FloatArray) -> FloatArray:
    return fitted.covering.of(faces)


def test_most_faces_look_uncovered_and_most_covered_ones_do_not(fitted: CoveredFaces) -> None:
    others = people(300, seed=1).vectors
    assert np.mean(seen(fitted, others) == 0) == pytest.approx(UNCOVERED_SHARE, abs=0.1)
    assert np.mean(seen(fitted, covered(others)[:, 0]) == 1) > 0.7


def test_a_vector_unlike_any_face_is_lowered_by_the_weight_at_most(fitted: CoveredFaces) -> None:
    """What hardly differs between faces has a large part in the direction."""
    direction = SharedDirection.fit({"a": np.eye(D, dtype=np.float32)[:1]}, "x", fitted)
    odd = (fitted.covering.direction / np.linalg.norm(fitted.covering.direction))[np.newaxis]
    odd[0, 0] = 0
    score = float(direction.comparator.scores(odd, odd)[0, 0])
    assert score == pytest.approx(float(odd[0] @ odd[0]) - fitted.weight, abs=1e-5)


def test_strangers_whose_faces_are_both_covered_resemble_each_other_less(
    fitted: CoveredFaces,
) -> None:
    """One covered face against one that is not is compared as before."""
    direction = SharedDirection.fit({"a": np.eye(D, dtype=np.float32)[:1]}, "x", fitted)
    strangers = people(200, seed=2).vectors
    both = covered(strangers)[:, 0]
    pairs = np.triu_indices(200, 1)
    before = COSINE.scores(both, both)[pairs]
    after = direction.comparator.scores(both, both)[pairs]
    assert np.quantile(after, 0.99) < np.quantile(before, 0.99) - 0.05
    good = strangers[seen(fitted, strangers) == 0]
    good = good[good[:, 0] <= 0]
    np.testing.assert_allclose(
        direction.comparator.scores(good, both), COSINE.scores(good, both), atol=1e-6
    )


def test_nothing_is_learned_where_covered_faces_of_other_people_do_not_stand_out() -> None:
    """Faces that change at random when they are covered: what the fit finds is chance."""
    plain = people(100).vectors
    changed = np.stack([people(100, seed=seed).vectors for seed in (7, 8, 9)], axis=1)
    assert CoveredFaces.fit(plain, changed, "x") is None
    assert CoveredFaces.fit(plain, covered(plain, by=0.0), "x") is None


def test_a_calibration_keeps_it_and_one_without_it_keeps_its_id(fitted: CoveredFaces) -> None:
    one = SharedDirection.fit({"a": np.eye(D, dtype=np.float32)[:1]}, "x")
    before = calibration(domain=Domain(shared=one, likeness=0.2).model_dump())
    assert "covered" not in str(before.content())
    assert "min_face_size_px" not in str(before.content())
    both = one.model_copy(update={"covered": fitted})
    after = calibration(domain=Domain(shared=both, likeness=0.2).model_dump())
    assert after.calibration_id != before.calibration_id
    kept = calibration(domain=after.content()["domain"])
    assert kept.domain is not None
    assert kept.domain.shared.covered == fitted
    assert kept.comparator.covering is not None


@pytest.mark.parametrize("value", [1e30, float("nan"), float("-inf")])
def test_numbers_that_a_score_cannot_hold_are_refused(fitted: CoveredFaces, value: float) -> None:
    members = fitted.model_dump()
    for name in ("offset", "direction"):
        odd = value if name == "offset" else (value, *fitted.direction[1:])
        with pytest.raises(ValueError, match=name):
            CoveredFaces(**{**members, name: odd})


def test_both_directions_have_as_many_numbers(fitted: CoveredFaces) -> None:
    other = SharedDirection.fit({"a": np.eye(D + 1, dtype=np.float32)[:1]}, "x")
    with pytest.raises(ValueError, match="as many numbers"):
        SharedDirection(**{**other.model_dump(), "covered": fitted})
