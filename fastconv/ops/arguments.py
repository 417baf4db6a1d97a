# SPDX-License-Identifier: MIT
"""Window arguments as users write them, made ready for the operators' schemas."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any


def as_integers(op: str, name: str, value: Any) -> int | tuple[int, ...]:
    """One integer or a tuple of them, from anything that counts as such (numpy integers too).

    Raises:
        ValueError: "conv2d: expected stride of integers, got 1.5".
    """
    if type(value) is int:
        return value
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value
    try:
        if isinstance(value, Iterable):
            return tuple(operator.index(item) for item in value)
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{op}: expected {name} of integers, got {value!r}") from None
