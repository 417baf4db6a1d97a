# SPDX-License-Identifier: MIT
"""One line that makes an existing model run on fastconv, and one that undoes it.

fastconv.accelerate(model, optimizer=optimizer)  # in place; returns what it did
fastconv.restore(model)                          # exactly as before
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch.nn import Linear, Module
from torch.optim import Optimizer

from fastconv._accelerate.fold import FoldingForward, bind, find_pairs
from fastconv._accelerate.forwards import (
    FastForward,
    forward_for,
    is_accelerated,
    put_in_place,
    served_as,
    take_out,
)
from fastconv._accelerate.optimizer import exchange, exchange_back
from fastconv._accelerate.report import Fused, Left, Report, Swapped
from fastconv._accelerate.sequential import SequentialForward, is_sequential

_Filter = Callable[[Module, str], bool]

# Which optimizers restore(model) gives back; they live no longer than the user keeps them.
_optimizers: weakref.WeakKeyDictionary[Module, weakref.WeakSet[Optimizer]] = (
    weakref.WeakKeyDictionary()
)


def accelerate(
    model: Module,
    *,
    optimizer: Optimizer | None = None,
    filter_fn: _Filter | None = None,
    fuse: bool = True,
    fold_bn: bool = False,
) -> Report:
    """Makes the layers of ``model`` run on fastconv's operators, in place.

    ``Conv2d``, ``MaxPool2d``, ``AvgPool2d``, ``AdaptiveAvgPool2d`` (where its windows are equal),
    ``BatchNorm1d``, ``BatchNorm2d``, ``ReLU``, ``LSTM`` and ``LSTMCell`` get another ``forward``,
    on the instance: classes, parameters, buffers, hooks and ``state_dict`` stay what they are.
    float32 inputs on the CPU take fastconv's operators; everything else, and everything under
    autocast, runs as before. Layers that fastconv does not serve, subclasses with a ``forward`` of
    their own among them, stay on torch and stand in the report. Calling it again does no harm.

    Args:
        model: any module.
        optimizer: a ``torch.optim.Adam`` or ``AdamW``, which becomes fastconv's: the same object,
            with its parameter groups and state. Others stay as they are.
        filter_fn: ``filter_fn(module, name)`` of every layer that could be swapped, and of linear
            layers that could be fused; False leaves it on torch.
        fuse: run convolution, activation and pooling that follow each other in an
            ``nn.Sequential`` as one operator, and in eval mode, when their parameters need no
            gradient, batch normalisation too; so do batch normalisation and ReLU, always, and small
            linear layers with one and the same activation between them. Falls back to the single
            layers whenever one of them has hooks.
        fold_bn: also fold batch normalisation into the convolution before it where a module of the
            model calls the two in code of its own, under the same conditions. ``torch.fx`` must be
            able to follow that module's ``forward``, which it runs once on symbolic values; where
            it cannot, the report says so. Parameters stay as they are.

    Returns:
        The report: ``swapped``, ``fused``, ``left`` (with reasons) and ``optimizer``; ``str()`` is
        a summary.

    Raises:
        TypeError: ``model`` is no module or ``optimizer`` no optimizer.

    Example::

        print(fastconv.accelerate(model, optimizer=optimizer))
    """
    return _accelerate(model, optimizer, filter_fn, fuse, fold_bn)[0]


def restore(model: Module) -> Module:
    """Undoes :func:`accelerate` for all modules in ``model``, and for the optimizer given with it.

    Returns:
        The model, whose layers, parameters and results are bit for bit those of torch again.
    """
    _check_module("restore", model)
    for module in model.modules():
        take_out(module)
    for optimizer in _optimizers.pop(model, ()):
        exchange_back(optimizer)
    return model


@contextlib.contextmanager
def accelerated(
    model: Module,
    *,
    optimizer: Optimizer | None = None,
    filter_fn: _Filter | None = None,
    fuse: bool = True,
    fold_bn: bool = False,
) -> Iterator[Report]:
    """:func:`accelerate` for the length of a ``with``; what was accelerated before stays so.

    Example::

        with fastconv.accelerated(model):
            y = model(x)
    """
    report, undo = _accelerate(model, optimizer, filter_fn, fuse, fold_bn)
    try:
        yield report
    finally:
        undo()


def _accelerate(
    model: Module,
    optimizer: Optimizer | None,
    filter_fn: _Filter | None,
    fuse: bool,
    fold_bn: bool,
) -> tuple[Report, Callable[[], None]]:
    _check_module("accelerate", model)
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        kind = type(optimizer).__name__
        raise TypeError(f"accelerate: expected optimizer a torch.optim.Optimizer, got {kind}")
    report = Report()
    changed: list[Module] = []
    names = {module: name for name, module in model.named_modules()}
    for module, name in names.items():
        _swap(module, name, filter_fn, report, changed)
    if fuse:
        for module, name in names.items():
            _fuse(module, name, filter_fn, report, changed)
    if fold_bn:
        changed += _fold(model, names, report)
    fused = {layer for chain in report.fused for layer in chain.layers}
    report.left = [entry for entry in report.left if entry.name not in fused]
    exchanged = optimizer is not None and _exchange(model, optimizer, report)

    def undo() -> None:
        for module in changed:
            take_out(module)
        if optimizer is not None and exchanged:
            _optimizers[model].discard(optimizer)
            exchange_back(optimizer)

    return report, undo


def _check_module(function: str, model: Any) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"{function}: expected a torch.nn.Module, got {type(model).__name__}")


def _swap(
    module: Module, name: str, filter_fn: _Filter | None, report: Report, changed: list[Module]
) -> None:
    kind = type(module).__name__
    if is_accelerated(module):
        if served_as(module) is not None:
            report.swapped.append(Swapped(name, kind))
        return
    if served_as(module) is None and any(True for _ in module.children()):
        return
    forward = forward_for(module)
    if isinstance(forward, FastForward) and filter_fn is not None and not filter_fn(module, name):
        forward = "filter_fn left it out"
    if isinstance(forward, str):
        report.left.append(Left(name, kind, forward))
        return
    put_in_place(module, forward)
    changed.append(module)
    report.swapped.append(Swapped(name, kind))


def _fuse(
    module: Module, name: str, filter_fn: _Filter | None, report: Report, changed: list[Module]
) -> None:
    prefix = name + "." if name else ""
    current = module.__dict__.get("forward")
    if isinstance(current, SequentialForward):
        forward = current
        forward.forget_plan()  # other layers may have been swapped since
    elif is_sequential(module):
        linears = [(m, prefix + key) for key, m in module._modules.items() if isinstance(m, Linear)]
        forward = SequentialForward(
            module, filter_fn is None or all(filter_fn(m, key) for m, key in linears)
        )
    else:
        return
    chains = forward.chains()
    if not chains:
        return
    if forward is not current:
        put_in_place(module, forward)
        changed.append(module)
    keys = list(module._modules)
    for chain in chains:
        layers = keys[chain.start : chain.start + len(chain.layers)]
        types = tuple(type(layer).__name__ for layer in chain.layers)
        report.fused.append(Fused(name, tuple(prefix + key for key in layers), types))


def _fold(model: Module, names: dict[Module, str], report: Report) -> list[Module]:
    changed: list[Module] = []
    found, failed = find_pairs(model)
    for module, pairs in found.items():
        changed += bind(module, pairs)
    for module, reason in failed.items():
        report.left.append(Left(names[module], type(module).__name__, f"fold_bn: {reason}"))
    for module, name in names.items():
        forward = module.__dict__.get("forward")
        for pair in forward.pairs if isinstance(forward, FoldingForward) else ():
            types = tuple(type(layer).__name__ for layer in pair)
            report.fused.append(Fused(name, tuple(names[layer] for layer in pair), types))
    return changed


def _exchange(model: Module, optimizer: Optimizer, report: Report) -> bool:
    before = type(optimizer)
    report.optimizer = exchange(optimizer)
    if type(optimizer) is before:
        return False
    _optimizers.setdefault(model, weakref.WeakSet()).add(optimizer)
    return True


__all__ = ["Report", "accelerate", "accelerated", "restore"]
