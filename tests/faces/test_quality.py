"""Quality: angles of heads whose pose is known, and photos made worse on purpose."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from app.errors import PackError
from app.faces.detect import Detector
from app.faces.images import align_faces
from app.faces.loading import build_pipeline
from app.faces.quality import (
    NetworkScores,
    QualityNetwork,
    assess_faces,
    brightness,
    greyscale,
    pose_angles,
    sharpness,
)
from app.imaging import ImageLimits
from app.inference.pack_spec import ModelPack, QualitySpec
from app.inference.packs import digest
from app.inference.session import OnnxModel
from app.settings import Device
from app.types import Detections, FloatArray, Image

# A head of its own, not the module's: x right, y down, z towards the camera, in millimetres.
HEAD = np.array(
    [[-32, -30, 2], [32, -30, 2], [0, 12, 34], [-26, 42, 5], [26, 42, 5]], dtype=np.float64
)


def seen(yaw: float = 0, pitch: float = 0, roll: float = 0) -> FloatArray:
    """Landmarks (1, 5, 2) of the head turned by degrees: nose right, nose down, clockwise."""
    y, p, r = np.radians([yaw, pitch, roll])
    turn = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    nod = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    lean = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    points = HEAD @ (lean @ nod @ turn).T
    return (points[np.newaxis, :, :2] * 1.7 + [300, 200]).astype(np.float32)


def angles(landmarks: FloatArray) -> NDArray[np.float64]:
    return pose_angles(landmarks)[0]


def test_a_frontal_head() -> None:
    yaw, pitch, roll = angles(seen())
    assert abs(yaw) < 1
    assert abs(pitch) < 15  # depends on the proportions of the head
    assert abs(roll) < 1


@pytest.mark.parametrize("yaw", [-60, -40, -20, 20, 40, 60])
def test_yaw(yaw: float) -> None:
    found = angles(seen(yaw=yaw))
    assert found[0] == pytest.approx(yaw, abs=12)
    assert abs(found[1] - angles(seen())[1]) < 12


@pytest.mark.parametrize("pitch", [-30, -15, 15, 30])
def test_pitch(pitch: float) -> None:
    found = angles(seen(pitch=pitch))
    assert found[1] - angles(seen())[1] == pytest.approx(pitch, abs=12)
    assert abs(found[0]) < 2


@pytest.mark.parametrize("roll", [-80, -30, -10, 10, 30, 80])
def test_roll(roll: float) -> None:
    assert angles(seen(roll=roll))[2] == pytest.approx(roll, abs=1)


@pytest.mark.parametrize(("yaw", "pitch"), [(35, 0), (20, 15), (-30, -10)])
def test_a_mirror_turns_yaw_and_roll_and_keeps_pitch(yaw: float, pitch: float) -> None:
    landmarks = seen(yaw=yaw, pitch=pitch, roll=8)
    mirrored = (landmarks * [-1, 1])[:, [1, 0, 2, 4, 3]].astype(np.float32)
    here, there = angles(landmarks), angles(mirrored)
    assert np.allclose(here * [-1, 1, -1], there, atol=0.01)


def test_size_and_place_do_not_matter() -> None:
    landmarks = seen(yaw=25, pitch=10)
    assert np.allclose(angles(landmarks), angles(landmarks * 9 - 4000), atol=0.5)


def test_coinciding_landmarks_are_finite() -> None:
    assert np.isfinite(pose_angles(np.zeros((2, 5, 2), np.float32))).all()


def test_a_photo_and_its_mirror(detector: Detector, portraits: dict[str, Image]) -> None:
    for image in portraits.values():
        here, there = detector.detect(image), detector.detect(np.ascontiguousarray(image[:, ::-1]))
        assert here.landmarks is not None
        assert there.landmarks is not None
        yaw, pitch, _ = angles(here.landmarks)
        mirrored = angles(there.landmarks)
        assert mirrored[0] == pytest.approx(-yaw, abs=6)
        assert mirrored[1] == pytest.approx(pitch, abs=6)


@pytest.fixture(scope="module")
def crop(detector: Detector, portraits: dict[str, Image]) -> Image:
    found = detector.detect(portraits["obama"])
    assert found.landmarks is not None
    return np.asarray(align_faces(portraits["obama"], found.landmarks)[0])


def test_blur_lowers_sharpness(crop: Image, blur: Callable[[Image, float], Image]) -> None:
    measured = [sharpness(greyscale(blur(crop, sigma))) for sigma in (0.3, 1, 2, 4)]
    assert measured == sorted(measured, reverse=True)
    assert measured[-1] < 20 < sharpness(greyscale(crop))
    assert sharpness(np.full((112, 112), 90, np.uint8)) == 0


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    # The largest values that it can have: each pixel differs from its neighbours by 255.
    board = (np.indices((112, 112)).sum(axis=0) % 2 * 255).astype(np.uint8)
    for grey in (board, np.random.default_rng(5).integers(0, 256, (112, 112), np.uint8)):
        expected = cv2.Laplacian(grey, cv2.CV_64F).var()
        assert sharpness(grey) == pytest.approx(expected, rel=1e-12)


def test_brightness(crop: Image) -> None:
    darker = cv2.convertScaleAbs(crop, alpha=0.4)
    grey = greyscale(crop)
    assert 0 < brightness(greyscale(np.asarray(darker, np.uint8))) < brightness(grey) < 1
    assert brightness(np.zeros_like(grey)) == 0
    assert brightness(np.full_like(grey, 255)) == 1


def test_brightness_looks_at_the_middle(crop: Image) -> None:
    framed = greyscale(crop)
    whole = brightness(framed)
    framed[:20], framed[-20:] = 255, 255
    assert brightness(framed) == whole


def test_assessment_belongs_to_its_face(crop: Image) -> None:
    boxes = np.array([[10, 10, 60, 90], [0, 0, 30, 20]], np.float32)
    scores = np.array([0.9, 0.6], np.float32)
    found = Detections(boxes, scores, np.concatenate([seen(yaw=40), seen(yaw=-40)]))
    crops = np.stack([crop, np.zeros_like(crop)])
    first, second = assess_faces(
        found, crops, NetworkScores(norms=np.array([21.0, 3.0], np.float32))
    )
    assert (first.face_size_px, second.face_size_px) == (50, 20)
    assert first.yaw > 20 > -20 > second.yaw
    assert (first.embedding_norm, second.embedding_norm) == (21, 3)
    assert first.detector_score == pytest.approx(0.9)
    assert second.brightness == 0 < first.brightness
    assert assess_faces(found, crops, NetworkScores())[0].embedding_norm is None


def test_nobody_is_assessed_where_nobody_is() -> None:
    empty = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), None)
    assert assess_faces(empty, np.empty((0, 112, 112, 3), np.uint8), NetworkScores()) == []


SPEC = QualitySpec(file="q.onnx", sha256="0" * 64, colour="rgb", mean=127.5, std=127.5)


@pytest.fixture
def brightness_network(tmp_path: Path) -> Path:
    """The mean of what goes in: a stand-in whose answer is known."""
    entry = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 112, 112])
    answer = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1, 1, 1])
    node = helper.make_node("GlobalAveragePool", ["colours"], ["score"])
    mean = helper.make_node("ReduceMean", ["input"], ["colours"], axes=[1], keepdims=1)
    graph = helper.make_graph([mean, node], "brightness", [entry], [answer])
    path = tmp_path / "q.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def test_a_score_a_face(brightness_network: Path) -> None:
    network = QualityNetwork(OnnxModel(brightness_network, Device.CPU), SPEC, 112)
    crops = np.stack([np.full((112, 112, 3), value, np.uint8) for value in (0, 255)])
    np.testing.assert_allclose(network.scores(crops), [-1, 1], atol=1e-6)
    assert network.scores(crops[:0]).shape == (0,)


def test_it_sees_the_recogniser_s_crops(brightness_network: Path) -> None:
    with pytest.raises(PackError, match="faces of 112 pixels, the recogniser 160"):
        QualityNetwork(OnnxModel(brightness_network, Device.CPU), SPEC, 160)


def test_one_number_and_no_more(pack: ModelPack) -> None:
    with pytest.raises(PackError, match="answers 192 numbers per face, not one"):
        QualityNetwork(OnnxModel(pack.recogniser_path, Device.CPU), SPEC, 112)


def test_faces_of_a_pack_with_one_carry_its_score(
    pack: ModelPack, brightness_network: Path, photos: Path
) -> None:
    spec = SPEC.model_copy(
        update={"file": str(brightness_network), "sha256": digest(brightness_network)}
    )
    pipeline = build_pipeline(pack.model_copy(update={"quality": spec}), Device.CPU, ImageLimits())
    face = pipeline.analyse((photos / "obama.jpg").read_bytes(), max_faces=1).faces[0]
    assert face.quality.quality_score is not None
    assert -1 < face.quality.quality_score < 1
