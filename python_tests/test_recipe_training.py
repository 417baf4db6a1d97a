# SPDX-License-Identifier: MIT
"""The recipes' training loop and checkpoint files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from fastconv.recipes import LeNetConfig, TrainingDivergedError, UserError
from fastconv.recipes.checkpoint import atomic_write, load_checkpoint, save_checkpoint
from fastconv.recipes.data import Samples, ShuffledBatches
from fastconv.recipes.lenet import build_trainer
from fastconv.recipes.trainer import Trainer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole checkpoint file."""
    path = tmp_path / "good.pt"
    save_checkpoint(path, "lenet5", {"trainer": build_trainer(LeNetConfig()).state_dict()})
    return path


def losses(trainer: Trainer) -> list[tuple[float, float]]:
    return [(row["train_loss"], row["val_loss"]) for row in trainer.history]


def toy_trainer(**kwargs: Any) -> tuple[Trainer, ShuffledBatches, Samples]:
    torch.manual_seed(0)
    inputs = torch.randn(96, 8)
    samples = Samples(inputs, (inputs[:, 0] > 0).long())
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 2)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=kwargs.pop("lr", 0.1), momentum=0.9)
    return Trainer(model, optimizer, **kwargs), ShuffledBatches(samples, 16), samples


def test_training_lowers_the_loss_and_keeps_the_best_epoch() -> None:
    trainer, batches, samples = toy_trainer()
    trainer.fit(batches, samples, epochs=12)
    losses = [row["val_loss"] for row in trainer.history]
    assert [row["epoch"] for row in trainer.history] == list(range(1, 13))
    assert losses[-1] < 0.5 * losses[0]
    assert trainer.best_loss == min(losses)
    assert trainer.best_epoch == losses.index(min(losses)) + 1
    trainer.load_best_weights()
    assert trainer.evaluate(samples).loss == trainer.best_loss


def test_early_stopping_counts_epochs_without_improvement() -> None:
    trainer, batches, samples = toy_trainer(lr=0.0)
    trainer.fit(batches, samples, epochs=50, patience=3)
    assert trainer.epoch == 4
    assert trainer.stopped_early(3)
    trainer.fit(batches, samples, epochs=50, patience=3)
    assert trainer.epoch == 4
    trainer.fit(batches, samples, epochs=6)
    assert trainer.epoch == 6


def test_l1_shrinks_the_weights_and_stays_out_of_the_reported_loss() -> None:
    sizes = []
    for l1 in (0.0, 0.05):
        trainer, batches, samples = toy_trainer(l1=l1)
        first = trainer.evaluate(samples).loss
        assert first < 1.0
        trainer.fit(batches, samples, epochs=10)
        sizes.append(sum(float(p.detach().abs().sum()) for p in trainer.model.parameters()))
    assert sizes[1] < 0.5 * sizes[0]


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    trainer, batches, samples = toy_trainer(lr=1e30)
    saved: list[int] = []
    with pytest.raises(TrainingDivergedError, match="diverged in epoch 1: expected a finite loss"):
        trainer.fit(batches, samples, epochs=3, after_epoch=lambda t: saved.append(t.epoch))
    assert saved == []


def test_a_state_of_another_model_is_refused() -> None:
    trainer, _, _ = toy_trainer()
    other = build_trainer(LeNetConfig(backend="torch"))
    with pytest.raises(UserError, match="the checkpoint does not fit this model"):
        trainer.load_state_dict(other.state_dict())


@pytest.mark.parametrize("part", ["generator", "torch_rng", "optimizer"])
def test_resuming_needs_every_part_of_the_state(part: str) -> None:
    """Negative control: with one part left as new, the resumed run differs."""
    whole, batches, samples = toy_trainer()
    fresh = whole.state_dict()
    whole.fit(batches, samples, epochs=2)
    state = whole.state_dict()
    whole.fit(batches, samples, epochs=4)
    for spoiled in (False, True):
        resumed, batches, samples = toy_trainer()
        resumed.load_state_dict({**state, part: fresh[part]} if spoiled else state)
        resumed.fit(batches, samples, epochs=4)
        same = losses(resumed) == losses(whole)
        assert same is not spoiled


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted(error: type[BaseException]) -> None:
        with atomic_write(path) as handle:
            handle.write(b"half of the ne")
            raise error

    for error in (OSError, KeyboardInterrupt):
        with pytest.raises(error):
            interrupted(error)
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with atomic_write(path) as handle:
        handle.write(b"new")
    assert path.read_bytes() == b"new"


class _Trap:
    """Pickles to a call of ``Path.touch``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_damaged_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    data = checkpoint.read_bytes()
    path = tmp_path / "bad.pt"
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0x10
    for content in (b"", b"not a checkpoint", data[: len(data) // 2], data[:-30], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.pt: damaged, (or not|a checksum)"):
            load_checkpoint(path, "lenet5")
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"bad\.pt: not a checkpoint of fastconv"):
        load_checkpoint(path, "lenet5")
    with pytest.raises(UserError, match="expected a checkpoint of mlp, got one of lenet5"):
        load_checkpoint(checkpoint, "mlp")
    with pytest.raises(UserError, match="expected a checkpoint file, found none"):
        load_checkpoint(tmp_path / "missing.pt", "lenet5")


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    path, touched = tmp_path / "trap.pt", tmp_path / "touched"
    torch.save({"format": "fastconv-checkpoint", "trap": _Trap(touched)}, path)
    with pytest.raises(UserError, match=r"trap\.pt: damaged, or not a checkpoint"):
        load_checkpoint(path, "lenet5")
    assert not touched.exists()
    pickle.loads(pickle.dumps(_Trap(touched)))
    assert touched.exists()
