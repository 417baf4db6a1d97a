# SPDX-License-Identifier: MIT
"""Window arguments as users write them, made ready for the operators' schemas."""

from __future__ import annotations

import operator
from typing import Any


def as_pair(op: str, name: str, value: Any) -> tuple[int, ...]:
    """(height, width) from one integer, which counts for both, or a sequence of one or two.

    Everything that counts as an integer is one: numpy's and tensors of one element, too. Longer
    sequences come back as they are: the operators refuse them.

    Raises:
        ValueError: "conv2d: expected stride of integers, got 1.5".
    """
    if type(value) is int:
        return value, value
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value
    try:
        if isinstance(value, (tuple, list)):
            numbers = tuple(operator.index(item) for item in value)
        else:
            numbers = _one_or_more(value)
    except TypeError:
        raise ValueError(f"{op}: expected {name} of integers, got {value!r}") from None
    return numbers * 2 if len(numbers) == 1 else numbers


def _one_or_more(value: Any) -> tuple[int, ...]:
    try:
        return (operator.index(value),)
    except TypeError:  # an array, perhaps
        return tuple(operator.index(item) for item in value)
