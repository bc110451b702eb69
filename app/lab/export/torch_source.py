"""A PyTorch checkpoint as the source of an export."""

from pathlib import Path

import numpy as np
import torch

from app.lab.export.checkpoint import load_network
from app.lab.export.faces import Normalisation
from app.lab.export.parity import FloatArray
from app.lab.export.recogniser import SourceRecogniser
from app.lab.export.torch_graph import OPSET, to_graph

# Of the faces at a time: activations of a large network at 112 pixels take some 30 MB a face.
BATCH = 8


def read_checkpoint(
    path: Path,
    architecture: str,
    size: int,
    normalisation: Normalisation,
    opset: int | None = None,
) -> SourceRecogniser:
    """The network of a checkpoint, see `load_network`. Raises ExportError."""
    network = load_network(path, architecture)

    def answer(faces: FloatArray) -> FloatArray:
        with torch.no_grad():
            parts = [
                network(torch.from_numpy(faces[i : i + BATCH])).numpy()
                for i in range(0, len(faces), BATCH)
            ]
        return np.asarray(np.concatenate(parts), np.float32)

    return SourceRecogniser(to_graph(network, size, opset or OPSET), answer, normalisation)
