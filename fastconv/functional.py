# SPDX-License-Identifier: MIT
"""The operators as functions; signatures and defaults of ``torch.nn.functional``."""

from fastconv.ops import (
    avg_pool2d,
    batch_norm,
    conv2d,
    conv_block2d,
    lstm,
    lstm_cell,
    max_pool2d,
    mlp,
    relu,
)

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
