"""MobileFaceNet as InsightFace trains it.

Chen et al., "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on Mobile
Devices" (CCBR 2018, table 1): inverted residuals with PReLU and a global depthwise convolution
instead of pooling. `arcface_torch` doubles the channels and lists the trunk as `layers`.
"""

from dataclasses import dataclass

from torch import Tensor, nn

HEAD = 512  # channels of the last 1 x 1 convolution
LAST_SIDE = 7


@dataclass(frozen=True, slots=True)
class Shape:
    """Blocks of the four stages, and the factor on the paper's channels (64, 128)."""

    blocks: tuple[int, int, int, int]
    scale: int


SHAPES = {
    "mobilefacenet": Shape((1, 4, 6, 2), 2),
    "mobilefacenet-large": Shape((2, 8, 12, 4), 4),
}


class Wrapped(nn.Module):
    """Layers in a row, under the name `layers` that the checkpoints know."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


class Residual(Wrapped):
    """The same, added to its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class MobileFaceNet(nn.Module):
    """(n, 3, 112, 112) -> (n, dimension), not normalised."""

    def __init__(self, shape: Shape, dimension: int) -> None:
        super().__init__()
        first, second, third, fourth = shape.blocks
        narrow, wide = 64 * shape.scale, 128 * shape.scale
        # 64 groups whatever the scale, where the paper has one per channel.
        opening = (
            _convolution(narrow, narrow, 3, padding=1, groups=64)
            if first == 1
            else _repeated(narrow, 128, first)
        )
        self.layers = nn.ModuleList(
            [
                _convolution(3, narrow, 3, stride=2, padding=1),
                opening,
                _bottleneck(Wrapped, narrow, 128, narrow, stride=2),
                _repeated(narrow, 128, second),
                _bottleneck(Wrapped, narrow, 256, wide, stride=2),
                _repeated(wide, 256, third),
                _bottleneck(Wrapped, wide, 512, wide, stride=2),
                _repeated(wide, 256, fourth),
            ]
        )
        self.conv_sep = _convolution(wide, HEAD, 1)
        self.features = Wrapped(
            _linear(HEAD, HEAD, LAST_SIDE, groups=HEAD),
            nn.Flatten(),
            nn.Linear(HEAD, dimension, bias=False),
            nn.BatchNorm1d(dimension),
        )

    def trunk(self, x: Tensor) -> Tensor:
        """All but the head: (n, 512, 7, 7)."""
        for layer in self.layers:
            x = layer(x)
        result: Tensor = self.conv_sep(x)
        return result

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.features(self.trunk(x))
        return embedding


def _convolution(
    inside: int, outside: int, kernel: int, stride: int = 1, *, padding: int = 0, groups: int = 1
) -> Wrapped:
    return Wrapped(
        nn.Conv2d(inside, outside, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outside),
        nn.PReLU(outside),
    )


def _linear(inside: int, outside: int, kernel: int, groups: int = 1) -> Wrapped:
    return Wrapped(
        nn.Conv2d(inside, outside, kernel, groups=groups, bias=False), nn.BatchNorm2d(outside)
    )


def _bottleneck(
    kind: type[Wrapped], inside: int, expanded: int, outside: int, stride: int
) -> Wrapped:
    return kind(
        _convolution(inside, expanded, 1),
        _convolution(expanded, expanded, 3, stride, padding=1, groups=expanded),
        _linear(expanded, outside, 1),
    )


def _repeated(channels: int, expanded: int, count: int) -> Wrapped:
    return Wrapped(
        *(_bottleneck(Residual, channels, expanded, channels, stride=1) for _ in range(count))
    )
