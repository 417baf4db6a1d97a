# SPDX-License-Identifier: MIT
"""The recipe ``train forecast``: an LSTM on a time series, beside the naive forecasts."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastconv.models import LSTMForecaster
from fastconv.optim import Adam
from fastconv.recipes.checkpoint import save_checkpoint
from fastconv.recipes.errors import TrainingDivergedError, UserError, require_packages
from fastconv.recipes.options import (
    MAX_COUNT,
    MAX_LAYERS,
    MAX_SEED,
    MAX_THREADS,
    MAX_UNITS,
    check_integers,
    check_option,
    set_threads,
)
from fastconv.recipes.plots import plot_forecast
from fastconv.recipes.run_folder import (
    BEST,
    CONFIG,
    SUMMARY,
    create_run_folder,
    write_json,
    write_metrics,
)
from fastconv.recipes.series_data import (
    Series,
    Windows,
    load_csv,
    load_sunspots,
    make_windows,
)

RECIPE = "forecast"
SUNSPOT_CYCLE = 11  # years


@dataclass(frozen=True)
class ForecastConfig:
    """Settings of :func:`train_forecast`.

    The series is cut in time: the first part trains, the next decides when to stop, the last
    ``test_share`` tests. The scaling is that of the training part.

    Raises:
        UserError: for a value that cannot be used, with the option, what was expected, what came.
    """

    csv: str | None = None
    column: str | None = None
    window: int = 24
    horizon: int = 1
    season: int | None = None
    hidden: int = 32
    layers: int = 1
    epochs: int = 300
    patience: int = 40
    batch_size: int = 32
    lr: float = 0.005
    validation_share: float = 0.15
    test_share: float = 0.2
    seed: int = 0
    threads: int | None = None
    backend: str = "fastconv"

    def __post_init__(self) -> None:
        if (self.csv is None) != (self.column is None):
            raise UserError("expected --csv and --column together, got one of them")
        check_integers(
            self,
            *((name, 1, MAX_COUNT) for name in ("window", "horizon", "season")),
            *((name, 1, MAX_COUNT) for name in ("epochs", "patience", "batch_size")),
            ("hidden", 1, MAX_UNITS),
            ("layers", 1, MAX_LAYERS),
            ("seed", 0, MAX_SEED),
            ("threads", 1, MAX_THREADS),
        )
        check_option(self, "lr", "a number above 0", math.isfinite(self.lr) and self.lr > 0)
        for name in ("validation_share", "test_share"):
            check_option(self, name, "a number above 0 and below 1", 0 < getattr(self, name) < 1)
        check_option(
            self, "test_share", "less than 1 with --validation-share", self.train_share > 0
        )
        check_option(self, "backend", "fastconv or torch", self.backend in ("fastconv", "torch"))

    @property
    def train_share(self) -> float:
        """What is left to train on."""
        return 1 - self.validation_share - self.test_share


@dataclass(frozen=True)
class Errors:
    """Mean absolute and root mean squared error, in the units of the series."""

    mae: float
    rmse: float


@dataclass(frozen=True)
class ForecastResult:
    """What a run came to: errors on the test part, and where the rest is."""

    folder: Path
    lstm: Errors
    last_value: Errors
    seasonal: Errors
    season: int
    forecasts: int
    epochs: int
    best_epoch: int
    seconds: float


def errors_of(forecast: Tensor, truth: Tensor) -> Errors:
    """Errors over all steps of all forecasts."""
    difference = (forecast - truth).double()
    return Errors(float(difference.abs().mean()), float(difference.square().mean().sqrt()))


def naive_forecasts(values: Tensor, windows: Windows, season: int) -> tuple[Tensor, Tensor]:
    """The last value before each forecast, repeated; and the values of one season before."""
    horizon = windows.targets.shape[1]
    steps = windows.starts[:, None] + torch.arange(horizon)
    back = season * ((torch.arange(horizon) // season) + 1)  # never past the last known value
    return values[windows.starts - 1][:, None].expand_as(steps), values[steps - back]


def load_series(config: ForecastConfig) -> tuple[Series, int]:
    """The series of a run and its season."""
    if config.csv is None:
        return load_sunspots(), config.season or SUNSPOT_CYCLE
    assert config.column is not None
    return load_csv(Path(config.csv), config.column), config.season or 1


def train_forecast(config: ForecastConfig, *, out: Path | None = None) -> ForecastResult:
    """Train, stop early, test by walking forward, write everything to a run folder.

    Args:
        config: the settings.
        out: run folder; None takes a new one under ``runs``.

    Raises:
        UserError: for settings or data that cannot be used.
        TrainingDivergedError: when the loss is no longer finite.
    """
    start = time.perf_counter()
    require_packages("matplotlib")
    series, season = load_series(config)
    steps = len(series.values)
    train_end = round(config.train_share * steps)
    test_begin = steps - round(config.test_share * steps)
    least = max(config.window, season) + config.horizon
    if train_end < 2 * least:
        raise UserError(
            f"expected at least {math.ceil(2 * least / config.train_share)} steps for --window "
            f"{config.window}, --horizon {config.horizon} and season {season}, got {steps}"
        )
    for share, length in (
        ("--validation-share", test_begin - train_end),
        ("--test-share", steps - test_begin),
    ):
        if length < config.horizon:
            raise UserError(
                f"expected {share} to leave at least --horizon {config.horizon} of {steps} steps, "
                f"got {length}"
            )
    set_threads(config.threads)
    mean = series.values[:train_end].mean()
    spread = series.values[:train_end].std().clamp_min(1e-12)
    scaled = ((series.values - mean) / spread).float()
    shape = (config.window, config.horizon)
    parts = [
        make_windows(scaled, *shape, begin, end)
        for begin, end in ((0, train_end), (train_end, test_begin), (test_begin, steps))
    ]
    folder = create_run_folder(out, RECIPE)
    write_json(folder / CONFIG, asdict(config))
    model, history, best_epoch = _fit(config, parts[0], parts[1])
    forecast = _predict(model, parts[2].inputs).double() * spread + mean
    truth = make_windows(series.values, *shape, test_begin, steps)
    last, seasonal = naive_forecasts(series.values, truth, season)
    result = ForecastResult(
        folder=folder,
        lstm=errors_of(forecast, truth.targets),
        last_value=errors_of(last, truth.targets),
        seasonal=errors_of(seasonal, truth.targets),
        season=season,
        forecasts=len(truth.starts),
        epochs=len(history),
        best_epoch=best_epoch,
        seconds=time.perf_counter() - start,
    )
    write_metrics(folder, history)
    save_checkpoint(
        folder / BEST,
        RECIPE,
        {
            "config": asdict(config),
            "model": model.state_dict(),
            "mean": float(mean),
            "spread": float(spread),
        },
    )
    write_json(folder / SUMMARY, {**asdict(result), "folder": str(folder)})
    plot_forecast(folder / "forecast.png", series, truth, forecast, test_begin)
    return result


def _fit(
    config: ForecastConfig, train: Windows, validation: Windows
) -> tuple[LSTMForecaster, list[dict[str, float]], int]:
    torch.manual_seed(config.seed)
    model = LSTMForecaster(1, config.hidden, config.layers, config.horizon, backend=config.backend)
    adam = Adam if config.backend == "fastconv" else torch.optim.Adam
    optimizer = adam(model.parameters(), lr=config.lr, fused=True)
    generator = torch.Generator().manual_seed(config.seed)
    history: list[dict[str, float]] = []
    best: dict[str, Any] = {}
    best_loss, best_epoch = math.inf, 0
    for epoch in range(1, config.epochs + 1):
        model.train()
        total = 0.0
        for batch in torch.randperm(len(train.inputs), generator=generator).split(
            config.batch_size
        ):
            optimizer.zero_grad(set_to_none=True)
            loss = (model(train.inputs[batch]) - train.targets[batch]).square().mean()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        held_out = float((_predict(model, validation.inputs) - validation.targets).square().mean())
        mean = total / len(train.inputs)
        if not (math.isfinite(mean) and math.isfinite(held_out)):
            raise TrainingDivergedError(
                f"training diverged in epoch {epoch}: expected a finite loss, got {mean} in "
                f"training and {held_out} in validation; try a lower --lr"
            )
        history.append({"epoch": epoch, "train_loss": mean, "val_loss": held_out})
        if held_out < best_loss:
            best_loss, best_epoch = held_out, epoch
            best = copy.deepcopy(model.state_dict())
        elif epoch - best_epoch >= config.patience:
            break
    model.load_state_dict(best)
    return model, history, best_epoch


def _predict(model: LSTMForecaster, inputs: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(inputs)
