"""foamliu's MobileFaceNet: the weights of its checkpoint -> an ONNX network, without PyTorch.

The network is that of `scripts.torch_export.foamliu`, which names its papers. Batch normalisations
become part of the convolutions before them.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from app.lab.export.faces import IMAGENET_MEAN, IMAGENET_STD, Normalisation
from app.lab.export.graph import GraphBuilder
from app.lab.export.parity import ExportError
from app.lab.export.saved_weights import Weights

SIDE, DIMENSION = 112, 128
NORMALISATION = Normalisation(IMAGENET_MEAN, IMAGENET_STD, rgb=True)
# Inverted residual blocks, and the places of those that halve the side.
BLOCKS, HALVING = 15, (0, 5, 12)
EPSILON = 1e-5
COUNTER = "num_batches_tracked"


def to_onnx(weights: Weights) -> onnx.ModelProto:
    """`input` (batch, 3, 112, 112) -> `embedding` (batch, 128), float32. The same weights give the
    same file on every machine. Raises ExportError where the weights are not this network's."""
    made = _Network(GraphBuilder("mobilefacenet"), dict(weights))
    x = made.builder.input("input", ["batch", 3, SIDE, SIDE])
    x = made.convolution(x, "conv1.0", "conv1.1", stride=2, pad=1, activation="Clip")
    x = made.convolution(x, "dw_conv.depthwise", "dw_conv.bn1", pad=1, activation="Relu")
    x = made.convolution(x, "dw_conv.pointwise", "dw_conv.bn2", activation="Relu")
    for place in range(BLOCKS):
        x = made.block(x, f"features.{place}.conv", stride=2 if place in HALVING else 1)
    x = made.convolution(x, "conv2.0", "conv2.1", activation="Clip")
    x = made.convolution(x, "gdconv.depthwise", "gdconv.bn")
    x = made.convolution(x, "conv3", "bn")
    x = made.builder.node("Flatten", [x], "flat", axis=1)
    made.builder.output("embedding", x, ["batch", DIMENSION])
    made.check_all_used()
    return made.builder.build()


@dataclass(frozen=True, slots=True)
class _Network:
    """The graph under construction, and the weights that it has not taken yet."""

    builder: GraphBuilder
    weights: dict[str, NDArray[np.float32]]

    def block(self, x: str, name: str, stride: int) -> str:
        """Expand, filter each channel, project; added to the input where the shape stays."""
        inside = self._shape(f"{name}.0.0.weight")[1]
        outside = self._shape(f"{name}.2.weight")[0]
        y = self.convolution(x, f"{name}.0.0", f"{name}.0.1", activation="Clip")
        y = self.convolution(y, f"{name}.1.0", f"{name}.1.1", stride=stride, pad=1,
                             activation="Clip")  # fmt: skip
        y = self.convolution(y, f"{name}.2", f"{name}.3")
        return self.builder.node("Add", [x, y], f"{name}.sum") if (
            stride == 1 and inside == outside
        ) else y  # fmt: skip

    def convolution(
        self, x: str, name: str, normalisation: str, *, stride: int = 1, pad: int = 0,
        activation: str | None = None,
    ) -> str:  # fmt: skip
        """A convolution with its batch normalisation, in one node; one of a single input channel a
        filter is a depthwise one."""
        kernel = self._taken(f"{name}.weight").astype(np.float64)
        scale, offset, mean, variance = (
            self._taken(f"{normalisation}.{part}").astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = scale / np.sqrt(variance + EPSILON)
        given = self.weights.pop(f"{name}.bias", np.zeros(len(kernel)))
        folded = kernel * factor[:, np.newaxis, np.newaxis, np.newaxis]
        bias = offset + (given - mean) * factor
        inputs = [
            x,
            self.builder.weight(f"{name}.kernel", folded.astype(np.float32)),
            self.builder.weight(f"{name}.bias", bias.astype(np.float32)),
        ]
        y = self.builder.node(
            "Conv", inputs, name, kernel_shape=list(kernel.shape[2:]), strides=[stride] * 2,
            pads=[pad] * 4, group=len(kernel) if kernel.shape[1] == 1 else 1,
        )  # fmt: skip
        if activation is None:
            return y
        limits = (("zero", 0), ("six", 6)) if activation == "Clip" else ()
        bounds = [self.builder.weight(n, np.array(value, np.float32)) for n, value in limits]
        return self.builder.node(activation, [y, *bounds], f"{name}.active")

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._weight(name).shape

    def _weight(self, name: str) -> NDArray[np.float32]:
        if name not in self.weights:
            raise ExportError(f"the weights are not of foamliu's MobileFaceNet: {name} is missing")
        return self.weights[name]

    def _taken(self, name: str) -> NDArray[np.float32]:
        found = self._weight(name)
        del self.weights[name]
        return found

    def check_all_used(self) -> None:
        """Raise ExportError where the checkpoint has a weight that the network has not."""
        left = [name for name in self.weights if not name.endswith(COUNTER)]
        if left:
            raise ExportError(
                f"the weights are not of foamliu's MobileFaceNet: {left[0]} is none of its"
            )
