// SPDX-License-Identifier: MIT
// Brings the next image's operands and results into L2 while one image is computed. Every image is
// new memory; without this a pass over a batch that exceeds the caches waits for most of its lines
// (1.1x to 1.3x the time at batch 512 of LeNet-5). Smaller batches are in the caches already.
// Only conv_block2d*.cpp use it.
#pragma once

#include <cstdint>

#include "cpu/conv_block2d/conv_block2d.h"

namespace fastconv::cpu {

inline bool fetches_ahead(const ConvBlock2dShape& shape) {
  constexpr int64_t kSmallestL2 = int64_t{1} << 20;
  const Conv2dShape& s = shape.conv;
  const int64_t floats = s.in_channels * s.in_pixels() + s.out_channels * shape.cells();
  return s.batch * floats * static_cast<int64_t>(sizeof(float)) > kSmallestL2;
}

inline void fetch_bytes(const void* first, int64_t bytes) {
  constexpr int64_t kLine = 64;
  const char* p = static_cast<const char*>(first);
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(p + i, 0, 2);
  // GCC takes a function that does nothing but this for one without effects, and drops its calls.
  asm volatile("");
}

// Image `image` of an input [batch, in_channels, in_height, in_width], unless it has gaps.
inline void fetch_image(const Conv2dShape& s, const float* input, const Strides4& strides,
                        int64_t image) {
  const int64_t floats = s.in_channels * s.in_pixels();
  const int64_t reach = (s.in_channels - 1) * strides.channel + (s.in_height - 1) * strides.row +
                        (s.in_width - 1) * strides.column + 1;
  if (reach == floats) fetch_bytes(input + image * strides.batch, floats * 4);
}

}  // namespace fastconv::cpu
