# SPDX-License-Identifier: MIT
"""Convolution, activation and pooling as one layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastconv.ops import conv_block2d


class ConvBlock2d(torch.nn.Conv2d):
    """Convolution, bias, activation and pooling as one layer.

    ``pool(activation(conv(input)))``; parameters, initialisation, ``state_dict`` and padding modes
    are those of :class:`torch.nn.Conv2d`, so that the layer takes over the weights of the
    convolution it replaces. The computation is :func:`fastconv.functional.conv_block2d`, which
    states shapes, dtypes, errors and which calls are fused.

    Args:
        *args, **kwargs: of :class:`torch.nn.Conv2d`.
        activation: ``"none"``, ``"relu"``, ``"leaky_relu"``, ``"sigmoid"`` or ``"tanh"``.
        negative_slope: slope of ``"leaky_relu"`` below zero.
        pool: ``"none"``, ``"max"`` or ``"avg"``.
        pool_size: window of the pooling, one integer or (height, width).
        pool_stride: step of the window; None is ``pool_size``.
    """

    def __init__(
        self,
        *args: Any,
        activation: str = "none",
        negative_slope: float = 0.01,
        pool: str = "none",
        pool_size: int | tuple[int, int] = 2,
        pool_stride: int | tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.activation = activation
        self.negative_slope = negative_slope
        self.pool = pool
        self.pool_size = pool_size
        self.pool_stride = pool_stride

    def forward(self, input: Tensor) -> Tensor:
        # Past Module.__getattr__, which takes half a microsecond for each; parametrizations and
        # pruning take the names out of the dictionary.
        own: dict[str, Any] = self._parameters
        try:
            weight, bias = own["weight"], own["bias"]
        except KeyError:
            weight, bias = self.weight, self.bias
        padding = self.padding
        if self.padding_mode != "zeros":
            input = torch.nn.functional.pad(
                input, self._reversed_padding_repeated_twice, mode=self.padding_mode
            )
            padding = (0, 0)
        return conv_block2d(
            input,
            weight,
            bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            activation=self.activation,
            negative_slope=self.negative_slope,
            pool=self.pool,
            pool_size=self.pool_size,
            pool_stride=self.pool_stride,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.activation != "none":
            text += f", activation={self.activation}"
        if self.pool != "none":
            text += f", pool={self.pool}, pool_size={self.pool_size}"
        return text
