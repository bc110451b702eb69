"""Makes the conversion of pixels to a network's input part of the network.

What goes in is then (batch, height, width, 3) uint8 BGR, a quarter of the bytes to be moved to a
GPU; colour order and normalisation are done by the graph.
"""

from pathlib import Path

import numpy as np
import onnx

from app.inference import device_graph
from app.lab.export import parity
from app.lab.export.artefact import ExportError, publish
from app.lab.export.faces import Normalisation
from app.lab.export.graph import PRODUCER, read_model
from app.types import PixelScale

# Dividing and multiplying by the inverse round differently, in the last bit of each value.
TOLERANCE = 1e-3
PROOF_BATCH = 3
PROOF_SIDE = 256


def export_pixels(source: Path, out: Path, given: Normalisation) -> float:
    """Write the network at `source` to `out` with uint8 pixels as its input, once it is proven to
    answer the same; returns the largest difference. Raises ExportError."""
    folded = fold_pixels(read_model(source), given)
    measured: list[float] = []

    def prove(candidate: Path) -> None:
        measured.append(_prove(source, candidate, given))

    publish(folded, out, prove)
    return measured[0]


def fold_pixels(source: onnx.ModelProto, given: Normalisation) -> onnx.ModelProto:
    """A copy of a model with one float32 (batch, 3, height, width) input that takes pixels.

    Raises ExportError for another input.
    """
    try:
        model = device_graph.fold_pixels(source, PixelScale(given.mean, given.std, given.rgb))
    except ValueError as error:
        raise ExportError(str(error)) from error
    model.producer_name = PRODUCER
    return model


def _prove(source: Path, candidate: Path, given: Normalisation) -> float:
    session = parity.open_session(source)
    batch, _, height, width = (axis if isinstance(axis, int) else None
                               for axis in session.get_inputs()[0].shape)  # fmt: skip
    size = (batch or PROOF_BATCH, height or PROOF_SIDE, width or PROOF_SIDE, 3)
    pixels = np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8)
    blob = given.apply(np.ascontiguousarray(pixels[..., ::-1]))
    expected = parity.run(session, blob)
    actual = parity.run(parity.open_session(candidate), pixels)
    largest = max(1.0, *(float(np.abs(head).max()) for head in expected))
    return parity.prove_same_outputs(actual, expected, TOLERANCE * largest)
