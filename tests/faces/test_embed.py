"""Embedding: what the numbers are, that batches change nothing, and who resembles whom."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from app.errors import PackError
from app.faces.detect import Detector
from app.faces.embed import BATCH_SIZE, Recogniser, normalise
from app.faces.images import align_faces
from app.inference.pack_spec import ModelPack
from app.inference.session import OnnxModel
from app.settings import Device
from app.types import FloatArray, Image


@pytest.fixture(scope="module")
def model(pack: ModelPack) -> OnnxModel:
    return OnnxModel(pack.recogniser_path, Device.CPU)


@pytest.fixture(scope="module")
def recogniser(model: OnnxModel, pack: ModelPack) -> Recogniser:
    return Recogniser(model, pack.recogniser)


def crops_of(detector: Detector, image: Image) -> Image:
    found = detector.detect(image)
    assert found.landmarks is not None
    return align_faces(image, found.landmarks)


@pytest.fixture(scope="module")
def crops(detector: Detector, group_image: Image, portraits: dict[str, Image]) -> Image:
    """Forty crops: ten faces, each at four degrees of brightness."""
    images = (group_image, *portraits.values())
    faces = np.concatenate([crops_of(detector, image) for image in images])
    dimmed = [(faces * factor).astype(np.uint8) for factor in (1.0, 0.9, 0.8, 0.7)]
    return np.concatenate(dimmed)


@pytest.fixture(scope="module")
def one_by_one(recogniser: Recogniser, crops: Image) -> FloatArray:
    return np.concatenate([recogniser.embed(crops[i : i + 1])[0] for i in range(len(crops))])


def test_unit_vectors_of_the_announced_dimension(
    recogniser: Recogniser, crops: Image, pack: ModelPack
) -> None:
    vectors, norms = recogniser.embed(crops)
    assert vectors.shape == (40, pack.recogniser.dimension)
    assert norms.shape == (40,)
    assert vectors.dtype == norms.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (norms > 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, BATCH_SIZE, BATCH_SIZE + 1, 40])
def test_a_batch_gives_what_each_crop_gives(
    recogniser: Recogniser, crops: Image, one_by_one: FloatArray, count: int
) -> None:
    vectors, _ = recogniser.embed(crops[:count])
    assert vectors.shape[0] == count
    assert (vectors * one_by_one[:count]).sum(axis=1).min() >= 0.99999


def test_the_mean_with_the_mirror_image(
    model: OnnxModel, recogniser: Recogniser, crops: Image, pack: ModelPack
) -> None:
    spec = pack.recogniser.model_copy(update={"mirror": True})
    both = Recogniser(model, spec)
    vectors, norms = both.embed(crops[:5])
    plain = Recogniser(model, spec.model_copy(update={"mirror": False}))
    parts = [plain.embed(np.ascontiguousarray(side)) for side in (crops[:5], crops[:5, :, ::-1])]
    mean = np.mean([unit * length[:, np.newaxis] for unit, length in parts], axis=0)
    np.testing.assert_allclose(vectors * norms[:, np.newaxis], mean, atol=1e-3)
    # A face and its mirror image become one.
    mirrored, _ = both.embed(np.ascontiguousarray(crops[:5, :, ::-1]))
    assert (vectors * mirrored).sum(axis=1).min() > 0.99999
    assert (parts[0][0] * parts[1][0]).sum(axis=1).max() < 0.999
    np.testing.assert_allclose(both.lengths(crops[:5]), parts[0][1], rtol=1e-4)
    assert both.embed(crops[:0])[0].shape == (0, spec.dimension)


def test_no_crops(recogniser: Recogniser, pack: ModelPack) -> None:
    vectors, norms = recogniser.embed(np.empty((0, 112, 112, 3), np.uint8))
    assert vectors.shape == (0, pack.recogniser.dimension)
    assert norms.shape == (0,)


def test_one_person_on_several_photos(recogniser: Recogniser, pipeline_faces: FloatArray) -> None:
    for a, b in itertools.combinations(pipeline_faces[:3], 2):
        assert a @ b > 0.5


def test_different_people(pipeline_faces: FloatArray) -> None:
    obamas, others = pipeline_faces[:3], pipeline_faces[3:]
    assert (obamas @ others.T).max() < 0.3
    assert others[0] @ others[1] < 0.3


@pytest.fixture(scope="module")
def pipeline_faces(
    detector: Detector, recogniser: Recogniser, photos: Path, astronaut_image: Image
) -> FloatArray:
    """Three photos of one person, then two other people."""
    from app.imaging import ImageLimits, decode_image

    names = ("obama", "obama2", "obama3", "biden")
    images = [decode_image((photos / f"{n}.jpg").read_bytes(), ImageLimits()) for n in names]
    crops = []
    for image in (*images, astronaut_image):
        found = detector.detect(image)
        assert found.landmarks is not None
        largest = np.prod(found.boxes[:, 2:] - found.boxes[:, :2], axis=1).argmax()
        crops.append(align_faces(image, found.landmarks[largest : largest + 1]))
    return recogniser.embed(np.concatenate(crops))[0]


def test_the_six_of_the_group_photo_are_six(
    detector: Detector, recogniser: Recogniser, group_image: Image
) -> None:
    vectors, _ = recogniser.embed(crops_of(detector, group_image))
    between = (vectors @ vectors.T)[np.triu_indices(6, k=1)]
    assert between.max() < 0.6  # two profiles in the same light come to 0.53
    assert np.median(between) < 0.2


def test_the_colour_order_is_the_pack_s(
    model: OnnxModel, recogniser: Recogniser, pack: ModelPack, crops: Image
) -> None:
    spec = pack.recogniser.model_copy(update={"colour": "bgr"})
    right, wrong = recogniser.embed(crops[:10])[0], Recogniser(model, spec).embed(crops[:10])[0]
    assert (right * wrong).sum(axis=1).max() < 0.99
    assert (right * wrong).sum(axis=1).mean() < 0.97
    mirrored = np.ascontiguousarray(crops[:10, :, :, ::-1])
    again = Recogniser(model, spec).embed(mirrored)[0]
    assert (right * again).sum(axis=1).min() > 0.99999


def test_mean_and_deviation_are_the_pack_s(model: OnnxModel, pack: ModelPack, crops: Image) -> None:
    """(x - mean) / std, seen in what a network answers."""
    spec = pack.recogniser.model_copy(update={"mirror": False})
    recogniser = Recogniser(model, spec)
    pixels = crops[:1, :, :, ::-1].astype(np.float32).transpose(0, 3, 1, 2)
    raw = model.run((pixels - np.float32(spec.mean)) / np.float32(spec.std))[0]
    assert normalise(raw)[0][0] @ recogniser.embed(crops[:1])[0][0] > 0.99999


def test_a_network_for_one_face_at_a_time(
    tmp_path: Path, pack: ModelPack, crops: Image, one_by_one: FloatArray
) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    network = onnx.load(str(pack.recogniser_path))
    network.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(network, str(tmp_path / "single.onnx"))
    single = OnnxModel(tmp_path / "single.onnx", Device.CPU)
    assert not single.dynamic_batch
    vectors, _ = Recogniser(single, pack.recogniser).embed(crops[:5])
    assert (vectors * one_by_one[:5]).sum(axis=1).min() > 0.99999


def test_a_wrong_dimension(model: OnnxModel, pack: ModelPack) -> None:
    spec = pack.recogniser.model_copy(update={"dimension": 512})
    with pytest.raises(PackError, match=r"answers 192 numbers.*announces 512.*pack\.toml"):
        Recogniser(model, spec)


def test_a_wrong_input_size(model: OnnxModel, pack: ModelPack) -> None:
    spec = pack.recogniser.model_copy(update={"input_size": 128})
    with pytest.raises(PackError, match=r"pack\.toml"):
        Recogniser(model, spec)


def test_a_detector_is_no_recogniser(pack: ModelPack) -> None:
    with pytest.raises(PackError, match=r"pack\.toml"):
        Recogniser(OnnxModel(pack.detector_path, Device.CPU), pack.recogniser)


def test_scrfd_is_no_recogniser(scrfd_file: Path, pack: ModelPack) -> None:
    with pytest.raises(PackError, match=r"pack\.toml"):
        Recogniser(OnnxModel(scrfd_file, Device.CPU), pack.recogniser)


def test_normalising() -> None:
    unit, norms = normalise(np.array([[3, 4], [0, 0], [-1e-20, 0]], np.float32))
    assert norms[0] == 5
    assert unit[0].tolist() == pytest.approx([0.6, 0.8])
    assert unit[1].tolist() == [0, 0]
    assert np.isfinite(unit).all()


@pytest.mark.parametrize(
    ("shape", "answered"), [([0, 0, 1, 1], r"\(2, 3, 1, 1\)"), ([1, -1], r"\(1, 6\)")]
)
def test_an_answer_that_is_not_one_vector_for_each_face(
    tmp_path: Path, pack: ModelPack, shape: list[int], answered: str
) -> None:
    """The second network answers one face as it should."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    make, number = onnx.helper, onnx.TensorProto.FLOAT
    graph = make.make_graph(
        [
            make.make_node("GlobalAveragePool", ["faces"], ["means"]),
            make.make_node("Reshape", ["means", "shape"], ["vectors"]),
        ],
        "means",
        [make.make_tensor_value_info("faces", number, ["n", 3, 112, 112])],
        [make.make_tensor_value_info("vectors", number, None)],
        [onnx.numpy_helper.from_array(np.array(shape), "shape")],
    )
    opset = make.make_opsetid("", 17)
    onnx.save(make.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "means.onnx")
    spec = pack.recogniser.model_copy(update={"dimension": 3})
    with pytest.raises(PackError, match=f"the answer to 2 has the shape {answered}.*pack.toml"):
        Recogniser(OnnxModel(tmp_path / "means.onnx", Device.CPU), spec)
