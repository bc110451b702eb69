"""Corrected landmarks: nearer to the face than the detector's, and the same for a face however it
lies in the photo."""

from pathlib import Path

import numpy as np
import pytest

from app.errors import PackError
from app.faces.detect import Detector
from app.faces.images import turned_detections, turned_image
from app.faces.landmarks import SCALE, SIDE, LandmarkRefiner
from app.inference.batching import BatchedModel
from app.inference.device_graph import device_graph, read_network
from app.inference.pack_spec import LandmarkSpec, ModelPack
from app.inference.session import OnnxModel
from app.settings import Device
from app.types import Detections, FloatArray, Image

SPEC = LandmarkSpec(file="landmarks.onnx", sha256="0" * 64)


@pytest.fixture(scope="module")
def file(pack: ModelPack) -> Path:
    return pack.folder / SPEC.file


@pytest.fixture(scope="module")
def refiner(file: Path) -> LandmarkRefiner:
    return LandmarkRefiner(OnnxModel(file, Device.CPU), SPEC)


def found_in(detector: Detector, image: Image) -> FloatArray:
    found = detector.detect(image)
    assert found.landmarks is not None
    return found.landmarks


def eye_distances(landmarks: FloatArray) -> FloatArray:
    return np.asarray(np.linalg.norm(landmarks[:, 1] - landmarks[:, 0], axis=1), np.float32)


def errors(landmarks: FloatArray, true: FloatArray) -> FloatArray:
    """The mean distance of each face's landmarks (n,), in distances between its eyes."""
    distances = np.linalg.norm(landmarks - true, axis=2).mean(axis=1)
    return np.asarray(distances / eye_distances(true), np.float32)


def test_displaced_landmarks_are_brought_back(
    refiner: LandmarkRefiner, detector: Detector, group_image: Image, portraits: dict[str, Image]
) -> None:
    generator = np.random.default_rng(3)
    for image in (group_image, *portraits.values()):
        settled = refiner.refine(image, found_in(detector, image))
        scale = eye_distances(settled)[:, np.newaxis, np.newaxis]
        noise = generator.normal(0, 0.1, settled.shape) * scale
        displaced = (settled + noise).astype(np.float32)
        corrected = refiner.refine(image, displaced)
        assert (errors(corrected, settled) < 0.8 * errors(displaced, settled)).all()


def test_faces_are_moved_a_little(
    refiner: LandmarkRefiner, detector: Detector, group_image: Image
) -> None:
    before = found_in(detector, group_image)
    moved = errors(refiner.refine(group_image, before), before)
    assert (moved > 0.001).all()
    assert (moved < 0.15).all()


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_face_that_lies_on_its_side(
    refiner: LandmarkRefiner, detector: Detector, group_image: Image, rotation: int
) -> None:
    before = found_in(detector, group_image)
    height, width = group_image.shape[:2]
    boxes, scores = np.zeros((len(before), 4), np.float32), np.ones(len(before), np.float32)

    def turned(landmarks: FloatArray) -> FloatArray:
        found = Detections(boxes, scores, landmarks)
        result = turned_detections(found, rotation, height, width).landmarks
        assert result is not None
        return result

    image = np.ascontiguousarray(turned_image(group_image, rotation))
    corrected = refiner.refine(image, turned(before))
    assert np.abs(corrected - turned(refiner.refine(group_image, before))).max() < 0.5


def test_a_mirrored_photo(refiner: LandmarkRefiner, detector: Detector, group_image: Image) -> None:
    """Both are looked at with their mirror images, so neither side is preferred."""
    before = found_in(detector, group_image)

    def mirrored(landmarks: FloatArray) -> FloatArray:
        other = landmarks[:, [1, 0, 2, 4, 3]].copy()
        other[..., 0] = group_image.shape[1] - 1 - other[..., 0]
        return other

    image = np.ascontiguousarray(group_image[:, ::-1])
    corrected = refiner.refine(image, mirrored(before))
    expected = mirrored(refiner.refine(group_image, before))
    # The template is not quite symmetric, and so are the two crops.
    assert errors(corrected, expected).max() < 0.02


def test_the_weight_of_the_network(
    file: Path, refiner: LandmarkRefiner, detector: Detector, group_image: Image
) -> None:
    before = found_in(detector, group_image)
    alone = LandmarkRefiner(OnnxModel(file, Device.CPU), SPEC.model_copy(update={"weight": 1.0}))
    middle = (before + alone.refine(group_image, before)) / 2
    np.testing.assert_allclose(refiner.refine(group_image, before), middle, atol=1e-3)


def test_a_face_alone_and_among_others(
    refiner: LandmarkRefiner, detector: Detector, group_image: Image
) -> None:
    before = found_in(detector, group_image)
    together = refiner.refine(group_image, before)
    for i in range(len(before)):
        alone = refiner.refine(group_image, before[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-3)


def test_batches_of_several_photos(
    file: Path, refiner: LandmarkRefiner, detector: Detector, group_image: Image
) -> None:
    before = found_in(detector, group_image)
    source = read_network(file)

    def open_one(count: int) -> OnnxModel:
        graph = device_graph(source, (count, SIDE, SIDE), SCALE, candidates=False)
        return OnnxModel(file, Device.CPU, content=graph.content)

    batched = BatchedModel(open_one, (SIDE, SIDE, 3), (1, 4, 8))
    try:
        found = LandmarkRefiner(batched, SPEC).refine(group_image, before)
        assert batched.batches[8] >= 2  # one to get warm, one for 6 faces and their mirror images
    finally:
        batched.close()
    np.testing.assert_allclose(found, refiner.refine(group_image, before), atol=1e-3)


@pytest.mark.parametrize(
    "landmarks",
    [np.full((5, 2), 7.0), np.full((5, 2), np.nan)],
    ids=["coincide", "no numbers"],
)
def test_what_cannot_be_cut_out_stays(
    refiner: LandmarkRefiner, group_image: Image, detector: Detector, landmarks: FloatArray
) -> None:
    usable = found_in(detector, group_image)[:1]
    strange = landmarks.astype(np.float32)[np.newaxis]
    corrected = refiner.refine(group_image, np.concatenate([strange, usable]))
    np.testing.assert_array_equal(corrected[:1], strange)
    np.testing.assert_allclose(corrected[1:], refiner.refine(group_image, usable), atol=1e-3)


def test_landmarks_beside_the_photo(refiner: LandmarkRefiner, group_image: Image) -> None:
    beside = np.float32([[[0, 0], [20, 0], [10, 10], [2, 20], [18, 20]]]) - 500
    assert np.isfinite(refiner.refine(group_image, beside)).all()


def test_no_face(refiner: LandmarkRefiner, group_image: Image) -> None:
    assert refiner.refine(group_image, np.empty((0, 5, 2), np.float32)).shape == (0, 5, 2)


def test_another_network_is_refused(pack: ModelPack) -> None:
    recogniser = OnnxModel(pack.recogniser_path, Device.CPU)
    with pytest.raises(PackError, match=r"recogniser.onnx does not take one 48 x 48 face"):
        LandmarkRefiner(recogniser, SPEC)
