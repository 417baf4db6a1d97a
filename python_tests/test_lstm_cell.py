# SPDX-License-Identifier: MIT
"""Loops over a cell: gradients of its weights are summed over all steps of a backward pass at once.

What autograd would do by itself, one gradient for each step, is what torch's cell does; here it is
the expectation throughout.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from reference import assert_parity
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastconv import nn as fast_nn
from fastconv import runtime

Cell = torch.nn.Module
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def pair(inputs: int, hidden: int, **options: bool) -> tuple[Cell, Cell]:
    torch.manual_seed(1)
    theirs = torch.nn.LSTMCell(inputs, hidden, **options)
    ours = fast_nn.LSTMCell(inputs, hidden, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def rollout(cell: Cell, x: Tensor, states: bool = False) -> Tensor:
    """Outputs of all steps; with `states` from initial states that are not zeros."""
    hx = None
    if states:
        value = x.detach().mean().expand(x.shape[1], cell.hidden_size).contiguous()
        hx = (value, -value)
    outputs = []
    for step in x:
        hx = cell(step, hx)
        outputs.append(hx[0])
    return torch.stack(outputs)


def gradients(cell: Cell, run: Callable[[Cell], Tensor]) -> dict[str, Tensor]:
    named = dict(cell.named_parameters())
    loss = (run(cell) * torch.linspace(-1, 1, cell.hidden_size, dtype=cell.weight_ih.dtype)).sum()
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        scale = grad.square().mean().sqrt().item()
        torch.testing.assert_close(ours[name], grad, rtol=1e-4, atol=1e-5 * scale, msg=name)


# The rows of a pass: few, more than are multiplied as they are, more than are kept.
@pytest.mark.parametrize("size", [(3, 5, 4, 6), (1, 1, 1, 9), (20, 50, 1, 70), (6, 17, 33, 70)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("states", [True, False])
def test_loop_parity(size: tuple[int, int, int, int], bias: bool, states: bool, isa: str) -> None:
    inputs, hidden, batch, steps = size
    ours, theirs = pair(inputs, hidden, bias=bias)
    x = torch.randn(steps, batch, inputs)

    def all_of(cell: Cell, dtype: torch.dtype) -> dict[str, Tensor]:
        return gradients(cell, lambda cell: rollout(cell, x.to(dtype), states))

    fast, torchs = all_of(ours, torch.float32), all_of(theirs, torch.float32)
    oracle = all_of(theirs.double(), torch.float64)
    for name in oracle:
        assert_parity(fast[name], torchs[name], oracle[name], name)


def test_loop_parity_can_fail() -> None:
    ours, theirs = pair(3, 5)
    x = torch.randn(6, 4, 3)
    found = [gradients(cell, lambda cell: rollout(cell, x)) for cell in (ours, theirs)]
    oracle = gradients(theirs.double(), lambda cell: rollout(cell, x.double()))
    with torch.no_grad():  # exchange the gates i and f
        ours.weight_hh[:10] = ours.weight_hh[:10].roll(5, 0)
    swapped = gradients(ours, lambda cell: rollout(cell, x))
    with pytest.raises(AssertionError):
        assert_parity(swapped["weight_hh"], found[1]["weight_hh"], oracle["weight_hh"], "swapped")
    without_last = gradients(theirs.float(), lambda cell: rollout(cell, x[:-1]))
    with pytest.raises(AssertionError):
        assert_same(found[0], without_last)


def test_bits_do_not_depend_on_threads() -> None:
    for batch in (1, 2, 32):
        cell, _ = pair(128, 256)
        x = torch.randn(3, batch, 128)
        found = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(gradients(cell, lambda cell, x=x: rollout(cell, x)))
        for name in NAMES:
            assert torch.equal(found[0][name], found[1][name])
            assert torch.equal(found[1][name], found[2][name])


def test_two_cells_in_one_loop_and_graphs_side_by_side() -> None:
    first, second = pair(4, 4), pair(4, 4)
    x, y = torch.randn(5, 3, 4), torch.randn(7, 3, 4)

    def stacked(a: Cell, b: Cell, x: Tensor) -> Tensor:
        h = g = None
        for step in x:
            h = a(step, h)
            g = b(h[0], g)
        return g[0]

    results = []
    for a, b in zip(first, second, strict=True):
        parameters = [*a.parameters(), *b.parameters()]
        # Both graphs exist before either is differentiated.
        losses = [stacked(a, b, x).sum(), stacked(a, b, y).square().sum()]
        grads = [torch.autograd.grad(loss, parameters) for loss in reversed(losses)]
        both = torch.autograd.grad(stacked(a, b, x).sum() + stacked(a, b, y).sum(), parameters)
        results.append([*grads[0], *grads[1], *both])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_graph_can_be_retained_but_not_used_after_it_is_freed() -> None:
    ours, _ = pair(3, 4)
    parameters = list(ours.parameters())
    loss = rollout(ours, torch.randn(5, 2, 3)).sum()
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    again = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, parameters)


def test_only_what_is_wanted() -> None:
    ours, _ = pair(3, 4)
    x = torch.randn(5, 2, 3, requires_grad=True)
    full = dict(
        zip(
            NAMES,
            torch.autograd.grad(rollout(ours, x).sum(), [ours.get_parameter(n) for n in NAMES]),
            strict=True,
        )
    )
    for name in NAMES:
        (alone,) = torch.autograd.grad(rollout(ours, x).sum(), ours.get_parameter(name))
        assert torch.equal(alone, full[name])
    (grad_x,) = torch.autograd.grad(rollout(ours, x).sum(), x)
    assert grad_x.abs().sum() > 0
    ours.weight_ih.requires_grad_(False)
    ours.bias_hh.requires_grad_(False)
    rollout(ours, x).sum().backward()
    assert ours.weight_ih.grad is None
    assert ours.bias_hh.grad is None
    assert torch.equal(ours.weight_hh.grad, full["weight_hh"])
    assert torch.equal(ours.bias_ih.grad, full["bias_ih"])


def test_biases_do_not_share_a_gradient() -> None:
    ours, _ = pair(3, 4)
    rollout(ours, torch.randn(5, 2, 3)).sum().backward()
    assert torch.equal(ours.bias_ih.grad, ours.bias_hh.grad)
    assert ours.bias_ih.grad.data_ptr() != ours.bias_hh.grad.data_ptr()


def test_second_derivatives() -> None:
    results = []
    x = torch.randn(3, 2, 3)
    for cell in pair(3, 4):
        parameters = list(cell.parameters())
        grads = torch.autograd.grad(rollout(cell, x).square().sum(), parameters, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), parameters))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_batched_gradients() -> None:
    """``is_grads_batched``, which vectorized jacobians use, runs the backward pass under vmap."""
    ours, theirs = pair(3, 4)
    x = torch.randn(5, 2, 3)
    vectors = torch.randn(6, 5, 2, 4)
    results = []
    for cell in (ours, theirs):
        leaf = x.clone().requires_grad_()
        wanted = [leaf, *cell.parameters()]
        grads = torch.autograd.grad(
            rollout(cell, leaf), wanted, vectors, is_grads_batched=True, retain_graph=True
        )
        assert not any(grad.requires_grad for grad in grads)
        results.append(dict(zip(("x", *NAMES), grads, strict=True)))
    assert_same(*results)


def test_a_pass_that_failed_leaves_nothing_behind() -> None:
    ours, _ = pair(3, 4)
    x = torch.randn(4, 2, 3)
    parameters = list(ours.parameters())

    def refuse(grad: Tensor) -> Tensor:
        raise ValueError("stop")

    outputs = rollout(ours, x)
    expected = torch.autograd.grad(outputs.sum(), parameters, retain_graph=True)
    h, c = ours(x[0])
    handle = h.register_hook(refuse)
    later = ours(x[1], (h, c))[0].sum()
    with pytest.raises(ValueError, match="stop"):
        torch.autograd.grad(later, parameters, retain_graph=True)
    handle.remove()
    found = torch.autograd.grad(outputs.sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_changed_weights_are_noticed_before_backward() -> None:
    for name in NAMES[:2]:
        ours, _ = pair(3, 4)
        output = rollout(ours, torch.randn(5, 2, 3))
        with torch.no_grad():
            ours.get_parameter(name).add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_hooks_see_the_whole_gradient_once() -> None:
    ours, theirs = pair(3, 4)
    x = torch.randn(5, 2, 3)
    seen: list[Tensor] = []
    ours.weight_hh.register_hook(lambda grad: seen.append(grad.clone()))
    rollout(ours, x).sum().backward()
    rollout(theirs, x).sum().backward()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], theirs.weight_hh.grad, rtol=1e-4, atol=1e-5)


def test_weights_that_are_results_themselves() -> None:
    results = []
    x = torch.randn(5, 2, 3)
    for cell in pair(3, 4):
        scale = torch.tensor(1.5, requires_grad=True)
        weights = {name: p.detach() * scale for name, p in cell.named_parameters()}
        output = torch.func.functional_call(cell, weights, (x[0],))
        for step in x[1:]:
            output = torch.func.functional_call(cell, weights, (step, output))
        results.append(torch.autograd.grad(output[0].sum(), scale)[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant: bool) -> None:
    ours, _ = pair(3, 4)
    x = torch.randn(4, 2, 3)
    parameters = list(ours.parameters())
    rollout(ours, x).sum().backward()
    expected = [p.grad for p in parameters]
    ours.zero_grad()
    h = torch.zeros(2, 4, requires_grad=True)
    c = torch.zeros(2, 4)
    total = torch.zeros(())
    for step in x:
        h, c = checkpoint(lambda s, h, c: ours(s, (h, c)), step, h, c, use_reentrant=reentrant)
        total = total + h.sum()
    total.backward()
    for p, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-5)


def test_passes_on_several_threads() -> None:
    ours, _ = pair(3, 4)
    parameters = list(ours.parameters())
    x = torch.randn(6, 20, 2, 3)
    losses = [rollout(ours, part).sum() for part in x]
    expected = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    found: list = [None] * len(losses)

    def differentiate(i: int) -> None:
        found[i] = torch.autograd.grad(losses[i], parameters)

    threads = [threading.Thread(target=differentiate, args=(i,)) for i in range(len(losses))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(found, expected, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_forms_that_are_left_to_the_layer() -> None:
    """Other dtypes, strides, subclasses and transforms: the same results by another way."""
    ours, theirs = pair(3, 4)
    x = torch.randn(2, 6)[:, ::2]
    hx = (torch.randn(4, 2).t(), torch.randn(2, 4))
    for a, b in zip(ours(x, hx), theirs(x, hx), strict=True):
        torch.testing.assert_close(a, b)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x, hx)[0], theirs(x, hx)[0])
    weights = dict(ours.named_parameters())

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(ours, weights, (x,))[0].sum()

    found = torch.func.grad(loss)(weights, x)
    assert_same(found, gradients_of(loss, weights, x))
    each = torch.func.vmap(lambda x: ours(x[None])[0])(x)
    torch.testing.assert_close(each[:, 0], ours(x)[0])
    torch.testing.assert_close(ours.double()(x.double())[0], theirs.double()(x.double())[0])


def gradients_of(loss: Callable, weights: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(loss(weights, x), list(weights.values()))
    return dict(zip(weights, grads, strict=True))


def test_opcheck() -> None:
    weights = [torch.randn(s, requires_grad=True) for s in ((16, 3), (16, 4), (16,), (16,))]
    states = [torch.randn(2, 4, requires_grad=True) for _ in range(2)]
    for hx in ((None, None), states):
        torch.library.opcheck(
            torch.ops.fastconv.lstm_cell.default, (torch.randn(2, 3), *hx, *weights)
        )


def test_the_step_runs_on_the_kernels() -> None:
    ours, _ = pair(3, 4)
    runtime.forget_last_used()
    rollout(ours, torch.randn(2, 2, 3)).sum().backward()
    assert {"lstm_forward", "lstm_backward"} <= runtime.last_used().keys()
