"""Liveness networks: what they see, what they answer, and that nobody is asked in vain."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import pytest

from app.errors import LivenessUnavailable, PackError
from app.faces.liveness import LivenessCheck, LivenessNetwork, softmax, surroundings
from app.faces.loading import build_pipeline
from app.faces.pipeline import FacePipeline
from app.imaging import ImageLimits
from app.inference.pack_spec import LivenessSpec, ModelPack
from app.inference.session import OnnxModel
from app.lab.packing.own import OwnNetworks, make_pack
from app.settings import Device
from app.types import FloatArray


def _box(*values: float) -> FloatArray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("box", "scale", "size"),
    [
        ((40, 40, 60, 60), 2.0, (41, 41)),  # about the middle
        ((0, 0, 20, 20), 2.0, (41, 41)),  # moved into the image
        ((90, 90, 110, 110), 2.0, (41, 41)),
        ((10, 10, 90, 90), 4.0, (100, 100)),  # no larger than the image
        ((50, 50, 50, 50), 2.0, (3, 3)),  # a box without area
    ],
)
def test_what_surrounds_a_face(box: Sequence[float], scale: float, size: tuple[int, int]) -> None:
    region = surroundings(np.zeros((100, 100, 3), np.uint8), _box(*box), scale)
    assert np.abs(np.subtract(region.shape[:2], size)).max() <= 1


def test_softmax_is_no_wider_than_one() -> None:
    rows = softmax(np.array([[1e4, -1e4, 0], [0, 0, 0]], np.float32))
    np.testing.assert_allclose(rows, [[1, 0, 0], [1 / 3] * 3], atol=1e-6)


@pytest.fixture(scope="module")
def liveness_pack(
    pack: ModelPack, eval_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> ModelPack:
    networks = eval_models / "minifasnet"
    own = OwnNetworks(
        liveness=(
            f"2.7:{networks / 'MiniFASNetV2.onnx'}",
            f"4:{networks / 'MiniFASNetV1SE.onnx'}",
        )
    )
    return make_pack(pack, own, tmp_path_factory.mktemp("packs") / "live")


@pytest.fixture(scope="module")
def live_pipeline(liveness_pack: ModelPack) -> FacePipeline:
    return build_pipeline(liveness_pack, Device.CPU, ImageLimits())


def test_a_photo_of_a_face(live_pipeline: FacePipeline, photos: Path) -> None:
    data = (photos / "obama.jpg").read_bytes()
    asked, unasked = (
        live_pipeline.analyse(data, max_faces=1, liveness=wanted).faces[0].quality
        for wanted in (True, False)
    )
    assert asked.liveness is not None
    assert 0 <= asked.liveness <= 1
    assert unasked.liveness is None
    assert asked.embedding_norm == unasked.embedding_norm


def test_each_network_is_asked_as_its_authors_do(
    liveness_pack: ModelPack, live_pipeline: FacePipeline, photos: Path
) -> None:
    """Silent-Face-Anti-Spoofing sums the softmax of its networks; pixels go in as they are."""
    image = cv2.imread(str(photos / "obama.jpg"))
    face = live_pipeline.analyse_image(image, max_faces=1).faces[0]
    answers = []
    for spec in liveness_pack.liveness:
        crop = cv2.resize(surroundings(image, face.box, spec.scale), (80, 80))
        session = ort.InferenceSession(liveness_pack.path(spec), providers=["CPUExecutionProvider"])
        blob = crop.transpose(2, 0, 1)[np.newaxis].astype(np.float32)
        powers = np.exp(session.run(None, {session.get_inputs()[0].name: blob})[0][0])
        answers.append(powers[1] / powers.sum())
    check = LivenessCheck(
        [
            LivenessNetwork(OnnxModel(liveness_pack.path(spec), Device.CPU), spec)
            for spec in liveness_pack.liveness
        ]
    )
    found = check.scores(image, face.box[np.newaxis])
    assert found[0] == pytest.approx(np.mean(answers), abs=1e-5)
    assert check.scores(image, np.empty((0, 4), np.float32)).shape == (0,)


def test_a_pack_without_such_networks_says_so(pipeline: FacePipeline, photos: Path) -> None:
    with pytest.raises(LivenessUnavailable, match="--liveness"):
        pipeline.analyse((photos / "obama.jpg").read_bytes(), max_faces=1, liveness=True)


def test_a_class_that_the_network_lacks(eval_models: Path) -> None:
    path = eval_models / "minifasnet" / "MiniFASNetV2.onnx"
    spec = LivenessSpec(file=path.name, sha256="0" * 64, scale=2.7, live_class=3)
    with pytest.raises(PackError, match="knows 3 classes"):
        LivenessNetwork(OnnxModel(path, Device.CPU), spec)
