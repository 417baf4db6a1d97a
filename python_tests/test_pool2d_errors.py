# SPDX-License-Identifier: MIT
"""What pooling refuses, and sizes of results, with memory behind the tensors and without."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastconv.functional as fastF

OPS = torch.ops.fastconv

IMAGE = torch.zeros(1, 2, 6, 6)

BAD_CALLS = {
    "rank": (lambda: fastF.max_pool2d(torch.zeros(4, 4), 2), ValueError, r"input of shape \[N"),
    "no channels": (lambda: fastF.max_pool2d(torch.zeros(1, 0, 4, 4), 2), ValueError, "channels"),
    "no pixels": (lambda: fastF.avg_pool2d(torch.zeros(1, 2, 0, 4), 2), ValueError, "height"),
    "kernel": (lambda: fastF.max_pool2d(IMAGE, 0), ValueError, "kernel_size from 1"),
    "stride": (lambda: fastF.avg_pool2d(IMAGE, 2, 0), ValueError, "stride from 1"),
    "padding": (lambda: fastF.max_pool2d(IMAGE, 2, 2, -1), ValueError, "padding from 0"),
    "half": (lambda: fastF.avg_pool2d(IMAGE, 3, 1, 2), ValueError, "at most half the kernel"),
    "dilation": (lambda: fastF.max_pool2d(IMAGE, 2, dilation=0), ValueError, "dilation from 1"),
    "too large": (lambda: fastF.max_pool2d(IMAGE, 7), ValueError, "window no larger than"),
    "three sizes": (lambda: fastF.max_pool2d(IMAGE, (2, 2, 2)), ValueError, "one or two integers"),
    "int32": (lambda: fastF.max_pool2d(IMAGE, 2**40, ceil_mode=True), ValueError, "kernel_size"),
    "taps": (
        lambda: fastF.avg_pool2d(IMAGE, 2**20, 2**20, ceil_mode=True),
        ValueError,
        "fewer than 2",
    ),
    "divisor": (
        lambda: fastF.avg_pool2d(IMAGE, 2, divisor_override=0),
        ValueError,
        "divisor_override other than zero",
    ),
    "dtype": (lambda: fastF.max_pool2d(IMAGE.bool(), 2), RuntimeError, "floating point numbers"),
    "avg dtype": (lambda: fastF.avg_pool2d(IMAGE.bool(), 2), RuntimeError, "or integers, got Bool"),
    "offsets": (
        lambda: OPS._max_pool2d_backward(
            torch.zeros(1, 2, 3, 3),
            torch.zeros(1, 2, 3, 3),
            [1, 2, 6, 6],
            [2, 2],
            [2, 2],
            [0, 0],
            [1, 1],
            False,
            False,
        ),
        ValueError,
        "offsets of shape",
    ),
    "grad": (
        lambda: OPS._avg_pool2d_backward(
            torch.zeros(1, 2, 9, 9), [1, 2, 6, 6], [2, 2], [2, 2], [0, 0], False, True, None, False
        ),
        ValueError,
        "grad_output of shape",
    ),
}


META = IMAGE.to("meta")

BAD_CALLS_WITHOUT_MEMORY = {
    "rank": (lambda: fastF.max_pool2d(META[0, 0], 2), r"input of shape \[N"),
    "no channels": (lambda: fastF.max_pool2d(META[:, :0], 2), "channels, height and width"),
    "no pixels": (lambda: fastF.avg_pool2d(META[:, :, :0], 2), "channels, height and width"),
    "kernel": (lambda: fastF.max_pool2d(META, 0, return_indices=True), "kernel_size from 1 to"),
    "stride": (lambda: fastF.avg_pool2d(META, 2, 0), "stride from 1 to 2147483647"),
    "int32": (lambda: fastF.max_pool2d(META, 2, 2**31), "stride from 1 to 2147483647"),
    "padding": (lambda: fastF.max_pool2d(META, 2, 2, -1), "padding from 0 to"),
    "half": (lambda: fastF.avg_pool2d(META, 3, 1, 2), "padding of at most half the kernel size"),
    "dilation": (lambda: fastF.max_pool2d(META, 2, dilation=0), "dilation from 1 to"),
    "too large": (lambda: fastF.max_pool2d(META, 7), "window no larger than the padded input"),
    "three sizes": (lambda: fastF.avg_pool2d(META, (2, 2, 2)), "kernel_size of one or two"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_name_the_op_and_what_was_expected(name: str) -> None:
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=r"(max|avg)_pool2d: expected .*" + message):
        call()


@pytest.mark.parametrize("name", BAD_CALLS_WITHOUT_MEMORY)
def test_bad_calls_are_refused_without_memory(name: str) -> None:
    call, message = BAD_CALLS_WITHOUT_MEMORY[name]
    with pytest.raises(ValueError, match=r"(max|avg)_pool2d: expected .*" + message):
        call()


def test_output_size_agrees_with_torch_everywhere() -> None:
    for size in range(1, 9):
        for kernel in range(1, 6):
            for stride in range(1, 5):
                for padding in range(kernel // 2 + 1):
                    for ceil_mode in (False, True):
                        x = torch.zeros(1, 1, size, size)
                        options = (kernel, stride, padding, ceil_mode)
                        try:
                            expected = F.avg_pool2d(x, *options).shape
                        except RuntimeError:
                            with pytest.raises(ValueError, match="window no larger"):
                                fastF.avg_pool2d(x, *options)
                            with pytest.raises(ValueError, match="window no larger"):
                                fastF.avg_pool2d(x.to("meta"), *options)
                        else:
                            assert fastF.avg_pool2d(x, *options).shape == expected
                            assert fastF.avg_pool2d(x.to("meta"), *options).shape == expected
