# SPDX-License-Identifier: MIT
"""The settings of a LeNet-5 run, checked as they are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fastconv.models.lenet import ACTIVATIONS, BACKENDS, POOLS
from fastconv.recipes.data import DATASETS
from fastconv.recipes.errors import UserError
from fastconv.recipes.options import MAX_COUNT, MAX_SEED, MAX_THREADS

OPTIMIZERS = ("adam", "sgd")
DEFAULT_EPOCHS = {"digits": 40, "mnist": 10}
DEFAULT_LR = {"adam": 0.003, "sgd": 0.02}
MAX_SHIFT = 14
MAY_CHANGE_ON_RESUME = frozenset(
    {"epochs", "patience", "threads", "backend", "data_dir", "download"}
)


@dataclass(frozen=True)
class LeNetConfig:
    """Settings of :func:`fastconv.recipes.lenet.train_lenet5`.

    ``epochs`` and ``lr`` may be None: they then take the default of the data and of the optimizer.
    After each epoch the learning rate is multiplied by ``lr_decay``; the schedule does not depend
    on ``epochs``, so a run can be made longer afterwards. ``momentum`` belongs to SGD.

    Raises:
        UserError: for a value that cannot be used, with the option, what was expected, what came.
    """

    data: str = "digits"
    data_dir: str | None = None
    download: bool = False
    epochs: int | None = None
    batch_size: int = 64
    optimizer: str = "adam"
    lr: float | None = None
    lr_decay: float = 0.95
    momentum: float = 0.9
    weight_decay: float = 0.0
    l1: float = 0.0
    dropout: float = 0.0
    activation: str = "relu"
    pool: str = "max"
    shift: int = 2
    patience: int = 0
    seed: int = 0
    split_seed: int = 0
    threads: int | None = None
    backend: str = "fastconv"

    def __post_init__(self) -> None:
        for name, choices in (
            ("data", DATASETS),
            ("optimizer", OPTIMIZERS),
            ("activation", ACTIVATIONS),
            ("pool", POOLS),
            ("backend", BACKENDS),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise _error(name, f"one of {', '.join(choices)}", value)
        if self.epochs is None:
            object.__setattr__(self, "epochs", DEFAULT_EPOCHS[self.data])
        if self.lr is None:
            object.__setattr__(self, "lr", DEFAULT_LR[self.optimizer])
        self._check_integers()
        self._check_floats()

    def _check_integers(self) -> None:
        for name, low, high in (
            ("epochs", 1, MAX_COUNT),
            ("batch_size", 1, MAX_COUNT),
            ("shift", 0, MAX_SHIFT),
            ("patience", 0, MAX_COUNT),
            ("seed", 0, MAX_SEED),
            ("split_seed", 0, MAX_SEED),
            ("threads", 1, MAX_THREADS),
        ):
            value = getattr(self, name)
            if name == "threads" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise _error(name, f"an integer from {low} to {high}", value)

    def _check_floats(self) -> None:
        rules: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
            ("lr", "a number above 0", lambda v: v > 0),
            ("lr_decay", "a number above 0 and at most 1", lambda v: 0 < v <= 1),
            ("momentum", "a number from 0 to below 1", lambda v: 0 <= v < 1),
            ("weight_decay", "a number of at least 0", lambda v: v >= 0),
            ("l1", "a number of at least 0", lambda v: v >= 0),
            ("dropout", "a number from 0 to below 1", lambda v: 0 <= v < 1),
        )
        for name, expected, holds in rules:
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not holds(value):
                raise _error(name, expected, value)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LeNetConfig:
        """Make settings from a checkpoint.

        Raises:
            UserError: for a missing or unknown name, or a value that cannot be used.
        """
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            odd = ", ".join(sorted(set(values) ^ names))
            raise UserError(f"the checkpoint has missing or unknown settings: {odd}")
        return cls(**values)

    def resumed_with(self, given: Mapping[str, Any]) -> LeNetConfig:
        """These settings with the ones given for a resumed run.

        Raises:
            UserError: when one that shapes the run differs from the checkpoint's.
        """
        for name, value in given.items():
            if name not in MAY_CHANGE_ON_RESUME and value != getattr(self, name):
                may = ", ".join(option_name(n) for n in sorted(MAY_CHANGE_ON_RESUME))
                raise UserError(
                    f"expected {option_name(name)} {getattr(self, name)} as in the checkpoint, got "
                    f"{value}; with --resume only these may change: {may}"
                )
        return LeNetConfig(**{**self.to_dict(), "download": False, **given})


def option_name(name: str) -> str:
    """The command-line spelling of a setting."""
    return "--" + name.replace("_", "-")


def _error(name: str, expected: str, value: object) -> UserError:
    return UserError(f"expected {option_name(name)} {expected}, got {value!r}")
