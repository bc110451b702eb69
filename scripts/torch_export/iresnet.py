"""IResNet: the residual networks of ArcFace.

Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition" (CVPR 2019):
blocks of BN-Conv-BN-PReLU-Conv-BN, a first convolution that keeps the resolution, and at the end
BN-Dropout-FC-BN. Parameters are called what `arcface_torch` of InsightFace calls them.
"""

from collections.abc import Mapping

from torch import Tensor, nn

# Blocks of the four stages, by the name of the network.
DEPTHS: Mapping[str, tuple[int, int, int, int]] = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
    "iresnet200": (6, 26, 60, 6),
}
WIDTHS = (64, 128, 256, 512)
# 112 pixels, halved four times.
LAST_SIDE = 7


class Block(nn.Module):
    """One residual block; the second convolution carries the stride."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.prelu = nn.PReLU(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        outer: Tensor = self.bn3(self.conv2(inner)) + self.downsample(x)
        return outer


class IResNet(nn.Module):
    """(n, 3, 112, 112) -> (n, dimension), not normalised."""

    def __init__(self, depths: tuple[int, int, int, int], dimension: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = nn.PReLU(WIDTHS[0])
        inputs = (WIDTHS[0], *WIDTHS[:-1])
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(inside, outside, depth)
            for inside, outside, depth in zip(inputs, WIDTHS, depths, strict=True)
        )
        self.bn2 = nn.BatchNorm2d(WIDTHS[-1])
        self.fc = nn.Linear(WIDTHS[-1] * LAST_SIDE**2, dimension)
        self.features = nn.BatchNorm1d(dimension)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        embedding: Tensor = self.features(self.fc(self.bn2(x).flatten(1)))
        return embedding


def _stage(inside: int, outside: int, depth: int) -> nn.Sequential:
    following = [Block(outside, outside, 1) for _ in range(depth - 1)]
    return nn.Sequential(Block(inside, outside, 2), *following)
