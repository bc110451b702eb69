"""Networks in OpenVINO: the answers of ONNX Runtime, in fewer bits where the CPU has them.

They need the extra `openvino` (`make test EXTRA=openvino`) and are skipped without it.
"""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.errors import DeviceError, PackError
from app.faces.images import drawn_face, to_blob
from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.inference.compiled_networks import CompiledNetworks
from app.inference.cpu_engine import OPENVINO_BF16, OPENVINO_FP32, Cpu, CpuOptions
from app.inference.openvino_model import OpenVinoModel
from app.inference.pack_spec import ModelPack
from app.inference.session import OnnxModel
from app.settings import CpuEngine, CpuPrecision, Device
from app.types import FloatArray

pytest.importorskip("openvino")

FP32, BF16 = CpuPrecision.FP32, CpuPrecision.BF16
needs_bf16 = pytest.mark.skipif(
    not Cpu.of_this_machine().computes_bf16, reason="this CPU does not compute in bfloat16"
)
PRECISIONS = [FP32, pytest.param(BF16, marks=needs_bf16)]


@pytest.fixture(scope="module")
def faces() -> FloatArray:
    return to_blob(np.stack([drawn_face(112, 112)] * 3), 127.5, 128.0, rgb=True)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_answers_as_onnx_runtime(
    pack: ModelPack, faces: FloatArray, precision: CpuPrecision
) -> None:
    """Batches of any size, in one network."""
    network = OpenVinoModel(pack.recogniser_path, precision)
    reference = OnnxModel(pack.recogniser_path, Device.CPU)
    assert network.output_names == reference.output_names
    assert (network.dynamic_batch, network.fixed_size) == (True, (112, 112))
    for count in (1, 3, 2):
        (ours,), (theirs,) = network.run(faces[:count]), reference.run(faces[:count])
        cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1)
        assert (cosines / np.linalg.norm(theirs, axis=1)).min() > 0.999
        assert ours.dtype == np.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_whole_pack_is_proven_and_finds_the_same_face(
    pack: ModelPack, photos: Path, tmp_path: Path, precision: CpuPrecision
) -> None:
    data = (photos / "biden.jpg").read_bytes()
    options = CpuOptions(CpuEngine.OPENVINO, precision, 2, tmp_path)
    ours = build_pipeline(pack, Device.CPU, ImageLimits(), cpu=options)
    theirs = build_pipeline(pack, Device.CPU, ImageLimits())
    assert ours.provider == {FP32: OPENVINO_FP32, BF16: OPENVINO_BF16}[precision]
    one, other = (each.analyse(data, max_faces=1).faces[0] for each in (ours, theirs))
    assert one.embedding is not None
    assert other.embedding is not None
    assert one.embedding @ other.embedding > 0.99


def test_threads_run_it_side_by_side(pack: ModelPack, faces: FloatArray) -> None:
    network = OpenVinoModel(pack.recogniser_path, FP32, copies=2)
    shown = [np.ascontiguousarray(np.roll(faces[:1], i, axis=3)) for i in range(12)]
    alone = [network.run(one)[0] for one in shown]
    with ThreadPoolExecutor(4) as pool:  # more than there are copies
        together = list(pool.map(lambda one: network.run(one)[0], shown * 3))
    np.testing.assert_allclose(np.stack(together), np.stack(alone * 3), atol=1e-4)


def test_more_threads_than_copies_make_more_copies(pack: ModelPack, faces: FloatArray) -> None:
    """As threads of imports do beside those of calls: no photo waits for another one's network."""
    network = OpenVinoModel(pack.recogniser_path, FP32, copies=2)
    (expected,) = network.run(faces)
    assert network.idle.qsize() == 2
    taken = [network.idle.get_nowait() for _ in range(2)]  # as runs of two other threads
    np.testing.assert_array_equal(network.run(faces)[0], expected)
    for request in taken:
        network.idle.put(request)
    assert network.idle.qsize() == 3


def test_a_run_that_fails_gives_its_copy_back(pack: ModelPack, faces: FloatArray) -> None:
    network = OpenVinoModel(pack.recogniser_path, FP32)
    with pytest.raises(DeviceError, match="does not run with a batch of 3 images"):
        network.run_once(faces[:, :, :100])
    assert network.idle.qsize() == 1
    network.try_out(faces)


def test_a_run_is_computed_by_the_thread_that_asks(pack: ModelPack, faces: FloatArray) -> None:
    """And not by threads of OpenVINO, to which it would be handed over."""
    network = OpenVinoModel(pack.recogniser_path, FP32, copies=2)
    network.run(faces)
    shares = []
    for _ in range(3):
        of_all, of_this = time.process_time(), time.thread_time()
        for _ in range(20):
            network.run(faces)
        of_this, of_all = time.thread_time() - of_this, time.process_time() - of_all
        shares.append(of_this / of_all)
    assert max(shares) > 0.9


def test_a_network_that_takes_pixels(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2], keepdims=0),
    ]
    path = saved(tmp_path, nodes, ("pixels", TensorProto.UINT8, ["n", 8, 8, 3]), "mean")
    network = OpenVinoModel(path, FP32)
    assert (network.takes_pixels, network.fixed_size) == (True, (8, 8))
    image = drawn_face(8, 8)[np.newaxis]
    network.try_out(image)
    np.testing.assert_allclose(network.run(image)[0], image.mean(axis=(1, 2)), rtol=1e-5)


def test_outputs_have_their_own_names(tmp_path: Path) -> None:
    """Not those of tensors that OpenVINO has joined with them, as in InsightFace's detectors."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 64])
    nodes = [
        helper.make_node("Constant", [], ["shape"], value=shape),
        helper.make_node("Reshape", ["image", "shape"], ["row"]),
        helper.make_node("Sigmoid", ["row"], ["score"]),
    ]
    path = saved(tmp_path, nodes, ("image", TensorProto.FLOAT, ["n", 1, 8, 8]), "score")
    network = OpenVinoModel(path, FP32)
    assert network.output_names == ["score"]
    network.try_out(np.zeros((1, 1, 8, 8), np.float32))


def test_the_next_start_loads_what_this_one_compiled(
    pack: ModelPack, faces: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = CompiledNetworks(tmp_path)
    first = OpenVinoModel(pack.recogniser_path, FP32, 1, kept).run(faces)[0]
    monkeypatch.setattr(kept.__class__, "keep", None)  # compiling would call it
    again = OpenVinoModel(pack.recogniser_path, FP32, 1, kept).run(faces)[0]
    np.testing.assert_array_equal(first, again)


def test_what_openvino_refuses_is_compiled_again(
    pack: ModelPack, faces: FloatArray, tmp_path: Path
) -> None:
    """With a digest that fits, as from a build of OpenVINO that has the same name."""
    kept = CompiledNetworks(tmp_path)
    OpenVinoModel(pack.recogniser_path, FP32, 1, kept)
    (file,) = tmp_path.glob("*.compiled")
    kept.keep(file.stem, b"not a network")
    OpenVinoModel(pack.recogniser_path, FP32, 1, kept).try_out(faces)
    assert kept.load(file.stem) != b"not a network"


def test_any_number_of_copies_has_one_file(pack: ModelPack, tmp_path: Path) -> None:
    for copies in (1, 3):
        OpenVinoModel(pack.recogniser_path, FP32, copies, CompiledNetworks(tmp_path))
    assert len(list(tmp_path.glob("*.compiled"))) == 1


@needs_bf16
def test_another_precision_is_another_file(pack: ModelPack, tmp_path: Path) -> None:
    for precision in (FP32, BF16):
        OpenVinoModel(pack.recogniser_path, precision, 1, CompiledNetworks(tmp_path))
    assert len(list(tmp_path.glob("*.compiled"))) == 2


def test_wrong_answers_end_the_start(
    pack: ModelPack, faces: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = OpenVinoModel(pack.recogniser_path, FP32)
    right = network.run

    def mirrored(batch: FloatArray) -> list[FloatArray]:
        return right(batch[..., ::-1])

    monkeypatch.setattr(network, "run", mirrored)
    wrong = r"recogniser.onnx answers wrongly: embedding has a cosine.*CPU_ENGINE=onnxruntime"
    with pytest.raises(DeviceError, match=wrong):
        network.try_out(faces + np.linspace(0, 1, 112, dtype=np.float32))


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (lambda given: given * 1.2, "1.200 of the length"),
        (lambda given: given * np.float32("nan"), "not finite"),
        (lambda given: given[:1], re.escape("the shape (1, 192) instead of (3, 192)")),
        (lambda given: given * 0, "the length 0 instead of"),
    ],
)
def test_length_shape_and_numbers_are_compared(
    pack: ModelPack, faces: FloatArray, monkeypatch: pytest.MonkeyPatch, made: object, fault: str
) -> None:
    network = OpenVinoModel(pack.recogniser_path, FP32)
    right = network.run
    monkeypatch.setattr(network, "run", lambda batch: [made(right(batch)[0])])  # type: ignore[operator]
    with pytest.raises(DeviceError, match=fault):
        network.try_out(faces)


def test_an_operator_that_openvino_lacks_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Inverse", ["x"], ["y"], domain="com.microsoft")  # ONNX Runtime's own
    path = saved(tmp_path, [node], ("x", TensorProto.FLOAT, ["n", 3, 8, 8]), "y")
    named = r"network.onnx does not load: .*Inverse.*LIKENESS_CPU_ENGINE=onnxruntime"
    with pytest.raises(DeviceError, match=named):
        OpenVinoModel(path, FP32)


def test_what_is_no_network_is_the_pack_s_fault(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(PackError, match="is not a network that can be run"):
        OpenVinoModel(path, FP32)


def test_what_onnx_runtime_does_not_run_is_not_proven(tmp_path: Path) -> None:
    """OpenVINO converts the numbers that it is given; ONNX Runtime refuses others than its own."""
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    path = saved(tmp_path, [node], ("x", TensorProto.FLOAT16, ["n", 3, 8, 8]), "y")
    network = OpenVinoModel(path, FP32)
    with pytest.raises(DeviceError, match=r"network.onnx cannot be compared: ONNX Runtime"):
        network.try_out(np.ones((1, 3, 8, 8), np.float32))


def test_a_network_that_takes_no_images_has_no_size(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    path = saved(tmp_path, [node], ("x", TensorProto.FLOAT, ["n", 3]), "y")
    assert OpenVinoModel(path, FP32).fixed_size is None


def saved(
    folder: Path, nodes: list[onnx.NodeProto], given: tuple[str, int, list[object]], output: str
) -> Path:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(*given)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "network.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path
