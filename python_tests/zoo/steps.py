# SPDX-License-Identifier: MIT
"""One training step of a network: what it results in, and whether two ways to it agree.

Whole networks amplify rounding: a ReLU whose input is zero but for rounding passes a gradient or
does not. "torch's own error" in the parity rule (`reference.py`) is therefore the largest among
torch's own ways to compute the same step: NCHW, channels_last, one thread, and without oneDNN.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from reference import ERROR_FACTOR, RMS_FLOOR, max_error, rms
from torch import Tensor, nn

from zoo import Entry, Outputs, Task

Results = dict[str, Tensor]


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def training_step(
    model: nn.Module, entry: Entry, task: Task, call: Callable[..., Outputs] | None = None
) -> Results:
    """Loss, gradients, and the buffers that the forward pass updates.

    Args:
        call: what to call instead of the model, such as its compiled form.
    """
    model.train()
    loss = entry.loss((model if call is None else call)(*task.inputs), *task.targets)
    loss.backward()
    results = {"loss": loss.detach()}
    results |= {f"grad {name}": p.grad for name, p in model.named_parameters()}
    return results | {name: b for name, b in model.named_buffers() if b.is_floating_point()}


def oracle_step(model: nn.Module, entry: Entry, task: Task) -> Results:
    """The step in float64, on a copy."""
    return training_step(copy.deepcopy(model).double(), entry, task.map(lambda t: t.double()))


def steps_by_torch(model: nn.Module, entry: Entry, task: Task) -> list[Results]:
    """The same step in torch's own ways of computing it."""

    def run(change: Callable[[nn.Module], nn.Module] = lambda m: m, task: Task = task) -> Results:
        return training_step(change(copy.deepcopy(model)), entry, task)

    results = [run()]
    results.append(run(lambda m: m.to(memory_format=torch.channels_last), task.map(channels_last)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    results.append(run())
    torch.set_num_threads(threads)
    with torch.backends.mkldnn.flags(enabled=False):
        results.append(run())
    return results


def violations(ours: Results, by_torch: list[Results], oracle: Results) -> list[str]:
    """What breaks the parity rule, with its share of the error that is allowed."""
    found = []
    for name, exact in oracle.items():
        assert ours[name].dtype == torch.float32
        assert ours[name].shape == exact.shape
        error = max_error(ours[name], exact)
        theirs = max(max_error(results[name], exact) for results in by_torch)
        allowed = ERROR_FACTOR * theirs + RMS_FLOOR * rms(exact)
        if not error <= allowed:
            found.append(f"{name}: error {error:.3e}, allowed {allowed:.3e}")
    return found
