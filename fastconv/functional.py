# SPDX-License-Identifier: MIT
"""The operators as functions; signatures and defaults of ``torch.nn.functional``."""

from fastconv.ops import conv2d

__all__ = ["conv2d"]
