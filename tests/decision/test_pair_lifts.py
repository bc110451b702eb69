"""How the threshold of a verification follows the two faces."""

import itertools

import numpy as np
import pytest

from app.decision.domain import Domain, SharedDirection
from app.decision.pair_lifts import GROUP_FMR, GROUP_PERSONS, PairLift, PairLifts
from app.decision.thresholds import ThresholdDecision, ThresholdSource
from app.index.comparator import COSINE
from app.types import FloatArray
from tests.decision.conftest import people
from tests.decision.test_calibration import calibration
from tests.decision.test_covered import COVER, D, covered

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
    assert pack.verification_of(people(50)).typical is None  # LIFT times a difference of about 1


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
