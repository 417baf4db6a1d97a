# SPDX-License-Identifier: MIT
"""Loads the extension, which registers ``torch.ops.fastconv.*``, after checking that it fits.

torch has no stable C++ ABI across minor releases; loading a binary built for another one fails with
an undefined symbol at best. The check comes first, so that the user reads what to do.
"""

import os

import torch

try:
    from fastconv._build import TORCH_VERSION
except ModuleNotFoundError:
    raise ImportError(
        "fastconv: this folder is the source tree, which holds no compiled extension; "
        "run 'pip install .' in it and start Python from another folder"
    ) from None


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def check_torch(built: str, running: str) -> None:
    """Raises ImportError, in one line, when the two torch versions differ in their minor."""
    if _minor(built) != _minor(running):
        raise ImportError(
            f"fastconv was built for torch {_minor(built)} but torch {running} is installed; "
            f"reinstall it for this torch (pip install --no-build-isolation --force-reinstall "
            f"--no-deps fastconv) or run: pip install 'torch=={_minor(built)}.*'"
        )


check_torch(TORCH_VERSION, torch.__version__)

from fastconv import _C  # noqa: E402  (must follow the check)

if os.environ.get("FASTCONV_ISA"):
    try:
        _C.force_cpu_isa(os.environ["FASTCONV_ISA"])
    except ValueError as error:
        raise ImportError(f"FASTCONV_ISA: {error}") from None
