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


def last_used() -> dict[str, tuple[str, str]]:
    """Algorithm and instruction set of the last run of every kernel that has run."""
    return _C.all_records()


def forget_last_used() -> None:
    """Forgets which kernels have run, so that :func:`last_used` tells what runs from now on."""
    _C.forget_records()


def algorithms(kernel: str) -> list[str]:
    """The algorithms among which ``kernel`` chooses; empty when it has no choice.

    Args:
        kernel: e.g. ``conv2d_forward``, ``conv2d_grad_input``, ``conv2d_grad_weight``.

    Raises:
        ValueError: no kernel has that name.
    """
    return _C.algorithms(kernel)


class force_algorithm(contextlib.AbstractContextManager["force_algorithm"]):
    """Makes one kernel use one algorithm, until undone or for the length of a ``with``.

    A call whose shape the algorithm cannot serve raises ``ValueError``.

    Args:
        kernel: e.g. ``conv2d_forward``, ``conv2d_grad_input``, ``conv2d_grad_weight``.
        algorithm: one of :func:`algorithms`; ``None`` gives the choice back.

    Raises:
        ValueError: the kernel or the algorithm is unknown.

    Example::

        with fastconv.runtime.force_algorithm("conv2d_forward", "winograd"):
            ...
    """

    def __init__(self, kernel: str, algorithm: str | None) -> None:
        self._kernel = kernel
        self._previous = _C.forced_algorithm(kernel)
        _C.force_algorithm(kernel, algorithm)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _C.force_algorithm(self._kernel, self._previous)


def memory_cache_info() -> dict[str, int]:
    """State of the cache of large result blocks, in bytes.

    Results of 256 KiB and more come from a cache, because the first touch of fresh memory costs
    more than the arithmetic of many layers.

    Returns:
        ``limit_bytes`` (most that may lie idle; at first a sixteenth of the machine's memory, at
        most 1 GiB), ``cached_bytes`` (idle now), ``used_bytes`` (in tensors that are alive),
        and the number of ``hits`` and ``misses``.
    """
    return _C.memory_cache_info()


def set_memory_cache_limit(limit: int) -> None:
    """Sets how many bytes may lie idle in the cache; ``0`` switches it off. Frees what is beyond.

    Raises:
        ValueError: the limit is negative.
    """
    _C.set_memory_cache_limit(limit)


def empty_memory_cache() -> None:
    """Gives all idle blocks of the cache back to the system."""
    _C.empty_memory_cache()


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
        "cuda_architectures": _build.CUDA_ARCHITECTURES,
    }
