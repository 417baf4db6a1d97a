# SPDX-License-Identifier: MIT
"""Networks with batch normalisation: ResNet, DenseNet, MobileNetV2, GoogLeNet.

Module names and shapes are torchvision's, so that its weights load.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(
    channels: int, out: int, kernel: int, stride: int = 1, padding: int = 0
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
    return conv, nn.BatchNorm2d(out)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip: ResNet-18 and 34."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(channels, width, 3, stride, 1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv_bn(width, width, 3, 1, 1)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(*conv_bn(channels, width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += skip
        return self.relu(x)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which takes the stride), 1x1 and a skip: ResNet-50 and deeper."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1, self.bn1 = conv_bn(channels, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, 3, stride, 1)
        self.conv3, self.bn3 = conv_bn(width, out, 1)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(*conv_bn(channels, out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += skip
        return self.relu(x)


RESNET_PLANS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """He et al. 2015 (arXiv:1512.03385); the stride of a bottleneck is on its 3x3 convolution."""

    def __init__(self, depth: int, classes: int = 1000, width: int = 64) -> None:
        super().__init__()
        block, counts = RESNET_PLANS[depth]
        self.conv1, self.bn1 = conv_bn(3, width, 7, 2, 3)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        for i, count in enumerate(counts):
            blocks = []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(block(channels, width << i, stride))
                channels = (width << i) * block.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3 on everything the block has made so far."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1, self.norm2 = conv_bn(channels, 4 * growth, 1)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(maps, 1))))
        return self.conv2(self.relu2(self.norm2(x)))


class DenseBlock(nn.ModuleDict):
    def __init__(self, count: int, channels: int, growth: int) -> None:
        super().__init__()
        for i in range(count):
            self[f"denselayer{i + 1}"] = DenseLayer(channels + i * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.values():
            maps.append(layer(maps))
        return torch.cat(maps, 1)


class DenseNet(nn.Module):
    """Huang et al. 2016 (arXiv:1608.06993); blocks of 6, 12, 24 and 16 layers make DenseNet-121."""

    def __init__(
        self,
        classes: int = 1000,
        growth: int = 32,
        blocks: tuple[int, ...] = (6, 12, 24, 16),
    ) -> None:
        super().__init__()
        channels = 2 * growth
        self.features = nn.Sequential(
            OrderedDict(
                conv0=nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
                norm0=nn.BatchNorm2d(channels),
                relu0=nn.ReLU(inplace=True),
                pool0=nn.MaxPool2d(3, stride=2, padding=1),
            )
        )
        for i, count in enumerate(blocks):
            self.features.add_module(f"denseblock{i + 1}", DenseBlock(count, channels, growth))
            channels += count * growth
            if i + 1 < len(blocks):
                transition = OrderedDict(
                    norm=nn.BatchNorm2d(channels),
                    relu=nn.ReLU(inplace=True),
                    conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
                    pool=nn.AvgPool2d(2, stride=2),
                )
                self.features.add_module(f"transition{i + 1}", nn.Sequential(transition))
                channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class ConvBNReLU6(nn.Sequential):
    def __init__(self, channels: int, out: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """Widen by 1x1, depthwise 3x3, narrow by 1x1; a skip where the shapes allow it."""

    def __init__(self, channels: int, out: int, stride: int, factor: int) -> None:
        super().__init__()
        hidden = channels * factor
        layers: list[nn.Module] = []
        if factor != 1:
            layers.append(ConvBNReLU6(channels, hidden, 1, 1))
        layers.append(ConvBNReLU6(hidden, hidden, 3, stride, groups=hidden))
        layers += conv_bn(hidden, out, 1)
        self.conv = nn.Sequential(*layers)
        self.skips = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skips else self.conv(x)


MOBILENET_PLAN = (  # factor, channels, blocks, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """Sandler et al. 2018 (arXiv:1801.04381)."""

    def __init__(self, classes: int = 1000, width: float = 1.0, dropout: float = 0.2) -> None:
        super().__init__()

        def scaled(count: int) -> int:  # multiples of eight, at most a tenth below what was asked
            near = max(8, int(count * width + 4) // 8 * 8)
            return near + 8 if near < 0.9 * count * width else near

        channels, last = scaled(32), scaled(1280) if width > 1 else 1280 if width == 1 else 64
        layers: list[nn.Module] = [ConvBNReLU6(3, channels, 3, 2)]
        for factor, out, count, stride in MOBILENET_PLAN:
            for j in range(count):
                layers.append(
                    InvertedResidual(channels, scaled(out), stride if j == 0 else 1, factor)
                )
                channels = scaled(out)
        layers.append(ConvBNReLU6(channels, last, 1, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class BasicConv2d(nn.Module):
    """Convolution, batch normalisation (epsilon 0.001), ReLU."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Four branches side by side. The third has 3x3 kernels, as torchvision's weights need it."""

    def __init__(self, channels: int, plan: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pooled = plan
        self.branch1 = BasicConv2d(channels, one, 1)
        self.branch2 = nn.Sequential(
            BasicConv2d(channels, reduce3, 1), BasicConv2d(reduce3, three, 3)
        )
        self.branch3 = nn.Sequential(
            BasicConv2d(channels, reduce5, 1), BasicConv2d(reduce5, five, 3)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), BasicConv2d(channels, pooled, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class InceptionAux(nn.Module):
    """A classifier on a middle layer, whose loss helps the first layers learn."""

    def __init__(self, channels: int, classes: int, width: float, dropout: float) -> None:
        super().__init__()
        maps, hidden = int(128 * width), int(1024 * width)
        self.conv = BasicConv2d(channels, maps, 1)
        self.fc1 = nn.Linear(maps * 16, hidden)
        self.fc2 = nn.Linear(hidden, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.adaptive_avg_pool2d(x, (4, 4)))
        x = F.relu(self.fc1(torch.flatten(x, 1)), inplace=True)
        return self.fc2(self.dropout(x))


INCEPTION_PLAN = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class GoogLeNet(nn.Module):
    """Szegedy et al. 2014 (arXiv:1409.4842) with batch normalisation and both auxiliary heads.

    In training returns the three heads' scores ``(last, aux2, aux1)``, else the last's alone.
    """

    def __init__(self, classes: int = 1000, width: float = 1.0, dropout: float = 0.2) -> None:
        super().__init__()
        stem, middle = int(64 * width), int(192 * width)
        self.conv1 = BasicConv2d(3, stem, 7, 2)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = BasicConv2d(stem, stem, 1)
        self.conv3 = BasicConv2d(stem, middle, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        channels, heads = middle, {}
        for name, plan in INCEPTION_PLAN.items():
            if name == "4a":
                self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
            if name == "5a":
                self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
            one, r3, three, r5, five, pooled = (int(count * width) for count in plan)
            setattr(
                self, f"inception{name}", Inception(channels, (one, r3, three, r5, five, pooled))
            )
            channels = one + three + five + pooled
            heads[name] = channels
        self.aux1 = InceptionAux(heads["4a"], classes, width, 0.7 if dropout else 0.0)
        self.aux2 = InceptionAux(heads["4d"], classes, width, 0.7 if dropout else 0.0)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        x = self.conv3(self.conv2(self.maxpool1(self.conv1(x))))
        x = self.inception3b(self.inception3a(self.maxpool2(x)))
        x = self.inception4a(self.maxpool3(x))
        aux1 = self.aux1(x) if self.training else None
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        aux2 = self.aux2(x) if self.training else None
        x = self.inception5b(self.inception5a(self.maxpool4(self.inception4e(x))))
        x = self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
        return x if aux1 is None or aux2 is None else (x, aux2, aux1)
