"""PyTorch checkpoints -> ONNX. `make torch` installs what these need."""

import importlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="PyTorch is not installed (make torch)")

from app.faces.landmarks import SIDE, TARGET, LandmarkRefiner  # noqa: E402
from app.inference.pack_spec import LandmarkSpec, ModelPack  # noqa: E402
from app.inference.packs import digest  # noqa: E402
from app.inference.session import OnnxModel  # noqa: E402
from app.lab.export import parity  # noqa: E402
from app.lab.export.faces import Normalisation, align_folder  # noqa: E402
from app.lab.export.parity import ExportError  # noqa: E402
from app.lab.export.recogniser import Options, export_recogniser  # noqa: E402
from app.settings import Device  # noqa: E402
from scripts.torch_export.checkpoint import BACKBONES, load_network, read_weights  # noqa: E402
from scripts.torch_export.landmarks import TOLERANCE, export_landmarks  # noqa: E402
from scripts.torch_export.mobilefacenet import SHAPES, MobileFaceNet  # noqa: E402
from scripts.torch_export.onet import ONet  # noqa: E402
from scripts.torch_export.source import read_checkpoint  # noqa: E402
from tests.waiting import PATIENCE_S  # noqa: E402

# In millions, without running statistics. IResNet: Deng et al. and the model zoos that give them
# (24.03, 34.14, 43.59, 65.16); MobileFaceNet: 0.99 in Chen et al. (CCBR 2018) for the narrow one.
PUBLISHED = {
    "iresnet18": 24.03,
    "iresnet34": 34.14,
    "iresnet50": 43.59,
    "iresnet100": 65.16,
    "iresnet200": 118.83,
    "mobilefacenet": 2.06,
    "mobilefacenet-large": 6.31,
}
MODELS = Path(os.environ.get("LIKENESS_EVAL_MODELS", "../shared/models"))
IMAGENET = Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

# Slow as a whole: CI installs PyTorch only after the default suite.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]


def _made(name: str, dimension: int = 512) -> "torch.nn.Module":
    torch.manual_seed(5)
    return BACKBONES[name][1](dimension).eval()


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_backbones_have_the_published_size(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = BACKBONES[name][1](512).eval()
        assert network(torch.empty((2, 3, 112, 112))).shape == (2, 512)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_paper_s_mobilefacenet_has_a_million_parameters() -> None:
    network = _made("mobilefacenet-foamliu", 128)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(0.99, abs=0.011)
    assert network(torch.zeros((2, 3, 112, 112))).shape == (2, 128)


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "backbone."])
@pytest.mark.parametrize("envelope", [None, "state_dict", "state_dict_backbone"])
def test_training_scripts_leave_their_marks(
    tmp_path: Path, prefix: str, envelope: str | None
) -> None:
    network = _made("mobilefacenet-foamliu", 16)
    weights = {prefix + name: value for name, value in network.state_dict().items()}
    path = tmp_path / "checkpoint.pt"
    torch.save(weights if envelope is None else {"epoch": 3, envelope: weights}, path)
    found = load_network(path, "auto")
    image = torch.rand((1, 3, 112, 112))
    assert torch.equal(found(image), network(image))


@pytest.mark.parametrize("name", ["iresnet18", "mobilefacenet", "mobilefacenet-large"])
def test_the_architecture_is_found_by_its_weights(tmp_path: Path, name: str) -> None:
    network = _made(name, 32)
    torch.save(network.state_dict(), tmp_path / "checkpoint.pt")
    found = load_network(tmp_path / "checkpoint.pt", "auto")
    assert {n: v.shape for n, v in found.state_dict().items()} == {
        n: v.shape for n, v in network.state_dict().items()
    }


# Its parts are called like the prefixes that training scripts leave.
OWN = """
from torch import nn

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.PReLU(4), nn.Flatten())
        self.model = nn.Linear(196, 8)

    def forward(self, x):
        return self.model(self.backbone(x))
"""


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_network_of_one_s_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_images: Callable[..., Path],
    prefix: str,
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    weights = importlib.import_module("mine").Mine().state_dict()
    torch.save({prefix + n: v for n, v in weights.items()}, tmp_path / "checkpoint.pt")
    source = read_checkpoint(tmp_path / "checkpoint.pt", "mine:Mine", 16, Normalisation())
    faces = align_folder(make_images(20), 16)
    found = export_recogniser(source, tmp_path / "out.onnx", faces, Options(pixels=True))
    assert found.agreement.minimum_cosine > 0.999999
    with pytest.raises(ExportError, match="could not be called"):
        load_network(tmp_path / "checkpoint.pt", "mine:absent")
    with pytest.raises(ExportError, match="returned a dict"):
        load_network(tmp_path / "checkpoint.pt", "builtins:dict")


class Code:
    """Pickled by its name: reading it back would run code."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Code(), "not a checkpoint of weights alone"),
        ([1, 2], "not named weights"),
        ({"epoch": 3}, "holds no weights"),
        ({"fc.weight": torch.zeros((4, 4))}, "no known architecture"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    with pytest.raises(ExportError, match=message):
        load_network(path, "auto")


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(_made("iresnet18", 16).state_dict(), path)
    with pytest.raises(ExportError, match=r"is none of its|is missing|has the shape"):
        load_network(path, "iresnet34")
    with pytest.raises(ExportError, match="there is no architecture"):
        load_network(path, "resnet")
    with pytest.raises(ExportError, match="cannot be read"):
        load_network(tmp_path / "absent.pt", "auto")


def test_insightface_s_trunk_is_ours() -> None:
    """The convolutions and slopes of its published network, in our modules: the same 512 maps."""
    path = MODELS / "insightface" / "w600k_mbf.onnx"
    if not path.is_file():
        pytest.skip(f"no {path}")
    model = onnx.load(path)
    arrays = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    given = [node for node in model.graph.node if node.op_type in ("Conv", "PRelu")]
    network = MobileFaceNet(SHAPES["mobilefacenet"], 512).eval()
    last = _fill(network, given, arrays)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(last))
    image = np.random.default_rng(1).normal(size=(1, 3, 112, 112)).astype(np.float32)
    expected = parity.run(parity.open_session_of(model), image)[-1]
    with torch.no_grad():
        actual = network.trunk(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def _fill(network: MobileFaceNet, given: list, arrays: dict) -> str:
    """Put folded weights in, one node after the other; the name of the last value."""
    inner = [*network.layers.modules(), *network.conv_sep.modules()]
    kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.PReLU)
    nodes = iter(given)
    node = None
    with torch.no_grad():
        for module in (m for m in inner if isinstance(m, kinds)):
            if isinstance(module, torch.nn.BatchNorm2d):  # folded: what is left is the bias
                module.weight.fill_((1 + module.eps) ** 0.5)
                module.bias.copy_(torch.tensor(arrays[node.input[2]]))
                continue
            node = next(nodes)
            wanted = "Conv" if isinstance(module, torch.nn.Conv2d) else "PRelu"
            assert node.op_type == wanted
            module.weight.copy_(torch.tensor(arrays[node.input[1]]).reshape(module.weight.shape))
    return node.output[0]


def test_the_real_checkpoint(tmp_path: Path, evaluation_faces: Path) -> None:
    path = MODELS / "foamliu" / "mobilefacenet.pt"
    if not path.is_file():
        pytest.skip(f"no {path}")
    assert len(read_weights(path)["conv3.weight"]) == 128
    source = read_checkpoint(path, "auto", 112, IMAGENET)
    faces = align_folder(evaluation_faces, 112, 40)
    out = tmp_path / "out.onnx"
    found = export_recogniser(source, out, faces, Options(pixels=True))
    assert found.agreement.minimum_cosine > 0.99999
    assert parity.open_session(out).get_inputs()[0].shape == ["batch", 112, 112, 3]


ONET_SHA256 = "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d"


def _onet(folder: Path) -> Path:
    """A checkpoint of ONet with weights made at random."""
    torch.manual_seed(7)
    path = folder / "onet.pt"
    torch.save(ONet().state_dict(), path)
    return path


def _regions(count: int = 20) -> NDArray[np.uint8]:
    return np.random.default_rng(4).integers(0, 256, (count, 48, 48, 3), dtype=np.uint8)


def test_a_landmark_network(tmp_path: Path) -> None:
    found = export_landmarks(_onet(tmp_path), tmp_path / "landmarks.onnx", _regions())
    assert found.faces == 20
    assert found.source_difference <= TOLERANCE
    spec = LandmarkSpec(file="landmarks.onnx", sha256=found.sha256)
    refiner = LandmarkRefiner(OnnxModel(tmp_path / "landmarks.onnx", Device.CPU), spec)
    landmarks = np.float32([[[10, 10], [30, 10], [20, 20], [12, 30], [28, 30]]])
    assert refiner.refine(np.zeros((60, 60, 3), np.uint8), landmarks).shape == (1, 5, 2)


def test_a_landmark_network_names_no_file_of_the_machine(tmp_path: Path) -> None:
    """The exporter notes where the module's source lies."""
    out = tmp_path / "landmarks.onnx"
    export_landmarks(_onet(tmp_path), out, _regions())
    content = out.read_bytes()
    assert b".py" not in content
    assert str(Path.cwd()).encode() not in content


def test_another_checkpoint_is_no_landmark_network(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save(_made("mobilefacenet-foamliu", 16).state_dict(), path)
    with pytest.raises(ExportError, match="holds no weights of ONet"):
        export_landmarks(path, tmp_path / "landmarks.onnx", _regions())
    assert not (tmp_path / "landmarks.onnx").exists()


def test_the_default_pack_s_landmark_network_is_made_again(
    tmp_path: Path, evaluation_faces: Path, pack: ModelPack
) -> None:
    """Of the package that it came from, to the bit."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(tmp_path),
               "facenet-pytorch==2.6.0"]  # fmt: skip
    subprocess.run(command, check=True, timeout=PATIENCE_S)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        source = Path(archive.extract("facenet_pytorch/data/onet.pt", tmp_path))
    assert digest(source) == ONET_SHA256
    out = tmp_path / "landmarks.onnx"
    export_landmarks(source, out, align_folder(evaluation_faces, SIDE, target=TARGET))
    assert out.read_bytes() == (pack.folder / "landmarks.onnx").read_bytes()
