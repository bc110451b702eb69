"""ONet, the third network of MTCNN (Zhang et al., IEEE Signal Processing Letters 23(10), 2016).

Its weights have the names that the PyPI package facenet-pytorch gives them.
"""

import torch
from torch import Tensor, nn


class ONet(nn.Module):
    """(n, 3, 48, 48) -> (n, 10): x of five landmarks, then their y, as shares of the side.

    It also has heads that classify the region and correct its box: their weights are read, and
    their answers left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.pool1, self.pool2 = (nn.MaxPool2d(3, 2, ceil_mode=True) for _ in range(2))
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2 = nn.Linear(256, 2), nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        x = self.prelu4(self.conv4(x))
        # Its first weights were made by Caffe for MATLAB: width comes before height.
        x = torch.flatten(x.permute(0, 3, 2, 1), 1)
        points: Tensor = self.dense6_3(self.prelu5(self.dense5(x)))
        return points
