# SPDX-License-Identifier: MIT
"""A chain of fully connected layers as one operator, and the fake kernels of its halves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from fastconv._C import mlp as _direct

_mlp = torch.ops.fastconv.mlp.default


def mlp(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    activation: str = "relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """Fully connected layers, one behind the other, as one operator with one backward pass.

    ``x = activation(x @ weights[l].T + biases[l])`` for every layer, without the activation behind
    the last one.

    Args:
        input: ``[N, in]`` (``[..., in]`` runs on torch's operators); float32 runs on fastconv's
            kernels while every weight has at most 262,144 elements, everything else on torch's.
        weights: ``[out, in]`` of each layer, as :class:`torch.nn.Linear` keeps them.
        biases: ``[out]`` of each layer.
        activation: ``"none"``, ``"relu"``, ``"leaky_relu"``, ``"sigmoid"`` or ``"tanh"``.
        negative_slope: slope of ``"leaky_relu"`` below zero.

    Returns:
        ``[N, out]`` of the last layer. Differentiable any number of times; a second derivative goes
        through torch's operators.

    Raises:
        ValueError: shapes or names that do not fit, e.g. "mlp: expected weight 1 of shape ...".
        RuntimeError: dtypes that differ.

    Method: register tiles over blocks of images that stay in cache from the first layer to the
    last, after Georganas et al. 2019 (arXiv:1906.06440); few images are multiplied one by one.
    """
    if not is_dynamo_compiling():
        output = _direct(input, weights, biases, activation, negative_slope)
        if output is not NotImplemented:
            return output
    return _mlp(input, weights, biases, activation, negative_slope)


@torch.library.register_fake("fastconv::mlp")
def _mlp_fake(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str = "relu",
    negative_slope: float = 0.01,
) -> Tensor:
    return input.new_empty([*input.shape[:-1], weights[-1].shape[0]])


@torch.library.register_fake("fastconv::_mlp_training")
def _mlp_training_fake(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    negative_slope: float,
) -> list[Tensor]:
    return [input.new_empty([input.shape[0], weight.shape[0]]) for weight in weights]


@torch.library.register_fake("fastconv::_mlp_backward")
def _mlp_backward_fake(
    grad_output: Tensor,
    input: Tensor,
    weights: Sequence[Tensor],
    hidden: Sequence[Tensor],
    activation: str,
    negative_slope: float,
    input_grad: bool,
) -> list[Tensor]:
    grads = []
    for weight in weights:
        grads += [weight.new_empty(weight.shape), weight.new_empty([weight.shape[0]])]
    return [*grads, input.new_empty(input.shape)] if input_grad else grads
