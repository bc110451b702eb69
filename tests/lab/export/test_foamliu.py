"""foamliu's MobileFaceNet without PyTorch."""

from pathlib import Path

import numpy as np
import pytest

from app.lab.export import parity
from app.lab.export.foamliu import SIDE, to_onnx
from app.lab.export.parity import ExportError
from app.lab.export.saved_weights import Weights, read_weights

# The first numbers that the network answers to the pattern of `face`.
ANSWER = (-1.095398, 0.3108113, -0.29369062, 0.48821503, -0.2208132, 1.3143734)


@pytest.fixture(scope="module")
def weights(eval_models: Path) -> Weights:
    return read_weights((eval_models / "foamliu" / "mobilefacenet.pt").read_bytes())


def face() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    return np.stack([x - y, x * y, 1 - x - y]).astype(np.float32)[np.newaxis]


def test_its_answer_is_known(weights: Weights) -> None:
    model = to_onnx(weights)
    (embedding,) = parity.run(parity.open_session_of(model), face())
    assert embedding.shape == (1, 128)
    np.testing.assert_allclose(embedding[0, : len(ANSWER)], ANSWER, atol=1e-4)


def test_weights_of_another_network(weights: Weights) -> None:
    less = {name: array for name, array in weights.items() if name != "conv3.weight"}
    with pytest.raises(ExportError, match=r"conv3\.weight is missing"):
        to_onnx(less)
    with pytest.raises(ExportError, match=r"head\.weight is none of its"):
        to_onnx({**weights, "head.weight": np.zeros(1, np.float32)})


@pytest.mark.slow
def test_it_answers_as_in_pytorch(weights: Weights, eval_models: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (make torch)")
    from scripts.torch_export.checkpoint import load_network

    network = load_network(eval_models / "foamliu" / "mobilefacenet.pt", "auto")
    faces = np.random.default_rng(4).uniform(-2, 2, (3, 3, SIDE, SIDE)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(faces)).numpy()
    answers = parity.run(parity.open_session_of(to_onnx(weights)), faces)
    parity.prove_same_outputs(answers, [expected], 1e-4)
