"""Policies: which face counts, which may be enrolled, and where a match begins."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from app.decision.policy import (
    BYSTANDER_SIZE,
    EnrolmentGate,
    FaceSelection,
    Status,
    check_enrolable,
    is_match,
    select_face,
    usable_face,
    verdict,
)
from app.errors import FaceTooSmall, LowQuality, NoFace, SeveralFaces
from app.faces.pipeline import FacePipeline
from app.gallery.gallery import Candidate
from app.gallery.ports import FaceRecord
from app.types import AnalysedImage, Face, Image, Quality

GOOD = Quality(
    face_size_px=100,
    yaw=0,
    pitch=0,
    roll=0,
    sharpness=300,
    brightness=0.5,
    detector_score=0.9,
    embedding_norm=20,
)


def face(x: float, y: float, size: float = 100, **quality: Any) -> Face:
    """A square face around a point."""
    box = np.array([x - size / 2, y - size / 2, x + size / 2, y + size / 2], np.float32)
    return Face(
        box=box,
        landmarks=np.full((5, 2), [x, y], np.float32),
        score=0.9,
        quality=replace(GOOD, face_size_px=size, **quality),
    )


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


class TestGate:
    def test_a_good_face_passes(self) -> None:
        check_enrolable(face(500, 300), EnrolmentGate())

    @pytest.mark.parametrize(
        ("measure", "passes", "fails", "words"),
        [
            ("sharpness", 5.0, 4.99, "blurred"),
            ("brightness", 0.05, 0.0499, "too dark"),
            ("brightness", 0.97, 0.971, "too bright"),
            ("yaw", 75.0, 75.1, "turned away"),
            ("yaw", -75.0, -75.1, "turned away"),
        ],
    )
    def test_quality(self, measure: str, passes: float, fails: float, words: str) -> None:
        check_enrolable(face(500, 300, **{measure: passes}), EnrolmentGate())
        with pytest.raises(LowQuality, match=f"{words}; send a clearer photo") as caught:
            check_enrolable(face(500, 300, **{measure: fails}), EnrolmentGate())
        assert caught.value.code == "low_quality"

    def test_size(self) -> None:
        check_enrolable(face(500, 300, 32.0), EnrolmentGate())
        with pytest.raises(FaceTooSmall, match=r"20 pixels wide.*at least 32") as caught:
            check_enrolable(face(500, 300, 20.0), EnrolmentGate())
        assert caught.value.code == "face_too_small"

    def test_size_speaks_before_blur(self) -> None:
        with pytest.raises(FaceTooSmall):
            check_enrolable(face(500, 300, 10, sharpness=0), EnrolmentGate())

    def test_a_gate_of_one_s_own(self) -> None:
        strict = EnrolmentGate(min_face_size_px=112, max_yaw=20)
        with pytest.raises(FaceTooSmall):
            check_enrolable(face(500, 300), strict)
        with pytest.raises(LowQuality):
            check_enrolable(face(500, 300, 120, yaw=21), strict)

    def test_selection_and_gate_together(self) -> None:
        clear, blurred = face(500, 300, 80), face(200, 200, 100, sharpness=0)
        gate = EnrolmentGate()
        assert usable_face(photo(clear, blurred), FaceSelection.CENTRE, gate) is clear
        with pytest.raises(LowQuality):
            usable_face(photo(clear, blurred), FaceSelection.LARGEST, gate)
        with pytest.raises(NoFace):
            usable_face(photo(), FaceSelection.LARGEST, gate)

    def test_real_portraits_pass(self, pipeline: FacePipeline, portraits: dict[str, Image]) -> None:
        for image in portraits.values():
            analysed = pipeline.analyse_image(image, max_faces=9, embed=False)
            face = usable_face(analysed, FaceSelection.ONLY, EnrolmentGate())
            assert face is analysed.faces[0]


def candidate(similarity: float) -> Candidate:
    record = FaceRecord(1, "face", "person", {}, datetime(2024, 1, 1, tzinfo=UTC))
    return Candidate(record, similarity, None)


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

    def test_verdict(self) -> None:
        assert verdict([candidate(0.4), candidate(0.1)], 0.4) is Status.IDENTIFIED
        assert verdict([candidate(0.39)], 0.4) is Status.UNKNOWN
        assert verdict([], -1.0) is Status.UNKNOWN
