"""MobileFaceNet as foamliu's repository trains it: on MobileNetV2's blocks.

The table of Chen et al. (CCBR 2018) with the blocks of Sandler et al., "MobileNetV2" (CVPR 2018),
so with ReLU6 instead of PReLU, and with a 1 x 1 convolution that makes the embedding.
"""

from torch import Tensor, nn

# (expansion, channels, blocks, stride of the first), from 64 channels on.
STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
FIRST, HEAD, LAST_SIDE = 64, 512, 7


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where the shape stays."""

    def __init__(self, inside: int, outside: int, expansion: int, stride: int) -> None:
        super().__init__()
        expanded = inside * expansion
        self.conv = nn.Sequential(
            _convolution(inside, expanded, 1),
            _convolution(expanded, expanded, 3, stride, groups=expanded),
            nn.Conv2d(expanded, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self._adds = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.conv(x)
        return x + inner if self._adds else inner


class SeparableConvolution(nn.Module):
    """Depthwise, then pointwise, each with its BN and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn1(self.depthwise(x)).relu()
        outer: Tensor = self.bn2(self.pointwise(inner)).relu()
        return outer


class GlobalDepthwise(nn.Module):
    """One weight for every place of every channel: (n, c, 7, 7) -> (n, c, 1, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, LAST_SIDE, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.bn(self.depthwise(x))
        return result


class FoamliuMobileFaceNet(nn.Module):
    """(n, 3, 112, 112) -> (n, dimension), not normalised."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.conv1 = _convolution(3, FIRST, 3, stride=2)
        self.dw_conv = SeparableConvolution(FIRST)
        blocks, inside = [], FIRST
        for expansion, channels, count, stride in STAGES:
            for position in range(count):
                step = stride if position == 0 else 1
                blocks.append(InvertedResidual(inside, channels, expansion, step))
                inside = channels
        self.features = nn.Sequential(*blocks)
        self.conv2 = _convolution(inside, HEAD, 1)
        self.gdconv = GlobalDepthwise(HEAD)
        self.conv3 = nn.Conv2d(HEAD, dimension, 1)
        self.bn = nn.BatchNorm2d(dimension)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.dw_conv(self.conv1(x)))
        x = self.bn(self.conv3(self.gdconv(self.conv2(x))))
        return x.flatten(1)


def _convolution(
    inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU6(inplace=True),
    )
