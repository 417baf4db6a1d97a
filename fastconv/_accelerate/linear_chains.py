# SPDX-License-Identifier: MIT
"""Fully connected layers that stand one behind the other, run as one operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Module

from fastconv._accelerate.chains import ACTIVATIONS, call_in_turn, may_be_passed_over
from fastconv._accelerate.guards import runs_on_kernels
from fastconv.ops import mlp

_LARGEST_WEIGHT = 262_144  # what the operator's kernels serve


@dataclass(frozen=True, eq=False)
class LinearChain:
    """Linear layers of a Sequential with one and the same activation between them."""

    start: int
    layers: tuple[Module, ...]  # linear, activation, linear, ..., linear
    activation: str
    negative_slope: float

    def __call__(self, input: Any) -> Any:
        linears: Any = self.layers[::2]
        weights, biases = [], []
        if self.fuses(input):
            weights = [layer.weight for layer in linears]
            biases = [layer.bias for layer in linears]
        if not weights or any(bias is None for bias in biases):
            return call_in_turn(self.layers, input)
        return mlp(
            input,
            weights,
            biases,
            activation=self.activation,
            negative_slope=self.negative_slope,
        )

    def fuses(self, input: Any) -> bool:
        """Whether this call may run as one operator."""
        if not runs_on_kernels(input) or input.dim() != 2:
            return False
        if not may_be_passed_over(self.layers, ()):
            return False
        if self.activation != "leaky_relu":
            return True
        activations: Any = self.layers[1::2]
        return all(layer.negative_slope == self.negative_slope for layer in activations)


def _is_linear(module: Module) -> bool:
    return (
        isinstance(module, torch.nn.Linear)
        and type(module).forward is torch.nn.Linear.forward
        and module.bias is not None
        and module.in_features * module.out_features <= _LARGEST_WEIGHT
    )


def linear_chain_at(layers: Sequence[Module], start: int) -> LinearChain | None:
    """The chain of at least two linear layers that begins at ``start``, if one does."""
    if not _is_linear(layers[start]) or start + 2 >= len(layers):
        return None
    kind = type(layers[start + 1])
    slope = getattr(layers[start + 1], "negative_slope", 0.01)
    end = start + 1
    while (
        kind in ACTIVATIONS
        and end + 1 < len(layers)
        and type(layers[end]) is kind
        and getattr(layers[end], "negative_slope", 0.01) == slope
        and _is_linear(layers[end + 1])
    ):
        end += 2
    if end == start + 1:
        return None
    return LinearChain(start, tuple(layers[start:end]), ACTIVATIONS[kind], slope)
