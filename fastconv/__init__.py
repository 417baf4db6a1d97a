# SPDX-License-Identifier: MIT
"""fastconv: hand-written CPU kernels that make small PyTorch networks train and infer faster.

from fastconv import nn          # Conv2d, MaxPool2d, BatchNorm2d, LSTM, ...: as in torch.nn
import fastconv.functional as F  # conv2d, max_pool2d, avg_pool2d, lstm, lstm_cell
from fastconv import optim       # Adam, AdamW: drop-in for torch.optim, one call per step
fastconv.accelerate(model)      # make the layers of an existing model run on fastconv, in place
fastconv.runtime.info()          # what was built, what runs
"""

from importlib.metadata import PackageNotFoundError, version

from fastconv import _load  # isort: skip  (registers the operators; everything below needs them)
from fastconv import functional, models, nn, optim, runtime
from fastconv._accelerate.explain import explain
from fastconv.accelerate import accelerate, accelerated, restore

try:
    __version__ = version("fastconv")
except PackageNotFoundError:  # imported from a source tree on sys.path, not installed
    __version__ = "0+unknown"

__all__ = [
    "__version__",
    "accelerate",
    "accelerated",
    "explain",
    "functional",
    "models",
    "nn",
    "optim",
    "restore",
    "runtime",
]

del _load
