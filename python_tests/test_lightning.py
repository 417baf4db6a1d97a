# SPDX-License-Identifier: MIT
"""The Lightning callback (skipped where Lightning is not installed)."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_accelerate import small_net

import fastconv

pytest.importorskip("lightning")

import lightning.pytorch as pl

from fastconv.integrations.lightning import AccelerateCallback


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()
        self.losses: list[float] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        loss = torch.nn.functional.cross_entropy(self.net(x), y)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def fit(folder: Path, callbacks: list[Any], **options: Any) -> tuple[Classifier, pl.Trainer]:
    torch.manual_seed(0)
    model = Classifier()
    data = torch.utils.data.TensorDataset(torch.randn(24, 3, 18, 14), torch.randint(4, (24,)))
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, callbacks=callbacks, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, torch.utils.data.DataLoader(data, 8))
    return model, trainer


class Watch(pl.Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.optimizer = type(trainer.optimizers[0])
        self.accelerated = "forward" in pl_module.net[0].__dict__


@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.1}])
def test_it_accelerates_and_restores(tmp_path: Path, options: dict[str, Any]) -> None:
    watch = Watch()
    callback = AccelerateCallback()
    model, trainer = fit(tmp_path, [callback, watch], **options)
    plain, _ = fit(tmp_path, [], **options)
    assert watch.accelerated
    assert watch.optimizer is fastconv.optim.Adam
    assert callback.report is not None
    assert callback.report.optimizer.startswith("Adam became")  # type: ignore[union-attr]
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert all(type(optimizer) is torch.optim.Adam for optimizer in trainer.optimizers)
    torch.testing.assert_close(model.losses, plain.losses, rtol=1e-3, atol=1e-4)
    saved = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=False)  # type: ignore[union-attr]
    assert {*saved["state_dict"]} == {*plain.state_dict()}


def test_the_optimizer_can_be_left_alone(tmp_path: Path) -> None:
    watch = Watch()
    callback = AccelerateCallback(optimizers=False, filter_fn=lambda module, name: "net.0" in name)
    fit(tmp_path, [callback, watch])
    assert watch.optimizer is torch.optim.Adam
    assert [entry.name for entry in callback.report.swapped] == ["net.0"]  # type: ignore[union-attr]


def test_fastconv_itself_does_not_import_lightning() -> None:
    code = "import sys, fastconv; print([m for m in sys.modules if 'lightning' in m])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_without_lightning_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "fastconv.integrations.lightning")
    with pytest.raises(ImportError, match="pip install lightning"):
        importlib.import_module("fastconv.integrations.lightning")
