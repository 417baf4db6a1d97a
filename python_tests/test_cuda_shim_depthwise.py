# SPDX-License-Identifier: MIT
"""The depthwise CUDA kernels of conv2d in the emulator: cases, oracle and rules of the CPU op."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import CONV2D_CASES, Conv2dCase
from cuda_conv2d import Request, forward, grad_weight, run
from cuda_shim import SCHEDULES, CudaShim
from reference import assert_all_equal, assert_all_parity, assert_parity, oracle_conv2d, run_conv2d
from test_conv2d import LAYOUTS, by_id, make_tensors, small_integers
from test_cuda_shim_conv2d import (
    assert_ran,
    assert_within,
    longest_sum,
    rounding_bound,
    tensors_in,
)

DEPTHWISE = Request(algorithm="depthwise")


def depthwise(id: str, batch: int, channels: int, size, kernel, *, multiplier: int = 1, stride=1,
              padding=0, dilation=1, bias: bool = True) -> Conv2dCase:  # fmt: skip
    def pair(value) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else value

    return Conv2dCase(id, batch, channels, pair(size), channels * multiplier, pair(kernel),
                      pair(stride), pair(padding), pair(dilation), channels, bias)  # fmt: skip


# Every kernel: weights in registers at each size and row step, and all other shapes.
OWN = [
    depthwise("3x3", 2, 5, (9, 11), 3, padding=1),
    depthwise("3x3-s2", 2, 33, (10, 7), 3, stride=2, padding=1),
    depthwise("3x3-s1x2", 1, 4, (5, 12), 3, stride=(1, 2)),
    depthwise("3x3-s2x1", 1, 4, (12, 5), 3, stride=(2, 1), padding=(0, 2)),
    depthwise("3x3-s3", 1, 4, 13, 3, stride=3, padding=1),
    depthwise("5x5", 2, 3, (8, 6), 5, padding=2, bias=False),
    depthwise("5x5-s2", 1, 3, 13, 5, stride=2, padding=2),
    depthwise("7x7", 1, 3, (9, 8), 7, padding=3),
    depthwise("7x7-s2", 1, 3, 15, 7, stride=2, padding=3),
    depthwise("padding-beyond-the-kernel", 2, 2, 4, 3, padding=(5, 4)),
    depthwise("rectangular", 2, 3, (7, 9), (2, 5), stride=(1, 2), padding=(1, 2)),
    depthwise("dilated-s2", 1, 3, 14, 3, stride=2, padding=2, dilation=(3, 2)),
    depthwise("multiplier-4", 2, 3, 6, 3, multiplier=4, padding=1),
    depthwise("1x1", 2, 40, 5, 1),
    depthwise("11x11", 1, 2, 15, 11, padding=5),
]
NAMED = [
    case
    for case in CONV2D_CASES
    if case.groups == case.in_channels and case.multiply_adds < 1_500_000
]
CASES = [*OWN, *NAMED]
# One of each kernel, for what is repeated under every schedule.
SMALL = [OWN[0], OWN[1], OWN[7], OWN[11], OWN[12]]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@by_id(CASES)
def test_small_integers_are_exact(case: Conv2dCase, layout: str, shim: CudaShim) -> None:
    tensors = LAYOUTS[layout](make_tensors(case, small_integers))
    result, plans = run(shim, case, tensors, DEPTHWISE)
    assert_ran(plans, "depthwise")
    assert_all_equal(result, oracle_conv2d(tensors, case.options))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@by_id(CASES)
def test_parity(case: Conv2dCase, layout: str, shim: CudaShim) -> None:
    tensors = LAYOUTS[layout](make_tensors(case))
    result, _ = run(shim, case, tensors, dataclasses.replace(DEPTHWISE, flush="start"))
    by_torch = run_conv2d(torch.nn.functional.conv2d, tensors, case.options)
    assert_all_parity(result, by_torch, oracle_conv2d(tensors, case.options))


@pytest.mark.parametrize("layout", LAYOUTS)
@by_id(SMALL)
def test_layouts(case: Conv2dCase, layout: str, shim: CudaShim) -> None:
    tensors = LAYOUTS[layout](make_tensors(case, small_integers))
    result, _ = run(shim, case, tensors, DEPTHWISE)
    assert_all_equal(result, oracle_conv2d(tensors, case.options))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("math", ["bfloat16", "float16"])
@by_id(OWN)
def test_half_precision(case: Conv2dCase, math: str, layout: str, shim: CudaShim) -> None:
    tensors = tensors_in(case, math, layout)
    result, plans = run(shim, case, tensors, DEPTHWISE)
    assert_ran(plans, "depthwise")
    bound = rounding_bound(case, tensors, math, longest_sum(case))
    assert_within(result, oracle_conv2d(tensors, case.options), bound)


@pytest.mark.parametrize("schedule", SCHEDULES)
@by_id(SMALL)
def test_every_schedule_gives_the_same_bits(
    case: Conv2dCase, schedule: str, shim: CudaShim
) -> None:
    for layout in ("contiguous", "channels_last"):
        tensors = LAYOUTS[layout](make_tensors(case))
        request = dataclasses.replace(DEPTHWISE, splits=3)
        shim.configure()
        first, _ = run(shim, case, tensors, request)
        shim.configure(schedule, seed=len(case.id))
        again, _ = run(shim, case, tensors, request)
        assert_all_equal(again, first)
        by_torch = run_conv2d(torch.nn.functional.conv2d, tensors, case.options)
        assert_all_parity(again, by_torch, oracle_conv2d(tensors, case.options))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_parity_of_gradients_over_many_pixels(layout: str, shim: CudaShim) -> None:
    """Products of one sign, whose rounding errors do not cancel; pieces as planned."""
    case = depthwise("pixels", 3, 2, 60, 3, padding=1)
    tensors = LAYOUTS[layout](
        make_tensors(case, lambda shape, generator: torch.rand(shape, generator=generator))
    )
    gradient, bias, plan = grad_weight(shim, case, tensors, DEPTHWISE)
    assert plan.splits > 1
    by_torch = run_conv2d(torch.nn.functional.conv2d, tensors, case.options)
    oracle = oracle_conv2d(tensors, case.options)
    assert_parity(gradient, by_torch.grad_weight, oracle.grad_weight, "grad_weight")
    assert_parity(bias, by_torch.grad_bias, oracle.grad_bias, "grad_bias")


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh"])
def test_fused_activation(activation: str, shim: CudaShim) -> None:
    for case in (OWN[0], OWN[10]):
        tensors = make_tensors(case)
        request = dataclasses.replace(DEPTHWISE, activation=activation, negative_slope=0.25)
        output, _ = forward(shim, case, tensors, request)
        apply = {
            "relu": torch.relu,
            "leaky_relu": lambda t: torch.nn.functional.leaky_relu(t, 0.25),
            "sigmoid": torch.sigmoid,
            "tanh": torch.tanh,
        }[activation]
        exact = apply(oracle_conv2d(tensors, case.options).output)
        by_torch = run_conv2d(torch.nn.functional.conv2d, tensors, case.options).output
        assert_parity(output, apply(by_torch), exact, activation)


def test_nan_reaches_what_reads_it_and_nothing_else(shim: CudaShim) -> None:
    for case in (OWN[0], OWN[1], OWN[10]):
        tensors = make_tensors(case, small_integers)
        tensors.weight.abs_().add_(1)
        tensors.input[0, 1, 3, 3] = float("nan")
        output, _ = forward(shim, case, tensors, DEPTHWISE)
        exact = oracle_conv2d(tensors, case.options).output
        assert exact.isnan().any()
        torch.testing.assert_close(output.double(), exact, rtol=0, atol=0, equal_nan=True)


def test_empty_batch(shim: CudaShim) -> None:
    case = dataclasses.replace(OWN[0], batch=0)
    tensors = make_tensors(case)
    result, _ = run(shim, case, tensors, DEPTHWISE)
    assert_all_equal(result, oracle_conv2d(tensors, case.options))


def test_choice(shim: CudaShim) -> None:
    """Also where nothing is forced; never for float64, groups of several channels, many outputs."""
    for case, dtype, algorithm in [
        (OWN[0], torch.float32, "depthwise"),
        (OWN[0], torch.bfloat16, "depthwise"),
        (OWN[0], torch.float64, "general"),
        (depthwise("many", 1, 2, 5, 3, multiplier=16), torch.float32, "general"),
        (Conv2dCase("two", 1, 4, (5, 5), 4, (3, 3), groups=2), torch.float32, "general"),
    ]:
        tensors = make_tensors(case).map(lambda t, dtype=dtype: t.to(dtype))
        _, plans = run(shim, case, tensors, Request())
        assert_ran(plans, algorithm)


def test_negative_control_a_changed_tap_changes_its_channel_alone(shim: CudaShim) -> None:
    for case in (OWN[0], OWN[10]):
        tensors = make_tensors(case, small_integers)
        exact = oracle_conv2d(tensors, case.options)
        tensors.weight[2, 0, 1, 0] += 1
        tensors.grad_output[0, 1] += 1
        result, _ = run(shim, case, tensors, DEPTHWISE)
        for field in ("output", "grad_input", "grad_weight", "grad_bias"):
            wrong = getattr(result, field).double() != getattr(exact, field)
            assert wrong.any(), field
        changed = (result.output.double() != exact.output).flatten(2).any(-1).any(0)
        assert changed.nonzero().flatten().tolist() == [2]
        changed = (result.grad_weight.double() != exact.grad_weight).flatten(1).any(-1)
        assert changed.nonzero().flatten().tolist() == [1]
