# SPDX-License-Identifier: MIT
"""Differentiation, compilation and transforms of lstm and lstm_cell."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

import fastconv.functional as fastF
from fastconv import nn as fast_nn

OPS = torch.ops.fastconv
LENGTHS = torch.tensor([2, 0, 3])
MODES = {
    "plain": ({}, None),
    "layers": ({"num_layers": 2}, None),
    "both_ways": ({"bidirectional": True}, None),
    "projection": ({"proj_size": 2}, None),
    "no_bias": ({"bias": False}, None),
    "batch_first": ({"batch_first": True}, None),
    "lengths": ({}, LENGTHS),
    "lengths_both_ways": ({"bidirectional": True}, LENGTHS),
    "everything": (
        {"num_layers": 2, "bidirectional": True, "proj_size": 2, "bias": False},
        LENGTHS,
    ),
}


def problem(mode: str) -> tuple:
    """A function of all differentiable tensors of one mode, and those tensors."""
    options, lengths = MODES[mode]
    torch.manual_seed(0)
    layer = fast_nn.LSTM(2, 3, **options).double()
    cells = layer.num_layers * (2 if layer.bidirectional else 1)
    shape = (3, 3, 2)  # batch and steps alike, so that batch_first needs no other
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    sizes = (layer.proj_size or 3, 3)
    states = [torch.randn(cells, 3, n, dtype=torch.float64, requires_grad=True) for n in sizes]
    params = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def run(x: Tensor, h: Tensor, c: Tensor, *params: Tensor) -> tuple[Tensor, ...]:
        return fastF.lstm(
            x, (h, c), params, layer.bias, layer.num_layers, 0.0, False, layer.bidirectional,
            layer.batch_first, lengths=lengths,
        )  # fmt: skip

    return run, (x, *states, *params)


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode: str) -> None:
    run, tensors = problem(mode)
    assert torch.autograd.gradcheck(run, tensors)


@pytest.mark.parametrize("mode", MODES)
def test_gradgradcheck(mode: str) -> None:
    run, tensors = problem(mode)
    fast = {"fast_mode": True} if mode == "everything" else {}
    assert torch.autograd.gradgradcheck(run, tensors, **fast)


def test_gradcheck_packed() -> None:
    params = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((12, 2), (12, 3))]
    rows = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    for reverse in (False, True):

        def run(rows: Tensor, *params: Tensor, reverse: bool = reverse) -> tuple[Tensor, ...]:
            sizes = torch.tensor([3, 2, 1])
            return OPS.lstm_layer(rows, None, None, *params, batch_sizes=sizes, reverse=reverse)

        assert torch.autograd.gradcheck(run, (rows, *params))
        assert torch.autograd.gradgradcheck(run, (rows, *params))


def test_gradcheck_cell() -> None:
    shapes = ((3, 2), (3, 4), (3, 4), (16, 2), (16, 4), (16,), (16,))
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]

    def run(x: Tensor, h: Tensor, c: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        return fastF.lstm_cell(x, (h, c), *params)

    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors)


def test_third_derivative() -> None:
    found = []
    for kind in (fast_nn.LSTM, torch.nn.LSTM):
        torch.manual_seed(0)
        layer = kind(2, 3).double()
        x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
        # torch's own first derivative is differentiable only off its fused path.
        y = layer(x)[0].pow(3).sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(y, x, create_graph=True)
            y = grad.square().sum()
        found.append(y.detach())
    torch.testing.assert_close(*found)


def test_only_what_is_needed_is_differentiated() -> None:
    layer = fast_nn.LSTM(3, 4)
    x = torch.randn(5, 2, 3, requires_grad=True)
    full = torch.autograd.grad(layer(x)[0].sum(), [x, *layer.parameters()])
    for i, tensor in enumerate([x, *layer.parameters()]):
        (alone,) = torch.autograd.grad(layer(x)[0].sum(), tensor)
        assert torch.equal(alone, full[i])
    layer.requires_grad_(False)
    (grad,) = torch.autograd.grad(layer(x)[1][1].sum(), x)
    assert grad.shape == x.shape
    layer.weight_hh_l0.requires_grad_()
    output = layer(x.detach())[0]
    output.sum().backward()
    assert layer.weight_hh_l0.grad is not None
    assert layer.weight_ih_l0.grad is None


def test_biases_do_not_share_a_gradient() -> None:
    layer = fast_nn.LSTM(3, 4)
    layer(torch.randn(5, 2, 3))[0].sum().backward()
    a, b = layer.bias_ih_l0.grad, layer.bias_hh_l0.grad
    assert torch.equal(a, b)
    assert a.data_ptr() != b.data_ptr()


def test_changed_weights_are_noticed_before_backward() -> None:
    layer = fast_nn.LSTM(3, 4)
    output = layer(torch.randn(5, 2, 3))[0]
    with torch.no_grad():
        layer.weight_hh_l0.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_graph_can_be_retained() -> None:
    layer = fast_nn.LSTM(3, 4)
    x = torch.randn(5, 2, 3, requires_grad=True)
    y = layer(x)[0].sum()
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y, x)[0], first)


@pytest.mark.parametrize("form", ["padded", "lengths", "packed", "projected", "no_grad"])
def test_opcheck(form: str) -> None:
    torch.manual_seed(0)
    grad = form != "no_grad"
    out = 2 if form == "projected" else 4

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, requires_grad=grad)

    x = leaf(5, 3) if form == "packed" else leaf(3, 2, 3)
    w_hr = leaf(2, 4) if form == "projected" else None
    lengths = torch.tensor([1, 3]) if form == "lengths" else None
    sizes = torch.tensor([2, 2, 1]) if form == "packed" else None
    arguments = (
        x, leaf(2, out), leaf(2, 4), leaf(16, 3), leaf(16, out), leaf(16), leaf(16), w_hr, lengths,
        sizes, form == "lengths",
    )  # fmt: skip
    check = torch.library.opcheck
    check(OPS.lstm_layer.default, arguments)
    if form == "lengths":
        return  # the private operators leave room in their results that no value is written to
    check(OPS._lstm_layer_training.default, arguments)
    results = OPS._lstm_layer_training(*arguments)
    output, h_n, c_n, gates, cells = (t.detach() for t in results)
    grads = [torch.randn_like(t).requires_grad_(grad) for t in (output, h_n, c_n)]
    mask = [True] * 7 + [w_hr is not None]
    check(
        OPS._lstm_layer_backward.default, (*grads, *arguments, output, gates, cells, mask),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend: str) -> None:
    layer = fast_nn.LSTM(3, 8, num_layers=2, bidirectional=True)

    def model(x: Tensor, lengths: Tensor) -> Tensor:
        output, (h, _) = layer(x)
        return output.square().sum() + layer(x, lengths=lengths)[0].sum() + h.sum()

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for batch in (2, 3, 5):
        x = torch.randn(4, batch, 3, requires_grad=True)
        lengths = torch.arange(batch) % 5
        tensors = [x, *layer.parameters()]
        expected = torch.autograd.grad(model(x, lengths), tensors)
        found = torch.autograd.grad(compiled(x, lengths), tensors)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_compile_cell() -> None:
    cell = fast_nn.LSTMCell(3, 4)

    def rollout(x: Tensor) -> Tensor:
        h, c = cell(x[0])
        for step in x[1:]:
            h, c = cell(step, (h, c))
        return h

    x = torch.randn(5, 2, 3)
    compiled = torch.compile(rollout, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), rollout(x))


def test_export_keeps_one_operator() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = fast_nn.LSTM(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    model = Model().eval()
    x = torch.randn(5, 2, 3)
    program = torch.export.export(model, (x,))
    names = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert names.count("fastconv.lstm_layer.default") == 1
    torch.testing.assert_close(program.module()(x), model(x))


def test_function_transforms() -> None:
    ours, theirs = fast_nn.LSTM(3, 4), torch.nn.LSTM(3, 4)
    ours.load_state_dict(theirs.state_dict())
    params = {name: p.detach() for name, p in ours.named_parameters()}
    x = torch.randn(6, 5, 2, 3)

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(ours, params, (x,))[0].square().sum()

    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x)
    for i in range(len(x)):
        theirs.zero_grad()
        theirs(x[i])[0].square().sum().backward()
        for name, p in theirs.named_parameters():
            torch.testing.assert_close(per_sample[name][i], p.grad)
    batched = torch.vmap(lambda y: ours(y)[0])(x)
    torch.testing.assert_close(batched, torch.stack([ours(y)[0] for y in x]))
    tangent = torch.randn_like(x[0])
    _, direction = torch.func.jvp(lambda y: ours(y)[0], (x[0],), (tangent,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x[0], tangent)
        torch.testing.assert_close(forward_ad.unpack_dual(ours(dual)[0]).tangent, direction)
    small = 1e-3
    difference = (ours(x[0] + small * tangent)[0] - ours(x[0] - small * tangent)[0]) / (2 * small)
    torch.testing.assert_close(direction, difference, rtol=1e-3, atol=1e-3)


def test_autocast_computes_in_float32() -> None:
    layer, cell = fast_nn.LSTM(3, 4), fast_nn.LSTMCell(3, 4)
    x = torch.randn(5, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for y in (x, x.bfloat16()):
            assert layer(y)[0].dtype == torch.float32
            assert cell(y[0])[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_runs_on_torch(dtype: torch.dtype) -> None:
    ours = fast_nn.LSTM(3, 4, num_layers=2, bidirectional=True).to(dtype)
    theirs = torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 3, 3, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(ours(x)[0], theirs(x)[0])
        lengths = torch.tensor([5, 0, 2])
        output, (h, _) = ours(x, lengths=lengths)
        assert output.shape == (5, 3, 8)
        assert not output[2:, 2].any()
        assert not h[:, 1].any()
        exact = fast_nn.LSTM(3, 4, num_layers=2, bidirectional=True)
        exact.load_state_dict(theirs.float().state_dict())
        torch.testing.assert_close(
            output.float(), exact(x.float(), lengths=lengths)[0], rtol=0.05, atol=0.05
        )


def test_trains_in_step_with_torch() -> None:
    losses = []
    for kind in (fast_nn.LSTM, torch.nn.LSTM):
        torch.manual_seed(0)
        layer = kind(2, 16, num_layers=2)
        head = torch.nn.Linear(16, 1)
        optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.01)
        x = torch.randn(12, 8, 2)
        y = x.cumsum(0).sum(-1, keepdim=True).tanh()
        for _ in range(60):
            optimizer.zero_grad()
            loss = (head(layer(x)[0]) - y).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("layers", [1, 2])
def test_batched_gradients(layers: int) -> None:
    """``is_grads_batched``, which vectorized jacobians use, runs the backward pass under vmap."""
    torch.manual_seed(0)
    stock = torch.nn.LSTM(3, 4, layers)
    ours = fast_nn.LSTM(3, 4, layers)
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(5, 2, 3)
    vectors = torch.randn(6, 5, 2, 4)
    leaf = x.clone().requires_grad_()
    output, _ = ours(leaf)
    wanted = [leaf, *ours.parameters()]
    batched = torch.autograd.grad(output, wanted, vectors, is_grads_batched=True, retain_graph=True)
    output, _ = stock(x.requires_grad_())
    for i, vector in enumerate(vectors):
        expected = torch.autograd.grad(output, [x, *stock.parameters()], vector, retain_graph=True)
        for ours_, theirs in zip(batched, expected, strict=True):
            torch.testing.assert_close(ours_[i], theirs, rtol=1e-4, atol=1e-5)
