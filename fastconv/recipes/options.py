# SPDX-License-Identifier: MIT
"""Command-line options that are the fields of a recipe's configuration."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from fastconv.recipes.errors import UserError

MAX_THREADS = 1024
MAX_SEED = 2**32 - 1
# Beyond any use, and before torch runs out of memory or integers in a sentence of its own.
MAX_COUNT = 10**6
MAX_UNITS = 2**14
MAX_LAYERS = 100


def add_options(
    parser: argparse.ArgumentParser,
    config: type[Any],
    descriptions: Mapping[str, tuple[str, str]],
    types: Mapping[str, type],
) -> None:
    """Add an option for every field of the dataclass ``config``.

    Args:
        descriptions: per field the placeholder of its value and the help text.
        types: types of the values that are neither ``float`` nor ``int`` by their default.
    """
    for field in fields(config):
        metavar, text = descriptions[field.name]
        if field.default is not None:
            text += f" (default: {field.default})"
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=types.get(field.name, float if isinstance(field.default, float) else int),
            metavar=metavar,
            help=text,
            default=argparse.SUPPRESS,
        )


def given_options(arguments: argparse.Namespace, config: type[Any]) -> dict[str, Any]:
    """The options of :func:`add_options` that were given, by field."""
    names = {field.name for field in fields(config)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def check_option(config: Any, name: str, expected: str, holds: bool) -> None:
    """Refuse the value of a field with one sentence that names its option.

    Raises:
        UserError: ``holds`` is false.
    """
    if not holds:
        option = "--" + name.replace("_", "-")
        raise UserError(f"expected {option} {expected}, got {getattr(config, name)!r}")


def check_integers(config: Any, *rules: tuple[str, int, int]) -> None:
    """Refuse integer fields outside their ranges; a field that is None is not given.

    Args:
        rules: name of a field, least and largest value.

    Raises:
        UserError: naming the option.
    """
    for name, low, high in rules:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        holds = value is None or (whole and low <= value <= high)
        check_option(config, name, f"an integer from {low} to {high}", holds)


def set_threads(threads: int | None) -> None:
    """Set torch's number of threads, if one is given."""
    if threads is not None:
        torch.set_num_threads(threads)
