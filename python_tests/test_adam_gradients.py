# SPDX-License-Identifier: MIT
"""Clipping, scaling, gradients that are no numbers, within the step of fastconv.optim."""

from __future__ import annotations

import copy

import pytest
import torch
from adam_pairs import Both, Pair, both
from test_adam import PAIRS, assert_same, copies, parameters, set_gradients
from torch import nn
from torch.nn import Parameter

from fastconv import optim


@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 0.5, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@both
def test_clipping_equals_clip_grad_norm(pair: Pair, dtype, max_norm: float, isa: str) -> None:
    base = parameters(dtype=dtype)
    ours, theirs = copies(base), copies(base)
    our_optimizer = pair[0](ours, weight_decay=0.1, max_grad_norm=max_norm)
    their_optimizer = pair[1](theirs, weight_decay=0.1)
    generator = torch.Generator().manual_seed(5)
    for number in range(8):
        set_gradients([ours, theirs], generator)
        if number == 3:
            ours[0].grad = theirs[0].grad = None
        given = [p.grad.clone() for p in ours if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(theirs, max_norm)
        our_optimizer.step()
        their_optimizer.step()
        assert our_optimizer.grad_norm == pytest.approx(norm.item(), rel=1e-6)
        assert_same(our_optimizer, their_optimizer)
        kept = [p.grad for p in ours if p.grad is not None]
        assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


def test_clipping_is_noticed_when_missing() -> None:
    run = Both(PAIRS[0])
    run.optimizers[0].max_grad_norm = 0.01
    with pytest.raises(AssertionError, match="not close"):
        run.step(3)


def test_norm_of_mixed_dtypes_groups_and_extremes() -> None:
    params = [
        Parameter(torch.ones(5000)),
        Parameter(torch.ones(3, dtype=torch.float64)),
        Parameter(torch.ones(7, dtype=torch.bfloat16)),
        Parameter(torch.ones(2, dtype=torch.complex64)),
    ]
    optimizer = optim.Adam([{"params": params[:2]}, {"params": params[2:], "lr": 1}])
    assert optimizer.grad_norm is None
    for p in params:
        p.grad = torch.full_like(p, 3.0)
    optimizer.step()
    assert optimizer.grad_norm is None
    optimizer.max_grad_norm = 1.0
    optimizer.step()
    assert optimizer.grad_norm == pytest.approx((9.0 * 5012) ** 0.5, rel=1e-12)
    for value in (1e-30, 1e30):  # whose squares float32 does not hold
        small = Parameter(torch.ones(100))
        small.grad = torch.full((100,), value)
        one = optim.Adam([small], max_grad_norm=1.0)
        one.step()
        assert one.grad_norm == pytest.approx(10 * value, rel=1e-6)


@both
def test_nonfinite_norm_does_what_torch_does(pair: Pair) -> None:
    for bad in (float("nan"), float("inf")):
        run = Both(pair)
        run.optimizers[0].max_grad_norm = 1.0
        for params in run.params:
            for p in params:
                p.grad = torch.ones_like(p)
            params[0].grad[1, 1] = bad
        nn.utils.clip_grad_norm_(run.params[1], 1.0)
        for optimizer in run.optimizers:
            optimizer.step()
        for p, q in zip(*run.params, strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_skip_nonfinite(bad: float, dtype: torch.dtype) -> None:
    params = parameters(dtype=dtype)
    optimizer = optim.AdamW(params, skip_nonfinite=True)
    generator = torch.Generator().manual_seed(5)
    set_gradients([params], generator)
    optimizer.step()
    before = copy.deepcopy([params, optimizer.state_dict()])
    assert params[4].grad is not None
    params[4].grad[64, 69] = bad
    for expected in (1, 2):
        optimizer.step()
        assert optimizer.skipped_steps == expected
    torch.testing.assert_close([params, optimizer.state_dict()], before, rtol=0, atol=0)
    set_gradients([params], generator)
    optimizer.step()
    assert optimizer.skipped_steps == 2
    assert optimizer.state[params[0]]["step"] == 2


def test_skip_nonfinite_steps_on_large_finite_gradients() -> None:
    p = Parameter(torch.ones(10, dtype=torch.float64))
    optimizer = optim.Adam([p], skip_nonfinite=True)
    p.grad = torch.full((10,), 1e200, dtype=torch.float64)  # the squares overflow
    optimizer.step()
    assert optimizer.skipped_steps == 0
    assert optimizer.state[p]["step"] == 1


@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
@pytest.mark.parametrize("inf", [False, True])
@both
def test_grad_scale_and_found_inf(pair: Pair, inf: bool, max_grad_norm: float | None) -> None:
    """The protocol between GradScaler and fused optimizers, against torch's fused ones."""
    base = parameters()
    ours, theirs = copies(base), copies(base)
    our_optimizer = pair[0](ours, fused=True, max_grad_norm=max_grad_norm)
    their_optimizer = pair[1](theirs, fused=True)
    generator = torch.Generator().manual_seed(5)
    for number in range(4):
        set_gradients([ours, theirs], generator)
        for p in (*ours, *theirs):
            assert p.grad is not None
            p.grad.mul_(8.0)
        skip = inf and number == 2
        for optimizer in (our_optimizer, their_optimizer):
            optimizer.found_inf = torch.tensor(float(skip))
        our_optimizer.grad_scale = torch.tensor(8.0)
        if max_grad_norm is None:
            their_optimizer.grad_scale = torch.tensor(8.0)
        elif not skip:
            for p in theirs:
                assert p.grad is not None
                p.grad.div_(8.0)
            nn.utils.clip_grad_norm_(theirs, max_grad_norm)
        our_optimizer.step()
        their_optimizer.step()
        assert_same(our_optimizer, their_optimizer)
        if max_grad_norm is None:
            for p, q in zip(ours, theirs, strict=True):
                assert torch.equal(p.grad, q.grad)
    assert our_optimizer.state[ours[0]]["step"] == (3 if inf else 4)


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_grad_scaler(max_grad_norm: float | None) -> None:
    torch.manual_seed(0)
    models = [nn.Linear(10, 10), nn.Linear(10, 10)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [
        optim.Adam(models[0].parameters(), max_grad_norm=max_grad_norm),
        torch.optim.Adam(models[1].parameters()),
    ]
    assert optimizers[0]._step_supports_amp_scaling == (max_grad_norm is not None)
    scalers = [torch.amp.GradScaler("cpu", init_scale=128.0) for _ in range(2)]
    for number in range(6):
        x = torch.randn(4, 10) * (float("inf") if number == 3 else 1.0)
        for model, optimizer, scaler in zip(models, optimizers, scalers, strict=True):
            optimizer.zero_grad()
            scaler.scale(model(x).square().mean()).backward()
            if max_grad_norm is not None and optimizer is optimizers[1]:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
        assert scalers[0].get_scale() == scalers[1].get_scale()
        for p, q in zip(*(m.parameters() for m in models), strict=True):
            torch.testing.assert_close(p, q)


@pytest.mark.parametrize("fused", [None, True])
def test_clipping_between_unscaling_and_stepping(fused: bool | None) -> None:
    """What Lightning's mixed precision does with gradient_clip_val; it refuses optimizers that
    unscale by themselves, so ours must not say it does unless it clips by itself too."""
    p, q = Parameter(torch.ones(50)), Parameter(torch.ones(50))
    optimizer, torchs = optim.Adam([p], fused=fused), torch.optim.Adam([q])
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)
    for parameter, each in ((p, optimizer), (q, torchs)):
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        for _ in range(3):
            each.zero_grad()
            scaler.scale((parameter**2).sum()).backward()
            scaler.unscale_(each)
            nn.utils.clip_grad_norm_([parameter], 0.1)
            scaler.step(each)
            scaler.update()
    torch.testing.assert_close(p, q)
