# SPDX-License-Identifier: MIT
# What csrc/bindings/module.cpp exports.
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

def available_isas() -> list[str]: ...
def cpu_isa() -> str: ...
def fma_peak() -> float: ...
def force_cpu_isa(name: str | None) -> None: ...
def forced_cpu_isa() -> str | None: ...
def last_record(kernel: str | None) -> tuple[str, str] | None: ...
def all_records() -> dict[str, tuple[str, str]]: ...
def forget_records() -> None: ...
def algorithms(kernel: str) -> list[str]: ...
def force_algorithm(kernel: str, algorithm: str | None) -> None: ...
def forced_algorithm(kernel: str) -> str | None: ...
def memory_cache_info() -> dict[str, int]: ...
def set_memory_cache_limit(bytes: int) -> None: ...
def empty_memory_cache() -> None: ...

# NotImplemented for arguments that only the operator understands.
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    /,
) -> Tensor: ...
def conv_block2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: str,
    negative_slope: float,
    pool: str,
    pool_size: Any,
    pool_stride: Any,
    /,
) -> Tensor: ...
def mlp(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    negative_slope: float,
    /,
) -> Tensor: ...
def lstm(
    input: Any,
    hx: Tensor | None,
    cx: Tensor | None,
    lengths: Tensor | None,
    parameters: Mapping[str, Tensor | None],
    names: list[str],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    /,
) -> tuple[Tensor, Tensor, Tensor]: ...
def lstm_layer(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reverse: bool,
    /,
) -> tuple[Tensor, Tensor, Tensor]: ...
def lstm_cell(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    /,
) -> tuple[Tensor, Tensor]: ...

class AdamStepper:
    built_for_cuda: bool
    skipped_steps: int
    def __init__(
        self,
        name: str,
        zero_grad_name: str,
        pre_hooks: dict[Any, Any],
        post_hooks: dict[Any, Any],
    ) -> None: ...
    def drop_gradients(self, optimizer: Optimizer) -> bool: ...
    @property
    def grad_norm(self) -> float | None: ...
    @property
    def has_others(self) -> bool: ...
    def step(self, optimizer: Optimizer) -> bool: ...
    def step_without_hooks(
        self, optimizer: Optimizer, other_squares: float, others_finite: bool
    ) -> tuple[bool, float] | None: ...
    def prepare(self, optimizer: Optimizer) -> list[Tensor]: ...
    def reset(self) -> None: ...
