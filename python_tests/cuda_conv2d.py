# SPDX-License-Identifier: MIT
"""conv2d's CUDA launchers on the emulated device, as one function with torch's operands."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from cases import Conv2dCase
from cuda_shim import CudaShim, Memory
from reference import ConvResults, ConvTensors
from torch import Tensor

# In the order of the enums in csrc/cuda/conv2d/conv2d.h, csrc/common/activation.h and
# csrc/cuda/common/block_pool.h.
ELEMENTS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ALGORITHMS = ("general", "implicit_gemm", "depthwise", "direct")
MATHS = ("bfloat16", "float16", "tf32", "tf32x3")
ACTIVATIONS = ("none", "relu", "leaky_relu", "sigmoid", "tanh")
POOLS = ("none", "max", "avg")


@dataclass(frozen=True)
class Request:
    """How a call is to be served; None and -1 leave it to the library."""

    algorithm: str | None = None
    tile: int = -1
    weight_tile: int = -1  # of the weight gradient
    splits: int = 0  # the same
    allow_tf32: bool = False
    activation: str = "none"
    negative_slope: float = 0.01
    pool: str = "none"  # of the forward pass
    window: tuple[int, int] = (1, 1)
    multiprocessors: int = 4
    compute_capability: int = 80
    flush: str = "end"


@dataclass(frozen=True)
class Plan:
    """What served a call: the fields of Conv2dPlan."""

    algorithm: str
    math: str
    tile: int
    splits: int
    workspace_bytes: int

    @staticmethod
    def of(values: Tensor) -> Plan:
        algorithm, math, tile, splits, workspace = values.tolist()
        return Plan(ALGORITHMS[algorithm], MATHS[math], tile, splits, workspace)


def is_channels_last(t: Tensor) -> bool:
    return t.dim() == 4 and t.stride(1) == 1 and t.size(1) > 1


def _numbers(case: Conv2dCase, request: Request, dtype: torch.dtype, *tensors: Tensor) -> Tensor:
    shape = [
        *case.input_shape,
        case.out_channels,
        *case.output_size,
        *case.kernel,
        *case.stride,
        *case.padding,
        *case.dilation,
        case.groups,
    ]
    wanted = [
        ELEMENTS.index(dtype),
        int(request.allow_tf32),
        -1 if request.algorithm is None else ALGORITHMS.index(request.algorithm),
        request.tile,
        request.splits,
        ACTIVATIONS.index(request.activation),
        POOLS.index(request.pool),
        *request.window,
        request.compute_capability,
        request.multiprocessors,
    ]
    strides = [step for t in tensors for step in t.stride()]
    return torch.tensor([*shape, *wanted, *strides], dtype=torch.int64)


def _result(memory: Memory, like: Tensor, sizes: list[int], name: str) -> Tensor:
    return memory.empty(sizes, like.dtype, name, channels_last=is_channels_last(like), alignment=16)


def forward(
    shim: CudaShim, case: Conv2dCase, t: ConvTensors, request: Request
) -> tuple[Tensor, Plan]:
    output, _, plan = pooled_forward(shim, case, t, request, with_offsets=False)
    return output, plan


def pooled_forward(
    shim: CudaShim, case: Conv2dCase, t: ConvTensors, request: Request, *, with_offsets: bool
) -> tuple[Tensor, Tensor | None, Plan]:
    plan = torch.zeros(5, dtype=torch.int64)
    *planes, height, width = case.output_shape
    sizes = [*planes, height // request.window[0], width // request.window[1]]
    with shim.memory(request.flush) as memory:
        x, w = memory.copy(t.input, "input"), memory.copy(t.weight, "weight")
        b = None if t.bias is None else memory.copy(t.bias.contiguous(), "bias", alignment=4)
        y = _result(memory, t.input, sizes, "output")
        offsets = None
        if with_offsets:
            offsets = memory.empty(
                sizes, torch.uint8, "offsets", channels_last=is_channels_last(t.input)
            )
        numbers = _numbers(case, request, t.input.dtype, x, w, y)
        shim.call("conv2d_forward", numbers, plan, x, w, b, y, offsets, request.negative_slope)
        return y.clone(), None if offsets is None else offsets.clone(), Plan.of(plan)


def grad_input(
    shim: CudaShim, case: Conv2dCase, t: ConvTensors, request: Request
) -> tuple[Tensor, Plan]:
    plan = torch.zeros(5, dtype=torch.int64)
    with shim.memory(request.flush) as memory:
        g, w = memory.copy(t.grad_output, "grad_output"), memory.copy(t.weight, "weight")
        x = _result(memory, t.input, case.input_shape, "grad_input")
        numbers = _numbers(case, request, t.input.dtype, g, w, x)
        shim.call("conv2d_grad_input", numbers, plan, g, w, x)
        return x.clone(), Plan.of(plan)


def grad_weight(
    shim: CudaShim, case: Conv2dCase, t: ConvTensors, request: Request
) -> tuple[Tensor, Tensor | None, Plan]:
    plan = torch.zeros(5, dtype=torch.int64)
    with shim.memory(request.flush) as memory:
        g, x = memory.copy(t.grad_output, "grad_output"), memory.copy(t.input, "input")
        w = _result(memory, t.weight, case.weight_shape, "grad_weight")
        b = None
        if t.bias is not None:
            b = memory.empty([case.out_channels], t.bias.dtype, "grad_bias", alignment=4)
        wanted = replace(request, tile=request.weight_tile)
        numbers = _numbers(case, wanted, t.input.dtype, g, x, w)
        shim.call("conv2d_grad_weight", numbers, plan, g, x, w, b)
        return w.clone(), None if b is None else b.clone(), Plan.of(plan)


def run(
    shim: CudaShim, case: Conv2dCase, t: ConvTensors, request: Request
) -> tuple[ConvResults, tuple[Plan, Plan, Plan]]:
    """Forward and all gradients; the plans in the order forward, grad input, grad weight."""
    y, forward_plan = forward(shim, case, t, request)
    back = replace(request, activation="none")
    gx, input_plan = grad_input(shim, case, t, back)
    gw, gb, weight_plan = grad_weight(shim, case, t, back)
    return ConvResults(y, gx, gw, gb), (forward_plan, input_plan, weight_plan)
