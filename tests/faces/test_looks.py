"""A call that needs one face looks at a small copy of a photo first."""

from typing import Any

import cv2
import numpy as np
import pytest

from app.decision.face_selection import FaceSelection, selector_of
from app.errors import NoFace, SeveralFaces
from app.faces.detect import Detector, Letterbox
from app.faces.orientation import OrientationLimits
from app.faces.pipeline import FacePipeline, run_to_completion
from app.types import AnalysedImage, Detections, Image

LARGEST = FaceSelection.LARGEST


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The longer side of every canvas that the detector sees."""
    seen: list[int] = []
    run = Detector._run

    def recorded(detector: Detector, boxed: Letterbox, image: Image) -> Detections:
        seen.append(max(boxed.size))
        return run(detector, boxed, image)

    monkeypatch.setattr(Detector, "_run", recorded)
    return seen


def one_face(
    pipeline: FacePipeline, data: bytes, selection: FaceSelection = LARGEST
) -> AnalysedImage:
    steps = pipeline.steps(data, max_faces=20, selector=selector_of(selection))
    return run_to_completion(steps)


def scaled(image: Image, factor: float) -> Image:
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA))


def on_canvas(image: Image, side: int) -> Image:
    """The image in a corner of a grey square."""
    canvas = np.full((side, side, 3), 127, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def test_a_portrait_is_looked_at_small(
    pipeline: FacePipeline, astronaut: bytes, sizes: list[int]
) -> None:
    one_face(pipeline, astronaut)
    assert sizes == [320]


def test_all_faces_are_looked_for_in_full(
    pipeline: FacePipeline, astronaut: bytes, sizes: list[int]
) -> None:
    pipeline.analyse(astronaut, max_faces=20)
    assert sizes == [512]


def test_both_looks_find_the_same_face(pipeline: FacePipeline, astronaut: bytes) -> None:
    (small,) = one_face(pipeline, astronaut).faces
    whole = pipeline.analyse(astronaut, max_faces=20).faces[0]
    assert small.embedding is not None
    assert float(small.embedding @ whole.embedding) > 0.95
    assert np.abs(small.box - whole.box).max() < 0.1 * (whole.box[2] - whole.box[0])


def test_a_small_face_is_looked_at_in_full(
    pipeline: FacePipeline, astronaut_image: Image, encode: Any, sizes: list[int]
) -> None:
    photo = on_canvas(scaled(astronaut_image, 0.5), 640)
    (face,) = one_face(pipeline, encode(photo)).faces
    assert sizes == [320, 640]
    assert 0.5 * min(face.box[2:] - face.box[:2]) < 48


def test_a_photo_without_a_face_is_looked_at_in_full(
    pipeline: FacePipeline, encode: Any, sizes: list[int]
) -> None:
    with pytest.raises(NoFace):
        one_face(pipeline, encode(np.full((640, 640, 3), 127, np.uint8)))
    assert sizes[:2] == [320, 640]


def test_only_a_full_look_refuses_a_photo(
    pipeline: FacePipeline, astronaut_image: Image, encode: Any, sizes: list[int]
) -> None:
    two = np.concatenate([astronaut_image, astronaut_image], axis=1)
    with pytest.raises(SeveralFaces):
        one_face(pipeline, encode(two), FaceSelection.ONLY)
    assert sizes == [320, 640]


def test_a_small_face_in_the_middle_is_chosen_before_a_large_one_at_the_side(
    pipeline: FacePipeline, astronaut_image: Image, encode: Any, sizes: list[int]
) -> None:
    photo = np.full((640, 960, 3), 127, np.uint8)
    photo[:, :400] = scaled(astronaut_image, 2.0)[:640, 240:640]
    photo[275:365, 435:525] = scaled(astronaut_image[:300, 100:400], 0.3)
    (face,) = one_face(pipeline, encode(photo), FaceSelection.CENTRE).faces
    assert 400 < face.box[0] < face.box[2] < 560
    assert sizes == [640]


def test_a_small_photo_is_looked_at_once(
    pipeline: FacePipeline, astronaut_image: Image, encode: Any, sizes: list[int]
) -> None:
    one_face(pipeline, encode(scaled(astronaut_image, 0.5)))
    assert sizes == [320]


def test_a_turned_photo_is_looked_at_from_all_sides(
    pipeline: FacePipeline,
    astronaut_image: Image,
    encode: Any,
    sizes: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "orientation", OrientationLimits(0.75, 35))
    turned = one_face(pipeline, encode(np.ascontiguousarray(np.rot90(astronaut_image))))
    assert turned.faces[0].rotation == 90
    assert sizes[:5] == [320, 512, 512, 512, 512]
