# SPDX-License-Identifier: MIT
"""CUDA kernels executed on the CPU: the emulator of csrc/tests/cuda_shim, loaded by ctypes.

A test takes the fixture ``shim``, copies tensors into guarded memory and calls launchers by name::

    with shim.memory() as memory:
        x = memory.copy(x, "input")
        y = memory.empty(sizes, torch.float32, "output")
        shim.call("max_pool2d_forward", x, y, 2, 2)
        result = y.clone()
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "cuda_shim"

# In the order of the enums in csrc/tests/cuda_shim/emulator.h.
SCHEDULES = ("ascending", "descending", "warp_ahead", "random", "blocks_reversed")
COPY_AT = ("issue", "wait")
MMA_MODES = ("exact", "ampere", "hopper")
FLUSH = ("end", "start")


def schedule_of_test(name: str) -> str:
    """The schedule of a test that does not choose one: the five share the tests between them, and
    FASTCONV_SHIM_SCHEDULE=random (or another of them) gives all tests the same one, so that five
    runs see every case under every schedule."""
    forced = os.environ.get("FASTCONV_SHIM_SCHEDULE")
    if forced is not None:
        assert forced in SCHEDULES, f"FASTCONV_SHIM_SCHEDULE: expected {SCHEDULES}, got {forced}"
        return forced
    return SCHEDULES[zlib.crc32(name.encode()) % len(SCHEDULES)]


class CudaShimError(RuntimeError):
    """A launch that the emulated device refused or gave up; the text says where and why."""


class Counts(NamedTuple):
    """What the kernels since the last reset_counts() did; csrc/tests/cuda_shim/emulator.h."""

    launches: int
    blocks: int
    barriers: int
    mma: int
    ldmatrix: int
    async_copies: int
    checked_accesses: int


@dataclass
class Memory:
    """Guarded tensors, valid while the block of ``shim.memory()`` lasts."""

    library: ctypes.CDLL
    flush: str
    pointers: dict[int, str]

    def allocate(
        self, count: int, dtype: torch.dtype, name: str, alignment: int | None = None
    ) -> Tensor:
        """``count`` values, poisoned (NaN or -1), at a multiple of ``alignment`` bytes (16), which
        is also how many may lie between the last one and the unmapped page."""
        size = dtype.itemsize
        bytes_ = count * size
        pointer = self.library.fastconv_shim_allocate(
            bytes_, alignment or 16, FLUSH.index(self.flush), name.encode()
        )
        self.pointers[pointer] = name
        if count == 0:
            return torch.empty(0, dtype=dtype)
        raw = (ctypes.c_char * bytes_).from_address(pointer)
        return torch.frombuffer(raw, dtype=dtype)

    def empty(
        self,
        sizes: Sequence[int],
        dtype: torch.dtype,
        name: str,
        *,
        channels_last: bool = False,
        alignment: int | None = None,
    ) -> Tensor:
        """A poisoned tensor, contiguous or channels_last (4-D)."""
        count = 1
        for size in sizes:
            count *= size
        flat = self.allocate(count, dtype, name, alignment)
        if not channels_last:
            return flat.view(tuple(sizes))
        n, c, h, w = sizes
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)

    def copy(self, tensor: Tensor, name: str, *, alignment: int | None = None) -> Tensor:
        """The tensor with its strides; elements of its storage between its own stay poisoned."""
        if tensor.numel() == 0:
            return tensor
        reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        flat = self.allocate(reach, tensor.dtype, name, alignment)
        return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


class CudaShim:
    """The emulator library and its settings."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        library = self.library
        library.fastconv_shim_allocate.restype = ctypes.c_void_p
        library.fastconv_shim_allocate.argtypes = [
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int,
            ctypes.c_char_p,
        ]
        library.fastconv_shim_free.restype = ctypes.c_bool
        library.fastconv_shim_free.argtypes = [ctypes.c_void_p]
        library.fastconv_shim_last_error.restype = ctypes.c_char_p
        library.fastconv_shim_kernel_trace.restype = ctypes.c_char_p
        library.fastconv_shim_set_options.argtypes = [
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_uint64,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int64,
        ]
        self.schedule = "ascending"
        self.configure()

    def configure(
        self,
        schedule: str | None = None,
        *,
        copy_at: str | None = None,
        mma: str = "exact",
        seed: int = 0,
        multiprocessors: int = 4,
        compute_capability: int = 80,
        most_blocks: int | None = None,
    ) -> None:
        """How the next launches run; without a schedule under that of the test, without
        ``copy_at`` and ``most_blocks`` as FASTCONV_SHIM_COPY_AT and FASTCONV_SHIM_MOST_BLOCKS say,
        or late and as many as a grid may have."""
        copy_at = copy_at or os.environ.get("FASTCONV_SHIM_COPY_AT", "wait")
        most_blocks = most_blocks or int(os.environ.get("FASTCONV_SHIM_MOST_BLOCKS", 2**31 - 1))
        self.library.fastconv_shim_set_options(
            SCHEDULES.index(schedule or self.schedule),
            COPY_AT.index(copy_at),
            MMA_MODES.index(mma),
            seed,
            multiprocessors,
            compute_capability,
            most_blocks,
        )

    @contextmanager
    def memory(self, flush: str = "end") -> Iterator[Memory]:
        """Guarded memory whose ``flush`` side lies against an unmapped page. Raises
        CudaShimError at the end if a kernel wrote beside a tensor."""
        memory = Memory(self.library, flush, {})
        yield memory  # when the block raises, its tensors stay mapped: tracebacks print them
        damaged = [
            name
            for pointer, name in memory.pointers.items()
            if not self.library.fastconv_shim_free(pointer)
        ]
        if damaged:
            raise CudaShimError(f"written beside: {', '.join(damaged)}")

    def call(self, launcher: str, *arguments: Tensor | int | float | bool | None) -> None:
        """Calls ``fastconv_<launcher>``: tensors go as pointers, int as int64, float as double,
        bool as int, None as a null pointer."""
        function = getattr(self.library, f"fastconv_{launcher}")
        error = function(*(_c_value(argument) for argument in arguments))
        if error != 0:
            reason = self.library.fastconv_shim_last_error().decode()
            raise CudaShimError(f"{launcher}: error {error}: {reason}")

    def value(self, function: str, *arguments: Tensor | int | float | bool | None) -> int:
        """The int64 that ``fastconv_<function>`` returns."""
        entry = getattr(self.library, f"fastconv_{function}")
        entry.restype = ctypes.c_int64
        return entry(*(_c_value(argument) for argument in arguments))

    def reset_counts(self) -> None:
        self.library.fastconv_shim_reset_counts()

    def kernels(self) -> list[str]:
        """Names of the kernels launched since reset_counts(), with their template arguments."""
        trace = self.library.fastconv_shim_kernel_trace().decode()
        return trace.split("|") if trace else []

    def counts(self) -> Counts:
        values = (ctypes.c_int64 * len(Counts._fields))()
        self.library.fastconv_shim_counts(values)
        return Counts(*values)


def _c_value(argument: Tensor | int | float | bool | None) -> object:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, bool):
        return ctypes.c_int(argument)
    if isinstance(argument, float):
        return ctypes.c_double(argument)
    return ctypes.c_int64(argument)


def build() -> Path:
    """Builds the library where something changed, and returns its path. Needs cmake, ninja and a
    C++20 compiler, no CUDA."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run("cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-DFASTCONV_TESTS=ON")
        _run("cmake", "--build", str(BUILD), "--target", "fastconv_cuda_shim")
    return BUILD / "csrc" / "tests" / "cuda_shim" / "libfastconv_cuda_shim.so"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise CudaShimError(
            f"{' '.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
