# SPDX-License-Identifier: MIT
"""Checkpoint files: written atomically, read without running any code they might carry."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fastconv.recipes.errors import UserError

FORMAT = "fastconv-checkpoint"
VERSION = 1

_DAMAGED = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` in one step when the block ends without an error.

    The bytes go to a temporary file in the same directory and reach the disk before the rename, so
    that ``path`` holds either the old or the new content, whenever the program is stopped.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, recipe: str, content: dict[str, Any]) -> None:
    """Write a checkpoint.

    Args:
        path: file to write or replace.
        recipe: name of the recipe, checked when the file is read.
        content: tensors, numbers, strings, and lists and dicts of these.
    """
    with atomic_write(path) as handle:
        torch.save({"format": FORMAT, "version": VERSION, "recipe": recipe, **content}, handle)


def load_checkpoint(path: Path, recipe: str) -> dict[str, Any]:
    """Read a checkpoint that :func:`save_checkpoint` wrote for the same recipe.

    Raises:
        UserError: when the file is missing, damaged, or none of that recipe's checkpoints.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a checkpoint file, found none")
    try:
        # torch.load does not compare the checksums that torch.save puts into the zip file.
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
        content = torch.load(path, map_location="cpu", weights_only=True) if whole else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _DAMAGED as error:
        raise UserError(f"{path}: damaged, or not a checkpoint of fastconv") from error
    if not whole:
        raise UserError(f"{path}: damaged, a checksum does not match")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of fastconv")
    if content.get("version") != VERSION:
        raise UserError(
            f"{path}: expected checkpoint version {VERSION}, got {content.get('version')}"
        )
    if content.get("recipe") != recipe:
        raise UserError(
            f"{path}: expected a checkpoint of {recipe}, got one of {content.get('recipe')}"
        )
    return content
