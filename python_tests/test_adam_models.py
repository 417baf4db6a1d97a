# SPDX-License-Identifier: MIT
"""fastconv.optim in training: autograd, compiled and distributed models, profilers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from adam_pairs import Both, Pair, both
from test_adam import PAIRS, assert_same
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import Parameter

from fastconv import optim


def test_version_counters_go_up() -> None:
    p = Parameter(torch.ones(3))
    optimizer = optim.Adam([p], amsgrad=True)
    p.grad = torch.ones(3)
    optimizer.step()
    tensors = [p, *optimizer.state[p].values()]
    before = [t._version for t in tensors]
    loss = (p * p).sum()
    optimizer.step()
    assert all(t._version > v for t, v in zip(tensors, before, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_gradients_no_version_changes() -> None:
    p = Parameter(torch.ones(3))
    optimizer = optim.Adam([p])
    p.grad = torch.ones(3)
    optimizer.step()
    before = p._version
    p.grad = None
    optimizer.step()
    assert p._version == before


def test_differentiable() -> None:
    """Autograd through the step is torch's own."""
    grads = []
    for cls in PAIRS[0]:
        x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        p = x.clone()
        optimizer = cls([p], lr=0.1, differentiable=True)
        p.grad = (3 * x.detach()).requires_grad_()
        optimizer.step()
        grads.append(torch.autograd.grad(p.sum(), [x]))
    assert torch.equal(grads[0][0], grads[1][0])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> list[float]:
    generator = torch.Generator().manual_seed(3)
    losses = []
    for _ in range(steps):
        x = torch.randn(8, 12, generator=generator)
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), x[:, :3])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 3))


@both
def test_training_a_model(pair: Pair) -> None:
    losses = []
    for cls in pair:
        model = small_model()
        losses.append(train(model, cls(model.parameters(), lr=0.01)))
        named = small_model()
        assert train(named, cls(named.named_parameters(), lr=0.01)) == losses[-1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][-1] < losses[0][0]


def test_compiled_model() -> None:
    model, plain = small_model(), small_model()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    losses = train(compiled, optim.Adam(model.parameters(), lr=0.01))
    assert losses == pytest.approx(
        train(plain, torch.optim.Adam(plain.parameters(), lr=0.01)), rel=1e-5
    )


def test_step_inside_a_compiled_function() -> None:
    model, plain = small_model(), small_model()
    optimizer = optim.Adam(model.parameters(), lr=0.01)

    @torch.compile(backend="aot_eager")
    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), x[:, :3])
        loss.backward()
        optimizer.step()
        return loss

    generator = torch.Generator().manual_seed(3)
    losses = [step(torch.randn(8, 12, generator=generator)).item() for _ in range(5)]
    expected = train(plain, torch.optim.Adam(plain.parameters(), lr=0.01))
    assert losses == pytest.approx(expected, rel=1e-5)


def test_profiler_sees_the_step() -> None:
    p = Parameter(torch.ones(3))
    optimizer = optim.AdamW([p])
    p.grad = torch.ones(3)
    optimizer.step()
    with torch.profiler.profile() as profile:
        optimizer.step()
        optimizer.step(lambda: None)
    names = [event.name for event in profile.events()]
    assert names.count("Optimizer.step#AdamW.step") == 2


def test_distributed_data_parallel(tmp_path) -> None:
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        losses = []
        for cls in PAIRS[1]:
            model = small_model()
            wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
            losses.append(train(wrapped, cls(model.parameters(), lr=0.01)))
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        model = small_model()
        sharded = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=optim.AdamW, lr=0.01)
        assert train(nn.parallel.DistributedDataParallel(model), sharded) == pytest.approx(
            losses[1], rel=1e-6
        )
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("set_to_none", [True, False])
@both
def test_zero_grad(pair: Pair, set_to_none: bool) -> None:
    run = Both(pair)
    run.step(2)
    for optimizer in run.optimizers:
        optimizer.zero_grad(set_to_none=set_to_none)
        optimizer.step()
    assert_same(*run.optimizers)
    assert (run.params[0][0].grad is None) == set_to_none


def test_meta_and_fake_parameters_are_torchs() -> None:
    p = Parameter(torch.ones(3, device="meta"))
    p.grad = torch.ones(3, device="meta")
    optim.Adam([p]).step()
    with torch._subclasses.FakeTensorMode():
        q = Parameter(torch.ones(3))
        q.grad = torch.ones(3)
        optim.Adam([q]).step()


def test_torch_dispatch_modes_see_the_step() -> None:
    """Counters of operations work by intercepting torch's operators."""
    seen = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    p = Parameter(torch.ones(3))
    optimizer = optim.Adam([p])
    p.grad = torch.ones(3)
    optimizer.step()
    with Spy():
        optimizer.step()
    assert any("addcdiv" in name for name in seen)
    assert optimizer.state[p]["step"] == 2
