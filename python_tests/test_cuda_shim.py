# SPDX-License-Identifier: MIT
"""The emulator from Python: what test_cuda_shim_<op>.py rely on. Its own rules are checked in C++
(csrc/tests/test_cuda_shim.cpp)."""

from __future__ import annotations

import ctypes

import pytest
import torch
from cuda_shim import CudaShim, CudaShimError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_memory_starts_poisoned_and_keeps_strides(shim: CudaShim, dtype: torch.dtype) -> None:
    x = torch.arange(2 * 3 * 4 * 5, dtype=dtype).view(2, 3, 4, 5)
    x = x.contiguous(memory_format=torch.channels_last)
    for flush in ("end", "start"):
        with shim.memory(flush) as memory:
            copied = memory.copy(x, "x")
            assert torch.equal(copied, x)
            assert copied.stride() == x.stride()
            assert memory.empty((3, 5), dtype, "y").isnan().all()
            last = memory.empty((2, 3, 4, 5), dtype, "z", channels_last=True)
            assert last.is_contiguous(memory_format=torch.channels_last)
            assert memory.empty((0, 4), dtype, "none").shape == (0, 4)


def test_memory_reports_who_was_written_beside(shim: CudaShim) -> None:
    def write_beside_one() -> None:
        with shim.memory() as memory:
            narrow = memory.empty((3,), torch.float32, "narrow")
            memory.empty((3,), torch.float32, "other")
            ctypes.memset(narrow.data_ptr() + 12, 0, 1)

    with pytest.raises(CudaShimError, match=r"written beside: narrow$"):
        write_beside_one()


def test_memory_alignment(shim: CudaShim) -> None:
    with shim.memory() as memory:
        x = memory.empty((7,), torch.float32, "x", alignment=4)
        assert x.data_ptr() % 16 == 4
        assert memory.empty((7,), torch.float32, "y").data_ptr() % 16 == 0
