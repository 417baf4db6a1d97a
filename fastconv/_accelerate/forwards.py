# SPDX-License-Identifier: MIT
"""What computes an accelerated layer: the ``forward`` functions of ``fastconv.nn`` on the layer of
``torch.nn``, bound to the instance.

The class of a layer never changes, because programs look at it: captum's DeepLift and LRP, FLOP
counters, quantization and per-sample gradients all search ``type(module)`` in a table. What changes
are two entries of the instance's ``__dict__``: ``"forward"``, which ``Module.__call__`` finds
before the class's method, and ``"__reduce_ex__"``, which ``copy`` and ``pickle`` find, so that a
copy's forward is bound to the copy. Taking them out restores the layer completely.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from fastconv._accelerate.guards import runs_on_kernels
from fastconv._accelerate.recurrent import lstm_cell_forward, lstm_forward
from fastconv.nn import AvgPool2d, Conv2d, MaxPool2d
from fastconv.nn.batch_norm import normalize
from fastconv.ops import avg_pool2d, relu

_Function = Callable[..., Any]


class FastForward:
    """The ``forward`` of one accelerated module: ``what``, a function of this package, with the
    module before the other arguments.

    It refers to the module weakly, so that a deleted model is freed at once.
    """

    __slots__ = ("__weakref__", "_module", "_what")

    def __init__(self, module: Module, what: Any) -> None:
        self._module = weakref.ref(module)
        self._what = what

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._module()  # the property takes longer
        return self._what(self.module if module is None else module, *args, **kwargs)

    @property
    def module(self) -> Module:
        """The module whose forward this is."""
        module = self._module()
        if module is None:
            raise ReferenceError("fastconv: the layer whose forward this is was deleted")
        return module

    def __deepcopy__(self, memo: dict[int, Any]) -> FastForward:
        # Parametrized modules copy their __dict__ entry by entry.
        what = copy.deepcopy(self._what, memo)
        return type(self)(copy.deepcopy(self.module, memo), what)

    def reduce_module(self, protocol: int) -> Any:
        """The module's ``__reduce_ex__``: what its class's says, but that the copy gets a forward
        of its own, unless somebody has put another in its place."""
        module = self.module
        reduced: Any = type(module).__reduce_ex__(module, protocol)
        if not isinstance(reduced, tuple) or len(reduced) < 3 or not isinstance(reduced[2], dict):
            return reduced
        make, arguments, state, *rest = reduced
        state = {key: value for key, value in state.items() if key != "__reduce_ex__"}
        if state.get("forward") is self:
            del state["forward"]
            make, arguments = _remade, (type(self), self._what, make, *arguments)
        return (make, arguments, state, *rest)

    def computes(self, function: _Function) -> bool:
        """Whether it is this function that runs."""
        return self._what is function

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(type(self.module).forward.__get__(self.module))

    @property
    def __code__(self) -> CodeType:
        # torch.export names the program after it.
        return type(self.module).forward.__code__

    @property
    def __globals__(self) -> dict[str, Any]:
        # torch.jit.script asks for it, and would otherwise fail on that. torch.fx asks, too, and
        # does without.
        raise AttributeError(
            "torch.jit.script cannot compile an accelerated model; call fastconv.restore(model) "
            "first (torch.jit.trace, torch.export and torch.compile work)"
        )


def _remade(kind: type[FastForward], what: Any, make: _Function, *arguments: Any) -> Module:
    module: Module = make(*arguments)
    put_in_place(module, kind(module, what))
    return module


def put_in_place(module: Module, forward: FastForward) -> None:
    """Makes the module run on this forward, which is its own."""
    module.__dict__["forward"] = forward
    module.__dict__["__reduce_ex__"] = forward.reduce_module


def take_out(module: Module) -> None:
    """Undoes :func:`put_in_place`; a forward that somebody else has put over ours stays."""
    if is_accelerated(module):
        del module.__dict__["forward"]
    reduce_module = module.__dict__.get("__reduce_ex__")
    if isinstance(getattr(reduce_module, "__self__", None), FastForward):
        del module.__dict__["__reduce_ex__"]


def conv2d_forward(module: torch.nn.Conv2d, input: Tensor) -> Tensor:
    if not runs_on_kernels(input):
        return type(module).forward(module, input)
    return Conv2d._conv_forward(module, input, module.weight, module.bias)  # type: ignore[arg-type]


def max_pool2d_forward(module: torch.nn.MaxPool2d, input: Tensor) -> Any:
    if not runs_on_kernels(input):
        return type(module).forward(module, input)
    return MaxPool2d.forward(module, input)  # type: ignore[arg-type]


def avg_pool2d_forward(module: torch.nn.AvgPool2d, input: Tensor) -> Tensor:
    if not runs_on_kernels(input):
        return type(module).forward(module, input)
    return AvgPool2d.forward(module, input)  # type: ignore[arg-type]


# With given statistics and gradients torch is up to 1.25x as fast on fewer values
# (benchmarks/README.md).
_LEAST_EVAL_NORM = 1_048_576


def batch_norm_forward(module: _BatchNorm, input: Tensor) -> Tensor:
    if not runs_on_kernels(input) or (
        input.numel() < _LEAST_EVAL_NORM
        and torch.is_grad_enabled()
        and not module.training
        and module.running_mean is not None
        and (input.requires_grad or (module.affine and module.weight.requires_grad))
        and not torch.jit.is_tracing()  # which compares graphs with and without gradients
    ):
        return type(module).forward(module, input)
    return normalize(module, input)


# Smaller results do not come from the cache of memory blocks, and nothing is gained.
_LEAST_RELU = 65_536


def relu_forward(module: torch.nn.ReLU, input: Tensor) -> Tensor:
    if (
        not runs_on_kernels(input)
        or input.numel() < _LEAST_RELU
        or torch.compiler.is_compiling()  # compilers fuse torch's own with what is around it
    ):
        return type(module).forward(module, input)
    return relu(input, module.inplace)


# Below as many elements torch's mean over a whole map is faster than a pooling with its backward
# pass; without a backward pass it always is (benchmarks/results/README.md).
_LEAST_GLOBAL = 65_536


def adaptive_avg_pool2d_forward(module: torch.nn.AdaptiveAvgPool2d, input: Tensor) -> Tensor:
    """Average pooling where the windows are all of one size and do not overlap."""
    window = _equal_windows(module, input) if runs_on_kernels(input) else None
    if window is None:
        return type(module).forward(module, input)
    return avg_pool2d(input, window)


def _equal_windows(module: torch.nn.AdaptiveAvgPool2d, input: Tensor) -> tuple[int, int] | None:
    """Size of the windows, if they are equal and fastconv is not slower on them."""
    if input.dim() not in (3, 4):
        return None
    wanted = module.output_size
    pair = wanted if isinstance(wanted, (tuple, list)) else (wanted, wanted)
    height, width = input.shape[-2:]
    rows = height if pair[0] is None else pair[0]
    columns = width if pair[1] is None else pair[1]
    if rows == 1 and columns == 1:
        backward = input.requires_grad and torch.is_grad_enabled() and not torch.jit.is_tracing()
        if not backward or input.numel() < _LEAST_GLOBAL:
            return None
    if not (0 < rows <= height and 0 < columns <= width) or height % rows or width % columns:
        return None
    return height // rows, width // columns


# A layer is served when its class computes by these very functions: subclasses that only add
# something (parametrizations, FSDP) are, subclasses with a forward of their own are not.
_LAYERS: tuple[tuple[type[Module], _Function], ...] = (
    (torch.nn.Conv2d, conv2d_forward),
    (torch.nn.MaxPool2d, max_pool2d_forward),
    (torch.nn.AvgPool2d, avg_pool2d_forward),
    (torch.nn.AdaptiveAvgPool2d, adaptive_avg_pool2d_forward),
    (torch.nn.BatchNorm1d, batch_norm_forward),
    (torch.nn.BatchNorm2d, batch_norm_forward),
    (torch.nn.ReLU, relu_forward),
    (torch.nn.LSTM, lstm_forward),
    (torch.nn.LSTMCell, lstm_cell_forward),
)


def served_as(module: Module) -> type[Module] | None:
    """The class of ``torch.nn`` that fastconv serves the module as; None if it serves it not."""
    for layer, _ in _LAYERS:
        if isinstance(module, layer):
            return layer
    return None


def forward_for(module: Module) -> FastForward | str:
    """A fast forward for the module, not yet in place; or why there is none, as half a sentence."""
    if type(module).__module__.startswith("fastconv."):
        return "a layer of fastconv already"
    layer = served_as(module)
    if layer is None:
        return "fastconv has no kernel for it"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    if type(module).forward is not layer.forward:
        return "its class has a forward of its own"
    if isinstance(module, torch.nn.Conv2d) and (
        type(module)._conv_forward is not torch.nn.Conv2d._conv_forward
        or "_conv_forward" in module.__dict__
    ):
        return "its class has a _conv_forward of its own"
    return FastForward(module, dict(_LAYERS)[layer])


def is_accelerated(module: Module) -> bool:
    """Whether this very module runs on a forward of this package."""
    return isinstance(module.__dict__.get("forward"), FastForward)
