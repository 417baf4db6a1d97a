# SPDX-License-Identifier: MIT
"""The options of ``fastconv train forecast``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastconv.recipes.distributed import require_one_process
from fastconv.recipes.forecast import Errors, ForecastConfig, train_forecast
from fastconv.recipes.options import add_options, given_options

_DESCRIPTION = """\
Train an LSTM to forecast a time series, and compare it with two naive forecasts on the last part of
the series, walking forward through time. By default the series is the yearly number of sunspots,
1700 to 2008 (NOAA, public domain). The run folder gets metrics.csv, config.json, summary.json,
best.pt and forecast.png."""

_HELP = {
    "csv": ("FILE", "a series of your own: a header, time in the first column"),
    "column": ("NAME", "the column of --csv to forecast"),
    "window": ("N", "steps that are read"),
    "horizon": ("N", "steps that are forecast"),
    "season": ("N", "steps in a season of the naive forecast (default: 11, with --csv 1)"),
    "hidden": ("N", "units of the LSTM"),
    "layers": ("N", "layers of the LSTM"),
    "epochs": ("N", "epochs at most"),
    "patience": ("N", "stop after N epochs without a lower validation loss"),
    "batch_size": ("N", "windows in a batch"),
    "lr": ("X", "learning rate of Adam"),
    "validation_share": ("X", "part of the series that decides when to stop"),
    "test_share": ("X", "last part of the series, to test on"),
    "seed": ("N", "seed of weights and order"),
    "threads": ("N", "CPU threads (default: torch's choice)"),
    "backend": ("NAME", "fastconv or torch: whose LSTM"),
}
_TYPES = {"csv": str, "column": str, "backend": str}


def add_train_parser(commands: Any) -> None:
    """Add ``forecast`` to the subcommands of ``train``."""
    parser = commands.add_parser(
        "forecast", help="an LSTM on a time series", description=_DESCRIPTION
    )
    parser.set_defaults(run=_run)
    add_options(parser, ForecastConfig, _HELP, _TYPES)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="run folder (default: runs/forecast-N)"
    )


def _run(arguments: argparse.Namespace) -> int:
    require_one_process("train forecast")
    given = given_options(arguments, ForecastConfig)
    result = train_forecast(ForecastConfig(**given), out=arguments.out)
    for name, errors in (
        ("LSTM", result.lstm),
        ("last value", result.last_value),
        (f"season of {result.season}", result.seasonal),
    ):
        print(_line(name, errors))
    print(
        f"{result.forecasts} forecasts, {result.epochs} epochs (best {result.best_epoch}), "
        f"{result.seconds:.1f} s, run folder {result.folder}"
    )
    return 0


def _line(name: str, errors: Errors) -> str:
    return f"{name:<14} MAE {errors.mae:10.4g}   RMSE {errors.rmse:10.4g}"
