# SPDX-License-Identifier: MIT
"""Recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn.utils.rnn import PackedSequence

from fastconv.ops import lstm, lstm_cell
from fastconv.ops.lstm import lstm_of_module
from fastconv.ops.lstm_regularized import check_probability, zoneout_pair

_States = tuple[Tensor, Tensor]


def _named_parameters(module: torch.nn.Module, names: Sequence[str]) -> list[Any]:
    # By name, so that torch.func.functional_call and parametrizations reach every call; past
    # Module.__getattr__, which takes half a microsecond for each.
    own = module._parameters
    return [own[name] if name in own else getattr(module, name) for name in names]


class LSTM(torch.nn.RNNBase):
    """A stack of LSTM layers, a drop-in for :class:`torch.nn.LSTM`.

    Constructor, parameters, initialisation and ``state_dict`` are torch's; the computation is
    :func:`fastconv.functional.lstm`, which states shapes, dtypes and errors. It derives from
    ``RNNBase`` and not from ``torch.nn.LSTM``, which ``torch.compile`` refuses: this one compiles
    with ``fullgraph=True``, one operator per layer and direction.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
            device, dtype: as for :class:`torch.nn.LSTM`.
        forget_bias: None keeps torch's initialisation. A number makes the two biases of every
            forget gate add up to it at the start, 1 being the usual choice (Jozefowicz et al.
            2015); needs ``bias=True``.
        recurrent_dropout: variational dropout of the recurrent connections in training: one mask
            per sequence for all its steps. In [0, 1).
        zoneout: probability that a unit keeps its old value in a step, or a pair for the cell state
            and the output. In [0, 1).
        layer_norm: normalise the gates' two products and the cell state. Adds parameters
            ``weight_ln_ih_l0 [4H]``, ``weight_ln_hh_l0 [4H]``, ``weight_ln_c_l0 [H]`` and
            ``bias_ln_c_l0 [H]`` per layer and direction, named like the weights; they start at one
            and zero.

    The last three are off by default; :func:`fastconv.functional.lstm` defines them. They combine
    with each other and all else, but run step by step, several times slower than the plain layer.
    """

    # Also what layers saved without them have.
    forget_bias: float | None = None
    recurrent_dropout: float = 0.0
    zoneout: float | tuple[float, float] = 0.0
    layer_norm: bool = False

    def __init__(
        self,
        *args: Any,
        forget_bias: float | None = None,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        layer_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        if forget_bias is not None and not isinstance(forget_bias, (int, float)):
            raise TypeError(f"LSTM: expected forget_bias a number or None, got {forget_bias!r}")
        if not isinstance(layer_norm, bool):
            raise TypeError(f"LSTM: expected layer_norm a bool, got {layer_norm!r}")
        # RNNBase calls reset_parameters, which needs it; before Module.__init__ only plain
        # attributes can be set.
        self.__dict__["forget_bias"] = forget_bias
        super().__init__("LSTM", *args, **kwargs)
        if forget_bias is not None and not self.bias:
            raise ValueError("LSTM: expected bias=True with forget_bias, got bias=False")
        self.recurrent_dropout = check_probability("LSTM", "recurrent_dropout", recurrent_dropout)
        pair = zoneout_pair("LSTM", zoneout)
        self.zoneout = pair[0] if pair[0] == pair[1] else pair
        self.layer_norm = layer_norm
        if layer_norm:
            self._add_norms()

    def _add_norms(self) -> None:
        for names in self._all_weights:
            like = getattr(self, names[0])
            suffix = names[0].removeprefix("weight_ih")
            for name, size in (("ih", 4), ("hh", 4), ("c", 1)):
                weight = torch.nn.Parameter(like.new_ones(size * self.hidden_size))
                setattr(self, f"weight_ln_{name}{suffix}", weight)
            bias = torch.nn.Parameter(like.new_zeros(self.hidden_size))
            setattr(self, f"bias_ln_c{suffix}", bias)

    def _norms(self) -> list[Tensor]:
        names = ("weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c")
        suffixes = [group[0].removeprefix("weight_ih") for group in self._all_weights]
        return [getattr(self, name + suffix) for suffix in suffixes for name in names]

    def reset_parameters(self) -> None:
        """Draw new parameters, as torch does; then set forget gates' biases and norms."""
        bound = self.hidden_size**-0.5
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if "_ln_" in name:
                    parameter.fill_(0.0 if name.startswith("bias") else 1.0)
                    continue
                torch.nn.init.uniform_(parameter, -bound, bound)
                if name.startswith("bias_") and self.forget_bias is not None:
                    gate = parameter[self.hidden_size : 2 * self.hidden_size]
                    gate.fill_(self.forget_bias if name.startswith("bias_ih") else 0.0)

    def extra_repr(self) -> str:
        """Sizes and options that differ from their defaults."""
        text: str = super().extra_repr()
        for name in ("forget_bias", "recurrent_dropout", "zoneout", "layer_norm"):
            value = getattr(self, name)
            if value != getattr(LSTM, name):
                text += f", {name}={value}"
        return text

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: _States | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, _States]:
        """Run the layers over a batch of sequences.

        Args:
            input: ``[T, B, input_size]`` (``[B, T, input_size]`` with ``batch_first``), one
                sequence ``[T, input_size]``, or a ``PackedSequence``.
            hx: initial states ``(h_0, c_0)``, ``[layers * directions, B, size]``, without B for
                one sequence; None is zeros.
            lengths: int64 ``[B]``, any order, zero allowed: steps of each sequence that exist. The
                cheap alternative to a ``PackedSequence``.

        Returns:
            The output in the input's form, and ``(h_n, c_n)``.

        Raises:
            ValueError, RuntimeError: for inputs that do not fit, in most cases as torch.nn.LSTM.
        """
        if not (
            is_dynamo_compiling()
            or self.recurrent_dropout
            or self.zoneout
            or self.layer_norm
            or (self.dropout and self.training)
        ):
            # All of what follows in one call, for batches of plain tensors that fit.
            h, c = (None, None) if hx is None else hx
            results = lstm_of_module(
                input, h, c, lengths, self._parameters, self._flat_weights_names, self.bias,
                self.num_layers, self.bidirectional, self.batch_first,
            )  # fmt: skip
            if results is not NotImplemented:
                return results[0], results[1:]
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths)
        if input.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batch_dim = 0 if self.batch_first else 1
        batched = input.dim() == 3
        if not batched:
            input = input.unsqueeze(batch_dim)
        self.check_input(input, None)
        if hx is not None:
            hx = self._batched_states(hx, batched)
            self._check_states(hx, input.size(batch_dim))
        output, h_n, c_n = self._run(input, hx, lengths=lengths)
        if not batched:
            return output.squeeze(batch_dim), (h_n.squeeze(1), c_n.squeeze(1))
        return output, (h_n, c_n)

    def _forward_packed(
        self, packed: PackedSequence, hx: _States | None, lengths: Tensor | None
    ) -> tuple[PackedSequence, _States]:
        if lengths is not None:
            raise ValueError("LSTM: expected lengths or a PackedSequence, got both")
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        self.check_input(data, batch_sizes)
        if hx is not None:
            hx = self._permuted(hx, sorted_indices)
            self._check_states(hx, int(batch_sizes[0]))
        output, h_n, c_n = self._run(data, hx, batch_sizes=batch_sizes)
        states = self._permuted((h_n, c_n), unsorted_indices)
        return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), states

    def _run(
        self,
        input: Tensor,
        hx: _States | None,
        lengths: Tensor | None = None,
        batch_sizes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return lstm(
            input,
            hx,
            _named_parameters(self, self._flat_weights_names),
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
            self.batch_first,
            lengths=lengths,
            batch_sizes=batch_sizes,
            recurrent_dropout=self.recurrent_dropout,
            zoneout=self.zoneout,
            norms=self._norms() if self.layer_norm else None,
        )

    @staticmethod
    def _batched_states(hx: _States, batched: bool) -> _States:
        wanted = 3 if batched else 2
        if hx[0].dim() != wanted or hx[1].dim() != wanted:
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx and cx should also be {wanted}-D but got "
                f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )
        return hx if batched else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))

    def _check_states(self, hx: _States, batch: int) -> None:
        cells = self.num_layers * (2 if self.bidirectional else 1)
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        for i, size in enumerate(sizes):
            self.check_hidden_size(
                hx[i], (cells, batch, size), f"Expected hidden[{i}] size {{}}, got {{}}"
            )

    @staticmethod
    def _permuted(hx: _States, permutation: Tensor | None) -> _States:
        if permutation is None:
            return hx
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)


_CELL_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class LSTMCell(torch.nn.LSTMCell):
    """One step of an LSTM, a drop-in for :class:`torch.nn.LSTMCell`.

    Constructor, parameters, initialisation and ``state_dict`` are torch's; the computation is
    :func:`fastconv.functional.lstm_cell`, one operator per call. In a loop over the cell, the
    gradients of the parameters are summed once, when the backward pass has left the first step.
    """

    def forward(self, input: Tensor, hx: _States | None = None) -> _States:
        """One step: ``input`` ``[B, input_size]`` or ``[input_size]``; returns ``(h, c)``."""
        if input.dim() not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if hx is not None:
            for i, state in enumerate(hx):
                if state.dim() not in (1, 2):
                    raise ValueError(
                        f"LSTMCell: Expected hx[{i}] to be 1D or 2D, got {state.dim()}D instead"
                    )
        batched = input.dim() == 2
        if not batched:
            input = input.unsqueeze(0)
            hx = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        h, c = lstm_cell(input, hx, *_named_parameters(self, _CELL_PARAMETERS))
        return (h, c) if batched else (h.squeeze(0), c.squeeze(0))
