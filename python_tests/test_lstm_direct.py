# SPDX-License-Identifier: MIT
"""nn.LSTM on plain tensors, which runs past the dispatcher: the same results, graphs and errors."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

import fastconv.functional as fastF
from fastconv import nn as fast_nn

FORMS = {
    "plain": {},
    "layers": {"num_layers": 2},
    "both_ways": {"num_layers": 2, "bidirectional": True},
    "projection": {"proj_size": 2},
    "no_bias": {"bias": False},
    "batch_first": {"batch_first": True},
}


def both(layer: torch.nn.LSTM, x: Tensor, hx: tuple | None, lengths: Tensor | None) -> list:
    """Results of the layer and of the function, which goes through the operators."""
    output, states = layer(x, hx, lengths=lengths)
    by_function = fastF.lstm(
        x, hx, list(layer.parameters()), layer.bias, layer.num_layers, 0.0, False,
        layer.bidirectional, layer.batch_first, lengths=lengths,
    )  # fmt: skip
    return [(output, *states), by_function]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", ["nothing", "states", "lengths"])
def test_layer_is_the_function(form: str, dtype: torch.dtype, given: str) -> None:
    torch.manual_seed(0)
    layer = fast_nn.LSTM(3, 4, **FORMS[form], dtype=dtype)
    x = torch.randn(3, 3, 3, dtype=dtype, requires_grad=True)
    cells = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = (layer.proj_size or 4, 4)
    states = tuple(torch.randn(cells, 3, n, dtype=dtype, requires_grad=True) for n in sizes)
    hx = states if given == "states" else None
    lengths = torch.tensor([2, 0, 3]) if given == "lengths" else None
    tensors = [x, *layer.parameters(), *(states if hx is not None else ())]
    found = []
    for results in both(layer, x, hx, lengths):
        # Each result has a weight of its own, so that mixed up states would show.
        loss = sum(
            (i + 1) * (t * torch.arange(t.numel()).view_as(t)).sum() for i, t in enumerate(results)
        )
        found.append([*results, *torch.autograd.grad(loss, tensors)])
    assert [t.shape for t in found[0]] == [t.shape for t in found[1]]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        for a, b in zip(*both(layer, x, hx, lengths), strict=True):
            assert torch.equal(a, b)
            assert not a.requires_grad


def test_every_state_alone_has_a_gradient() -> None:
    layer = fast_nn.LSTM(3, 4)
    x = torch.randn(5, 2, 3)
    for pick in (0, 1):
        grads = []
        for results in both(layer, x, None, None):
            grads.append(torch.autograd.grad(results[1 + pick].sum(), list(layer.parameters())))
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
        assert grads[0][0].any()


def layer_call() -> Tensor:
    return fast_nn.LSTM(3, 4)(torch.randn(5, 2, 3))[0]


def cell_call() -> Tensor:
    return fast_nn.LSTMCell(3, 4)(torch.randn(2, 3))[0]


@pytest.mark.parametrize("call", [layer_call, cell_call])
def test_saved_tensors_pass_the_hooks(call) -> None:
    saved: list[Tensor] = []
    restored: list[Tensor] = []

    def pack(tensor: Tensor) -> int:
        saved.append(tensor)
        return len(saved) - 1

    def unpack(index: int) -> Tensor:
        restored.append(saved[index])
        return saved[index].clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        output = call()
    sizes = [tuple(t.shape) for t in saved]
    rows = 10 if call is layer_call else 2
    # The gates, which are most of what is kept, among them.
    assert (rows, 16) in sizes
    output.sum().backward()
    assert len(restored) == len(saved)


@pytest.mark.parametrize("call", [layer_call, cell_call])
def test_saved_tensors_can_wait_elsewhere(call) -> None:
    torch.manual_seed(0)
    with torch.autograd.graph.save_on_cpu():
        call().sum().backward()


@pytest.mark.parametrize("call", [layer_call, cell_call])
def test_a_graph_is_released_by_its_backward_pass(call) -> None:
    references = []

    def pack(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        references.append(weakref.ref(copy))
        return copy

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda copy: copy):
        output = call()
    loss = output.sum()
    loss.backward()
    gc.collect()
    assert references
    assert all(reference() is None for reference in references)
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("call", [layer_call, cell_call])
def test_second_backward_is_refused_without_hooks(call) -> None:
    loss = call().sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        loss.backward()


def test_changed_output_is_noticed() -> None:
    output = layer_call()
    doubled = output.mul(2.0)
    with torch.no_grad():
        output.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        doubled.sum().backward()


def test_anomaly_mode_names_the_layer() -> None:
    layer = fast_nn.LSTM(3, 4)
    x = torch.randn(5, 2, 3)
    with torch.autograd.set_detect_anomaly(True):
        output = layer(x)[0]
        output.register_hook(lambda grad: grad * float("nan"))
        loss = output.sum()
        with pytest.warns(UserWarning, match="Error detected in LstmLayerBackward"):  # noqa: SIM117
            with pytest.raises(RuntimeError, match="returned nan"):
                loss.backward()


def test_profilers_see_the_operator() -> None:
    layer = fast_nn.LSTM(3, 4)
    with torch.profiler.profile() as profile:
        layer(torch.randn(5, 2, 3))
    assert "fastconv::lstm_layer" in [event.name for event in profile.events()]


class Doubled(torch.nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_parameters_from_elsewhere_are_used() -> None:
    layer, other = fast_nn.LSTM(3, 4), fast_nn.LSTM(3, 4)
    x = torch.randn(5, 2, 3)
    called = torch.func.functional_call(layer, dict(other.named_parameters()), (x,))[0]
    assert torch.equal(called, other(x)[0])
    with torch.no_grad():
        other.weight_ih_l0.copy_(2 * layer.weight_ih_l0)
        for name in ("weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(other, name).copy_(getattr(layer, name))
    parametrize.register_parametrization(layer, "weight_ih_l0", Doubled())
    assert torch.equal(layer(x)[0], other(x)[0])


def test_dropout_between_layers_stays() -> None:
    layer = fast_nn.LSTM(3, 4, num_layers=2, dropout=0.5)
    x = torch.randn(5, 2, 3)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


def test_errors_are_torchs() -> None:
    ours, theirs = fast_nn.LSTM(3, 4), torch.nn.LSTM(3, 4)
    x = torch.randn(5, 2, 3)
    good, bad = torch.zeros(1, 2, 4), torch.zeros(1, 3, 4)
    for arguments in (
        (torch.randn(5, 2, 4),),
        (x.double(),),
        (torch.randn(3),),
        (x, (bad, good)),
        (x, (good, bad)),
        (x, (good[0], good[0])),
    ):
        messages = []
        for layer in (ours, theirs):
            with pytest.raises((RuntimeError, ValueError)) as error:
                layer(*arguments)
            messages.append((type(error.value), str(error.value)))
        assert messages[0] == messages[1]
