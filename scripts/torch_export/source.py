"""A PyTorch checkpoint as the source of an export: its graph with constants computed."""

import logging
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from app.lab.export.faces import Normalisation
from app.lab.export.graph import PRODUCER
from app.lab.export.parity import ExportError, FloatArray
from app.lab.export.recogniser import SourceRecogniser
from scripts.torch_export.checkpoint import load_network

# Of the faces at a time: activations of a large network at 112 pixels take some 30 MB per face.
BATCH = 8
INPUT, OUTPUT = "input", "embedding"
# The oldest that PyTorch's exporter writes without a conversion.
OPSET = 18


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


def to_graph(
    network: nn.Module, size: int, opset: int = OPSET, output: str = OUTPUT
) -> onnx.ModelProto:
    """`input` (batch, 3, size, size) -> `output` (batch, numbers), float32, any batch.

    Raises ExportError for a module that cannot be traced.
    """
    # Two images: with one the tracer takes the batch for a constant.
    example = torch.zeros((2, 3, size, size))
    file = BytesIO()
    # It warns of what a user cannot change: optional packages, its own deprecations.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[output],
                opset_version=opset,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                optimize=True,
                verbose=False,
            )
        program.save(file)
    except Exception as error:  # torch's exporter raises classes of its own
        raise ExportError(f"the network cannot be traced: {error}") from error
    model = onnx.load_from_string(file.getvalue())
    model.producer_name = PRODUCER
    model.producer_version = ""
    _forget_the_trace(model)
    return model


def _forget_the_trace(model: onnx.ModelProto) -> None:
    """Remove what the exporter noted of its own run, such as paths and lines of source files: the
    same weights must give the same file on every machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info,
                 *graph.initializer):  # fmt: skip
        del part.metadata_props[:]
        part.ClearField("doc_string")
