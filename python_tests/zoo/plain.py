# SPDX-License-Identifier: MIT
"""Networks without skips: perceptron, LeNet-5, a CIFAR-style network, AlexNet, VGG, SqueezeNet.

Where torchvision has the network, module names and shapes are its own, so that its weights load.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Sequential):
    """Fully connected layers with ReLU between them; input of any shape is flattened."""

    def __init__(self, *sizes: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for i in range(len(sizes) - 1):
            layers.append(nn.Linear(sizes[i], sizes[i + 1]))
            if i + 2 < len(sizes):
                layers.append(nn.ReLU())
        super().__init__(*layers)


class LeNet5(nn.Module):
    """LeCun et al. 1998 as most courses write it: layers as attributes, the rest as functions."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc3(F.relu(self.fc2(x)))


class CifarNet(nn.Module):
    """Three blocks of 3x3 convolutions, ReLU and 2x2 pooling, and two linear layers; 32x32 images.

    Args:
        widths: channels of the blocks.
        depth: convolutions in a block.
    """

    def __init__(
        self, widths: tuple[int, int, int] = (32, 64, 128), depth: int = 1, classes: int = 10
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in widths:
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * 16, 128), nn.ReLU(), nn.Linear(128, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class AlexNet(nn.Module):
    """Krizhevsky 2014 (arXiv:1404.5997), the single-column network of torchvision."""

    def __init__(self, classes: int = 1000, width: float = 1.0, dropout: float = 0.5) -> None:
        super().__init__()
        c1, c2, c3, c4 = (int(c * width) for c in (64, 192, 384, 256))
        hidden = int(4096 * width)
        self.features = nn.Sequential(
            nn.Conv2d(3, c1, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c1, c2, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c2, c3, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c3, c4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c4, c4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(c4 * 36, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


VGG_PLANS = {  # convolutions of each of the five blocks, all 3x3
    11: (1, 1, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
}


class VGG(nn.Module):
    """Simonyan and Zisserman 2014 (arXiv:1409.1556), without batch normalisation."""

    def __init__(
        self, depth: int, classes: int = 1000, width: float = 1.0, dropout: float = 0.5
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for count, block_width in zip(VGG_PLANS[depth], (64, 128, 256, 512, 512), strict=True):
            for _ in range(count):
                out = int(block_width * width)
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)]
                channels = out
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        hidden = int(4096 * width)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 49, hidden),
            nn.ReLU(True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(True),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )
        for module in self.modules():  # without it, the signal dies out on the way
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Fire(nn.Module):
    """A squeeze to few channels by 1x1, then an expansion by 1x1 and 3x3 side by side."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        near = self.expand1x1_activation(self.expand1x1(x))
        return torch.cat([near, self.expand3x3_activation(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """Iandola et al. 2016 (arXiv:1602.07360), version 1.1."""

    def __init__(self, classes: int = 1000, width: float = 1.0, dropout: float = 0.5) -> None:
        super().__init__()

        def scaled(count: int) -> int:
            return max(int(count * width), 2)

        layers: list[nn.Module] = [nn.Conv2d(3, scaled(64), 3, stride=2), nn.ReLU(inplace=True)]
        channels = scaled(64)
        plan = ((16, 64), (16, 64), None, (32, 128), (32, 128), None,
                (48, 192), (48, 192), (64, 256), (64, 256))  # fmt: skip
        layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        for step in plan:
            if step is None:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
                continue
            squeeze, expand = map(scaled, step)
            layers.append(Fire(channels, squeeze, expand))
            channels = 2 * expand
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Conv2d(channels, classes, 1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d((1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)
