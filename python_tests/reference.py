# SPDX-License-Identifier: MIT
"""What right means: float64 oracles, and the rule by which a float32 result is accepted.

The parity rule. Let `oracle` be the float64 result on the same (float32-valued) input, and let
torch's own float32 operator have the largest absolute error `e` against it. A float32 result of
fastconv is right when its largest absolute error is at most

    2 * e + 1e-6 * rms(oracle)

The first term lets another order of summation be twice as unlucky as torch's; the second keeps the
rule fair where torch happens to be exact. Nothing in the tests loosens either constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

ERROR_FACTOR = 2.0
RMS_FLOOR = 1e-6


@dataclass(frozen=True)
class ConvTensors:
    """The operands of one convolution and the gradient that flows into its output."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    grad_output: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> ConvTensors:
        bias = None if self.bias is None else change(self.bias)
        return ConvTensors(change(self.input), change(self.weight), bias, change(self.grad_output))


@dataclass(frozen=True)
class ConvResults:
    output: Tensor
    grad_input: Tensor | None
    grad_weight: Tensor | None
    grad_bias: Tensor | None


def run_conv2d(
    conv2d: Callable[..., Tensor],
    tensors: ConvTensors,
    options: dict,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> ConvResults:
    """Forward and backward through autograd; `needs` says which operands require a gradient."""
    operands = [tensors.input, tensors.weight, tensors.bias]
    leaves = [
        None if t is None else t.detach().requires_grad_(need)
        for t, need in zip(operands, needs, strict=True)
    ]
    output = conv2d(*leaves, **options)
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    grads = iter(torch.autograd.grad(output, wanted, tensors.grad_output))
    grads = [next(grads) if t is not None and t.requires_grad else None for t in leaves]
    return ConvResults(output.detach(), *grads)


def oracle_conv2d(tensors: ConvTensors, options: dict) -> ConvResults:
    """float64, by torch's own operators on contiguous tensors."""
    return run_conv2d(
        torch.nn.functional.conv2d, tensors.map(lambda t: t.double().contiguous()), options
    )


def conv2d_by_definition(
    input: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    """The formula of a convolution in numpy, one tap at a time: checks the oracle itself."""
    batch, channels, height, width = input.shape
    out_channels, group_channels, kernel_height, kernel_width = weight.shape
    padded = np.zeros(
        (batch, channels, height + 2 * padding[0], width + 2 * padding[1]), dtype=np.float64
    )
    padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = input
    out_height = (padded.shape[2] - dilation[0] * (kernel_height - 1) - 1) // stride[0] + 1
    out_width = (padded.shape[3] - dilation[1] * (kernel_width - 1) - 1) // stride[1] + 1
    output = np.zeros((batch, out_channels, out_height, out_width))
    if bias is not None:
        output += bias[None, :, None, None]
    for o in range(out_channels):
        first = o // (out_channels // groups) * group_channels
        for c in range(group_channels):
            for r in range(kernel_height):
                for q in range(kernel_width):
                    rows = r * dilation[0] + stride[0] * np.arange(out_height)
                    columns = q * dilation[1] + stride[1] * np.arange(out_width)
                    seen = padded[:, first + c][:, rows][:, :, columns]
                    output[:, o] += weight[o, c, r, q] * seen
    return output


def max_error(result: Tensor, oracle: Tensor) -> float:
    if result.numel() == 0:
        return 0.0
    return (result.double() - oracle).abs().max().item()


def rms(tensor: Tensor) -> float:
    return tensor.double().square().mean().sqrt().item() if tensor.numel() else 0.0


def assert_parity(result: Tensor, by_torch: Tensor, oracle: Tensor, what: str) -> None:
    """Asserts the parity rule of this module's docstring for one float32 result."""
    assert result.dtype == by_torch.dtype, f"{what}: {result.dtype}, torch has {by_torch.dtype}"
    assert result.shape == by_torch.shape, f"{what}: {result.shape}, torch has {by_torch.shape}"
    error = max_error(result, oracle)
    allowed = ERROR_FACTOR * max_error(by_torch, oracle) + RMS_FLOOR * rms(oracle)
    # Written so that a NaN anywhere fails.
    assert error <= allowed, f"{what}: largest error {error:.3e}, allowed {allowed:.3e}"


def assert_all_parity(result: ConvResults, by_torch: ConvResults, oracle: ConvResults) -> None:
    """assert_parity for the output and for each gradient that was asked for."""
    for field in fields(ConvResults):
        ours, theirs, exact = (getattr(r, field.name) for r in (result, by_torch, oracle))
        assert (ours is None) == (theirs is None), f"{field.name}: {ours} but torch has {theirs}"
        if ours is not None:
            assert_parity(ours, theirs, exact, field.name)


def assert_all_equal(result: ConvResults, expected: ConvResults) -> None:
    """Bit for bit (but for the sign of zero), for results that float32 represents exactly."""
    for field in fields(ConvResults):
        ours, exact = getattr(result, field.name), getattr(expected, field.name)
        if exact is None:
            assert ours is None, f"{field.name}: expected no gradient"
            continue
        wrong = (ours != exact.to(ours.dtype)).sum().item()
        assert wrong == 0, f"{field.name}: {wrong} of {ours.numel()} elements differ"


def significant_strides(tensor: Tensor) -> list[int]:
    """Strides of the dimensions that have any: one of size 1 never takes a step."""
    return [step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
