# SPDX-License-Identifier: MIT
"""``fastconv.explain``: what acceleration does to each layer of a model, measured."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_flatten, tree_map

from fastconv import runtime
from fastconv._accelerate.chains import Chain
from fastconv._accelerate.explanation import Explanation, LayerRow
from fastconv._accelerate.forwards import is_accelerated, put_in_place, served_as
from fastconv._accelerate.sequential import SequentialForward
from fastconv.accelerate import accelerate, restore

_Call = Callable[[], Any]
_MIN_ROUNDS = 5


@dataclass
class _Unit:
    """What is measured as one: a layer, or layers that run as one operator."""

    name: str
    type: str
    first: str  # the layer whose input is the unit's
    names: tuple[str, ...]  # its layers
    fused: bool


def explain(
    model: Module,
    example_input: Any,
    *,
    training: bool | None = None,
    show: bool = True,
    json: str | Path | None = None,
    png: str | Path | None = None,
    seconds: float = 0.05,
) -> Explanation:
    """Measures, layer by layer, what :func:`fastconv.accelerate` does to a model.

    Works on copies; the model, accelerated or not, stays as it is, its statistics included. A layer
    is measured on the input that it gets from ``example_input``, both sides in turns, on the
    threads that torch has. A ReLU in place that stands alone is measured out of place.

    Args:
        model: any module. One that is accelerated is explained as it is, another one as
            ``accelerate(model)`` would make it.
        example_input: what the model is called with: a tensor, a tuple of arguments, or a dict of
            keyword arguments.
        training: measure forward and backward pass; None does in training mode, ``model.training``.
        show: print the table, by rich if it is installed.
        json, png: files to write the data, and a chart of the times, to. The chart needs
            matplotlib.
        seconds: time spent on a layer, about; at least five rounds are measured.

    Returns:
        The explanation: ``rows`` with one entry per layer or fused chain (kernels and algorithms
        that ran, torch and fastconv milliseconds, their ratio, and the errors of both against
        float64, relative to its root mean square), and the same times for the whole model.

    Raises:
        TypeError: ``model`` is no module.
    """
    if not isinstance(model, Module):
        raise TypeError(f"explain: expected a torch.nn.Module, got {type(model).__name__}")
    args, kwargs = _arguments(example_input)
    fast = copy.deepcopy(model)
    if training is None:
        training = model.training
    else:
        fast.train(training)
    if not any(is_accelerated(module) for module in fast.modules()):
        accelerate(fast)
    plain = restore(copy.deepcopy(fast))
    with torch.set_grad_enabled(training):
        inputs = _captured_inputs(copy.deepcopy(plain), args, kwargs)
        rows = [
            _measured_row(unit, plain, fast, inputs[unit.first], training, seconds)
            for unit in _units(fast, inputs)
        ]
        theirs, ours = (_pass(net, args, kwargs, training) for net in (plain, fast))
        torch_ms, fastconv_ms = _times(theirs, ours, 4 * seconds)
    explanation = Explanation(
        rows=rows,
        training=training,
        threads=torch.get_num_threads(),
        isa=runtime.cpu_isa(),
        torch_ms=torch_ms,
        fastconv_ms=fastconv_ms,
    )
    if json is not None:
        explanation.to_json(json)
    if png is not None:
        explanation.to_png(png)
    if show:
        explanation.show()
    return explanation


def _arguments(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    return (example_input if isinstance(example_input, tuple) else (example_input,)), {}


_Inputs = dict[str, tuple[tuple[Any, ...], dict[str, Any]]]


def _captured_inputs(model: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Inputs:
    """Copies of what every module is called with, the first time, with its ``requires_grad``."""
    inputs: _Inputs = {}

    def copied(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone().requires_grad_(value.requires_grad)

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Module, args: Any, kwargs: Any) -> None:
            if name not in inputs:
                inputs[name] = tree_map(copied, (args, kwargs))

        return hook

    for name, module in model.named_modules():
        if served_as(module) is not None or isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(keep(name), with_kwargs=True)
    model(*args, **kwargs)
    return inputs


def _units(fast: Module, inputs: _Inputs) -> Iterator[_Unit]:
    """Chains that run as one operator, and the other accelerated layers, in the model's order."""
    modules = dict(fast.named_modules())
    order = list(modules)
    units: list[_Unit] = []
    covered: set[str] = set()
    for name, module in modules.items():
        forward = module.__dict__.get("forward")
        if not isinstance(forward, SequentialForward):
            continue
        keys = list(module._modules)
        prefix = name + "." if name else ""
        whole = forward.chains()
        rests = [chain.rest for chain in whole if isinstance(chain, Chain) and chain.rest]
        for chain in (*whole, *rests):
            names = tuple(prefix + key for key in keys[chain.start :][: len(chain.layers)])
            if (
                covered.isdisjoint(names)
                and names[0] in inputs
                and (chain.fuses(inputs[names[0]][0][0]))
            ):
                types = " + ".join(type(layer).__name__ for layer in chain.layers)
                label = f"{names[0]} .. {keys[chain.start + len(names) - 1]}"
                units.append(_Unit(label, types, names[0], names, True))
                covered.update(names)
    for name, module in modules.items():
        wanted = is_accelerated(module) and served_as(module) is not None
        if wanted and name in inputs and name not in covered:
            units.append(_Unit(name, type(module).__name__, name, (name,), False))
    yield from sorted(units, key=lambda unit: order.index(unit.first))


def _measured_row(
    unit: _Unit,
    plain: Module,
    fast: Module,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    training: bool,
    seconds: float,
) -> LayerRow:
    args, kwargs = call
    theirs = torch.nn.Sequential(*(plain.get_submodule(name) for name in unit.names))
    ours = torch.nn.Sequential(*(fast.get_submodule(name) for name in unit.names))
    single: tuple[Module, Module] = (theirs, ours)
    if unit.fused:
        put_in_place(ours, SequentialForward(ours, True))
    else:  # a layer may take more than one argument
        single = (_out_of_place(theirs[0]), _out_of_place(ours[0]))
    calls = [_pass(net, args, kwargs, training) for net in single]
    runtime.forget_last_used()
    calls[1]()
    kernels = runtime.last_used()
    torch_ms, fastconv_ms = _times(calls[0], calls[1], seconds)
    errors = _errors(single, args, kwargs)
    shapes = [list(t.shape) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    return LayerRow(
        name=unit.name,
        type=unit.type,
        input_shapes=shapes,
        kernels={name: f"{algorithm} ({isa})" for name, (algorithm, isa) in kernels.items()},
        torch_ms=torch_ms,
        fastconv_ms=fastconv_ms,
        torch_error=errors[0],
        error=errors[1],
    )


def _out_of_place(layer: Module) -> Module:
    """The layer, or a copy that leaves its input, which is measured again and again, as it is."""
    if not getattr(layer, "inplace", False):
        return layer
    duplicate: Any = copy.deepcopy(layer)
    duplicate.inplace = False
    return duplicate


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in tree_flatten(value)[0] if isinstance(t, Tensor) and t.is_floating_point()]


def _pass(net: Module, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> _Call:
    """The forward pass, with the gradients of parameters and inputs when training."""
    wanted = [t for t in (*_tensors((args, kwargs)), *net.parameters()) if t.requires_grad]
    outputs = _tensors(net(*args, **kwargs)) if training and wanted else []
    grads = [torch.randn_like(t) for t in outputs if t.requires_grad]
    if not grads:
        return lambda: net(*args, **kwargs)

    def step() -> None:
        found = [t for t in _tensors(net(*args, **kwargs)) if t.requires_grad]
        torch.autograd.grad(found, wanted, grads, allow_unused=True)

    return step


def _times(first: _Call, second: _Call, seconds: float) -> tuple[float, float]:
    """Medians in milliseconds, measured in turns after a call of each that is not measured."""
    times: tuple[list[float], list[float]] = ([], [])
    stop = time.perf_counter() + seconds
    for call in (first, second):
        call()
    while len(times[1]) < _MIN_ROUNDS or time.perf_counter() < stop:
        for call, own in zip((first, second), times, strict=True):
            start = time.perf_counter()
            call()
            own.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[0]), statistics.median(times[1])


@torch.no_grad()
def _errors(nets: tuple[Module, Module], args: Any, kwargs: Any) -> list[float]:
    """Largest error of an output against float64, relative to its root mean square, per net.

    Layers with random numbers (dropout between the layers of an LSTM) draw the same ones.
    """

    def double(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.double() if floating else value

    def outputs(net: Module, args: Any, kwargs: Any) -> list[Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return _tensors(net(*args, **kwargs))

    oracle = copy.deepcopy(nets[0]).double()
    exact = outputs(oracle, *tree_map(double, (args, kwargs)))
    errors = []
    for net in nets:
        worst = 0.0
        for y, reference in zip(outputs(copy.deepcopy(net), args, kwargs), exact, strict=True):
            rms = reference.square().mean().sqrt().item()
            if reference.numel() > 0 and rms > 0:
                error = (y.double() - reference).square().mean().sqrt().item()
                worst = max(worst, error / rms)
        errors.append(worst)
    return errors
