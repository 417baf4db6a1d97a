# SPDX-License-Identifier: MIT
"""Every algorithm of conv2d, forced over every case it can serve, on every instruction set."""

from __future__ import annotations

import contextlib

import pytest
import torch
from cases import CONV2D_CASES, CONV2D_WINOGRAD, Conv2dCase, random_conv2d_cases
from reference import assert_all_equal, assert_all_parity, oracle_conv2d, run_conv2d
from test_conv2d import expected, make_tensors, small_integers

import fastconv.functional as F
from fastconv import runtime

KERNELS = ("conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight")
CASES = [*CONV2D_CASES, *random_conv2d_cases(40, seed=11)]
PAIRS = [
    (kernel, algorithm)
    for kernel in KERNELS
    for algorithm in runtime.algorithms(kernel)
    if algorithm != "torch"
]
# Serve any shape; the others refuse most.
GENERAL = {"panel", "rows"}
WINOGRAD = ("winograd", "winograd_4x4")


def is_winograd(case: Conv2dCase) -> bool:
    """3 x 3 taps that are neighbours, read without a stride."""
    unit = [case.options.get(key, 1) in (1, (1, 1)) for key in ("stride", "dilation")]
    return list(case.weight_shape[2:]) == [3, 3] and all(unit)


def refusal(kernel: str, algorithm: str, case: Conv2dCase, layout: str) -> str | None:
    """The message with which the forced algorithm refuses the case, None when it serves it."""
    tensors, by_torch, oracle = expected(case, layout)
    with runtime.force_algorithm(kernel, algorithm):
        try:
            results = run_conv2d(F.conv2d, tensors, case.options)
        except ValueError as error:
            return str(error)
    assert runtime.last_used_algorithm(kernel) == algorithm
    assert_all_parity(results, by_torch, oracle)
    return None


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("kernel", "algorithm"), PAIRS)
def test_parity(kernel: str, algorithm: str, layout: str, isa: str) -> None:
    served = []
    for case in CASES:
        message = refusal(kernel, algorithm, case, layout)
        if message is None:
            assert runtime.last_used_isa(kernel) == isa
            served.append(case)
        else:
            assert f"algorithm '{algorithm}' forced for {kernel}" in message
    if algorithm in GENERAL:
        assert len(served) == len(CASES)
    elif algorithm in WINOGRAD:
        # The input gradient of a stride that equals the dilation is one more of them.
        wanted = [case for case in CASES if is_winograd(case)]
        assert served == [case for case in served if case in wanted or kernel.endswith("input")]
        assert all(case in served for case in wanted)
    else:
        assert len(served) >= 5


@pytest.mark.parametrize(("kernel", "algorithm"), [(k, a) for k, a in PAIRS if a in WINOGRAD])
def test_winograd_is_exact_on_small_integers(kernel: str, algorithm: str, isa: str) -> None:
    """Its factors are halves, quarters and sums of few terms: float32 rounds none of them."""
    for case in CONV2D_WINOGRAD:
        tensors = make_tensors(case, small_integers)
        with runtime.force_algorithm(kernel, algorithm):
            results = run_conv2d(F.conv2d, tensors, case.options)
        assert_all_equal(results, oracle_conv2d(tensors, case.options))


@pytest.mark.parametrize("algorithm", WINOGRAD)
@pytest.mark.parametrize(("channels", "out"), [(520, 161), (161, 520)])
def test_winograd_in_parts_of_the_channels(channels: int, out: int, algorithm: str) -> None:
    """So many weights that they are transformed, and their gradients summed, part by part."""
    case = Conv2dCase("parts", 2, channels, (5, 4), out, (3, 3), padding=(1, 1))
    tensors = make_tensors(case)
    with contextlib.ExitStack() as stack:
        for kernel in KERNELS:
            stack.enter_context(runtime.force_algorithm(kernel, algorithm))
        results = run_conv2d(F.conv2d, tensors, case.options)
    by_torch = run_conv2d(torch.nn.functional.conv2d, tensors, case.options)
    assert_all_parity(results, by_torch, oracle_conv2d(tensors, case.options))


@pytest.mark.parametrize("kernel", KERNELS)
def test_forced_torch_is_torch(kernel: str) -> None:
    tensors, by_torch, _ = expected(CONV2D_WINOGRAD[0], "contiguous")
    with runtime.force_algorithm(kernel, "torch"):
        results = run_conv2d(F.conv2d, tensors, CONV2D_WINOGRAD[0].options)
    assert runtime.last_used_algorithm(kernel) == "torch"
    field = {"conv2d_forward": "output"}.get(kernel, kernel.removeprefix("conv2d_"))
    assert torch.equal(getattr(results, field), getattr(by_torch, field))


def test_the_choice_comes_back() -> None:
    x, w = torch.randn(1, 16, 9, 9), torch.randn(16, 16, 3, 3)
    F.conv2d(x, w)
    chosen = runtime.last_used_algorithm("conv2d_forward")
    other = "panel" if chosen != "panel" else "rows"
    with runtime.force_algorithm("conv2d_forward", other):
        with runtime.force_algorithm("conv2d_forward", "pixel_vectors"):
            F.conv2d(x, w)
            assert runtime.last_used_algorithm("conv2d_forward") == "pixel_vectors"
        F.conv2d(x, w)
        assert runtime.last_used_algorithm("conv2d_forward") == other
    F.conv2d(x, w)
    assert runtime.last_used_algorithm("conv2d_forward") == chosen


def test_error_messages() -> None:
    with pytest.raises(ValueError, match=r"expected a kernel among .*, got 'conv3d'"):
        runtime.force_algorithm("conv3d", "rows")
    with pytest.raises(ValueError, match=r"expected a kernel among .*, got 'conv3d'"):
        runtime.algorithms("conv3d")
    with pytest.raises(
        ValueError, match=r"algorithm of conv2d_forward among \[panel, .*\], got 'fft'"
    ):
        runtime.force_algorithm("conv2d_forward", "fft")
    with (
        runtime.force_algorithm("conv2d_forward", "winograd"),
        pytest.raises(
            ValueError, match=r"'winograd' forced for conv2d_forward .* got a 5x5 kernel"
        ),
    ):
        F.conv2d(torch.randn(1, 3, 9, 9), torch.randn(4, 3, 5, 5))
