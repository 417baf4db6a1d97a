# SPDX-License-Identifier: MIT
"""conv2d against torch, per layer, layout and pass: ``pytest benchmarks/bench_conv2d.py``.

The layers are a few of each network of ``shapes/``; every case is compared with torch before it is
timed. ``compare.py`` times all layers, both sides in turns; this module is for pytest-benchmark's
own statistics, its ``--benchmark-compare`` between two commits above all.
"""

from __future__ import annotations

import pytest
import torch
from compare import Side, load_shapes, worst_error

import fastconv.functional as fastF

BATCH = 16
LAYERS = {
    "lenet": ["conv1", "conv2"],
    "small": ["3to32", "10to10"],
    "cifar_cnn": ["3x3_32_32_32", "3x3_128_128_8"],
    "alexnet": ["11x11s4_3_64_224"],
    "googlenet": ["5x5_16_32_28"],
    "resnet18": ["7x7s2_3_64_224", "3x3_64_64_56", "3x3_256_256_14", "3x3s2_128_256_28"],
    "resnet50": ["1x1_256_64_56", "1x1_64_256_56", "1x1_1024_256_14"],
    "densenet121": ["3x3_128_32_28"],
    "mobilenetv2": ["dw3x3_144_56", "1x1_24_144_56"],
    "odd": ["odd33", "dilated", "grouped"],
}
CASES = [(network, name) for network, names in LAYERS.items() for name in names]
CONVS = {"torch": torch.nn.functional.conv2d, "fastconv": fastF.conv2d}


@pytest.mark.parametrize("who", CONVS)
@pytest.mark.parametrize("which", ["forward", "train"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(("network", "name"), CASES)
def test_conv2d(benchmark, network, name, layout, which, who) -> None:
    (shape,) = (s for s in load_shapes(network) if s.name == name)
    side = Side(CONVS[who], shape, BATCH, layout)
    worst_error(side.results(), Side(CONVS["torch"], shape, BATCH, layout).results())
    benchmark.group = f"{network} {name} {layout} {which}"
    benchmark(getattr(side, which))
