# SPDX-License-Identifier: MIT
"""The recipe ``train lenet5``: data, network, training, test, run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastconv.models import LeNet5
from fastconv.optim import Adam
from fastconv.recipes import plots
from fastconv.recipes.checkpoint import load_checkpoint, save_checkpoint
from fastconv.recipes.data import ImageData, Samples, ShiftedBatches, load_image_data
from fastconv.recipes.distributed import Processes, joined_processes
from fastconv.recipes.errors import RunInterruptedError, UserError, require_packages
from fastconv.recipes.lenet_config import LeNetConfig
from fastconv.recipes.progress import ProgressBar
from fastconv.recipes.run_folder import (
    BEST,
    CONFIG,
    LAST,
    SUMMARY,
    create_run_folder,
    write_json,
    write_metrics,
)
from fastconv.recipes.trainer import Trainer

RECIPE = "lenet5"
CLASSES = 10


@dataclass(frozen=True)
class LeNetResult:
    """What a run came to.

    Attributes:
        folder: the run folder.
        test_accuracy: share of test images classified right by the best epoch's weights, in [0, 1].
        correct: number of test images classified right.
        tested: number of test images.
        epochs: epochs trained in all.
        best_epoch: epoch with the lowest validation loss.
        train_seconds: time of all training epochs, without validation.
        images_per_s: training images per second of that time.
        total_seconds: time of this call, with loading, validation, test and figures.
    """

    folder: Path
    test_accuracy: float
    correct: int
    tested: int
    epochs: int
    best_epoch: int
    train_seconds: float
    images_per_s: float
    total_seconds: float


def build_model(config: LeNetConfig) -> LeNet5:
    """The network of a run, with weights drawn from torch's generator."""
    return LeNet5(
        num_classes=CLASSES,
        activation=config.activation,
        pool=config.pool,
        dropout=config.dropout,
        backend=config.backend,
    )


def build_trainer(config: LeNetConfig, processes: Processes | None = None) -> Trainer:
    """Network, optimizer and schedule of a run, all from ``config.seed``.

    Seeds torch's global generator, which initialisation and dropout draw from.
    """
    torch.manual_seed(config.seed)
    model = build_model(config)
    assert config.lr is not None
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        adam = Adam if config.backend == "fastconv" else torch.optim.Adam
        optimizer = adam(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
    else:
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, config.lr_decay)
    return Trainer(
        model,
        optimizer,
        scheduler=scheduler,
        l1=config.l1,
        seed=config.seed,
        processes=processes or Processes(),
    )


def build_batches(config: LeNetConfig, data: ImageData) -> ShiftedBatches:
    """The training batches of a run, moved by up to ``config.shift`` pixels."""
    return ShiftedBatches(data.train, config.batch_size, config.shift, data.background)


def train_lenet5(
    settings: Mapping[str, Any] | None = None,
    *,
    out: Path | None = None,
    resume: Path | None = None,
) -> LeNetResult | None:
    """Train LeNet-5, test the weights of the best epoch, and write everything to a run folder.

    Under torchrun the processes train together, each on its share of every batch; the first one
    writes, the others return None.

    Args:
        settings: fields of :class:`LeNetConfig` that differ from the default, or, with ``resume``,
            from the checkpoint.
        out: run folder; None takes a new one under ``runs``, or with ``resume`` the checkpoint's.
        resume: checkpoint to go on from.

    Raises:
        UserError: for settings, data or a checkpoint that cannot be used.
        TrainingDivergedError: when the loss is no longer finite.
        RunInterruptedError: on Ctrl-C; the last checkpoint on disk is whole.
    """
    start = time.perf_counter()
    require_packages("sklearn", "matplotlib", "tqdm")
    checkpoint = load_checkpoint(resume, RECIPE) if resume is not None else None
    config = _set_up(settings or {}, checkpoint)
    data = load_image_data(
        config.data,
        folder=Path(config.data_dir) if config.data_dir is not None else None,
        download=config.download,
        split_seed=config.split_seed,
    )
    with joined_processes() as processes:
        trainer = build_trainer(config, processes)
        if checkpoint is not None and resume is not None:
            _restore(trainer, config, data, checkpoint, resume)
        if not processes.is_first:
            _fit(trainer, config, data, None, processes)
            return None
        if resume is not None:
            folder = _resumed_folder(out, resume)
        else:
            folder = create_run_folder(out, RECIPE)
        write_json(folder / CONFIG, {**config.to_dict(), "versions": _versions()})
        if checkpoint is not None:
            _saver(folder, config, data)(trainer)
        _fit(trainer, config, data, folder, processes)
    trainer.load_best_weights()
    return _finish(trainer, data, folder, start)


def _set_up(settings: Mapping[str, Any], checkpoint: dict[str, Any] | None) -> LeNetConfig:
    """Make the settings and set torch's number of threads, which becomes one of them."""
    if checkpoint is None:
        config = LeNetConfig(**settings)
    else:
        stored = checkpoint.get("config")
        if not isinstance(stored, dict):
            raise UserError("the checkpoint holds no settings")
        config = LeNetConfig.from_dict(stored).resumed_with(settings)
    threads = config.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    return replace(config, threads=threads)


def _restore(
    trainer: Trainer,
    config: LeNetConfig,
    data: ImageData,
    checkpoint: dict[str, Any],
    path: Path,
) -> None:
    if checkpoint.get("data") != data.describe():
        raise UserError(
            f"{path}: expected the data it was trained on ({checkpoint.get('data')}), "
            f"got {data.describe()}"
        )
    state = checkpoint.get("trainer")
    if not isinstance(state, dict):
        raise UserError(f"{path}: the checkpoint holds no training state")
    trainer.load_state_dict(state)
    assert config.epochs is not None
    if trainer.epoch > config.epochs:
        raise UserError(
            f"expected --epochs of at least {trainer.epoch}, as many as {path} has, "
            f"got {config.epochs}"
        )


def _resumed_folder(out: Path | None, resume: Path) -> Path:
    if out is None or out.resolve() == resume.resolve().parent:
        return resume.parent
    return create_run_folder(out, RECIPE)


def _saver(folder: Path, config: LeNetConfig, data: ImageData) -> Callable[[Trainer], None]:
    """The function that writes the checkpoints and ``metrics.csv`` after an epoch.

    ``last.pt`` comes after ``best.pt`` and holds the best state too, so that a run stopped between
    the two writes goes on as if never stopped.
    """
    common = {"config": config.to_dict(), "data": data.describe()}

    def save(trainer: Trainer) -> None:
        best = trainer.best_state_dict()
        if best is not None and (trainer.stale_epochs == 0 or not (folder / BEST).exists()):
            save_checkpoint(folder / BEST, RECIPE, {**common, "trainer": best})
        save_checkpoint(folder / LAST, RECIPE, {**common, "trainer": trainer.state_dict()})
        write_metrics(folder, trainer.history)

    return save


def _fit(
    trainer: Trainer,
    config: LeNetConfig,
    data: ImageData,
    folder: Path | None,
    processes: Processes,
) -> None:
    """Trains; writes checkpoints to the folder after each epoch, if there is one."""
    assert config.epochs is not None
    batches = build_batches(config, data)
    bar = ProgressBar(len(batches), config.epochs, trainer.epoch, drawn=processes.is_first)
    try:
        trainer.fit(
            batches,
            data.validation,
            epochs=config.epochs,
            patience=config.patience,
            after_epoch=None if folder is None else _saver(folder, config, data),
            bar=bar,
        )
    except KeyboardInterrupt as error:
        hint = "no epoch was finished"
        if folder is not None and (folder / LAST).exists():
            hint = f"go on with --resume {folder / LAST}"
        raise RunInterruptedError(f"interrupted after {trainer.epoch} epochs; {hint}") from error
    finally:
        bar.close()


def _finish(trainer: Trainer, data: ImageData, folder: Path, start: float) -> LeNetResult:
    scores = trainer.predict(data.test.inputs)
    predicted = scores.argmax(1)
    correct = int((predicted == data.test.targets).sum())
    _draw(trainer, data.test, scores, folder)
    seconds = sum(row["seconds"] for row in trainer.history)
    result = LeNetResult(
        folder=folder,
        test_accuracy=correct / len(data.test),
        correct=correct,
        tested=len(data.test),
        epochs=trainer.epoch,
        best_epoch=trainer.best_epoch,
        train_seconds=seconds,
        images_per_s=trainer.epoch * len(data.train) / seconds,
        total_seconds=time.perf_counter() - start,
    )
    summary = {key: value for key, value in vars(result).items() if key != "folder"}
    write_json(folder / SUMMARY, summary)
    return result


def _draw(trainer: Trainer, test: Samples, scores: torch.Tensor, folder: Path) -> None:
    model = trainer.model
    assert isinstance(model, LeNet5)
    predicted = scores.argmax(1)
    plots.plot_curves(folder / "curves.png", trainer.history, trainer.best_epoch)
    plots.plot_confusion(
        folder / "confusion.png", plots.confusion_matrix(test.targets, predicted, CLASSES)
    )
    plots.plot_predictions(folder / "predictions.png", test.inputs, test.targets, scores.softmax(1))
    with torch.no_grad():
        maps = model.feature_maps(test.inputs[:1])[0]
    plots.plot_filters(folder / "filters.png", model.conv1.weight.detach())
    plots.plot_feature_maps(folder / "feature_maps.png", test.inputs[0, 0], maps)


def _versions() -> dict[str, str]:
    versions = {"torch": str(torch.__version__)}
    with suppress(PackageNotFoundError):
        versions["fastconv"] = version("fastconv")
    return versions
