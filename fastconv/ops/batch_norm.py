# SPDX-License-Identifier: MIT
"""Batch normalisation: the public function and the fake kernels of its operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastconv.ops.fakes import dense_like

_ops = torch.ops.fastconv
_training = _ops.batch_norm_training.default
_inference = _ops.batch_norm_inference.default


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str = "none",
) -> Tensor:
    """Batch normalisation, a drop-in for :func:`torch.nn.functional.batch_norm`.

    ``output = activation((input - mean) / sqrt(var + eps) * weight + bias)`` per channel; in
    training with the mean and the biased variance of the input's channel, else with the running
    ones.

    Args:
        input: ``[N, C]`` or ``[N, C, ...]``; float32 on the CPU runs on fastconv's kernels, float64
            on their reference loops, everything else on torch's own. Any strides; N may be 0.
        running_mean, running_var: ``[C]`` or None; in training they move towards the input's
            mean and its unbiased variance: ``running = (1 - momentum) * running + momentum * new``.
        weight, bias: ``[C]`` or None, of the input's dtype.
        training: whether the input's own statistics are used.
        momentum: weight of the input in the running statistics.
        eps: added to the variance.
        activation: ``"none"`` or ``"relu"``, computed in the same pass, forward and backward.

    Returns:
        The shape and the memory format of the input. Differentiable any number of times; a second
        derivative goes through torch's operators. Saves the input, and no mask for the activation.

    Raises:
        ValueError: shapes or names that do not fit, e.g. "batch_norm: expected more than 1 value
            per channel when training, got input of shape [1, 3]".

    Method: sums over blocks that stay in L1, each around its own mean, combined in double precision
    after Chan, Golub and LeVeque 1983; planes of a channel are normalised while they are in L2.
    """
    if activation not in ("none", "relu"):
        raise ValueError(f"batch_norm: expected activation one of none, relu, got {activation!r}")
    relu = activation == "relu"
    if not (input.is_cpu or input.is_meta):
        output = torch.nn.functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
        return output.relu() if relu else output
    if training:
        return _training(input, weight, bias, running_mean, running_var, momentum, eps, relu)
    if running_mean is None or running_var is None:
        raise ValueError(
            "batch_norm: expected running_mean and running_var when not training, got None"
        )
    return _inference(input, running_mean, running_var, weight, bias, eps, relu)


@torch.library.register_fake("fastconv::batch_norm_training")
def _batch_norm_training_public_fake(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    relu: bool,
) -> Tensor:
    return dense_like(input)


@torch.library.register_fake("fastconv::batch_norm_inference")
def _batch_norm_inference_fake(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool,
) -> Tensor:
    return dense_like(input)


@torch.library.register_fake("fastconv::_batch_norm_training")
def _batch_norm_training_fake(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = input.shape[1]
    return dense_like(input), input.new_empty([2, channels]), input.new_empty([channels])


@torch.library.register_fake("fastconv::_batch_norm_backward")
def _batch_norm_backward_fake(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    relu: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return (
        dense_like(input) if output_mask[0] else None,
        torch.empty_like(invstd) if output_mask[1] else None,
        torch.empty_like(invstd) if output_mask[2] else None,
    )
