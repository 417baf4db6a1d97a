# SPDX-License-Identifier: MIT
"""``fold_bn``: batch normalisation computed by the convolution before it, in modules that call the
two one after the other in code of their own.

That a normalisation reads nothing but the convolution's output, and that nothing else does, is
read off the module's forward by ``torch.fx``, with its children as leaves. Around each call of that
forward the convolutions are allowed to fold; called from anywhere else they are what they were. A
convolution folds its own weight anew at every call, so that nothing goes stale, and leaves word
that the normalisation has been done; all of it per thread.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import Module

from fastconv._accelerate.chains import folded, is_norm, norm_folds
from fastconv._accelerate.forwards import (
    FastForward,
    batch_norm_forward,
    conv2d_forward,
    is_accelerated,
    put_in_place,
)
from fastconv._accelerate.guards import global_hooks_exist, is_plain, runs_on_kernels
from fastconv.nn import Conv2d

_Pair = tuple[torch.nn.Conv2d, torch.nn.BatchNorm2d]


class _Calls(threading.local):
    """Of this thread: pairs inside whose module's forward it is, and normalisations done."""

    def __init__(self) -> None:
        self.allowed: dict[Module, torch.nn.BatchNorm2d] = {}
        self.done: set[Module] = set()


_calls = _Calls()


def folding_conv2d_forward(module: torch.nn.Conv2d, input: Tensor) -> Tensor:
    norm = _calls.allowed.get(module)
    if norm is None or not runs_on_kernels(input) or not norm_folds(input, module, norm):
        return conv2d_forward(module, input)
    weight, bias = folded(module.weight, module.bias, norm)
    _calls.done.add(norm)
    return Conv2d._conv_forward(module, input, weight, bias)  # type: ignore[arg-type]


def folding_norm_forward(module: torch.nn.BatchNorm2d, input: Tensor) -> Tensor:
    if module in _calls.done:
        _calls.done.discard(module)
        return input
    return batch_norm_forward(module, input)


class FoldingForward(FastForward):
    """The ``forward`` of a module that calls convolutions and their normalisations."""

    __slots__ = ()

    @property
    def pairs(self) -> tuple[_Pair, ...]:
        """Convolutions and the normalisations behind them."""
        return self._what

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        forward = type(module).forward
        if torch.compiler.is_compiling() or global_hooks_exist():
            return forward(module, *args, **kwargs)
        allowed: dict[Module, torch.nn.BatchNorm2d] = {
            conv: norm for conv, norm in self.pairs if _may_fold(conv, norm)
        }
        before = _calls.allowed
        _calls.allowed = {**before, **allowed}
        try:
            return forward(module, *args, **kwargs)
        finally:
            _calls.allowed = before
            _calls.done.difference_update(allowed.values())


def _may_fold(conv: Module, norm: Module) -> bool:
    def runs(module: Module, function: Any) -> bool:
        forward = module.__dict__.get("forward")
        return isinstance(forward, FastForward) and forward.computes(function)

    return (
        not norm.training
        and is_plain(conv)
        and is_plain(norm)
        and runs(conv, folding_conv2d_forward)
        and runs(norm, folding_norm_forward)
    )


class _LeafTracer(fx.Tracer):
    """Does not look into the children of what it traces."""

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        return True


def find_pairs(model: Module) -> tuple[dict[Module, list[_Pair]], dict[Module, str]]:
    """Modules of the model that call a convolution and its normalisation, with those pairs; and
    modules that might, but whose forward ``torch.fx`` cannot follow, with the reason.

    The model is traced as a whole; where that fails, each module in question by itself.
    """
    parents = [module for module in model.modules() if _might_call_pairs(module)]
    found: dict[Module, list[_Pair]] = {}
    failed: dict[Module, str] = {}
    if not parents:
        return found, failed
    pairs = _traced_pairs(fx.Tracer(), model)
    for parent in parents:
        theirs = pairs if not isinstance(pairs, str) else _traced_pairs(_LeafTracer(), parent)
        if isinstance(theirs, str):
            failed[parent] = theirs
            continue
        children = {*parent.children()}
        own = [(conv, norm) for conv, norm in theirs if conv in children and norm in children]
        if own:
            found[parent] = own
    return found, failed


def _might_call_pairs(module: Module) -> bool:
    if "forward" in module.__dict__:
        return False
    children = [*module.children()]
    return any(is_norm(child) for child in children) and any(_is_conv(c) for c in children)


def _is_conv(module: Module) -> bool:
    return isinstance(module, torch.nn.Conv2d) and is_accelerated(module)


def _traced_pairs(tracer: fx.Tracer, root: Module) -> list[_Pair] | str:
    """Convolutions whose only reader is a normalisation that reads nothing else, both called once;
    or why the root cannot be traced."""
    try:
        graph = tracer.trace(root)
    except Exception as error:  # whatever the module's code makes of symbolic values
        return f"torch.fx cannot follow its forward ({type(error).__name__})"
    modules = dict(root.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(modules[str(node.target)] for node in calls)
    pairs: list[_Pair] = []
    for node in calls:
        source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if isinstance(source, fx.Node) and source.op == "call_module" and len(source.users) == 1:
            conv, norm = modules[str(source.target)], modules[str(node.target)]
            if _is_conv(conv) and is_norm(norm) and times[conv] == times[norm] == 1:
                pairs.append((conv, norm))
    return pairs


def bind(module: Module, pairs: list[_Pair]) -> list[Module]:
    """Puts the folding forwards in place; returns the module, which had none before."""
    for conv, norm in pairs:
        put_in_place(conv, FastForward(conv, folding_conv2d_forward))
        put_in_place(norm, FastForward(norm, folding_norm_forward))
    put_in_place(module, FoldingForward(module, tuple(pairs)))
    return [module]
