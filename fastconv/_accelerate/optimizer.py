# SPDX-License-Identifier: MIT
"""Exchange of a ``torch.optim`` Adam or AdamW for fastconv's, in place.

The object stays the same, with its parameter groups, state, hooks and whatever a scheduler or a
GradScaler remembers of it; its class changes, and with it ``step``.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from torch.optim import Optimizer

from fastconv.optim import Adam, AdamW
from fastconv.optim.one_call import OneCallStep

_EXCHANGES: dict[type[Optimizer], type[OneCallStep]] = {
    torch.optim.Adam: Adam,
    torch.optim.AdamW: AdamW,
}
_BACK = {ours: theirs for theirs, ours in _EXCHANGES.items()}


def exchange(optimizer: Optimizer) -> str:
    """Makes the optimizer fastconv's if there is one for it.

    Returns:
        What happened, in words.
    """
    theirs = type(optimizer)
    if theirs in _BACK:
        return f"{theirs.__name__} is fastconv's already"
    ours = _EXCHANGES.get(theirs)
    if ours is None:
        return f"{theirs.__name__} stays torch's: fastconv has Adam and AdamW"
    if not _step_is_known(optimizer):
        return f"{theirs.__name__} stays torch's: its step was replaced on the instance"
    _become(optimizer, ours)
    optimizer._set_up(None, False)  # type: ignore[attr-defined]
    return f"{theirs.__name__} became fastconv.optim.{ours.__name__}, with its state"


def exchange_back(optimizer: Optimizer) -> None:
    """Undoes :func:`exchange`."""
    theirs = _BACK.get(type(optimizer))  # type: ignore[arg-type]
    if theirs is None or not _step_is_known(optimizer):
        return
    _become(optimizer, theirs)
    for name in ("max_grad_norm", "skip_nonfinite", "_stepper", "_step_supports_amp_scaling"):
        optimizer.__dict__.pop(name, None)
    if optimizer.defaults.get("fused"):
        optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]  # as torch
    _lower_precision_of_averages(optimizer)


def _lower_precision_of_averages(optimizer: Optimizer) -> None:
    """torch expects averages of bfloat16 parameters in bfloat16; fastconv keeps float32."""
    for param, state in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            if param.dtype == torch.bfloat16 and key in state:
                state[key] = state[key].to(param.dtype)


def _step_is_known(optimizer: Optimizer) -> bool:
    """Whether ``optimizer.step`` is the class's, or a learning rate scheduler's wrapper of it."""
    step = optimizer.__dict__.get("step")
    return step is None or hasattr(step, "_wrapped_by_lr_sched")


def _become(optimizer: Optimizer, other: type[Optimizer]) -> None:
    optimizer.__class__ = other
    if "step" in optimizer.__dict__:
        optimizer.step = _tracked_step(optimizer)  # type: ignore[method-assign]


def _tracked_step(optimizer: Optimizer) -> Any:
    """What a scheduler puts in place of ``step``, for the class the optimizer has now.

    Schedulers bind the function of the class they find, and check ``_opt_called`` afterwards.
    """
    reference = weakref.ref(optimizer)
    function = type(optimizer).step

    @functools.wraps(function)
    def step(*args: Any, **kwargs: Any) -> Any:
        target: Any = reference()
        target._opt_called = True
        return function.__get__(target, type(target))(*args, **kwargs)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    return step
