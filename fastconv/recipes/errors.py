# SPDX-License-Identifier: MIT
"""Errors of the recipes: each message is one line that says what was expected and what came."""

from __future__ import annotations

import importlib.util


class UserError(ValueError):
    """Something the user gave cannot be used: an option, a data file, a checkpoint, an image."""


class MissingExtraError(UserError):
    """An optional package is not installed."""


class TrainingDivergedError(RuntimeError):
    """The loss became infinite or not a number."""


class RunInterruptedError(KeyboardInterrupt):
    """Ctrl-C during training; the message says how to go on from the last checkpoint."""


_PIP_NAMES = {"sklearn": "scikit-learn", "PIL": "pillow"}


def require_packages(*modules: str) -> None:
    """Check that optional packages can be imported, without importing them.

    Raises:
        MissingExtraError: naming every package that is missing and the command that installs it.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(_PIP_NAMES.get(name, name) for name in missing)
        raise MissingExtraError(f'{names} not installed; run: pip install "fastconv[recipes]"')
