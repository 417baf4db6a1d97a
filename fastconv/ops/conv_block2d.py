# SPDX-License-Identifier: MIT
"""Convolution, activation and pooling as one operator, and the fake kernels of its halves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from fastconv._C import conv_block2d as _direct
from fastconv.ops.arguments import as_pair
from fastconv.ops.conv2d import _apply_named_padding, _conv2d_fake

_Pair = int | Sequence[int]

ACTIVATIONS = ("none", "relu", "leaky_relu", "sigmoid", "tanh")
POOLS = ("none", "max", "avg")

_conv_block2d = torch.ops.fastconv.conv_block2d.default


def conv_block2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: _Pair = 1,
    padding: str | _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
    activation: str = "none",
    negative_slope: float = 0.01,
    pool: str = "none",
    pool_size: _Pair = 2,
    pool_stride: _Pair | None = None,
) -> Tensor:
    """Convolution, bias, activation and pooling as one operator with one backward pass.

    ``output = pool(activation(conv2d(input, weight, bias)))``, as
    :func:`fastconv.functional.conv2d` and the pooling functions compute it.

    Small float32 images in NCHW layout with stride 1, dilation 1, one group, kernels of up to 7
    rows and 2x2 pooling with stride 2 run on fused kernels: the full-size output of the convolution
    never exists, and training saves the input, the pooled output and one byte per maximum. Every
    other call runs the separate operators, with equal results.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``; dtypes and layouts of
            :func:`fastconv.functional.conv2d`.
        weight: ``[out, C / groups, kh, kw]``.
        bias: ``[out]`` or None.
        stride, padding, dilation, groups: as for :func:`fastconv.functional.conv2d`.
        activation: ``"none"``, ``"relu"``, ``"leaky_relu"``, ``"sigmoid"`` or ``"tanh"``.
        negative_slope: slope of ``"leaky_relu"`` below zero.
        pool: ``"none"``, ``"max"`` or ``"avg"``.
        pool_size: window of the pooling, one integer or (height, width).
        pool_stride: step of the window; None is ``pool_size``.

    Returns:
        ``[N, out, oh, ow]``, the size of the pooled convolution. Differentiable any number of
        times; a second derivative goes through the separate operators.

    Raises:
        ValueError: names, shapes or options that do not fit, e.g. "conv_block2d: expected
            activation one of ...".
        RuntimeError: dtypes or devices that differ or are not supported.

    Method: rows of the convolution are pooled from a strip in L1, after the fused operators of
    Georganas et al. 2018 (arXiv:1808.05567); the backward pass multiplies only the pixels that won
    their window.
    """
    if not is_dynamo_compiling():
        output = _direct(input, weight, bias, stride, padding, dilation, groups, activation,
                         negative_slope, pool, pool_size, pool_stride)  # fmt: skip
        if output is not NotImplemented:
            return output
    if isinstance(padding, str):
        input, padding = _apply_named_padding(input, weight, stride, padding, dilation)  # type: ignore[arg-type]
    return _conv_block2d(
        input,
        weight,
        bias,
        as_pair("conv_block2d", "stride", stride),
        as_pair("conv_block2d", "padding", padding),
        as_pair("conv_block2d", "dilation", dilation),
        groups,
        activation,
        negative_slope,
        pool,
        as_pair("conv_block2d", "pool_size", pool_size),
        () if pool_stride is None else as_pair("conv_block2d", "pool_stride", pool_stride),
    )


def _both(pair: Sequence[int]) -> tuple[int, int]:
    return pair[0], pair[-1]


def _pooled(convolved: Tensor, pool: str, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    if pool == "none":
        return convolved
    window, step = _both(size), _both(stride or size)
    if pool == "max":
        return torch.ops.fastconv.max_pool2d.default(convolved, window, step)
    return torch.ops.fastconv.avg_pool2d.default(convolved, window, step)


@torch.library.register_fake("fastconv::conv_block2d")
def _conv_block2d_fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    activation: str = "none",
    negative_slope: float = 0.01,
    pool: str = "none",
    pool_size: Sequence[int] = (2, 2),
    pool_stride: Sequence[int] = (),
) -> Tensor:
    if activation not in ACTIVATIONS or pool not in POOLS:
        raise ValueError(
            f"conv_block2d: expected activation one of {', '.join(ACTIVATIONS)} and pool one of "
            f"{', '.join(POOLS)}, got '{activation}' and '{pool}'"
        )
    convolved = _conv2d_fake(
        input, weight, bias, list(stride), list(padding), list(dilation), groups
    )
    return _pooled(convolved, pool, pool_size, pool_stride)


@torch.library.register_fake("fastconv::_conv_block2d_training")
def _conv_block2d_training_fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    activation: str,
    negative_slope: float,
    pool: str,
) -> tuple[Tensor, Tensor]:
    output = _conv_block2d_fake(input, weight, bias, padding=padding, pool=pool)
    taps = output.shape[1] * output.shape[2] * output.shape[3] if pool == "max" else 0
    return output, output.new_empty([output.shape[0], taps], dtype=torch.uint8)


@torch.library.register_fake("fastconv::_conv_block2d_backward")
def _conv_block2d_backward_fake(
    grad_output: Tensor,
    output: Tensor,
    offsets: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    activation: str,
    negative_slope: float,
    pool: str,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return (
        input.new_empty(input.shape) if output_mask[0] else None,
        weight.new_empty(weight.shape) if output_mask[1] else None,
        weight.new_empty([weight.shape[0]]) if output_mask[2] else None,
    )
