# SPDX-License-Identifier: MIT
"""``forward`` of ``torch.nn.LSTM`` and ``LSTMCell`` on fastconv's operators.

Arguments are checked by the layer's own methods, so that errors are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastconv._accelerate.guards import runs_on_kernels
from fastconv.nn import LSTMCell
from fastconv.ops import lstm

_States = tuple[Tensor, Tensor]


def lstm_forward(
    module: torch.nn.LSTM, input: Tensor | PackedSequence, hx: _States | None = None
) -> Any:
    """As ``torch.nn.LSTM.forward``."""
    packed = isinstance(input, PackedSequence)
    if not runs_on_kernels(input.data if packed else input):
        return type(module).forward(module, input, hx)
    if isinstance(input, PackedSequence):
        return _packed_forward(module, input, hx)
    if input.dim() == 2:
        return _unbatched_forward(module, input, hx)
    if input.dim() != 3:
        raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
    if hx is None:
        module.check_input(input, None)
    else:
        _check_dimensions(hx, 3, "batched 3-D", "3-D")
        module.check_forward_args(input, hx, None)
    output, h_n, c_n = _run(module, input, hx, None)
    return output, (h_n, c_n)


def _unbatched_forward(
    module: torch.nn.LSTM, input: Tensor, hx: _States | None
) -> tuple[Tensor, _States]:
    batch_dim = 0 if module.batch_first else 1
    if hx is not None:
        _check_dimensions(hx, 2, "unbatched 2-D", "2-D")
        hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
    output, (h_n, c_n) = lstm_forward(module, input.unsqueeze(batch_dim), hx)
    return output.squeeze(batch_dim), (h_n.squeeze(1), c_n.squeeze(1))


def _packed_forward(
    module: torch.nn.LSTM, packed: PackedSequence, hx: _States | None
) -> tuple[PackedSequence, _States]:
    data, batch_sizes, sorted_indices, unsorted_indices = packed
    if hx is None:
        module.check_input(data, batch_sizes)
    else:
        hx = module.permute_hidden(hx, sorted_indices)
        module.check_forward_args(data, hx, batch_sizes)
    output, h_n, c_n = _run(module, data, hx, batch_sizes)
    states = module.permute_hidden((h_n, c_n), unsorted_indices)
    return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), states


def _check_dimensions(hx: _States, wanted: int, kind: str, short: str) -> None:
    if hx[0].dim() != wanted or hx[1].dim() != wanted:
        raise RuntimeError(
            f"For {kind} input, hx and cx should also be {short} but got "
            f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
        )


def _run(
    module: torch.nn.LSTM, input: Tensor, hx: _States | None, batch_sizes: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    # By name, so that torch.func.functional_call and parametrizations reach every call.
    params = [getattr(module, name) for name in module._flat_weights_names]
    return lstm(
        input,
        hx,
        params,
        module.bias,
        module.num_layers,
        module.dropout,
        module.training,
        module.bidirectional,
        module.batch_first,
        batch_sizes=batch_sizes,
    )


def lstm_cell_forward(
    module: torch.nn.LSTMCell, input: Tensor, hx: _States | None = None
) -> _States:
    """As ``torch.nn.LSTMCell.forward``."""
    if not runs_on_kernels(input):
        return type(module).forward(module, input, hx)
    return LSTMCell.forward(module, input, hx)  # type: ignore[arg-type]
