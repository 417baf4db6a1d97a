# SPDX-License-Identifier: MIT
"""LSTM layers with recurrent dropout, zoneout or layer normalisation, step by step.

No kernel computes these: a layer is a loop over its steps, each of them one operator (without
normalisation) or a dozen of torch's, all differentiable any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

# W_ih, W_hh, b_ih, b_hh, W_hr; absent ones are None.
Group = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
# weight_ln_ih [4H], weight_ln_hh [4H], weight_ln_c [H], bias_ln_c [H].
Norm = tuple[Tensor, Tensor, Tensor, Tensor]
Step = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]

_layer = torch.ops.fastconv.lstm_layer.default


def check_probability(op: str, name: str, value: object) -> float:
    """The value as a float; ValueError unless it is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
        raise ValueError(f"{op}: expected {name} a number in [0, 1), got {value!r}")
    return float(value)


def zoneout_pair(op: str, zoneout: object) -> tuple[float, float]:
    """Probabilities of the cell state and of the output, from one number or from two."""
    pair = zoneout if isinstance(zoneout, (tuple, list)) else (zoneout, zoneout)
    if len(pair) != 2:
        raise ValueError(f"{op}: expected zoneout a number or a pair (c, h), got {zoneout!r}")
    return check_probability(op, "zoneout", pair[0]), check_probability(op, "zoneout", pair[1])


@dataclass(frozen=True)
class Regularization:
    """What a call of lstm has beside the plain layers, checked; probabilities."""

    groups: Sequence[Group]  # of each layer and direction
    norms: Sequence[Norm | None]
    recurrent_dropout: float
    zoneout: tuple[float, float]  # of c, of h
    train: bool

    @staticmethod
    def of(
        groups: Sequence[Group],
        norms: Sequence[Tensor] | None,
        recurrent_dropout: object,
        zoneout: object,
        train: bool,
    ) -> Regularization | None:
        """None where plain layers compute the same; zoneout does something when evaluating, too.

        Raises:
            ValueError: probabilities outside [0, 1), norms of other shapes or number.
        """
        dropout = check_probability("lstm", "recurrent_dropout", recurrent_dropout)
        pair = zoneout_pair("lstm", zoneout)
        if norms is None and pair == (0.0, 0.0) and not (train and dropout > 0):
            return None
        return Regularization(groups, _group_norms(norms, groups), dropout, pair, train)

    def layer(
        self,
        k: int,
        input: Tensor,
        states: tuple[Tensor | None, Tensor | None],
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Layer and direction `k`; arguments and results as those of the operator lstm_layer."""
        if batch_sizes is None:
            return self._padded_layer(k, input, states, lengths, reverse)
        if lengths is not None:
            raise ValueError("lstm: expected lengths or batch_sizes, got both")
        padded, lengths = pad_packed_sequence(PackedSequence(input, batch_sizes))
        output, h, c = self._padded_layer(k, padded, states, lengths, reverse)
        return pack_padded_sequence(output, lengths).data, h, c

    def _padded_layer(
        self,
        k: int,
        input: Tensor,
        states: tuple[Tensor | None, Tensor | None],
        lengths: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        group, norm = self.groups[k], self.norms[k]
        _check_operands(input, group, lengths)
        h, c = _initial_states(input, states, group)
        by_kernel = norm is None and input.dtype in (torch.float32, torch.float64)
        step = _step_by_kernel(input, group) if by_kernel else _step_by_torch(input, group, norm)
        dropped = None
        if self.train and self.recurrent_dropout > 0:
            dropped = functional.dropout(torch.ones_like(h), self.recurrent_dropout)
        steps = input.shape[0]
        zone_c = _Zoneout(self.zoneout[0], self.train, c, steps)
        zone_h = _Zoneout(self.zoneout[1], self.train, h, steps)
        outputs: list[Tensor] = [h] * steps
        for t in range(steps - 1, -1, -1) if reverse else range(steps):
            new_h, new_c = step(t, h if dropped is None else h * dropped, c)
            new_h, new_c = zone_h(t, h, new_h), zone_c(t, c, new_c)
            if lengths is None:
                outputs[t], h, c = new_h, new_h, new_c
                continue
            exists = (lengths > t).unsqueeze(1)
            outputs[t] = torch.where(exists, new_h, torch.zeros_like(new_h))
            h, c = torch.where(exists, new_h, h), torch.where(exists, new_c, c)
        return torch.stack(outputs), h, c


def _group_norms(norms: Sequence[Tensor] | None, groups: Sequence[Group]) -> Sequence[Norm | None]:
    if norms is None:
        return (None,) * len(groups)
    if len(norms) != 4 * len(groups):
        raise ValueError(
            f"lstm: expected 4 norms for each of {len(groups)} layers and directions, got "
            f"{len(norms)}"
        )
    found: list[Norm | None] = []
    names = ("weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c")
    for k, group in enumerate(groups):
        gates = group[0].shape[0]
        four = norms[4 * k : 4 * k + 4]
        for name, tensor, size in zip(
            names, four, (gates, gates, gates // 4, gates // 4), strict=True
        ):
            if tuple(tensor.shape) != (size,):
                raise ValueError(
                    f"lstm: expected {name} of shape [{size}], got {list(tensor.shape)}"
                )
        found.append((four[0], four[1], four[2], four[3]))
    return found


def _initial_states(
    input: Tensor, states: tuple[Tensor | None, Tensor | None], group: Group
) -> tuple[Tensor, Tensor]:
    found = []
    sizes = (group[1].shape[1], group[0].shape[0] // 4)
    for name, state, size in zip(("hx", "cx"), states, sizes, strict=True):
        wanted = [input.shape[1], size]
        if state is None:
            state = input.new_zeros(wanted)
        if list(state.shape) != wanted:
            raise ValueError(f"lstm: expected {name} of shape {wanted}, got {list(state.shape)}")
        found.append(state)
    return found[0], found[1]


def _check_operands(input: Tensor, group: Group, lengths: Tensor | None) -> None:
    if input.dim() != 3 or input.shape[0] == 0:
        raise ValueError(
            f"lstm: expected input of shape [steps, batch, input] with at least one step, got "
            f"{list(input.shape)}"
        )
    if group[0].dim() != 2 or group[0].shape[1] != input.shape[2]:
        raise ValueError(
            f"lstm: expected weight_ih of shape [4*hidden, {input.shape[2]}], got "
            f"{list(group[0].shape)}"
        )
    if lengths is None:
        return
    steps, batch = input.shape[:2]
    if tuple(lengths.shape) != (batch,) or lengths.dtype != torch.int64:
        raise ValueError(
            f"lstm: expected lengths of int64 and shape [{batch}], got {lengths.dtype} "
            f"{list(lengths.shape)}"
        )
    if not torch.compiler.is_compiling() and bool(((lengths < 0) | (lengths > steps)).any()):
        raise ValueError(f"lstm: expected lengths from 0 to {steps}, got {lengths.tolist()}")


def _step_by_kernel(input: Tensor, group: Group) -> Step:
    w_ih, w_hh, b_ih, b_hh, w_hr = group
    rows = input.unsqueeze(1).unbind(0)

    def step(t: int, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        _, new_h, new_c = _layer(rows[t], h, c, w_ih, w_hh, b_ih, b_hh, w_hr)
        return new_h, new_c

    return step


def _step_by_torch(input: Tensor, group: Group, norm: Norm | None) -> Step:
    w_ih, w_hh, b_ih, b_hh, w_hr = group

    def scaled(x: Tensor, index: int, bias: Tensor | None) -> Tensor:
        if norm is None:
            return x if bias is None else x + bias
        return functional.layer_norm(x, x.shape[-1:], norm[index], bias)

    from_input = scaled(functional.linear(input, w_ih), 0, b_ih).unbind(0)

    def step(t: int, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates = from_input[t] + scaled(functional.linear(h, w_hh), 1, b_hh)
        i, f, g, o = gates.chunk(4, -1)
        new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        seen = new_c if norm is None else scaled(new_c, 2, norm[3])
        m = o.sigmoid() * seen.tanh()
        return (m if w_hr is None else functional.linear(m, w_hr)), new_c

    return step


class _Zoneout:
    """Keeps each unit's old value with a probability; in evaluation the expected value."""

    def __init__(self, probability: float, train: bool, state: Tensor, steps: int) -> None:
        self._probability = probability
        self._keeps: Tensor | None = None
        if train and probability > 0:
            self._keeps = torch.rand(steps, *state.shape, device=state.device) < probability

    def __call__(self, t: int, before: Tensor, after: Tensor) -> Tensor:
        if self._probability == 0:
            return after
        if self._keeps is None:
            return torch.lerp(after, before, self._probability)
        return torch.where(self._keeps[t], before, after)
