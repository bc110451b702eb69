"""Recognises PReLU where a converter took it apart.

Converters without a PReLU operator write max(x, 0) + slope * min(x, 0), with
min(x, 0) = (x - |x|) / 2 and the half multiplied in before or kept as a factor of its own.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tflite
from numpy.typing import NDArray

from app.lab.export.flatbuffer import Operator, TfliteGraph

_NONE = tflite.ActivationFunctionType.NONE


@dataclass(frozen=True)
class PRelu:
    """PReLU of tensor `source`; `slope` broadcasts against it, channels last."""

    source: int
    slope: NDArray[Any]


def match(network: TfliteGraph, step: Operator) -> PRelu | None:
    """The PReLU that ends in `step`, or None where it is anything else."""
    if step.name != "ADD" or step.options.FusedActivationFunction() != _NONE:
        return None
    for positive, negative in (step.inputs, step.inputs[::-1]):
        source = _operand_of(network, positive, "RELU")
        factor, inner = _scaled(network, negative)
        if source is not None and source == _twice_negative_part(network, inner):
            # x - |x| is twice min(x, 0); doubling a float is exact.
            return PRelu(source, np.asarray(factor * 2, np.float32))
    return None


def _operand_of(network: TfliteGraph, tensor: int, name: str) -> int | None:
    """The input of the operator `name` that computes `tensor`, if that one does."""
    step = network.producers.get(tensor)
    return step.inputs[0] if step is not None and step.name == name else None


def _scaled(network: TfliteGraph, tensor: int) -> tuple[NDArray[Any], int]:
    """`tensor` as a constant factor times another tensor, with all constant factors gathered."""
    factor: NDArray[Any] = np.ones((), np.float32)
    while (step := network.producers.get(tensor)) is not None and step.name == "MUL":
        constants = [i for i in step.inputs if network.tensors[i].data is not None]
        if len(constants) != 1 or step.options.FusedActivationFunction() != _NONE:
            break
        factor = factor * network.tensors[constants[0]].data
        tensor = next(i for i in step.inputs if i != constants[0])
    return factor, tensor


def _twice_negative_part(network: TfliteGraph, tensor: int) -> int | None:
    """The x of `tensor` = x - |x|."""
    step = network.producers.get(tensor)
    if step is None or step.name != "SUB" or step.options.FusedActivationFunction() != _NONE:
        return None
    whole, absolute = step.inputs
    return whole if _operand_of(network, absolute, "ABS") == whole else None
