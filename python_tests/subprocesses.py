# SPDX-License-Identifier: MIT
"""Runs a program in a fresh interpreter, for what one process can test only once."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -c program` with FASTCONV_ISA unset unless given; a hang is an error after 2 minutes.

    It runs outside the source tree, so that `import fastconv` finds the installed package and not
    the folder of that name, which holds no compiled extension.
    """
    inherited = {k: v for k, v in os.environ.items() if k != "FASTCONV_ISA"}
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=inherited | environment,
        cwd=tempfile.gettempdir(),
        timeout=120,
        check=False,
    )
