"""What quality gates let pass, with every reason for what they don't."""

import pytest

from app.decision.gates import MILD_GATE, OPEN_GATE, QualityGate, check_quality, gate_failures
from app.errors import FaceTooSmall, LowQuality
from tests.decision.conftest import face


def codes(gate: QualityGate, size: float = 100, **quality: float) -> list[str]:
    return [found.code for found in gate_failures(face(size=size, **quality).quality, gate)]


def test_a_good_face_passes() -> None:
    check_quality(face(), MILD_GATE)


@pytest.mark.parametrize(
    ("measure", "passes", "fails", "code"),
    [
        ("sharpness", 8.0, 7.99, "blurred"),
        ("brightness", 0.05, 0.0499, "too_dark"),
        ("brightness", 0.95, 0.951, "too_bright"),
    ],
)
def test_the_mild_gate(measure: str, passes: float, fails: float, code: str) -> None:
    assert codes(MILD_GATE, **{measure: passes}) == []
    assert codes(MILD_GATE, **{measure: fails}) == [code]
    with pytest.raises(LowQuality, match="send a") as caught:
        check_quality(face(**{measure: fails}), MILD_GATE)
    assert caught.value.extra == {"reasons": [code]}


def test_size() -> None:
    check_quality(face(size=20.0), MILD_GATE)
    with pytest.raises(FaceTooSmall, match=r"shorter side has 18 pixels, 20 are needed"):
        check_quality(face(size=18.0), MILD_GATE)


def test_all_reasons_are_given_the_gravest_first() -> None:
    assert codes(MILD_GATE, size=10, sharpness=0, brightness=0.01) == [
        "face_too_small", "blurred", "too_dark",
    ]  # fmt: skip


def test_an_open_gate_lets_everything_pass() -> None:
    assert codes(OPEN_GATE, size=1, sharpness=0, brightness=0, yaw=89) == []
    assert codes(MILD_GATE, yaw=89, pitch=60, roll=90) == []  # pose is no ground to refuse


def test_a_gate_of_one_s_own_holds_only_what_it_names() -> None:
    strict = QualityGate(min_face_size_px=112, max_brightness=0.6)
    assert codes(strict, size=100, sharpness=0) == ["face_too_small"]
    assert codes(strict, size=120, brightness=0.61) == ["too_bright"]


def test_the_network_s_own_doubt() -> None:
    gate = QualityGate(min_embedding_norm=15)
    assert codes(gate, embedding_norm=15.0) == []
    assert codes(gate, embedding_norm=14.9) == ["unsure"]
    assert codes(MILD_GATE, embedding_norm=0.1) == []  # its scale is the pack's: no default


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_that_means_nothing_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="min_sharpness"):
        QualityGate(min_sharpness=limit)
