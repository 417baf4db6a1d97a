# SPDX-License-Identifier: MIT
"""Ready-made networks on fastconv's layers."""

from fastconv.models.lenet import LeNet5

__all__ = ["LeNet5"]
