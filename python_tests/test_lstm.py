# SPDX-License-Identifier: MIT
"""lstm and lstm_cell against torch: values, forms of a batch, threads, instruction sets, layers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from lstm_cases import CASES, LstmCase, assert_all_parity, everything, pack_and_run
from reference import assert_parity
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastconv.functional as fastF
from fastconv import nn as fast_nn
from fastconv import runtime

IDS = [case.name for case in CASES]


def pair(case: LstmCase, dtype: torch.dtype = torch.float32) -> tuple[fast_nn.LSTM, torch.nn.LSTM]:
    ours, theirs = case.layer(fast_nn.LSTM, dtype), case.layer(torch.nn.LSTM, dtype)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)  # the same random numbers in the same order
    return ours, theirs


# --- Values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_parity(case: LstmCase, isa: str, threads: int) -> None:
    torch.set_num_threads(threads)
    ours, theirs = pair(case)
    exact = case.layer(torch.nn.LSTM, torch.float64)
    assert_all_parity(
        everything(case, ours, by_torch=False),
        everything(case, theirs, by_torch=True),
        everything(case, exact, by_torch=True, dtype=torch.float64),
    )
    if case.name != "lengths_zero":
        assert runtime.last_used_isa("lstm_forward") == isa
        assert runtime.last_used_isa("lstm_backward") == isa


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_float64_runs_on_the_reference(case: LstmCase) -> None:
    ours, theirs = pair(case, torch.float64)
    results = everything(case, ours, by_torch=False, dtype=torch.float64)
    expected = everything(case, theirs, by_torch=True, dtype=torch.float64)
    for name, result in results.items():
        torch.testing.assert_close(result, expected[name], rtol=1e-10, atol=1e-12, msg=name)
    if case.name != "lengths_zero":
        assert runtime.last_used_algorithm("lstm_backward") == "reference"


@pytest.mark.parametrize("hidden", [256, 1024])
def test_parity_of_long_sums(hidden: int, isa: str) -> None:
    case = LstmCase("long", hidden, hidden, 7, 3)
    ours, theirs = pair(case)
    exact = case.layer(torch.nn.LSTM, torch.float64)
    assert_all_parity(
        everything(case, ours, by_torch=False),
        everything(case, theirs, by_torch=True),
        everything(case, exact, by_torch=True, dtype=torch.float64),
    )


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_bits_do_not_depend_on_threads_or_runs(case: LstmCase, isa: str) -> None:
    layer = case.layer(fast_nn.LSTM)
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        results.append(everything(case, layer, by_torch=False))
    for other in results[1:]:
        for name, tensor in other.items():
            assert torch.equal(tensor, results[0][name]), name


def test_inference_equals_training(isa: str) -> None:
    for case in CASES:
        layer = case.layer(fast_nn.LSTM)
        x, hx = case.tensors()
        lengths = None if case.lengths is None else torch.tensor(case.lengths)
        with torch.no_grad():
            inference = layer(x, hx, lengths=lengths)
        training = layer(x, hx, lengths=lengths)
        assert torch.equal(inference[0], training[0])
        assert torch.equal(inference[1][1], training[1][1])


def test_negative_control_a_swapped_gate_fails() -> None:
    case = CASES[0]
    ours, theirs = pair(case)
    exact = case.layer(torch.nn.LSTM, torch.float64)
    with torch.no_grad():
        weight, h = ours.weight_hh_l0, case.hidden
        weight.copy_(torch.cat([weight[h : 2 * h], weight[:h], weight[2 * h :]]))
    with pytest.raises(AssertionError, match="largest error"):
        assert_all_parity(
            everything(case, ours, by_torch=False),
            everything(case, theirs, by_torch=True),
            everything(case, exact, by_torch=True, dtype=torch.float64),
        )


def test_nan_and_infinity_propagate(isa: str) -> None:
    layer = torch.nn.LSTM(3, 20)
    ours = fast_nn.LSTM(3, 20)
    ours.load_state_dict(layer.state_dict())
    x = torch.randn(5, 8, 3)
    x[2, 3, 1] = float("nan")
    x[1, 5, 0] = float("inf")
    x[4, 6, 2] = -float("inf")
    with torch.no_grad():
        expected, result = layer(x)[0], ours(x)[0]
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.allclose(result, expected, atol=1e-6, equal_nan=True)


def test_denormals_count_as_zero_and_the_setting_comes_back(isa: str) -> None:
    layer = fast_nn.LSTM(8, 32, bias=False)
    with torch.no_grad():
        output, _ = layer(torch.full((4, 6, 8), 1e-40))
    assert torch.equal(output, torch.zeros_like(output))
    assert (torch.full((3,), 1e-39) * 0.5 > 0).all()


# --- Forms of a batch ----------------------------------------------------------------------------


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 4}])
def test_packed_sequence_in_and_out(options: dict, enforce_sorted: bool, isa: str) -> None:
    lengths = [7, 5, 5, 2, 1] if enforce_sorted else [2, 7, 1, 5, 5]
    case = LstmCase("packed", 4, 9, 5, 7, options)
    ours, theirs = pair(case)
    exact = case.layer(torch.nn.LSTM, torch.float64)
    found = []
    for layer, dtype in ((ours, torch.float32), (theirs, torch.float32), (exact, torch.float64)):
        x, hx = case.tensors(dtype)
        x.requires_grad_()
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=enforce_sorted)
        output, (h, c) = layer(packed, hx)
        assert torch.equal(output.batch_sizes, packed.batch_sizes)
        padded, _ = pad_packed_sequence(output)
        loss = padded.square().sum() + h.sum() + c.square().sum()
        grads = torch.autograd.grad(loss, [x, *layer.parameters()])
        found.append([padded.detach(), h.detach(), c.detach(), *grads])
        without_states = layer(packed)[1][1].detach()
        found[-1].append(without_states)
    for i, (a, b, o) in enumerate(zip(*found, strict=True)):
        assert_parity(a, b, o, f"result {i}")


def test_lengths_equal_packing(isa: str) -> None:
    layer = fast_nn.LSTM(5, 12, num_layers=2, bidirectional=True)
    x = torch.randn(9, 6, 5)
    hx = (torch.randn(4, 6, 12), torch.randn(4, 6, 12))
    lengths = torch.tensor([4, 9, 0, 1, 9, 6])
    output, (h, c) = layer(x, hx, lengths=lengths)
    packed_output, (packed_h, packed_c) = pack_and_run(layer, x, hx, lengths)
    assert torch.equal(output, packed_output)
    assert torch.equal(h, packed_h)
    assert torch.equal(c, packed_c)
    for b, length in enumerate(lengths):
        assert not output[length:, b].any()
        alone, (alone_h, _) = layer(x[: max(length, 1), b], (hx[0][:, b], hx[1][:, b]))
        if length > 0:
            torch.testing.assert_close(output[:length, b], alone, rtol=0, atol=1e-6)
            torch.testing.assert_close(h[:, b], alone_h, rtol=0, atol=1e-6)


def test_padding_is_never_read(isa: str) -> None:
    layer = fast_nn.LSTM(5, 12, bidirectional=True)
    x = torch.randn(6, 3, 5)
    lengths = torch.tensor([2, 6, 4])
    spoiled = x.clone()
    for b, length in enumerate(lengths):
        spoiled[length:, b] = float("nan")
    spoiled.requires_grad_()
    output = layer(spoiled, lengths=lengths)[0]
    assert torch.equal(output, layer(x, lengths=lengths)[0])
    (grad,) = torch.autograd.grad(output.sum(), spoiled)
    assert not grad.isnan().any()
    assert not grad[2:, 0].any()


def test_unbatched_input() -> None:
    for options in ({}, {"batch_first": True, "num_layers": 2, "bidirectional": True}):
        case = LstmCase("unbatched", 4, 6, 1, 5, options)
        ours, theirs = pair(case)
        x = torch.randn(5, 4)
        hx = tuple(torch.randn(case.cells, 6) for _ in range(2))
        for states in (None, hx):
            output, (h, c) = ours(x, states)
            expected, (expected_h, expected_c) = theirs(x, states)
            assert output.shape == expected.shape
            torch.testing.assert_close(output, expected)
            torch.testing.assert_close(h, expected_h)
            torch.testing.assert_close(c, expected_c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_batch(dtype: torch.dtype) -> None:
    layer = fast_nn.LSTM(3, 5, num_layers=2, bidirectional=True).to(dtype)
    x = torch.zeros(4, 0, 3, dtype=dtype, requires_grad=True)
    output, (h, c) = layer(x)
    assert output.shape == (4, 0, 10)
    assert h.shape == c.shape == (4, 0, 5)
    output.sum().backward()
    assert x.grad is not None
    assert layer.weight_hh_l1.grad is not None
    assert not layer.weight_hh_l1.grad.any()
    assert layer(x, lengths=torch.zeros(0, dtype=torch.int64))[0].shape == (4, 0, 10)


def test_views_are_accepted(isa: str) -> None:
    layer = fast_nn.LSTM(5, 8)
    base = torch.randn(6, 12, 10)
    hx = tuple(torch.randn(1, 8, 4).transpose(1, 2).repeat(1, 3, 1)[:, ::2] for _ in range(2))
    for x in (
        base[:, ::2, ::2],
        base[:, :6, 3:8],
        base[::2, :6, :5],
        base[:, :1, :5].expand(6, 6, 5),
    ):
        copied = layer(x.contiguous(), tuple(h.contiguous() for h in hx))
        assert torch.equal(layer(x, hx)[0], copied[0])
    output = layer(base[:, :6, :5].requires_grad_(), hx)[0]
    layer.zero_grad()
    output.transpose(0, 2).backward(torch.randn(8, 6, 6))  # a gradient that is not contiguous
    assert layer.weight_ih_l0.grad is not None


def test_dropout_is_torchs() -> None:
    case = LstmCase("dropout", 4, 9, 5, 7, {"num_layers": 3, "dropout": 0.4})
    ours, theirs = pair(case)
    x, hx = case.tensors()
    results = []
    for layer in (ours, theirs, ours):
        torch.manual_seed(11)
        results.append(layer(x, hx)[0].detach())
    torch.testing.assert_close(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert not torch.equal(ours(x, hx)[0], results[0])
    ours.eval()
    assert torch.equal(ours(x, hx)[0], ours(x, hx)[0])


def test_backward_in_eval_mode() -> None:
    case = CASES[0]
    layer = case.layer(fast_nn.LSTM).eval()
    expected = everything(case, case.layer(fast_nn.LSTM), by_torch=False)
    for name, tensor in everything(case, layer, by_torch=False).items():
        assert torch.equal(tensor, expected[name])


# --- Layers --------------------------------------------------------------------------------------


def test_layer_is_a_drop_in() -> None:
    options = {"num_layers": 2, "bidirectional": True, "proj_size": 3, "batch_first": True}
    ours, theirs = fast_nn.LSTM(4, 6, **options), torch.nn.LSTM(4, 6, **options)
    assert isinstance(ours, torch.nn.RNNBase)
    assert not isinstance(ours, torch.nn.LSTM)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert [len(w) for w in ours.all_weights] == [len(w) for w in theirs.all_weights]
    assert ours.weight_ih_l1_reverse.shape == theirs.weight_ih_l1_reverse.shape
    assert ours.extra_repr() == theirs.extra_repr()
    ours.flatten_parameters()
    x = torch.randn(2, 5, 4)
    expected = ours(x)[0]
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(twin(x)[0], expected)
    assert ours.double()(x.double())[0].dtype == torch.float64


def test_replaced_parameters_count() -> None:
    layer = fast_nn.LSTM(3, 4)
    x = torch.randn(2, 2, 3)
    weights = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}
    output, _ = torch.func.functional_call(layer, weights, (x,))
    assert not output.any()
    layer.weight_ih_l0 = torch.nn.Parameter(torch.zeros(16, 3))
    assert layer.all_weights[0][0] is layer.weight_ih_l0


def test_forget_bias() -> None:
    torch.manual_seed(5)
    plain = fast_nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    torch.manual_seed(5)
    layer = fast_nn.LSTM(3, 4, num_layers=2, bidirectional=True, forget_bias=1.0)
    for name, parameter in layer.named_parameters():
        other = plain.get_parameter(name)
        if "bias" not in name:
            assert torch.equal(parameter, other)
            continue
        assert torch.equal(parameter[:4], other[:4])
        assert torch.equal(parameter[8:], other[8:])
        assert (parameter[4:8] == (1.0 if "ih" in name else 0.0)).all()
    with pytest.raises(ValueError, match="bias=True with forget_bias"):
        fast_nn.LSTM(3, 4, bias=False, forget_bias=1.0)


def test_saved_memory_is_at_most_torchs() -> None:
    def saved_bytes(layer: torch.nn.Module, x: torch.Tensor) -> int:
        storages = {}

        def pack(t: torch.Tensor) -> torch.Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output = layer(x)
        assert output[0].requires_grad
        return sum(storages.values())

    for size, hidden, batch, steps in ((1, 50, 32, 30), (64, 128, 64, 20), (16, 64, 1, 50)):
        x = torch.randn(steps, batch, size, requires_grad=True)
        ours = saved_bytes(fast_nn.LSTM(size, hidden), x)
        theirs = saved_bytes(torch.nn.LSTM(size, hidden), x)
        assert 0 < ours <= theirs, (ours, theirs)


# --- One step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(3, 5, 4), (128, 256, 1), (128, 256, 32), (1, 1, 1), (20, 50, 7)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("states", [True, False])
def test_cell_parity(size: tuple[int, int, int], bias: bool, states: bool, isa: str) -> None:
    inputs, hidden, batch = size
    found = []
    for kind, dtype in (
        (fast_nn.LSTMCell, torch.float32),
        (torch.nn.LSTMCell, torch.float32),
        (torch.nn.LSTMCell, torch.float64),
    ):
        torch.manual_seed(4)
        cell = kind(inputs, hidden, bias)
        x = torch.randn(batch, inputs)
        hx = tuple(torch.randn(batch, hidden) for _ in range(2))
        grads = [torch.randn(batch, hidden).to(dtype) for _ in range(2)]
        cell = cell.to(dtype)
        leaves = [t.to(dtype).requires_grad_() for t in (x, *(hx if states else ()))]
        h, c = cell(leaves[0], tuple(leaves[1:]) if states else None)
        wanted = [*leaves, *cell.parameters()]
        found.append([h, c, *torch.autograd.grad([h, c], wanted, grads)])
    for i, (a, b, o) in enumerate(zip(*found, strict=True)):
        assert_parity(a, b, o, f"result {i}")


def test_cell_layer_is_a_drop_in() -> None:
    ours, theirs = fast_nn.LSTMCell(4, 6), torch.nn.LSTMCell(4, 6)
    assert isinstance(ours, torch.nn.LSTMCell)
    ours.load_state_dict(theirs.state_dict())
    x, hx = torch.randn(4), (torch.randn(6), torch.randn(6))
    for result, expected in zip(ours(x, hx), theirs(x, hx), strict=True):
        torch.testing.assert_close(result, expected)
    assert ours(torch.zeros(0, 4))[0].shape == (0, 6)


# --- Errors --------------------------------------------------------------------------------------

X = torch.zeros(3, 2, 4)
LAYER = fast_nn.LSTM(4, 5)
W = [p.detach() for p in LAYER.parameters()]
STATES = (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5))


def call(*args, **kwargs):
    return lambda: fastF.lstm(*args, **kwargs)


BAD_CALLS = {
    "rank": (call(torch.zeros(4), None, W), ValueError, r"input of shape \[steps"),
    "dtype": (call(X.int(), None, W), RuntimeError, "float32 or float64"),
    "mixed": (call(X, None, [w.double() for w in W]), RuntimeError, "weight_ih of"),
    "params": (call(X, None, W[:3]), ValueError, "4 params for each"),
    "weight_ih": (call(X, None, [W[0][:, :3], *W[1:]]), ValueError, "for inputs of size 4, got"),
    "weight_hh": (call(X, None, [W[0], W[1][:, :3], *W[2:]]), ValueError, "weight_hh of shape"),
    "bias": (call(X, None, [*W[:3], W[3][:4]]), ValueError, "bias_hh of shape"),
    "gates": (call(X, None, [W[0][:18], *W[1:]]), ValueError, r"weight_ih of shape \[4\*hidden"),
    "projection": (call(X, None, [*W, torch.zeros(3, 4)]), ValueError, "weight_hh of shape"),
    "states": (call(X, (STATES[0][:, :1], STATES[1]), W), ValueError, "hx of shape"),
    "state rank": (call(X, (STATES[0][0], STATES[1]), W), ValueError, "h_0 of shape"),
    "no steps": (call(X[:0], None, W), ValueError, "at least one step"),
    "lengths shape": (call(X, None, W, lengths=torch.tensor([1])), ValueError, "lengths of shape"),
    "lengths dtype": (call(X, None, W, lengths=torch.tensor([1.0, 2])), RuntimeError, "of int64"),
    "too long": (call(X, None, W, lengths=torch.tensor([1, 4])), ValueError, "from 0 to 3"),
    "negative": (call(X, None, W, lengths=torch.tensor([-1, 3])), ValueError, "from 0 to 3"),
    "both": (
        call(X[:, 0], None, W, lengths=torch.tensor([1]), batch_sizes=torch.tensor([2, 1])),
        ValueError,
        "got both",
    ),
    "batch_sizes": (
        call(X[:, 0], None, W, batch_sizes=torch.tensor([1, 2])),
        ValueError,
        "never increase",
    ),
    "rows": (call(X[:, 0], None, W, batch_sizes=torch.tensor([2, 2])), ValueError, "add up to"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_name_the_op_and_what_was_expected(name: str) -> None:
    bad, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=r"lstm: expected .*" + message):
        bad()


def test_bad_layer_calls() -> None:
    packed = pack_padded_sequence(X, torch.tensor([3, 1]))
    for bad, error, message in (
        (lambda: LAYER(torch.zeros(4)), ValueError, "2D or 3D"),
        (lambda: LAYER(X[..., :3]), RuntimeError, "Expected 4, got 3"),
        (lambda: LAYER(X.double()), ValueError, "does not match weight dtype"),
        (lambda: LAYER(X, (STATES[0][0], STATES[1][0])), RuntimeError, "should also be 3-D"),
        (lambda: LAYER(X, (STATES[0][..., :4], STATES[1])), RuntimeError, r"hidden\[0\] size"),
        (lambda: LAYER(packed, lengths=torch.tensor([3, 1])), ValueError, "got both"),
        (lambda: fast_nn.LSTM(4, 5, forget_bias="1"), TypeError, "forget_bias a number"),
        (lambda: fast_nn.LSTMCell(4, 5)(X), ValueError, "1D or 2D"),
        (lambda: fastF.lstm_cell(X, None, *W), ValueError, r"lstm_cell: expected input"),
    ):
        with pytest.raises(error, match=message):
            bad()
