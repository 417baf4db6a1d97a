# SPDX-License-Identifier: MIT
"""fastconv.optim as objects: messages, parameters, checkpoints, hooks, schedulers."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adam_pairs import Both, Pair, both
from test_adam import PAIRS, STATES, assert_same, copies, parameters, set_gradients
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from fastconv import optim, runtime

# --- Signatures and messages ----------------------------------------------------------------------


@both
def test_signature_and_defaults(pair: Pair) -> None:
    ours, theirs = (inspect.signature(cls).parameters for cls in pair)
    assert [*ours] == [*theirs, "max_grad_norm", "skip_nonfinite"]
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default
        assert ours[name].kind == parameter.kind
    params = parameters()
    a, b = pair[0](params), pair[1](params)
    assert a.defaults == b.defaults
    assert repr(a) == repr(b)
    assert isinstance(a, pair[1])
    assert [*inspect.signature(a.step).parameters] == ["closure"]


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"eps": -1e-8},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, -0.1)},
        {"betas": (0.9, torch.tensor(0.9))},
        {"weight_decay": -0.1},
        {"lr": torch.tensor([1.0, 2.0])},
        {"lr": torch.tensor(0.1), "foreach": True},
        {"fused": True, "foreach": True},
        {"fused": True, "differentiable": True},
    ],
)
@both
def test_same_errors_as_torch(pair: Pair, options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, RuntimeError)) as expected:
        pair[1](parameters(), **options)
    with pytest.raises(type(expected.value), match=re.escape(str(expected.value))):
        pair[0](parameters(), **options)


@pytest.mark.parametrize(
    "params", [[], [3], torch.ones(3), [{"params": []}, 3], [torch.ones(2, requires_grad=True) * 2]]
)
def test_same_errors_about_parameters(params: Any) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)) as expected:
        torch.optim.Adam(copy.copy(params))
    with pytest.raises(type(expected.value), match=re.escape(str(expected.value))):
        optim.Adam(copy.copy(params))


@both
def test_own_options_are_checked(pair: Pair) -> None:
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"Invalid max_grad_norm value: {bad}"):
            pair[0](parameters(), max_grad_norm=bad)
    with pytest.raises(ValueError, match="not supported with differentiable=True"):
        pair[0](parameters(), max_grad_norm=1.0, differentiable=True)
    optimizer = pair[0](parameters())
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3, 5)
    optimizer.step()
    optimizer.max_grad_norm = -2.0
    with pytest.raises(ValueError, match="expected max_grad_norm of at least 0, got -2"):
        optimizer.step()
    optimizer.max_grad_norm = "1"
    with pytest.raises(TypeError, match="expected max_grad_norm to be a number or None, got str"):
        optimizer.step()


@both
def test_sparse_gradients_are_refused_and_change_nothing(pair: Pair) -> None:
    dense, sparse = Parameter(torch.ones(4)), Parameter(torch.ones(4, 3))
    optimizer = pair[0]([dense, sparse])
    dense.grad, sparse.grad = torch.ones(4), torch.ones(4, 3)
    optimizer.step()
    before = dense.detach().clone()
    sparse.grad = torch.ones(4, 3).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(dense.detach(), before)
    assert optimizer.state[dense]["step"] == 1


@both
def test_numpy_numbers_as_options(pair: Pair) -> None:
    numpy = pytest.importorskip("numpy")
    run = Both(pair)
    run.step()
    for number in (numpy.float64(0.02), numpy.float32(0.5), numpy.int64(1)):
        run.step(1, lambda o, number=number: o.param_groups[0].update(weight_decay=number))
        assert runtime.last_used_algorithm("adam") == "chunks"


# --- Which parameters take part -------------------------------------------------------------------


@both
def test_missing_gradients_are_skipped(pair: Pair) -> None:
    run = Both(pair)
    generator = torch.Generator().manual_seed(1)

    for _ in range(12):
        set_gradients(run.params, run.generator)
        for index in range(len(run.params[0])):
            if torch.rand((), generator=generator) < 0.5:
                for params in run.params:
                    params[index].grad = None
        for optimizer in run.optimizers:
            optimizer.step()
        assert_same(*run.optimizers)
    for optimizer in run.optimizers:
        optimizer.zero_grad()
        optimizer.step()
    assert_same(*run.optimizers)


@both
def test_add_param_group_and_frozen_parameters(pair: Pair) -> None:
    run = Both(pair)
    run.step(3)
    extra = copies(parameters([(5, 5), (9,)], seed=3))
    for params, optimizer in zip(run.params, run.optimizers, strict=True):
        more = copies(extra)
        optimizer.add_param_group({"params": more, "lr": 0.5, "weight_decay": 0.1})
        params.extend(more)
    run.step(3)
    for params in run.params:
        params[0].requires_grad_(False)
        params[0].grad = None
    run.step(2)


@both
def test_group_parameters_replaced(pair: Pair) -> None:
    run = Both(pair)
    run.step(2)
    for index, optimizer in enumerate(run.optimizers):
        new = Parameter(torch.full((6, 2), 0.5))
        old = optimizer.param_groups[0]["params"][1]
        optimizer.param_groups[0]["params"][1] = new
        del optimizer.state[old]
        run.params[index][1] = new
    run.step(2)
    for optimizer in run.optimizers:
        optimizer.param_groups[0]["params"].pop()
    for params in run.params:
        params.pop()
    run.step(2)


@both
def test_states_replaced_and_storage_moved(pair: Pair) -> None:
    run = Both(pair, amsgrad=True)
    run.step(2)

    def replace(optimizer: torch.optim.Optimizer) -> None:
        first = optimizer.param_groups[0]["params"][0]
        optimizer.state[first]["exp_avg"] = torch.full_like(first, 0.25)
        optimizer.state[first]["step"] = torch.tensor(7.0)

    run.step(1, replace)
    run.step(1, lambda o: o.param_groups[0]["params"][4].data.zero_())

    def move(optimizer: torch.optim.Optimizer) -> None:
        p = optimizer.param_groups[0]["params"][1]
        p.data = p.data.clone()
        state = optimizer.state[p]
        state["exp_avg_sq"].data = state["exp_avg_sq"].data.clone() * 2

    run.step(1, move)
    run.step(1, lambda o: o.state.clear())
    run.step(2)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda g: g.to(memory_format=torch.channels_last),
    "transposed": lambda g: g.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded": lambda g: g[:, :1].expand_as(g),
    "sliced": lambda g: torch.stack([g, g], -1)[..., 0],
    "offset": lambda g: torch.cat([g.flatten(), g.flatten()])[1 : 1 + g.numel()].view_as(g),
}


@pytest.mark.parametrize("of_parameter", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@both
def test_layouts_of_gradients(pair: Pair, layout: str, of_parameter: bool) -> None:
    base = torch.randn(4, 6, 3, 5)
    if of_parameter:
        base = base.to(memory_format=torch.channels_last)
    ours, theirs = copies([base]), copies([base])
    optimizers = pair[0](ours, max_grad_norm=None), pair[1](theirs)
    for _ in range(3):
        grad = LAYOUTS[layout](torch.randn(4, 6, 3, 5))
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            params[0].grad = grad.detach()
            optimizer.step()
        assert_same(*optimizers)
    assert runtime.last_used_algorithm("adam") == "chunks"


def test_parameter_of_another_size_is_torchs_error() -> None:
    for cls in PAIRS[0]:
        p = Parameter(torch.ones(4))
        optimizer = cls([p])
        p.grad = torch.ones(4)
        optimizer.step()
        p.data = torch.ones(400)
        with pytest.raises(RuntimeError, match="size of tensor"):
            optimizer.step()


def test_freed_storage_is_not_touched() -> None:
    p, q = Parameter(torch.ones(4000)), Parameter(torch.ones(4000))
    optimizer = optim.Adam([p, q])
    p.grad, q.grad = torch.ones(4000), torch.ones(4000)
    optimizer.step()
    p.grad = None
    p.data.untyped_storage().resize_(0)
    optimizer.step()
    assert optimizer.state[q]["step"] == 2
    assert optimizer.state[p]["step"] == 1


def test_parameter_with_gaps_is_torchs() -> None:
    storage = [torch.randn(8, 8) for _ in range(2)]
    storage[1].copy_(storage[0])
    params = [[Parameter(s[:, ::2]), Parameter(s[:, 1])] for s in storage]
    optimizers = optim.Adam(params[0]), torch.optim.Adam(params[1])
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        set_gradients(params, generator)
        for optimizer in optimizers:
            optimizer.step()
        for p, q in zip(*params, strict=True):
            torch.testing.assert_close(p.detach(), q.detach())


def test_parameters_that_share_storage() -> None:
    """Overlapping parameters are stepped one after the other, as torch's loop does."""
    flat = [torch.randn(20_000) for _ in range(2)]
    flat[1].copy_(flat[0])
    params = [[Parameter(f[:12_000]), Parameter(f[8_000:]), Parameter(f[5:6])] for f in flat]
    optimizers = optim.Adam(params[0]), torch.optim.Adam(params[1])
    generator = torch.Generator().manual_seed(5)
    for _ in range(5):
        set_gradients(params, generator)
        for optimizer in optimizers:
            optimizer.step()
        assert runtime.last_used_algorithm("adam") == "ordered"
        torch.testing.assert_close(flat[0], flat[1], rtol=1e-5, atol=1e-7)


def test_flat_parameter_with_views() -> None:
    """As sharded training does: parameters are neighbours in one storage, gradients too."""
    flat = [torch.randn(3000) for _ in range(2)]
    grads = [torch.zeros(3000) for _ in range(2)]
    flat[1].copy_(flat[0])
    params = [[Parameter(part) for part in f.split([1000, 1, 1999])] for f in flat]
    optimizers = optim.AdamW(params[0]), torch.optim.AdamW(params[1])
    for _ in range(4):
        values = torch.randn(3000)
        for group, g, optimizer in zip(params, grads, optimizers, strict=True):
            g.copy_(values)
            for p, part in zip(group, g.split([1000, 1, 1999]), strict=True):
                p.grad = part
            optimizer.step()
        assert_same(*optimizers)
    assert runtime.last_used_algorithm("adam") == "chunks"


@both
def test_the_same_parameter_twice(pair: Pair) -> None:
    params = [Parameter(torch.ones(5000)) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizers = [cls([p, p]) for cls, p in zip(pair, params, strict=True)]
    for _ in range(3):
        for p, optimizer in zip(params, optimizers, strict=True):
            p.grad = torch.linspace(-1, 1, 5000)
            optimizer.step()
        assert_same(*optimizers)
    assert optimizers[0].state[params[0]]["step"] == 6


@both
def test_float16_parameters_among_others(pair: Pair) -> None:
    base = [*parameters([(40, 3), (7,)]), *parameters([(9, 9)], dtype=torch.float16)]
    lists = [copies(base), copies(base)]
    # torch's float16 arithmetic has no room for the usual eps
    ours, theirs = (cls(p, eps=0.01) for cls, p in zip(pair, lists, strict=True))
    generator = torch.Generator().manual_seed(5)
    for _ in range(10):
        set_gradients(lists, generator)
        for params in lists:
            norm = nn.utils.clip_grad_norm_(params, 0.5) if params is lists[1] else None
        ours.max_grad_norm = 0.5
        ours.step()
        theirs.step()
        assert norm is not None
        assert ours.grad_norm == pytest.approx(norm.item(), rel=1e-3)
        for p, q in zip(*lists, strict=True):
            close = {"rtol": 1e-2, "atol": 1e-3} if p.dtype == torch.float16 else {}
            torch.testing.assert_close(p.detach(), q.detach(), **close)
            assert ours.state[p]["exp_avg"].dtype == p.dtype


# --- Checkpoints ----------------------------------------------------------------------------------


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True, map_location="cpu")


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@both
def test_checkpoints_move_both_ways(pair: Pair, dtype, fused: bool | None, amsgrad: bool) -> None:
    run = Both(pair, dtype, amsgrad=amsgrad, fused=fused, weight_decay=0.05)
    run.step(7)
    ours, theirs = (o.state_dict() for o in run.optimizers)
    assert ours["param_groups"] == theirs["param_groups"]
    assert [*ours["state"]] == [*theirs["state"]]
    new = [cls(p) for cls, p in zip(pair, run.params, strict=True)]
    new[0].load_state_dict(through_file(theirs))  # swapped
    new[1].load_state_dict(through_file(ours))
    run.optimizers = new
    run.step(7)
    assert new[0].state_dict()["param_groups"][0]["amsgrad"] == amsgrad


def test_old_checkpoint_with_a_number_as_step() -> None:
    run = Both(PAIRS[0])
    run.step(2)
    for optimizer in run.optimizers:
        state = optimizer.state_dict()
        for entry in state["state"].values():
            entry["step"] = int(entry["step"])
        for key in ("foreach", "maximize", "capturable", "differentiable", "fused"):
            del state["param_groups"][0][key]
        optimizer.load_state_dict(state)
    run.step(3)


def test_checkpoint_of_another_layout() -> None:
    base = torch.randn(3, 4, 5, 6)
    theirs = copies([base.to(memory_format=torch.channels_last)])
    ours = copies([base])
    their_optimizer, our_optimizer = torch.optim.Adam(theirs), optim.Adam(ours)
    for number in range(4):
        grad = torch.randn(3, 4, 5, 6)
        theirs[0].grad, ours[0].grad = grad, grad.clone()
        their_optimizer.step()
        if number == 0:
            ours[0].data.copy_(theirs[0].data)
            our_optimizer.load_state_dict(copy.deepcopy(their_optimizer.state_dict()))
        else:
            our_optimizer.step()
            torch.testing.assert_close(ours[0].detach(), theirs[0].detach())
    assert runtime.last_used_algorithm("adam") == "chunks"


def test_bfloat16_checkpoints() -> None:
    """float32 averages survive; torch takes them as bfloat16, and its own come back as float32."""
    params = parameters(dtype=torch.bfloat16)
    optimizer = optim.Adam(params)
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        set_gradients([params], generator)
        optimizer.step()
    saved = through_file(optimizer.state_dict())
    again = optim.Adam(copies(params))
    again.load_state_dict(saved)
    for index, p in enumerate(again.param_groups[0]["params"]):
        for key in STATES[1:3]:
            assert torch.equal(again.state[p][key], saved["state"][index][key])
    torchs = copies(params)
    their_optimizer = torch.optim.Adam(torchs)
    their_optimizer.load_state_dict(saved)
    set_gradients([torchs, again.param_groups[0]["params"]], generator)
    their_optimizer.step()
    again.load_state_dict(their_optimizer.state_dict())
    again.step()
    assert again.state[again.param_groups[0]["params"][0]]["exp_avg"].dtype == torch.float32
    assert again.state[again.param_groups[0]["params"][0]]["step"] == 5


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda model_and_optimizer: pickle.loads(pickle.dumps(model_and_optimizer)),
    ],
    ids=["deepcopy", "pickle"],
)
@both
def test_copies_go_on_alike(pair: Pair, copied: Callable[[Any], Any]) -> None:
    run = Both(pair, amsgrad=True)
    optimizer = run.optimizers[0]
    optimizer.max_grad_norm, optimizer.skip_nonfinite = 1e9, True
    run.step(3)
    run.params[0][0].grad = torch.full((3, 5), float("nan"))
    optimizer.step()
    params, other = copied((run.params[0], optimizer))
    assert other.max_grad_norm == 1e9
    assert other.skip_nonfinite
    assert other.skipped_steps == 1
    assert other._step_supports_amp_scaling
    set_gradients([run.params[0], params], run.generator)
    optimizer.step()
    other.step()
    for p, q in zip(run.params[0], params, strict=True):
        assert torch.equal(p.detach(), q.detach())
        assert p.data_ptr() != q.data_ptr() or p.numel() == 0
    other.step()
    assert not torch.equal(run.params[0][0].detach(), params[0].detach())


def test_state_dict_hooks() -> None:
    calls = []
    optimizer = optim.Adam(parameters())
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, s: calls.append("post"))
    optimizer.register_load_state_dict_pre_hook(lambda o, s: calls.append("load pre"))
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("load post"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["pre", "post", "load pre", "load post"]
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1


# --- Closures, hooks ------------------------------------------------------------------------------


@both
def test_closure(pair: Pair) -> None:
    run = Both(pair)
    for how in (lambda o, c: o.step(c), lambda o, c: o.step(closure=c)):
        losses = []
        for params, optimizer in zip(run.params, run.optimizers, strict=True):

            def closure(params=params, optimizer=optimizer) -> Tensor:
                assert torch.is_grad_enabled()
                optimizer.zero_grad()
                loss = sum(((p - 1) ** 2).sum() for p in params)
                loss.backward()
                return loss

            with torch.no_grad():
                losses.append(how(optimizer, closure))
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
        assert_same(*run.optimizers)
    assert run.optimizers[0].step() is None


@both
def test_step_hooks(pair: Pair) -> None:
    for cls in pair:
        p = Parameter(torch.ones(3))
        optimizer = cls([p])
        seen: list[Any] = []
        handles = [
            optimizer.register_step_pre_hook(
                lambda o, args, kwargs, seen=seen: seen.append(("pre", len(args), dict(kwargs)))
            ),
            optimizer.register_step_post_hook(
                lambda o, args, kwargs, seen=seen: seen.append(("post", len(args), dict(kwargs)))
            ),
            register_optimizer_step_pre_hook(
                lambda o, args, kwargs, seen=seen: seen.append(("global pre", type(o)))
            ),
            register_optimizer_step_post_hook(
                lambda o, args, kwargs, seen=seen: seen.append(("global post", type(o)))
            ),
        ]
        try:
            for _ in range(2):
                p.grad = torch.ones(3)
                before = p.detach().clone()
                optimizer.step()
                assert seen == [
                    ("global pre", cls),
                    ("pre", 1, {}),
                    ("post", 1, {}),
                    ("global post", cls),
                ]
                assert not torch.equal(p.detach(), before)
                seen.clear()
            for handle in handles:
                handle.remove()
            optimizer.step()
            assert seen == []
        finally:
            for handle in handles:
                handle.remove()


def test_pre_hook_may_replace_the_arguments() -> None:
    p = Parameter(torch.ones(3))
    optimizer = optim.Adam([p])
    p.grad = torch.ones(3)
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 42), {}))
    assert optimizer.step() == 42


def test_subclass_with_its_own_step_runs_hooks_once() -> None:
    class Own(optim.Adam):
        def step(self, closure=None):
            return super().step(closure) if closure else super().step()

    p = Parameter(torch.ones(3))
    optimizer = Own([p])
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(1))
    for number in range(3):
        p.grad = torch.ones(3)
        optimizer.step()
        assert len(seen) == number + 1
    assert optimizer.state[p]["step"] == 3
