# SPDX-License-Identifier: MIT
"""2-D convolution: the public function and the fake (shape-only) kernels of its operators."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from fastconv._C import conv2d as _direct
from fastconv.ops.arguments import as_pair

_Pair = int | tuple[int, ...] | list[int]
_conv2d = torch.ops.fastconv.conv2d.default


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Pair = 1,
    padding: str | _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
) -> Tensor:
    """2-D convolution (cross-correlation), a drop-in for :func:`torch.nn.functional.conv2d`.

    ``output[n, o, i, j] = bias[o] + sum weight[o, c, r, s] * input[n, c, i*sh - ph + r*dh, ...]``

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``; float32 runs on fastconv's kernels, float64 on
            their reference loops, all others on torch's own. Any strides; N may be 0.
        weight: ``[out, C / groups, kh, kw]``, same dtype and device.
        bias: ``[out]`` or None.
        stride: step of the window, one integer or (height, width).
        padding: zeros around the input, one integer or (height, width); ``"valid"`` is 0, and
            ``"same"`` pads so that the output is as large as the input (stride 1 only; an odd
            total puts the extra zero at the bottom and right, as torch does).
        dilation: distance between kernel taps.
        groups: blocks of channels that are convolved separately; ``C`` for a depthwise convolution.

    Returns:
        ``[N, out, oh, ow]`` with ``oh = (H + 2*ph - dh*(kh-1) - 1) // sh + 1``; channels_last when
        input or weight is. Differentiable any number of times.

    Raises:
        ValueError: shapes or options that do not fit, e.g. "conv2d: expected weight of shape ...".
        RuntimeError: dtypes or devices that differ or are not supported.

    Method: im2col strips packed per block of pixels and multiplied by register-tile microkernels,
    after Anderson et al. 2017 (arXiv:1709.03395) and Georganas et al. 2018 (arXiv:1808.05567).
    """
    if not is_dynamo_compiling():
        output = _direct(input, weight, bias, stride, padding, dilation, groups)
        if output is not NotImplemented:
            return output
    if isinstance(padding, str):
        input, padding = _apply_named_padding(input, weight, stride, padding, dilation)
    return _conv2d(
        input,
        weight,
        bias,
        as_pair("conv2d", "stride", stride),
        as_pair("conv2d", "padding", padding),
        as_pair("conv2d", "dilation", dilation),
        groups,
    )


def _apply_named_padding(
    input: Tensor, weight: Tensor, stride: _Pair, padding: str, dilation: _Pair
) -> tuple[Tensor, _Pair]:
    """Turns "same" or "valid" into numbers; pads the input itself where "same" is asymmetric."""
    if padding == "valid":
        return input, 0
    if padding != "same":
        raise ValueError(f"conv2d: expected padding 'same', 'valid' or integers, got '{padding}'")
    if any(s != 1 for s in as_pair("conv2d", "stride", stride)):
        raise ValueError(f"conv2d: expected stride 1 with padding 'same', got {stride}")
    if weight.dim() != 4:
        raise ValueError(
            f"conv2d: expected weight of shape [out, in/groups, kh, kw], got {list(weight.shape)}"
        )
    dilations = as_pair("conv2d", "dilation", dilation)
    if len(dilations) != 2:
        raise ValueError(f"conv2d: expected dilation of one or two integers, got {dilation}")
    total = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
    extra = [t % 2 for t in total]
    if any(extra):
        input = torch.nn.functional.pad(input, [0, extra[1], 0, extra[0]])
    return input, (total[0] // 2, total[1] // 2)


def _check_shapes(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> None:
    """Refuses, for shape inference, what csrc/bindings/conv2d_args.cpp refuses."""

    def expect(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"conv2d: expected {what}")

    for tensor in (weight, bias):
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(
                f"conv2d: expected all tensors on the input's device {input.device}, "
                f"got {tensor.device}"
            )
    sizes = f"got input {list(input.shape)} and weight {list(weight.shape)}"
    expect(input.dim() in (3, 4), f"input of shape [N, C, H, W] or [C, H, W], {sizes}")
    expect(weight.dim() == 4, f"weight of shape [out, in/groups, kh, kw], {sizes}")
    for name, pair, least in (
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        expect(len(pair) in (1, 2), f"{name} of one or two integers, got {pair}")
        expect(min(pair) >= least, f"{name} of at least {least}, got {pair}")
    channels, height, width = input.shape[-3:]
    out, group_in, kernel_height, kernel_width = weight.shape
    expect(groups >= 1, f"groups of at least 1, got {groups}")
    expect(out % groups == 0, f"groups to divide the output channels, got groups {groups}, {sizes}")
    expect(channels == group_in * groups, f"in/groups times groups input channels, {sizes}")
    expect(kernel_height > 0 and kernel_width > 0, f"a kernel of at least 1 x 1, {sizes}")
    for size, kernel, d in ((height, kernel_height, 0), (width, kernel_width, -1)):
        expect(
            dilation[d] * (kernel - 1) + 1 <= size + 2 * padding[d],
            f"a kernel no larger than the padded input, {sizes}",
        )


@torch.library.register_fake("fastconv::conv2d")
def _conv2d_fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: list[int] = (1, 1),  # type: ignore[assignment]
    padding: list[int] = (0, 0),  # type: ignore[assignment]
    dilation: list[int] = (1, 1),  # type: ignore[assignment]
    groups: int = 1,
) -> Tensor:
    _check_shapes(input, weight, bias, stride, padding, dilation, groups)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    size = [
        (batched.shape[i] + 2 * padding[d] - dilation[d] * (weight.shape[i] - 1) - 1) // stride[d]
        + 1
        for i, d in ((2, 0), (3, -1))  # a list of one value stands for both dimensions
    ]
    output = input.new_empty([batched.shape[0], weight.shape[0], *size])
    output = output.contiguous(memory_format=_result_format(batched, weight))
    return output if input.dim() == 4 else output.squeeze(0)


@torch.library.register_fake("fastconv::_conv2d_backward")
def _conv2d_backward_fake(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    grad_input = grad_weight = grad_bias = None
    if output_mask[0]:
        batched = input if input.dim() == 4 else input.unsqueeze(0)
        grad_input = input.new_empty(batched.shape)
        grad_input = grad_input.contiguous(memory_format=_result_format(batched, weight))
        grad_input = grad_input if input.dim() == 4 else grad_input.squeeze(0)
    if output_mask[1]:
        weight_format = torch._prims_common.suggest_memory_format(weight)
        grad_weight = weight.new_empty(weight.shape).contiguous(memory_format=weight_format)
    if output_mask[2]:
        grad_bias = weight.new_empty([weight.shape[0]])
    return grad_input, grad_weight, grad_bias


def _result_format(input: Tensor, weight: Tensor) -> torch.memory_format:
    formats = [torch._prims_common.suggest_memory_format(t) for t in (input, weight)]
    if torch.channels_last in formats:
        return torch.channels_last
    return torch.contiguous_format
