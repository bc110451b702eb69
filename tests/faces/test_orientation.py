"""Photos that lie on their side or on their head, and whose file does not say so."""

from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from app.faces.detect import Detector
from app.faces.embed import Recogniser
from app.faces.images import inverse, turned_detections, turned_image
from app.faces.loading import build_pipeline
from app.faces.orientation import OrientationLimits, OrientationSearch
from app.faces.pipeline import FacePipeline, run_to_completion
from app.imaging import ImageLimits
from app.inference.pack_spec import ModelPack
from app.inference.session import OnnxModel
from app.settings import Device
from app.telemetry.metrics import StageClock
from app.types import AnalysedImage, Detections, Face, Image

LIMITS = OrientationLimits(score_below=0.75, roll_above=30.0)
TURNS = (90, 180, 270)


@pytest.fixture(scope="module")
def turning(pack: ModelPack) -> FacePipeline:
    """A pipeline that looks for the turn."""
    return build_pipeline(pack, Device.CPU, ImageLimits(), orientation=LIMITS)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Every run of the detector from now on: its turn, and whether the photo was framed."""
    runs: list[tuple[int, bool]] = []
    look = Detector.look

    def record(
        detector: Detector, image: Image, rotation: int = 0, *, framed: bool = False
    ) -> Detections:
        runs.append((rotation, framed))
        return look(detector, image, rotation, framed=framed)

    monkeypatch.setattr(Detector, "look", record)
    return runs


def small(image: Image) -> Image:
    """About 400 pixels high."""
    step = max(1, round(image.shape[0] / 400))
    return np.ascontiguousarray(image[::step, ::step])


def turn(image: Image, rotation: int) -> Image:
    return np.ascontiguousarray(turned_image(image, rotation))


def only(image: AnalysedImage) -> Face:
    (face,) = image.faces
    return face


@pytest.fixture(scope="module")
def upright_faces(turning: FacePipeline, portraits: dict[str, Image]) -> dict[str, Face]:
    """Those of the portraits as they are."""
    return {
        name: only(turning.analyse_image(small(portrait), max_faces=1))
        for name, portrait in portraits.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("turned_by", TURNS)
def test_a_turned_portrait_gives_the_same_face(
    turning: FacePipeline,
    portraits: dict[str, Image],
    upright_faces: dict[str, Face],
    turned_by: int,
) -> None:
    for name, portrait in portraits.items():
        image, upright = small(portrait), upright_faces[name]
        face = only(turning.analyse_image(turn(image, turned_by), max_faces=1))
        assert (face.rotation, upright.rotation) == (inverse(turned_by), 0), name
        assert face.embedding is not None
        assert upright.embedding is not None
        assert face.embedding @ upright.embedding > 0.99, name
        assert face.quality.roll == pytest.approx(upright.quality.roll, abs=2)
        assert face.quality.yaw == pytest.approx(upright.quality.yaw, abs=3)
        # Where the face is in the photo as it was sent.
        there = turned_detections(as_detections(upright), turned_by, *image.shape[:2])
        assert np.abs(face.box - there.boxes[0]).max() < 3
        assert there.landmarks is not None
        assert np.abs(face.landmarks - there.landmarks[0]).max() < 3


def as_detections(face: Face) -> Detections:
    return Detections(
        face.box[np.newaxis], np.array([face.score], np.float32), face.landmarks[np.newaxis]
    )


def test_kept_crops_are_upright(
    turning: FacePipeline, portraits: dict[str, Image], encode: Any
) -> None:
    image = small(portraits["obama"])
    crops = [
        only(run_to_completion(turning.steps(encode(one, "PNG"), max_faces=1, crops=True))).crop
        for one in (image, turn(image, 90))
    ]
    assert crops[0] is not None
    assert crops[1] is not None
    assert np.abs(crops[0].astype(int) - crops[1]).mean() < 2


def test_an_upright_photo_is_looked_at_once(
    turning: FacePipeline, portraits: dict[str, Image], looks: list[tuple[int, bool]]
) -> None:
    for image in portraits.values():
        turning.analyse_image(small(image), max_faces=3, embed=False)
    assert looks == [(0, False)] * len(portraits)


def test_without_limits_nothing_is_turned(
    pipeline: FacePipeline, portraits: dict[str, Image], looks: list[tuple[int, bool]]
) -> None:
    image = pipeline.analyse_image(turn(small(portraits["biden"]), 180), max_faces=3)
    assert {rotation for rotation, _ in looks} == {0}
    assert {face.rotation for face in image.faces} <= {0}


def test_where_nobody_is_the_work_is_bounded(
    turning: FacePipeline, looks: list[tuple[int, bool]], encode: Any
) -> None:
    """Eight runs of the detector, each a step after which others have their turn."""
    steps = turning.steps(encode(np.full((90, 160, 3), 80, np.uint8), "PNG"), max_faces=3)
    assert len(list(steps)) == 6
    assert sorted(looks) == [(turned, framed) for turned in (0, *TURNS) for framed in (False, True)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (900, 2), (8, 8)])
def test_tiny_and_narrow_photos(turning: FacePipeline, shape: tuple[int, int]) -> None:
    image = turning.analyse_image(np.zeros((*shape, 3), np.uint8), max_faces=3)
    assert (image.height, image.width, image.faces) == (*shape, ())


def test_a_turned_face_that_fills_the_photo(
    turning: FacePipeline, portraits: dict[str, Image], looks: list[tuple[int, bool]]
) -> None:
    """Whichever way up, it is found only within a frame."""
    image = portraits["biden"]
    box = only(turning.analyse_image(image, max_faces=1)).box
    inset = 0.2 * (box[2:] - box[:2])
    x1, y1, x2, y2 = (box + np.concatenate([inset, -inset])).astype(int)
    looks.clear()
    for turned_by in TURNS:
        face = only(turning.analyse_image(turn(image[y1:y2, x1:x2], turned_by), max_faces=1))
        assert face.rotation == inverse(turned_by)
    assert any(framed for rotation, framed in looks if rotation)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_an_orientation_tag_that_is_wrong(
    turning: FacePipeline, portraits: dict[str, Image], encode: Any, orientation: int
) -> None:
    """The pixels were upright already; coordinates are those after the tag was obeyed."""
    upright = small(portraits["biden"])
    tags = PillowImage.Exif()
    tags[0x0112] = orientation
    image = turning.analyse(encode(upright, "PNG", exif=tags.tobytes()), max_faces=1)
    assert only(image).rotation == {3: 180, 6: 270, 8: 90}[orientation]
    assert (image.width, image.height) == (
        upright.shape[:2] if orientation != 3 else upright.shape[1::-1]
    )
    reference = only(turning.analyse_image(upright, max_faces=1)).embedding
    found = only(image).embedding
    assert found is not None
    assert reference is not None
    assert found @ reference > 0.99


@pytest.mark.parametrize("turned_by", TURNS)
def test_a_reduced_copy_of_a_turned_photo(
    turning: FacePipeline, astronaut_image: Image, encode: Any, turned_by: int
) -> None:
    """Sides that the reduction does not divide; boxes end at the photo's edge."""
    large = np.asarray(cv2.resize(astronaut_image, (2_003, 1_777)), np.uint8)
    upright = only(turning.analyse(encode(large, quality=95), max_faces=1))
    image = turning.analyse(encode(turn(large, turned_by), quality=95), max_faces=1)
    face = only(image)
    assert face.rotation == inverse(turned_by)
    there = turned_detections(as_detections(upright), turned_by, *large.shape[:2])
    assert np.abs(face.box - there.boxes[0]).max() < 12  # of 530
    assert there.landmarks is not None
    assert np.abs(face.landmarks - there.landmarks[0]).max() < 12
    assert face.embedding is not None
    assert upright.embedding is not None
    assert face.embedding @ upright.embedding > 0.98
    assert (face.box <= [image.width, image.height] * 2).all()


class TestGroups:
    """All faces of a photo share one turn."""

    @pytest.fixture
    def group(self, portraits: dict[str, Image]) -> Image:
        """Four people side by side."""
        tiles = [cv2.resize(small(one), (300, 375)) for one in portraits.values()]
        return np.asarray(np.concatenate(tiles, axis=1), np.uint8)

    def test_a_turned_group(self, turning: FacePipeline, group: Image) -> None:
        for turned_by in TURNS:
            faces = turning.analyse_image(turn(group, turned_by), max_faces=9).faces
            assert [face.rotation for face in faces] == [inverse(turned_by)] * 4

    @pytest.mark.parametrize("angle", [50, 90, 180])
    def test_one_head_that_lies_does_not_turn_the_others(
        self, pack: ModelPack, group: Image, angle: int
    ) -> None:
        """Even when it is the first look's best face and the search is made."""
        middle = (150.0, 187.0)
        tile = cv2.warpAffine(
            group[:, :300], cv2.getRotationMatrix2D(middle, angle, 1.0), (300, 375)
        )
        photo = np.asarray(np.concatenate([tile, group[:, 300:]], axis=1), np.uint8)
        detector = Detector(OnnxModel(pack.detector_path, Device.CPU), pack.detector)
        recogniser = Recogniser(OnnxModel(pack.recogniser_path, Device.CPU), pack.recogniser)
        search = OrientationSearch(detector, recogniser)
        first = detector.detect(photo)
        look = run_to_completion(search.search(photo, first, LIMITS, StageClock()))
        assert look.rotation == 0


def test_limits() -> None:
    upright = np.array([[[40, 50], [70, 50], [55, 68], [42, 85], [68, 85]]], np.float32)
    box = np.array([[30, 30, 80, 100]], np.float32)

    def found(score: float, landmarks: Any) -> Detections:
        return Detections(box, np.array([score], np.float32), landmarks)

    leaning = np.ascontiguousarray(upright[..., ::-1])  # the head lies on its side
    assert not LIMITS.doubt(found(0.8, upright))
    assert LIMITS.doubt(found(0.7, upright))
    assert LIMITS.doubt(found(0.9, leaning))
    assert LIMITS.doubt(found(0.9, upright).take(np.empty(0, np.intp)))
    assert LIMITS.sure(found(0.9, leaning))
    assert not LIMITS.sure(found(0.7, upright))
