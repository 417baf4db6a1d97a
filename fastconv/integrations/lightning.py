# SPDX-License-Identifier: MIT
"""Lightning: a callback that accelerates the model for the length of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn import Module

from fastconv.accelerate import Report, accelerate, restore

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError:
        raise ImportError(
            "fastconv.integrations.lightning needs Lightning: pip install lightning"
        ) from None


class AccelerateCallback(Callback):
    """Calls :func:`fastconv.accelerate` before a run and :func:`fastconv.restore` after it.

    Optimizers of class Adam and AdamW become fastconv's, with their state; the checkpoints are
    torch's. After the run the module is torch's again, ready to be exported.

    Args:
        filter_fn, fuse, fold_bn: as for :func:`fastconv.accelerate`.
        optimizers: whether to exchange the optimizers, too.

    Attributes:
        report: what was done for the present or last run.

    Example::

        trainer = lightning.Trainer(callbacks=[AccelerateCallback()])
    """

    def __init__(
        self,
        *,
        filter_fn: Callable[[Module, str], bool] | None = None,
        fuse: bool = True,
        fold_bn: bool = False,
        optimizers: bool = True,
    ) -> None:
        self._options: dict[str, Any] = {"filter_fn": filter_fn, "fuse": fuse, "fold_bn": fold_bn}
        self._optimizers = optimizers
        self.report: Report | None = None

    def setup(self, trainer: Any, pl_module: Module, stage: str) -> None:
        self.report = accelerate(pl_module, **self._options)

    def on_fit_start(self, trainer: Any, pl_module: Module) -> None:
        if self._optimizers:
            for optimizer in trainer.optimizers:
                self.report = accelerate(pl_module, optimizer=optimizer, **self._options)

    def teardown(self, trainer: Any, pl_module: Module, stage: str) -> None:
        restore(pl_module)
