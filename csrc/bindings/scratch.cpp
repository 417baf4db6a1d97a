// SPDX-License-Identifier: MIT
#include "bindings/scratch.h"

#include <c10/core/CPUAllocator.h>

#include <utility>

namespace fastconv::bindings {
namespace {

struct KeptBlock {
  c10::DataPtr block;
  int64_t bytes = 0;
};

thread_local KeptBlock kept;

}  // namespace

Scratch::Scratch(int64_t floats) : bytes_(floats * static_cast<int64_t>(sizeof(float))) {
  if (kept.bytes >= bytes_ && kept.block) {
    block_ = std::move(kept.block);
    bytes_ = std::exchange(kept.bytes, 0);
  } else {
    block_ = c10::GetCPUAllocator()->allocate(bytes_);
  }
}

Scratch::~Scratch() {
  if (bytes_ > kMaxKeptBytes || bytes_ <= kept.bytes) return;
  kept.block = std::move(block_);
  kept.bytes = bytes_;
}

}  // namespace fastconv::bindings
