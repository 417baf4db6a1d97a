# SPDX-License-Identifier: MIT
"""Formulas by which ``torch.utils.flop_counter`` counts fastconv's operators.

They count as torch counts its own: multiplications and additions of the products alone, those of
the whole convolution even where a fused backward pass gets by with fewer, so that an accelerated
model has the number of the model it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

_Shape = Sequence[int]
_ops = torch.ops.fastconv


def _convolution(
    input: _Shape,
    weight: _Shape,
    stride: _Shape = (1, 1),
    padding: _Shape = (0, 0),
    dilation: _Shape = (1, 1),
) -> int:
    flops = 2 * prod(weight) * (input[0] if len(input) == 4 else 1)
    for i, d in ((2, 0), (3, -1)):  # a list of one value stands for both dimensions
        reach = dilation[d] * (weight[i] - 1) + 1
        flops *= (input[i - 4] + 2 * padding[d] - reach) // stride[d] + 1
    return flops


@register_flop_formula([_ops.conv2d, _ops.conv_block2d])
def _conv2d_flops(
    input: _Shape,
    weight: _Shape,
    bias: _Shape | None = None,
    stride: _Shape = (1, 1),
    padding: _Shape = (0, 0),
    dilation: _Shape = (1, 1),
    *args: Any,
    **kwargs: Any,
) -> int:
    return _convolution(input, weight, stride, padding, dilation)


@register_flop_formula(_ops._conv2d_backward)
def _conv2d_backward_flops(
    grad_output: _Shape,
    input: _Shape,
    weight: _Shape,
    stride: _Shape,
    padding: _Shape,
    dilation: _Shape,
    groups: int,
    output_mask: Sequence[bool],
    **kwargs: Any,
) -> int:
    wanted = output_mask[0] + output_mask[1]
    return wanted * _convolution(input, weight, stride, padding, dilation)


@register_flop_formula(_ops._conv_block2d_training)
def _conv_block2d_training_flops(
    input: _Shape, weight: _Shape, bias: _Shape | None, padding: _Shape, *args: Any, **kwargs: Any
) -> int:
    return _convolution(input, weight, padding=padding)


@register_flop_formula(_ops._conv_block2d_backward)
def _conv_block2d_backward_flops(
    grad_output: _Shape,
    output: _Shape,
    offsets: _Shape,
    input: _Shape,
    weight: _Shape,
    bias: _Shape | None,
    padding: _Shape,
    activation: str,
    negative_slope: float,
    pool: str,
    output_mask: Sequence[bool],
    **kwargs: Any,
) -> int:
    wanted = output_mask[0] + output_mask[1]
    return wanted * _convolution(input, weight, padding=padding)


def _products(input: _Shape, weights: Sequence[_Shape]) -> list[int]:
    rows = prod(input[:-1])
    return [2 * rows * prod(weight) for weight in weights]


@register_flop_formula([_ops.mlp, _ops._mlp_training])
def _mlp_flops(input: _Shape, weights: Sequence[_Shape], *args: Any, **kwargs: Any) -> int:
    return sum(_products(input, weights))


@register_flop_formula(_ops._mlp_backward)
def _mlp_backward_flops(
    grad_output: _Shape,
    input: _Shape,
    weights: Sequence[_Shape],
    hidden: Sequence[_Shape],
    activation: str,
    negative_slope: float,
    input_grad: bool,
    **kwargs: Any,
) -> int:
    products = _products(input, weights)
    return 2 * sum(products) - (0 if input_grad else products[0])


@register_flop_formula([_ops.lstm_layer, _ops._lstm_layer_training])
def _lstm_layer_flops(
    input: _Shape,
    hx: _Shape | None,
    cx: _Shape | None,
    weight_ih: _Shape,
    weight_hh: _Shape,
    bias_ih: _Shape | None = None,
    bias_hh: _Shape | None = None,
    weight_hr: _Shape | None = None,
    *args: Any,
    **kwargs: Any,
) -> int:
    # Sequences of different lengths are counted at their full length: shapes do not tell.
    weights = [weight_ih, weight_hh, *([weight_hr] if weight_hr is not None else [])]
    return sum(_products(input, weights))


@register_flop_formula(_ops._lstm_layer_backward)
def _lstm_layer_backward_flops(
    grad_output: _Shape | None,
    grad_h_n: _Shape | None,
    grad_c_n: _Shape | None,
    input: _Shape,
    hx: _Shape | None,
    cx: _Shape | None,
    weight_ih: _Shape,
    weight_hh: _Shape,
    bias_ih: _Shape | None,
    bias_hh: _Shape | None,
    weight_hr: _Shape | None,
    lengths: _Shape | None,
    batch_sizes: _Shape | None,
    reverse: bool,
    output: _Shape,
    gates: _Shape,
    cells: _Shape,
    output_mask: Sequence[bool],
    **kwargs: Any,
) -> int:
    from_input, recurrent = _products(input, [weight_ih, weight_hh])
    projected = _products(input, [weight_hr])[0] if weight_hr is not None else 0
    # Going back through time takes the recurrent products whatever is asked for.
    flops = recurrent + projected + output_mask[0] * from_input
    return (
        flops
        + output_mask[3] * from_input
        + output_mask[4] * recurrent
        + (output_mask[7] * projected)
    )
