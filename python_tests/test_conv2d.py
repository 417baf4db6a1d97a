# SPDX-License-Identifier: MIT
"""conv2d's numbers: every case x instruction set x layout against the float64 oracle."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import (
    CONV2D_CASES,
    CONV2D_CHANNELS,
    CONV2D_EMPTY_BATCH,
    CONV2D_NETWORKS,
    CONV2D_STEPS,
    CONV2D_WINOGRAD,
    Conv2dCase,
    random_conv2d_cases,
)
from reference import (
    ConvResults,
    ConvTensors,
    assert_all_equal,
    assert_all_parity,
    assert_parity,
    conv2d_by_definition,
    oracle_conv2d,
    run_conv2d,
    significant_strides,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastconv.functional as F
from fastconv import runtime

GRADIENT_KERNELS = ["conv2d_grad_input", "conv2d_grad_weight"]
RANDOM_CASES = [*random_conv2d_cases(60, seed=20240611)]


# --- Operands and their layouts ------------------------------------------------------------------


def make_tensors(case: Conv2dCase, fill: Callable[..., Tensor] = torch.randn) -> ConvTensors:
    generator = torch.Generator().manual_seed(sum(map(ord, case.id)))
    shapes = [case.input_shape, case.weight_shape, [case.out_channels], case.output_shape]
    input, weight, bias, grad = (fill(shape, generator=generator) for shape in shapes)
    return ConvTensors(input, weight, bias if case.bias else None, grad)


def small_integers(shape: list[int], generator: torch.Generator) -> Tensor:
    return torch.randint(-3, 4, shape, generator=generator).float()


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def sliced(t: Tensor) -> Tensor:
    """The same values inside a larger tensor of NaN: nothing around them may be read."""
    larger = torch.full([s + 2 for s in t.shape], float("nan"))
    view = larger[tuple(slice(1, -1) for _ in t.shape)]
    return view.copy_(t)


def every_second(t: Tensor) -> Tensor:
    """No dimension has stride 1."""
    larger = torch.full([*t.shape, 2], float("nan"))
    view = larger[..., 1]
    return view.copy_(t)


def transposed(t: Tensor) -> Tensor:
    """Columns lie along the height: neither rows nor channels are contiguous."""
    return t.mT.contiguous().mT


def channels_first_in_slices(t: Tensor) -> Tensor:
    """channels_last inside a larger tensor: channels contiguous, pixels apart."""
    larger = torch.full([t.shape[0], t.shape[2], t.shape[3], t.shape[1] + 3], float("nan"))
    view = larger.permute(0, 3, 1, 2)[:, 1:-2]
    return view.copy_(t)


def _layout(input, weight, grad, bias=torch.clone):
    def apply(t: ConvTensors) -> ConvTensors:
        b = None if t.bias is None else bias(t.bias)
        return ConvTensors(input(t.input), weight(t.weight), b, grad(t.grad_output))

    return apply


LAYOUTS = {
    "contiguous": _layout(torch.clone, torch.clone, torch.clone),
    "channels_last": _layout(channels_last, channels_last, channels_last),
    "channels_last_input": _layout(channels_last, torch.clone, torch.clone),
    "channels_last_weight": _layout(torch.clone, channels_last, channels_last),
    "sliced": _layout(sliced, sliced, sliced, bias=every_second),
    "sliced_channels_last": _layout(
        channels_first_in_slices, channels_first_in_slices, channels_first_in_slices
    ),
    "no_unit_stride": _layout(every_second, every_second, transposed, bias=every_second),
}
MAIN_LAYOUTS = ["contiguous", "channels_last", "sliced"]


@functools.lru_cache(maxsize=256)
def expected(case: Conv2dCase, layout: str) -> tuple[ConvTensors, ConvResults, ConvResults]:
    """The operands, torch's float32 results and the oracle; kept for the next instruction set."""
    tensors = LAYOUTS[layout](make_tensors(case))
    by_torch = run_conv2d(torch.nn.functional.conv2d, tensors, case.options)
    return tensors, by_torch, oracle_conv2d(tensors, case.options)


def by_id(cases: list[Conv2dCase]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


# --- The oracle ----------------------------------------------------------------------------------


@by_id([*CONV2D_STEPS, *random_conv2d_cases(10, seed=7)])
def test_oracle_agrees_with_the_definition(case: Conv2dCase) -> None:
    t = make_tensors(case)
    bias = None if t.bias is None else t.bias.numpy()
    ours = conv2d_by_definition(t.input.numpy(), t.weight.numpy(), bias, **case.options)
    oracle = oracle_conv2d(t, case.options)
    np.testing.assert_allclose(oracle.output.numpy(), ours, rtol=1e-12, atol=1e-12)
    # The gradients are defined by <grad_output, conv2d(u)> = <grad, u> for every direction u.
    generator = torch.Generator().manual_seed(3)
    for operand, gradient in [("input", oracle.grad_input), ("weight", oracle.grad_weight)]:
        value = getattr(t, operand)
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        operands = {"input": t.input.numpy(), "weight": t.weight.numpy()}
        operands[operand] = direction.numpy()
        change = conv2d_by_definition(**operands, bias=None, **case.options)
        slope = (torch.from_numpy(change) * t.grad_output.double()).sum()
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-9, atol=1e-9)


# --- Parity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", MAIN_LAYOUTS)
@by_id(CONV2D_CASES)
def test_parity(case: Conv2dCase, layout: str, isa: str) -> None:
    tensors, by_torch, oracle = expected(case, layout)
    assert_all_parity(run_conv2d(F.conv2d, tensors, case.options), by_torch, oracle)
    assert runtime.last_used_isa("conv2d_forward") == isa
    assert [runtime.last_used_isa(kernel) for kernel in GRADIENT_KERNELS] == [isa, isa]


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in MAIN_LAYOUTS])
@by_id(
    [
        *CONV2D_NETWORKS[:10],
        *CONV2D_STEPS[::3],
        *CONV2D_CHANNELS[::4],
        *CONV2D_WINOGRAD[:2],
        *RANDOM_CASES[:8],
    ]
)
def test_parity_in_other_layouts(case: Conv2dCase, layout: str, isa: str) -> None:
    tensors, by_torch, oracle = expected(case, layout)
    assert_all_parity(run_conv2d(F.conv2d, tensors, case.options), by_torch, oracle)
    assert runtime.last_used_isa("conv2d_grad_weight") == isa


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@by_id(RANDOM_CASES)
def test_parity_on_random_cases(case: Conv2dCase, layout: str, isa: str) -> None:
    tensors, by_torch, oracle = expected(case, layout)
    assert_all_parity(run_conv2d(F.conv2d, tensors, case.options), by_torch, oracle)
    assert runtime.last_used_isa("conv2d_forward") == isa


@by_id([*CONV2D_CASES, *RANDOM_CASES])
def test_small_integers_are_exact(case: Conv2dCase, isa: str) -> None:
    tensors = make_tensors(case, small_integers)
    oracle = oracle_conv2d(tensors, case.options)
    assert_all_equal(run_conv2d(F.conv2d, tensors, case.options), oracle)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
@by_id([*CONV2D_NETWORKS, *CONV2D_STEPS])
def test_layout_does_not_change_integers(case: Conv2dCase, layout: str, isa: str) -> None:
    tensors = LAYOUTS[layout](make_tensors(case, small_integers))
    oracle = oracle_conv2d(tensors, case.options)
    assert_all_equal(run_conv2d(F.conv2d, tensors, case.options), oracle)


@pytest.mark.parametrize(
    ("batch", "channels", "size", "out", "kernel"),
    [(512, 1, 28, 6, 5), (1, 3, 224, 8, 3), (64, 16, 28, 16, 3)],
)
def test_parity_of_long_sums(
    batch: int, channels: int, size: int, out: int, kernel: int, isa: str
) -> None:
    """Weight and bias gradients add 50,000 to 400,000 products; activations have a mean, as after
    a ReLU, so errors of a naive running sum do not cancel."""
    case = Conv2dCase(
        f"long-{batch}x{channels}x{size}", batch, channels, (size, size), out, (kernel, kernel)
    )
    tensors = make_tensors(case, lambda shape, generator: torch.rand(shape, generator=generator))
    by_torch = run_conv2d(torch.nn.functional.conv2d, tensors, case.options)
    oracle = oracle_conv2d(tensors, case.options)
    assert_all_parity(run_conv2d(F.conv2d, tensors, case.options), by_torch, oracle)


@pytest.mark.parametrize("threads", [1, 2])
@by_id([CONV2D_NETWORKS[0], CONV2D_NETWORKS[3], CONV2D_NETWORKS[10], CONV2D_STEPS[1]])
def test_thread_counts(case: Conv2dCase, threads: int, isa: str) -> None:
    """Large enough to be split: right, and bitwise the same from run to run."""
    torch.set_num_threads(threads)
    big = Conv2dCase(**{**vars(case), "batch": 16})
    tensors, by_torch, oracle = expected(big, "contiguous")
    first = run_conv2d(F.conv2d, tensors, big.options)
    assert_all_parity(first, by_torch, oracle)
    for _ in range(3):
        assert_all_equal(run_conv2d(F.conv2d, tensors, big.options), first)


# --- Which gradients are computed ----------------------------------------------------------------

MASKS = [mask for mask in itertools.product([False, True], repeat=3) if any(mask)]


class RecordBackward(TorchDispatchMode):
    """Notes the output masks with which the backward operator is called."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[tuple[bool, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.fastconv._conv2d_backward.default:
            self.masks.append(tuple(args[7]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("needs", MASKS, ids=str)
@by_id([CONV2D_NETWORKS[1], CONV2D_NETWORKS[7], CONV2D_STEPS[0]])
def test_subsets_of_gradients(case: Conv2dCase, needs: tuple[bool, bool, bool], isa: str) -> None:
    case = Conv2dCase(**{**vars(case), "bias": True})
    tensors, _, oracle = expected(case, "contiguous")
    everything = run_conv2d(F.conv2d, tensors, case.options)
    with RecordBackward() as record:
        some = run_conv2d(F.conv2d, tensors, case.options, needs)
    assert record.masks == [needs]
    for need, name in zip(needs, ["grad_input", "grad_weight", "grad_bias"], strict=True):
        ours = getattr(some, name)
        assert (ours is not None) == need
        if need:
            assert_parity(ours, getattr(everything, name), getattr(oracle, name), name)


@pytest.mark.parametrize("mask", [(False, False, False), *MASKS], ids=str)
def test_masked_kernels_do_not_run(mask: tuple[bool, bool, bool], isa: str) -> None:
    """Gradients that are not asked for come back as None, and their kernels are not started."""
    case = CONV2D_NETWORKS[1]
    t = make_tensors(case)
    with runtime.force_cpu_isa("scalar"):  # leaves a mark that any later run overwrites
        run_conv2d(F.conv2d, t, case.options)
    grads = torch.ops.fastconv._conv2d_backward(
        t.grad_output, t.input, t.weight, *map(list, [case.stride, case.padding, case.dilation]),
        case.groups, list(mask),
    )  # fmt: skip
    assert tuple(g is not None for g in grads) == mask
    used = [runtime.last_used_isa(kernel) for kernel in GRADIENT_KERNELS]
    assert used == [isa if asked else "scalar" for asked in mask[:2]]


def test_no_gradient_no_graph() -> None:
    t = make_tensors(CONV2D_NETWORKS[0])
    weight = t.weight.clone().requires_grad_()
    assert F.conv2d(t.input, t.weight).grad_fn is None
    with torch.no_grad():
        assert F.conv2d(t.input, weight).grad_fn is None
    with torch.inference_mode():
        output = F.conv2d(t.input, weight)
    assert output.is_inference()


# --- Results look like torch's -------------------------------------------------------------------

FORMATS = {"contiguous": torch.clone, "channels_last": channels_last, "sliced": sliced}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grad_format", FORMATS)
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("input_format", FORMATS)
@pytest.mark.parametrize(
    "case",
    [
        Conv2dCase("plain", 2, 3, (6, 7), 4, (3, 3), padding=(1, 1)),
        Conv2dCase("one-channel", 2, 1, (6, 7), 4, (3, 3)),
        Conv2dCase("one-output-channel", 2, 3, (6, 7), 1, (3, 3)),
        Conv2dCase("depthwise", 2, 4, (6, 7), 4, (3, 3), groups=4),
        Conv2dCase("pointwise", 2, 4, (6, 7), 5, (1, 1)),
        Conv2dCase("output-1x1", 2, 3, (3, 3), 4, (3, 3)),
        Conv2dCase("one-of-all", 1, 1, (1, 1), 1, (1, 1)),
    ],
    ids=lambda case: case.id,
)
def test_strides_equal_torchs(
    case: Conv2dCase, input_format: str, weight_format: str, grad_format: str, dtype: torch.dtype
) -> None:
    made = make_tensors(case)
    tensors = ConvTensors(
        FORMATS[input_format](made.input).to(dtype),
        FORMATS[weight_format](made.weight).to(dtype),
        made.bias.to(dtype),
        FORMATS[grad_format](made.grad_output).to(dtype),
    )
    ours = run_conv2d(F.conv2d, tensors, case.options)
    theirs = run_conv2d(torch.nn.functional.conv2d, tensors, case.options)
    assert ours.output.stride() == theirs.output.stride()
    assert ours.grad_input.stride() == theirs.grad_input.stride()
    # torch's own weight gradient has other strides for other dtypes and algorithms; what users see
    # is weight.grad, which autograd gives the layout of the weight.
    made_by = []
    for conv2d in (F.conv2d, torch.nn.functional.conv2d):
        weight = tensors.weight.detach().clone().requires_grad_()
        conv2d(tensors.input, weight, tensors.bias, **case.options).backward(tensors.grad_output)
        made_by.append(weight.grad)
    assert significant_strides(made_by[0]) == significant_strides(made_by[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unbatched_input(dtype: torch.dtype, isa: str) -> None:
    case = CONV2D_NETWORKS[1]
    t = make_tensors(case).map(lambda t: t.to(dtype))
    single = ConvTensors(t.input[0], t.weight, t.bias, t.grad_output[0])
    ours = run_conv2d(F.conv2d, single, case.options)
    theirs = run_conv2d(torch.nn.functional.conv2d, single, case.options)
    oracle = oracle_conv2d(single, case.options)
    assert_all_parity(ours, theirs, oracle)
    assert ours.output.stride() == theirs.output.stride()
    assert ours.grad_input.stride() == theirs.grad_input.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@by_id(CONV2D_EMPTY_BATCH)
def test_empty_batch(case: Conv2dCase, dtype: torch.dtype, isa: str) -> None:
    t = make_tensors(case).map(lambda t: t.to(dtype))
    ours = run_conv2d(F.conv2d, t, case.options)
    theirs = run_conv2d(torch.nn.functional.conv2d, t, case.options)
    assert ours.output.shape == theirs.output.shape
    assert ours.grad_input.shape == theirs.grad_input.shape
    assert torch.equal(ours.grad_weight, torch.zeros_like(t.weight))
    if case.bias:
        assert torch.equal(ours.grad_bias, torch.zeros_like(t.bias))


@pytest.mark.parametrize("layout", LAYOUTS)
@by_id([*CONV2D_CASES[::5], *CONV2D_STEPS[::4], *RANDOM_CASES[:10]])
def test_float64(case: Conv2dCase, layout: str) -> None:
    tensors = LAYOUTS[layout](make_tensors(case)).map(lambda t: t.double())
    ours = run_conv2d(F.conv2d, tensors, case.options)
    oracle = oracle_conv2d(tensors, case.options)
    for name in ["output", "grad_input", "grad_weight", "grad_bias"]:
        a, b = getattr(ours, name), getattr(oracle, name)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, check_stride=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@by_id([CONV2D_NETWORKS[1], CONV2D_NETWORKS[7], CONV2D_STEPS[0]])
def test_half_precision_is_torchs(case: Conv2dCase, dtype: torch.dtype) -> None:
    t = make_tensors(case).map(lambda t: t.to(dtype))
    ours = run_conv2d(F.conv2d, t, case.options)
    theirs = run_conv2d(torch.nn.functional.conv2d, t, case.options)
    assert ours.output.dtype == dtype
    assert_all_equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("kernel", "dilation"),
    [((3, 3), 1), ((2, 2), 1), ((4, 1), 1), ((1, 6), (1, 3)), ((4, 3), (3, 2)), ((5, 2), 1)],
)
def test_named_padding(kernel: tuple, dilation, padding: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    x = small_integers([2, 4, 14, 17], generator).to(dtype)
    w = small_integers([6, 2, *kernel], generator).to(dtype)
    b = small_integers([6], generator).to(dtype)
    for input in (x, x[0]):
        ours = F.conv2d(input, w, b, padding=padding, dilation=dilation, groups=2)
        theirs = torch.nn.functional.conv2d(
            input, w, b, padding=padding, dilation=dilation, groups=2
        )
        assert torch.equal(ours, theirs)


def test_arguments_may_be_positional_named_integers_or_pairs() -> None:
    t = make_tensors(Conv2dCase("arguments", 2, 4, (9, 11), 6, (3, 3), groups=2), small_integers)
    for options in [
        {},
        {"stride": 2},
        {"stride": (2, 1)},
        {"stride": [2, 1]},
        {"stride": [2]},
        {"stride": torch.Size([1, 2]), "padding": (np.int64(1), 1)},
        {"padding": 1, "dilation": 2},
        {"padding": np.int64(2), "dilation": (1, 2)},
    ]:
        ours = F.conv2d(t.input, t.weight, t.bias, **options, groups=2)
        theirs = torch.nn.functional.conv2d(t.input, t.weight, t.bias, **options, groups=2)
        assert torch.equal(ours, theirs), options
    ours = F.conv2d(t.input, t.weight, None, 2, 1, 2, 2)
    assert torch.equal(ours, torch.nn.functional.conv2d(t.input, t.weight, None, 2, 1, 2, 2))


# --- Unusual values and unusual tensors ----------------------------------------------------------


@pytest.mark.parametrize("layout", MAIN_LAYOUTS)
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("operand", ["input", "weight", "grad_output"])
@by_id([CONV2D_NETWORKS[1], CONV2D_NETWORKS[5], CONV2D_NETWORKS[7], CONV2D_STEPS[0]])
def test_nan_and_infinity_go_where_torch_sends_them(
    case: Conv2dCase, operand: str, special: float, layout: str, isa: str
) -> None:
    """One special value spreads to all results that depend on it, and to no other.

    The one freedom: torch's own kernels disagree on whether a zero of the padding is multiplied by
    a special weight or gradient (giving NaN) or left out, so there either is right.
    """
    t = make_tensors(case, small_integers).map(torch.clone)
    poisoned = getattr(t, operand).view(-1)
    poisoned[poisoned.numel() // 2] = special
    t = LAYOUTS[layout](t)
    ours = run_conv2d(F.conv2d, t, case.options)
    by_torch = run_conv2d(torch.nn.functional.conv2d, t, case.options)
    may_meet_padding = {
        "input": [],
        "weight": ["output", "grad_input"],
        "grad_output": ["grad_weight"],
    }[operand]
    for name in ["output", "grad_input", "grad_weight", "grad_bias"]:
        a, b = getattr(ours, name), getattr(by_torch, name)
        if b is None:
            continue
        finite = a.isfinite()
        if name in may_meet_padding:
            assert torch.equal(finite & b.isfinite(), finite), f"{name} is finite, torch's is not"
            pixels = (2, 3) if name == "grad_weight" else (0, 2, 3)
            tainted_channel = (~b.isfinite()).amax(pixels, keepdim=True)
            assert (finite | tainted_channel).all(), f"{special} leaked to other channels of {name}"
            assert torch.equal(a[finite], b[finite]), f"finite values of {name} differ"
        else:
            torch.testing.assert_close(
                a, b, rtol=0, atol=0, equal_nan=True, check_stride=False,
                msg=f"{special} in {operand}: {name} differs",
            )  # fmt: skip


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("algorithm", "tiles"), [("winograd", slice(6, 10)), ("winograd_4x4", slice(4, 12))]
)
def test_nan_and_infinity_under_winograd(
    special: float, algorithm: str, tiles: slice, isa: str
) -> None:
    """The algorithms that add inputs before they multiply: a special input also spoils outputs that
    share an output tile with those that depend on it, but no others."""
    t = make_tensors(CONV2D_WINOGRAD[0], small_integers).map(torch.clone)
    t.input[0, 3, 7, 8] = special
    with runtime.force_algorithm("conv2d_forward", algorithm):
        ours = F.conv2d(t.input, t.weight, t.bias, **CONV2D_WINOGRAD[0].options)
    by_torch = torch.nn.functional.conv2d(t.input, t.weight, t.bias, **CONV2D_WINOGRAD[0].options)
    assert not ours[~by_torch.isfinite()].isfinite().any()
    near = torch.zeros_like(ours, dtype=torch.bool)
    near[:, :, tiles, tiles] = True  # those that touch rows 6-8 and columns 7-9
    assert torch.equal(ours[~near], by_torch[~near])


def test_denormals_are_kept(isa: str) -> None:
    tiny = torch.full([1, 1, 4, 4], 2.0**-140)
    output = F.conv2d(tiny, torch.ones(1, 1, 2, 2))
    assert torch.equal(output, torch.full([1, 1, 3, 3], 2.0**-138))


def test_overlapping_and_lazy_views(isa: str) -> None:
    """Expanded batches, expanded gradients (from sum) and tensors whose negation is pending."""
    case = CONV2D_NETWORKS[1]
    t = make_tensors(case, small_integers)
    expanded = t.input[:1].expand(8, -1, -1, -1)
    wanted = torch.nn.functional.conv2d(expanded, t.weight, t.bias)
    assert torch.equal(F.conv2d(expanded, t.weight, t.bias), wanted)

    same_everywhere = t.input[:, :, :1, :1].expand(-1, -1, 14, 14)
    wanted = torch.nn.functional.conv2d(same_everywhere, t.weight, t.bias)
    assert torch.equal(F.conv2d(same_everywhere, t.weight, t.bias), wanted)

    x, w = t.input.clone().requires_grad_(), t.weight.clone().requires_grad_()
    F.conv2d(x, w).sum().backward()
    ours = (x.grad, w.grad)
    x, w = t.input.clone().requires_grad_(), t.weight.clone().requires_grad_()
    torch.nn.functional.conv2d(x, w).sum().backward()
    assert torch.equal(ours[0], x.grad)
    assert torch.equal(ours[1], w.grad)

    lazily_negated = torch.complex(t.input, t.input).conj().imag
    assert lazily_negated.is_neg()
    wanted = torch.nn.functional.conv2d(-t.input, t.weight)
    assert torch.equal(F.conv2d(lazily_negated, t.weight), wanted)


# --- Negative controls: the comparisons above can fail --------------------------------------------


def _wrong_tap(t: ConvTensors) -> ConvTensors:
    weight = t.weight.clone()
    weight[0, 0, 0, 0] += 0.01
    return ConvTensors(t.input, weight, t.bias, t.grad_output)


def _swapped_channels(t: ConvTensors) -> ConvTensors:
    return ConvTensors(t.input.flip(1), t.weight, t.bias, t.grad_output)


def _no_bias(t: ConvTensors) -> ConvTensors:
    return ConvTensors(t.input, t.weight, torch.zeros_like(t.bias), t.grad_output)


def _shifted_pixel(t: ConvTensors) -> ConvTensors:
    return ConvTensors(t.input.roll(1, 3), t.weight, t.bias, t.grad_output)


@pytest.mark.parametrize("spoil", [_wrong_tap, _swapped_channels, _no_bias, _shifted_pixel])
def test_comparison_notices(spoil: Callable[[ConvTensors], ConvTensors], isa: str) -> None:
    case = CONV2D_NETWORKS[1]
    tensors, by_torch, oracle = expected(case, "contiguous")
    wrong = run_conv2d(F.conv2d, spoil(tensors), case.options)
    with pytest.raises(AssertionError, match="largest error"):
        assert_all_parity(wrong, by_torch, oracle)
    with pytest.raises(AssertionError, match="elements differ"):
        assert_all_equal(wrong, run_conv2d(F.conv2d, tensors, case.options))


def test_comparison_notices_one_rounding_of_an_integer_and_nan() -> None:
    case = CONV2D_NETWORKS[1]
    tensors, by_torch, oracle = expected(case, "contiguous")
    ours = run_conv2d(F.conv2d, tensors, case.options)
    for change in (torch.nan, 1.0):
        output = ours.output.clone()
        output.view(-1)[-1] += change
        with pytest.raises(AssertionError, match="output: largest error"):
            assert_parity(output, by_torch.output, oracle.output, "output")
    nudged = ours.grad_weight.clone()
    nudged.view(-1)[5] = torch.nextafter(nudged.view(-1)[5], torch.tensor(9e9))
    with pytest.raises(AssertionError, match="grad_weight: 1 of"):
        assert_all_equal(ConvResults(ours.output, ours.grad_input, nudged, ours.grad_bias), ours)


def test_every_algorithm_is_tested() -> None:
    """Each algorithm serves some case of the tables on some instruction set, else it went untested.

    An algorithm that is added, renamed or dropped belongs into this list.
    """
    seen: dict[str, set[str]] = {"conv2d_forward": set()} | {k: set() for k in GRADIENT_KERNELS}
    for name in runtime.available_isas():
        with runtime.force_cpu_isa(name):
            for case in CONV2D_CASES:
                run_conv2d(F.conv2d, make_tensors(case), case.options)
                for kernel, algorithms in seen.items():
                    algorithms.add(runtime.last_used_algorithm(kernel))
    vectors = {"channel_vectors", "image_vectors"} if len(runtime.available_isas()) > 1 else set()
    winograd = {"winograd", "winograd_4x4"}
    gather = {"panel", "pixel_vectors", "rows", "shifted", "depthwise"} | vectors | winograd
    dot = {"dot", "image_vectors"} if vectors else set()
    assert seen == {
        "conv2d_forward": gather,
        "conv2d_grad_input": gather,
        "conv2d_grad_weight": {"panel", "direct", "rows", "depthwise"} | dot | winograd,
    }


def test_ids_are_unique() -> None:
    ids = [case.id for case in [*CONV2D_CASES, *CONV2D_EMPTY_BATCH, *RANDOM_CASES]]
    assert len(ids) == len(set(ids))
