// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace fastconv::cpu {

// While it lives, the calling thread reads subnormal numbers as zero and writes them as zero: one
// of them costs the processor more than a hundred cycles. The previous mode comes back afterwards.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  uint32_t before_;
};

}  // namespace fastconv::cpu
