# SPDX-License-Identifier: MIT
"""What fake kernels of several operators return."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_like(input: Tensor) -> Tensor:
    """The result of an operator that keeps shape and memory format: dense, in the format that the
    input's strides suggest."""
    suggested = torch._prims_common.suggest_memory_format(input)
    return torch.empty_like(input, memory_format=suggested)
