"""The same networks give what the insightface package gives, face by face.

A gallery of InsightFace embeddings, or InsightFace's model files, give the same answers here.
The reference classes read nothing from the network, and their files come from the evaluation's
models; without either the tests are skipped.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from app.faces.detect import Detector
from app.faces.embed import Recogniser
from app.faces.images import align_faces
from app.imaging import ImageLimits, decode_image
from app.inference.pack_spec import RecogniserSpec
from app.inference.session import OnnxModel
from app.settings import Device
from app.types import Detections, FloatArray, Image

# The package's own dependencies announce changes to come, when it is imported and when it runs.
pytestmark = pytest.mark.filterwarnings("ignore")

LANDMARK_PIXELS = 0.5
CROP_LEVELS = 1.0
COSINE = 0.9999


@dataclass(frozen=True, slots=True)
class Pair:
    """One detector in both implementations."""

    reference: Any
    ours: Detector


@pytest.fixture(scope="module")
def networks(eval_models: Path) -> Path:
    folder = eval_models / "insightface"
    if not folder.is_dir():
        pytest.skip(f"InsightFace's networks are absent: {folder}")
    return folder


@pytest.fixture(
    scope="module", params=["det_500m", pytest.param("det_2.5g", marks=pytest.mark.slow)]
)
def detectors(
    request: pytest.FixtureRequest,
    networks: Path,
    load_detector: Callable[..., Detector],
) -> Pair:
    module = pytest.importorskip("insightface.model_zoo.scrfd", reason="needs insightface")
    file = networks / f"{request.param}.onnx"
    reference = module.SCRFD(str(file), static_shape_sessions=False)
    reference.prepare(-1, input_size=(640, 640), det_thresh=0.5, nms_thresh=0.4)
    return Pair(reference, load_detector(file, "scrfd", layout="insightface"))


@pytest.fixture(scope="module")
def reference_recogniser(networks: Path) -> Any:
    module = pytest.importorskip("insightface.model_zoo.arcface_onnx", reason="needs insightface")
    recogniser = module.ArcFaceONNX(str(networks / "w600k_mbf.onnx"))
    recogniser.prepare(-1)
    return recogniser


@pytest.fixture(scope="module")
def recogniser(networks: Path) -> Recogniser:
    spec = RecogniserSpec(
        architecture="mobilefacenet",
        file="w600k_mbf.onnx",
        sha256="0" * 64,
        colour="rgb",
        mean=127.5,
        std=127.5,
        dimension=512,
    )
    return Recogniser(OnnxModel(networks / "w600k_mbf.onnx", Device.CPU), spec)


def norm_crop(image: Image, landmarks: FloatArray) -> Image:
    from insightface.utils import face_align

    return np.asarray(face_align.norm_crop(image, landmarks), np.uint8)


@pytest.fixture(scope="module")
def shipped(photos: Path, group_image: Image, astronaut_image: Image) -> list[tuple[str, Image]]:
    """Photos that need no evaluation data, and the group in shapes whose sides do not divide."""
    found = [
        (file.name, decode_image(file.read_bytes(), ImageLimits()))
        for file in sorted(photos.glob("*.jpg"))
    ]
    found += [("group", group_image), ("astronaut", astronaut_image)]
    for width in (777, 1001, 1201):
        size = (width, round(width * group_image.shape[0] / group_image.shape[1]))
        found.append((f"group at {width}", np.asarray(cv2.resize(group_image, size), np.uint8)))
    taller = cv2.copyMakeBorder(group_image, 0, 703, 0, 11, cv2.BORDER_CONSTANT)
    return [*found, ("group in a tall frame", np.asarray(taller, np.uint8))]


def evaluation_photos(folder: Path, step: int) -> Iterator[tuple[str, Image]]:
    """Every `step`-th WIDER photo and one LFW photo for each of them."""
    with (folder / "wider" / "faces.csv").open(newline="") as file:
        wider = sorted({row["image"] for row in csv.DictReader(file)})
    files = [folder / "wider" / "images" / name for name in wider[::step]]
    people = sorted((folder / "lfw" / "images").iterdir())
    files += [min(p.iterdir()) for p in people[:: max(1, len(people) // len(files))]]
    for file in files:
        yield file.name, decode_image(file.read_bytes(), ImageLimits())


def compare(name: str, image: Image, detectors: Pair, theirs: Any, ours: Recogniser) -> int:
    """Assert that both see the same faces and embed them alike; how many there were."""
    boxes, landmarks = detectors.reference.detect(image)
    found = detectors.ours.detect(image)
    if len(boxes) == 0:  # the reference has no second look at faces that fill the frame
        found = detectors.ours.look(image)
    assert len(found) == len(boxes), name
    if len(boxes) == 0:
        return 0
    order = match(found, landmarks)
    assert found.landmarks is not None
    height, width = image.shape[:2]
    inside = np.clip(boxes[:, :4], 0, [width, height, width, height])
    assert np.abs(found.boxes[order] - inside).max() < LANDMARK_PIXELS, name
    assert np.abs(found.landmarks[order] - landmarks).max() < LANDMARK_PIXELS, name
    assert np.abs(found.scores[order] - boxes[:, 4]).max() < 0.001, name
    crops = align_faces(image, found.landmarks[order])
    reference_crops = [norm_crop(image, points) for points in landmarks]
    levels = np.abs(crops.astype(int) - np.stack(reference_crops)).mean(axis=(1, 2, 3))
    assert levels.max() < CROP_LEVELS, name
    expected = np.concatenate([theirs.get_feat(crop) for crop in reference_crops])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert (ours.embed(crops)[0] * expected).sum(axis=1).min() >= COSINE, name
    return len(boxes)


def match(found: Detections, landmarks: FloatArray) -> Any:
    """For each face of the reference, the number of ours with the nearest landmarks."""
    assert found.landmarks is not None
    apart = np.abs(found.landmarks[np.newaxis] - landmarks[:, np.newaxis]).max(axis=(2, 3))
    order = apart.argmin(axis=1)
    assert len(set(order.tolist())) == len(order)
    return order


@pytest.mark.slow
def test_photos_that_come_with_the_tests(
    shipped: list[tuple[str, Image]],
    detectors: Pair,
    reference_recogniser: Any,
    recogniser: Recogniser,
) -> None:
    faces = {
        name: compare(name, image, detectors, reference_recogniser, recogniser)
        for name, image in shipped
    }
    assert faces == {name: 6 if name.startswith("group") else 1 for name, _ in shipped}


@pytest.mark.slow
@pytest.mark.parametrize("step", [33, 2])
def test_evaluation_photos(
    eval_data: Path,
    detectors: Pair,
    reference_recogniser: Any,
    recogniser: Recogniser,
    step: int,
) -> None:
    faces = [
        compare(name, image, detectors, reference_recogniser, recogniser)
        for name, image in evaluation_photos(eval_data, step)
    ]
    assert sum(faces) > len(faces)


def test_alignment_of_the_reference_s_landmarks(detectors: Pair, group_image: Image) -> None:
    """The same landmarks give the same crop, but for a rounded pixel here and there."""
    _, landmarks = detectors.reference.detect(group_image)
    ours = align_faces(group_image, landmarks).astype(int)
    theirs = np.stack([norm_crop(group_image, points) for points in landmarks])
    assert np.abs(ours - theirs).max() <= 2
    assert np.abs(ours - theirs).mean() < 0.01
