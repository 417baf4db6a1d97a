# SPDX-License-Identifier: MIT
"""Metadata provider of the build: pins the wheel to the torch minor release it is compiled against.

torch promises no C++ ABI stability between minor releases, so a wheel built on torch 2.13 must
never be installed beside torch 2.14.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any


class MissingTorchError(RuntimeError):
    pass


def torch_requirement() -> str:
    """Returns e.g. "torch>=2.13,<2.14" for the torch installed in the build environment."""
    try:
        major, minor = (int(part) for part in version("torch").split(".")[:2])
    except PackageNotFoundError:
        raise MissingTorchError(
            "fastconv: building without build isolation needs torch installed first: "
            "pip install torch==2.13.0"
        ) from None
    return f"torch>={major}.{minor},<{major}.{minor + 1}"


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, Any]:
    return {"dependencies": [torch_requirement()]}


def dynamic_wheel(settings: Mapping[str, Any]) -> dict[str, bool]:
    """The sdist says `Dynamic: Requires-Dist`: each wheel built from it pins its own torch."""
    return {"dependencies": True}
