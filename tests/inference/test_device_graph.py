"""Networks made ready for a device answer as they did, on whatever runs them."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from app.faces.decoders import are_cut
from app.faces.detect import ARCHITECTURES, CandidateNetwork, Detector
from app.faces.images import to_blob
from app.inference.device_graph import device_graph, read_network
from app.inference.pack_spec import DetectorSpec, ModelPack
from app.inference.session import OnnxModel
from app.settings import Device
from app.types import Detections, Image, PixelScale

pytestmark = pytest.mark.slow

SIDE = 320


def both(
    path: Path, architecture: str, threshold: float
) -> tuple[Detector, Detector, tuple[int, ...]]:
    """A detector of a file that decodes heads, and one that gets candidates; both of one size, for
    ONNX Runtime adds up in another order where sizes are free."""
    spec = DetectorSpec.model_validate(
        {"architecture": architecture, "file": path.name, "sha256": "0" * 64,
         "input_size": SIDE, "score_threshold": threshold}
    )  # fmt: skip
    source, scale = read_network(path), ARCHITECTURES[architecture].scale
    plain, graph = (
        device_graph(source, (1, SIDE, SIDE), scale, candidates=candidates)
        for candidates in (False, True)
    )
    network = OnnxModel(path, Device.CPU, content=plain.content)
    candidates = CandidateNetwork(OnnxModel(path, Device.CPU, content=graph.content), graph.levels)
    heads = Detector(network, spec, whole_canvas=True)
    return heads, Detector(network, spec, whole_canvas=True, candidates=candidates), graph.levels


def same(a: Detections, b: Detections) -> None:
    assert a.landmarks is not None
    assert b.landmarks is not None
    for one, other in ((a.scores, b.scores), (a.boxes, b.boxes), (a.landmarks, b.landmarks)):
        assert np.array_equal(one, other)


@pytest.fixture(params=["centerface", "det_500m", "det_2.5g"])
def detector_file(request: pytest.FixtureRequest, pack: ModelPack) -> tuple[Path, str]:
    if request.param == "centerface":
        return pack.detector_path, "centerface"
    folder: Path = request.getfixturevalue("eval_models")
    pytest.importorskip("onnx")
    from app.lab.export.detector import export_detector

    made = request.getfixturevalue("tmp_path") / "detector.onnx"
    export_detector(folder / "insightface" / f"{request.param}.onnx", made)
    return made, "scrfd"


def test_candidates_are_decoded_to_the_same_bits(
    detector_file: tuple[Path, str], group_image: Image, astronaut_image: Image
) -> None:
    heads, candidates, levels = both(*detector_file, 0.5)
    assert sum(levels) in {SIDE * SIDE // 16, 2 * SIDE * SIDE * (1 + 4 + 16) // 1024}
    for photo in (group_image, astronaut_image, group_image[:, 300:700]):
        found = heads.detect(photo)
        assert len(found) > 0
        same(candidates.detect(photo), found)


def test_where_candidates_are_missing_the_heads_decide(pack: ModelPack, group_image: Image) -> None:
    """A threshold that more than 512 cells reach."""
    heads, candidates, levels = both(pack.detector_path, "centerface", 0.0005)
    assert candidates._candidates is not None
    answer = candidates._candidates.network.run(np.zeros((1, SIDE, SIDE, 3), np.uint8))
    assert are_cut(answer, levels, 0.0)
    assert not are_cut(answer, levels, 0.9)
    same(candidates.look(group_image), heads.look(group_image))


def test_pixels_become_the_same_planes(pack: ModelPack) -> None:
    """Three means and scales, in RGB order."""
    scale = PixelScale((120.5, 110.0, 100.25), (58.0, 57.0, 56.5), rgb=True)
    source = read_network(pack.recogniser_path)
    graph = device_graph(source, (5, 112, 112), scale, candidates=False)
    made = OnnxModel(pack.recogniser_path, Device.CPU, content=graph.content)
    crops = np.random.default_rng(1).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)
    blob = to_blob(crops, scale.mean, scale.std, rgb=True)
    expected = OnnxModel(pack.recogniser_path, Device.CPU).run(blob)[0]
    assert made.takes_pixels
    assert not made.dynamic_batch
    assert np.abs(made.run(crops)[0] - expected).max() < 1e-3 * np.abs(expected).max()


def test_heads_that_are_not_known_stay(pack: ModelPack) -> None:
    scale = PixelScale(127.5, 127.5, rgb=True)
    graph = device_graph(read_network(pack.recogniser_path), (1, 112, 112), scale, candidates=True)
    assert graph.levels == ()
    made = OnnxModel(pack.recogniser_path, Device.CPU, content=graph.content)
    assert made.output_names == ["embedding"]


def test_a_size_that_the_network_does_not_take_is_named(pack: ModelPack) -> None:
    source = read_network(pack.recogniser_path)
    with pytest.raises(ValueError, match="takes 112 where 100 are to go in"):
        device_graph(source, (1, 100, 112), PixelScale(0.0, 1.0, rgb=True), candidates=False)


def test_a_file_that_is_no_network(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a network")
    with pytest.raises(ValueError, match="onnx cannot read it"):
        read_network(tmp_path / "bad.onnx")


def test_a_network_that_takes_pixels_is_left_so(pack: ModelPack) -> None:
    scale = PixelScale(0.0, 1.0, rgb=True)
    first = device_graph(read_network(pack.detector_path), (1, 64, 64), scale, candidates=False)
    again = device_graph(
        onnx.load_model_from_string(first.content), (1, 64, 64), scale, candidates=True
    )
    assert again.levels == (256,)
