# SPDX-License-Identifier: MIT
"""Pooling against torch, per shape, layout and pass: ``pytest benchmarks/bench_pool2d.py``.

Every case is compared with torch before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import fastconv.functional as fastF

SHAPES = {
    "lenet_pool1": ((64, 6, 28, 28), 2, 2, 0),
    "lenet_pool2": ((64, 16, 10, 10), 2, 2, 0),
    "lenet_pool1_batch1": ((1, 6, 28, 28), 2, 2, 0),
    "resnet_stem": ((16, 64, 112, 112), 3, 2, 1),
    "resnet_stem_batch1": ((1, 64, 112, 112), 3, 2, 1),
    "vgg_first": ((16, 64, 224, 224), 2, 2, 0),
    "vgg_last": ((16, 512, 14, 14), 2, 2, 0),
    "googlenet": ((16, 192, 28, 28), 3, 1, 1),
    "googlenet_batch1": ((1, 192, 28, 28), 3, 1, 1),
    "odd": ((32, 64, 13, 17), 3, 2, 0),
    "small": ((32, 256, 7, 7), 3, 2, 1),
    "global": ((32, 256, 7, 7), 7, 7, 0),
    "stride4": ((32, 64, 28, 28), 4, 4, 0),
}
POOLS = {
    "max": {"fastconv": fastF.max_pool2d, "torch": F.max_pool2d},
    "avg": {"fastconv": fastF.avg_pool2d, "torch": F.avg_pool2d},
}


def forward(pool: Callable, x: torch.Tensor, window: tuple) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        with torch.no_grad():
            return pool(x, *window)

    return run


def training(pool: Callable, x: torch.Tensor, window: tuple) -> Callable[[], torch.Tensor]:
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    grad = torch.ones_like(pool(x, *window))

    def run() -> torch.Tensor:
        leaf.grad = None
        pool(leaf, *window).backward(grad)
        assert leaf.grad is not None
        return leaf.grad

    return run


@pytest.mark.parametrize("who", ["torch", "fastconv"])
@pytest.mark.parametrize("passes", [forward, training], ids=["forward", "training"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("op", POOLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pool2d(benchmark, shape, op, layout, passes, who) -> None:
    size, *window = SHAPES[shape]
    x = torch.randn(size).contiguous(memory_format=layout)
    run = passes(POOLS[op][who], x, tuple(window))
    torch.testing.assert_close(run(), passes(POOLS[op]["torch"], x, tuple(window))())
    benchmark.group = f"{op} {shape} {layout} {passes.__name__}"
    benchmark(run)
