# SPDX-License-Identifier: MIT
"""relu: the public function and the fake kernels of its operators."""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv.ops.fakes import dense_like

_ops = torch.ops.fastconv
_relu = _ops.relu.default
_relu_in_place = _ops.relu_.default


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """``max(input, 0)``, a drop-in for :func:`torch.nn.functional.relu`.

    torch's own is as fast as memory; this one takes large results, those of the backward pass among
    them, from fastconv's cache of memory blocks, whose pages need not be touched for the first
    time.

    Args:
        input: any shape; dense float32 and float64 on the CPU run on fastconv's kernels, everything
            else on torch's.
        inplace: write the result into ``input``.

    Returns:
        The shape and the memory format of the input, or ``input`` itself. Differentiable any
        number of times.
    """
    if not (input.is_cpu or input.is_meta):
        return torch.nn.functional.relu(input, inplace)
    if not inplace:
        return _relu(input)
    _relu_in_place(input)
    return input


@torch.library.register_fake("fastconv::relu")
def _relu_fake(input: Tensor) -> Tensor:
    dense = input.is_contiguous(memory_format=torch._prims_common.suggest_memory_format(input))
    return dense_like(input) if dense else torch.empty_like(input)


@torch.library.register_fake("fastconv::relu_")
def _relu_in_place_fake(input: Tensor) -> None:
    return None


@torch.library.register_fake("fastconv::_relu_backward")
def _relu_backward_fake(grad_output: Tensor, output: Tensor) -> Tensor:
    return dense_like(output)
