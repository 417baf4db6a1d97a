# SPDX-License-Identifier: MIT
"""Pooling layers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv.ops import avg_pool2d, max_pool2d


class MaxPool2d(torch.nn.MaxPool2d):
    """2-D max pooling layer, a drop-in for :class:`torch.nn.MaxPool2d`.

    The constructor is torch's; the computation is :func:`fastconv.functional.max_pool2d`, which
    states shapes, dtypes and errors.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """2-D average pooling layer, a drop-in for :class:`torch.nn.AvgPool2d`.

    The constructor is torch's; the computation is :func:`fastconv.functional.avg_pool2d`, which
    states shapes, dtypes and errors.
    """

    def forward(self, input: Tensor) -> Tensor:
        return avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )
