"""Detectors of every architecture, and the measure of how well two boxes agree."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from app.faces.detect import Detector
from app.inference.pack_spec import DetectorSpec
from app.inference.session import OnnxModel
from app.settings import Device
from app.types import Detections, FloatArray, Image
from tests.remembered import networks_run_each_time  # noqa: F401 (pytest finds fixtures by name)

LoadDetector = Callable[..., Detector]


@pytest.fixture(scope="session")
def load_detector() -> LoadDetector:
    """Load a network that belongs to no pack, by file and architecture."""

    def load(path: Path, architecture: str, **options: str) -> Detector:
        spec = DetectorSpec.model_validate(
            {"architecture": architecture, "file": path.name, "sha256": "0" * 64, **options}
        )
        return Detector(OnnxModel(path, Device.CPU), spec)

    return load


@pytest.fixture(scope="session")
def scrfd_file(eval_models: Path) -> Path:
    return eval_models / "insightface" / "det_500m.onnx"


@pytest.fixture(scope="session")
def scrfd(scrfd_file: Path, load_detector: LoadDetector) -> Detector:
    return load_detector(scrfd_file, "scrfd")


@pytest.fixture(scope="session")
def scrfd_on_group(scrfd: Detector, group_image: Image) -> Detections:
    """What it finds in the photo of a group."""
    return scrfd.detect(group_image)


@pytest.fixture(scope="session", params=["centerface", "yunet", "scrfd-500m", "scrfd-2.5g"])
def any_detector(
    request: pytest.FixtureRequest, detector: Detector, load_detector: LoadDetector
) -> Detector:
    """Each architecture in turn; only the default pack's needs no evaluation models."""
    if request.param == "centerface":
        return detector
    models: Path = request.getfixturevalue("eval_models")
    return {
        "yunet": lambda: load_detector(models / "yunet" / "yunet_n_dynamic.onnx", "yunet"),
        "scrfd-500m": lambda: load_detector(models / "insightface" / "det_500m.onnx", "scrfd"),
        "scrfd-2.5g": lambda: load_detector(models / "insightface" / "det_2.5g.onnx", "scrfd"),
    }[request.param]()


@pytest.fixture(scope="session")
def faces_of_portraits(detector: Detector, portraits: dict[str, Image]) -> dict[str, Detections]:
    """What the default pack's detector finds in each portrait."""
    return {name: detector.detect(image) for name, image in portraits.items()}


@pytest.fixture(scope="session")
def faces_of_group(detector: Detector, group_image: Image) -> Detections:
    """What the default pack's detector finds in the photo of a group."""
    return detector.detect(group_image)


Overlap = Callable[[FloatArray, FloatArray], NDArray[np.float64]]


@pytest.fixture(scope="session")
def overlap() -> Overlap:
    """Intersection over union of (n, 4) with (m, 4) boxes: (n, m)."""

    def area(boxes: FloatArray) -> NDArray[np.float64]:
        return np.prod((boxes[..., 2:] - boxes[..., :2]).clip(0), axis=-1, dtype=np.float64)

    def measure(a: FloatArray, b: FloatArray) -> NDArray[np.float64]:
        left, right = a[:, np.newaxis], b[np.newaxis]
        corners = [
            np.maximum(left[..., :2], right[..., :2]),
            np.minimum(left[..., 2:], right[..., 2:]),
        ]
        common = area(np.concatenate(corners, axis=-1))
        return common / (area(left) + area(right) - common)

    return measure


@pytest.fixture(scope="module")
def enlarged(astronaut_image: Image) -> Image:
    """2,560 x 2,560 pixels, of which one face takes 700."""
    large = cv2.resize(astronaut_image, (2_560, 2_560), interpolation=cv2.INTER_CUBIC)
    return np.asarray(large, np.uint8)
