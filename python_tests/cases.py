# SPDX-License-Identifier: MIT
"""Named case tables for the operator tests, and a seeded generator of random cases.

Sizes are small on purpose: a kernel bug shows at a tile edge, not at a large batch. Each table says
which edge it is after.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

Pair = tuple[int, int]


def pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


@dataclass(frozen=True)
class Conv2dCase:
    """One 2-D convolution: sizes and options, nothing about layout, dtype or instruction set."""

    id: str
    batch: int
    in_channels: int
    size: Pair
    out_channels: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = True

    @property
    def input_shape(self) -> list[int]:
        return [self.batch, self.in_channels, *self.size]

    @property
    def weight_shape(self) -> list[int]:
        return [self.out_channels, self.in_channels // self.groups, *self.kernel]

    @property
    def output_size(self) -> Pair:
        height, width = (
            (self.size[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in (0, 1)
        )
        return height, width

    @property
    def output_shape(self) -> list[int]:
        return [self.batch, self.out_channels, *self.output_size]

    @property
    def multiply_adds(self) -> int:
        _, *weight = self.weight_shape
        return self.batch * self.out_channels * _product(self.output_size) * _product(weight)

    @property
    def options(self) -> dict[str, Pair | int]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }


def _product(values: list[int] | Pair) -> int:
    result = 1
    for value in values:
        result *= value
    return result


def _conv(
    id: str,
    batch: int,
    channels: int,
    size: int | Pair,
    out: int,
    kernel: int | Pair,
    *,
    s: int | Pair = 1,
    p: int | Pair = 0,
    d: int | Pair = 1,
    g: int = 1,
    bias: bool = True,
) -> Conv2dCase:
    return Conv2dCase(
        id, batch, channels, pair(size), out, pair(kernel), pair(s), pair(p), pair(d), g, bias
    )


# Layers people train, at sizes that keep the test short.
CONV2D_NETWORKS = [
    _conv("lenet-conv1", 8, 1, 28, 6, 5, p=2),
    _conv("lenet-conv2", 8, 6, 14, 16, 5),
    _conv("cifar-conv1", 4, 3, 32, 32, 3, p=1),
    _conv("vgg-3x3", 2, 32, 14, 48, 3, p=1),
    _conv("resnet-stem", 1, 3, 48, 16, 7, s=2, p=3, bias=False),
    _conv("resnet-3x3-s2", 2, 16, 15, 32, 3, s=2, p=1, bias=False),
    _conv("resnet-1x1-s2", 2, 24, 14, 40, 1, s=2, bias=False),
    _conv("mobilenet-depthwise", 2, 24, 14, 24, 3, p=1, g=24, bias=False),
    _conv("mobilenet-depthwise-s2", 2, 20, 15, 20, 3, s=2, p=1, g=20, bias=False),
    _conv("mobilenet-pointwise", 2, 24, 7, 72, 1, bias=False),
    _conv("resnext-groups", 2, 32, 9, 32, 3, p=1, g=8),
    _conv("deeplab-dilated", 1, 12, 17, 20, 3, p=4, d=4),
    _conv("alexnet-11x11-s4", 1, 3, 63, 16, 11, s=4, p=2),
    _conv("mnist-wide-batch", 512, 2, (3, 4), 5, 3, p=1),
]

# Image and kernel extents: one pixel, one row, one column, long rows, big planes, even kernels.
CONV2D_SIZES = [
    _conv("1x1-image", 2, 3, 1, 4, 1),
    _conv("1x1-image-3x3-kernel", 3, 3, 1, 4, 3, p=1),
    _conv("2x2-image-2x2-kernel", 3, 5, 2, 7, 2),
    _conv("one-row", 2, 3, (1, 37), 5, (1, 5)),
    _conv("one-column", 2, 3, (37, 1), 5, (5, 1)),
    _conv("row-of-130", 1, 2, (3, 130), 3, 3, p=1),
    _conv("224x224", 1, 3, 224, 4, 3, p=1),
    _conv("225x223-s2", 1, 1, (225, 223), 6, 3, s=2, p=1),
    _conv("kernel-1x7", 2, 6, 17, 9, (1, 7), p=(0, 3)),
    _conv("kernel-7x1", 2, 6, 17, 9, (7, 1), p=(3, 0)),
    _conv("kernel-2x2", 2, 5, 9, 6, 2),
    _conv("kernel-4x2", 2, 5, (9, 12), 6, (4, 2), p=(1, 1)),
    _conv("kernel-11x11", 1, 2, 16, 3, 11, p=5),
    _conv("kernel-covers-image", 3, 4, (6, 5), 8, (6, 5)),
    _conv("output-1x1", 5, 7, 5, 9, 5),
    _conv("output-1x1-strided", 5, 7, 6, 9, 5, s=3),
]

# Strides up to 4, larger than the kernel (input pixels that no output reads), asymmetric options.
CONV2D_STEPS = [
    _conv("stride-2", 2, 5, 11, 7, 3, s=2),
    _conv("stride-2-even-width", 2, 5, (10, 34), 7, 3, s=2, p=1),
    _conv("stride-2-long-row", 1, 2, (4, 101), 3, 5, s=2, p=2),
    _conv("stride-3", 2, 5, 17, 7, 3, s=3, p=1),
    _conv("stride-4", 2, 3, 23, 6, 5, s=4, p=2),
    _conv("stride-4-kernel-3", 2, 3, 23, 6, 3, s=4),
    _conv("stride-3-kernel-1", 2, 6, 13, 8, 1, s=3),
    _conv("stride-2-kernel-1-padded", 2, 6, 8, 8, 1, s=2, p=1),
    _conv("stride-larger-than-image", 2, 3, 5, 4, 3, s=7),
    _conv("stride-1x2", 2, 4, (9, 12), 5, 3, s=(1, 2), p=1),
    _conv("stride-3x1", 2, 4, (12, 9), 5, 3, s=(3, 1), p=1),
    _conv("stride-4x2-kernel-2x5", 2, 4, (13, 18), 5, (2, 5), s=(4, 2), p=(0, 2)),
    _conv("unread-columns", 2, 3, (8, 10), 5, 3, s=4),
    _conv("padding-2x0", 2, 3, 9, 5, 3, p=(2, 0)),
    _conv("padding-0x3", 2, 3, 9, 5, 3, p=(0, 3)),
    _conv("padding-exceeds-kernel", 2, 3, 6, 5, 3, p=5),
    _conv("padding-exceeds-kernel-s2", 2, 3, 6, 5, 2, s=2, p=(4, 7)),
    _conv("padding-exceeds-image", 1, 2, 2, 3, 1, p=9),
    _conv("padding-makes-room", 2, 3, 2, 5, 5, p=2),
    _conv("dilation-2", 2, 4, 13, 6, 3, d=2),
    _conv("dilation-1x3", 2, 4, (9, 16), 6, 3, p=(1, 3), d=(1, 3)),
    _conv("dilation-2-stride-2", 2, 4, 15, 6, 3, s=2, p=2, d=2),
    _conv("dilation-3-stride-2", 2, 4, 17, 6, 3, s=2, p=3, d=3),
    _conv("dilation-2-stride-3", 2, 4, 17, 6, 3, s=3, p=2, d=2),
    _conv("dilation-4-stride-2x4", 1, 3, (19, 25), 4, (3, 2), s=(2, 4), p=(4, 1), d=(4, 6)),
    _conv("dilation-exceeds-image", 2, 3, 4, 5, (3, 2), p=(8, 5), d=(8, 6)),
]

# Channel counts around every vector and tile width; groups; batches.
CONV2D_CHANNELS = [
    *(_conv(f"channels-{c}-to-{o}", 2, c, (5, 7), o, 3, p=1)
      for c, o in [(1, 1), (1, 17), (3, 5), (5, 33), (17, 3), (33, 15), (15, 14), (16, 16),
                   (7, 28), (4, 29), (2, 65)]),
    _conv("depth-600", 1, 600, 3, 5, 1),
    # 1x1 kernels, whose images are read in place: vectors that end inside an image, several tiles
    # of channels and of depth, one chunk of pixels and several.
    _conv("1x1-of-17-pixels", 5, 9, (1, 17), 31, 1),
    _conv("1x1-of-49-pixels", 5, 70, 7, 37, 1),
    _conv("1x1-of-144-pixels", 3, 130, 12, 64, 1),
    _conv("1x1-of-300-pixels", 3, 20, (10, 30), 96, 1, g=2),
    _conv("1x1-deep", 2, 530, 12, 33, 1),
    _conv("depth-75x9", 1, 75, 5, 20, 3),
    _conv("depth-one-channel-25x25", 1, 3, 26, 4, 25),
    _conv("groups-2-odd", 2, 6, 7, 10, 3, p=1, g=2),
    _conv("groups-3-of-1-to-5", 2, 3, 7, 15, 3, g=3),
    _conv("groups-5-stride-2", 2, 15, 9, 35, 3, s=2, p=1, g=5),
    _conv("groups-2-wide", 1, 40, 5, 70, 3, g=2),
    _conv("depthwise-5x5", 2, 17, 9, 17, 5, p=2, g=17),
    _conv("depthwise-dilated", 2, 9, 12, 9, 3, p=2, d=2, g=9),
    _conv("depthwise-multiplier-3", 2, 7, 9, 21, 3, p=1, g=7),
    _conv("depthwise-multiplier-2-s2", 2, 7, 9, 14, 3, s=2, p=1, g=7),
    _conv("batch-1", 1, 5, 8, 9, 3, p=1),
    _conv("batch-13", 13, 5, 8, 9, 3, p=1),
    _conv("batch-37", 37, 3, (6, 9), 5, 3, p=1),
    _conv("batch-40-unpadded", 40, 2, (9, 7), 6, (4, 5)),
    _conv("batch-512-tiny-planes", 512, 3, 2, 4, 2),
    _conv("batch-512-1x1", 512, 9, 1, 10, 1),
    _conv("no-bias", 3, 4, 6, 5, 3, bias=False),
]  # fmt: skip

# 3x3 layers with enough channels for the Winograd algorithms, at sizes their tiles do not divide.
CONV2D_WINOGRAD = [
    _conv("winograd-64-to-64", 1, 64, 16, 64, 3, p=1),
    _conv("winograd-odd-image", 2, 48, (13, 15), 80, 3, p=1),
    _conv("winograd-unpadded", 1, 64, (9, 14), 64, 3),
    _conv("winograd-wide-padding", 1, 64, (7, 10), 64, 3, p=(2, 3)),
    _conv("winograd-groups", 1, 96, 12, 128, 3, p=1, g=2),
    _conv("winograd-odd-channels", 1, 67, 11, 71, 3, p=1, bias=False),
    _conv("winograd-tiny-image", 9, 64, (2, 3), 64, 3, p=1),
    _conv("winograd-many-tiles", 4, 24, (15, 16), 20, 3, p=1),
]

CONV2D_CASES = [
    *CONV2D_NETWORKS,
    *CONV2D_SIZES,
    *CONV2D_STEPS,
    *CONV2D_CHANNELS,
    *CONV2D_WINOGRAD,
]

CONV2D_EMPTY_BATCH = [
    _conv("empty-batch", 0, 3, 8, 5, 3, p=1),
    _conv("empty-batch-s2-no-bias", 0, 4, 9, 6, 3, s=2, bias=False),
    _conv("empty-batch-groups", 0, 4, 9, 8, 3, g=2),
]


def random_conv2d_cases(count: int, seed: int) -> Iterator[Conv2dCase]:
    """Yields `count` valid cases; the same seed gives the same cases on every machine."""
    rng = random.Random(seed)
    made = 0
    while made < count:
        groups = rng.choice([1, 1, 1, 2, 3, 8])
        case = Conv2dCase(
            id=f"random-{seed}-{made}",
            batch=rng.choice([1, 1, 2, 3, 7, 20]),
            in_channels=groups * rng.choice([1, 1, 2, 3, 4, 8, 11, 16, 19]),
            size=(rng.randint(1, 20), rng.choice([*range(1, 20), 33, 50, 70])),
            out_channels=groups * rng.choice([1, 2, 3, 5, 6, 8, 13, 16, 18, 30]),
            kernel=(rng.choice([1, 1, 2, 3, 3, 4, 5, 7]), rng.choice([1, 1, 2, 3, 3, 4, 5, 7])),
            stride=(rng.choice([1, 1, 1, 2, 2, 3, 4]), rng.choice([1, 1, 1, 2, 2, 3, 4])),
            padding=(rng.choice([0, 0, 1, 2, 3, 6]), rng.choice([0, 0, 1, 2, 3, 6])),
            dilation=(rng.choice([1, 1, 1, 2, 3]), rng.choice([1, 1, 1, 2, 3])),
            groups=groups,
            bias=rng.random() < 0.7,
        )
        if min(case.output_size) >= 1 and case.multiply_adds < 4_000_000:
            made += 1
            yield case
