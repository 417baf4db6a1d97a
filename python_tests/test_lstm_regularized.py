# SPDX-License-Identifier: MIT
"""Recurrent dropout, zoneout and layer normalisation of nn.LSTM against plain loops in torch."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from lstm_cases import pack_and_run
from reference import assert_parity
from torch import Tensor

import fastconv.functional as fastF
from fastconv import nn as fast_nn

EXTRAS = {
    "recurrent_dropout": {"recurrent_dropout": 0.4},
    "zoneout": {"zoneout": 0.3},
    "zoneout_c_only": {"zoneout": (0.5, 0.0)},
    "layer_norm": {"layer_norm": True},
    "all": {"recurrent_dropout": 0.25, "zoneout": (0.2, 0.1), "layer_norm": True},
}
STRUCTURES = {
    "plain": {},
    "no_bias": {"bias": False},
    "projection": {"proj_size": 3},
    "deep": {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    "deep_projection": {"num_layers": 2, "bidirectional": True, "proj_size": 3},
}
LENGTHS = torch.tensor([2, 5, 0, 4])


def normalised(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    return y if bias is None else y + bias


def reference_direction(
    layer: fast_nn.LSTM, suffix: str, x: Tensor, h: Tensor, c: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer and direction, one sequence at a time. Draws what the layer draws, in its order."""

    def get(name: str) -> Tensor | None:
        return getattr(layer, f"{name}_{suffix}", None)

    pair = layer.zoneout if isinstance(layer.zoneout, tuple) else (layer.zoneout,) * 2
    steps, batch = x.shape[:2]
    mask = torch.ones_like(h)
    if layer.training and layer.recurrent_dropout > 0:
        mask = torch.dropout(torch.ones_like(h), layer.recurrent_dropout, True)
    keeps = []
    for p, state in ((pair[0], c), (pair[1], h)):
        # The weight of the old value in every step.
        old = torch.full((steps, *state.shape), p, dtype=x.dtype)
        if layer.training and p > 0:
            old = (torch.rand(steps, *state.shape) < p).to(x.dtype)
        keeps.append(old)
    w_ih, w_hh, b_ih, b_hh = (get(n) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    columns, last_h, last_c = [], [], []
    for b in range(batch):
        outputs = {}
        hb, cb = h[b], c[b]
        order = list(range(int(lengths[b])))
        for t in reversed(order) if suffix.endswith("reverse") else order:
            from_x, from_h = w_ih @ x[t, b], w_hh @ (hb * mask[b])
            if layer.layer_norm:
                from_x = normalised(from_x, get("weight_ln_ih"), b_ih)
                from_h = normalised(from_h, get("weight_ln_hh"), b_hh)
            elif b_ih is not None:
                from_x, from_h = from_x + b_ih, from_h + b_hh
            i, f, g, o = (from_x + from_h).view(4, -1)
            new_c = torch.sigmoid(f) * cb + torch.sigmoid(i) * torch.tanh(g)
            seen = new_c
            if layer.layer_norm:
                seen = normalised(new_c, get("weight_ln_c"), get("bias_ln_c"))
            new_h = torch.sigmoid(o) * torch.tanh(seen)
            if layer.proj_size:
                new_h = get("weight_hr") @ new_h
            cb = keeps[0][t, b] * cb + (1 - keeps[0][t, b]) * new_c
            hb = keeps[1][t, b] * hb + (1 - keeps[1][t, b]) * new_h
            outputs[t] = hb
        columns.append(torch.stack([outputs.get(t, torch.zeros_like(hb)) for t in range(steps)]))
        last_h.append(hb)
        last_c.append(cb)
    return torch.stack(columns, 1), torch.stack(last_h), torch.stack(last_c)


def reference(layer: fast_nn.LSTM, x: Tensor, hx: tuple, lengths: Tensor) -> tuple:
    last_h, last_c = [], []
    for k in range(layer.num_layers):
        if k > 0 and layer.training and layer.dropout > 0:
            x = torch.dropout(x, layer.dropout, True)
        both = []
        for direction in ("", "_reverse") if layer.bidirectional else ("",):
            cell = len(last_h)
            y, h, c = reference_direction(
                layer, f"l{k}{direction}", x, hx[0][cell], hx[1][cell], lengths
            )
            both.append(y)
            last_h.append(h)
            last_c.append(c)
        x = torch.cat(both, -1)
    return x, (torch.stack(last_h), torch.stack(last_c))


def make(extras: str, structure: str, **more: object) -> fast_nn.LSTM:
    torch.manual_seed(0)
    layer = fast_nn.LSTM(4, 6, **STRUCTURES[structure], **EXTRAS[extras], **more)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "_ln_" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return layer


def batch(layer: fast_nn.LSTM, dtype: torch.dtype = torch.float32) -> tuple[Tensor, tuple]:
    torch.manual_seed(1)
    cells = layer.num_layers * (2 if layer.bidirectional else 1)
    x = torch.randn(5, 4, 4)
    h, c = (torch.randn(cells, 4, n) for n in (layer.proj_size or 6, 6))
    return leaf(x, dtype), (leaf(h, dtype), leaf(c, dtype))


def leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).requires_grad_()


def everything(run, layer: fast_nn.LSTM, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Results and gradients of run(layer, x, hx)."""
    layer = copy.deepcopy(layer).to(dtype)
    x, hx = batch(layer, dtype)
    torch.manual_seed(2)
    output, (h, c) = run(layer, x, hx)
    results = {"output": output, "h_n": h, "c_n": c}
    torch.manual_seed(3)
    grads = [torch.randn(t.shape).to(dtype) for t in results.values()]
    leaves = {"input": x, "h_0": hx[0], "c_0": hx[1], **dict(layer.named_parameters())}
    found = torch.autograd.grad(list(results.values()), list(leaves.values()), grads)
    results.update({f"grad {n}": g for n, g in zip(leaves, found, strict=True)})
    return {name: t.detach() for name, t in results.items()}


def assert_equals_reference(layer: fast_nn.LSTM, lengths: Tensor | None) -> None:
    full = torch.full((4,), 5) if lengths is None else lengths
    more = {} if lengths is None else {"lengths": lengths}

    def loops(layer: fast_nn.LSTM, x: Tensor, hx: tuple) -> tuple:
        return reference(layer, x, hx, full)

    def call(layer: fast_nn.LSTM, x: Tensor, hx: tuple) -> tuple:
        return layer(x, hx, **more)

    oracle = everything(loops, layer, torch.float64)
    for name, tensor in everything(call, layer, torch.float64).items():
        torch.testing.assert_close(tensor, oracle[name], atol=1e-10, rtol=1e-10, msg=name)
    ours, theirs = everything(call, layer), everything(loops, layer)
    for name in ours:
        if layer.layer_norm:
            # torch's own operators on both sides; six values of little spread magnify rounding.
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-4, msg=name)
        else:
            assert_parity(ours[name], theirs[name], oracle[name], name)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("extras", EXTRAS)
def test_equals_plain_loops(extras: str, structure: str, training: bool) -> None:
    assert_equals_reference(make(extras, structure).train(training), None)


@pytest.mark.parametrize("structure", ["plain", "deep_projection"])
@pytest.mark.parametrize("extras", EXTRAS)
def test_lengths_equal_plain_loops(extras: str, structure: str) -> None:
    assert_equals_reference(make(extras, structure), LENGTHS)


@pytest.mark.parametrize("extras", EXTRAS)
def test_packed_sequences_equal_lengths(extras: str) -> None:
    layer = make(extras, "deep_projection").eval()
    by_lengths, packed = (
        everything(run, layer, torch.float64)
        for run in (
            lambda layer, x, hx: layer(x, hx, lengths=LENGTHS),
            lambda layer, x, hx: pack_and_run(layer, x, hx, LENGTHS),
        )
    )
    for name, tensor in packed.items():
        torch.testing.assert_close(by_lengths[name], tensor, atol=1e-12, rtol=1e-10, msg=name)


def test_negative_control() -> None:
    """Zoneout of the other state and a forgotten shift are noticed."""
    layer = make("zoneout_c_only", "plain").eval()
    other = copy.deepcopy(layer)
    other.zoneout = (0.0, 0.5)
    x, hx = batch(layer)
    full = torch.full((4,), 5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(layer(x, hx)[0], reference(other, x, hx, full)[0])
    layer = make("layer_norm", "plain")
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.bias_ln_c_l0.zero_()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(layer(x, hx)[0], reference(other, x, hx, full)[0])


def test_one_mask_serves_all_steps() -> None:
    """With W_hh = identity in the output gate, a dropped unit never sees its past."""
    layer = fast_nn.LSTM(1, 64, recurrent_dropout=0.5, bias=False)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.weight_ih_l0[128:192] = 1.0
        layer.weight_hh_l0[192:] = torch.eye(64)
    torch.manual_seed(0)
    output = layer(torch.ones(6, 1, 1))[0][1:, 0]
    sees_past = output[0] > output[0].min() + 1e-6
    assert 16 < sees_past.sum() < 48
    for row in output:
        assert torch.equal(row > row.min() + 1e-6, sees_past)


def test_zoneout_keeps_the_expected_share() -> None:
    layer = fast_nn.LSTM(1, 4000, zoneout=(0.0, 0.3))
    h = torch.full((1, 1, 4000), 7.0)
    torch.manual_seed(0)
    kept = (layer(torch.ones(1, 1, 1), (h, torch.zeros_like(h)))[1][0] == 7.0).float().mean()
    assert abs(kept - 0.3) < 0.03


def test_seeds_reproduce_and_differ() -> None:
    layer = make("all", "deep")
    x, hx = batch(layer)
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append(layer(x, hx)[0])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    layer.eval()
    assert torch.equal(layer(x, hx)[0], layer(x, hx)[0])


def test_off_is_the_plain_layer() -> None:
    torch.manual_seed(0)
    plain = fast_nn.LSTM(4, 6, num_layers=2)
    torch.manual_seed(0)
    layer = fast_nn.LSTM(4, 6, num_layers=2, recurrent_dropout=0.5)
    x = torch.randn(5, 4, 4)
    assert not torch.equal(layer(x)[0], plain(x)[0])
    assert torch.equal(layer.eval()(x)[0], plain(x)[0])
    assert list(layer.state_dict()) == list(plain.state_dict())
    assert "recurrent_dropout=0.5" in repr(layer)
    assert "zoneout" not in repr(layer)


@pytest.mark.parametrize("extras", EXTRAS)
def test_gradcheck(extras: str) -> None:
    layer = make(extras, "projection", batch_first=True).double()
    names = [name for name, _ in layer.named_parameters()]
    x, hx = batch(layer, torch.float64)
    x = x.detach()[:3, :2].requires_grad_()
    hx = tuple(s.detach()[:, :3].requires_grad_() for s in hx)

    def run(x: Tensor, h: Tensor, c: Tensor, *params: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        weights = dict(zip(names, params, strict=True))
        y, (h, c) = torch.func.functional_call(layer, weights, (x, (h, c)))
        return y, h, c

    tensors = (x, *hx, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


def test_layer_norm_in_checkpoints_and_copies() -> None:
    layer = make("all", "deep_projection").eval()
    keys = list(layer.state_dict())
    assert {f"weight_ln_{n}_l1_reverse" for n in ("ih", "hh", "c")} < set(keys)
    assert layer.weight_ln_ih_l0.shape == (24,)
    assert layer.bias_ln_c_l0.shape == (6,)
    x, hx = batch(layer)
    expected = layer(x, hx)[0]
    fresh = make("all", "deep_projection").eval()
    fresh.reset_parameters()
    assert (fresh.weight_ln_hh_l1 == 1).all()
    assert not fresh.bias_ln_c_l1.any()
    fresh.load_state_dict(layer.state_dict())
    for twin in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x, hx)[0], expected)
    plain = fast_nn.LSTM(4, 6, num_layers=2, bidirectional=True, proj_size=3)
    missing = layer.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == [key for key in keys if "_ln_" in key]


@pytest.mark.parametrize("extras", ["zoneout", "all"])
def test_other_forms(extras: str) -> None:
    """One sequence, no states, an empty batch, bfloat16, batch_first."""
    layer = make(extras, "plain").eval()
    x = torch.randn(5, 4, 4)
    y, (h, c) = layer(x)
    one, (h_one, c_one) = layer(x[:, 1])
    torch.testing.assert_close(one, y[:, 1])
    torch.testing.assert_close(h_one, h[:, 1])
    torch.testing.assert_close(c_one, c[:, 1])
    assert layer(x[:, :0])[0].shape == (5, 0, 6)
    half = copy.deepcopy(layer).bfloat16()(x.bfloat16())[0]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), y, atol=0.05, rtol=0.05)
    layer.batch_first = True
    torch.testing.assert_close(layer(x.transpose(0, 1))[0], y.transpose(0, 1))


@pytest.mark.parametrize("extras", EXTRAS)
def test_compiles_in_one_graph(extras: str) -> None:
    layer = make(extras, "deep").eval()
    x, hx = batch(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, hx)[0], layer(x, hx)[0])
    torch.testing.assert_close(
        compiled(x, hx, lengths=LENGTHS)[0], layer(x, hx, lengths=LENGTHS)[0]
    )


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        ({"recurrent_dropout": 1.0}, ValueError, r"LSTM: expected recurrent_dropout a number in "),
        ({"recurrent_dropout": True}, ValueError, r"recurrent_dropout a number in \[0, 1\), got T"),
        ({"zoneout": -0.1}, ValueError, r"LSTM: expected zoneout a number in \[0, 1\), got -0.1"),
        ({"zoneout": (0.1,)}, ValueError, r"expected zoneout a number or a pair \(c, h\)"),
        ({"layer_norm": 1}, TypeError, "LSTM: expected layer_norm a bool, got 1"),
    ],
)
def test_bad_options(build: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        fast_nn.LSTM(3, 4, **build)


def test_bad_calls() -> None:
    layer = make("layer_norm", "plain")
    x, hx = batch(layer)
    params = [layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0]
    norms = [torch.ones(24), torch.ones(24), torch.ones(6), torch.zeros(6)]

    def call(**options: object) -> None:
        fastF.lstm(**{"input": x, "hx": hx, "params": params, "norms": norms, **options})

    call()
    short = params[0][:, :3]
    for options, message in (
        ({"norms": norms[:3]}, "expected 4 norms for each of 1 layers and directions, got 3"),
        ({"norms": [*norms[:2], norms[0], norms[3]]}, r"weight_ln_c of shape \[6\], got \[24\]"),
        ({"zoneout": 2}, "lstm: expected zoneout a number"),
        ({"lengths": torch.tensor([1, 2])}, r"expected lengths of int64 and shape \[4\]"),
        ({"lengths": LENGTHS + 1}, "expected lengths from 0 to 5"),
        ({"input": x[:0]}, "with at least one step"),
        ({"params": [short, *params[1:]]}, r"weight_ih of shape \[4\*hidden, 4\]"),
        ({"hx": (hx[0][..., :5], hx[1])}, r"expected hx of shape \[4, 6\], got \[4, 5\]"),
        (
            {"input": x.flatten(0, 1), "batch_sizes": torch.tensor([4] * 5), "lengths": LENGTHS},
            "expected lengths or batch_sizes, got both",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call(**options)
