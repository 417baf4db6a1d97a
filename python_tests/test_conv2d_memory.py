# SPDX-License-Identifier: MIT
"""conv2d's memory beside operands and results is at most the larger of input and output, for layers
whose weights are smaller than that; benchmarks/memory.py reports all layers of all networks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fastconv import runtime

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

LAYERS = [
    ("lenet", "conv2"),
    ("resnet18", "7x7s2_3_64_224"),
    ("resnet18", "3x3_64_64_56"),
    ("resnet18", "3x3s2_64_128_56"),
    ("resnet50", "1x1_256_64_56"),
    ("resnet50", "1x1_128_512_28"),
    ("mobilenetv2", "dw3x3_144_56"),
    ("googlenet", "5x5_16_32_28"),
    ("odd", "dilated"),
    ("odd", "grouped"),
]


@pytest.fixture(scope="module")
def memory() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    import memory

    with profile(activities=[ProfilerActivity.CPU]):
        pass  # the profiler must first run on the main thread
    yield memory
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(("network", "name"), LAYERS)
def test_extra_memory(memory: ModuleType, network: str, name: str, layout: str) -> None:
    (shape,) = (s for s in memory.load_shapes(network) if s.name == name)
    with runtime.force_cpu_isa(runtime.available_isas()[-1]):  # fastconv's kernels, never torch's
        rows = memory.measure(shape, 16, layout)
    assert len(rows) == 2 + shape.needs_grad_input
    for row in rows:
        assert row.algorithm != "torch"
        assert row.weight_bytes < row.limit_bytes
        assert row.extra_bytes <= row.limit_bytes, row


def test_the_count_sees_temporary_memory(memory: ModuleType) -> None:
    """Negative control: what is freed before the call returns counts too."""
    floats = 1 << 20
    assert memory.peak_of(lambda: torch.empty(floats)) == 4 * floats

    def with_temporary() -> torch.Tensor:
        scratch = torch.empty(2 * floats)
        del scratch
        return torch.empty(floats)

    assert memory.peak_of(with_temporary) == 8 * floats
