# SPDX-License-Identifier: MIT
"""LSTM layers of fastconv on the CUDA kernels, run by the emulator: what the binding does with
tensors, in Python, with every buffer between guard pages."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from cuda_shim import CudaShim, Memory
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
STEPS, PERSISTENT = 0, 1


@dataclass
class Batch:
    """Where the rows of one call are: csrc/common/shapes.h, LstmShape."""

    steps: int
    batch: int
    row_start: Tensor | None = None
    order: Tensor | None = None

    @staticmethod
    def of(input: Tensor, lengths: Tensor | None, batch_sizes: Tensor | None) -> Batch:
        if batch_sizes is not None:
            starts = torch.cat([torch.zeros(1, dtype=torch.int64), batch_sizes.cumsum(0)])
            return Batch(len(batch_sizes), int(batch_sizes[0]), starts)
        steps, batch = input.shape[:2]
        if lengths is None or bool((lengths == steps).all()):
            return Batch(steps, batch)
        order = torch.argsort(lengths, descending=True, stable=True)
        active = (lengths.unsqueeze(0) > torch.arange(steps).unsqueeze(1)).sum(1)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), active.cumsum(0)])
        return Batch(steps, batch, starts, order)

    @property
    def rows(self) -> int:
        return self.steps * self.batch if self.row_start is None else int(self.row_start[-1])


@dataclass
class ShimLstm:
    """Computes one layer in one direction on the emulated GPU."""

    shim: CudaShim
    path: int
    flush: str = "end"
    allow_tf32: bool = False
    alignment: int = 16  # in bytes, of all tensors but the saved gates
    kernels: list[str] = field(default_factory=list)

    def numbers(self, x: Tensor, batch: Batch, sizes: tuple, reverse: bool) -> tuple:
        hidden, out, projected = sizes
        return (
            DTYPES.index(x.dtype), self.path + 2 * self.allow_tf32, batch.steps, batch.batch,
            x.shape[-1], hidden, out, int(projected), int(reverse), batch.row_start,
        )  # fmt: skip

    def launch(
        self, memory: Memory, name: str, numbers: tuple, tensors: list[Tensor | None]
    ) -> None:
        """Calls the launcher `name` with a table of pointers, the workspace last."""
        table = (ctypes.c_void_p * (len(tensors) + 1))()
        for i, tensor in enumerate(tensors):
            table[i] = None if tensor is None else tensor.data_ptr()
        pointers = torch.frombuffer(table, dtype=torch.int64)
        need = self.shim.value(f"{name}_workspace_bytes", *numbers, pointers)
        workspace = memory.allocate(need, torch.uint8, "workspace", 256)
        table[len(tensors)] = workspace.data_ptr() if need else None
        self.shim.reset_counts()
        self.shim.call(name, *numbers, pointers)
        self.kernels += self.shim.kernels()

    def move(
        self, memory: Memory, batch: Batch, x: Tensor | None, to_padded: bool
    ) -> Tensor | None:
        """Between [T, B, width] and the rows of the kernels."""
        if batch.order is None or x is None:
            return x
        width = x.shape[-1]
        sizes = (batch.steps, batch.batch, width) if to_padded else (batch.rows, width)
        result = memory.empty(sizes, x.dtype, "moved rows")
        tables = []
        for name, host in (("order", batch.order), ("row_start", batch.row_start)):
            assert host is not None
            tables.append(memory.empty(host.shape, torch.int64, name))
            self.shim.call("store_integers", host, len(host), tables[-1])
            assert torch.equal(tables[-1], host)
        self.shim.call(
            "lstm_rows", DTYPES.index(x.dtype), int(to_padded), batch.steps, batch.batch, width,
            *tables, x, result,
        )  # fmt: skip
        return result

    @staticmethod
    def sort(batch: Batch, states: Tensor | None) -> Tensor | None:
        return states if states is None or batch.order is None else states[batch.order]

    @staticmethod
    def unsort(batch: Batch, states: Tensor) -> Tensor:
        if batch.order is None:
            return states.clone()
        return torch.empty_like(states).index_copy_(0, batch.order, states)

    def forward(self, operands: tuple, reverse: bool, training: bool = True) -> tuple:
        x, h_0, c_0, w_ih, w_hh, b_ih, b_hh, w_hr, lengths, batch_sizes = operands
        batch = Batch.of(x, lengths, batch_sizes)
        hidden, out = w_ih.shape[0] // 4, w_hh.shape[1]
        if batch.rows == 0:
            zeros = x.new_zeros(batch.batch, out), x.new_zeros(batch.batch, hidden)
            states = tuple(
                z if s is None else s.clone() for s, z in zip((h_0, c_0), zeros, strict=False)
            )
            return x.new_zeros(*x.shape[:-1], out), *states, x.new_empty(0), x.new_empty(0)
        with self.shim.memory(self.flush) as memory:

            def copy(name: str, t: Tensor | None) -> Tensor | None:
                if t is None:
                    return None
                alignment = 16 if name == "gates" else self.alignment
                return memory.copy(t.contiguous(), name, alignment=alignment)

            def empty(name: str, *sizes: int) -> Tensor:
                return memory.empty(sizes, x.dtype, name)

            rows = self.move(memory, batch, copy("input", x), False)
            inputs = [
                rows, copy("h_0", self.sort(batch, h_0)), copy("c_0", self.sort(batch, c_0)),
                copy("w_ih", w_ih), copy("w_hh", w_hh), copy("b_ih", b_ih), copy("b_hh", b_hh),
                copy("w_hr", w_hr),
            ]  # fmt: skip
            y = empty("output", batch.rows, out)
            h_n, c_n = empty("h_n", batch.batch, out), empty("c_n", batch.batch, hidden)
            gates = empty("gates", batch.rows, 4 * hidden) if training else None
            cells = empty("cells", batch.rows, hidden) if training else None
            numbers = self.numbers(x, batch, (hidden, out, w_hr is not None), reverse)
            self.launch(memory, "lstm_forward", numbers, [*inputs, y, h_n, c_n, gates, cells])
            padded = self.move(memory, batch, y, True)
            assert padded is not None
            sizes = (*x.shape[:-1], out)
            saved = (gates.clone(), cells.clone()) if training else (None, None)
            states = self.unsort(batch, h_n), self.unsort(batch, c_n)
            return padded.view(sizes).clone(), *states, *saved

    def backward(
        self, operands: tuple, saved: tuple, grads: tuple, reverse: bool, mask: tuple
    ) -> tuple:
        x, h_0, c_0, w_ih, w_hh, _b_ih, _b_hh, w_hr, lengths, batch_sizes = operands
        batch = Batch.of(x, lengths, batch_sizes)
        hidden, out = w_ih.shape[0] // 4, w_hh.shape[1]
        if batch.rows == 0:
            passed = [None if t is None else torch.zeros_like(t) for t in operands[:8]]
            return passed[0], grads[1], grads[2], *passed[3:]
        with self.shim.memory(self.flush) as memory:

            def copy(name: str, t: Tensor | None) -> Tensor | None:
                if t is None:
                    return None
                alignment = 16 if name == "gates" else self.alignment
                return memory.copy(t.contiguous(), name, alignment=alignment)

            def empty(name: str, wanted: bool, *sizes: int) -> Tensor | None:
                return memory.empty(sizes, x.dtype, name) if wanted else None

            y, gates, cells = saved
            rows = self.move(memory, batch, copy("input", x), False)
            inputs = [
                rows, copy("h_0", self.sort(batch, h_0)), copy("c_0", self.sort(batch, c_0)),
                copy("w_ih", w_ih), copy("w_hh", w_hh), copy("w_hr", w_hr),
                self.move(memory, batch, copy("output", y), False), copy("gates", gates),
                copy("cells", cells),
                self.move(memory, batch, copy("grad_output", grads[0]), False),
                copy("grad_h_n", self.sort(batch, grads[1])),
                copy("grad_c_n", self.sort(batch, grads[2])),
            ]  # fmt: skip
            results = [
                empty("grad_input", mask[0], batch.rows, x.shape[-1]),
                empty("grad_h_0", True, batch.batch, out),
                empty("grad_c_0", True, batch.batch, hidden),
                empty("grad_w_ih", mask[3], *w_ih.shape),
                empty("grad_w_hh", mask[4], *w_hh.shape),
                empty("grad_b", mask[5] or mask[6], 4 * hidden),
                empty("grad_w_hr", mask[7], out, hidden),
            ]
            numbers = self.numbers(x, batch, (hidden, out, w_hr is not None), reverse)
            self.launch(memory, "lstm_backward", numbers, [*inputs, *results])
            grad_x = self.move(memory, batch, results[0], True)
            return (
                None if grad_x is None else grad_x.view(x.shape).clone(),
                None if h_0 is None else self.unsort(batch, results[1]),
                None if c_0 is None else self.unsort(batch, results[2]),
                *(None if r is None else r.clone() for r in (*results[3:6], results[5])),
                None if results[6] is None else results[6].clone(),
            )


def layer_on(shim_lstm: ShimLstm):
    """torch.ops.fastconv.lstm_layer on the emulator, differentiable once."""

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, reverse, *operands):
            y, h_n, c_n, gates, cells = shim_lstm.forward(operands, reverse)
            ctx.operands, ctx.saved, ctx.reverse = operands, (y, gates, cells), reverse
            ctx.set_materialize_grads(False)
            return y, h_n, c_n

        @staticmethod
        def backward(ctx, *grads):
            mask = tuple(t is not None for t in ctx.operands[:8])
            found = shim_lstm.backward(ctx.operands, ctx.saved, grads, ctx.reverse, mask)
            return None, *found, None, None

    def layer(
        x, hx, cx, w_ih, w_hh, b_ih=None, b_hh=None, w_hr=None, lengths=None, batch_sizes=None,
        reverse=False,
    ):  # fmt: skip
        return Layer.apply(reverse, x, hx, cx, w_ih, w_hh, b_ih, b_hh, w_hr, lengths, batch_sizes)

    return layer


@contextmanager
def on_shim(shim_lstm: ShimLstm) -> Iterator[None]:
    """fastconv's LSTM layers compute on the emulator while this lasts, in every dtype."""
    module = sys.modules["fastconv.ops.lstm"]
    layer = layer_on(shim_lstm)

    def cell(input, *operands):  # as CUDA's lstm_cell, which is composed of lstm_layer
        _, h, c = layer(input.unsqueeze(0), *operands)
        return h, c

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["fastconv.nn.lstm"], "lstm_of_module", lambda *_: NotImplemented)
        patch.setattr(module, "_layer", layer)
        patch.setattr(module, "_direct_cell", cell)
        patch.setattr(module, "_left_to_torch", lambda input: False)
        yield
