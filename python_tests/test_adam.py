# SPDX-License-Identifier: MIT
"""fastconv.optim against torch.optim: values of parameters and states, step by step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from fastconv import optim, runtime

PAIRS = [(optim.Adam, torch.optim.Adam), (optim.AdamW, torch.optim.AdamW)]
STATES = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
# Smaller and larger than a vector and a chunk of 4,096, a scalar, an empty tensor.
SHAPES = [(3, 5), (17,), (), (0, 4), (65, 70), (2, 3, 4, 5), (64,)]
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-7},
    torch.float64: {"rtol": 1e-12, "atol": 1e-14},
}


def parameters(
    shapes: Sequence[Sequence[int]] = SHAPES, dtype: torch.dtype = torch.float32, seed: int = 1
) -> list[Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def copies(params: Sequence[Tensor]) -> list[Parameter]:
    return [Parameter(p.detach().clone(memory_format=torch.preserve_format)) for p in params]


def set_gradients(lists: Sequence[Sequence[Parameter]], generator: torch.Generator) -> None:
    """The same fresh random gradients for each list, of very different sizes."""
    for same in zip(*lists, strict=True):
        p = same[0]
        scale = 10.0 ** (-6 * torch.rand((), generator=generator).item())
        grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) * scale
        for each in same:
            each.grad = grad.clone()


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(
        [torch.view_as_real(t).reshape(-1) if t.is_complex() else t.reshape(-1) for t in tensors]
    )


def assert_same(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """Parameters and states, to the tolerance of the dtype."""
    mine: dict[torch.dtype, list[Tensor]] = {}
    other: dict[torch.dtype, list[Tensor]] = {}
    for our_group, their_group in zip(ours.param_groups, theirs.param_groups, strict=True):
        for p, q in zip(our_group["params"], their_group["params"], strict=True):
            our_state, their_state = ours.state.get(p, {}), theirs.state.get(q, {})
            assert list(our_state) == list(their_state)
            states = zip(our_state.values(), their_state.values(), strict=True)
            for a, b in [(p.detach(), q.detach()), *states]:
                assert a.dtype == b.dtype
                assert a.shape == b.shape
                assert a.stride() == b.stride() or a.numel() == 0
                mine.setdefault(a.dtype, []).append(a)
                other.setdefault(b.dtype, []).append(b)
    for dtype, tensors in mine.items():
        tolerance = TOLERANCE[dtype.to_real()]
        torch.testing.assert_close(flat(tensors), flat(other[dtype]), **tolerance)


def follow(
    pair: tuple[type, type],
    options: dict[str, Any],
    *,
    steps: int,
    dtype: torch.dtype = torch.float32,
    each_step: Callable[[torch.optim.Optimizer, int], None] | None = None,
    groups: Callable[[list[Parameter]], Any] = list,
) -> None:
    """Step both optimizers side by side and compare everything after every step."""
    base = parameters(dtype=dtype)
    ours, theirs = copies(base), copies(base)
    our_optimizer = pair[0](groups(ours), **options)
    their_optimizer = pair[1](groups(theirs), **options)
    generator = torch.Generator().manual_seed(5)
    for number in range(steps):
        set_gradients([ours, theirs], generator)
        if each_step is not None:
            each_step(our_optimizer, number)
            each_step(their_optimizer, number)
        our_optimizer.step()
        their_optimizer.step()
        assert_same(our_optimizer, their_optimizer)


COMBINATIONS = [
    {"amsgrad": amsgrad, "maximize": maximize, "weight_decay": decay, "betas": betas}
    for amsgrad, maximize, decay, betas in itertools.product(
        (False, True), (False, True), (0.0, 0.03), ((0.9, 0.999), (0.4, 0.97))
    )
]


def combination_id(options: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items()).replace(" ", "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", COMBINATIONS, ids=combination_id)
@pytest.mark.parametrize("pair", PAIRS, ids=["Adam", "AdamW"])
def test_thousand_steps(pair: tuple[type, type], options: dict[str, Any], dtype) -> None:
    follow(pair, options, steps=1000, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", COMBINATIONS[1::2], ids=combination_id)
@pytest.mark.parametrize("pair", PAIRS, ids=["Adam", "AdamW"])
def test_every_isa(pair: tuple[type, type], options: dict[str, Any], dtype, isa: str) -> None:
    follow(pair, options, steps=60, dtype=dtype)
    assert runtime.last_used_isa("adam") == isa
    assert runtime.last_used_algorithm("adam") == "chunks"


@pytest.mark.parametrize("rates", ["lr", "betas", "both", "double"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pair", PAIRS, ids=["Adam", "AdamW"])
def test_rates_as_tensors(pair: tuple[type, type], dtype, rates: str) -> None:
    kind = torch.float64 if rates == "double" else torch.float32
    options: dict[str, Any] = {"weight_decay": 0.02}
    if rates != "betas":
        options["lr"] = torch.tensor(2e-3, dtype=kind)
    if rates != "lr":
        options["betas"] = (torch.tensor([0.9], dtype=kind), torch.tensor(0.99, dtype=kind))
    follow(pair, options, steps=200, dtype=dtype)


def test_rate_tensor_changed_in_place_and_list_of_betas() -> None:
    def change(optimizer: torch.optim.Optimizer, number: int) -> None:
        group = optimizer.param_groups[0]
        group["lr"].mul_(0.9)
        if number == 3:
            group["betas"] = [0.8, 0.99]
        if number == 6:
            group["betas"][0] = 0.7

    base = parameters()
    ours, theirs = copies(base), copies(base)
    pair = [
        (optim.Adam(ours, lr=torch.tensor(0.01)), ours),
        (torch.optim.Adam(theirs, lr=torch.tensor(0.01)), theirs),
    ]
    generator = torch.Generator().manual_seed(5)
    for number in range(12):
        set_gradients([ours, theirs], generator)
        for optimizer, _ in pair:
            change(optimizer, number)
            optimizer.step()
        assert_same(pair[0][0], pair[1][0])


@pytest.mark.parametrize(
    "options",
    [
        {"foreach": True},
        {"foreach": False},
        {"fused": True},
        {"fused": False},
        {"eps": 0.1},
        {"eps": 1e-30},
        {"betas": (0.0, 0.0)},
        {"betas": (0.0, 0.999)},
        {"lr": 0},
        {"lr": 1},
        {"weight_decay": 1},
    ],
    ids=combination_id,
)
@pytest.mark.parametrize("pair", PAIRS, ids=["Adam", "AdamW"])
def test_other_options(pair: tuple[type, type], options: dict[str, Any]) -> None:
    follow(pair, options, steps=30, dtype=torch.float64)


def test_options_changed_between_steps() -> None:
    def change(optimizer: torch.optim.Optimizer, number: int) -> None:
        group = optimizer.param_groups[0]
        changes = [
            {"lr": 0.02},
            {"betas": (0.85, 0.99)},
            {"weight_decay": 0.1},
            {"eps": 1e-4},
            {"maximize": True},
            {"decoupled_weight_decay": True},
            {"something_else": 3},
        ]
        if number < len(changes):
            group.update(changes[number])

    follow(PAIRS[0], {}, steps=12, each_step=change)


def test_groups_of_different_options_and_dtypes() -> None:
    def groups(params: list[Parameter]) -> list[dict[str, Any]]:
        return [
            {"params": params[:2], "lr": 0.1, "amsgrad": True},
            {"params": params[2:5], "weight_decay": 0.3, "maximize": True},
            {"params": params[5:], "betas": (0.5, 0.5)},
        ]

    follow(PAIRS[1], {}, steps=40, groups=groups)
    base = [*parameters(), *parameters(dtype=torch.float64), *parameters(dtype=torch.complex64)]
    ours, theirs = copies(base), copies(base)
    our_optimizer = optim.AdamW(ours, weight_decay=0.1)
    their_optimizer = torch.optim.AdamW(theirs, weight_decay=0.1)
    generator = torch.Generator().manual_seed(5)
    for _ in range(40):
        set_gradients([ours, theirs], generator)
        our_optimizer.step()
        their_optimizer.step()
        assert_same(our_optimizer, their_optimizer)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_complex(dtype: torch.dtype, amsgrad: bool) -> None:
    follow(PAIRS[0], {"amsgrad": amsgrad, "weight_decay": 0.1}, steps=50, dtype=dtype)
    assert runtime.last_used_algorithm("adam") == "chunks"


# --- Negative controls ---------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS, ids=["Adam", "AdamW"])
def test_dropped_weight_decay_is_noticed(pair: tuple[type, type]) -> None:
    def drop(optimizer: torch.optim.Optimizer, number: int) -> None:
        if number == 20 and isinstance(optimizer, pair[0]):
            optimizer.param_groups[0]["weight_decay"] = 0.0

    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        follow(pair, {"weight_decay": 0.03}, steps=25, each_step=drop)
    follow(pair, {"weight_decay": 0.03}, steps=25)


@pytest.mark.parametrize("pair", PAIRS, ids=["Adam", "AdamW"])
def test_bias_correction_off_by_one_is_noticed(pair: tuple[type, type]) -> None:
    def shift(optimizer: torch.optim.Optimizer, number: int) -> None:
        if number == 20:
            by = 1 if isinstance(optimizer, pair[0]) else 0
            for state in optimizer.state.values():
                state["step"] += by  # both look alike but for the number of the step

    def follow_parameters_only() -> None:
        base = parameters()
        ours, theirs = copies(base), copies(base)
        optimizers = pair[0](ours), pair[1](theirs)
        generator = torch.Generator().manual_seed(5)
        for number in range(25):
            set_gradients([ours, theirs], generator)
            for optimizer in optimizers:
                shift(optimizer, number)
                optimizer.step()
            for p, q in zip(ours, theirs, strict=True):
                torch.testing.assert_close(p.detach(), q.detach(), **TOLERANCE[torch.float32])

    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        follow_parameters_only()


# --- Accuracy, determinism, special values -------------------------------------------------------


def test_error_against_float64(isa: str) -> None:
    """The parity rule: at most twice torch's own error, plus 1e-6 of the result's rms."""
    base = parameters([(300, 40), (777,)])
    oracle = [Parameter(p.detach().double()) for p in base]
    ours, theirs = copies(base), copies(base)
    optimizers = [
        optim.AdamW(ours, weight_decay=0.05),
        torch.optim.AdamW(theirs, weight_decay=0.05),
        torch.optim.AdamW(oracle, weight_decay=0.05),
    ]
    generator = torch.Generator().manual_seed(5)
    for _ in range(100):
        set_gradients([ours, theirs], generator)
        for p, q in zip(oracle, ours, strict=True):
            assert q.grad is not None
            p.grad = q.grad.double()
        for optimizer in optimizers:
            optimizer.step()
    for p, q, exact in zip(ours, theirs, oracle, strict=True):
        floor = 1e-6 * exact.detach().square().mean().sqrt()
        our_error = (p.detach().double() - exact.detach()).abs().max()
        their_error = (q.detach().double() - exact.detach()).abs().max()
        assert our_error <= 2 * their_error + floor


def run_bits(threads: int, max_grad_norm: float | None) -> list[Tensor]:
    torch.set_num_threads(threads)
    params = parameters([(300, 200), (11,), (129, 130)])
    optimizer = optim.Adam(params, weight_decay=0.1, amsgrad=True, max_grad_norm=max_grad_norm)
    generator = torch.Generator().manual_seed(5)
    for _ in range(10):
        set_gradients([params], generator)
        optimizer.step()
    return [p.detach().clone() for p in params]


@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_same_bits_whatever_the_threads(max_grad_norm: float | None) -> None:
    first = run_bits(1, max_grad_norm)
    for threads in (1, 2, 3):
        for a, b in zip(first, run_bits(threads, max_grad_norm), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"weight_decay": 0.1}])
@pytest.mark.parametrize("pair", PAIRS, ids=["Adam", "AdamW"])
def test_infinities_and_nan(pair: tuple[type, type], options: dict[str, Any], isa: str) -> None:
    """Values that are no numbers end up where torch has them."""
    special = torch.tensor(
        [float("inf"), float("-inf"), float("nan"), 1e25, -1e25, 0.0, -0.0, 3e38]
    )
    values = torch.cartesian_prod(special, special)
    ours, theirs = (Parameter(values[:, 0].clone()) for _ in range(2))
    optimizers = pair[0]([ours], **options), pair[1]([theirs], **options)
    for grad in (values[:, 1], torch.zeros(len(values)), torch.ones(len(values))):
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(ours.detach(), theirs.detach(), equal_nan=True)
        for key in STATES[1:3]:
            torch.testing.assert_close(
                optimizers[0].state[ours][key], optimizers[1].state[theirs][key], equal_nan=True
            )


def test_zero_gradients_and_tiny_eps(isa: str) -> None:
    """A zero average over a zero root: eps is all there is, however small."""
    for eps in (1e-8, 1e-30, 1.2e-38):
        p = Parameter(torch.randn(40))
        before = p.detach().clone()
        p.grad = torch.zeros(40)
        optimizer = optim.Adam([p], eps=eps)
        for _ in range(3):
            optimizer.step()
        assert torch.equal(p.detach(), before)


def test_denormals_are_flushed_inside_and_only_there() -> None:
    p = Parameter(torch.ones(8192))
    p.grad = torch.full((8192,), 1e-3)
    optimizer = optim.Adam([p])
    optimizer.step()
    p.grad = torch.zeros(8192)
    for _ in range(2000):
        optimizer.step()
    assert torch.equal(optimizer.state[p]["exp_avg"], torch.zeros(8192))
    tiny = torch.tensor([1e-40])
    assert (tiny * 1.0).item() != 0.0  # the calling thread still knows denormals
    assert (torch.full((100_000,), 1e-40) * 1.0).count_nonzero() == 100_000  # and so do the others


# --- bfloat16 ------------------------------------------------------------------------------------


def to_bits(x: Tensor) -> Tensor:
    return x.detach().to(torch.bfloat16).float()


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "weight_decay": 0.02}])
@pytest.mark.parametrize("pair", PAIRS, ids=["Adam", "AdamW"])
def test_bfloat16_with_float32_states(
    pair: tuple[type, type], options: dict[str, Any], isa: str
) -> None:
    """As torch in float32 on parameters that are rounded to bfloat16 after every step."""
    base = parameters(dtype=torch.bfloat16)
    ours = copies(base)
    theirs = [Parameter(p.detach().float()) for p in base]
    our_optimizer, their_optimizer = pair[0](ours, **options), pair[1](theirs, **options)
    generator = torch.Generator().manual_seed(5)
    for _ in range(50):
        set_gradients([ours], generator)
        for p, q in zip(ours, theirs, strict=True):
            assert p.grad is not None
            q.grad = p.grad.float()
        our_optimizer.step()
        their_optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            expected = to_bits(q)
            # A rounding in float32 may tip one in bfloat16: then the two are neighbours.
            torch.testing.assert_close(p.detach().float(), expected, rtol=2**-7, atol=0.0)
            assert (p.detach().float() != expected).float().mean() < 0.01 or p.numel() < 200
            q.data.copy_(p.detach())
            for key in our_optimizer.state[p]:
                mine, exact = our_optimizer.state[p][key], their_optimizer.state[q][key]
                assert mine.dtype == torch.float32
                torch.testing.assert_close(mine, exact, **TOLERANCE[torch.float32])
    assert runtime.last_used_isa("adam") == isa


def test_bfloat16_special_values(isa: str) -> None:
    values = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    p = Parameter(values.clone())
    p.grad = torch.zeros_like(p)
    optim.Adam([p]).step()
    normal = values.isnan() | (values.float().abs() >= 2.0**-126) | (values == 0)
    same = (p.detach() == values) | (p.detach().isnan() & values.isnan())
    assert bool(same[normal].all())
