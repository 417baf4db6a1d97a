# SPDX-License-Identifier: MIT
"""Our optimizer and torch's side by side: what the tests of Adam share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_adam import PAIRS, assert_same, copies, parameters, set_gradients

Pair = tuple[type, type]
both = pytest.mark.parametrize("pair", PAIRS, ids=["Adam", "AdamW"])


class Both:
    """Our optimizer and torch's on equal parameters, fed with equal gradients."""

    def __init__(self, pair: Pair, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        base = parameters(dtype=dtype)
        self.pair = pair
        self.params = [copies(base), copies(base)]
        self.optimizers = [cls(p, **options) for cls, p in zip(pair, self.params, strict=True)]
        self.generator = torch.Generator().manual_seed(5)

    def step(self, count: int = 1, change: Callable[[torch.optim.Optimizer], Any] | None = None):
        for _ in range(count):
            set_gradients(self.params, self.generator)
            for optimizer in self.optimizers:
                if change is not None:
                    change(optimizer)
                optimizer.step()
            assert_same(*self.optimizers)
