# SPDX-License-Identifier: MIT
"""Results that are overwritten in place before the backward pass: allowed where torch allows it.

torch's pooling and leaky relu do not read their results in the backward pass, its relu, sigmoid and
tanh do. One operator in their place must not be stricter: dropout in place behind a pooling layer,
or ``x += y``, is code that exists.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastconv
from fastconv.functional import conv_block2d

OVERWRITING: dict[str, Callable[[Tensor], object]] = {
    "dropout": lambda y: nn.functional.dropout(y, 0.5, inplace=True),
    "hardtanh": lambda y: nn.functional.hardtanh(y, -0.2, 0.2, inplace=True),
    "addition": lambda y: y.add_(1.0),
    "zeros": lambda y: y.detach().zero_(),
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
POOLS = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}
# Input channels and kernel: one that the fused kernels serve with relu and 2x2 windows, and one
# that the composed operators do.
SIZES = {"fused": (3, 5, 1), "composed": (3, 3, 2)}


def gradients(model: Callable[[Tensor], Tensor], params: list[Tensor], x: Tensor) -> list[Tensor]:
    torch.manual_seed(3)
    x = x.detach().requires_grad_()
    y = model(x)
    loss = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()
    return [y, *torch.autograd.grad(loss, [x, *params])]


def assert_equal_enough(actual: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        scale = theirs.square().mean().sqrt().item() + 1e-6
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("overwrite", OVERWRITING)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_blocks(activation: str, pool: str, size: str, overwrite: str) -> None:
    channels, kernel, stride = SIZES[size]
    conv = nn.Conv2d(channels, 6, kernel, stride=stride)
    params = list(conv.parameters())
    x = torch.randn(4, channels, 21, 20)

    def ours(x: Tensor) -> Tensor:
        y = conv_block2d(x, *params, stride=stride, activation=activation, pool=pool, pool_size=2)
        OVERWRITING[overwrite](y)
        return y

    def theirs(x: Tensor) -> Tensor:
        y = POOLS[pool](2)(ACTIVATIONS[activation]()(conv(x)))
        OVERWRITING[overwrite](y)
        return y

    assert_equal_enough(gradients(ours, params, x), gradients(theirs, params, x))


def test_the_gradient_depends_on_the_result_that_was_overwritten() -> None:
    """Negative control: what the backward pass would compute from the overwritten result."""
    conv = nn.Conv2d(3, 6, 5)
    x = torch.randn(4, 3, 21, 20)

    def run(x: Tensor) -> Tensor:
        return conv_block2d(x, conv.weight, conv.bias, activation="relu", pool="max")

    ops = torch.ops.fastconv
    output, taps = ops._conv_block2d_training(x, *conv.parameters(), [0, 0], "relu", 0.01, "max")
    rest = (taps, x, *conv.parameters(), [0, 0], "relu", 0.01, "max", [True, True, True])
    grad = torch.linspace(-1, 1, output.numel()).view_as(output)
    right = gradients(run, list(conv.parameters()), x)[1:]
    assert_equal_enough(ops._conv_block2d_backward(grad, output, *rest), right)
    with pytest.raises(AssertionError):
        assert_equal_enough(ops._conv_block2d_backward(grad, output * 0, *rest), right)


def test_a_retained_graph_notices_late_changes() -> None:
    conv = nn.Conv2d(3, 6, 5)
    y = conv_block2d(
        torch.randn(4, 3, 21, 20), conv.weight, conv.bias, activation="relu", pool="max"
    )
    loss = (y * 2).sum()
    first = torch.autograd.grad(loss, [*conv.parameters()], retain_graph=True)
    with torch.no_grad():
        y.zero_()
    second = torch.autograd.grad(loss, [*conv.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_leaky_relu_without_pooling() -> None:
    conv = nn.Conv2d(3, 6, 3)
    params = list(conv.parameters())
    x = torch.randn(4, 3, 9, 10)
    ours = gradients(lambda x: conv_block2d(x, *params, activation="leaky_relu").mul_(2), params, x)
    theirs = gradients(lambda x: nn.functional.leaky_relu(conv(x)).mul_(2), params, x)
    assert_equal_enough(ours, theirs)


@pytest.mark.parametrize("state", ["h", "c"])
def test_states_of_a_cell(state: str) -> None:
    """As where an episode ends: the states of some sequences start anew."""
    cell = nn.LSTMCell(4, 5)
    fast = copy.deepcopy(cell)
    fastconv.accelerate(fast)

    def run(cell: nn.Module, x: Tensor) -> Tensor:
        states = torch.zeros(3, 5), torch.zeros(3, 5)
        outputs = []
        for step, row in enumerate(x):
            states = cell(row, states)
            outputs.append(states[0] * 1)
            states[0 if state == "h" else 1][step % 3] = 0.25
        return torch.cat([*outputs, *states])

    x = torch.randn(5, 3, 4)
    ours = gradients(lambda x: run(fast, x), list(fast.parameters()), x)
    assert_equal_enough(ours, gradients(lambda x: run(cell, x), list(cell.parameters()), x))


@pytest.mark.parametrize("compiled", [False, True], ids=["accelerate", "compile"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_models_with_dropout_in_place(activation: str, pool: str, compiled: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 5),
        ACTIVATIONS[activation](),
        POOLS[pool](2),
        nn.Dropout(0.5, inplace=True),
        nn.Conv2d(6, 4, 3),
        nn.LeakyReLU(),
        nn.Hardtanh(-0.5, 0.5, inplace=True),
    )
    x = torch.randn(4, 3, 21, 20)
    expected = gradients(model, list(model.parameters()), x)
    ours = copy.deepcopy(model)
    if compiled:
        torch._dynamo.reset()
        run = torch.compile(ours, backend="fastconv")
    else:
        assert fastconv.accelerate(ours).fused
        run = ours
    assert_equal_enough(gradients(run, list(ours.parameters()), x), expected)
