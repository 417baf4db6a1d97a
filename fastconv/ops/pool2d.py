# SPDX-License-Identifier: MIT
"""2-D max and average pooling: the public functions and the fake kernels of their operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastconv.ops.arguments import as_pair

_Pair = int | Sequence[int]


def max_pool2d(
    input: Tensor,
    kernel_size: _Pair,
    stride: _Pair | None = None,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """2-D max pooling, a drop-in for :func:`torch.nn.functional.max_pool2d`.

    ``output[n, c, i, j] = max over r, q of input[n, c, i*sh - ph + r*dh, j*sw - pw + q*dw]``.
    Positions outside the input take no part; of equal values the first in row-major order wins,
    and a NaN wins over every number.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``; float32 runs on fastconv's kernels, and so does
            bfloat16 on the CPU unless it is channels_last; float64 runs on reference loops, all
            others on torch's own. Any strides; N may be 0.
        kernel_size: size of the window, one integer or (height, width).
        stride: step of the window; None is the kernel size.
        padding: positions added on each side, at most half the kernel size.
        dilation: distance between the elements of a window.
        ceil_mode: keep a last window that reaches past the padding, as long as it starts inside
            the input or the padding before it.
        return_indices: also return where each maximum was found.

    Returns:
        ``[N, C, oh, ow]`` with ``oh = (H + 2*ph - dh*(kh-1) - 1) // sh + 1`` (rounded up with
        ``ceil_mode``), channels_last when the input is; with ``return_indices`` a pair of it and
        int64 indices ``row * W + column`` within each plane. Differentiable any number of times.
        Training keeps one byte per output for the backward pass, inference nothing.

    Raises:
        ValueError: shapes or options that do not fit, e.g. "max_pool2d: expected padding ...".
        RuntimeError: dtypes or devices that are not supported.

    Method: vectors of neighbouring outputs (or channels), and a backward pass that gathers instead
    of scattering; the saved window-local offsets follow oneDNN's pooling workspace.
    """
    op = torch.ops.fastconv.max_pool2d_with_indices if return_indices else _max_pool2d_op
    return op.default(
        input,
        as_pair("max_pool2d", "kernel_size", kernel_size),
        () if stride is None else as_pair("max_pool2d", "stride", stride),
        as_pair("max_pool2d", "padding", padding),
        as_pair("max_pool2d", "dilation", dilation),
        ceil_mode,
    )


def avg_pool2d(
    input: Tensor,
    kernel_size: _Pair,
    stride: _Pair | None = None,
    padding: _Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """2-D average pooling, a drop-in for :func:`torch.nn.functional.avg_pool2d`.

    ``output[n, c, i, j] = (sum over r, q of input[n, c, i*sh - ph + r, j*sw - pw + q]) / divisor``

    Args:
        input: as for :func:`max_pool2d`.
        kernel_size: size of the window, one integer or (height, width).
        stride: step of the window; None is the kernel size.
        padding: zeros added on each side, at most half the kernel size.
        ceil_mode: as for :func:`max_pool2d`.
        count_include_pad: whether the divisor counts the zeros of the padding.
        divisor_override: divide by this number instead of the size of the window.

    Returns:
        ``[N, C, oh, ow]`` as :func:`max_pool2d`. Differentiable any number of times.

    Raises:
        ValueError: shapes or options that do not fit, e.g. "avg_pool2d: expected padding ...".
        RuntimeError: dtypes or devices that are not supported.
    """
    return torch.ops.fastconv.avg_pool2d.default(
        input,
        as_pair("avg_pool2d", "kernel_size", kernel_size),
        () if stride is None else as_pair("avg_pool2d", "stride", stride),
        as_pair("avg_pool2d", "padding", padding),
        ceil_mode,
        count_include_pad,
        divisor_override,
    )


_max_pool2d_op = torch.ops.fastconv.max_pool2d
_LARGEST = 2**31 - 1  # of an option, as in torch


def _output_size(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    slack = size + 2 * padding - dilation * (kernel - 1) - 1 + (stride - 1 if ceil_mode else 0)
    outputs = slack // stride + 1
    if ceil_mode and (outputs - 1) * stride >= size + padding:
        outputs -= 1
    return outputs


def _new_output(
    op: str,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """An empty result; refuses, for shape inference, what csrc/bindings/pool2d_args.cpp refuses."""

    def expect(holds: bool, what: str, got: object) -> None:
        if not holds:
            raise ValueError(f"{op}: expected {what}, got {got}")

    image = list(input.shape)
    expect(input.dim() in (3, 4), "input of shape [N, C, H, W] or [C, H, W]", image)
    expect(
        all(size > 0 for size in image[-3:]),
        "input with channels, height and width of at least 1",
        image,
    )
    stride = stride or kernel_size
    for name, pair, least in (
        ("kernel_size", kernel_size, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        expect(len(pair) == 2, f"{name} of one or two integers", [*pair])
        expect(
            min(pair) >= least and max(pair) <= _LARGEST,
            f"{name} from {least} to {_LARGEST}",
            [*pair],
        )
    expect(
        all(p <= k // 2 for p, k in zip(padding, kernel_size, strict=True)),
        "padding of at most half the kernel size",
        f"padding {[*padding]} and kernel_size {[*kernel_size]}",
    )
    size = [
        _output_size(image[i], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode)
        for i in (-2, -1)
    ]
    expect(
        min(size) >= 1,
        "a window no larger than the padded input",
        f"input {image} and kernel_size {[*kernel_size]}",
    )
    return _empty([*image[:-2], *size], input, _channels_last(input))


def _channels_last(input: Tensor) -> bool:
    suggested = torch._prims_common.suggest_memory_format(input)
    return input.dim() == 4 and suggested == torch.channels_last


def _empty(size: Sequence[int], like: Tensor, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _offsets_like(output: Tensor, kernel_size: Sequence[int]) -> Tensor:
    taps = kernel_size[0] * kernel_size[1]
    return torch.empty_like(output, dtype=torch.uint8 if taps <= 256 else torch.int32)


@torch.library.register_fake("fastconv::max_pool2d")
def _max_pool2d_fake(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    return _new_output("max_pool2d", input, kernel_size, stride, padding, dilation, ceil_mode)


@torch.library.register_fake("fastconv::max_pool2d_with_indices")
def _max_pool2d_with_indices_fake(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    output = _new_output("max_pool2d", input, kernel_size, stride, padding, dilation, ceil_mode)
    return output, torch.empty_like(output, dtype=torch.int64)


@torch.library.register_fake("fastconv::_max_pool2d_training")
def _max_pool2d_training_fake(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:
    output = _new_output("max_pool2d", input, kernel_size, stride, padding, dilation, ceil_mode)
    return output, _offsets_like(output, kernel_size)


@torch.library.register_fake("fastconv::_max_pool2d_indices")
def _max_pool2d_indices_fake(
    offsets: Tensor,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    return torch.empty_like(offsets, dtype=torch.int64)


@torch.library.register_fake("fastconv::_max_pool2d_backward")
def _max_pool2d_backward_fake(
    grad_output: Tensor,
    offsets: Tensor,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    channels_last: bool,
) -> Tensor:
    return _empty(input_size, grad_output, channels_last)


@torch.library.register_fake("fastconv::_max_pool2d_gather")
def _max_pool2d_gather_fake(
    source: Tensor,
    offsets: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    return torch.empty_like(offsets, dtype=source.dtype)


@torch.library.register_fake("fastconv::avg_pool2d")
def _avg_pool2d_fake(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    return _new_output("avg_pool2d", input, kernel_size, stride, padding, (1, 1), ceil_mode)


@torch.library.register_fake("fastconv::_avg_pool2d_backward")
def _avg_pool2d_backward_fake(
    grad_output: Tensor,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    channels_last: bool,
) -> Tensor:
    return _empty(input_size, grad_output, channels_last)
