# SPDX-License-Identifier: MIT
"""Command-line options that are the fields of a recipe's configuration."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fastconv.recipes.errors import UserError


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
