# SPDX-License-Identifier: MIT
"""Sizes of windows in every form that torch takes: numpy's integers, tensors, sizes of a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv.functional as fastF

X = torch.randn(2, 3, 12, 11, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(4, 3, 3, 2, generator=torch.Generator().manual_seed(1))

TWOS: dict[str, Any] = {
    "int": 2,
    "one": (2,),
    "list": [2, 2],
    "numpy": np.int64(2),
    "numpy in a tuple": (np.int32(2), 2),
    "tensor": torch.tensor(2),
    "tensor in a tuple": (torch.tensor(2), 2),
    "size": torch.Size([2, 2]),
}

CALLS: dict[str, Callable[[Any, Any], Tensor]] = {
    "conv2d stride": lambda f, two: f.conv2d(X, WEIGHT, stride=two),
    "conv2d padding": lambda f, two: f.conv2d(X, WEIGHT, padding=two),
    "conv2d dilation": lambda f, two: f.conv2d(X, WEIGHT, dilation=two),
    "conv2d same dilation": lambda f, two: f.conv2d(X, WEIGHT, padding="same", dilation=two),
    "max_pool2d kernel_size": lambda f, two: f.max_pool2d(X, two),
    "max_pool2d stride": lambda f, two: f.max_pool2d(X, 3, two),
    "max_pool2d padding": lambda f, two: f.max_pool2d(X, 4, 1, two),
    "max_pool2d dilation": lambda f, two: f.max_pool2d(X, 3, 1, 0, two),
    "avg_pool2d kernel_size": lambda f, two: f.avg_pool2d(X, two),
    "avg_pool2d stride": lambda f, two: f.avg_pool2d(X, 3, two),
    "avg_pool2d padding": lambda f, two: f.avg_pool2d(X, 4, 1, two),
}


@pytest.mark.parametrize("form", TWOS)
@pytest.mark.parametrize("name", CALLS)
def test_every_form_of_two(name: str, form: str) -> None:
    expected = CALLS[name](F, 2)
    torch.testing.assert_close(CALLS[name](fastF, TWOS[form]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", TWOS)
def test_every_form_of_two_in_a_block(form: str) -> None:
    two = TWOS[form]
    options = {"stride": 2, "padding": 2, "dilation": 2, "pool_size": 2, "pool_stride": 2}
    expected = fastF.conv_block2d(X, WEIGHT, pool="max", **options)
    actual = fastF.conv_block2d(X, WEIGHT, pool="max", **dict.fromkeys(options, two))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("one", [1, (1,), np.int64(1), torch.tensor(1), [np.int64(1), 1]])
def test_same_padding_takes_every_form_of_stride_one(one: Any) -> None:
    expected = F.conv2d(X, WEIGHT, padding="same")
    actual = fastF.conv2d(X, WEIGHT, stride=one, padding="same", dilation=one)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [2.0, "2", None, (2, 1.5), np.float32(2), torch.tensor(2.5)])
@pytest.mark.parametrize("op", ["conv2d", "max_pool2d", "avg_pool2d"])
def test_what_is_no_integer_is_named(op: str, value: Any) -> None:
    call: Any = {
        "conv2d": lambda: fastF.conv2d(X, WEIGHT, dilation=value),
        "max_pool2d": lambda: fastF.max_pool2d(X, value),
        "avg_pool2d": lambda: fastF.avg_pool2d(X, 2, 2, value),
    }[op]
    with pytest.raises(ValueError, match=rf"{op}: expected \w+ of integers, got "):
        call()


def test_three_dilations_with_same_padding_are_refused() -> None:
    with pytest.raises(ValueError, match="conv2d: expected dilation of one or two integers"):
        fastF.conv2d(X, WEIGHT, padding="same", dilation=(1, 1, 1))


def test_sizes_of_a_dynamic_graph() -> None:
    """Windows that depend on the size of the input, which torch.compile does not know."""

    def run(f: Any, x: Tensor) -> Tensor:
        quarter = x.shape[-1] // 4
        convolved = f.conv2d(x, WEIGHT, None, 1, quarter)
        pooled = f.max_pool2d(convolved, quarter, (quarter, 1))
        return f.avg_pool2d(pooled, pooled.shape[2:])

    compiled = torch.compile(lambda x: run(fastF, x), backend="eager", fullgraph=True, dynamic=True)
    for size in (8, 13):
        x = torch.randn(2, 3, size, size)
        torch.testing.assert_close(compiled(x), run(F, x), rtol=1e-4, atol=1e-4)
