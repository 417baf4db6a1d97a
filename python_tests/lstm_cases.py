# SPDX-License-Identifier: MIT
"""Named LSTM cases, and runs of one layer stack that return everything it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from reference import assert_parity
from torch import Tensor

Runner = Callable[..., tuple]


@dataclass(frozen=True)
class LstmCase:
    """One configuration of nn.LSTM and one batch for it."""

    name: str
    input: int
    hidden: int
    batch: int
    steps: int
    options: dict = field(default_factory=dict)
    lengths: tuple[int, ...] | None = None
    states: bool = True

    @property
    def cells(self) -> int:
        return self.options.get("num_layers", 1) * (2 if self.options.get("bidirectional") else 1)

    def layer(self, kind: type, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        torch.manual_seed(1)
        return kind(self.input, self.hidden, **self.options).to(dtype)

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, tuple | None]:
        torch.manual_seed(2)
        shape = [self.steps, self.batch, self.input]
        if self.options.get("batch_first"):
            shape[:2] = shape[1], shape[0]
        x = torch.randn(shape)
        out = self.options.get("proj_size", 0) or self.hidden
        hx = (
            torch.randn(self.cells, self.batch, out),
            torch.randn(self.cells, self.batch, self.hidden),
        )
        return x.to(dtype), (hx[0].to(dtype), hx[1].to(dtype)) if self.states else None


RAGGED = (3, 0, 7, 7, 1, 5)

CASES = [
    LstmCase("tiny", 3, 5, 4, 6),
    LstmCase("one", 1, 1, 1, 1),
    LstmCase("no_states", 5, 20, 6, 7, states=False),
    LstmCase("series", 1, 50, 32, 30, states=False),
    LstmCase("one_step", 9, 33, 5, 1),
    LstmCase("one_sequence", 16, 64, 1, 50),
    LstmCase("wide_input", 70, 17, 8, 5),
    LstmCase("no_bias", 6, 16, 7, 4, {"bias": False}),
    LstmCase("batch_first", 6, 18, 7, 4, {"batch_first": True}),
    LstmCase("layers", 6, 18, 7, 5, {"num_layers": 3}),
    LstmCase("both_ways", 6, 18, 7, 5, {"bidirectional": True}),
    LstmCase("layers_both_ways", 5, 19, 3, 6, {"num_layers": 2, "bidirectional": True}),
    LstmCase("projection", 6, 18, 7, 5, {"proj_size": 7}),
    LstmCase("projection_all", 6, 35, 9, 4,
             {"proj_size": 17, "num_layers": 2, "bidirectional": True, "bias": False}),
    LstmCase("lengths", 6, 18, 6, 7, {}, RAGGED),
    LstmCase("lengths_no_states", 6, 18, 6, 7, {"num_layers": 2}, RAGGED, states=False),
    LstmCase("lengths_all", 6, 18, 6, 7,
             {"num_layers": 2, "bidirectional": True, "batch_first": True, "proj_size": 5}, RAGGED),
    LstmCase("lengths_full", 6, 18, 4, 3, {}, (3, 3, 3, 3)),
    LstmCase("lengths_zero", 6, 18, 3, 3, {"bidirectional": True}, (0, 0, 0)),
    LstmCase("narrow_block", 5, 50, 13, 6),
    LstmCase("narrow_block_lengths", 5, 17, 15, 6, {"bidirectional": True},
             (6, 6, 1, 2, 6, 5, 4, 0, 3, 6, 6, 6, 2, 1, 6)),
    LstmCase("medium", 64, 128, 33, 9),
    LstmCase("split_by_units", 24, 512, 5, 4),
]  # fmt: skip


def pack_and_run(layer: torch.nn.Module, x: Tensor, hx: tuple | None, lengths: Tensor) -> tuple:
    """torch's way to run sequences of different lengths; it cannot pack those of length zero."""
    batch_first, dim = layer.batch_first, 0 if layer.batch_first else 1
    directions = 2 if layer.bidirectional else 1
    present = lengths.nonzero().squeeze(1)
    out = layer.proj_size or layer.hidden_size
    if hx is None:
        cells = layer.num_layers * directions
        zeros = [x.new_zeros(cells, x.shape[dim], size) for size in (out, layer.hidden_size)]
        hx = (zeros[0], zeros[1])
    shape = list(x.shape)
    shape[-1] = out * directions
    output = x.new_zeros(shape)
    if len(present) == 0:
        # Connected to everything, as the gradients of zero are.
        nothing = sum(p.sum() for p in [*layer.parameters(), x, *hx]) * 0
        return output + nothing, (hx[0] + nothing, hx[1] + nothing)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        x.index_select(dim, present), lengths[present], batch_first, enforce_sorted=False
    )
    states = tuple(s.index_select(1, present) for s in hx)
    result, (h, c) = layer(packed, states)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(
        result, batch_first, total_length=x.shape[1 - dim]
    )
    return output.index_copy(dim, present, padded), (
        hx[0].index_copy(1, present, h),
        hx[1].index_copy(1, present, c),
    )


def everything(
    case: LstmCase, layer: torch.nn.Module, by_torch: bool, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Results and all gradients of a case, by name."""
    x, hx = case.tensors(dtype)
    x.requires_grad_()
    leaves = {"input": x}
    if hx is not None:
        leaves.update(h_0=hx[0].requires_grad_(), c_0=hx[1].requires_grad_())
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    if lengths is None:
        output, (h_n, c_n) = layer(x, hx)
    elif by_torch:
        output, (h_n, c_n) = pack_and_run(layer, x, hx, lengths)
    else:
        output, (h_n, c_n) = layer(x, hx, lengths=lengths)
    results = {"output": output, "h_n": h_n, "c_n": c_n}
    torch.manual_seed(3)
    grads = [torch.randn(t.shape).to(dtype) for t in results.values()]
    leaves.update(layer.named_parameters())
    found = torch.autograd.grad(list(results.values()), list(leaves.values()), grads)
    results.update({f"grad_{n}": g for n, g in zip(leaves, found, strict=True)})
    return {name: t.detach() for name, t in results.items()}


def assert_all_parity(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], oracle: dict[str, Tensor]
) -> None:
    assert ours.keys() == theirs.keys() == oracle.keys()
    for name in ours:
        assert_parity(ours[name], theirs[name], oracle[name], name)
