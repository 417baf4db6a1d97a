# SPDX-License-Identifier: MIT
"""What must hold at the moment of a call: which inputs run on fastconv's operators, and whether a
module may be run without its ``__call__``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def runs_on_kernels(input: Any) -> bool:
    """Whether an accelerated layer takes fastconv's operators for this input, or torch's forward.

    float32 on the CPU does. Not so other dtypes, which torch serves faster or alone; autocast,
    because torch's operators in lower precision are what was asked for; tensors that wrap others
    (DTensor, NestedTensor), whose rules only torch's operators have; and what is no tensor
    (the proxies of torch.fx).
    """
    return (
        isinstance(input, Tensor)
        and input.dtype is torch.float32
        and input.is_cpu
        and input.layout is torch.strided
        and not torch.is_autocast_enabled("cpu")
        and (type(input) is Tensor or not is_traceable_wrapper_subclass(input))
    )


def global_hooks_exist() -> bool:
    """Whether hooks of all modules are registered, as FLOP counters and profilers do."""
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def is_plain(module: Module) -> bool:
    """Whether nobody watches this module's calls: no hooks, not compiled by itself."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
    )
