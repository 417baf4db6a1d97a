# SPDX-License-Identifier: MIT
"""Convolution, batch normalisation, activation and pooling that stand one behind the other, run as
one operator; where a whole chain cannot, in training, its normalisation and relu still do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from fastconv._accelerate.forwards import is_accelerated, served_as
from fastconv._accelerate.guards import global_hooks_exist, is_plain, runs_on_kernels
from fastconv.nn.batch_norm import normalize
from fastconv.ops import conv_block2d

ACTIVATIONS: dict[type[Module], str] = {
    torch.nn.ReLU: "relu",
    torch.nn.LeakyReLU: "leaky_relu",
    torch.nn.Sigmoid: "sigmoid",
    torch.nn.Tanh: "tanh",
}
_POOLS: dict[type[Module], str] = {torch.nn.MaxPool2d: "max", torch.nn.AvgPool2d: "avg"}
_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)


def is_norm(module: Module) -> bool:
    """Whether it is a batch normalisation of images that runs on fastconv."""
    return type(module) is torch.nn.BatchNorm2d and is_accelerated(module)


def call_in_turn(layers: Sequence[Module], input: Any) -> Any:
    """What ``nn.Sequential`` does."""
    for layer in layers:
        input = layer(input)
    return input


def may_be_passed_over(layers: Sequence[Module], accelerated: Sequence[Module | None]) -> bool:
    """Whether nobody would notice that these layers are not called one by one: those of the second
    list still run on fastconv, the others there or as torch has them."""

    def runs_as_made(layer: Module) -> bool:
        return layer not in accelerated and "forward" not in layer.__dict__

    return not global_hooks_exist() and all(
        is_plain(layer) and (is_accelerated(layer) or runs_as_made(layer)) for layer in layers
    )


@dataclass(frozen=True, eq=False)
class NormChain:
    """Batch normalisation and relu of a Sequential, from ``start`` on, that can run as one
    operator."""

    start: int
    layers: tuple[Any, Module]

    def __call__(self, input: Any) -> Any:
        if not self.fuses(input):
            return call_in_turn(self.layers, input)
        return normalize(self.layers[0], input, "relu")

    def fuses(self, input: Any) -> bool:
        """Whether this call may run as one operator."""
        return runs_on_kernels(input) and may_be_passed_over(self.layers, self.layers[:1])


def norm_chain_at(layers: Sequence[Module], start: int) -> NormChain | None:
    """The chain of normalisation and relu that begins with the layer at ``start``, if one does."""
    pair = layers[start : start + 2]
    if len(pair) < 2 or served_as(pair[0]) not in _NORMS or not is_accelerated(pair[0]):
        return None
    return NormChain(start, (pair[0], pair[1])) if type(pair[1]) is torch.nn.ReLU else None


@dataclass(frozen=True, eq=False)
class Chain:
    """Layers of a Sequential, from ``start`` on, that can run as one operator."""

    start: int
    layers: tuple[Module, ...]  # convolution, then the following, each present or not
    norm: torch.nn.BatchNorm2d | None
    activation: Any
    pool: Module | None
    rest: NormChain | None  # what can still run as one when the whole does not

    def __call__(self, input: Any) -> Any:
        if not self.fuses(input):
            return call_in_turn(self.steps(), input)
        conv: Any = self.layers[0]
        weight, bias = conv.weight, conv.bias
        activation, slope, pool = "none", 0.01, "none"
        pool_size: Any = 2
        pool_stride: Any = None
        if self.activation is not None:
            activation = ACTIVATIONS[type(self.activation)]
            if activation == "leaky_relu":
                slope = self.activation.negative_slope
        if self.pool is not None:
            pool = _POOLS[type(self.pool)]
            pool_size, pool_stride = self.pool.kernel_size, self.pool.stride
        if self.norm is not None:
            weight, bias = folded(weight, bias, self.norm)
        return conv_block2d(
            input,
            weight,
            bias,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            activation=activation,
            negative_slope=slope,
            pool=pool,
            pool_size=pool_size,
            pool_stride=pool_stride,
        )

    def steps(self) -> Sequence[Any]:
        """What is called in turn when the whole does not run as one operator."""
        if self.rest is None:
            return self.layers
        return (self.layers[0], self.rest, *self.layers[3:])

    def fuses(self, input: Any) -> bool:
        """Whether this call may run as one operator."""
        conv: Any = self.layers[0]
        if not runs_on_kernels(input) or conv.padding_mode != "zeros":
            return False
        if not may_be_passed_over(self.layers, (conv, self.norm, self.pool)):
            return False
        if self.norm is not None and not norm_folds(input, conv, self.norm):
            return False
        return self._pool_fits()

    def _pool_fits(self) -> bool:
        pool: Any = self.pool
        if pool is None:
            return True
        if pool.ceil_mode or pool.padding not in (0, (0, 0)):
            return False
        if isinstance(pool, torch.nn.MaxPool2d):
            return pool.dilation in (1, (1, 1)) and not pool.return_indices
        return pool.divisor_override is None


def norm_folds(input: Tensor, conv: Any, norm: torch.nn.BatchNorm2d) -> bool:
    """Whether the normalisation behind a convolution can and should be folded into it: in eval
    mode, where no gradient of their parameters is needed, and where it is cheaper.

    ``torch.jit.trace`` gets the same graph with and without gradients, and compares the two.
    """
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return False
    if not _folding_pays(input, conv):
        return False
    if not torch.is_grad_enabled() or torch.jit.is_tracing():
        return True
    return not any(
        parameter is not None and parameter.requires_grad
        for parameter in (conv.weight, conv.bias, norm.weight, norm.bias)
    )


def _folding_pays(input: Tensor, conv: Any) -> bool:
    """Whether the convolution's weight is smaller than its output, so that it is cheaper to scale
    (both have ``out_channels`` rows, which are compared)."""
    stride = conv.stride[0] * conv.stride[1]
    pixels = input.shape[-2] * input.shape[-1] * (input.shape[0] if input.dim() == 4 else 1)
    return pixels >= conv.in_channels // conv.groups * math.prod(conv.kernel_size) * stride


def folded(
    weight: Tensor, bias: Tensor | None, norm: torch.nn.BatchNorm2d
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does the batch normalisation in eval mode, too.

    ``(conv(x) - mean) * gamma / sqrt(var + eps) + beta``, after Jacob et al. 2018
    (arXiv:1712.05877). Computed at every call: nothing can go stale.
    """
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    scale = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale if bias is None else (bias - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return weight * scale.view(-1, 1, 1, 1), shift


def chain_at(layers: Sequence[Module], start: int) -> Chain | None:
    """The chain that begins with the layer at ``start``, if one does."""
    if served_as(layers[start]) is not torch.nn.Conv2d or not is_accelerated(layers[start]):
        return None
    end = start + 1

    def take(fits: bool) -> Module | None:
        nonlocal end
        end += fits
        return layers[end - 1] if fits else None

    norm: Any = take(end < len(layers) and is_norm(layers[end]))
    activation = take(end < len(layers) and type(layers[end]) in ACTIVATIONS)
    pool = take(end < len(layers) and type(layers[end]) in _POOLS and is_accelerated(layers[end]))
    if end == start + 1:
        return None
    rest = norm_chain_at(layers, start + 1) if norm is not None else None
    return Chain(start, tuple(layers[start:end]), norm, activation, pool, rest)
