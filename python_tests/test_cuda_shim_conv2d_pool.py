# SPDX-License-Identifier: MIT
"""Pooling in the epilogue of conv2d's tensor-core kernel, executed by the emulator.

The measure is the kernel without pooling and torch's pooling of what it stores: the same values and
winners, to the bit, in every format. The values themselves stand under the rules of
``test_cuda_shim_conv2d``: exact on small integers, and the parity rule for the split product."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from cases import Conv2dCase
from cuda_conv2d import Request, forward, pooled_forward
from cuda_shim import SCHEDULES, CudaShim, CudaShimError
from reference import assert_parity, oracle_conv2d, run_conv2d
from test_conv2d import LAYOUTS, by_id, make_tensors, small_integers
from test_cuda_shim_conv2d import GEMM_FORMATS, gemm, tensors_in
from torch import Tensor

# Output sizes that no window divides, tiles with a ragged end, channels that fill no vector.
CASES = [
    Conv2dCase("pool-same", 2, 16, (9, 11), 40, (3, 3), padding=(1, 1)),
    Conv2dCase("pool-stride-2", 3, 8, (13, 12), 17, (3, 3), stride=(2, 2), padding=(1, 1)),
    Conv2dCase("pool-dilation", 1, 12, (10, 9), 8, (2, 3), dilation=(2, 1), bias=False),
    Conv2dCase("pool-groups", 2, 32, (6, 7), 48, (3, 1), padding=(1, 0), groups=2),
    Conv2dCase("pool-one-window", 1, 16, (5, 5), 8, (2, 2)),
]
WINDOWS = [(2, 2), (1, 2), (2, 1), (4, 4), (4, 2), (1, 4), (2, 4)]


def pooled_by_torch(x: Tensor, pool: str, window: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Values in the type of x, sums in float32, and the winners' taps within their windows."""
    if pool == "avg":
        return F.avg_pool2d(x.float(), window).to(x.dtype), None
    values, indices = F.max_pool2d(x.float(), window, return_indices=True)
    row, column = indices // x.shape[3], indices % x.shape[3]
    taps = row % window[0] * window[1] + column % window[1]
    return values.to(x.dtype), taps.to(torch.uint8)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a[~a.isnan()], b[~b.isnan()])


def check_against_separate(shim: CudaShim, case: Conv2dCase, tensors, request: Request) -> None:
    plain = dataclasses.replace(request, pool="none", window=(1, 1))
    separate, _ = forward(shim, case, tensors, plain)
    values, taps = pooled_by_torch(separate, request.pool, request.window)
    output, offsets, plan = pooled_forward(shim, case, tensors, request, with_offsets=True)
    assert plan.algorithm == "implicit_gemm"
    assert output.stride() == values.stride() or min(values.shape[2:]) == 1
    assert same(output, values)
    if taps is not None:
        assert torch.equal(offsets, taps)
    inference, _ = forward(shim, case, tensors, request)
    assert same(inference, output)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("math", GEMM_FORMATS)
@by_id(CASES)
def test_the_bits_of_convolution_and_pooling(
    case: Conv2dCase, math: str, pool: str, layout: str, shim: CudaShim
) -> None:
    tensors = tensors_in(case, math, layout)
    request = gemm(math, pool=pool, window=(2, 2), activation="relu")
    check_against_separate(shim, case, tensors, request)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_windows_of_every_size(window: tuple[int, int], layout: str, shim: CudaShim) -> None:
    for pool, math in (("max", "bfloat16"), ("avg", "tf32"), ("max", "tf32")):
        tensors = tensors_in(CASES[0], math, layout)
        check_against_separate(shim, CASES[0], tensors, gemm(math, pool=pool, window=window))


@pytest.mark.parametrize("tile", range(4))
@pytest.mark.parametrize("math", ["float16", "tf32x3"])
def test_every_tile(math: str, tile: int, shim: CudaShim) -> None:
    """Two tiles of channels and a ragged one of pixels."""
    if math == "tf32x3" and tile == 0:
        pytest.skip("the split product has no tile of this size")
    case = Conv2dCase("tiles", 1, 8, (14, 18), 136, (1, 1))
    for layout in ("contiguous", "channels_last"):
        tensors = tensors_in(case, math, layout)
        request = gemm(math, pool="max", window=(2, 2), tile=tile)
        check_against_separate(shim, case, tensors, request)


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("pool", ["max", "avg"])
def test_every_activation(pool: str, activation: str, shim: CudaShim) -> None:
    """A leaky ReLU of a negative slope turns maxima into minima: it comes before the pooling."""
    for math in ("float16", "tf32"):
        tensors = tensors_in(CASES[0], math)
        request = gemm(math, pool=pool, window=(2, 2), activation=activation, negative_slope=-0.5)
        check_against_separate(shim, CASES[0], tensors, request)


@pytest.mark.parametrize("pool", ["max", "avg"])
@by_id(CASES)
def test_small_integers_are_exact(case: Conv2dCase, pool: str, shim: CudaShim) -> None:
    tensors = tensors_in(case, "tf32", fill=small_integers)
    output, _ = forward(shim, case, tensors, gemm("tf32", pool=pool, window=(2, 2)))
    expected, _ = pooled_by_torch(oracle_conv2d(tensors, case.options).output, pool, (2, 2))
    assert torch.equal(output.double(), expected)


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("mma", ["exact", "ampere", "hopper"])
def test_split_product_has_float32_parity(mma: str, pool: str, shim: CudaShim) -> None:
    shim.configure(mma=mma)
    for case in CASES:
        tensors = make_tensors(case)
        request = gemm("tf32x3", pool=pool, window=(2, 2))
        output, _ = forward(shim, case, tensors, request)
        pool_op = F.max_pool2d if pool == "max" else F.avg_pool2d
        by_torch = run_conv2d(F.conv2d, tensors, case.options).output
        exact = oracle_conv2d(tensors, case.options).output
        assert_parity(output, pool_op(by_torch, 2), pool_op(exact, 2), case.id)


# --- Ties, NaN, infinities ------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("math", ["bfloat16", "tf32"])
def test_the_first_of_equals_and_the_last_nan_win(math: str, layout: str, shim: CudaShim) -> None:
    """A 1x1 kernel that copies channels: the convolution's output is known."""
    case = Conv2dCase("copy", 1, 8, (2, 8), 8, (1, 1), bias=False)
    tensors = make_tensors(case)
    nan, inf = float("nan"), float("inf")
    plane = torch.tensor([[1.0, nan, 2.0, 2.0, -1.0, -2.0, -inf, -inf],
                          [nan, 3.0, 2.0, 1.0, -1.0, -1.0, -inf, -inf]])  # fmt: skip
    tensors.input.zero_()
    tensors.input[0, 0] = plane
    tensors.weight.zero_()
    tensors.weight[5, 0] = 1
    dtype = GEMM_FORMATS[math][0]
    tensors = LAYOUTS[layout](tensors).map(lambda t: t.to(dtype))
    request = gemm(math, pool="max", window=(2, 2))
    output, offsets, _ = pooled_forward(shim, case, tensors, request, with_offsets=True)
    assert offsets[0, 5, 0].tolist() == [2, 0, 0, 0]
    assert same(output[0, 5, 0].float(), torch.tensor([nan, 2.0, -1.0, -inf]))
    average, _ = forward(shim, case, tensors, dataclasses.replace(request, pool="avg"))
    assert same(average[0, 5, 0].float(), torch.tensor([nan, 1.75, -1.25, -inf]))


def test_values_that_are_stored_as_equals_are_equals(shim: CudaShim) -> None:
    """1 + 2^-12 is 1 in bfloat16: the tap before it wins."""
    case = Conv2dCase("close", 1, 16, (2, 2), 8, (1, 1), bias=False)
    tensors = tensors_in(case, "bfloat16")
    tensors.input.zero_()
    tensors.weight.fill_(1)
    tensors.input[0, 0] = 1
    tensors.input[0, 1, 1, 1] = 2.0**-12
    request = gemm("bfloat16", pool="max", window=(2, 2))
    output, offsets, _ = pooled_forward(shim, case, tensors, request, with_offsets=True)
    assert (output == 1).all()
    assert (offsets == 0).all()


# --- Schedules, refusals, controls ----------------------------------------------------------------


@pytest.mark.parametrize("math", GEMM_FORMATS)
def test_every_schedule_gives_the_same_bits(math: str, shim: CudaShim) -> None:
    for layout in ("contiguous", "channels_last"):
        tensors = tensors_in(CASES[1], math, layout)
        request = gemm(math, pool="max", window=(2, 2), activation="tanh")
        runs = []
        for seed, schedule in enumerate(SCHEDULES):
            shim.configure(schedule, seed=seed, copy_at=("issue", "wait")[seed % 2])
            flush = dataclasses.replace(request, flush=("end", "start")[seed % 2])
            runs.append(pooled_forward(shim, CASES[1], tensors, flush, with_offsets=True)[:2])
        for output, offsets in runs[1:]:
            assert torch.equal(output, runs[0][0])
            assert torch.equal(offsets, runs[0][1])


def test_one_launch_in_channels_last(shim: CudaShim) -> None:
    tensors = tensors_in(CASES[0], "bfloat16", "channels_last")
    shim.reset_counts()
    forward(shim, CASES[0], tensors, gemm("bfloat16", pool="max", window=(2, 2)))
    kernels = shim.kernels()
    assert [name for name in kernels if "pack_weights" not in name] == [kernels[-1]]
    assert "conv2d_gemm_kernel" in kernels[-1]


@pytest.mark.parametrize("window", [(3, 3), (1, 3), (8, 4), (10, 1), (5, 8)], ids=str)
def test_other_windows_are_refused(window: tuple[int, int], shim: CudaShim) -> None:
    request = gemm("tf32", pool="max", window=window)
    tensors = tensors_in(CASES[0], "tf32")
    with pytest.raises(CudaShimError, match="conv2d_forward"):
        forward(shim, CASES[0], tensors, request)


def test_other_algorithms_do_not_pool(shim: CudaShim) -> None:
    tensors = make_tensors(CASES[0])
    for algorithm in ("general", "direct", "depthwise"):
        request = Request(algorithm=algorithm, pool="max", window=(2, 2))
        with pytest.raises(CudaShimError, match="conv2d_forward"):
            forward(shim, CASES[0], tensors, request)


def test_negative_control_a_changed_value_is_noticed(shim: CudaShim) -> None:
    case, request = CASES[0], gemm("tf32", pool="max", window=(2, 2))
    tensors = tensors_in(case, "tf32", fill=small_integers)
    expected, _ = forward(shim, case, tensors, request)
    tensors.bias[7] += 1
    output, _ = forward(shim, case, tensors, request)
    changed = (output != expected).flatten(2).any(-1).any(0)
    assert changed.nonzero().flatten().tolist() == [7]
