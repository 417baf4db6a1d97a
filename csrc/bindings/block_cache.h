// SPDX-License-Identifier: MIT
// A bounded cache of large memory blocks. Touching fresh pages for the first time costs more than
// the arithmetic of many layers (benchmarks/results/README.md), and a training loop asks for the
// same sizes in every step.
#pragma once

#include <c10/core/Allocator.h>

#include <cstdint>

namespace fastconv::bindings {

// Blocks from this size on come from the cache; smaller ones from torch's allocator.
inline constexpr int64_t kMinCachedBytes = int64_t{256} << 10;

struct BlockCacheInfo {
  int64_t limit_bytes;   // most that may lie idle in the cache; 0: every block goes back at once
  int64_t cached_bytes;  // idle now
  int64_t used_bytes;    // handed out and not yet returned
  int64_t hits;
  int64_t misses;
};

// Hands out 64-byte aligned blocks; a block returns to the cache when its last owner lets it go.
// Safe from any thread. Lives until the process ends.
c10::Allocator* block_cache();

BlockCacheInfo block_cache_info();

// Frees idle blocks, longest idle first, until the limit holds.
void set_block_cache_limit(int64_t bytes);

// Frees all idle blocks.
void empty_block_cache();

}  // namespace fastconv::bindings
