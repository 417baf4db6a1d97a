# SPDX-License-Identifier: MIT
"""fastconv.accelerate(model, optimizer=...): the exchange of the optimizer, and back."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from typing import Any

import pytest
import torch
from test_accelerate import small_net
from torch import nn
from torch.optim import lr_scheduler

import fastconv

CLASSES = {torch.optim.Adam: fastconv.optim.Adam, torch.optim.AdamW: fastconv.optim.AdamW}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    """Steps with gradients that do not depend on the model, so that both sides get the same."""
    generator = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        for parameter in model.parameters():
            grad = torch.randn(parameter.shape, generator=generator)
            parameter.grad = grad.to(parameter.dtype)
        optimizer.step()


def pair(theirs: type[torch.optim.Optimizer], **options: Any) -> list[Any]:
    """Twice the same: a model and an optimizer with two groups that has made some steps."""
    made = []
    model = small_net()
    for net in (model, copy.deepcopy(model)):
        groups = [{"params": [*net[:4].parameters()], "lr": 1e-2}, {"params": net[4:].parameters()}]
        optimizer = theirs(groups, lr=1e-3, **options)  # type: ignore[call-arg]
        train(net, optimizer)
        made.append((net, optimizer))
    return made


def check_equal(first: tuple[Any, Any], second: tuple[Any, Any]) -> None:
    for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    ours, theirs = first[1].state_dict(), second[1].state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    torch.testing.assert_close(ours["state"], theirs["state"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("theirs", CLASSES)
@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "weight_decay": 0.1}, {"fused": True}])
def test_the_object_stays_and_goes_on(
    theirs: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    (model, optimizer), other = pair(theirs, **options)
    groups, state = optimizer.param_groups, dict(optimizer.state)
    attributes = {*optimizer.__dict__}
    report = fastconv.accelerate(model, optimizer=optimizer)
    assert report.optimizer == (
        f"{theirs.__name__} became fastconv.optim.{theirs.__name__}, with its state"
    )
    assert type(optimizer) is CLASSES[theirs]
    assert optimizer.param_groups is groups
    train(model, optimizer)
    train(*other)
    assert all(optimizer.state[key] is value for key, value in state.items())
    check_equal((model, optimizer), other)
    fastconv.restore(model)
    assert type(optimizer) is theirs
    assert {*optimizer.__dict__} == attributes
    train(model, optimizer)
    train(*other)
    check_equal((model, optimizer), other)


@pytest.mark.parametrize("before", [True, False])
def test_schedulers_of_before_and_after(before: bool) -> None:
    rates = []
    runs = pair(torch.optim.Adam)
    for accelerate, (model, optimizer) in zip((True, False), runs, strict=True):
        schedulers = [lr_scheduler.StepLR(optimizer, 1)] if before else []
        if accelerate:
            fastconv.accelerate(model, optimizer=optimizer)
        schedulers.append(lr_scheduler.ExponentialLR(optimizer, 0.7))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):
                train(model, optimizer, 1)
                for scheduler in schedulers:
                    scheduler.step()
                rates.append([group["lr"] for group in optimizer.param_groups])
        if accelerate:
            stepper = optimizer._stepper
            assert not stepper.has_others
            fastconv.restore(model)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                train(model, optimizer, 1)
                schedulers[0].step()
        else:
            train(model, optimizer, 1)
            schedulers[0].step()
    assert rates[:3] == rates[3:]
    check_equal(*runs)


def test_hooks_and_scaler_protocol() -> None:
    (model, optimizer), _ = pair(torch.optim.Adam)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *args: calls.append("pre"))
    fastconv.accelerate(model, optimizer=optimizer)
    optimizer.register_step_post_hook(lambda *args: calls.append("post"))
    train(model, optimizer, 1)
    assert calls == ["pre", "post"]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    train(model, optimizer, 1)
    loss = optimizer.step(lambda: torch.tensor(3.0))
    assert loss == 3.0


def test_checkpoints_cross() -> None:
    (model, optimizer), (other, torchs) = pair(torch.optim.AdamW)
    fastconv.accelerate(model, optimizer=optimizer)
    train(model, optimizer)
    torchs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(model.state_dict())
    train(model, optimizer)
    train(other, torchs)
    check_equal((model, optimizer), (other, torchs))
    pickle.loads(pickle.dumps(optimizer))


def test_bfloat16_averages_go_back_to_bfloat16() -> None:
    model = nn.Linear(4, 4).bfloat16()
    optimizer = torch.optim.Adam(model.parameters())
    fastconv.accelerate(model, optimizer=optimizer)
    train(model, optimizer)
    assert optimizer.state[model.weight]["exp_avg"].dtype == torch.float32
    fastconv.restore(model)
    assert optimizer.state[model.weight]["exp_avg"].dtype == torch.bfloat16
    train(model, optimizer)


class OwnAdam(torch.optim.Adam):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("make", [torch.optim.SGD, OwnAdam, torch.optim.NAdam])
def test_other_optimizers_stay(make: Any) -> None:
    model = small_net()
    optimizer = make(model.parameters(), lr=0.1)
    report = fastconv.accelerate(model, optimizer=optimizer)
    assert type(optimizer) is make
    assert report.optimizer == f"{make.__name__} stays torch's: fastconv has Adam and AdamW"
    assert "stays torch's" in str(report)


def test_a_replaced_step_stays() -> None:
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step = lambda: None  # type: ignore[method-assign,assignment]
    report = fastconv.accelerate(model, optimizer=optimizer)
    assert "its step was replaced on the instance" in str(report.optimizer)
    assert type(optimizer) is torch.optim.Adam


def test_ours_stays_ours() -> None:
    model = small_net()
    optimizer = fastconv.optim.Adam(model.parameters(), max_grad_norm=0.5)
    report = fastconv.accelerate(model, optimizer=optimizer)
    assert report.optimizer == "Adam is fastconv's already"
    fastconv.restore(model)
    assert type(optimizer) is fastconv.optim.Adam
    assert optimizer.max_grad_norm == 0.5


def test_nobody_keeps_the_optimizer_alive() -> None:
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters())
    fastconv.accelerate(model, optimizer=optimizer)
    reference = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert reference() is None
    fastconv.restore(model)


def test_two_optimizers_of_one_model() -> None:
    model = small_net()
    both = [torch.optim.Adam(model[0].parameters()), torch.optim.AdamW(model[4].parameters())]
    for optimizer in both:
        fastconv.accelerate(model, optimizer=optimizer)
    assert [type(o) for o in both] == [*CLASSES.values()]
    fastconv.restore(model)
    assert [type(o) for o in both] == [*CLASSES]
