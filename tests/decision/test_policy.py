"""Which face counts, what quality gates let pass with every reason for what they don't, and where a
match begins."""

import numpy as np
import pytest

from app.decision.policy import (
    BYSTANDER_SIZE,
    MILD_GATE,
    OPEN_GATE,
    FaceSelection,
    QualityGate,
    check_quality,
    gate_failures,
    is_match,
    select_face,
    usable_face,
)
from app.errors import FaceTooSmall, LowQuality, NoFace, SeveralFaces
from app.faces.pipeline import FacePipeline
from app.types import AnalysedImage, Face, Image
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


def photo(*faces: Face) -> AnalysedImage:
    """1000 x 600 pixels; the largest face first, as the pipeline answers."""
    ordered = sorted(faces, key=lambda f: -f.quality.face_size_px)
    return AnalysedImage(1000, 600, tuple(ordered), {})


class TestSelection:
    @pytest.mark.parametrize("selection", FaceSelection)
    def test_nobody(self, selection: FaceSelection) -> None:
        with pytest.raises(NoFace) as caught:
            select_face(photo(), selection)
        assert caught.value.code == "no_face"

    @pytest.mark.parametrize("selection", FaceSelection)
    def test_one(self, selection: FaceSelection) -> None:
        only = face(900, 500)
        assert select_face(photo(only), selection) is only

    def test_several(self) -> None:
        corner, middle = face(100, 100, 150), face(510, 290, 120)
        image = photo(middle, corner)
        assert select_face(image, FaceSelection.LARGEST) is corner
        assert select_face(image, FaceSelection.CENTRE) is middle
        with pytest.raises(SeveralFaces, match="2 faces") as caught:
            select_face(image, FaceSelection.ONLY)
        assert caught.value.extra == {"faces_found": 2}

    def test_a_bystander_is_not_a_rival(self) -> None:
        person = face(500, 300, 100)
        smaller = face(100, 100, 100 * BYSTANDER_SIZE - 1)
        assert select_face(photo(person, smaller), FaceSelection.ONLY) is person
        rival = face(100, 100, 100 * BYSTANDER_SIZE)
        with pytest.raises(SeveralFaces, match="2 faces") as caught:
            select_face(photo(person, rival, smaller), FaceSelection.ONLY)
        assert caught.value.extra == {"faces_found": 3}

    def test_the_centre_is_the_photo_s(self) -> None:
        """Not the origin, and nearness in both directions."""
        faces = face(0, 0, 90), face(480, 80, 80), face(700, 310, 70)
        assert select_face(photo(*faces), FaceSelection.CENTRE) is faces[2]

    def test_on_a_real_photo_of_six(self, pipeline: FacePipeline, group_image: Image) -> None:
        image = pipeline.analyse_image(group_image, max_faces=20, embed=False)
        with pytest.raises(SeveralFaces, match="6 faces"):
            select_face(image, FaceSelection.ONLY)
        middle = select_face(image, FaceSelection.CENTRE).landmarks[2]
        assert np.linalg.norm(middle - [773, 428]) < 15 or np.linalg.norm(middle - [510, 360]) < 15


class TestUsableFace:
    def test_selection_and_gate_together(self) -> None:
        clear, blurred = face(500, 300, 80), face(200, 200, 100, sharpness=0)
        assert usable_face(photo(clear, blurred), FaceSelection.CENTRE, MILD_GATE) is clear
        with pytest.raises(LowQuality):
            usable_face(photo(clear, blurred), FaceSelection.LARGEST, MILD_GATE)
        with pytest.raises(NoFace):
            usable_face(photo(), FaceSelection.LARGEST, MILD_GATE)

    def test_real_portraits_pass(self, pipeline: FacePipeline, portraits: dict[str, Image]) -> None:
        for image in portraits.values():
            analysed = pipeline.analyse_image(image, max_faces=9, embed=False)
            assert usable_face(analysed, FaceSelection.ONLY, MILD_GATE) is analysed.faces[0]


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
