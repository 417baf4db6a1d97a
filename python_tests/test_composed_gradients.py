# SPDX-License-Identifier: MIT
"""Backward passes that are differentiated again or run on many gradients at once: operators compose
them from others, whose graph must end where the operator began."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastconv import functional

Net = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """An operator as fastconv and as torch have it, and shapes of its operands."""

    ours: Net
    theirs: Net
    shapes: tuple[tuple[int, ...], ...]


def lstm(lib: Callable[..., tuple[Tensor, ...]]) -> Net:
    def run(x: Tensor, *params: Tensor) -> Tensor:
        states = x.new_zeros(1, 2, 3), x.new_zeros(1, 2, 3)
        return lib(x, states, params, False, 1, 0.0, False, False, False)[0]

    return run


CASES = {
    "conv2d": Case(functional.conv2d, F.conv2d, ((2, 3, 6, 6), (4, 3, 3, 3), (4,))),
    "conv_block2d": Case(
        lambda x, w, b: functional.conv_block2d(x, w, b, activation="relu", pool="max"),
        lambda x, w, b: F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2),
        ((2, 3, 9, 8), (4, 3, 5, 5), (4,)),
    ),
    "batch_norm": Case(
        lambda x, w, b: functional.batch_norm(x, None, None, w, b, True),
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
        ((4, 3, 5, 5), (3,), (3,)),
    ),
    "batch_norm_relu": Case(
        lambda x, w, b: functional.batch_norm(x, None, None, w, b, True, activation="relu"),
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True).relu(),
        ((4, 3, 5, 5), (3,), (3,)),
    ),
    "mlp": Case(
        lambda x, v, w, b, c: functional.mlp(x, [v, w], [b, c], activation="tanh"),
        lambda x, v, w, b, c: F.linear(F.linear(x, v, b).tanh(), w, c),
        ((5, 4), (4, 4), (4, 4), (4,), (4,)),
    ),
    "lstm": Case(lstm(functional.lstm), lstm(torch.lstm), ((5, 2, 4), (12, 4), (12, 3))),
    "lstm_cell": Case(
        lambda x, h, c, v, w: functional.lstm_cell(x, (h, c), v, w)[0],
        lambda x, h, c, v, w: torch.lstm_cell(x, (h, c), v, w)[0],
        ((3, 4), (3, 2), (3, 2), (8, 4), (8, 2)),
    ),
}


def operands(name: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = CASES[name].shapes
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def scalar(y: Tensor) -> Tensor:
    return (y + torch.linspace(-1, 1, y.numel()).view_as(y)).sin().sum()


def assert_close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        scale = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a / scale, b / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_hooks_of_operands_run_once(name: str, create_graph: bool) -> None:
    def run(net: Net) -> tuple[tuple[Tensor, ...], list[int]]:
        leaves = operands(name)
        calls = [0] * len(leaves)

        def doubling(i: int) -> Callable[[Tensor], Tensor]:
            def hook(grad: Tensor) -> Tensor:
                calls[i] += 1
                return grad * 2

            return hook

        for i, leaf in enumerate(leaves):
            leaf.register_hook(doubling(i))
        loss = scalar(net(*leaves))
        return torch.autograd.grad(loss, leaves, create_graph=create_graph), calls

    (ours, our_calls), (theirs, their_calls) = run(CASES[name].ours), run(CASES[name].theirs)
    assert our_calls == their_calls == [1] * len(ours)
    assert_close(ours, theirs)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_operands_that_depend_on_one_another(name: str, create_graph: bool) -> None:
    """As where layers share weights: the input comes from the very weights it meets."""

    def run(net: Net) -> tuple[Tensor, ...]:
        x, *params = leaves = operands(name)
        dependent = x + 0.1 * x.square() * sum(p.sum() for p in params)
        loss = scalar(net(dependent, *params))
        grads = torch.autograd.grad(loss, leaves, create_graph=create_graph)
        if create_graph:
            penalty = sum(grad.square().sum() for grad in grads)
            grads += torch.autograd.grad(penalty, leaves)
        return grads

    assert_close(run(CASES[name].ours), run(CASES[name].theirs))


def test_one_weight_for_two_layers() -> None:
    x, weight = torch.randn(5, 4), torch.randn(4, 4, requires_grad=True)
    bias = torch.randn(4, requires_grad=True)

    def gradients(net: Net) -> tuple[Tensor, ...]:
        loss = scalar(net(x, weight, weight, bias, bias))
        return torch.autograd.grad(loss, [weight, bias], create_graph=True)

    assert_close(gradients(CASES["mlp"].ours), gradients(CASES["mlp"].theirs))


@pytest.mark.parametrize("name", CASES)
def test_many_gradients_at_once(name: str) -> None:
    """What vectorized jacobians do."""

    def run(net: Net) -> tuple[Tensor, ...]:
        leaves = operands(name)
        y = net(*leaves)
        grads = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(6))
        return torch.autograd.grad(y, leaves, grads, is_grads_batched=True)

    assert_close(run(CASES[name].ours), run(CASES[name].theirs))
