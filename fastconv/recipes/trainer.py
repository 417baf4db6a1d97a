# SPDX-License-Identifier: MIT
"""A plain training loop with validation, early stopping and a state that resumes bit for bit."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastconv.recipes.data import Batches, Samples
from fastconv.recipes.distributed import Processes, mean_of_share
from fastconv.recipes.errors import TrainingDivergedError, UserError
from fastconv.recipes.progress import ProgressBar

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Metrics:
    """Mean loss per sample and the share of right answers, in [0, 1]."""

    loss: float
    accuracy: float


class Trainer:
    """Trains a classifier on batches held in memory.

    The state after an epoch holds the model, the optimizer, the scheduler, both random generators,
    the history and the early-stopping counters, so a run cut after any epoch and continued equals
    the uncut run bitwise, on the same machine with the same number of threads. ``seconds`` and
    ``images_per_s`` in the history are the exception: they are clock readings.

    With several processes, each computes its share of every batch, and all take the step that one
    process would take with the whole batch, up to rounding. They hold the same state.

    Args:
        model: maps inputs to scores ``[N, classes]``.
        optimizer: over the model's parameters.
        scheduler: stepped once after each epoch; None keeps the learning rate.
        loss_fn: mean loss of a batch from scores and targets.
        l1: factor of the sum of the absolute weights (parameters of two or more dimensions, so no
            biases), added to the loss that is minimised but not to the loss that is reported.
        seed: seed of the generator that shuffles and augments. Dropout draws from torch's own.
        processes: those that train together; all must be given the same model and batches.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        loss_fn: LossFunction = F.cross_entropy,
        l1: float = 0.0,
        seed: int = 0,
        processes: Processes = Processes(),  # noqa: B008  (it is frozen)
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0
        self.best_loss = math.inf
        self.stale_epochs = 0
        self._scheduler = scheduler
        self._loss_fn = loss_fn
        self._l1 = l1
        self._weights = [p for p in model.parameters() if p.dim() > 1]
        self._generator = torch.Generator().manual_seed(seed)
        self._best: dict[str, Any] | None = None
        self._processes = processes
        self._joined = processes.join(model)

    def train_step(
        self, inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one optimizer step on a batch; the model must be in training mode.

        Returns:
            The mean loss without penalty of this process's share of the batch, and its scores,
            both detached.
        """
        self.optimizer.zero_grad(set_to_none=True)
        scores = self._joined(self._processes.share(inputs))
        loss = self._loss_fn(scores, self._processes.share(targets))
        objective = mean_of_share(loss, scores, len(targets), self._processes)
        if self._l1 > 0.0:
            objective = (
                objective + self._l1 * torch.stack([w.abs().sum() for w in self._weights]).sum()
            )
        objective.backward()
        self.optimizer.step()
        return loss.detach(), scores.detach()

    def fit(
        self,
        batches: Batches,
        validation: Samples,
        *,
        epochs: int,
        patience: int = 0,
        after_epoch: Callable[[Trainer], None] | None = None,
        bar: ProgressBar | None = None,
    ) -> None:
        """Train until ``epochs`` epochs are done in all, counted over every resumed part.

        Args:
            batches: training batches.
            validation: samples whose loss decides which epoch is the best.
            epochs: number of epochs at the end.
            patience: stop after this many epochs in a row without a lower validation loss; 0 never.
            after_epoch: called after each epoch, to save the state.
            bar: progress bar to move.

        Raises:
            TrainingDivergedError: when a loss is infinite or not a number; ``after_epoch`` is not
                called for that epoch.
        """
        while self.epoch < epochs and not self.stopped_early(patience):
            if bar is not None:
                bar.start_epoch(self.epoch + 1)
            rate = float(self.optimizer.param_groups[0]["lr"])
            start = time.perf_counter()
            train = self._train_epoch(batches, bar)
            seconds = time.perf_counter() - start
            held_out = self.evaluate(validation)
            self._check_finite(train.loss, held_out.loss)
            if self._scheduler is not None:
                self._scheduler.step()
            self.epoch += 1
            self.history.append(
                {
                    "epoch": self.epoch,
                    "lr": rate,
                    "train_loss": train.loss,
                    "train_accuracy": train.accuracy,
                    "val_loss": held_out.loss,
                    "val_accuracy": held_out.accuracy,
                    "seconds": seconds,
                    "images_per_s": len(batches) / seconds,
                }
            )
            self._note_best(held_out.loss)
            if bar is not None:
                bar.end_epoch(held_out.accuracy)
            if after_epoch is not None:
                after_epoch(self)

    def evaluate(self, samples: Samples) -> Metrics:
        """Loss and accuracy of the model on samples; no weight and no random state changes."""
        if len(samples) == 0:
            raise ValueError("Trainer.evaluate: expected at least one sample, got none")
        scores = self.predict(samples.inputs)
        correct = int((scores.argmax(1) == samples.targets).sum())
        return Metrics(float(self._loss_fn(scores, samples.targets)), correct / len(samples))

    def predict(self, inputs: torch.Tensor) -> torch.Tensor:
        """Scores ``[N, classes]`` of the inputs in evaluation mode, without gradients."""
        self.model.eval()
        with torch.no_grad():
            return torch.cat([self.model(part) for part in inputs.split(EVALUATION_BATCH)])

    def stopped_early(self, patience: int) -> bool:
        """Whether early stopping with this patience ends the run here."""
        return 0 < patience <= self.stale_epochs

    def load_best_weights(self) -> None:
        """Put the weights of the epoch with the lowest validation loss into the model."""
        if self._best is not None:
            self.model.load_state_dict(self._best["model"])

    def best_state_dict(self) -> dict[str, Any] | None:
        """The state as it was after the best epoch, itself good to resume from."""
        return self._best

    def state_dict(self) -> dict[str, Any]:
        """The whole state after an epoch, with that of the best epoch under ``"best"``."""
        return {**self._state(), "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` or :meth:`best_state_dict` returned.

        Raises:
            UserError: when the state is of another model or optimizer, or incomplete.
        """
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self._scheduler is not None:
                self._scheduler.load_state_dict(state["scheduler"])
            self._generator.set_state(state["generator"])
            torch.set_rng_state(state["torch_rng"])
            self.epoch = int(state["epoch"])
            self.history = [dict(row) for row in state["history"]]
            self.best_epoch = int(state["best_epoch"])
            self.best_loss = float(state["best_loss"])
            self.stale_epochs = int(state["stale_epochs"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"the checkpoint does not fit this model: {reason}") from error
        best = state.get("best")
        self._best = best if best is not None or self.best_epoch != self.epoch else self._state()

    def _train_epoch(self, batches: Batches, bar: ProgressBar | None) -> Metrics:
        self.model.train()
        totals = torch.zeros(3, dtype=torch.float64)  # samples, loss, right answers
        for inputs, targets in batches.epoch(self._generator):
            loss, scores = self.train_step(inputs, targets)
            if len(scores) == 0:
                continue
            totals[0] += len(scores)
            totals[1] += loss * len(scores)
            totals[2] += (scores.argmax(1) == self._processes.share(targets)).sum()
            if bar is not None and bar.active:
                seen, total_loss, total_correct = totals.tolist()
                bar.step(len(targets), total_loss / seen, total_correct / seen)
        seen, total_loss, total_correct = self._processes.sum(totals).tolist()
        return Metrics(total_loss / seen, total_correct / seen)

    def _check_finite(self, train_loss: float, val_loss: float) -> None:
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise TrainingDivergedError(
                f"training diverged in epoch {self.epoch + 1}: expected a finite loss, got "
                f"{train_loss} in training and {val_loss} in validation; try a lower learning rate"
            )

    def _note_best(self, val_loss: float) -> None:
        if val_loss < self.best_loss:
            self.best_loss = val_loss
            self.best_epoch = self.epoch
            self.stale_epochs = 0
            self._best = self._state()
        else:
            self.stale_epochs += 1

    def _state(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self._scheduler.state_dict() if self._scheduler is not None else None,
                "generator": self._generator.get_state(),
                "torch_rng": torch.get_rng_state(),
                "epoch": self.epoch,
                "history": self.history,
                "best_epoch": self.best_epoch,
                "best_loss": self.best_loss,
                "stale_epochs": self.stale_epochs,
            }
        )
