"""A PyTorch module -> an ONNX graph, simplified: BN folded, constants computed."""

import logging
import warnings
from io import BytesIO

import onnx
import torch
from torch import nn

from app.lab.export.errors import ExportError
from app.lab.export.graph import PRODUCER

INPUT, OUTPUT = "input", "embedding"
# The oldest that PyTorch's exporter writes without a conversion.
OPSET = 18


def to_graph(network: nn.Module, size: int, opset: int = OPSET) -> onnx.ModelProto:
    """`input` (batch, 3, size, size) -> `embedding` (batch, dimension), float32, any batch.

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
                output_names=[OUTPUT],
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
    return model
