"""Which face of a photo counts."""

import numpy as np
import pytest

from app.decision.face_selection import BYSTANDER_SIZE, FaceSelection, select_face, usable_face
from app.decision.gates import MILD_GATE
from app.errors import LowQuality, NoFace, SeveralFaces
from app.faces.pipeline import FacePipeline
from app.types import AnalysedImage, Face, Image
from tests.decision.conftest import face


def photo(*faces: Face) -> AnalysedImage:
    """1000 x 600 pixels; the largest face first, as the pipeline answers."""
    ordered = sorted(faces, key=lambda f: -f.quality.face_size_px)
    return AnalysedImage(1000, 600, tuple(ordered), {}, len(ordered))


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
