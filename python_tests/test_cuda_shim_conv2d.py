# SPDX-License-Identifier: MIT
"""conv2d's CUDA kernels, executed by the emulator: the CPU operator's cases through forward and
both gradients.

float32 with the general kernels and with the split product (3xTF32) stands under the parity rule.
The other formats stand under a bound that follows from them: see ``rounding_bound``. Small integers
must be exact in every format."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from cases import (
    CONV2D_CASES,
    CONV2D_CHANNELS,
    CONV2D_EMPTY_BATCH,
    CONV2D_NETWORKS,
    CONV2D_SIZES,
    CONV2D_STEPS,
    CONV2D_WINOGRAD,
    Conv2dCase,
    random_conv2d_cases,
)
from cuda_conv2d import Plan, Request, forward, grad_weight, run
from cuda_shim import COPY_AT, SCHEDULES, CudaShim
from reference import (
    ConvResults,
    ConvTensors,
    assert_all_equal,
    assert_all_parity,
    assert_parity,
    oracle_conv2d,
    run_conv2d,
)
from test_conv2d import LAYOUTS, by_id, make_tensors, small_integers
from torch import Tensor

SMALL = [case for case in CONV2D_CASES if case.multiply_adds < 1_500_000]
RANDOM = [*random_conv2d_cases(25, seed=71)]
NAMED = {case.id: case for case in CONV2D_CASES}
# Few threads: for what is repeated under every schedule.
TINY = [
    NAMED[id]
    for id in ["kernel-2x2", "dilation-2-stride-2", "groups-5-stride-2", "channels-17-to-3"]
]

GEMM_FORMATS = {
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "tf32": (torch.float32, True),
    "tf32x3": (torch.float32, False),
}


def gemm(math: str, **options: object) -> Request:
    return Request(algorithm="implicit_gemm", allow_tf32=GEMM_FORMATS[math][1], **options)


def tensors_in(case: Conv2dCase, math: str, layout: str = "contiguous", fill=None) -> ConvTensors:
    made = make_tensors(case) if fill is None else make_tensors(case, fill)
    dtype, _ = GEMM_FORMATS[math]
    return LAYOUTS[layout](made).map(lambda t: _cast(t, dtype))


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """With the same strides, even those that no memory format describes."""
    reach = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    flat = torch.full([reach], float("nan"), dtype=dtype)
    return flat.as_strided(t.shape, t.stride()).copy_(t)


# --- Bounds ---------------------------------------------------------------------------------------


def rounding_bound(case: Conv2dCase, t: ConvTensors, math: str, terms: int) -> ConvResults:
    """The largest errors the format allows, per element.

    With S the sum of |a b| over the products of one result: bfloat16 and float16 products are
    exact in float32, tf32 operands are each off by at most 2^-11 of their size. A sum of n terms in
    float32 is off by at most n 2^-23 S, also where the tensor core cuts off instead of rounding.
    Storing rounds once more: 2^-8 of the value for bfloat16; 2^-11 for float16, which also has a
    smallest step, 2^-24; 2^-24 for float32."""
    operands = 2.0**-10 + 2.0**-22 if math == "tf32" else 0.0
    sums = (terms + 2) * 2.0**-23
    stored = {"bfloat16": 2.0**-8, "float16": 2.0**-11}.get(math, 2.0**-24)
    smallest = 2.0**-25 if math == "float16" else 0.0
    exact = oracle_conv2d(t, case.options)
    sizes = oracle_conv2d(t.map(torch.abs), case.options)

    def bound(value: Tensor | None, size: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        error = (operands + sums) * size
        return error + stored * (value.abs() + error) + smallest

    return ConvResults(
        *(bound(*pair) for pair in zip(vars(exact).values(), vars(sizes).values(), strict=True))
    )


def assert_within(result: ConvResults, exact: ConvResults, bound: ConvResults) -> None:
    for name, allowed in vars(bound).items():
        if allowed is None:
            continue
        error = (getattr(result, name).double() - getattr(exact, name)).abs()
        # Written so that a NaN anywhere fails.
        assert (error <= allowed).all(), f"{name}: {(error / allowed).max():.3f} of the bound"


def longest_sum(case: Conv2dCase) -> int:
    depth = case.weight_shape[1] * case.kernel[0] * case.kernel[1]
    width = case.out_channels // case.groups * case.kernel[0] * case.kernel[1]
    pixels = case.batch * case.output_size[0] * case.output_size[1]
    return max(depth, width, pixels)


def assert_ran(plans: tuple[Plan, ...], algorithm: str, math: str | None = None) -> None:
    assert [plan.algorithm for plan in plans] == [algorithm] * len(plans)
    if math is not None:
        assert [plan.math for plan in plans] == [math] * len(plans)


# --- General kernels ------------------------------------------------------------------------------

GENERAL = Request(algorithm="general")


@by_id([*SMALL, *RANDOM, *CONV2D_EMPTY_BATCH])
def test_general_small_integers_are_exact(case: Conv2dCase, shim: CudaShim) -> None:
    tensors = make_tensors(case, small_integers)
    result, plans = run(shim, case, tensors, GENERAL)
    assert_ran(plans, "general")
    assert_all_equal(result, oracle_conv2d(tensors, case.options))


@pytest.mark.parametrize("layout", LAYOUTS)
@by_id([*CONV2D_NETWORKS[1:10:2], *CONV2D_STEPS[::5], *CONV2D_CHANNELS[3::7]])
def test_general_parity(case: Conv2dCase, layout: str, shim: CudaShim) -> None:
    tensors = LAYOUTS[layout](make_tensors(case))
    result, _ = run(shim, case, tensors, GENERAL)
    by_torch = run_conv2d(torch.nn.functional.conv2d, tensors, case.options)
    assert_all_parity(result, by_torch, oracle_conv2d(tensors, case.options))


@by_id([NAMED["depth-600"], NAMED["depth-one-channel-25x25"], NAMED["winograd-tiny-image"]])
def test_general_parity_of_long_sums(case: Conv2dCase, shim: CudaShim) -> None:
    """All products positive: the errors of one running sum would not cancel."""
    tensors = make_tensors(case, lambda shape, generator: torch.rand(shape, generator=generator))
    result, _ = run(shim, case, tensors, GENERAL)
    by_torch = run_conv2d(torch.nn.functional.conv2d, tensors, case.options)
    assert_all_parity(result, by_torch, oracle_conv2d(tensors, case.options))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "no_unit_stride"])
@by_id([*CONV2D_SIZES[::4], *CONV2D_STEPS[1::6]])
def test_general_float64(case: Conv2dCase, layout: str, shim: CudaShim) -> None:
    tensors = LAYOUTS[layout](make_tensors(case)).map(lambda t: _cast(t, torch.float64))
    result, _ = run(shim, case, tensors, GENERAL)
    oracle = oracle_conv2d(tensors, case.options)
    for name, exact in vars(oracle).items():
        if exact is not None:
            torch.testing.assert_close(getattr(result, name), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("math", ["bfloat16", "float16"])
@by_id([*CONV2D_NETWORKS[1:9:2], *CONV2D_STEPS[::5]])
def test_general_half_precision(case: Conv2dCase, math: str, shim: CudaShim) -> None:
    tensors = tensors_in(case, math)
    result, _ = run(shim, case, tensors, GENERAL)
    bound = rounding_bound(case, tensors, math, longest_sum(case))
    assert_within(result, oracle_conv2d(tensors, case.options), bound)


# --- Direct kernels: few channels -----------------------------------------------------------------

DIRECT = Request(algorithm="direct")
FEW = [
    Conv2dCase("few-1-to-6", 2, 1, (11, 9), 6, (5, 5), padding=(2, 2)),
    Conv2dCase("few-6-to-16", 3, 6, (8, 7), 16, (5, 5)),
    Conv2dCase("few-3-to-32", 1, 3, (7, 10), 32, (3, 3), padding=(1, 1)),
    Conv2dCase("few-2-to-3-flat", 2, 2, (1, 9), 3, (1, 4), padding=(0, 3)),
    Conv2dCase("few-3-to-5-7x7", 2, 3, (9, 8), 5, (7, 7), padding=(3, 3), bias=False),
    Conv2dCase("few-4-to-3-1x1", 2, 4, (5, 6), 3, (1, 1)),
    Conv2dCase("few-3-to-9-wide-padding", 1, 3, (3, 4), 9, (2, 3), padding=(4, 5)),
]
# First layers: strides, for which the input gradient has kernels of its own.
STEMS = [
    Conv2dCase("stem-3-to-16-3x3", 2, 3, (11, 14), 16, (3, 3), stride=(2, 2), padding=(1, 1)),
    Conv2dCase("stem-3-to-12-7x7", 1, 3, (15, 13), 12, (7, 7), stride=(2, 2), padding=(3, 3)),
    Conv2dCase("stem-1-to-7-5x5", 3, 1, (9, 8), 7, (5, 5), stride=(2, 2), padding=(2, 2)),
    Conv2dCase("stem-3-to-20-4x4", 1, 3, (13, 16), 20, (4, 4), stride=(4, 4)),
    Conv2dCase("stem-2-to-5-1x2-steps", 2, 2, (6, 9), 5, (3, 3), stride=(1, 2), padding=(1, 0)),
    Conv2dCase("stem-3-to-4-kernel-below-step", 2, 3, (10, 7), 4, (1, 2), stride=(3, 4)),
    Conv2dCase("stem-many-tiny-images", 67, 1, (7, 7), 3, (7, 7), stride=(4, 4), padding=(2, 2)),
    Conv2dCase("stem-tiles", 1, 2, (41, 75), 4, (3, 3), stride=(2, 2)),
]


def assert_ran_direct(case: Conv2dCase, plans: tuple[Plan, ...]) -> None:
    assert [plan.algorithm for plan in plans] == [
        "direct",
        "direct" if case.stride == (1, 1) else "general",
        "direct",
    ]


@by_id([*FEW, *STEMS])
def test_direct_small_integers_are_exact(case: Conv2dCase, shim: CudaShim) -> None:
    tensors = make_tensors(case, small_integers)
    result, plans = run(shim, case, tensors, DIRECT)
    assert_ran_direct(case, plans)
    assert_all_equal(result, oracle_conv2d(tensors, case.options))


@by_id([*FEW, *STEMS])
def test_direct_parity(case: Conv2dCase, shim: CudaShim) -> None:
    tensors = make_tensors(case)
    result, plans = run(shim, case, tensors, dataclasses.replace(DIRECT, flush="start"))
    assert_ran_direct(case, plans)
    by_torch = run_conv2d(torch.nn.functional.conv2d, tensors, case.options)
    assert_all_parity(result, by_torch, oracle_conv2d(tensors, case.options))


@by_id(FEW[:3])
def test_direct_reads_inputs_of_any_layout(case: Conv2dCase, shim: CudaShim) -> None:
    tensors = make_tensors(case, small_integers)
    wide = tensors.input.new_full([*tensors.input.shape[:3], 2 * case.size[1]], float("nan"))
    wide[..., ::2] = tensors.input
    exact = oracle_conv2d(tensors, case.options)
    tensors = dataclasses.replace(tensors, input=wide[..., ::2])
    output, plan = forward(shim, case, tensors, DIRECT)
    gradient, _, weight_plan = grad_weight(shim, case, tensors, DIRECT)
    assert (plan.algorithm, weight_plan.algorithm) == ("direct", "direct")
    assert torch.equal(output.double(), exact.output)
    assert torch.equal(gradient.double(), exact.grad_weight)


@by_id(FEW[:3])
def test_direct_keeps_nan_and_infinity_where_they_belong(case: Conv2dCase, shim: CudaShim) -> None:
    tensors = make_tensors(case, small_integers)
    tensors.input[0, 0, 2, 3] = float("nan")
    tensors.grad_output[-1, 0, 1, 1] = float("inf")
    result, plans = run(shim, case, tensors, DIRECT)
    assert_ran(plans, "direct")
    exact = oracle_conv2d(tensors, case.options)
    for name, expected in vars(exact).items():
        if expected is not None:
            got = getattr(result, name).double()
            assert torch.equal(got.isnan(), expected.isnan()), name
            assert torch.equal(got[~got.isnan()], expected[~expected.isnan()]), name
    assert exact.output.isnan().any()
    assert not exact.output.isnan().all()


@by_id([FEW[1], FEW[2], *(case for case in STEMS if case.out_channels % 4 == 0)])
def test_direct_writes_channels_last_in_vectors(case: Conv2dCase, shim: CudaShim) -> None:
    """The weights too are channels-last. Gradients keep the kernels that read such tensors in
    vectors."""
    for request in (DIRECT, dataclasses.replace(DIRECT, activation="leaky_relu", flush="start")):
        tensors = LAYOUTS["channels_last"](make_tensors(case, small_integers))
        exact = oracle_conv2d(tensors, case.options).output
        if request.activation != "none":
            request = dataclasses.replace(request, negative_slope=0.25)
            exact = torch.nn.functional.leaky_relu(exact, 0.25)
        output, plan = forward(shim, case, tensors, request)
        assert plan.algorithm == "direct"
        assert output.stride(1) == 1
        assert torch.equal(output.double(), exact)
    _, plans = run(shim, case, tensors, DIRECT)
    assert [plan.algorithm for plan in plans[1:]] == ["general", "general"]


def test_direct_is_not_served_other_layouts(shim: CudaShim) -> None:
    """Channels that are no whole vectors; weights whose taps are not evenly spaced."""
    case = FEW[4]
    tensors = LAYOUTS["channels_last"](make_tensors(case, small_integers))
    result, plans = run(shim, case, tensors, DIRECT)
    assert_ran(plans, "general")
    assert_all_equal(result, oracle_conv2d(tensors, case.options))
    tensors = make_tensors(FEW[2], small_integers)
    wide = tensors.weight.new_full([*tensors.weight.shape[:3], 4], float("nan"))
    wide[..., :3] = tensors.weight
    tensors = dataclasses.replace(tensors, weight=wide[..., :3])
    output, plan = forward(shim, FEW[2], tensors, DIRECT)
    assert plan.algorithm == "general"
    assert torch.equal(output.double(), oracle_conv2d(tensors, FEW[2].options).output)


# --- Tensor cores ---------------------------------------------------------------------------------


@pytest.mark.parametrize("math", GEMM_FORMATS)
@by_id([*SMALL[::2], *RANDOM[::2], *CONV2D_EMPTY_BATCH])
def test_gemm_small_integers_are_exact(case: Conv2dCase, math: str, shim: CudaShim) -> None:
    tensors = tensors_in(case, math, fill=small_integers)
    result, plans = run(shim, case, tensors, gemm(math, tile=3))
    # A row or column of the kernel has at most 16 taps; grad input takes one phase per remainder
    # modulo the stride, at most 16; without an image there is no sum to split.
    phases = min(case.stride[0], case.size[0]) * min(case.stride[1], case.size[1])
    small = max(case.kernel) <= 16
    served = [small, small and phases <= 16, case.batch > 0]
    assert_ran(tuple(itertools.compress(plans, served)), "implicit_gemm", math)
    assert_all_equal(result, oracle_conv2d(tensors, case.options))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
@pytest.mark.parametrize("math", ["bfloat16", "tf32"])
@by_id([NAMED["resnext-groups"], NAMED["resnet-1x1-s2"], NAMED["channels-16-to-16"], *TINY[1:3]])
def test_gemm_layouts(case: Conv2dCase, math: str, layout: str, shim: CudaShim) -> None:
    tensors = tensors_in(case, math, layout, small_integers)
    result, plans = run(shim, case, tensors, gemm(math, flush="start"))
    assert_ran(plans, "implicit_gemm", math)
    assert_all_equal(result, oracle_conv2d(tensors, case.options))


@pytest.mark.parametrize("tile", range(4))
@pytest.mark.parametrize("math", GEMM_FORMATS)
def test_gemm_tiles(math: str, tile: int, shim: CudaShim) -> None:
    """Three tiles of pixels and more than one of channels, whichever tile."""
    if math == "tf32x3" and tile == 0:
        pytest.skip("the split product has no tile of this size")
    case = Conv2dCase("tiles", 3, 40, (9, 11), 136, (3, 2), padding=(1, 1))
    tensors = tensors_in(case, math, "channels_last", small_integers)
    output, plan = forward(shim, case, tensors, gemm(math, tile=tile))
    assert (plan.algorithm, plan.tile) == ("implicit_gemm", tile)
    wrong = output != oracle_conv2d(tensors, case.options).output.to(output.dtype)
    assert not wrong.any()


@pytest.mark.parametrize("mma", ["exact", "ampere", "hopper"])
@pytest.mark.parametrize("math", ["bfloat16", "float16", "tf32"])
@by_id([*CONV2D_NETWORKS[3:12:3], CONV2D_WINOGRAD[1], NAMED["channels-33-to-15"], *TINY])
def test_gemm_error_is_within_the_format(
    case: Conv2dCase, math: str, mma: str, shim: CudaShim
) -> None:
    shim.configure(mma=mma)
    tensors = tensors_in(case, math)
    result, plans = run(shim, case, tensors, gemm(math))
    assert_ran(plans, "implicit_gemm", math)
    bound = rounding_bound(case, tensors, math, longest_sum(case))
    assert_within(result, oracle_conv2d(tensors, case.options), bound)


@pytest.mark.parametrize("mma", ["exact", "ampere", "hopper"])
@by_id([*CONV2D_NETWORKS[3:12:3], NAMED["depth-600"], NAMED["channels-33-to-15"], *TINY])
def test_split_product_has_float32_parity(case: Conv2dCase, mma: str, shim: CudaShim) -> None:
    shim.configure(mma=mma)
    tensors = make_tensors(case)
    result, plans = run(shim, case, tensors, gemm("tf32x3"))
    assert_ran(plans, "implicit_gemm", "tf32x3")
    by_torch = run_conv2d(torch.nn.functional.conv2d, tensors, case.options)
    assert_all_parity(result, by_torch, oracle_conv2d(tensors, case.options))


def test_plain_tf32_does_not_have_float32_parity(shim: CudaShim) -> None:
    """The rule that the split product passes can tell the two apart."""
    case = CONV2D_NETWORKS[3]
    tensors = make_tensors(case)
    result, _ = run(shim, case, tensors, gemm("tf32"))
    by_torch = run_conv2d(torch.nn.functional.conv2d, tensors, case.options)
    with pytest.raises(AssertionError, match="output: largest error"):
        assert_all_parity(result, by_torch, oracle_conv2d(tensors, case.options))


def test_split_product_keeps_infinities(shim: CudaShim) -> None:
    """An infinity must not meet the zero low part of what it is multiplied with."""
    case = Conv2dCase("infinite", 1, 16, (6, 6), 16, (3, 3))
    tensors = make_tensors(case, small_integers)
    tensors.weight[3] = tensors.weight[3].abs() + 1
    tensors.input[0, 5, 2, 3] = float("inf")
    output, plan = forward(shim, case, tensors, gemm("tf32x3"))
    assert plan.math == "tf32x3"
    exact = oracle_conv2d(tensors, case.options).output
    assert exact[0, 3].isinf().any()
    torch.testing.assert_close(output[0, 3].double(), exact[0, 3], rtol=0, atol=0)


# --- Both: schedules, memory, fused epilogue ------------------------------------------------------


@pytest.mark.parametrize("copy_at", COPY_AT)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("math", ["general", "direct", *GEMM_FORMATS])
def test_every_schedule_gives_the_same_bits(
    math: str, schedule: str, copy_at: str, shim: CudaShim
) -> None:
    plain = {"general": GENERAL, "direct": DIRECT}
    for case in (FEW[0], FEW[1], STEMS[0]) if math == "direct" else TINY:
        tensors = make_tensors(case) if math in plain else tensors_in(case, math)
        request = plain[math] if math in plain else gemm(math, splits=3)
        shim.configure()
        first, _ = run(shim, case, tensors, request)
        shim.configure(schedule, copy_at=copy_at, seed=len(case.id))
        again, _ = run(shim, case, tensors, dataclasses.replace(request, flush="start"))
        assert_all_equal(again, first)


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "sigmoid", "tanh"])
@pytest.mark.parametrize(
    ("layout", "algorithm"),
    [
        *itertools.product(["contiguous", "channels_last"], ["general", "implicit_gemm"]),
        ("contiguous", "direct"),
    ],
)
def test_fused_activation(layout: str, algorithm: str, activation: str, shim: CudaShim) -> None:
    case = FEW[2] if algorithm == "direct" else NAMED["channels-33-to-15"]
    tensors = LAYOUTS[layout](make_tensors(case))
    request = Request(algorithm=algorithm, activation=activation, negative_slope=0.25)
    output, plan = forward(shim, case, tensors, request)
    assert plan.algorithm == algorithm
    apply = {
        "none": torch.clone,
        "relu": torch.relu,
        "leaky_relu": lambda t: torch.nn.functional.leaky_relu(t, 0.25),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }[activation]
    exact = apply(oracle_conv2d(tensors, case.options).output)
    by_torch = run_conv2d(torch.nn.functional.conv2d, tensors, case.options).output
    assert_parity(output, apply(by_torch), exact, activation)


@pytest.mark.parametrize("algorithm", ["general", "implicit_gemm", "direct"])
def test_a_changed_weight_changes_its_channel_alone(algorithm: str, shim: CudaShim) -> None:
    """Negative control: one tap off by one is seen, where it should be."""
    case = NAMED["channels-16-to-16"]
    tensors = make_tensors(case, small_integers)
    exact = oracle_conv2d(tensors, case.options)
    tensors.weight[11, 7, 2, 0] += 1
    result, _ = run(shim, case, tensors, Request(algorithm=algorithm, allow_tf32=True))
    with pytest.raises(AssertionError, match="output"):
        assert_all_equal(result, exact)
    changed = (result.output.double() != exact.output).flatten(2).any(-1).any(0)
    assert changed.nonzero().flatten().tolist() == [11]


@pytest.mark.parametrize("splits", [1, 2, 5])
@pytest.mark.parametrize("math", ["general", *GEMM_FORMATS])
def test_splits_of_the_weight_gradient(math: str, splits: int, shim: CudaShim) -> None:
    case = NAMED["batch-13"]
    format = "tf32" if math == "general" else math
    tensors = tensors_in(case, format, fill=small_integers)
    oracle = oracle_conv2d(tensors, case.options)
    request = Request(algorithm="general") if math == "general" else gemm(math)
    gradient, bias, plan = grad_weight(
        shim, case, tensors, dataclasses.replace(request, splits=splits)
    )
    assert plan.splits == splits
    assert torch.equal(gradient, oracle.grad_weight.to(gradient.dtype))
    assert torch.equal(bias, oracle.grad_bias.to(bias.dtype))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tile", range(2))
@pytest.mark.parametrize("math", GEMM_FORMATS)
def test_tiles_of_the_weight_gradient(math: str, tile: int, bias: bool, shim: CudaShim) -> None:
    """Two tiles each way and a ragged end, whichever tile; strided taps beside the image."""
    if math == "tf32x3" and tile == 0:
        pytest.skip("the split product has no tile of this size")
    case = Conv2dCase(
        "tiles", 2, 24, (9, 11), 136, (3, 2), stride=(2, 1), padding=(1, 1), bias=bias
    )
    tensors = tensors_in(case, math, "channels_last", small_integers)
    oracle = oracle_conv2d(tensors, case.options)
    request = gemm(math, weight_tile=tile, splits=2)
    gradient, grad_bias, plan = grad_weight(shim, case, tensors, request)
    assert (plan.algorithm, plan.tile, plan.splits) == ("implicit_gemm", tile, 2)
    assert torch.equal(gradient, oracle.grad_weight.to(gradient.dtype))
    if bias:
        assert torch.equal(grad_bias, oracle.grad_bias.to(grad_bias.dtype))


@pytest.mark.parametrize("mma", ["exact", "ampere", "hopper"])
def test_split_product_has_float32_parity_over_many_pixels(mma: str, shim: CudaShim) -> None:
    """5,000 products of one sign per weight, as after a ReLU, in as few splits as possible."""
    shim.configure(mma=mma)
    case = Conv2dCase("pixels", 2, 8, (51, 51), 8, (1, 1))
    tensors = make_tensors(case, lambda shape, generator: torch.rand(shape, generator=generator))
    gradient, bias, plan = grad_weight(shim, case, tensors, gemm("tf32x3", splits=1))
    assert (plan.math, plan.splits) == ("tf32x3", 1)
    by_torch = run_conv2d(torch.nn.functional.conv2d, tensors, case.options)
    oracle = oracle_conv2d(tensors, case.options)
    assert_parity(gradient, by_torch.grad_weight, oracle.grad_weight, "grad_weight")
    assert_parity(bias, by_torch.grad_bias, oracle.grad_bias, "grad_bias")


# --- Which kernels serve a call -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "math", "options", "algorithm"),
    [
        ("vgg-3x3", "bfloat16", {}, "implicit_gemm"),
        ("vgg-3x3", "tf32", {}, "implicit_gemm"),
        ("vgg-3x3", "tf32x3", {}, "implicit_gemm"),
        ("vgg-3x3", "tf32", {"compute_capability": 75}, "general"),
        ("mobilenet-depthwise", "bfloat16", {}, "depthwise"),
        ("lenet-conv2", "tf32", {}, "direct"),
        ("channels-3-to-5", "tf32", {}, "direct"),
        ("channels-3-to-5", "bfloat16", {}, "general"),
    ],
)
def test_choice(id: str, math: str, options: dict, algorithm: str, shim: CudaShim) -> None:
    case = dataclasses.replace(NAMED[id], batch=1)
    tensors = tensors_in(case, math, fill=small_integers)
    request = Request(allow_tf32=GEMM_FORMATS[math][1], **options)
    result, plans = run(shim, case, tensors, request)
    assert_ran(plans, algorithm, math if algorithm == "implicit_gemm" else None)
    assert_all_equal(result, oracle_conv2d(tensors, case.options))


def test_choice_for_one_input_channel(shim: CudaShim) -> None:
    """The direct kernel of the input gradient would compute three channels for nothing."""
    case = dataclasses.replace(NAMED["lenet-conv1"], batch=1)
    _, plans = run(shim, case, make_tensors(case), Request(allow_tf32=True))
    assert [plan.algorithm for plan in plans] == ["direct", "depthwise", "direct"]


def test_float64_never_runs_on_tensor_cores(shim: CudaShim) -> None:
    case = TINY[0]
    tensors = make_tensors(case).map(torch.Tensor.double)
    _, plans = run(shim, case, tensors, Request(algorithm="implicit_gemm", allow_tf32=True))
    assert_ran(plans, "general")


def test_aligned_channels_last_is_read_in_place(shim: CudaShim) -> None:
    """No copies of operands that lie as the kernel reads them: one launch, no workspace."""
    case = NAMED["channels-16-to-16"]
    tensors = tensors_in(case, "bfloat16", "channels_last", small_integers)
    shim.reset_counts()
    _, plan = forward(shim, case, tensors, gemm("bfloat16"))
    assert (plan.workspace_bytes, shim.counts().launches) == (0, 1)
    shim.reset_counts()
    _, plan = forward(shim, case, tensors_in(case, "bfloat16"), gemm("bfloat16"))
    assert plan.workspace_bytes > 0
    assert shim.counts().launches == 3
