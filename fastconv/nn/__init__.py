# SPDX-License-Identifier: MIT
"""Layers with the constructors, parameters, initialisation and ``state_dict`` of ``torch.nn``."""

from fastconv.nn.conv import Conv2d

__all__ = ["Conv2d"]
