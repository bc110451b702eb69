"""YuNet against OpenCV's own decoder of it, on real photos."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from app.faces.detect import Detector
from app.inference.pack_spec import DetectorSpec
from app.inference.session import OnnxModel
from app.settings import Device

SCORE, IOU = 0.75, 0.3
LONG_SIDE, STRIDE = 640, 32


@pytest.fixture(scope="module")
def network(eval_models: Path) -> Path:
    return eval_models / "yunet" / "yunet_n_dynamic.onnx"


@pytest.fixture(scope="module")
def detector(network: Path) -> Detector:
    spec = DetectorSpec(
        architecture="yunet",
        file=network.name,
        sha256="0" * 64,
        score_threshold=SCORE,
        iou_threshold=IOU,
    )
    return Detector(OnnxModel(network, Device.CPU), spec)


@pytest.mark.parametrize("photo", ["obama.jpg", "collins.jpg"])
def test_the_same_faces_as_opencv(
    network: Path, detector: Detector, photos: Path, photo: str
) -> None:
    image = np.asarray(cv2.imread(str(photos / photo)), np.uint8)
    scale = LONG_SIDE / max(image.shape)
    height, width = (round(side * scale / STRIDE) * STRIDE for side in image.shape[:2])
    image = np.asarray(cv2.resize(image, (width, height)), np.uint8)  # neither scales it again
    _, expected = cv2.FaceDetectorYN.create(str(network), "", (width, height), SCORE, IOU).detect(
        image
    )
    found = detector.look(image)
    assert found.landmarks is not None
    assert len(found) == len(expected) > 0
    corners = np.concatenate([expected[:, :2], expected[:, :2] + expected[:, 2:4]], axis=1)
    np.testing.assert_allclose(found.boxes, corners, atol=1e-3)
    np.testing.assert_allclose(found.landmarks.reshape(-1, 10), expected[:, 4:14], atol=1e-3)
    np.testing.assert_allclose(found.scores, expected[:, 14], atol=1e-5)
