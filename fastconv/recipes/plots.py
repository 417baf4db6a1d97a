# SPDX-License-Identifier: MIT
"""Figures of a training run as PNG files; they need no display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastconv.recipes.checkpoint import atomic_write
from fastconv.recipes.errors import require_packages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fastconv.recipes.series_data import Series, Windows

_DPI = 120
_GRID_ROWS, _GRID_COLUMNS = 4, 8


def plot_curves(path: Path, history: list[dict[str, float]], best_epoch: int) -> None:
    """Loss and accuracy over the epochs, training and validation.

    Args:
        path: PNG file to write.
        history: one dict per epoch with ``epoch``, ``train_loss``, ``val_loss``, ``train_accuracy``
            and ``val_accuracy``; accuracies in [0, 1].
        best_epoch: epoch to mark.
    """
    figure = _figure(10, 4)
    epochs = [row["epoch"] for row in history]
    for axes, quantity, factor, label in (
        (figure.add_subplot(1, 2, 1), "loss", 1.0, "cross-entropy loss"),
        (figure.add_subplot(1, 2, 2), "accuracy", 100.0, "accuracy [%]"),
    ):
        for part, name in (("train", "training"), ("val", "validation")):
            axes.plot(
                epochs, [factor * row[f"{part}_{quantity}"] for row in history], ".-", label=name
            )
        axes.axvline(best_epoch, color="grey", linestyle=":", label="best epoch")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
        if quantity == "loss":
            axes.set_yscale("log")
    _save(figure, path)


def confusion_matrix(targets: torch.Tensor, predicted: torch.Tensor, classes: int) -> torch.Tensor:
    """Count pairs: row true class, column predicted class, ``[classes, classes]`` int64."""
    pairs = targets * classes + predicted
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def plot_confusion(path: Path, counts: torch.Tensor) -> None:
    """The confusion matrix ``[classes, classes]`` with the counts written in."""
    figure = _figure(6, 5.5)
    axes = figure.add_subplot(1, 1, 1)
    classes = len(counts)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row in range(classes):
        for column in range(classes):
            count = int(counts[row, column])
            if count:
                ink = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(classes))
    axes.set_yticks(range(classes))
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{int(counts.trace())} of {int(counts.sum())} test images right")
    figure.colorbar(image, label="share of the true class")
    _save(figure, path)


def plot_predictions(
    path: Path, images: torch.Tensor, targets: torch.Tensor, probabilities: torch.Tensor
) -> None:
    """A grid of images with the predicted class and its probability, mistakes first and in red.

    Args:
        path: PNG file to write.
        images: ``[N, 1, H, W]``.
        targets: ``[N]`` int64.
        probabilities: ``[N, classes]``.
    """
    best, predicted = probabilities.max(1)
    wrong = predicted != targets
    order = torch.argsort(wrong.int(), descending=True, stable=True)
    shown = order[: _GRID_ROWS * _GRID_COLUMNS].tolist()
    figure = _figure(11, 6.5)
    for place, index in enumerate(shown):
        axes = figure.add_subplot(_GRID_ROWS, _GRID_COLUMNS, place + 1)
        _show(axes, images[index, 0], "gray_r")
        title = f"{int(predicted[index])} ({100 * float(best[index]):.0f} %)"
        if wrong[index]:
            title += f", is {int(targets[index])}"
        axes.set_title(title, fontsize=9, color="firebrick" if wrong[index] else "black")
    figure.suptitle(f"predictions on test images, mistakes ({int(wrong.sum())}) first")
    _save(figure, path)


def plot_filters(path: Path, weights: torch.Tensor) -> None:
    """The filters of a convolution ``[out, in, kh, kw]``, averaged over the input channels."""
    filters = weights.mean(1)
    limit = float(filters.abs().max().clamp(min=1e-12))
    figure = _figure(2 * len(filters), 2.4)
    for index, values in enumerate(filters):
        axes = figure.add_subplot(1, len(filters), index + 1)
        _show(axes, values, "RdBu_r", -limit, limit)
        axes.set_title(f"filter {index}", fontsize=9)
    figure.suptitle("learned filters of conv1, red positive, blue negative")
    _save(figure, path)


def plot_feature_maps(path: Path, image: torch.Tensor, maps: torch.Tensor) -> None:
    """An image ``[H, W]`` and the feature maps ``[C, H, W]`` that a layer makes of it."""
    figure = _figure(2 * (len(maps) + 1), 2.4)
    axes = figure.add_subplot(1, len(maps) + 1, 1)
    _show(axes, image, "gray_r")
    axes.set_title("input", fontsize=9)
    for index, values in enumerate(maps):
        axes = figure.add_subplot(1, len(maps) + 1, index + 2)
        _show(axes, values, "viridis")
        axes.set_title(f"map {index}", fontsize=9)
    figure.suptitle("feature maps of conv1 after the activation")
    _save(figure, path)


def plot_forecast(
    path: Path, series: Series, truth: Windows, forecast: torch.Tensor, test_begin: int
) -> None:
    """History and the last step of every forecast, and below it the error of each.

    Args:
        path: PNG file to write.
        series: the whole series.
        truth: windows of the test part in the units of the series.
        forecast: ``[N, horizon]`` in the same units.
        test_begin: first step of the test part.
    """
    horizon = forecast.shape[1]
    last = (truth.starts + horizon - 1).tolist()
    figure = _figure(11, 6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    top.plot(range(len(series.values)), series.values.tolist(), color="grey", label="observed")
    top.plot(last, forecast[:, -1].tolist(), color="tab:red", label=f"forecast {horizon} ahead")
    top.axvline(test_begin, color="black", linestyle=":", label="test part")
    top.set_ylabel(series.name)
    top.legend()
    bottom.bar(last, (forecast[:, -1] - truth.targets[:, -1]).tolist(), width=1.0)
    bottom.set_ylabel("error")
    ticks = range(0, len(series.labels), max(1, len(series.labels) // 10))
    bottom.set_xticks(list(ticks), [series.labels[i] for i in ticks], rotation=20)
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    """Make a figure of its own, outside pyplot's global state."""
    require_packages("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _show(
    axes: Axes,
    values: torch.Tensor,
    colours: str,
    low: float | None = None,
    high: float | None = None,
) -> None:
    axes.imshow(values.numpy(), cmap=colours, vmin=low, vmax=high)
    axes.set_xticks([])
    axes.set_yticks([])


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as handle:
        figure.savefig(handle, format="png", dpi=_DPI)
