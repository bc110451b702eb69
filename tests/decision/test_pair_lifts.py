"""How the threshold of a verification follows the two faces, and what a calibration learns of faces
whose lower half is covered."""

import itertools

import numpy as np
import pytest

from app.decision.domain import Domain, SharedDirection, labelled_likeness
from app.decision.pair_lifts import (
    GROUP_FMR,
    GROUP_PERSONS,
    UNCOVERED_SHARE,
    CoveredFaces,
    PairLift,
    PairLifts,
)
from app.decision.thresholds import ThresholdDecision, ThresholdSource
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


LEAN = np.eye(D, dtype=np.float32)[0]


@pytest.fixture(scope="module")
def degraded() -> PairLift:
    plain = people(300).vectors
    found = PairLift.of_degraded(plain, covered(plain), "made up")
    assert found is not None
    return found


def two_groups(size: int, seed: int = 0) -> tuple[FloatArray, np.ndarray]:
    """One face each of two groups, of which the second one's are more alike."""
    generator = np.random.default_rng(seed)
    faces = generator.normal(0, 1, (2 * size, D))
    faces[size:] += 2.5 * COVER
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    return faces.astype(np.float32), np.repeat(["far", "near"], size)


def rate(faces: FloatArray, lifts: PairLifts, threshold: float) -> float:
    scores = lifts.lifted(COSINE_WITH_DIRECTION).scores(faces, faces)
    return float(np.mean(scores[np.triu_indices(len(faces), 1)] >= threshold))


SHARED = SharedDirection.fit({"a": LEAN[np.newaxis]}, "x").model_copy(update={"weight": 0.0})
COSINE_WITH_DIRECTION = SHARED.comparator


def test_two_degraded_faces_raise_the_threshold_and_one_does_not(degraded: PairLift) -> None:
    lifts = PairLifts(degraded=degraded)
    strangers = people(200, seed=2).vectors
    plain = strangers[degraded.part.of(strangers) == 0]
    bad = covered(plain)[:, 0]
    assert lifts.of(plain[0], plain[1]) == lifts.of(plain[0], bad[1]) == 0
    assert lifts.of(bad[0], bad[1]) == lifts.of(bad[1], bad[0])
    both = [lifts.of(*pair) for pair in itertools.pairwise(bad)]
    assert np.median(both) == pytest.approx(degraded.lift)
    assert max(both) <= degraded.lift + 1e-9


def test_a_lifted_threshold_decides_as_a_lowered_score_does(degraded: PairLift) -> None:
    lifts = PairLifts(degraded=degraded)
    faces = covered(people(40, seed=3).vectors)[:, 0]
    lowered = lifts.lifted(COSINE_WITH_DIRECTION).scores(faces, faces)
    scores = COSINE_WITH_DIRECTION.scores(faces, faces)
    raised = np.array([[lifts.of(one, other) for other in faces] for one in faces])
    np.testing.assert_allclose(lowered, scores - raised, atol=1e-5)


def test_faces_of_a_group_whose_people_are_alike_raise_it_until_the_group_keeps_its_rate() -> None:
    faces, groups = two_groups(400)
    scores = COSINE.scores(faces, faces)[np.triu_indices(len(faces), 1)]
    threshold = float(np.quantile(scores, 1 - GROUP_FMR))
    fitted = PairLift.of_typical(faces, groups, COSINE, threshold, "made up")
    assert fitted is not None
    assert fitted.groups == (400, 400)
    others, labels = two_groups(400, seed=1)
    near = others[labels == "near"]
    assert rate(near, PairLifts(), threshold) > 1.4 * GROUP_FMR
    assert rate(near, PairLifts(typical=fitted), threshold) < 1.4 * GROUP_FMR


@pytest.mark.parametrize("size", [GROUP_PERSONS - 1, 0])
def test_nothing_is_learned_of_groups_that_are_small_or_alike(size: int) -> None:
    faces, groups = two_groups(size or 300)
    if not size:
        groups = np.tile(["a", "b"], 300)
    threshold = 0.99
    assert PairLift.of_typical(faces, groups, COSINE, threshold, "x") is None


def test_a_calibration_on_alike_people_has_the_rest_of_the_lift(degraded: PairLift) -> None:
    lifts = PairLifts(degraded=degraded, typical=degraded)
    bad = covered(people(2, seed=2).vectors)[:, 0]
    before = lifts.of(bad[0], bad[1])
    rest = lifts.less_typical(0.01)
    assert rest.typical is not None
    assert rest.typical.lift == pytest.approx(degraded.lift - 0.01)
    assert rest.of(bad[0], bad[1]) < before
    assert lifts.less_typical(1.0) == PairLifts(degraded=degraded)
    assert lifts.less_typical(-1.0) is lifts
    pack = Domain(shared=SHARED, likeness=-1, verification=lifts)
    assert (
        pack.verification_of(labelled_likeness(people(50))).typical is None
    )  # LIFT times a difference of about 1


def test_a_threshold_for_a_target_is_raised_and_a_fixed_one_is_not(degraded: PairLift) -> None:
    lifts = PairLifts(degraded=degraded)
    domain = Domain(shared=SHARED, likeness=0.3, verification=lifts)
    known = calibration().model_copy(update={"domain": domain})
    bad = covered(people(30, seed=2).vectors)[:, 0]
    for target, raised in ((1e-4, True), (None, False)):
        rule = ThresholdDecision(0.5, ThresholdSource.REQUEST, target, known)
        found = rule.for_pair(bad[3], bad[4])
        assert found.shift == lifts.of(bad[3], bad[4]) > 0
        assert found.threshold == pytest.approx(0.5 + (found.shift if raised else 0))
        assert found.lift == (found.shift if raised else 0)
        # A similarity at the threshold is worth what one at 0.5 is between other faces.
        assert found.unshifted(0.5 + found.shift) == pytest.approx(0.5)
    bare = ThresholdDecision(0.5, ThresholdSource.REQUEST, 1e-4, calibration())
    assert bare.for_pair(bad[3], bad[4]) is bare


def test_a_calibration_without_lifts_keeps_its_id(degraded: PairLift) -> None:
    domain = Domain(shared=SHARED, likeness=0.3)
    known = calibration().model_copy(update={"domain": domain})
    assert "verification" not in known.content()["domain"]  # type: ignore[operator]
    lifted = domain.model_copy(update={"verification": PairLifts(degraded=degraded)})
    with_lifts = calibration().model_copy(update={"domain": lifted})
    again = type(with_lifts).model_validate(with_lifts.content())
    assert again.domain == lifted


def test_directions_of_another_length_are_refused(degraded: PairLift) -> None:
    short = SharedDirection.fit({"a": np.eye(4, dtype=np.float32)[:1]}, "x")
    with pytest.raises(ValueError, match="as many numbers"):
        Domain(shared=short, likeness=0.3, verification=PairLifts(degraded=degraded))
