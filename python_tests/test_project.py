# SPDX-License-Identifier: MIT
"""The files around the code: what a source distribution holds, and that hooks and CI agree."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_hooks_run_the_tools_of_ci_in_pinned_versions() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    ci = (ROOT / ".ci/run").read_text() if (ROOT / ".ci/run").exists() else ""
    dev = re.search(
        r"^dev = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL
    )[1]
    tools = {entry.split()[0] for entry in re.findall(r"entry: (.+)", hooks)}
    assert tools == {"clang-format", "ruff", "mypy"}
    for tool in tools:
        assert re.search(rf'"{tool}==[0-9.]+"', dev), f"{tool} has no exact version"
        assert not ci or re.search(rf"^\s*(.*\| *)?(xargs )?{tool} ", ci, re.MULTILINE), tool


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Paths in a source distribution of this tree, below its top folder."""
    folder = tmp_path_factory.mktemp("sdist")
    program = (
        "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("fastconv-*.tar.gz")
    with tarfile.open(archive) as tar:
        return {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}


def test_sdist_can_be_built_from(sdist: set[str]) -> None:
    """Every file that the build reads: sources, headers, CMake files and what CMake names."""
    needed = {"CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"}
    needed |= set(re.findall(r"csrc/\S+?\.(?:cpp|in|py)", (ROOT / "CMakeLists.txt").read_text()))
    for pattern in ("csrc/**/*.h", "csrc/**/*.cmake", "csrc/cmake/*.py", "fastconv/**/*.py"):
        needed |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)}
    missing = {path for path in needed if path not in sdist and (ROOT / path).exists()}
    assert not missing, sorted(missing)


def test_sdist_holds_nothing_made(sdist: set[str]) -> None:
    made = [p for p in sdist if re.match(r"(build|\.venv|\.git|benchmarks/results)/", p)]
    made += [p for p in sdist if p.endswith((".so", ".o", ".pyc"))]
    assert not made, made
