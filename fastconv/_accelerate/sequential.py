# SPDX-License-Identifier: MIT
"""The ``forward`` of an accelerated ``nn.Sequential``.

Its modules stay where they are, with their parameters and their names; where some of them form a
chain, the chain is called instead. Each call looks whether the chain may run as one operator: with
a hook on any of its modules or an input that fastconv does not serve, its modules are called one by
one, as torch would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import Module

from fastconv._accelerate.chains import Chain, NormChain, chain_at, norm_chain_at
from fastconv._accelerate.forwards import FastForward
from fastconv._accelerate.linear_chains import LinearChain, linear_chain_at

AnyChain = Chain | NormChain | LinearChain


def find_chains(layers: Sequence[Module], with_linear: bool = True) -> list[AnyChain]:
    """The chains among the layers of a Sequential, in order; none overlap."""
    chains: list[AnyChain] = []
    position = 0
    while position < len(layers):
        chain: AnyChain | None = chain_at(layers, position) or norm_chain_at(layers, position)
        if chain is None and with_linear:
            chain = linear_chain_at(layers, position)
        if chain is not None:
            chains.append(chain)
        position += len(chain.layers) if chain is not None else 1
    return chains


class SequentialForward(FastForward):
    """Calls chains and single layers in order.

    The plan is made anew when layers were added, removed or exchanged, and after copying.
    """

    __slots__ = ("_layers", "_steps")

    def __init__(self, module: Module, with_linear: bool) -> None:
        super().__init__(module, with_linear)
        self._layers: tuple[Any, ...] = ()
        self._steps: list[Any] = []

    def forget_plan(self) -> None:
        """Makes the next call look for chains again."""
        self._layers = ()

    def steps(self) -> list[Any]:
        """Chains and modules to be called one after the other."""
        layers: tuple[Any, ...] = tuple(self.module._modules.values())
        if layers != self._layers:
            steps: list[Any] = list(layers)
            for chain in reversed(find_chains(layers, self._what)):
                steps[chain.start : chain.start + len(chain.layers)] = [chain]
            self._layers, self._steps = layers, steps
        return self._steps

    def __call__(self, input: Any) -> Any:
        for step in self.steps():
            input = step(input)
        return input

    def chains(self) -> list[AnyChain]:
        """The chains of the present layers."""
        return [step for step in self.steps() if isinstance(step, AnyChain)]


def is_sequential(module: Module) -> bool:
    """Whether torch would run the module as a Sequential, so that its forward may be replaced."""
    return (
        isinstance(module, torch.nn.Sequential)
        and type(module).forward is torch.nn.Sequential.forward
        and "forward" not in module.__dict__
    )
