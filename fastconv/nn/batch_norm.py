# SPDX-License-Identifier: MIT
"""Batch normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fastconv.ops import batch_norm


def normalize(layer: _BatchNorm, input: Tensor, activation: str = "none") -> Tensor:
    """The forward pass of torch's batch normalisation layers, on fastconv's operator."""
    layer._check_input_dim(input)
    training, momentum = layer.training, layer.momentum
    running_mean, running_var = layer.running_mean, layer.running_var
    if training and layer.track_running_stats and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if momentum is None:  # the average of all batches so far
            momentum = 1.0 / float(layer.num_batches_tracked)
    if training and not layer.track_running_stats:
        running_mean = running_var = None
    return batch_norm(
        input,
        running_mean,
        running_var,
        layer.weight,
        layer.bias,
        training or (running_mean is None and running_var is None),
        0.0 if momentum is None else momentum,
        layer.eps,
        activation=activation,
    )


class BatchNorm1d(torch.nn.BatchNorm1d):
    """Batch normalisation of ``[N, C]`` or ``[N, C, L]``, a drop-in for
    :class:`torch.nn.BatchNorm1d`.

    Constructor, parameters, buffers, initialisation and ``state_dict`` are torch's; the computation
    is :func:`fastconv.functional.batch_norm`, which states shapes, dtypes and errors.
    """

    def forward(self, input: Tensor) -> Tensor:
        return normalize(self, input)


class BatchNorm2d(torch.nn.BatchNorm2d):
    """Batch normalisation of ``[N, C, H, W]``, a drop-in for :class:`torch.nn.BatchNorm2d`.

    Constructor, parameters, buffers, initialisation and ``state_dict`` are torch's; the computation
    is :func:`fastconv.functional.batch_norm`, which states shapes, dtypes and errors.
    """

    def forward(self, input: Tensor) -> Tensor:
        return normalize(self, input)
