# SPDX-License-Identifier: MIT
"""State that tests may change, and that must not leak from one test into the next."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

# Read by the OpenMP runtime when torch loads it: waiting threads sleep instead of spinning. With
# spinning, a busy machine takes several times longer for these thousands of tiny operators.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

import fastconv
from fastconv import runtime

if TYPE_CHECKING:
    from cuda_shim import CudaShim


def pytest_report_header() -> str:
    isas = ", ".join(runtime.available_isas())
    return f"fastconv {fastconv.__version__}, torch {torch.__version__}, instruction sets: {isas}"


@pytest.fixture(autouse=True, scope="session")
def _outside_the_source_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs that tests start with `python -m fastconv` must find the installed package, not the
    folder of that name in the checkout, which holds no compiled extension."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def _restore_global_state() -> Iterator[None]:
    threads = torch.get_num_threads()
    runtime.force_cpu_isa(None)  # whatever FASTCONV_ISA says: tests choose for themselves
    torch.manual_seed(0)
    yield
    runtime.force_cpu_isa(None)
    torch.set_num_threads(threads)


@pytest.fixture(params=runtime.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set this machine can run, forced for the length of the test."""
    with runtime.force_cpu_isa(request.param):
        yield request.param


@pytest.fixture(scope="session")
def shim() -> CudaShim:
    """The CUDA emulator, built once."""
    from cuda_shim import CudaShim, build

    return CudaShim(build())


@pytest.fixture(autouse=True)
def _schedule_cuda_shim(request: pytest.FixtureRequest) -> None:
    """Each test of the emulator starts with its own schedule and the other options' defaults."""
    if "shim" in request.fixturenames:
        from cuda_shim import schedule_of_test

        shim: CudaShim = request.getfixturevalue("shim")
        shim.schedule = schedule_of_test(request.node.name)
        shim.configure()
