# SPDX-License-Identifier: MIT
"""Convolution layers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv.ops import conv2d


class Conv2d(torch.nn.Conv2d):
    """2-D convolution layer, a drop-in for :class:`torch.nn.Conv2d`.

    Constructor, parameters, initialisation, ``state_dict`` and padding modes (``zeros``,
    ``reflect``, ``replicate``, ``circular``) are torch's; the computation is
    :func:`fastconv.functional.conv2d`, which states shapes, dtypes and errors.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode == "zeros":
            return conv2d(
                input, weight, bias, self.stride, self.padding, self.dilation, self.groups
            )
        padded = torch.nn.functional.pad(
            input, self._reversed_padding_repeated_twice, mode=self.padding_mode
        )
        return conv2d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)
