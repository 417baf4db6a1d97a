# SPDX-License-Identifier: MIT
"""Optimizers with the signatures, parameter groups and ``state_dict`` of ``torch.optim``."""

from fastconv.optim.adam import Adam, AdamW

__all__ = ["Adam", "AdamW"]
