# SPDX-License-Identifier: MIT
"""Adam: the object that steps an optimizer in one call."""

from __future__ import annotations

from fastconv._C import AdamStepper

__all__ = ["AdamStepper"]
