# SPDX-License-Identifier: MIT
"""The folder of a training run and the text files in it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from fastconv.recipes.checkpoint import atomic_write
from fastconv.recipes.errors import UserError

BEST = "best.pt"
LAST = "last.pt"
METRICS = "metrics.csv"
CONFIG = "config.json"
SUMMARY = "summary.json"


def create_run_folder(out: Path | None, name: str) -> Path:
    """Create the folder of a new run.

    Args:
        out: the folder asked for, which must not hold a run yet; None takes the first free one of
            ``runs/<name>-1``, ``runs/<name>-2`` and so on.
        name: name of the recipe.

    Raises:
        UserError: when the folder holds a run or cannot be created.
    """
    try:
        if out is None:
            return _next_free(Path("runs"), name)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        where = error.filename or out
        raise UserError(f"{where}: cannot create the run folder: {error.strerror}") from error
    if (out / LAST).exists():
        raise UserError(
            f"{out}: holds a run already; expected a new folder, or --resume {out / LAST}"
        )
    if (out / BEST).exists():
        raise UserError(f"{out}: holds a run already; expected a new folder")
    return out


def _next_free(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            folder = parent / f"{name}-{number}"
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def write_metrics(folder: Path, history: list[dict[str, float]]) -> None:
    """Write ``metrics.csv`` anew from the whole history: one row per epoch.

    Floats are written so that reading them gives the same bits.
    """
    text = io.StringIO(newline="")
    if history:
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
    with atomic_write(folder / METRICS) as handle:
        handle.write(text.getvalue().encode())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an indented JSON file."""
    with atomic_write(path) as handle:
        handle.write((json.dumps(content, indent=2) + "\n").encode())
