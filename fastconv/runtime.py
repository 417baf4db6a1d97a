# SPDX-License-Identifier: MIT
"""What fastconv was built with, which instruction set its kernels use, what ran last, and how fast
the machine could go."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType

import torch

from fastconv import _C, _build


def available_isas() -> list[str]:
    """Instruction sets this machine can run, from ``scalar`` to the best."""
    return _C.available_isas()


def cpu_isa() -> str:
    """The instruction set the kernels use now: the forced one, else the best available."""
    return _C.cpu_isa()


class force_cpu_isa(contextlib.AbstractContextManager["force_cpu_isa"]):
    """Makes all kernels use one instruction set, until undone or for the length of a ``with``.

    Args:
        name: ``scalar``, ``avx2`` or ``avx512``; ``None`` goes back to the best available.

    Raises:
        ValueError: the name is unknown or this machine cannot run it.

    Example::

        fastconv.runtime.force_cpu_isa("avx2")
        with fastconv.runtime.force_cpu_isa("scalar"):
            ...
    """

    def __init__(self, name: str | None) -> None:
        self._previous = _C.forced_cpu_isa()
        _C.force_cpu_isa(name)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _C.force_cpu_isa(self._previous)


def last_used_isa(kernel: str | None = None) -> str | None:
    """The instruction set of the last run of ``kernel``, or of the last kernel of any kind.

    Args:
        kernel: e.g. ``conv2d_forward``, ``conv2d_grad_weight``, ``max_pool2d_backward``.

    Returns:
        ``None`` when that kernel has not run yet in this process.

    Raises:
        ValueError: no kernel has that name.
    """
    record = _C.last_record(kernel)
    return None if record is None else record[1]


def last_used_algorithm(kernel: str | None = None) -> str | None:
    """The algorithm of the last run of ``kernel``; see :func:`last_used_isa`."""
    record = _C.last_record(kernel)
    return None if record is None else record[0]


def fma_peak() -> float:
    """Measures the machine's arithmetic limit, which benchmarks express their speed in.

    Returns:
        GFLOP/s of float32 multiply-adds that touch nothing but registers, on the active instruction
        set and ``torch.get_num_threads()`` threads at once: the best of a few rounds, about 20 ms.
    """
    return _C.fma_peak()


def _openmp_runtimes() -> Iterator[str]:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    pattern = re.compile(r"\S*/(lib(?:gomp|iomp5|omp)[^/\s]*)$")
    seen = set()
    for line in maps.read_text().splitlines():
        found = pattern.search(line)
        if found and found[1] not in seen:
            seen.add(found[1])
            yield found[1]


def info() -> dict[str, str | int | list[str] | None]:
    """Facts for a bug report: versions, compiler, instruction sets, threads, OpenMP, CUDA."""
    try:
        own_version = version("fastconv")
    except PackageNotFoundError:
        own_version = "0+unknown"
    return {
        "version": own_version,
        "torch_built": _build.TORCH_VERSION,
        "torch_running": torch.__version__,
        "compiler": _build.COMPILER,
        "cpu_isas": available_isas(),
        "cpu_isa": cpu_isa(),
        "threads": torch.get_num_threads(),
        "openmp": sorted(_openmp_runtimes()),
        "cuda": _build.CUDA,
    }
