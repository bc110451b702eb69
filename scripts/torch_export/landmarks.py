"""MTCNN's ONet, a PyTorch checkpoint -> the landmark network of a pack, proven on real faces."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from app.faces.landmarks import SCALE, SIDE
from app.lab.export import parity
from app.lab.export.faces import Normalisation
from app.lab.export.graph import without_prelu
from app.lab.export.parity import ExportError, publish
from scripts.torch_export.checkpoint import misfit, read_weights
from scripts.torch_export.onet import ONet
from scripts.torch_export.source import to_graph

OUTPUT = "landmarks"
NORMALISATION = Normalisation(SCALE.mean, SCALE.std, rgb=True)
# Shares of the side: 1e-5 is half a thousandth of a pixel.
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class ExportedLandmarks:
    """What was written: its digest and the largest differences, as shares of the crop's side, from
    PyTorch's answers and between a face of a batch and the face alone."""

    sha256: str
    faces: int
    source_difference: float
    batch_difference: float


def export_landmarks(source: Path, out: Path, faces: NDArray[np.uint8]) -> ExportedLandmarks:
    """Write the network to `out` once it answers like PyTorch on (n, 48, 48, 3) RGB `faces`, alone
    and in a batch. Raises ExportError, of which ParityError means that the two disagree."""
    network = ONet().eval()
    weights = read_weights(source)
    if reason := misfit(network, weights):
        raise ExportError(f"{source} holds no weights of ONet: {reason}")
    network.load_state_dict(weights)
    blob = NORMALISATION.apply(faces)
    with torch.no_grad():
        expected = network(torch.from_numpy(blob)).numpy()
    model = without_prelu(to_graph(network, SIDE, output=OUTPUT))
    found: list[float] = []

    def prove(candidate: Path) -> None:
        answers = parity.run(parity.open_session(candidate), blob)
        found.append(parity.prove_same_outputs(answers, [expected], TOLERANCE))
        found.append(parity.prove_batch_independence(candidate, blob, TOLERANCE))

    digest = publish(model, out, prove)
    return ExportedLandmarks(digest, len(faces), *found)
