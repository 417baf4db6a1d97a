// SPDX-License-Identifier: MIT
// Uninitialised working memory for one kernel call.
#pragma once

#include <c10/core/Allocator.h>

#include <cstdint>

namespace fastconv::bindings {

// Owns at least `floats` floats, 64-byte aligned, until it goes out of scope. The calling thread's
// last block is kept and handed out again while it is at most kMaxKeptBytes large: fresh pages cost
// more than the arithmetic of a small layer.
class Scratch {
 public:
  static constexpr int64_t kMaxKeptBytes = int64_t{64} << 20;

  explicit Scratch(int64_t floats);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* data() const { return static_cast<float*>(block_.get()); }

 private:
  c10::DataPtr block_;
  int64_t bytes_;
};

}  // namespace fastconv::bindings
