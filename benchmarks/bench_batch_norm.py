# SPDX-License-Identifier: MIT
"""Batch normalisation, with and without a relu behind it, against torch, per shape, layout and
pass: ``pytest benchmarks/bench_batch_norm.py``.

Every case is compared with torch before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import fastconv.functional as fastF

SHAPES = {
    "stem": (16, 64, 112, 112),
    "layer1": (16, 64, 56, 56),
    "layer2": (16, 128, 28, 28),
    "layer3": (16, 256, 14, 14),
    "layer4": (16, 512, 7, 7),
    "mobilenet": (16, 96, 56, 56),
    "batch1": (1, 64, 56, 56),
    "cifar": (64, 32, 32, 32),
    "small": (8, 16, 8, 8),
    "features": (512, 256),
}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def torchs(x: torch.Tensor, *args, activation: str, **kwargs) -> torch.Tensor:
    output = F.batch_norm(x, *args, **kwargs)
    return F.relu(output, inplace=True) if activation == "relu" else output


SIDES: dict[str, Callable[..., torch.Tensor]] = {"torch": torchs, "fastconv": fastF.batch_norm}


@pytest.mark.parametrize("who", SIDES)
@pytest.mark.parametrize("passes", ["training", "inference"])
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm(benchmark, shape, layout, activation, passes, who) -> None:
    size = SHAPES[shape]
    if len(size) == 2 and layout != "nchw":
        pytest.skip("two dimensions have one layout")
    x = torch.randn(size).contiguous(memory_format=LAYOUTS[layout])
    channels = size[1]
    stats = torch.zeros(channels), torch.ones(channels)
    parameters = [torch.ones(channels).requires_grad_(), torch.zeros(channels).requires_grad_()]
    leaf, grad = x.clone(memory_format=torch.preserve_format).requires_grad_(), x.roll(1, 0)

    def run(side: str) -> tuple[torch.Tensor, ...]:
        function = SIDES[side]
        if passes == "inference":
            with torch.no_grad():
                return (function(x, *stats, *parameters, activation=activation),)
        output = function(leaf, *stats, *parameters, training=True, activation=activation)
        return torch.autograd.grad(output, [leaf, *parameters], grad)

    for mine, theirs in zip(run("fastconv"), run("torch"), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())
    benchmark.group = f"{shape} {layout} {activation} {passes}"
    benchmark(run, who)
