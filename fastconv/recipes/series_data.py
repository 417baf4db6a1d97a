# SPDX-License-Identifier: MIT
"""Time series from CSV files, and the windows a forecaster learns from."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from datetime import date, timedelta
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from fastconv.recipes.errors import UserError

DEFAULT_COLUMN = "sunspots"


@dataclass(frozen=True)
class Series:
    """A series at equal steps of time.

    Attributes:
        name: what is measured.
        labels: the first column of the file, one entry per step.
        values: float64 ``[steps]``.
    """

    name: str
    labels: tuple[str, ...]
    values: Tensor


def load_sunspots() -> Series:
    """Yearly sunspot numbers, 1700 to 2008 (NOAA, public domain), which ship with the package."""
    source = files("fastconv.recipes") / "series" / "sunspots.csv"
    return _parse("sunspots.csv", source.read_text(encoding="utf-8"), DEFAULT_COLUMN)


def load_csv(path: Path, column: str) -> Series:
    """Read a series: a header, the time in the first column, numbers in ``column``.

    The time may be whole numbers or ISO dates (``2001-01``, ``2001-01-31``), or anything else that
    is then taken as it comes. Numbers and dates must advance in equal steps, dates by days, weeks,
    months or years.

    Raises:
        UserError: naming the line of a value that is missing or no number, or of a gap in time.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected a text file in UTF-8") from error
    return _parse(str(path), text, column)


def _parse(name: str, text: str, column: str) -> Series:
    try:
        lines = [(n, row) for n, row in enumerate(csv.reader(text.splitlines()), 1) if any(row)]
    except csv.Error as error:
        raise UserError(f"{name}: expected a CSV file: {error}") from error
    if len(lines) < 2:
        raise UserError(f"{name}: expected a header and rows, got {len(lines)} lines")
    header = [title.strip() for title in lines[0][1]]
    if column not in header:
        raise UserError(f"{name}: expected --column one of {', '.join(header)}, got {column}")
    at = header.index(column)
    labels, values = [], []
    for number, row in lines[1:]:
        if len(row) != len(header):
            raise UserError(
                f"{name}, line {number}: expected {len(header)} columns, got {len(row)}"
            )
        try:
            value = float(row[at])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(
                f"{name}, line {number}: expected a number in column {column}, got {row[at]!r}"
            )
        labels.append(row[0].strip())
        values.append(value)
    _check_steps(name, labels, [number for number, _ in lines[1:]])
    return Series(column, tuple(labels), torch.tensor(values, dtype=torch.float64))


def _check_steps(name: str, labels: list[str], numbers: list[int]) -> None:
    """Refuse gaps and repetitions, where the labels are numbers or dates."""
    for read in (_as_integers, _as_months, _as_days):
        times = read(labels)
        if times is None:
            continue
        steps = [b - a for a, b in pairwise(times)]
        usual = min(steps, default=1)
        for i, step in enumerate(steps):
            if usual <= 0 or step != usual:
                raise UserError(
                    f"{name}, line {numbers[i + 1]}: expected equal steps of time, got "
                    f"{labels[i + 1]} after {labels[i]}"
                )
        return


def _as_integers(labels: list[str]) -> list[int] | None:
    try:
        return [int(label) for label in labels]
    except ValueError:
        return None


def _as_days(labels: list[str]) -> list[int] | None:
    try:
        return [date.fromisoformat(label).toordinal() for label in labels]
    except ValueError:
        return None


def _as_months(labels: list[str]) -> list[int] | None:
    """Months counted from year 0, for ``2001-01`` and for dates that all share their day."""
    try:
        days = [date.fromisoformat(label if len(label) > 7 else f"{label}-01") for label in labels]
        ends = all((day + timedelta(1)).day == 1 for day in days)
    except (ValueError, OverflowError):  # no dates, or the last one there is
        return None
    if not ends and len({day.day for day in days}) > 1:
        return None
    return [12 * day.year + day.month for day in days]


@dataclass(frozen=True)
class Windows:
    """Inputs ``[N, window, 1]`` and targets ``[N, horizon]``, and each target's first step."""

    inputs: Tensor
    targets: Tensor
    starts: Tensor


def make_windows(values: Tensor, window: int, horizon: int, begin: int, end: int) -> Windows:
    """All windows whose targets lie in steps ``[begin, end)``; a window may begin before that.

    What is forecast is always later than what is read: a walk forward through time.
    """
    starts = torch.arange(max(begin, window), end - horizon + 1)
    back = starts[:, None] + torch.arange(-window, 0)
    ahead = starts[:, None] + torch.arange(horizon)
    return Windows(values[back].unsqueeze(-1), values[ahead], starts)
