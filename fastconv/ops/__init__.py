# SPDX-License-Identifier: MIT
"""The operators: one module per op with its public function, its contract and its fake kernels."""

from fastconv.ops.conv2d import conv2d

__all__ = ["conv2d"]
