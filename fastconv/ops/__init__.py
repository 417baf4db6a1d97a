# SPDX-License-Identifier: MIT
"""The operators: one module per op with its public function, its contract and its fake kernels."""

from fastconv.ops import flops as _flops  # registers the formulas
from fastconv.ops.batch_norm import batch_norm
from fastconv.ops.conv2d import conv2d
from fastconv.ops.conv_block2d import conv_block2d
from fastconv.ops.lstm import lstm, lstm_cell
from fastconv.ops.mlp import mlp
from fastconv.ops.pool2d import avg_pool2d, max_pool2d
from fastconv.ops.relu import relu

__all__ = [
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "conv_block2d",
    "lstm",
    "lstm_cell",
    "max_pool2d",
    "mlp",
    "relu",
]

del _flops
