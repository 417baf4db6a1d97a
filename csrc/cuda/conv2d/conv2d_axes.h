// SPDX-License-Identifier: MIT
// One dimension of a convolution as ConvGemm sees it: phases of positions that see the same taps.
// Plain host code, tested against the definition for every small size.
#pragma once

#include <cstdint>
#include <numeric>

#include "cuda/conv2d/conv2d_gemm.h"

namespace fastconv::cuda {

// Positions i < size of one phase. Position i of the result, at dest_first + i * dest_step, is the
// sum over taps r < taps of kernel position first_tap + r * kernel_step, multiplied with source
// position first + i * source_step + r * tap_step where that exists.
struct AxisPhase {
  GemmAxis axis;
  int32_t first_tap;
};

struct AxisPhases {
  bool possible;  // false: too many phases or taps, or too large for 32-bit positions
  int32_t source_step;
  int32_t dest_step;
  int32_t tap_step;
  int32_t kernel_step;
  int32_t count;
  AxisPhase phases[kMaxPhases];
};

// Sizes of one dimension of a convolution.
struct AxisShape {
  int64_t input;
  int64_t output;
  int64_t kernel;
  int64_t stride;
  int64_t padding;
  int64_t dilation;
};

inline bool axis_fits(const AxisShape& s) {
  constexpr int64_t kLargest = int64_t{1} << 29;
  return s.input < kLargest && s.output < kLargest && s.padding < kLargest && s.stride < kLargest &&
         s.dilation < kLargest && s.kernel < kLargest && s.output * s.stride < kLargest &&
         s.kernel * s.dilation < kLargest;
}

// Positions of the result are windows of 1 << log_window: the whole ones that the output holds.
inline AxisPhases forward_axis(const AxisShape& s, int32_t log_window = 0) {
  AxisPhases axis{};
  const int64_t positions = s.output >> log_window;
  if (!axis_fits(s) || s.kernel > kMaxGemmTapsSide || positions == 0) return axis;
  axis.possible = true;
  axis.source_step = static_cast<int32_t>(s.stride);
  axis.dest_step = 1;
  axis.tap_step = static_cast<int32_t>(s.dilation);
  axis.kernel_step = 1;
  axis.count = 1;
  axis.phases[0] = {{static_cast<int32_t>(positions), static_cast<int32_t>(s.kernel),
                     static_cast<int32_t>(-s.padding), 0},
                    0};
  return axis;
}

// Input position y gets a gradient through tap r from output position (y + padding - r * dilation)
// / stride where that divides. Positions of one remainder modulo the stride share their taps, which
// lie stride / gcd(stride, dilation) apart; their output positions then lie dilation / gcd apart.
inline AxisPhases grad_input_axis(const AxisShape& s) {
  AxisPhases axis{};
  if (!axis_fits(s) || s.stride > kMaxPhases) return axis;
  const int64_t common = std::gcd(s.stride, s.dilation);
  const int64_t kernel_step = s.stride / common;
  axis.source_step = 1;
  axis.dest_step = static_cast<int32_t>(s.stride);
  axis.tap_step = static_cast<int32_t>(-(s.dilation / common));
  axis.kernel_step = static_cast<int32_t>(kernel_step);
  for (int64_t phase = 0; phase < s.stride && phase < s.input; ++phase) {
    int64_t first_tap = 0;
    while (first_tap < kernel_step && (phase + s.padding - first_tap * s.dilation) % s.stride != 0)
      ++first_tap;
    const bool any = first_tap < kernel_step && first_tap < s.kernel;
    const int64_t taps = any ? (s.kernel - 1 - first_tap) / kernel_step + 1 : 0;
    if (taps > kMaxGemmTapsSide) return axis;
    const int64_t first = any ? (phase + s.padding - first_tap * s.dilation) / s.stride : 0;
    axis.phases[axis.count++] = {
        {static_cast<int32_t>((s.input - phase + s.stride - 1) / s.stride),
         static_cast<int32_t>(taps), static_cast<int32_t>(first), static_cast<int32_t>(phase)},
        static_cast<int32_t>(any ? first_tap : 0)};
  }
  axis.possible = axis.count > 0;
  return axis;
}

}  // namespace fastconv::cuda
