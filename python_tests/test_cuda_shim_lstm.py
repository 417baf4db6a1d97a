# SPDX-License-Identifier: MIT
"""The CUDA kernels of the LSTM, executed by the emulator: the cases, the parity rule and the
negative control that the CPU's kernels face."""

from __future__ import annotations

import re

import pytest
import torch
from cuda_shim import FLUSH, MMA_MODES, SCHEDULES, CudaShim
from lstm_cases import CASES, LstmCase, assert_all_parity, everything
from lstm_shim import DTYPES, PERSISTENT, STEPS, ShimLstm, on_shim
from reference import assert_parity, max_error, rms
from torch import Tensor

from fastconv import nn as fast_nn

PATHS = {"steps": STEPS, "persistent": PERSISTENT}
# Every form of a batch and of a layer, small enough for all schedules.
SMALL = [
    LstmCase("tiny", 3, 5, 4, 3),
    LstmCase("one", 1, 1, 1, 1),
    LstmCase("reverse", 2, 9, 5, 3, {"bidirectional": True}, states=False),
    LstmCase("lengths", 3, 5, 6, 3, {"bidirectional": True}, (3, 0, 2, 3, 1, 2)),
    LstmCase("two_tiles", 3, 33, 18, 2, {"bias": False}),
]
PROJECTED = [
    LstmCase("projection", 3, 6, 7, 3, {"proj_size": 4}),
    LstmCase("projected_lengths", 2, 5, 6, 3, {"proj_size": 3, "bidirectional": True},
             (3, 0, 2, 3, 1, 2)),
]  # fmt: skip


def persistent_serves(case: LstmCase) -> bool:
    return case.hidden <= 128 and "proj_size" not in case.options


def runs(cases: list[LstmCase]) -> list:
    """Each case in both forms of the recurrence, where there are two."""
    return [
        pytest.param(case, PATHS[path], id=f"{case.name}-{path}")
        for case in cases
        for path in PATHS
        if path == "steps" or persistent_serves(case)
    ]


def on_gpu(case: LstmCase, lstm: ShimLstm, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    with on_shim(lstm):
        return everything(case, case.layer(fast_nn.LSTM, dtype), by_torch=False, dtype=dtype)


def by_torch(case: LstmCase, dtype: torch.dtype) -> dict[str, Tensor]:
    return everything(case, case.layer(torch.nn.LSTM, dtype), by_torch=True, dtype=dtype)


def assert_ran(lstm: ShimLstm) -> None:
    ran = set(re.findall(r"\w+_kernel", " ".join(lstm.kernels)))
    steps = {"lstm_step_kernel", "lstm_grad_step_kernel"}
    whole = {"lstm_persistent_forward_kernel", "lstm_persistent_backward_kernel"}
    wanted, other = (whole, steps) if lstm.path == PERSISTENT else (steps, whole)
    assert wanted <= ran, ran
    assert not other & ran, ran


# --- Values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "path"), runs(CASES))
def test_parity(case: LstmCase, path: int, shim: CudaShim) -> None:
    lstm = ShimLstm(shim, path)
    results = on_gpu(case, lstm)
    assert_all_parity(results, by_torch(case, torch.float32), by_torch(case, torch.float64))
    if case.name != "lengths_zero":
        assert_ran(lstm)


@pytest.mark.parametrize(("case", "path"), runs([*SMALL, *PROJECTED]))
def test_every_schedule_gives_the_same_bits(case: LstmCase, path: int, shim: CudaShim) -> None:
    first = None
    for schedule in SCHEDULES:
        shim.configure(schedule, seed=3)
        lstm = ShimLstm(shim, path)
        results = on_gpu(case, lstm)
        assert_ran(lstm)
        if first is None:
            assert_all_parity(results, by_torch(case, torch.float32), by_torch(case, torch.float64))
            first = results
        for name, tensor in results.items():
            assert torch.equal(tensor, first[name]), (schedule, name)


@pytest.mark.parametrize("case", [*SMALL, *PROJECTED], ids=lambda case: case.name)
def test_float64(case: LstmCase, shim: CudaShim) -> None:
    lstm = ShimLstm(shim, STEPS)
    results = on_gpu(case, lstm, torch.float64)
    assert_ran(lstm)
    expected = by_torch(case, torch.float64)
    for name, result in results.items():
        torch.testing.assert_close(result, expected[name], rtol=1e-10, atol=1e-12, msg=name)


WIDE = LstmCase("wide", 20, 128, 17, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("case", "path"), runs([*SMALL, *PROJECTED, WIDE]))
def test_16_bit_types_on_tensor_cores(
    case: LstmCase, path: int, dtype: torch.dtype, shim: CudaShim
) -> None:
    oracle = rounded_oracle(case, dtype)
    theirs = by_torch(case, dtype)
    for mma in MMA_MODES if case.name == "two_tiles" else MMA_MODES[:1]:
        shim.configure(mma=mma, seed=5)
        lstm = ShimLstm(shim, path)
        results = on_gpu(case, lstm, dtype)
        assert_16_bit_parity(results, theirs, oracle)
        assert_ran(lstm)
        assert shim.counts().mma > 0
        wrong = {name: tensor.flip(-1) for name, tensor in results.items()}
        if case.hidden > 1:
            with pytest.raises(AssertionError, match="largest error"):
                assert_16_bit_parity(wrong, theirs, oracle)


def assert_16_bit_parity(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], oracle: dict[str, Tensor]
) -> None:
    """The rule of reference.py with the distance of neighbouring numbers of the type, near the
    result's rms, in place of float32's 1e-6: torch may round the right way by chance."""
    for name, result in ours.items():
        assert result.dtype == theirs[name].dtype
        floor = torch.finfo(result.dtype).eps * rms(oracle[name])
        error = max_error(result, oracle[name])
        allowed = 2 * max_error(theirs[name], oracle[name]) + floor
        assert error <= allowed, f"{name}: largest error {error:.3e}, allowed {allowed:.3e}"


def rounded_oracle(case: LstmCase, dtype: torch.dtype) -> dict[str, Tensor]:
    """float64 results on operands and gradients that `dtype` has."""

    class Rounded(LstmCase):
        def layer(self, kind: type, to: torch.dtype = torch.float32) -> torch.nn.Module:
            return super().layer(kind, dtype).to(to)

        def tensors(self, to: torch.dtype = torch.float32) -> tuple[Tensor, tuple | None]:
            x, hx = super().tensors(dtype)
            return x.to(to), None if hx is None else (hx[0].to(to), hx[1].to(to))

    same = Rounded(**{name: getattr(case, name) for name in case.__dataclass_fields__})
    return by_torch(same, torch.float64)


TF32_EPS = 2.0**-10


@pytest.mark.parametrize(("case", "path"), runs([*SMALL, *PROJECTED, WIDE]))
def test_float32_on_tensor_cores(case: LstmCase, path: int, shim: CudaShim) -> None:
    """Where torch.backends.cudnn.allow_tf32 lets operands be rounded to ten bits: errors are those
    of such a rounding, of the order of one distance of tf32 numbers and not of several."""
    lstm = ShimLstm(shim, path, allow_tf32=True)
    results = on_gpu(case, lstm)
    oracle = by_torch(case, torch.float64)
    assert_ran(lstm)
    worst = 0.0
    for name, result in results.items():
        error = max_error(result, oracle[name])
        worst = max(worst, error / max(rms(oracle[name]), 1e-30))
        assert error <= 4 * TF32_EPS * rms(oracle[name]), f"{name}: largest error {error:.3e}"
    assert worst > 1e-5 or case.hidden == 1, "nothing was rounded"


@pytest.mark.parametrize(("case", "path"), runs(SMALL[:1]))
def test_a_swapped_gate_fails(case: LstmCase, path: int, shim: CudaShim) -> None:
    layer = case.layer(fast_nn.LSTM)
    with torch.no_grad():
        weight, h = layer.weight_hh_l0, case.hidden
        weight.copy_(torch.cat([weight[h : 2 * h], weight[:h], weight[2 * h :]]))
    with on_shim(ShimLstm(shim, path)):
        results = everything(case, layer, by_torch=False)
    with pytest.raises(AssertionError, match="largest error"):
        assert_all_parity(results, by_torch(case, torch.float32), by_torch(case, torch.float64))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_nan_and_infinity_propagate(path: int, shim: CudaShim) -> None:
    layer = torch.nn.LSTM(3, 20)
    ours = fast_nn.LSTM(3, 20)
    ours.load_state_dict(layer.state_dict())
    x = torch.randn(5, 8, 3)
    x[2, 3, 1] = float("nan")
    x[1, 5, 0] = float("inf")
    x[4, 6, 2] = -float("inf")
    with torch.no_grad(), on_shim(ShimLstm(shim, path)):
        result = ours(x)[0]
    expected = layer(x)[0].detach()
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.allclose(result, expected, atol=1e-6, equal_nan=True)


# --- Forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_packed_sequence(path: int, shim: CudaShim) -> None:
    lengths = torch.tensor([2, 7, 1, 5, 5])
    layer = fast_nn.LSTM(4, 9, bidirectional=True)
    x = torch.randn(7, 5, 4)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    with torch.no_grad(), on_shim(ShimLstm(shim, path)):
        output, (h, c) = layer(packed)
        padded = torch.nn.utils.rnn.pad_packed_sequence(output)[0]
        by_lengths, (h_2, c_2) = layer(x, lengths=lengths)
    assert torch.equal(padded, by_lengths)
    assert torch.equal(h, h_2)
    assert torch.equal(c, c_2)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inference_is_training(dtype: torch.dtype, path: int, shim: CudaShim) -> None:
    """Bit for bit, although training keeps its sums in the memory of the gates."""
    if dtype == torch.float64 and path == PERSISTENT:
        return  # there is no such kernel
    layer = fast_nn.LSTM(3, 10).to(dtype)
    x = torch.randn(3, 5, 3).to(dtype)
    operands = (x, None, None, *layer.parameters(), None, None, None)
    lstm = ShimLstm(shim, path)
    with torch.no_grad():
        training = lstm.forward(operands, reverse=False)
        inference = lstm.forward(operands, reverse=False, training=False)
    for a, b in zip(training[:3], inference[:3], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("flush", FLUSH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_alignment_is_not_needed(path: int, dtype: torch.dtype, flush: str, shim: CudaShim) -> None:
    case = LstmCase("aligned", 8, 16, 3, 2)
    expected = on_gpu(case, ShimLstm(shim, path), dtype)
    results = on_gpu(case, ShimLstm(shim, path, flush, alignment=dtype.itemsize), dtype)
    for name, tensor in results.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_cell(bias: bool, states: bool, shim: CudaShim) -> None:
    found = []
    lstm = ShimLstm(shim, STEPS)
    for kind, dtype in (
        (fast_nn.LSTMCell, torch.float32),
        (torch.nn.LSTMCell, torch.float32),
        (torch.nn.LSTMCell, torch.float64),
    ):
        torch.manual_seed(4)
        cell = kind(20, 21, bias)
        x = torch.randn(7, 20)
        hx = tuple(torch.randn(7, 21) for _ in range(2))
        grads = [torch.randn(7, 21).to(dtype) for _ in range(2)]
        cell = cell.to(dtype)
        leaves = [t.to(dtype).requires_grad_() for t in (x, *(hx if states else ()))]
        with on_shim(lstm):
            h, c = cell(leaves[0], tuple(leaves[1:]) if states else None)
        wanted = [*leaves, *cell.parameters()]
        found.append([h, c, *torch.autograd.grad([h, c], wanted, grads)])
    for i, (a, b, o) in enumerate(zip(*found, strict=True)):
        assert_parity(a.detach(), b.detach(), o.detach(), f"result {i}")
    # One kernel is the whole forward pass of one step.
    assert sum("lstm_step" in name for name in lstm.kernels) == 1
    assert "gemm" not in lstm.kernels[0]


# --- The choice ----------------------------------------------------------------------------------

CHOICES = {
    # dtype, steps, hidden, projected, compute capability, bytes of shared memory
    "a100": (torch.float32, 10, 128, 0, 80, 163 * 1024, PERSISTENT),
    "small shared memory": (torch.float32, 10, 128, 0, 86, 99 * 1024, STEPS),
    "fits registers": (torch.float32, 10, 96, 0, 86, 99 * 1024, PERSISTENT),
    "oldest": (torch.float32, 10, 64, 0, 75, 64 * 1024, PERSISTENT),
    "too many units": (torch.float32, 10, 129, 0, 90, 227 * 1024, STEPS),
    "projected": (torch.float32, 10, 64, 1, 90, 227 * 1024, STEPS),
    "one step": (torch.float32, 1, 64, 0, 90, 227 * 1024, STEPS),
    "float64": (torch.float64, 10, 16, 0, 90, 227 * 1024, STEPS),
    "bfloat16": (torch.bfloat16, 10, 128, 0, 86, 99 * 1024, PERSISTENT),
    "no tensor cores for it": (torch.bfloat16, 10, 128, 0, 75, 64 * 1024, STEPS),
    "too many steps": (torch.float32, 2**31, 8, 0, 90, 227 * 1024, STEPS),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choice_of_the_path(name: str, shim: CudaShim) -> None:
    dtype, steps, hidden, projected, capability, shared, expected = CHOICES[name]
    numbers = (DTYPES.index(dtype), 0, steps, 4, 3, hidden, hidden, projected, 0, None)
    assert shim.value("choose_lstm_path", *numbers, capability, shared) == expected


def test_many_integers_reach_the_device(shim: CudaShim) -> None:
    for count in (1, 447, 448, 449, 1000):
        host = torch.randint(-(2**60), 2**60, (count,))
        with shim.memory() as memory:
            device = memory.empty((count,), torch.int64, "device")
            shim.call("store_integers", host, count, device)
            assert torch.equal(device, host)
