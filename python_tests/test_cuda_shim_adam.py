# SPDX-License-Identifier: MIT
"""The CUDA kernels of Adam in the emulator, step by step beside torch.optim."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cuda_shim import SCHEDULES, CudaShim, Memory
from torch import Tensor
from torch.nn import Parameter

TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-7},
    torch.float64: {"rtol": 1e-12, "atol": 1e-14},
}
# Around a vector and around a chunk of 2,048; a scalar; no elements.
SHAPES = [(3, 5), (17,), (), (0, 4), (32, 65), (2047,), (64,)]
MULTIPROCESSORS = 4


class ShimAdam:
    """One optimizer's lists in guarded memory. ``groups`` are keyword arguments of torch.optim.Adam
    with ``params``; a gradient of None takes no part."""

    def __init__(
        self,
        shim: CudaShim,
        memory: Memory,
        groups: Sequence[dict[str, Any]],
        *,
        misalign: bool = False,
    ) -> None:
        self.shim, self.memory, self.groups = shim, memory, list(groups)
        self.params: list[Tensor] = []
        self.states: list[dict[str, Tensor]] = []
        self.group_of: list[int] = []
        for number, group in enumerate(self.groups):
            for p in group["params"]:
                # Multiples of one element's size: some begin inside a vector, and the arrays of
                # every third tensor do not agree where.
                apart = misalign and len(self.params) % 3 == 2
                alignment = p.element_size() if misalign else 16
                dtype = torch.float32 if p.dtype == torch.bfloat16 else p.dtype
                self.params.append(memory.copy(p.detach(), "param", alignment=alignment))
                state = {}
                names = ["exp_avg", "exp_avg_sq"]
                for name in names + ["max_exp_avg_sq"] * bool(group.get("amsgrad")):
                    state[name] = memory.empty(
                        p.shape, dtype, name, alignment=16 if apart else dtype.itemsize
                        if misalign else 16,
                    ).zero_()  # fmt: skip
                state["step"] = memory.copy(torch.zeros(()), "step", alignment=4)
                self.states.append(state)
                self.group_of.append(number)
        self.state = memory.copy(torch.zeros(6, dtype=torch.float64), "state")
        self.workspace = memory.allocate(1 << 16, torch.uint8, "workspace", 8)

    def step(
        self,
        grads: Sequence[Tensor | None],
        *,
        max_norm: float = -1.0,
        skip_nonfinite: bool = False,
        grad_scale: float | None = None,
        found_inf: float | None = None,
        other_squares: float = 0.0,
        others_finite: bool = True,
        ordered: bool = False,
    ) -> list[Tensor | None]:
        """Returns the gradients as the step leaves them."""
        memory = self.memory
        held = [None if g is None else memory.copy(g.contiguous(), "grad") for g in grads]
        rows = []
        for p, g, state, group in zip(self.params, held, self.states, self.group_of, strict=True):
            if g is None:
                continue
            largest = state["max_exp_avg_sq"] if self.groups[group].get("amsgrad") else None
            pointers = [p, g, state["exp_avg"], state["exp_avg_sq"], largest, state["step"]]
            rows.append([0 if t is None else t.data_ptr() for t in pointers])
            rows[-1] += [p.numel(), TYPES[p.dtype], group]
        numbers, rates = [], []
        for group in self.groups:
            lr = group.get("lr", 1e-3)
            rates.append(lr.data_ptr() if isinstance(lr, Tensor) else 0)
            beta1, beta2 = group.get("betas", (0.9, 0.999))
            numbers.append([
                0.0 if isinstance(lr, Tensor) else lr, beta1, beta2, group.get("eps", 1e-8),
                group.get("weight_decay", 0.0), group.get("decoupled", False),
                group.get("maximize", False),
            ])  # fmt: skip

        def on_gpu(value: float | None) -> Tensor | None:
            return None if value is None else memory.copy(torch.tensor([value]), "number")

        self.shim.call(
            "adam_step",
            torch.tensor(rows, dtype=torch.int64).reshape(-1, 9),
            len(rows),
            torch.tensor(numbers, dtype=torch.float64),
            torch.tensor(rates, dtype=torch.int64),
            len(numbers),
            on_gpu(grad_scale),
            on_gpu(found_inf),
            float(max_norm),
            skip_nonfinite,
            float(other_squares),
            others_finite,
            ordered,
            self.state,
            self.workspace,
            self.workspace.numel(),
            MULTIPROCESSORS,
        )
        return held

    @property
    def norm(self) -> float:
        return self.state[1].item()

    @property
    def skipped_steps(self) -> int:
        return int(self.state.view(torch.int64)[3])


def parameters(dtype: torch.dtype, shapes: Sequence[Sequence[int]] = SHAPES) -> list[Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def gradients(params: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Of very different sizes from tensor to tensor."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(p.shape, generator=generator) * 10.0 ** -(i % 4)).to(p.dtype)
        for i, p in enumerate(params)
    ]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def torch_optimizer(params: list[Parameter], options: dict[str, Any]) -> torch.optim.Optimizer:
    options = dict(options)
    kind = torch.optim.AdamW if options.pop("decoupled", False) else torch.optim.Adam
    return kind(params, **{"weight_decay": 0.0, **options})


def assert_same(ours: ShimAdam, theirs: torch.optim.Optimizer, dtype: torch.dtype) -> None:
    params = [p for group in theirs.param_groups for p in group["params"]]
    torch.testing.assert_close(flat(ours.params), flat(params), **TOLERANCE[dtype])
    for key in ("step", "exp_avg", "exp_avg_sq"):
        mine = flat([state[key] for state in ours.states])
        expected = flat([theirs.state[p][key] for p in params])
        torch.testing.assert_close(mine, expected, **TOLERANCE[dtype], check_dtype=False)


def follow(
    shim: CudaShim,
    options: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    steps: int = 3,
    misalign: bool = False,
    flush: str = "end",
    ours_differ: dict[str, Any] | None = None,
) -> None:
    params = parameters(dtype)
    theirs = torch_optimizer(params, options)
    with shim.memory(flush) as memory:
        own = {"params": params, **options, **(ours_differ or {})}
        ours = ShimAdam(shim, memory, [own], misalign=misalign)
        for number in range(steps):
            grads = gradients(params, number)
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()
            ours.step(grads)
            theirs.step()
            assert_same(ours, theirs, dtype)


COMBINATIONS = [
    {"amsgrad": amsgrad, "maximize": maximize, "weight_decay": decay, "betas": betas,
     "decoupled": decoupled}
    for amsgrad, maximize, decay, betas, decoupled in itertools.product(
        (False, True), (False, True), (0.0, 0.03), ((0.9, 0.999), (0.4, 0.97)), (False, True)
    )
]  # fmt: skip


def combination_id(options: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items()).replace(" ", "")


@pytest.mark.parametrize("options", COMBINATIONS, ids=combination_id)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_options(shim: CudaShim, dtype: torch.dtype, options: dict[str, Any]) -> None:
    follow(shim, options, dtype=dtype)
    names = shim.kernels()
    assert any("adam_update_kernel" in name for name in names), names


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("misalign", [False, True], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_schedule(shim: CudaShim, dtype: torch.dtype, misalign: bool, schedule: str) -> None:
    shim.configure(schedule, seed=5)
    for flush in ("end", "start"):
        follow(shim, {"amsgrad": True, "weight_decay": 0.1}, dtype=dtype, steps=2,
               misalign=misalign, flush=flush)  # fmt: skip


def test_two_hundred_steps(shim: CudaShim) -> None:
    """Bias corrections from the counter on the device, over their whole curve."""
    params = parameters(torch.float32, [(40,)])
    theirs = torch_optimizer(params, {"lr": 0.01})
    with shim.memory() as memory:
        ours = ShimAdam(shim, memory, [{"params": params, "lr": 0.01}])
        for number in range(200):
            grads = gradients(params, number)
            params[0].grad = grads[0]
            ours.step(grads)
            theirs.step()
        assert_same(ours, theirs, torch.float32)


def test_bfloat16_with_float32_states(shim: CudaShim) -> None:
    """As torch in float32 on parameters that are rounded to bfloat16 after every step."""
    params = parameters(torch.bfloat16)
    wide = [Parameter(p.detach().float()) for p in params]
    theirs = torch_optimizer(wide, {"weight_decay": 0.02, "amsgrad": True})
    with shim.memory() as memory:
        group = {"params": params, "weight_decay": 0.02, "amsgrad": True}
        ours = ShimAdam(shim, memory, [group])
        for number in range(5):
            grads = gradients(params, number)
            for p, g in zip(wide, grads, strict=True):
                p.grad = g.float()
            ours.step(grads)
            theirs.step()
            for p, q, state in zip(ours.params, wide, ours.states, strict=True):
                expected = q.detach().to(torch.bfloat16)
                # A rounding in float32 may tip one in bfloat16: then the two are neighbours.
                torch.testing.assert_close(p, expected, rtol=2**-7, atol=0.0)
                assert (p != expected).float().sum() <= 0.01 * p.numel()
                q.data.copy_(p)
                torch.testing.assert_close(state["exp_avg"], theirs.state[q]["exp_avg"])


# --- Gradients: scale, norm, what is not finite --------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_clipping_by_the_norm(shim: CudaShim, schedule: str) -> None:
    """As torch's clip_grad_norm_ before the step; gradients stay; types mix."""
    shim.configure(schedule, seed=3)
    params = [*parameters(torch.float32), *parameters(torch.float64, [(33,), (2100,)])]
    theirs = torch_optimizer(params, {})
    with shim.memory() as memory:
        ours = ShimAdam(shim, memory, [{"params": params}])
        for number in range(2):
            grads = gradients(params, number)
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()
            left = ours.step(grads, max_norm=0.7)
            norm = torch.nn.utils.clip_grad_norm_(params, 0.7)
            theirs.step()
            assert ours.norm == pytest.approx(norm.item(), rel=1e-6)
            assert all(torch.equal(a, b) for a, b in zip(left, grads, strict=True))
            torch.testing.assert_close(
                flat(ours.params), flat(params), rtol=1e-5, atol=1e-7, check_dtype=False
            )


def test_norm_is_the_same_to_the_bit_in_every_order(shim: CudaShim) -> None:
    params = parameters(torch.float32, [(5000,), (301,)])
    seen = set()
    for schedule in SCHEDULES:
        shim.configure(schedule, seed=11)
        with shim.memory() as memory:
            ours = ShimAdam(shim, memory, [{"params": params}])
            ours.step(gradients(params, 1), max_norm=0.1)
            seen.add((ours.norm, *flat(ours.params).tolist()[:50]))
    assert len(seen) == 1


def test_scale_is_taken_out_and_stored(shim: CudaShim) -> None:
    params = parameters(torch.float32)
    theirs = torch_optimizer(params, {})
    with shim.memory() as memory:
        ours = ShimAdam(shim, memory, [{"params": params}])
        grads = gradients(params, 1)
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        left = ours.step([g * 1024 for g in grads], grad_scale=1024.0, found_inf=0.0)
        theirs.step()
        assert_same(ours, theirs, torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(left, grads, strict=True))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("how", ["found_inf", "skip_nonfinite", "others"])
def test_step_left_out(shim: CudaShim, how: str, bad: float) -> None:
    params = parameters(torch.float32)
    with shim.memory() as memory:
        ours = ShimAdam(shim, memory, [{"params": params, "weight_decay": 0.1}])
        grads = gradients(params, 1)
        grads[4][7, 3] = bad
        if how == "found_inf":
            ours.step(grads, found_inf=1.0, max_norm=1.0)
        elif how == "skip_nonfinite":
            ours.step(grads, skip_nonfinite=True)
        else:
            ours.step(gradients(params, 1), skip_nonfinite=True, others_finite=False)
        assert torch.equal(flat(ours.params), flat(params))
        assert all(state["step"].item() == 0 for state in ours.states)
        assert ours.skipped_steps == (0 if how == "found_inf" else 1)
        ours.step(gradients(params, 2), skip_nonfinite=True, found_inf=0.0)
        assert all(state["step"].item() == 1 for state in ours.states)
        assert not torch.equal(flat(ours.params), flat(params))


def test_huge_gradients_are_finite(shim: CudaShim) -> None:
    params = parameters(torch.float32, [(9,)])
    with shim.memory() as memory:
        ours = ShimAdam(shim, memory, [{"params": params}])
        ours.step([torch.full((9,), 3e38)], skip_nonfinite=True, other_squares=7.0)
        assert ours.skipped_steps == 0
        assert ours.norm == pytest.approx(3 * 3e38, rel=1e-6)


def test_infinities_and_nan_go_where_torch_has_them(shim: CudaShim) -> None:
    special = torch.tensor([float("inf"), float("-inf"), float("nan"), 1e25, 0.0, -0.0, 3e38])
    values = torch.cartesian_prod(special, special)
    for options in ({}, {"amsgrad": True}, {"weight_decay": 0.1}):
        param = Parameter(values[:, 0].clone())
        theirs = torch_optimizer([param], options)
        with shim.memory() as memory:
            ours = ShimAdam(shim, memory, [{"params": [param], **options}])
            for grad in (values[:, 1].clone(), torch.zeros(len(values)), torch.ones(len(values))):
                param.grad = grad.clone()
                ours.step([grad])
                theirs.step()
                torch.testing.assert_close(ours.params[0], param.detach(), equal_nan=True)


# --- Lists ---------------------------------------------------------------------------------------


def test_rate_by_pointer_changes_between_steps(shim: CudaShim) -> None:
    params = parameters(torch.float32)
    theirs = torch_optimizer(params, {"lr": 0.1, "weight_decay": 0.2, "decoupled": True})
    with shim.memory() as memory:
        lr = memory.copy(torch.tensor([0.1]), "lr", alignment=4)
        own = {"params": params, "lr": lr, "weight_decay": 0.2, "decoupled": True}
        ours = ShimAdam(shim, memory, [own])
        for number in range(3):
            lr.fill_(0.1 / (number + 1))
            theirs.param_groups[0]["lr"] = 0.1 / (number + 1)
            grads = gradients(params, number)
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()
            ours.step(grads)
            theirs.step()
            assert_same(ours, theirs, torch.float32)


@pytest.mark.parametrize(("tensors", "groups", "launches"), [(45, 1, 1), (3, 20, 2), (430, 1, 2)])
def test_long_lists_take_several_launches(
    shim: CudaShim, tensors: int, groups: int, launches: int
) -> None:
    lists = [parameters(torch.float32, [(5,)] * tensors) for _ in range(groups)]
    rates = [1e-3 * (1 + g) for g in range(groups)]
    theirs = torch.optim.Adam([
        {"params": params, "lr": lr} for params, lr in zip(lists, rates, strict=True)
    ])  # fmt: skip
    every = [p for params in lists for p in params]
    with shim.memory() as memory:
        ours = ShimAdam(shim, memory, [
            {"params": params, "lr": lr} for params, lr in zip(lists, rates, strict=True)
        ])  # fmt: skip
        grads = gradients(every, 1)
        for p, g in zip(every, grads, strict=True):
            p.grad = g.clone()
        norm = torch.nn.utils.clip_grad_norm_(every, 0.3)
        shim.reset_counts()
        ours.step(grads, max_norm=0.3)
        assert shim.counts().launches == 2 * launches
        theirs.step()
        assert ours.norm == pytest.approx(norm.item(), rel=1e-6)
        assert_same(ours, theirs, torch.float32)


def test_parameters_without_gradient_take_no_part(shim: CudaShim) -> None:
    params = parameters(torch.float32)
    with shim.memory() as memory:
        ours = ShimAdam(shim, memory, [{"params": params, "weight_decay": 0.1}])
        grads: list[Tensor | None] = [*gradients(params, 1)]
        grads[4] = None
        ours.step(grads)
        assert torch.equal(ours.params[4], params[4].detach())
        assert [int(s["step"]) for s in ours.states] == [1, 1, 1, 1, 0, 1, 1]
        ours.step([None] * len(params))
        assert int(ours.states[0]["step"]) == 1


def test_overlapping_tensors_are_stepped_in_order(shim: CudaShim) -> None:
    """The same array twice in the list: as two steps one after the other."""
    params = parameters(torch.float32, [(2100,)])
    grads = gradients(params, 1)
    with shim.memory() as memory:
        once = ShimAdam(shim, memory, [{"params": params}])
        once.step(grads)
        once.step(grads)
        twice = ShimAdam(shim, memory, [{"params": [*params, *params]}])
        twice.params[1], twice.states[1] = twice.params[0], twice.states[0]
        shim.reset_counts()
        twice.step([*grads, *grads], ordered=True)
        assert shim.counts().launches == 2
        assert torch.equal(once.params[0], twice.params[0])


def test_chunks_fill_the_gpu(shim: CudaShim) -> None:
    """LeNet-5 gets blocks enough for a quarter of an H100, a large list four per multiprocessor."""
    lenet = [150, 6, 2400, 16, 48000, 120, 10080, 84, 840, 10]
    chunk = shim.value("adam_chunk", sum(lenet), 132)
    assert sum(-(-n // chunk) for n in lenet) > 30
    assert -(-25_600_000 // shim.value("adam_chunk", 25_600_000, 132)) > 3.9 * 132


# --- Accuracy and negative controls --------------------------------------------------------------


def test_error_against_float64(shim: CudaShim) -> None:
    """The parity rule: at most twice torch's own error, plus 1e-6 of the result's rms."""
    params = parameters(torch.float32, [(777,), (30, 40)])
    exact = [Parameter(p.detach().double()) for p in params]
    theirs, oracle = (torch.optim.AdamW(p, weight_decay=0.05) for p in (params, exact))
    with shim.memory() as memory:
        own = {"params": params, "weight_decay": 0.05, "decoupled": True}
        ours = ShimAdam(shim, memory, [own])
        for number in range(20):
            grads = gradients(params, number)
            for p, q, g in zip(params, exact, grads, strict=True):
                p.grad, q.grad = g.clone(), g.double()
            ours.step(grads)
            theirs.step()
            oracle.step()
        for mine, p, q in zip(ours.params, params, exact, strict=True):
            floor = 1e-6 * q.detach().square().mean().sqrt()
            our_error = (mine.double() - q.detach()).abs().max()
            assert our_error <= 2 * (p.detach().double() - q.detach()).abs().max() + floor


@pytest.mark.parametrize(
    "wrong",
    [{"weight_decay": 0.0}, {"betas": (0.9, 0.51)}, {"lr": 1.01e-3}, {"eps": 1e-5},
     {"maximize": True}, {"amsgrad": True, "betas": (0.9, 0.5)}],
    ids=combination_id,
)  # fmt: skip
def test_wrong_option_is_noticed(shim: CudaShim, wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        follow(shim, {"weight_decay": 0.03, "betas": (0.9, 0.5)}, ours_differ=wrong)


def test_counter_off_by_one_is_noticed(shim: CudaShim) -> None:
    params = parameters(torch.float32)
    theirs = torch_optimizer(params, {})
    with shim.memory() as memory:
        ours = ShimAdam(shim, memory, [{"params": params}])
        ours.states[4]["step"].fill_(1.0)
        grads = gradients(params, 1)
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        ours.step(grads)
        theirs.step()
        with pytest.raises(AssertionError, match="Tensor-likes are not close"):
            torch.testing.assert_close(ours.params[4], params[4].detach())
        torch.testing.assert_close(ours.params[5], params[5].detach())
