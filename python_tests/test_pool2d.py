# SPDX-License-Identifier: MIT
"""max_pool2d and avg_pool2d against torch, for every case, dtype, instruction set and layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from pool_cases import (
    AVG_CASES,
    MAX_CASES,
    PoolCase,
    assert_parity,
    assert_same_bits,
    make_input,
    random_cases,
)
from torch import Tensor

import fastconv.functional as fastF
from fastconv import nn as fast_nn
from fastconv import runtime

OPS = torch.ops.fastconv
LAYOUTS = [False, True]
DIVISORS = [(True, None), (False, None), (True, 3), (False, -7)]


def case_ids(cases: list[PoolCase]) -> list[str]:
    return [case.name for case in cases]


@pytest.fixture(params=runtime.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with runtime.force_cpu_isa(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small cases gain nothing from waking more; tests of threading ask for two_threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads(one_thread: None) -> None:
    torch.set_num_threads(2)


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def assert_ran(kernel: str, isa: str, case: PoolCase, x: Tensor) -> None:
    channels_last = x.dim() == 4 and not x.is_contiguous()
    assert runtime.last_used_isa(kernel) == isa
    assert runtime.last_used_algorithm(kernel) == case.algorithm(channels_last)


def check_max_forward(case: PoolCase, x: Tensor) -> None:
    expected, expected_indices = F.max_pool2d(x, *case.max_options(), return_indices=True)
    actual = fastF.max_pool2d(x, *case.max_options())
    assert_same_bits(actual, expected)
    assert actual.stride() == expected.stride()
    with_indices, indices = fastF.max_pool2d(x, *case.max_options(), return_indices=True)
    assert_same_bits(with_indices, expected)
    assert_same_bits(indices, expected_indices)
    assert indices.stride() == expected_indices.stride()
    training = fastF.max_pool2d(leaf(x), *case.max_options())
    assert_same_bits(training.detach(), expected)


def gradients(pool, options: tuple, x: Tensor, grad: Tensor) -> Tensor:
    y = leaf(x)
    pool(y, *options).backward(grad)
    assert y.grad is not None
    return y.grad


def check_backward(ours, torchs, options: tuple, x: Tensor) -> None:
    """Exact for small integers, within the parity rule for anything."""
    size = torchs(x, *options).shape
    grad = torch.randint(-8, 9, size, dtype=x.dtype)
    expected = gradients(torchs, options, x, grad)
    actual = gradients(ours, options, x, grad)
    assert actual.stride() == expected.stride()
    if ours is fastF.max_pool2d:
        assert torch.equal(actual, expected)
    grad = torch.randn(size, dtype=x.dtype)
    oracle = gradients(torchs, options, x.double(), grad.double())
    assert_parity(gradients(ours, options, x, grad), gradients(torchs, options, x, grad), oracle)


# --- Max pooling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=["nchw", "channels_last"])
@pytest.mark.parametrize("case", MAX_CASES, ids=case_ids(MAX_CASES))
def test_max_matches_torch(case: PoolCase, isa: str, channels_last: bool) -> None:
    channels_last = channels_last and len(case.shape) == 4
    for special in (False, True):
        x = make_input(case.shape, channels_last, torch.float32, special)
        check_max_forward(case, x)
        assert_ran("max_pool2d_forward", isa, case, x)
        check_backward(fastF.max_pool2d, F.max_pool2d, case.max_options(), x.nan_to_num(0, 9, -9))
        assert_ran("max_pool2d_backward", isa, case, x)


@pytest.mark.parametrize("seed", range(3))
def test_max_matches_torch_on_random_cases(seed: int, isa: str) -> None:
    for number, case in enumerate(random_cases(seed, 20)):
        x = make_input(case.shape, number % 2 == 1, torch.float32, number % 3 == 0, number)
        check_max_forward(case, x)
        check_backward(fastF.max_pool2d, F.max_pool2d, case.max_options(), x.nan_to_num(0, 9, -9))


@pytest.mark.parametrize("case", MAX_CASES, ids=case_ids(MAX_CASES))
def test_max_float64_runs_on_the_reference(case: PoolCase) -> None:
    for special in (False, True):
        x = make_input(case.shape, False, torch.float64, special)
        check_max_forward(case, x)
        assert runtime.last_used_algorithm("max_pool2d_forward") == "reference"
        check_backward(fastF.max_pool2d, F.max_pool2d, case.max_options(), x.nan_to_num(0, 9, -9))


def test_max_last_nan_and_first_of_equals_win(isa: str) -> None:
    nan = float("nan")
    planes = torch.tensor(
        [
            [[1.0, 1.0], [1.0, 1.0]],
            [[nan, 3.0], [nan, 4.0]],
            [[2.0, nan], [5.0, 1.0]],
            [[-0.0, 0.0], [0.0, 0.0]],
            [[-float("inf")] * 2] * 2,
        ]
    )
    output, indices = fastF.max_pool2d(planes, 2, return_indices=True)
    assert indices.flatten().tolist() == [0, 2, 1, 0, 0]
    assert output.isnan().flatten().tolist() == [False, True, True, False, False]
    assert torch.signbit(output.flatten()[3])


def test_max_window_without_taps_is_minus_infinity_and_takes_no_gradient(isa: str) -> None:
    x = torch.randn(1, 2, 4, 1, requires_grad=True)
    output = fastF.max_pool2d(x, (2, 2), (1, 1), (0, 1), (1, 2))
    assert_same_bits(output.detach(), F.max_pool2d(x.detach(), (2, 2), (1, 1), (0, 1), (1, 2)))
    assert torch.equal(output, torch.full_like(output, -float("inf")))
    output.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_max_training_saves_one_byte_per_output() -> None:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = fastF.max_pool2d(x, 2)
    assert [(t.dtype, t.numel()) for t in saved] == [(torch.uint8, output.numel())]


# --- Average pooling -----------------------------------------------------------------------------


def check_avg(case: PoolCase, x: Tensor, count_include_pad: bool, override: int | None) -> None:
    options = (*case.avg_options(), count_include_pad, override)
    expected = F.avg_pool2d(x, *options)
    actual = fastF.avg_pool2d(x, *options)
    assert actual.stride() == expected.stride()
    assert_parity(actual, expected, F.avg_pool2d(x.double(), *options))
    check_backward(fastF.avg_pool2d, F.avg_pool2d, options, x)


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=["nchw", "channels_last"])
@pytest.mark.parametrize("case", AVG_CASES, ids=case_ids(AVG_CASES))
def test_avg_matches_torch(case: PoolCase, isa: str, channels_last: bool) -> None:
    channels_last = channels_last and len(case.shape) == 4
    x = make_input(case.shape, channels_last, torch.float32, special=False)
    for count_include_pad, override in DIVISORS:
        check_avg(case, x, count_include_pad, override)
        assert_ran("avg_pool2d_forward", isa, case, x)
        assert_ran("avg_pool2d_backward", isa, case, x)


@pytest.mark.parametrize("seed", range(3))
def test_avg_matches_torch_on_random_cases(seed: int, isa: str) -> None:
    for number, case in enumerate(random_cases(seed, 20)):
        if case.dilation == (1, 1):
            x = make_input(case.shape, number % 2 == 1, torch.float32, False, number)
            check_avg(case, x, *DIVISORS[number % len(DIVISORS)])


@pytest.mark.parametrize("case", AVG_CASES, ids=case_ids(AVG_CASES))
def test_avg_float64_runs_on_the_reference(case: PoolCase) -> None:
    x = make_input(case.shape, False, torch.float64, special=False)
    for count_include_pad, override in DIVISORS:
        check_avg(case, x, count_include_pad, override)
        assert runtime.last_used_algorithm("avg_pool2d_forward") == "reference"


@pytest.mark.parametrize("case", AVG_CASES, ids=case_ids(AVG_CASES))
def test_avg_is_exact_for_small_integers(case: PoolCase, isa: str) -> None:
    x = torch.randint(-8, 9, case.shape).float()
    options = (*case.avg_options(), True, 4)
    assert torch.equal(fastF.avg_pool2d(x, *options), F.avg_pool2d(x, *options))


# --- The comparisons themselves ------------------------------------------------------------------


def test_negative_control_a_moved_tie_fails() -> None:
    x = torch.zeros(1, 1, 4, 4)
    output, indices = F.max_pool2d(x, 2, return_indices=True)
    indices[0, 0, 0, 0] += 1
    with pytest.raises(AssertionError):
        assert_same_bits(fastF.max_pool2d(x, 2, return_indices=True)[1], indices)
    with pytest.raises(AssertionError):
        assert_same_bits(fastF.max_pool2d(x, 2), -output)


def test_negative_control_one_changed_tap_fails() -> None:
    case = AVG_CASES[0]
    x = make_input(case.shape, False, torch.float32, special=False)
    changed = x.clone()
    changed[0, 0, 0, 0] += 1e-3
    options = case.avg_options()
    oracle = F.avg_pool2d(x.double(), *options)
    with pytest.raises(AssertionError):
        assert_parity(fastF.avg_pool2d(changed, *options), F.avg_pool2d(x, *options), oracle)


# --- Inputs of every kind ------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=["nchw", "channels_last"])
def test_views_are_read_in_place_or_copied(isa: str, channels_last: bool) -> None:
    base = make_input((4, 20, 20, 22), channels_last, torch.float32, special=False)
    views = {
        "columns": base[..., 3:17],
        "every second column": base[..., ::2],
        "rows": base[:, :, 1:16],
        "channels": base[:, 2:13],
        "every second channel": base[:, ::2],
        "batch": base[::2],
        "transposed": base.transpose(2, 3),
        "expanded": base[:1].expand(3, -1, -1, -1),
        "unbatched": base[0],
    }
    for x in views.values():
        for kernel, stride, padding in ((2, 2, 0), (3, 2, 1), (3, 1, 1), (4, 3, 1)):
            actual = fastF.max_pool2d(x, kernel, stride, padding)
            expected = F.max_pool2d(x, kernel, stride, padding)
            assert_same_bits(actual, expected)
            assert actual.stride() == expected.stride()
            average = F.avg_pool2d(x, kernel, stride, padding)
            assert torch.allclose(fastF.avg_pool2d(x, kernel, stride, padding), average)


def test_gradients_of_any_layout_are_accepted(isa: str) -> None:
    for channels_last in LAYOUTS:
        x = make_input((2, 6, 12, 12), channels_last, torch.float32, special=False)
        for pool, torchs in ((fastF.max_pool2d, F.max_pool2d), (fastF.avg_pool2d, F.avg_pool2d)):
            grad = torch.randn(2, 6, 6, 6)
            for g in (
                grad,
                grad.contiguous(memory_format=torch.channels_last),
                grad[:1, :1, :1, :1].expand(2, 6, 6, 6),
                grad.transpose(2, 3),
            ):
                expected = gradients(torchs, (2,), x, g)
                assert torch.allclose(gradients(pool, (2,), x, g), expected)


def test_large_results_are_right(two_threads: None) -> None:
    x = torch.randn(4, 32, 150, 150)
    assert_same_bits(fastF.max_pool2d(x, 3, 1, 1), F.max_pool2d(x, 3, 1, 1))
    assert torch.equal(
        gradients(fastF.max_pool2d, (2,), x, torch.ones(4, 32, 75, 75)),
        gradients(F.max_pool2d, (2,), x, torch.ones(4, 32, 75, 75)),
    )


def test_empty_batch() -> None:
    x = torch.randn(0, 3, 8, 8, requires_grad=True)
    for pool in (fastF.max_pool2d, fastF.avg_pool2d):
        output = pool(x, 2)
        assert output.shape == (0, 3, 4, 4)
        output.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape
    assert fastF.max_pool2d(x, 2, return_indices=True)[1].shape == (0, 3, 4, 4)


def test_float16_is_torchs() -> None:
    check_that_torch_computes(torch.randn(2, 3, 9, 9).half())


def test_bfloat16_in_channels_last_is_torchs() -> None:
    check_that_torch_computes(make_input((2, 3, 9, 9), True, torch.bfloat16, special=False))
    taps = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    grad = torch.ones(2, 3, 2, 2, dtype=torch.bfloat16)
    window = ([2, 2], [2, 2], [0, 0], [1, 1], False)
    with pytest.raises(ValueError, match="expected a bfloat16 gradient in contiguous layout"):
        OPS._max_pool2d_backward(grad, taps, [2, 3, 4, 4], *window, True)


def check_that_torch_computes(x: Tensor) -> None:
    runtime.forget_last_used()
    for ours, torchs in ((fastF.max_pool2d, F.max_pool2d), (fastF.avg_pool2d, F.avg_pool2d)):
        expected = torchs(x, 3, 2)
        assert torch.equal(ours(x, 3, 2), expected)
        grad = torch.ones_like(expected)
        expected = gradients(torchs, (3, 2), x, grad)
        assert torch.equal(gradients(ours, (3, 2), x, grad), expected)
    assert not runtime.last_used()


# --- bfloat16 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MAX_CASES, ids=case_ids(MAX_CASES))
def test_max_of_bfloat16_matches_torch(case: PoolCase, isa: str) -> None:
    for special in (False, True):
        x = make_input(case.shape, False, torch.bfloat16, special)
        runtime.forget_last_used()
        check_max_forward(case, x)
        assert_ran("max_pool2d_forward", isa, case, x)
        check_backward(fastF.max_pool2d, F.max_pool2d, case.max_options(), x.nan_to_num(0, 9, -9))
        assert_ran("max_pool2d_backward", isa, case, x)


@pytest.mark.parametrize("case", AVG_CASES, ids=case_ids(AVG_CASES))
def test_average_of_bfloat16_matches_torch(case: PoolCase, isa: str) -> None:
    x = make_input(case.shape, False, torch.bfloat16, special=False)
    for divisor in DIVISORS:
        options = (*case.avg_options(), *divisor)
        runtime.forget_last_used()
        ours, theirs = fastF.avg_pool2d(x, *options), F.avg_pool2d(x, *options)
        assert ours.dtype == torch.bfloat16
        assert_parity(ours, theirs, F.avg_pool2d(x.double(), *options))
        assert_ran("avg_pool2d_forward", isa, case, x)
        check_backward(fastF.avg_pool2d, F.avg_pool2d, options, x)
        assert_ran("avg_pool2d_backward", isa, case, x)


def test_bfloat16_of_every_kind_of_input(isa: str, two_threads: None) -> None:
    base = torch.randn(3, 50, 40, 70).bfloat16()
    assert fastF.max_pool2d(base[:0], 2).shape == (0, 50, 20, 35)
    for x in (base, base[:, ::2], base[..., 1:66:3], base.transpose(2, 3), base[:, 3], base[0]):
        assert torch.equal(fastF.max_pool2d(x, 3, 2, 1), F.max_pool2d(x, 3, 2, 1))
        oracle = F.avg_pool2d(x.double(), 3, 2, 1)
        assert_parity(fastF.avg_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 3, 2, 1), oracle)
    grad = torch.randn(3, 50, 20, 35).bfloat16()
    expected = gradients(F.max_pool2d, (2,), base, grad)
    strided = torch.stack([grad, grad], -1)[..., 0]
    assert torch.equal(gradients(fastF.max_pool2d, (2,), base, strided), expected)
    infinite = torch.tensor([3.3e38, 3.3e38, float("nan"), 1.0]).bfloat16().reshape(1, 1, 1, 4)
    assert fastF.avg_pool2d(infinite, (1, 2), divisor_override=1).isinf().tolist() == [
        [[[True, False]]]
    ]
    assert fastF.avg_pool2d(infinite, (1, 2)).isnan().tolist() == [[[[False, True]]]]


def test_second_derivatives_of_bfloat16() -> None:
    x = torch.randint(-4, 5, (2, 3, 8, 8)).bfloat16()
    for pool in (fastF.max_pool2d, fastF.avg_pool2d):
        seconds = []
        for dtype in (torch.bfloat16, torch.float32):
            y = leaf(x.to(dtype))
            (first,) = torch.autograd.grad(pool(y, 2).square().sum(), y, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), y)
            seconds.append(second)
        assert torch.allclose(seconds[0].float(), seconds[1], rtol=2e-2, atol=2e-2)


def test_bfloat16_compiles_and_passes_opcheck() -> None:
    x = torch.randn(2, 3, 9, 11).bfloat16()
    compiled = torch.compile(
        lambda t: fastF.max_pool2d(t, 3, 2) + fastF.avg_pool2d(t, 3, 2),
        fullgraph=True,
        backend="aot_eager",
    )
    y, z = leaf(x), leaf(x)
    output = compiled(y)
    expected = fastF.max_pool2d(z, 3, 2) + fastF.avg_pool2d(z, 3, 2)
    assert torch.equal(output, expected)
    output.sum().backward()
    expected.sum().backward()
    assert torch.equal(y.grad, z.grad)
    torch.library.opcheck(OPS.max_pool2d.default, (x, [2, 2]))
    torch.library.opcheck(OPS.avg_pool2d.default, (leaf(x), [2, 2]))


def test_bfloat16_negative_control() -> None:
    x = torch.randn(2, 3, 8, 8).bfloat16()
    theirs, oracle = F.avg_pool2d(x, 2), F.avg_pool2d(x.double(), 2)
    truncated = (F.avg_pool2d(x.float(), 2).view(torch.int32) >> 16 << 16).view(torch.float32)
    with pytest.raises(AssertionError):
        assert_parity(truncated.bfloat16() * 1.02, theirs, oracle)


# --- Threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=["nchw", "channels_last"])
def test_results_do_not_depend_on_the_thread_count(
    isa: str, channels_last: bool, two_threads: None
) -> None:
    x = make_input((3, 17, 61, 67), channels_last, torch.float32, special=False)
    for kernel, stride, padding in ((2, 2, 0), (3, 2, 1), (3, 1, 1), (5, 3, 2), (4, 4, 0)):
        results = []
        for threads in (2, 1, 2):
            torch.set_num_threads(threads)
            parts = []
            for pool in (fastF.max_pool2d, fastF.avg_pool2d):
                y = leaf(x)
                output = pool(y, kernel, stride, padding)
                output.square().sum().backward()
                parts += [output.detach(), y.grad]
            results.append(parts)
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert_same_bits(a, b)


# --- Differentiation, transforms, compilation ----------------------------------------------------


def pools_under_test() -> dict:
    return {
        "max": lambda x: fastF.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        "max_2x2": lambda x: fastF.max_pool2d(x, 2),
        "max_with_indices": lambda x: fastF.max_pool2d(x, 2, 1, return_indices=True)[0],
        "max_dilated": lambda x: fastF.max_pool2d(x, 2, 1, 1, 2),
        "avg": lambda x: fastF.avg_pool2d(x, 3, 2, 1, True, False),
        "avg_override": lambda x: fastF.avg_pool2d(x, 2, 1, divisor_override=3),
    }


@pytest.mark.parametrize("name", pools_under_test())
def test_gradcheck(name: str) -> None:
    pool = pools_under_test()[name]
    for shape in ((2, 2, 5, 6), (2, 5, 6)):
        count = torch.Size(shape).numel()
        x = torch.randperm(count, dtype=torch.float64).reshape(shape).requires_grad_()
        assert torch.autograd.gradcheck(pool, x)
        assert torch.autograd.gradgradcheck(pool, x)


@pytest.mark.parametrize("ours", [fastF.max_pool2d, fastF.avg_pool2d], ids=["max", "avg"])
def test_third_derivative(ours) -> None:
    torchs = F.max_pool2d if ours is fastF.max_pool2d else F.avg_pool2d
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    results = []
    for pool in (ours, torchs):
        y = pool(x, 3, 2, 1).pow(4).sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(y, x, create_graph=True)
            y = grad.square().sum()
        results.append(y.detach())
    assert torch.allclose(*results)


@pytest.mark.parametrize("kind", ["nchw", "channels_last", "unbatched", "no_grad"])
def test_opcheck(kind: str) -> None:
    x = torch.randn(2, 3, 8, 9)
    x = x[0] if kind == "unbatched" else x
    channels_last = kind == "channels_last"
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    x = x.requires_grad_(kind != "no_grad")
    window = ([3, 3], [2, 2], [1, 1], [1, 1], True)
    averaging = ([3, 3], [2, 2], [1, 1], True, False, None)
    output, offsets = OPS._max_pool2d_training(x.detach(), *window)
    grad = torch.randn_like(output).requires_grad_(kind != "no_grad")
    check = torch.library.opcheck
    check(OPS.max_pool2d.default, (x, *window))
    check(OPS.max_pool2d_with_indices.default, (x, *window))
    check(OPS._max_pool2d_training.default, (x, *window))
    check(OPS._max_pool2d_indices.default, (offsets, x.shape, *window))
    check(OPS._max_pool2d_backward.default, (grad, offsets, x.shape, *window, channels_last))
    check(OPS._max_pool2d_gather.default, (x, offsets, *window))
    check(OPS.avg_pool2d.default, (x, *averaging))
    check(OPS._avg_pool2d_backward.default, (grad, x.shape, *averaging, channels_last))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_with_dynamic_batch(backend: str) -> None:
    def model(x: Tensor) -> tuple[Tensor, Tensor]:
        pooled, indices = fastF.max_pool2d(x, 3, 2, 1, return_indices=True)
        total = fastF.max_pool2d(x, 2).sum() + pooled.sum() + fastF.avg_pool2d(x, 2).square().sum()
        return total, indices

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for batch in (2, 3, 5):
        a = torch.randn(batch, 3, 9, 8, requires_grad=True)
        b = leaf(a)
        compiled_total, compiled_indices = compiled(a)
        total, indices = model(b)
        compiled_total.backward()
        total.backward()
        assert torch.allclose(compiled_total, total)
        assert torch.equal(compiled_indices, indices)
        assert torch.allclose(a.grad, b.grad)


def test_function_transforms() -> None:
    x = torch.randn(4, 2, 3, 8, 8)
    for ours, torchs in ((fastF.max_pool2d, F.max_pool2d), (fastF.avg_pool2d, F.avg_pool2d)):
        expected = torchs(x.flatten(0, 1), 2).unflatten(0, (4, 2))
        assert torch.allclose(torch.vmap(lambda y, ours=ours: ours(y, 2))(x), expected)
        grad = torch.func.grad(lambda y, ours=ours: ours(y, 2).square().sum())(x[0])
        torch_grad = torch.func.grad(lambda y, t=torchs: t(y, 2).square().sum())(x[0])
        assert torch.allclose(grad, torch_grad)
        _, tangent = torch.func.jvp(lambda y, ours=ours: ours(y, 2), (x[0],), (x[1],))
        _, torch_tangent = torch.func.jvp(lambda y, t=torchs: t(y, 2), (x[0],), (x[1],))
        assert torch.allclose(tangent, torch_tangent)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x[0], x[1])
            assert torch.allclose(forward_ad.unpack_dual(ours(dual, 2)).tangent, torch_tangent)
    indices = torch.vmap(lambda y: fastF.max_pool2d(y, 2, return_indices=True)[1])(x)
    expected_indices = F.max_pool2d(x.flatten(0, 1), 2, return_indices=True)[1]
    assert torch.equal(indices.flatten(0, 1), expected_indices)


def test_autocast_computes_in_float32() -> None:
    x = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for y in (x, x.bfloat16()):
            assert fastF.max_pool2d(y, 2).dtype == torch.float32
            assert fastF.max_pool2d(y, 2, return_indices=True)[0].dtype == torch.float32
            assert fastF.avg_pool2d(y, 2).dtype == torch.float32


# --- Layers --------------------------------------------------------------------------------------


def test_layers_are_drop_ins() -> None:
    x = torch.randn(2, 3, 11, 13)
    for arguments in ({"kernel_size": 2}, {"kernel_size": (3, 2), "stride": 2, "padding": 1}):
        layer = fast_nn.MaxPool2d(**arguments)
        stock = torch.nn.MaxPool2d(**arguments)
        assert isinstance(layer, torch.nn.MaxPool2d)
        assert layer.extra_repr() == stock.extra_repr()
        assert torch.equal(layer(x), stock(x))
        average = fast_nn.AvgPool2d(**arguments)
        assert isinstance(average, torch.nn.AvgPool2d)
        assert torch.allclose(average(x), torch.nn.AvgPool2d(**arguments)(x))
    output, indices = fast_nn.MaxPool2d(2, return_indices=True, ceil_mode=True, dilation=2)(x)
    stock_output, stock_indices = F.max_pool2d(
        x, 2, dilation=2, ceil_mode=True, return_indices=True
    )
    assert torch.equal(output, stock_output)
    assert torch.equal(indices, stock_indices)


@pytest.mark.parametrize("channels_last", LAYOUTS, ids=["nchw", "channels_last"])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1)], ids=["2x2s2", "3x3s2"])
@pytest.mark.parametrize("pool", [fastF.max_pool2d, fastF.avg_pool2d], ids=["max", "avg"])
def test_tensors_beyond_the_caches_give_the_same(
    pool: Callable[..., Tensor],
    window: tuple[int, int, int],
    channels_last: bool,
    two_threads: None,
) -> None:
    """Passes over more than 48 MiB write past the caches; those over halves of the batch do not."""
    x = make_input((4, 48, 230, 230), channels_last, torch.float32, False)
    whole = leaf(x)
    output = pool(whole, *window)
    assert (x.numel() + output.numel()) * 4 > 48 << 20
    grad = torch.randn_like(output)
    output.backward(grad)
    assert whole.grad is not None
    for half in (slice(0, 2), slice(2, 4)):
        part = leaf(x[half])
        expected = pool(part, *window)
        assert_same_bits(output[half].detach(), expected.detach())
        expected.backward(grad[half])
        assert_same_bits(whole.grad[half], part.grad)
