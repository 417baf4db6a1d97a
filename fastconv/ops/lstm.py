# SPDX-License-Identifier: MIT
"""LSTM over sequences: the public function and the fake kernels of its operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastconv._C import lstm as _direct_lstm
from fastconv._C import lstm_cell as _direct_cell
from fastconv._C import lstm_layer as _direct_layer
from fastconv.ops.lstm_regularized import Group, Regularization

_layer_op = torch.ops.fastconv.lstm_layer.default
_cell_op = torch.ops.fastconv.lstm_cell.default
_States = tuple[Tensor, Tensor]

# What nn.LSTM does with a batch of plain tensors, without dropout and regularisation, in one call:
# of the input, h_0, c_0, lengths, a module's parameters and their names in order, has_biases,
# num_layers, bidirectional and batch_first. NotImplemented for all else, and for what is wrong.
lstm_of_module = _direct_lstm


def _layer(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    if not is_dynamo_compiling():
        results = _direct_layer(*arguments)
        if results is not NotImplemented:
            return results
    return _layer_op(*arguments)


def lstm(
    input: Tensor,
    hx: _States | None,
    params: Sequence[Tensor],
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    *,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float | tuple[float, float] = 0.0,
    norms: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A stack of LSTM layers over whole sequences, with the arguments of :func:`torch.lstm`.

    ``i, f, o = sigmoid(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)``, ``g = tanh(...)`` with its own
    rows of the weights, ``c_t = f * c_(t-1) + i * g``, ``h_t = o * tanh(c_t)``, which ``W_hr``
    multiplies when there are projections. D below is 2 when bidirectional, else 1; P is the size
    of the projection, or the hidden size H.

    Args:
        input: ``[T, B, I]``, or ``[B, T, I]`` with ``batch_first``; packed rows ``[N, I]`` with
            ``batch_sizes``. On CPU float32 runs on fastconv's kernels, float64 on their reference
            loops, bfloat16 and float16 on torch's own; on CUDA all four run on fastconv's. B may
            be 0, T must not.
        hx: ``(h_0 [num_layers * D, B, P], c_0 [num_layers * D, B, H])``; None is zeros.
        params: per layer and direction ``W_ih [4H, I or D * P]``, ``W_hh [4H, P]``, with
            ``has_biases`` ``b_ih [4H]`` and ``b_hh [4H]``, with projections ``W_hr [P, H]``. The
            gates lie in the order i, f, g, o.
        has_biases: whether ``params`` holds biases.
        num_layers: layers; each reads the outputs of the one before.
        dropout: probability of zeroing an output between layers when ``train``; the same random
            numbers as torch's.
        train: whether dropout is applied.
        bidirectional: run every layer in both directions and concatenate the outputs.
        batch_first: whether input and output are ``[B, T, .]``.
        lengths: int64 ``[B]`` in CPU memory, in any order, from 0 to T: only so many steps of each
            sequence exist. Equal to packing the batch: outputs past a length are zero, the
            backward direction starts at each sequence's own end, and only steps that exist are
            computed.
        batch_sizes: int64 ``[T]``: the input is a ``PackedSequence``'s data.
        recurrent_dropout: probability, in [0, 1), of zeroing a value of ``h_(t-1)`` on its way into
            the gates when ``train``; one mask per sequence, layer and direction serves all steps,
            what is left is scaled by ``1 / (1 - p)`` (Gal and Ghahramani 2016).
        zoneout: probability, in [0, 1), that a unit keeps its old value in a step, or a pair for
            ``c`` and ``h`` (Krueger et al. 2016). When not ``train``, the expected value:
            ``h_t = p h_(t-1) + (1 - p) h~_t``, likewise ``c``.
        norms: layer normalisation (Ba et al. 2016), four tensors per layer and direction:
            ``weight_ln_ih [4H]``, ``weight_ln_hh [4H]``, ``weight_ln_c [H]``, ``bias_ln_c [H]``.
            The gates become ``LN(W_ih x_t) + LN(W_hh h_(t-1))``, each normalised over its 4H values
            (eps 1e-5), with ``b_ih`` and ``b_hh`` as the shifts, and ``h_t = o * tanh(LN(c_t))``.

    The last three combine with each other and with everything else. No kernel computes them: they
    run step by step, on one operator per step, with ``norms`` on about a dozen of torch's.

    Returns:
        ``output [T, B, D * P]`` (laid out like the input), ``h_n`` and ``c_n`` shaped like ``hx``:
        each sequence's state after its own last step. Differentiable any number of times; second
        derivatives run on a composition of torch's operators.

    Raises:
        ValueError: shapes that do not fit, e.g. "lstm: expected weight_hh of shape ...".
        RuntimeError: dtypes or devices that differ or are not supported.

    float32 results do not depend on the number of threads. On CPU, numbers below 1.2e-38 count as
    zero.

    Method: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; gates of a
    unit finished in registers after Banerjee et al. 2019, products over all steps merged after
    Appleyard et al. 2016 (arXiv:1604.01946).
    """
    directions = 2 if bidirectional else 1
    groups = _group_params(params, has_biases, num_layers * directions)
    regularized = None
    if recurrent_dropout != 0.0 or zoneout != 0.0 or norms is not None:
        regularized = Regularization.of(groups, norms, recurrent_dropout, zoneout, train)
    if regularized is None and _left_to_torch(input):
        return _lstm_by_torch(
            input, hx, params, (has_biases, num_layers, dropout, train, bidirectional, batch_first),
            lengths, batch_sizes, groups[0],
        )  # fmt: skip
    rows = input.transpose(0, 1) if batch_first and batch_sizes is None else input
    first, second = _unbind_states(hx, num_layers * directions)
    last_h: list[Tensor] = []
    last_c: list[Tensor] = []
    for layer in range(num_layers):
        if layer > 0 and train and dropout > 0:
            rows = torch.nn.functional.dropout(rows, dropout)
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            if regularized is not None:
                output, h, c = regularized.layer(
                    k, rows, (first[k], second[k]), lengths, batch_sizes, direction == 1
                )
            else:
                output, h, c = _layer(
                    rows, first[k], second[k], *groups[k], lengths, batch_sizes, direction == 1
                )
            outputs.append(output)
            last_h.append(h)
            last_c.append(c)
        rows = outputs[0] if directions == 1 else torch.cat(outputs, -1)
    if batch_first and batch_sizes is None:
        rows = rows.transpose(0, 1)
    if len(last_h) == 1:
        return rows, last_h[0].unsqueeze(0), last_c[0].unsqueeze(0)
    return rows, torch.stack(last_h), torch.stack(last_c)


def _group_params(params: Sequence[Tensor], has_biases: bool, cells: int) -> list[Group]:
    """``W_ih, W_hh, b_ih, b_hh, W_hr`` of every layer and direction; absent ones are None."""
    without = 4 if has_biases else 2
    each, left = divmod(len(params), cells)
    if left or each not in (without, without + 1):
        raise ValueError(
            f"lstm: expected {without} params for each of {cells} layers and directions, or "
            f"{without + 1} with projections, got {len(params)}"
        )
    groups: list[Group] = []
    for start in range(0, len(params), each):
        group = params[start : start + each]
        biases = (group[2], group[3]) if has_biases else (None, None)
        groups.append((group[0], group[1], *biases, group[-1] if each > without else None))
    return groups


def _unbind_states(
    hx: _States | None, cells: int
) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
    if hx is None:
        return (None,) * cells, (None,) * cells
    for name, state in zip(("h_0", "c_0"), hx, strict=True):
        if state.dim() != 3 or state.shape[0] != cells:
            raise ValueError(
                f"lstm: expected {name} of shape [{cells}, batch, size], got {list(state.shape)}"
            )
    if cells == 1:
        return (hx[0].squeeze(0),), (hx[1].squeeze(0),)
    return hx[0].unbind(0), hx[1].unbind(0)


def _left_to_torch(input: Tensor) -> bool:
    half = input.dtype in (torch.bfloat16, torch.float16)
    return half and not input.is_cuda and not torch._C._is_any_autocast_enabled()


def _lstm_by_torch(
    input: Tensor,
    hx: _States | None,
    params: Sequence[Tensor],
    options: tuple[bool, int, float, bool, bool, bool],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    group: Group,
) -> tuple[Tensor, Tensor, Tensor]:
    """torch's own operator, for dtypes that fastconv has no kernels for."""
    batch_dim = 0 if options[-1] else 1
    batch = input.shape[batch_dim] if batch_sizes is None else int(batch_sizes[0])
    if hx is None:
        cells = options[1] * (2 if options[4] else 1)
        hx = (
            input.new_zeros(cells, batch, group[1].shape[1]),
            input.new_zeros(cells, batch, group[0].shape[0] // 4),
        )
    if lengths is None and batch_sizes is None:
        return torch.lstm(input, hx, list(params), *options)
    if batch_sizes is not None:
        return torch.lstm(input, batch_sizes, hx, list(params), *options[:-1])
    assert lengths is not None
    return _padded_by_torch(input, hx, params, options, lengths)


def _padded_by_torch(
    input: Tensor,
    hx: _States,
    params: Sequence[Tensor],
    options: tuple[bool, int, float, bool, bool, bool],
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Packs, runs, unpacks. torch cannot pack empty sequences, so they are left out."""
    batch_first = options[-1]
    batch_dim = 0 if batch_first else 1
    steps = input.shape[1 - batch_dim]
    present = lengths.nonzero().squeeze(1)
    out_shape = list(input.shape)
    out_shape[-1] = hx[0].shape[2] * (2 if options[4] else 1)
    output = input.new_zeros(out_shape)
    h_n, c_n = hx[0].clone(), hx[1].clone()
    if len(present) == 0:
        return output, h_n, c_n
    packed = pack_padded_sequence(
        input.index_select(batch_dim, present), lengths[present], batch_first, enforce_sorted=False
    )
    order = present[packed.sorted_indices]
    data, h, c = torch.lstm(
        packed.data,
        packed.batch_sizes,
        (hx[0].index_select(1, order), hx[1].index_select(1, order)),
        list(params),
        *options[:-1],
    )
    padded, _ = pad_packed_sequence(packed._replace(data=data), batch_first, total_length=steps)
    return (
        output.index_copy(batch_dim, present, padded),
        h_n.index_copy(1, order, h),
        c_n.index_copy(1, order, c),
    )


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"lstm: expected {what}")


def _check_shapes(
    input: Tensor,
    states: tuple[Tensor | None, Tensor | None],
    group: Group,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
) -> tuple[int | torch.SymInt, int, int]:
    """Refuses, for shape inference, what csrc/bindings/lstm_args.cpp refuses of shapes.

    Returns:
        batch, hidden size, output size.
    """
    weight_ih, weight_hh, bias_ih, bias_hh, weight_hr = group
    _expect(
        input.dim() == (3 if batch_sizes is None else 2),
        f"input of shape [steps, batch, input] or packed [N, input], got {list(input.shape)}",
    )
    _expect(
        weight_ih.dim() == 2 and weight_ih.shape[0] % 4 == 0,
        f"weight_ih of shape [4*hidden, input], got {list(weight_ih.shape)}",
    )
    _expect(lengths is None or batch_sizes is None, "lengths or batch_sizes, got both")
    hidden = weight_ih.shape[0] // 4
    out = hidden if weight_hr is None else weight_hr.shape[0]
    _expect(
        weight_ih.shape[1] == input.shape[-1],
        f"weight_ih of shape [{4 * hidden}, {input.shape[-1]}] for inputs of size "
        f"{input.shape[-1]}, got {list(weight_ih.shape)}",
    )
    batch: int | torch.SymInt
    if batch_sizes is None:
        batch = input.shape[1]
    else:
        known = [state.shape[0] for state in states if state is not None]
        batch = known[0] if known else torch.library.get_ctx().new_dynamic_size()
    for name, tensor, shape in (
        ("weight_hh", weight_hh, (4 * hidden, out)),
        ("bias_ih", bias_ih, (4 * hidden,)),
        ("bias_hh", bias_hh, (4 * hidden,)),
        ("weight_hr", weight_hr, (out, hidden)),
        ("hx", states[0], (batch, out)),
        ("cx", states[1], (batch, hidden)),
        ("lengths", lengths, (batch,)),
    ):
        if tensor is not None:
            _expect(
                tuple(tensor.shape) == shape,
                f"{name} of shape {list(shape)}, got {list(tensor.shape)}",
            )
    return batch, hidden, out


@torch.library.register_fake("fastconv::lstm_layer")
def _lstm_layer_fake(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    weight_hr: Tensor | None = None,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    group = (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
    batch, hidden, out = _check_shapes(input, (hx, cx), group, lengths, batch_sizes)
    output = input.new_empty([*input.shape[:-1], out])
    return output, input.new_empty([batch, out]), input.new_empty([batch, hidden])


@torch.library.register_fake("fastconv::_lstm_layer_training")
def _lstm_layer_training_fake(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    results = _lstm_layer_fake(
        input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, lengths, batch_sizes
    )
    rows = input.shape[0] if batch_sizes is not None else input.shape[0] * input.shape[1]
    gates = weight_ih.shape[0]
    return *results, input.new_empty([rows, gates]), input.new_empty([rows, gates // 4])


@torch.library.register_fake("fastconv::_lstm_layer_backward")
def _lstm_layer_backward_fake(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reverse: bool,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    output_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    operands = (input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
    return tuple(
        t.new_empty(t.shape) if wanted and t is not None else None
        for t, wanted in zip(operands, output_mask, strict=True)
    )


def lstm_cell(
    input: Tensor,
    hx: _States | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> _States:
    """One step of an LSTM, with the arguments of :func:`torch.lstm_cell`.

    Args:
        input: ``[B, I]``; dtypes as for :func:`lstm`.
        hx: ``(h [B, H], c [B, H])`` before the step; None is zeros.
        w_ih, w_hh: ``[4H, I]`` and ``[4H, H]``, the gates in the order i, f, g, o.
        b_ih, b_hh: ``[4H]`` or None.

    Returns:
        ``(h, c)`` after the step, ``[B, H]`` each. Differentiable any number of times.

    Raises:
        ValueError, RuntimeError: as :func:`lstm`.
    """
    if _left_to_torch(input):
        if hx is None:
            zeros = input.new_zeros(input.shape[0], w_hh.shape[1])
            hx = (zeros, zeros)
        return torch.lstm_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
    h, c = (None, None) if hx is None else hx
    if not is_dynamo_compiling():
        results = _direct_cell(input, h, c, w_ih, w_hh, b_ih, b_hh)
        if results is not NotImplemented:
            return results
    return _cell_op(input, h, c, w_ih, w_hh, b_ih, b_hh)
