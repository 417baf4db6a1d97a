// SPDX-License-Identifier: MIT
#include "bindings/block_cache.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <pthread.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <deque>
#include <mutex>

namespace fastconv::bindings {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kAlignment = 64;

struct Block {
  void* data;
  int64_t bytes;
};

// Sizes are rounded up to one of eight steps per power of two, so that nearly equal requests share
// blocks and at most an eighth is wasted; from huge pages on to whole ones.
int64_t block_bytes(int64_t bytes) {
  const int64_t power = int64_t{1} << (std::bit_width(static_cast<uint64_t>(bytes)) - 1);
  const int64_t step = std::max(power / 8, kAlignment);
  const int64_t rounded = (bytes + step - 1) / step * step;
  return rounded < 2 * kHugePage ? rounded : (rounded + kHugePage - 1) / kHugePage * kHugePage;
}

void* map_block(int64_t bytes) {
  const int64_t alignment = bytes % kHugePage == 0 ? kHugePage : kAlignment;
  void* data = std::aligned_alloc(alignment, bytes);
  TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "fastconv: not enough memory for ", bytes,
                   " bytes");
#if defined(__linux__)
  // Advice only: a kernel without transparent huge pages refuses, and nothing is lost.
  if (alignment == kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

int64_t default_limit() {
  constexpr int64_t kMost = int64_t{1} << 30;
  const int64_t memory = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
  return std::clamp<int64_t>(memory / 16, 0, kMost);
}

class BlockCache final : public c10::Allocator {
 public:
  // A child of fork() must not inherit a mutex that another thread held.
  BlockCache() {
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
  }

  c10::DataPtr allocate(size_t bytes) override {
    const Block block = take(block_bytes(std::max<int64_t>(bytes, kAlignment)));
    c10::profiledCPUMemoryReporter().New(block.data, block.bytes);
    return {block.data, new Block(block), &release, at::Device(at::kCPU)};
  }

  void copy_data(void* target, const void* source, size_t bytes) const override {
    default_copy_data(target, source, bytes);
  }

  BlockCacheInfo info() {
    const std::lock_guard lock(mutex_);
    return info_;
  }

  void set_limit(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    info_.limit_bytes = bytes;
    free_beyond(bytes);
  }

  void clear() {
    const std::lock_guard lock(mutex_);
    free_beyond(0);
  }

  static BlockCache& instance() {
    // Never destroyed: tensors may outlive every static object.
    static BlockCache* cache = new BlockCache;
    return *cache;
  }

 private:
  Block take(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    info_.used_bytes += bytes;
    // The most recent block of that size: the likeliest to be in the processor's caches.
    for (auto idle = idle_.rbegin(); idle != idle_.rend(); ++idle) {
      if (idle->bytes != bytes) continue;
      const Block block = *idle;
      idle_.erase(std::next(idle).base());
      info_.cached_bytes -= bytes;
      ++info_.hits;
      return block;
    }
    ++info_.misses;
    return {map_block(bytes), bytes};
  }

  static void release(void* context) {
    Block* block = static_cast<Block*>(context);
    c10::profiledCPUMemoryReporter().Delete(block->data);
    instance().give_back(*block);
    delete block;
  }

  void give_back(const Block& block) {
    const std::lock_guard lock(mutex_);
    info_.used_bytes -= block.bytes;
    info_.cached_bytes += block.bytes;
    idle_.push_back(block);
    free_beyond(info_.limit_bytes);
  }

  void free_beyond(int64_t limit) {
    while (info_.cached_bytes > limit) {
      info_.cached_bytes -= idle_.front().bytes;
      std::free(idle_.front().data);
      idle_.pop_front();
    }
  }

  std::mutex mutex_;
  std::deque<Block> idle_;  // longest idle first
  BlockCacheInfo info_{default_limit(), 0, 0, 0, 0};
};

}  // namespace

c10::Allocator* block_cache() {
  return &BlockCache::instance();
}

BlockCacheInfo block_cache_info() {
  return BlockCache::instance().info();
}

void set_block_cache_limit(int64_t bytes) {
  BlockCache::instance().set_limit(bytes);
}

void empty_block_cache() {
  BlockCache::instance().clear();
}

}  // namespace fastconv::bindings
