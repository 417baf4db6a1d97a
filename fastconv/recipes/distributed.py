# SPDX-License-Identifier: MIT
"""Several processes that train one model, as torchrun starts them, on torch.distributed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn

from fastconv.recipes.errors import UserError


@dataclass(frozen=True)
class Processes:
    """The place of this process among those that train together; by default it is alone.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and draws the progress bar."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's samples of a batch: every ``size``-th. May be empty."""
        return batch[self.rank :: self.size]

    def join(self, model: nn.Module) -> nn.Module:
        """The model to call in training, which averages gradients over the processes."""
        return nn.parallel.DistributedDataParallel(model) if self.size > 1 else model

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Joins the processes that torchrun started, over gloo; alone without torchrun.

    Raises:
        UserError: when torch was built without torch.distributed.
    """
    if not _started_by_torchrun():
        yield Processes()
        return
    if not dist.is_available():
        raise UserError("this torch was built without torch.distributed, which torchrun needs")
    dist.init_process_group("gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def require_one_process(command: str) -> None:
    """Refuses to run under torchrun.

    Raises:
        UserError: when more than one process was started.
    """
    if _started_by_torchrun():
        raise UserError(
            f"{command} runs in one process, expected no torchrun, got "
            f"{os.environ['WORLD_SIZE']} processes; train lenet5 runs in several"
        )


def _started_by_torchrun() -> bool:
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def mean_of_share(loss: Tensor, scores: Tensor, samples: int, processes: Processes) -> Tensor:
    """What this process has to minimise so that the average over the processes of its gradients is
    the gradient of the whole batch's mean loss, though shares differ in size.

    Args:
        loss: mean loss of this process's share; anything when that is empty.
        scores: scores of the share.
        samples: samples in the whole batch.
    """
    if processes.size == 1:
        return loss
    if len(scores) == 0:
        return scores.sum()  # zero, with a graph: the other processes wait for its gradients
    return loss * (len(scores) * processes.size / samples)
