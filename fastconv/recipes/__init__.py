# SPDX-License-Identifier: MIT
"""Whole jobs on real data: ``fastconv train lenet5|forecast|text``, ``predict`` and ``generate``.

The optional packages they use come with ``pip install "fastconv[recipes]"``; they are imported when
a recipe runs.
"""

from fastconv.recipes.errors import (
    MissingExtraError,
    RunInterruptedError,
    TrainingDivergedError,
    UserError,
)
from fastconv.recipes.lenet import LeNetResult, train_lenet5
from fastconv.recipes.lenet_config import LeNetConfig
from fastconv.recipes.predict import Prediction, predict_lenet5, read_digit

__all__ = [
    "LeNetConfig",
    "LeNetResult",
    "MissingExtraError",
    "Prediction",
    "RunInterruptedError",
    "TrainingDivergedError",
    "UserError",
    "predict_lenet5",
    "read_digit",
    "train_lenet5",
]
