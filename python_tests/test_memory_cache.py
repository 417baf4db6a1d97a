# SPDX-License-Identifier: MIT
"""The cache of large result blocks: reuse, limit, off-switch, report, ownership."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import pytest
import torch

import fastconv.functional as F
from fastconv import runtime

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    gc.collect()
    limit = runtime.memory_cache_info()["limit_bytes"]
    runtime.empty_memory_cache()
    yield
    runtime.set_memory_cache_limit(limit)
    runtime.empty_memory_cache()


def pooled(mib: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A result of `mib` MiB."""
    return F.max_pool2d(torch.zeros(1, mib, 512, 512 * 4 // dtype.itemsize, dtype=dtype), 1)


def test_a_block_comes_back() -> None:
    first = pooled(2)
    address = first.data_ptr()
    before = runtime.memory_cache_info()
    assert before["used_bytes"] >= 2 * MIB
    del first
    idle = runtime.memory_cache_info()
    assert idle["cached_bytes"] >= 2 * MIB
    assert idle["used_bytes"] == before["used_bytes"] - idle["cached_bytes"]
    again = pooled(2)
    assert again.data_ptr() == address
    after = runtime.memory_cache_info()
    assert after["hits"] == before["hits"] + 1
    assert after["cached_bytes"] == 0


def test_live_tensors_never_share_a_block() -> None:
    results = [pooled(2) for _ in range(3)]
    view = results[1][:, :1]
    del results[1]
    gc.collect()
    assert len({r.data_ptr() for r in [*results, view, pooled(2)]}) == 4


def test_small_results_stay_with_torch() -> None:
    before = runtime.memory_cache_info()
    F.max_pool2d(torch.zeros(1, 1, 64, 64), 2)
    assert runtime.memory_cache_info() == before


def test_limit_and_off_switch() -> None:
    runtime.set_memory_cache_limit(5 * MIB)
    results = [pooled(mib) for mib in (1, 2, 4)]
    del results
    info = runtime.memory_cache_info()
    assert info["limit_bytes"] == 5 * MIB
    assert 0 < info["cached_bytes"] <= 5 * MIB
    runtime.set_memory_cache_limit(0)
    assert runtime.memory_cache_info()["cached_bytes"] == 0
    del info
    pooled(2)
    assert runtime.memory_cache_info()["cached_bytes"] == 0


def test_emptying_keeps_what_is_alive() -> None:
    alive = pooled(2).fill_(3.0)
    pooled(4)
    runtime.empty_memory_cache()
    assert runtime.memory_cache_info()["cached_bytes"] == 0
    assert alive.eq(3.0).all()


def test_negative_limit() -> None:
    with pytest.raises(ValueError, match="expected at least 0 bytes, got -1"):
        runtime.set_memory_cache_limit(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_are_aligned(dtype: torch.dtype) -> None:
    assert all(pooled(mib, dtype).data_ptr() % 64 == 0 for mib in (1, 2, 3, 5))


def test_results_are_ordinary_tensors() -> None:
    result = pooled(1)
    assert result.untyped_storage().resizable()
    assert result.clone().resize_(2, 3).shape == (2, 3)
    result.resize_(4 * MIB).fill_(1.0)
    assert result.sum() == 4 * MIB
    assert pooled(1).share_memory_().is_shared()
    with torch.inference_mode():
        assert pooled(1).is_inference()


def test_threads() -> None:
    """Blocks may be freed by other threads than the one that asked for them."""

    def work(results: list[torch.Tensor]) -> None:
        for i in range(20):
            results.append(pooled(1).fill_(float(i)))
            if len(results) > 3:
                results.pop(0)

    kept: list[list[torch.Tensor]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=work, args=(results,)) for results in kept]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results in kept:
        assert [r.unique().tolist() for r in results] == [[17.0], [18.0], [19.0]]


def test_forked_children_can_use_it() -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    pooled(2)
    child = os.fork()
    if child == 0:
        os._exit(0 if pooled(2).sum() == 0 else 1)
    assert os.waitpid(child, 0)[1] == 0
