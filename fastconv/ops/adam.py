# SPDX-License-Identifier: MIT
"""Adam: the object that takes an optimizer's step in one call.

It is no operator: it reads ``param_groups``, ``state`` and gradients of a ``torch.optim.Adam`` by
itself, remembers them, and from the second step on only checks that they are the same objects.
``fastconv.optim`` is what users see of it.
"""

from __future__ import annotations

from fastconv._C import AdamStepper

__all__ = ["AdamStepper"]
